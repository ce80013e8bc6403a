//! Store: the objects of the embedded cluster, in memory, and every change to them in order.
//!
//! In the flow: filled once from `manifests`; read by `rbac`, `api`, the cluster and the node endpoints;
//! changed when a node's endpoint is bound and when a container starts or ends. Readers take a snapshot and
//! hold no lock.
//! Invariant: each change has the next resource version and is in the [`History`].

mod fill;
mod object;
mod status;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use k8s_openapi::api::core::v1::{
    ContainerStatus, DaemonEndpoint, Node, NodeAddress, NodeDaemonEndpoints, Pod,
};

use crate::cluster;
use crate::serving::history::{self, Changes, History};

pub(super) use self::fill::go_arch;
pub use self::object::{Kind, Object, RBAC_GROUP};

/// Changes kept for watchers. Starting up makes one per node and main process, a crash two; a watcher further
/// behind than this gets 410 and lists again.
const HISTORY: usize = 1024;

/// The objects and their history.
#[derive(Debug)]
pub struct Store {
    objects: RwLock<Arc<Objects>>,
    /// Changes with the objects, under their lock.
    history: History<Change>,
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
    /// As it was.
    pub before: Object,
    /// As it is.
    pub after: Object,
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
        let objects = fill::complete(objects);
        let history = History::new(objects.version, HISTORY);
        Arc::new(Self { objects: RwLock::new(Arc::new(objects)), history })
    }

    /// Everything as it is now.
    pub fn snapshot(&self) -> Arc<Objects> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).clone()
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
        let mut objects = self.objects();
        let Some(Object::Node(node)) = objects.get(Kind::Node, "", name) else {
            return Err(Error::NoNode(name.to_owned()));
        };
        let mut node = Node::clone(node);
        if change(&mut node) {
            self.replace(&mut objects, Object::Node(Arc::new(node)));
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
        let mut objects = self.objects();
        let Some(Object::Pod(pod)) = objects.get(Kind::Pod, namespace, pod) else {
            return;
        };
        let mut pod = Pod::clone(pod);
        status::merge(&mut pod, container);
        self.replace(&mut objects, Object::Pod(Arc::new(pod)));
    }

    /// The changes after this version. Nothing is lost between a snapshot and the changes after its version.
    pub fn changes(&self, seen: u64) -> Changes<Change> {
        self.history.changes(seen)
    }

    /// Puts an object in the place of the one with its name, which must be there.
    fn replace(&self, objects: &mut Arc<Objects>, mut after: Object) {
        let objects = Arc::make_mut(objects);
        objects.version += 1;
        let version = objects.version;
        after.meta_mut().resource_version = Some(version.to_string());
        let key = (after.kind(), after.namespace().to_owned(), after.name().to_owned());
        let before =
            objects.map.insert(key, after.clone()).expect("only objects that are there are replaced");
        self.history.put(version, Change { before, after });
    }

    fn objects(&self) -> RwLockWriteGuard<'_, Arc<Objects>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Objects ===

impl Objects {
    /// None yet.
    fn from_now() -> Self {
        Self { map: BTreeMap::new(), version: history::beginning() }
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
