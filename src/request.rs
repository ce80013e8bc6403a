//! Request: method, URI and headers into one [`Ask`], once; nobody reads the URI afterwards.
//!
//! In the flow: the first thing a door does. What is wrong with the options of a session is remembered and
//! told only after authorization, in upstream's order of checks (`protocol.md` 1.3).
//! Source: apiserver `pkg/endpoints/request/requestinfo.go`; `protocol.md` 1.1, 1.2, 1.4.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method, header};
use serde::{Deserialize, Serialize};

use crate::status::{Encoding, Refusal, go_quote};
use crate::wire::remotecommand::Asked;

/// Every header that asks for impersonation begins with this (`protocol.md` 8.3).
pub const IMPERSONATION_PREFIX: &str = "impersonate-";

/// The header that says what a session is for; `?reason=` says the same.
pub const REASON_HEADER: HeaderName = HeaderName::from_static("podgate-reason");

/// Bytes of what a session is for: a few sentences. What is longer is cut.
pub const MAX_REASON: usize = 1024;

/// Everything podgate reads from a request head.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What is to be authorized.
    pub attributes: Attributes,
    /// The decoded query.
    pub query: Query,
    /// The request URI as sent, for logs.
    pub uri: String,
    /// How a Status is to be written.
    pub encoding: Encoding,
    /// What it is for, if that is said.
    pub reason: Option<String>,
    /// The session asked for, if the path is one of a session's subresources.
    pub exec: Option<Result<Exec, Refusal>>,
}

/// Authorization attributes, as a SubjectAccessReview carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// API verb for resources, lower-case method for other paths. Empty for methods Kubernetes has no verb for.
    pub verb: String,
    /// The decoded path.
    pub path: String,
    /// Set when the path names a resource.
    pub resource: Option<Resource>,
}

/// The resource part of [`Attributes`]; absent parts are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace; empty at the cluster scope.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Path segments after the subresource. No session and no object has any.
    pub rest: Vec<String>,
}

/// The three doors into a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Subresource {
    /// `pods/exec`
    Exec,
    /// `pods/attach`
    Attach,
    /// `pods/portforward`
    PortForward,
}

/// A session asked for: what every door makes of its own client's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Which of the three.
    pub subresource: Subresource,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Container asked for; empty when none was named.
    pub container: String,
    /// The argument vector, byte for byte and in order.
    pub command: Vec<Vec<u8>>,
    /// Ports of a port-forward; only legacy WebSocket clients name them here.
    pub ports: Vec<u16>,
    /// Whether the client sends standard input.
    pub stdin: bool,
    /// Whether the client wants standard output.
    pub stdout: bool,
    /// Whether the client wants standard error.
    pub stderr: bool,
    /// Whether the command runs in a terminal.
    pub tty: bool,
}

/// A query as Go's `url.ParseQuery` reads it: order kept, bytes kept, bad pairs dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(Vec<u8>, Vec<u8>)>);

/// What kind of connection the client asks to switch to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upgrade {
    /// Not an upgrade request.
    None,
    /// `SPDY/3.1`
    Spdy,
    /// `websocket`
    WebSocket,
    /// Anything else; upstream would forward it, podgate refuses what it cannot name.
    Other,
}

// === impl Ask ===

impl Ask {
    /// Reads a request head.
    ///
    /// # Errors
    /// 400 when the path cannot be decoded: then nothing can be authorized.
    pub fn parse(method: &Method, uri: &http::Uri, headers: &HeaderMap) -> Result<Self, Refusal> {
        let path = decode_path(uri.path())?;
        let query = Query::parse(uri.query().unwrap_or(""));
        let attributes = Attributes::of(method, path, &query)?;
        let encoding = Encoding::of(headers, query.first("pretty").as_deref());
        let reason = reason(&query, headers);
        let exec =
            attributes.resource.as_ref().and_then(|resource| Exec::of(method, &attributes, resource, &query));
        let uri = uri.path_and_query().map_or("/", |all| all.as_str()).to_owned();
        Ok(Self { attributes, query, uri, encoding, reason, exec })
    }

    /// Whether upstream exempts this request from request deadlines and in-flight limits (`protocol.md` 8.5).
    pub fn long_running(&self) -> bool {
        let subresource = self.attributes.resource.as_ref().map_or("", |resource| &resource.subresource);
        let group = self.attributes.resource.as_ref().map_or("", |resource| &resource.group);
        self.attributes.verb == "watch"
            || self.attributes.verb == "proxy"
            || (group, subresource) == ("podgate.dev", "stream")
            || matches!(subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
    }
}

// === impl Attributes ===

impl Attributes {
    /// Upstream's `NewRequestInfo`.
    fn of(method: &Method, path: String, query: &Query) -> Result<Self, Refusal> {
        let trimmed = path.trim_matches('/').to_owned();
        let all: Vec<&str> = if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').collect() };
        let (group, version, mut parts) = match all.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => {
                let verb = method.as_str().to_ascii_lowercase();
                return Ok(Self { verb, path, resource: None });
            }
        };
        let mut verb = verb_of(method);
        if let ["proxy" | "watch", rest @ ..] = parts {
            verb = parts[0];
            parts = rest;
            if parts.is_empty() {
                let text = format!("unable to determine kind and namespace from url, {path}");
                return Err(Refusal::Filter { uri: path, text });
            }
        }
        let mut namespace = "";
        if let ["namespaces", name, rest @ ..] = parts {
            namespace = name;
            // `status` and `finalize` belong to the namespace itself; anything else lives inside it.
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") {
                parts = rest;
            }
        }
        let part = |index: usize| parts.get(index).copied().unwrap_or("");
        let mut resource = Resource {
            group: group.into(),
            version: version.into(),
            resource: part(0).into(),
            subresource: if verb == "proxy" { String::new() } else { part(2).into() },
            namespace: namespace.into(),
            name: part(1).into(),
            rest: parts.iter().skip(3).map(|&part| part.to_owned()).collect(),
        };
        let mut verb = verb.to_owned();
        if resource.name.is_empty() && verb == "get" {
            verb = if query.flag("watch") { "watch" } else { "list" }.to_owned();
        }
        if resource.name.is_empty() && verb == "delete" {
            verb = "deletecollection".to_owned();
        }
        if resource.name.is_empty() && matches!(verb.as_str(), "list" | "watch") {
            // A list or watch of exactly one name is authorized for that name.
            if let Some(selector) = query.first("fieldSelector")
                && let Some(name) = selector.strip_prefix("metadata.name=")
                && !name.contains([',', '!', '\\'])
                && name_problem(name).is_none()
            {
                resource.name = name.strip_prefix('=').unwrap_or(name).to_owned();
            }
        }
        Ok(Self { verb, path, resource: Some(resource) })
    }

    /// The same request asked with another verb.
    pub fn with_verb(&self, verb: &str) -> Self {
        Self { verb: verb.to_owned(), ..self.clone() }
    }
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

// === impl Subresource ===

impl Subresource {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
        }
    }
}

// === impl Exec ===

impl Exec {
    /// The streams asked for.
    pub fn asked(&self) -> Asked {
        Asked { stdin: self.stdin, stdout: self.stdout, stderr: self.stderr, tty: self.tty }
    }

    /// `None` when the resource is no session; the checks are those of `protocol.md` 1.3, steps 1 to 3.
    fn of(
        method: &Method,
        attributes: &Attributes,
        resource: &Resource,
        query: &Query,
    ) -> Option<Result<Self, Refusal>> {
        if !(resource.group.is_empty() && resource.version == "v1" && resource.resource == "pods") {
            return None;
        }
        let subresource = match resource.subresource.as_str() {
            "exec" => Subresource::Exec,
            "attach" => Subresource::Attach,
            "portforward" => Subresource::PortForward,
            _ => return None,
        };
        // `/api/v1/watch/...` and `/api/v1/proxy/...` are old prefixes of collections; no session is behind them.
        let Attributes { verb, path, .. } = attributes;
        let prefixed = matches!(verb.as_str(), "watch" | "proxy");
        // Upstream authorizes `//api/...` as if it had one slash, and then serves nothing there.
        if prefixed || path.starts_with("//") || !resource.rest.is_empty() || resource.namespace.is_empty() {
            return Some(Err(Refusal::NoSuchPath));
        }
        if !matches!(*method, Method::GET | Method::POST) {
            return Some(Err(Refusal::MethodNotAllowed));
        }
        // A list of the one name in a field selector has a name that the path does not.
        let named = verb != "list" && !resource.name.is_empty();
        Some(Self::decode(subresource, resource, named, query))
    }

    fn decode(
        subresource: Subresource,
        resource: &Resource,
        named: bool,
        query: &Query,
    ) -> Result<Self, Refusal> {
        if query.first("dryRun").is_some() {
            return Err(Refusal::BadRequest("dryRun is not supported".into()));
        }
        if !named {
            return Err(Refusal::BadRequest("name must be provided".into()));
        }
        let forward = subresource == Subresource::PortForward;
        let ports = if forward { ports(query)? } else { Vec::new() };
        let streams = |name| !forward && query.flag(name);
        Ok(Self {
            subresource,
            namespace: resource.namespace.clone(),
            pod: resource.name.clone(),
            container: if forward {
                String::new()
            } else {
                query.first("container").map(Cow::into_owned).unwrap_or_default()
            },
            command: if subresource == Subresource::Exec {
                query.all("command").map(<[u8]>::to_vec).collect()
            } else {
                Vec::new()
            },
            ports,
            stdin: streams("stdin"),
            stdout: streams("stdout"),
            stderr: streams("stderr"),
            tty: streams("tty"),
        })
    }
}

/// `ports` values: repeated and comma separated, each an unsigned 16-bit decimal (`protocol.md` 1.4).
fn ports(query: &Query) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::new();
    for value in query.all("ports") {
        for item in value.split(|&byte| byte == b',') {
            let digits = !item.is_empty() && item.iter().all(u8::is_ascii_digit);
            let parsed =
                if digits { str::from_utf8(item).ok().and_then(|text| text.parse().ok()) } else { None };
            ports.push(parsed.ok_or_else(|| {
                let what = if digits { "value out of range" } else { "invalid syntax" };
                Refusal::BadRequest(format!(
                    "cannot convert to []int32: strconv.ParseUint: parsing {}: {what}",
                    go_quote(item)
                ))
            })?);
        }
    }
    Ok(ports)
}

// === impl Query ===

impl Query {
    /// Reads the part after `?`. Never fails: a pair with a bad escape or a `;` is dropped, as in Go 1.17+.
    pub fn parse(raw: &str) -> Self {
        let mut pairs = Vec::new();
        for pair in raw.split('&') {
            if pair.is_empty() || pair.contains(';') {
                continue;
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Some(key), Some(value)) = (unescape(key, true), unescape(value, true)) {
                pairs.push((key, value));
            }
        }
        Self(pairs)
    }

    /// The first value of this name, as text; bytes that are not UTF-8 become U+FFFD.
    pub fn first(&self, name: &str) -> Option<Cow<'_, str>> {
        self.all(name).next().map(String::from_utf8_lossy)
    }

    /// All values of this name, in order.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |(key, _)| key == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// A boolean by the API's rule: absent, `0` and any case of `false` are false, all else is true.
    pub fn flag(&self, name: &str) -> bool {
        self.all(name).next().is_some_and(|value| value != b"0" && !value.eq_ignore_ascii_case(b"false"))
    }
}

// === impl Upgrade ===

impl Upgrade {
    /// Any `Connection` line with `upgrade` in it makes an upgrade request (`protocol.md` 4.1).
    pub fn of(headers: &HeaderMap) -> Self {
        let has = |name, word: &[u8]| {
            headers.get_all(name).iter().any(|value| {
                value.as_bytes().windows(word.len()).any(|window| window.eq_ignore_ascii_case(word))
            })
        };
        if !has(header::CONNECTION, b"upgrade") {
            return Self::None;
        }
        match headers.get(header::UPGRADE).map(http::HeaderValue::as_bytes) {
            Some(value) if value.eq_ignore_ascii_case(b"spdy/3.1") => Self::Spdy,
            Some(value) if value.eq_ignore_ascii_case(b"websocket") => Self::WebSocket,
            _ => Self::Other,
        }
    }
}

/// What a session is for, in one line that can be shown: by the query, or else by a header.
fn reason(query: &Query, headers: &HeaderMap) -> Option<String> {
    let header = || headers.get(REASON_HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let said = query.first("reason").or_else(header)?;
    let mut text = said.replace(char::is_control, " ").trim().to_owned();
    text.truncate(text.floor_char_boundary(MAX_REASON));
    (!text.is_empty()).then_some(text)
}

/// What keeps a name from being one segment of a path, in upstream's words; `None` when nothing does.
/// Source: apimachinery `pkg/api/validation/path`.
pub fn name_problem(name: &str) -> Option<&'static str> {
    match name {
        "." => Some("may not be '.'"),
        ".." => Some("may not be '..'"),
        _ if name.contains('/') => Some("may not contain '/'"),
        _ if name.contains('%') => Some("may not contain '%'"),
        _ => None,
    }
}

/// A path decoded as Go's `url.ParseRequestURI` does; `+` stays, and bytes that are not UTF-8 become U+FFFD.
fn decode_path(raw: &str) -> Result<String, Refusal> {
    match unescape(raw, false) {
        Some(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        None => Err(Refusal::BadRequest(format!("invalid URL escape in path {}", go_quote(raw.as_bytes())))),
    }
}

/// Percent-decoding; `None` when an escape is not two hex digits.
fn unescape(text: &str, plus_is_space: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests;
