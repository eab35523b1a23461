//! The crash explorer: seeded operations of several clients on a simulated pool, power lost at any
//! device operation, and the promise of the engine checked on every image that may survive.
//!
//! The engine tells each published change here, in its order; [`model`] keeps what it means.
mod audit;
mod clients;
mod full;
mod model;
mod run;
mod tests;

use crate::format::record::Change;
use crate::units::Record;
use model::{Intent, Model};
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

thread_local! {
    /// The model of the simulation that runs on this thread.
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
    /// What the task being polled intends.
    static INTENT: RefCell<Option<Rc<Intent>>> = const { RefCell::new(None) };
}

/// Called by the engine for every published record, within the lock.
pub(crate) fn published(record: Record, changes: &[Change]) {
    MODEL.with_borrow_mut(|model| {
        if let Some(model) = model {
            let intent = INTENT.with_borrow(Clone::clone);
            model.publish(record, changes, intent.as_ref());
        }
    });
}

/// The model of this thread's simulation.
fn with_model<T>(look: impl FnOnce(&mut Model) -> T) -> T {
    MODEL.with_borrow_mut(|model| look(model.get_or_insert_default()))
}

/// A future whose published changes are known to come from `intent`.
struct Intending<'a, T> {
    intent: Rc<Intent>,
    future: Pin<Box<dyn Future<Output = T> + 'a>>,
}

impl<T> Future for Intending<'_, T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        INTENT.set(Some(self.intent.clone()));
        let result = self.future.as_mut().poll(context);
        INTENT.set(None);
        result
    }
}

fn intending<'a, T>(intent: &Rc<Intent>, future: impl Future<Output = T> + 'a) -> Intending<'a, T> {
    Intending {
        intent: intent.clone(),
        future: Box::pin(future),
    }
}
