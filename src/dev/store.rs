//! Store: the objects of the embedded cluster, in memory, and every change to them in order.
//!
//! In the flow: filled once from `manifests`; read by `rbac`, `api`, the cluster and the node endpoints;
//! changed when a node's endpoint is bound and when a container starts or ends. Readers take a snapshot and
//! hold no lock.
//! Invariant: each change has the next resource version, and the last [`HISTORY`] changes are kept. A watcher
//! is a position in that history, not a queue of its own, so a slow one costs nothing and is told it fell
//! behind.
//! Versions begin with the time of the start, so what a client remembers of an earlier process is too old here,
//! or ahead when the clock was set back; never a place in this history.
//! Source: API conventions, "Efficient detection of changes"; apiserver `pkg/storage/cacher/watch_cache.go`.

mod fill;
mod object;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    ContainerStatus, DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, Pod,
};
use tokio::sync::watch;

use crate::cluster;

pub(super) use self::fill::go_arch;
pub use self::object::{Kind, Object, RBAC_GROUP};

/// Changes kept for watchers. Starting up makes one per node and main process, a crash two; a watcher further
/// behind than this gets 410 and lists again.
const HISTORY: usize = 1024;

/// The objects and their history.
#[derive(Debug)]
pub struct Store {
    inner: RwLock<Inner>,
    version: watch::Sender<u64>,
}

#[derive(Debug)]
struct Inner {
    objects: Arc<Objects>,
    /// Without gaps, oldest first, ending at `objects.version`.
    history: VecDeque<Arc<Change>>,
}

/// Every object at one version.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    map: BTreeMap<(Kind, String, String), Object>,
    version: u64,
}

/// An object that became another.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its resource version.
    pub version: u64,
    /// As it was.
    pub before: Object,
    /// As it is.
    pub after: Object,
}

/// A watcher's place in the history.
#[derive(Debug)]
pub struct Changes {
    store: Arc<Store>,
    seen: u64,
    signal: watch::Receiver<u64>,
}

/// What a watcher has seen is not in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// It no longer reaches back that far.
    #[error("too old resource version: {seen} ({oldest})")]
    Old {
        /// The last version seen.
        seen: u64,
        /// The oldest version a watcher may come from.
        oldest: u64,
    },
    /// It was never here. An API server waits for such a version, which here could be for ever.
    #[error("too large resource version: {seen}, current: {current}")]
    Ahead {
        /// The last version seen.
        seen: u64,
        /// The newest there is.
        current: u64,
    },
}

/// Failures of the store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An endpoint for a node that is in no manifest.
    #[error("no node is named {0}")]
    NoNode(String),
}

// === impl Store ===

impl Store {
    /// A store of these objects; what their manifests leave out is filled in.
    pub fn new(objects: Vec<Object>) -> Arc<Self> {
        let objects = Arc::new(fill::complete(objects));
        let (version, _) = watch::channel(objects.version);
        let inner = RwLock::new(Inner { objects, history: VecDeque::new() });
        Arc::new(Self { inner, version })
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> Arc<Objects> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).objects.clone()
    }

    /// A pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        match self.snapshot().get(Kind::Pod, namespace, name) {
            Some(Object::Pod(pod)) => Some(pod.clone()),
            _ => None,
        }
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<Arc<Node>> {
        match self.snapshot().get(Kind::Node, "", name) {
            Some(Object::Node(node)) => Some(node.clone()),
            _ => None,
        }
    }

    /// Every node in order of name; see [`is_up`] for which of them want an endpoint.
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        let node = |object: &Object| match object {
            Object::Node(node) => Some(node.clone()),
            _ => None,
        };
        self.snapshot().list(Kind::Node, None).filter_map(node).collect()
    }

    /// Tells where a node's endpoint listens.
    ///
    /// The address takes the place of every other one the manifest names: whatever kind of address the
    /// gateway prefers, it must not leave this machine.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_node_endpoint(&self, name: &str, addr: SocketAddr) -> Result<(), Error> {
        self.change_node(name, |node| {
            let status = node.status.get_or_insert_default();
            status.addresses =
                Some(vec![NodeAddress { address: addr.ip().to_string(), type_: "InternalIP".into() }]);
            status.daemon_endpoints = Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: addr.port().into() }),
            });
            true
        })
    }

    /// Tells which of the `known` features a node has. Others that its manifest declares stay.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn set_node_features(&self, name: &str, known: &[&str], has: &[&str]) -> Result<(), Error> {
        self.change_node(name, |node| {
            let status = node.status.get_or_insert_default();
            let before = status.declared_features.take();
            let others = before.iter().flatten().filter(|feature| !known.contains(&feature.as_str()));
            let mut features: Vec<_> = others.cloned().chain(has.iter().map(ToString::to_string)).collect();
            features.sort();
            status.declared_features = (!features.is_empty()).then_some(features);
            status.declared_features != before
        })
    }

    /// Changes a node if `change` says that it did.
    fn change_node(&self, name: &str, change: impl FnOnce(&mut Node) -> bool) -> Result<(), Error> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Object::Node(node)) = inner.objects.get(Kind::Node, "", name) else {
            return Err(Error::NoNode(name.to_owned()));
        };
        let mut node = Node::clone(node);
        if change(&mut node) {
            inner.replace(Object::Node(Arc::new(node)));
            self.version.send_replace(inner.objects.version);
        }
        Ok(())
    }

    /// The pods bound to a node.
    pub fn pods_on(&self, node: &str) -> Vec<Arc<Pod>> {
        let bound = |object: &Object| match object {
            Object::Pod(pod) => {
                let spec = pod.spec.as_ref().filter(|spec| spec.node_name.as_deref() == Some(node));
                spec.map(|_| pod.clone())
            }
            _ => None,
        };
        self.snapshot().list(Kind::Pod, None).filter_map(bound).collect()
    }

    /// Takes note of how a container is; of its status the image stays. Nothing, when there is no such pod.
    pub fn set_container_status(&self, namespace: &str, pod: &str, container: ContainerStatus) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Object::Pod(pod)) = inner.objects.get(Kind::Pod, namespace, pod) else {
            return;
        };
        let mut pod = Pod::clone(pod);
        status::merge(&mut pod, container);
        inner.replace(Object::Pod(Arc::new(pod)));
        self.version.send_replace(inner.objects.version);
    }

    /// The changes after this version. Nothing is lost between a snapshot and the changes after its version.
    pub fn changes(self: &Arc<Self>, seen: u64) -> Changes {
        Changes { store: self.clone(), seen, signal: self.version.subscribe() }
    }
}

// === impl Inner ===

impl Inner {
    /// Puts an object in the place of the one with its name, which must be there.
    fn replace(&mut self, mut after: Object) {
        let objects = Arc::make_mut(&mut self.objects);
        objects.version += 1;
        let version = objects.version;
        after.meta_mut().resource_version = Some(version.to_string());
        let key = (after.kind(), after.namespace().to_owned(), after.name().to_owned());
        let before =
            objects.map.insert(key, after.clone()).expect("only objects that are there are replaced");
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(Arc::new(Change { version, before, after }));
    }

    fn after(&self, seen: u64) -> Result<Option<Arc<Change>>, Gone> {
        let kept = self.history.len() as u64;
        let oldest = self.objects.version - kept;
        if seen < oldest {
            return Err(Gone::Old { seen, oldest });
        }
        let current = self.objects.version;
        if seen > current {
            return Err(Gone::Ahead { seen, current });
        }
        let index = usize::try_from(seen - oldest).unwrap_or(usize::MAX);
        Ok(self.history.get(index).cloned())
    }
}

// === impl Objects ===

impl Objects {
    /// None yet. Versions count on from the time in microseconds: no start puts in objects that fast, so the
    /// next one begins beyond where this one ends. They stay below 2^53, up to which every client is exact.
    fn from_now() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { map: BTreeMap::new(), version: u64::try_from(since.as_micros()).unwrap_or(0) }
    }

    /// The version of this snapshot.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One object; the namespace of cluster-scoped kinds is empty.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Option<&Object> {
        self.map.get(&(kind, namespace.to_owned(), name.to_owned()))
    }

    /// The objects of a kind, of one namespace or of all, in order of namespace and name.
    pub fn list<'a>(&'a self, kind: Kind, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Object> {
        let from = (kind, namespace.unwrap_or("").to_owned(), String::new());
        self.map
            .range(from..)
            .take_while(move |((its, within, _), _)| {
                *its == kind && namespace.is_none_or(|namespace| namespace == within)
            })
            .map(|(_, object)| object)
    }

    /// Puts an object in, completing what a server gives every object.
    fn insert(&mut self, mut object: Object) {
        self.version += 1;
        object.meta_mut().resource_version = Some(self.version.to_string());
        let key = (object.kind(), object.namespace().to_owned(), object.name().to_owned());
        self.map.insert(key, object);
    }
}

// === impl Changes ===

impl Changes {
    /// The next change, as soon as there is one. May be dropped at any point: nothing is lost.
    ///
    /// # Errors
    /// When it is not kept; there is no way on from there.
    pub async fn next(&mut self) -> Result<Arc<Change>, Gone> {
        loop {
            self.signal.mark_unchanged();
            let next = {
                let inner = self.store.inner.read().unwrap_or_else(PoisonError::into_inner);
                inner.after(self.seen)?
            };
            if let Some(change) = next {
                self.seen = change.version;
                return Ok(change);
            }
            self.signal.changed().await.expect("the store this holds has the sender");
        }
    }

    /// The last version handed out, or the one it began with.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

/// Whether a node is up: unless its manifest says it is not ready, it is.
pub fn is_up(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    ready.is_none_or(|condition| condition.status == "True")
}

/// What `locate` needs of a pod.
pub fn slim_pod(pod: &Pod) -> cluster::Pod {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let regular = spec.map(|spec| &spec.containers).into_iter().flatten();
    let ephemeral = spec.and_then(|spec| spec.ephemeral_containers.as_ref()).into_iter().flatten();
    let image = |name: &str, image: &Option<String>| (name.to_owned(), image.clone().unwrap_or_default());
    let regular_images =
        init.clone().chain(regular.clone()).map(|container| image(&container.name, &container.image));
    let images = ephemeral.clone().map(|container| image(&container.name, &container.image));
    let images = regular_images.chain(images).collect();
    cluster::Pod {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        node: spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty()),
        images,
        init_containers: init.map(|container| container.name.clone()).collect(),
        containers: regular.map(|container| container.name.clone()).collect(),
        ephemeral_containers: ephemeral.map(|container| container.name.clone()).collect(),
    }
}

/// What `locate` needs of a node.
pub fn slim_node(node: &Node) -> cluster::Node {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref()).into_iter().flatten();
    let endpoint = status
        .and_then(|status| status.daemon_endpoints.as_ref())
        .and_then(|endpoints| endpoints.kubelet_endpoint.as_ref());
    cluster::Node {
        addresses: addresses.map(|address| (address.type_.clone(), address.address.clone())).collect(),
        kubelet_port: endpoint.map_or(0, |endpoint| endpoint.port.try_into().unwrap_or(0)),
        declared_features: status.and_then(|status| status.declared_features.clone()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
