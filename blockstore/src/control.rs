//! The control operations: each becomes one record, and is durable when it is answered.
use crate::admit::{Need, Urgency};
use crate::cache::NodeSource;
use crate::error::{Error, ErrorKind, Result};
use crate::format::record::{Change, Cut};
use crate::journal;
use crate::limits::{
    GROUP_MAX, NAME_BYTES_MAX, RECORD_BYTES_MAX, SNAPSHOTS_MAX, VOLUME_BYTES_MAX, VOLUMES_MAX,
};
use crate::pool::Pool;
use crate::state::{State, reservation};
use crate::units::BLOCK_BYTES;

/// Blocks that a checkpoint may need for a changed entry: its block, the leaf above, and a node
/// above that, twice.
const ENTRY_BLOCKS: u64 = 4;

/// `VOLUME` or `VOLUME@SNAPSHOT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a> {
    pub(crate) volume: &'a str,
    pub(crate) snapshot: Option<&'a str>,
}

impl<'a> Name<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        match text.split_once('@') {
            Some((volume, snapshot)) => Self {
                volume,
                snapshot: Some(snapshot),
            },
            None => Self {
                volume: text,
                snapshot: None,
            },
        }
    }
}

fn not_found(what: String) -> Error {
    Error::new(ErrorKind::NotFound, what)
}

/// The rule for names of volumes and snapshots.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > NAME_BYTES_MAX
        || name.chars().any(|c| c.is_control() || c == '/' || c == '@');
    if bad {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{name:?} is not a name: use 1 to {NAME_BYTES_MAX} bytes without control \
                 characters, '/' or '@'"
            ),
        ));
    }
    Ok(())
}

fn check_size(size: u64) -> Result<()> {
    let why = if size == 0 {
        "a volume cannot have size zero".to_owned()
    } else if size > VOLUME_BYTES_MAX {
        format!("{size} bytes is more than the largest volume, {VOLUME_BYTES_MAX} bytes (64 TiB)")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidArgument, why))
}

impl State {
    /// A volume's id, whether or not it still has a head.
    pub(crate) fn volume_id(&self, name: &str) -> Result<u64> {
        let id = self.names.get(name).copied();
        id.ok_or_else(|| not_found(format!("there is no volume {name:?}")))
    }

    /// The id of a volume that is not deleted, and of its head.
    pub(crate) fn live_volume(&self, name: &str) -> Result<(u64, u64)> {
        let id = self.volume_id(name)?;
        match self.volumes.get(&id).map_or(0, |volume| volume.head) {
            0 => Err(not_found(format!(
                "volume {name:?} is deleted; only its snapshots are left"
            ))),
            head => Ok((id, head)),
        }
    }

    /// A snapshot's id.
    pub(crate) fn snapshot_id(&self, volume: &str, snapshot: &str) -> Result<u64> {
        let id = self.volume_id(volume)?;
        let found = self
            .volumes
            .get(&id)
            .and_then(|v| v.snapshots.get(snapshot).copied());
        found.ok_or_else(|| not_found(format!("volume {volume:?} has no snapshot {snapshot:?}")))
    }

    /// The version that a name stands for.
    pub(crate) fn version_named(&self, name: Name<'_>) -> Result<u64> {
        match name.snapshot {
            Some(snapshot) => self.snapshot_id(name.volume, snapshot),
            None => Ok(self.live_volume(name.volume)?.1),
        }
    }

    fn check_new_name(&self, name: &str) -> Result<()> {
        check_name(name)?;
        if self.names.contains_key(name) {
            let message = format!("the name {name:?} is taken by another volume");
            return Err(Error::new(ErrorKind::AlreadyExists, message));
        }
        Ok(())
    }

    fn check_not_written(&self, id: u64, name: &str, what: &str) -> Result<()> {
        let writers = self.volumes.get(&id).map_or(0, |volume| volume.writers);
        if writers > 0 {
            let message = format!(
                "volume {name:?} cannot be {what} while {writers} writers have it open: \
                 disconnect them first"
            );
            return Err(Error::new(ErrorKind::Busy, message));
        }
        Ok(())
    }

    /// Bytes that all volumes together promise their users.
    pub(crate) fn provisioned(&self) -> u64 {
        let heads = self
            .volumes
            .values()
            .filter_map(|volume| self.versions.get(&volume.head));
        heads.map(|head| head.size).sum()
    }

    fn check_overcommit(&self, more: u64, ratio: Option<f64>) -> Result<()> {
        let Some(ratio) = ratio else { return Ok(()) };
        let usable = self.allocator.usable() * BLOCK_BYTES;
        let wanted = self.provisioned().saturating_add(more);
        #[expect(
            clippy::cast_precision_loss,
            reason = "a ratio is not exact to the byte"
        )]
        let beyond = wanted as f64 > usable as f64 * ratio;
        if beyond {
            let message = format!(
                "volumes of {wanted} bytes in all are more than {ratio} times the usable {usable}"
            );
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        Ok(())
    }

    /// What was reserved is there: `more` blocks can be set aside.
    fn check_reservable(&self, more: u64) -> Result<()> {
        let available = self.available(Urgency::Write, 0);
        if more > available {
            let message = format!(
                "{} bytes cannot be set aside: {} are available",
                more * BLOCK_BYTES,
                available * BLOCK_BYTES
            );
            return Err(Error::new(ErrorKind::NoSpace, message));
        }
        Ok(())
    }

    /// Takes a deleted version out if nothing needs it, and then what only it kept; as changes of
    /// the open record.
    fn reap_from(&mut self, mut id: u64, nodes: &NodeSource<'_>) -> Result<()> {
        while self.is_reapable(id) {
            let parent = self.version(id)?.parent;
            let change = Change::Reap { version: id };
            let changes = [change];
            self.enter(&changes, &journal::encode(&changes), 0, nodes)?;
            id = parent;
        }
        Ok(())
    }
}

impl Pool {
    /// Makes a control operation durable: `decide` checks it and names its change under the lock,
    /// and a version that it deletes. It has at most so many `bytes` of names and changes so many
    /// `entries` of the catalogue.
    async fn control<T>(
        &self,
        bytes: usize,
        entries: usize,
        urgency: Urgency,
        mut decide: impl FnMut(&mut State) -> Result<(Change, Option<u64>, T)>,
    ) -> Result<T> {
        let journal_bytes = (bytes + 512).min(RECORD_BYTES_MAX);
        let need = Need {
            volume: 0,
            journal_bytes,
            data: 0,
            nodes: 0,
            spare: entries as u64 * ENTRY_BLOCKS,
            urgency,
        };
        let mut promise = self.admit(need).await?;
        let (record, answer) = {
            let mut state = self.state.lock();
            state.check_writable()?;
            let (change, deleted, answer) = decide(&mut state)?;
            promise.redeem(&mut state);
            let nodes = NodeSource::new(&self.cache, &[]);
            // A record of its own: cuts, and everything that names versions. What a deletion takes
            // out is in it too: nothing would do that after a crash between two records.
            state.journal.seal();
            let changes = [change];
            let record = state.enter(&changes, &journal::encode(&changes), 0, &nodes)?;
            if let Some(deleted) = deleted {
                state.reap_from(deleted, &nodes)?;
            }
            assert!(
                state.journal.newest() == record,
                "a control operation is one record"
            );
            state.journal.seal();
            self.wake(&state);
            (record, answer)
        };
        self.commit(record).await?;
        Ok(answer)
    }

    fn now(&self) -> u64 {
        self.clock.unix_time().as_secs()
    }

    pub(crate) async fn create_volume(&self, name: &str, size: u64, reserve: bool) -> Result<()> {
        check_size(size)?;
        self.control(name.len(), 2, Urgency::Write, |state| {
            state.check_new_name(name)?;
            check_volume_count(state)?;
            state.check_overcommit(size, self.options.overcommit)?;
            if reserve {
                state.check_reservable(reservation(size))?;
            }
            let (volume, head) = (state.fresh_id(), state.fresh_id());
            let (name, created) = (name.to_owned(), self.now());
            let change = Change::CreateVolume {
                volume,
                head,
                name,
                size,
                reserved: reserve,
                created,
            };
            Ok((change, None, ()))
        })
        .await
    }

    pub(crate) async fn clone_volume(&self, source: &str, name: &str) -> Result<()> {
        self.control(name.len() + source.len(), 4, Urgency::Write, |state| {
            let version = state.version_named(Name::parse(source))?;
            state.check_new_name(name)?;
            check_volume_count(state)?;
            state.check_overcommit(state.version(version)?.size, self.options.overcommit)?;
            let (volume, head, ghost) = (state.fresh_id(), state.fresh_id(), state.fresh_id());
            let change = Change::Clone {
                volume,
                head,
                source: version,
                ghost,
                name: name.to_owned(),
                origin: source.to_owned(),
                created: self.now(),
            };
            Ok((change, None, ()))
        })
        .await
    }

    /// Cuts snapshots, all at one instant.
    pub(crate) async fn snapshot(&self, names: &[(String, String)]) -> Result<Vec<u64>> {
        if names.is_empty() || names.len() > GROUP_MAX {
            let message = format!("1 to {GROUP_MAX} snapshots can be cut at once");
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let bytes = names.iter().map(|(_, name)| name.len() + 24).sum();
        self.control(bytes, 3 * names.len(), Urgency::Write, |state| {
            let mut cuts: Vec<Cut> = Vec::new();
            for (volume, name) in names {
                let cut = new_cut(state, volume, name, &cuts)?;
                cuts.push(cut);
            }
            let ids = cuts.iter().map(|cut| cut.version).collect();
            Ok((
                Change::Snapshot {
                    cuts,
                    created: self.now(),
                },
                None,
                ids,
            ))
        })
        .await
    }

    pub(crate) async fn resize_volume(&self, name: &str, size: u64) -> Result<()> {
        check_size(size)?;
        self.control(0, 6, Urgency::Write, |state| {
            let (volume, head) = state.live_volume(name)?;
            let old = state.version(head)?.size;
            if size < old {
                let message = format!(
                    "volume {name:?} has {old} bytes and cannot shrink to {size}: data would be \
                     lost; create a smaller one and copy"
                );
                return Err(Error::new(ErrorKind::InvalidArgument, message));
            }
            state.check_overcommit(size - old, self.options.overcommit)?;
            if state.reserving.contains(&volume) {
                state.check_reservable(reservation(size) - reservation(old))?;
            }
            Ok((Change::Resize { volume, size }, None, ()))
        })
        .await
    }

    pub(crate) async fn rename_volume(&self, name: &str, new: &str) -> Result<()> {
        self.control(new.len(), 1, Urgency::Delete, |state| {
            let volume = state.volume_id(name)?;
            state.check_new_name(new)?;
            Ok((
                Change::Rename {
                    volume,
                    name: new.to_owned(),
                },
                None,
                (),
            ))
        })
        .await
    }

    pub(crate) async fn rollback(&self, volume: &str, snapshot: &str) -> Result<()> {
        self.control(0, 6, Urgency::Write, |state| {
            let (id, old) = state.live_volume(volume)?;
            let from = state.snapshot_id(volume, snapshot)?;
            state.check_not_written(id, volume, "rolled back")?;
            let head = state.fresh_id();
            let created = self.now();
            let change = Change::Rollback {
                volume: id,
                snapshot: from,
                head,
                created,
            };
            Ok((change, Some(old), ()))
        })
        .await
    }

    pub(crate) async fn delete_volume(&self, name: &str) -> Result<()> {
        self.control(0, 6, Urgency::Delete, |state| {
            let (volume, head) = state.live_volume(name)?;
            state.check_not_written(volume, name, "deleted")?;
            Ok((Change::DeleteVolume { volume }, Some(head), ()))
        })
        .await
    }

    pub(crate) async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<()> {
        self.control(0, 6, Urgency::Delete, |state| {
            let version = state.snapshot_id(volume, snapshot)?;
            Ok((Change::DeleteSnapshot { version }, Some(version), ()))
        })
        .await
    }
}

fn check_volume_count(state: &State) -> Result<()> {
    if state.volumes.len() >= VOLUMES_MAX {
        let message = format!("a pool holds at most {VOLUMES_MAX} volumes");
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    Ok(())
}

fn new_cut(state: &mut State, volume: &str, name: &str, cuts: &[Cut]) -> Result<Cut> {
    check_name(name)?;
    let (id, head) = state.live_volume(volume)?;
    let taken = state
        .volumes
        .get(&id)
        .is_some_and(|volume| volume.snapshots.contains_key(name));
    if taken {
        let message = format!("volume {volume:?} has a snapshot {name:?} already");
        return Err(Error::new(ErrorKind::AlreadyExists, message));
    }
    if cuts.iter().any(|cut| cut.head == head) {
        let message = format!("volume {volume:?} is named twice in one group");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    if state.snapshots + cuts.len() as u64 >= SNAPSHOTS_MAX {
        let message = format!("a pool holds at most {SNAPSHOTS_MAX} snapshots");
        return Err(Error::new(ErrorKind::NoSpace, message));
    }
    if state.reserving.contains(&id) {
        // All that the volume has to itself becomes the snapshot's, and is reserved anew.
        state.check_reservable(state.version(head)?.own)?;
    }
    Ok(Cut {
        head,
        version: state.fresh_id(),
        name: name.to_owned(),
    })
}
