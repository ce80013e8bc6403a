//! The head of the upgrade request that the far side sees.
//!
//! A kubelet sees the client's, without what names the client; rewritten to SPDY for a tunnel; and for a translated
//! session one of podgate's own, with nothing of the client's in it. The API server sees the client's as well, but is
//! told who the caller is: so whatever the client says of the connection, which could make a proxy on the way take
//! headers out, is replaced. That a session is translated does not hide its client from the API server's audit.
//! Written out here rather than by an HTTP client, because its order and case are part of the promise: `Host`,
//! `User-Agent` and `Content-Length`, then the rest sorted by name in Go's canonical case.
//! Source: `protocol.md` 3.2, 4.2, 7.3 and 7.4 (Go net/http `Request.Write`).

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::{Carriage, ClientHead, Server};
use crate::cluster::impersonate;
use crate::locate::{HostPort, Place};
use crate::request::{Exec, IMPERSONATION_PREFIX, REASON_HEADER, Subresource};
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

/// Front-proxy headers: whoever speaks to podgate cannot speak to a far side as somebody else.
const REMOTE: [&str; 3] = ["x-remote-user", "x-remote-group", "x-remote-uid"];
const REMOTE_EXTRA: &str = "x-remote-extra-";

/// What a client says of its connection to podgate.
const OF_THE_CONNECTION: [HeaderName; 5] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What is replaced where a WebSocket request becomes one for SPDY.
const OF_WEBSOCKET: [HeaderName; 5] = [
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    STREAM_PROTOCOL,
];

/// What a translated session offers the far side, in client-go's order. No known kubelet takes the first.
const TRANSLATED: [Protocol; 5] = [Protocol::V5, Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1];

/// The whole head for the kubelet at `addr`, blank line included.
pub(super) fn to_kubelet(
    place: &Place,
    addr: &HostPort,
    client: &ClientHead<'_>,
    authorization: Option<&HeaderValue>,
) -> BytesMut {
    let (host, agent) = (value(client, header::HOST, b""), value(client, header::USER_AGENT, GO_AGENT));
    let podgates_own = addr.to_string();
    let (method, host, agent, mut lines) = match client.carriage {
        Carriage::Spdy | Carriage::WebSocket => (client.method, host, agent, clients_own(client, |_| true)),
        Carriage::Translated(_) => (&Method::POST, podgates_own.as_bytes(), GO_AGENT, to_spdy(translated())),
        Carriage::Tunnelled(challenge) => {
            let mut lines = clients_own(client, |name| !OF_WEBSOCKET.contains(name));
            let protocols = portforward::tunnelled(challenge.protocols());
            // The client's own `Connection` stays.
            lines.extend(to_spdy(protocols).into_iter().filter(|(name, _)| name != "Connection"));
            (&Method::POST, host, agent, lines)
        }
    };
    lines.extend(authorization.map(authorized));
    write(method, &kubelet_target(place), host, agent, lines)
}

/// The whole head for the API server, blank line included.
///
/// # Errors
/// When the API server cannot be told who the caller is.
pub(super) fn to_api_server(
    place: &Place,
    server: &Server,
    client: &ClientHead<'_>,
    authorization: Option<&HeaderValue>,
) -> Result<BytesMut, impersonate::Error> {
    let (method, rewritten, upgrade) = match client.carriage {
        Carriage::Spdy => (client.method, false, to_spdy([])),
        Carriage::WebSocket => (client.method, false, upgrade_to("websocket")),
        Carriage::Translated(_) => (&Method::POST, true, to_spdy(translated())),
        Carriage::Tunnelled(challenge) => {
            (&Method::POST, true, to_spdy(portforward::tunnelled(challenge.protocols())))
        }
    };
    let mut lines = clients_own(client, |name| {
        !(OF_THE_CONNECTION.contains(name) || rewritten && OF_WEBSOCKET.contains(name))
    });
    lines.extend(upgrade);
    lines.extend(authorization.map(authorized));
    for (name, value) in impersonate::headers(place.caller().user())? {
        lines.push((canonical(name.as_str()), value.as_bytes().to_vec()));
    }
    let agent = value(client, header::USER_AGENT, GO_AGENT);
    let target = format!("{}{}", server.prefix, api_target(place));
    Ok(write(method, &target, server.addr().to_string().as_bytes(), agent, lines))
}

/// The first value of a client's header.
fn value<'a>(client: &ClientHead<'a>, name: HeaderName, absent: &'static [u8]) -> &'a [u8] {
    client.headers.get(name).map_or(absent, HeaderValue::as_bytes)
}

/// Name, in Go's canonical case, and value of a header.
type Line = (String, Vec<u8>);

/// Writes a head: what Go writes first, then the rest sorted by name.
fn write(method: &Method, target: &str, host: &[u8], agent: &[u8], mut rest: Vec<Line>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    let mut line = |parts: &[&[u8]]| {
        for part in parts {
            out.extend_from_slice(part);
        }
        out.extend_from_slice(b"\r\n");
    };
    line(&[method.as_str().as_bytes(), b" ", target.as_bytes(), b" HTTP/1.1"]);
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

/// The headers that ask for an upgrade.
fn upgrade_to(protocol: &str) -> Vec<Line> {
    [("Connection", "Upgrade"), ("Upgrade", protocol)]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into()
}

/// The headers that ask for SPDY with these protocols.
fn to_spdy<'a>(protocols: impl IntoIterator<Item = &'a str>) -> Vec<Line> {
    let mut lines = upgrade_to("SPDY/3.1");
    lines.extend(protocols.into_iter().map(|protocol| (PROTOCOL_HEADER.to_owned(), protocol.into())));
    lines
}

/// What a translated session offers, by name.
fn translated() -> impl Iterator<Item = &'static str> {
    TRANSLATED.iter().map(|protocol| protocol.name())
}

/// How podgate proves itself.
fn authorized(value: &HeaderValue) -> Line {
    ("Authorization".to_owned(), value.as_bytes().to_vec())
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

/// Whether a client's header goes on to the far side as it is.
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
        // What for is podgate's to know.
        REASON_HEADER,
    ];
    // Some servers take a low line for a dash.
    let text = name.as_str().replace('_', "-");
    !(not_copied.contains(name)
        || *name == header::AUTHORIZATION
        || *name == header::PROXY_AUTHORIZATION
        || text.starts_with(IMPERSONATION_PREFIX)
        || REMOTE.contains(&text.as_str())
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
fn kubelet_target(place: &Place) -> String {
    let exec = place.exec();
    let pod = format!("{}/{}", segment(&exec.namespace), segment(&exec.pod));
    let mut pairs = command(exec);
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
    with_query(path, &pairs)
}

/// Path and query for the API server, as client-go writes them. The container is the one that was located: what podgate
/// has checked is what runs.
fn api_target(place: &Place) -> String {
    let exec = place.exec();
    let mut pairs = command(exec);
    if !place.container().is_empty() {
        pairs.push(format!("container={}", segment(place.container())));
    }
    pairs.extend(exec.ports.iter().map(|port| format!("ports={port}")));
    for (asked, name) in
        [(exec.stderr, "stderr"), (exec.stdin, "stdin"), (exec.stdout, "stdout"), (exec.tty, "tty")]
    {
        if asked {
            pairs.push(format!("{name}=true"));
        }
    }
    let (namespace, pod) = (segment(&exec.namespace), segment(&exec.pod));
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/{}", exec.subresource.as_str());
    with_query(path, &pairs)
}

fn segment(text: &str) -> String {
    percent_encode(text.as_bytes(), SEGMENT).to_string()
}

/// The argument vector, a parameter each.
fn command(exec: &Exec) -> Vec<String> {
    let encoded = |argument: &Vec<u8>| percent_encode(argument, QUERY).to_string().replace(' ', "+");
    exec.command.iter().map(|argument| format!("command={}", encoded(argument))).collect()
}

fn with_query(path: String, pairs: &[String]) -> String {
    if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
}
