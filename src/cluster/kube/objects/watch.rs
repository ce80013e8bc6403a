//! Watch: keeps a store up to date, for as long as the process runs.
//!
//! A list in pages, then a watch from its version on, which the API server ends every few minutes and which goes on from
//! the last version seen; when that is too old (410) or anything else is odd, a list again, and so when the way to the API
//! server is replaced. Every wait has a deadline, the largest event and page are bounded, and between two tries there is a
//! pause that grows while they fail.
//! It does not use kube's watcher: that has kube's client read the lists, which holds a page twice in memory and writes
//! one it cannot read to the log, secrets in it included.
//! Source: Kubernetes API concepts, "Efficient detection of changes"; client-go `tools/cache/reflector.go`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use percent_encoding::utf8_percent_encode;
use prometheus::{IntCounter, IntGauge};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::store::{Store, Version};
use super::{Kind, Metadata, Object, SEGMENT};
use crate::cluster::kube::ask::{JSON, Refused, Status, read, request, unanswered, whole};
use crate::cluster::kube::connect::Connection;
use crate::cluster::{self, Body};
use crate::drain::Drain;
use crate::reload::Live;
use crate::telemetry::{Metrics, chain};

/// Objects of a page: client-go's. A page is some megabytes, and gone before the next is asked for.
const PAGE: u32 = 500;

/// Bytes of a page, and of an event, at most: pods of 128 KiB each, and as `ask` has it. Larger ones are
/// errors rather than a full memory.
const MAX_PAGE: usize = 64 * 1024 * 1024;
const MAX_EVENT: usize = 8 * 1024 * 1024;

/// For a whole page, or for the head of a watch's answer. An API server gives up on a list after 60 s itself.
const ANSWER: Duration = Duration::from_secs(60);

/// After this long the API server ends a watch, in seconds: soon enough that a connection which is dead without saying so
/// is replaced, and within the API server's own 5 to 10 minutes.
const WATCH_SECONDS: u64 = 290;

/// Silence on a watch after which it is taken for dead: its end is overdue.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 15);

/// The pause between two tries, and to what it doubles while they end soon.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A watch of one kind.
struct Watch<K> {
    connection: Live<Connection>,
    store: Arc<Store<K>>,
    objects: IntGauge,
    synced: IntGauge,
    /// The version to go on from; a list is due when there is none.
    since: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(default, deserialize_with = "readable")]
    items: Option<Vec<Object>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    r#continue: String,
}

/// What is read of an object that cannot be read as what it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Unreadable {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Event<'a> {
    r#type: Type,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Type {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// Starts a watch, as a task of `background`.
pub(super) fn start<K: Kind>(
    connection: Live<Connection>,
    store: Arc<Store<K>>,
    background: &Drain,
    metrics: &Metrics,
) {
    let kind = [K::PLURAL];
    let (objects, synced) =
        (metrics.watch_objects.with_label_values(&kind), metrics.watch_synced.with_label_values(&kind));
    let restarts = metrics.watch_restarts.with_label_values(&kind);
    let drain = background.clone();
    background.spawn(async move {
        let mut watch = Watch { connection, store, objects, synced, since: None };
        tokio::select! {
            biased;
            () = drain.stopping() => {}
            () = watch.run(&restarts) => {}
        }
    });
}

// === impl Watch ===

impl<K: Kind> Watch<K> {
    async fn run(&mut self, restarts: &IntCounter) {
        let (mut pause, mut connection) = (PAUSE, self.connection.clone());
        loop {
            let started = Instant::now();
            let ended = tokio::select! {
                biased;
                () = connection.replaced() => None,
                ended = self.once() => Some(ended),
            };
            match ended {
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    self.synced.set(0);
                    warn!(
                        resource = K::PLURAL,
                        error = chain(&error),
                        "watch broken, reads go on without it"
                    );
                }
                None => {
                    self.synced.set(0);
                    // It may lead to another API server, whose versions are others.
                    self.since = None;
                    pause = PAUSE;
                    debug!(resource = K::PLURAL, "the way to the API server is a new one, watching anew");
                }
            }
            if started.elapsed() > LONGEST_PAUSE {
                pause = PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            restarts.inc();
        }
    }

    /// One watch to its end, after a list where one is due.
    async fn once(&mut self) -> Result<(), cluster::Error> {
        let since = match self.since.take() {
            Some(since) => since,
            None => self.list().await?,
        };
        let act = format!("watch {}", K::PLURAL);
        let path = format!(
            "/api/v1/{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            K::PLURAL,
            WATCH_SECONDS,
            utf8_percent_encode(&since, SEGMENT)
        );
        let (code, mut body) = match self.ask(path).await {
            Ok(answer) => answer,
            Err(error) => {
                self.since = Some(since);
                return Err(error);
            }
        };
        if code != StatusCode::OK {
            // What is not about the version will be wrong with a list too, which costs more.
            let elsewhere = [
                StatusCode::UNAUTHORIZED,
                StatusCode::FORBIDDEN,
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ];
            self.since = elsewhere.contains(&code).then_some(since);
            return Err(refused(&act, code, body).await);
        }
        self.synced.set(1);
        debug!(resource = K::PLURAL, since, "watching");
        self.since = Some(since);
        let mut lines = BytesMut::new();
        let mut looked = 0;
        loop {
            let frame = match timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                // However it ended, it can go on.
                Ok(Some(Err(source))) => return Err(unanswered(&act, source)),
                Ok(None) => return Ok(()),
                Err(late) => return Err(unanswered(&act, late)),
            };
            lines.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = lines[looked..].iter().position(|&byte| byte == b'\n') {
                let line = lines.split_to(looked + end);
                lines.advance(1);
                looked = 0;
                // When anything is wrong with it, what comes next is of no use.
                let since = self.since.take();
                self.since = self.see(&act, &line)?.or(since);
            }
            looked = lines.len();
            if looked > MAX_EVENT {
                self.since = None;
                return Err(unanswered(&act, format!("an event has more than {MAX_EVENT} bytes")));
            }
        }
    }

    /// Takes an event in; the version to go on from.
    fn see(&self, act: &str, line: &[u8]) -> Result<Option<String>, cluster::Error> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let event: Event<'_> =
            serde_json::from_slice(line).map_err(|_| unanswered(act, "an event is none"))?;
        let object = event.object.get().as_bytes();
        if let Type::Error = event.r#type {
            let code = StatusCode::from_u16(Status::of(object).code).unwrap_or_default();
            return Err(unanswered(act, Refused::of(code, object)));
        }
        let Some(object) = object_of(event.object) else {
            let Unreadable { metadata } = read(act, object)?;
            return Ok(Some(metadata.resource_version).filter(|since| !since.is_empty()));
        };
        let since = object.metadata.resource_version.clone();
        match event.r#type {
            Type::Added | Type::Modified => keep(&self.store, object),
            Type::Deleted => self.store.forget(&object.metadata.key(), &object.metadata.uid),
            Type::Bookmark | Type::Error => {}
        }
        self.count();
        Ok((!since.is_empty()).then_some(since))
    }

    /// Everything there is; the version at which that was so.
    async fn list(&mut self) -> Result<String, cluster::Error> {
        let act = format!("list {}", K::PLURAL);
        self.store.begin_list();
        let mut next = String::new();
        loop {
            let token = utf8_percent_encode(&next, SEGMENT);
            let path = format!("/api/v1/{}?limit={PAGE}&continue={token}", K::PLURAL);
            let page = async {
                let (code, body) = self.ask(path).await?;
                if code != StatusCode::OK {
                    return Err(refused(&act, code, body).await);
                }
                let body = whole(body, MAX_PAGE).await?;
                read::<Page>(&act, &body)
            };
            let page = timeout(ANSWER, page).await.map_err(|late| unanswered(&act, late))??;
            for object in page.items.into_iter().flatten() {
                keep(&self.store, object);
            }
            if page.metadata.r#continue.is_empty() {
                self.store.end_list();
                self.count();
                return Ok(page.metadata.resource_version);
            }
            next = page.metadata.r#continue;
        }
    }

    fn count(&self) {
        self.objects.set(i64::try_from(self.store.len()).unwrap_or(i64::MAX));
    }

    async fn ask(&self, path: String) -> Result<(StatusCode, Body), cluster::Error> {
        let request = request(Method::GET, path, JSON, Bytes::new());
        let connection = self.connection.get();
        let act = K::PLURAL;
        let response =
            timeout(ANSWER, connection.send(request)).await.map_err(|late| unanswered(act, late))??;
        Ok((response.status(), response.into_body()))
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

fn readable<'de, D: Deserializer<'de>>(items: D) -> Result<Option<Vec<Object>>, D::Error> {
    let items = Option::<Vec<&RawValue>>::deserialize(items)?;
    Ok(items.map(|items| items.into_iter().filter_map(object_of).collect()))
}

async fn refused(act: &str, code: StatusCode, body: Body) -> cluster::Error {
    let body = timeout(ANSWER, whole(body, MAX_EVENT)).await;
    let body = body.unwrap_or(Ok(Bytes::new())).unwrap_or_default();
    unanswered(act, Refused::of(code, &body))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::Pod;

    const PODS: usize = 100_000;

    /// What a pod may take, in bytes.
    const AIM: usize = 2048;

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

    /// `cargo test --release --lib memory_of_a_pod -- --ignored --nocapture`, alone in its process.
    #[test]
    #[ignore = "measures the memory of its process"]
    fn memory_of_a_pod() {
        let (store, template) = (Store::<Pod>::default(), template());
        // What the allocator keeps of the pages counts too: it stays for the next list.
        let before = resident();
        store.begin_list();
        for first in (0..PODS).step_by(PAGE as usize) {
            let pods = first..first + PAGE as usize;
            let pods: Vec<_> =
                pods.map(|number| template.replace("NUMBER", &format!("{number:06}"))).collect();
            let body = format!(r#"{{"metadata": {{}}, "items": [{}]}}"#, pods.join(","));
            let page: Page = read("list pods", body.as_bytes()).unwrap();
            for object in page.items.into_iter().flatten() {
                keep(&store, object);
            }
        }
        store.end_list();
        let each = (resident() - before) / PODS;
        println!("{each} bytes for each of {PODS} pods of {} bytes of JSON", template.len());
        assert_eq!(store.len(), PODS);
        assert!(each < AIM, "{each} bytes for each pod");
    }
}
