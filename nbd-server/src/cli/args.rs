//! What can be written on the command line, and its help.
use clap::{Args, Parser, Subcommand};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::config::Settings;
use crate::size::Size;

const EXAMPLES: &str = "\
A pool, a volume, and a server, in one command; no root is needed:
  basalt serve demo.pool --create 10G --volume demo=4G

Then, in another shell, with the BASALT_CONTROL that it printed:
  basalt snapshot create demo@before
  basalt snapshot diff demo@before demo
  basalt volume clone demo@before copy

SIZE is a number of bytes, or a number with K, M, G, T, P or E (powers of 1024), as in 512M, 1.5T or
10GiB. A name is 1 to 128 bytes of UTF-8 without control characters, '/' or '@'.

Exit codes: 0 done; 1 failed, with the reason on stderr, or damage was found; 2 bad usage.";

/// Thin, checksummed, snapshottable block devices from one file or disk
#[derive(Debug, Parser)]
#[command(name = "basalt", version, after_help = EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub(super) struct Arguments {
    /// The daemon's control socket [default: that in `BASALT_CONTROL`, else
    /// /run/basalt/control.sock]
    #[arg(long, global = true, value_name = "PATH", display_order = 900)]
    pub control: Option<PathBuf>,
    /// Print JSON: sizes in bytes, times in UTC (RFC 3339); errors too, on stderr
    #[arg(long, global = true, display_order = 901)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a pool in a new file or on a block device
    Init(Init),
    /// Serve a pool's volumes over NBD until SIGTERM or SIGINT
    ///
    /// Prints where to connect, then serves. The first SIGTERM or SIGINT stops in order: requests
    /// in flight are finished, everything is made durable, the exit code is 0. A second one ends
    /// the process at once, which loses nothing that was flushed.
    ///
    /// The control socket is --control PATH; else, for root, /run/basalt/control.sock, if nobody
    /// has it; else POOL.control.sock. Export names are NAME, and VOLUME@NAME for a snapshot,
    /// read-only; the empty name is the only volume, if there is one.
    Serve(Serve),
    /// Create, list, change and delete volumes
    #[command(subcommand)]
    Volume(Volume),
    /// Cut, list, compare and delete snapshots
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Show the pool's space and the daemon's state
    Status,
    /// Verify a pool that is not being served, changing nothing
    Check(Check),
    /// Verify every block of the served pool, in the background
    #[command(subcommand)]
    Scrub(Scrub),
}

#[derive(Args, Debug)]
pub(super) struct Init {
    /// The file to create, or the block device to use
    pub pool: PathBuf,
    /// Size of the pool; a block device is used whole if it is not given
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub size: Option<Size>,
    /// Overwrite what is there, although it is an existing file or carries a signature
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub(super) struct Serve {
    #[command(flatten)]
    pub settings: Settings,
    /// Read settings from this TOML file: a key for each flag of `serve`, and `pool` and `control`;
    /// flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(super) struct Check {
    /// The pool: a file or a block device
    pub pool: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// Create an empty volume; it takes space as it is written
    Create {
        /// Its name
        name: String,
        /// Its size
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
        size: Size,
        /// Set space for all of it aside now
        #[arg(long)]
        reserve: bool,
    },
    /// List all volumes
    List,
    /// Show a volume and its snapshots
    Show {
        /// Its name
        name: String,
    },
    /// Grow a volume; clients may stay connected
    Resize {
        /// Its name
        name: String,
        /// Its new size, not below the present one
        #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
        size: Size,
    },
    /// Rename a volume
    Rename {
        /// Its name
        name: String,
        /// Its new name
        new: String,
    },
    /// Create a volume with the content of another or of a snapshot, sharing all its space
    Clone {
        /// VOLUME or VOLUME@SNAPSHOT
        source: String,
        /// The new volume's name
        name: String,
    },
    /// Make a volume's content its snapshot's again; refused while a writer is connected
    ///
    /// What was written since is gone, unless another snapshot holds it. Later snapshots stay.
    Rollback {
        /// What to go back to
        #[arg(value_name = "NAME@SNAPSHOT")]
        snapshot: SnapshotName,
    },
    /// Delete a volume; its snapshots stay, and its name is taken until the last is deleted
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Snapshot {
    /// Cut snapshots, all at one instant
    Create {
        /// The volume and the snapshot's name
        #[arg(value_name = "VOLUME@NAME", required = true)]
        snapshots: Vec<SnapshotName>,
    },
    /// List the snapshots of one volume or of all, oldest first
    List {
        /// The volume
        volume: Option<String>,
    },
    /// Delete a snapshot
    Delete {
        /// The volume and the snapshot's name
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: SnapshotName,
    },
    /// List what changed between a snapshot and a later one or the volume itself
    ///
    /// Each line is an offset, a length, both in bytes, and `data` or `hole`: what the newer
    /// version has there. Ranges that are not listed are equal.
    Diff {
        /// The older version
        #[arg(value_name = "VOLUME@FROM")]
        from: SnapshotName,
        /// The newer version
        #[arg(value_name = "VOLUME[@TO]")]
        to: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Scrub {
    /// Start verifying every block in use
    Start {
        /// Wait until it ends; the exit code is 1 if damage was found
        #[arg(long)]
        wait: bool,
    },
    /// Stop it; started again, it goes on from there
    Stop,
    /// Show how far it is and what it found
    Status {
        /// Wait until it ends; the exit code is 1 if damage was found
        #[arg(long)]
        wait: bool,
    },
}

impl Command {
    /// The command and its object, as an error begins.
    pub(super) fn what(&self) -> String {
        match self {
            Self::Init(init) => format!("init {}", init.pool.display()),
            Self::Serve(Serve { settings, .. }) => match &settings.pool {
                Some(pool) => format!("serve {}", pool.display()),
                None => "serve".into(),
            },
            Self::Volume(volume) => volume.what(),
            Self::Snapshot(snapshot) => snapshot.what(),
            Self::Status => "status".into(),
            Self::Check(check) => format!("check {}", check.pool.display()),
            Self::Scrub(_) => "scrub".into(),
        }
    }
}

impl Volume {
    fn what(&self) -> String {
        let (verb, name) = match self {
            Self::List => return "volume list".into(),
            Self::Create { name, .. } => ("create", name.clone()),
            Self::Show { name } => ("show", name.clone()),
            Self::Resize { name, .. } => ("resize", name.clone()),
            Self::Rename { name, .. } => ("rename", name.clone()),
            Self::Clone { name, .. } => ("clone", name.clone()),
            Self::Rollback { snapshot } => ("rollback", snapshot.to_string()),
            Self::Delete { name } => ("delete", name.clone()),
        };
        format!("volume {verb} {name}")
    }
}

impl Snapshot {
    fn what(&self) -> String {
        match self {
            Self::Create { snapshots } if snapshots.len() > 1 => "snapshot create".into(),
            Self::Create { snapshots } => {
                let name = snapshots.first().map(ToString::to_string);
                format!("snapshot create {}", name.unwrap_or_default())
            }
            Self::List { .. } => "snapshot list".into(),
            Self::Delete { snapshot } => format!("snapshot delete {snapshot}"),
            Self::Diff { from, to } => format!("snapshot diff {from} {to}"),
        }
    }
}

/// `VOLUME@NAME`. Only the `@` is looked at here; the store judges the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotName {
    pub volume: String,
    pub name: String,
}

impl FromStr for SnapshotName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('@') {
            Some((volume, name)) if !volume.is_empty() && !name.is_empty() => Ok(Self {
                volume: volume.into(),
                name: name.into(),
            }),
            _ => Err("a snapshot is written VOLUME@NAME".into()),
        }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound_and_the_help_fits() {
        Arguments::command().debug_assert();
        let help = Arguments::command().render_long_help().to_string();
        assert!(
            help.lines().all(|line| line.chars().count() <= 100),
            "{help}"
        );
        for later in ["attach", "detach", "undelete", "takeover", "http"] {
            assert!(!help.contains(later), "{later}");
        }
    }

    #[test]
    fn global_flags_work_anywhere() {
        for line in [
            "basalt --control c.sock --json volume list",
            "basalt volume --control c.sock list --json",
            "basalt volume list --json --control=c.sock",
        ] {
            let parsed = parse(line).unwrap();
            assert!(parsed.json, "{line}");
            assert_eq!(parsed.control, Some("c.sock".into()), "{line}");
        }
        let parsed = parse("basalt serve p --control c.sock").unwrap();
        assert_eq!(parsed.control, Some("c.sock".into()));
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        for line in [
            "init p --size 1G --force",
            "serve p",
            "serve --config c.toml",
            "serve p --create 1G --volume a=1M --volume b=1M --listen unix:s --listen tcp:[::1]:0 \
             --overcommit 1.5 --workers 2 --i-know-this-network-can-read-and-write-my-data",
            "volume create a --size 1G --reserve",
            "volume list",
            "volume show a",
            "volume resize a --size 2GiB",
            "volume rename a b",
            "volume clone a@s b",
            "volume clone a b",
            "volume rollback a@s",
            "volume delete a",
            "snapshot create a@s b@s",
            "snapshot list",
            "snapshot list a",
            "snapshot delete a@s",
            "snapshot diff a@s a",
            "snapshot diff a@s a@t",
            "status",
            "check p",
            "scrub start --wait",
            "scrub stop",
            "scrub status",
        ] {
            parse(&format!("basalt {line}")).unwrap_or_else(|e| panic!("{line}: {e}"));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (line, said) in [
            ("volume create a", "--size"),
            ("volume create a --size 0", "is zero"),
            ("volume create a --size -1G", "is negative"),
            ("volume create a --size 1GB", "unknown unit"),
            ("volume resize a --size 17E", "too large"),
            ("snapshot create", "VOLUME@NAME"),
            ("snapshot create a", "a snapshot is written VOLUME@NAME"),
            ("snapshot delete a@", "a snapshot is written VOLUME@NAME"),
            ("volume rollback a", "a snapshot is written VOLUME@NAME"),
            ("serve p --listen p.sock", "unix:PATH"),
            ("serve p --volume a", "NAME=SIZE"),
            ("serve p --workers 0", "workers"),
            ("serve p --overcommit nan", "not a number above zero"),
            ("volume set a", "unrecognized subcommand"),
            ("device list", "unrecognized subcommand"),
        ] {
            let error = parse(&format!("basalt {line}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(said), "{line}: {error}");
        }
    }
}
