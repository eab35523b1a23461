//! The runtime, with and without rings: tasks, wake-ups between threads, timers, stopping.
use super::*;
use crate::device::Buffer;
use bytes::Bytes;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A runtime of each sort that the machine can have.
fn runtimes(workers: usize) -> Vec<Runtime> {
    let with = Runtime::start(workers, "test").unwrap();
    let without = Runtime::start_without_ring(workers, "test").unwrap();
    assert!(!without.has_rings());
    vec![with, without]
}

/// A runtime with rings, if the machine has them.
fn ring_runtime() -> Option<Runtime> {
    let runtime = Runtime::start(1, "test").unwrap();
    if !runtime.has_rings() {
        println!("skipped: io_uring cannot be used here");
    }
    runtime.has_rings().then_some(runtime)
}

/// A future for another thread to complete.
#[derive(Default)]
struct Gate(Mutex<(bool, Option<Waker>)>);

impl Gate {
    fn open(&self) {
        let mut state = self.0.lock().unwrap();
        state.0 = true;
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
    }

    async fn wait(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.0.lock().unwrap();
            state.1 = Some(context.waker().clone());
            if state.0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn tasks_return_their_results_to_threads_and_to_tasks() {
    for runtime in runtimes(2) {
        let [first, second] = runtime.handles() else {
            panic!()
        };
        let (first, second) = (first.clone(), second.clone());
        let sum = first.clone().spawn(async move {
            assert!(first.is_current() && !second.is_current() && on_worker());
            let here = first.spawn(async { Some(1) });
            let there = second.spawn(async { Some(20) });
            Some(here.await? + there.await?)
        });
        assert_eq!(sum.wait(), Some(21));
        assert!(!on_worker());
        assert_eq!(Pending::ready(5).wait(), 5);
        runtime.stop();
    }
}

#[test]
fn a_sleeping_worker_is_woken_by_another_thread() {
    for runtime in runtimes(1) {
        for _ in 0..2000 {
            let gate = Arc::new(Gate::default());
            let inside = gate.clone();
            let pending = runtime.handles()[0].spawn(async move { inside.wait().await });
            gate.open();
            pending.wait();
        }
        runtime.stop();
    }
}

#[test]
fn spawns_from_many_threads_all_run() {
    for runtime in runtimes(2) {
        let ran = Arc::new(AtomicUsize::new(0));
        let spawn = |index: usize| {
            let ran = ran.clone();
            runtime.handles()[index % 2].spawn(async move {
                yield_now().await;
                ran.fetch_add(1, Ordering::SeqCst);
            })
        };
        let spawn_all = || {
            let pending: Vec<_> = (0..500).map(spawn).collect();
            pending.into_iter().for_each(Pending::wait);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(spawn_all);
            }
        });
        assert_eq!(ran.load(Ordering::SeqCst), 2000);
        runtime.stop();
    }
}

#[test]
fn a_dropped_pending_does_not_cancel() {
    for runtime in runtimes(1) {
        let handle = &runtime.handles()[0];
        let (send, receive) = mpsc::channel();
        drop(handle.spawn(async move {
            yield_now().await;
            send.send(7).unwrap();
        }));
        assert_eq!(receive.recv(), Ok(7));
        runtime.stop();
    }
}

#[test]
fn futures_that_are_not_send_are_made_on_the_worker() {
    for runtime in runtimes(1) {
        let (send, receive) = mpsc::channel();
        runtime.handles()[0].spawn_with(move || async move {
            let local = std::rc::Rc::new(std::cell::Cell::new(1));
            let other = local.clone();
            spawn_local(async move { other.set(2) });
            while local.get() == 1 {
                yield_now().await;
            }
            send.send(local.get()).unwrap();
        });
        assert_eq!(receive.recv(), Ok(2));
        runtime.stop();
    }
}

#[test]
fn timers_fire_in_order_and_not_early() {
    for runtime in runtimes(1) {
        let order = Arc::new(Mutex::new(Vec::new()));
        let start = Instant::now();
        let pending: Vec<_> = [30, 10, 20]
            .map(|milliseconds| {
                let order = order.clone();
                runtime.handles()[0].spawn(async move {
                    sleep(Duration::from_millis(milliseconds)).await;
                    assert!(start.elapsed() >= Duration::from_millis(milliseconds));
                    order.lock().unwrap().push(milliseconds);
                })
            })
            .into();
        pending.into_iter().for_each(Pending::wait);
        assert_eq!(*order.lock().unwrap(), [10, 20, 30]);
        runtime.stop();
    }
}

#[test]
fn stopping_drops_tasks_and_answers_those_who_wait() {
    for runtime in runtimes(2) {
        let dropped = Arc::new(AtomicUsize::new(0));
        let handle = runtime.handles()[0].clone();
        let (send, started) = mpsc::channel();
        let pending: Vec<_> = (0..10)
            .map(|_| {
                let (counted, send) = (Counted(dropped.clone()), send.clone());
                handle.spawn(async move {
                    send.send(()).unwrap();
                    sleep(Duration::from_hours(1)).await;
                    drop(counted);
                    crate::Result::Ok(())
                })
            })
            .collect();
        let local = Counted(dropped.clone());
        handle.spawn_with(move || async move {
            send.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(local);
        });
        assert_eq!(started.iter().take(11).count(), 11);
        runtime.stop();
        assert_eq!(dropped.load(Ordering::SeqCst), 11);
        for pending in pending {
            assert_eq!(pending.wait().unwrap_err().kind(), crate::ErrorKind::Gone);
        }
        let late = handle.spawn(async { crate::Result::Ok(()) });
        assert_eq!(late.wait().unwrap_err().kind(), crate::ErrorKind::Gone);
    }
}

#[test]
fn the_last_owner_may_be_a_task() {
    for runtime in runtimes(2) {
        let handle = runtime.handles()[0].clone();
        let (send, receive) = mpsc::channel();
        drop(handle.spawn(async move {
            drop(runtime);
            send.send(()).unwrap();
        }));
        assert_eq!(receive.recv(), Ok(()));
    }
}

#[test]
fn a_panic_stops_every_worker() {
    for runtime in runtimes(2) {
        let [first, second] = runtime.handles() else {
            panic!()
        };
        let other = second.spawn(std::future::pending::<Option<()>>());
        let failed = first.spawn(async {
            assert!(!on_worker(), "for the test");
            Some(())
        });
        assert_eq!(failed.wait(), None);
        assert_eq!(other.wait(), None);
        catch_unwind(AssertUnwindSafe(|| runtime.stop())).unwrap_err();
    }
}

#[test]
fn many_more_operations_than_the_queue_holds_all_complete() {
    let Some(runtime) = ring_runtime() else {
        return;
    };
    let done = runtime.handles()[0].spawn(async {
        let file = Arc::new(File::open("/dev/zero").unwrap());
        let reads = (0..6000).map(|_| ring::read(file.clone(), Buffer::new(512), 0, 0));
        let done = futures_util::future::join_all(reads).await;
        Some(
            done.into_iter()
                .filter(|done| matches!(done.result, Ok(512)))
                .count(),
        )
    });
    assert_eq!(done.wait(), Some(6000));
    runtime.stop();
}

#[test]
fn a_dropped_operation_is_cancelled_and_keeps_its_memory_until_then() {
    let Some(runtime) = ring_runtime() else {
        return;
    };
    let done = runtime.handles()[0].spawn(async {
        let (reader, writer) = io::pipe().unwrap();
        let reader = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
        let mut read = ring::read(reader.clone(), Buffer::new(8), 0, u64::MAX);
        // It starts, and waits for the pipe.
        assert!(poll_once(&mut read).await.is_pending());
        yield_now().await;
        assert_eq!(Arc::strong_count(&reader), 2);
        drop(read);
        assert_eq!(Arc::strong_count(&reader), 2, "given up under the kernel");
        while Arc::strong_count(&reader) == 2 {
            yield_now().await;
        }
        drop(writer);
        Some(())
    });
    assert_eq!(done.wait(), Some(()));
    runtime.stop();
}

#[test]
fn stopping_waits_for_operations_in_flight() {
    let Some(runtime) = ring_runtime() else {
        return;
    };
    let (reader, writer) = io::pipe().unwrap();
    let reader = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let (send, started) = mpsc::channel();
    let inside = reader.clone();
    let pending = runtime.handles()[0].spawn(async move {
        let mut read = ring::read(inside, Buffer::new(8), 0, u64::MAX);
        assert!(poll_once(&mut read).await.is_pending());
        send.send(()).unwrap();
        Some(read.await.flags)
    });
    started.recv().unwrap();
    runtime.stop();
    assert_eq!(
        Arc::strong_count(&reader),
        1,
        "the kernel may still have it"
    );
    assert_eq!(pending.wait(), None);
    drop(writer);
}

#[test]
#[expect(unsafe_code, reason = "the test builds its own entries")]
fn a_multishot_operation_hands_out_each_completion() {
    let Some(runtime) = ring_runtime() else {
        return;
    };
    let done = runtime.handles()[0].spawn(async {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let fd = io_uring::types::Fd(listener.as_raw_fd());
        let entry = io_uring::opcode::AcceptMulti::new(fd).build();
        // SAFETY: no memory, and the listener goes along.
        let mut accept = unsafe { ring::submit_multi(entry, listener) };
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).unwrap());
            let (accepted, flags) = accept.next().await.unwrap();
            assert!(io_uring::cqueue::more(flags));
            // SAFETY: the kernel has just made it for us.
            let accepted = unsafe { TcpStream::from_raw_fd(accepted.unwrap().cast_signed()) };
            clients.push(accepted);
        }
        // Nobody takes this one: it must be closed with the operation, and the peer told.
        let mut last = TcpStream::connect(address).unwrap();
        yield_now().await;
        drop(accept);
        last.set_nonblocking(true).unwrap();
        let told = |result: io::Result<usize>| match result {
            Ok(count) => count == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        while !told(io::Read::read(&mut last, &mut [0])) {
            yield_now().await;
        }
        Some(clients.len())
    });
    assert_eq!(done.wait(), Some(6));
    runtime.stop();
}

#[test]
fn an_operation_cannot_be_polled_on_another_worker() {
    let Ok(runtime) = Runtime::start(2, "test") else {
        return;
    };
    if !runtime.has_rings() {
        return;
    }
    let [first, second] = runtime.handles() else {
        panic!()
    };
    let (reader, writer) = io::pipe().unwrap();
    let reader = Arc::new(File::from(std::os::fd::OwnedFd::from(reader)));
    let started = first.spawn(async move {
        let mut read = ring::read(reader, Buffer::new(8), 0, u64::MAX);
        assert!(poll_once(&mut read).await.is_pending());
        Some(read)
    });
    let mut read = started.wait().unwrap();
    let there = second.spawn(async move {
        std::future::poll_fn(|context| {
            let poll = AssertUnwindSafe(|| Pin::new(&mut read).poll(context).is_ready());
            Poll::Ready(Some(catch_unwind(poll).is_err()))
        })
        .await
    });
    assert_eq!(there.wait(), Some(true));
    drop(writer); // ends the operation, whose memory is lost by design
    runtime.stop();
}

#[test]
fn bytes_written_through_a_ring_are_read_back() {
    let Some(runtime) = ring_runtime() else {
        return;
    };
    let file = Arc::new(File::from(
        rustix::fs::memfd_create("ring-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap(),
    ));
    let done = runtime.handles()[0].spawn(async move {
        let data = Bytes::from_static(b"some bytes");
        let written = ring::write(file.clone(), data, 100).await;
        assert_eq!(written.result.unwrap(), 10);
        ring::sync_data(file.clone()).await.result.unwrap();
        let read = ring::read(file, Buffer::new(20), 5, 100).await;
        assert_eq!(read.result.unwrap(), 10);
        Some(read.owned.0[5..15].to_vec())
    });
    assert_eq!(done.wait().unwrap(), b"some bytes");
    runtime.stop();
}
