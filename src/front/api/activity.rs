//! Activity: whether an HTTP/2 connection is of any use to anybody.
//!
//! hyper's deadlines for request heads are HTTP/1's. Here a connection without a request under way for too long
//! is told to leave, and so is one that got a 401 of podgate's own: kube-apiserver does the latter against rapid resets
//! (CVE-2023-44487, `protocol.md` 4.5). What is under way may still end, where somebody known has asked: a proxy has
//! requests of many on one connection, and a token that ran out is no reason to cut the watches beside it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Requests under way on one connection.
#[derive(Debug, Default)]
pub(super) struct Activity {
    busy: AtomicUsize,
    changed: Notify,
    known: AtomicBool,
    /// Told when the connection should go whatever it is doing.
    pub(super) unwelcome: Notify,
}

/// One request under way, until its drop.
#[derive(Debug)]
pub(super) struct Busy(Arc<Activity>);

impl Activity {
    /// Resolves when nothing was under way for `limit`, or when the connection is unwelcome.
    pub(super) async fn unwelcome_or_idle(&self, limit: Duration) {
        tokio::select! {
            () = self.unwelcome.notified() => {}
            () = self.idle(limit) => {}
        }
    }

    /// Somebody who is known has asked something.
    pub(super) fn is_somebodys(&self) {
        self.known.store(true, Ordering::Release);
    }

    /// Resolves when a connection that was told to leave has had its time: whose requests nobody is known for has
    /// `limit` and no more, any other until nothing was under way for so long.
    pub(super) async fn overstayed(&self, limit: Duration) {
        match self.known.load(Ordering::Acquire) {
            true => self.idle(limit).await,
            false => tokio::time::sleep(limit).await,
        }
    }

    async fn idle(&self, limit: Duration) {
        loop {
            let changed = self.changed.notified();
            if self.busy.load(Ordering::Acquire) > 0 {
                changed.await;
            } else if tokio::time::timeout(limit, changed).await.is_err() {
                return;
            }
        }
    }
}

impl Busy {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        activity.busy.fetch_add(1, Ordering::AcqRel);
        activity.changed.notify_one();
        Self(activity)
    }

    /// Hands a value through: for closures that live as long as a body does.
    pub(super) fn with<T>(&self, value: T) -> T {
        value
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_from_the_end_of_its_last_request() {
        let activity = Arc::new(Activity::default());
        let busy = Busy::new(activity.clone());
        let started = tokio::time::Instant::now();
        let work = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            drop(busy);
        };
        tokio::join!(work, activity.unwelcome_or_idle(Duration::from_secs(32)));
        assert_eq!(started.elapsed(), Duration::from_secs(132));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unwelcome_connection_leaves_at_once() {
        let activity = Arc::new(Activity::default());
        let _busy = Busy::new(activity.clone());
        activity.unwelcome.notify_one();
        activity.unwelcome_or_idle(Duration::MAX).await;
    }
}
