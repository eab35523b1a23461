//! `serve`: the daemon from its settings to its exit code.
use std::io::Write;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinError, spawn_blocking};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;

use super::args::Serve;
use super::failure::{Failure, Subject};
use super::json::Serving;
use super::output::{Output, counted};
use super::progress::Bar;
use crate::config::Settings;
use crate::control::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use crate::daemon::{Daemon, DaemonOptions};

/// URIs of at most so many volumes are printed.
const VOLUMES_SHOWN_MAX: u64 = 8;

pub(super) fn serve<W: Write>(
    arguments: Serve,
    control: Option<PathBuf>,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    start_log();
    let settings = settings(arguments, control)?;
    let missing = || Failure::Usage("no pool is named; give POOL, or `pool` in --config".into());
    let pool = settings.pool.clone().ok_or_else(missing)?;
    let options =
        DaemonOptions::new(&pool, settings).map_err(|e| Failure::Store(Subject::Pool, e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::System)?;
    let code = runtime.block_on(run(&pool, options, output));
    // After a second signal nobody waits for what is still being stopped.
    runtime.shutdown_background();
    code
}

/// The flags, completed from the configuration file.
fn settings(arguments: Serve, control: Option<PathBuf>) -> Result<Settings, Failure> {
    let Serve { settings, config } = arguments;
    let flags = Settings {
        control,
        ..settings
    };
    match config {
        None => Ok(flags),
        Some(path) => Ok(flags.or(Settings::read(&path).map_err(Failure::Usage)?)),
    }
}

/// Plain lines on stderr, by the levels in `RUST_LOG`; `info` by default.
fn start_log() {
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .and_then(|text| text.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // The daemon outlives a stderr that is closed.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    // It fails only if there is a log already, which then is the right one.
    drop(
        tracing_subscriber::registry()
            .with(lines)
            .with(filter)
            .try_init(),
    );
}

/// Starts, serves until a signal, stops. A signal while it starts or stops ends it at once.
async fn run<W: Write>(
    pool: &Path,
    options: DaemonOptions,
    output: &mut Output<W>,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new().map_err(Failure::System)?;
    let starting = spawn_blocking(move || {
        let bar = Bar::bytes("making the pool");
        Daemon::start(&options, &mut |progress| bar.show(progress))
    });
    let daemon = tokio::select! {
        started = starting => unwound(started).map_err(Failure::Start)?,
        code = signals.next() => return Ok(code),
    };
    if let Err(e) = announce(pool, &daemon, output) {
        tracing::warn!("nobody reads standard output: {e}");
    }
    signals.next().await;
    tracing::info!("stopping");
    let stopping = spawn_blocking(move || daemon.stop());
    tokio::select! {
        stopped = stopping => {
            unwound(stopped).map_err(|e| Failure::Store(Subject::Pool, e))?;
            tracing::info!("stopped");
            Ok(ExitCode::SUCCESS)
        }
        code = signals.next() => Ok(code),
    }
}

/// What a thread returned; its panic goes on here.
fn unwound<T>(result: Result<T, JoinError>) -> T {
    result.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self {
            interrupt,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for one; what a process that it ended would have answered.
    async fn next(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.interrupt.recv() => ExitCode::from(130),
            _ = self.terminate.recv() => ExitCode::from(143),
        }
    }
}

/// Says where to connect, and flushes: scripts wait for it.
fn announce<W: Write>(pool: &Path, daemon: &Daemon, output: &mut Output<W>) -> std::io::Result<()> {
    let volumes = daemon.store().volumes();
    let volumes = volumes.into_iter().filter(|volume| !volume.deleted);
    let mut names: Vec<String> = volumes.map(|volume| volume.name).collect();
    let volumes = names.len() as u64;
    if volumes > VOLUMES_SHOWN_MAX {
        names = vec!["NAME".into()];
    }
    let uris: Vec<String> = names.iter().flat_map(|name| daemon.uris(name)).collect();
    let pool = pool.display().to_string();
    let control = daemon.control_path().display().to_string();
    let mut lines = vec![format!("serving {pool}: {}", counted(volumes, "volume"))];
    lines.extend(uris.iter().map(|uri| format!("  {uri}")));
    lines.push(match uris.first() {
        Some(uri) => format!("try:  nbdinfo '{uri}'"),
        None => "try:  basalt volume create demo --size 1G".into(),
    });
    if daemon.control_path() != Path::new(SOCKET_DEFAULT) {
        lines.push(format!("export {SOCKET_VARIABLE}={}", quoted(&control)));
    }
    let words = lines.join("\n");
    output.said(
        &Serving {
            pool: &pool,
            volumes,
            uris: &uris,
            control: &control,
        },
        &words,
    )?;
    output.flush()
}

/// `text` as one word of a shell.
pub(super) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_a_shell() {
        assert_eq!(quoted("/a/b.sock"), "/a/b.sock");
        assert_eq!(quoted("/a b"), "'/a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
