//! Option haggling through real sockets. Every option byte by byte is tested beside the state
//! machine; here: that what it says reaches clients, in pieces of any size, and that it names real
//! volumes.
#[expect(dead_code, reason = "each test file uses a part of it")]
mod client;

use client::{Body, Served, Wire, export_info, option, queries, request};
use nbd_server::limits::Limits;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

const ACK: (u32, Vec<u8>) = (1, Vec::new());
const ERR_UNSUP: u32 = (1 << 31) + 1;
const ERR_UNKNOWN: u32 = (1 << 31) + 6;

#[test]
fn a_whole_session_can_arrive_in_one_piece() {
    let served = Served::new();
    let mut wire = served.connect();
    let mut session = 3_u32.to_be_bytes().to_vec();
    session.extend(option(8, &[]));
    session.extend(option(10, &queries("vol", &["base:allocation"])));
    session.extend(option(7, &export_info("vol", &[3])));
    session.extend(request(0, 1, 1, 4096, 5));
    session.extend(b"hello");
    session.extend(request(0, 3, 2, 0, 0));
    wire.send(&session);
    assert_eq!(wire.receive(18), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(wire.option_replies(8), [ACK]);
    assert_eq!(wire.option_replies(10).len(), 2);
    assert_eq!(wire.option_replies(7).len(), 3);
    let mut done = [wire.answer(0), wire.answer(0)];
    done.sort_by_key(|answer| answer.cookie);
    assert_eq!(
        done.map(|answer| answer.body),
        [Body::Simple(0), Body::Simple(0)]
    );
    assert_eq!(wire.read(4096, 5), b"hello");
}

#[test]
fn a_whole_session_can_arrive_byte_by_byte() {
    let served = Served::new();
    let mut wire = served.connect();
    let mut session = 3_u32.to_be_bytes().to_vec();
    session.extend(option(8, &[]));
    session.extend(option(7, &export_info("vol", &[])));
    session.extend(request(0, 1, 1, 4096, 5));
    session.extend(b"hello");
    for byte in session {
        wire.send(&[byte]);
    }
    assert_eq!(wire.receive(18).len(), 18);
    assert_eq!(wire.option_replies(8), [ACK]);
    assert_eq!(wire.option_replies(7).len(), 2);
    assert_eq!(wire.verdict(1), 0);
    assert_eq!(wire.read(4096, 5), b"hello");
}

#[test]
fn the_longest_option_fits_and_a_longer_one_is_skipped() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(3);
    wire.option(99, &vec![1; 16 << 10]);
    assert_eq!(wire.option_replies(99)[0].0, ERR_UNSUP);
    wire.option(99, &vec![1; 1 << 20]);
    assert_eq!(wire.option_replies(99)[0].0, (1 << 31) + 9);
    wire.go("vol");
}

#[test]
fn volumes_and_snapshots_are_listed_and_described() {
    let served = Served::new();
    served.store.snapshot(&[("vol", "one")]).wait().unwrap();
    let mut wire = served.connect();
    wire.greet(3);
    wire.option(3, &[]);
    let replies = wire.option_replies(3);
    let texts: Vec<String> = replies[..2]
        .iter()
        .map(|(kind, data)| {
            assert_eq!(*kind, 2);
            String::from_utf8(data[4..].to_vec()).unwrap()
        })
        .collect();
    let snapshot = "vol@onesnapshot of vol, 64 MiB, read-only";
    assert_eq!(texts, ["volvolume of 64 MiB", snapshot]);
}

#[test]
fn the_empty_name_is_the_only_volume_if_there_is_one() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(3);
    wire.option(6, &export_info("", &[1]));
    let replies = wire.option_replies(6);
    assert_eq!(replies[1], (3, b"\0\x01vol".to_vec()));
    served
        .store
        .create_volume("second", 1 << 20, false)
        .wait()
        .unwrap();
    wire.option(7, &export_info("", &[]));
    let replies = wire.option_replies(7);
    assert_eq!(replies[0].0, ERR_UNKNOWN);
    let text = b"there are 2 volumes: name one of them as the export";
    assert_eq!(replies[0].1, text);
    assert_eq!(wire.go("second").0, 1 << 20);
}

#[test]
fn names_that_are_not_there_are_refused_and_haggling_goes_on() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(3);
    for name in [
        "none", "vol@none", "none@one", "@", "vol@", "@vol", "vol@@", "vol\0", " vol",
    ] {
        wire.option(7, &export_info(name, &[]));
        assert_eq!(wire.option_replies(7)[0].0, ERR_UNKNOWN, "{name:?}");
    }
    wire.go("vol");
}

#[test]
fn a_snapshot_is_read_only_and_compared_with_older_ones() {
    let served = Served::new();
    for name in ["one", "two"] {
        served.store.snapshot(&[("vol", name)]).wait().unwrap();
    }
    let mut wire = served.connect();
    wire.greet(3);
    wire.option(8, &[]);
    assert_eq!(wire.option_replies(8), [ACK]);
    let mut contexts = |export: &str| {
        wire.option(9, &queries(export, &["x-basalt:"]));
        wire.option_replies(9).len() - 1
    };
    assert_eq!(["vol", "vol@two", "vol@one"].map(&mut contexts), [2, 1, 0]);
    let (size, flags) = wire.go("vol@two");
    assert_eq!((size, flags & 2), (client::SIZE, 2));
}

#[test]
fn export_name_starts_a_session_without_option_replies() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(0);
    wire.option(1, b"vol");
    let answer = wire.receive(8 + 2 + 124);
    assert_eq!(answer[..8], client::SIZE.to_be_bytes());
    assert_eq!(wire.write(0, 0, b"x"), 0);
    wire.command(0, 0, 5, 0, 2);
    assert_eq!(wire.answer(2).body, Body::Data(0, b"x\0".to_vec()));
}

#[test]
fn abort_is_acknowledged_and_ends_the_session() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(3);
    wire.option(2, &[]);
    assert_eq!(wire.option_replies(2), [ACK]);
    wire.expect_end();
}

#[test]
fn what_breaks_the_handshake_ends_the_session() {
    let served = Served::new();
    let sessions: [&[u8]; 4] = [
        &[0, 0, 0, 4],
        &[&[0, 0, 0, 3][..], b"IHAVEOPX", &[0; 8]].concat(),
        &[&[0, 0, 0, 3][..], &option(1, b"none")].concat(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ];
    for session in sessions {
        let mut wire = served.connect();
        wire.receive(18);
        wire.send(session);
        wire.expect_end();
    }
}

#[test]
fn tls_and_extended_headers_are_refused_politely() {
    let served = Served::new();
    let mut wire = served.connect();
    wire.greet(3);
    for number in [5, 11] {
        wire.option(number, &[]);
        assert_eq!(wire.option_replies(number)[0].0, ERR_UNSUP);
    }
    wire.go("vol");
}

#[test]
fn who_does_not_choose_an_export_in_time_is_dropped_and_others_are_served() {
    let limits = Limits {
        handshake: Duration::from_secs(1),
        ..Limits::default()
    };
    let served = Served::with(limits);
    let mut fine = served.client("vol", &[]);
    let mut silent = served.connect();
    let mut slow: Wire = served.connect();
    assert_eq!(silent.receive(18).len(), 18);
    slow.greet(3);
    silent.expect_end();
    slow.expect_end();
    served.until_connected(1);
    assert_eq!(fine.write(0, 0, b"still here"), 0);
}

#[test]
fn tcp_serves_the_same() {
    let served = Served::new();
    let uri = served.server().uris("vol").pop().unwrap();
    let address = uri
        .strip_prefix("nbd://")
        .and_then(|rest| rest.strip_suffix("/vol"))
        .unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let mut greeting = [0; 18];
    std::io::Read::read_exact(&mut stream, &mut greeting).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream.write_all(&option(2, &[])).unwrap();
    let mut reply = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut reply).unwrap();
    assert_eq!(reply.len(), 20);
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
}
