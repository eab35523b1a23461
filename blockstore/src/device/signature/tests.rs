//! Signatures are recognised at the places where their formats put them.
use super::*;

/// What is recognised in a device of `size` zero bytes with `magic` at `offset`.
fn recognised(size: u64, offset: u64, magic: &[u8]) -> Option<&'static str> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let start = usize::try_from(offset).unwrap();
    bytes[start..start + magic.len()].copy_from_slice(magic);
    content(bytes).name()
}

fn content(bytes: Vec<u8>) -> Content {
    let size = bytes.len() as u64;
    let tail_start = size.saturating_sub(TAIL);
    let tail = bytes[usize::try_from(tail_start).unwrap()..].to_vec();
    let mut head = bytes;
    head.truncate(HEAD);
    Content {
        size,
        head,
        tail_start,
        tail,
    }
}

#[test]
fn zeroes_and_small_files_carry_nothing() {
    for size in [0, 1, 511, 512, 4096, 1 << 16, 5 << 20] {
        assert_eq!(content(vec![0; size]).name(), None, "{size}");
    }
}

#[test]
fn magic_numbers_are_found_where_they_belong() {
    const SIZE: u64 = 8 << 20;
    assert_eq!(recognised(SIZE, 0, b"BASALTSB"), Some("a Basalt pool"));
    assert_eq!(recognised(SIZE, 0, b"XFSB"), Some("an XFS file system"));
    assert_eq!(recognised(SIZE, 1, b"XFSB"), None);
    assert_eq!(
        recognised(SIZE, 65536 + 64, b"_BHRfS_M"),
        Some("a Btrfs file system")
    );
    assert_eq!(
        recognised(SIZE, 0x8001, b"CD001"),
        Some("an ISO 9660 file system")
    );
    assert_eq!(
        recognised(SIZE, 512, b"EFI PART"),
        Some("a GPT partition table")
    );
    assert_eq!(
        recognised(SIZE, SIZE - 512, b"EFI PART"),
        Some("a GPT partition table")
    );
    let md = 0xa92b_4efc_u32.to_le_bytes();
    for place in [0, 4096, SIZE - 8192, SIZE - 65536] {
        assert_eq!(
            recognised(SIZE, place, &md),
            Some("part of an md array"),
            "{place}"
        );
    }
    let uberblock = 0x00ba_b10c_u64.to_le_bytes();
    for place in [
        128 << 10,
        (256 << 10) - 1024,
        SIZE - (128 << 10),
        SIZE - (384 << 10),
    ] {
        assert_eq!(
            recognised(SIZE, place, &uberblock),
            Some("part of a ZFS pool"),
            "{place}"
        );
    }
}

#[test]
fn a_boot_sector_alone_is_no_partition_table() {
    let mut sector = vec![0; 4096];
    sector[510..512].copy_from_slice(b"\x55\xaa");
    assert_eq!(content(sector.clone()).name(), None);
    sector[446 + 4] = 0x83;
    sector[446 + 12] = 8;
    assert_eq!(content(sector.clone()).name(), Some("a partition table"));
    sector[446] = 0x12;
    assert_eq!(content(sector).name(), None);
}

#[test]
fn file_systems_made_by_their_own_tools_are_recognised() {
    let folder = std::env::temp_dir();
    for (tool, arguments, name) in [
        (
            "mkfs.ext4",
            &["-q", "-F"][..],
            "an ext2, ext3 or ext4 file system",
        ),
        ("mkfs.xfs", &["-q", "-f"], "an XFS file system"),
        ("mkswap", &["-q"], "swap space"),
        ("mkfs.vfat", &[], "a FAT file system"),
    ] {
        let path = folder.join(format!(
            "blockstore-signature-{tool}-{}",
            std::process::id()
        ));
        let file = File::create(&path).unwrap();
        file.set_len(512 << 20).unwrap();
        let made = std::process::Command::new(tool)
            .args(arguments)
            .arg(&path)
            .output();
        let found = signature(&path);
        fs::remove_file(&path).unwrap();
        match made {
            Err(error) => println!("skipped: {tool}: {error}"),
            Ok(output) => {
                assert!(output.status.success(), "{tool} failed");
                assert_eq!(found.unwrap().as_deref(), Some(name));
            }
        }
    }
}

#[test]
fn mounts_are_found_by_number_and_by_source() {
    let mounts = "36 35 254:1 / /mnt/a rw shared:1 - ext4 /dev/vda1 rw\n\
                  37 35 0:42 /sub /mnt/b rw - btrfs /dev/vdb rw\n";
    let device_of = |path: &str| (path == "/dev/vdb").then(|| makedev(254, 16));
    assert_eq!(mount_of(mounts, makedev(254, 1), device_of), Some("/mnt/a"));
    assert_eq!(
        mount_of(mounts, makedev(254, 16), device_of),
        Some("/mnt/b")
    );
    assert_eq!(mount_of(mounts, makedev(254, 0), device_of), None);
}

#[test]
fn only_block_devices_are_mounted() {
    assert_eq!(mounted(Path::new("/dev/null")).unwrap(), None);
    assert!(mounted(Path::new("/nonexistent")).is_err());
}
