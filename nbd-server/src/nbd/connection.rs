//! One client: takes commands, runs many at once, answers them as they end.
//!
//! Three kinds of tasks, all on one worker, share a [`Connection`]: one takes commands and stops
//! taking when too many are unanswered; one for each command runs it; one sends answers, as many as
//! there are in one send. Invariants:
//! 1. Every command that was admitted is answered exactly once, unless the session ends.
//! 2. A command is charged from its admission until its answer was sent or thrown away.
//! 3. Commands run to their end, also when the client is gone.
use super::errno::Errno;
use super::exports::StoreExports;
use super::handshake::{self, Agreement, Handshake, Next};
use super::protocol::RawRequest;
use super::receive::{Gone, Receiver};
use super::reply::{Answer, Batch};
use super::signal::Signal;
use super::validate::{Command, Rules, payload_fits, validate};
use crate::clients::Seat;
use crate::execute::execute;
use crate::socket::Outgoing;
use blockstore::runtime::spawn_local;
use blockstore::{Error, Store, Volume};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;

/// Serves one client from its first byte to its last. On a worker thread.
pub(crate) async fn serve(client: Seat, store: Store) {
    let client = Rc::new(client);
    let mut receiver = Receiver::new(client.clone());
    if let Ok((agreement, volume)) = negotiate(&client, &mut receiver, &store).await {
        client.negotiated();
        Connection::new(client.clone(), agreement, volume)
            .transmit(receiver)
            .await;
    }
    client.socket.hang_up();
}

/// Option haggling, to the choice of an export.
async fn negotiate(
    client: &Rc<Seat>,
    receiver: &mut Receiver,
    store: &Store,
) -> Result<(Agreement, Volume), Gone> {
    let mut handshake = Handshake::default();
    let mut outgoing = Outgoing::new();
    let mut output = handshake::greeting();
    let mut next = Next::Receive;
    loop {
        if !output.is_empty() {
            outgoing.batch.push_bytes(std::mem::take(&mut output));
            let (result, returned) = client.socket.send(outgoing, || {}).await;
            outgoing = returned;
            outgoing.batch.clear();
            result.map_err(|_| Gone)?;
        }
        match next {
            Next::Receive => receiver.more().await?,
            Next::Again => {}
            Next::Close => return Err(Gone),
            Next::Transmit(agreement, volume) => return Ok((agreement, volume)),
        }
        let exports = StoreExports {
            store,
            clients: client.clients(),
        };
        let (taken, then) = handshake.step(receiver.bytes(), &exports, &mut output);
        receiver.take(taken);
        next = then;
    }
}

/// What the tasks of one client share in the transmission phase.
struct Connection {
    client: Rc<Seat>,
    volume: Volume,
    agreement: Agreement,
    /// Answers that wait for the next send.
    answers: RefCell<Batch>,
    /// Commands that run.
    running: Cell<u32>,
    /// Commands admitted and not yet answered, or answered and not yet sent.
    unanswered: Cell<u32>,
    /// Bytes of memory they are charged with, and how many of those the shared budget gave.
    charged: Cell<u64>,
    shared: Cell<u64>,
    /// No more commands are taken.
    ended: Cell<bool>,
    /// Nothing more is sent.
    sent: Cell<bool>,
    /// Where the sending task waits for answers.
    answered: Signal,
    /// Where the taking task waits for room, and at the end for the sending task.
    settled: Signal,
    /// Errors that were logged, as bits by [`Errno`] number.
    logged: Cell<u128>,
}

impl Connection {
    fn new(client: Rc<Seat>, agreement: Agreement, volume: Volume) -> Rc<Self> {
        Rc::new(Self {
            client,
            volume,
            agreement,
            answers: RefCell::default(),
            running: Cell::new(0),
            unanswered: Cell::new(0),
            charged: Cell::new(0),
            shared: Cell::new(0),
            ended: Cell::new(false),
            sent: Cell::new(false),
            answered: Signal::default(),
            settled: Signal::default(),
            logged: Cell::new(0),
        })
    }

    /// The whole transmission phase. Returns when every command has ended and every answer was
    /// sent, or there is nobody to send to.
    async fn transmit(self: Rc<Self>, mut receiver: Receiver) {
        spawn_local(self.clone().send_answers());
        // Whether the client said goodbye or vanished, what it asked for is finished.
        drop(self.take_commands(&mut receiver).await);
        drop(receiver);
        self.ended.set(true);
        self.answered.wake();
        self.settled.until(|| self.sent.get()).await;
        // What was charged for a payload that never came.
        self.client.clients().budget.give(self.shared.take());
    }

    /// Takes commands until `DISC` or the end of the stream.
    async fn take_commands(self: &Rc<Self>, receiver: &mut Receiver) -> Result<(), Gone> {
        loop {
            let raw = RawRequest::decode(&receiver.header().await?).ok_or(Gone)?;
            if !payload_fits(&raw) {
                return Err(Gone);
            }
            let length = usize::try_from(raw.payload_bytes()).map_err(|_| Gone)?;
            match self.decide(&raw) {
                Ok(Command::Disconnect) => return Ok(()),
                Ok(command) => {
                    let charge = command.memory(self.agreement.contexts.len());
                    self.admit(charge).await;
                    let payload = match command {
                        Command::Write { .. } => receiver.payload(length).await?,
                        _ => Bytes::new(),
                    };
                    self.running.set(self.running.get() + 1);
                    spawn_local(self.clone().run(raw.cookie, command, payload, charge));
                }
                Err(errno) => {
                    self.admit(0).await;
                    receiver.skip(length).await?;
                    self.answer(raw.cookie, Answer::Error(errno), 0);
                }
            }
        }
    }

    fn decide(&self, raw: &RawRequest) -> Result<Command, Errno> {
        let rules = Rules {
            // It may have grown.
            size: self.volume.size(),
            read_only: self.agreement.export.read_only,
            structured: self.agreement.structured,
            contexts: !self.agreement.contexts.is_empty(),
        };
        match validate(raw, rules)? {
            // "any subsequently received requests SHOULD be `NBD_ESHUTDOWN`"
            command if command != Command::Disconnect && self.client.clients().stopping() => {
                Err(Errno::Shutdown)
            }
            command => Ok(command),
        }
    }

    /// Waits until one more command, with so many bytes, is within all limits, and counts it.
    async fn admit(&self, charge: u64) {
        let clients = self.client.clients();
        let limits = &clients.limits;
        let fits = || {
            let unanswered = usize::try_from(self.unanswered.get()).unwrap_or(usize::MAX);
            let charged = self.charged.get() + charge;
            unanswered < limits.commands.max(1)
                && (charged <= limits.connection_bytes || self.charged.get() == 0)
        };
        if !fits() {
            self.settled.until(fits).await;
        }
        let beyond_own = (self.charged.get() + charge).saturating_sub(limits.own_bytes);
        let missing = beyond_own.saturating_sub(self.shared.get());
        if missing > 0 {
            let taken = clients.budget.take(missing).await;
            self.shared.set(self.shared.get() + taken);
        }
        self.count(1, charge);
    }

    fn count(&self, commands: u32, charge: u64) {
        self.unanswered.set(self.unanswered.get() + commands);
        self.charged.set(self.charged.get() + charge);
        self.client.commands.store(self.unanswered.get(), Relaxed);
    }

    /// The opposite of [`Self::admit`], for commands whose answers are sent.
    fn settle(&self, commands: u32, charge: u64) {
        self.unanswered.set(self.unanswered.get() - commands);
        self.charged.set(self.charged.get() - charge);
        self.client.commands.store(self.unanswered.get(), Relaxed);
        let clients = self.client.clients();
        let beyond_own = self.charged.get().saturating_sub(clients.limits.own_bytes);
        let spare = self.shared.get().saturating_sub(beyond_own);
        if spare > 0 {
            self.shared.set(self.shared.get() - spare);
            clients.budget.give(spare);
        }
        self.settled.wake();
    }

    /// One command, from its admission to its answer.
    async fn run(self: Rc<Self>, cookie: u64, command: Command, payload: Bytes, charge: u64) {
        let done = execute(&self.volume, &self.agreement.contexts, command, payload).await;
        let answer = done.unwrap_or_else(|error| Answer::Error(self.errno(command, &error)));
        self.running.set(self.running.get() - 1);
        self.answer(cookie, answer, charge);
    }

    fn answer(&self, cookie: u64, answer: Answer, charge: u64) {
        self.answers
            .borrow_mut()
            .push(cookie, self.agreement.structured, answer, charge);
        self.answered.wake();
    }

    /// Sends answers as they come, until the last command is answered.
    async fn send_answers(self: Rc<Self>) {
        let mut outgoing = Outgoing::new();
        let mut broken = false;
        loop {
            let last = || self.ended.get() && self.running.get() == 0;
            self.answered
                .until(|| !self.answers.borrow().is_empty() || last())
                .await;
            std::mem::swap(&mut outgoing.batch, &mut *self.answers.borrow_mut());
            if outgoing.batch.is_empty() {
                break;
            }
            if !broken {
                let flow = &self.client.outgoing;
                flow.waits(true);
                let (result, returned) = self.client.socket.send(outgoing, || flow.moved()).await;
                outgoing = returned;
                flow.waits(false);
                if result.is_err() {
                    // Wakes the taking task, which finds the end of the stream.
                    self.client.socket.hang_up();
                    broken = true;
                }
            }
            let (commands, charge) = outgoing.batch.cost();
            outgoing.batch.clear();
            self.settle(commands, charge);
        }
        self.sent.set(true);
        self.settled.wake();
    }

    /// The error number for the client; what it cannot know about goes to the log, once for each
    /// number and client.
    fn errno(&self, command: Command, error: &Error) -> Errno {
        let errno = Errno::from(error.kind());
        let bit = 1 << errno.code();
        if self.logged.get() & bit == 0 {
            self.logged.set(self.logged.get() | bit);
            let name = &self.agreement.export.name;
            tracing::warn!("export {name}: {command:?}: {error}; further {errno:?} are not logged");
        }
        errno
    }
}
