//! What the checker found, as bounded lines.

/// Lines that a report holds; what is beyond is counted.
const LINES_MAX: usize = 1000;

/// Problems, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    lines: Vec<String>,
    more: u64,
}

impl Findings {
    pub(super) fn add(&mut self, line: String) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(line);
        } else {
            self.more += 1;
        }
    }

    /// The lines, and one that counts what is not shown.
    pub(super) fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more", self.more));
        }
        self.lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_bound_are_counted() {
        let mut findings = Findings::default();
        (0..LINES_MAX + 7).for_each(|n| findings.add(n.to_string()));
        let lines = findings.into_lines();
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert_eq!(lines[LINES_MAX], "and 7 more");
    }
}
