//! App: the only wiring. Builds rooms from their own part of the config, binds, and runs until told to stop.

pub mod bench;
pub mod dev;
mod grants;
pub mod keys;
pub mod play;
pub mod policy;
pub mod recording;
pub mod recordings;
pub mod serve;
pub mod share;
mod stop;
pub mod verify;
pub mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::admin::{Admin, Ready};
use crate::audit::Audit;
use crate::authn::{Authn, Methods};
use crate::authz::Authz;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::drain::{Drain, Drained};
use crate::front::api::{self, Api};
use crate::grant::Grants;
use crate::group::grants::GrantObjects;
use crate::group::sessions::LiveSessions;
use crate::group::share::Share;
use crate::group::{self, Group};
use crate::listen::{self, Caps, Listener};
use crate::locate::Locate;
use crate::pipeline::Pipeline;
use crate::policy::Policy;
use crate::reload::Live;
use crate::session::{self, Sessions};
use crate::tap::{Recordings, Stage};
use crate::telemetry::Metrics;
use crate::upstream::{self, Route, Upstream};
use share::Sharing;

/// What a gateway stands on, besides its settings.
pub struct Ground {
    /// The cluster it stands in front of.
    pub cluster: Arc<dyn Cluster>,
    /// The API door's TLS, which asks for client certificates.
    pub server_tls: Live<ServerConfig>,
    /// How callers are known.
    pub authn: Methods,
    /// The house rules.
    pub policy: Arc<Policy>,
    /// Grants, if there can be any: those that the house rules look at.
    pub grants: Option<Grants>,
    /// The way to far sides.
    pub route: Route,
    /// Where sessions are recorded, if they are.
    pub recordings: Option<Recordings>,
    /// By what sessions are shared with other replicas, if they are.
    pub sharing: Option<Sharing>,
    /// What else has to be before podgate is ready.
    pub ready: Vec<Ready>,
    /// Where its series are.
    pub metrics: Metrics,
    /// What writes down who did what. Its tasks are among those of `background`.
    pub audit: Audit,
    /// Tasks that outlive sessions: ended when those are over.
    pub background: Drain,
}

/// Descriptors of one session: the client's socket, at its end a second hold on it, the far side's.
const DESCRIPTORS: usize = 3;

/// How long recordings of the last sessions may take to the store. Later ones stay in the spool for the next start.
const STORE_GRACE: Duration = Duration::from_secs(5);

/// A gateway that listens.
pub struct Gateway {
    /// Address of the API door.
    pub api: SocketAddr,
    /// Address of health and metrics.
    pub admin: SocketAddr,
    /// Its series.
    pub metrics: Metrics,
    /// Its stop. Whatever else should end with the gateway belongs to this drain too.
    pub drain: Drain,
    audit: Audit,
    background: Drain,
    recordings: Option<Recordings>,
    share: Option<Share>,
    admin_drain: Drain,
}

// === impl Gateway ===

impl Gateway {
    /// Builds the stages, binds both addresses and begins to serve.
    ///
    /// # Errors
    /// When an address cannot be had.
    pub async fn start(config: &Config, mut ground: Ground, drain: Drain) -> Result<Self, listen::Error> {
        raise_descriptor_limit(config.api.max_connections);
        let (metrics, background) = (ground.metrics.clone(), ground.background.clone());
        let (mut ready, recordings) = (std::mem::take(&mut ground.ready), ground.recordings.clone());
        let (audit, written) = (ground.audit.clone(), ground.audit.clone());
        if audit.is_on() {
            ready.push(Ready { name: "audit", check: Box::new(move || written.is_ready()) });
        }
        let policy = ground.policy.clone();
        if let Some(recordings) = recordings.clone() {
            let check = move || recordings.is_writable() || !policy.has_strict();
            ready.push(Ready { name: "recording", check: Box::new(check) });
        }
        let caps =
            Caps { all: config.api.max_connections, per_address: config.api.max_connections_per_address };
        let api_listener = Listener::bind(config.api.listen, caps, config.api.keepalive).await?;
        let caps = Caps { all: config.admin.max_connections, per_address: 0 };
        let admin_listener = Listener::bind(config.admin.listen, caps, config.api.keepalive).await?;
        let (api, admin) = (api_listener.addr(), admin_listener.addr());

        let (door, share) = api_door(config, ground, drain.clone(), metrics.clone());
        if let Some(share) = share.clone() {
            ready.push(Ready { name: "sessions", check: Box::new(move || share.is_complete()) });
        }
        let (serve, over) = (door.clone(), door);
        drain.spawn(api_listener.run(
            drain.clone(),
            move |peer| over.over_limit(peer),
            move |tcp, peer, slot| serve.clone().serve(tcp, peer, slot),
        ));

        let admin_drain = Drain::new();
        let shown = Admin::new(
            metrics.clone(),
            ready,
            drain.clone(),
            admin_drain.clone(),
            config.admin.header_timeout,
        );
        admin_drain.spawn(admin_listener.run(
            admin_drain.clone(),
            |peer| warn!(client.addr = %peer, "admin connection refused: the cap is reached"),
            move |tcp, peer, slot| shown.clone().serve(tcp, peer, slot),
        ));
        Ok(Self { api, admin, metrics, drain, audit, background, recordings, share, admin_drain })
    }

    /// Takes both steps of the stop; health stays visible until all else is done.
    pub async fn stop(self, deadline: Duration) -> Drained {
        let drained = self.drain.finish(deadline).await;
        match drained {
            Drained::Clean => info!("stopped: every session had ended"),
            Drained::Cut => warn!("stopped: live sessions were cut at the deadline"),
            Drained::Stuck(tasks) => error!(tasks, "stopped with tasks that do not end"),
        }
        if let Some(share) = &self.share {
            share.leave().await;
        }
        // Every request has ended, and said so.
        self.audit.flush().await;
        if let Some(recordings) = &self.recordings
            && timeout(STORE_GRACE, recordings.settled()).await.is_err()
        {
            warn!("stopped with recordings in the spool that the store does not have yet");
        }
        let background = self.background.finish(Duration::ZERO).await;
        if let Drained::Stuck(tasks) = background {
            error!(tasks, "stopped with background tasks that do not end");
        }
        self.admin_drain.finish(Duration::ZERO).await;
        drained
    }
}

/// Lets this process have as many descriptors as it may (Go does so by itself), and says so when that is too few
/// for the connection cap.
fn raise_descriptor_limit(max_connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        warn!(error = %error, "cannot raise the limit of open files");
    }
    let wanted = max_connections.saturating_mul(DESCRIPTORS);
    let have =
        getrlimit(Resource::Nofile).current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    if have < wanted {
        warn!(have, wanted, "api.maxConnections sessions would need more open files than the system allows");
    }
}

fn upstream_settings(config: &Config) -> upstream::Settings {
    upstream::Settings {
        connect_timeout: config.upstream.connect_timeout,
        handshake_timeout: config.upstream.handshake_timeout,
        upgrade_timeout: config.upstream.upgrade_timeout,
        keepalive: config.upstream.keepalive,
        translate: config.upstream.translate,
    }
}

fn api_door(config: &Config, ground: Ground, drain: Drain, metrics: Metrics) -> (Api, Option<Share>) {
    let Ground { cluster, server_tls, authn, policy, grants, route, audit, recordings, .. } = ground;
    let (sharing, background) = (ground.sharing, ground.background);
    let pipeline = Pipeline {
        authn: Authn::new(authn),
        authz: Authz::new(cluster.clone(), config.cluster.review_timeout),
        locate: Locate::new(
            cluster.clone(),
            route.towards(config.upstream.preferred_address_types.clone()),
            config.cluster.read_timeout,
        ),
        policy,
        tap: recordings.map_or_else(Stage::off, Stage::new),
        upstream: Upstream::new(route, upstream_settings(config)),
    };
    let sessions = Sessions::new(
        session::Settings {
            max_sessions: config.session.max_sessions,
            max_sessions_per_caller: config.session.max_sessions_per_caller,
            recheck_period: config.session.recheck_period,
            max_bytes_per_second: config.session.max_bytes_per_second,
            max_bytes_per_second_per_caller: config.session.max_bytes_per_second_per_caller,
            max_bytes_per_second_in_all: config.session.max_bytes_per_second_in_all,
            linger: config.session.linger,
            hang_up: config.session.hang_up,
            refusal_timeout: config.session.refusal_timeout,
            open_timeout: config.session.open_timeout,
            max_duration: config.session.max_duration,
            idle_timeout: config.session.idle_timeout,
        },
        drain.clone(),
    );
    let settings = api::Settings {
        handshake_timeout: config.api.handshake_timeout,
        header_timeout: config.api.header_timeout,
        write_timeout: config.api.write_timeout,
        max_header_bytes: config.api.max_header_bytes,
        max_headers: config.api.max_headers,
        max_http2_streams: config.api.max_http2_streams,
        max_in_flight: config.api.max_in_flight,
        request_timeout: config.api.request_timeout,
        allowed_origins: config.api.allowed_origins.clone(),
        client_user_timeout: config.api.user_timeout,
        far_user_timeout: config.upstream.user_timeout,
    };
    let share = sharing.map(|Sharing { maps, identity, times }| {
        Share::start(maps, identity, times, sessions.clone(), &background, &metrics)
    });
    let shown = LiveSessions::new(sessions.clone(), share.clone());
    let mut resources: Vec<Arc<dyn group::Resource>> = vec![Arc::new(shown)];
    if let Some(grants) = grants {
        let authz = Authz::new(cluster.clone(), config.cluster.review_timeout);
        resources.push(Arc::new(GrantObjects::new(grants, authz)));
    }
    let group = Arc::new(Group::new(cluster, resources));
    (Api::new(server_tls, settings, pipeline, group, sessions, drain, metrics, audit), share)
}
