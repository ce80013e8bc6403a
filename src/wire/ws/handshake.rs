//! What both sides of a WebSocket say before the first frame.
//!
//! Owns the server's side ([`Challenge`], [`Answer`], [`Refusal`]), the client's ([`Request`],
//! [`check_answer`]), the lists of subprotocols and the bearer token among them ([`bearer`]).
//! Invariants: answers are byte for byte those of the Go server behind Kubernetes, and as tolerant: the key
//! is any text, `Origin` is not looked at, no extension is ever agreed on. A token is never printed.
//! Bounds: none of its own; a request head is bounded by the door that read it, an answer by
//! [`http1::MAX_HEAD`](crate::wire::http1::MAX_HEAD).
//! Source: RFC 6455 section 4; golang.org/x/net/websocket `hybi.go` and `server.go`; apimachinery
//! `pkg/util/httpstream/wsstream/conn.go`; gorilla/websocket `client.go`; apiserver
//! `pkg/authentication/request/websocket/protocol.go`.

#[cfg(test)]
mod tests;

use super::base64;
use crate::wire::http1::ResponseHead;
use aws_lc_rs::digest;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method};
use std::fmt;

/// Request header: what the answer must prove to have read.
pub const KEY_HEADER: &str = "Sec-WebSocket-Key";

/// Response header: the proof, see [`accept_key`].
pub const ACCEPT_HEADER: &str = "Sec-WebSocket-Accept";

/// Request header that lists the subprotocols a client speaks, and response header that names the chosen one.
pub const PROTOCOL_HEADER: &str = "Sec-WebSocket-Protocol";

/// Request header with [`VERSION`].
pub const VERSION_HEADER: &str = "Sec-WebSocket-Version";

/// The version of RFC 6455, the only one there is.
pub const VERSION: &str = "13";

/// Subprotocols with this in front are a bearer token, in base64 for URLs without padding.
pub const BEARER_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// What a key is hashed with (RFC 6455 section 1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a client asked for, once it is a WebSocket handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    accept: String,
    /// In the client's order. Those of the first header line only, as Go reads it.
    protocols: Vec<String>,
}

/// The 101.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    accept: String,
    protocol: Option<String>,
}

/// Why there is no 101. The texts are those of the Go server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a GET: 405.
    #[error("bad method")]
    Method,
    /// No `Upgrade` to `websocket`: 400.
    #[error("not websocket protocol")]
    NotWebSocket,
    /// No key: 400.
    #[error("mismatch challenge/response")]
    Key,
    /// Another version: 400, with the one that is known.
    #[error("missing or bad WebSocket Version")]
    Version,
    /// No subprotocol that is served: 403, without a text for the client.
    #[error("requested protocol(s) are not supported")]
    Protocol,
}

/// A bearer token that came as a subprotocol.
#[derive(Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The token.
    pub token: String,
}

/// Why subprotocols with a token among them do not authenticate: a 401, whose client does not see the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BearerError {
    /// Nothing but the token: there would be nothing to answer.
    #[error("missing additional subprotocol")]
    Alone,
    /// A second token.
    #[error("multiple base64.bearer.authorization tokens specified")]
    Multiple,
    /// Not base64 for URLs without padding.
    #[error("invalid base64.bearer.authorization token encoding")]
    Encoding,
    /// Not UTF-8.
    #[error("invalid base64.bearer.authorization token")]
    NotUtf8,
}

/// A request as Go clients write it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Path and query.
    pub target: &'a str,
    /// Host and port.
    pub host: &'a str,
    /// Sixteen bytes that nobody foresees.
    pub nonce: [u8; 16],
    /// The subprotocols, best first.
    pub protocols: &'a [&'a str],
    /// Any other headers: names and values that are free of line ends.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Why an answer is not the 101 that was asked for. With any of them kubectl asks again over SPDY.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Not a 101, or one without the right headers or proof.
    #[error("websocket: bad handshake ({0})")]
    Handshake(u16),
    /// A subprotocol that was not offered, or none.
    #[error("invalid protocol, expected one of {offered:?}, got {got:?}")]
    Protocol {
        /// What we offered.
        offered: Vec<String>,
        /// What came back.
        got: String,
    },
}

/// The proof for a key.
pub fn accept_key(key: &[u8]) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    to_base64(hash.finish().as_ref())
}

/// The items of a header line in order, blanks around them trimmed. A blank line has none; otherwise an item
/// may be empty, as for Go.
pub fn items(line: &str) -> impl Iterator<Item = &str> {
    let items = line.split(',').map(str::trim);
    items.filter(move |_| !line.trim().is_empty())
}

/// The first of the client's subprotocols that the server has. A client without any is one with the name
/// `""`, which a server may have too.
pub fn choose<'a, S: AsRef<str>>(client: &[S], server: &[&'a str]) -> Option<&'a str> {
    let known = |name: &str| server.iter().copied().find(|have| *have == name);
    match client {
        [] => known(""),
        client => client.iter().find_map(|name| known(name.as_ref())),
    }
}

// === impl Challenge ===

impl Challenge {
    /// Reads a handshake, in the order in which Go's server finds fault.
    pub fn read(method: &Method, headers: &HeaderMap) -> Result<Self, Refusal> {
        let first = |name: &str| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
        if method != Method::GET {
            return Err(Refusal::Method);
        }
        let connection = first("connection").to_ascii_lowercase();
        if !first("upgrade").eq_ignore_ascii_case(b"websocket")
            || !connection.windows(b"upgrade".len()).any(|part| part == b"upgrade")
        {
            return Err(Refusal::NotWebSocket);
        }
        let key = first(KEY_HEADER);
        if key.is_empty() {
            return Err(Refusal::Key);
        }
        if first(VERSION_HEADER) != VERSION.as_bytes() {
            return Err(Refusal::Version);
        }
        // What is not UTF-8 is no name that anybody knows.
        let line = String::from_utf8_lossy(first(PROTOCOL_HEADER));
        Ok(Self { accept: accept_key(key), protocols: items(&line).map(String::from).collect() })
    }

    /// The subprotocols of the client, in its order.
    pub fn protocols(&self) -> &[String] {
        &self.protocols
    }

    /// Forgets the subprotocols that are not wanted.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.protocols.retain(|protocol| wanted(protocol));
    }

    /// The 101 with the first of the client's subprotocols that is among `server`'s. A server that has `""`
    /// takes clients without one, and then says so in an empty header.
    pub fn choose(self, server: &[&str]) -> Result<Answer, Refusal> {
        let protocol = choose(&self.protocols, server).ok_or(Refusal::Protocol)?;
        Ok(Answer { accept: self.accept, protocol: Some(protocol.to_owned()) })
    }

    /// The 101 with a subprotocol that was settled otherwise, or without one.
    pub fn settle(self, protocol: Option<&str>) -> Answer {
        Answer { accept: self.accept, protocol: protocol.map(String::from) }
    }
}

// === impl Answer ===

impl Answer {
    /// The subprotocol; empty when the client has none.
    pub fn protocol(&self) -> &str {
        self.protocol.as_deref().unwrap_or_default()
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        // One token in each: Go clients compare the whole value.
        [("Upgrade", "websocket"), ("Connection", "Upgrade"), (ACCEPT_HEADER, self.accept.as_str())]
            .into_iter()
            .chain(self.protocol.as_deref().map(|protocol| (PROTOCOL_HEADER, protocol)))
    }

    /// The whole head. Frames follow it.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::from(&b"HTTP/1.1 101 Switching Protocols\r\n"[..]);
        self.headers().for_each(|(name, value)| put_line(&mut out, name, value));
        out.put_slice(b"\r\n");
        out.freeze()
    }
}

// === impl Refusal ===

impl Refusal {
    /// The HTTP status.
    pub fn status(self) -> u16 {
        match self {
            Refusal::Method => 405,
            Refusal::NotWebSocket | Refusal::Key | Refusal::Version => 400,
            Refusal::Protocol => 403,
        }
    }

    /// The whole answer, after which the connection ends: it says nothing about the length of its body.
    pub fn to_bytes(self) -> Bytes {
        let head = match self {
            Refusal::Method => "405 Method Not Allowed\r\n",
            Refusal::NotWebSocket | Refusal::Key => "400 Bad Request\r\n",
            Refusal::Version => "400 Bad Request\r\nSec-WebSocket-Version: 13\r\n",
            Refusal::Protocol => return Bytes::from_static(b"HTTP/1.1 403 Forbidden\r\n\r\n"),
        };
        format!("HTTP/1.1 {head}\r\n{self}").into()
    }
}

// === impl Bearer ===

impl fmt::Debug for Bearer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bearer").finish_non_exhaustive()
    }
}

/// The bearer token among the subprotocols, if there is one. `lines` are all values of [`PROTOCOL_HEADER`]. Only for
/// requests to upgrade to WebSocket. An empty token is none.
pub fn bearer<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<Bearer>, BearerError> {
    let mut token = None;
    let mut alone = true;
    for item in all_items(lines) {
        let Some(encoded) = item.strip_prefix(BEARER_PREFIX.as_bytes()) else {
            alone = false;
            continue;
        };
        if token.is_some() {
            return Err(BearerError::Multiple);
        }
        let mut decoded = BytesMut::new();
        let mut decoder = base64::Decoder::url();
        let whole = decoder.push(encoded, &mut decoded).and_then(|()| decoder.finish(&mut decoded));
        whole.map_err(|_| BearerError::Encoding)?;
        token = Some(String::from_utf8(decoded.to_vec()).map_err(|_| BearerError::NotUtf8)?);
    }
    match token {
        None => Ok(None),
        Some(token) if token.is_empty() => Ok(None),
        Some(_) if alone => Err(BearerError::Alone),
        Some(token) => Ok(Some(Bearer { token })),
    }
}

/// What [`PROTOCOL_HEADER`] is to be without anything that looks like a bearer token, in one line that may be empty;
/// `None` when nothing does.
pub fn without_bearer<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Bytes> {
    let is_token = |item: &&[u8]| {
        let prefix = BEARER_PREFIX.as_bytes();
        item.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let items: Vec<&[u8]> = all_items(lines).collect();
    let rest: Vec<&[u8]> = items.iter().copied().filter(|item| !is_token(item)).collect();
    (rest.len() < items.len()).then(|| rest.join(&b","[..]).into())
}

fn all_items<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    lines.into_iter().flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

// === impl Request ===

impl Request<'_> {
    /// The key that the answer must prove.
    pub fn key(&self) -> String {
        to_base64(&self.nonce)
    }

    /// The whole head.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::from(format!("GET {} HTTP/1.1\r\n", self.target).as_str());
        put_line(&mut out, "Host", self.host);
        put_line(&mut out, "Connection", "Upgrade");
        put_line(&mut out, KEY_HEADER, &self.key());
        if !self.protocols.is_empty() {
            put_line(&mut out, PROTOCOL_HEADER, &self.protocols.join(", "));
        }
        put_line(&mut out, VERSION_HEADER, VERSION);
        put_line(&mut out, "Upgrade", "websocket");
        self.headers.iter().for_each(|(name, value)| put_line(&mut out, name, value));
        out.put_slice(b"\r\n");
        out.freeze()
    }
}

/// What Go clients demand of an answer; the subprotocol when they are content. `offered` is what was asked
/// for, nothing for a client that goes without.
pub fn check_answer(head: &ResponseHead, key: &str, offered: &[&str]) -> Result<String, BadAnswer> {
    let first = |name: &'static str| head.values(name).next().unwrap_or_default();
    let good = head.status == 101
        && first("upgrade").eq_ignore_ascii_case(b"websocket")
        && first("connection").eq_ignore_ascii_case(b"upgrade")
        && first(ACCEPT_HEADER) == accept_key(key.as_bytes()).as_bytes();
    if !good {
        return Err(BadAnswer::Handshake(head.status));
    }
    let got = String::from_utf8_lossy(first(PROTOCOL_HEADER)).into_owned();
    if offered.contains(&got.as_str()) || offered.is_empty() && got.is_empty() {
        return Ok(got);
    }
    Err(BadAnswer::Protocol { offered: offered.iter().copied().map(String::from).collect(), got })
}

fn to_base64(bytes: &[u8]) -> String {
    let mut out = BytesMut::new();
    base64::encode(bytes, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn put_line(out: &mut BytesMut, name: &str, value: &str) {
    [name, ": ", value, "\r\n"].iter().for_each(|part| out.put_slice(part.as_bytes()));
}
