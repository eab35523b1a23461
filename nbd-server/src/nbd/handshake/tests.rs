//! Every option, and every way to malform it, byte for byte.
use super::super::fuzz::OneVolume;
use super::*;

const FIXED: u32 = handshake_flag::C_FIXED_NEWSTYLE;
const NO_ZEROES: u32 = handshake_flag::C_NO_ZEROES;

fn started(flags: u32) -> Handshake {
    let mut handshake = Handshake::default();
    let step = handshake.step(&flags.to_be_bytes(), &OneVolume, &mut Vec::new());
    assert_eq!(step, (4, Next::Again));
    handshake
}

fn encode(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let header = [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &length.to_be_bytes(),
    ];
    [&header.concat(), data].concat()
}

/// One option's replies as (type, data), and what is next.
fn ask(handshake: &mut Handshake, option: u32, data: &[u8]) -> (Vec<(u32, Vec<u8>)>, Next<()>) {
    let input = encode(option, data);
    let mut output = Vec::new();
    let (taken, next) = handshake.step(&input, &OneVolume, &mut output);
    assert_eq!(taken, input.len());
    let mut reader = Reader(&output);
    let mut replies = Vec::new();
    while !reader.is_empty() {
        assert_eq!(
            (reader.u64(), reader.u32()),
            (Some(OPTION_REPLY_MAGIC), Some(option))
        );
        replies.push((reader.u32().unwrap(), reader.counted().unwrap().to_vec()));
    }
    (replies, next)
}

/// The type of the only reply, after which haggling goes on.
fn verdict(handshake: &mut Handshake, option: u32, data: &[u8]) -> u32 {
    let (replies, next) = ask(handshake, option, data);
    assert_eq!((replies.len(), next), (1, Next::Again));
    replies[0].0
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

fn info_data(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u16::try_from(requests.len()).unwrap().to_be_bytes());
    data.extend(requests.iter().flat_map(|r| r.to_be_bytes()));
    data
}

fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(counted(query.as_bytes()));
    }
    data
}

#[test]
fn the_greeting_is_eighteen_known_bytes() {
    assert_eq!(greeting(), b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn unknown_client_flags_end_the_session() {
    for flags in [4, 0x8000_0000, 0xffff_ffff] {
        let mut handshake = Handshake::default();
        let (_, next) = handshake.step(&u32::to_be_bytes(flags), &OneVolume, &mut Vec::new());
        assert_eq!(next, Next::Close);
    }
}

#[test]
fn a_part_of_an_option_waits_for_the_rest_and_takes_nothing() {
    let mut handshake = started(FIXED);
    let input = encode(option::GO, &info_data("vol", &[]));
    for end in 0..input.len() {
        let mut output = Vec::new();
        let step = handshake.step(&input[..end], &OneVolume, &mut output);
        assert_eq!((step, output.len()), ((0, Next::Receive), 0));
    }
    assert!(matches!(
        ask(&mut handshake, option::GO, &info_data("vol", &[])).1,
        Next::Transmit(..)
    ));
}

#[test]
fn a_wrong_magic_ends_the_session() {
    let mut input = encode(option::LIST, &[]);
    input[0] ^= 1;
    let (_, next) = started(FIXED).step(&input, &OneVolume, &mut Vec::new());
    assert_eq!(next, Next::Close);
}

#[test]
fn a_client_without_fixed_newstyle_can_only_name_an_export() {
    for option in [option::LIST, option::GO, option::ABORT, 77] {
        let mut output = Vec::new();
        let input = encode(option, &[]);
        let (_, next) = started(0).step(&input, &OneVolume, &mut output);
        assert_eq!((next, output.len()), (Next::Close, 0));
    }
    let mut output = Vec::new();
    let input = encode(option::EXPORT_NAME, b"vol");
    let (_, next) = started(0).step(&input, &OneVolume, &mut output);
    assert!(matches!(next, Next::Transmit(..)));
    assert_eq!(output.len(), 8 + 2 + 124);
}

#[test]
fn export_name_answers_size_and_flags_and_zeroes_if_wanted() {
    for (flags, padding) in [(FIXED, 124), (FIXED | NO_ZEROES, 0)] {
        let mut output = Vec::new();
        let input = encode(option::EXPORT_NAME, b"vol");
        let (_, next) = started(flags).step(&input, &OneVolume, &mut output);
        let expected = [
            &[0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d][..],
            &vec![0; padding],
        ]
        .concat();
        assert_eq!(output, expected);
        let Next::Transmit(agreement, ()) = next else {
            unreachable!("{next:?}")
        };
        assert_eq!(
            (agreement.export.name.as_str(), agreement.structured),
            ("vol", false)
        );
    }
}

#[test]
fn export_name_of_nothing_or_no_text_ends_the_session() {
    for name in [&b"none"[..], &[0xff], &[b'x'; 4097]] {
        let mut output = Vec::new();
        let input = encode(option::EXPORT_NAME, name);
        let (_, next) = started(FIXED).step(&input, &OneVolume, &mut output);
        assert_eq!((next, output.len()), (Next::Close, 0));
    }
}

#[test]
fn abort_is_acknowledged_whatever_its_data() {
    for data in [&[][..], &[1, 2, 3]] {
        let (replies, next) = ask(&mut started(FIXED), option::ABORT, data);
        assert_eq!(
            (replies, next),
            (vec![(option_reply::ACK, vec![])], Next::Close)
        );
    }
}

#[test]
fn list_names_and_describes_every_export() {
    let (replies, next) = ask(&mut started(FIXED), option::LIST, &[]);
    let expected = vec![
        (
            option_reply::SERVER,
            [&counted(b"vol")[..], b"a volume"].concat(),
        ),
        (option_reply::SERVER, counted(b"vol@a")),
        (option_reply::ACK, vec![]),
    ];
    assert_eq!((replies, next), (expected, Next::Again));
}

#[test]
fn options_without_data_refuse_data() {
    for option in [option::LIST, option::STRUCTURED_REPLY] {
        let mut handshake = started(FIXED);
        assert_eq!(
            verdict(&mut handshake, option, &[0]),
            option_reply::ERR_INVALID
        );
    }
}

#[test]
fn unknown_options_are_unsupported_and_haggling_goes_on() {
    let mut handshake = started(FIXED);
    let unknown = [
        0,
        4,
        option::STARTTLS,
        option::EXTENDED_HEADERS,
        12,
        0xffff_ffff,
    ];
    for option in unknown {
        for data in [&[][..], &[0; 100]] {
            assert_eq!(
                verdict(&mut handshake, option, data),
                option_reply::ERR_UNSUP
            );
        }
    }
    assert_eq!(ask(&mut handshake, option::LIST, &[]).0.len(), 3);
}

#[test]
fn info_answers_what_was_asked_and_go_starts() {
    let requests = [info::BLOCK_SIZE, info::NAME, 99, info::DESCRIPTION];
    let mut handshake = started(FIXED);
    let described = ask(&mut handshake, option::INFO, &info_data("", &requests));
    let expected = vec![
        (
            option_reply::INFO,
            vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x0d, 0x6d],
        ),
        (option_reply::INFO, b"\0\x01vol".to_vec()),
        (option_reply::INFO, b"\0\x02a volume".to_vec()),
        (
            option_reply::INFO,
            vec![0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0],
        ),
        (option_reply::ACK, vec![]),
    ];
    assert_eq!(described, (expected.clone(), Next::Again));
    let (replies, next) = ask(&mut handshake, option::GO, &info_data("", &requests));
    assert_eq!(replies, expected, "the same reply for GO as for INFO");
    let Next::Transmit(agreement, ()) = next else {
        unreachable!("{next:?}")
    };
    assert_eq!(agreement.export.name, "vol");
}

#[test]
fn info_says_only_the_export_when_nothing_is_asked() {
    let (replies, _) = ask(&mut started(FIXED), option::INFO, &info_data("vol@a", &[]));
    // HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN, SEND_CACHE
    let export = vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x05, 0x0f];
    assert_eq!(
        replies,
        [(option_reply::INFO, export), (option_reply::ACK, vec![])]
    );
}

#[test]
fn df_is_offered_only_with_structured_replies() {
    let mut handshake = started(FIXED);
    let flags = |handshake: &mut Handshake| {
        let (replies, _) = ask(handshake, option::INFO, &info_data("vol", &[]));
        u16::from_be_bytes(*replies[0].1.last_chunk().unwrap()) & transmission_flag::SEND_DF
    };
    assert_eq!(flags(&mut handshake), 0);
    assert_eq!(
        verdict(&mut handshake, option::STRUCTURED_REPLY, &[]),
        option_reply::ACK
    );
    assert_ne!(flags(&mut handshake), 0);
}

#[test]
fn info_and_go_for_no_export_say_why() {
    for option in [option::INFO, option::GO] {
        let (replies, next) = ask(&mut started(FIXED), option, &info_data("none", &[]));
        let why = b"there is no volume none".to_vec();
        assert_eq!(
            (replies, next),
            (vec![(option_reply::ERR_UNKNOWN, why)], Next::Again)
        );
    }
}

#[test]
fn malformed_info_and_go_are_invalid() {
    let good = info_data("vol", &[info::NAME]);
    let long_name = counted(&[b'x'; 4097]);
    let mut bad = vec![
        [&good[..], &[0]].concat(),
        [&good[..], &[0, 0]].concat(),
        [&0xffff_ffff_u32.to_be_bytes()[..], &[0; 20]].concat(),
        [&counted(&[0xff, 0xfe])[..], &[0, 0]].concat(),
        [&long_name[..], &[0, 0]].concat(),
        [&counted(b"vol")[..], &[0xff, 0xff]].concat(),
    ];
    bad.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for data in bad {
        for option in [option::INFO, option::GO] {
            let refused = verdict(&mut started(FIXED), option, &data);
            assert_eq!(refused, option_reply::ERR_INVALID, "{data:?}");
        }
    }
}

fn structured() -> Handshake {
    let mut handshake = started(FIXED);
    assert_eq!(
        verdict(&mut handshake, option::STRUCTURED_REPLY, &[]),
        option_reply::ACK
    );
    handshake
}

fn contexts(handshake: &mut Handshake, option: u32, queries: &[&str]) -> Vec<(u32, String)> {
    let (mut replies, next) = ask(handshake, option, &meta_data("vol", queries));
    assert_eq!(
        (replies.pop(), next),
        (Some((option_reply::ACK, vec![])), Next::Again)
    );
    let decode = |(kind, data): (u32, Vec<u8>)| {
        assert_eq!(kind, option_reply::META_CONTEXT);
        let (id, name) = data.split_first_chunk().unwrap();
        (
            u32::from_be_bytes(*id),
            String::from_utf8(name.to_vec()).unwrap(),
        )
    };
    replies.into_iter().map(decode).collect()
}

#[test]
fn contexts_are_listed_by_query_and_all_of_them_by_none() {
    let mut handshake = structured();
    let names = |list: Vec<(u32, String)>| list.into_iter().map(|(_, n)| n).collect::<Vec<_>>();
    let all = names(contexts(&mut handshake, option::LIST_META_CONTEXT, &[]));
    let expected = [
        "base:allocation",
        "x-basalt:dirty-since:a",
        "x-basalt:dirty-since:b:",
        "qemu:dirty-bitmap:a",
        "qemu:dirty-bitmap:b:",
    ];
    assert_eq!(all, expected);
    let queries = [
        "x-other:foo",
        "qemu:",
        "base:allocation",
        "qemu:dirty-bitmap:a",
    ];
    let some = names(contexts(
        &mut handshake,
        option::LIST_META_CONTEXT,
        &queries,
    ));
    assert_eq!(
        some,
        [
            "base:allocation",
            "qemu:dirty-bitmap:a",
            "qemu:dirty-bitmap:b:"
        ]
    );
}

#[test]
fn set_selects_whole_names_with_ids_and_replaces_what_was_set() {
    let mut handshake = structured();
    let set = option::SET_META_CONTEXT;
    assert_eq!(contexts(&mut handshake, set, &["base:allocation"]).len(), 1);
    let queries = [
        "qemu:dirty-bitmap:b:",
        "base:",
        "base:allocation",
        "base:allocation",
        "x:y",
    ];
    let chosen = contexts(&mut handshake, set, &queries);
    let expected = [
        (0, "qemu:dirty-bitmap:b:".to_owned()),
        (1, "base:allocation".to_owned()),
    ];
    assert_eq!(chosen, expected);
    let (_, next) = ask(&mut handshake, option::GO, &info_data("vol", &[]));
    let Next::Transmit(agreement, ()) = next else {
        unreachable!("{next:?}")
    };
    let agreed = [Context::DirtyBitmap("b:".to_owned()), Context::Allocation];
    assert_eq!(agreement.contexts, agreed);
}

#[test]
fn a_failed_set_leaves_nothing_selected() {
    let mut handshake = structured();
    let set = option::SET_META_CONTEXT;
    assert_eq!(contexts(&mut handshake, set, &["base:allocation"]).len(), 1);
    let unknown = meta_data("none", &["base:allocation"]);
    assert_eq!(
        verdict(&mut handshake, set, &unknown),
        option_reply::ERR_UNKNOWN
    );
    let (_, next) = ask(&mut handshake, option::GO, &info_data("vol", &[]));
    assert!(matches!(next, Next::Transmit(agreement, ()) if agreement.contexts.is_empty()));
}

#[test]
fn contexts_of_one_export_do_not_count_for_another() {
    let mut handshake = structured();
    let chosen = contexts(
        &mut handshake,
        option::SET_META_CONTEXT,
        &["base:allocation"],
    );
    assert_eq!(chosen.len(), 1);
    let (_, next) = ask(&mut handshake, option::GO, &info_data("vol@a", &[]));
    assert!(matches!(next, Next::Transmit(agreement, ()) if agreement.contexts.is_empty()));
}

#[test]
fn contexts_need_structured_replies_first() {
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        let early = verdict(&mut started(FIXED), option, &meta_data("vol", &[]));
        assert_eq!(early, option_reply::ERR_INVALID);
    }
}

#[test]
fn malformed_context_queries_are_invalid() {
    let good = meta_data("vol", &["base:allocation"]);
    let long = format!("x:{}", "y".repeat(4095));
    let mut bad = vec![
        [&good[..], &[0]].concat(),
        [&counted(b"vol")[..], &0xffff_ffff_u32.to_be_bytes()].concat(),
        [
            &counted(b"vol")[..],
            &1_u32.to_be_bytes(),
            &0xffff_ffff_u32.to_be_bytes(),
        ]
        .concat(),
        [
            &counted(b"vol")[..],
            &1_u32.to_be_bytes(),
            &counted(&[b':', 0xff]),
        ]
        .concat(),
        meta_data("vol", &["base"]),
        meta_data("vol", &[""]),
        meta_data("vol", &[&long]),
        [0xff, 0xff, 0xff, 0xff].to_vec(),
    ];
    bad.extend((0..good.len()).map(|end| good[..end].to_vec()));
    for data in bad {
        for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
            let refused = verdict(&mut structured(), option, &data);
            assert_eq!(refused, option_reply::ERR_INVALID, "{data:?}");
        }
    }
}

#[test]
fn an_option_too_long_is_skipped_in_pieces_and_refused() {
    let mut handshake = started(FIXED);
    let length = OPTION_BYTES_MAX + 1;
    let mut input = encode(option::INFO, &vec![0; usize::try_from(length).unwrap()]);
    input.extend(encode(option::LIST, &[]));
    let mut output = Vec::new();
    let mut calls = 0;
    // At most 1000 bytes are there at a time.
    let mut rest = input.as_slice();
    while output.is_empty() {
        let there = &rest[..rest.len().min(1000)];
        let (taken, next) = handshake.step(there, &OneVolume, &mut output);
        assert!(matches!(next, Next::Again | Next::Receive));
        rest = &rest[taken..];
        calls += 1;
    }
    assert_eq!(calls, 1 + (16384 + 1_u32).div_ceil(1000));
    assert_eq!(output[12..16], option_reply::ERR_TOO_BIG.to_be_bytes());
    assert_eq!(rest, encode(option::LIST, &[]));
}

#[test]
fn an_option_far_too_long_or_unanswerable_ends_the_session() {
    let lengths = [
        (option::INFO, OPTION_SKIP_BYTES_MAX + 1),
        (option::INFO, u32::MAX),
    ];
    for (option, length) in lengths.into_iter().chain([(option::EXPORT_NAME, u32::MAX)]) {
        let mut input = encode(option, &[]);
        input[12..].copy_from_slice(&length.to_be_bytes());
        let (_, next) = started(FIXED).step(&input, &OneVolume, &mut Vec::new());
        assert_eq!(next, Next::Close);
    }
}

#[test]
fn options_are_counted_and_too_many_end_the_session() {
    let mut handshake = started(FIXED);
    for _ in 0..OPTIONS_MAX {
        assert_eq!(verdict(&mut handshake, 99, &[]), option_reply::ERR_UNSUP);
    }
    let (_, next) = handshake.step(&encode(99, &[]), &OneVolume, &mut Vec::new());
    assert_eq!(next, Next::Close);
}

/// As [`OneVolume`], with something special.
#[derive(Debug)]
struct Special {
    stopping: bool,
    exports: usize,
    opens: bool,
}

impl Exports for Special {
    type Opened = ();
    fn list(&self) -> Vec<(String, String)> {
        (0..self.exports)
            .map(|n| (format!("volume {n}"), String::new()))
            .collect()
    }
    fn find(&self, name: &str) -> Result<Export, String> {
        OneVolume.find(name)
    }
    fn open(&self, _: &Export) -> Result<(), String> {
        if self.opens {
            Ok(())
        } else {
            Err("busy".to_owned())
        }
    }
    fn stopping(&self) -> bool {
        self.stopping
    }
}

fn answer_of(exports: &Special, option: u32, data: &[u8]) -> (u32, Next<()>) {
    let mut output = Vec::new();
    let input = encode(option, data);
    let (_, next) = started(FIXED).step(&input, exports, &mut output);
    let kind = output
        .get(12..16)
        .map_or(0, |kind| u32::from_be_bytes(kind.try_into().unwrap()));
    (kind, next)
}

#[test]
fn a_stopping_server_refuses_every_option_but_abort() {
    let stopping = Special {
        stopping: true,
        exports: 1,
        opens: true,
    };
    for option in [option::LIST, option::GO, option::STRUCTURED_REPLY, 99] {
        let answer = answer_of(&stopping, option, &info_data("vol", &[]));
        assert_eq!(answer, (option_reply::ERR_SHUTDOWN, Next::Again));
    }
    assert_eq!(
        answer_of(&stopping, option::ABORT, &[]),
        (option_reply::ACK, Next::Close)
    );
    assert_eq!(
        answer_of(&stopping, option::EXPORT_NAME, b"vol"),
        (0, Next::Close)
    );
}

#[test]
fn more_exports_than_a_reply_may_list_are_an_error_not_a_part() {
    let many = Special {
        stopping: false,
        exports: 60_000,
        opens: true,
    };
    assert_eq!(
        answer_of(&many, option::LIST, &[]),
        (option_reply::ERR_TOO_BIG, Next::Again)
    );
}

#[test]
fn an_export_that_cannot_be_opened_is_refused_before_anything_is_promised() {
    let busy = Special {
        stopping: false,
        exports: 1,
        opens: false,
    };
    let go = answer_of(&busy, option::GO, &info_data("vol", &[]));
    assert_eq!(go, (option_reply::ERR_UNKNOWN, Next::Again));
    let info = answer_of(&busy, option::INFO, &info_data("vol", &[]));
    assert_eq!(info.0, option_reply::INFO);
    assert_eq!(
        answer_of(&busy, option::EXPORT_NAME, b"vol"),
        (0, Next::Close)
    );
}
