//! The tower layers of the API door.

use std::any::Any;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestId, PropagateRequestIdLayer, RequestId, SetRequestIdLayer};
use tower_http::sensitive_headers::SetSensitiveRequestHeadersLayer;
use tower_http::trace::TraceLayer;
use tracing::{Span, error, info_span, warn};

use super::{Door, whole};
use crate::cluster::Body;
use crate::group::{Asker, Group};
use crate::request::Ask;
use crate::status::{Encoding, Refusal};
use crate::telemetry::Metrics;

/// Kubernetes' request id, in both directions (`protocol.md` 8.6).
pub(super) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Whether the client sent an audit id of its own: only then do kubelets see one.
#[derive(Debug, Clone, Copy)]
pub(super) struct AuditIdGiven(pub(super) bool);

#[derive(Debug, Clone, Copy)]
struct NewAuditId;

impl MakeRequestId for NewAuditId {
    fn make_request_id<B>(&mut self, _: &Request<B>) -> Option<RequestId> {
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok().map(RequestId::new)
    }
}

/// The door with its layers, outermost first.
pub(super) fn around(
    door: Door,
) -> impl Service<
    Request<Incoming>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
> + Clone
+ Send
+ 'static {
    let (peer, metrics) = (door.conn.peer, door.shared.metrics.clone());
    ServiceBuilder::new()
        .map_request(|mut request: Request<Incoming>| {
            // One that is empty, or no text, tells no request from others.
            if audit_id(&request).is_empty() {
                request.headers_mut().remove(AUDIT_ID);
            }
            let given = AuditIdGiven(request.headers().contains_key(AUDIT_ID));
            request.extensions_mut().insert(given);
            request
        })
        // The trace layer wraps bodies in its own type; the door has one.
        .map_response(|response: Response<_>| response.map(http_body_util::BodyExt::boxed_unsync))
        .layer(SetRequestIdLayer::new(AUDIT_ID, NewAuditId))
        .layer(PropagateRequestIdLayer::new(AUDIT_ID))
        .layer(SetSensitiveRequestHeadersLayer::new([
            header::AUTHORIZATION,
            header::COOKIE,
            // A browser's token is in there.
            header::SEC_WEBSOCKET_PROTOCOL,
        ]))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(move |request: &Request<Incoming>| span(request, peer))
                .on_request(())
                .on_response(())
                .on_body_chunk(())
                .on_eos(())
                .on_failure(()),
        )
        .layer(CatchPanicLayer::custom(move |panic: Box<dyn Any + Send>| panicked(panic, &metrics)))
        .service(door)
}

/// The audit id of a request, the client's own or one that was made for it.
pub(super) fn audit_id<B>(request: &Request<B>) -> &str {
    request.headers().get(AUDIT_ID).and_then(|id| id.to_str().ok()).unwrap_or("")
}

/// What a panic says.
pub(super) fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// The query stays out of the span: it holds the command line.
fn span(request: &Request<Incoming>, peer: std::net::SocketAddr) -> Span {
    info_span!(
        "request",
        audit.id = audit_id(request),
        client.addr = %peer,
        http.method = %request.method(),
        http.path = request.uri().path(),
    )
}

fn panicked(panic: Box<dyn Any + Send>, metrics: &Metrics) -> Response<Body> {
    error!(panic = text_of(&*panic), "a request made podgate panic");
    metrics.refused(&Refusal::Panic);
    Refusal::Panic.response(Encoding::default()).map(whole)
}

impl Service<Request<Incoming>> for Door {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// Short requests: bounded in number and in time (`protocol.md` 8.5). Sessions, watches and logs are neither.
#[derive(Clone)]
pub(super) struct Short(BoxCloneSyncService<Call, Result<Response<Body>, Refusal>, BoxError>);

struct Call {
    asker: Asker,
    ask: Ask,
    request: Request<Body>,
}

impl Short {
    pub(super) fn new(group: Arc<Group>, max_in_flight: usize, deadline: Duration) -> Self {
        let serve = tower::service_fn(move |call: Call| {
            let group = group.clone();
            async move { Ok::<_, BoxError>(group.serve(&call.asker, &call.ask, call.request).await) }
        });
        Self(BoxCloneSyncService::new(
            ServiceBuilder::new()
                .load_shed()
                .layer(GlobalConcurrencyLimitLayer::new(max_in_flight))
                .timeout(deadline)
                .service(serve),
        ))
    }

    pub(super) async fn serve(
        &self,
        asker: Asker,
        ask: Ask,
        request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        match self.0.clone().oneshot(Call { asker, ask, request }).await {
            Ok(answer) => answer,
            Err(error) if error.is::<tower::load_shed::error::Overloaded>() => {
                warn!("request refused: too many in flight");
                Err(Refusal::TooManyRequests {
                    message: "Too many requests, please try again later.".into(),
                    retry_after: 1,
                })
            }
            Err(error) if error.is::<tower::timeout::error::Elapsed>() => Err(Refusal::Timeout),
            Err(error) => Err(Refusal::Internal(error.to_string())),
        }
    }
}
