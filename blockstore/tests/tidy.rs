//! The shape of the source tree, kept by a test because nobody keeps it by memory.
//!
//! Each rule exists for a reader: files that say their job, fit in one's head and on a screen, and
//! keep `unsafe` where it is looked at. The list of files is git's, so build output never counts.
#![expect(clippy::expect_used, reason = "a test stops at the first surprise")]
use std::path::{Path, PathBuf};
use std::process::Command;

/// The files that may say `unsafe`, behind signatures that cannot be misused.
const UNSAFE_FILES: &[&str] = &[
    "blockstore/src/device/buffer.rs",
    "blockstore/src/runtime/queues.rs",
    "blockstore/src/runtime/ring.rs",
    "blockstore/src/runtime/tests.rs",
    "nbd-server/src/socket.rs",
];
/// Where files by other people are kept unchanged.
const FOREIGN_DIRECTORIES: &[&str] = &["proto/"];

const LINES_MAX: usize = 600;
const COLUMNS_MAX: usize = 100;
const FILE_BYTES_MAX: usize = 1 << 20;

/// A file of the repository, by its path from the root.
struct Source {
    path: String,
    bytes: Vec<u8>,
}

impl Source {
    fn is_rust(&self) -> bool {
        Path::new(&self.path)
            .extension()
            .is_some_and(|extension| extension == "rs")
    }

    fn is_foreign(&self) -> bool {
        FOREIGN_DIRECTORIES
            .iter()
            .any(|directory| self.path.contains(directory))
    }
}

/// Puts a forbidden word together, so that this file does not hold it.
fn word(parts: [&str; 2]) -> String {
    parts.concat()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every file that git knows or would add.
fn sources() -> Vec<Source> {
    let list = Command::new("git")
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git can be run");
    assert!(
        list.status.success(),
        "not a clone: {}",
        String::from_utf8_lossy(&list.stderr)
    );
    let names = String::from_utf8(list.stdout).expect("file names are UTF-8");
    let exists = |name: &&str| root().join(name).is_file();
    let read = |name: &str| Source {
        path: name.to_owned(),
        bytes: std::fs::read(root().join(name)).expect("a listed file can be read"),
    };
    names
        .split_terminator('\0')
        .filter(exists)
        .map(read)
        .collect()
}

/// What is wrong with one line of a Rust file.
fn line_faults(source: &Source, line: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if line.chars().count() > COLUMNS_MAX {
        faults.push(format!("more than {COLUMNS_MAX} columns"));
    }
    if line.ends_with([' ', '\t']) {
        faults.push("ends with a blank".to_owned());
    }
    let leftovers = [
        ["FIX", "ME"],
        ["TO", "DO"],
        ["XX", "X:"],
        ["todo", "!("],
        ["dbg", "!("],
        ["#[al", "low("],
    ];
    for leftover in leftovers.map(word) {
        if line.contains(&leftover) {
            faults.push(format!("has {leftover}"));
        }
    }
    let code = line.split("//").next().unwrap_or_default();
    let says_unsafe = ["{", "fn ", "impl ", "trait ", "extern "]
        .iter()
        .any(|after| code.contains(&word(["unsafe ", after])));
    if says_unsafe && !UNSAFE_FILES.contains(&source.path.as_str()) {
        faults.push("has unsafe outside the listed files".to_owned());
    }
    faults
}

/// What is wrong with one Rust file.
fn rust_faults(source: &Source) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(&source.bytes) else {
        return vec![format!("{}: not UTF-8", source.path)];
    };
    let mut faults = Vec::new();
    if !text.starts_with("//! ") {
        faults.push(format!(
            "{}: does not open by saying its one job in `//! `",
            source.path
        ));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        faults.push(format!(
            "{}: {lines} lines, at most {LINES_MAX}",
            source.path
        ));
    }
    for (index, line) in text.lines().enumerate() {
        let at = format!("{}:{}", source.path, index + 1);
        faults.extend(
            line_faults(source, line)
                .into_iter()
                .map(|fault| format!("{at}: {fault}")),
        );
    }
    faults
}

/// What is wrong with any file: too big for a source tree, or tied to one machine.
fn file_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if source.bytes.len() > FILE_BYTES_MAX {
        faults.push(format!("{}: {} bytes", source.path, source.bytes.len()));
    }
    let text = String::from_utf8_lossy(&source.bytes);
    let machine_paths = [["/wor", "k/"], ["/roo", "t/"], ["/hom", "e/"]].map(word);
    for (index, line) in text.lines().enumerate() {
        for path in machine_paths
            .iter()
            .filter(|path| line.contains(path.as_str()))
        {
            faults.push(format!(
                "{}:{}: names {path} of one machine",
                source.path,
                index + 1
            ));
        }
    }
    faults
}

#[test]
fn the_source_tree_is_tidy() {
    let sources = sources();
    let ours: Vec<&Source> = sources
        .iter()
        .filter(|source| !source.is_foreign())
        .collect();
    let rust = ours.iter().filter(|source| source.is_rust());
    assert!(
        rust.clone().count() > 10,
        "the list of sources is not believable"
    );

    let mut faults: Vec<String> = ours.iter().flat_map(|source| file_faults(source)).collect();
    faults.extend(rust.flat_map(|source| rust_faults(source)));
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// A file that deserved its place in the list may lose its last `unsafe`; then it leaves the list.
#[test]
fn the_list_of_unsafe_files_is_not_longer_than_it_must_be() {
    for path in UNSAFE_FILES {
        if let Ok(text) = std::fs::read_to_string(root().join(path)) {
            assert!(
                text.contains("unsafe"),
                "{path} has no unsafe code: take it off the list"
            );
        }
    }
}
