//! How a session travels: what the client speaks, what the far side is asked for because of it, and the [`Link`]
//! between the two.
//!
//! | client | far side | link |
//! | --- | --- | --- |
//! | SPDY | SPDY, the client's own request | `SpdyLink` |
//! | WebSocket up to v4, port-forward with `ports` | WebSocket, the client's own request | `WsLink` |
//! | WebSocket v5 | SPDY, a request of podgate's own | `Translator` |
//! | WebSocket v5, where wanted, at a far side that may speak it | WebSocket, the client's own request | `WsLink` |
//! | WebSocket (exec, attach), where the far side has refused it | SPDY, a request of podgate's own | `Translator` |
//! | port-forward's tunnel | SPDY, the client's request rewritten | `Tunnel` |
//!
//! Source: `protocol.md` 7.2 to 7.6 (apiserver `pkg/util/proxy/translatinghandler.go`).

use std::borrow::Cow;
use std::time::Duration;

use aws_lc_rs::rand;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::{ClientHead, Error};
use crate::config::Translate;
use crate::locate::{FarSide, Place};
use crate::request::{Exec, Subresource};
use crate::status::Refusal;
use crate::wire::channel::{self, Subprotocol};
use crate::wire::http1::ResponseHead;
use crate::wire::link::spdy::SpdyLink;
use crate::wire::link::translate::Translator;
use crate::wire::link::tunnel::Tunnel;
use crate::wire::link::ws::WsLink;
use crate::wire::link::{Link, Runs, Timing};
use crate::wire::portforward::{self, Legacy};
use crate::wire::remotecommand::{self, Protocol};
use crate::wire::ws::{MaskKey, handshake};

/// Period of [`Link::tick`]: of the pings that a translator sends the far side (`protocol.md` 5.5).
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The header of what is spoken inside SPDY.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// What a server answers that does not speak WebSocket, or not to podgate, or not this subprotocol: 400 where it misses
/// the headers of SPDY, 403 from a runtime that knows no v5 (`protocol.md` 6.2) and where only `create` is allowed
/// (3.3), and what HTTP has for it.
const UNSPOKEN: [u16; 5] = [400, 403, 405, 426, 501];

/// How a session travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Carriage {
    /// SPDY on both sides.
    Spdy,
    /// WebSocket on both sides.
    WebSocket,
    /// WebSocket for the client, SPDY for the far side.
    Translated(handshake::Answer),
    /// SPDY inside WebSocket for the client, SPDY for the far side.
    Tunnelled(handshake::Challenge),
}

/// Why a session cannot be recorded, whatever the far side says to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unrecordable {
    /// Nobody here knows what they look like.
    #[error("the session is to be recorded, and can be in none of the protocols that its client offers")]
    Protocols,
    /// More than the channels of a WebSocket can name.
    #[error("the session is to be recorded, and can be for at most {} ports", portforward::MAX_PORTS)]
    Ports,
}

/// What begins once the far side has switched.
pub struct Switched {
    /// The 101 that the client gets.
    pub answer: Bytes,
    /// What stands between the two.
    pub link: Box<dyn Link>,
    /// What is done by the clock.
    pub timing: Timing,
    /// What the far side runs.
    pub runs: Runs,
    /// What the client speaks, such as `websocket v5.channel.k8s.io`.
    pub client_protocol: String,
    /// What the far side speaks, such as `SPDY/3.1 v4.channel.k8s.io`.
    pub far_protocol: String,
}

// === impl Unrecordable ===

impl Unrecordable {
    /// What the client is told.
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Protocols | Self::Ports => Refusal::BadRequest(self.to_string()),
        }
    }
}

// === impl Carriage ===

impl Carriage {
    /// How a WebSocket request is carried.
    ///
    /// # Errors
    /// When podgate has to answer the handshake itself, and it is none.
    pub fn of_websocket(
        method: &Method,
        headers: &HeaderMap,
        place: &Place,
        translate: Translate,
    ) -> Result<Self, handshake::Refusal> {
        let first = first_protocols(headers);
        match place.exec().subresource {
            Subresource::PortForward if portforward::wants_tunnel(&first) => {
                handshake::Challenge::read(method, headers).map(Self::Tunnelled)
            }
            Subresource::Exec | Subresource::Attach if channel::wants_translator(&first) => {
                if translate == Translate::WhenNeeded && place.far_side().may_speak_v5() {
                    return Ok(Self::WebSocket);
                }
                let challenge = handshake::Challenge::read(method, headers)?;
                Ok(Self::Translated(challenge.settle(Some(Subprotocol::V5.name()))))
            }
            Subresource::Exec | Subresource::Attach | Subresource::PortForward => Ok(Self::WebSocket),
        }
    }

    /// Takes out of what the client offers to speak what podgate could not record: the far side might choose that, and
    /// run the command, before its answer can be refused. What is left is in one line; servers read no other.
    ///
    /// # Errors
    /// When nothing of it is left.
    pub fn recordable(&mut self, exec: &Exec, headers: &mut HeaderMap) -> Result<(), Unrecordable> {
        let command = matches!(exec.subresource, Subresource::Exec | Subresource::Attach);
        match self {
            // The far side is offered what podgate knows.
            Self::Translated(_) => Ok(()),
            Self::Tunnelled(challenge) => {
                challenge.retain(|name| name == portforward::TUNNEL_PROTOCOL);
                if challenge.protocols().is_empty() { Err(Unrecordable::Protocols) } else { Ok(()) }
            }
            Self::Spdy => keep(headers, STREAM_PROTOCOL, All::Lines, |name| match command {
                true => Protocol::SPDY.iter().any(|protocol| protocol.name() == name),
                false => name == portforward::PROTOCOL,
            }),
            Self::WebSocket if !command && exec.ports.len() > portforward::MAX_PORTS => {
                Err(Unrecordable::Ports)
            }
            Self::WebSocket => {
                keep(headers, header::SEC_WEBSOCKET_PROTOCOL, All::FirstLine, |name| match command {
                    true => Subprotocol::from_name(name).is_some_and(|known| known != Subprotocol::Unnamed),
                    false => !name.is_empty() && Legacy::PROTOCOLS.contains(&name),
                })
            }
        }
    }

    /// How else the session may be carried, now that the far side has refused it with this head: in SPDY, to a far
    /// side that seems to speak nothing else, or lets podgate do nothing else.
    pub(super) fn fallback(
        &self,
        refusal: &ResponseHead,
        client: &ClientHead<'_>,
        place: &Place,
    ) -> Option<Self> {
        let command = matches!(place.exec().subresource, Subresource::Exec | Subresource::Attach);
        if *self != Self::WebSocket || !command || !UNSPOKEN.contains(&refusal.status) {
            return None;
        }
        // A Status is the API server's own word on the caller; what it passes on of kubelets and runtimes is plain.
        if *place.far_side() == FarSide::ApiServer
            && first(refusal, "content-type").starts_with(b"application/")
        {
            return None;
        }
        let challenge = handshake::Challenge::read(client.method, client.headers).ok()?;
        if channel::wants_translator(&first_protocols(client.headers)) {
            return Some(Self::Translated(challenge.settle(Some(Subprotocol::V5.name()))));
        }
        let served = Subprotocol::RUNTIME.map(Subprotocol::name);
        challenge.choose(&served).ok().map(Self::Translated)
    }

    /// What begins now that the far side has answered 101, with `head`, whose bytes are `raw`.
    ///
    /// # Errors
    /// When the far side has switched to something else than it was asked for.
    pub(super) fn switched(&self, exec: &Exec, head: &ResponseHead, raw: Bytes) -> Result<Switched, Error> {
        let (link, answer): (Box<dyn Link>, Bytes) = match self {
            Self::Spdy => {
                spdy_only(head)?;
                let link = match exec.subresource {
                    Subresource::PortForward => SpdyLink::port_forward(),
                    Subresource::Exec | Subresource::Attach => SpdyLink::command(version(head), exec.runs()),
                };
                (Box::new(link), raw)
            }
            Self::WebSocket => (websocket(exec, head)?, raw),
            Self::Translated(answer) => {
                spdy_only(head)?;
                let subprotocol = Subprotocol::from_name(answer.protocol());
                let subprotocol =
                    subprotocol.ok_or_else(|| Error::Subprotocol(answer.protocol().to_owned()))?;
                let link = Translator::new(subprotocol, exec.asked(), version(head));
                (Box::new(link), answer.to_bytes())
            }
            Self::Tunnelled(challenge) => {
                spdy_only(head)?;
                let chosen = first(head, remotecommand::PROTOCOL_HEADER);
                let chosen = String::from_utf8_lossy(chosen);
                let named =
                    portforward::tunnel_answer(challenge.protocols(), Some(&chosen)).map(str::to_owned);
                let answer = challenge.clone().settle(named.as_deref());
                (Box::new(Tunnel::new()), answer.to_bytes())
            }
        };
        // Where the client's pings are answered here, it is also to be kept alive while its input is blocked.
        let pinged = matches!(self, Self::Translated(_) | Self::WebSocket);
        let timing = Timing { keepalive: pinged.then_some(KEEPALIVE) };
        let name = |name: &str| String::from_utf8_lossy(first(head, name)).into_owned();
        let far_protocol = match self {
            Self::WebSocket => format!("websocket {}", name(handshake::PROTOCOL_HEADER)),
            _ => format!("SPDY/3.1 {}", name(remotecommand::PROTOCOL_HEADER)),
        };
        let client_protocol = match self {
            Self::Spdy | Self::WebSocket => far_protocol.clone(),
            Self::Translated(answer) => format!("websocket {}", answer.protocol()),
            Self::Tunnelled(_) => format!("websocket {}", portforward::TUNNEL_PROTOCOL),
        };
        let [client_protocol, far_protocol] =
            [client_protocol, far_protocol].map(|text| text.trim_end().to_owned());
        Ok(Switched { answer, link, timing, runs: exec.runs(), client_protocol, far_protocol })
    }
}

/// What of a header servers read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum All {
    Lines,
    FirstLine,
}

/// Leaves of a list in a header what is wanted; a header that is not there, or has nothing in it, stays so.
fn keep(
    headers: &mut HeaderMap,
    name: HeaderName,
    read: All,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), Unrecordable> {
    let lines = headers.get_all(&name).iter().take(if read == All::Lines { usize::MAX } else { 1 });
    let lines: Vec<Cow<'_, str>> = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
    let items = || lines.iter().flat_map(|line| handshake::items(line));
    let kept = items().filter(|item| wanted(item)).collect::<Vec<_>>().join(", ");
    if kept.is_empty() && items().next().is_some() {
        return Err(Unrecordable::Protocols);
    }
    let kept = HeaderValue::from_str(&kept).map_err(|_| Unrecordable::Protocols)?;
    if headers.contains_key(&name) {
        headers.insert(name, kept);
    }
    Ok(())
}

/// The first line of the client's subprotocols, the only one that upstream looks at.
fn first_protocols(headers: &HeaderMap) -> Cow<'_, str> {
    let first = headers.get(handshake::PROTOCOL_HEADER);
    first.map(|value| String::from_utf8_lossy(value.as_bytes())).unwrap_or_default()
}

/// The first value of a header; empty when there is none.
fn first<'a>(head: &'a ResponseHead, name: &'a str) -> &'a [u8] {
    head.values(name).next().unwrap_or_default()
}

fn spdy_only(head: &ResponseHead) -> Result<(), Error> {
    match portforward::is_spdy_upgrade(head) {
        true => Ok(()),
        false => Err(Error::OtherUpgrade),
    }
}

/// The version that an exec's client takes a 101 for: without the header, or with a strange one, the first.
fn version(head: &ResponseHead) -> Protocol {
    let named = str::from_utf8(first(head, remotecommand::PROTOCOL_HEADER)).ok();
    named.and_then(Protocol::from_name).filter(|named| Protocol::SPDY.contains(named)).unwrap_or(Protocol::V1)
}

fn websocket(exec: &Exec, head: &ResponseHead) -> Result<Box<dyn Link>, Error> {
    let token = |name: &'static str, token: &[u8]| {
        head.values(name).any(|value| {
            value.split(|&byte| byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
        })
    };
    if !token("connection", b"upgrade") || !token("upgrade", b"websocket") {
        return Err(Error::OtherUpgrade);
    }
    if head.values("sec-websocket-extensions").any(|value| !value.trim_ascii().is_empty()) {
        return Err(Error::Extensions);
    }
    let named = String::from_utf8_lossy(first(head, handshake::PROTOCOL_HEADER)).into_owned();
    let Some(subprotocol) = Subprotocol::from_name(&named) else {
        return Err(Error::Subprotocol(named));
    };
    Ok(match exec.subresource {
        Subresource::PortForward if Legacy::PROTOCOLS.contains(&subprotocol.name()) => {
            let link = WsLink::port_forward(subprotocol.encoding(), exec.ports.clone(), mask);
            Box::new(link.ok_or(Error::TooManyPorts(exec.ports.len()))?)
        }
        Subresource::PortForward => return Err(Error::Subprotocol(named)),
        Subresource::Exec | Subresource::Attach => Box::new(WsLink::command(subprotocol, exec.asked(), mask)),
    })
}

/// A key that nobody foresees (RFC 6455 section 5.3).
fn mask() -> MaskKey {
    let mut key = [0; 4];
    // The only failure is a system without randomness, on which there was no TLS either.
    let _ = rand::fill(&mut key);
    MaskKey(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(subresource: Subresource, ports: usize) -> Exec {
        Exec {
            subresource,
            namespace: "default".into(),
            pod: "web".into(),
            container: String::new(),
            command: Vec::new(),
            ports: vec![80; ports],
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        }
    }

    fn headers(name: &HeaderName, lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn what_could_not_be_recorded_is_not_offered_to_the_far_side() {
        let (spdy, ws) = (STREAM_PROTOCOL, header::SEC_WEBSOCKET_PROTOCOL);
        let command = [Subresource::Exec, Subresource::Attach];
        let cases: [(&Carriage, &HeaderName, &[&'static str], Option<&str>); 11] = [
            (&Carriage::Spdy, &spdy, &["v5.channel.k8s.io", "v4.channel.k8s.io"], Some("v4.channel.k8s.io")),
            (
                &Carriage::Spdy,
                &spdy,
                &["v9, v2.channel.k8s.io", "x", "channel.k8s.io"],
                Some("v2.channel.k8s.io, channel.k8s.io"),
            ),
            (&Carriage::Spdy, &spdy, &["V4.channel.k8s.io"], None),
            (&Carriage::Spdy, &spdy, &[], Some("")),
            (
                &Carriage::WebSocket,
                &ws,
                &["v4.channel.k8s.io,v3.channel.k8s.io, base64.channel.k8s.io"],
                Some("v4.channel.k8s.io, base64.channel.k8s.io"),
            ),
            (&Carriage::WebSocket, &ws, &["v5.channel.k8s.io"], Some("v5.channel.k8s.io")),
            (&Carriage::WebSocket, &ws, &["channel.k8s.io", "v9"], Some("channel.k8s.io")),
            // No server looks at a second line.
            (&Carriage::WebSocket, &ws, &["v9", "channel.k8s.io"], None),
            (&Carriage::WebSocket, &ws, &["portforward.k8s.io"], None),
            (&Carriage::WebSocket, &ws, &[","], None),
            (&Carriage::WebSocket, &ws, &[], Some("")),
        ];
        for (carriage, name, lines, left) in cases {
            for subresource in command {
                let mut headers = headers(name, lines);
                let kept = carriage.clone().recordable(&exec(subresource, 0), &mut headers);
                let value = headers.get_all(name).iter().map(|line| line.to_str().unwrap_or("?"));
                match left {
                    Some(left) => {
                        assert_eq!(
                            (kept, value.collect::<Vec<_>>().join("+").as_str()),
                            (Ok(()), left),
                            "{lines:?}"
                        );
                    }
                    None => assert_eq!(kept, Err(Unrecordable::Protocols), "{lines:?}"),
                }
            }
        }
    }

    #[test]
    fn a_port_forward_is_recorded_in_what_port_forwards_speak() {
        let exec = |ports| exec(Subresource::PortForward, ports);
        let mut strange = headers(&STREAM_PROTOCOL, &["v4.channel.k8s.io"]);
        assert_eq!(Carriage::Spdy.recordable(&exec(0), &mut strange), Err(Unrecordable::Protocols));
        let mut known = headers(&STREAM_PROTOCOL, &["portforward.k8s.io"]);
        assert_eq!(Carriage::Spdy.recordable(&exec(0), &mut known), Ok(()));
        let mut ws = headers(&header::SEC_WEBSOCKET_PROTOCOL, &["v4.channel.k8s.io, channel.k8s.io"]);
        assert_eq!(Carriage::WebSocket.recordable(&exec(128), &mut ws), Ok(()));
        assert_eq!(ws[header::SEC_WEBSOCKET_PROTOCOL], "v4.channel.k8s.io");
        assert_eq!(Carriage::WebSocket.recordable(&exec(129), &mut ws), Err(Unrecordable::Ports));
        for (offered, left) in [
            ("SPDY/3.1+other.k8s.io, SPDY/3.1+portforward.k8s.io", Ok(())),
            ("SPDY/3.1+other.k8s.io", Err(Unrecordable::Protocols)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [
                ("connection", "Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", offered),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            let challenge = handshake::Challenge::read(&Method::GET, &headers);
            let mut carriage = Carriage::Tunnelled(challenge.expect("a handshake"));
            assert_eq!(carriage.recordable(&exec(0), &mut headers), left);
            let Carriage::Tunnelled(challenge) = carriage else { unreachable!("it stays what it is") };
            assert!(challenge.protocols().iter().all(|name| name == portforward::TUNNEL_PROTOCOL));
        }
    }
}
