//! A cluster that says what a test tells it to, and remembers what it was asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};

use crate::cluster::{Body, Cluster, Decision, Error, Node, Pod, User};
use crate::request::{Ask, Attributes};
use crate::status::Refusal;

type Judge = Box<dyn Fn(&User, &Attributes) -> Result<Decision, Error> + Send + Sync>;

/// Pods, nodes, and a judge who allows everything unless told otherwise.
pub struct FakeCluster {
    pods: Mutex<HashMap<String, Arc<Pod>>>,
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    likely: Mutex<Option<String>>,
    tokens: Mutex<HashMap<String, User>>,
    judge: Mutex<Judge>,
    asked: Mutex<Vec<String>>,
    reads: Mutex<Vec<String>>,
    served: Mutex<Vec<String>>,
    reviews_hang: AtomicBool,
    hanging: Mutex<Option<String>>,
}

impl FakeCluster {
    /// An empty cluster that allows everything.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            pods: Mutex::default(),
            nodes: Mutex::default(),
            likely: Mutex::default(),
            tokens: Mutex::default(),
            judge: Mutex::new(Box::new(|_, _| Ok(allow()))),
            asked: Mutex::default(),
            reads: Mutex::default(),
            served: Mutex::default(),
            reviews_hang: AtomicBool::new(false),
            hanging: Mutex::default(),
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
        self.node_at(name, &[("InternalIP", "127.0.0.1")], port);
    }

    /// Adds a node with these addresses, as (type, address).
    pub fn node_at(&self, name: &str, addresses: &[(&str, &str)], port: u16) {
        let addresses = addresses.iter().map(|&(kind, at)| (kind.to_owned(), at.to_owned())).collect();
        lock(&self.nodes)
            .insert(name.to_owned(), Arc::new(Node { addresses, kubelet_port: port, ..Node::default() }));
    }

    /// Adds a node whose kubelet listens on loopback and speaks WebSocket v5 itself.
    pub fn v5_node(&self, name: &str, port: u16) {
        let node = Node {
            addresses: vec![("InternalIP".to_owned(), "127.0.0.1".to_owned())],
            kubelet_port: port,
            declared_features: vec!["ExtendWebSocketsToKubelet".to_owned()],
        };
        lock(&self.nodes).insert(name.to_owned(), Arc::new(node));
    }

    /// From now on every pod is guessed to be on this node.
    pub fn guess(&self, node: &str) {
        *lock(&self.likely) = Some(node.to_owned());
    }

    /// From now on no review is answered.
    pub fn hang_reviews(&self) {
        self.reviews_hang.store(true, Ordering::Relaxed);
    }

    /// From now on no read of a pod or node is answered that begins so: of `pod a/b`, of `node c`, or of all.
    pub fn hang_reads(&self, of: &str) {
        *lock(&self.hanging) = Some(of.to_owned());
    }

    /// From now on this token is that user's; nobody's, when there is none.
    pub fn know(&self, token: &str, user: Option<User>) {
        let mut tokens = lock(&self.tokens);
        match user {
            Some(user) => tokens.insert(token.to_owned(), user),
            None => tokens.remove(token),
        };
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

    /// Pods and nodes read so far, as `pod namespace/name` or `node name`.
    pub fn reads(&self) -> Vec<String> {
        lock(&self.reads).clone()
    }

    /// Requests that came to be answered by the cluster so far, as `user verb path`.
    pub fn served(&self) -> Vec<String> {
        lock(&self.served).clone()
    }

    async fn read<T>(&self, what: String, answer: T) -> Result<T, Error> {
        let hangs = lock(&self.hanging).as_ref().is_some_and(|of| what.starts_with(of));
        lock(&self.reads).push(what);
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(answer)
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

/// No decision, because of this.
pub fn undecided(text: &str) -> Error {
    Error::Unanswered { act: text.to_owned(), source: "told to".into() }
}

/// A test that panicked elsewhere must not hide behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster for FakeCluster {
    /// Whoever [`FakeCluster::know`] was told.
    fn token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<User>, Error>> {
        lock(&self.asked).push(format!("token {}", audiences.join(",")));
        let user = lock(&self.tokens).get(token).cloned();
        let hangs = self.reviews_hang.load(Ordering::Relaxed);
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(user) } })
    }

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
        let hangs = self.reviews_hang.load(Ordering::Relaxed);
        Box::pin(async move { if hangs { std::future::pending().await } else { decision } })
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>> {
        let pod = lock(&self.pods).get(&format!("{namespace}/{name}")).cloned();
        Box::pin(self.read(format!("pod {namespace}/{name}"), pod))
    }

    fn likely_node(&self, _: &str, _: &str) -> Option<String> {
        lock(&self.likely).clone()
    }

    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>> {
        let node = lock(&self.nodes).get(name).cloned();
        Box::pin(self.read(format!("node {name}"), node))
    }

    /// Answers `/hang` never, `/panic` by panicking, a watch with one line and no end, and everything else with
    /// the caller as `name groups extra`.
    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        _: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        let (verb, path) = (&ask.attributes.verb, &ask.attributes.path);
        let reviewed = self.review(user, &ask.attributes);
        Box::pin(async move {
            let decision = reviewed.await.map_err(|error| error.refusal())?;
            if !decision.allowed {
                return Err(crate::authz::forbidden(user, &ask.attributes, &decision.reason));
            }
            lock(&self.served).push(format!("{} {verb} {path}", user.name));
            match ask.attributes.path.as_str() {
                "/hang" => std::future::pending().await,
                "/panic" => panic!("told to"),
                _ if ask.attributes.verb == "watch" => {
                    let first = Ok(http_body::Frame::data(Bytes::from_static(b"first\n")));
                    let frames = futures_util::stream::iter([first]);
                    let endless = futures_util::StreamExt::chain(frames, futures_util::stream::pending());
                    Ok(Response::new(StreamBody::new(endless).boxed_unsync()))
                }
                _ => {
                    let whole = Bytes::from(format!("{} {:?} {:?}", user.name, user.groups, user.extra));
                    Ok(Response::new(http_body_util::Full::new(whole).map_err(|n| match n {}).boxed_unsync()))
                }
            }
        })
    }
}
