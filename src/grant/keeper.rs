//! Keeper: sees to it that what has run out is known to have, here and in the store, and that it is gone in the end.
//!
//! Nothing waits for it: whether a grant holds is decided by the instant at which that is asked. What is written down
//! outlives a restart, and a clock that is put back before it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Grants;
use super::document::Phase;
use super::store::Error;
use crate::drain::Drain;
use crate::telemetry::chain;

/// How often the wall clock is looked at, which may be set at any time: the part of a second or so by which whoever watches
/// grants hears of an end late.
const LOOK: Duration = Duration::from_millis(500);

/// How often what has run out is written to the store, where that failed, and what is old is taken away, if nothing changes
/// meanwhile. One of several replicas is first; that the others are not is no failure.
const TIDY: Duration = Duration::from_secs(30);

pub(super) fn start(grants: Grants, background: &Drain) {
    let drain = background.clone();
    background.spawn(async move {
        tokio::select! {
            biased;
            () = drain.stopping() => {}
            () = run(&grants) => {}
        }
    });
}

/// Beside each other: a store that does not answer keeps nobody from being told that a grant has run out.
async fn run(grants: &Grants) {
    tokio::join!(look(grants), write(grants));
}

async fn look(grants: &Grants) {
    loop {
        grants.book.expire(grants.now());
        sleep(LOOK).await;
    }
}

async fn write(grants: &Grants) {
    let mut changed = grants.book.changed();
    loop {
        changed.mark_unchanged();
        tidy(grants, grants.now()).await;
        // The sender is the book's own.
        let _ = timeout(TIDY, changed.changed()).await;
    }
}

async fn tidy(grants: &Grants, now: Timestamp) {
    for (key, mut kept) in grants.book.overdue() {
        kept.grant.status.phase = Phase::Expired;
        told("note that a grant has run out", grants.store.replace(&key, &kept.grant, kept.version).await);
    }
    let Ok(old) = now.saturating_sub(grants.settings.keep) else { return };
    for (key, version) in grants.book.older(old) {
        told("delete a grant that has run out", grants.store.delete(&key, version).await);
    }
}

fn told<T>(what: &'static str, outcome: Result<T, Error>) {
    match outcome {
        Ok(_) => {}
        Err(error @ (Error::Conflict | Error::Missing | Error::Exists)) => {
            debug!(what, error = chain(&error), "somebody else was first");
        }
        Err(error) => warn!(what, error = chain(&error), "the store of grants does not answer"),
    }
}
