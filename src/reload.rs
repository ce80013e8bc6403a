//! Reload: values read from files that may change while podgate runs: certificates, CA bundles, tokens, rules.
//!
//! Beside the flow. A room holds a [`Live`] value and takes the present one each time it needs it: what is under way
//! goes on with what it began with. Files are looked at by content, at a period, because that works for every way in
//! which they are replaced: written in place, renamed over, or swapped by a symbolic link as Kubernetes does with
//! mounted Secrets. Invariant: what cannot be used never replaces what can; the last good value stays, and is said so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::drain::Drain;
use crate::telemetry::{Metrics, chain};

/// A value that may be replaced while it is in use; cheap to clone.
#[derive(Debug)]
pub struct Live<T>(watch::Receiver<Arc<T>>);

/// Looks after files.
#[derive(Debug, Clone)]
pub struct Reloader {
    period: Duration,
    drain: Drain,
    metrics: Metrics,
}

// === impl Live ===

impl<T> Live<T> {
    /// A value that somebody else replaces.
    pub fn of(receiver: watch::Receiver<Arc<T>>) -> Self {
        Self(receiver)
    }

    /// A value that stays.
    pub fn fixed(value: impl Into<Arc<T>>) -> Self {
        Self(watch::channel(value.into()).1)
    }

    /// The present value.
    pub fn get(&self) -> Arc<T> {
        self.0.borrow().clone()
    }

    /// Resolves when the value was replaced since the last call, or never. Cancel safe.
    pub async fn replaced(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

// === impl Reloader ===

impl Reloader {
    /// Looks at files each `period`, in tasks of this drain.
    pub fn new(period: Duration, drain: Drain, metrics: Metrics) -> Self {
        Self { period, drain, metrics }
    }

    /// The same, which looks no less often than this.
    pub fn at_least_each(&self, period: Duration) -> Self {
        Self { period: self.period.min(period), ..self.clone() }
    }

    /// The value that `build` makes of these files, and makes anew whenever the content of one has changed. `what` names
    /// it in the log and as a metric label.
    ///
    /// # Errors
    /// When it cannot be built now.
    pub async fn load<T, E>(
        &self,
        what: &'static str,
        paths: Vec<PathBuf>,
        build: impl Fn() -> Result<T, E> + Send + 'static,
    ) -> Result<Live<T>, E>
    where
        T: Send + Sync + 'static,
        E: std::error::Error,
    {
        self.load_named(what, move || paths.clone(), build).await
    }

    /// As [`Reloader::load`], of files that are named by others of them: asked for anew with each look.
    ///
    /// # Errors
    /// When it cannot be built now.
    pub async fn load_named<T, E>(
        &self,
        what: &'static str,
        paths: impl Fn() -> Vec<PathBuf> + Send + 'static,
        build: impl Fn() -> Result<T, E> + Send + 'static,
    ) -> Result<Live<T>, E>
    where
        T: Send + Sync + 'static,
        E: std::error::Error,
    {
        // Before the first use: what changes in between is seen as a change.
        let mut seen = fingerprint(paths()).await;
        let (sender, live) = watch::channel(Arc::new(build()?));
        let (period, metrics, drain) = (self.period, self.metrics.clone(), self.drain.clone());
        self.drain.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = drain.stopping() => return,
                    () = sender.closed() => return,
                    () = tokio::time::sleep(period) => {}
                }
                let now = fingerprint(paths()).await;
                if now == seen {
                    continue;
                }
                seen = now;
                let outcome = match build() {
                    Ok(value) => {
                        sender.send_replace(Arc::new(value));
                        info!(what, "reloaded");
                        "reloaded"
                    }
                    Err(error) => {
                        warn!(what, error = chain(&error), "cannot reload, the last good one stays");
                        "failed"
                    }
                };
                metrics.reloads.with_label_values(&[what, outcome]).inc();
            }
        });
        Ok(Live(live))
    }
}

/// What is told of one file: the hash of its content, or why there is none.
type Print = Result<[u8; 32], io::ErrorKind>;

/// Of each file.
async fn fingerprint(paths: Vec<PathBuf>) -> Vec<(PathBuf, Print)> {
    let mut prints = Vec::with_capacity(paths.len());
    for path in paths {
        let print = hash(&path).await.map_err(|error| error.kind());
        prints.push((path, print));
    }
    prints
}

async fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let content = tokio::fs::read(path).await?;
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, &content).as_ref());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{soon, until};

    #[tokio::test]
    async fn a_changed_file_replaces_the_value_and_a_bad_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        std::fs::write(&path, "1").unwrap();
        let (drain, metrics) = (Drain::new(), Metrics::new());
        let reloader = Reloader::new(Duration::from_millis(5), drain.clone(), metrics.clone());
        let file = path.clone();
        let build = move || std::fs::read_to_string(&file).unwrap_or_default().parse::<u32>();
        let mut number = reloader.load("number", vec![path.clone()], build).await.unwrap();
        assert_eq!(*number.get(), 1);

        let kept = number.get();
        std::fs::write(&path, "2").unwrap();
        soon("the next number", number.replaced()).await;
        assert_eq!((*number.get(), *kept), (2, 1));

        let failed = metrics.reloads.with_label_values(&["number", "failed"]);
        std::fs::write(&path, "two").unwrap();
        until("a look at what is no number", || failed.get() > 0).await;
        assert_eq!(*number.get(), 2);

        // As Kubernetes swaps the files of a Secret.
        let next = folder.path().join("next");
        std::fs::write(&next, "3").unwrap();
        std::fs::rename(&next, &path).unwrap();
        soon("the next number", number.replaced()).await;
        assert_eq!(*number.get(), 3);
        assert_eq!(drain.finish(Duration::from_secs(20)).await, crate::drain::Drained::Clean);
    }

    #[tokio::test]
    async fn files_that_other_files_name_are_looked_after_from_then_on() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("index"), "a").unwrap();
        std::fs::write(at("a"), "1").unwrap();
        let named = |index: &Path| index.with_file_name(std::fs::read_to_string(index).unwrap_or_default());
        let (paths, build) = (at("index"), at("index"));
        let paths = move || vec![paths.clone(), named(&paths)];
        let build = move || std::fs::read_to_string(named(&build)).unwrap_or_default().parse::<u32>();
        let (drain, metrics) = (Drain::new(), Metrics::new());
        let reloader = Reloader::new(Duration::from_millis(5), drain.clone(), metrics.clone());
        let mut number = reloader.load_named("number", paths, build).await.unwrap();
        assert_eq!(*number.get(), 1);

        // What it names comes after it.
        std::fs::write(at("index"), "b").unwrap();
        let failed = metrics.reloads.with_label_values(&["number", "failed"]);
        until("a look at what is no number", || failed.get() > 0).await;
        std::fs::write(at("b"), "2").unwrap();
        soon("the next number", number.replaced()).await;
        assert_eq!(*number.get(), 2);
        assert_eq!(drain.finish(Duration::from_secs(20)).await, crate::drain::Drained::Clean);
    }

    #[tokio::test]
    async fn what_cannot_be_used_at_start_is_an_error() {
        let reloader = Reloader::new(Duration::from_secs(1), Drain::new(), Metrics::new());
        assert!(reloader.load("number", vec![], || "x".parse::<u32>()).await.is_err());
    }

    #[tokio::test]
    async fn a_fixed_value_stays() {
        let mut live = Live::<u32>::fixed(7_u32);
        let replaced = tokio::time::timeout(Duration::from_millis(5), live.replaced()).await;
        assert!(replaced.is_err() && *live.get() == 7);
    }
}
