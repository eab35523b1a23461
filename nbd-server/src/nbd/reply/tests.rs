//! Replies byte for byte, and batches sent in pieces of any size.
use super::super::protocol::SIMPLE_REPLY_BYTES;
use super::*;

fn bytes_of(batch: &Batch) -> Vec<u8> {
    batch.window().flatten().copied().collect()
}

fn encode(structured: bool, answer: Answer) -> Vec<u8> {
    let mut batch = Batch::default();
    batch.push(0x0102_0304_0506_0708, structured, answer, 0);
    bytes_of(&batch)
}

const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn chunk_header(flags: u8, kind: [u8; 2], length: u8) -> Vec<u8> {
    [
        &[0x66, 0x8e, 0x33, 0xef, 0, flags][..],
        &kind,
        &COOKIE,
        &[0, 0, 0, length],
    ]
    .concat()
}

fn data(bytes: &'static [u8]) -> Segment {
    Segment::Data(Bytes::from_static(bytes))
}

#[test]
fn success_without_data_is_a_simple_reply_in_either_mode() {
    let expected = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE].concat();
    assert_eq!(encode(false, Answer::Done), expected);
    assert_eq!(encode(true, Answer::Done), expected);
}

#[test]
fn errors_are_a_number_or_a_chunk_with_a_text() {
    let simple = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28][..], &COOKIE].concat();
    assert_eq!(encode(false, Answer::Error(Errno::NoSpace)), simple);
    let text = Errno::Perm.text().as_bytes();
    let length = u8::try_from(text.len()).unwrap();
    let error = [&[0, 0, 0, 1, 0, length][..], text].concat();
    let expected = [chunk_header(1, [0x80, 1], 6 + length), error].concat();
    assert_eq!(encode(true, Answer::Error(Errno::Perm)), expected);
}

#[test]
fn a_simple_read_is_a_header_and_all_bytes_with_holes_filled() {
    let segments = vec![data(b"ab"), Segment::Hole(3), data(b"c")];
    let reply = encode(
        false,
        Answer::Data {
            offset: 5,
            segments,
            whole: false,
        },
    );
    assert_eq!(reply[8..16], COOKIE);
    assert_eq!(&reply[16..], b"ab\0\0\0c");
}

#[test]
fn a_structured_read_is_one_chunk_for_each_run_of_data_or_hole() {
    let segments = vec![
        data(b"ab"),
        data(b"cd"),
        Segment::Hole(1),
        Segment::Hole(2),
        data(b"e"),
    ];
    let reply = encode(
        true,
        Answer::Data {
            offset: 0x10,
            segments,
            whole: false,
        },
    );
    let expected = [
        &chunk_header(0, [0, 1], 12)[..],
        &[0, 0, 0, 0, 0, 0, 0, 0x10],
        b"abcd",
        &chunk_header(0, [0, 2], 12),
        &[0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 3],
        &chunk_header(1, [0, 1], 9),
        &[0, 0, 0, 0, 0, 0, 0, 0x17],
        b"e",
    ];
    assert_eq!(reply, expected.concat());
}

#[test]
fn df_makes_one_chunk_with_zeroes_or_one_hole() {
    let segments = vec![Segment::Hole(1), data(b"a"), Segment::Hole(1)];
    let reply = encode(
        true,
        Answer::Data {
            offset: 0,
            segments,
            whole: true,
        },
    );
    let expected = [&chunk_header(1, [0, 1], 11)[..], &[0; 8], b"\0a\0"];
    assert_eq!(reply, expected.concat());
    let holes = vec![Segment::Hole(1), Segment::Hole(1)];
    let reply = encode(
        true,
        Answer::Data {
            offset: 0,
            segments: holes,
            whole: true,
        },
    );
    let expected = [&chunk_header(1, [0, 2], 12)[..], &[0; 8], &[0, 0, 0, 2]];
    assert_eq!(reply, expected.concat());
}

#[test]
fn a_read_of_nothing_is_an_empty_chunk() {
    let nothing = |whole| Answer::Data {
        offset: 9,
        segments: Vec::new(),
        whole,
    };
    assert_eq!(encode(true, nothing(false)), chunk_header(1, [0, 0], 0));
    assert_eq!(encode(true, nothing(true)), chunk_header(1, [0, 0], 0));
    assert_eq!(encode(false, nothing(false)).len(), SIMPLE_REPLY_BYTES);
}

#[test]
fn status_is_one_chunk_for_each_context_and_the_last_is_done() {
    let reply = encode(
        true,
        Answer::Status(vec![vec![(1, 0), (2, 3)], vec![(3, 1)]]),
    );
    let expected = [
        &chunk_header(0, [0, 5], 20)[..],
        &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3],
        &chunk_header(1, [0, 5], 12),
        &[0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1],
    ];
    assert_eq!(reply, expected.concat());
}

#[test]
fn data_is_shared_and_headers_of_neighbours_are_one_piece() {
    let memory = Bytes::from(vec![7; 4096]);
    let mut batch = Batch::default();
    for _ in 0..10 {
        batch.push(1, true, Answer::Done, 0);
    }
    let segments = vec![Segment::Data(memory.clone())];
    batch.push(
        2,
        true,
        Answer::Data {
            offset: 0,
            segments,
            whole: false,
        },
        0,
    );
    let pieces: Vec<&[u8]> = batch.window().collect();
    assert_eq!(pieces.len(), 2);
    assert_eq!(pieces[1].as_ptr(), memory.as_ptr());
}

#[test]
fn a_batch_sent_in_pieces_of_any_size_is_the_same_bytes() {
    let fill = |batch: &mut Batch| {
        for n in 0..20 {
            let segments = vec![data(b"abcdefgh"), Segment::Hole(n), data(b"i")];
            batch.push(
                n,
                true,
                Answer::Data {
                    offset: n,
                    segments,
                    whole: n % 2 == 0,
                },
                3,
            );
            batch.push(n, false, Answer::Done, 4);
        }
    };
    let mut batch = Batch::default();
    fill(&mut batch);
    let expected = bytes_of(&batch);
    for step in 1..200 {
        batch.clear();
        assert!(batch.is_empty());
        fill(&mut batch);
        assert_eq!(batch.cost(), (40, 140));
        let mut sent = Vec::new();
        while !batch.is_sent() {
            let window = bytes_of(&batch);
            let count = step.min(window.len());
            sent.extend_from_slice(&window[..count]);
            batch.advance(count);
        }
        assert!(sent == expected, "in steps of {step}");
    }
}

#[test]
fn a_window_keeps_the_limits_of_one_send() {
    let mut batch = Batch::default();
    let segments = (0..3000).map(|_| data(b"x")).collect();
    batch.push(
        1,
        false,
        Answer::Data {
            offset: 0,
            segments,
            whole: false,
        },
        0,
    );
    let segments = vec![Segment::Hole(5 << 20)];
    batch.push(
        1,
        false,
        Answer::Data {
            offset: 0,
            segments,
            whole: false,
        },
        0,
    );
    let mut bytes = 0;
    while !batch.is_sent() {
        let window: Vec<usize> = batch.window().map(<[u8]>::len).collect();
        assert!(window.len() <= SEND_PIECES);
        let sum: usize = window.iter().sum();
        assert!(sum > 0 && sum < 2 * SEND_BYTES);
        batch.advance(sum);
        bytes += sum;
    }
    assert_eq!(bytes, 16 + 3000 + 16 + (5 << 20));
}
