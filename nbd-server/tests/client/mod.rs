//! A plain, blocking NBD client that can also misbehave, and a server to try it on.
#![expect(unreachable_pub, reason = "what is public here is for one test file")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use blockstore::{InitOptions, Options, Store};
use nbd_server::limits::Limits;
use nbd_server::serve::{Listen, ServeOptions, Server};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes in `vol`.
pub const SIZE: u64 = 64 << 20;

/// A pool with the volume `vol`, and a server of it on a unix socket.
pub struct Served {
    pub store: Store,
    pub server: Option<Server>,
    pub folder: tempfile::TempDir,
}

impl Served {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = folder.path().join("pool");
        let options = InitOptions {
            size: Some(256 << 20),
            ..InitOptions::default()
        };
        Store::init(&pool, &options, &mut |_| {}).unwrap();
        let options = Options {
            workers: 2,
            ..Options::default()
        };
        let store = Store::open(&pool, &options).unwrap();
        store.create_volume("vol", SIZE, false).wait().unwrap();
        let path = folder.path().join("nbd.sock");
        let options = ServeOptions {
            listen: vec![Listen::Unix(path), Listen::Tcp("127.0.0.1:0".to_owned())],
            limits,
            ..ServeOptions::default()
        };
        let server = Some(Server::start(&store, options).unwrap());
        Self {
            store,
            server,
            folder,
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    /// A connection on which nothing was said.
    pub fn connect(&self) -> Wire {
        let stream = UnixStream::connect(self.path()).unwrap();
        // Only so that a failing test ends.
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Wire(stream)
    }

    /// A client in the transmission phase, with structured replies and these contexts.
    pub fn client(&self, export: &str, contexts: &[&str]) -> Wire {
        let mut wire = self.connect();
        wire.greet(3);
        wire.option(8, &[]);
        assert_eq!(wire.option_replies(8), [(1, vec![])]);
        if !contexts.is_empty() {
            wire.option(10, &queries(export, contexts));
            assert_eq!(wire.option_replies(10).len(), contexts.len() + 1);
        }
        wire.go(export);
        wire
    }

    /// A client in the transmission phase, with simple replies.
    pub fn simple_client(&self, export: &str) -> Wire {
        let mut wire = self.connect();
        wire.greet(3);
        wire.go(export);
        wire
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// Waits until so many clients are connected.
    pub fn until_connected(&self, count: usize) {
        let begin = std::time::Instant::now();
        while self.server().connections() != count {
            let now = self.server().connections();
            assert!(
                begin.elapsed() < Duration::from_secs(20),
                "{now} clients are connected, not {count}"
            );
            std::thread::yield_now();
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown();
        }
        if !std::thread::panicking() {
            self.store.close().wait().unwrap();
        }
    }
}

/// A stream to a server.
pub struct Wire(pub UnixStream);

/// A command's header.
pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// An option with its header.
pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of `GO` and `INFO`.
pub fn export_info(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// The data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
pub fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// A reply, or a chunk of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub last: bool,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Done, or the error number.
    Simple(u32),
    Nothing,
    Data(u64, Vec<u8>),
    Hole(u64, u32),
    /// Context id, and extents as (length, flags).
    Status(u32, Vec<(u32, u32)>),
    Error(u32),
}

impl Wire {
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        self.receive(N).try_into().unwrap()
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.number())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.number())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.number())
    }

    /// The server hangs up without another byte.
    pub fn expect_end(&mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(count) => assert_eq!(count, 0, "{rest:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// Takes the greeting and sends client flags.
    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(18), b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes());
    }

    pub fn option(&mut self, number: u32, data: &[u8]) {
        self.send(&option(number, data));
    }

    /// The replies to an option as (type, data), up to the final one.
    pub fn option_replies(&mut self, number: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(
                (self.u64(), self.u32()),
                (0x0003_e889_0455_65a9, number),
                "magic and option"
            );
            let (kind, length) = (self.u32(), self.u32());
            replies.push((kind, self.receive(usize::try_from(length).unwrap())));
            if kind == 1 || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// Starts the transmission; returns size and flags.
    pub fn go(&mut self, export: &str) -> (u64, u16) {
        self.option(7, &export_info(export, &[]));
        let replies = self.option_replies(7);
        assert_eq!(replies.len(), 2, "{replies:?}");
        let data = &replies[0].1;
        let size = u64::from_be_bytes(data[2..10].try_into().unwrap());
        (size, u16::from_be_bytes(data[10..].try_into().unwrap()))
    }

    pub fn command(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&request(flags, kind, cookie, offset, length));
    }

    /// Writes with a cookie, without waiting.
    pub fn start_write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(&[&request(flags, 1, cookie, offset, length)[..], data].concat());
    }

    /// The next reply or chunk. `data`: bytes that a simple reply without an error carries.
    pub fn answer(&mut self, data: usize) -> Answer {
        match self.u32() {
            0x6744_6698 => {
                let (error, cookie) = (self.u32(), self.u64());
                let body = match (error, data) {
                    (0, 1..) => Body::Data(0, self.receive(data)),
                    _ => Body::Simple(error),
                };
                Answer {
                    cookie,
                    last: true,
                    body,
                }
            }
            0x668e_33ef => {
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                let length = self.u32();
                let body = self.chunk(kind, length);
                Answer {
                    cookie,
                    last: flags & 1 != 0,
                    body,
                }
            }
            magic => panic!("reply magic {magic:#x}"),
        }
    }

    fn chunk(&mut self, kind: u16, length: u32) -> Body {
        match kind {
            0 => Body::Nothing,
            1 => Body::Data(
                self.u64(),
                self.receive(usize::try_from(length).unwrap() - 8),
            ),
            2 => Body::Hole(self.u64(), self.u32()),
            5 => {
                let id = self.u32();
                let extents = (0..(length - 4) / 8).map(|_| (self.u32(), self.u32()));
                Body::Status(id, extents.collect())
            }
            0x8001 => {
                let error = self.u32();
                let text = self.u16();
                assert_eq!(length, 6 + u32::from(text));
                self.receive(text.into());
                Body::Error(error)
            }
            kind => panic!("chunk type {kind:#x}"),
        }
    }

    /// One command without data, to its end: the error number, or 0.
    pub fn call(&mut self, flags: u16, kind: u16, offset: u64, length: u32) -> u32 {
        self.command(flags, kind, 99, offset, length);
        self.verdict(99)
    }

    /// The error number of a reply without data, or 0.
    pub fn verdict(&mut self, cookie: u64) -> u32 {
        let answer = self.answer(0);
        assert_eq!((answer.cookie, answer.last), (cookie, true));
        match answer.body {
            Body::Simple(error) | Body::Error(error) => error,
            body => panic!("{body:?}"),
        }
    }

    pub fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> u32 {
        self.start_write(flags, 98, offset, data);
        self.verdict(98)
    }

    /// Reads in structured mode; the chunks up to the last.
    pub fn chunks(&mut self, flags: u16, kind: u16, offset: u64, length: u32) -> Vec<Body> {
        self.command(flags, kind, 97, offset, length);
        let mut bodies = Vec::new();
        loop {
            let answer = self.answer(0);
            assert_eq!(answer.cookie, 97);
            bodies.push(answer.body);
            if answer.last {
                return bodies;
            }
        }
    }

    /// Reads in structured mode and puts the chunks together.
    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = vec![0xee; usize::try_from(length).unwrap()];
        for body in self.chunks(0, 0, offset, length) {
            let (at, part) = match body {
                Body::Data(at, data) => (at, data),
                Body::Hole(at, length) => (at, vec![0; usize::try_from(length).unwrap()]),
                body => panic!("{body:?}"),
            };
            let at = usize::try_from(at - offset).unwrap();
            bytes[at..at + part.len()].copy_from_slice(&part);
        }
        bytes
    }
}

/// Bytes that tell where they are.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend(next());
    }
    bytes.truncate(length);
    bytes
}
