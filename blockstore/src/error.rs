//! The one public error: a kind to match on, context to read, the cause.
use std::fmt;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for code to match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No volume, snapshot or pool of that name.
    NotFound,
    /// The name is taken, or the file or device already holds something.
    AlreadyExists,
    /// An argument breaks a rule that the message states.
    InvalidArgument,
    /// The pool has no space for it; nothing was changed.
    NoSpace,
    /// The volume is a snapshot, or was opened read-only.
    ReadOnly,
    /// It is in use: a writer is connected, or another process has the pool.
    Busy,
    /// What the device returned is not what was written there.
    Corrupt,
    /// The device failed.
    Io,
    /// A write that orders others failed earlier; the pool refuses changes until it is reopened.
    Poisoned,
    /// The pool was made by a version, or uses a feature, that this one does not know.
    Unsupported,
    /// The volume was deleted, or the store closed, since this handle was opened.
    Gone,
}

/// What went wrong, with the object and number concerned, and the cause.
#[derive(Clone, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<std::sync::Arc<std::io::Error>>,
}

impl Error {
    /// An error without a further cause. `context` is lower-case and names object and number.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// The device, or the file system under it, failed while doing `context`.
    pub fn io(context: impl fmt::Display, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            context: format!("{context}: {source}"),
            source: Some(source.into()),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.context)
    }
}
