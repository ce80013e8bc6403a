//! Api: what kubectl asks of an API server that is no session: discovery, health, objects, access reviews.
//!
//! In the flow: behind the embedded cluster's `serve`; every request was authorized before it came here.
//! Read-only but for reviews, which change nothing. Logs are fetched from the node, as from a kubelet. Bodies
//! are JSON whatever else the client would take; the response says so and client libraries follow it. `limit`
//! is not honoured, which the API allows: a list is always whole, and no `continue` token is ever handed out.
//! Source: apiserver `pkg/endpoints/{installer,handlers/get}.go`, `pkg/server/healthz`; `protocol.md` 8.7,
//! 8.8.

mod discovery;
mod fields;
mod list;
mod log;
mod protobuf;
mod review;
mod table;

use std::sync::Arc;

use http::{HeaderMap, Request, Response};

use super::store::{Kind, Store};
use crate::cluster::{Body, User};
use crate::health::{self, Check};
use crate::request::{Ask, Resource};
use crate::serving::{Accept, check_segment, full, uncached};
use crate::status::Refusal;
use crate::upstream::Upstream;

/// Answers a request.
pub(super) async fn serve(
    store: &Arc<Store>,
    kubelets: Option<&Upstream>,
    user: &User,
    ask: &Ask,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let headers = request.headers();
    let Some(resource) = &ask.attributes.resource else {
        return path(ask, headers);
    };
    if log::is_log(resource) {
        return log::serve(store, kubelets, resource, ask, request.method()).await;
    }
    if !resource.subresource.is_empty() || !resource.rest.is_empty() {
        return Err(Refusal::NoSuchPath);
    }
    if let Some(review) = review::Review::of(resource) {
        if ask.attributes.verb != "create" || !resource.name.is_empty() || !resource.namespace.is_empty() {
            return Err(Refusal::MethodNotAllowed);
        }
        return review.answer(store, user, ask, request).await;
    }
    let kind = Kind::of_resource(&resource.group, &resource.version, &resource.resource);
    let kind = kind.ok_or(Refusal::NoSuchPath)?;
    let accept = Accept::of(headers);
    let namespace = scope(kind, resource, &ask.attributes.verb)?;
    match ask.attributes.verb.as_str() {
        "get" => list::get(store, kind, namespace, &resource.name, ask, &accept),
        "list" => list::list(store, kind, namespace, ask, &accept),
        "watch" => list::watch(store, kind, namespace, ask, &accept),
        _ => Err(Refusal::MethodNotAllowed),
    }
}

/// The namespace a request is about, `None` for all of them or for kinds that have none.
fn scope<'a>(kind: Kind, resource: &'a Resource, verb: &str) -> Result<Option<&'a str>, Refusal> {
    let namespace = resource.namespace.as_str();
    match (kind, namespace) {
        // `/namespaces/x` is in itself, for the authorizer.
        (Kind::Namespace, _) => Ok(None),
        (_, "") if kind.namespaced() && verb == "get" => Err(Refusal::NoSuchPath),
        (_, "") => Ok(None),
        _ if kind.namespaced() => {
            check_segment(namespace)?;
            Ok(Some(namespace))
        }
        _ => Err(Refusal::NoSuchPath),
    }
}

/// Paths that name no resource.
fn path(ask: &Ask, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let path = ask.attributes.path.trim_end_matches('/');
    let accept = Accept::of(headers);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let answer = match parts.as_slice() {
        [] | ["api"] | ["apis"] | ["apis", ..] | ["api", ..] => discovery::answer(&parts, ask, &accept),
        ["version"] => Some(discovery::version()),
        ["openapi", "v3"] => Some(discovery::no_schemas(ask)),
        [endpoint @ ("healthz" | "livez" | "readyz"), check @ ..] => probe(endpoint, check, ask),
        _ => None,
    };
    let answer = answer.ok_or(Refusal::NoSuchPath)?;
    match ask.attributes.verb.as_str() {
        "get" | "head" => Ok(answer),
        _ => Err(Refusal::MethodNotAllowed),
    }
}

/// What is checked. All of it is true as long as there is anyone to answer.
const CHECKS: [Check; 2] = [Check { name: "ping", ok: true }, Check { name: "manifests", ok: true }];

fn probe(endpoint: &str, check: &[&str], ask: &Ask) -> Option<Response<Body>> {
    let query = ask.uri.split_once('?').map_or("", |(_, query)| query);
    let mut response = match check {
        [] => health::answer(endpoint, &CHECKS, query),
        // One check by itself has nothing to show but whether it passed.
        [name] => health::answer(endpoint, &[*CHECKS.iter().find(|check| check.name == *name)?], ""),
        _ => return None,
    };
    uncached(response.headers_mut());
    Some(response.map(full))
}

#[cfg(test)]
mod tests;
