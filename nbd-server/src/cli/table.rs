//! Columns that line up.
use std::io::{self, Write};

/// Rows under a heading. Cells are padded to the widest of their column.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    alignment: [Align; COLUMNS],
    rows: Vec<[String; COLUMNS]>,
}

/// Which side of a column is straight.
#[derive(Clone, Copy, Debug)]
pub(super) enum Align {
    Left,
    Right,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table of a heading only.
    pub(super) fn new(heading: [(&str, Align); COLUMNS]) -> Self {
        Self {
            alignment: heading.map(|(_, align)| align),
            rows: vec![heading.map(|(text, _)| text.to_owned())],
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    /// Writes all rows, without blanks at the end of a line.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut widths = [0; COLUMNS];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let cells = row.iter().zip(widths).zip(self.alignment);
            let padded = cells.map(|((cell, width), align)| match align {
                Align::Left => format!("{cell:<width$}"),
                Align::Right => format!("{cell:>width$}"),
            });
            let line = padded.collect::<Vec<_>>().join("  ");
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_for_any_letters() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(["données".into(), "1 GiB".into()]);
        table.row(["a".into(), "512 B".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME      SIZE\ndonnées  1 GiB\na        512 B\n");
    }
}
