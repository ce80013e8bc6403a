//! Confirmed: what the API server has said of an object a moment ago, so that sessions in a row ask it once.
//!
//! An answer holds for a short time from when its read began, and only while the store knows the very state it told of:
//! an event that comes ends it at once. What is not there is asked for each time.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use tokio::time::Instant;

use super::store::Version;

/// Bytes of answers at most, as the API server wrote them; the least recently used make room.
const MAX_REMEMBERED: u64 = 16 * 1024 * 1024;

/// What one remembered answer takes beside its bytes.
const OVERHEAD: usize = 256;

/// Answers by `namespace/name`, or by name. Absent where none holds for any time.
#[derive(Debug)]
pub(super) struct Confirmed<K: Send + Sync + 'static> {
    answers: Option<Cache<Arc<str>, Answer<K>>>,
    holds: Duration,
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
        Self { answers, holds }
    }

    /// What was said of this state of the object, while that holds.
    pub(super) async fn get(&self, key: &str, known: &Version) -> Option<Arc<K>> {
        let answer = self.answers.as_ref()?.get(key).await?;
        (answer.asked.elapsed() < self.holds && answer.version == *known).then_some(answer.value)
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
