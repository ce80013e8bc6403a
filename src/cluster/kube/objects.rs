//! Objects: pods and nodes, kept from watches, and never believed without a look.
//!
//! What the watches know is a hint: [`Objects::pod`] and [`Objects::node`] ask the API server for the
//! object's metadata, which is small, and use what is known if uid and resourceVersion are still the same;
//! otherwise they read the object. So a pod made just now is there, and one that was deleted and made again
//! is never the old one, whatever the watches do: late, stuck, broken or off. Invariants: what is returned
//! was true at some moment after the call began; of two versions the store keeps the newer.
//! Source: Kubernetes API concepts, "Efficient detection of changes", "Resource versions"; client-go
//! `tools/cache`.

mod store;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderValue, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::ask::{Asker, JSON, Refused, Status, read, unanswered};
use super::connect::Connection;
use crate::cluster::{Error, Node, Pod};
use crate::drain::Drain;
use crate::reload::Live;
use crate::telemetry::Metrics;
use store::{Store, Version};

/// Metadata alone; the object itself from a server that knows no such form.
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");

/// What stands unencoded in a path segment, besides letters and digits: RFC 3986 section 2.3.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Pods and nodes.
#[derive(Debug)]
pub(super) struct Objects {
    asker: Asker,
    watched: bool,
    pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
}

/// What podgate keeps of one kind of object.
trait Kind: From<Object> + Clone + Send + Sync + 'static {
    /// The resource, as in paths.
    const PLURAL: &str;

    /// What is known of an object, with what only its metadata says.
    fn with(known: Arc<Self>, metadata: Metadata) -> Arc<Self>;

    /// The same, as it is kept.
    fn kept(self) -> Self;
}

/// An object of either kind, as far as podgate reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    spec: Spec,
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: String,
    // Go writes an empty list as null here and there.
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Debug, Deserialize)]
struct Container {
    name: String,
    #[serde(default)]
    image: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
    daemon_endpoints: DaemonEndpoints,
    declared_features: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Address {
    r#type: String,
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DaemonEndpoints {
    kubelet_endpoint: Endpoint,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    #[serde(rename = "Port")]
    port: u16,
}

// === impl Objects ===

impl Objects {
    /// Keeps nothing yet; [`Objects::watch`] begins to.
    pub(super) fn new(asker: Asker) -> Self {
        Self { asker, watched: false, pods: Arc::default(), nodes: Arc::default() }
    }

    /// Watches, in tasks of `background`.
    pub(super) fn watch(&mut self, connection: &Live<Connection>, background: &Drain, metrics: &Metrics) {
        self.watched = true;
        watch::start(connection.clone(), self.pods.clone(), background, metrics);
        watch::start(connection.clone(), self.nodes.clone(), background, metrics);
    }

    /// Whether the watches, if there are any, have seen everything once. Nothing has to wait for that.
    pub(super) fn synced(&self) -> bool {
        !self.watched || (self.pods.listed() && self.nodes.listed())
    }

    pub(super) async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Arc<Pod>>, Error> {
        if !is_segment(namespace) || !is_segment(name) {
            return Ok(None);
        }
        let path = format!("/api/v1/namespaces/{}/pods/{}", encoded(namespace), encoded(name));
        self.read(&self.pods, &format!("{namespace}/{name}"), &path, &format!("read pod {namespace}/{name}"))
            .await
    }

    pub(super) async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, Error> {
        if !is_segment(name) {
            return Ok(None);
        }
        let path = format!("/api/v1/nodes/{}", encoded(name));
        self.read(&self.nodes, name, &path, &format!("read node {name}")).await
    }

    async fn read<K: Kind>(
        &self,
        store: &Store<K>,
        key: &str,
        path: &str,
        act: &str,
    ) -> Result<Option<Arc<K>>, Error> {
        if let Some((version, known)) = store.get(key) {
            let Some(object) = self.look(act, path, METADATA).await? else {
                store.forget(key, &version.uid);
                return Ok(None);
            };
            if Version::of(&object.metadata).is_some_and(|now| now == version) {
                return Ok(Some(K::with(known, object.metadata)));
            }
        }
        let Some(object) = self.look(act, path, JSON).await? else { return Ok(None) };
        let version = Version::of(&object.metadata);
        let value = K::from(object);
        if let Some(version) = version {
            store.remember(key, version, Arc::new(value.clone().kept()));
        }
        Ok(Some(Arc::new(value)))
    }

    async fn look(&self, act: &str, path: &str, accept: HeaderValue) -> Result<Option<Object>, Error> {
        let (code, body) = self.asker.get(act, path, accept).await?;
        match code {
            StatusCode::OK => read(act, &body).map(Some),
            // Any other 404 is about the path.
            StatusCode::NOT_FOUND if Status::of(&body).reason == "NotFound" => Ok(None),
            _ => Err(unanswered(act, Refused::of(code, &body))),
        }
    }
}

// === impl Kind ===

impl Kind for Pod {
    const PLURAL: &str = "pods";

    fn with(known: Arc<Self>, metadata: Metadata) -> Arc<Self> {
        let (labels, annotations) =
            (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
        Arc::new(Self { labels, annotations, ..Self::clone(&known) })
    }

    /// Without labels and annotations, which may be long, and come with each look at the metadata.
    fn kept(self) -> Self {
        Self { labels: BTreeMap::new(), annotations: BTreeMap::new(), ..self }
    }
}

impl From<Object> for Pod {
    fn from(Object { metadata, spec, .. }: Object) -> Self {
        let mut images = Vec::new();
        let mut names = |containers: Option<Vec<Container>>| {
            let mut names = Vec::new();
            for Container { name, image } in containers.into_iter().flatten() {
                names.push(name.clone());
                images.push((name, image));
            }
            // There are very many pods.
            names.shrink_to_fit();
            names
        };
        let init_containers = names(spec.init_containers);
        let containers = names(spec.containers);
        let ephemeral_containers = names(spec.ephemeral_containers);
        images.shrink_to_fit();
        Self {
            uid: metadata.uid,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            node: (!spec.node_name.is_empty()).then_some(spec.node_name),
            init_containers,
            containers,
            ephemeral_containers,
            images,
        }
    }
}

impl Kind for Node {
    const PLURAL: &str = "nodes";

    fn with(known: Arc<Self>, _: Metadata) -> Arc<Self> {
        known
    }

    fn kept(self) -> Self {
        self
    }
}

impl From<Object> for Node {
    fn from(Object { status, .. }: Object) -> Self {
        let addresses = status.addresses.into_iter().flatten();
        Self {
            addresses: addresses.map(|Address { r#type, address }| (r#type, address)).collect(),
            kubelet_port: status.daemon_endpoints.kubelet_endpoint.port,
            declared_features: status.declared_features.unwrap_or_default(),
        }
    }
}

// === impl Metadata ===

impl Metadata {
    /// By what the store knows it.
    fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// Whether something may have this name: upstream's `IsValidPathSegmentName`.
fn is_segment(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '%'])
}

fn encoded(name: &str) -> impl std::fmt::Display {
    utf8_percent_encode(name, SEGMENT)
}
