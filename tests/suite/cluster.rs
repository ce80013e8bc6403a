//! The real cluster behind its trait, in front of an API server that is late, stuck, hung, down, or right.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use podgate::cluster::kube::connect::{Connection, Source};
use podgate::cluster::kube::{KubeCluster, Settings, forward};
use podgate::cluster::{Cluster, Decision, Error, User};
use podgate::drain::{Drain, Drained};
use podgate::reload::{Live, Reloader};
use podgate::request::{Attributes, Resource};
use podgate::telemetry::{Metrics, chain};
use podgate::testing::apiserver::ApiServer;
use podgate::testing::{PATIENCE, soon, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

struct Rig {
    server: ApiServer,
    cluster: Arc<KubeCluster>,
    metrics: Metrics,
    background: Drain,
}

fn settings() -> Settings {
    Settings {
        review_timeout: PATIENCE,
        read_timeout: PATIENCE,
        allowed_for: Duration::ZERO,
        denied_for: Duration::ZERO,
        confirmed_for: Duration::ZERO,
        max_waiting: 100,
        watch: false,
        forward: forward::Settings {
            max_body_bytes: 1024,
            stall_timeout: Duration::from_secs(10),
            max_bytes_per_second: 0,
        },
    }
}

impl Rig {
    async fn with(settings: Settings) -> Self {
        let (server, background, metrics) = (ApiServer::start().await, Drain::new(), Metrics::new());
        let connection = server.connection(&background);
        let cluster = KubeCluster::start(connection, &settings, &background, &background, &metrics);
        Self { server, cluster, metrics, background }
    }

    /// With watches that are up.
    async fn watching() -> Self {
        Self::confirming(Duration::ZERO).await
    }

    /// The same, where a look holds for so long.
    async fn confirming(confirmed_for: Duration) -> Self {
        let rig = Self::with(Settings { watch: true, confirmed_for, ..settings() }).await;
        rig.until_watching().await;
        assert!(rig.cluster.synced());
        rig
    }

    async fn until_watching(&self) {
        let up = |resource| self.metrics.watch_synced.with_label_values(&[resource]).get() == 1;
        until("watches are up", || up("pods") && up("nodes")).await;
    }

    async fn until_pods(&self, count: i64) {
        let pods = self.metrics.watch_objects.with_label_values(&["pods"]);
        until("the watch knows the pods", || pods.get() == count).await;
    }

    /// The pod's uid and containers.
    async fn pod(&self, name: &str) -> Option<(String, Vec<String>)> {
        let pod = self.cluster.pod("shop", name).await.unwrap()?;
        Some((pod.uid.clone(), pod.containers.clone()))
    }

    async fn review(&self, user: &str) -> Result<Decision, Error> {
        self.cluster.review(&called(user), &exec("cart-0")).await
    }

    fn reviews(&self) -> usize {
        self.server.count("subjectaccessreviews")
    }
}

fn called(name: &str) -> User {
    User { name: name.to_owned(), ..User::default() }
}

fn exec(pod: &str) -> Attributes {
    let resource = Resource {
        version: "v1".into(),
        resource: "pods".into(),
        subresource: "exec".into(),
        namespace: "shop".into(),
        name: pod.into(),
        ..Resource::default()
    };
    Attributes { verb: "create".into(), path: "/not/asked/about".into(), resource: Some(resource) }
}

fn is(uid: &str, containers: &[&str]) -> Option<(String, Vec<String>)> {
    Some((uid.to_owned(), containers.iter().map(|&name| name.to_owned()).collect()))
}

#[tokio::test]
async fn a_pod_made_after_the_last_event_is_there() {
    let rig = Rig::watching().await;
    rig.server.faults(|faults| faults.silent = true);
    rig.server.pod("shop/cart-0", "1", "node-1", &["app", "proxy"]);
    assert_eq!(rig.pod("cart-0").await, is("1", &["app", "proxy"]));
    rig.server.node("node-1", 10250);
    let node = rig.cluster.node("node-1").await.unwrap().unwrap();
    assert_eq!((node.kubelet_port, node.addresses.len()), (10250, 1));
    assert_eq!(rig.pod("cart-1").await, None);
}

#[tokio::test]
async fn what_the_watch_knows_costs_a_look_at_metadata_alone() {
    let rig = Rig::watching().await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    assert_eq!(rig.pod("cart-0").await, is("1", &["app"]));
    let reads: Vec<_> =
        rig.server.asked().into_iter().filter(|asked| asked.path.ends_with("cart-0")).collect();
    assert_eq!(reads.len(), 1);
    assert!(reads[0].headers["accept"].to_str().unwrap().contains("PartialObjectMetadata"));
}

#[tokio::test]
async fn a_look_holds_until_the_watch_says_something_else() {
    let rig = Rig::confirming(Duration::from_secs(3600)).await;
    rig.server.node("node-1", 10250);
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    for _ in 0..5 {
        assert_eq!(rig.pod("cart-0").await, is("1", &["app"]));
    }
    assert_eq!(rig.server.count("/pods/cart-0"), 1);
    rig.server.pod("shop/cart-0", "1", "node-1", &["app", "debugger"]);
    soon("a container more", async {
        while rig.pod("cart-0").await != is("1", &["app", "debugger"]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    rig.server.delete("pods", "shop/cart-0");
    soon("the pod is gone", async {
        while rig.pod("cart-0").await.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // What is not there is asked for each time.
    let asked = rig.server.count("/pods/cart-0");
    assert_eq!((rig.pod("cart-0").await, rig.pod("cart-0").await), (None, None));
    assert_eq!(rig.server.count("/pods/cart-0"), asked + 2);
}

#[tokio::test]
async fn who_asks_at_once_is_answered_by_one_look_where_it_holds() {
    for (holds, looks) in [(Duration::from_secs(3600), 1), (Duration::ZERO, 20)] {
        let rig = Rig::confirming(holds).await;
        rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
        rig.until_pods(1).await;
        let all = join_all((0..20).map(|_| rig.pod("cart-0"))).await;
        assert!(all.iter().all(|pod| *pod == is("1", &["app"])), "{all:?}");
        assert_eq!(rig.server.count("/pods/cart-0"), looks);
    }
    let rig = Rig::confirming(Duration::from_secs(3600)).await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    rig.server.stop().await;
    for refused in join_all((0..20).map(|_| rig.cluster.pod("shop", "cart-0"))).await {
        assert_eq!(refused.unwrap_err().refusal().code(), 503);
    }
}

#[tokio::test]
async fn a_look_does_not_hold_for_longer_whatever_the_watch_does() {
    let rig = Rig::confirming(Duration::from_millis(200)).await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    assert_eq!(rig.pod("cart-0").await, is("1", &["app"]));
    rig.server.faults(|faults| faults.silent = true);
    rig.server.delete("pods", "shop/cart-0");
    soon("the look has run out", async {
        while rig.pod("cart-0").await.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_pod_deleted_and_made_again_is_never_the_old_one() {
    let rig = Rig::watching().await;
    rig.server.pod("shop/cart-0", "old", "node-1", &["app"]);
    rig.until_pods(1).await;
    rig.server.faults(|faults| faults.silent = true);
    rig.server.delete("pods", "shop/cart-0");
    assert_eq!(rig.pod("cart-0").await, None);
    rig.server.pod("shop/cart-0", "new", "node-2", &["other"]);
    assert_eq!(rig.pod("cart-0").await, is("new", &["other"]));
    // A debug container is added.
    rig.server.pod("shop/cart-0", "new", "node-2", &["other", "more"]);
    assert_eq!(rig.pod("cart-0").await, is("new", &["other", "more"]));
    // The events of all that come late, the old pod's among them.
    rig.server.pod("shop/last", "last", "node-1", &["app"]);
    rig.server.faults(|faults| faults.silent = false);
    rig.until_pods(2).await;
    assert_eq!(rig.pod("cart-0").await, is("new", &["other", "more"]));
}

#[tokio::test]
async fn a_watch_that_breaks_or_is_too_late_does_not_matter_and_comes_back() {
    let rig = Rig::watching().await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    let lists = rig.server.count("/api/v1/pods?limit");
    rig.server.faults(|faults| (faults.torn, faults.gone) = (true, true));
    let restarts = rig.metrics.watch_restarts.with_label_values(&["pods"]);
    until("the watch was tried again", || restarts.get() > 1).await;
    until("a list, because of 410", || rig.server.count("/api/v1/pods?limit") > lists).await;
    rig.server.delete("pods", "shop/cart-0");
    rig.server.pod("shop/cart-1", "2", "node-1", &["app"]);
    rig.server.pod("shop/cart-2", "3", "node-1", &["app"]);
    assert_eq!(rig.pod("cart-0").await, None);
    assert_eq!(rig.pod("cart-1").await, is("2", &["app"]));
    rig.server.faults(|faults| (faults.torn, faults.gone) = (false, false));
    rig.until_pods(2).await;
    rig.until_watching().await;
    rig.server.pod("shop/cart-3", "4", "node-1", &["app"]);
    rig.until_pods(3).await;
}

#[tokio::test]
async fn a_watch_of_a_version_that_was_undone_is_begun_anew() {
    let rig = Rig::watching().await;
    let lists = rig.server.count("/api/v1/pods?limit");
    rig.server.faults(|faults| (faults.torn, faults.behind) = (true, true));
    until("a list, because of 504", || rig.server.count("/api/v1/pods?limit") > lists).await;
    rig.server.faults(|faults| (faults.torn, faults.behind) = (false, false));
    rig.until_watching().await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let rig = Rig::with(settings()).await;
    for number in 0..1234 {
        rig.server.pod(&format!("shop/cart-{number}"), &number.to_string(), "node-1", &["app"]);
    }
    let (background, metrics) = (Drain::new(), Metrics::new());
    let connection = rig.server.connection(&background);
    let settings = Settings { watch: true, ..settings() };
    let _cluster = KubeCluster::start(connection, &settings, &background, &background, &metrics);
    let pods = metrics.watch_objects.with_label_values(&["pods"]);
    until("every pod is known", || pods.get() == 1234).await;
    assert_eq!(rig.server.count("/api/v1/pods?limit"), 3);
}

#[tokio::test]
async fn an_object_that_cannot_be_read_does_not_hide_the_others() {
    let odd = |name: &str| {
        // An API server takes any port from a kubelet.
        let endpoints = json!({"kubeletEndpoint": {"Port": 70_000}});
        json!({"metadata": {"name": name, "uid": name}, "spec": {}, "status": {"daemonEndpoints": endpoints}})
    };
    let rig = Rig::with(settings()).await;
    rig.server.put("nodes", odd("odd-1"));
    rig.server.node("node-1", 10250);
    let (background, metrics) = (Drain::new(), Metrics::new());
    let connection = rig.server.connection(&background);
    let settings = Settings { watch: true, ..settings() };
    let cluster = KubeCluster::start(connection, &settings, &background, &background, &metrics);
    let nodes = metrics.watch_objects.with_label_values(&["nodes"]);
    until("the list is read", || cluster.synced() && nodes.get() == 1).await;
    rig.server.put("nodes", odd("odd-2"));
    rig.server.node("node-2", 10250);
    until("the watch goes on", || nodes.get() == 2).await;
    assert_eq!(rig.server.count("/api/v1/nodes?limit"), 1, "nothing had to be listed again");
    assert!(cluster.node("odd-1").await.is_err());
    assert_eq!(cluster.node("node-2").await.unwrap().unwrap().kubelet_port, 10250);
}

#[tokio::test]
async fn names_that_no_object_can_have_are_not_asked_for() {
    let rig = Rig::with(settings()).await;
    for name in ["", ".", "..", "a/b", "a%2fb"] {
        assert!(rig.cluster.pod("shop", name).await.unwrap().is_none());
        assert!(rig.cluster.pod(name, "cart-0").await.unwrap().is_none());
        assert!(rig.cluster.node(name).await.unwrap().is_none());
    }
    assert!(rig.server.asked().is_empty());
    assert!(rig.cluster.pod("shop", "a?b#c").await.unwrap().is_none());
    assert_eq!(rig.server.asked()[0].path, "/api/v1/namespaces/shop/pods/a%3Fb%23c");
}

#[tokio::test]
async fn a_hung_api_server_is_not_waited_for_by_many() {
    let within = Duration::from_secs(1);
    let rig = Rig::with(Settings { review_timeout: within, max_waiting: 20, ..settings() }).await;
    rig.server.faults(|faults| faults.hangs = true);
    let started = Instant::now();
    let callers: Vec<_> = (0..200).map(|number| format!("user-{number}")).collect();
    let refused = join_all(callers.iter().map(|user| rig.review(user))).await;
    assert!(started.elapsed() < 3 * within, "all are told in time: {:?}", started.elapsed());
    assert!(refused.iter().all(|refused| matches!(refused, Err(Error::Unreachable { .. }))));
    assert_eq!(rig.reviews(), 20, "only so many wait");
    let started = Instant::now();
    assert!(rig.review("late").await.is_err());
    assert!(started.elapsed() < within, "and who comes later is told at once");
    assert_eq!(rig.reviews(), 20);

    rig.server.faults(|faults| faults.hangs = false);
    soon("reviews are back", async {
        while rig.review("late").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    try_join_all(callers[..20].iter().map(|user| rig.review(user))).await.unwrap();
}

#[tokio::test]
async fn an_api_server_that_is_down_is_felt_at_once_and_needs_no_restart_of_podgate() {
    let rig = Rig::watching().await;
    rig.server.pod("shop/cart-0", "1", "node-1", &["app"]);
    rig.until_pods(1).await;
    rig.server.stop().await;
    let started = Instant::now();
    for _ in 0..50 {
        let refused = rig.cluster.pod("shop", "cart-0").await.unwrap_err();
        assert_eq!(refused.refusal().code(), 503, "{}", chain(&refused));
        assert!(rig.review("ana").await.is_err());
    }
    assert!(started.elapsed() < PATIENCE / 2);
    rig.server.restart().await;
    rig.server.delete("pods", "shop/cart-0");
    rig.server.pod("shop/cart-1", "2", "node-1", &["app"]);
    soon("reads are back", async {
        while rig.cluster.pod("shop", "cart-0").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(rig.pod("cart-0").await, None);
    assert_eq!(rig.pod("cart-1").await, is("2", &["app"]));
    rig.until_watching().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_unused_connections_or_watches() {
    let rig = Rig::watching().await;
    rig.review("ana").await.unwrap();
    assert!(rig.background.tasks() > 0);
    assert_eq!(soon("the stop", rig.background.finish(Duration::ZERO)).await, Drained::Cut);
}

#[tokio::test]
async fn a_review_says_all_about_who_asks_for_what() {
    let rig = Rig::with(settings()).await;
    let user = User {
        name: "ana".into(),
        uid: "7".into(),
        groups: vec!["dev".into(), "ops".into()],
        extra: BTreeMap::from([("scopes".to_owned(), vec!["a".to_owned()])]),
    };
    rig.cluster.review(&user, &exec("cart-0")).await.unwrap();
    let path = Attributes { verb: "get".into(), path: "/metrics".into(), resource: None };
    rig.cluster.review(&called("ana"), &path).await.unwrap();
    let asked = rig.server.asked();
    let attributes = json!({
        "verb": "create", "version": "v1", "resource": "pods", "subresource": "exec",
        "namespace": "shop", "name": "cart-0",
    });
    let who = json!({
        "user": "ana", "uid": "7", "groups": ["dev", "ops"], "extra": {"scopes": ["a"]},
        "resourceAttributes": attributes,
    });
    assert_eq!(asked[0].body["spec"], who);
    assert_eq!(asked[0].headers["authorization"], "Bearer podgates-own");
    let what = json!({"user": "ana", "nonResourceAttributes": {"verb": "get", "path": "/metrics"}});
    assert_eq!(asked[1].body["spec"], what);
}

#[tokio::test]
async fn answers_hold_as_long_as_they_may_and_only_for_what_was_asked() {
    let long = Duration::from_secs(3600);
    let rig = Rig::with(Settings { allowed_for: long, ..settings() }).await;
    rig.server.judge(|spec| json!({"allowed": spec["user"] == "ana", "reason": "so it is"}));
    for _ in 0..3 {
        assert_eq!(rig.review("ana").await.unwrap(), Decision { allowed: true, reason: "so it is".into() });
    }
    assert_eq!(rig.reviews(), 1);
    for _ in 0..3 {
        assert!(!rig.review("bob").await.unwrap().allowed);
    }
    assert_eq!(rig.reviews(), 4, "a no holds for no time here");
    let dev = User { groups: vec!["dev".into()], ..called("ana") };
    rig.cluster.review(&dev, &exec("cart-0")).await.unwrap();
    rig.cluster.review(&called("ana"), &exec("cart-1")).await.unwrap();
    assert_eq!(rig.reviews(), 6);

    let rig = Rig::with(Settings { denied_for: long, ..settings() }).await;
    rig.server.judge(|_| json!({"allowed": false, "denied": true}));
    for _ in 0..3 {
        assert!(!rig.review("bob").await.unwrap().allowed);
    }
    assert_eq!(rig.reviews(), 1);
}

#[tokio::test]
async fn many_who_ask_the_same_at_once_are_one_question() {
    let rig = Rig::with(Settings { allowed_for: Duration::from_secs(3600), ..settings() }).await;
    rig.server.faults(|faults| faults.hangs = true);
    let all = try_join_all((0..50).map(|_| rig.review("ana")));
    let answered = async {
        until("the question came", || rig.reviews() == 1).await;
        rig.server.faults(|faults| faults.hangs = false);
    };
    let (all, ()) = tokio::join!(all, answered);
    assert!(all.unwrap().iter().all(|decision| decision.allowed));
    assert_eq!(rig.reviews(), 1);
}

#[tokio::test]
async fn no_decision_is_an_error_and_is_not_remembered() {
    let long = Duration::from_secs(3600);
    let rig = Rig::with(Settings { allowed_for: long, denied_for: long, ..settings() }).await;
    rig.server.faults(|faults| faults.fails = true);
    let error = rig.review("ana").await.unwrap_err();
    assert_eq!(error.refusal().code(), 500);
    assert!(chain(&error).contains("500 InternalError: told to"), "{}", chain(&error));
    rig.server.faults(|faults| faults.fails = false);
    for status in [
        json!({"allowed": false, "evaluationError": "webhook down"}),
        json!({"allowed": true, "denied": true}),
        json!(null),
        json!("yes"),
    ] {
        let answer = status.clone();
        rig.server.judge(move |_| answer.clone());
        assert!(rig.review("ana").await.is_err(), "{status}");
    }
    rig.server.judge(|_| json!({"allowed": true, "evaluationError": "beside the point"}));
    assert!(rig.review("ana").await.unwrap().allowed);
}

#[tokio::test]
async fn a_token_is_whose_the_cluster_says_for_an_audience_that_was_asked_for() {
    let rig = Rig::with(settings()).await;
    let user = json!({"username": "ana", "uid": "7", "groups": ["dev"], "extra": {"k": ["v"]}});
    rig.server.token("t-1", json!({"authenticated": true, "user": user}));
    rig.server.token("t-2", json!({"authenticated": true, "user": user, "audiences": ["podgate", "x"]}));
    let ours = ["podgate".to_owned()];
    let whose = |token: &'static str, audiences: &'static [&str]| {
        let audiences: Vec<_> = audiences.iter().map(|&name| name.to_owned()).collect();
        let cluster = rig.cluster.clone();
        async move { cluster.token(token, &audiences).await.unwrap().map(|user| user.name) }
    };
    let ana = rig.cluster.token("t-2", &ours).await.unwrap().unwrap();
    assert_eq!((ana.uid.as_str(), ana.groups[0].as_str(), ana.extra["k"][0].as_str()), ("7", "dev", "v"));
    assert_eq!(whose("t-1", &[]).await.as_deref(), Some("ana"));
    assert_eq!(whose("t-1", &["podgate"]).await, None, "it does not say for whom it is");
    assert_eq!(whose("t-2", &["other"]).await, None);
    assert_eq!(whose("t-3", &[]).await, None);
    assert_eq!(rig.server.asked()[0].body["spec"], json!({"token": "t-2", "audiences": ["podgate"]}));
}

#[tokio::test]
async fn no_error_tells_a_token() {
    let short = Settings { review_timeout: Duration::from_millis(200), ..settings() };
    let rig = Rig::with(short).await;
    let failed = async |why: &str| {
        let error = rig.cluster.token("sesame", &[]).await.unwrap_err();
        let told = format!("{} {error:?} {:?}", chain(&error), error.refusal());
        assert!(!told.contains("sesame") && !told.contains("podgates-own"), "{why}: {told}");
    };
    rig.server.token("sesame", json!({"authenticated": true, "user": {"username": 7, "sesame": "sesame"}}));
    failed("a name that is none").await;
    rig.server.token("sesame", json!({"authenticated": true}));
    failed("nobody").await;
    rig.server.token("sesame", json!("sesame"));
    failed("a status that is none").await;
    rig.server.faults(|faults| faults.hangs = true);
    failed("no answer").await;
    rig.server.faults(|faults| (faults.hangs, faults.closes) = (false, true));
    failed("a closed connection").await;
    rig.server.stop().await;
    failed("no server").await;
}

#[tokio::test]
async fn what_is_sent_carries_podgates_credentials_alone_and_may_be_upgraded() {
    let rig = Rig::with(settings()).await;
    let connection = rig.server.connection(&rig.background).get();
    let request = Request::post("/api/v1/namespaces/shop/pods/cart-0/proxy/?a=b")
        .header("authorization", "Bearer the-clients")
        .header("host", "podgate.test")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .version(Version::HTTP_2)
        .body(Full::default().map_err(|never| match never {}).boxed_unsync())
        .unwrap();
    let mut response = connection.send(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let asked = rig.server.asked().remove(0);
    assert_eq!(asked.path, "/api/v1/namespaces/shop/pods/cart-0/proxy/?a=b");
    let sent: Vec<_> = asked.headers.get_all("authorization").iter().collect();
    assert_eq!(sent, ["Bearer podgates-own"]);
    assert_eq!(asked.headers["host"], rig.server.addr.to_string());
    let mut io = TokioIo::new(soon("the upgrade", hyper::upgrade::on(&mut response)).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    soon("the echo", io.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"hello");
}

#[tokio::test]
async fn new_credentials_are_used_without_a_restart() {
    let server = ApiServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = server.write_kubeconfig(folder.path(), "first");
    let (background, metrics) = (Drain::new(), Metrics::new());
    let source = Source::Kubeconfig { path, context: None };
    let reloader = Reloader::new(Duration::from_millis(5), background.clone(), metrics.clone());
    let (files, drain) = (source.files(), background.clone());
    let build = move || Connection::new(&source.config()?, &drain);
    let mut connection = reloader.load("apiserver", files, build).await.unwrap();
    let cluster = KubeCluster::start(connection.clone(), &settings(), &background, &background, &metrics);
    cluster.review(&called("ana"), &exec("cart-0")).await.unwrap();
    server.write_kubeconfig(folder.path(), "second");
    soon("the new kubeconfig is seen", connection.replaced()).await;
    cluster.review(&called("ana"), &exec("cart-0")).await.unwrap();
    let asked = server.asked();
    let shown: Vec<_> = asked.iter().map(|asked| &asked.headers["authorization"]).collect();
    assert_eq!(shown, ["Bearer first", "Bearer second"]);
    background.finish(Duration::ZERO).await;
}

/// `PODGATE_KUBECONFIG=... cargo test --test suite cluster::a_real -- --ignored`, as podgate's own identity.
#[tokio::test]
#[ignore = "needs cluster"]
async fn a_real_api_server_answers_as_expected() {
    let path = std::env::var_os("PODGATE_KUBECONFIG").expect("PODGATE_KUBECONFIG names a kubeconfig").into();
    let config = Source::Kubeconfig { path, context: None }.config().unwrap();
    let (background, metrics) = (Drain::new(), Metrics::new());
    let connection = Live::fixed(Connection::new(&config, &background).unwrap());
    let settings = Settings { watch: true, ..settings() };
    let cluster = KubeCluster::start(connection.clone(), &settings, &background, &background, &metrics);
    until("the watches have seen everything", || cluster.synced()).await;
    let known = |resource| metrics.watch_objects.with_label_values(&[resource]).get();
    println!("{} pods, {} nodes", known("pods"), known("nodes"));
    assert!(known("nodes") > 0);
    assert!(cluster.pod("default", "no-such-pod").await.unwrap().is_none());
    assert!(cluster.node("no-such-node").await.unwrap().is_none());
    for resource in ["nodes", "pods"] {
        let request = Request::get(format!("/api/v1/{resource}?limit=1"));
        let request = request.body(Full::default().map_err(|never| match never {}).boxed_unsync()).unwrap();
        let list = connection.get().send(request).await.unwrap().into_body().collect().await.unwrap();
        let list: serde_json::Value = serde_json::from_slice(&list.to_bytes()).unwrap();
        let metadata = &list["items"][0]["metadata"];
        let name = metadata["name"].as_str().expect("there is one");
        if resource == "pods" {
            let namespace = metadata["namespace"].as_str().unwrap();
            let pod = cluster.pod(namespace, name).await.unwrap().expect("there is one");
            assert_eq!(metadata["uid"], pod.uid);
            assert!(!pod.containers.is_empty());
        } else {
            let node = cluster.node(name).await.unwrap().expect("there is one");
            assert!(!node.addresses.is_empty() && node.kubelet_port > 0);
        }
    }
    let root = User { groups: vec!["system:masters".into()], ..called("root") };
    assert!(cluster.review(&root, &exec("cart-0")).await.unwrap().allowed);
    assert!(!cluster.review(&called("nobody"), &exec("cart-0")).await.unwrap().allowed);
    assert_eq!(cluster.token("no-token", &[]).await.unwrap(), None);
    background.finish(Duration::ZERO).await;
}
