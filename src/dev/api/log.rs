//! Log: `pods/log`, fetched from the pod's node over TLS with podgate's own certificate, as from a kubelet.
//!
//! In the flow: behind `serve`, long-running, so the door puts no deadline on it and ends it when podgate
//! stops. There is no task behind it: the body drives the connection to the node, so a client that goes away
//! closes it. None of the client's headers reach the node, and no redirect is followed: it is an answer like
//! any other.
//! Source: `protocol.md` 1.4, 1.5, 1.8; kubernetes `pkg/registry/core/pod/{strategy.go,rest/log.go}`,
//! apiserver `pkg/registry/generic/rest/{streamer,response_checker}.go`.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use crate::cluster::Body;
use crate::dev::log_options::LogOptions;
use crate::dev::store::{self, Store};
use crate::locate::{self, HostPort};
use crate::request::{Ask, Resource};
use crate::serving::{check_segment, full, uncached};
use crate::status::{About, Refusal};
use crate::upstream::Upstream;

/// From the request to the head of the node's answer. A log that is followed may be silent, its head may not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most bytes of a refusal that are read: upstream's `maxReadLength`.
const MAX_REFUSAL: usize = 50_000;

/// How long the rest of a refusal may take: as long as one that is echoed to a session's client.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of what it serves, for `details`.
const KIND: &str = "pods/log";

/// Drives the connection to the node; it ends when the answer was read, or failed.
type Driving = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// An answer of a node that is still coming.
struct Coming {
    /// `None` once it has ended.
    connection: Option<Driving>,
    body: Incoming,
}

/// Whether this is a pod's log.
pub(super) fn is_log(resource: &Resource) -> bool {
    resource.group.is_empty()
        && resource.version == "v1"
        && resource.resource == "pods"
        && resource.subresource == "log"
        && resource.rest.is_empty()
        && !resource.namespace.is_empty()
}

/// Answers in upstream's order of checks: options, pod, container, node.
pub(super) async fn serve(
    store: &Store,
    kubelets: Option<&Upstream>,
    resource: &Resource,
    ask: &Ask,
    method: &Method,
) -> Result<Response<Body>, Refusal> {
    if ask.attributes.verb != "get" || method != Method::GET {
        return Err(Refusal::MethodNotAllowed);
    }
    let (namespace, name) = (resource.namespace.as_str(), resource.name.as_str());
    let options = LogOptions::decode(&ask.query).map_err(Refusal::BadRequest)?;
    let causes = options.problems();
    if !causes.is_empty() {
        let about = About { name: name.into(), group: String::new(), kind: "PodLogOptions".into() };
        return Err(Refusal::Invalid { about, causes });
    }
    check_segment(namespace)?;
    check_segment(name)?;
    let pod = store.pod(namespace, name).ok_or_else(|| Refusal::not_found("pods", name))?;
    let pod = store::slim_pod(&pod);
    let container = ask.query.first("container").unwrap_or_default();
    let container = locate::container_of(&pod, name, &container).map_err(|error| error.refusal())?;
    let Some(node) = pod.node else {
        let mut response = Response::new(full(Bytes::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        uncached(response.headers_mut());
        return Ok(response);
    };
    let node = store.node(&node).ok_or_else(|| Refusal::not_found("nodes", &node))?;
    let node = store::slim_node(&node);
    // The store gives every node one address, on this machine; there is nothing to prefer.
    let Some((_, host)) = node.addresses.into_iter().next() else {
        return Err(locate::Error::NoAddress(String::new()).refusal());
    };
    let addr = HostPort { host, port: node.kubelet_port };
    // Names in the store are path segments already.
    let query = options.query();
    let mark = if query.is_empty() { "" } else { "?" };
    let target = format!("/containerLogs/{namespace}/{name}/{container}{mark}{query}");
    let failed =
        |why: &dyn std::fmt::Display| Refusal::Internal(format!("Get \"https://{addr}{target}\": {why}"));
    let kubelets = kubelets.ok_or_else(|| failed(&"no way to the nodes"))?;
    let io = kubelets.dial(&addr).await.map_err(|error| failed(&error))?;
    let answered = timeout(ANSWER_TIMEOUT, get(TokioIo::new(io), &addr, &target)).await;
    let (status, coming) = answered
        .map_err(|_| failed(&"net/http: timeout awaiting response headers"))?
        .map_err(|error| failed(&error))?;
    // 206 is the last that upstream takes for an answer.
    if !(200..=206).contains(&status.as_u16()) {
        let text = coming.text().await;
        let about = About { name: name.into(), group: String::new(), kind: KIND.into() };
        return Err(Refusal::Backend { code: status, text, about });
    }
    let mut response = Response::new(coming.into_body());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    uncached(headers);
    Ok(response)
}

/// Asks, and waits for the head of the answer.
async fn get<I>(
    io: I,
    addr: &HostPort,
    target: &str,
) -> Result<(StatusCode, Coming), Box<dyn std::error::Error + Send + Sync>>
where
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let request = Request::get(target).header(header::HOST, addr.to_string()).body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(io).await?;
    let mut connection: Driving = Box::pin(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let mut driven = false;
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer?,
            done = &mut connection, if !driven => {
                driven = true;
                done?;
            }
        }
    };
    let connection = (!driven).then_some(connection);
    Ok((answer.status(), Coming { connection, body: answer.into_body() }))
}

// === impl Coming ===

impl Coming {
    /// The next piece, as soon as there is one.
    async fn frame(&mut self) -> Option<hyper::Result<http_body::Frame<Bytes>>> {
        std::future::poll_fn(|cx| {
            // What fails the connection fails the body too, in the order in which it came.
            if let Some(connection) = &mut self.connection
                && connection.as_mut().poll(cx).is_ready()
            {
                self.connection = None;
            }
            Pin::new(&mut self.body).poll_frame(cx)
        })
        .await
    }

    fn into_body(self) -> Body {
        let frames = stream::unfold(self, |mut coming| async move {
            let frame = coming.frame().await?;
            Some((frame.map_err(Into::into), coming))
        });
        StreamBody::new(frames).boxed_unsync()
    }

    /// What came of it in time, up to the bound.
    async fn text(mut self) -> String {
        let mut text = Vec::new();
        let read = async {
            while text.len() < MAX_REFUSAL
                && let Some(Ok(frame)) = self.frame().await
            {
                text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            }
        };
        // What is missing after that is missing in a message for people.
        let _ = timeout(REFUSAL_TIMEOUT, read).await;
        text.truncate(MAX_REFUSAL);
        String::from_utf8_lossy(&text).into_owned()
    }
}

#[cfg(test)]
mod tests;
