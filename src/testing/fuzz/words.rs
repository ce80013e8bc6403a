//! Properties of what is said in the framings and before them: requests, results, sizes, pairs of streams.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::frames::in_pieces;
use super::{Choices, Cuts, append};
use crate::request::{Ask, Query, Upgrade};
use crate::wire::channel::Encoding;
use crate::wire::http1::ResponseHead;
use crate::wire::portforward::{self, Arrival, Half, Legacy, Pairs, Ticket};
use crate::wire::remotecommand::{self, Negotiation, Outcome, Protocol, Resize, ResizeDecoder, TerminalSize};
use crate::wire::spdy::Headers;
use crate::wire::ws::handshake::{self, Challenge};
use crate::wire::ws::{self, Event, Kind, MaskKey};

/// Longest path that is still one when each of its bytes is escaped; `http` takes no more than 64 KiB.
const LONGEST_PATH: usize = 16 * 1024;

/// The first channel whose digit in base64 is not ASCII.
const MAX_DIGIT: usize = 80;

/// A request: what is said of it is consistent, escapes do not matter, a query is what was escaped. The data is
/// a head: method and URI, then lines with a header each.
pub fn request(data: &[u8]) {
    queries(data);
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some((method, uri, headers)) = head(&mut lines) else { return };
    handshakes(&method, &headers);
    let Ok(ask) = Ask::parse(&method, &uri, &headers) else { return };

    assert_eq!(uri.path_and_query().map_or("/", |all| all.as_str()), ask.uri);
    let attributes = &ask.attributes;
    match &attributes.resource {
        None => {
            assert_eq!(attributes.verb, method.as_str().to_ascii_lowercase());
            assert!(ask.exec.is_none(), "a session has a pod");
        }
        Some(resource) => {
            let parts = [&resource.group, &resource.version, &resource.resource, &resource.namespace];
            assert!(parts.iter().all(|part| !part.contains('/')), "a part of a path is one segment");
        }
    }
    if let Some(Ok(exec)) = &ask.exec {
        let resource = attributes.resource.as_ref().expect("a session has a pod");
        assert_eq!((&*resource.group, &*resource.version, &*resource.resource), ("", "v1", "pods"));
        assert_eq!((&resource.namespace, &resource.name), (&exec.namespace, &exec.pod));
        assert_eq!(resource.subresource, exec.subresource.as_str());
        assert!(!exec.namespace.is_empty() && !exec.pod.is_empty() && resource.rest.is_empty());
        assert_eq!(attributes.verb, if method == Method::POST { "create" } else { "get" });
        assert!(exec.command.is_empty() || exec.command.iter().eq(ask.query.all("command")));
        assert!(ask.long_running(), "no deadline ends a session");
    }

    let path = &attributes.path;
    if path.starts_with('/') && path.len() <= LONGEST_PATH {
        let escape = |part: &str| percent_encode(part.as_bytes(), NON_ALPHANUMERIC).to_string();
        let escaped = path.split('/').map(escape).collect::<Vec<_>>().join("/");
        let query = uri.query().map_or(String::new(), |query| format!("?{query}"));
        let escaped = Uri::try_from(format!("http://host{escaped}{query}")).expect("an escaped URI");
        let again = Ask::parse(&method, &escaped, &headers).expect("the same request");
        assert_eq!(again.attributes, *attributes, "escapes do not matter");
        assert_eq!((again.exec, again.encoding), (ask.exec, ask.encoding));
    }
}

/// Results, sizes and negotiation: a result that was read says the same when it is written and read again; sizes
/// come out however they are cut, and what waits is bounded; what is chosen was offered by both.
pub fn remotecommand(data: &[u8]) {
    let mut choices = Choices(data);
    let kind = choices.byte() % 3;
    let mut cuts = choices.cuts();
    match kind {
        0 => results(choices.rest()),
        1 => sizes(choices, &mut cuts),
        _ => negotiations(choices),
    }
}

/// Streams of a port-forward: a pair is two streams of one request that were taken, waited and came together
/// once. Channels of old clients: bytes arrive, however they are cut, at the port they are for.
pub fn portforward(data: &[u8]) {
    let mut choices = Choices(data);
    if choices.flag() { pairs(choices) } else { legacy(choices) }
}

fn head<'a>(lines: &mut impl Iterator<Item = &'a [u8]>) -> Option<(Method, Uri, HeaderMap)> {
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let uri = Uri::try_from(first.next()?).ok()?;
    let header = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        Some((name, HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in lines.filter_map(header) {
        headers.append(name, value);
    }
    Some((method, uri, headers))
}

fn queries(data: &[u8]) {
    let pairs: Vec<(&[u8], &[u8])> = data
        .split(|byte| *byte == b'\n')
        .map(|pair| pair.split_at(pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len())))
        .filter(|(key, value)| !key.is_empty() || !value.is_empty())
        .collect();
    let escape = |bytes| percent_encode(bytes, NON_ALPHANUMERIC).to_string();
    let query = pairs.iter().map(|(key, value)| format!("{}={}", escape(key), escape(value)));
    let query = Query::parse(&query.collect::<Vec<_>>().join("&"));
    for (key, _) in &pairs {
        let Ok(key) = str::from_utf8(key) else { continue };
        let values = pairs.iter().filter(|(have, _)| *have == key.as_bytes()).map(|(_, value)| *value);
        assert!(query.all(key).eq(values), "escaped and read");
    }
}

/// What a WebSocket handshake says: the answer to one proves to have read it, and no token is passed on.
fn handshakes(method: &Method, headers: &HeaderMap) {
    let lines = || headers.get_all(handshake::PROTOCOL_HEADER).iter().map(HeaderValue::as_bytes);
    let rest = handshake::without_bearer(lines());
    if let Ok(Some(bearer)) = handshake::bearer(lines()) {
        assert!(!bearer.token.is_empty() && rest.is_some(), "a token is passed on");
    }
    if let Some(rest) = rest {
        let prefix = handshake::BEARER_PREFIX.to_ascii_lowercase();
        let is_token = |item: &[u8]| item.trim_ascii().to_ascii_lowercase().starts_with(prefix.as_bytes());
        assert!(!rest.split(|byte| *byte == b',').any(is_token), "a token is passed on");
    }
    let Ok(challenge) = Challenge::read(method, headers) else { return };
    assert_eq!(Upgrade::of(headers), Upgrade::WebSocket);
    let offered = challenge.protocols().to_vec();
    let Ok(answer) = challenge.choose(&["", "v4.channel.k8s.io", "v5.channel.k8s.io"]) else { return };
    let head = ResponseHead::parse(&answer.to_bytes()).ok().flatten().expect("an answer of ours");
    let offered: Vec<&str> = offered.iter().map(String::as_str).collect();
    let key = headers.get(handshake::KEY_HEADER).map_or(&b""[..], HeaderValue::as_bytes);
    if let Ok(key) = str::from_utf8(key) {
        let checked = handshake::check_answer(&head, key, &offered);
        assert_eq!(checked.as_deref(), Ok(answer.protocol()), "the client is content");
    }
}

fn results(bytes: &[u8]) {
    for protocol in [Protocol::V1, Protocol::V2, Protocol::V3, Protocol::V4, Protocol::V5] {
        let Ok(outcome) = Outcome::parse(protocol, bytes) else { continue };
        let written = outcome.to_bytes(protocol);
        if written.len() <= remotecommand::MAX_RESULT {
            let again = Outcome::parse(protocol, &written).expect("a result of ours");
            assert_eq!(again, outcome, "read, written and read");
        }
        let failed = outcome.client_error(protocol).is_some();
        assert_eq!(failed, outcome != Outcome::Success, "only success is none");
    }
}

fn sizes(mut choices: Choices<'_>, cuts: &mut Cuts<'_>) {
    if choices.flag() {
        let mut sizes = Vec::new();
        let mut bytes = Vec::new();
        while !choices.is_empty() {
            let size = TerminalSize { width: choices.word(), height: choices.word() };
            bytes.extend_from_slice(&size.to_bytes());
            sizes.push(size);
        }
        assert_eq!(read_sizes(cuts.pieces(&bytes)), (sizes, false), "written and read");
    } else {
        let bytes = choices.rest();
        assert_eq!(read_sizes(cuts.pieces(bytes)), read_sizes([bytes]), "one piece and many");
    }
}

/// The sizes, and whether there can be more.
fn read_sizes<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<TerminalSize>, bool) {
    let mut decoder = ResizeDecoder::new();
    let mut sizes = Vec::new();
    let mut ended = false;
    let mut waiting = Vec::new();
    for mut piece in pieces {
        loop {
            let before = piece;
            let told = decoder.decode(&mut piece);
            waiting.extend_from_slice(&before[..before.len() - piece.len()]);
            match told {
                Resize::Size(size) => {
                    assert!(!ended, "a size behind the end");
                    waiting.clear();
                    sizes.push(size);
                }
                Resize::More => {
                    assert!(!ended && piece.is_empty());
                    assert!(waiting.trim_ascii_start().len() <= remotecommand::MAX_RESIZE, "too much waits");
                    break;
                }
                Resize::Ended => {
                    assert!(piece.is_empty());
                    ended = true;
                    break;
                }
            }
        }
    }
    (sizes, ended)
}

fn negotiations(mut choices: Choices<'_>) {
    let server = &Protocol::SPDY[usize::from(choices.byte() % 4)..];
    let text = String::from_utf8_lossy(choices.rest()).into_owned();
    let lines: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split('\n').collect() };
    let offered = |name| lines.iter().flat_map(|line| line.split(',')).any(|item| item.trim() == name);
    match remotecommand::negotiate(lines.iter().copied(), server) {
        Negotiation::Chosen(protocol) => assert!(server.contains(&protocol) && offered(protocol.name())),
        Negotiation::NoCommon { client } => {
            assert!(!server.iter().any(|protocol| client.iter().any(|name| name == protocol.name())));
            let body = remotecommand::no_common_body(&client, server);
            assert!(body.ends_with("]\n"));
        }
        Negotiation::Missing => assert!(lines.is_empty()),
    }
}

/// A stream that was taken and may still become half of a pair.
struct Taken {
    half: Half,
    port: u16,
    request: Bytes,
}

fn pairs(mut choices: Choices<'_>) {
    let mut pairs = Pairs::new();
    let mut waiting: HashMap<u32, Taken> = HashMap::new();
    let mut tickets: Vec<Ticket> = Vec::new();
    let mut given: Vec<Ticket> = Vec::new();
    let mut open = 0_usize;
    let mut next = 1;
    while !choices.is_empty() {
        match choices.byte() % 8 {
            0 => {
                let ticket = if tickets.is_empty() { continue } else { choices.pick(&tickets) };
                if let Some(failure) = pairs.expire(ticket, "[::1]:80") {
                    assert!(!given.contains(&ticket), "a ticket is used once");
                    given.push(ticket);
                    let gone = [failure.error, failure.data].into_iter().flatten();
                    gone.for_each(|id| assert!(waiting.remove(&id).is_some(), "it waited"));
                }
            }
            1 => {
                let id = 1 + 2 * (u32::from(choices.byte()) % (next / 2 + 1));
                pairs.reset(id);
                // Its partner is forgotten with it, though not reset.
                if let Some(Taken { request, .. }) = waiting.remove(&id) {
                    waiting.retain(|_, taken| taken.request != request);
                }
            }
            2 if open > 0 => {
                open -= 1;
                pairs.close();
            }
            _ => {
                let id = next;
                next += 2;
                let (headers, taken) = stream(&mut choices, id);
                match pairs.accept(id, &headers) {
                    Ok(Arrival::First(ticket)) => {
                        assert!(!tickets.contains(&ticket), "a ticket is new");
                        tickets.push(ticket);
                        waiting.insert(id, taken.expect("a stream without fault"));
                    }
                    Ok(Arrival::Paired(pair)) => {
                        assert!(!given.contains(&pair.ticket), "a ticket is used once");
                        given.push(pair.ticket);
                        waiting.insert(id, taken.expect("a stream without fault"));
                        let error = waiting.remove(&pair.error).expect("an error stream that waited");
                        let data = waiting.remove(&pair.data).expect("a data stream that waited");
                        assert_eq!((error.half, data.half, data.port), (Half::Error, Half::Data, pair.port));
                        assert_eq!(error.request, data.request);
                        open += 1;
                    }
                    Ok(Arrival::Duplicate(failure)) => {
                        let half = taken.expect("a stream without fault").half;
                        let first = if half == Half::Error { failure.error } else { failure.data };
                        assert!(first.is_some_and(|id| waiting.contains_key(&id)), "the first one waits");
                    }
                    Err(_) => {}
                }
            }
        }
        assert_eq!(pairs.len(), waiting.len() + open, "each waiting stream is a pair to be");
        assert!(pairs.len() <= portforward::MAX_PAIRS);
    }
}

/// The headers of a stream, and what they say when they say it properly.
fn stream(choices: &mut Choices<'_>, id: u32) -> (Headers, Option<Taken>) {
    let how = choices.byte();
    if how == 0xff {
        let value = choices.bytes();
        let headers = Headers::new()
            .with(portforward::STREAM_TYPE_HEADER, choices.bytes())
            .with(portforward::PORT_HEADER, choices.bytes());
        let headers =
            if value.is_empty() { headers } else { headers.with(portforward::REQUEST_ID_HEADER, value) };
        let half = [Half::Error, Half::Data]
            .into_iter()
            .find(|half| headers.get(portforward::STREAM_TYPE_HEADER) == Some(half.name().as_bytes()));
        let port = headers.get(portforward::PORT_HEADER).and_then(|port| str::from_utf8(port).ok());
        let port = port.and_then(|port| port.parse().ok());
        let named = headers.get(portforward::REQUEST_ID_HEADER).filter(|id| !id.is_empty());
        let taken = half.zip(port).map(|(half, port)| Taken {
            half,
            port,
            request: named.map_or_else(|| implied(half, id), Bytes::copy_from_slice),
        });
        return (headers, taken);
    }
    let half = if how & 1 == 0 { Half::Error } else { Half::Data };
    let port = 1 + u16::from(how >> 1 & 3);
    let headers = if how & 8 == 0 {
        half.headers(port, (how >> 4).into())
    } else {
        Headers::new()
            .with(portforward::STREAM_TYPE_HEADER, half.name())
            .with(portforward::PORT_HEADER, port.to_string())
    };
    let request = headers.get(portforward::REQUEST_ID_HEADER);
    let request = request.map_or_else(|| implied(half, id), Bytes::copy_from_slice);
    (headers, Some(Taken { half, port, request }))
}

/// The request of a stream that names none.
fn implied(half: Half, id: u32) -> Bytes {
    let id = i64::from(id) - if half == Half::Data { 2 } else { 0 };
    id.to_string().into()
}

fn legacy(mut choices: Choices<'_>) {
    let encoding = choices.pick(&[Encoding::Binary, Encoding::Base64]);
    let ports: Vec<u16> = (0..choices.byte()).map(u16::from).collect();
    let count = ports.len();
    let mut cuts = choices.cuts();
    let new = || Legacy::new(encoding, ports.clone());
    let (Some(mut in_one), Some(mut in_many)) = (new(), new()) else {
        assert!(count > portforward::MAX_PORTS);
        return;
    };
    if choices.flag() && count > 0 {
        // The digit of a higher channel has two bytes, which nobody reads (Go does not either).
        let readable = if encoding == Encoding::Base64 { MAX_DIGIT / 2 } else { count };
        let at = usize::from(choices.byte()) % count.min(readable);
        let half = choices.pick(&[Half::Data, Half::Error]);
        let payload = choices.rest();
        let mut wire = BytesMut::new();
        in_one.message(&mut wire, at, half, payload, Some(MaskKey([9, 8, 7, 6])));
        let mut frames =
            ws::Decoder::new(ws::Role::Server, ws::Limits { utf8: true, ..ws::Limits::default() });
        let mut got = Bytes::new();
        let mut input = BytesMut::new();
        for piece in cuts.pieces(&wire) {
            input.extend_from_slice(piece);
            while let Some(event) = frames.decode(&mut input).expect("frames of ours") {
                let Event::Data(data) = event else { panic!("{event:?}") };
                if let Some((which, bytes)) = in_many.decode(data) {
                    assert_eq!((which, half), (at, Half::Data), "for another port");
                    append(&mut got, &bytes);
                }
            }
        }
        assert_eq!(&got[..], if half == Half::Data { payload } else { &[] }, "written and read");
        return;
    }
    while !choices.is_empty() {
        let kind = choices.pick(&[Kind::Binary, Kind::Text]);
        let message = choices.bytes();
        let whole = in_pieces(kind, message, &mut Cuts { lens: &[], at: 0 }).pop();
        let whole = whole.and_then(|data| in_one.decode(data));
        let mut joined: Option<(usize, Bytes)> = None;
        for data in in_pieces(kind, message, &mut cuts) {
            match (in_many.decode(data), &mut joined) {
                (None, _) => {}
                (Some(first), None) => joined = Some(first),
                (Some((at, bytes)), Some((which, joined))) => {
                    assert_eq!(at, *which, "one message, one port");
                    append(joined, &bytes);
                }
            }
        }
        assert_eq!(joined, whole, "one piece and many");
        assert!(whole.is_none_or(|(at, _)| at < count));
    }
}
