//! Verbs: a permitted request for one of the group's resources, from its head and body to the answer.
//!
//! Source: apiserver `pkg/endpoints/handlers/{get,create,update,patch,delete,watch}.go`.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use serde::Deserialize;
use serde_json::Value;

use super::resource::{Change, Item, Kind, Options, Resource};
use super::{API_VERSION, GROUP};
use crate::authz::Permit;
use crate::cluster::Body;
use crate::request::Ask;
use crate::serving::table::Form;
use crate::serving::watch::{self, Changed, Feed, Start};
use crate::serving::{self, Accept, Select, body, check_segment};
use crate::status::Refusal;

/// Media types of a body that is an object.
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";

/// What a client says about a deletion, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DeleteOptions {
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

pub(super) async fn serve(
    resource: &dyn Resource,
    permit: &Permit,
    ask: &Ask,
    request: Request<Body>,
) -> Result<Response<Body>, Refusal> {
    let Some(asked) = &ask.attributes.resource else { return Err(Refusal::NoSuchPath) };
    let (verb, kind) = (ask.attributes.verb.as_str(), resource.kind());
    if !asked.rest.is_empty() {
        return Err(Refusal::NoSuchPath);
    }
    for part in [&asked.namespace, &asked.name] {
        check_segment(part)?;
    }
    let (namespace, name) = (asked.namespace.as_str(), asked.name.as_str());
    if !asked.subresource.is_empty() {
        let known = kind.subresources.iter().find(|(known, _)| *known == asked.subresource);
        let Some((_, verbs)) = known.filter(|_| !namespace.is_empty()) else {
            return Err(Refusal::NoSuchPath);
        };
        if !verbs.contains(&verb) {
            return Err(Refusal::MethodNotAllowed);
        }
        return resource.subresource(namespace, name, &asked.subresource).await;
    }
    if !kind.verbs.contains(&verb) {
        return Err(Refusal::MethodNotAllowed);
    }
    let within = Some(namespace).filter(|namespace| !namespace.is_empty());
    let accept = Accept::of(request.headers());
    let answer = |status, item: &Item| serving::one(ask, &accept, status, kind.columns, item);
    match (verb, within) {
        ("list", _) => list(resource, within, ask, &accept).await,
        ("watch", _) => watch(resource, within, ask, &accept).await,
        ("create" | "deletecollection", None) => Err(Refusal::MethodNotAllowed),
        // An object is somewhere.
        (_, None) => Err(Refusal::NoSuchPath),
        ("get", _) => answer(StatusCode::OK, &resource.get(namespace, name).await?),
        ("create", _) => {
            if !name.is_empty() {
                return Err(Refusal::MethodNotAllowed);
            }
            let options = dry_run(ask)?;
            let object = object(kind, namespace, request).await?;
            answer(StatusCode::CREATED, &resource.create(permit.caller(), namespace, object, &options).await?)
        }
        ("update", _) => {
            let options = dry_run(ask)?;
            let object = object(kind, namespace, request).await?;
            let updated = resource.update(permit.caller(), namespace, name, object, &options).await?;
            answer(StatusCode::OK, &updated)
        }
        ("patch", _) => {
            let options = dry_run(ask)?;
            let media = media(request.headers());
            let patch = (media.as_str(), body::whole(request.into_body()).await?);
            let patched = resource.patch(permit.caller(), namespace, name, patch, &options).await?;
            answer(StatusCode::OK, &patched)
        }
        ("delete", _) => {
            let options = delete_options(ask, request).await?;
            answer(StatusCode::OK, &resource.delete(permit.caller(), namespace, name, &options).await?)
        }
        ("deletecollection", _) => {
            let select = select(kind, ask)?;
            let options = delete_options(ask, request).await?;
            let mut listed = resource.list(within).await?;
            listed.items.retain(|item| select.matches(item));
            for item in &mut listed.items {
                match resource.delete(permit.caller(), namespace, item.name(), &options).await {
                    Ok(deleted) => *item = deleted,
                    // It was quicker.
                    Err(Refusal::NotFound(_)) => {}
                    Err(refusal) => return Err(refusal),
                }
            }
            all(kind, ask, &accept, &listed.items, listed.version)
        }
        _ => Err(Refusal::MethodNotAllowed),
    }
}

async fn list(
    resource: &dyn Resource,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let select = select(resource.kind(), ask)?;
    let mut listed = resource.list(namespace).await?;
    listed.items.retain(|item| select.matches(item));
    all(resource.kind(), ask, accept, &listed.items, listed.version)
}

fn all(
    kind: &Kind,
    ask: &Ask,
    accept: &Accept,
    items: &[Item],
    version: u64,
) -> Result<Response<Body>, Refusal> {
    let items: Vec<&Item> = items.iter().collect();
    serving::list(ask, accept, (kind.kind, API_VERSION), kind.columns, version, &items)
}

async fn watch(
    resource: &dyn Resource,
    namespace: Option<&str>,
    ask: &Ask,
    accept: &Accept,
) -> Result<Response<Body>, Refusal> {
    let kind = resource.kind();
    let mut select = select(kind, ask)?;
    if let Some(asked) = &ask.attributes.resource {
        // The old path `/watch/...`; a name read from the field selector is the same again.
        select.only(&asked.name);
    }
    let (form, start) = (Form::of(ask, accept)?, Start::of(&ask.query)?);
    let listed = resource.list(namespace).await?;
    let from = start.from(listed.version);
    let about =
        watch::About { kind: kind.kind, api_version: API_VERSION, columns: kind.columns, select, form };
    let feed = Told { changes: resource.changes(namespace, from), seen: from };
    Ok(watch::watch(about, start, listed.items, feed))
}

fn select(kind: &Kind, ask: &Ask) -> Result<Select, Refusal> {
    Select::of(&ask.query, |label| kind.unknown_field(label))
}

/// What a resource has told.
struct Told {
    changes: BoxStream<'static, Result<Change, Refusal>>,
    seen: u64,
}

impl Feed for Told {
    type Object = Item;

    async fn next(&mut self) -> Result<Changed<Item>, Refusal> {
        loop {
            let Some(change) = self.changes.next().await else { return std::future::pending().await };
            let Change { version, before, after, last } = change?;
            self.seen = version;
            let last = last.or_else(|| after.clone()).or_else(|| before.clone());
            if let Some(mut last) = last {
                last.metadata.resource_version = Some(version.to_string());
                return Ok(Changed { before, after, last });
            }
        }
    }

    fn seen(&self) -> u64 {
        self.seen
    }
}

// --- what the client sent

fn media(headers: &HeaderMap) -> String {
    let media = headers.get(header::CONTENT_TYPE).map_or(Ok(""), |value| value.to_str()).unwrap_or("?");
    media.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// The body as JSON; none, where there is none.
async fn value(request: Request<Body>) -> Result<Option<Value>, Refusal> {
    let media = media(request.headers());
    let sent: Bytes = body::whole(request.into_body()).await?;
    if sent.is_empty() {
        return Ok(None);
    }
    let unread = |error: &dyn std::error::Error| {
        Refusal::BadRequest(format!("the object provided is unrecognized: {error}"))
    };
    match media.as_str() {
        "" | JSON => serde_json::from_slice(&sent).map(Some).map_err(|error| unread(&error)),
        YAML => serde_saphyr::from_slice(&sent).map(Some).map_err(|error| unread(&error)),
        _ => Err(Refusal::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: {JSON}, {YAML}"
        ))),
    }
}

/// An object of this kind and namespace; what it leaves out of that is filled in.
async fn object(kind: &Kind, namespace: &str, request: Request<Body>) -> Result<Value, Refusal> {
    let wrong = |what: &str| {
        Refusal::BadRequest(format!(
            "the object provided is unrecognized (must be of type {}): {what}",
            kind.kind
        ))
    };
    let mut object = value(request).await?.ok_or_else(|| wrong("there is none"))?;
    let Value::Object(fields) = &mut object else { return Err(wrong("it is no object")) };
    for (name, expected) in [("kind", kind.kind), ("apiVersion", API_VERSION)] {
        let given = fields.entry(name).or_insert_with(|| expected.into());
        if given != expected {
            return Err(wrong(&format!("{name} is {given}, of group {GROUP} it must be {expected:?}")));
        }
    }
    let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Value::Object(metadata) = metadata else { return Err(wrong("its metadata is no object")) };
    let given = metadata.entry("namespace").or_insert_with(|| namespace.into());
    if given == "" {
        *given = namespace.into();
    }
    if given != namespace {
        return Err(Refusal::BadRequest(
            "the namespace of the provided object does not match the namespace sent on the request".into(),
        ));
    }
    Ok(object)
}

fn dry_run(ask: &Ask) -> Result<Options, Refusal> {
    let asked = ask.query.first("dryRun").unwrap_or_default();
    Ok(Options { dry_run: is_dry(&asked)?, ..Options::default() })
}

fn is_dry(word: &str) -> Result<bool, Refusal> {
    match word {
        "" => Ok(false),
        "All" => Ok(true),
        _ => Err(Refusal::BadRequest(format!(
            "dryRun: Unsupported value: {word:?}: supported values: \"All\""
        ))),
    }
}

async fn delete_options(ask: &Ask, request: Request<Body>) -> Result<Options, Refusal> {
    let mut options = dry_run(ask)?;
    // Boxed: most requests have no body that is read.
    let Some(sent) = value(request).boxed().await? else { return Ok(options) };
    let sent: DeleteOptions = serde_json::from_value(sent)
        .map_err(|error| Refusal::BadRequest(format!("the object provided is unrecognized: {error}")))?;
    for word in sent.dry_run.iter().flatten() {
        options.dry_run |= is_dry(word)?;
    }
    if let Some(Preconditions { uid, resource_version }) = sent.preconditions {
        (options.uid, options.resource_version) = (uid, resource_version);
    }
    Ok(options)
}
