//! A cluster that says what a test tells it to, and remembers what it was asked.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::BodyExt;

use crate::cluster::{Body, Cluster, Decision, Error, Node, Pod, User};
use crate::request::{Ask, Attributes};
use crate::status::Refusal;

type Judge = Box<dyn Fn(&User, &Attributes) -> Result<Decision, Error> + Send + Sync>;

/// Pods, nodes, and a judge who allows everything unless told otherwise.
pub struct FakeCluster {
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    judge: Mutex<Judge>,
    asked: Mutex<Vec<String>>,
}

impl FakeCluster {
    /// An empty cluster that allows everything.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            nodes: Mutex::default(),
            judge: Mutex::new(Box::new(|_, _| Ok(allow()))),
            asked: Mutex::default(),
        })
    }

    /// Adds a pod as `namespace/name`.
    pub fn pod(&self, name: &str, pod: Pod) {
        lock(&self.pods).insert(name.to_owned(), Arc::new(pod));
    }

    /// Adds a pod with one container, `app`, on this node.
    pub fn simple_pod(&self, name: &str, node: &str) {
        let pod = Pod { node: Some(node.to_owned()), containers: vec!["app".to_owned()], ..Pod::default() };
        self.pod(name, pod);
    }

    /// Adds a node whose kubelet listens on loopback.
    pub fn node(&self, name: &str, port: u16) {
        let addresses = vec![("InternalIP".to_owned(), "127.0.0.1".to_owned())];
        lock(&self.nodes).insert(name.to_owned(), Arc::new(Node { addresses, kubelet_port: port }));
    }

    /// Replaces the judge.
    pub fn judge(
        &self,
        judge: impl Fn(&User, &Attributes) -> Result<Decision, Error> + Send + Sync + 'static,
    ) {
        *lock(&self.judge) = Box::new(judge);
    }

    /// Reviews asked for so far, as `user verb resource/subresource namespace/name` or `user verb path`.
    pub fn reviews(&self) -> Vec<String> {
        lock(&self.asked).clone()
    }
}

/// Yes, without a reason.
pub fn allow() -> Decision {
    Decision { allowed: true, reason: String::new() }
}

/// No, with this reason.
pub fn deny(reason: &str) -> Decision {
    Decision { allowed: false, reason: reason.to_owned() }
}

/// A test that panicked elsewhere must not hide behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster for FakeCluster {
    fn review<'a>(
        &'a self,
        user: &'a User,
        attributes: &'a Attributes,
    ) -> BoxFuture<'a, Result<Decision, Error>> {
        let what = match &attributes.resource {
            Some(r) if r.subresource.is_empty() => format!("{} {}/{}", r.resource, r.namespace, r.name),
            Some(r) => format!("{}/{} {}/{}", r.resource, r.subresource, r.namespace, r.name),
            None => attributes.path.clone(),
        };
        lock(&self.asked).push(format!("{} {} {what}", user.name, attributes.verb));
        let decision = lock(&self.judge)(user, attributes);
        Box::pin(async move { decision })
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>> {
        let pod = lock(&self.pods).get(&format!("{namespace}/{name}")).cloned();
        Box::pin(async move { Ok(pod) })
    }

    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>> {
        let node = lock(&self.nodes).get(name).cloned();
        Box::pin(async move { Ok(node) })
    }

    /// Answers `/hang` never, `/panic` by panicking, and everything else with the caller's name.
    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        _: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        Box::pin(async move {
            match ask.attributes.path.as_str() {
                "/hang" => std::future::pending().await,
                "/panic" => panic!("told to"),
                _ => {
                    let name = Bytes::from(user.name.clone());
                    Ok(Response::new(http_body_util::Full::new(name).map_err(|n| match n {}).boxed_unsync()))
                }
            }
        })
    }
}
