//! Trail: what is written about one request, from its head to the end of its answer.
//!
//! In the flow: made by the door before anybody is known, it goes through the stages with the request and ends up with
//! whoever ends it: the answer's body, the end record of a session, the tunnel of an upgrade that is passed through.
//! Dropped, it writes the last event, whatever path led there. Empty, it does nothing: where nothing is recorded it
//! costs nothing.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::join_all;
use http::{HeaderMap, Request, Response, header};
use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Shared;
use super::event::{Event, Outcome, Stage, compact};
use super::object::{self, Capture, Listened, Watched};
use super::policy::{Level, Verdict};
use super::queue::Room;
use crate::cluster::{Body, User};
use crate::config::{Mode, WhenDown};
use crate::request::{Ask, Attributes};
use crate::status::{Encoding, Refusal};

/// Bytes of all annotations of an event: a few long ones. More are left out.
const ANNOTATIONS: usize = 4 * Trail::ANNOTATION;

/// Prefix of podgate's own annotations.
const PREFIX: &str = "podgate.dev/";

const DECISION: &str = "authorization.k8s.io/decision";
const REASON: &str = "authorization.k8s.io/reason";

/// What is written about one request.
#[derive(Debug, Default)]
pub struct Trail(Option<Box<Inner>>);

#[derive(Debug)]
struct Inner {
    audit: Arc<Shared>,
    event: Event,
    attributes: Attributes,
    long_running: bool,
    /// What the policy says, once the caller is known.
    verdict: Option<Verdict>,
    /// For each sink.
    rooms: Vec<Option<Room>>,
    /// Whether the answer has begun.
    started: bool,
    /// Bytes of podgate's annotations.
    annotated: usize,
    sent: Option<Capture>,
}

// === impl Trail ===

impl Trail {
    /// Bytes of one annotation; what is longer is cut. One line of a command is seldom a tenth of it.
    pub const ANNOTATION: usize = 4096;

    /// The trail of a request with this head.
    pub(super) fn of(audit: Arc<Shared>, headers: &HeaderMap, peer: SocketAddr, id: &str, ask: &Ask) -> Self {
        Self::about(audit, headers, peer, id, &ask.uri, ask.attributes.clone(), ask.long_running())
    }

    pub(super) fn about(
        audit: Arc<Shared>,
        headers: &HeaderMap,
        peer: SocketAddr,
        id: &str,
        uri: &str,
        attributes: Attributes,
        long_running: bool,
    ) -> Self {
        let event = Event::of(headers, peer, uri.to_owned(), id.to_owned(), &attributes, Timestamp::now());
        Self(Some(Box::new(Inner {
            audit,
            event,
            attributes,
            long_running,
            verdict: None,
            rooms: Vec::new(),
            started: false,
            annotated: 0,
            sent: None,
        })))
    }

    /// The caller is known: the first event. In mode `blocking`, resolves when the sinks have it.
    ///
    /// # Errors
    /// When the request is not to be served, because what it does could not be written.
    pub async fn received(&mut self, user: &User) -> Result<(), Refusal> {
        let Some(inner) = &mut self.0 else { return Ok(()) };
        let verdict = inner.audit.policy.get().judge(Some(user), &inner.attributes);
        if verdict.level == Level::None {
            self.0 = None;
            return Ok(());
        }
        inner.event.level = verdict.level;
        inner.event.user = user.into();
        inner.verdict = Some(verdict);
        let strict = inner.audit.when_down == WhenDown::Refuse && !is_health(&inner.attributes.path);
        if !inner.reserve(strict) {
            let audit = inner.audit.clone();
            self.0 = None;
            audit.refused.inc();
            return Err(unavailable());
        }
        let blocking = inner.audit.mode == Mode::Blocking;
        let written = inner.emit(Stage::RequestReceived, blocking);
        if !inner.have(written).await && strict {
            inner.audit.refused.inc();
            return Err(unavailable());
        }
        Ok(())
    }

    /// Nobody is known, or nothing was asked: the only event.
    pub fn unknown(&mut self, refusal: &Refusal) {
        self.only(outcome(refusal));
    }

    /// As [`Trail::unknown`], where the caller tried to be known; the event says how.
    pub fn unauthenticated(&mut self, refusal: &Refusal, headers: &HeaderMap, certificate: bool) {
        let Some(inner) = &self.0 else { return };
        let mut outcome = outcome(refusal);
        if *refusal == Refusal::Unauthorized {
            outcome.message = attempted(headers, &inner.event.request_uri, certificate);
        }
        self.only(outcome);
    }

    /// As [`Trail::unknown`], of an answer that is no Status.
    pub(super) fn unknown_with(&mut self, code: u16, why: &str) {
        let (status, message) = ("Failure".to_owned(), why.to_owned());
        self.only(Outcome { status, message, ..Outcome::code(code) });
    }

    fn only(&mut self, outcome: Outcome) {
        let Some(mut inner) = self.0.take() else { return };
        let verdict = inner.audit.policy.get().judge(None, &inner.attributes);
        if verdict.level == Level::None {
            return;
        }
        inner.event.level = verdict.level;
        inner.event.response_status = Some(outcome);
        inner.verdict = Some(verdict);
        inner.rooms.resize_with(inner.audit.queues.len(), || None);
        inner.emit(Stage::ResponseStarted, false);
    }

    /// The caller acts as somebody else, and may.
    pub fn impersonated(&mut self, user: &User) {
        if let Some(inner) = &mut self.0 {
            inner.event.impersonated_user = Some(user.into());
        }
    }

    /// The cluster has decided, for a reason that may be empty.
    pub fn decided(&mut self, allowed: bool, reason: &str) {
        let Some(inner) = &mut self.0 else { return };
        let decision = if allowed { "allow" } else { "forbid" };
        inner.event.annotations.insert(DECISION.into(), decision.to_owned());
        inner.event.annotations.insert(REASON.into(), reason.to_owned());
    }

    /// The cluster could not decide.
    pub fn undecided(&mut self) {
        if let Some(inner) = &mut self.0 {
            inner.event.annotations.insert(REASON.into(), "internal error".to_owned());
        }
    }

    /// Something that only podgate knows, under its own prefix. It stands in all events from now on; what is very long
    /// is cut, and a second word on the same key is the one that counts.
    pub fn annotate(&mut self, key: &str, value: impl Into<String>) {
        let Some(inner) = &mut self.0 else { return };
        let mut value = value.into();
        if value.len() > Self::ANNOTATION {
            value.truncate(value.floor_char_boundary(Self::ANNOTATION));
            value.push_str("...TRUNCATED");
        }
        let key = format!("{PREFIX}{key}");
        let before = inner.event.annotations.get(key.as_str()).map_or(0, |value| key.len() + value.len());
        let annotated = inner.annotated - before + key.len() + value.len();
        if annotated <= ANNOTATIONS {
            inner.annotated = annotated;
            inner.event.annotations.insert(Cow::Owned(key), value);
        }
    }

    /// The same request, whose body is also read for the event, as far as it says something about it.
    pub fn listen(&mut self, request: Request<Body>) -> Request<Body> {
        let Some(inner) = &mut self.0 else { return request };
        let level = inner.event.level;
        let named = inner.event.verb == "create" || inner.event.verb == "update";
        if inner.long_running
            || level < Level::Request && !named
            || http_body::Body::is_end_stream(request.body())
        {
            return request;
        }
        let capture = Capture::of(request.headers(), inner.audit.max_object_bytes);
        inner.sent = Some(capture.clone());
        request.map(|body| Listened::around(body, capture))
    }

    /// Podgate says no.
    pub async fn refused(&mut self, refusal: &Refusal) {
        let Some(inner) = &mut self.0 else { return };
        inner.event.response_status = Some(outcome(refusal));
        if inner.event.level == Level::RequestResponse {
            inner.event.response_object = compact(refusal.response(Encoding::default()).body());
        }
        inner.begin().await;
    }

    /// The answer begins with this code and what it says is not looked at: a connection that was taken over is 101.
    pub async fn begun(&mut self, code: http::StatusCode) {
        let Some(inner) = &mut self.0 else { return };
        inner.event.response_status = Some(Outcome::code(code.as_u16()));
        inner.begin().await;
    }

    /// An answer that goes to the client; the last event is written when its body is over.
    pub async fn answered(mut self, response: Response<Body>) -> Response<Body> {
        let Some(inner) = &mut self.0 else { return response };
        let (parts, mut body) = response.into_parts();
        let code = parts.status.as_u16();
        let readable = object::is_plain_json(&parts.headers);
        let mut outcome = Outcome::code(code);
        if readable && (code >= 400 || inner.event.verb == "delete") {
            let (again, first) = object::look(body).await;
            body = again;
            outcome = Outcome::of_status(&first, code).unwrap_or(outcome);
        }
        inner.event.response_status = Some(outcome);
        inner.begin().await;
        let whole = inner.event.level == Level::RequestResponse && !inner.long_running;
        let capture = whole.then(|| Capture::of(&parts.headers, inner.audit.max_object_bytes));
        Response::from_parts(parts, Watched::around(body, self, capture))
    }

    /// Podgate has panicked; the last event says so.
    pub fn panicked(&mut self, text: &str) {
        let Some(mut inner) = self.0.take() else { return };
        inner.event.response_status = Some(Outcome {
            status: "Failure".to_owned(),
            message: format!("APIServer panic'd: {text}"),
            reason: "InternalError".to_owned(),
            code: 500,
            ..Outcome::default()
        });
        if inner.verdict.is_some() {
            inner.emit(Stage::Panic, false);
        }
    }

    /// The trail, for somebody else to end.
    #[must_use]
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// What was answered, for the last event.
    pub(super) fn answered_with(&mut self, capture: &Capture) {
        let Some(inner) = &mut self.0 else { return };
        let managed = inner.verdict.as_ref().is_some_and(|verdict| verdict.omit_managed_fields);
        match capture.object(managed) {
            Ok(object) => inner.event.response_object = object,
            Err(why) => self.annotate("response-object-omitted", why),
        }
    }

    /// Writes the last event.
    fn complete(&mut self) {
        let Some(inner) = &mut self.0 else { return };
        // Nobody is known whose request this was.
        let Some(verdict) = &inner.verdict else { return };
        if let Some(capture) = inner.sent.take() {
            let omit = verdict.omit_managed_fields;
            capture.name(inner.event.object_ref.get_or_insert_default());
            if inner.event.level >= Level::Request {
                match capture.object(omit) {
                    Ok(object) => inner.event.request_object = object,
                    Err(why) => self.annotate("request-object-omitted", why),
                }
            }
        }
        let Some(inner) = &mut self.0 else { return };
        inner.event.response_status.get_or_insert_with(Outcome::closed_early);
        if inner.long_running && !inner.started {
            inner.emit(Stage::ResponseStarted, false);
        }
        inner.emit(Stage::ResponseComplete, false);
        self.0 = None;
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.complete();
    }
}

// === impl Inner ===

impl Inner {
    /// Room for all events to come, in every sink; `strict`, it is no less than that.
    fn reserve(&mut self, strict: bool) -> bool {
        let omitted =
            |stage| self.verdict.as_ref().is_none_or(|verdict| verdict.omit_stages.contains(&stage));
        let stages = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete];
        let started = |stage| stage != Stage::ResponseStarted || self.long_running;
        let events = stages.into_iter().filter(|&stage| !omitted(stage) && started(stage)).count();
        let each = self.event.encode().len() + Trail::ANNOTATION;
        let mut all = true;
        for queue in &self.audit.queues {
            let room = if strict && queue.is_down() { None } else { queue.reserve(events, each) };
            if room.is_none() && strict {
                queue.refused();
                all = false;
            }
            self.rooms.push(room);
        }
        all
    }

    /// The answer begins. In mode `blocking`, resolves when the sinks have the event, or cannot have it for too long.
    async fn begin(&mut self) {
        if self.verdict.is_none() || !self.long_running || std::mem::replace(&mut self.started, true) {
            return;
        }
        let blocking = self.audit.mode == Mode::Blocking;
        let written = self.emit(Stage::ResponseStarted, blocking);
        self.have(written).await;
    }

    /// Whether the sinks have what they are waited for with.
    async fn have(&self, written: Vec<oneshot::Receiver<()>>) -> bool {
        if written.is_empty() {
            return true;
        }
        let all = timeout(self.audit.blocking_timeout, join_all(written)).await;
        all.is_ok_and(|all| all.iter().all(Result::is_ok))
    }

    /// Writes an event, unless the policy leaves it out; what resolves when the sinks have it.
    fn emit(&mut self, stage: Stage, wait: bool) -> Vec<oneshot::Receiver<()>> {
        if self.verdict.as_ref().is_none_or(|verdict| verdict.omit_stages.contains(&stage)) {
            return Vec::new();
        }
        self.event.stage = stage;
        if stage != Stage::RequestReceived {
            self.event.stage_timestamp = Timestamp::now();
        }
        let mut line = self.event.encode();
        let objects = self.event.request_object.is_some() || self.event.response_object.is_some();
        if objects && !self.rooms.iter().flatten().all(|room| room.fits(line.len())) {
            (self.event.request_object, self.event.response_object) = (None, None);
            let why = "the audit queue has no room for them".to_owned();
            self.event.annotations.insert("podgate.dev/objects-omitted".into(), why);
            line = self.event.encode();
        }
        let mut written = Vec::new();
        for (queue, room) in self.audit.queues.iter().zip(&mut self.rooms) {
            match room {
                Some(room) => written.extend(room.push(line.clone(), wait)),
                None => queue.push(line.clone()),
            }
        }
        written
    }
}

fn unavailable() -> Refusal {
    let text = "the audit log cannot be written, and nothing is served without it: try again later";
    Refusal::Unavailable(text.to_owned())
}

/// What an orchestrator asks for, which must not restart what only cannot write.
fn is_health(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"]
        .iter()
        .any(|health| path.strip_prefix(health).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn outcome(refusal: &Refusal) -> Outcome {
    let code = refusal.code().as_u16();
    let said = refusal.response(Encoding::default());
    Outcome::of_status(said.body(), code).unwrap_or_else(|| Outcome::code(code))
}

/// Upstream's words for how somebody tried to be known (apiserver `pkg/endpoints/filters/audit.go`).
fn attempted(headers: &HeaderMap, uri: &str, certificate: bool) -> String {
    let authorization = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let scheme = |name: &[u8]| {
        let mut words = authorization.trim_ascii().splitn(2, |&byte| byte == b' ');
        words.next().is_some_and(|word| word.eq_ignore_ascii_case(name)) && words.next().is_some()
    };
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let given =
        crate::request::Query::parse(query).first("access_token").is_some_and(|value| !value.is_empty());
    let methods = [
        (scheme(b"basic"), "basic"),
        (scheme(b"bearer"), "bearer"),
        (given, "access_token"),
        (certificate, "x509"),
    ];
    let methods: Vec<_> = methods.iter().filter(|(tried, _)| *tried).map(|(_, name)| *name).collect();
    match methods.is_empty() {
        true => "Authentication failed, no credentials provided".to_owned(),
        false => format!("Authentication failed, attempted: {}", methods.join(", ")),
    }
}
