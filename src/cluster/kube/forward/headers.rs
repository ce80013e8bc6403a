//! The headers of a forwarded request and of its answer.
//!
//! What the client said about identities is left out whatever it says, then what is between the client and
//! podgate alone, and only then podgate's own lines are added: nothing the client names can take one of these
//! away.
//! Source: `protocol.md` 4.2, 4.6, 8.3; RFC 9110 section 7.6.1; client-go `transport/round_trippers.go`.

use std::net::SocketAddr;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Error;
use crate::cluster::{User, impersonate};
use crate::request::IMPERSONATION_PREFIX;

/// How the headers of an authenticating front proxy begin.
const REMOTE_PREFIX: &str = "x-remote-";

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What is between two neighbours, besides what `Connection` names. Not `Trailer`: it says what comes after
/// the body, and trailers are passed on.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a client cannot take away by naming it: what podgate itself, or a proxy before it, has a use for.
const KEPT: [HeaderName; 3] = [header::CONTENT_LENGTH, HeaderName::from_static("audit-id"), FORWARDED_FOR];

/// The request's headers for the API server.
pub(super) fn outgoing(
    request: &Parts,
    user: &User,
    peer: Option<SocketAddr>,
    upgrade: bool,
) -> Result<HeaderMap, Error> {
    let client = &request.headers;
    let named = named_by_connection(client);
    let mut out = HeaderMap::new();
    for (name, value) in client {
        if passes(name) && !named.contains(name) {
            add(&mut out, name.clone(), value.clone())?;
        }
    }
    // HTTP/2 may have split it (RFC 9113 section 8.2.3); HTTP/1.1 has one line (RFC 6265 section 5.4).
    join(&mut out, header::COOKIE, None, b"; ");
    let peer = peer.and_then(|peer| HeaderValue::from_str(&peer.ip().to_canonical().to_string()).ok());
    join(&mut out, FORWARDED_FOR, peer, b", ");
    if has_token(client, &header::TE, b"trailers") {
        out.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if upgrade {
        out.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        for protocol in client.get_all(header::UPGRADE) {
            add(&mut out, header::UPGRADE, protocol.clone())?;
        }
    }
    for (name, value) in impersonate::headers(user)? {
        add(&mut out, name, value)?;
    }
    Ok(out)
}

/// Leaves out of an answer what is between podgate and the API server.
pub(super) fn answered(headers: &mut HeaderMap) {
    for name in named_by_connection(headers) {
        headers.remove(name);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// As [`answered`], for a 101, whose upgrade is the client's as well.
pub(super) fn switched(headers: &mut HeaderMap) {
    let protocol = headers.get(header::UPGRADE).cloned();
    answered(headers);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
    }
}

/// Whether a client's header goes on as it is. A cookie does: it is some application's behind `/proxy`, and
/// upstream passes it on; none of podgate's own doors gives one.
fn passes(name: &HeaderName) -> bool {
    // Some servers take a low line for a dash.
    let text = name.as_str().replace('_', "-");
    !(HOP_BY_HOP.contains(name)
        // It is the server's own that is sent: see `Connection::send`.
        || *name == header::HOST
        || *name == header::AUTHORIZATION
        // It was podgate's to answer: the body is asked for once there is somebody to take it.
        || *name == header::EXPECT
        || text.starts_with(IMPERSONATION_PREFIX)
        || text.starts_with(REMOTE_PREFIX))
}

fn add(out: &mut HeaderMap, name: HeaderName, value: HeaderValue) -> Result<(), Error> {
    out.try_append(name, value).map(drop).map_err(|_| Error::TooManyHeaders)
}

/// Makes one line of all lines of this name and one more value.
fn join(out: &mut HeaderMap, name: HeaderName, more: Option<HeaderValue>, separator: &[u8]) {
    let lines: Vec<&[u8]> = out.get_all(&name).iter().chain(more.iter()).map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return;
    }
    let Ok(mut joined) = HeaderValue::from_bytes(&lines.join(separator)) else { return };
    joined.set_sensitive(out.get(&name).is_some_and(HeaderValue::is_sensitive));
    out.insert(name, joined);
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter();
    lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    tokens(headers, name).any(|have| have.eq_ignore_ascii_case(token))
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let named = tokens(headers, &header::CONNECTION).filter_map(|token| HeaderName::from_bytes(token).ok());
    named.filter(|name| !KEPT.contains(name)).collect()
}

#[cfg(test)]
mod tests;
