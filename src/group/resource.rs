//! Resource: what the group asks of whoever keeps the objects of one of its kinds.

use futures_util::future::{self, BoxFuture, FutureExt};
use futures_util::stream::BoxStream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::Value;

use super::API_VERSION;
use crate::authn::Caller;
use crate::status::{About, Refusal};

/// A namespaced kind of the group, and those who keep its objects. Whoever calls has asked the cluster whether the caller
/// may. All futures may be dropped at any point: what was begun is then done, or not, as a whole.
pub trait Resource: Send + Sync + 'static {
    /// What the API says of it.
    fn kind(&self) -> &'static Kind;

    /// The objects of a namespace, or of all, in order of namespace and name.
    fn list<'a>(&'a self, namespace: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>>;

    /// The changes after this version of a list, without gaps. The stream is polled as long as somebody wants the next;
    /// after an error, which is [`Refusal::Expired`] where the version is not kept, it is not polled again.
    fn changes(&self, since: u64) -> BoxStream<'static, Result<Change, Refusal>>;

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

    /// Changes an object by a merge patch (RFC 7386), as [`super::merge`] applies it.
    fn patch<'a>(
        &'a self,
        _caller: &'a Caller,
        _namespace: &'a str,
        _name: &'a str,
        _patch: Value,
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
    /// Subresources, with their kind and verbs.
    pub subresources: &'static [(&'static str, &'static str, &'static [&'static str])],
    /// What is shown of it in a table; each [`Item`] has a cell for each.
    pub columns: &'static [Column],
    /// Fields besides `metadata.name` and `metadata.namespace` that a selector may name, such as `spec.user`.
    pub fields: &'static [&'static str],
}

/// A column of a table.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Column {
    /// What stands above it.
    pub name: &'static str,
    /// `string`, `integer` or `date`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `name` for the name, else empty.
    pub format: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
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

/// An object that has become another, has come, or has gone.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its version.
    pub version: u64,
    /// As it was; none when it is new.
    pub before: Option<Item>,
    /// As it is; none when it is gone.
    pub after: Option<Item>,
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

    /// There is no object of this name.
    pub fn not_found(&self, name: &str) -> Refusal {
        Refusal::NotFound(self.about(name))
    }
}

// === impl Column ===

impl Column {
    /// A column of text, without a format.
    pub const fn text(name: &'static str, priority: i32, description: &'static str) -> Self {
        Self { name, kind: "string", format: "", description, priority }
    }

    /// The name, which is the first column of every kind.
    pub const NAME: Self = Self {
        format: "name",
        ..Self::text(
            "Name",
            0,
            "Name must be unique within a namespace and is what the object is asked for by.",
        )
    };
}

// === impl Item ===

impl Item {
    /// An object of this kind.
    pub fn new(kind: &Kind, metadata: ObjectMeta, spec: Value, status: Value, cells: Vec<Value>) -> Self {
        Self { kind: kind.kind, api_version: API_VERSION, metadata, spec, status, cells }
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

fn not_allowed<'a>() -> BoxFuture<'a, Result<Item, Refusal>> {
    future::ready(Err(Refusal::MethodNotAllowed)).boxed()
}

/// Applies a merge patch. Source: RFC 7386, section 2.
pub fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            fields.remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_sets_removes_and_keeps() {
        let mut target = json!({"a": {"b": 1, "c": [1]}, "d": "x"});
        merge(&mut target, json!({"a": {"b": null, "c": [2], "e": {"f": null}}, "d": {"g": 1}}));
        assert_eq!(target, json!({"a": {"c": [2], "e": {}}, "d": {"g": 1}}));
        merge(&mut target, json!("y"));
        assert_eq!(target, json!("y"));
    }
}
