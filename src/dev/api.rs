//! Api: what kubectl asks of an API server that is no session: discovery, health, objects, access reviews.
//!
//! In the flow: behind the embedded cluster's `serve`; every request was authorized before it came here.
//! Read-only but for reviews, which change nothing. Logs are fetched from the node, as from a kubelet. Bodies
//! are JSON whatever else the client would take; the response says so and client libraries follow it. `limit`
//! is not honoured, which the API allows: a list is always whole, and no `continue` token is ever handed out.
//! Source: apiserver `pkg/endpoints/{installer,handlers/get}.go`, `pkg/server/healthz`; `protocol.md` 8.7,
//! 8.8.

mod discovery;
mod list;
mod log;
mod protobuf;
mod review;
mod select;
mod table;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde::Serialize;

use super::store::{Kind, Store};
use crate::cluster::{Body, User};
use crate::health::{self, Check};
use crate::request::{Ask, Resource};
use crate::status::{Refusal, go_quote};
use crate::upstream::Upstream;

/// Media type of everything but health.
const JSON: HeaderValue = HeaderValue::from_static("application/json");

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
        "watch" => watch::watch(store, kind, namespace, ask, &accept),
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

/// Refuses a name that could not be one segment of a path, as the API server's storage does.
fn check_segment(name: &str) -> Result<(), Refusal> {
    let what = match name {
        "." | ".." => format!("may not be '{name}'"),
        _ => {
            let bad = ["/", "%"].into_iter().filter(|bad| name.contains(bad));
            let texts: Vec<String> = bad.map(|bad| format!("may not contain '{bad}'")).collect();
            texts.join(";")
        }
    };
    if what.is_empty() {
        return Ok(());
    }
    Err(Refusal::BadRequest(format!("Name parameter invalid: {}: {what}", go_quote(name.as_bytes()))))
}

/// Paths that name no resource.
fn path(ask: &Ask, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let path = ask.attributes.path.trim_end_matches('/');
    let accept = Accept::of(headers);
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let answer = match parts.as_slice() {
        [] | ["api"] | ["apis"] | ["apis", ..] | ["api", ..] => discovery::answer(&parts, ask, &accept),
        ["version"] => Some(discovery::version()),
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

/// What the client would like, in its own order.
#[derive(Debug, Clone, Default)]
struct Accept(Vec<Wish>);

/// One media type of an `Accept` header that JSON satisfies, with its Kubernetes parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wish {
    group: String,
    version: String,
    form: String,
}

// === impl Accept ===

impl Accept {
    fn of(headers: &HeaderMap) -> Self {
        let mut wishes = Vec::new();
        for value in headers.get_all(header::ACCEPT) {
            for item in value.to_str().unwrap_or("").split(',') {
                let mut parts = item.split(';').map(str::trim);
                if !["application/json", "application/*", "*/*"].contains(&parts.next().unwrap_or("")) {
                    continue;
                }
                let mut wish = Wish::default();
                for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                    match name {
                        "g" => value.clone_into(&mut wish.group),
                        "v" => value.clone_into(&mut wish.version),
                        "as" => value.clone_into(&mut wish.form),
                        _ => {}
                    }
                }
                wishes.push(wish);
            }
        }
        Self(wishes)
    }

    /// The version of this form the client wants most, `None` when it would rather have the plain object.
    fn version(&self, form: &str, group: &str, versions: &[&'static str]) -> Option<&'static str> {
        for wish in &self.0 {
            if wish.form.is_empty() {
                return None;
            }
            if wish.form == form && wish.group == group {
                let known = versions.iter().find(|&&known| known == wish.version);
                if let Some(&version) = known {
                    return Some(version);
                }
            }
        }
        None
    }
}

fn json<T: Serialize>(ask: &Ask, status: StatusCode, value: &T) -> Response<Body> {
    let mut response = Response::new(full(ask.encoding.encode(value)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    uncached(response.headers_mut());
    response
}

fn uncached(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests;
