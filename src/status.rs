//! Status: the closed set of ways podgate says no, and the one mapping from it to `metav1.Status`.
//!
//! In the flow: every room's error ends here; nothing else builds an error body. The public text is what
//! kube-apiserver would say; private causes go to the log where the error is turned into a [`Refusal`].
//! Source: `protocol.md` 1.6 and 1.7 (apiserver `responsewriters/{status,writers,errors}.go`,
//! apimachinery `pkg/api/errors/errors.go`).

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

/// Media type of a Status body.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Go's `http.Error` media type, of the few failures that are plain text.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Why a request was refused: the whole set, each with its public text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// 400: the request itself is wrong.
    BadRequest(String),
    /// 401: nobody knows who is asking; details never reach the client (`protocol.md` 8.2).
    Unauthorized,
    /// 403: the cluster says no. `message` is complete; `about` is the parent resource.
    Forbidden {
        /// The whole message, such as `pods "a" is forbidden: ...`.
        message: String,
        /// The parent resource it is about.
        about: About,
    },
    /// 404 of a named object.
    NotFound(About),
    /// 404 of a path nobody serves.
    NoSuchPath,
    /// 409: an object of this name is there already.
    AlreadyExists(About),
    /// 409: somebody else has changed the object meanwhile, or it is not the one that was meant.
    Conflict {
        /// Why.
        text: String,
        /// Which object.
        about: About,
    },
    /// 405.
    MethodNotAllowed,
    /// 413: the request body is larger than it may be.
    TooLarge(String),
    /// 415: the request body is of a type nobody here reads.
    UnsupportedMediaType(String),
    /// 410: a list or watch asked for a version that is gone.
    Expired(String),
    /// 422: an object's fields are wrong, each in its own way.
    Invalid {
        /// The object's kind, such as `PodLogOptions`, and its name.
        about: About,
        /// What is wrong; not empty.
        causes: Vec<Cause>,
    },
    /// What a kubelet said instead of an answer, told as upstream's proxies of plain requests do.
    Backend {
        /// Its status code.
        code: StatusCode,
        /// What it said.
        text: String,
        /// The subresource it was asked for, such as `pods/log`, and the object's name.
        about: About,
    },
    /// 429: a limit of podgate's own was reached; try again after so many seconds.
    TooManyRequests {
        /// What is exhausted.
        message: String,
        /// Seconds for `Retry-After`.
        retry_after: u32,
    },
    /// 500 without a reason: any error that is not a Status of its own (`protocol.md` 1.6).
    Internal(String),
    /// 500 in plain text: a failure in a filter, before there is a resource to speak of.
    Filter {
        /// The request URI as sent.
        uri: String,
        /// What failed.
        text: String,
    },
    /// 503: podgate is stopping or the cluster cannot be asked.
    Unavailable(String),
    /// 503: podgate has just begun and does not know yet what it takes; try again after so many seconds.
    NotYet {
        /// What is not known.
        message: String,
        /// Seconds for `Retry-After`.
        retry_after: u32,
    },
    /// 504: a short request took longer than it may.
    Timeout,
    /// 500 in plain text: a handler panicked.
    Panic,
}

/// The object a refusal is about, for `details`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct About {
    /// Object name; empty when the request named none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// API group; empty for the core group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural resource, which Kubernetes calls `kind` here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

/// One thing that is wrong, for `details`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cause {
    /// `metav1.CauseType`; may be empty.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// The field; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// `metav1.Status` in upstream's key order; k8s-openapi's own type sorts its keys and would differ.
#[derive(Debug, Serialize)]
struct Status<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    code: u16,
}

#[derive(Debug, Serialize)]
struct Empty {}

#[derive(Debug, Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    about: &'a About,
    #[serde(skip_serializing_if = "<[Cause]>::is_empty")]
    causes: Cow<'a, [Cause]>,
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
}

/// How the client wants its JSON, decided once from `Accept`, `pretty` and `User-Agent`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encoding {
    pretty: bool,
}

// === impl Refusal ===

impl Refusal {
    /// 404 for a named object of the core group: `pods "a" not found`.
    pub fn not_found(kind: &str, name: &str) -> Self {
        Self::NotFound(About { name: name.into(), group: String::new(), kind: kind.into() })
    }

    /// The HTTP status code.
    pub fn code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotFound(_) | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::AlreadyExists(_) | Self::Conflict { .. } => StatusCode::CONFLICT,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Expired(_) => StatusCode::GONE,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Backend { code, .. } => *code,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal(_) | Self::Filter { .. } | Self::Panic => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable(_) | Self::NotYet { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The metric word: one of a closed set, safe as a label.
    pub fn word(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden { .. } => "forbidden",
            Self::NotFound(_) | Self::NoSuchPath => "not_found",
            Self::AlreadyExists(_) | Self::Conflict { .. } => "conflict",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Expired(_) => "expired",
            Self::TooLarge(_) => "too_large",
            Self::UnsupportedMediaType(_) => "unsupported_media_type",
            Self::Invalid { .. } => "invalid",
            Self::Backend { .. } => "backend",
            Self::TooManyRequests { .. } => "too_many_requests",
            Self::Internal(_) | Self::Filter { .. } => "internal",
            Self::Unavailable(_) | Self::NotYet { .. } => "unavailable",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
        }
    }

    /// `metav1.StatusReason`; empty where upstream has none.
    fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NotFound(_) | Self::NoSuchPath => "NotFound",
            Self::AlreadyExists(_) => "AlreadyExists",
            Self::Conflict { .. } => "Conflict",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::Expired(_) => "Expired",
            Self::TooLarge(_) => "RequestEntityTooLarge",
            Self::UnsupportedMediaType(_) => "UnsupportedMediaType",
            Self::Invalid { .. } => "Invalid",
            Self::Backend { code, .. } => backend(*code).0,
            Self::TooManyRequests { .. } => "TooManyRequests",
            Self::Internal(_) | Self::Filter { .. } | Self::Panic => "",
            Self::Unavailable(_) | Self::NotYet { .. } => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }

    /// The public message.
    pub fn message(&self) -> String {
        match self {
            Self::BadRequest(text)
            | Self::Internal(text)
            | Self::Expired(text)
            | Self::TooLarge(text)
            | Self::UnsupportedMediaType(text)
            | Self::Unavailable(text) => text.clone(),
            Self::Unauthorized => "Unauthorized".into(),
            Self::Forbidden { message, .. }
            | Self::TooManyRequests { message, .. }
            | Self::NotYet { message, .. } => message.clone(),
            Self::Invalid { about, causes } => {
                let one = |cause: &Cause| format!("{}: {}", cause.field, cause.message);
                let all = causes.iter().map(one).collect::<Vec<_>>().join(", ");
                let all = if causes.len() == 1 { all } else { format!("[{all}]") };
                format!("{} is invalid: {all}", about.named())
            }
            Self::Backend { code: StatusCode::BAD_REQUEST, text, .. } => text.clone(),
            Self::Backend { code: StatusCode::INTERNAL_SERVER_ERROR, text, .. } => {
                format!("Internal error occurred: {text}")
            }
            // The blank after the parenthesis is upstream's: a verb should stand there.
            Self::Backend { code, text, about } => {
                let said = match backend(*code).1 {
                    Some(said) => said.to_owned(),
                    None if *code == StatusCode::FORBIDDEN || *code == StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                        text.clone()
                    }
                    None if code.is_server_error() => format!(
                        "an error on the server ({}) has prevented the request from succeeding",
                        go_quote(text.as_bytes())
                    ),
                    None => format!(
                        "the server responded with the status code {} but did not return more information",
                        code.as_u16()
                    ),
                };
                format!("{said} ( {} {})", about.kind, about.name)
            }
            Self::NotFound(about) => format!("{} not found", about.named()),
            Self::AlreadyExists(about) => format!("{} already exists", about.named()),
            Self::Conflict { text, about } => {
                format!("Operation cannot be fulfilled on {}: {text}", about.named())
            }
            Self::NoSuchPath => "the server could not find the requested resource".into(),
            Self::MethodNotAllowed => {
                "the server does not allow this method on the requested resource".into()
            }
            Self::Filter { uri, text } => {
                format!(
                    "Internal Server Error: {}: {}\n",
                    html_escape(&go_quote(uri.as_bytes())),
                    html_escape(text)
                )
            }
            Self::Timeout => "Timeout: request did not complete within the allotted timeout".into(),
            Self::Panic => "This request caused apiserver to panic. Look in the logs for details.\n".into(),
        }
    }

    /// The body and the headers that upstream sends with it (`protocol.md` 1.6).
    pub fn response(&self, encoding: Encoding) -> Response<Bytes> {
        let message = self.message();
        let (media, body) = match self {
            Self::Filter { .. } | Self::Panic => (TEXT, Bytes::from(message)),
            _ => (JSON, encoding.encode(&self.status(&message))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.code();
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        headers.insert(header::CONTENT_TYPE, media);
        if let Self::Forbidden { .. } | Self::Filter { .. } | Self::Panic = self {
            headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        if let Self::TooManyRequests { retry_after, .. } | Self::NotYet { retry_after, .. } = self {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(*retry_after));
        }
        response
    }

    fn status<'a>(&'a self, message: &'a str) -> Status<'a> {
        /// `details` that upstream sends although they hold nothing.
        static NOTHING: About = About { name: String::new(), group: String::new(), kind: String::new() };
        let of = |about| Details { about, causes: Cow::Borrowed(&[]), retry_after: None };
        let details = match self {
            Self::Backend { code: StatusCode::BAD_REQUEST, .. } => None,
            Self::Backend { code: StatusCode::INTERNAL_SERVER_ERROR, text, .. } => {
                let cause = Cause { message: text.clone(), ..Cause::default() };
                Some(Details { causes: Cow::Owned(vec![cause]), ..of(&NOTHING) })
            }
            Self::Invalid { about, causes } => Some(Details { causes: Cow::Borrowed(causes), ..of(about) }),
            Self::Forbidden { about, .. }
            | Self::NotFound(about)
            | Self::AlreadyExists(about)
            | Self::Conflict { about, .. }
            | Self::Backend { about, .. } => Some(of(about)),
            Self::NoSuchPath | Self::MethodNotAllowed | Self::Timeout => Some(of(&NOTHING)),
            Self::TooManyRequests { retry_after, .. } | Self::NotYet { retry_after, .. } => {
                Some(Details { retry_after: Some(*retry_after), ..of(&NOTHING) })
            }
            Self::BadRequest(_)
            | Self::Unauthorized
            | Self::Expired(_)
            | Self::TooLarge(_)
            | Self::UnsupportedMediaType(_)
            | Self::Internal(_)
            | Self::Filter { .. }
            | Self::Unavailable(_)
            | Self::Panic => None,
        };
        Status {
            kind: "Status",
            api_version: "v1",
            metadata: Empty {},
            status: "Failure",
            message,
            reason: self.reason(),
            details,
            code: self.code().as_u16(),
        }
    }
}

// === impl About ===

impl About {
    /// Such as `pods "a"` or `roles.rbac.authorization.k8s.io "b"`.
    fn named(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        format!("{}{dot}{} {}", self.kind, self.group, go_quote(self.name.as_bytes()))
    }
}

/// Reason and text of upstream's `NewGenericServerResponse`; no text where the backend's own goes into it.
fn backend(code: StatusCode) -> (&'static str, Option<&'static str>) {
    match code {
        StatusCode::BAD_REQUEST => ("BadRequest", None),
        StatusCode::UNAUTHORIZED => {
            ("Unauthorized", Some("the server has asked for the client to provide credentials"))
        }
        StatusCode::FORBIDDEN => ("Forbidden", None),
        StatusCode::NOT_FOUND => ("NotFound", Some("the server could not find the requested resource")),
        StatusCode::METHOD_NOT_ALLOWED => {
            ("MethodNotAllowed", Some("the server does not allow this method on the requested resource"))
        }
        StatusCode::CONFLICT => ("Conflict", Some("the server reported a conflict")),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("UnsupportedMediaType", None),
        StatusCode::UNPROCESSABLE_ENTITY => {
            ("Invalid", Some("the server rejected our request due to an error in our request"))
        }
        StatusCode::TOO_MANY_REQUESTS => (
            "TooManyRequests",
            Some("the server has received too many requests and has asked us to try again later"),
        ),
        StatusCode::SERVICE_UNAVAILABLE => {
            ("ServiceUnavailable", Some("the server is currently unable to handle the request"))
        }
        StatusCode::GATEWAY_TIMEOUT => (
            "Timeout",
            Some(
                "the server was unable to return a response in the time allotted, but may still be processing the \
                 request",
            ),
        ),
        code if code.is_server_error() => ("InternalError", None),
        _ => ("", None),
    }
}

// === impl Encoding ===

impl Encoding {
    /// Decides from the request, by the rules of `protocol.md` 1.6; `pretty` is the first such query value.
    pub fn of(headers: &HeaderMap, pretty: Option<&str>) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (negotiated, asked) = accepts_json(accept);
        // A media type nobody can serve still gets its error, as pretty JSON.
        if !negotiated || asked {
            return Self { pretty: true };
        }
        if let Some(value) = pretty.filter(|value| !value.is_empty()) {
            return Self { pretty: matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True") };
        }
        let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
        Self { pretty: ["curl", "Wget", "Mozilla/5.0"].iter().any(|known| agent.starts_with(known)) }
    }

    /// Compact with one LF, or indented by two without; Go's HTML escaping in both.
    pub fn encode<T: Serialize>(self, value: &T) -> Bytes {
        let text = if self.pretty {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value).map(|text| text + "\n")
        };
        // Every value encoded here is made of strings, numbers and maps with string keys.
        html_escape_json(&text.expect("a JSON value of our own always serializes")).into()
    }
}

/// Whether JSON satisfies this `Accept` value, and whether it asks for `pretty=1`.
fn accepts_json(accept: &str) -> (bool, bool) {
    if accept.trim().is_empty() {
        return (true, false);
    }
    for item in accept.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        if ["application/json", "application/*", "*/*"].contains(&media) {
            return (true, parts.any(|parameter| parameter == "pretty=1"));
        }
    }
    (false, false)
}

/// `<`, `>`, `&`, U+2028 and U+2029 as Go's `encoding/json` writes them; in JSON they only stand in strings.
pub(crate) fn html_escape_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for ch in text.chars() {
        match ch {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            _ => out.push(ch),
        }
    }
    out
}

/// The message of a Status that somebody else has written; none where the body is none.
pub fn message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Said {
        message: String,
    }
    serde_json::from_slice::<Said>(body).ok().map(|said| said.message)
}

/// `&`, `<` and `>` as HTML entities, as upstream's filters and denials write them (`protocol.md` 1.6, 8.4).
pub fn html_escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A JSON string as Go's `json.Marshal` writes it, which makes it safe inside HTML and JavaScript.
pub fn go_json_string(text: &str) -> String {
    html_escape_json(&serde_json::Value::from(text).to_string())
}

/// Go's `%q` of a byte string, which is `strconv.Quote`: double quotes, escapes for what is not printable, and
/// `\xNN` for bytes that are not UTF-8.
pub fn go_quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for ch in chunk.valid().chars() {
            match ch {
                '"' | '\\' => out.extend(['\\', ch]),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                ' '..='~' => out.push(ch),
                _ if !ch.is_ascii() && is_printable(ch) => out.push(ch),
                _ => out.push_str(&match u32::from(ch) {
                    code @ ..0x80 => format!("\\x{code:02x}"),
                    code @ ..0x1_0000 => format!("\\u{code:04x}"),
                    code => format!("\\U{code:08x}"),
                }),
            }
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

/// Rust's idea of printable stands in for Go's; they differ in new characters only. Behind another character,
/// because Rust escapes a mark that has nothing to stand on, and Go does not.
fn is_printable(ch: char) -> bool {
    String::from_iter(['a', ch]).escape_debug().nth(1) == Some(ch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(refusal: &Refusal) -> String {
        String::from_utf8(refusal.response(Encoding::default()).into_body().to_vec()).unwrap()
    }

    #[test]
    fn item_015_status_bodies_have_upstreams_key_order_and_one_line_feed() {
        assert_eq!(
            body(&Refusal::BadRequest("Upgrade request required".into())),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"Upgrade request required\",\"reason\":\"BadRequest\",\"code\":400}\n"
        );
        assert_eq!(
            body(&Refusal::MethodNotAllowed),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"the server does not allow this method on the requested resource\",\
             \"reason\":\"MethodNotAllowed\",\"details\":{},\"code\":405}\n"
        );
        assert_eq!(
            body(&Refusal::not_found("pods", "nginx")),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"pods \\\"nginx\\\" not found\",\"reason\":\"NotFound\",\
             \"details\":{\"name\":\"nginx\",\"kind\":\"pods\"},\"code\":404}\n"
        );
    }

    #[test]
    fn bodies_that_are_not_read_are_refused_with_upstreams_reasons() {
        for (refusal, end) in [
            (
                Refusal::TooLarge("t".into()),
                "\"message\":\"t\",\"reason\":\"RequestEntityTooLarge\",\"code\":413}\n",
            ),
            (
                Refusal::UnsupportedMediaType("t".into()),
                "\"message\":\"t\",\"reason\":\"UnsupportedMediaType\",\"code\":415}\n",
            ),
        ] {
            assert!(body(&refusal).ends_with(end), "{}", body(&refusal));
        }
    }

    #[test]
    fn item_018_errors_that_are_no_status_are_500_without_reason_or_details() {
        assert_eq!(
            body(&Refusal::Internal("error dialing backend: x".into())),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"error dialing backend: x\",\"code\":500}\n"
        );
    }

    #[test]
    fn item_016_curl_browsers_and_pretty_get_indented_json_without_line_feed() {
        let of = |agent: &str, accept: &str, pretty: Option<&str>| {
            let mut headers = HeaderMap::new();
            if !agent.is_empty() {
                headers.insert(header::USER_AGENT, agent.parse().unwrap());
            }
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, accept.parse().unwrap());
            }
            Encoding::of(&headers, pretty).pretty
        };
        assert!(of("curl/8", "", None));
        assert!(of("Mozilla/5.0 (X11)", "*/*", None));
        assert!(!of("curl/8", "", Some("false")));
        assert!(of("kubectl/v1.32", "application/json, */*", Some("true")));
        assert!(of("kubectl/v1.32", "application/json;pretty=1", None));
        assert!(!of("kubectl/v1.32", "application/json, */*", None));
        assert!(of("x", "application/vnd.kubernetes.protobuf", None), "nothing to negotiate: pretty JSON");
        let text = Refusal::Unauthorized.response(Encoding { pretty: true }).into_body();
        assert!(
            text.starts_with(b"{\n  \"kind\": \"Status\",\n  \"apiVersion\": \"v1\",\n  \"metadata\": {},")
        );
        assert!(text.ends_with(b"\n}"));
    }

    #[test]
    fn item_017_angle_brackets_and_ampersands_are_escaped_as_go_does() {
        assert!(body(&Refusal::BadRequest("a<b>&c".into())).contains(r"a\u003cb\u003e\u0026c"));
    }

    #[test]
    fn a_filters_answer_quotes_the_uri_as_go_does_and_escapes_it() {
        let refusal = Refusal::Filter { uri: "/a\"b?c&d".into(), text: "x<y".into() };
        assert_eq!(body(&refusal), "Internal Server Error: \"/a\\\"b?c&amp;d\": x&lt;y\n");
    }

    #[test]
    fn quoting_is_gos() {
        assert_eq!(go_quote(b"a\"b\\c\n\xff\x01"), r#""a\"b\\c\n\xff\x01""#);
        assert_eq!(
            go_quote("a\x07\x08\x0c\n\r\t\x0b\x1b\x7f'é\u{80}\u{a0}€😀\u{fffd}".as_bytes()),
            "\"a\\a\\b\\f\\n\\r\\t\\v\\x1b\\x7f'é\\u0080\\u00a0€😀\u{fffd}\""
        );
        assert_eq!(go_quote(b"\xff\xe2\x82"), r#""\xff\xe2\x82""#);
        assert_eq!(go_quote("\u{10ffff}\u{200b}".as_bytes()), r#""\U0010ffff\u200b""#);
        assert_eq!(go_quote("e\u{301}\u{301}".as_bytes()), "\"e\u{301}\u{301}\"", "marks are printable");
    }

    #[test]
    fn json_strings_are_escaped_as_by_go() {
        assert_eq!(
            go_json_string("<>&\u{2028}\u{2029}\"\\/\u{1f}\t\u{7f}é"),
            "\"\\u003c\\u003e\\u0026\\u2028\\u2029\\\"\\\\/\\u001f\\t\u{7f}é\""
        );
    }
}
