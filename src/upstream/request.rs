//! The head of the upgrade request that a kubelet sees.
//!
//! It is the client's, without what names the client; rewritten to SPDY for a tunnel; and for a translated session one
//! of podgate's own, with nothing of the client's in it.
//! Written out here rather than by an HTTP client, because its order and case are part of the promise: `Host`,
//! `User-Agent` and `Content-Length`, then the rest sorted by name in Go's canonical case.
//! Source: `protocol.md` 3.2, 4.2, 7.3 and 7.4 (Go net/http `Request.Write`).

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::{Carriage, ClientHead};
use crate::locate::Place;
use crate::request::{IMPERSONATION_PREFIX, Subresource};
use crate::wire::http1::canonical;
use crate::wire::portforward;
use crate::wire::remotecommand::{PROTOCOL_HEADER, Protocol};

/// What Go's `url.QueryEscape` leaves alone, besides letters and digits; a blank becomes `+`.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// A path segment, as strictly as a query: Kubernetes names hold nothing that needs more.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The header of what is spoken inside SPDY, as [`PROTOCOL_HEADER`] writes it.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// How Go's HTTP client names itself, and upstream a client that says nothing.
const GO_AGENT: &[u8] = b"Go-http-client/1.1";

/// Front-proxy headers: whoever speaks to podgate cannot speak to a kubelet as somebody else.
const REMOTE: [&str; 3] = ["x-remote-user", "x-remote-group", "x-remote-uid"];
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// What a translated session offers the kubelet, in client-go's order. No known kubelet takes the first.
const TRANSLATED: [Protocol; 5] = [Protocol::V5, Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1];

/// The whole head, blank line included.
pub(super) fn head(place: &Place, client: &ClientHead<'_>) -> BytesMut {
    let value = |name, absent: &'static [u8]| client.headers.get(name).map_or(absent, HeaderValue::as_bytes);
    let (host, agent) = (value(header::HOST, b""), value(header::USER_AGENT, GO_AGENT));
    match client.carriage {
        Carriage::Spdy | Carriage::WebSocket => {
            write(client.method, place, host, agent, clients_own(client, |_| true))
        }
        Carriage::Translated(_) => {
            let host = place.kubelet().to_string();
            let protocols = TRANSLATED.iter().map(|protocol| protocol.name().as_bytes());
            write(&Method::POST, place, host.as_bytes(), GO_AGENT, to_spdy(protocols))
        }
        Carriage::Tunnelled(challenge) => {
            let rewritten = [
                header::UPGRADE,
                header::SEC_WEBSOCKET_KEY,
                header::SEC_WEBSOCKET_VERSION,
                header::SEC_WEBSOCKET_PROTOCOL,
                STREAM_PROTOCOL,
            ];
            let mut lines = clients_own(client, |name| !rewritten.contains(name));
            let protocols = portforward::tunnelled(challenge.protocols()).map(str::as_bytes);
            // The client's own `Connection` stays.
            lines.extend(to_spdy(protocols).into_iter().filter(|(name, _)| name != "Connection"));
            write(&Method::POST, place, host, agent, lines)
        }
    }
}

/// Name, in Go's canonical case, and value of a header.
type Line = (String, Vec<u8>);

/// Writes a head: what Go writes first, then the rest sorted by name.
fn write(method: &Method, place: &Place, host: &[u8], agent: &[u8], mut rest: Vec<Line>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    let mut line = |parts: &[&[u8]]| {
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(b"\r\n");
    };
    line(&[method.as_str().as_bytes(), b" ", target(place).as_bytes(), b" HTTP/1.1"]);
    line(&[b"Host: ", host]);
    line(&[b"User-Agent: ", agent]);
    if *method == Method::POST {
        line(&[b"Content-Length: 0"]);
    }
    // Stable: several lines of one name keep their order.
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, value) in rest {
        line(&[name.as_bytes(), b": ", &value]);
    }
    line(&[]);
    out
}

/// The headers that ask for SPDY with these protocols.
fn to_spdy<'a>(protocols: impl Iterator<Item = &'a [u8]>) -> Vec<Line> {
    let upgrade = [("Connection", &b"Upgrade"[..]), ("Upgrade", b"SPDY/3.1")];
    let protocols = protocols.map(|protocol| (PROTOCOL_HEADER, protocol));
    upgrade.into_iter().chain(protocols).map(|(name, value)| (name.to_owned(), value.to_vec())).collect()
}

/// What of the client's headers goes on, as far as `keep` wants it, and the addresses it came by.
fn clients_own(client: &ClientHead<'_>, keep: impl Fn(&HeaderName) -> bool) -> Vec<Line> {
    let mut lines: Vec<Line> = client
        .headers
        .iter()
        .filter(|(name, _)| passes(name) && keep(name))
        .map(|(name, value)| (canonical(name.as_str()), value.as_bytes().to_vec()))
        .collect();
    lines.push(("X-Forwarded-For".to_owned(), forwarded_for(client)));
    lines
}

/// Whether a client's header goes on to the kubelet as it is.
fn passes(name: &HeaderName) -> bool {
    let not_copied = [
        header::HOST,
        header::USER_AGENT,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::TRAILER,
        // A compressed message could not be read.
        header::SEC_WEBSOCKET_EXTENSIONS,
        HeaderName::from_static("x-forwarded-for"),
    ];
    let text = name.as_str();
    !(not_copied.contains(name)
        || *name == header::AUTHORIZATION
        || *name == header::PROXY_AUTHORIZATION
        || text.starts_with(IMPERSONATION_PREFIX)
        || REMOTE.contains(&text)
        || text.starts_with(REMOTE_EXTRA))
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
