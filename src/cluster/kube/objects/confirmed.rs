//! Confirmed: what the API server has said of an object a moment ago, so that sessions in a row ask it once.
//!
//! An answer holds for a short time from when its read began, and only while the store knows the very state it told of:
//! an event that comes ends it at once. Whoever asks while somebody else is asking waits for that answer, if it will hold.
//! What is not there is not remembered.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use moka::future::Cache;
use tokio::time::Instant;

use super::Metadata;
use super::store::Version;
use crate::cluster::kube::ask::Shared;
use crate::flight::Flights;

/// Bytes of answers at most, as the API server wrote them; the least recently used make room.
const MAX_REMEMBERED: u64 = 16 * 1024 * 1024;

/// What one remembered answer takes beside its bytes.
const OVERHEAD: usize = 256;

/// Answers by `namespace/name`, or by name. Absent where none holds for any time.
pub(super) struct Confirmed<K: Send + Sync + 'static> {
    answers: Option<Cache<Arc<str>, Answer<K>>>,
    holds: Duration,
    looks: Flights<Arc<str>, Result<Look, Shared>>,
}

/// What the API server has said.
#[derive(Debug, Clone)]
pub(super) struct Look {
    /// When it was asked.
    pub(super) asked: Instant,
    /// The object's metadata, and in how many bytes they were said; nothing where there is none.
    pub(super) found: Option<(Arc<Metadata>, usize)>,
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
                    u32::try_from(key.len() + answer.len + OVERHEAD).unwrap_or(u32::MAX)
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
    pub(super) async fn look(
        &self,
        key: &str,
        ask: impl Fn() -> BoxFuture<'static, Result<Look, Shared>>,
    ) -> Result<Look, Shared> {
        if self.holds.is_zero() {
            return ask().await;
        }
        let began = Instant::now();
        let said = self.looks.join(&key.into(), &ask).await?;
        // One that was under way may have begun too long ago.
        if said.asked >= began || said.asked.elapsed() < self.holds { Ok(said) } else { ask().await }
    }

    /// The API server was asked then and has said this, in so many bytes.
    pub(super) async fn put(&self, key: &str, asked: Instant, version: Version, value: &Arc<K>, len: usize) {
        if let Some(answers) = &self.answers {
            answers.insert(key.into(), Answer { asked, version, value: value.clone(), len }).await;
        }
    }
}

// === impl Answer ===

impl<K> Clone for Answer<K> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), version: self.version.clone(), ..*self }
    }
}
