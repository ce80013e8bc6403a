//! Breaker: keeps what podgate asks from piling up before an API server that does not answer.
//!
//! Every kind of question has a breaker of its own, so that tokens, which anybody may send, take no place of those who are
//! known already. It bounds how many wait at once and for how long; after a few failures in a row it answers itself, at
//! once, lets one question through each second, and stands aside as soon as any is answered. What an API server says,
//! whatever it is, is no failure: only that it says nothing. Nothing here runs by itself.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::cluster::Error;

/// Failures in a row after which nothing is asked for a while. One may be a connection that ended under its
/// request; five without a single answer in between are none.
const FAILURES: u32 = 5;

/// For how long then. Clients hear at once that there is no answer, and that there is one again a second late
/// at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Stands before one kind of question.
#[derive(Debug)]
pub(super) struct Breaker {
    within: Duration,
    max_waiting: usize,
    waiting: Semaphore,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// In a row, up to now.
    failures: u32,
    /// Nothing is asked before that, and then one question, with which the next pause begins.
    paused: Option<Instant>,
    /// Up to now: what was asked before the last one says nothing of the time after it.
    answers: u64,
}

/// Why podgate did not get an answer.
#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("{0} others wait for its answers already")]
    Crowded(usize),
    #[error("it has not answered for a while")]
    Paused,
}

// === impl Breaker ===

impl Breaker {
    /// At most `max_waiting` questions at once, each answered `within` this time.
    pub(super) fn new(within: Duration, max_waiting: usize) -> Self {
        Self { within, max_waiting, waiting: Semaphore::new(max_waiting), health: Mutex::default() }
    }

    /// Asks, if there is hope for an answer. Dropping the future drops the question.
    ///
    /// # Errors
    /// Those of `question`, and [`Error::Unreachable`].
    pub(super) async fn ask<T>(
        &self,
        act: &str,
        question: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let unreachable = |cause: Cause| Error::Unreachable { act: act.to_owned(), source: cause.into() };
        let answers = self.admit().ok_or_else(|| unreachable(Cause::Paused))?;
        let _place = self.waiting.try_acquire().map_err(|_| unreachable(Cause::Crowded(self.max_waiting)))?;
        let answer = match timeout(self.within, question).await {
            Ok(answer) => answer,
            Err(_) => Err(unreachable(Cause::Late(self.within))),
        };
        self.settle(answers, !matches!(answer, Err(Error::Unreachable { .. })));
        answer
    }

    /// Lets a question through, with the number of answers before it. One that is dropped without a verdict tells nothing,
    /// and keeps nobody else from asking.
    fn admit(&self) -> Option<u64> {
        let (mut health, now) = (self.health(), Instant::now());
        if let Some(until) = health.paused {
            if now < until {
                return None;
            }
            health.paused = Some(now + PAUSE);
        }
        Some(health.answers)
    }

    fn settle(&self, answers: u64, answered: bool) {
        let mut health = self.health();
        if answered {
            *health = Health { answers: health.answers.wrapping_add(1), ..Health::default() };
        } else if health.answers == answers {
            health.failures = health.failures.saturating_add(1);
            if health.failures >= FAILURES {
                // A pause that goes on is not made longer: questions asked before it may fail during all of it.
                health.paused.get_or_insert_with(|| Instant::now() + PAUSE);
            }
        }
    }

    /// No code that can panic runs under this lock, so a poisoned one is as good as any.
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::telemetry::chain;

    const WITHIN: Duration = Duration::from_secs(10);

    async fn fail(breaker: &Breaker) -> String {
        let down = Error::Unreachable { act: "x".into(), source: "connection refused".into() };
        chain(&breaker.ask("ask", async { Err::<(), _>(down) }).await.unwrap_err())
    }

    async fn answer(breaker: &Breaker) -> Result<u8, Error> {
        breaker.ask("ask", async { Ok(7) }).await
    }

    async fn hang(breaker: &Breaker) -> String {
        chain(&breaker.ask("ask", std::future::pending::<Result<(), _>>()).await.unwrap_err())
    }

    async fn broken() -> Breaker {
        let breaker = Breaker::new(WITHIN, 3);
        for _ in 0..FAILURES {
            assert!(fail(&breaker).await.contains("connection refused"));
        }
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn more_than_may_wait_are_refused_at_once() {
        let breaker = Breaker::new(WITHIN, 2);
        let start = Instant::now();
        let (one, two, three) = tokio::join!(hang(&breaker), hang(&breaker), async {
            let refused = hang(&breaker).await;
            assert_eq!(start.elapsed(), Duration::ZERO);
            refused
        });
        assert!(one.contains("no answer within 10s") && two == one, "{one}");
        assert!(three.contains("2 others wait"), "{three}");
        assert_eq!(start.elapsed(), WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn after_failures_in_a_row_nothing_is_asked_for_a_while() {
        let breaker = broken().await;
        let refused = breaker.ask("ask", async { panic!("must not be asked") });
        let refused: Result<(), _> = refused.await;
        assert!(chain(&refused.unwrap_err()).contains("for a while"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_or_an_error_that_is_one_is_no_failure() {
        let breaker = Breaker::new(WITHIN, 2);
        for _ in 0..3 * FAILURES {
            fail(&breaker).await;
            let said = Error::Unanswered { act: "x".into(), source: "403".into() };
            assert!(breaker.ask("ask", async { Err::<(), _>(said) }).await.is_err());
        }
        assert!(answer(&breaker).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_probe_is_let_through_and_its_answer_ends_the_pause() {
        let breaker = broken().await;
        tokio::time::sleep(PAUSE).await;
        let (failed, other) = tokio::join!(fail(&breaker), answer(&breaker));
        assert!(failed.contains("connection refused") && other.is_err(), "{failed}");
        assert!(answer(&breaker).await.is_err(), "a failed probe begins another pause");
        tokio::time::sleep(PAUSE).await;
        assert!(answer(&breaker).await.is_ok());
        assert!(answer(&breaker).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs_or_is_dropped_does_not_keep_the_next_one_waiting() {
        let breaker = broken().await;
        tokio::time::sleep(PAUSE).await;
        let next = async {
            tokio::time::sleep(PAUSE).await;
            answer(&breaker).await
        };
        let (dropped, next) = tokio::join!(timeout(2 * PAUSE, hang(&breaker)), next);
        assert!(dropped.is_err() && next.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_before_the_last_answer_is_no_failure_after_it() {
        let breaker = Breaker::new(WITHIN, 2 * FAILURES as usize);
        let hung = join_all((0..FAILURES).map(|_| hang(&breaker)));
        let answered = async {
            tokio::time::sleep(WITHIN / 2).await;
            answer(&breaker).await
        };
        let (hung, answered) = tokio::join!(hung, answered);
        assert!(hung.iter().all(|late| late.contains("no answer within")) && answered.is_ok(), "{hung:?}");
        assert!(answer(&breaker).await.is_ok());
    }
}
