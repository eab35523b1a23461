//! Every field is where `FORMAT.md` says, survives encoding, and no bytes make a decoder panic.
use super::deadlist::DeadlistBlock;
use super::entry::{Entry, Kind, Output, VersionEntry};
use super::geometry::{Geometry, JOURNAL_START, SLOTS};
use super::node::{self, NodeHeader};
use super::pointer::{NodeRef, Packed};
use super::record::{Change, Cut, RecordHeader, Run};
use super::superblock::{self, Superblock, TableBlock};
use super::table::{self, RegionEntry};
use super::{bytes, checksum};
use crate::device::Random;
use crate::error::ErrorKind;
use crate::limits::{CATALOGUE_ENTRY_BYTES, LEVEL_MAX, NAME_BYTES_MAX};
use crate::units::{Address, BLOCK_SIZE, Record};

/// Little-endian, as `FORMAT.md` counts bytes: from `at` up to, but not with, `at + N`.
fn field(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length]
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn root() -> NodeRef {
    NodeRef {
        address: Address(0xa1),
        twin: Address(0xa2),
        birth: Record(0xa3),
        crc: 0xa5,
        level: 6,
        count: 0xa4,
    }
}

fn check_root(bytes: &[u8], at: usize) {
    for (index, value) in [0xa1, 0xa2, 0xa3, 0xa4].into_iter().enumerate() {
        assert_eq!(field(bytes, at + index * 8, 8), value);
    }
    assert_eq!(
        (field(bytes, at + 32, 4), field(bytes, at + 36, 4)),
        (0xa5, 6)
    );
}

fn superblock() -> Superblock {
    let geometry = Geometry::of_pool(300 << 18, None);
    let table = (0..geometry.table_blocks()).map(|index| TableBlock {
        place: u8::try_from(index % 2).unwrap(),
        crc: u32::try_from(0xbb00 + index).unwrap(),
    });
    Superblock {
        pool_id: *b"0123456789abcdef",
        geometry,
        generation: 0x11,
        clean: true,
        epoch: 0x12,
        epoch_first: Record(0x13),
        epoch_previous: 0x14,
        checkpoints: 0x15,
        replay_first: Record(0x16),
        replay_position: 0x17,
        replay_previous: 0x18,
        catalogue: Some(root()),
        next_id: 0x19,
        table: table.collect(),
    }
}

#[test]
fn a_superblock_has_its_fields_where_they_are_documented() {
    let superblock = superblock();
    let bytes = superblock.encode(3);
    assert_eq!((&bytes[..8], bytes.len()), (&b"BASALTSB"[..], 8192));
    assert_eq!(&bytes[16..32], b"0123456789abcdef");
    let geometry = superblock.geometry;
    for (at, length, value) in [
        (8, 4, 1),
        (32, 8, 0x11),
        (40, 4, 3),
        (44, 4, 1),
        (48, 8, 0),
        (56, 8, 0),
        (64, 8, 1),
        (72, 8, geometry.blocks),
        (80, 8, geometry.journal_blocks),
        (88, 4, 252),
        (92, 4, 1 << 18),
        (96, 8, 0x12),
        (104, 8, 0x13),
        (112, 8, 0x15),
        (120, 8, 0x16),
        (128, 8, 0x17),
        (136, 4, 0x14),
        (140, 4, 0x18),
        (144, 8, 0x19),
        (192, 8, 0),
        (512, 1, 0b10),
        (4096, 4, 0xbb00),
        (4100, 4, 0xbb01),
        (4104, 4, 0),
    ] {
        assert_eq!(field(&bytes, at, length), value, "at {at}");
    }
    check_root(&bytes, 152);
    let mut without = bytes.clone();
    without[12..16].fill(0);
    assert_eq!(field(&bytes, 12, 4), u64::from(checksum(&without)));
    assert_eq!(Superblock::decode(&bytes, 3).unwrap(), superblock);
    let empty = Superblock {
        catalogue: None,
        clean: false,
        ..superblock
    };
    assert_eq!(Superblock::decode(&empty.encode(0), 0).unwrap(), empty);
}

/// The bytes with the CRC that they should have.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[12..16].fill(0);
    let crc = checksum(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn a_superblock_of_another_slot_version_or_feature_is_refused_and_says_why() {
    let good = superblock().encode(1);
    let kind = |bytes: &[u8]| Superblock::decode(bytes, 1).unwrap_err().kind();
    assert_eq!(kind(&superblock().encode(2)), ErrorKind::Corrupt);
    assert_eq!(kind(&good[..8191]), ErrorKind::Corrupt);
    assert_eq!(kind(&[]), ErrorKind::Corrupt);
    for (at, expected) in [
        (8, ErrorKind::Unsupported),
        (44, ErrorKind::Unsupported),
        (48, ErrorKind::Unsupported),
        (55, ErrorKind::Unsupported),
        (0, ErrorKind::Corrupt),
        (40, ErrorKind::Corrupt),
        (79, ErrorKind::Corrupt),
        (87, ErrorKind::Corrupt),
        (88, ErrorKind::Corrupt),
        (92, ErrorKind::Corrupt),
        (103, ErrorKind::Corrupt),
        (110, ErrorKind::Corrupt),
        (188, ErrorKind::Corrupt),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x81;
        assert_eq!(kind(&sealed(bytes)), expected, "byte {at}");
    }
    for at in [56, 64, 71] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        Superblock::decode(&sealed(bytes), 1).unwrap();
    }
}

#[test]
fn record_numbers_begin_with_1() {
    for superblock in [
        Superblock {
            epoch_first: Record(0),
            ..superblock()
        },
        Superblock {
            replay_first: Record(0),
            ..superblock()
        },
    ] {
        Superblock::decode(&superblock.encode(0), 0).unwrap_err();
    }
}

#[test]
fn every_flipped_bit_of_a_superblock_is_found() {
    let good = superblock().encode(0);
    for bit in (0..good.len() * 8).step_by(7) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        Superblock::decode(&bytes, 0).unwrap_err();
    }
}

#[test]
fn the_table_and_the_fixed_places_are_where_they_are_documented() {
    let entry = RegionEntry {
        crc: 0x21,
        used: 0x22,
        place: 1,
    };
    let bytes = table::encode(&[RegionEntry::default(), entry]);
    assert_eq!((field(&bytes, 16, 4), field(&bytes, 20, 4)), (0x21, 0x22));
    assert_eq!((field(&bytes, 24, 8), bytes.len()), (1, BLOCK_SIZE));
    assert_eq!(
        table::decode(&bytes).unwrap()[..2],
        [RegionEntry::default(), entry]
    );
    assert_eq!(SLOTS, [0, 16, 4096, 4112]);
    assert_eq!(Geometry::table_place(3, 0), 67);
    assert_eq!(Geometry::table_place(3, 1), 1091);
    let geometry = superblock().geometry;
    assert_eq!(JOURNAL_START, 4128);
    assert_eq!(
        geometry.region_start(1),
        4128 + geometry.journal_blocks + (1 << 18)
    );
    assert_eq!(geometry.bitmap_place(1, 1), geometry.region_start(1) + 8);
}

#[test]
fn pointers_and_nodes_have_their_fields_where_they_are_documented() {
    let packed = Packed::new(Address(0x31), 0x32, Record(0x12_3456_789a), 0x33);
    assert_eq!(packed.0 & ((1 << 44) - 1), 0x31);
    assert_eq!(packed.0 >> 44 & 0xff, 0x32);
    assert_eq!(
        (packed.0 >> 52, packed.1 & 0xffff_ffff),
        (0x89a, 0x0123_4567)
    );
    assert_eq!(packed.1 >> 32, 0x33);
    let leaf = NodeRef {
        level: 0,
        count: 252,
        twin: Address(0),
        ..root()
    };
    assert_eq!(leaf.leaf_slot().flags(), 252);
    assert_eq!(NodeRef::from_leaf_slot(leaf.leaf_slot()), Some(leaf));
    let [first, second] = root().pair_slots();
    assert_eq!(
        (second.address(), second.birth()),
        (Address(0xa2), Record(0xa4))
    );
    assert_eq!(NodeRef::from_pair_slots(6, first, second), Some(root()));
    let header = NodeHeader {
        level: 6,
        owner: 0x41,
        first: 0x42,
        birth: Record(0xa3),
        address: Address(0xa1),
        twin: Address(0xa2),
    };
    let bytes = node::encode(&header, &[packed; 252]);
    assert_eq!((&bytes[..4], bytes.len()), (&b"BSND"[..], BLOCK_SIZE));
    for (at, value) in [
        (8, 0x41),
        (16, 0x42),
        (24, 0xa3),
        (32, 0xa1),
        (40, 0xa2),
        (48, 0),
    ] {
        assert_eq!(field(&bytes, at, 8), value);
    }
    assert_eq!(field(&bytes, 4, 4), 6);
    assert_eq!(field(&bytes, 64 + 251 * 16, 8), packed.0);
    let decoded = node::decode(&bytes, &root(), 252).unwrap();
    assert_eq!(decoded, (header, vec![packed; 252]));
    let elsewhere = NodeRef {
        address: Address(0xa9),
        ..root()
    };
    assert_eq!(node::decode(&bytes, &elsewhere, 252), None);
}

#[test]
fn a_deadlist_block_has_its_fields_where_they_are_documented() {
    let block = DeadlistBlock {
        previous: Packed(0x51, 0x52),
        entries: (1..=252).map(|n| Packed(n, n << 8)).collect(),
    };
    let (bytes, crc) = block.encode();
    assert_eq!((&bytes[..4], bytes.len()), (&b"BSDL"[..], BLOCK_SIZE));
    assert_eq!(crc, checksum(&bytes));
    assert_eq!(
        (
            field(&bytes, 4, 4),
            field(&bytes, 8, 8),
            field(&bytes, 16, 8)
        ),
        (252, 0x51, 0x52)
    );
    assert_eq!((field(&bytes, 80, 8), field(&bytes, 88, 8)), (2, 512));
    assert_eq!(DeadlistBlock::decode(&bytes).unwrap(), block);
}

fn entries() -> Vec<Entry> {
    let name = "n".repeat(NAME_BYTES_MAX);
    let version = |kind| {
        Entry::Version(VersionEntry {
            kind,
            volume: 0x61,
            name: if kind == Kind::Snapshot {
                name.clone()
            } else {
                String::new()
            },
            size: 0x62,
            created: 0x63,
            root: Some(root()),
            parent: 0x64,
            cut: Record(0x65),
            own: 0x66,
            dead_own: 0x67,
            chain: Packed(0x69, 0x6a),
            dead: 0x68,
        })
    };
    vec![
        Entry::Volume {
            name: name.clone(),
            origin: format!("{name}@{name}"),
            head: 0x71,
            created: 0x72,
            reserved: true,
        },
        version(Kind::Head),
        version(Kind::Snapshot),
        version(Kind::Ghost),
        Entry::Walk {
            root: Some(root()),
            cut: Record(0x73),
            cursor: 0x74,
            output: Output::Version(0x75),
        },
        Entry::Filter {
            cut: Record(0x76),
            chain: Packed(0x78, 0x79),
            count: 0x77,
            output: Output::Job(0x75),
        },
    ]
}

#[test]
fn catalogue_entries_have_their_fields_where_they_are_documented() {
    let encoded: Vec<Vec<u8>> = entries().iter().map(|entry| entry.encode(0x60)).collect();
    for (kind, (entry, bytes)) in (1..).zip(entries().into_iter().zip(&encoded)) {
        assert_eq!((field(bytes, 0, 8), field(bytes, 8, 8)), (0x60, kind));
        assert_eq!(bytes.len(), CATALOGUE_ENTRY_BYTES);
        assert_eq!(Entry::decode(bytes), Some(Some((0x60, entry))));
    }
    let check = |which: usize, from: usize, values: &[u64]| {
        for (index, value) in values.iter().enumerate() {
            assert_eq!(field(&encoded[which], from + 8 * index, 8), *value);
        }
    };
    check(0, 16, &[0x71, 0x72, 1]);
    assert_eq!((field(&encoded[0], 40, 2), encoded[0][42]), (128, b'n'));
    check(
        1,
        16,
        &[0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a],
    );
    check_root(&encoded[1], 96);
    assert_eq!((field(&encoded[2], 136, 2), encoded[2][138]), (128, b'n'));
    check(4, 16, &[0x73, 0x74, 1, 0x75]);
    check_root(&encoded[4], 48);
    check(5, 16, &[0x76, 0x77, 2, 0x75, 0x78, 0x79]);
    assert_eq!(Entry::decode(&[0; CATALOGUE_ENTRY_BYTES]), Some(None));
}

fn changes() -> Vec<Change> {
    let (name, origin) = ("näme".to_owned(), "a@b".to_owned());
    let run = |address, blocks: u32| Run {
        address: Address(address),
        crcs: (0..blocks).collect(),
    };
    let cut = |version| Cut {
        head: 0x82,
        version,
        name: name.clone(),
    };
    vec![
        Change::Map {
            version: 0x81,
            first: 0x82,
            runs: vec![run(0x83, 2), run(0x84, 0), run((1 << 44) - 2, 1)],
        },
        Change::Unmap {
            version: 0x81,
            first: 0x82,
            count: 0x83,
        },
        Change::CreateVolume {
            volume: 0x81,
            head: 0x82,
            name: name.clone(),
            size: 0x83,
            reserved: true,
            created: 0x84,
        },
        Change::Clone {
            volume: 0x81,
            head: 0x82,
            source: 0x83,
            ghost: 0x84,
            name: name.clone(),
            origin,
            created: 0x85,
        },
        Change::Snapshot {
            cuts: vec![cut(0x83), cut(0x84)],
            created: 0x81,
        },
        Change::Resize {
            volume: 0x81,
            size: 0x82,
        },
        Change::Rename {
            volume: 0x81,
            name: name.clone(),
        },
        Change::Rollback {
            volume: 0x81,
            snapshot: 0x82,
            head: 0x83,
            created: 0x84,
        },
        Change::DeleteVolume { volume: 0x81 },
        Change::DeleteSnapshot { version: 0x81 },
        Change::Reap { version: 0x81 },
    ]
}

#[test]
fn changes_have_their_fields_where_they_are_documented() {
    let mut body = Vec::new();
    for (tag, change) in (1..).zip(changes()) {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        assert_eq!((bytes[0], field(&bytes, 1, 8)), (tag, 0x81));
        assert_eq!(Change::decode_all(&bytes), Some(vec![change]));
        body.extend(bytes);
    }
    assert_eq!(Change::decode_all(&body), Some(changes()));
    let mut map = Vec::new();
    changes()[0].encode(&mut map);
    assert_eq!((field(&map, 9, 8), field(&map, 17, 4)), (0x82, 3));
    assert_eq!((field(&map, 21, 8), field(&map, 29, 4)), (0x83, 2));
    assert_eq!(
        (field(&map, 33, 4), field(&map, 37, 4), field(&map, 41, 8)),
        (0, 1, 0x84)
    );
    let mut snapshots = Vec::new();
    changes()[4].encode(&mut snapshots);
    assert_eq!(
        (field(&snapshots, 9, 8), field(&snapshots, 17, 8)),
        (2, 0x82)
    );
    assert_eq!(&snapshots[33..40], b"\x05\0n\xc3\xa4me".as_slice());
}

#[test]
fn a_record_has_its_fields_where_they_are_documented() {
    let mut header = RecordHeader {
        pool_id: *b"0123456789abcdef",
        epoch: 0x91,
        number: Record(0x92),
        durable: Record(0x93),
        previous: 0x94,
        body_length: 0,
        crc: 0,
    };
    let body = vec![0xee; 5000];
    let bytes = header.encode(&body);
    assert_eq!(
        (&bytes[..8], bytes.len()),
        (&b"BASALTJR"[..], 2 * BLOCK_SIZE)
    );
    assert_eq!(&bytes[8..24], b"0123456789abcdef");
    for (at, length, value) in [
        (24, 8, 0x91),
        (32, 8, 0x92),
        (40, 8, 0x93),
        (48, 4, 0x94),
        (52, 4, 5000),
        (60, 4, 0),
        (64, 1, 0xee),
        (5064, 8, 0),
    ] {
        assert_eq!(field(&bytes, at, length), value, "at {at}");
    }
    let mut without = bytes[..5064].to_vec();
    without[56..60].fill(0);
    assert_eq!(field(&bytes, 56, 4), u64::from(checksum(&without)));
    let decoded = RecordHeader::decode(&bytes).unwrap();
    assert_eq!((decoded, decoded.blocks()), (header, 2));
    assert_eq!(decoded.body(&bytes), Some(&body[..]));
    for at in (0..5064).step_by(13) {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        let body = RecordHeader::decode(&bad).and_then(|header| header.body(&bad).map(<[u8]>::len));
        assert_eq!(body, None, "byte {at}");
    }
    // A chain of hashes says something only if two records hash to two numbers.
    let mut other = RecordHeader {
        number: Record(0x95),
        ..header
    };
    other.encode(&body);
    assert_ne!(other.crc, header.crc);
}

/// All decoders, on bytes that may be anything.
fn decode_everything(bytes: &[u8]) {
    drop(Superblock::decode(bytes, 0));
    drop(table::decode(bytes));
    drop(node::decode(bytes, &root(), 252));
    drop(DeadlistBlock::decode(bytes));
    drop(Entry::decode(bytes));
    drop(Change::decode_all(bytes));
    let root = superblock::read_root(&mut bytes::Reader::new(bytes));
    assert!(root.flatten().is_none_or(|root| root.level <= LEVEL_MAX));
    if let Some(header) = RecordHeader::decode(bytes) {
        assert!(
            header.blocks() <= 129,
            "a record is bounded before it is read"
        );
        drop(header.body(bytes).map(Change::decode_all));
    }
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    let mut random = Random::new(fresh_seed());
    let mut header = RecordHeader {
        pool_id: [0; 16],
        epoch: 1,
        number: Record(1),
        durable: Record(0),
        previous: 0,
        body_length: 0,
        crc: 0,
    };
    let mut body = Vec::new();
    for change in changes() {
        change.encode(&mut body);
    }
    let mut good = vec![superblock().encode(0), header.encode(&body), body];
    good.extend(entries().iter().map(|entry| entry.encode(1)));
    good.extend(changes().iter().map(|change| {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        bytes
    }));
    for _ in 0..20_000 {
        let mut bytes = good[random.index(good.len())].clone();
        match random.below(4) {
            0 => bytes.truncate(random.index(bytes.len())),
            1 => {
                let length = random.index(600);
                bytes = vec![0; length];
                random.fill(&mut bytes);
            }
            _ => {}
        }
        for _ in 0..random.below(4) {
            if !bytes.is_empty() {
                let at = random.index(bytes.len().min(600));
                let extremes = [0, 1, 0x7f, 0x80, 0xff];
                bytes[at] = extremes[random.index(extremes.len())];
            }
        }
        decode_everything(&bytes);
        if bytes.len() == superblock::BYTES {
            decode_everything(&sealed(bytes)); // what a checksum lets through
        }
    }
}

fn fresh_seed() -> u64 {
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let seed = u64::try_from(time.as_nanos() & u128::from(u64::MAX)).unwrap();
    println!("seed {seed}");
    seed
}
