//! The Kubernetes-shaped HTTP door, the one kubectl uses.
//!
//! In the flow: `listen` hands it a TCP connection; it ends TLS, reads requests with hyper (HTTP/1.1 or HTTP/2
//! by ALPN), asks the [`Pipeline`], and then either lets the cluster answer or takes the connection over for a
//! session. Around every request stand the same layers: audit id, secrets marked, trace span, panic barrier;
//! around short requests also a limit on how many run at once, shedding beyond it, and a deadline.
//! Invariant: nothing here decides who may do what.
//! Source: `protocol.md` 1.1 and 1.3 (order of checks), 4.1 to 4.3 (upgrade), 8.1 and 8.5 (surroundings).

mod activity;
mod hijack;
mod layers;
mod recheck;
mod upgrade;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use prometheus::IntGauge;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::takeover::{Mute, Takeover};
use crate::audit::{Audit, Trail};
use crate::cluster::Body;
use crate::drain::Drain;
use crate::group::{Asker, Group};
use crate::listen::{Conn, Slot, Via};
use crate::pipeline::Pipeline;
use crate::policy::Circumstances;
use crate::reload::Live;
use crate::request::Ask;
use crate::session::Sessions;
use crate::status::{Encoding, Refusal};
use crate::telemetry::{Metrics, chain};
use crate::tls;
use crate::tls::ahead::Ahead;
use activity::{Activity, Busy};
use layers::Short;
use recheck::Rechecks;

/// Seconds after which a client may try again whose address has too many connections.
const CONNECTION_RETRY: u32 = 1;

/// How long a connection may go on after the cut: for the end of a body to be written that is cut with it.
const LAST_WORD: Duration = Duration::from_millis(500);

/// The client's stream as hyper holds it.
type ClientIo = TokioIo<Takeover<ClientStream>>;

/// The client's connection. Boxed: it is handed on from future to future, and each has room for all that is handed to it.
type ClientStream = Box<tokio_rustls::server::TlsStream<Ahead<TcpStream>>>;

/// Limits and deadlines of this door.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// For a whole request head, and for the pause between two requests of a connection.
    pub header_timeout: Duration,
    /// How long a client may take nothing of an answer.
    pub write_timeout: Duration,
    /// Bytes of a request head at most; beyond it 431.
    pub max_header_bytes: usize,
    /// Header lines of a request at most; beyond it 431.
    pub max_headers: usize,
    /// Streams of one HTTP/2 connection at once.
    pub max_http2_streams: u32,
    /// Short requests at once, over all connections; beyond it 429.
    pub max_in_flight: usize,
    /// For a short request; beyond it 504.
    pub request_timeout: Duration,
    /// Whose pages may open sessions, besides podgate's own.
    pub allowed_origins: Vec<String>,
    /// How long the client of a session with a terminal may acknowledge or take nothing; 0 is the kernel's patience.
    pub client_user_timeout: Duration,
    /// The same of the far side.
    pub far_user_timeout: Duration,
}

/// The door; cheap to clone.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    tls: Live<ServerConfig>,
    settings: Settings,
    pipeline: Pipeline,
    group: Arc<Group>,
    sessions: Sessions,
    drain: Drain,
    metrics: Metrics,
    audit: Audit,
    short: Short,
    rechecks: Rechecks,
}

/// One connection of the door.
#[derive(Clone)]
struct Door {
    shared: Arc<Shared>,
    conn: Arc<Conn>,
    mute: Mute,
    /// Held for its drop.
    _open: Arc<Open>,
    activity: Arc<Activity>,
}

// === impl Api ===

impl Api {
    /// The door in front of these stages; `group` answers whatever is no session.
    #[allow(clippy::too_many_arguments, reason = "all that a door stands on, once")]
    pub fn new(
        tls: Live<ServerConfig>,
        settings: Settings,
        pipeline: Pipeline,
        group: Arc<Group>,
        sessions: Sessions,
        drain: Drain,
        metrics: Metrics,
        audit: Audit,
    ) -> Self {
        let short = Short::new(group.clone(), settings.max_in_flight, settings.request_timeout);
        Self {
            shared: Arc::new(Shared {
                tls,
                settings,
                pipeline,
                group,
                sessions,
                drain,
                metrics,
                audit,
                short,
                rechecks: Rechecks::default(),
            }),
        }
    }

    /// A connection that found no slot: closed at once, and counted.
    pub fn over_limit(&self, peer: SocketAddr) {
        self.shared.metrics.connections_refused.with_label_values(&["over_limit"]).inc();
        debug!(client.addr = %peer, "connection refused: the cap is reached");
    }

    /// Serves one connection to its end. A session it turns into is a task of its own.
    pub async fn serve(self, tcp: TcpStream, peer: SocketAddr, slot: Slot) {
        let metrics = &self.shared.metrics;
        metrics.connections_accepted.inc();
        let within = self.shared.settings.handshake_timeout;
        let refused = |reason, cause: String| {
            metrics.connections_refused.with_label_values(&[reason]).inc();
            info!(client.addr = %peer, reason, error = cause, "TLS handshake failed");
        };
        let handshake = tokio::select! {
            biased;
            // Who has not said anything yet has nothing to lose.
            () = self.shared.drain.stopping() => return,
            handshake = timeout(within, TlsAcceptor::from(self.shared.tls.get()).accept(Ahead::new(tcp))) => handshake,
        };
        let stream = match handshake {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => return refused("handshake_failed", chain(&error)),
            Err(_) => return refused("handshake_timeout", format!("no handshake within {within:?}")),
        };
        let (_, session) = stream.get_ref();
        let http2 = session.alpn_protocol() == Some(tls::HTTP2);
        let owned = |chain: &[CertificateDer<'_>]| chain.iter().map(|one| one.clone().into_owned()).collect();
        let certificates = session.peer_certificates().map(owned);
        let conn = Conn { peer, certificates: certificates.unwrap_or_default(), slot: Some(slot) };
        let open = Arc::new(Open::new(metrics.connections.clone()));
        let (stream, mute) = Takeover::new(stream, self.shared.settings.write_timeout);
        let activity = Arc::new(Activity::default());
        let door = Door {
            shared: self.shared.clone(),
            conn: Arc::new(conn),
            mute,
            _open: open,
            activity: activity.clone(),
        };
        let service = TowerToHyperService::new(layers::around(door));
        let io: ClientIo = TokioIo::new(stream);
        let settings = &self.shared.settings;
        let served = if http2 {
            let executor = Tracked(self.shared.drain.clone());
            let mut builder = hyper::server::conn::http2::Builder::new(executor);
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(settings.max_http2_streams)
                .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
                .keep_alive_interval(settings.header_timeout)
                .keep_alive_timeout(settings.handshake_timeout);
            let serving = std::pin::pin!(builder.serve_connection(io, service));
            // hyper has no deadline for a preface that never comes, nor for a peer that only answers pings.
            let leave = activity.unwelcome_or_idle(settings.header_timeout);
            let overstayed = activity.overstayed(settings.handshake_timeout);
            until_done(&self.shared.drain, serving, leave, overstayed, |serving| serving.graceful_shutdown())
                .await
        } else {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(settings.header_timeout)
                .max_headers(settings.max_headers)
                .max_buf_size(settings.max_header_bytes)
                .title_case_headers(true);
            let serving = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
            let never = std::future::pending;
            until_done(&self.shared.drain, serving, never(), never(), |serving| serving.graceful_shutdown())
                .await
        };
        if let Err(error) = served {
            // hyper has answered these itself.
            if error.is_parse() || error.is_parse_too_large() {
                let code = if error.is_parse_too_large() { 431 } else { 400 };
                self.shared.audit.unparsed(peer, code, &error.to_string());
            }
            info!(client.addr = %peer, error = chain(&error), "connection ended by an error");
        }
    }
}

/// Drives a connection; tells it at the drain's first step or when it should leave, and drops it soon after the
/// drain's second step or when it has overstayed.
async fn until_done<C>(
    drain: &Drain,
    mut serving: std::pin::Pin<&mut C>,
    leave: impl Future<Output = ()>,
    overstayed: impl Future<Output = ()>,
    stop: impl FnOnce(std::pin::Pin<&mut C>),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    // What it has asked already comes first. A connection that always has something to move leaves no budget to what
    // is behind it.
    let left = tokio::select! {
        biased;
        done = serving.as_mut() => return done,
        () = drain.stopping() => false,
        () = unconstrained(leave) => true,
    };
    stop(serving.as_mut());
    let patience = async {
        match left {
            true => overstayed.await,
            false => std::future::pending().await,
        }
    };
    let cut = async {
        drain.cutting().await;
        sleep(LAST_WORD).await;
    };
    // As above; these come first, where there is nothing left to wait for.
    tokio::select! {
        biased;
        () = cut => Ok(()),
        () = patience => Ok(()),
        done = serving => done,
    }
}

/// Runs hyper's own tasks as tasks of the drain.
#[derive(Debug, Clone)]
struct Tracked(Drain);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Keeps the gauge of open connections true on every path, for as long as a session holds the connection.
struct Open(IntGauge);

impl Open {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

// === impl Door ===

impl Door {
    /// Answers one request. Never fails: what is wrong becomes a Status.
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let (activity, http2) = (self.activity.clone(), request.version() == Version::HTTP_2);
        let busy = http2.then(|| Busy::new(activity.clone()));
        if request.headers().len() > self.shared.settings.max_headers {
            info!(headers = request.headers().len(), "request refused: too many headers");
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            self.shared.metrics.requests.with_label_values(&["431"]).inc();
            self.shared.audit.unparsed(self.conn.peer, 431, "too many headers");
            return Ok(response);
        }
        if self.conn.slot.as_ref().is_some_and(Slot::is_beyond) {
            return Ok(self.too_many_connections(&request));
        }
        let response = self.answer_within_bounds(request).await;
        Ok(match busy {
            // Busy until the last frame of the body is gone.
            Some(busy) => response.map(|body| body.map_frame(move |frame| busy.with(frame)).boxed_unsync()),
            None => response,
        })
    }

    /// Tells a client that its address has too many connections, and ends this one.
    fn too_many_connections(&self, request: &Request<Incoming>) -> Response<Body> {
        let refusal = Refusal::TooManyRequests {
            message: "too many connections from your address, please try again later".into(),
            retry_after: CONNECTION_RETRY,
        };
        self.shared.metrics.refused(&refusal);
        self.unread(request).unknown(&refusal);
        let mut response = refusal.response(Encoding::of(request.headers(), None)).map(whole);
        match request.version() {
            Version::HTTP_2 => self.activity.unwelcome.notify_one(),
            _ => {
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        response
    }

    /// The trail of a request that is answered by its head.
    fn unread(&self, request: &Request<Incoming>) -> Trail {
        self.shared.audit.unread(request, self.conn.peer, layers::audit_id(request))
    }

    async fn answer_within_bounds(self, request: Request<Incoming>) -> Response<Body> {
        let (started, mut trail) = (Instant::now(), Trail::default());
        let (metrics, activity) = (self.shared.metrics.clone(), self.activity.clone());
        let http2 = request.version() == Version::HTTP_2;
        let (mut encoding, headers) = (Encoding::of(request.headers(), None), request.headers());
        let answered = match Ask::parse(request.method(), request.uri(), headers) {
            Ok(ask) => {
                encoding = ask.encoding;
                let id = layers::audit_id(&request);
                trail = self.shared.audit.trail(&request, self.conn.peer, id, &ask);
                let admitted = AssertUnwindSafe(self.admitted(ask, request, started, &mut trail));
                admitted.catch_unwind().await.unwrap_or_else(|panic| {
                    trail.panicked(&layers::text_of(&*panic));
                    std::panic::resume_unwind(panic)
                })
            }
            Err(refusal) => {
                self.unread(&request).unknown(&refusal);
                info!(refusal.code = refusal.code().as_u16(), error = refusal.message(), "request refused");
                Err(refusal)
            }
        };
        match answered {
            // The far side's own answer stands behind a takeover: it is counted where it is known.
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => response,
            Ok(response) => {
                metrics.requests.with_label_values(&[response.status().as_str()]).inc();
                trail.answered(response).await
            }
            Err(refusal) => {
                // A 401 of what is behind podgate says nothing about the caller.
                if http2 && refusal == Refusal::Unauthorized {
                    activity.unwelcome.notify_one();
                }
                metrics.refused(&refusal);
                trail.refused(&refusal).await;
                refusal.response(encoding).map(whole)
            }
        }
    }

    async fn admitted(
        self,
        mut ask: Ask,
        mut request: Request<Incoming>,
        started: Instant,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Refusal> {
        let (pipeline, headers) = (&self.shared.pipeline, request.headers());
        let caller = pipeline.identify(&self.conn, headers).await.inspect_err(|refusal| {
            trail.unauthenticated(refusal, headers, !self.conn.certificates.is_empty());
        })?;
        self.activity.is_somebodys();
        trail.received(caller.user()).await?;
        let caller = pipeline.assume(caller, headers, &ask, trail).await?;
        upgrade::forget_token(request.headers_mut());
        self.shared.pipeline.authn.forget(request.headers_mut());
        if let Some(exec) = ask.exec.take() {
            let permit = self.shared.pipeline.permit(caller, &ask, trail).await?;
            let exec = exec?;
            let place = self.shared.pipeline.place(permit, exec, &ask).await?;
            let now = Timestamp::now();
            let said = Circumstances { client: self.conn.peer, reason: ask.reason.take(), now };
            let admitted = self.shared.pipeline.admit(place, said, trail)?;
            let (origins, translate) =
                (&self.shared.settings.allowed_origins, self.shared.pipeline.upstream.translate());
            let carriage = match upgrade::carriage(&request, admitted.place(), origins, translate) {
                Ok(carriage) => carriage,
                Err(upgrade::Error::Refused(refusal)) => return Err(refusal),
                Err(upgrade::Error::Handshake(refusal)) => return Ok(upgrade::handshake_refused(refusal)),
            };
            if self.shared.drain.is_stopping() {
                return Err(Refusal::Unavailable("podgate is shutting down, try another replica".into()));
            }
            // Boxed: other requests need no room for it.
            let opened = hijack::open(self, request, admitted, carriage, ask.attributes, started, trail);
            return Box::pin(opened).await;
        }
        upgrade::check_page(&caller, request.headers(), &self.shared.settings.allowed_origins)?;
        let owned = self.shared.group.owns(&ask);
        let asker = match owned {
            true => Asker::Permitted(self.shared.pipeline.permit(caller, &ask, trail).await?),
            false => Asker::Known(caller.user().clone()),
        };
        // An upgrade that is passed through outlives this door, and its connection is still one under the cap.
        let upgraded = Arc::new(OnceLock::new());
        let via = Via::new(self.conn.peer, (self.conn.clone(), self._open.clone(), upgraded.clone()));
        request.extensions_mut().insert(via);
        let request = trail.listen(request.map(|body| body.map_err(Into::into).boxed_unsync()));
        if ask.long_running() {
            let response = self.shared.group.serve(&asker, &ask, request).await?;
            let response = passed_through(response, trail, &upgraded).await;
            if ask.attributes.verb != "watch" {
                // What is shown of a session ends as that does. All else may be over in time, and where it is not, the cut
                // shows that something is missing.
                return Ok(response);
            }
            // It has no end of its own, and would hold the drain until the deadline. An API server that stops ends its watches
            // as early, and clients that know how go on elsewhere from where they were.
            let drain = self.shared.drain.clone();
            return Ok(response.map(|body| until(body, async move { drain.stopping().await })));
        }
        let response = self.shared.short.serve(asker, ask, request).await?;
        Ok(passed_through(response, trail, &upgraded).await)
    }
}

/// Gives the trail of a connection that goes on in another protocol to what lasts as long as that does.
async fn passed_through(
    response: Response<Body>,
    trail: &mut Trail,
    upgraded: &OnceLock<Trail>,
) -> Response<Body> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        trail.begun(response.status()).await;
        // Nobody else sets it.
        let _ = upgraded.set(trail.take());
    }
    response
}

/// The same body, ended early when `stop` resolves.
fn until(body: Body, stop: impl Future<Output = ()> + Send + 'static) -> Body {
    let frames = BodyStream::new(body).take_until(Box::pin(stop));
    StreamBody::new(frames).boxed_unsync()
}

/// A body that is there already.
fn whole(bytes: Bytes) -> Body {
    http_body_util::Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::{pending, poll_fn};
    use std::pin::pin;
    use std::task::{Poll, ready};

    use tokio::sync::mpsc;
    use tokio::task::coop::consume_budget;

    use super::*;

    #[tokio::test]
    async fn who_is_unwelcome_is_told_although_their_connection_never_rests() {
        let told = Cell::new(false);
        let serving = pin!(poll_fn(|cx| {
            while !told.get() {
                ready!(pin!(consume_budget()).poll(cx));
            }
            Poll::Ready(Ok(()))
        }));
        let (unwelcome, mut heard) = mpsc::channel(1);
        unwelcome.send(()).await.unwrap();
        let leave = async { heard.recv().await.unwrap() };
        let drain = Drain::new();
        let done = until_done(&drain, serving, leave, pending(), |_| told.set(true));
        timeout(Duration::from_secs(10), done).await.expect("they are told").unwrap();
    }
}
