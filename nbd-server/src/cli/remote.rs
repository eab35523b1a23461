//! The commands that ask a running daemon.
use blockstore::{Error, Progress, ScrubStatus};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::{Scrub, Snapshot, SnapshotName, Volume};
use super::failure::{Failure, Subject};
use super::json::Deleted;
use super::output::Output;
use super::progress::Bar;
use crate::control::client::Client;
use crate::control::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use crate::size::human;

/// Connects to the daemon on `control`, or where its clients look by default, and runs `command`.
pub(super) fn run(
    control: Option<PathBuf>,
    command: impl AsyncFnOnce(&mut Client) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let variable = || std::env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
    let path = control
        .or_else(|| variable().map(PathBuf::from))
        .unwrap_or_else(|| SOCKET_DEFAULT.into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    runtime.block_on(async {
        let client = Client::connect(&path).await;
        let mut client = client.map_err(|e| Failure::Unreachable(path, e))?;
        command(&mut client).await
    })
}

fn refused(error: Error) -> Failure {
    Failure::Store(Subject::Volume, error)
}

pub(super) async fn volume<W: Write>(
    client: &mut Client,
    command: Volume,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let printed = match command {
        Volume::Create {
            name,
            size,
            reserve,
        } => {
            let made = client
                .create_volume(&name, size.0, reserve)
                .await
                .map_err(refused)?;
            let words = format!("created volume {name} of {}", human(made.usage.logical));
            output.changed(&made, &words)
        }
        Volume::List => output.volumes(&client.volumes().await.map_err(refused)?),
        Volume::Show { name } => {
            let found = client.volume(&name).await.map_err(refused)?;
            let snapshots = client.snapshots(Some(&name)).await.map_err(refused)?;
            output.volume(&found, &snapshots)
        }
        Volume::Resize { name, size } => {
            let grown = client.resize_volume(&name, size.0).await.map_err(refused)?;
            let words = format!("volume {name} has {} now", human(grown.usage.logical));
            output.changed(&grown, &words)
        }
        Volume::Rename { name, new } => {
            let renamed = client.rename_volume(&name, &new).await.map_err(refused)?;
            output.changed(&renamed, &format!("renamed volume {name} to {new}"))
        }
        Volume::Clone { source, name } => {
            let made = client.clone_volume(&source, &name).await.map_err(refused)?;
            output.changed(&made, &format!("created volume {name} from {source}"))
        }
        Volume::Rollback { snapshot } => {
            let SnapshotName { volume, name } = &snapshot;
            let back = client.rollback(volume, name).await.map_err(refused)?;
            output.changed(&back, &format!("volume {volume} is as {snapshot} again"))
        }
        Volume::Delete { name } => {
            client.delete_volume(&name).await.map_err(refused)?;
            output.said(
                &Deleted { deleted: &name },
                &format!("deleted volume {name}"),
            )
        }
    };
    printed.map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn snapshot<W: Write>(
    client: &mut Client,
    command: Snapshot,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let printed = match command {
        Snapshot::Create { snapshots } => {
            let names: Vec<_> = snapshots
                .iter()
                .map(|s| (s.volume.as_str(), s.name.as_str()))
                .collect();
            output.cut(&client.snapshot(&names).await.map_err(refused)?)
        }
        Snapshot::List { volume } => {
            output.snapshots(&client.snapshots(volume.as_deref()).await.map_err(refused)?)
        }
        Snapshot::Delete { snapshot } => {
            let SnapshotName { volume, name } = &snapshot;
            client
                .delete_snapshot(volume, name)
                .await
                .map_err(refused)?;
            let name = snapshot.to_string();
            output.said(
                &Deleted { deleted: &name },
                &format!("deleted snapshot {name}"),
            )
        }
        Snapshot::Diff { from, to } => return diff(client, &from, &to, output).await,
    };
    printed.map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

async fn diff<W: Write>(
    client: &mut Client,
    from: &SnapshotName,
    to: &str,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let mut pages = client
        .diff(Some(&from.to_string()), to)
        .await
        .map_err(refused)?;
    let bar = Bar::bytes("comparing");
    while let Some((extents, progress)) = pages.next().await.map_err(refused)? {
        output.extents(&extents).map_err(Failure::Output)?;
        bar.show(progress);
    }
    drop(bar);
    output.extents_end().map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn status<W: Write>(
    client: &mut Client,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let (pool, daemon) = client.status().await.map_err(refused)?;
    output.status(&pool, &daemon).map_err(Failure::Output)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn scrub<W: Write>(
    client: &mut Client,
    command: Scrub,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let wait = match command {
        Scrub::Start { wait } => {
            client.scrub_start().await.map_err(refused)?;
            wait
        }
        Scrub::Stop => {
            client.scrub_stop().await.map_err(refused)?;
            false
        }
        Scrub::Status { wait } => wait,
    };
    let scrub = follow(client, wait).await.map_err(refused)?;
    output.scrub(&scrub).map_err(Failure::Output)?;
    let damage = wait && !scrub.findings.is_empty();
    Ok(if damage {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The scrub's state: now, or with `wait` at its end.
async fn follow(client: &mut Client, wait: bool) -> blockstore::Result<ScrubStatus> {
    let mut states = client.scrub_status(wait).await?;
    let bar = Bar::counts("verifying blocks");
    let mut last = ScrubStatus::default();
    while let Some(state) = states.next().await? {
        if wait {
            bar.show(Progress {
                done: state.blocks_done,
                total: state.blocks_total,
            });
        }
        last = state;
    }
    Ok(last)
}
