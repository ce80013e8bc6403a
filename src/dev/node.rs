//! Node: the kubelet's side of exec and attach for `podgate dev`, with local processes in the place of containers.
//!
//! In the flow: behind `upstream`, on a loopback address of its own, as a kubelet is. It asks nobody whether a
//! command may run; that only podgate's client certificate opens it is what protects it (`dev::state`), as with
//! a kubelet that trusts the API server.
//!
//! Invariants:
//! - Only loopback addresses are bound, and a connection without a certificate of the required roots ends in the
//!   handshake.
//! - The accept loop waits for a free place and for nothing else of a connection.
//! - A process runs in `<folder>/<namespace>/<pod>/<container>`; the names are checked, so that none leads out of
//!   the folder. It runs as the user who started podgate: this is no sandbox.
//! - Every connection is a task of the [`Drain`], and its processes are ended and reaped inside that task.
//!
//! The accept loop is its own, not `listen`'s: that one closes what is over the cap, since its clients are
//! strangers, while the one client here is a gateway with a session in hand, for which a short wait in the
//! backlog is better than an error. Socket options are `listen`'s.
//!
//! Left out on purpose: the URL form with a pod UID for exec and attach, and an authorizer.
//! Source: `protocol.md` 3.2 to 3.4, 5.1, 6.1, 6.2; kubelet `pkg/kubelet/server/server.go` (`getExec`,
//! `getAttach`), `cri/streaming/remotecommand/{httpstream,websocket}.go`, apimachinery
//! `pkg/util/httpstream/spdy/upgrade.go`.

mod container;
mod forward;
mod logs;
mod process;
mod session;
mod simulated;

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, EnvVar, Pod};
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::drain::Drain;
use crate::listen;
use crate::request::Query;
use crate::wire::channel::Subprotocol;
use crate::wire::remotecommand::{self, Asked, Negotiation, Protocol};
use crate::wire::ws::handshake::{self, Challenge, Refusal};
use container::Containers;
use process::Command;
use session::{End, Job, Task, Transport};

/// How long the accept loop rests after an error, most likely a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Silence after which the kernel asks whether the peer is still there. On loopback the answer is always yes;
/// this is for whoever puts a forwarder in between.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Most bytes of a request head: hyper's least buffer; a command line in the query is what makes it long.
/// Beyond it hyper answers 431.
const MAX_HEAD: usize = 256 * 1024;

/// Most characters of a name: what Kubernetes allows for the longest of the three.
const MAX_NAME: usize = 253;

/// The pods as this node sees them.
pub trait Pods: Send + Sync {
    /// The pod as it is now; of any node.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;

    /// The pods bound to this node.
    fn bound(&self, _node: &str) -> Vec<Arc<Pod>> {
        Vec::new()
    }

    /// Takes note of how a container is.
    fn report(&self, _namespace: &str, _pod: &str, _status: ContainerStatus) {}
}

/// What a node speaks besides SPDY: kubelets and runtimes of different ages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Streaming {
    /// Nothing, as dockershim.
    Spdy,
    /// WebSocket with the subprotocols of runtimes, up to v4.
    #[default]
    V4,
    /// v5 as well, as a kubelet of 1.36.
    V5,
}

/// Deadlines and bounds of an [`Endpoint`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// What it speaks.
    pub streaming: Streaming,
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
    /// For each request head, and for a kept connection until its next one.
    pub head: Duration,
    /// From the 101 until all streams are open (`protocol.md` 5.4).
    pub stream_creation: Duration,
    /// Without a frame either way the session ends; the kubelet's `streamingConnectionIdleTimeout`.
    pub idle: Duration,
    /// After the exit of a command: how long nothing must come of what it left behind until that is killed.
    pub exit_silence: Duration,
    /// Between asking processes to end and killing them.
    pub kill_grace: Duration,
    /// Whether a program whose client has gone is left running, as runtimes leave it.
    pub leaves_orphans: bool,
    /// After the last frame: how long the client may take to close.
    pub linger: Duration,
    /// Connections at once. At the bound no more are accepted; they wait in the backlog.
    pub max_connections: usize,
}

/// A bound node endpoint.
pub struct Endpoint {
    listener: TcpListener,
    addr: SocketAddr,
    acceptor: TlsAcceptor,
    node: Arc<Node>,
}

/// Why an endpoint cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could be reached by others, who could then run commands.
    #[error("node endpoint address {addr} is not a loopback address")]
    NotLoopback {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be had.
    #[error("bind the node endpoint to {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// What every connection needs.
struct Node {
    name: String,
    pods: Arc<dyn Pods>,
    dir: PathBuf,
    settings: Settings,
    containers: Containers,
}

/// An answered upgrade, left by the request's handler for its connection's task.
type Slot = Arc<Mutex<Option<(OnUpgrade, Work)>>>;

/// What an upgraded connection is for.
enum Work {
    Session(Job),
    Forward(forward::Job),
}

type Answer = Response<Full<Bytes>>;

// === impl Streaming ===

impl Streaming {
    /// Every level, oldest first.
    pub const ALL: [Streaming; 3] = [Self::Spdy, Self::V4, Self::V5];

    /// The name in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::V4 => "v4",
            Self::V5 => "v5",
        }
    }

    /// The level of that exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.name() == name)
    }

    /// What nodes may declare in their status (`status.declaredFeatures`) on account of their level.
    pub const FEATURES: &[&str] = &["ExtendWebSocketsToKubelet"];

    /// What a node of this level does declare.
    pub fn declared_features(self) -> &'static [&'static str] {
        match self {
            Self::Spdy | Self::V4 => &[],
            Self::V5 => Self::FEATURES,
        }
    }

    /// The subprotocols to choose from for a WebSocket client that offers these. v5 anywhere among them is a
    /// matter of the kubelet's translator, which has no other; the runtime has the rest (`protocol.md` 7.2).
    fn subprotocols(self, offered: &[String]) -> Vec<&'static str> {
        let v5 = self == Self::V5 && offered.iter().any(|name| name == Subprotocol::V5.name());
        let served = if v5 { &Subprotocol::TRANSLATOR[..] } else { &Subprotocol::RUNTIME };
        served.iter().map(|subprotocol| subprotocol.name()).collect()
    }
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            streaming: Streaming::default(),
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stream_creation: Duration::from_secs(30),
            idle: Duration::from_secs(4 * 60 * 60),
            exit_silence: Duration::from_millis(500),
            kill_grace: Duration::from_millis(500),
            leaves_orphans: false,
            linger: Duration::from_secs(5),
            max_connections: 4096,
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Binds a loopback address. `tls` must require client certificates; `dir` must exist and be private.
    ///
    /// # Errors
    /// [`Error::NotLoopback`] and [`Error::Bind`].
    pub async fn bind(
        addr: SocketAddr,
        tls: Arc<ServerConfig>,
        node: impl Into<String>,
        pods: Arc<dyn Pods>,
        dir: impl Into<PathBuf>,
        settings: Settings,
    ) -> Result<Self, Error> {
        if !addr.ip().is_loopback() {
            return Err(Error::NotLoopback { addr });
        }
        let failed = |source| Error::Bind { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let (name, dir) = (node.into(), dir.into());
        let containers = Containers::new(&name, pods.clone(), &dir, settings.kill_grace);
        let node = Arc::new(Node { name, pods, dir, settings, containers });
        Ok(Self { listener, addr, acceptor: TlsAcceptor::from(tls), node })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until the drain stops it. Connections live on as tasks of the drain: kept ones are closed at its
    /// stop, sessions at its cut.
    pub async fn run(self, drain: Drain) {
        let places = Arc::new(Semaphore::new(self.node.settings.max_connections));
        let stop = drain.clone();
        self.node.containers.start(&drain);
        tokio::select! {
            () = stop.stopping() => {}
            () = self.accept(&places, &drain) => {}
        }
    }

    async fn accept(&self, places: &Arc<Semaphore>, drain: &Drain) {
        // The semaphore is never closed.
        while let Ok(place) = places.clone().acquire_owned().await {
            match self.listener.accept().await {
                Ok((tcp, _)) => {
                    let serve = serve(tcp, self.acceptor.clone(), self.node.clone(), drain.clone(), place);
                    drain.spawn(serve);
                }
                Err(error) => {
                    warn!(listen.addr = %self.addr, error = %error, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// One connection, from the handshake to the end of its session.
async fn serve(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    node: Arc<Node>,
    drain: Drain,
    _place: OwnedSemaphorePermit,
) {
    let watch = match prepare(&tcp) {
        Ok(watch) => watch,
        Err(error) => return debug!(error = %error, "cannot set up the connection"),
    };
    let handshake = tokio::time::timeout(node.settings.handshake, acceptor.accept(tcp));
    let io = tokio::select! {
        biased;
        () = drain.stopping() => return,
        done = handshake => match done {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return debug!(error = %error, "handshake failed"),
            Err(_) => return debug!("handshake took too long"),
        },
    };
    let Some((upgrade, work)) = requests(io, &node, &drain).await else {
        return;
    };
    // Ready: the connection was taken apart by the future that `requests` has awaited.
    let parts = match upgrade.await {
        Ok(upgraded) => upgraded.downcast::<TokioIo<TlsStream<TcpStream>>>(),
        Err(error) => return debug!(error = %error, "the upgrade did not happen"),
    };
    let Ok(parts) = parts else {
        unreachable!("the connection is the one that was served");
    };
    let job = match work {
        Work::Session(job) => job,
        Work::Forward(job) => {
            let run = forward::run(parts.io.into_inner(), parts.read_buf, job, &node.settings, &drain);
            return match Box::pin(run).await {
                forward::End::NotSpdy(error) => debug!(error = %error, "port-forward ended, not SPDY"),
                end => debug!(end = ?end, "port-forward ended"),
            };
        }
    };
    let session = session::run(parts.io.into_inner(), watch, parts.read_buf, job, &node.settings, &drain);
    let end = Box::pin(session).await;
    match end {
        End::Broken(error) => debug!(error = %error, "session ended, the client broke the protocol"),
        end => debug!(end = ?end, "session ended"),
    }
}

/// Socket options, and a second handle by which a session sees the peer close behind unread bytes.
fn prepare(tcp: &TcpStream) -> io::Result<TcpStream> {
    listen::tune(tcp, KEEPALIVE)?;
    TcpStream::from_std(SockRef::from(tcp).try_clone()?.into())
}

/// Serves requests until the connection closes or one of them was upgraded.
async fn requests(io: TlsStream<TcpStream>, node: &Arc<Node>, drain: &Drain) -> Option<(OnUpgrade, Work)> {
    let slot = Slot::default();
    let service = service_fn(|request| {
        let logs = logs::answer(&node.containers, &request);
        let answer = logs.unwrap_or_else(|| node.answer(request, &slot).map(logs::whole));
        async { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(node.settings.head)
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut told = false;
    let served = loop {
        tokio::select! {
            biased;
            () = drain.cutting() => return None,
            () = drain.stopping(), if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            served = &mut connection => break served,
        }
    };
    if let Err(error) = served {
        debug!(error = %error, "connection failed");
        return None;
    }
    // Nothing panics with the slot in hand.
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

// === impl Node ===

impl Node {
    fn answer(&self, mut request: Request<Incoming>, slot: &Slot) -> Answer {
        if request.uri().path().starts_with(forward::PREFIX) {
            return forward::answer(self, request, slot);
        }
        match self.route(&request) {
            Ok(Some((switching, job))) => {
                let upgrade = hyper::upgrade::on(&mut request);
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, Work::Session(job)));
                switching
            }
            Ok(None) => plain(StatusCode::OK, "ok"),
            Err(refusal) => *refusal,
        }
    }

    /// A 101 and a job for a session, nothing for a health check. The order of the checks is the kubelet's.
    fn route(&self, request: &Request<Incoming>) -> Result<Option<(Answer, Job)>, Box<Answer>> {
        let path = request.uri().path();
        if path == "/healthz" {
            return Ok(None);
        }
        let not_found = || Box::new(plain(StatusCode::NOT_FOUND, "404 page not found\n"));
        let (is_attach, rest) = match (path.strip_prefix("/exec/"), path.strip_prefix("/attach/")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(not_found()),
        };
        let mut segments = rest.split('/');
        let mut segment = || {
            let raw = segments.next().filter(|raw| !raw.is_empty())?;
            percent_decode_str(raw).decode_utf8().ok()
        };
        let (namespace, pod, container) = (segment(), segment(), segment());
        let (Some(namespace), Some(pod), Some(container), None) =
            (namespace, pod, container, segments.next())
        else {
            return Err(not_found());
        };
        if request.method() != Method::POST && request.method() != Method::GET {
            return Err(Box::new(plain(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed")));
        }
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let asked = asked(&query)?;
        let found = self.pods.pod(&namespace, &pod).filter(|pod| self.is_here(pod));
        let found = found.filter(|_| is_name(&namespace) && is_name(&pod));
        let Some(found) = found else {
            return Err(Box::new(plain(StatusCode::NOT_FOUND, "pod does not exist")));
        };
        let upgrade = || negotiate(request, self.settings.streaming);
        if is_attach {
            return self.attach(&found, [&namespace, &pod, &container], asked, upgrade).map(Some);
        }
        let Some(runs) = Runs::find(&found, &container).filter(|_| is_name(&container)) else {
            let text = format!("container not found (\"{container}\")");
            return Err(Box::new(plain(StatusCode::INTERNAL_SERVER_ERROR, text)));
        };
        let (switching, transport) = upgrade()?;
        if simulated::is(&found) {
            let words = query.all("command").map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            return Ok(Some((switching, Job { transport, asked, task: Task::Simulated(words) })));
        }
        let dir =
            [&namespace, &pod, &container].iter().fold(self.dir.clone(), |dir, name| dir.join(&***name));
        let argv = query.all("command").map(|arg| OsString::from_vec(arg.to_vec())).collect();
        let env = environment(&pod, &dir, asked.tty, runs.env);
        let Asked { stdin, stdout, stderr, tty } = asked;
        let command = Command { argv, dir, env, tty, size: None, stdin, stdout, stderr };
        let working_dir = runs.working_dir.map(PathBuf::from).filter(|dir| is_below(dir));
        let task = Task::Exec { command, working_dir };
        Ok(Some((switching, Job { transport, asked, task })))
    }

    /// The 101 and the job of an attach. Whether there is a terminal was settled when the container started.
    fn attach(
        &self,
        found: &Pod,
        [namespace, pod, container]: [&str; 3],
        mut asked: Asked,
        upgrade: impl FnOnce() -> Result<(Answer, Transport), Box<Answer>>,
    ) -> Result<(Answer, Job), Box<Answer>> {
        let spec = found.spec.iter().flat_map(|spec| &spec.containers).find(|spec| spec.name == container);
        asked.tty = spec.and_then(|spec| spec.tty).unwrap_or_default();
        asked.stderr &= !asked.tty;
        // First, since whoever attaches and leaves may end the container's input.
        let (switching, transport) = upgrade()?;
        let Some(attached) = self.containers.attach(namespace, pod, container, asked) else {
            let text = format!("container {container} not found in pod {pod}_{namespace}");
            return Err(Box::new(plain(StatusCode::INTERNAL_SERVER_ERROR, text)));
        };
        Ok((switching, Job { transport, asked, task: Task::Attach(attached) }))
    }

    fn is_here(&self, pod: &Pod) -> bool {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(self.name.as_str())
    }
}

/// What of a container's manifest matters here.
struct Runs<'a> {
    env: &'a [EnvVar],
    working_dir: Option<&'a str>,
}

impl<'a> Runs<'a> {
    /// The container, if something of it can be running: a regular or ephemeral one, a sidecar, or an init
    /// container that has started and not ended.
    fn find(pod: &'a Pod, name: &str) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let of = |container: &'a Container| Self {
            env: container.env.as_deref().unwrap_or_default(),
            working_dir: container.working_dir.as_deref(),
        };
        if let Some(container) = spec.containers.iter().find(|container| container.name == name) {
            return Some(of(container));
        }
        let mut ephemeral = spec.ephemeral_containers.iter().flatten();
        if let Some(container) = ephemeral.find(|container| container.name == name) {
            return Some(Self {
                env: container.env.as_deref().unwrap_or_default(),
                working_dir: container.working_dir.as_deref(),
            });
        }
        let container = spec.init_containers.iter().flatten().find(|container| container.name == name)?;
        let mut statuses =
            pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
        let state = statuses.find(|status| status.name == name).and_then(|status| status.state.as_ref());
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        let runs = match state {
            Some(state) => state.running.is_some(),
            None => sidecar,
        };
        runs.then(|| of(container))
    }
}

/// The kubelet's options: only the value `1` counts, and a terminal has no stderr.
fn asked(query: &Query) -> Result<Asked, Box<Answer>> {
    let flag = |name| query.first(name).as_deref() == Some("1");
    let tty = flag("tty");
    let asked = Asked { stdin: flag("input"), stdout: flag("output"), stderr: flag("error") && !tty, tty };
    // Counted before stderr is dropped for a terminal.
    if asked.stdin || asked.stdout || flag("error") {
        return Ok(asked);
    }
    let text = "you must specify at least 1 of stdin, stdout, stderr";
    Err(Box::new(plain(StatusCode::BAD_REQUEST, text)))
}

/// The 101 and what to speak after it, or the answer instead.
fn negotiate(request: &Request<Incoming>, streaming: Streaming) -> Result<(Answer, Transport), Box<Answer>> {
    let headers = request.headers();
    let first = |name| {
        headers
            .get(name)
            .map_or(String::new(), |value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase())
    };
    let (connection, upgrade) = (first(header::CONNECTION), first(header::UPGRADE));
    if connection.contains("upgrade") && upgrade == "websocket" && streaming != Streaming::Spdy {
        return websocket(request.method(), headers, streaming).map_err(|refusal| Box::new(refused(refusal)));
    }
    if !connection.contains("upgrade") || !upgrade.contains("spdy/3.1") {
        // Go prints names and values; the names are enough to see what is missing.
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        let text =
            format!("unable to upgrade: missing upgrade headers in request: map[{}]\n", names.join(" "));
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, text)));
    }
    let lines = headers.get_all(remotecommand::PROTOCOL_HEADER).iter();
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    match remotecommand::negotiate(lines.iter().map(|line| &**line), &Protocol::SPDY) {
        Negotiation::Chosen(protocol) => Ok((switching(protocol), Transport::Spdy(protocol))),
        Negotiation::Missing => {
            Err(Box::new(plain(StatusCode::BAD_REQUEST, remotecommand::missing_body(headers.keys_len()))))
        }
        Negotiation::NoCommon { client } => {
            let text = remotecommand::no_common_body(&client, &Protocol::SPDY);
            let mut answer = plain(StatusCode::FORBIDDEN, text);
            for protocol in Protocol::SPDY {
                let name = HeaderValue::from_static(protocol.name());
                answer.headers_mut().append(remotecommand::ACCEPTED_HEADER, name);
            }
            Err(Box::new(answer))
        }
    }
}

/// The 101 of `protocol.md` 5.1; the date is hyper's.
fn switching(protocol: Protocol) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    headers.insert(remotecommand::PROTOCOL_HEADER, HeaderValue::from_static(protocol.name()));
    answer
}

/// The 101 of `protocol.md` 6.2, and what the client's choice means.
fn websocket(
    method: &Method,
    headers: &HeaderMap,
    streaming: Streaming,
) -> Result<(Answer, Transport), Refusal> {
    let challenge = Challenge::read(method, headers)?;
    let served = streaming.subprotocols(challenge.protocols());
    let answer = challenge.choose(&served)?;
    let subprotocol = Subprotocol::from_name(answer.protocol()).ok_or(Refusal::Protocol)?;
    let mut switching = Response::new(Full::default());
    *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in answer.headers() {
        // Names of ours and base64: both are fit for headers.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            switching.headers_mut().insert(name, value);
        }
    }
    Ok((switching, Transport::WebSocket(subprotocol)))
}

/// The answer of Go's WebSocket server, which says nothing to a client without a known subprotocol.
fn refused(refusal: Refusal) -> Answer {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let text = if refusal == Refusal::Protocol { String::new() } else { refusal.to_string() };
    let mut answer = plain(status, text);
    if refusal == Refusal::Version {
        let version = HeaderValue::from_static(handshake::VERSION);
        answer.headers_mut().insert(HeaderName::from_static("sec-websocket-version"), version);
    }
    answer
}

fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::from(text.into()));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, text);
    answer
}

/// Podgate's own environment stays outside: it may hold secrets, and containers do not see their runtime's.
fn environment(pod: &str, home: &Path, tty: bool, own: &[EnvVar]) -> Vec<(OsString, OsString)> {
    let mut env = vec![("HOSTNAME".into(), pod.into()), ("HOME".into(), home.into())];
    if tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    // Values taken from elsewhere (`valueFrom`) have nothing to be taken from.
    for variable in own.iter().filter(|variable| variable.value_from.is_none()) {
        let value = variable.value.as_deref().unwrap_or_default();
        let fits = !variable.name.is_empty() && !variable.name.contains(['=', '\0']) && !value.contains('\0');
        if fits {
            env.push((variable.name.as_str().into(), value.into()));
        }
    }
    env
}

/// Whether a name may become a folder's: Kubernetes allows no others.
fn is_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    name.len() <= MAX_NAME
        && name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
}

/// Whether a path is relative and leads nowhere but down.
fn is_below(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        && !path.as_os_str().as_encoded_bytes().contains(&0)
}

/// Resolves when none of these frames passed for `deadline`, at most twice that long after the last one.
async fn idle(frames: &AtomicU64, deadline: Duration) {
    loop {
        let before = frames.load(Ordering::Relaxed);
        sleep(deadline).await;
        if frames.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
