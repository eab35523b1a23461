//! The control API, as the CSI adapter uses it: a daemon in this process, and its client.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use blockstore::{Access, ErrorKind, Extent, Progress};
use nbd_server::config::Settings;
use nbd_server::control::client::Client;
use nbd_server::daemon::{Daemon, DaemonOptions};
use nbd_server::size::Size;
use std::path::Path;
use tempfile::TempDir;

fn start(dir: &Path) -> Daemon {
    let settings = Settings {
        create: Some(Size(64 << 20)),
        control: Some(dir.join("control.sock")),
        workers: Some(1),
        ..Settings::default()
    };
    let options = DaemonOptions::new(&dir.join("pool"), settings).unwrap();
    Daemon::start(&options, &mut |_| {}).unwrap()
}

/// Runs `test` with a client of a fresh daemon, then stops the daemon and checks the pool.
fn with_daemon(test: impl AsyncFnOnce(&Daemon, &mut Client)) {
    let dir = TempDir::new().unwrap();
    let daemon = start(dir.path());
    runtime().block_on(async {
        let mut client = Client::connect(daemon.control_path()).await.unwrap();
        test(&daemon, &mut client).await;
    });
    daemon.stop().unwrap();
    let report = blockstore::Store::check(&dir.path().join("pool"), &mut |_| {}).unwrap();
    assert_eq!(report.problems, [""; 0]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn the_client_says_what_the_store_says() {
    with_daemon(async |daemon, client| {
        let store = daemon.store();
        let made = client.create_volume("a", 1 << 20, false).await.unwrap();
        assert_eq!(made, store.volume("a").unwrap());
        let cut = client.snapshot(&[("a", "s")]).await.unwrap();
        assert_eq!(cut, store.snapshots(Some("a")).unwrap());
        let cloned = client.clone_volume("a@s", "b").await.unwrap();
        assert_eq!(cloned.origin.as_deref(), Some("a@s"));
        assert_eq!(client.volumes().await.unwrap(), store.volumes());
        assert_eq!(
            client.snapshots(None).await.unwrap(),
            store.snapshots(None).unwrap()
        );
        let grown = client.resize_volume("b", 2 << 20).await.unwrap();
        assert_eq!(grown.usage.logical, 2 << 20);
        assert_eq!(client.rename_volume("b", "c").await.unwrap().id, cloned.id);
        assert_eq!(client.rollback("a", "s").await.unwrap().name, "a");
        let (pool, process) = client.status().await.unwrap();
        assert_eq!((pool.volumes, pool.snapshots), (2, 1));
        assert_eq!(pool.pool_id, store.status().pool_id);
        assert_eq!(process.pid, std::process::id());
        assert_eq!(process.uris, daemon.uris(""));
        client.delete_snapshot("a", "s").await.unwrap();
        client.delete_volume("a").await.unwrap();
        client.delete_volume("c").await.unwrap();
        assert_eq!(client.volumes().await.unwrap(), []);
    });
}

#[test]
fn errors_keep_their_kind_and_their_words() {
    with_daemon(async |daemon, client| {
        let store = daemon.store();
        let error = client.volume("absent").await.unwrap_err();
        let own = store.volume("absent").unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string()),
            (own.kind(), own.to_string())
        );
        assert_eq!(error.kind(), ErrorKind::NotFound);
        client.create_volume("a", 1 << 20, false).await.unwrap();
        let error = client.create_volume("a", 1 << 20, false).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        let error = client.resize_volume("a", 4096).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        client.snapshot(&[("a", "s")]).await.unwrap();
        let writer = store.open_volume("a", Access::Write).unwrap();
        let error = client.rollback("a", "s").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        let error = client.delete_volume("a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(writer);
        client.rollback("a", "s").await.unwrap();
        let error = client.diff(Some("a@s"), "absent").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    });
}

#[test]
fn a_group_is_cut_as_one_or_not_at_all() {
    with_daemon(async |_, client| {
        client.create_volume("a", 1 << 20, false).await.unwrap();
        client.create_volume("b", 1 << 20, false).await.unwrap();
        let cut = client.snapshot(&[("a", "g"), ("b", "g")]).await.unwrap();
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[0].created, cut[1].created);
        let error = client
            .snapshot(&[("a", "h"), ("absent", "h")])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(client.snapshots(None).await.unwrap(), cut);
    });
}

/// More snapshots than fit into one message, with the longest names.
#[test]
fn lists_are_longer_than_a_message() {
    with_daemon(async |_, client| {
        client.create_volume("a", 1 << 20, false).await.unwrap();
        let names: Vec<String> = (0..1200).map(|n| format!("{n:0>128}")).collect();
        for name in &names {
            client.snapshot(&[("a", name)]).await.unwrap();
        }
        let listed = client.snapshots(Some("a")).await.unwrap();
        let listed: Vec<_> = listed.into_iter().map(|snapshot| snapshot.name).collect();
        assert_eq!(listed, names);
    });
}

/// A difference of more extents than one page has.
#[test]
fn a_difference_arrives_in_order_and_complete() {
    const EXTENTS: u64 = 5000;
    with_daemon(async |daemon, client| {
        let store = daemon.store();
        client
            .create_volume("a", EXTENTS * 8192, false)
            .await
            .unwrap();
        client.snapshot(&[("a", "s")]).await.unwrap();
        let volume = store.open_volume("a", Access::Write).unwrap();
        for n in 0..EXTENTS {
            volume.write(n * 8192, vec![7; 4096]).await.unwrap();
        }
        let mut pages = client.diff(Some("a@s"), "a").await.unwrap();
        let (mut found, mut count) = (Vec::new(), 0);
        let mut last = Progress { done: 0, total: 0 };
        while let Some((extents, progress)) = pages.next().await.unwrap() {
            assert!(progress.done >= last.done, "{progress:?} after {last:?}");
            found.extend(extents);
            last = progress;
            count += 1;
        }
        assert!(count > 1, "one page is no test of paging");
        assert_eq!(
            last,
            Progress {
                done: EXTENTS * 8192,
                total: EXTENTS * 8192
            }
        );
        let expected = |n| Extent {
            offset: n * 8192,
            length: 4096,
            allocated: true,
        };
        assert_eq!(found, (0..EXTENTS).map(expected).collect::<Vec<_>>());
    });
}

#[test]
fn a_scrub_that_is_followed_ends() {
    with_daemon(async |_, client| {
        client.create_volume("a", 1 << 20, false).await.unwrap();
        client.scrub_start().await.unwrap();
        let mut states = client.scrub_status(true).await.unwrap();
        let mut last = None;
        while let Some(state) = states.next().await.unwrap() {
            last = Some(state);
        }
        let last = last.unwrap();
        assert!(
            !last.running && last.rounds == 1 && last.findings.is_empty(),
            "{last:?}"
        );
    });
}

/// What needs space is refused; everything else works, and a delete makes room.
#[test]
fn a_full_pool_still_answers() {
    with_daemon(async |daemon, client| {
        let store = daemon.store();
        client.create_volume("a", 1 << 30, false).await.unwrap();
        let volume = store.open_volume("a", Access::Write).unwrap();
        let chunk = vec![7; 1 << 20];
        let mut offset = 0;
        let error = loop {
            match volume.write(offset, chunk.clone()).await {
                Ok(()) => offset += 1 << 20,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let error = client.create_volume("r", 16 << 20, true).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        let (pool, _) = client.status().await.unwrap();
        assert!(
            pool.used >= offset && pool.refuses_changes.is_none(),
            "{pool:?}"
        );
        assert_eq!(volume.read(0, 4096).await.unwrap(), chunk[..4096]);
        volume.flush().await.unwrap();
        drop(volume);
        client.delete_volume("a").await.unwrap();
        assert_eq!(client.volumes().await.unwrap(), []);
    });
}

#[test]
fn a_client_survives_its_daemon() {
    let dir = TempDir::new().unwrap();
    let daemon = start(dir.path());
    let runtime = runtime();
    let path = daemon.control_path().to_path_buf();
    let mut client = runtime.block_on(Client::connect(&path)).unwrap();
    runtime
        .block_on(client.create_volume("a", 1 << 20, false))
        .unwrap();
    daemon.stop().unwrap();
    assert!(!path.exists());
    let error = runtime.block_on(client.volumes()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    let daemon = start(dir.path());
    let volumes = runtime.block_on(client.volumes()).unwrap();
    assert_eq!(volumes.len(), 1);
    daemon.stop().unwrap();
}
