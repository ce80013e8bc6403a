//! Cluster: the embedded cluster, which answers podgate's questions from manifests in memory.
//!
//! In the flow: where a real cluster would be, behind the same trait. It knows nothing of doors or sessions.
//! Source: as `crate::cluster`; each answer's own source is in `rbac` and `api`.

use std::sync::Arc;

use futures_util::future::{self, BoxFuture, FutureExt};
use http::{Request, Response};
use k8s_openapi::api::core::v1::ContainerStatus;

use super::api;
use super::manifests::Loaded;
use super::node::Pods;
use super::rbac;
use super::store::{self, Store};
use crate::authz;
use crate::cluster::{Body, Cluster, Decision, Error, Node, Pod, User};
use crate::request::{Ask, Attributes};
use crate::status::Refusal;
use crate::upstream::Upstream;

/// A cluster in memory.
#[derive(Clone)]
pub struct DevCluster {
    store: Arc<Store>,
    kubelets: Option<Arc<Upstream>>,
}

// === impl DevCluster ===

impl DevCluster {
    /// A cluster of these objects. Its warnings are the caller's to print.
    pub fn new(loaded: Loaded) -> Self {
        Self { store: Store::new(loaded.objects), kubelets: None }
    }

    /// The same, with a way to its nodes: without one it serves no logs.
    #[must_use]
    pub fn with_kubelets(self, kubelets: Upstream) -> Self {
        Self { kubelets: Some(Arc::new(kubelets)), ..self }
    }

    /// The objects, for node endpoints and those who wire them.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }
}

impl Cluster for DevCluster {
    /// Nobody: the tokens of the embedded cluster stand in a file that podgate reads itself.
    fn token<'a>(&'a self, _: &'a str, _: &'a [String]) -> BoxFuture<'a, Result<Option<User>, Error>> {
        future::ready(Ok(None)).boxed()
    }

    fn review<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>> {
        let decision = rbac::review(&self.store.snapshot(), user, attributes);
        future::ready(Ok(decision)).boxed()
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>> {
        let pod = self.store.pod(namespace, name);
        future::ready(Ok(pod.map(|pod| Arc::new(store::slim_pod(&pod))))).boxed()
    }

    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>> {
        let node = self.store.node(name);
        future::ready(Ok(node.map(|node| Arc::new(store::slim_node(&node))))).boxed()
    }

    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        request: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        let decision = rbac::review(&self.store.snapshot(), user, &ask.attributes);
        if !decision.allowed {
            return future::ready(Err(authz::forbidden(user, &ask.attributes, &decision.reason))).boxed();
        }
        api::serve(&self.store, self.kubelets.as_deref(), user, ask, request).boxed()
    }
}

/// What node endpoints see of the cluster, as kubelets see pods through the API server.
impl Pods for Store {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<k8s_openapi::api::core::v1::Pod>> {
        Self::pod(self, namespace, name)
    }

    fn bound(&self, node: &str) -> Vec<Arc<k8s_openapi::api::core::v1::Pod>> {
        self.pods_on(node)
    }

    fn report(&self, namespace: &str, pod: &str, status: ContainerStatus) {
        self.set_container_status(namespace, pod, status);
    }
}
