//! Review: bearer tokens that the cluster knows, remembered for a short while.
//!
//! Invariant: only answers are remembered, never that there was none. A token is kept as its HMAC with a key
//! of this process: neither memory nor the time of a look-up says anything about it.
//! Source: apiserver `pkg/authentication/token/cache`.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use futures_util::FutureExt;
use moka::future::Cache;
use tokio::time::Instant;

use crate::cluster::{self, Cluster, User};
use crate::flight::Flights;

/// Answers remembered at once; more push out what is asked for least. An answer is a few hundred bytes, so
/// this is some megabytes, and ten thousand callers within seconds is more than one replica serves.
const REMEMBERED: u64 = 10_000;

/// How the cluster is asked whose a token is: by TokenReview.
pub struct TokenReview {
    /// The cluster.
    pub cluster: Arc<dyn Cluster>,
    /// Audiences of which the token has to be for one; none stand for the cluster's own.
    pub audiences: Vec<String>,
    /// How long a known token stays known without being asked about; zero asks every time.
    pub allowed_for: Duration,
    /// How long an unknown token stays unknown; zero asks every time.
    pub denied_for: Duration,
    /// For one answer.
    pub timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The cluster gave none.
    #[error("ask the cluster whose the bearer token is")]
    Unanswered(#[source] Arc<cluster::Error>),
    /// The cluster took too long.
    #[error("the cluster did not say whose the bearer token is within {0:?}")]
    Late(Duration),
}

/// Whether an answer may be one from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// It may.
    Remembered,
    /// It has to be the cluster's present one.
    Anew,
}

/// A [`TokenReview`] with its memory.
pub(super) struct Reviews {
    settings: Arc<TokenReview>,
    secret: hmac::Key,
    answers: Cache<Key, Answer>,
    flights: Flights<Key, Result<Option<Arc<User>>, Error>>,
}

type Key = [u8; 32];

#[derive(Clone)]
struct Answer {
    user: Option<Arc<User>>,
    until: Instant,
}

// === impl Reviews ===

impl Reviews {
    pub(super) fn new(settings: TokenReview) -> Self {
        let longest = settings.allowed_for.max(settings.denied_for);
        Self {
            secret: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .expect("the system has random bytes"),
            answers: Cache::builder().max_capacity(REMEMBERED).time_to_live(longest).build(),
            flights: Flights::default(),
            settings: Arc::new(settings),
        }
    }

    /// Whose this token is; `None` when the cluster does not know it. May be dropped.
    pub(super) async fn ask(&self, token: &str, ask: Ask) -> Result<Option<Arc<User>>, Error> {
        let mut key = [0; 32];
        key.copy_from_slice(hmac::sign(&self.secret, token.as_bytes()).as_ref());
        if ask == Ask::Remembered
            && let Some(answer) = self.answers.get(&key).await
            && Instant::now() < answer.until
        {
            return Ok(answer.user);
        }
        self.flights.join(&key, || self.review(key, token.to_owned()).boxed()).await
    }

    fn review(
        &self,
        key: Key,
        token: String,
    ) -> impl Future<Output = Result<Option<Arc<User>>, Error>> + Send + 'static {
        let (settings, answers) = (self.settings.clone(), self.answers.clone());
        async move {
            let asked = settings.cluster.token(&token, &settings.audiences);
            let answer = tokio::time::timeout(settings.timeout, asked).await;
            let answer = answer.map_err(|_| Error::Late(settings.timeout))?;
            let user = answer.map_err(|error| Error::Unanswered(Arc::new(error)))?;
            let user = user.filter(|user| !user.name.is_empty()).map(Arc::new);
            let time = if user.is_some() { settings.allowed_for } else { settings.denied_for };
            if time.is_zero() {
                answers.invalidate(&key).await;
            } else {
                answers.insert(key, Answer { user: user.clone(), until: Instant::now() + time }).await;
            }
            Ok(user)
        }
    }
}

impl std::fmt::Debug for TokenReview {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReview")
            .field("audiences", &self.audiences)
            .field("allowed_for", &self.allowed_for)
            .field("denied_for", &self.denied_for)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reviews").field(&self.settings).finish()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::testing::FakeCluster;

    const ALLOWED: Duration = Duration::from_secs(10);
    const DENIED: Duration = Duration::from_secs(2);

    fn ana() -> User {
        User { name: "ana".into(), ..User::default() }
    }

    fn reviews(cluster: &Arc<FakeCluster>, allowed_for: Duration, denied_for: Duration) -> Reviews {
        let audiences = vec!["podgate".to_owned()];
        let timeout = Duration::from_secs(1);
        Reviews::new(TokenReview { cluster: cluster.clone(), audiences, allowed_for, denied_for, timeout })
    }

    async fn name(reviews: &Reviews, ask: Ask) -> Option<String> {
        reviews.ask("t", ask).await.unwrap().map(|user| user.name.clone())
    }

    #[tokio::test(start_paused = true)]
    async fn a_known_token_is_remembered_for_its_time_and_an_unknown_one_for_less() {
        let cluster = FakeCluster::new();
        let reviews = reviews(&cluster, ALLOWED, DENIED);
        assert_eq!(name(&reviews, Ask::Remembered).await, None);
        cluster.know("t", Some(ana()));
        assert_eq!(name(&reviews, Ask::Remembered).await, None);
        tokio::time::advance(DENIED).await;
        assert_eq!(name(&reviews, Ask::Remembered).await.as_deref(), Some("ana"));
        cluster.know("t", None);
        tokio::time::advance(ALLOWED - Duration::from_millis(1)).await;
        assert_eq!(name(&reviews, Ask::Remembered).await.as_deref(), Some("ana"));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(name(&reviews, Ask::Remembered).await, None);
        assert_eq!(cluster.reviews(), ["token podgate"; 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn to_ask_anew_passes_by_what_is_remembered_and_replaces_it() {
        let cluster = FakeCluster::new();
        let reviews = reviews(&cluster, ALLOWED, DENIED);
        cluster.know("t", Some(ana()));
        assert_eq!(name(&reviews, Ask::Remembered).await.as_deref(), Some("ana"));
        cluster.know("t", None);
        assert_eq!(name(&reviews, Ask::Anew).await, None);
        assert_eq!(name(&reviews, Ask::Remembered).await, None);
        assert_eq!(cluster.reviews().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn without_times_every_request_asks_but_not_those_at_once() {
        let cluster = FakeCluster::new();
        let reviews = reviews(&cluster, Duration::ZERO, Duration::ZERO);
        cluster.know("t", Some(ana()));
        for _ in 0..3 {
            assert_eq!(name(&reviews, Ask::Remembered).await.as_deref(), Some("ana"));
        }
        cluster.know("t", None);
        assert_eq!(name(&reviews, Ask::Remembered).await, None);
        assert_eq!(cluster.reviews().len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_who_wait_ask_once_and_being_late_is_not_remembered() {
        let cluster = FakeCluster::new();
        let reviews = reviews(&cluster, ALLOWED, DENIED);
        cluster.hang_reviews();
        let answers = join_all((0..100).map(|_| reviews.ask("t", Ask::Remembered))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Err(Error::Late(_)))));
        assert_eq!(cluster.reviews().len(), 1);
        assert!(matches!(reviews.ask("t", Ask::Remembered).await, Err(Error::Late(_))));
        assert_eq!(cluster.reviews().len(), 2);
    }
}
