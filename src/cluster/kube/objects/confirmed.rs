//! Confirmed: what the API server has said of an object a moment ago, so that sessions in a row ask it once.
//!
//! An answer holds for a short time from when its read began, and only while the store knows the very state it told of.
//! Whoever asks while somebody else is asking waits for that answer, but for no longer than answers hold: one read for all
//! of them takes the place of one that hangs. That there is no such object, or no answer, counts for who asked before that
//! read began.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use moka::future::Cache;
use tokio::time::{Instant, timeout};

use super::Metadata;
use super::store::Version;
use crate::cluster::kube::ask::Shared;
use crate::flight::Flights;

/// Bytes that answers take in memory at most, about; the least recently used make room.
const MAX_REMEMBERED: u64 = 16 * 1024 * 1024;

/// What one remembered answer takes beside its bytes.
const OVERHEAD: usize = 1024;

/// How many bytes one of them takes in memory, about: labels of a few letters are entries of a map.
const EXPANSION: usize = 8;

/// Answers by `namespace/name`, or by name. Absent where none holds for any time.
pub(super) struct Confirmed<K: Send + Sync + 'static> {
    answers: Option<Cache<Arc<str>, Answer<K>>>,
    holds: Duration,
    looks: Flights<Arc<str>, Look>,
}

/// What the API server has said.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// When it was asked.
    pub(super) asked: Instant,
    /// The object's metadata, and in how many bytes they were said; nothing where there is none.
    pub(super) found: Result<Option<(Arc<Metadata>, usize)>, Shared>,
}

#[derive(Debug)]
struct Answer<K> {
    /// When its read began: it was true then, or later.
    asked: Instant,
    version: Version,
    value: Arc<K>,
    len: usize,
}

// === impl Confirmed ===

impl<K: Send + Sync + 'static> Confirmed<K> {
    pub(super) fn new(holds: Duration) -> Self {
        let answers = (!holds.is_zero()).then(|| {
            Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .weigher(|key: &Arc<str>, answer: &Answer<K>| {
                    u32::try_from(key.len() + answer.len * EXPANSION + OVERHEAD).unwrap_or(u32::MAX)
                })
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .time_to_live(holds)
                .build()
        });
        Self { answers, holds, looks: Flights::default() }
    }

    /// What was said of this state of the object, while that holds.
    pub(super) async fn get(&self, key: &str, known: &Version) -> Option<Arc<K>> {
        let answer = self.answers.as_ref()?.get(key).await?;
        (answer.asked.elapsed() < self.holds && answer.version == *known).then_some(answer.value)
    }

    /// What is said now, to whoever has asked last. Dropping the future does not disturb others who wait for it.
    pub(super) async fn look(&self, key: &str, ask: impl Fn() -> BoxFuture<'static, Look>) -> Look {
        if self.holds.is_zero() {
            return ask().await;
        }
        let (key, began) = (Arc::from(key), Instant::now());
        let recent = |at: Instant| began.saturating_duration_since(at) < self.holds;
        let mut seat = self.looks.join_if(&key, recent, &ask);
        let early = timeout(self.holds, &mut seat).await;
        if let Ok(look) = &early
            && look.answers(began, self.holds)
        {
            return look.clone();
        }
        // What has begun since then is waited for to its end, and the other one for as long.
        let mut later = self.looks.join_if(&key, |at| at >= began, &ask);
        if early.is_err() {
            tokio::select! {
                biased;
                look = &mut seat => if look.answers(began, self.holds) { return look },
                look = &mut later => return look,
            }
        }
        later.await
    }

    /// The API server was asked then and has said this, in so many bytes.
    pub(super) async fn put(&self, key: &str, asked: Instant, version: Version, value: &Arc<K>, len: usize) {
        if let Some(answers) = &self.answers {
            answers.insert(key.into(), Answer { asked, version, value: value.clone(), len }).await;
        }
    }
}

// === impl Look ===

impl Look {
    /// Whether it is of use to somebody who has asked since then.
    fn answers(&self, began: Instant, holds: Duration) -> bool {
        let before = began.saturating_duration_since(self.asked);
        before.is_zero() || before < holds && matches!(self.found, Ok(Some(_)))
    }
}

// === impl Answer ===

impl<K> Clone for Answer<K> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), version: self.version.clone(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;
    use crate::cluster::Error;

    const HOLDS: Duration = Duration::from_secs(1);

    /// Reads that take so long each, the first of them first, and what they find; beyond them the object is there at once.
    struct Reads {
        confirmed: Confirmed<()>,
        told: Vec<(Duration, Result<bool, ()>)>,
        begun: AtomicUsize,
    }

    impl Reads {
        fn of(told: &[(Duration, Result<bool, ()>)]) -> Self {
            Self { confirmed: Confirmed::new(HOLDS), told: told.to_vec(), begun: AtomicUsize::new(0) }
        }

        /// What somebody is told who asks so long after the first, and how long that took.
        async fn ask(&self, after: Duration) -> (Result<bool, ()>, Duration) {
            sleep(after).await;
            let began = Instant::now();
            let look = self.confirmed.look("shop/cart-0", || {
                let (takes, found) = self
                    .told
                    .get(self.begun.fetch_add(1, Ordering::Relaxed))
                    .copied()
                    .unwrap_or((Duration::ZERO, Ok(true)));
                let asked = Instant::now();
                let read = async move {
                    sleep(takes).await;
                    let unanswered =
                        |()| Error::Unanswered { act: "read".to_owned(), source: "no".into() }.into();
                    let found = found.map(|there| there.then(Arc::default).map(|metadata| (metadata, 0)));
                    Look { asked, found: found.map_err(unanswered) }
                };
                read.boxed()
            });
            let look = timeout(Duration::from_secs(60), look).await.expect("nobody waits for ever");
            (look.found.map(|found| found.is_some()).map_err(|_| ()), began.elapsed())
        }

        async fn asked(self, after: &[Duration]) -> (Vec<(Result<bool, ()>, Duration)>, usize) {
            let answers = join_all(after.iter().map(|&after| self.ask(after))).await;
            (answers, self.begun.load(Ordering::Relaxed))
        }
    }

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_while_a_read_is_under_way_waits_for_it() {
        let reads = Reads::of(&[(ms(900), Ok(true))]);
        let (answers, begun) = reads.asked(&[ms(0), ms(100), ms(800)]).await;
        assert_eq!(answers, [(Ok(true), ms(900)), (Ok(true), ms(800)), (Ok(true), ms(100))]);
        assert_eq!(begun, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_read_for_all_others_takes_the_place_of_one_that_hangs() {
        let reads = Reads::of(&[(ms(50_000), Err(())), (ms(500), Ok(true))]);
        let (answers, begun) = reads.asked(&[ms(0), ms(100), ms(200), ms(900), ms(49_900)]).await;
        let late = |waited| (Ok(true), ms(waited));
        // The last one has come too late to wait for it at all, or to get its error.
        assert_eq!(answers, [(Err(()), ms(50_000)), late(1500), late(1400), late(1000), late(0)]);
        assert_eq!(begun, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_reads_hang_everybody_is_told_so_and_few_are_begun() {
        let reads = Reads::of(&[(ms(10_000), Err(())); 20]);
        let all: Vec<_> = (0..50).map(|number| ms(number * 100)).collect();
        let (answers, begun) = reads.asked(&all).await;
        assert!(answers.iter().all(|(found, waited)| found.is_err() && *waited <= ms(11_000)), "{answers:?}");
        assert!(begun <= 7, "{begun}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_asked_for_too_long_ago_is_asked_for_again_by_all_together() {
        let reads = Reads::of(&[(ms(1500), Ok(true)), (ms(300), Ok(true))]);
        let (answers, begun) = reads.asked(&[ms(0), ms(1000), ms(1100), ms(1200)]).await;
        let late = |waited| (Ok(true), ms(waited));
        assert_eq!(answers, [late(1500), late(300), late(200), late(100)]);
        assert_eq!(begun, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_is_slow_still_answers_those_who_came_in_time_for_it() {
        let reads = Reads::of(&[(ms(1500), Ok(true)), (ms(1000), Ok(true))]);
        let (answers, begun) = reads.asked(&[ms(0), ms(300), ms(1000), ms(1100)]).await;
        let late = |waited| (Ok(true), ms(waited));
        assert_eq!(answers, [late(1500), late(1200), late(1000), late(900)]);
        assert_eq!(begun, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_there_before_somebody_asked_may_be_there_now() {
        for nothing in [Ok(false), Err(())] {
            let reads = Reads::of(&[(ms(500), nothing), (ms(100), Ok(true))]);
            let (answers, begun) = reads.asked(&[ms(0), ms(400), ms(450)]).await;
            assert_eq!(answers, [(nothing, ms(500)), (Ok(true), ms(200)), (Ok(true), ms(150))]);
            assert_eq!(begun, 2);
        }
    }
}
