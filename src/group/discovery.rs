//! Discovery: the documents in which the cluster says what there is, with the group in them.
//!
//! The cluster is asked first, in JSON, so that what it has of the same group (the definition of a policy, for one) stays,
//! and so that it decides who may know. What is no document is passed on as it is.
//! Source: apiserver `pkg/endpoints/discovery`; KEP-3352 for the aggregated form.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use serde_json::{Value, json};
use tracing::warn;

use super::resource::{Kind, Resource};
use super::{API_VERSION, GROUP, VERSION, openapi};
use crate::cluster::Body;
use crate::request::Ask;
use crate::serving::{self, Accept, full};
use crate::status::Refusal;

/// Bytes of a cluster's document, at most: with hundreds of definitions the largest is a few MiB. Of a larger one the
/// group is not part.
const MAX_DOCUMENT: usize = 32 * 1024 * 1024;

/// Documents that say what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Document {
    /// `/apis`: all groups, or all that is in them.
    Groups,
    /// `/apis/podgate.dev`
    Group,
    /// `/apis/podgate.dev/v1alpha1`
    Version,
    /// `/openapi/v2`; only where the cluster has none.
    OpenApi2,
    /// `/openapi/v3`: where the schemas of each version are; only where the cluster has it.
    OpenApi3,
    /// `/openapi/v3/apis/podgate.dev/v1alpha1`
    Schemas,
}

// === impl Document ===

impl Document {
    pub(super) fn of(ask: &Ask) -> Option<Self> {
        if ask.attributes.resource.is_some() || ask.attributes.verb != "get" {
            return None;
        }
        let parts: Vec<&str> = ask.attributes.path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["apis"] => Some(Self::Groups),
            ["apis", GROUP] => Some(Self::Group),
            ["apis", GROUP, VERSION] => Some(Self::Version),
            ["openapi", "v2"] => Some(Self::OpenApi2),
            ["openapi", "v3"] => Some(Self::OpenApi3),
            ["openapi", "v3", "apis", GROUP, VERSION] => Some(Self::Schemas),
            _ => None,
        }
    }

    /// Makes the cluster be asked for what can be added to: JSON, whatever else the client would take. One that takes none of
    /// it gets what it asks for, and so does everybody of a document that nothing is added to.
    pub(super) fn ask_for_json(self, headers: &mut HeaderMap) {
        if self == Self::OpenApi2 {
            return;
        }
        let mut json = Vec::new();
        for value in headers.get_all(header::ACCEPT) {
            let items = value.to_str().unwrap_or("").split(',').map(str::trim);
            json.extend(items.filter(|item| {
                let media = item.split(';').next().unwrap_or("").trim();
                ["application/json", "application/*", "*/*"].contains(&media)
            }));
        }
        let json = match headers.contains_key(header::ACCEPT) {
            true => json.join(","),
            false => "application/json".to_owned(),
        };
        let Some(value) = HeaderValue::from_str(&json).ok().filter(|value| !value.is_empty()) else { return };
        headers.insert(header::ACCEPT, value);
        // Nothing is to come in another form, or not at all because the client has it already.
        for name in [header::ACCEPT_ENCODING, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE] {
            headers.remove(name);
        }
    }

    /// The cluster's answer, with what the group has to say.
    pub(super) async fn with(
        self,
        resources: &[Arc<dyn Resource>],
        ask: &Ask,
        accept: &Accept,
        answer: Result<Response<Body>, Refusal>,
    ) -> Result<Response<Body>, Refusal> {
        let kinds: Vec<&Kind> = resources.iter().map(|resource| resource.kind()).collect();
        let missing = match &answer {
            Ok(response) => response.status() == StatusCode::NOT_FOUND,
            Err(refusal) => refusal.code() == StatusCode::NOT_FOUND,
        };
        if missing {
            return self.alone(&kinds, ask, accept).map_or(answer, Ok);
        }
        let response = answer?;
        let media = response.headers().get(header::CONTENT_TYPE).and_then(|media| media.to_str().ok());
        let readable = media.is_some_and(|media| media.starts_with("application/json"));
        let coded = response.headers().contains_key(header::CONTENT_ENCODING);
        if self == Self::OpenApi2 || response.status() != StatusCode::OK || !readable || coded {
            return Ok(response);
        }
        let (mut head, body) = response.into_parts();
        let (text, rest) = read(body).await?;
        if let Some(rest) = rest {
            warn!(bytes = text.len(), "a discovery document is too large to add the group to");
            return Ok(Response::from_parts(head, rest));
        }
        let body = match serde_json::from_slice::<Value>(&text) {
            Ok(mut document) => {
                self.add(&kinds, &mut document);
                ask.encoding.encode(&document)
            }
            Err(_) => text,
        };
        // It is another document now, and no longer the one that the cluster's hash in the URL stands for.
        for name in [header::CONTENT_LENGTH, header::ETAG, header::EXPIRES] {
            head.headers.remove(name);
        }
        serving::uncached(&mut head.headers);
        Ok(Response::from_parts(head, full(body)))
    }

    /// What is said where the cluster has nothing to say. Where it tells no schemas of version 3, nor does the group: a
    /// client that finds these reads none of version 2, and so knows nothing of the cluster's own kinds.
    /// Source: `k8s.io/kubectl/pkg/cmd/explain`, `k8s.io/cli-runtime/pkg/resource/fallback_query_param_verifier.go`.
    fn alone(self, kinds: &[&Kind], ask: &Ask, accept: &Accept) -> Option<Response<Body>> {
        let mut document = match self {
            Self::Groups => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
            Self::Group => group(),
            Self::Version => {
                json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": API_VERSION, "resources": []})
            }
            Self::OpenApi2 => return Some(openapi::v2(ask, accept)),
            Self::OpenApi3 => return None,
            Self::Schemas => openapi::empty(),
        };
        self.add(kinds, &mut document);
        Some(serving::json(ask, StatusCode::OK, &document))
    }

    fn add(self, kinds: &[&Kind], document: &mut Value) {
        match self {
            Self::Groups if document["kind"] == "APIGroupDiscoveryList" => {
                let fresh = json!({"metadata": {"name": GROUP}, "versions": []});
                let group = entry(document, "items", fresh, |item| item["metadata"]["name"] == GROUP);
                let fresh = json!({"version": VERSION, "resources": [], "freshness": "Current"});
                let version = entry(group, "versions", fresh, |item| item["version"] == VERSION);
                for kind in kinds {
                    let described = aggregated(kind);
                    entry(version, "resources", described, |item| item["resource"] == kind.plural);
                }
            }
            Self::Groups => {
                let group = entry(document, "groups", group(), |item| item["name"] == GROUP);
                entry(group, "versions", group_version(), |item| item["version"] == VERSION);
            }
            Self::Group => {
                entry(document, "versions", group_version(), |item| item["version"] == VERSION);
            }
            Self::Version => {
                for resource in kinds.iter().flat_map(|kind| plain(kind)) {
                    let name = resource["name"].clone();
                    entry(document, "resources", resource, |item| item["name"] == name);
                }
            }
            Self::OpenApi2 => {}
            Self::OpenApi3 => {
                let url = json!({"serverRelativeURL": format!("/openapi/v3/{}", openapi::PATH)});
                if let Some(Value::Object(paths)) = document.get_mut("paths") {
                    paths.entry(openapi::PATH).or_insert(url);
                }
            }
            Self::Schemas => openapi::add(kinds, document),
        }
    }
}

/// The first [`MAX_DOCUMENT`] bytes of a body, and all of it again if there are more.
async fn read(mut body: Body) -> Result<(Bytes, Option<Body>), Refusal> {
    let mut text = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Refusal::Internal(format!("read a discovery document: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        text.extend_from_slice(&data);
        if text.len() > MAX_DOCUMENT {
            let text = text.freeze();
            let first = futures_util::stream::iter([Ok(Frame::data(text.clone()))]);
            let all = StreamBody::new(first.chain(BodyStream::new(body))).boxed_unsync();
            return Ok((text, Some(all)));
        }
    }
    Ok((text.freeze(), None))
}

/// The item of a list that is meant, which is put there if there is none.
fn entry<'a>(at: &'a mut Value, list: &str, fresh: Value, is: impl Fn(&Value) -> bool) -> &'a mut Value {
    if !at.is_object() {
        *at = json!({});
    }
    if !at[list].is_array() {
        at[list] = json!([]);
    }
    let items = at[list].as_array_mut().expect("an array is there by now");
    let found = items.iter().position(is).unwrap_or(items.len());
    if found == items.len() {
        items.push(fresh);
    }
    &mut items[found]
}

fn group_version() -> Value {
    json!({"groupVersion": API_VERSION, "version": VERSION})
}

fn group() -> Value {
    json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": GROUP,
        "versions": [group_version()],
        "preferredVersion": group_version(),
    })
}

/// A kind and its subresources as `APIResource`s.
fn plain(kind: &Kind) -> Vec<Value> {
    let mut own = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": true,
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    if !kind.short.is_empty() {
        own["shortNames"] = json!(kind.short);
    }
    let below = kind.subresources.iter().map(|(name, verbs)| {
        json!({
            "name": format!("{}/{name}", kind.plural),
            "singularName": "",
            "namespaced": true,
            "kind": kind.kind,
            "verbs": verbs,
        })
    });
    std::iter::once(own).chain(below).collect()
}

/// The same in the aggregated form.
fn aggregated(kind: &Kind) -> Value {
    let response = json!({"group": GROUP, "version": VERSION, "kind": kind.kind});
    let mut own = json!({
        "resource": kind.plural,
        "responseKind": response,
        "scope": "Namespaced",
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short.is_empty() {
        own["shortNames"] = json!(kind.short);
    }
    let below = kind.subresources.iter();
    let below: Vec<_> = below
        .map(|(name, verbs)| json!({"subresource": name, "responseKind": response, "verbs": verbs}))
        .collect();
    if !below.is_empty() {
        own["subresources"] = json!(below);
    }
    own
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use futures_util::stream::BoxStream;
    use http::Method;

    use super::*;
    use crate::authn::Caller;
    use crate::group::{Change, Item, Listed, Options, sessions};

    fn added(document: Document, mut to: Value) -> Value {
        document.add(&[&sessions::KIND], &mut to);
        to
    }

    #[test]
    fn what_the_cluster_has_of_the_group_stays_and_nothing_is_there_twice() {
        let policies = json!({"resource": "execpolicies", "scope": "Cluster"});
        let theirs = json!({
            "kind": "APIGroupDiscoveryList",
            "items": [
                {"metadata": {"name": "apps"}, "versions": []},
                {"metadata": {"name": GROUP}, "versions": [{"version": VERSION, "resources": [policies]}]},
            ],
        });
        let once = added(Document::Groups, theirs);
        assert_eq!(once["items"].as_array().map(Vec::len), Some(2));
        let resources = &once["items"][1]["versions"][0]["resources"];
        assert_eq!(resources[0], policies);
        assert_eq!(resources[1]["resource"], "sessions");
        assert_eq!(added(Document::Groups, once.clone()), once);
    }

    #[test]
    fn where_the_cluster_has_no_such_group_it_is_whole() {
        let list = added(Document::Groups, json!({"kind": "APIGroupList", "groups": [{"name": "apps"}]}));
        assert_eq!(list["groups"][1]["preferredVersion"]["groupVersion"], API_VERSION);
        let all = json!({"kind": "APIGroupDiscoveryList", "items": []});
        let all = added(Document::Groups, all);
        assert_eq!(all["items"][0]["versions"][0]["resources"][0]["singularResource"], "session");
        let resources =
            added(Document::Version, json!({"kind": "APIResourceList", "groupVersion": API_VERSION}));
        assert_eq!(resources["resources"][0]["name"], "sessions");
        assert_eq!(resources["resources"][1]["name"], "sessions/stream");
        // What a broken cluster says makes nothing worse.
        assert!(added(Document::Version, json!([1]))["resources"].is_array());
        assert!(added(Document::OpenApi3, json!("x")).is_string());
    }

    struct Alone;

    impl Resource for Alone {
        fn kind(&self) -> &'static Kind {
            &sessions::KIND
        }

        fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Result<Listed, Refusal>> {
            unreachable!("only what it is matters")
        }

        fn changes(&self, _: Option<&str>, _: u64) -> BoxStream<'static, Result<Change, Refusal>> {
            unreachable!("only what it is matters")
        }

        fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Item, Refusal>> {
            unreachable!("only what it is matters")
        }

        fn delete<'a>(
            &'a self,
            _: &'a Caller,
            _: &'a str,
            _: &'a str,
            _: &'a Options,
        ) -> BoxFuture<'a, Result<Item, Refusal>> {
            unreachable!("only what it is matters")
        }
    }

    #[tokio::test]
    async fn no_client_keeps_the_schemas_of_another_podgate_by_the_hash_of_the_clusters() {
        let uri = "/openapi/v3/apis/podgate.dev/v1alpha1?hash=5EED".parse().unwrap();
        let ask = Ask::parse(&Method::GET, &uri, &HeaderMap::new()).unwrap();
        let theirs = Response::builder()
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CACHE_CONTROL, "public, immutable")
            .header(header::EXPIRES, "Sat, 20 Nov 2027 10:00:00 GMT")
            .header(header::ETAG, "5EED")
            .body(full(Bytes::from_static(b"{\"paths\": {}}")))
            .unwrap();
        let document = Document::of(&ask).unwrap();
        let answer = document.with(&[Arc::new(Alone)], &ask, &Accept::default(), Ok(theirs)).await.unwrap();
        let (head, body) = answer.into_parts();
        assert_eq!(head.headers[header::CACHE_CONTROL], "no-cache, private");
        assert!(!head.headers.contains_key(header::EXPIRES) && !head.headers.contains_key(header::ETAG));
        let text = body.collect().await.unwrap().to_bytes();
        assert!(serde_json::from_slice::<Value>(&text).unwrap()["components"].is_object());
    }

    #[tokio::test]
    async fn an_api_server_of_old_has_no_schemas_of_version_3_for_its_own_kinds_to_be_missed_in() {
        for (uri, code) in [("/openapi/v3", 404), ("/apis/podgate.dev/v1alpha1", 200)] {
            let ask = Ask::parse(&Method::GET, &uri.parse().unwrap(), &HeaderMap::new()).unwrap();
            let missing = Response::builder().status(404).body(full(Bytes::new())).unwrap();
            let document = Document::of(&ask).unwrap();
            let answer = document.with(&[Arc::new(Alone)], &ask, &Accept::default(), Ok(missing)).await;
            assert_eq!(answer.unwrap().status(), code, "{uri}");
        }
    }

    #[test]
    fn only_json_is_asked_for_and_always_anew() {
        let mut headers = HeaderMap::new();
        let asked =
            "application/vnd.kubernetes.protobuf;as=A,application/json;g=x;v=v2;as=A, application/json";
        headers.insert(header::ACCEPT, HeaderValue::from_static(asked));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("x"));
        Document::Groups.ask_for_json(&mut headers);
        assert_eq!(headers[header::ACCEPT], "application/json;g=x;v=v2;as=A,application/json");
        assert_eq!(headers.len(), 1);
        let mut none = HeaderMap::new();
        Document::Groups.ask_for_json(&mut none);
        assert_eq!(none[header::ACCEPT], "application/json");
    }

    #[test]
    fn the_large_document_that_nothing_is_added_to_comes_as_the_client_wants_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/x-protobuf, application/json"));
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("x"));
        let asked = headers.clone();
        Document::OpenApi2.ask_for_json(&mut headers);
        assert_eq!(headers, asked);
    }
}
