//! Serving: what every server of Kubernetes objects does, whatever the objects are: what the client would like, JSON
//! answers, selectors, tables, watches and the history behind them, and bodies.
//!
//! In the flow: under the embedded cluster's API, and under the group that podgate serves itself. Bodies are JSON whatever
//! else the client would take; the response says so and client libraries follow it. `limit` is not honoured, which the API
//! allows: a list is always whole, and no `continue` token is ever handed out.
//! Source: apiserver `pkg/endpoints/handlers`.

pub(crate) mod body;
pub mod history;
pub(crate) mod select;
pub mod table;
pub(crate) mod watch;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use crate::cluster::Body;
use crate::request::Ask;
use crate::status::{Refusal, go_quote};
pub(crate) use select::Select;
use table::{Column, Condition, Form};

/// Media type of nearly everything.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An object that is served.
pub(crate) trait Object: Serialize + Send {
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;

    /// A field that it can be selected by, besides those of the metadata.
    fn field(&self, label: &str) -> String;

    /// Its cells in a table, and what is to be known besides.
    fn row(&self, now: Timestamp) -> (Vec<Value>, Vec<Condition>);
}

/// `metadata` of a list or a table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListMeta {
    pub(crate) resource_version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a, O> {
    kind: String,
    api_version: &'static str,
    metadata: ListMeta,
    items: &'a [O],
}

/// Answers with one object, plain or as a table.
///
/// # Errors
/// 400 when the table is asked for in a way that there is not.
pub(crate) fn one<O: Object>(
    ask: &Ask,
    accept: &Accept,
    status: StatusCode,
    columns: &'static [Column],
    object: &O,
) -> Result<Response<Body>, Refusal> {
    Ok(match Form::of(ask, accept)? {
        Some(form) => {
            let version = object.meta().resource_version.clone().unwrap_or_default();
            json(ask, status, &table::of(form, Some(columns), version, [object]))
        }
        None => json(ask, status, object),
    })
}

/// Answers with a list of objects of this kind, plain or as a table.
///
/// # Errors
/// As [`one`].
pub(crate) fn list<'a, O: Object + 'a>(
    ask: &Ask,
    accept: &Accept,
    (kind, api_version): (&str, &'static str),
    columns: &'static [Column],
    version: u64,
    items: &'a [&'a O],
) -> Result<Response<Body>, Refusal> {
    let version = version.to_string();
    Ok(match Form::of(ask, accept)? {
        Some(form) => {
            json(ask, StatusCode::OK, &table::of(form, Some(columns), version, items.iter().copied()))
        }
        None => {
            let metadata = ListMeta { resource_version: version };
            json(ask, StatusCode::OK, &List { kind: format!("{kind}List"), api_version, metadata, items })
        }
    })
}

/// Refuses a name that could not be one segment of a path, as the API server's storage does.
pub(crate) fn check_segment(name: &str) -> Result<(), Refusal> {
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

/// What the client would like, in its own order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Accept(Vec<Wish>);

/// One media type of an `Accept` header that JSON satisfies, with its Kubernetes parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wish {
    group: String,
    version: String,
    form: String,
}

// === impl Accept ===

impl Accept {
    /// What the header says.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
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

    /// Whether the client takes JSON at all.
    pub(crate) fn takes_json(&self) -> bool {
        !self.0.is_empty()
    }

    /// The version of this form the client wants most, `None` when it would rather have the plain object.
    pub(crate) fn version(&self, form: &str, group: &str, versions: &[&'static str]) -> Option<&'static str> {
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

/// A JSON answer.
pub(crate) fn json<T: Serialize>(ask: &Ask, status: StatusCode, value: &T) -> Response<Body> {
    let mut response = Response::new(full(ask.encoding.encode(value)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    uncached(response.headers_mut());
    response
}

/// Marks an answer that is of this moment.
pub(crate) fn uncached(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
}

/// A body that is there already.
pub(crate) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
