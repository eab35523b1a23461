//! Why a command failed: what, why, what to do; on one line, or as JSON.
use blockstore::{Error, ErrorKind};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::daemon::{StartError, Step};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The store refused, here or in the daemon.
    Store(Subject, Error),
    /// The daemon did not start.
    Start(StartError),
    /// Nobody answers on the control socket.
    Unreachable(PathBuf, io::Error),
    /// Arguments or settings that make no sense, but only together.
    Usage(String),
    /// Standard output does not take what was written.
    Output(io::Error),
    /// The system refused something that is neither the store's nor the output's.
    System(io::Error),
}

/// What a command was about when the store refused; it decides what to advise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A pool to be made.
    NewPool,
    /// A pool to be opened here.
    Pool,
    /// A volume or snapshot of the daemon's.
    Volume,
}

impl Failure {
    /// Says on stderr that `what` failed. A reader of stdout that has seen enough is no failure.
    pub(super) fn report(self, what: &str, json: bool) -> ExitCode {
        if matches!(&self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        let (kind, message) = (self.kind(), self.message(what));
        write_error(kind, &message, json);
        ExitCode::from(if matches!(self, Self::Usage(_)) { 2 } else { 1 })
    }

    /// The `kind` of the JSON form.
    fn kind(&self) -> &'static str {
        match self {
            Self::Store(_, error) | Self::Start(StartError { error, .. }) => kind(error.kind()),
            Self::Unreachable(..) => "unreachable",
            Self::Usage(_) => "usage",
            Self::Output(_) | Self::System(_) => "io",
        }
    }

    /// One line: what, why, what to do.
    fn message(&self, what: &str) -> String {
        let (why, remedy) = match self {
            Self::Store(subject, error) => (error.to_string(), remedy(*subject, error.kind())),
            Self::Start(StartError { step, error }) => {
                (error.to_string(), start_remedy(*step, error.kind()))
            }
            Self::Unreachable(path, error) => (
                format!("cannot reach the daemon on {}: {error}", path.display()),
                Some(
                    "start it with `basalt serve POOL`, or name its socket with --control PATH or \
                     in BASALT_CONTROL",
                ),
            ),
            Self::Usage(message) => (message.clone(), None),
            Self::Output(error) => (format!("standard output: {error}"), None),
            Self::System(error) => (error.to_string(), None),
        };
        let remedy = remedy.map_or_else(String::new, |remedy| format!("; {remedy}"));
        let line = format!("{what}: {why}{remedy}");
        line.split(['\n', '\r']).collect::<Vec<_>>().join(" ")
    }
}

/// Reports arguments that clap refused, or prints the help that was asked for.
pub(super) fn report_usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<_> = first.split_whitespace().collect();
        let message = words.join(" ");
        write_error("usage", message.trim_start_matches("error: "), true);
    } else {
        // Nobody is left to tell if this cannot be written.
        drop(error.print());
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn write_error(kind: &str, message: &str, json: bool) {
    let line = if json {
        serde_json::json!({"error": {"kind": kind, "message": message}}).to_string()
    } else {
        format!("basalt: {message}")
    };
    // Nobody is left to tell if this cannot be written.
    drop(writeln!(io::stderr(), "{line}"));
}

/// The names of the kinds in JSON.
fn kind(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::AlreadyExists => "already_exists",
        ErrorKind::InvalidArgument => "invalid_argument",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::ReadOnly => "read_only",
        ErrorKind::Busy => "busy",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Io => "io",
        ErrorKind::Poisoned => "poisoned",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Gone => "gone",
        _ => "other",
    }
}

/// What to do about an error, where neither its message nor common sense says it.
fn remedy(subject: Subject, kind: ErrorKind) -> Option<&'static str> {
    use Subject::{NewPool, Pool, Volume};
    match (subject, kind) {
        (NewPool, ErrorKind::NoSpace) => Some("choose a smaller --size or another file system"),
        (NewPool | Pool, ErrorKind::Busy) => Some("stop that process first"),
        (Pool, ErrorKind::NotFound) => Some("make it with `basalt init POOL --size SIZE`"),
        (Volume, ErrorKind::NotFound) => {
            Some("see `basalt volume list` and `basalt snapshot list`")
        }
        (Volume, ErrorKind::AlreadyExists) => Some("choose another name"),
        (Volume, ErrorKind::NoSpace) => Some("see `basalt status`"),
        (Volume, ErrorKind::Poisoned) => Some("restart `basalt serve`, and see its log"),
        (Volume, ErrorKind::Unsupported) => Some("update the daemon to this version"),
        (Volume, ErrorKind::Gone) => Some("start `basalt serve` again"),
        (Volume, ErrorKind::Corrupt) => Some("`basalt scrub start --wait` lists the damage"),
        (_, ErrorKind::Io) => Some("see the kernel's log"),
        _ => None,
    }
}

/// What to do when the daemon does not start.
fn start_remedy(step: Step, kind: ErrorKind) -> Option<&'static str> {
    match (step, kind) {
        (Step::Open, ErrorKind::NotFound) => {
            Some("make it with `basalt init POOL --size SIZE`, or add --create SIZE")
        }
        (Step::Create, ErrorKind::NoSpace) => Some("choose a smaller size, or another file system"),
        (Step::Create | Step::Open, kind) => remedy(Subject::Pool, kind),
        (Step::Volumes, ErrorKind::NoSpace) => Some("ask for less, or use a larger pool"),
        (Step::Volumes, kind) => remedy(Subject::Volume, kind),
        (Step::Listen, ErrorKind::InvalidArgument) => Some(
            "listen on a loopback address or a unix socket, or, if you know better, add \
             --i-know-this-network-can-read-and-write-my-data",
        ),
        (Step::Listen, _) => Some("choose another address with --listen"),
        (Step::Control, _) => Some("choose another socket with --control"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_and_what_to_do_on_one_line() {
        let error = Error::new(ErrorKind::NotFound, "there is no volume \"a\"");
        let failure = Failure::Store(Subject::Volume, error);
        assert_eq!(
            failure.message("volume show a"),
            "volume show a: there is no volume \"a\"; see `basalt volume list` and `basalt \
             snapshot list`"
        );
        let failure = Failure::Usage("one\ntwo".into());
        assert_eq!(failure.message("serve"), "serve: one two");
    }

    #[test]
    fn an_unreachable_daemon_is_named_with_its_socket_and_the_way_out() {
        let cause = io::Error::from(io::ErrorKind::NotFound);
        let failure = Failure::Unreachable("/run/x.sock".into(), cause);
        let message = failure.message("status");
        for said in ["/run/x.sock", "basalt serve", "--control", "BASALT_CONTROL"] {
            assert!(message.contains(said), "{said} is not in {message}");
        }
        assert_eq!(failure.kind(), "unreachable");
    }
}
