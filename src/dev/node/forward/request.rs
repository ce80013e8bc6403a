//! Request: what a request to forward ports is answered.

use std::fmt::Display;
use std::sync::PoisonError;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use percent_encoding::percent_decode_str;

use super::super::{Answer, Node, Slot, Streaming, Work, is_name, plain};
use super::{Job, Kind};
use crate::request::Query;
use crate::wire::channel::Encoding;
use crate::wire::portforward::{self, Legacy, PROTOCOL, TUNNEL_PROTOCOL};
use crate::wire::remotecommand;
use crate::wire::ws::handshake::{self, Challenge, Refusal};

/// Where the requests go: `/portForward/{namespace}/{pod}`, with the pod's UID behind it or without.
pub(in crate::dev::node) const PREFIX: &str = "/portForward/";

/// The ports of an old client are not what a kubelet takes; in its words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum PortError {
    #[error("query parameter \"port\" is required")]
    Missing,
    #[error("query parameter \"port\" cannot be empty")]
    Empty,
    #[error("unable to parse {value:?} as a port: strconv.ParseUint: parsing {item:?}: {why}")]
    Parse { value: String, item: String, why: &'static str },
    #[error("port {0:?} must be > 0")]
    Zero(String),
}

/// Answers, and leaves a job for an upgrade.
pub(in crate::dev::node) fn answer(node: &Node, mut request: Request<Incoming>, slot: &Slot) -> Answer {
    match route(node, &request) {
        Ok((answer, job)) => {
            let upgrade = hyper::upgrade::on(&mut request);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, Work::Forward(job)));
            answer
        }
        Err(refusal) => *refusal,
    }
}

/// The order of the checks is the kubelet's.
fn route(node: &Node, request: &Request<Incoming>) -> Result<(Answer, Job), Box<Answer>> {
    let (method, headers) = (request.method(), request.headers());
    let refuse = |status, text: &dyn Display| Box::new(plain(status, text.to_string()));
    let decoded = |raw| percent_decode_str(raw).decode_utf8().ok().filter(|part| !part.is_empty());
    let path = request.uri().path().strip_prefix(PREFIX).unwrap_or_default();
    let segments: Option<Vec<_>> = path.split('/').map(decoded).collect();
    let (namespace, name, uid) = match segments.as_deref() {
        Some([namespace, name]) => (namespace, name, None),
        Some([namespace, name, uid]) => (namespace, name, Some(uid)),
        _ => return Err(refuse(StatusCode::NOT_FOUND, &"404 page not found\n")),
    };
    if method != Method::POST && method != Method::GET {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, &"405: Method Not Allowed"));
    }
    let level = node.settings.streaming;
    let is_websocket = level != Streaming::Spdy && is_upgrade(headers, b"websocket");
    let offered = headers.get(handshake::PROTOCOL_HEADER).map_or(&b""[..], HeaderValue::as_bytes);
    let is_tunnel = is_websocket
        && level == Streaming::V5
        && portforward::wants_tunnel(&String::from_utf8_lossy(offered));
    let ports = if is_websocket && !is_tunnel {
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let values = query.all("port").map(String::from_utf8_lossy);
        ports(values).map_err(|error| refuse(StatusCode::BAD_REQUEST, &error))?
    } else {
        Vec::new()
    };
    let pod = node.pods.pod(namespace, name).filter(|pod| node.is_here(pod));
    let Some(pod) = pod.filter(|_| is_name(namespace) && is_name(name)) else {
        return Err(refuse(StatusCode::NOT_FOUND, &"pod does not exist"));
    };
    if uid.is_some_and(|uid| pod.metadata.uid.as_deref() != Some(&**uid)) {
        return Err(refuse(StatusCode::NOT_FOUND, &"pod not found"));
    }
    if has_ended(&pod) {
        let text = format!("pod not found (\"{name}_{namespace}\")");
        return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, &text));
    }
    let sandbox = pod.metadata.uid.clone().unwrap_or_else(|| format!("{name}_{namespace}"));
    let (answer, kind) = if is_tunnel {
        tunnel(method, headers)
    } else if is_websocket {
        legacy(method, headers, ports)
    } else {
        spdy(headers)
    }?;
    Ok((answer, Job { kind, sandbox }))
}

/// Whether the first lines of the two headers ask for an upgrade to this, somewhere.
fn is_upgrade(headers: &HeaderMap, to: &[u8]) -> bool {
    let has = |name, token: &[u8]| {
        let line =
            headers.get(name).map_or(Vec::new(), |line: &HeaderValue| line.as_bytes().to_ascii_lowercase());
        line.windows(token.len()).any(|part| part == token)
    };
    has(header::CONNECTION, b"upgrade") && has(header::UPGRADE, to)
}

fn ports<S: AsRef<str>>(values: impl Iterator<Item = S>) -> Result<Vec<u16>, PortError> {
    let mut ports = Vec::new();
    let mut given = false;
    for value in values {
        let value = value.as_ref();
        given = true;
        if value.is_empty() {
            return Err(PortError::Empty);
        }
        for item in value.split(',') {
            let why = if item.is_empty() || !item.bytes().all(|byte| byte.is_ascii_digit()) {
                "invalid syntax"
            } else {
                "value out of range"
            };
            let parsed = item.parse().ok().filter(|_| why != "invalid syntax");
            match parsed {
                None => {
                    let (value, item) = (value.to_owned(), item.to_owned());
                    return Err(PortError::Parse { value, item, why });
                }
                Some(0) => return Err(PortError::Zero(value.to_owned())),
                Some(port) => ports.push(port),
            }
        }
    }
    if given { Ok(ports) } else { Err(PortError::Missing) }
}

/// Whether nothing of the pod runs any more, nor will.
fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn spdy(headers: &HeaderMap) -> Result<(Answer, Kind), Box<Answer>> {
    if !is_upgrade(headers, b"spdy/3.1") {
        // Go prints names and values; the names are enough to see what is missing.
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        let text =
            format!("unable to upgrade: missing upgrade headers in request: map[{}]\n", names.join(" "));
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, text)));
    }
    let lines = headers.get_all(remotecommand::PROTOCOL_HEADER).iter();
    let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    if lines.is_empty() {
        let text =
            remotecommand::missing_body(headers.keys_len() - usize::from(headers.contains_key(header::HOST)));
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, text)));
    }
    let items = || lines.iter().flat_map(|line| handshake::items(line)).filter(|item| !item.is_empty());
    let ours = HeaderValue::from_static(PROTOCOL);
    if !items().any(|item| item == PROTOCOL) {
        let client = items().collect::<Vec<_>>().join(" ");
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{client}], server accepts \
             [{PROTOCOL}]\n"
        );
        let mut answer = plain(StatusCode::FORBIDDEN, text);
        answer.headers_mut().append(remotecommand::ACCEPTED_HEADER, ours);
        return Err(Box::new(answer));
    }
    let answer = switching([
        ("Connection", HeaderValue::from_static("Upgrade")),
        ("Upgrade", HeaderValue::from_static("SPDY/3.1")),
        (remotecommand::PROTOCOL_HEADER, ours),
    ]);
    Ok((answer, Kind::Spdy))
}

fn tunnel(method: &Method, headers: &HeaderMap) -> Result<(Answer, Kind), Box<Answer>> {
    let challenge = Challenge::read(method, headers).map_err(refused)?;
    let answer = challenge.choose(&[TUNNEL_PROTOCOL]).map_err(refused)?;
    Ok((websocket(&answer), Kind::Tunnel))
}

fn legacy(method: &Method, headers: &HeaderMap, ports: Vec<u16>) -> Result<(Answer, Kind), Box<Answer>> {
    let challenge = Challenge::read(method, headers).map_err(refused)?;
    let answer = challenge.choose(&Legacy::PROTOCOLS).map_err(refused)?;
    let is_base64 = answer.protocol() == Legacy::PROTOCOLS[2];
    let encoding = if is_base64 { Encoding::Base64 } else { Encoding::Binary };
    let Some(legacy) = Legacy::new(encoding, ports) else {
        let text = format!("more than {} ports", portforward::MAX_PORTS);
        return Err(Box::new(plain(StatusCode::BAD_REQUEST, text)));
    };
    Ok((websocket(&answer), Kind::Legacy(legacy, encoding)))
}

fn refused(refusal: Refusal) -> Box<Answer> {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let text = if refusal == Refusal::Protocol { String::new() } else { refusal.to_string() };
    let mut answer = plain(status, text);
    if refusal == Refusal::Version {
        let version = HeaderValue::from_static(handshake::VERSION);
        answer.headers_mut().insert(handshake::VERSION_HEADER, version);
    }
    Box::new(answer)
}

fn websocket(answer: &handshake::Answer) -> Answer {
    // The key's proof is base64 and the protocol one of ours.
    switching(answer.headers().filter_map(|(name, value)| Some((name, HeaderValue::from_str(value).ok()?))))
}

fn switching(headers: impl IntoIterator<Item = (&'static str, HeaderValue)>) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in headers {
        answer.headers_mut().insert(name, value);
    }
    answer
}
