//! `Clock`: time as the engine sees it, real or simulated.
use crate::device::IoFuture;
use std::fmt::Debug;
use std::time::{Duration, Instant, SystemTime};

/// A source of time.
pub trait Clock: Send + Sync + Debug {
    /// Time since some fixed moment; never goes back.
    fn now(&self) -> Duration;

    /// Completes after `duration`.
    fn sleep(&self, duration: Duration) -> IoFuture<()>;

    /// Time since 1970, as the machine's clock has it; it may jump.
    fn unix_time(&self) -> Duration;
}

/// The machine's clocks; `sleep` works on worker threads only.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock whose `now` counts from here.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, duration: Duration) -> IoFuture<()> {
        Box::pin(super::sleep(duration))
    }

    fn unix_time(&self) -> Duration {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
    }
}
