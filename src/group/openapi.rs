//! OpenAPI: what kubectl wants to know of kinds before it sends or explains them.
//!
//! From version 3 a kubectl of today learns that the server checks what it is sent, and what `kubectl explain` prints. In
//! version 2 an old one finds nothing of the group's kinds and checks nothing; a cluster has that document, and where it
//! has none an empty one is enough.
//! Source: `k8s.io/kubectl/pkg/{validation,explain/v2}`, `k8s.io/cli-runtime/pkg/resource/query_param_verifier_v3.go`;
//! `openapi_v2.Document` of gnostic.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::resource::Kind;
use super::{API_VERSION, GROUP, VERSION};
use crate::cluster::Body;
use crate::request::Ask;
use crate::serving::{self, Accept, full};

/// What the schemas of the group are called.
pub(super) const PATH: &str = "apis/podgate.dev/v1alpha1";

/// An empty document of version 2, as the protobuf message that kubectl asks for: field 1, `swagger`, is `2.0`; field 2,
/// `info`, has a title and a version.
const EMPTY_V2: &[u8] = b"\x0a\x032.0\x12\x0e\x0a\x07podgate\x12\x030.1";

/// What stands in front of a name in a schema's own name.
const PREFIX: &str = "dev.podgate.v1alpha1.";

/// A document of version 2 that says nothing.
pub(super) fn v2(ask: &Ask, accept: &Accept) -> Response<Body> {
    if accept.takes_json() {
        let info = json!({"title": "podgate", "version": "0.1"});
        return serving::json(
            ask,
            StatusCode::OK,
            &json!({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}),
        );
    }
    let mut response = Response::new(full(Bytes::from_static(EMPTY_V2)));
    let media = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    serving::uncached(response.headers_mut());
    response
}

/// A document of version 3 that says nothing.
pub(super) fn empty() -> Value {
    json!({
        "openapi": "3.0.0",
        "info": {"title": "podgate", "version": VERSION},
        "paths": {},
        "components": {"schemas": {}},
    })
}

/// Adds paths and schemas of these kinds.
pub(super) fn add(kinds: &[&Kind], document: &mut Value) {
    for kind in kinds {
        let gvk = json!({"group": GROUP, "version": VERSION, "kind": kind.kind});
        let name = format!("{PREFIX}{}", kind.kind);
        put(document, &["components", "schemas"], &name, schema(kind, &gvk));
        for (path, operations) in paths(kind, &gvk, &name) {
            put(document, &["paths"], &path, operations);
        }
    }
}

/// Puts a value under a name that nobody has, below these.
fn put(document: &mut Value, below: &[&str], name: &str, value: Value) {
    let mut at = document;
    for part in below {
        let Value::Object(fields) = at else { return };
        at = fields.entry(*part).or_insert_with(|| json!({}));
    }
    if let Value::Object(fields) = at {
        fields.entry(name).or_insert(value);
    }
}

fn schema(kind: &Kind, gvk: &Value) -> Value {
    let mut properties = json!({
        "apiVersion": {"type": "string", "description": format!("Always {API_VERSION}.")},
        "kind": {"type": "string", "description": format!("Always {}.", kind.kind)},
        "metadata": {"type": "object", "description": "Standard object's metadata."},
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut properties, (kind.schema)()) {
        all.extend(own);
    }
    json!({
        "type": "object",
        "description": kind.description,
        "properties": properties,
        "x-kubernetes-group-version-kind": [gvk],
    })
}

fn paths(kind: &Kind, gvk: &Value, schema: &str) -> Vec<(String, Value)> {
    let all = format!("/{PATH}/namespaces/{{namespace}}/{}", kind.plural);
    let content = json!({"application/json": {"schema": {"$ref": format!("#/components/schemas/{schema}")}}});
    let operation = |action: &str| {
        let mut operation = json!({
            "description": format!("{action} a {}", kind.kind),
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK", "content": content}},
        });
        if matches!(action, "post" | "put" | "patch") {
            // Says that the server checks fields, so that kubectl does not.
            let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
            operation["parameters"] =
                json!([query("dryRun"), query("fieldManager"), query("fieldValidation")]);
        }
        operation
    };
    let operations = |actions: &[(&str, &str, &str)]| {
        let has = |verb: &str| kind.verbs.contains(&verb);
        let there = actions.iter().filter(|(verb, ..)| has(verb));
        Value::Object(there.map(|(_, method, action)| ((*method).to_owned(), operation(action))).collect())
    };
    let collection = operations(&[("list", "get", "list"), ("create", "post", "post")]);
    let one = operations(&[
        ("get", "get", "get"),
        ("update", "put", "put"),
        ("patch", "patch", "patch"),
        ("delete", "delete", "delete"),
    ]);
    vec![(all.clone(), collection), (format!("{all}/{{name}}"), one)]
}
