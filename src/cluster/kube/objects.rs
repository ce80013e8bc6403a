//! Objects: pods and nodes, kept from watches, and not believed without a look.
//!
//! What the watches know is a hint: [`Objects::pod`] and [`Objects::node`] ask the API server for the
//! object's metadata, which is small, and use what is known if uid and resourceVersion are still the same;
//! otherwise they read the object. So a pod made just now is there, and one that was deleted and made again
//! is not the old one, whatever the watches do: late, stuck, broken or off. A look holds for a moment
//! ([`confirmed`]), unless the watches know better. Invariants: what is returned was true after the call
//! began, or at most that moment before; of two versions the store keeps the newer.
//! Source: Kubernetes API concepts, "Efficient detection of changes", "Resource versions"; client-go
//! `tools/cache`.

mod confirmed;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::Instant;
use tracing::warn;

use super::ask::{Asker, JSON, Refused, Shared, Status, read, unanswered};
use super::connect::Connection;
use super::watch::{self, Sink, Watched};
use super::{encoded, is_segment};
use crate::cluster::{Error, Node, Pod};
use crate::drain::Drain;
use crate::reload::Live;
use crate::telemetry::Metrics;
use confirmed::{Confirmed, Look};
use store::{Store, Version};

/// Metadata alone; the object itself from a server that knows no such form.
const METADATA: HeaderValue =
    HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");

/// Pods and nodes.
pub(super) struct Objects {
    asker: Arc<Asker>,
    watched: bool,
    pods: Arc<Store<Pod>>,
    nodes: Arc<Store<Node>>,
    confirmed_pods: Confirmed<Pod>,
    confirmed_nodes: Confirmed<Node>,
}

/// What a watch feeds.
struct Known<K>(Arc<Store<K>>);

/// What podgate keeps of one kind of object.
trait Kind: From<Object> + Clone + Send + Sync + 'static {
    /// The resource, as in paths.
    const PLURAL: &str;

    /// Whether [`Kind::with`] takes anything of the metadata.
    const WITH_METADATA: bool;

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

/// What is read of an object that cannot be read as what it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unreadable {
    metadata: Metadata,
}

#[derive(Debug, Default, Clone, Deserialize)]
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
    /// Keeps nothing yet; [`Objects::watch`] begins to. What the API server says of one that is kept holds for
    /// `confirmed_for`.
    pub(super) fn new(asker: Asker, confirmed_for: Duration) -> Self {
        Self {
            asker: Arc::new(asker),
            watched: false,
            pods: Arc::default(),
            nodes: Arc::default(),
            confirmed_pods: Confirmed::new(confirmed_for),
            confirmed_nodes: Confirmed::new(confirmed_for),
        }
    }

    /// Watches, in tasks of `background`.
    pub(super) fn watch(&mut self, connection: &Live<Connection>, background: &Drain, metrics: &Metrics) {
        self.watched = true;
        let of = |name: &'static str| Watched { name, path: format!("/api/v1/{name}"), query: String::new() };
        let (pods, nodes) = (Known(self.pods.clone()), Known(self.nodes.clone()));
        watch::start(connection.clone(), of(Pod::PLURAL), pods, background, metrics);
        watch::start(connection.clone(), of(Node::PLURAL), nodes, background, metrics);
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
        let (key, act) = (format!("{namespace}/{name}"), format!("read pod {namespace}/{name}"));
        self.read(&self.pods, &self.confirmed_pods, &key, &path, &act).await
    }

    /// What is known of a pod, without a look.
    pub(super) fn likely_node(&self, namespace: &str, name: &str) -> Option<String> {
        self.pods.get(&format!("{namespace}/{name}")).and_then(|(_, pod)| pod.node.clone())
    }

    pub(super) async fn node(&self, name: &str) -> Result<Option<Arc<Node>>, Error> {
        if !is_segment(name) {
            return Ok(None);
        }
        let path = format!("/api/v1/nodes/{}", encoded(name));
        self.read(&self.nodes, &self.confirmed_nodes, name, &path, &format!("read node {name}")).await
    }

    async fn read<K: Kind>(
        &self,
        store: &Store<K>,
        confirmed: &Confirmed<K>,
        key: &str,
        path: &str,
        act: &str,
    ) -> Result<Option<Arc<K>>, Error> {
        if let Some((version, known)) = store.get(key) {
            if let Some(value) = confirmed.get(key, &version).await {
                return Ok(Some(value));
            }
            let ask = || {
                let (asker, act, path, asked) =
                    (self.asker.clone(), act.to_owned(), path.to_owned(), Instant::now());
                let look = async move {
                    let found = look(&asker, &act, &path, METADATA).await;
                    let found =
                        found.map(|found| found.map(|(object, len)| (Arc::new(object.metadata), len)));
                    Look { asked, found: found.map_err(Shared::from) }
                };
                look.boxed()
            };
            let Look { asked, found } = confirmed.look(key, ask).await;
            let Some((metadata, len)) = found? else {
                store.forget(key, &version.uid);
                return Ok(None);
            };
            if Version::of(&metadata).is_some_and(|now| now == version) {
                let value = K::with(known, Metadata::clone(&metadata));
                let len = if K::WITH_METADATA { len } else { 0 };
                confirmed.put(key, asked, version, &value, len).await;
                return Ok(Some(value));
            }
        }
        let Some((object, _)) = look(&self.asker, act, path, JSON).await? else { return Ok(None) };
        let version = Version::of(&object.metadata);
        let value = K::from(object);
        if let Some(version) = version {
            store.remember(key, version, Arc::new(value.clone().kept()));
        }
        Ok(Some(Arc::new(value)))
    }
}

/// An object, and of how many bytes it was read.
async fn look(
    asker: &Asker,
    act: &str,
    path: &str,
    accept: HeaderValue,
) -> Result<Option<(Object, usize)>, Error> {
    let (code, body) = asker.get(act, path, accept).await?;
    match code {
        StatusCode::OK => read(act, &body).map(|object| Some((object, body.len()))),
        // Any other 404 is about the path.
        StatusCode::NOT_FOUND if Status::of(&body).reason == "NotFound" => Ok(None),
        _ => Err(unanswered(act, Refused::of(code, &body))),
    }
}

// === impl Kind ===

impl Kind for Pod {
    const PLURAL: &str = "pods";
    const WITH_METADATA: bool = true;

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
    const WITH_METADATA: bool = false;

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

// === impl Known ===

impl<K: Kind> Sink for Known<K> {
    fn begin(&mut self) {
        self.0.begin_list();
    }

    fn saw(&mut self, object: &RawValue) {
        if let Some(object) = object_of(object) {
            keep(&self.0, object);
        }
    }

    fn gone(&mut self, object: &RawValue) {
        if let Some(Object { metadata, .. }) = object_of(object) {
            self.0.forget(&metadata.key(), &metadata.uid);
        }
    }

    fn end(&mut self, _: &str) {
        self.0.end_list();
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

fn keep<K: Kind>(store: &Store<K>, object: Object) {
    let Some(version) = Version::of(&object.metadata) else { return };
    let key = object.metadata.key();
    store.saw(&key, version, Arc::new(K::from(object).kept()));
}

/// An object, unless it cannot be read. One alone is no reason to do without all others: it is read in full when it is
/// asked for, and whoever asks is told.
fn object_of(text: &RawValue) -> Option<Object> {
    let object = serde_json::from_str(text.get());
    if object.is_err() {
        let Unreadable { metadata } = serde_json::from_str(text.get()).unwrap_or_default();
        warn!(object = metadata.key(), "an object cannot be read, the watch leaves it out");
    }
    object.ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PODS: usize = 100_000;

    /// Of them at once, as a watch asks for them.
    const PAGE: usize = 500;

    /// What a pod may take, in bytes.
    const AIM: usize = 2048;

    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(borrow)]
        items: Vec<&'a RawValue>,
    }

    /// A pod as an API server writes it, with all that podgate does not keep.
    fn template() -> String {
        let container = |name: &str| {
            let variable = |number| json!({"name": format!("VARIABLE_{number}"), "value": "value"});
            let env: Vec<_> = (0..20).map(variable).collect();
            let limits = json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}});
            let image = "registry.example.com/shop/cart:v1";
            json!({"name": name, "image": image, "env": env, "resources": limits})
        };
        let managed = json!({"f:spec": {"f:containers": {"f:env": {}, "f:image": {}, "f:name": {}}}});
        let pod = json!({
            "metadata": {
                "namespace": "team-of-NUMBER",
                "name": "cart-deployment-7d9f8c6b5-NUMBER",
                "uid": "0e5b1f0a-6c1d-4f5e-9a3b-000000NUMBER",
                "resourceVersion": "NUMBER",
                "labels": {"app": "cart", "pod-template-hash": "7d9f8c6b5"},
                "annotations": {"checksum/config": "0123456789abcdef0123456789abcdef"},
                "managedFields": [{"manager": "kubelet", "fieldsV1": managed}],
            },
            "spec": {
                "nodeName": "ip-10-0-NUMBER.eu-central-1.compute.internal",
                "initContainers": [container("init-config")],
                "containers": [container("cart"), container("istio-proxy")],
            },
            "status": {"phase": "Running", "podIP": "10.1.2.3", "conditions": [{"type": "Ready"}]},
        });
        pod.to_string()
    }

    /// Bytes of this process that are in memory.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// `cargo test --profile quick --lib memory_of_a_pod -- --ignored --nocapture`, alone in its process.
    #[test]
    #[ignore = "measures the memory of its process"]
    fn memory_of_a_pod() {
        let (store, template) = (Arc::new(Store::<Pod>::default()), template());
        let mut known = Known(store.clone());
        // What the allocator keeps of the pages counts too: it stays for the next list.
        let before = resident();
        store.begin_list();
        for first in (0..PODS).step_by(PAGE) {
            let pods = first..first + PAGE;
            let pods: Vec<_> =
                pods.map(|number| template.replace("NUMBER", &format!("{number:06}"))).collect();
            let body = format!(r#"{{"metadata": {{}}, "items": [{}]}}"#, pods.join(","));
            let page: Page<'_> = read("list pods", body.as_bytes()).unwrap();
            for object in page.items {
                known.saw(object);
            }
        }
        store.end_list();
        let each = (resident() - before) / PODS;
        println!("{each} bytes for each of {PODS} pods of {} bytes of JSON", template.len());
        assert_eq!(store.len(), PODS);
        assert!(each < AIM, "{each} bytes for each pod");
    }
}
