//! Share: the sessions of all replicas in the list of each, and the way to end one that another replica has.
//!
//! Each replica writes its own sessions into ConfigMaps of podgate's namespace ([`publish`]) and watches those of all
//! ([`peers`]); what it sees of others goes into its list. [`sheet`] has the form of these ConfigMaps.
//! An order to end a session is a ConfigMap of its own, named after the session, so that of several who order at once the
//! API server lets one be first. Who has the session obeys, and takes the order away.
//! Clocks are never compared. A replica lives as long as what it writes changes; how old an order is, and how long a session
//! was idle, is told in seconds since the start of the process that has the session.
//! Invariants: a session is ended by the process that has it alone; what stands in a ConfigMap is shown only where it makes
//! sense, and never in the place of this process's own sessions; without the API server these are listed as ever.

mod peers;
mod publish;
mod sheet;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::sessions::Form;
use crate::cluster::kube::collection::{Collection, Error};
use crate::drain::Drain;
use crate::session::Sessions;
use crate::session::live::Far;
use crate::status::Refusal;
use crate::telemetry::Metrics;
use peers::Peers;
use publish::Publisher;
use sheet::Order;

/// What selects the ConfigMaps of this room.
pub const SELECTOR: &str = sheet::LABEL;

/// How long it may take at the stop to take away what this process has written. What is left then, the others take away.
const FAREWELL: Duration = Duration::from_secs(3);

/// Who this process is among those that share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The namespace of its ConfigMaps.
    pub namespace: String,
    /// Its name, for people.
    pub replica: String,
    /// The uid of the pod of that name in that namespace, if it is known. Another process of the same pod is a former one.
    pub pod_uid: Option<String>,
}

/// What happens when.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Between two writes, at least.
    pub pace: Duration,
    /// How long changes are gathered before they are written: a quick session is one write and not three.
    pub gather: Duration,
    /// How long nothing may be written; others see by it that this process lives.
    pub beat: Duration,
    /// How often bytes are written anew that sessions have moved.
    pub refresh: Duration,
    /// How long another may be silent until its sessions are no longer shown.
    pub stale: Duration,
    /// How long until its ConfigMaps are deleted, by whoever hears the others meanwhile.
    pub dead: Duration,
    /// How long an order counts.
    pub order: Duration,
    /// How often it is looked for what has become old.
    pub look: Duration,
    /// The pause after a write that failed.
    pub retry: Duration,
}

/// The hold of the rest of podgate on what is shared; cheap to clone.
#[derive(Debug, Clone)]
pub struct Share {
    maps: Arc<Collection>,
    me: Arc<Me>,
    peers: Arc<Peers>,
    leaving: CancellationToken,
    left: CancellationToken,
}

/// This process.
#[derive(Debug)]
struct Me {
    identity: Identity,
    replica: Arc<str>,
    /// Unique for each start.
    instance: Arc<str>,
    started: Instant,
    times: Times,
}

// === impl Times ===

impl Default for Times {
    fn default() -> Self {
        Self {
            pace: Duration::from_secs(1),
            gather: Duration::from_millis(250),
            beat: Duration::from_secs(5),
            refresh: Duration::from_secs(30),
            // Four beats: one may be late by a slow write, two by a watch that is begun again.
            stale: Duration::from_secs(20),
            // As long as a watch may pause that failed a few times, twice.
            dead: Duration::from_secs(60),
            // Who is cut off from the API server hears it later. It stays right: no other session ever has this uid.
            order: Duration::from_secs(600),
            look: Duration::from_secs(1),
            retry: Duration::from_secs(2),
        }
    }
}

// === impl Me ===

impl Me {
    /// Seconds since the start.
    fn up(&self) -> u64 {
        self.started.elapsed().as_secs()
    }
}

// === impl Share ===

impl Share {
    /// Shares these sessions through these ConfigMaps, which are those that [`SELECTOR`] selects in the namespace of
    /// `identity`. Its tasks are `background`'s.
    pub fn start(
        maps: Collection,
        identity: Identity,
        times: Times,
        sessions: Sessions,
        background: &Drain,
        metrics: &Metrics,
    ) -> Self {
        let me = Arc::new(Me {
            replica: identity.replica.as_str().into(),
            identity,
            instance: uuid::Uuid::new_v4().simple().to_string().into(),
            started: Instant::now(),
            times,
        });
        let (maps, registry) = (Arc::new(maps), sessions.live().clone());
        let peers = Arc::new(Peers::new(me.clone(), registry.clone()));
        maps.follow(peers::Feed(peers.clone()), background, metrics);
        let share = Self {
            maps: maps.clone(),
            me: me.clone(),
            peers: peers.clone(),
            leaving: CancellationToken::new(),
            left: CancellationToken::new(),
        };
        let form = Form::new(sessions, Some(me.replica.clone()));
        let publisher = Publisher::new(maps.clone(), me, peers.clone(), registry, form);
        let (leaving, left) = (share.leaving.clone(), share.left.clone());
        let drain = background.clone();
        background.spawn(async move {
            tokio::select! {
                biased;
                () = drain.stopping() => {}
                () = publisher.run(leaving) => {}
            }
            left.cancel();
        });
        let drain = background.clone();
        background.spawn(async move {
            tokio::select! {
                biased;
                () = drain.stopping() => {}
                () = peers::keep(&peers, &maps) => {}
            }
        });
        share
    }

    /// The name of this process.
    pub fn replica(&self) -> &Arc<str> {
        &self.me.replica
    }

    /// Whether it has been seen once what others have.
    pub fn is_complete(&self) -> bool {
        self.peers.is_complete()
    }

    /// Has the process that has a session end it, in somebody's name. That it was done is told by the list.
    ///
    /// # Errors
    /// When the API server does not take the order.
    pub async fn end(&self, far: &Far, by: &str) -> Result<(), Refusal> {
        let order = Order::new(far, by, self.peers.up(&far.instance));
        match self.maps.create(&order.map(&self.me.identity)).await {
            // Somebody was first.
            Ok(_) | Err(Error::Exists) => Ok(()),
            Err(Error::Cluster(error)) => Err(error.refusal()),
            Err(error @ (Error::Missing | Error::Conflict)) => Err(Refusal::Internal(error.to_string())),
        }
    }

    /// Takes away what this process has written, which others then no longer show. Whatever happens, it is done soon.
    pub async fn leave(&self) {
        self.leaving.cancel();
        if timeout(FAREWELL, self.left.cancelled()).await.is_err() {
            warn!("stopped without taking the list of sessions away; the other replicas will");
        }
    }
}
