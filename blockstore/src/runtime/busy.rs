//! Decides how long to look for work before sleeping: only where that has been paying off.
//!
//! Sleeping and being woken costs several microseconds and, with a client in lock-step, leaves the
//! device idle meanwhile. Looking costs the same time of a core. Whether it pays depends on what
//! the worker waits for, and operations in flight tell that well: on a disk with one request at a
//! time, the wait for the disk (one operation in flight) is long and the wait for the client's next
//! request (none) is short. So each number in flight has its own record of past waits.
use std::time::Duration;

/// Longest window with few operations in flight: more than a client in memory needs to answer.
pub(super) const WINDOW: Duration = Duration::from_micros(50);
/// Longest window with many: what breaks the lock-step of a deep queue on a disk.
pub(super) const WINDOW_DEEP: Duration = Duration::from_micros(200);
/// Operations in flight from which on a queue is deep.
const DEEP: usize = 16;
/// Numbers in flight that are told apart; all above share one record.
const KINDS: usize = 64;
/// A wait that ended in sleep is measured longer than it was by about this much.
const WAKING: Duration = Duration::from_micros(5);

/// Credit is from 0 to this; a short wait earns 1, a long one costs 2: looking must succeed in more
/// than two of three waits to go on.
const CREDIT_MAX: u8 = 8;
/// Credit at which looking begins; it ends at zero.
const CREDIT_ON: u8 = 6;

#[derive(Clone, Copy, Debug, Default)]
struct Past {
    credit: u8,
    looking: bool,
}

/// What past waits say about the next one.
#[derive(Debug)]
pub(super) struct Busy([Past; KINDS]);

impl Busy {
    pub(super) fn new() -> Self {
        Self([Past::default(); KINDS])
    }

    /// How long to look for work now, with so many operations in flight.
    pub(super) fn window(&self, in_flight: usize) -> Duration {
        if self.0[kind(in_flight)].looking {
            longest(in_flight)
        } else {
            Duration::ZERO
        }
    }

    /// Work came after `idle`; `slept` if the worker had gone to sleep meanwhile.
    pub(super) fn record(&mut self, in_flight: usize, idle: Duration, slept: bool) {
        let past = &mut self.0[kind(in_flight)];
        let measured = if slept {
            idle.saturating_sub(WAKING)
        } else {
            idle
        };
        if measured <= longest(in_flight) {
            past.credit = (past.credit + 1).min(CREDIT_MAX);
        } else {
            past.credit = past.credit.saturating_sub(2);
        }
        if past.credit >= CREDIT_ON {
            past.looking = true;
        } else if past.credit == 0 {
            past.looking = false;
        }
    }
}

fn kind(in_flight: usize) -> usize {
    in_flight.min(KINDS - 1)
}

fn longest(in_flight: usize) -> Duration {
    if in_flight < DEEP {
        WINDOW
    } else {
        WINDOW_DEEP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(12);
    const LONG: Duration = Duration::from_millis(3);

    fn after(in_flight: usize, waits: &[Duration]) -> Busy {
        let mut busy = Busy::new();
        for wait in waits {
            let slept = busy.window(in_flight) < *wait;
            busy.record(in_flight, *wait, slept);
        }
        busy
    }

    #[test]
    fn an_idle_worker_does_not_look() {
        assert_eq!(Busy::new().window(0), Duration::ZERO);
        assert_eq!(after(0, &[LONG; 100]).window(0), Duration::ZERO);
    }

    #[test]
    fn short_waits_open_the_window_and_long_ones_shut_it() {
        let mut busy = after(0, &[SHORT; 6]);
        assert_eq!(busy.window(0), WINDOW);
        let mut misses = 0;
        while busy.window(0) > Duration::ZERO {
            busy.record(0, LONG, true);
            misses += 1;
        }
        assert_eq!(
            misses, 3,
            "time burnt after the last success must be bounded"
        );
    }

    #[test]
    fn looking_that_pays_every_second_time_stops() {
        let waits: Vec<_> = [SHORT, LONG].into_iter().cycle().take(60).collect();
        assert_eq!(after(1, &waits).window(1), Duration::ZERO);
    }

    #[test]
    fn waits_for_a_disk_and_for_a_client_are_told_apart() {
        let mut busy = Busy::new();
        for _ in 0..20 {
            busy.record(3, SHORT, true);
            busy.record(4, Duration::from_micros(70), true);
        }
        assert_eq!(busy.window(3), WINDOW);
        assert_eq!(busy.window(4), Duration::ZERO);
    }

    #[test]
    fn a_deep_queue_gets_the_long_window() {
        let wait = Duration::from_micros(150);
        assert_eq!(after(32, &[wait; 10]).window(32), WINDOW_DEEP);
        assert_eq!(after(2, &[wait; 10]).window(2), Duration::ZERO);
        assert_eq!(after(100_000, &[wait; 10]).window(70_000), WINDOW_DEEP);
    }
}
