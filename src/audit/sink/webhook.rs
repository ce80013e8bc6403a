//! A server that is sent events in batches, in kube-apiserver's wire form: a POST of an `audit.k8s.io/v1` `EventList` to
//! the server of a kubeconfig. Every answer that is not 2xx is a failure; those that say that this very batch will never
//! be taken are told from those that another time may be better for.
//! Source: apiserver `plugin/pkg/audit/webhook/webhook.go`, `pkg/util/webhook/webhook.go`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Batching, Failure, Sink};
use crate::audit::event::BEGINNING;
use crate::cluster;
use crate::cluster::kube::connect::Connection;
use crate::config;
use crate::reload::Live;

/// Bytes of events in a batch, unless one alone has more: what servers take for a body, with room to spare.
const BATCH_BYTES: usize = 1024 * 1024;

/// Bytes of an answer that are read, so that its connection can be used again; nobody looks at them.
const ANSWER: usize = 64 * 1024;

/// A server that takes events.
pub(in crate::audit) struct Webhook {
    target: Live<Target>,
    settings: config::Webhook,
    /// When the next batch may go.
    next: Instant,
}

/// Where it is.
#[derive(Debug)]
pub(in crate::audit) struct Target {
    /// The way there, to the root of the server.
    pub(in crate::audit) connection: Connection,
    /// The path of the server's address.
    pub(in crate::audit) path: Uri,
}

/// A batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("send audit events")]
    Send(#[source] cluster::Error),
    #[error("the audit webhook answers {0}")]
    Refused(StatusCode),
    #[error("the audit webhook took longer than {0:?}")]
    Late(Duration),
}

// === impl Webhook ===

impl Webhook {
    pub(in crate::audit) fn new(target: Live<Target>, settings: config::Webhook) -> Self {
        Self { target, settings, next: Instant::now() }
    }

    async fn send(&mut self, list: Bytes) -> Result<(), Failure> {
        sleep_until(self.next).await;
        if let Ok(rate @ 1..) = u32::try_from(self.settings.max_batches_per_second) {
            self.next = Instant::now() + Duration::from_secs(1) / rate;
        }
        let target = self.target.get();
        let mut request = Request::new(Full::new(list).map_err(|never| match never {}).boxed_unsync());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = target.path.clone();
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json, */*"));
        let exchange = async move {
            let response = target.connection.send(request).await.map_err(Error::Send)?;
            let (status, mut body, mut read) = (response.status(), response.into_body(), 0);
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > ANSWER {
                    break;
                }
            }
            Ok(status)
        };
        let within = self.settings.timeout;
        let answered = timeout(within, exchange).await.unwrap_or(Err(Error::Late(within)));
        match answered {
            Ok(status) if status.is_success() => Ok(()),
            Ok(
                status @ (StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY),
            ) => Err(Failure::Unacceptable(Box::new(Error::Refused(status)))),
            Ok(status) => Err(Failure::Down(Box::new(Error::Refused(status)))),
            Err(error) => Err(Failure::Down(Box::new(error))),
        }
    }
}

impl Sink for Webhook {
    fn batching(&self) -> Batching {
        Batching { events: self.settings.batch_events, bytes: BATCH_BYTES, wait: self.settings.batch_wait }
    }

    fn write<'a>(&'a mut self, batch: &'a [Bytes]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.send(list(batch)))
    }
}

/// The batch as an EventList, whose items say neither kind nor version.
fn list(batch: &[Bytes]) -> Bytes {
    let mut body = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    for (index, line) in batch.iter().enumerate() {
        body.extend_from_slice(if index == 0 { b"{" } else { b",{" });
        body.extend_from_slice(line.strip_prefix(BEGINNING.as_bytes()).unwrap_or(&line[1..]));
    }
    body.extend_from_slice(b"]}\n");
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_list_do_not_say_what_they_are() {
        let line = Bytes::from(format!("{BEGINNING}\"level\":\"Metadata\"}}"));
        let expected = "{\"kind\":\"EventList\",\"apiVersion\":\"audit.k8s.io/v1\",\"metadata\":{},\
                        \"items\":[{\"level\":\"Metadata\"},{\"level\":\"Metadata\"}]}\n";
        assert_eq!(list(&[line.clone(), line]), expected);
    }
}
