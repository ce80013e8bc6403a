//! Upgrade: the last check before the far side is dialled: is this an upgrade that podgate can carry, and how?
//!
//! A page in a browser may open a WebSocket to any host, and the browser adds the user's client certificate to it. So
//! where that is what a caller was known by, the `Origin` that the browser adds as well is looked at: a page of
//! podgate's own host may, any other has to be named in the settings. A token is nothing that a page has by itself.
//! Source: `protocol.md` 4.1, 6.2, 7.2; RFC 6455 section 10.2.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Version, header};
use http_body_util::BodyExt;
use tracing::info;

use crate::authn::Caller;
use crate::cluster::Body;
use crate::config::Translate;
use crate::locate::Place;
use crate::request::Upgrade;
use crate::status::{About, Refusal, go_quote};
use crate::upstream::Carriage;
use crate::wire::ws::handshake;

/// Text for a client that asks for something else than an upgrade (`protocol.md` 1.7).
const UPGRADE_REQUIRED: &str = "Upgrade request required";

/// Every origin.
const ANY: &str = "*";

/// Why a request is not carried.
pub(super) enum Error {
    /// A Status says it.
    Refused(Refusal),
    /// It is no WebSocket handshake; the answer is that of a WebSocket server.
    Handshake(handshake::Refusal),
}

/// How the session of this request is carried.
pub(super) fn carriage<B>(
    request: &Request<B>,
    place: &Place,
    origins: &[String],
    translate: Translate,
) -> Result<Carriage, Error> {
    let headers = request.headers();
    let refused = |refusal: Refusal| {
        info!(
            session.kind = place.exec().subresource.as_str(),
            reason = refusal.message(),
            "request refused"
        );
        Error::Refused(refusal)
    };
    let bad = |text: &str| refused(Refusal::BadRequest(text.to_owned()));
    let upgrade = Upgrade::of(headers);
    // RFC 9110 section 7.8: HTTP/1.0 has no upgrades, and hyper would not hand the connection over.
    if upgrade == Upgrade::None || request.version() != Version::HTTP_11 {
        return Err(bad(UPGRADE_REQUIRED));
    }
    let lines = |name| headers.get_all(name).iter().count();
    if lines(header::HOST) != 1 || lines(header::UPGRADE) != 1 {
        return Err(bad("an upgrade request has one Host and one Upgrade header"));
    }
    let length = headers.get(header::CONTENT_LENGTH).map_or(&b"0"[..], HeaderValue::as_bytes);
    if length != b"0" || headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(bad("an upgrade request has no body"));
    }
    if place.caller().is_ambient()
        && let Some(origin) = foreign_origin(headers, origins)
    {
        let pod = &place.exec().pod;
        let why = format!("pages of {origin} may not open sessions, api.allowedOrigins names those that may");
        return Err(refused(Refusal::Forbidden {
            message: format!("pods {} is forbidden: {why}", go_quote(pod.as_bytes())),
            about: About { name: pod.clone(), kind: "pods".into(), ..About::default() },
        }));
    }
    match upgrade {
        Upgrade::Spdy => Ok(Carriage::Spdy),
        Upgrade::WebSocket => {
            Carriage::of_websocket(request.method(), headers, place, translate).map_err(|refusal| {
                info!(reason = %refusal, "WebSocket handshake refused");
                Error::Handshake(refusal)
            })
        }
        Upgrade::Other | Upgrade::None => Err(bad("the protocols to upgrade to are SPDY/3.1 and websocket")),
    }
}

/// As [`carriage`] does, looks at the page that asks for an upgrade which is passed through: a watch of secrets, say.
pub(super) fn check_page(caller: &Caller, headers: &HeaderMap, origins: &[String]) -> Result<(), Refusal> {
    if !caller.is_ambient() || Upgrade::of(headers) == Upgrade::None {
        return Ok(());
    }
    let Some(origin) = foreign_origin(headers, origins) else { return Ok(()) };
    let why = format!("pages of {origin} may not upgrade, api.allowedOrigins names those that may");
    info!(reason = why, "request refused");
    Err(Refusal::Forbidden { message: format!("forbidden: {why}"), about: About::default() })
}

/// Takes a bearer token out of the WebSocket subprotocols, whether it was needed or not: nobody behind authentication
/// is to see it, and it must not hide what else is in the list (`protocol.md` 4.2 and 6.2).
pub(super) fn forget_token(headers: &mut HeaderMap) {
    let lines = headers.get_all(handshake::PROTOCOL_HEADER).iter().map(HeaderValue::as_bytes);
    let Some(rest) = handshake::without_bearer(lines) else { return };
    headers.remove(handshake::PROTOCOL_HEADER);
    // Parts of what were header values, joined by commas, are one.
    if let (false, Ok(rest)) = (rest.is_empty(), HeaderValue::from_maybe_shared(rest)) {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, rest);
    }
}

/// The origin of a page that may not open sessions, if that is where the request comes from.
fn foreign_origin(headers: &HeaderMap, allowed: &[String]) -> Option<String> {
    let host = headers.get(header::HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let foreign = |origin: &&HeaderValue| {
        let origin = origin.as_bytes();
        // The scheme is left out: there is only TLS here, and some clients say `http` whatever they use.
        let authority = origin.windows(3).position(|part| part == b"://").map(|at| &origin[at + 3..]);
        let own = authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host));
        let named = allowed.iter().any(|name| name == ANY || name.as_bytes().eq_ignore_ascii_case(origin));
        !own && !named
    };
    let origin = headers.get_all(header::ORIGIN).iter().find(foreign)?;
    Some(String::from_utf8_lossy(origin.as_bytes()).into_owned())
}

/// What a WebSocket server answers to what is no handshake.
pub(super) fn handshake_refused(refusal: handshake::Refusal) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(refusal.to_string()));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() =
        http::StatusCode::from_u16(refusal.status()).expect("a handshake is refused with a status of HTTP's");
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if refusal == handshake::Refusal::Version {
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static(handshake::VERSION));
    }
    response
}
