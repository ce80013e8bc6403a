//! Resource: what the group asks of whoever keeps the objects of one of its kinds.

use bytes::Bytes;
use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::BoxStream;
use http::Response;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use super::API_VERSION;
use crate::authn::Caller;
use crate::cluster::Body;
use crate::serving;
use crate::serving::table::{Column, Condition};
use crate::status::{About, Refusal};

/// A namespaced kind of the group, and those who keep its objects. Whoever calls has asked the cluster whether the caller
/// may. All futures may be dropped at any point: what was begun is then done, or not, as a whole.
pub trait Resource: Send + Sync + 'static {
    /// What the API says of it.
    fn kind(&self) -> &'static Kind;

    /// The objects of a namespace, or of all, in order of namespace and name.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>>;

    /// The changes after this version of a list, without gaps; of those outside the namespace, if one is named, nothing but
    /// the version. The stream is polled as long as somebody wants the next; after an error, which is [`Refusal::Expired`]
    /// where the version is not kept, it is not polled again.
    fn changes(&self, namespace: Option<&str>, since: u64) -> BoxStream<'static, Result<Change, Refusal>>;

    /// One object.
    fn get<'a>(&'a self, namespace: &'a str, name: &'a str) -> BoxFuture<'a, Result<Item, Refusal>>;

    /// Makes an object of what the caller sent, which says that it is of this kind, and of the namespace of the request.
    fn create<'a>(
        &'a self,
        _caller: &'a Caller,
        _namespace: &'a str,
        _object: Value,
        _options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        not_allowed()
    }

    /// Puts what the caller sent in the place of an object, which has to be of the version that it names, if it names one.
    fn update<'a>(
        &'a self,
        _caller: &'a Caller,
        _namespace: &'a str,
        _name: &'a str,
        _object: Value,
        _options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        not_allowed()
    }

    /// Changes an object by a patch of this media type.
    fn patch<'a>(
        &'a self,
        _caller: &'a Caller,
        _namespace: &'a str,
        _name: &'a str,
        _patch: (&'a str, Bytes),
        _options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>> {
        not_allowed()
    }

    /// Deletes an object, or begins to; gives it as it was last. One that takes a while has a `deletionTimestamp` until it
    /// is gone, which is told as a change.
    fn delete<'a>(
        &'a self,
        caller: &'a Caller,
        namespace: &'a str,
        name: &'a str,
        options: &'a Options,
    ) -> BoxFuture<'a, Result<Item, Refusal>>;

    /// Answers a `get` of a subresource.
    fn subresource<'a>(
        &'a self,
        _namespace: &'a str,
        _name: &'a str,
        _subresource: &'a str,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        future::ready(Err(Refusal::NoSuchPath)).boxed()
    }
}

/// What the API says of a kind.
#[derive(Debug)]
pub struct Kind {
    /// Such as `Session`.
    pub kind: &'static str,
    /// Such as `sessions`.
    pub plural: &'static str,
    /// Such as `session`.
    pub singular: &'static str,
    /// Short names.
    pub short: &'static [&'static str],
    /// The verbs that are allowed, in alphabetical order.
    pub verbs: &'static [&'static str],
    /// Subresources, with their verbs.
    pub subresources: &'static [(&'static str, &'static [&'static str])],
    /// What is shown of it in a table; each [`Item`] has a cell for each.
    pub columns: &'static [Column],
    /// Fields besides `metadata.name` and `metadata.namespace` that a selector may name, such as `spec.user`.
    pub fields: &'static [&'static str],
    /// What it is, in a sentence or two.
    pub description: &'static str,
    /// What `kubectl explain` says, as the properties of an OpenAPI schema: `spec` and `status`.
    pub schema: fn() -> Value,
}

/// An object, and its row in a table.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// Its kind.
    pub kind: &'static str,
    /// Always the group's.
    pub api_version: &'static str,
    /// With name, namespace, uid, creation and resource version.
    pub metadata: ObjectMeta,
    /// What it is to be.
    pub spec: Value,
    /// How it is.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub status: Value,
    /// One for each column.
    #[serde(skip)]
    pub cells: Vec<Value>,
}

/// The objects at one version.
#[derive(Debug, Clone)]
pub struct Listed {
    /// In order of namespace and name.
    pub items: Vec<Item>,
    /// Up to which all changes are in them.
    pub version: u64,
}

/// An object that has become another, has come, or has gone; or that a watcher has seen all up to a version.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// Its version.
    pub version: u64,
    /// As it was; none when it is new.
    pub before: Option<Item>,
    /// As it is; none when it is gone.
    pub after: Option<Item>,
    /// What is told of one that is gone, where that is not as it was before.
    pub last: Option<Item>,
}

/// How something is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Only to say what would be.
    pub dry_run: bool,
    /// For deleting: only the object with this uid.
    pub uid: Option<String>,
    /// For deleting: only the object of this version.
    pub resource_version: Option<String>,
}

// === impl Kind ===

impl Kind {
    /// What a refusal says about an object of this kind.
    pub fn about(&self, name: &str) -> About {
        About { name: name.to_owned(), group: super::GROUP.to_owned(), kind: self.plural.to_owned() }
    }

    /// What a selector may not name.
    pub(super) fn unknown_field(&self, label: &str) -> Option<String> {
        let known = matches!(label, "metadata.name" | "metadata.namespace") || self.fields.contains(&label);
        (!known).then(|| format!("field label not supported: {label}"))
    }

    /// There is no object of this name.
    pub fn not_found(&self, name: &str) -> Refusal {
        Refusal::NotFound(self.about(name))
    }
}

// === impl Item ===

impl Item {
    /// An object of this kind.
    pub fn new(kind: &Kind, metadata: ObjectMeta, spec: Value, status: Value, cells: Vec<Value>) -> Self {
        Self { kind: kind.kind, api_version: API_VERSION, metadata, spec, status, cells }
    }

    /// An object of this kind, from its JSON.
    ///
    /// # Errors
    /// 500 when it is none.
    pub fn of_value(kind: &Kind, mut object: Value, cells: Vec<Value>) -> Result<Self, Refusal> {
        let mut take = |name: &str| object.get_mut(name).map(Value::take).unwrap_or_default();
        let metadata = serde_json::from_value(take("metadata"))
            .map_err(|error| Refusal::Internal(format!("read the metadata of a {}: {error}", kind.kind)))?;
        Ok(Self::new(kind, metadata, take("spec"), take("status"), cells))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }
}

impl serving::Object for Item {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    /// A field such as `spec.user`; what is no text, number or truth is empty.
    fn field(&self, label: &str) -> String {
        let (part, path) = label.split_once('.').unwrap_or((label, ""));
        let root = match part {
            "spec" => &self.spec,
            "status" => &self.status,
            _ => &Value::Null,
        };
        match path.split('.').try_fold(root, |value, name| value.get(name)) {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            _ => String::new(),
        }
    }

    fn row(&self, _now: Timestamp) -> (Vec<Value>, Vec<Condition>) {
        (self.cells.clone(), Vec::new())
    }
}

fn not_allowed<'a>() -> BoxFuture<'a, Result<Item, Refusal>> {
    future::ready(Err(Refusal::MethodNotAllowed)).boxed()
}
