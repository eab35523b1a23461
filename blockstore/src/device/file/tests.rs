//! Files as devices, through a ring and without, and the lock that keeps two processes apart.
use super::*;
use crate::runtime::Runtime;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A path in a folder for temporary files, of which nothing is left.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("blockstore-file-{}-{number}", process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn device(&self, blocks: u64) -> FileDevice {
        FileDevice::create(&self.0, blocks * BLOCK_BYTES, &mut |_| {}).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn runtimes() -> [Runtime; 2] {
    [
        Runtime::start(1, "test").unwrap(),
        Runtime::start_without_ring(1, "test").unwrap(),
    ]
}

/// A megabyte takes many calls here: see [`crate::runtime::ring::TRANSFER_BYTES_MAX`].
#[test]
fn what_is_written_is_read_back() {
    for runtime in runtimes() {
        let scratch = Scratch::new();
        let device = Arc::new(scratch.device(512));
        let inside = device.clone();
        let done = runtime.handles()[0].spawn(async move {
            let mut data = Buffer::new(1 << 20);
            crate::device::Random::new(4).fill(&mut data);
            let data = data.freeze();
            inside.write(3, data.clone()).await?;
            // Not aligned in memory: must be copied on the way.
            let unaligned = Bytes::from(vec![5; 8193]).slice(1..);
            inside.write(300, unaligned).await?;
            inside.flush().await?;
            let (read, result) = inside.read(3, Buffer::new(1 << 20)).await;
            result?;
            let (fives, result) = inside.read(300, Buffer::new(12288)).await;
            result?;
            assert!(fives[..8192].iter().all(|byte| *byte == 5));
            assert!(fives[8192..].iter().all(|byte| *byte == 0));
            io::Result::Ok(read[..] == data[..])
        });
        assert!(done.wait().unwrap());
        let backend = if runtime.has_rings() {
            "io_uring"
        } else {
            "blocking"
        };
        assert_eq!(device.backend(), backend);
        runtime.stop();
    }
}

#[test]
fn operations_outside_the_device_or_the_file_fail() {
    for runtime in runtimes() {
        let scratch = Scratch::new();
        let device = scratch.device(8);
        let done = runtime.handles()[0].spawn(async move {
            let kind = |result: io::Result<()>| result.unwrap_err().kind();
            let beyond = kind(device.read(7, Buffer::new(8192)).await.1);
            assert_eq!(beyond, io::ErrorKind::InvalidInput);
            let beyond = kind(device.write(u64::MAX, zeroes(4096)).await);
            assert_eq!(beyond, io::ErrorKind::InvalidInput);
            // The file shrinks under us: a read that ends early goes on, and finds the end.
            device.file().set_len(5 * 4096)?;
            device.read(4, Buffer::new(4096)).await.1?;
            let short = kind(device.read(4, Buffer::new(8192)).await.1);
            assert_eq!(short, io::ErrorKind::UnexpectedEof);
            device.file().set_len(5 * 4096 + 100)?;
            let torn = kind(device.read(4, Buffer::new(8192)).await.1);
            assert_eq!(torn, io::ErrorKind::UnexpectedEof);
            io::Result::Ok(())
        });
        done.wait().unwrap();
        runtime.stop();
    }
}

#[test]
fn a_second_writer_is_told_who_has_the_pool() {
    let scratch = Scratch::new();
    let device = scratch.device(1);
    let told = |mode| {
        let error = FileDevice::open(&scratch.0, mode).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        error.to_string()
    };
    let expected = format!(
        "pool {} is open in process {}",
        scratch.0.display(),
        process::id()
    );
    assert_eq!(told(OpenMode::ReadWrite), expected);
    assert_eq!(told(OpenMode::ReadOnly), expected);
    drop(device);
    let reader = FileDevice::open(&scratch.0, OpenMode::ReadOnly).unwrap();
    let second = FileDevice::open(&scratch.0, OpenMode::ReadOnly).unwrap();
    assert_eq!(told(OpenMode::ReadWrite), expected);
    drop((reader, second));
    let writer = FileDevice::open(&scratch.0, OpenMode::ReadWrite).unwrap();
    assert_eq!(writer.blocks(), 1);
}

#[test]
fn creating_allocates_and_refuses_what_exists() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let scratch = Scratch::new();
    let mut last = None;
    let size = 3 << 20;
    let device = FileDevice::create(&scratch.0, size, &mut |now| last = Some(now)).unwrap();
    assert_eq!(
        last,
        Some(Progress {
            done: size,
            total: size
        })
    );
    assert_eq!(device.blocks(), 768);
    let metadata = fs::metadata(&scratch.0).unwrap();
    assert!(metadata.len() == size && metadata.blocks() * 512 >= size);
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let kind = |size| {
        FileDevice::create(&scratch.0, size, &mut |_| {})
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind(size), ErrorKind::AlreadyExists);
    assert_eq!(kind(4097), ErrorKind::InvalidArgument);
}

#[test]
fn without_space_nothing_is_left_behind() {
    let scratch = Scratch::new();
    let kind = FileDevice::create(&scratch.0, 1 << 50, &mut |_| {})
        .unwrap_err()
        .kind();
    // Some file systems refuse the size before the space.
    assert!(
        matches!(kind, ErrorKind::NoSpace | ErrorKind::Io),
        "{kind:?}"
    );
    assert!(!scratch.0.exists());
}

#[test]
fn only_files_and_block_devices_are_opened() {
    let kind = |path: &str| {
        FileDevice::open(Path::new(path), OpenMode::ReadOnly)
            .unwrap_err()
            .kind()
    };
    assert_eq!(kind("/"), ErrorKind::InvalidArgument);
    assert_eq!(kind("/dev/null"), ErrorKind::InvalidArgument);
    assert_eq!(kind("/nonexistent/pool"), ErrorKind::NotFound);
}
