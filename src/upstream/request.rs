//! The head of the upgrade request that a kubelet sees.
//!
//! Written out here rather than by an HTTP client, because its order and case are part of the promise: `Host`,
//! `User-Agent` and `Content-Length`, then the rest sorted by name in Go's canonical case.
//! Source: `protocol.md` 3.2 and 4.2 (Go net/http `Request.Write`).

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::ClientHead;
use crate::locate::Place;
use crate::request::{IMPERSONATION_PREFIX, Subresource};
use crate::wire::http1::canonical;

/// What Go's `url.QueryEscape` leaves alone, besides letters and digits; a blank becomes `+`.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// A path segment, as strictly as a query: Kubernetes names hold nothing that needs more.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Front-proxy headers: whoever speaks to podgate cannot speak to a kubelet as somebody else.
const REMOTE: [&str; 3] = ["x-remote-user", "x-remote-group", "x-remote-uid"];
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// How a subprotocol that is a bearer token begins.
const BEARER: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// The whole head, blank line included.
pub(super) fn head(place: &Place, client: &ClientHead<'_>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    let mut line = |parts: &[&[u8]]| {
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(b"\r\n");
    };
    line(&[client.method.as_str().as_bytes(), b" ", target(place).as_bytes(), b" HTTP/1.1"]);
    let value = |name, absent: &'static [u8]| client.headers.get(name).map_or(absent, HeaderValue::as_bytes);
    line(&[b"Host: ", value(header::HOST, b"")]);
    line(&[b"User-Agent: ", value(header::USER_AGENT, b"Go-http-client/1.1")]);
    if *client.method == Method::POST {
        line(&[b"Content-Length: 0"]);
    }
    let mut rest: Vec<(String, &[u8])> = client
        .headers
        .iter()
        .filter(|(name, value)| passes(name, value))
        .map(|(name, value)| (canonical(name.as_str()), value.as_bytes()))
        .collect();
    let forwarded = forwarded_for(client);
    rest.push(("X-Forwarded-For".to_owned(), &forwarded));
    // Stable: several lines of one name keep their order.
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, value) in rest {
        line(&[name.as_bytes(), b": ", value]);
    }
    line(&[]);
    out
}

/// Whether a client's header goes on to the kubelet.
fn passes(name: &HeaderName, value: &HeaderValue) -> bool {
    let not_copied = [
        header::HOST,
        header::USER_AGENT,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TRAILER,
        HeaderName::from_static("x-forwarded-for"),
    ];
    let text = name.as_str();
    !(not_copied.contains(name)
        || *name == header::AUTHORIZATION
        || *name == header::PROXY_AUTHORIZATION
        || (*name == header::SEC_WEBSOCKET_PROTOCOL && carries_token(value))
        || text.starts_with(IMPERSONATION_PREFIX)
        || REMOTE.contains(&text)
        || text.starts_with(REMOTE_EXTRA))
}

/// Whether a list of WebSocket subprotocols has a bearer token in it (`protocol.md` 6.2).
fn carries_token(value: &HeaderValue) -> bool {
    value.as_bytes().windows(BEARER.len()).any(|window| window.eq_ignore_ascii_case(BEARER))
}

/// Earlier hops joined with `, `, then the client's address without its port.
fn forwarded_for(client: &ClientHead<'_>) -> Vec<u8> {
    let mut hops: Vec<Vec<u8>> =
        client.headers.get_all("x-forwarded-for").iter().map(|value| value.as_bytes().to_vec()).collect();
    hops.push(client.peer.ip().to_canonical().to_string().into_bytes());
    hops.join(&b", "[..])
}

/// Path and query for the kubelet: parameters sorted by name, form-encoded, false flags left out.
fn target(place: &Place) -> String {
    let exec = place.exec();
    let segment = |text: &str| percent_encode(text.as_bytes(), SEGMENT).to_string();
    let pod = format!("{}/{}", segment(&exec.namespace), segment(&exec.pod));
    let mut pairs: Vec<String> = Vec::new();
    for argument in &exec.command {
        pairs.push(format!("command={}", percent_encode(argument, QUERY).to_string().replace(' ', "+")));
    }
    for (asked, name) in
        [(exec.stderr, "error=1"), (exec.stdin, "input=1"), (exec.stdout, "output=1"), (exec.tty, "tty=1")]
    {
        if asked {
            pairs.push(name.to_owned());
        }
    }
    if !exec.ports.is_empty() {
        let ports: Vec<String> = exec.ports.iter().map(u16::to_string).collect();
        pairs.push(format!("port={}", ports.join("%2C")));
    }
    let path = match exec.subresource {
        Subresource::Exec => format!("/exec/{pod}/{}", segment(place.container())),
        Subresource::Attach => format!("/attach/{pod}/{}", segment(place.container())),
        Subresource::PortForward => format!("/portForward/{pod}"),
    };
    if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
}
