//! Flight: the same question is asked once, however many want the answer.
//!
//! moka's own coalescing is not used: it panics once two hundred in a row who waited for the same have gone away, which
//! peers can bring about.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

/// Questions under way. Whoever waits drives the question on; it is given up when the last of them is gone.
/// There are no more of them than requests under way.
pub(crate) struct Flights<K, V>(Mutex<HashMap<K, Flight<V>>>);

type Flight<V> = WeakShared<BoxFuture<'static, V>>;

/// Forgets a question that nobody waits for any more, however the waiting ended.
struct Seat<'a, K: Hash + Eq, V: Clone> {
    flights: &'a Flights<K, V>,
    key: &'a K,
    flight: Option<Shared<BoxFuture<'static, V>>>,
}

// === impl Flights ===

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// The answer to the question `key`: of the one under way, or else of the one that `ask` begins. May be
    /// dropped.
    pub(crate) async fn join(&self, key: &K, ask: impl FnOnce() -> BoxFuture<'static, V>) -> V {
        let flight = {
            let mut flights = self.lock();
            // One that has landed is no longer asked: its answer may be older than this question.
            let under_way = flights.get(key).and_then(WeakShared::upgrade).filter(|f| f.peek().is_none());
            under_way.unwrap_or_else(|| {
                let flight = ask().shared();
                if let Some(weak) = flight.downgrade() {
                    flights.insert(key.clone(), weak);
                }
                flight
            })
        };
        let seat = Seat { flights: self, key, flight: Some(flight.clone()) };
        let answer = flight.await;
        drop(seat);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Flight<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Seat ===

impl<K: Hash + Eq, V: Clone> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let mut flights = self.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.flight = None;
        if flights.get(self.key).is_some_and(|flight| flight.upgrade().is_none()) {
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
