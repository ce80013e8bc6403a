//! Patch: the two forms in which clients say what is to be another, of those that the API server takes for such kinds.
//!
//! Source: RFC 7396 (JSON merge patch); Kubernetes API concepts, "Server-side apply". Who owns which field is not kept:
//! whoever applies a grant says its specification whole.

use serde_json::{Map, Value};

use super::document::MAX_BYTES;
use crate::status::Refusal;

/// What is to be another.
#[derive(Debug, Clone, PartialEq)]
pub enum Patch {
    /// `application/merge-patch+json`
    Merge(Value),
    /// `application/apply-patch+yaml`; it makes what is not there.
    Apply(Value),
}

// === impl Patch ===

impl Patch {
    /// Reads a request body of this media type.
    ///
    /// # Errors
    /// 400, 413 and 415 in the API server's words.
    pub fn read(media: &str, body: &[u8]) -> Result<Self, Refusal> {
        if body.len() > MAX_BYTES {
            return Err(Refusal::TooLarge(format!("Request entity too large: limit is {MAX_BYTES}")));
        }
        let media = media.split(';').next().unwrap_or_default().trim();
        let patch = match media {
            "application/merge-patch+json" => serde_json::from_slice(body).map(Self::Merge).map_err(|_| ()),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                let yaml = || serde_saphyr::from_slice(body).map_err(|_| ());
                serde_json::from_slice(body).or_else(|_| yaml()).map(Self::Apply)
            }
            _ => {
                return Err(Refusal::UnsupportedMediaType(
                    "the body of the request was in an unknown format - accepted media types include: \
                     application/merge-patch+json, application/apply-patch+yaml"
                        .to_owned(),
                ));
            }
        };
        match patch {
            Ok(Self::Merge(value) | Self::Apply(value)) if !value.is_object() => {
                Err(Refusal::BadRequest("a patch of an object is an object".to_owned()))
            }
            Ok(patch) => Ok(patch),
            Err(()) => Err(Refusal::BadRequest("error decoding patch: it is no JSON object".to_owned())),
        }
    }

    /// The version that is to be patched, if one is named.
    pub(super) fn version(&self) -> Option<&str> {
        let (Self::Merge(value) | Self::Apply(value)) = self;
        value.pointer("/metadata/resourceVersion").and_then(Value::as_str)
    }

    /// The object as it is to be.
    pub(super) fn apply(&self, mut object: Value) -> Value {
        match self {
            Self::Merge(patch) => merge(&mut object, patch),
            Self::Apply(applied) => {
                let spec = applied.get("spec").cloned();
                merge(&mut object, applied);
                if let (Some(spec), Some(object)) = (spec, object.as_object_mut()) {
                    object.insert("spec".to_owned(), spec);
                }
            }
        }
        object
    }
}

/// RFC 7396. The recursion is as deep as the reader of JSON lets a text be.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        patch.clone_into(target);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}
