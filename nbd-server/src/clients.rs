//! Who is connected, how many may be, and who is dropped because he does not move.
use crate::budget::Budget;
use crate::limits::Limits;
use crate::socket::Socket;
use blockstore::runtime::sleep;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// All clients of one server.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) limits: Limits,
    /// Memory that clients share.
    pub(crate) budget: Budget,
    connected: Mutex<Connected>,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Connected {
    next: u64,
    clients: HashMap<u64, Arc<Client>>,
}

/// What the watch sees of one client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: Socket,
    since: Instant,
    /// Option haggling is over.
    negotiated: AtomicBool,
    /// Commands received and not yet answered.
    pub(crate) commands: AtomicU32,
    /// From the client.
    pub(crate) incoming: Flow,
    /// To the client.
    pub(crate) outgoing: Flow,
}

/// Bytes in one direction. Written by the client's worker only.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// The client must move next: take a reply, or send the rest of a payload.
    waits: AtomicBool,
    /// Times that bytes moved.
    moved: AtomicU32,
}

impl Flow {
    /// From now on, or no longer, the client must move next.
    pub(crate) fn waits(&self, waits: bool) {
        self.waits.store(waits, Relaxed);
    }

    /// Bytes moved.
    pub(crate) fn moved(&self) {
        self.moved
            .store(self.moved.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

impl Clients {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(limits.shared_bytes),
            limits,
            connected: Mutex::default(),
            stopping: AtomicBool::new(false),
        })
    }

    /// A place for one more client, unless there are too many.
    pub(crate) fn admit(self: &Arc<Self>, socket: Socket) -> Option<Seat> {
        let mut connected = self.connected.lock();
        if connected.clients.len() >= self.limits.connections {
            return None;
        }
        let client = Arc::new(Client {
            socket,
            since: Instant::now(),
            negotiated: AtomicBool::new(false),
            commands: AtomicU32::new(0),
            incoming: Flow::default(),
            outgoing: Flow::default(),
        });
        let id = connected.next;
        connected.next += 1;
        connected.clients.insert(id, client.clone());
        drop(connected);
        Some(Seat {
            id,
            client,
            clients: self.clone(),
        })
    }

    /// How many are connected.
    pub(crate) fn count(&self) -> usize {
        self.connected.lock().clients.len()
    }

    /// Commands are refused from now on.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Commands are refused.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    fn snapshot(&self) -> Vec<(u64, Arc<Client>)> {
        let connected = self.connected.lock();
        connected
            .clients
            .iter()
            .map(|(id, client)| (*id, client.clone()))
            .collect()
    }

    /// Drops those who exceed a deadline, until the server stops. On a worker thread.
    pub(crate) async fn watch(&self) {
        let Limits {
            handshake,
            stall,
            stall_crowded,
            ..
        } = self.limits;
        let tick = handshake.min(stall).min(stall_crowded) / 5;
        let tick = tick.clamp(Duration::from_millis(10), Duration::from_secs(1));
        let mut watched: HashMap<u64, Watched> = HashMap::new();
        loop {
            let asleep = Instant::now();
            sleep(tick).await;
            if self.stopping() {
                return;
            }
            // If this process was halted meanwhile, clients could not move.
            let passed = asleep.elapsed().min(2 * tick);
            let stall = if self.budget.is_short() {
                stall_crowded
            } else {
                stall
            };
            let clients = self.snapshot();
            watched.retain(|id, _| clients.iter().any(|(connected, _)| connected == id));
            for (id, client) in clients {
                let still = watched.entry(id).or_default().look(&client, passed);
                if !client.negotiated.load(Relaxed) && client.since.elapsed() > handshake {
                    tracing::warn!("client {id} dropped: no export chosen within {handshake:?}");
                    client.socket.hang_up();
                } else if still > stall {
                    tracing::warn!("client {id} dropped: it did not move for {still:?}");
                    client.socket.hang_up();
                }
            }
        }
    }

    /// Hangs up on every client once its commands are answered and it has been silent for a moment,
    /// and on all that are left after a time. On a worker thread, after [`Self::stop`].
    pub(crate) async fn drain(&self) {
        let begin = Instant::now();
        let mut seen: HashMap<u64, u32> = HashMap::new();
        loop {
            let clients = self.snapshot();
            if clients.is_empty() {
                return;
            }
            let late = begin.elapsed() > self.limits.drain;
            for (id, client) in clients {
                let moved = client.incoming.moved.load(Relaxed);
                let silent = seen.insert(id, moved) == Some(moved);
                if late || (silent && client.is_idle()) {
                    client.socket.hang_up();
                }
            }
            if begin.elapsed() > self.limits.drain + Duration::from_secs(1) {
                tracing::warn!("{} clients have commands that do not end", self.count());
                return;
            }
            sleep(self.limits.farewell).await;
        }
    }
}

impl Client {
    /// Option haggling is over, and its deadline with it.
    pub(crate) fn negotiated(&self) {
        self.negotiated.store(true, Relaxed);
    }

    fn is_idle(&self) -> bool {
        self.commands.load(Relaxed) == 0 && !self.incoming.waits.load(Relaxed)
    }
}

/// For each direction, the movements seen, and for how long there was none although there had to
/// be.
#[derive(Debug, Default)]
struct Watched {
    incoming: (u32, Duration),
    outgoing: (u32, Duration),
}

impl Watched {
    /// How long a client that must move has not; `passed` since the last look.
    fn look(&mut self, client: &Client, passed: Duration) -> Duration {
        let look = |flow: &Flow, (seen, still): &mut (u32, Duration)| {
            let moved = flow.moved.load(Relaxed);
            if flow.waits.load(Relaxed) && moved == *seen {
                *still += passed;
            } else {
                (*seen, *still) = (moved, Duration::ZERO);
            }
            *still
        };
        let incoming = look(&client.incoming, &mut self.incoming);
        incoming.max(look(&client.outgoing, &mut self.outgoing))
    }
}

/// A client's place, free again when dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    id: u64,
    client: Arc<Client>,
    clients: Arc<Clients>,
}

impl Seat {
    /// All clients of the server.
    pub(crate) fn clients(&self) -> &Arc<Clients> {
        &self.clients
    }
}

impl Deref for Seat {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.connected.lock().clients.remove(&self.id);
    }
}
