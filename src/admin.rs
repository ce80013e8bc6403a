//! Admin: health, readiness and metrics, on an address of their own, in plain HTTP.
//!
//! Beside the flow. It outlives the drain's first step, so that a load balancer can see readiness go away.
//! Source of the health texts: `protocol.md` 8.7.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tracing::debug;

use crate::drain::Drain;
use crate::health::{self, Check};
use crate::listen::Slot;
use crate::telemetry::{Metrics, chain};

/// Something that has to be before podgate is ready.
pub struct Ready {
    /// Its name in the answer.
    pub name: &'static str,
    /// Whether it is.
    pub check: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What this address shows; cheap to clone.
#[derive(Clone)]
pub struct Admin {
    metrics: Metrics,
    ready: Arc<[Ready]>,
    /// The drain whose announcement takes readiness away.
    watched: Drain,
    /// The drain that ends this address itself, later.
    own: Drain,
    header_timeout: Duration,
}

// === impl Admin ===

impl Admin {
    /// Shows these metrics; ready when all of `ready` is, until `watched` is announced; serves until `own` does.
    pub fn new(
        metrics: Metrics,
        ready: Vec<Ready>,
        watched: Drain,
        own: Drain,
        header_timeout: Duration,
    ) -> Self {
        Self { metrics, ready: ready.into(), watched, own, header_timeout }
    }

    /// Serves one connection to its end.
    pub async fn serve(self, tcp: TcpStream, peer: SocketAddr, _slot: Slot) {
        let shared = Arc::new(self.clone());
        let service = hyper::service::service_fn(move |request| {
            let answer = shared.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        // One request a connection, and a bound on all of it: a client that never reads must not keep a slot.
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout).keep_alive(false);
        let serving = builder.serve_connection(TokioIo::new(tcp), service);
        tokio::select! {
            served = serving => if let Err(error) = served {
                debug!(client.addr = %peer, error = chain(&error), "admin connection ended by an error");
            },
            () = self.own.stopping() => {}
            () = tokio::time::sleep(self.header_timeout * 2) => {
                debug!(client.addr = %peer, "admin connection ended: it took too long");
            }
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n");
        }
        let query = request.uri().query().unwrap_or("");
        let ping = Check { name: "ping", ok: true };
        let draining = Check { name: "draining", ok: !self.watched.is_announced() };
        match request.uri().path() {
            "/metrics" => {
                let mut response = Response::new(Full::from(self.metrics.render()));
                let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, media);
                response
            }
            "/healthz" => health::answer("healthz", &[ping], query).map(Full::from),
            "/livez" => health::answer("livez", &[ping], query).map(Full::from),
            "/readyz" => {
                let more = self.ready.iter().map(|ready| Check { name: ready.name, ok: (ready.check)() });
                let checks: Vec<_> = [ping, draining].into_iter().chain(more).collect();
                health::answer("readyz", &checks, query).map(Full::from)
            }
            _ => plain(StatusCode::NOT_FOUND, "try /healthz, /livez, /readyz or /metrics\n"),
        }
    }
}

fn plain(code: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
