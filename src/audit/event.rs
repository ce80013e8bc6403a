//! Event: one line of the audit log, as kube-apiserver writes it.
//!
//! Keys are in the order of the Go type, empty ones are left out as `omitempty` does, times have six decimals, and
//! `<`, `>` and `&` are escaped as Go's encoder escapes them. Source: `protocol.md` 8.6; apiserver
//! `pkg/apis/audit/v1/types.go`, `pkg/audit/request.go`, apimachinery `pkg/util/net/http.go` (`SourceIPs`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::policy::Level;
use crate::cluster::User;
use crate::request::Attributes;
use crate::status::html_escape_json;

/// How every event begins. Those of a list say neither of it again.
pub(super) const BEGINNING: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;

/// Bytes of a user agent that upstream keeps, and what then follows.
const USER_AGENT: usize = 1024;
const TRUNCATED: &str = "...TRUNCATED";

/// Where in a request's life an event stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The request is there, and the caller known.
    RequestReceived,
    /// The answer has begun; only of what may take long.
    ResponseStarted,
    /// It is over.
    ResponseComplete,
    /// Podgate panicked.
    Panic,
}

/// One event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Event {
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) level: Level,
    #[serde(rename = "auditID")]
    pub(super) audit_id: String,
    pub(super) stage: Stage,
    #[serde(rename = "requestURI")]
    pub(super) request_uri: String,
    pub(super) verb: String,
    pub(super) user: UserInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) impersonated_user: Option<UserInfo>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub(super) source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_status: Option<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request_object: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_object: Option<Box<RawValue>>,
    #[serde(serialize_with = "micro")]
    pub(super) request_received_timestamp: Timestamp,
    #[serde(serialize_with = "micro")]
    pub(super) stage_timestamp: Timestamp,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<Cow<'static, str>, String>,
}

/// `authentication.k8s.io/v1` UserInfo.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct UserInfo {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

/// The object that a request is about.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) subresource: String,
}

/// `metav1.Status` as far as audit has it: everything but what the object is.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) metadata: Empty,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) details: Option<Box<RawValue>>,
    pub(super) code: u16,
}

/// `{}`.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Empty {}

// === impl Event ===

impl Event {
    /// What is known of a request by its head. `received` is when that was there.
    pub(super) fn of(
        headers: &HeaderMap,
        peer: SocketAddr,
        request_uri: String,
        audit_id: String,
        attributes: &Attributes,
        received: Timestamp,
    ) -> Self {
        let object_ref = attributes.resource.as_ref().map(|resource| ObjectRef {
            resource: resource.resource.clone(),
            namespace: resource.namespace.clone(),
            name: resource.name.clone(),
            api_group: resource.group.clone(),
            api_version: resource.version.clone(),
            subresource: resource.subresource.clone(),
            ..ObjectRef::default()
        });
        Self {
            audit_id,
            request_uri,
            verb: attributes.verb.clone(),
            source_ips: source_ips(headers, peer.ip()),
            user_agent: user_agent(headers),
            object_ref,
            request_received_timestamp: received,
            stage_timestamp: received,
            ..Self::empty(received)
        }
    }

    fn empty(now: Timestamp) -> Self {
        Self {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: Level::Metadata,
            audit_id: String::new(),
            stage: Stage::RequestReceived,
            request_uri: String::new(),
            verb: String::new(),
            user: UserInfo::default(),
            impersonated_user: None,
            source_ips: Vec::new(),
            user_agent: String::new(),
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: now,
            stage_timestamp: now,
            annotations: BTreeMap::new(),
        }
    }

    /// An event of podgate itself, about no request.
    pub(super) fn of_podgate(annotations: BTreeMap<Cow<'static, str>, String>) -> Self {
        let user = UserInfo { username: "podgate".to_owned(), ..UserInfo::default() };
        Self {
            audit_id: uuid::Uuid::new_v4().to_string(),
            stage: Stage::ResponseComplete,
            user,
            annotations,
            ..Self::empty(Timestamp::now())
        }
    }

    /// The line, without its end.
    pub(super) fn encode(&self) -> Bytes {
        let text = serde_json::to_string(self).expect("text, numbers and maps with text as keys are JSON");
        html_escape_json(&text).into()
    }
}

// === impl UserInfo ===

impl From<&User> for UserInfo {
    fn from(user: &User) -> Self {
        let User { name, uid, groups, extra } = user;
        Self { username: name.clone(), uid: uid.clone(), groups: groups.clone(), extra: extra.clone() }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Nothing but a code.
    pub(super) fn code(code: u16) -> Self {
        Self { code, ..Self::default() }
    }

    /// What upstream says when a request ends before anything was written.
    pub(super) fn closed_early() -> Self {
        let message = "Connection closed early".to_owned();
        Self { status: "Success".to_owned(), message, code: 200, ..Self::default() }
    }

    /// What a Status says, if that is what these bytes are; `code` is that of HTTP.
    pub(super) fn of_status(json: &[u8], code: u16) -> Option<Self> {
        #[derive(Deserialize)]
        struct Status {
            kind: String,
            #[serde(default)]
            status: String,
            #[serde(default)]
            message: String,
            #[serde(default)]
            reason: String,
            details: Option<Box<RawValue>>,
            #[serde(default)]
            code: u16,
        }
        let seen: Status = serde_json::from_slice(json).ok().filter(|seen: &Status| seen.kind == "Status")?;
        let Status { status, message, reason, details, code: said, .. } = seen;
        let details = details.and_then(|details| compact(details.get().as_bytes()));
        let code = if said == 0 { code } else { said };
        Some(Self { status, message, reason, details, code, ..Self::default() })
    }
}

/// JSON without the blanks between its parts, so that it stands on one line; nothing when it is no JSON.
pub(super) fn compact(json: &[u8]) -> Option<Box<RawValue>> {
    let text = str::from_utf8(json).ok()?;
    let value: &RawValue = serde_json::from_str(text).ok()?;
    let (mut out, mut quoted, mut escaped) = (String::with_capacity(text.len()), false, false);
    for ch in value.get().chars() {
        match ch {
            ' ' | '\t' | '\r' | '\n' if !quoted => continue,
            '"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && ch == '\\' && !escaped;
        out.push(ch);
    }
    RawValue::from_string(out).ok()
}

/// RFC 3339 with microseconds, as `metav1.MicroTime`.
pub(super) fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn micro<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&micros(*time))
}

/// What proxies say about where a request came from, and then where it did come from.
fn source_ips(headers: &HeaderMap, peer: IpAddr) -> Vec<String> {
    let parsed = |text: &str| text.trim().parse().ok().map(|ip: IpAddr| ip.to_canonical());
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut ips: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parsed).collect();
    ips.extend(parsed(text("x-real-ip")).filter(|ip| !ips.contains(ip)));
    let peer = peer.to_canonical();
    if ips.last() != Some(&peer) {
        ips.push(peer);
    }
    ips.iter().map(IpAddr::to_string).collect()
}

fn user_agent(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    if agent.len() <= USER_AGENT {
        return String::from_utf8_lossy(agent).into_owned();
    }
    String::from_utf8_lossy(&agent[..USER_AGENT]).into_owned() + TRUNCATED
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(lines: &[(&'static str, &str)], peer: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        source_ips(&headers, peer.parse().unwrap())
    }

    #[test]
    fn source_addresses_are_those_of_proxies_and_then_the_peer() {
        assert_eq!(ips(&[], "::ffff:192.0.2.1"), ["192.0.2.1"]);
        let forwarded = ("x-forwarded-for", "192.0.2.9, nonsense,2001:db8::1");
        assert_eq!(ips(&[forwarded], "192.0.2.1"), ["192.0.2.9", "2001:db8::1", "192.0.2.1"]);
        assert_eq!(ips(&[forwarded], "2001:db8::1"), ["192.0.2.9", "2001:db8::1"]);
        let real = ("x-real-ip", "192.0.2.9");
        assert_eq!(ips(&[forwarded, real], "192.0.2.9"), ["192.0.2.9", "2001:db8::1", "192.0.2.9"]);
        assert_eq!(ips(&[real], "192.0.2.1"), ["192.0.2.9", "192.0.2.1"]);
        // Upstream looks at the first line alone.
        assert_eq!(ips(&[forwarded, ("x-forwarded-for", "192.0.2.8")], "192.0.2.1").len(), 3);
    }

    #[test]
    fn a_long_user_agent_is_cut() {
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, "a".repeat(1024).parse().unwrap());
        assert_eq!(user_agent(&headers), "a".repeat(1024));
        headers.insert(header::USER_AGENT, "a".repeat(1025).parse().unwrap());
        assert_eq!(user_agent(&headers), "a".repeat(1024) + "...TRUNCATED");
        headers.insert(header::USER_AGENT, HeaderValue::from_bytes(&[0xff; 2000]).unwrap());
        assert!(user_agent(&headers).ends_with("...TRUNCATED"));
    }

    #[test]
    fn objects_stand_on_one_line_as_they_were() {
        let compacted = compact(b"{ \"a\" : [ 1.0,\n 2 ],\r\n\t\"b \\\" c\\\\\" : \" \\n \" }").unwrap();
        assert_eq!(compacted.get(), r#"{"a":[1.0,2],"b \" c\\":" \n "}"#);
        for none in [&b"{"[..], b"", b"{} {}", b"\xff"] {
            assert!(compact(none).is_none(), "{none:?}");
        }
    }

    #[test]
    fn an_event_of_podgate_begins_as_all_do() {
        let line = Event::of_podgate(BTreeMap::new()).encode();
        assert!(line.starts_with(BEGINNING.as_bytes()), "{line:?}");
    }

    #[test]
    fn a_status_is_told_without_what_it_is() {
        let json =
            br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"x"}}"#;
        let told = serde_json::to_string(&Outcome::of_status(json, 200).unwrap()).unwrap();
        assert_eq!(told, r#"{"metadata":{},"status":"Success","details":{"name":"x"},"code":200}"#);
        assert!(Outcome::of_status(br#"{"kind":"Pod"}"#, 200).is_none());
        assert!(Outcome::of_status(b"404 page not found", 404).is_none());
    }
}
