//! The forms of output, byte for byte.
use super::*;
use blockstore::{Usage, VersionId, VolumeId};
use serde_json::{Value, json};
use std::time::Duration;

fn then() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250)
}

fn volume(name: &str) -> VolumeInfo {
    VolumeInfo {
        id: VolumeId(1),
        name: name.into(),
        created: then(),
        reserved: false,
        deleted: false,
        origin: Some("gold@v1".into()),
        usage: Usage {
            logical: 10 << 30,
            used: 3 << 29,
            exclusive: 4096,
        },
        snapshots: 1,
        writers: 2,
    }
}

fn snapshot() -> SnapshotInfo {
    let usage = Usage {
        logical: 10 << 30,
        used: 8192,
        exclusive: 0,
    };
    SnapshotInfo {
        id: VersionId(3),
        volume: "demo".into(),
        name: "s".into(),
        created: then(),
        usage,
    }
}

fn printed(json: bool, print: impl Fn(&mut Output<&mut Vec<u8>>) -> io::Result<()>) -> String {
    let mut bytes = Vec::new();
    let mut output = Output::new(json, &mut bytes);
    print(&mut output).unwrap();
    output.flush().unwrap();
    drop(output);
    String::from_utf8(bytes).unwrap()
}

fn parsed(print: impl Fn(&mut Output<&mut Vec<u8>>) -> io::Result<()>) -> Value {
    serde_json::from_str(&printed(true, print)).unwrap()
}

#[test]
fn volumes_are_a_table() {
    let text = printed(false, |out| {
        out.volumes(&[volume("demo"), volume("a longer name")])
    });
    let expected = "\
NAME             SIZE     USED  EXCLUSIVE  SNAPSHOTS  WRITERS  CREATED               ORIGIN
demo           10 GiB  1.5 GiB      4 KiB          1        2  2023-11-14T22:13:20Z  gold@v1
a longer name  10 GiB  1.5 GiB      4 KiB          1        2  2023-11-14T22:13:20Z  gold@v1
";
    assert_eq!(text, expected);
    assert_eq!(printed(false, |out| out.volumes(&[])), "no volumes\n");
}

#[test]
fn a_volume_in_json_has_the_documented_fields() {
    let expected = json!({
        "name": "demo", "id": 1, "size": 10u64 << 30, "used": 3u64 << 29, "exclusive": 4096,
        "created": "2023-11-14T22:13:20.250Z", "reserved": false, "deleted": false,
        "origin": "gold@v1", "snapshot_count": 1, "writers": 2,
    });
    assert_eq!(
        parsed(|out| out.volumes(&[volume("demo")])),
        json!([expected])
    );
    assert_eq!(parsed(|out| out.volumes(&[])), json!([]));
    let mut shown = expected;
    shown["snapshots"] = json!([{
        "volume": "demo", "name": "s", "id": 3, "size": 10u64 << 30, "used": 8192,
        "exclusive": 0, "created": "2023-11-14T22:13:20.250Z",
    }]);
    assert_eq!(
        parsed(|out| out.volume(&volume("demo"), &[snapshot()])),
        shown
    );
}

#[test]
fn a_volume_is_shown_with_its_snapshots() {
    let text = printed(false, |out| out.volume(&volume("demo"), &[snapshot()]));
    assert!(
        text.starts_with("volume     demo\nstate      in use\nsize       10 GiB\n"),
        "{text}"
    );
    assert!(text.contains("\n\nSNAPSHOT    SIZE   USED"), "{text}");
    assert!(
        text.ends_with("demo@s    10 GiB  8 KiB        0 B  2023-11-14T22:13:20Z\n"),
        "{text}"
    );
}

#[test]
fn a_difference_is_printed_as_it_arrives() {
    let data = Extent {
        offset: 0,
        length: 4096,
        allocated: true,
    };
    let hole = Extent {
        offset: 8192,
        length: 512,
        allocated: false,
    };
    let print = |out: &mut Output<&mut Vec<u8>>| {
        out.extents(&[data])?;
        out.extents(&[])?;
        out.extents(&[hole])?;
        out.extents_end()
    };
    assert_eq!(printed(false, print), "0 4096 data\n8192 512 hole\n");
    let expected = json!([
        {"offset": 0, "length": 4096, "type": "data"},
        {"offset": 8192, "length": 512, "type": "hole"},
    ]);
    assert_eq!(parsed(print), expected);
    let nothing = |out: &mut Output<&mut Vec<u8>>| out.extents_end();
    assert_eq!(printed(true, nothing), "[]\n");
}

#[test]
fn check_lists_each_problem_and_counts() {
    let mut report = CheckReport {
        volumes: 1,
        snapshots: 2,
        blocks: 3,
        ..CheckReport::default()
    };
    let clean = "p: clean; 1 volume, 2 snapshots and 3 blocks verified\n";
    assert_eq!(printed(false, |out| out.check("p", &report)), clean);
    report.problems = vec!["I1: block@7 has two owners".into()];
    let bad = "I1: block@7 has two owners\np: 1 problem; 1 volume, 2 snapshots and 3 blocks \
               verified\n";
    assert_eq!(printed(false, |out| out.check("p", &report)), bad);
    let expected = json!({
        "clean": false, "problems": ["I1: block@7 has two owners"],
        "volumes": 1, "snapshots": 2, "blocks": 3,
    });
    assert_eq!(parsed(|out| out.check("p", &report)), expected);
}
