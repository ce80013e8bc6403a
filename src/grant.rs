//! Grant: leave to go into pods for a time, asked for by one person and approved by another.
//!
//! Beside the flow: `policy` asks [`Grants::matching`] where a rule demands a grant, `group` serves grants as Kubernetes
//! objects through the verbs of [`Grants`] ([`verbs`]). What may be asked for, who may approve and what a change takes away
//! is decided in [`rules`], which knows no store and no clock; what there is, in which order it came and what has run out is
//! in [`book`]; where it is kept is a [`store::Store`].
//! Invariants: nobody's grant counts by their own word, whoever they pretend to be: the person is the impersonator. What has
//! been seen to run out stays so, whatever the clock does afterwards. A store is written by podgate alone, so that an
//! approval cannot be forged by people who may write objects of some kind.

pub mod book;
pub mod configmaps;
pub mod document;
pub mod folder;
pub mod rules;
pub mod store;
pub mod table;
pub mod verbs;

mod keeper;
mod patch;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::authn::Caller;
use crate::cluster::User;
use crate::drain::Drain;
use crate::policy::{self, Concern};
use crate::serving::history::Changes;
use book::Book;
use document::{Facts, Grant};
use store::Store;

/// The API group.
pub const GROUP: &str = "podgate.dev";

/// Its version.
pub const VERSION: &str = "v1alpha1";

/// The plural resource.
pub const RESOURCE: &str = "grants";

/// The kind.
pub const KIND: &str = "Grant";

/// The annotation by which somebody approves (`yes`) or denies (`no`).
pub const APPROVE: &str = "podgate.dev/approve";

/// What the wall clock says.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How long things may last.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The longest that a grant may hold.
    pub longest: Duration,
    /// How long one that has run out or was denied is kept to be looked at.
    pub keep: Duration,
}

/// All grants; cheap to clone.
#[derive(Clone)]
pub struct Grants {
    book: Arc<Book>,
    store: Arc<dyn Store>,
    clock: Clock,
    settings: Settings,
}

/// Somebody, as far as grants are about them: who rights are about, and who is behind that.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    user: &'a User,
    impersonator: Option<&'a User>,
}

/// A grant that lets somebody in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: String,
    /// Why it was asked for.
    pub reason: String,
    /// From then on it does not.
    pub until: Timestamp,
}

// === impl Grants ===

impl Grants {
    /// The grants of this store, which feeds `book`. What runs out is seen to in a task of `background`.
    pub fn start(
        store: Arc<dyn Store>,
        book: Arc<Book>,
        settings: Settings,
        clock: Clock,
        background: &Drain,
    ) -> Self {
        let grants = Self { book, store, clock, settings };
        keeper::start(grants.clone(), background);
        grants
    }

    /// The grant that lets them do this in that place now; of several, the one that holds longest.
    pub fn matching(&self, who: Who<'_>, facts: &Facts<'_>, now: Timestamp) -> Option<Held> {
        self.book.matching(who, facts, now)
    }

    /// Whether everything that the store had at some moment is known here.
    pub fn are_known(&self) -> bool {
        self.book.is_complete()
    }

    fn now(&self) -> Timestamp {
        (self.clock)()
    }
}

/// What time it is.
pub fn wall_clock() -> Clock {
    Arc::new(Timestamp::now)
}

impl policy::Grants for Grants {
    fn matching(&self, asked: &policy::Asked<'_>) -> Option<policy::Grant> {
        let namespace = &asked.exec.namespace;
        let facts = Facts {
            namespace,
            labels: &asked.pod.labels,
            container: asked.container,
            subresource: asked.exec.subresource,
            command: &asked.exec.command,
        };
        let held = Self::matching(self, Who::new(asked.user, asked.impersonator), &facts, asked.now)?;
        Some(policy::Grant {
            name: format!("{namespace}/{}", held.name),
            reason: held.reason,
            until: held.until,
        })
    }

    fn longest(&self) -> Option<Duration> {
        Some(self.settings.longest)
    }

    fn are_known(&self) -> bool {
        Self::are_known(self)
    }

    fn changes(&self) -> Changes<Concern> {
        self.book.concerns()
    }
}

// === impl Who ===

impl<'a> Who<'a> {
    /// A user, and who impersonates them.
    pub fn new(user: &'a User, impersonator: Option<&'a User>) -> Self {
        Self { user, impersonator }
    }

    /// The name of the person who acts: of the impersonator, if there is one.
    pub fn person(self) -> &'a str {
        &self.acting().name
    }

    fn acting(self) -> &'a User {
        self.impersonator.unwrap_or(self.user)
    }

    /// Whom they act as, when that is not themselves.
    pub fn acts_as(self) -> Option<&'a str> {
        self.impersonator.map(|_| self.user.name.as_str())
    }

    /// Whether this is one of their names.
    fn is_called(self, name: &str) -> bool {
        self.all().any(|user| user.name == name)
    }

    fn all(self) -> impl Iterator<Item = &'a User> {
        [Some(self.user), self.impersonator].into_iter().flatten()
    }
}

impl<'a> From<&'a Caller> for Who<'a> {
    fn from(caller: &'a Caller) -> Self {
        Self::new(caller.user(), caller.impersonator())
    }
}

// === impl Held ===

impl Held {
    fn of(grant: &Grant, until: Timestamp) -> Self {
        Self { name: grant.metadata.name.clone(), reason: grant.spec.reason.clone(), until }
    }
}

#[cfg(test)]
mod tests;
