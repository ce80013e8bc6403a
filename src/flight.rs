//! Flight: the same question is asked once, however many want the answer.
//!
//! moka's own coalescing is not used: it panics once two hundred in a row who waited for the same have gone away, which
//! peers can bring about.

use std::collections::HashMap;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

/// Questions under way. Whoever waits drives the question on; it is given up when the last of them is gone.
/// There are no more of them than requests under way.
pub(crate) struct Flights<K, V>(Mutex<HashMap<K, Flight<V>>>);

struct Flight<V> {
    began: Instant,
    answer: WeakShared<BoxFuture<'static, V>>,
}

/// Somebody who waits for an answer. The question is forgotten when nobody does any more, however the waiting ended.
pub(crate) struct Seat<'a, K: Hash + Eq, V: Clone> {
    flights: &'a Flights<K, V>,
    key: &'a K,
    answer: Option<Shared<BoxFuture<'static, V>>>,
}

// === impl Flights ===

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq, V: Clone> Flights<K, V> {
    /// The answer to the question `key`: of the one under way, or else of the one that `ask` begins. May be
    /// dropped.
    pub(crate) fn join<'a>(
        &'a self,
        key: &'a K,
        ask: impl FnOnce() -> BoxFuture<'static, V>,
    ) -> Seat<'a, K, V>
    where
        K: Clone,
    {
        self.join_if(key, |_| true, ask)
    }

    /// The same, where one that is under way counts only if it began when it should; else another takes its place.
    pub(crate) fn join_if<'a>(
        &'a self,
        key: &'a K,
        began_well: impl FnOnce(Instant) -> bool,
        ask: impl FnOnce() -> BoxFuture<'static, V>,
    ) -> Seat<'a, K, V>
    where
        K: Clone,
    {
        let mut flights = self.lock();
        let under_way = flights.get(key).and_then(|flight| {
            // One that has landed is no longer asked: its answer may be older than this question.
            flight.answer.upgrade().filter(|answer| answer.peek().is_none() && began_well(flight.began))
        });
        let answer = under_way.unwrap_or_else(|| {
            let (began, answer) = (Instant::now(), ask().shared());
            if let Some(weak) = answer.downgrade() {
                flights.insert(key.clone(), Flight { began, answer: weak });
            }
            answer
        });
        Seat { flights: self, key, answer: Some(answer) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seat ===

impl<K: Hash + Eq, V: Clone> Future for Seat<'_, K, V> {
    type Output = V;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<V> {
        match &mut self.answer {
            Some(answer) => answer.poll_unpin(cx),
            // It is there until the drop.
            None => Poll::Pending,
        }
    }
}

impl<K: Hash + Eq, V: Clone> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        self.answer = None;
        if flights.get(self.key).is_some_and(|flight| flight.answer.upgrade().is_none()) {
            flights.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn many_who_want_the_same_ask_once_and_nothing_is_left() {
        let flights = Flights::<u8, usize>::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let (answer, wait) = oneshot::channel();
        let wait = wait.shared();
        let ask = || {
            let (asked, wait) = (asked.clone(), wait.clone());
            wait.map(move |_| asked.fetch_add(1, Ordering::Relaxed)).boxed()
        };
        let mut all = join_all((0..10).map(|_| flights.join(&1, ask)));
        assert!(futures_util::poll!(&mut all).is_pending());
        answer.send(()).unwrap();
        assert_eq!(all.await, [0; 10]);
        assert_eq!(flights.join(&1, ask).await, 1);
        assert!(flights.lock().is_empty());
    }

    #[tokio::test]
    async fn who_leaves_does_not_end_it_for_the_others_and_the_last_one_does() {
        let flights = Flights::<u8, Option<u8>>::default();
        let (answer, wait) = oneshot::channel();
        let mut first = flights.join(&1, || wait.map(Result::ok).boxed()).boxed();
        assert!(futures_util::poll!(&mut first).is_pending());
        let mut second = flights.join(&1, || unreachable!()).boxed();
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        answer.send(7_u8).unwrap();
        assert_eq!(second.await, Some(7));

        let (mut answer, wait) = oneshot::channel::<u8>();
        let mut only = flights.join(&1, || wait.map(Result::ok).boxed()).boxed();
        assert!(futures_util::poll!(&mut only).is_pending());
        drop(only);
        assert!(futures_util::poll!(std::pin::pin!(answer.closed())).is_ready());
        assert!(flights.lock().is_empty());
    }
}
