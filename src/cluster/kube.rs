//! Kube: a real Kubernetes, asked through its API server.
//!
//! In the flow: where the embedded cluster of dev mode would be, behind the same trait. Rights and tokens are
//! reviewed by the API server ([`reviews`]), pods and nodes come from watches and are looked at again before
//! use ([`objects`]), what is no session is sent on. Each kind of question stands behind a [`breaker`], so
//! that an API server that is down or hangs is felt at once and nothing piles up; when it is back, so is
//! podgate.
//! Invariant: each call uses the connection there is at that moment, so that new credentials need no restart.

mod ask;
mod breaker;
pub mod collection;
pub mod connect;
pub mod forward;
mod objects;
mod reviews;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use http::{Request, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::cluster::{Body, Cluster, Decision, Error, Node, Pod, User};
use crate::drain::Drain;
use crate::reload::Live;
use crate::request::{Ask, Attributes};
use crate::status::Refusal;
use crate::telemetry::Metrics;
use ask::Asker;
use connect::Connection;
use forward::Forward;
use objects::Objects;
use reviews::{Rights, Times, Tokens};

/// What stands unencoded in a path segment, besides letters and digits: RFC 3986 section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What podgate asks of the API server, how long it waits, and what it remembers.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For one review of rights or of a token.
    pub review_timeout: Duration,
    /// For one read of a pod or a node.
    pub read_timeout: Duration,
    /// How long a yes holds; zero asks every time.
    pub allowed_for: Duration,
    /// How long a no holds; zero asks every time.
    pub denied_for: Duration,
    /// How long a look at a pod or a node holds that is watched; zero looks every time.
    pub confirmed_for: Duration,
    /// Reviews of rights, reviews of tokens and reads that wait for an answer at once, each; more fail at
    /// once.
    pub max_waiting: usize,
    /// Whether pods and nodes are watched. Without it each of them is read in full when it is needed.
    pub watch: bool,
    /// Limits of what is sent on.
    pub forward: forward::Settings,
}

/// A real cluster.
pub struct KubeCluster {
    rights: Rights,
    tokens: Tokens,
    objects: Objects,
    connection: Live<Connection>,
    forward: Forward,
}

// === impl KubeCluster ===

impl KubeCluster {
    /// Asks nothing yet but the watches, which are tasks of `background`. What is sent on belongs to `drain`, as sessions
    /// do.
    pub fn start(
        connection: Live<Connection>,
        settings: &Settings,
        drain: &Drain,
        background: &Drain,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let asker = |within| Asker::new(connection.clone(), within, settings.max_waiting);
        let times = Times { allowed: settings.allowed_for, denied: settings.denied_for };
        let mut objects = Objects::new(asker(settings.read_timeout), settings.confirmed_for);
        if settings.watch {
            objects.watch(&connection, background, metrics);
        }
        Arc::new(Self {
            rights: Rights::new(asker(settings.review_timeout), times),
            tokens: Tokens(asker(settings.review_timeout)),
            objects,
            forward: Forward::new(settings.forward.clone(), drain.clone()),
            connection,
        })
    }

    /// Whether the watches have seen every pod and node once. Sessions do not have to wait for that, but are
    /// cheaper then.
    pub fn synced(&self) -> bool {
        self.objects.synced()
    }
}

impl Cluster for KubeCluster {
    fn token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<User>, Error>> {
        self.tokens.review(token, audiences).boxed()
    }

    fn review<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>> {
        self.rights.review(user, attributes).boxed()
    }

    fn review_anew<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>> {
        self.rights.review_anew(user, attributes).boxed()
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>> {
        self.objects.pod(namespace, name).boxed()
    }

    fn likely_node(&self, namespace: &str, name: &str) -> Option<String> {
        self.objects.likely_node(namespace, name)
    }

    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>> {
        self.objects.node(name).boxed()
    }

    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        request: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        async move { self.forward.serve(&*self.connection.get(), user, ask, request).await }.boxed()
    }
}

/// Whether something may have this name: upstream's `IsValidPathSegmentName`.
fn is_segment(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '%'])
}

fn encoded(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, SEGMENT)
}
