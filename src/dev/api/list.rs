//! One object, or a list of them, plain or as a table.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde::Serialize;

use super::select::Select;
use super::table::{self, Form};
use super::{Accept, check_segment, json};
use crate::cluster::Body;
use crate::dev::store::{Kind, Object, Store};
use crate::request::Ask;
use crate::status::{About, Refusal};

/// `metadata` of a list, a bookmark or a table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    kind: String,
    api_version: &'static str,
    metadata: ListMeta,
    items: &'a [&'a Object],
}

pub(super) fn get(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    name: &str,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    check_segment(name)?;
    let objects = store.snapshot();
    let Some(object) = objects.get(kind, namespace.unwrap_or(""), name) else {
        return Err(Refusal::NotFound(About {
            name: name.to_owned(),
            group: kind.group().to_owned(),
            kind: kind.plural().to_owned(),
        }));
    };
    Ok(match Form::of(ask, accept)? {
        Some(form) => {
            let version = object.meta().resource_version.clone().unwrap_or_default();
            let table = table::of(form, kind, version, [object], true);
            json(ask, StatusCode::OK, &table)
        }
        None => json(ask, StatusCode::OK, object),
    })
}

pub(super) fn list(
    store: &Arc<Store>,
    kind: Kind,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let select = Select::of(kind, &ask.query)?;
    let objects = store.snapshot();
    let items: Vec<&Object> = objects.list(kind, namespace).filter(|object| select.matches(object)).collect();
    let version = objects.version().to_string();
    Ok(match Form::of(ask, accept)? {
        Some(form) => json(ask, StatusCode::OK, &table::of(form, kind, version, items.iter().copied(), true)),
        None => json(
            ask,
            StatusCode::OK,
            &List {
                kind: format!("{}List", kind.as_str()),
                api_version: kind.api_version(),
                metadata: ListMeta { resource_version: version },
                items: &items,
            },
        ),
    })
}
