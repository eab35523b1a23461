//! Clients that vanish, stall, flood and lie: others are served, nothing leaks, memory is bounded.
#[expect(dead_code, reason = "each test file uses a part of it")]
mod client;

use client::{Body, Served, export_info, option, pattern, request};
use nbd_server::limits::Limits;
use std::io::Read;
use std::net::Shutdown;
use std::time::Duration;

/// Small budgets and short deadlines.
fn strict() -> Limits {
    Limits {
        connections: 8,
        own_bytes: 64 << 10,
        shared_bytes: 40 << 20,
        stall: Duration::from_millis(900),
        stall_crowded: Duration::from_millis(300),
        ..Limits::default()
    }
}

#[test]
fn a_client_may_vanish_after_any_byte() {
    let served = Served::new();
    let mut session = 3_u32.to_be_bytes().to_vec();
    session.extend(option(8, &[]));
    session.extend(option(7, &export_info("vol", &[])));
    session.extend(request(0, 1, 1, 0, 40));
    session.extend([7; 40]);
    session.extend(request(0, 0, 2, 0, 1 << 20));
    session.extend(request(1, 1, 3, 4096, 40));
    session.extend([7; 40]);
    for end in 0..=session.len() {
        let mut wire = served.connect();
        wire.send(&session[..end]);
    }
    for end in 0..=session.len() {
        let mut wire = served.connect();
        wire.send(&session[..end]);
        wire.0.shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        wire.0.read_to_end(&mut answers).unwrap();
        assert_eq!(answers[..18], *b"NBDMAGICIHAVEOPT\0\x03");
    }
    served.until_connected(0);
    let mut wire = served.client("vol", &[]);
    assert_eq!(
        (wire.read(0, 40), wire.read(4096, 40)),
        (vec![7; 40], vec![7; 40])
    );
}

#[test]
fn who_never_reads_is_dropped_and_others_are_served_meanwhile() {
    let served = Served::with(strict());
    let mut deaf = served.client("vol", &[]);
    assert_eq!(deaf.write(0, 0, &pattern(1, 8 << 20)), 0);
    for cookie in 0..200 {
        deaf.command(0, 0, cookie, 0, 8 << 20);
    }
    // Small commands need nothing of what the deaf client holds, and a large one gets its turn.
    let mut fine = served.client("vol", &[]);
    for n in 0..200 {
        assert_eq!(fine.write(0, (16 << 20) + n * 4096, &pattern(n, 4096)), 0);
    }
    let data = pattern(2, 32 << 20);
    assert_eq!(fine.write(0, 32 << 20, &data), 0);
    assert!(fine.read(32 << 20, 32 << 20) == data);
    served.until_connected(1);
}

#[test]
fn who_sends_half_a_payload_is_dropped() {
    let served = Served::with(strict());
    for (length, sent) in [(4096, 100), (32 << 20, 5), (32 << 20, 20 << 20)] {
        let mut wire = served.client("vol", &[]);
        wire.send(&request(0, 1, 1, 0, length));
        wire.send(&vec![1; sent]);
        wire.expect_end();
    }
    served.until_connected(0);
}

#[test]
fn a_slow_client_that_moves_is_not_dropped() {
    let served = Served::with(Limits {
        stall: Duration::from_secs(2),
        ..strict()
    });
    let mut wire = served.client("vol", &[]);
    wire.send(&request(0, 1, 1, 0, 24));
    for _ in 0..24 {
        // Not to synchronise with anything: being slow is what is tested.
        std::thread::park_timeout(Duration::from_millis(100));
        wire.send(&[5]);
    }
    assert_eq!(wire.verdict(1), 0);
}

#[test]
fn more_clients_than_allowed_are_hung_up_on_until_others_leave() {
    let served = Served::with(strict());
    let mut clients: Vec<_> = (0..8).map(|_| served.client("vol", &[])).collect();
    served.until_connected(8);
    for _ in 0..1000 {
        served.connect().expect_end();
    }
    for wire in &mut clients {
        assert_eq!(wire.call(0, 3, 0, 0), 0);
    }
    drop(clients.pop());
    served.until_connected(7);
    assert_eq!(served.client("vol", &[]).call(0, 3, 0, 0), 0);
}

#[test]
fn garbage_instead_of_a_command_ends_the_session() {
    let served = Served::new();
    for seed in 0..50 {
        let mut wire = served.client("vol", &[]);
        wire.send(&pattern(seed, 28));
        wire.expect_end();
    }
    served.until_connected(0);
}

#[test]
fn random_commands_are_all_answered() {
    let served = Served::new();
    for seed in 1..20 {
        let mut wire = served.client("vol", &["base:allocation"]);
        let mut session = Vec::new();
        let bytes = pattern(seed, 50 * 16);
        for (cookie, random) in (0..).zip(bytes.chunks(16)) {
            let flags = u16::from(random[0] % 64);
            // No payloads, and no farewell.
            let kind = [0, 3, 4, 5, 6, 7, 8, 77][usize::from(random[1] % 8)];
            let shift = random[2] % 64;
            let offset = u64::from_be_bytes(random[4..12].try_into().unwrap()) >> shift;
            let length = u32::from_be_bytes(random[12..].try_into().unwrap()) >> (random[3] % 32);
            session.extend(request(flags, kind, cookie, offset, length));
        }
        wire.send(&session);
        let mut ended = 0;
        while ended < 50 {
            ended += usize::from(wire.answer(0).last);
        }
        assert_eq!(wire.call(0, 3, 0, 0), 0);
    }
}

#[test]
fn a_flood_of_small_commands_without_reading_is_bounded_and_served() {
    let served = Served::with(Limits {
        commands: 4,
        ..Limits::default()
    });
    let wire = served.client("vol", &[]);
    let mut sending = client::Wire(wire.0.try_clone().unwrap());
    let mut wire = wire;
    let sender = std::thread::spawn(move || {
        for cookie in 0..20_000 {
            sending.command(0, 3, cookie, 0, 0);
        }
    });
    for _ in 0..20_000 {
        assert_eq!(wire.answer(0).body, Body::Simple(0));
    }
    sender.join().unwrap();
}
