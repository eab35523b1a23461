//! The checker on a pool's file or device, which it does not change.
use super::fixed::read_slots;
use super::{Tell, verify, verify_device};
use crate::device::{Device, FileDevice, OpenMode, OverlayDevice};
use crate::error::{Error, ErrorKind, Result};
use crate::info::Progress;
use crate::pool::Pool;
use crate::runtime::{Runtime, SystemClock};
use crate::store::{CheckReport, Options};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

/// Verifies the pool at `path`. `Busy`: it is open elsewhere; `Corrupt`: it has no superblock, or
/// is cut short; `Unsupported`, `NotFound`, `Io`.
pub(crate) fn check_file(path: &Path, tell: Tell<'_>) -> Result<CheckReport> {
    check_device(
        &(Arc::new(FileDevice::open(path, OpenMode::ReadOnly)?) as _),
        tell,
    )
}

/// The same for a device.
pub(super) fn check_device(device: &Arc<dyn Device>, tell: Tell<'_>) -> Result<CheckReport> {
    let below = Arc::clone(device);
    let checked = on_worker(tell, |told| verify_recovered(below, told));
    let why = match checked {
        Ok(report) => return Ok(report),
        Err(error) if error.kind() == ErrorKind::Corrupt => error,
        Err(error) => return Err(error),
    };
    // What cannot be recovered is verified as the last checkpoint left it.
    let below = Arc::clone(device);
    let mut report = on_worker(tell, |told| async move {
        verify_device(&below, &mut |progress| send(&told, progress)).await
    })?;
    let line = format!("I5: the pool cannot be recovered: {why}");
    report.problems.insert(0, line);
    Ok(report)
}

/// Recovers the pool on an overlay and takes a checkpoint there, so that everything is in its place
/// on disk; then verifies all.
async fn verify_recovered(below: Arc<dyn Device>, told: Sender<Progress>) -> Result<CheckReport> {
    let mut problems = superblock_problems(&*below).await;
    let overlay = Arc::new(OverlayDevice::new(below));
    let pool = Pool::open(overlay, Arc::new(SystemClock::new()), Options::default()).await?;
    let refusal = pool.state.lock().refusal.take();
    problems.extend(refusal.map(|refusal| format!("I5: {refusal}")));
    if let Err(error) = pool.checkpoint().await {
        return Err(Error::new(ErrorKind::Corrupt, error.to_string()));
    }
    let mut report = verify(&pool, &mut |progress| send(&told, progress)).await;
    problems.append(&mut report.problems);
    Ok(CheckReport { problems, ..report })
}

/// Runs work on a worker of its own, and tells how far it is until it ends, in whatever way.
fn on_worker<F>(tell: Tell<'_>, work: impl FnOnce(Sender<Progress>) -> F) -> Result<CheckReport>
where
    F: Future<Output = Result<CheckReport>> + Send + 'static,
{
    let failed = |error| Error::io("starting a worker thread", error);
    let runtime = Runtime::start(1, "check").map_err(failed)?;
    let worker = runtime.handles().first();
    let worker = worker.ok_or_else(|| Error::new(ErrorKind::Io, "no worker was started"))?;
    let (sender, told) = mpsc::channel();
    let checked = worker.spawn(work(sender));
    told.iter().for_each(tell);
    let stopped = |error: Error| {
        if error.kind() != ErrorKind::Gone {
            return error;
        }
        let message = "an invariant does not hold, as the message above says";
        Error::new(ErrorKind::Corrupt, message)
    };
    checked.wait().map_err(stopped)
}

fn send(told: &Sender<Progress>, progress: Progress) {
    if let Err(error) = told.send(progress) {
        tracing::debug!("{error}"); // whoever asked is gone
    }
}

/// I8: copies of the superblock that are damaged, and not because power failed while they were
/// written: only one generation is written at a time, and none after the pool was closed.
async fn superblock_problems(device: &dyn Device) -> Vec<String> {
    let slots = read_slots(device).await;
    let newest = slots.iter().flatten().max_by_key(|found| found.generation);
    let closed = newest.is_some_and(|newest| newest.clean);
    let damaged = |slot: usize| slots.get(slot).is_some_and(Result::is_err);
    let both = (damaged(0) || damaged(2)) && (damaged(1) || damaged(3));
    if !closed && !both {
        return Vec::new();
    }
    let errors = slots.iter().filter_map(|found| found.as_ref().err());
    errors.map(|error| format!("I8: {error}")).collect()
}
