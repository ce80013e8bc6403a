//! An API server that does what a test tells it to: TLS on loopback, pods and nodes to get, list and watch,
//! reviews of rights and of tokens, an echo behind every upgrade; and every way to be of no use.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::cluster::Body;
use crate::cluster::kube::connect::Connection;
use crate::drain::Drain;
use crate::reload::Live;
use crate::tls::{self, Clients, Identity};

/// Kinds besides pods and nodes; policies are one once one was put.
pub const CONFIG_MAPS: &str = "configmaps";
/// The namespace whose ConfigMaps are kept.
pub const PODGATE: &str = "podgate";
/// The kind of policies.
pub const EXEC_POLICIES: &str = "execpolicies";

type Judge = Box<dyn Fn(&Value) -> Value + Send + Sync>;

/// A running API server, or one that was stopped.
pub struct ApiServer {
    /// Where it listens, also when it does not.
    pub addr: SocketAddr,
    root: Vec<u8>,
    pem: String,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    running: Mutex<Drain>,
}

/// A request it got.
#[derive(Debug, Clone)]
pub struct Asked {
    /// `GET`, mostly.
    pub method: Method,
    /// With its query.
    pub path: String,
    /// All of them.
    pub headers: HeaderMap,
    /// As JSON; null when it is none.
    pub body: Value,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Requests are read and never answered, until this ends.
    pub hangs: bool,
    /// Connections are closed instead of an answer.
    pub closes: bool,
    /// Every request is answered with 500.
    pub fails: bool,
    /// Every answer waits this long.
    pub slow: Duration,
    /// Watches are answered with 410.
    pub gone: bool,
    /// Watches are answered with 504, as by a server that was put back to before the version they ask for.
    pub behind: bool,
    /// What happens is not told to watches, until this ends.
    pub silent: bool,
    /// Watches are cut off in the middle of an event.
    pub torn: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes whoever waits for the state to change.
    changed: watch::Sender<u64>,
}

struct State {
    version: u64,
    objects: HashMap<&'static str, BTreeMap<String, Value>>,
    /// What happened, as (version, resource, type, object).
    log: Vec<(u64, &'static str, &'static str, Value)>,
    users: HashMap<String, Value>,
    judge: Judge,
    faults: Faults,
    asked: Vec<Asked>,
}

// === impl ApiServer ===

impl ApiServer {
    /// An empty cluster whose judge allows everything.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind loopback");
        let addr = listener.local_addr().expect("a bound address");
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("make a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let identity = Identity::new(vec![CertificateDer::clone(cert.der())], key);
        let tls = tls::server(&identity, &[tls::HTTP1], Clients::Ask).expect("TLS for the API server");
        let state = State {
            version: 100,
            objects: HashMap::from(["pods", "nodes", CONFIG_MAPS].map(|kind| (kind, BTreeMap::new()))),
            log: Vec::new(),
            users: HashMap::new(),
            judge: Box::new(|_| json!({"allowed": true})),
            faults: Faults::default(),
            asked: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: watch::Sender::new(0) });
        let server = Self {
            addr,
            root: cert.der().to_vec(),
            pem: cert.pem(),
            tls: TlsAcceptor::from(tls),
            shared,
            running: Mutex::new(Drain::new()),
        };
        server.serve(listener);
        server
    }

    /// How podgate gets there, as the user of a bearer token `podgates-own`. Its tasks belong to
    /// `background`.
    ///
    /// # Panics
    /// When that cannot be set up.
    pub fn connection(&self, background: &Drain) -> Live<Connection> {
        let mut config =
            ::kube::Config::new(format!("https://{}", self.addr).parse().expect("an address is a URI"));
        config.root_cert = Some(vec![self.root.clone()]);
        config.auth_info.token = Some("podgates-own".to_owned().into());
        Live::fixed(Connection::new(&config, background).expect("a way to the API server"))
    }

    /// Writes a kubeconfig, whose user has this token, and the CA file it names; where the kubeconfig is.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    pub fn write_kubeconfig(&self, folder: &Path, token: &str) -> PathBuf {
        let path = folder.join("kubeconfig");
        let config = self.kubeconfig("ca.crt").replace("podgates-own", token);
        std::fs::write(folder.join("ca.crt"), &self.pem).expect("write the CA");
        std::fs::write(&path, config).expect("write the kubeconfig");
        path
    }

    /// The same as a kubeconfig, whose CA is `ca_file`: [`ApiServer::certificate`] as PEM.
    pub fn kubeconfig(&self, ca_file: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}", self.addr), "certificate-authority": ca_file,
            }}],
            "users": [{"name": "u", "user": {"token": "podgates-own"}}],
        })
        .to_string()
    }

    /// Writes a kubeconfig by which this is an audit webhook; where it is.
    ///
    /// # Panics
    /// When the folder cannot be written to.
    pub fn write_webhook(&self, folder: &Path) -> PathBuf {
        let (path, server) = (folder.join("webhook"), format!("https://{}", self.addr));
        let config = self.kubeconfig("webhook.crt").replace(&server, &format!("{server}/audit"));
        std::fs::write(folder.join("webhook.crt"), &self.pem).expect("write the CA");
        std::fs::write(&path, config).expect("write the kubeconfig");
        path
    }

    /// The audit events that were posted to it, in order.
    pub fn events(&self) -> Vec<Value> {
        let posted = self.asked().into_iter().filter(|asked| asked.path == "/audit");
        posted.flat_map(|asked| asked.body["items"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Its certificate, which is a root; PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// Makes a pod `namespace/name`, or a new version of it: a new pod when `uid` is another.
    pub fn pod(&self, name: &str, uid: &str, node: &str, containers: &[&str]) {
        let (namespace, name) = name.split_once('/').expect("namespace/name");
        let containers: Vec<_> =
            containers.iter().map(|name| json!({"name": name, "image": "app"})).collect();
        self.put(
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": namespace, "name": name, "uid": uid, "labels": {"app": name}},
                "spec": {"nodeName": node, "containers": containers},
                "status": {"phase": "Running"},
            }),
        );
    }

    /// Makes a node, or a new version of it, whose kubelet listens on loopback.
    pub fn node(&self, name: &str, port: u16) {
        self.put(
            "nodes",
            json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": {"name": name, "uid": format!("uid-of-{name}")},
                "spec": {},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
                },
            }),
        );
    }

    /// Makes an object, or a new version of it.
    pub fn put(&self, resource: &'static str, object: Value) {
        self.shared.change(|state| drop(state.put(resource, object)));
    }

    /// All objects of a kind.
    pub fn all(&self, resource: &str) -> Vec<Value> {
        self.shared.state().objects.get(resource).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// As if a kind had never been defined.
    pub fn undefine(&self, resource: &'static str) {
        self.shared.change(|state| drop(state.objects.remove(resource)));
    }

    /// Deletes an object.
    pub fn delete(&self, resource: &'static str, key: &str) {
        self.shared.change(|state| state.delete(resource, key));
    }

    /// From now on this token is that user's, as a TokenReview's status.
    pub fn token(&self, token: &str, status: Value) {
        self.shared.change(|state| drop(state.users.insert(token.to_owned(), status)));
    }

    /// Replaces the judge, who makes a SubjectAccessReview's status of its spec.
    pub fn judge(&self, judge: impl Fn(&Value) -> Value + Send + Sync + 'static) {
        self.shared.change(|state| state.judge = Box::new(judge));
    }

    /// Changes what is wrong with it.
    pub fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.change(|state| change(&mut state.faults));
    }

    /// Requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.state().asked.clone()
    }

    /// How many requests so far had this in `METHOD path?query`.
    pub fn count(&self, what: &str) -> usize {
        let state = self.shared.state();
        state.asked.iter().filter(|asked| format!("{} {}", asked.method, asked.path).contains(what)).count()
    }

    /// Ends it: nothing listens any more, and connections are closed.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *lock(&self.running));
        running.finish(Duration::ZERO).await;
    }

    /// Begins again where it was, with the objects it had.
    ///
    /// # Panics
    /// When its port was taken meanwhile.
    pub async fn restart(&self) {
        self.serve(TcpListener::bind(self.addr).await.expect("the same port"));
    }

    fn serve(&self, listener: TcpListener) {
        let drain = lock(&self.running).clone();
        let (tls, shared, tasks) = (self.tls.clone(), self.shared.clone(), drain.clone());
        drain.spawn(async move {
            loop {
                let tcp = tokio::select! {
                    accepted = listener.accept() => accepted.expect("accept on loopback").0,
                    () = tasks.stopping() => return,
                };
                let (tls, shared, stop) = (tls.clone(), shared.clone(), tasks.clone());
                tasks.spawn(async move {
                    let talk = async {
                        let Ok(io) = tls.accept(tcp).await else { return };
                        let service = service_fn(|request| shared.clone().answer(request, &stop));
                        // A client that leaves is no failure.
                        let _ = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(io), service)
                            .with_upgrades()
                            .await;
                    };
                    tokio::select! {
                        () = talk => {}
                        () = stop.stopping() => {}
                    }
                });
            }
        });
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        lock(&self.running).stop();
    }
}

// === impl State ===

impl State {
    fn put(&mut self, resource: &'static str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let old = self.objects.entry(resource).or_default().insert(key(&object), object.clone());
        let same = old.as_ref().is_some_and(|old| old["metadata"]["uid"] == object["metadata"]["uid"]);
        if let (Some(old), false) = (&old, same) {
            self.log.push((self.version, resource, "DELETED", old.clone()));
        }
        let what = if same { "MODIFIED" } else { "ADDED" };
        self.log.push((self.version, resource, what, object.clone()));
        object
    }

    fn delete(&mut self, resource: &'static str, key: &str) {
        self.version += 1;
        let mut old = self.objects.get_mut(resource).and_then(|all| all.remove(key)).expect("it is there");
        old["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((self.version, resource, "DELETED", old));
    }

    /// Writes a ConfigMap as a client says.
    fn write(&mut self, method: &Method, key: &str, object: Value) -> Response<Body> {
        let there = self.objects[CONFIG_MAPS].get(key).cloned();
        let wanted = match *method {
            Method::DELETE => &object["preconditions"]["resourceVersion"],
            _ => &object["metadata"]["resourceVersion"],
        };
        match (&there, method) {
            (Some(_), &Method::POST) => return status(StatusCode::CONFLICT, "AlreadyExists", "it is there"),
            (None, &Method::PUT | &Method::DELETE) => {
                return status(StatusCode::NOT_FOUND, "NotFound", "it is not there");
            }
            (Some(there), _) if wanted.is_string() && *wanted != there["metadata"]["resourceVersion"] => {
                return status(StatusCode::CONFLICT, "Conflict", "the object has been modified");
            }
            _ => {}
        }
        match *method {
            Method::DELETE => {
                self.delete(CONFIG_MAPS, key);
                answered(StatusCode::OK, &json!({"kind": "Status", "status": "Success"}))
            }
            Method::POST => answered(StatusCode::CREATED, &self.put(CONFIG_MAPS, object)),
            _ => answered(StatusCode::OK, &self.put(CONFIG_MAPS, object)),
        }
    }
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Waits until the state gives something.
    async fn until<T>(&self, mut find: impl FnMut(&State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(found) = find(&self.state()) {
                return found;
            }
            // The sender lives as long as this.
            let _ = changed.changed().await;
        }
    }

    /// An error closes the connection.
    async fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
        drain: &Drain,
    ) -> Result<Response<Body>, &'static str> {
        let upgrade = hyper::upgrade::on(&mut request);
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| "the client left")?.to_bytes();
        let asked = Asked {
            method: head.method,
            path: head.uri.to_string(),
            headers: head.headers,
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        self.change(|state| state.asked.push(asked.clone()));
        let slow = self.state().faults.slow;
        tokio::time::sleep(slow).await;
        let faults = self.until(|state| (!state.faults.hangs).then_some(state.faults)).await;
        if faults.closes {
            return Err("told to");
        }
        if faults.fails {
            return Ok(status(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "told to"));
        }
        if let Some(protocol) = asked.headers.get(header::UPGRADE) {
            let stop = drain.clone();
            drain.spawn(async move {
                let Ok(upgraded) = upgrade.await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
                tokio::select! {
                    // A client that leaves is no failure.
                    _ = tokio::io::copy(&mut read, &mut write) => {}
                    () = stop.stopping() => {}
                }
            });
            let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, protocol.clone());
            return Ok(response);
        }
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let parts: Vec<_> = path.trim_start_matches('/').split('/').collect();
        Ok(match (asked.method.as_str(), parts.as_slice()) {
            ("GET", ["api", "v1", "namespaces", namespace, "pods", name]) => {
                self.get("pods", &format!("{namespace}/{name}"), &asked.headers)
            }
            ("GET", ["api", "v1", "nodes", name]) => self.get("nodes", name, &asked.headers),
            ("GET", ["api", "v1", resource @ ("pods" | "nodes")]) => {
                self.collection(if *resource == "pods" { "pods" } else { "nodes" }, query)
            }
            ("POST", ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"]) => {
                let mut review = asked.body;
                review["status"] = (self.state().judge)(&review["spec"]);
                answered(StatusCode::CREATED, &review)
            }
            ("POST", ["apis", "authentication.k8s.io", "v1", "tokenreviews"]) => {
                let mut review = asked.body;
                let token = review["spec"]["token"].as_str().unwrap_or_default();
                let unknown = || json!({"error": format!("invalid bearer token {token}")});
                let status = self.state().users.get(token).cloned().unwrap_or_else(unknown);
                review["status"] = status;
                answered(StatusCode::CREATED, &review)
            }
            // An audit webhook.
            ("POST", ["audit"]) => answered(StatusCode::OK, &json!({})),
            ("GET", ["api", "v1", "namespaces", PODGATE, "configmaps"]) => {
                self.collection(CONFIG_MAPS, query)
            }
            ("GET", ["apis", "podgate.dev", "v1alpha1", "execpolicies"])
                if self.state().objects.contains_key(EXEC_POLICIES) =>
            {
                self.collection(EXEC_POLICIES, query)
            }
            ("GET", ["api", "v1", "namespaces", PODGATE, "configmaps", name]) => {
                self.get(CONFIG_MAPS, &format!("{PODGATE}/{name}"), &asked.headers)
            }
            ("POST" | "PUT" | "DELETE", ["api", "v1", "namespaces", PODGATE, "configmaps", name @ ..]) => {
                let named = asked.body["metadata"]["name"].as_str();
                let name = name.first().copied().or(named).unwrap_or_default();
                let key = format!("{PODGATE}/{name}");
                let mut answer = None;
                self.change(|state| answer = Some(state.write(&asked.method, &key, asked.body.clone())));
                answer.ok_or("nobody wrote it")?
            }
            // Elsewhere they are taken, and not kept.
            ("POST", ["api", "v1", "namespaces", _, "configmaps" | "events"]) => {
                answered(StatusCode::CREATED, &asked.body)
            }
            _ => status(StatusCode::NOT_FOUND, "", "the server could not find the requested resource"),
        })
    }

    fn get(&self, resource: &str, key: &str, headers: &HeaderMap) -> Response<Body> {
        let Some(mut object) = self.state().objects[resource].get(key).cloned() else {
            let name = key.rsplit('/').next().unwrap_or_default();
            return status(StatusCode::NOT_FOUND, "NotFound", &format!("{resource} \"{name}\" not found"));
        };
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if accept.starts_with("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1") {
            let metadata = object["metadata"].take();
            let (kind, version) = ("PartialObjectMetadata", "meta.k8s.io/v1");
            object = json!({"kind": kind, "apiVersion": version, "metadata": metadata});
        }
        answered(StatusCode::OK, &object)
    }

    fn collection(self: Arc<Self>, resource: &'static str, query: &str) -> Response<Body> {
        if query.contains("watch=true") { self.watch(resource, query) } else { self.list(resource, query) }
    }

    fn list(&self, resource: &str, query: &str) -> Response<Body> {
        let state = self.state();
        let limit = parameter(query, "limit").parse().unwrap_or(usize::MAX);
        let from: usize = parameter(query, "continue").parse().unwrap_or(0);
        let all = &state.objects[resource];
        let page: Vec<_> = all.values().skip(from).take(limit).collect();
        let next = from + page.len();
        let token = if next < all.len() { next.to_string() } else { String::new() };
        let metadata = json!({"resourceVersion": state.version.to_string(), "continue": token});
        answered(StatusCode::OK, &json!({"kind": "List", "metadata": metadata, "items": page}))
    }

    fn watch(self: Arc<Self>, resource: &'static str, query: &str) -> Response<Body> {
        if self.state().faults.gone {
            return status(StatusCode::GONE, "Expired", "too old resource version");
        }
        if self.state().faults.behind {
            return status(
                StatusCode::GATEWAY_TIMEOUT,
                "Timeout",
                "Too large resource version: 9, current: 1",
            );
        }
        let since = parameter(query, "resourceVersion").parse().unwrap_or(u64::MAX);
        let next = self.state().log.partition_point(|(version, ..)| *version <= since);
        let events = stream::unfold((self, next), move |(shared, next)| async move {
            let (next, event) = shared
                .until(|state| {
                    if state.faults.torn {
                        return Some((next, None));
                    }
                    if state.faults.silent {
                        return None;
                    }
                    let mut rest = state.log.iter().enumerate().skip(next);
                    let (at, (_, _, what, object)) = rest.find(|(_, event)| event.1 == resource)?;
                    Some((at + 1, Some(json!({"type": what, "object": object}))))
                })
                .await;
            let frame = match event {
                Some(event) => Ok(Frame::data(Bytes::from(format!("{event}\n")))),
                None => Err("told to".into()),
            };
            Some((frame, (shared, next)))
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

fn key(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    match text("namespace") {
        namespace if namespace.is_empty() => text("name"),
        namespace => format!("{namespace}/{}", text("name")),
    }
}

fn parameter<'a>(query: &'a str, name: &str) -> &'a str {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map_or("", |(_, value)| value)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    answered(code, &body)
}

fn answered(code: StatusCode, body: &Value) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(body.map_err(|never: Infallible| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A test that panicked elsewhere must not hide behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
