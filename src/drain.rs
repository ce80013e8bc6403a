//! Drain: the two-step stop, and the tracker that every task belongs to.
//!
//! Before it, *announce*: readiness goes away, and everything else stays as it is, until nobody is sent here any more.
//! Step one, *stop*: listeners close, new sessions are refused, live ones go on. Step two, *cut*: what is
//! still there is told, hung up and closed, with a reason. [`Drain::finish`] returns when the last task is gone, so nothing that
//! podgate started outlives it. A task that ignores both steps is reported, not waited for without end.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks may take after the cut: two seconds to hang up a terminal, one to close a recording, one to close
/// sockets, and one in which a busy machine comes to it.
const CUT_GRACE: Duration = Duration::from_secs(5);

/// A handle on the stop of the whole process; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    tracker: TaskTracker,
    announced: CancellationToken,
    stop: CancellationToken,
    cut: CancellationToken,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every task ended by itself before the deadline.
    Clean,
    /// The deadline passed; what was left has been cut.
    Cut,
    /// Tasks were still there after the cut: a defect.
    Stuck(usize),
}

// === impl Drain ===

impl Drain {
    /// A drain that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that the end of the process waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// From now on nobody should be sent here any more. Idempotent.
    pub fn announce(&self) {
        self.announced.cancel();
    }

    /// Whether a stop was announced, or has begun.
    pub fn is_announced(&self) -> bool {
        self.announced.is_cancelled()
    }

    /// Step one. Idempotent.
    pub fn stop(&self) {
        self.announce();
        self.stop.cancel();
    }

    /// Whether step one was taken.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves at step one. Cancel safe.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Step two. Idempotent.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Resolves at step two. Cancel safe.
    pub async fn cutting(&self) {
        self.cut.cancelled().await;
    }

    /// Tasks alive now.
    pub fn tasks(&self) -> usize {
        self.tracker.len()
    }

    /// Takes step one now and step two after `deadline` or an earlier [`Drain::cut`]; returns when all tasks
    /// are gone.
    pub async fn finish(&self, deadline: Duration) -> Drained {
        self.stop();
        self.tracker.close();
        let until = Instant::now() + deadline;
        tokio::select! {
            biased;
            () = self.tracker.wait() => return Drained::Clean,
            () = tokio::time::sleep_until(until) => {}
            () = self.cutting() => {}
        }
        self.cut();
        match tokio::time::timeout(CUT_GRACE, self.tracker.wait()).await {
            Ok(()) => Drained::Cut,
            Err(_) => Drained::Stuck(self.tracker.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_that_heed_the_stop_end_cleanly() {
        let drain = Drain::new();
        let seen = drain.clone();
        drain.spawn(async move { seen.stopping().await });
        assert_eq!(drain.finish(Duration::from_secs(10)).await, Drained::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_the_rest_is_cut() {
        let drain = Drain::new();
        let seen = drain.clone();
        drain.spawn(async move { seen.cutting().await });
        assert_eq!(drain.finish(Duration::from_secs(10)).await, Drained::Cut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_never_ends_is_reported() {
        let drain = Drain::new();
        drain.spawn(std::future::pending::<()>());
        assert_eq!(drain.finish(Duration::ZERO).await, Drained::Stuck(1));
    }
}
