//! One pool, one process: a lock on the pool's file or device, and who holds it.
use crate::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock, fstat, major, minor};
use rustix::io::Errno;
use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long the locks of a dead process are waited for.
const DYING: Duration = Duration::from_secs(10);
/// How often they are looked at meanwhile.
const AGAIN: Duration = Duration::from_millis(5);

/// Takes the lock, alone or shared. It belongs to the open file, so it conflicts within a process
/// too, goes along when the descriptor is handed to another process, and ends with it.
///
/// # Errors
/// `Busy` names the process that has it; `Io` if the file system has no locks.
pub(super) fn take(file: &File, path: &Path, shared: bool) -> Result<()> {
    let operation = if shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    let deadline = Instant::now() + DYING;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) => {
                let holder = holder(file);
                if Instant::now() > deadline || holder.is_none_or(is_alive) {
                    return Err(busy(path, holder));
                }
                thread::park_timeout(AGAIN);
            }
            Err(error) => {
                let context = format!("cannot lock pool {}", path.display());
                return Err(Error::io(context, error.into()));
            }
        }
    }
}

/// Whether a process still runs. One that was killed keeps its locks until the kernel has ended its
/// ring's operations, which must not land after somebody else has opened the pool: worth a wait.
fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // "4711 (name) S ...": the name may hold anything, so the state is after its last bracket.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// The error that says who has the pool open.
pub(super) fn busy(path: &Path, holder: Option<u32>) -> Error {
    let path = path.display();
    let by = holder.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    );
    Error::new(ErrorKind::Busy, format!("pool {path} is open in {by}"))
}

/// The process that holds a lock on this file, if the system tells (see `proc_locks(5)`).
pub(super) fn holder(file: &File) -> Option<u32> {
    let stat = fstat(file).ok()?;
    let object = format!(
        "{:02x}:{:02x}:{}",
        major(stat.st_dev),
        minor(stat.st_dev),
        stat.st_ino
    );
    find(&fs::read_to_string("/proc/locks").ok()?, &object)
}

fn find(locks: &str, object: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, locked, ..] = fields[..] else {
            return None;
        };
        if locked == object {
            pid.parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_that_ended_is_not_alive() {
        assert!(super::is_alive(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(!super::is_alive(child.id()));
    }

    #[test]
    fn the_holder_is_found_among_other_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 fe:00:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 11 fe:00:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ  12 fe:00:78 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE -1 fe:00:77 0 EOF\n\
                     5: FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF\n";
        assert_eq!(super::find(locks, "fe:00:77"), Some(13));
        assert_eq!(super::find(locks, "fe:00:79"), None);
    }
}
