//! Fuzz bodies for what untrusted clients send; `cargo test` runs them too.
use super::exports::{Export, Exports};
use super::handshake::{Handshake, Next};
use super::protocol::{OPTION_REPLY_MAGIC, REQUEST_BYTES, RawRequest, Reader};
use super::reply::{Answer, Batch};
use super::validate::{Command, Rules, payload_fits, validate};
use crate::limits::{CONTEXTS_MAX, OPTIONS_MAX, PAYLOAD_BYTES_MAX};

/// One volume with two snapshots.
#[derive(Debug)]
pub(super) struct OneVolume;

impl Exports for OneVolume {
    type Opened = ();

    fn list(&self) -> Vec<(String, String)> {
        vec![
            ("vol".to_owned(), "a volume".to_owned()),
            ("vol@a".to_owned(), String::new()),
        ]
    }

    fn find(&self, name: &str) -> Result<Export, String> {
        let snapshots = match name {
            "" | "vol" => vec!["a".to_owned(), "b:".to_owned()],
            "vol@a" => Vec::new(),
            _ => return Err(format!("there is no volume {name}")),
        };
        let read_only = name == "vol@a";
        let name = if read_only { name } else { "vol" }.to_owned();
        Ok(Export {
            name,
            description: "a volume".to_owned(),
            size: 1 << 20,
            read_only,
            snapshots,
        })
    }

    fn open(&self, _: &Export) -> Result<(), String> {
        Ok(())
    }

    fn stopping(&self) -> bool {
        false
    }
}

/// A client sends `data` in the handshake: it is answered well-formed, or hung up on.
pub fn fuzz_handshake(data: &[u8]) {
    let mut handshake = Handshake::default();
    let mut input = data;
    for _ in 0..=OPTIONS_MAX * 2 + 4 {
        let mut output = Vec::new();
        let (taken, next) = handshake.step(input, &OneVolume, &mut output);
        input = &input[taken..];
        match next {
            Next::Again => assert!(are_option_replies(&output), "malformed replies"),
            Next::Receive => {
                assert!(output.is_empty(), "an answer before the option is complete");
                return;
            }
            Next::Close => return,
            Next::Transmit(agreement, ()) => {
                assert!(agreement.contexts.len() <= CONTEXTS_MAX);
                assert!(agreement.structured || agreement.contexts.is_empty());
                return;
            }
        }
    }
    assert!(input.is_empty(), "the handshake goes on for ever");
}

fn are_option_replies(output: &[u8]) -> bool {
    let mut reader = Reader(output);
    while !reader.is_empty() {
        let reply = (reader.u64(), reader.u32(), reader.u32(), reader.counted());
        if !matches!(reply, (Some(OPTION_REPLY_MAGIC), Some(_), Some(_), Some(_))) {
            return false;
        }
    }
    true
}

/// A client sends `data` in the transmission: what passes the rules keeps them, and what does not
/// is answered.
pub fn fuzz_commands(data: &[u8]) {
    let Some((&[mode, shift], headers)) = data.split_first_chunk() else {
        return;
    };
    let rules = Rules {
        size: 1_u64.checked_shl(shift.into()).unwrap_or(u64::MAX),
        read_only: mode & 1 != 0,
        structured: mode & 2 != 0,
        contexts: mode & 4 != 0,
    };
    let mut batch = Batch::default();
    for header in headers.as_chunks::<REQUEST_BYTES>().0 {
        let Some(raw) = RawRequest::decode(header) else {
            continue;
        };
        let answer = match validate(&raw, rules) {
            Ok(command) => {
                assert!(keeps(&command, &raw, rules), "{command:?} breaks {rules:?}");
                Answer::Done
            }
            Err(errno) => Answer::Error(errno),
        };
        batch.push(raw.cookie, rules.structured, answer, 0);
    }
    while !batch.is_sent() {
        let bytes: usize = batch.window().map(<[u8]>::len).sum();
        assert!(bytes > 0, "a send that carries nothing");
        batch.advance(bytes.min(usize::from(shift) + 1));
    }
}

fn keeps(command: &Command, raw: &RawRequest, rules: Rules) -> bool {
    let inside = raw.offset <= rules.size && u64::from(raw.length) <= rules.size - raw.offset;
    let short = raw.length <= PAYLOAD_BYTES_MAX;
    match command {
        Command::Read { .. } => inside && short,
        Command::Write { .. } => inside && !rules.read_only && (short || !payload_fits(raw)),
        Command::Zero { .. } | Command::Trim { .. } => inside && !rules.read_only,
        Command::Status { length, .. } => inside && rules.contexts && *length > 0,
        Command::Nothing => inside,
        Command::Flush | Command::Disconnect => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pseudo-random numbers of splitmix64: the same in every run.
    fn numbers(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    /// A number of so many bits.
    fn bits(next: &mut impl FnMut() -> u64, bits: u32) -> u64 {
        next() >> (64 - bits)
    }

    fn bytes(next: &mut impl FnMut() -> u64, count: u64) -> Vec<u8> {
        (0..count).map(|_| next().to_be_bytes()[0]).collect()
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut next = numbers(1);
        for _ in 0..2000 {
            let length = next() % 300;
            let data = bytes(&mut next, length);
            fuzz_handshake(&data);
            fuzz_commands(&data);
        }
    }

    #[test]
    fn options_with_random_fields_never_panic() {
        let mut next = numbers(2);
        for _ in 0..5000 {
            let mut data = 3_u32.to_be_bytes().to_vec();
            for _ in 0..next() % 6 {
                let count = next() % 40;
                let mut body = bytes(&mut next, count);
                if next().is_multiple_of(2) {
                    let names = [&b""[..], b"vol", b"vol@a", b"none"];
                    let name = names[usize::try_from(next() % 4).unwrap()];
                    body = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
                    body.extend(name);
                    let more = next() % 12;
                    body.extend(bytes(&mut next, more).iter().map(|b| b % 4));
                }
                data.extend(super::super::protocol::OPTION_MAGIC.to_be_bytes());
                data.extend(u32::try_from(next() % 13).unwrap().to_be_bytes());
                data.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
                data.extend(body);
            }
            fuzz_handshake(&data);
        }
    }

    #[test]
    fn commands_with_random_fields_never_panic() {
        let mut next = numbers(3);
        for _ in 0..5000 {
            let mut data = bytes(&mut next, 1);
            data.push(u8::try_from(next() % 66).unwrap());
            for _ in 0..next() % 20 {
                data.extend(super::super::protocol::REQUEST_MAGIC.to_be_bytes());
                data.extend(u16::try_from(next() % 64).unwrap().to_be_bytes());
                data.extend(u16::try_from(next() % 10).unwrap().to_be_bytes());
                data.extend(next().to_be_bytes());
                let size = u32::try_from(next() % 64).unwrap() + 1;
                data.extend(bits(&mut next, size).to_be_bytes());
                let size = size.div_ceil(2);
                data.extend(u32::try_from(bits(&mut next, size)).unwrap().to_be_bytes());
            }
            fuzz_commands(&data);
        }
    }
}
