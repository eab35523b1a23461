//! What a command prints on stdout: lines and tables for people, or JSON.
use blockstore::{CheckReport, Extent, PoolStatus, ScrubStatus, SnapshotInfo, VolumeInfo};
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::time::SystemTime;

use super::json;
use super::table::{Align, Table};
use crate::control::client::DaemonInfo;
use crate::size::human;

/// Where a command's results go, and in which form.
#[derive(Debug)]
pub(super) struct Output<W: Write> {
    json: bool,
    out: BufWriter<W>,
    /// An array of extents was begun.
    extents: bool,
}

impl<W: Write> Output<W> {
    pub(super) fn new(json: bool, out: W) -> Self {
        Self {
            json,
            out: BufWriter::new(out),
            extents: false,
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// One value: as a line of JSON, or in words.
    pub(super) fn said(&mut self, value: &impl Serialize, words: &str) -> io::Result<()> {
        if !self.json {
            return writeln!(self.out, "{words}");
        }
        serde_json::to_writer(&mut self.out, value)?;
        writeln!(self.out)
    }

    /// One value as indented JSON.
    fn pretty(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.out, value)?;
        writeln!(self.out)
    }

    /// What was done to a volume, and how it is now.
    pub(super) fn changed(&mut self, volume: &VolumeInfo, words: &str) -> io::Result<()> {
        self.said(&json::Volume::from(volume), words)
    }

    pub(super) fn volumes(&mut self, volumes: &[VolumeInfo]) -> io::Result<()> {
        if self.json {
            return self.pretty(&volumes.iter().map(json::Volume::from).collect::<Vec<_>>());
        }
        if volumes.is_empty() {
            return writeln!(self.out, "no volumes");
        }
        let mut table = Table::new([
            ("NAME", Align::Left),
            ("SIZE", Align::Right),
            ("USED", Align::Right),
            ("EXCLUSIVE", Align::Right),
            ("SNAPSHOTS", Align::Right),
            ("WRITERS", Align::Right),
            ("CREATED", Align::Left),
            ("ORIGIN", Align::Left),
        ]);
        for volume in volumes {
            let deleted = if volume.deleted { " (deleted)" } else { "" };
            table.row([
                format!("{}{deleted}", volume.name),
                human(volume.usage.logical),
                human(volume.usage.used),
                human(volume.usage.exclusive),
                volume.snapshots.to_string(),
                volume.writers.to_string(),
                seconds(volume.created),
                volume.origin.clone().unwrap_or_default(),
            ]);
        }
        table.write(&mut self.out)
    }

    pub(super) fn volume(
        &mut self,
        volume: &VolumeInfo,
        snapshots: &[SnapshotInfo],
    ) -> io::Result<()> {
        if self.json {
            return self.pretty(&json::VolumeAndSnapshots::new(volume, snapshots));
        }
        let state = if volume.deleted {
            "deleted; its snapshots remain"
        } else {
            "in use"
        };
        let origin = volume.origin.as_deref().unwrap_or("-");
        self.facts(&[
            ("volume", volume.name.clone()),
            ("state", state.into()),
            ("size", human(volume.usage.logical)),
            ("used", human(volume.usage.used)),
            ("exclusive", human(volume.usage.exclusive)),
            (
                "reserved",
                if volume.reserved { "yes" } else { "no" }.into(),
            ),
            ("created", seconds(volume.created)),
            ("origin", origin.into()),
            ("writers", volume.writers.to_string()),
            ("snapshots", volume.snapshots.to_string()),
        ])?;
        if snapshots.is_empty() {
            return Ok(());
        }
        writeln!(self.out)?;
        self.snapshot_table(snapshots)
    }

    /// Snapshots that were cut just now.
    pub(super) fn cut(&mut self, snapshots: &[SnapshotInfo]) -> io::Result<()> {
        if self.json {
            return self.snapshots(snapshots);
        }
        for snapshot in snapshots {
            writeln!(
                self.out,
                "created snapshot {}@{}",
                snapshot.volume, snapshot.name
            )?;
        }
        Ok(())
    }

    pub(super) fn snapshots(&mut self, snapshots: &[SnapshotInfo]) -> io::Result<()> {
        if self.json {
            return self.pretty(
                &snapshots
                    .iter()
                    .map(json::Snapshot::from)
                    .collect::<Vec<_>>(),
            );
        }
        if snapshots.is_empty() {
            return writeln!(self.out, "no snapshots");
        }
        self.snapshot_table(snapshots)
    }

    fn snapshot_table(&mut self, snapshots: &[SnapshotInfo]) -> io::Result<()> {
        let mut table = Table::new([
            ("SNAPSHOT", Align::Left),
            ("SIZE", Align::Right),
            ("USED", Align::Right),
            ("EXCLUSIVE", Align::Right),
            ("CREATED", Align::Left),
        ]);
        for snapshot in snapshots {
            table.row([
                format!("{}@{}", snapshot.volume, snapshot.name),
                human(snapshot.usage.logical),
                human(snapshot.usage.used),
                human(snapshot.usage.exclusive),
                seconds(snapshot.created),
            ]);
        }
        table.write(&mut self.out)
    }

    /// The next extents of a difference.
    pub(super) fn extents(&mut self, extents: &[Extent]) -> io::Result<()> {
        for extent in extents {
            if self.json {
                self.out
                    .write_all(if self.extents { b",\n" } else { b"[\n" })?;
                serde_json::to_writer(&mut self.out, &json::Range::from(extent))?;
            } else {
                let Extent { offset, length, .. } = extent;
                writeln!(self.out, "{offset} {length} {}", json::content(extent))?;
            }
            self.extents = true;
        }
        Ok(())
    }

    /// The difference is complete.
    pub(super) fn extents_end(&mut self) -> io::Result<()> {
        match (self.json, self.extents) {
            (true, true) => writeln!(self.out, "\n]"),
            (true, false) => writeln!(self.out, "[]"),
            (false, _) => Ok(()),
        }
    }

    pub(super) fn status(&mut self, pool: &PoolStatus, daemon: &DaemonInfo) -> io::Result<()> {
        if self.json {
            return self.pretty(&json::Status::new(pool, daemon));
        }
        let share = |part: u64| {
            let percent = u128::from(part) * 100 / u128::from(pool.usable.max(1));
            format!("{} ({percent} %)", human(part))
        };
        self.facts(&[
            ("pool", daemon.pool_path.clone()),
            ("id", json::pool_id(pool)),
            ("size", human(pool.size)),
            ("usable", human(pool.usable)),
            ("used", share(pool.used)),
            ("gated", share(pool.gated)),
            ("free", share(pool.free)),
            ("reserved", share(pool.reserved)),
            ("ghost", human(pool.ghost)),
            ("provisioned", share(pool.provisioned)),
            ("volumes", pool.volumes.to_string()),
            ("snapshots", pool.snapshots.to_string()),
            ("deletions", format!("{} under way", pool.jobs)),
            (
                "journal",
                format!(
                    "{} of {}",
                    human(pool.journal_used),
                    human(pool.journal_size)
                ),
            ),
            ("dirty", human(pool.dirty)),
            ("checkpoints", pool.checkpoints.to_string()),
            ("opens", pool.epoch.to_string()),
            ("flushes", pool.flushes.to_string()),
            ("bad blocks", pool.checksum_errors.to_string()),
            (
                "changes",
                pool.refuses_changes
                    .clone()
                    .unwrap_or_else(|| "accepted".into()),
            ),
            ("device I/O", pool.backend.clone()),
            ("scrub", scrub_line(&pool.scrub)),
            (
                "daemon",
                format!("basalt {}, pid {}", daemon.version, daemon.pid),
            ),
            ("started", seconds(daemon.started)),
            ("listens on", daemon.uris.join(" ")),
            ("connections", daemon.connections.to_string()),
        ])
    }

    pub(super) fn scrub(&mut self, scrub: &ScrubStatus) -> io::Result<()> {
        if self.json {
            return self.pretty(&json::Scrub::from(scrub));
        }
        for finding in &scrub.findings {
            writeln!(self.out, "{finding}")?;
        }
        writeln!(self.out, "{}", scrub_line(scrub))
    }

    pub(super) fn check(&mut self, pool: &str, report: &CheckReport) -> io::Result<()> {
        if self.json {
            return self.pretty(&json::Check::from(report));
        }
        for problem in &report.problems {
            writeln!(self.out, "{problem}")?;
        }
        let found = match report.problems.len() {
            0 => "clean".into(),
            found => counted(found as u64, "problem"),
        };
        let volumes = counted(report.volumes, "volume");
        let snapshots = counted(report.snapshots, "snapshot");
        let blocks = counted(report.blocks, "block");
        writeln!(
            self.out,
            "{pool}: {found}; {volumes}, {snapshots} and {blocks} verified"
        )
    }

    /// Names and values, one on a line.
    fn facts(&mut self, facts: &[(&str, String)]) -> io::Result<()> {
        let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, value) in facts {
            writeln!(self.out, "{}", format_args!("{name:<width$}  {value}"))?;
        }
        Ok(())
    }
}

/// `1 volume`, `2 volumes`.
pub(super) fn counted(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A time for people: UTC, whole seconds.
fn seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH)).to_string()
}

fn scrub_line(scrub: &ScrubStatus) -> String {
    let ScrubStatus {
        blocks_done,
        blocks_total,
        ..
    } = scrub;
    let state = if scrub.running {
        "running"
    } else {
        "not running"
    };
    let found = match scrub.findings.len() {
        0 => "no damage".into(),
        found => counted(found as u64, "finding"),
    };
    let rounds = counted(scrub.rounds, "round");
    format!("{state}, {blocks_done} of {blocks_total} blocks, {found}; {rounds} completed")
}

#[cfg(test)]
mod tests;
