//! Upstream: dials the far side of a place, asks it for the upgrade, and keeps every byte it answers.
//!
//! In the flow: the last stage before a session. The far side is the kubelet itself, which knows nobody but podgate; or
//! the API server, for clusters whose kubelets cannot be reached, which is told who the caller is by impersonation. The
//! answer's bytes are remembered as they came, because a 101 is relayed to the client byte for byte and bytes that follow
//! its head belong to the session. An answer of 400 or more is handed back to be echoed; anything else, redirects first
//! of all, is refused and never shown or followed. Invariants: the client's credentials and its query never leave
//! podgate; the far side's certificate is verified by the TLS configuration given, which is taken anew for each session, in a
//! handshake of which this one may be the follower (`resume`).
//! Source: `protocol.md` 3.1, 3.2, 4.2, 4.3 (apimachinery `pkg/util/proxy/{upgradeaware,dial}.go`).

mod apiserver;
mod carriage;
mod request;
mod resume;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::debug;

pub use apiserver::{ApiServer, Server};
pub use carriage::{Carriage, Switched, Unrecordable};

use crate::cluster::{self, impersonate};
use crate::config::Translate;
use crate::listen;
use crate::locate::{FarSide, HostPort, Place, Towards};
use crate::reload::Live;
use crate::secret::Secret;
use crate::status::Refusal;
use crate::tap::Tapped;
use crate::tls::ahead::Ahead;
use crate::wire::http1::{self, ResponseHead};
use crate::wire::portforward::MAX_PORTS;
use resume::Resume;

/// First read of an answer, in bytes: a 101 head is a quarter of it.
const FIRST_READ: usize = 1024;

/// Deadlines and socket options towards far sides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For name resolution and TCP connect together.
    pub connect_timeout: Duration,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the request's first byte to the end of the answer's head.
    pub upgrade_timeout: Duration,
    /// Silence after which TCP keepalive probes begin.
    pub keepalive: Duration,
    /// When clients of WebSocket v5 are translated.
    pub translate: Translate,
}

/// What the client's request contributes to the one the far side sees.
#[derive(Debug)]
pub struct ClientHead<'a> {
    /// `GET` or `POST`.
    pub method: &'a http::Method,
    /// All headers the client sent; one of them is `Host`.
    pub headers: &'a http::HeaderMap,
    /// The client's address, for `X-Forwarded-For`.
    pub peer: SocketAddr,
    /// What becomes of it.
    pub carriage: &'a Carriage,
}

/// The way to far sides.
#[derive(Clone)]
pub enum Route {
    /// Directly to kubelets.
    Kubelet {
        /// With podgate's own certificate, if it has one.
        tls: Live<ClientConfig>,
        /// A service account's token, to be known by it.
        token: Option<Live<Secret>>,
        /// What their certificates have to cover, where that is not the address dialled.
        server_name: Option<ServerName<'static>>,
    },
    /// Through the API server, as the caller.
    ApiServer(Arc<dyn ApiServer>),
}

/// Opens far sides.
pub struct Upstream {
    route: Route,
    settings: Settings,
    resume: Resume,
}

/// One request, ready to be sent.
struct Call {
    addr: HostPort,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    request: BytesMut,
}

/// The connection to a far side. Boxed, as a session's futures hand it on.
pub type FarStream = Box<TlsStream<Ahead<TcpStream>>>;

/// A far side that answered.
#[derive(Debug)]
pub struct Far {
    /// The connection; everything read from it so far is the head and `first`.
    pub io: FarStream,
    /// The parsed head.
    pub head: ResponseHead,
    /// What came behind the head.
    pub first: Bytes,
}

/// The far side's answer, if it is one that a client may see.
pub enum Answer {
    /// 101: a session.
    Switched(Far, Switched),
    /// 400 or more: to be echoed, then both sides are closed.
    Refused(Far),
}

/// Why there is no answer to relay. Public texts are Go's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection within the deadline.
    #[error("dial tcp {0}: i/o timeout")]
    ConnectLate(HostPort),
    /// No connection.
    #[error("dial tcp {addr}: {}", connect_text(source))]
    Connect {
        /// Where to.
        addr: HostPort,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The host is no name a certificate could be for.
    #[error("dial tcp: lookup {0}: no such host")]
    BadHost(String),
    /// No TLS within the deadline.
    #[error("net/http: TLS handshake timeout")]
    HandshakeLate,
    /// No TLS; a certificate that cannot be verified, mostly.
    #[error("tls: {0}")]
    Handshake(#[source] io::Error),
    /// The request could not be written.
    #[error("write the upgrade request")]
    Send(#[source] io::Error),
    /// The answer could not be read.
    #[error("read the answer to the upgrade request")]
    Receive(#[source] io::Error),
    /// The connection ended before the head did.
    #[error("unexpected EOF")]
    Closed,
    /// The head is none.
    #[error(transparent)]
    Malformed(http1::Error),
    /// No head within the deadline.
    #[error("the far side did not answer the upgrade request within {0:?}")]
    AnswerLate(Duration),
    /// An answer that is neither 101 nor an error.
    #[error("invalid upgrade response: status code {0}")]
    NoUpgrade(u16),
    /// A 101 to something else than was asked for.
    #[error("unable to upgrade: missing upgrade headers in response")]
    OtherUpgrade,
    /// A 101 with an extension, which nobody asked for.
    #[error("invalid upgrade response: unexpected WebSocket extension")]
    Extensions,
    /// More ports than there are channels for.
    #[error("at most {MAX_PORTS} ports can be forwarded over WebSocket, not {0}")]
    TooManyPorts(usize),
    /// A 101 to a subprotocol that nobody knows.
    #[error("invalid upgrade response: unknown subprotocol {0:?}")]
    Subprotocol(String),
    /// No connection to the API server.
    #[error("reach the API server")]
    ApiServer(#[source] Box<Error>),
    /// There is nothing that podgate could prove itself to the API server with.
    #[error("get credentials for the API server")]
    Credentials(#[source] cluster::Error),
    /// 401. It is podgate that is not known, not the caller, who would be sent away to log in again.
    #[error("the API server, or the kubelet behind it, does not accept podgate's own credentials")]
    Unauthenticated,
    /// There is no telling the API server who the caller is.
    #[error(transparent)]
    Impersonate(#[from] impersonate::Error),
    /// The place is not on the route, which only a mistake in the wiring can make so.
    #[error("no route to the far side: {0}")]
    NoRoute(FarSide),
}

// === impl Route ===

impl Route {
    /// To kubelets, with a TLS configuration that stays.
    pub fn kubelet(tls: Arc<ClientConfig>) -> Self {
        Self::Kubelet { tls: Live::fixed(tls), token: None, server_name: None }
    }

    /// What there is to be found on this route; nodes by addresses of these types.
    pub fn towards(&self, address_types: Vec<String>) -> Towards {
        match self {
            Self::Kubelet { .. } => Towards::Kubelets { address_types },
            Self::ApiServer(_) => Towards::ApiServer,
        }
    }
}

// === impl Upstream ===

impl Upstream {
    /// Goes this way.
    pub fn new(route: Route, settings: Settings) -> Self {
        Self { route, settings, resume: Resume::default() }
    }

    /// When clients of WebSocket v5 are translated.
    pub fn translate(&self) -> Translate {
        self.settings.translate
    }

    /// Dials the far side of the place that is tapped, and asks for the upgrade that carries what the client asked for.
    /// Dropping the future closes the connection.
    ///
    /// # Errors
    /// When there is no answer that the client may see.
    pub async fn upgrade(&self, tapped: &Tapped, client: &ClientHead<'_>) -> Result<Answer, Error> {
        let place = tapped.place();
        let answer = self.upgrade_as(tapped, client).await?;
        let other = match &answer {
            Answer::Refused(far) => client.carriage.fallback(&far.head, client, place),
            Answer::Switched(..) => None,
        };
        match other {
            Some(carriage) => {
                debug!(far.side = %place.far_side(), "the far side refused WebSocket, asking for SPDY");
                drop(answer);
                self.upgrade_as(tapped, &ClientHead { carriage: &carriage, ..*client }).await
            }
            None => Ok(answer),
        }
    }

    async fn upgrade_as(&self, tapped: &Tapped, client: &ClientHead<'_>) -> Result<Answer, Error> {
        let place = tapped.place();
        let Call { addr, name, tls, request } = self.call(place, client).await?;
        let through_api_server = *place.far_side() == FarSide::ApiServer;
        let mut io = self.connect(&addr, name, tls).await.map_err(|error| match through_api_server {
            true => Error::ApiServer(Box::new(error)),
            false => error,
        })?;
        let within = self.settings.upgrade_timeout;
        // Over WebSocket a command begins at once, in SPDY once its streams are open.
        tapped.keep(*client.carriage == Carriage::WebSocket);
        let answered =
            timeout(within, ask(&mut io, &request)).await.map_err(|_| Error::AnswerLate(within))?;
        let (head, mut raw) = answered?;
        let first = raw.split_off(head.len);
        if head.status >= 400 {
            tapped.forgo();
        }
        match head.status {
            101 => {
                let switched = client.carriage.switched(place.exec(), &head, raw)?;
                Ok(Answer::Switched(Far { io, head, first }, switched))
            }
            401 if through_api_server => Err(Error::Unauthenticated),
            400.. => {
                // Told now: once the client's connection is taken over, there is no Status left to say it with.
                head.body_length().map_err(Error::Malformed)?;
                Ok(Answer::Refused(Far { io, head, first }))
            }
            other => Err(Error::NoUpgrade(other)),
        }
    }

    /// Whom to ask for a session at `place`, and how. Everything that may be reloaded is taken here, once.
    async fn call(&self, place: &Place, client: &ClientHead<'_>) -> Result<Call, Error> {
        match (&self.route, place.far_side()) {
            (Route::Kubelet { token, .. }, FarSide::Kubelet { addr, .. }) => {
                let (tls, name) = self.kubelet(addr)?;
                let token = token.as_ref().map(|token| token.get().bearer());
                let request = request::to_kubelet(place, addr, client, token.as_ref());
                Ok(Call { addr: addr.clone(), name, tls, request })
            }
            (Route::ApiServer(api), FarSide::ApiServer) => {
                let (server, authorization) = (api.server(), api.authorization());
                let addr = server.addr();
                let authorization = authorization.await.map_err(Error::Credentials)?;
                let request = request::to_api_server(place, &server, client, authorization.as_ref())?;
                Ok(Call { addr, name: server.name, tls: server.tls, request })
            }
            (_, far_side) => Err(Error::NoRoute(far_side.clone())),
        }
    }

    /// A connection to a kubelet, with podgate's certificate. Dropping the future closes it.
    ///
    /// # Errors
    /// Those of connecting, whose texts are complete.
    pub(crate) async fn dial(&self, addr: &HostPort) -> Result<FarStream, Error> {
        let (tls, name) = self.kubelet(addr)?;
        self.connect(addr, name, tls).await
    }

    /// How a kubelet is spoken to, and what its certificate has to cover.
    fn kubelet(&self, addr: &HostPort) -> Result<(Arc<ClientConfig>, ServerName<'static>), Error> {
        let Route::Kubelet { tls, server_name, .. } = &self.route else {
            return Err(Error::NoRoute(FarSide::Kubelet { addr: addr.clone(), speaks_v5: false }));
        };
        let name = match server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(addr.host.clone()).map_err(|_| Error::BadHost(addr.host.clone()))?,
        };
        Ok((tls.get(), name))
    }

    async fn connect(
        &self,
        addr: &HostPort,
        name: ServerName<'static>,
        tls: Arc<ClientConfig>,
    ) -> Result<FarStream, Error> {
        let connect = TcpStream::connect((addr.host.as_str(), addr.port));
        let failed = |source| Error::Connect { addr: addr.clone(), source };
        let tcp = match timeout(self.settings.connect_timeout, connect).await {
            Ok(tcp) => tcp.map_err(failed)?,
            Err(_) => return Err(Error::ConnectLate(addr.clone())),
        };
        listen::tune(&tcp, self.settings.keepalive).map_err(failed)?;
        let tls = TlsConnector::from(self.resume.with(tls, addr));
        match timeout(self.settings.handshake_timeout, tls.connect(name, Ahead::new(tcp))).await {
            Ok(tls) => tls.map(Box::new).map_err(Error::Handshake),
            Err(_) => Err(Error::HandshakeLate),
        }
    }
}

/// Writes the request and reads until the answer's head is whole, bounded by [`http1::MAX_HEAD`].
async fn ask(io: &mut FarStream, request: &[u8]) -> Result<(ResponseHead, Bytes), Error> {
    io.write_all(request).await.map_err(Error::Send)?;
    io.flush().await.map_err(Error::Send)?;
    let mut raw = BytesMut::with_capacity(FIRST_READ);
    loop {
        match io.read_buf(&mut raw).await {
            Ok(0) => return Err(Error::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Error::Closed),
            Err(error) => return Err(Error::Receive(error)),
        }
        if let Some(head) = ResponseHead::parse(&raw).map_err(Error::Malformed)? {
            return Ok((head, raw.freeze()));
        }
    }
}

/// A connect failure as Go's net package prints it.
fn connect_text(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        io::ErrorKind::ConnectionReset => "connect: connection reset by peer".into(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".into(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".into(),
        io::ErrorKind::TimedOut => "connect: connection timed out".into(),
        _ => error.to_string(),
    }
}

// === impl Error ===

impl Error {
    /// What the client is told: mostly 500 without a reason, as upstream has it.
    pub fn refusal(&self) -> Refusal {
        let text = match self {
            Self::ApiServer(source) => {
                return Refusal::Unavailable(format!("the API server cannot be reached: {source}"));
            }
            Self::Credentials(source) => return source.refusal(),
            Self::Impersonate(error) => return error.refusal(),
            Self::ConnectLate(_)
            | Self::Connect { .. }
            | Self::BadHost(_)
            | Self::HandshakeLate
            | Self::Handshake(_) => format!("error dialing backend: {self}"),
            Self::Send(source) => format!("error sending request: {source}"),
            Self::Receive(source) => source.to_string(),
            Self::Closed
            | Self::Malformed(_)
            | Self::AnswerLate(_)
            | Self::NoUpgrade(_)
            | Self::OtherUpgrade
            | Self::Extensions
            | Self::TooManyPorts(_)
            | Self::Subprotocol(_)
            | Self::Unauthenticated
            | Self::NoRoute(_) => self.to_string(),
        };
        Refusal::Internal(text)
    }
}
