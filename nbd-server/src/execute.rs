//! A command on a volume becomes an answer: where front ends meet the store.
use crate::limits::EXTENTS_MAX;
use crate::nbd::{Answer, Command, Context, total};
use blockstore::{Error, ErrorKind, Extent, Reply, Request, Segment, Volume};
use bytes::Bytes;

/// Does one command to its end. `payload` is empty but for a write. On a worker thread.
pub(crate) async fn execute(
    volume: &Volume,
    contexts: &[Context],
    command: Command,
    payload: Bytes,
) -> Result<Answer, Error> {
    match command {
        Command::Read {
            offset,
            length,
            whole,
        } => {
            let segments = read(volume, offset, length.into()).await?;
            return Ok(Answer::Data {
                offset,
                segments,
                whole,
            });
        }
        Command::Status {
            offset,
            length,
            one,
        } => {
            return status(volume, contexts, offset, length.into(), one).await;
        }
        _ => {}
    }
    if let Some(request) = change(command, payload) {
        volume.execute(request).await?;
    }
    Ok(Answer::Done)
}

/// The request of a command whose answer has no data, if there is anything to do.
fn change(command: Command, data: Bytes) -> Option<Request> {
    Some(match command {
        Command::Write { offset, fua, .. } => Request::Write { offset, data, fua },
        Command::Zero {
            offset,
            length,
            allocate,
            fua,
        } => Request::Zero {
            offset,
            length: length.into(),
            allocate,
            fua,
        },
        Command::Trim {
            offset,
            length,
            fua,
        } => Request::Trim {
            offset,
            length: length.into(),
            fua,
        },
        Command::Flush => Request::Flush,
        _ => return None,
    })
}

/// Reads a range, which may be empty.
async fn read(volume: &Volume, offset: u64, length: u64) -> Result<Vec<Segment>, Error> {
    if length == 0 {
        return Ok(Vec::new());
    }
    let Reply::Data(segments) = volume.execute(Request::Read { offset, length }).await? else {
        return Err(Error::new(ErrorKind::Io, "a read returned no data"));
    };
    // A client cannot recover from a reply of another length than it asked for.
    assert_eq!(total(&segments), length, "bytes read at {offset}");
    Ok(segments)
}

/// Extents of the range in each context.
async fn status(
    volume: &Volume,
    contexts: &[Context],
    offset: u64,
    length: u64,
    one: bool,
) -> Result<Answer, Error> {
    let max = if one { 1 } else { EXTENTS_MAX };
    let mut described = Vec::with_capacity(contexts.len());
    for context in contexts {
        let extents = match context {
            Context::Allocation => volume.extents(offset, length, max).await?,
            Context::DirtySince(snapshot) | Context::DirtyBitmap(snapshot) => {
                volume.dirty_since(snapshot, offset, length, max).await?
            }
        };
        assert!(
            covers_from(&extents, offset, length),
            "extents of {length} bytes at {offset}"
        );
        described.push(context.describe(&extents));
    }
    Ok(Answer::Status(described))
}

/// "consecutive portions of the file starting from specified offset", at least one of them, and
/// "the sum of the length fields … MUST not be greater than the overall length of the request".
fn covers_from(extents: &[Extent], offset: u64, length: u64) -> bool {
    let mut end = offset;
    let follows = extents.iter().all(|extent| {
        let follows = extent.offset == end && extent.length > 0;
        end = end.saturating_add(extent.length);
        follows
    });
    follows && end > offset && end <= offset + length
}
