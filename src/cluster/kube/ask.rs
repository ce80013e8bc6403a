//! Ask: one question of podgate's own to the API server, and its whole answer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use serde::Deserialize;

use super::breaker::Breaker;
use super::connect::Connection;
use crate::cluster::{Body, Error};
use crate::reload::Live;

/// JSON, the only format podgate reads.
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer's bytes at most. An object is 1.5 MiB in etcd at most, as protobuf; as JSON it is a few times
/// that.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// Bytes of an API server's message at most, in an error of podgate's.
const MAX_MESSAGE: usize = 512;

/// Asks one kind of question.
#[derive(Debug)]
pub(super) struct Asker {
    connection: Live<Connection>,
    breaker: Breaker,
}

/// What podgate reads of a `metav1.Status`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) code: u16,
}

/// The API server answered something else than what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("the API server answered {code} {reason}: {message}")]
pub(super) struct Refused {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

/// The API server answered something that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[error("the API server's answer makes no sense from line {line}, column {column} on")]
struct Unreadable {
    line: usize,
    column: usize,
}

/// An error that all who asked the same get.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    act: Arc<str>,
    reached: bool,
    source: Arc<dyn std::error::Error + Send + Sync>,
}

// === impl Asker ===

impl Asker {
    pub(super) fn new(connection: Live<Connection>, within: Duration, max_waiting: usize) -> Self {
        Self { connection, breaker: Breaker::new(within, max_waiting) }
    }

    /// Posts an object.
    pub(super) async fn post(
        &self,
        act: &str,
        path: &'static str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        self.send(act, Method::POST, path, body).await
    }

    /// Sends an object, to be made or to be changed.
    pub(super) async fn send(
        &self,
        act: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        let mut request = request(method, path.to_owned(), JSON, body);
        request.headers_mut().insert(header::CONTENT_TYPE, JSON);
        self.ask(act, request).await
    }

    /// Reads an object; `accept` says in which form.
    pub(super) async fn get(
        &self,
        act: &str,
        path: &str,
        accept: HeaderValue,
    ) -> Result<(StatusCode, Bytes), Error> {
        self.ask(act, request(Method::GET, path.to_owned(), accept, Bytes::new())).await
    }

    async fn ask(&self, act: &str, request: Request<Body>) -> Result<(StatusCode, Bytes), Error> {
        let connection = self.connection.get();
        // What it is about says more than method and path, which may be long.
        let told = |error| match error {
            Error::Unreachable { source, .. } => Error::Unreachable { act: act.to_owned(), source },
            Error::Unanswered { source, .. } => Error::Unanswered { act: act.to_owned(), source },
        };
        self.breaker
            .ask(act, async {
                let response = connection.send(request).await.map_err(told)?;
                let status = response.status();
                let body = whole(response.into_body(), MAX_ANSWER).await.map_err(told)?;
                Ok((status, body))
            })
            .await
    }
}

// === impl Status ===

impl Status {
    /// The Status of an answer; an empty one when it is none.
    pub(super) fn of(body: &[u8]) -> Self {
        let status: Self = serde_json::from_slice(body).unwrap_or_default();
        if status.kind == "Status" { status } else { Self::default() }
    }
}

// === impl Refused ===

impl Refused {
    /// What an answer that is no success says of itself.
    pub(super) fn of(code: StatusCode, body: &[u8]) -> Self {
        let Status { reason, mut message, .. } = Status::of(body);
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { code: code.as_u16(), reason, message }
    }

    /// The same without the message, which may repeat what was sent.
    pub(super) fn without_message(self) -> Self {
        Self { message: "its message is not shown".to_owned(), ..self }
    }
}

/// A request of podgate's own.
pub(super) fn request(method: Method, path: String, accept: HeaderValue, body: Bytes) -> Request<Body> {
    let mut request = Request::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    *request.method_mut() = method;
    // A path podgate made of encoded parts is one; were it not, the API server would say so.
    *request.uri_mut() = path.try_into().unwrap_or_default();
    request.headers_mut().insert(header::ACCEPT, accept);
    request
}

/// All of a body, unless it is larger than it may be.
pub(super) async fn whole(body: Body, max: usize) -> Result<Bytes, Error> {
    let act = || "read the answer".to_owned();
    // Boxed for the same reason as in `connect`.
    match Limited::new(body, max).collect().boxed().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(source) if source.is::<LengthLimitError>() => Err(Error::Unanswered { act: act(), source }),
        // It broke off.
        Err(source) => Err(Error::Unreachable { act: act(), source }),
    }
}

/// What a JSON text says. The error does not quote it.
pub(super) fn read<'a, T: Deserialize<'a>>(act: &str, body: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|error| unanswered(act, Unreadable { line: error.line(), column: error.column() }))
}

/// Podgate asked for something and cannot use what it got.
pub(super) fn unanswered(act: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Unanswered { act: act.to_owned(), source: source.into() }
}

// === impl Shared ===

impl From<Error> for Shared {
    fn from(error: Error) -> Self {
        let (act, reached, source) = match error {
            Error::Unreachable { act, source } => (act, false, source),
            Error::Unanswered { act, source } => (act, true, source),
        };
        Self { act: act.into(), reached, source: source.into() }
    }
}

impl From<Shared> for Error {
    fn from(Shared { act, reached, source }: Shared) -> Self {
        let (act, source) = (act.to_string(), Box::new(source));
        match reached {
            true => Self::Unanswered { act, source },
            false => Self::Unreachable { act, source },
        }
    }
}
