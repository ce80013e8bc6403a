//! Upstream: dials the kubelet of a place, asks it for the upgrade, and keeps every byte it answers.
//!
//! In the flow: the last stage before a session. The answer's bytes are remembered as they came, because a 101
//! is relayed to the client byte for byte and bytes that follow its head belong to the session. An answer of
//! 400 or more is handed back to be echoed; anything else, redirects first of all, is refused and never shown
//! or followed. Invariants: the client's credentials and its query never leave podgate; the kubelet's
//! certificate is always verified.
//! Source: `protocol.md` 3.1, 3.2, 4.2, 4.3 (apimachinery `pkg/util/proxy/{upgradeaware,dial}.go`).

mod carriage;
mod request;

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

pub use carriage::{Carriage, Switched};

use crate::config::Translate;
use crate::listen;
use crate::locate::{KubeletAddr, Place};
use crate::status::Refusal;
use crate::wire::http1::{self, ResponseHead};
use crate::wire::portforward::MAX_PORTS;

/// First read of an answer, in bytes: a 101 head is a quarter of it.
const FIRST_READ: usize = 1024;

/// Deadlines and socket options towards kubelets.
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

/// Opens far sides.
pub struct Upstream {
    tls: TlsConnector,
    settings: Settings,
}

/// A far side that answered.
#[derive(Debug)]
pub struct Far {
    /// The connection; everything read from it so far is the head and `first`.
    pub io: TlsStream<TcpStream>,
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
    ConnectLate(KubeletAddr),
    /// No connection.
    #[error("dial tcp {addr}: {}", connect_text(source))]
    Connect {
        /// Where to.
        addr: KubeletAddr,
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
    #[error("the kubelet did not answer the upgrade request within {0:?}")]
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
}

// === impl Upstream ===

impl Upstream {
    /// Dials with this TLS configuration, whose certificate is podgate's own.
    pub fn new(tls: Arc<ClientConfig>, settings: Settings) -> Self {
        Self { tls: TlsConnector::from(tls), settings }
    }

    /// When clients of WebSocket v5 are translated.
    pub fn translate(&self) -> Translate {
        self.settings.translate
    }

    /// Dials the kubelet of `place` and asks for the upgrade that carries what the client asked for. Dropping the
    /// future closes the connection.
    ///
    /// # Errors
    /// When there is no answer that the client may see.
    pub async fn upgrade(&self, place: &Place, client: &ClientHead<'_>) -> Result<Answer, Error> {
        let answer = self.upgrade_as(place, client).await?;
        let other = match &answer {
            Answer::Refused(far) => client.carriage.fallback(far.head.status, client, place.exec()),
            Answer::Switched(..) => None,
        };
        match other {
            Some(carriage) => {
                debug!(kubelet.addr = %place.kubelet(), "the kubelet refused WebSocket, asking for SPDY");
                drop(answer);
                self.upgrade_as(place, &ClientHead { carriage: &carriage, ..*client }).await
            }
            None => Ok(answer),
        }
    }

    async fn upgrade_as(&self, place: &Place, client: &ClientHead<'_>) -> Result<Answer, Error> {
        let mut io = self.dial(place.kubelet()).await?;
        let request = request::head(place, client);
        let within = self.settings.upgrade_timeout;
        let answered =
            timeout(within, ask(&mut io, &request)).await.map_err(|_| Error::AnswerLate(within))?;
        let (head, mut raw) = answered?;
        let first = raw.split_off(head.len);
        match head.status {
            101 => {
                let switched = client.carriage.switched(place.exec(), &head, raw)?;
                Ok(Answer::Switched(Far { io, head, first }, switched))
            }
            400.. => {
                // Told now: once the client's connection is taken over, there is no Status left to say it with.
                head.body_length().map_err(Error::Malformed)?;
                Ok(Answer::Refused(Far { io, head, first }))
            }
            other => Err(Error::NoUpgrade(other)),
        }
    }

    /// A connection to a kubelet, with podgate's certificate. Dropping the future closes it.
    ///
    /// # Errors
    /// Those of connecting, whose texts are complete.
    pub(crate) async fn dial(&self, addr: &KubeletAddr) -> Result<TlsStream<TcpStream>, Error> {
        let name = ServerName::try_from(addr.host.clone()).map_err(|_| Error::BadHost(addr.host.clone()))?;
        let connect = TcpStream::connect((addr.host.as_str(), addr.port));
        let failed = |source| Error::Connect { addr: addr.clone(), source };
        let tcp = match timeout(self.settings.connect_timeout, connect).await {
            Ok(tcp) => tcp.map_err(failed)?,
            Err(_) => return Err(Error::ConnectLate(addr.clone())),
        };
        listen::tune(&tcp, self.settings.keepalive).map_err(failed)?;
        match timeout(self.settings.handshake_timeout, self.tls.connect(name, tcp)).await {
            Ok(tls) => tls.map_err(Error::Handshake),
            Err(_) => Err(Error::HandshakeLate),
        }
    }
}

/// Writes the request and reads until the answer's head is whole, bounded by [`http1::MAX_HEAD`].
async fn ask(io: &mut TlsStream<TcpStream>, request: &[u8]) -> Result<(ResponseHead, Bytes), Error> {
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
    /// What the client is told: 500 without a reason, as upstream has it.
    pub fn refusal(&self) -> Refusal {
        Refusal::Internal(match self {
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
            | Self::Subprotocol(_) => self.to_string(),
        })
    }
}
