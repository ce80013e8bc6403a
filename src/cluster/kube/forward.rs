//! Forward: whatever is no session goes on to the API server, as the caller.
//!
//! In the flow: the door hands over a request whose caller is known; it is sent on with podgate's own
//! credentials and the caller's identity in impersonation headers, and the API server decides whether they
//! may. Bodies are streamed both ways, an upgrade that the API server agrees to becomes a tunnel.
//! Invariants: no header that the client sends becomes part of the identity; nothing that could be a session
//! is forwarded, because a session takes the way that authorizes and records it; an answer that breaks off is
//! never passed on as one that is whole.
//! Source: `protocol.md` 4.2 and 4.6 (headers, pass-through), 8.3 (impersonation).

mod body;
mod headers;
mod path;
mod tunnel;

use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use tracing::{Instrument, error, info};

use super::connect::Connection;
use crate::cluster::{self, Body, User, impersonate};
use crate::drain::Drain;
use crate::listen::Via;
use crate::request::{Ask, Upgrade};
use crate::status::{About, Refusal, go_quote};
use crate::telemetry::chain;
use body::{Exchange, Fault};

/// Whatever carries a request to the API server, and adds podgate's credentials to it.
pub trait ApiServer: Sync {
    /// Sends a request, whose URI is a path and a query, and returns the answer as soon as its head is there.
    fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, cluster::Error>> + Send;
}

/// Limits of what is forwarded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes of a request body, unless the request is long-running; beyond it 413.
    pub max_body_bytes: u64,
    /// How long the body of an answer may stand still, unless the request is long-running.
    pub stall_timeout: Duration,
    /// Bytes per second that each direction of an upgraded connection may move; 0 is no limit.
    pub max_bytes_per_second: u64,
}

/// Sends requests on.
#[derive(Debug, Clone)]
pub struct Forward {
    settings: Settings,
    drain: Drain,
}

/// Why a request was not sent on, or its answer not passed on.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Identity(#[from] impersonate::Error),
    #[error("too many header lines to pass on")]
    TooManyHeaders,
    #[error("a session asked for by a path that is not its own")]
    HiddenSession,
    #[error("a session asked of the kubelet of node {node}")]
    KubeletSession { node: String },
    #[error("no path to forward")]
    NoPath,
    #[error("an upgrade request has no body")]
    UpgradeWithBody,
    #[error("an upgrade to HTTP is not forwarded")]
    UpgradeToHttp,
    #[error("a request body of more than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the request body broke off")]
    BrokenBody(#[source] cluster::Error),
    #[error("the API server switched protocols without being asked to")]
    Switched,
    #[error("the API server does not know podgate: it answered 401 Unauthorized")]
    Unknown,
    #[error("forward a request")]
    Send(#[source] cluster::Error),
}

// === impl ApiServer ===

impl ApiServer for Connection {
    fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, cluster::Error>> + Send {
        Self::send(self, request)
    }
}

// === impl Forward ===

impl Forward {
    /// Upgraded connections are tasks of `drain`.
    pub fn new(settings: Settings, drain: Drain) -> Self {
        Self { settings, drain }
    }

    /// Sends the request on as `user`, and returns the answer as soon as its head is there. Dropping the
    /// future drops the request.
    ///
    /// # Errors
    /// When the request is one that is not forwarded, or the API server gave no answer.
    pub async fn serve<S: ApiServer>(
        &self,
        server: &S,
        user: &User,
        ask: &Ask,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        self.forward(server, user, ask, request).await.map_err(|error| {
            let refusal = error.refusal();
            let (code, error) = (refusal.code().as_u16(), chain(&error));
            if code >= 500 {
                error!(refusal.code = code, error, "request not forwarded");
            } else {
                info!(refusal.code = code, error, "request refused");
            }
            refusal
        })
    }

    async fn forward<S: ApiServer>(
        &self,
        server: &S,
        user: &User,
        ask: &Ask,
        request: Request<Body>,
    ) -> Result<Response<Body>, Error> {
        path::check(ask)?;
        let (mut parts, body) = request.into_parts();
        let via = parts.extensions.remove::<Via>();
        let upgrade = match wants_upgrade(&parts) {
            true if !body.is_end_stream() => return Err(Error::UpgradeWithBody),
            true if leads_to_http(&parts.headers) => return Err(Error::UpgradeToHttp),
            true => parts.extensions.remove::<OnUpgrade>(),
            false => None,
        };
        let headers = headers::outgoing(&parts, user, via.as_ref().map(|via| via.peer), upgrade.is_some())?;
        let target = match (parts.uri.path_and_query(), &parts.method) {
            (Some(target), method) if target.path().starts_with('/') && *method != Method::CONNECT => target,
            _ => return Err(Error::NoPath),
        };

        let limit = (!ask.long_running()).then_some(self.settings.max_body_bytes);
        let too_large = limit.filter(|&limit| body.size_hint().lower() > limit);
        let exchange = Exchange::new(limit, self.drain.clone());
        let body = exchange.request(body, parts.headers.contains_key(header::EXPECT));
        if let Some(limit) = too_large {
            return Err(Error::TooLarge { limit });
        }
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = target.clone().into();
        *request.headers_mut() = headers;

        let response = server.send(request).await.map_err(|error| match exchange.fault() {
            // What the connection makes of a body that ends in an error is not what the client is to hear.
            Some(Fault::TooLarge(limit)) => Error::TooLarge { limit },
            Some(Fault::Broken) => Error::BrokenBody(error),
            None => Error::Send(error),
        })?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = upgrade.ok_or(Error::Switched)?;
            return Ok(self.switch(client, via, response));
        }
        // It is not the caller whom it does not know, and whose new token would not help.
        if response.status() == StatusCode::UNAUTHORIZED && !is_proxied(ask) {
            return Err(Error::Unknown);
        }
        let (mut parts, body) = response.into_parts();
        headers::answered(&mut parts.headers);
        parts.extensions.remove::<OnUpgrade>();
        // The version is that of the hop.
        parts.version = Version::default();
        let stall = (!ask.long_running()).then_some(self.settings.stall_timeout);
        Ok(Response::from_parts(parts, exchange.answer(body, stall)))
    }

    /// Passes a 101 on, and the two connections to a task that copies between them.
    fn switch(&self, client: OnUpgrade, via: Option<Via>, mut response: Response<Body>) -> Response<Body> {
        let far = hyper::upgrade::on(&mut response);
        let (rate, drain) = (self.settings.max_bytes_per_second, self.drain.clone());
        let task = async move {
            tunnel::run(client, far, rate, &drain).await;
            // Until here the connection keeps its place under the cap.
            drop(via);
        };
        self.drain.spawn(task.in_current_span());
        let (mut parts, _) = response.into_parts();
        headers::switched(&mut parts.headers);
        parts.version = Version::default();
        let nothing = http_body_util::Empty::new().map_err(|never| match never {});
        Response::from_parts(parts, nothing.boxed_unsync())
    }
}

/// Whether the answer is that of some application, and not the API server's.
fn is_proxied(ask: &Ask) -> bool {
    let resource = ask.attributes.resource.as_ref();
    ask.attributes.verb == "proxy" || resource.is_some_and(|resource| resource.subresource == "proxy")
}

/// Only HTTP/1.1 has upgrades (RFC 9110 section 7.8); without the name of a protocol there is nothing to
/// upgrade to.
fn wants_upgrade(parts: &http::request::Parts) -> bool {
    parts.version == Version::HTTP_11
        && parts.headers.contains_key(header::UPGRADE)
        && Upgrade::of(&parts.headers) != Upgrade::None
}

/// Whether the client wants to go on in HTTP. Requests inside an upgraded connection are seen by nobody here,
/// and on a connection that podgate has authenticated the first server behind it would take them for
/// podgate's own.
fn leads_to_http(headers: &HeaderMap) -> bool {
    let protocols =
        headers.get_all(header::UPGRADE).iter().flat_map(|value| value.as_bytes().split(|&b| b == b','));
    let mut names = protocols.map(|one| one.split(|&b| b == b'/').next().unwrap_or(one).trim_ascii());
    names.any(|name| {
        [&b"h2c"[..], b"h2", b"http", b"https", b"tls"].iter().any(|no| name.eq_ignore_ascii_case(no))
    })
}

// === impl Error ===

impl Error {
    fn refusal(&self) -> Refusal {
        match self {
            Self::Identity(error) => error.refusal(),
            Self::HiddenSession | Self::NoPath => Refusal::NoSuchPath,
            Self::KubeletSession { node } => Refusal::Forbidden {
                message: format!(
                    "nodes {} is forbidden: sessions are not opened through a node's proxy, use pods/exec, \
                     pods/attach or pods/portforward",
                    go_quote(node.as_bytes())
                ),
                about: About { name: node.clone(), kind: "nodes".into(), ..About::default() },
            },
            Self::UpgradeWithBody | Self::UpgradeToHttp | Self::TooManyHeaders | Self::BrokenBody(_) => {
                Refusal::BadRequest(self.to_string())
            }
            // Upstream's words.
            Self::TooLarge { limit } => {
                Refusal::TooLarge(format!("Request entity too large: limit is {limit}"))
            }
            Self::Switched | Self::Unknown => Refusal::Internal(self.to_string()),
            Self::Send(error) => error.refusal(),
        }
    }
}
