//! Option haggling as a state machine: bytes in, bytes out, no I/O.
use super::context::Context;
use super::exports::{Export, Exports};
use super::protocol::{
    EXPORT_NAME_PADDING, INIT_MAGIC, OPTION_HEADER_BYTES, OPTION_MAGIC, OPTION_REPLY_MAGIC, Reader,
    STRING_BYTES_MAX, handshake_flag, info, option, option_reply, transmission_flag,
};
use crate::limits::{
    CONTEXTS_MAX, LIST_BYTES_MAX, OPTION_BYTES_MAX, OPTION_SKIP_BYTES_MAX, OPTIONS_MAX,
    PAYLOAD_BYTES_MAX, PREFERRED_BLOCK,
};

/// What the server says first: "`NBDMAGIC`, `IHAVEOPT`, handshake flags".
pub(crate) fn greeting() -> Vec<u8> {
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut bytes = Vec::with_capacity(18);
    bytes.extend(INIT_MAGIC.to_be_bytes());
    bytes.extend(OPTION_MAGIC.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// What both sides agreed on: the transmission phase's only input from the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// The export chosen.
    pub(crate) export: Export,
    /// Reads are answered in chunks.
    pub(crate) structured: bool,
    /// The contexts of `BLOCK_STATUS`; a context's id is its index.
    pub(crate) contexts: Vec<Context>,
}

/// What to do after a step, once its output is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next<O> {
    /// Step again when there are more bytes.
    Receive,
    /// Step again: there may be another option already.
    Again,
    /// Hang up.
    Close,
    /// Start the transmission.
    Transmit(Agreement, O),
}

/// One client's haggling, from its first byte to the choice of an export.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// The client flags, once they came.
    client: Option<ClientFlags>,
    structured: bool,
    /// The export that contexts were chosen for, and the contexts.
    contexts: Option<(String, Vec<Context>)>,
    /// Options so far.
    options: u32,
    /// An option too long to parse, and how many of its bytes are still to come.
    skipping: Option<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct ClientFlags {
    fixed: bool,
    no_zeroes: bool,
}

impl Handshake {
    /// Takes at most one option from `input` and appends the answer to `output`. Returns how many
    /// bytes of `input` it used, and what to do next.
    pub(crate) fn step<E: Exports>(
        &mut self,
        input: &[u8],
        exports: &E,
        output: &mut Vec<u8>,
    ) -> (usize, Next<E::Opened>) {
        let Some(client) = self.client else {
            return self.take_client_flags(input);
        };
        if let Some((option, left)) = self.skipping {
            return self.skip(option, left, input.len(), output);
        }
        let mut reader = Reader(input);
        let (Some(magic), Some(option), Some(length)) = (reader.u64(), reader.u32(), reader.u32())
        else {
            return (0, Next::Receive);
        };
        if magic != OPTION_MAGIC || self.options == OPTIONS_MAX {
            return (0, Next::Close);
        }
        // "This is the only valid option in nonfixed newstyle negotiation": others have no reply
        // that such a client could read.
        if !client.fixed && option != option::EXPORT_NAME {
            return (0, Next::Close);
        }
        if length > OPTION_BYTES_MAX {
            if length > OPTION_SKIP_BYTES_MAX || option == option::EXPORT_NAME {
                return (0, Next::Close);
            }
            self.options += 1;
            self.skipping = Some((option, length));
            return (OPTION_HEADER_BYTES, Next::Again);
        }
        let Some(data) = usize::try_from(length)
            .ok()
            .and_then(|length| reader.bytes(length))
        else {
            return (0, Next::Receive);
        };
        self.options += 1;
        let next = self.answer(
            option,
            data,
            client,
            exports,
            &mut Answer { option, output },
        );
        (OPTION_HEADER_BYTES + data.len(), next)
    }

    /// "the server MUST drop the TCP connection if the client sets an unknown flag, or a flag that
    /// does not match something advertised by the server."
    fn take_client_flags<O>(&mut self, input: &[u8]) -> (usize, Next<O>) {
        let Some(flags) = Reader(input).u32() else {
            return (0, Next::Receive);
        };
        let fixed = flags & handshake_flag::C_FIXED_NEWSTYLE != 0;
        let no_zeroes = flags & handshake_flag::C_NO_ZEROES != 0;
        if flags & !(handshake_flag::C_FIXED_NEWSTYLE | handshake_flag::C_NO_ZEROES) != 0 {
            return (0, Next::Close);
        }
        self.client = Some(ClientFlags { fixed, no_zeroes });
        (4, Next::Again)
    }

    fn skip<O>(
        &mut self,
        option: u32,
        left: u32,
        available: usize,
        output: &mut Vec<u8>,
    ) -> (usize, Next<O>) {
        let skipped = left.min(u32::try_from(available).unwrap_or(u32::MAX));
        if skipped < left {
            self.skipping = Some((option, left - skipped));
            return (available, Next::Receive);
        }
        self.skipping = None;
        let text = format!("an option may have at most {OPTION_BYTES_MAX} bytes");
        Answer { option, output }.error(option_reply::ERR_TOO_BIG, &text);
        (usize::try_from(skipped).unwrap_or(available), Next::Again)
    }

    fn answer<E: Exports>(
        &mut self,
        option: u32,
        data: &[u8],
        client: ClientFlags,
        exports: &E,
        answer: &mut Answer<'_>,
    ) -> Next<E::Opened> {
        match option {
            option::EXPORT_NAME => return self.export_name(data, client, exports, answer.output),
            // "The server MUST reply with `NBD_REP_ACK`", whatever its data.
            option::ABORT => {
                answer.ack();
                return Next::Close;
            }
            // "SHOULD error further options received (other than an `NBD_OPT_ABORT`) with
            // `NBD_REP_ERR_SHUTDOWN`."
            _ if exports.stopping() => {
                answer.error(option_reply::ERR_SHUTDOWN, "the server is stopping");
            }
            option::LIST | option::STRUCTURED_REPLY if !data.is_empty() => {
                answer.error(option_reply::ERR_INVALID, "this option has no data");
            }
            option::LIST => answer.list(exports),
            option::STRUCTURED_REPLY => {
                self.structured = true;
                answer.ack();
            }
            option::INFO => drop(self.info(data, exports, answer, |_| Ok(()))),
            option::GO => {
                let opened = self.info(data, exports, answer, |export| exports.open(export));
                if let Some((name, export, opened)) = opened {
                    return Next::Transmit(self.agree(name, export), opened);
                }
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option == option::SET_META_CONTEXT, data, exports, answer);
            }
            _ => answer.error(option_reply::ERR_UNSUP, "this option is not supported"),
        }
        Next::Again
    }

    /// "If the server is unwilling to allow the export, it MUST terminate the session."
    fn export_name<E: Exports>(
        &mut self,
        data: &[u8],
        client: ClientFlags,
        exports: &E,
        output: &mut Vec<u8>,
    ) -> Next<E::Opened> {
        let opened = string(data)
            .filter(|_| !exports.stopping())
            .and_then(|name| {
                let export = exports.find(name).ok()?;
                let opened = exports.open(&export).ok()?;
                Some((name, export, opened))
            });
        let Some((name, export, opened)) = opened else {
            return Next::Close;
        };
        output.extend(export.size.to_be_bytes());
        output.extend(self.transmission_flags(&export).to_be_bytes());
        if !client.no_zeroes {
            output.extend([0; EXPORT_NAME_PADDING]);
        }
        Next::Transmit(self.agree(name, export), opened)
    }

    /// `INFO` and `GO`: "32 bits, length of name; String: name of the export; 16 bits, number of
    /// information requests; 16 bits × n, list of `NBD_INFO` information requests". On success, the
    /// name as the client wrote it, the export, and what `open` made of it.
    fn info<'a, E: Exports, O>(
        &self,
        data: &'a [u8],
        exports: &E,
        answer: &mut Answer<'_>,
        open: impl FnOnce(&Export) -> Result<O, String>,
    ) -> Option<(&'a str, Export, O)> {
        let Some((name, requests)) = parse_info(data) else {
            answer.error(
                option_reply::ERR_INVALID,
                "malformed name or information requests",
            );
            return None;
        };
        let found = exports.find(name).and_then(|export| {
            let opened = open(&export)?;
            Ok((export, opened))
        });
        let (export, opened) = match found {
            Ok(found) => found,
            Err(why) => {
                answer.error(option_reply::ERR_UNKNOWN, &why);
                return None;
            }
        };
        let flags = self.transmission_flags(&export);
        answer.info(
            info::EXPORT,
            &[&export.size.to_be_bytes(), &flags.to_be_bytes()],
        );
        let asked = |kind: u16| requests.contains(&kind);
        if asked(info::NAME) {
            answer.info(info::NAME, &[export.name.as_bytes()]);
        }
        if asked(info::DESCRIPTION) {
            answer.info(info::DESCRIPTION, &[export.description.as_bytes()]);
        }
        if asked(info::BLOCK_SIZE) {
            let sizes = [1, PREFERRED_BLOCK, PAYLOAD_BYTES_MAX].map(u32::to_be_bytes);
            answer.info(info::BLOCK_SIZE, &[sizes.as_flattened()]);
        }
        answer.ack();
        Some((name, export, opened))
    }

    fn meta_context<E: Exports>(
        &mut self,
        set: bool,
        data: &[u8],
        exports: &E,
        answer: &mut Answer<'_>,
    ) {
        if set {
            // "Issuing this command replaces all previously-set metadata contexts", also if it
            // fails.
            self.contexts = None;
        }
        // "This option MUST NOT be requested unless structured replies have been negotiated first."
        if !self.structured {
            answer.error(option_reply::ERR_INVALID, "structured replies come first");
            return;
        }
        let Some((name, queries)) = parse_queries(data) else {
            answer.error(option_reply::ERR_INVALID, "malformed name or queries");
            return;
        };
        let export = match exports.find(name) {
            Ok(export) => export,
            Err(why) => return answer.error(option_reply::ERR_UNKNOWN, &why),
        };
        if set {
            let found = queries
                .iter()
                .filter_map(|q| Context::find(q, &export.snapshots));
            let mut chosen: Vec<Context> = Vec::new();
            for context in found {
                if !chosen.contains(&context) && chosen.len() < CONTEXTS_MAX {
                    chosen.push(context);
                }
            }
            answer.contexts(&chosen);
            self.contexts = Some((name.to_owned(), chosen));
        } else {
            // "If zero queries are sent, then the server MUST return all the metadata contexts"
            let listed =
                |c: &Context| queries.is_empty() || queries.iter().any(|q| c.is_listed_by(q));
            let chosen: Vec<Context> = Context::all(&export.snapshots).filter(listed).collect();
            answer.contexts(&chosen);
        }
    }

    /// Contexts count only for the export that they were chosen for.
    fn agree(&mut self, requested: &str, export: Export) -> Agreement {
        let contexts = self.contexts.take().filter(|(name, _)| name == requested);
        let contexts = contexts.map(|(_, contexts)| contexts).unwrap_or_default();
        Agreement {
            export,
            structured: self.structured,
            contexts,
        }
    }

    fn transmission_flags(&self, export: &Export) -> u16 {
        use transmission_flag as flag;
        let changes = if export.read_only {
            flag::READ_ONLY
        } else {
            flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
        };
        let whole = if self.structured { flag::SEND_DF } else { 0 };
        let reads = flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        flag::HAS_FLAGS | reads | changes | whole
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut reader = Reader(data);
    let name = string(reader.counted()?)?;
    let count = reader.u16()?;
    if reader.0.len() != usize::from(count) * 2 {
        return None;
    }
    let requests = std::iter::from_fn(|| reader.u16()).collect();
    Some((name, requests))
}

/// "32 bits, length of export name; String, name of export; 32 bits, number of queries; zero or
/// more queries, each: 32 bits, length of query; String, query"
fn parse_queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut reader = Reader(data);
    let name = string(reader.counted()?)?;
    let mut queries = Vec::new();
    for _ in 0..reader.u32()? {
        let query = string(reader.counted()?)?;
        // "consist of a namespace, followed by a colon, followed by a leaf-name"
        query.contains(':').then(|| queries.push(query))?;
    }
    reader.is_empty().then_some((name, queries))
}

fn string(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|s| s.len() <= STRING_BYTES_MAX)
}

/// Encodes the replies to one option.
struct Answer<'a> {
    option: u32,
    output: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        // Parts are numbers and strings that were bounded when they came in or by the store.
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend(self.option.to_be_bytes());
        self.output.extend(kind.to_be_bytes());
        self.output.extend(length.to_be_bytes());
        for part in parts {
            self.output.extend_from_slice(part);
        }
    }

    fn ack(&mut self) {
        self.reply(option_reply::ACK, &[]);
    }

    /// "All error replies MAY have some data set, in which case that data is an error message".
    fn error(&mut self, kind: u32, text: &str) {
        let end = text.floor_char_boundary(STRING_BYTES_MAX);
        self.reply(kind, &[&text.as_bytes()[..end]]);
    }

    fn info(&mut self, kind: u16, parts: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let parts: Vec<&[u8]> = std::iter::once(&kind[..])
            .chain(parts.iter().copied())
            .collect();
        self.reply(option_reply::INFO, &parts);
    }

    fn list<E: Exports>(&mut self, exports: &E) {
        let start = self.output.len();
        for (name, description) in exports.list() {
            let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
            let parts = [&length[..], name.as_bytes(), description.as_bytes()];
            self.reply(option_reply::SERVER, &parts);
            if self.output.len() - start > LIST_BYTES_MAX {
                self.output.truncate(start);
                return self.error(option_reply::ERR_TOO_BIG, "too many exports to list");
            }
        }
        self.ack();
    }

    fn contexts(&mut self, contexts: &[Context]) {
        let start = self.output.len();
        for (id, context) in (0_u32..).zip(contexts) {
            self.reply(
                option_reply::META_CONTEXT,
                &[&id.to_be_bytes(), context.name().as_bytes()],
            );
            if self.output.len() - start > LIST_BYTES_MAX {
                self.output.truncate(start);
                return self.error(option_reply::ERR_TOO_BIG, "too many contexts to list");
            }
        }
        self.ack();
    }
}

#[cfg(test)]
mod tests;
