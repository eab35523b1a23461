//! What a file or device holds already, so that `init` does not destroy it unasked.
//!
//! Offsets and magic numbers are those of the formats' own documentation, as collected in
//! util-linux's libblkid.
use crate::{Error, Result};
use rustix::fs::{FileType, major, makedev, minor, stat};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The first bytes, which hold all magic numbers but those at the end: a ZFS label is the longest.
const HEAD: usize = 256 << 10;
/// The last bytes: two ZFS labels, aligned down.
const TAIL: u64 = 1 << 20;

/// Magic numbers at fixed places: name, offset, bytes.
const MAGIC: &[(&str, usize, &[u8])] = &[
    ("a Basalt pool", 0, b"BASALTSB"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("an XFS file system", 0, b"XFSB"),
    ("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 82, b"FAT32   "),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 54, b"FAT     "),
    ("an ISO 9660 file system", 32769, b"CD001"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a LUKS volume", 0x4000, b"SKUL\xba\xbe"),
    ("swap space", 4086, b"SWAPSPACE2"),
    ("swap space", 4086, b"SWAP-SPACE"),
    ("swap space", 65526, b"SWAPSPACE2"),
    ("an LVM physical volume", 24, b"LVM2 001"),
    ("an LVM physical volume", 512 + 24, b"LVM2 001"),
    ("an LVM physical volume", 1024 + 24, b"LVM2 001"),
    ("an LVM physical volume", 1536 + 24, b"LVM2 001"),
    ("part of an md array", 0, b"\xfc\x4e\x2b\xa9"),
    ("part of an md array", 4096, b"\xfc\x4e\x2b\xa9"),
    ("a qcow2 image", 0, b"QFI\xfb"),
    ("a Ceph BlueStore device", 0, b"bluestore block device"),
    (
        "a bcache device",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    ("a GPT partition table", 512, b"EFI PART"),
    ("a GPT partition table", 4096, b"EFI PART"),
];

/// What the file or device at `path` holds, as a phrase such as `an XFS file system`; `None` if
/// nothing known is there.
///
/// # Errors
/// `NotFound`, or `Io` if it cannot be read.
pub fn signature(path: &Path) -> Result<Option<String>> {
    let failed = |error| Error::io(format!("cannot read {}", path.display()), error);
    let content = Content::read(path).map_err(failed)?;
    Ok(content.name().map(str::to_owned))
}

/// The parts of a device that can hold a signature.
struct Content {
    size: u64,
    head: Vec<u8>,
    /// Where `tail` begins.
    tail_start: u64,
    tail: Vec<u8>,
}

impl Content {
    fn read(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let tail_start = size.saturating_sub(TAIL);
        let mut head = vec![0; HEAD.min(usize::try_from(size).unwrap_or(HEAD))];
        let mut tail = vec![0; usize::try_from(size - tail_start).unwrap_or(0)];
        file.read_exact_at(&mut head, 0)?;
        file.read_exact_at(&mut tail, tail_start)?;
        Ok(Self {
            size,
            head,
            tail_start,
            tail,
        })
    }

    fn name(&self) -> Option<&'static str> {
        let fixed = MAGIC
            .iter()
            .find(|(_, offset, magic)| self.head_has(*offset, magic));
        if let Some((name, ..)) = fixed {
            return Some(name);
        }
        if self.is_md_at_end() {
            return Some("part of an md array");
        }
        if self.is_zfs() {
            return Some("part of a ZFS pool");
        }
        if self.size >= 512 && self.at(self.size - 512, 8) == Some(b"EFI PART") {
            return Some("a GPT partition table");
        }
        self.is_mbr().then_some("a partition table")
    }

    fn head_has(&self, offset: usize, magic: &[u8]) -> bool {
        self.head.get(offset..offset + magic.len()) == Some(magic)
    }

    /// Bytes of the head or the tail.
    fn at(&self, offset: u64, length: usize) -> Option<&[u8]> {
        let (part, start) = if offset >= self.tail_start {
            (&self.tail, offset - self.tail_start)
        } else {
            (&self.head, offset)
        };
        let start = usize::try_from(start).ok()?;
        part.get(start..start + length)
    }

    /// md superblocks 0.90 (last whole 64 KiB before the last 64 KiB boundary, either byte order)
    /// and 1.0 (8 to 12 KiB before the end).
    fn is_md_at_end(&self) -> bool {
        let old = (self.size & !0xffff).checked_sub(0x1_0000);
        let new = (self.size / 512)
            .checked_sub(16)
            .map(|sector| (sector & !7) * 512);
        let has = |place: Option<u64>, magic: &[u8]| {
            place.is_some_and(|place| self.at(place, 4) == Some(magic))
        };
        has(new, b"\xfc\x4e\x2b\xa9")
            || has(old, b"\xfc\x4e\x2b\xa9")
            || has(old, b"\xa9\x2b\x4e\xfc")
    }

    /// ZFS labels are 256 KiB: two at the start, two at the end; the second half of each is an
    /// array of uberblocks, each of which begins with the magic number 0x00bab10c.
    fn is_zfs(&self) -> bool {
        let end = self.size & !0x3_ffff;
        let labels = [
            Some(0),
            end.checked_sub(512 << 10),
            end.checked_sub(256 << 10),
        ];
        labels.into_iter().flatten().any(|label| {
            (128..256).any(|slot| {
                let magic = self.at(label + slot * 1024, 8);
                magic == Some(b"\x0c\xb1\xba\0\0\0\0\0") || magic == Some(b"\0\0\0\0\0\xba\xb1\x0c")
            })
        })
    }

    /// A DOS partition table: the mark, sane entries, one of them used. A boot sector alone has the
    /// mark too.
    fn is_mbr(&self) -> bool {
        let Some(entries) = self.head.get(446..510) else {
            return false;
        };
        let sane = entries.chunks(16).all(|entry| matches!(entry[0], 0 | 0x80));
        let used = entries
            .chunks(16)
            .any(|entry| entry[4] != 0 && entry[12..16] != [0; 4]);
        self.head_has(510, b"\x55\xaa") && sane && used
    }
}

/// How the block device at `path`, or a part of it, is in use, as a phrase such as
/// `mounted on /data`; `None` if it is not in use, or not a block device.
///
/// # Errors
/// `NotFound`, or `Io` if the system does not tell.
pub fn mounted(path: &Path) -> Result<Option<String>> {
    let failed = |error| {
        Error::io(
            format!("cannot tell whether {} is mounted", path.display()),
            error,
        )
    };
    let status = stat(path).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::BlockDevice {
        return Ok(None);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut devices = vec![status.st_rdev];
    devices.extend(parts(status.st_rdev));
    for device in devices {
        if let Some(place) = mount_of(&mounts, device, device_of) {
            return Ok(Some(format!("mounted on {place}")));
        }
        let swap = |line: &str| line.split_whitespace().next().and_then(device_of) == Some(device);
        if swaps.lines().skip(1).any(swap) {
            return Ok(Some("used as swap".to_owned()));
        }
        if let Some(holder) = holder(device) {
            return Ok(Some(format!("used by {holder}")));
        }
    }
    Ok(None)
}

/// Where a device is mounted. The device number in `mountinfo` is not the disk's for Btrfs and the
/// like, so the source's is compared too.
fn mount_of(mounts: &str, device: u64, device_of: impl Fn(&str) -> Option<u64>) -> Option<&str> {
    mounts.lines().find_map(|line| {
        // 36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/sda1 rw (proc_pid_mountinfo(5))
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(2);
        let number = fields.next().and_then(parse_device);
        let place = fields.nth(1)?;
        let source = after.split(' ').nth(1)?;
        (number == Some(device) || device_of(source) == Some(device)).then_some(place)
    })
}

/// The number of the block device at a path.
fn device_of(path: &str) -> Option<u64> {
    let status = path.starts_with('/').then(|| stat(path).ok()).flatten()?;
    let block = FileType::from_raw_mode(status.st_mode) == FileType::BlockDevice;
    block.then_some(status.st_rdev)
}

/// `major:minor` as a device number.
fn parse_device(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn sys_folder(device: u64) -> String {
    format!("/sys/dev/block/{}:{}", major(device), minor(device))
}

/// The partitions of a disk.
fn parts(disk: u64) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(sys_folder(disk)) else {
        return Vec::new();
    };
    let part = |entry: fs::DirEntry| {
        let folder = entry.path();
        folder.join("partition").exists().then_some(())?;
        parse_device(&fs::read_to_string(folder.join("dev")).ok()?)
    };
    entries.flatten().filter_map(part).collect()
}

/// A device (of md, LVM, …) that is built on this one.
fn holder(device: u64) -> Option<String> {
    let mut entries = fs::read_dir(format!("{}/holders", sys_folder(device))).ok()?;
    entries.find_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests;
