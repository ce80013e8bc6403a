//! Two replicas of `podgate serve` in front of one cluster: each shows the sessions of both, and ends them.

use std::sync::Arc;
use std::time::Duration;

use podgate::testing::apiserver::{ApiServer, CONFIG_MAPS};
use podgate::testing::gateway::{request, send};
use podgate::testing::{Far, Pki, TestGateway, soon, spdy, until};
use podgate::wire::remotecommand::StreamType;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::timeout;

use crate::serve::{Client, kubelet_of, settings, streams, write_files};

/// How late a replica may hear of what happens at another: some two seconds on an idle machine, and a busy one is no failure.
/// Sooner than one that is silent is no longer shown.
const LATE: Duration = Duration::from_secs(15);

const SESSIONS: &str = "/apis/podgate.dev/v1alpha1/namespaces/default/sessions";

struct Replicas {
    api: ApiServer,
    far: Far,
    one: TestGateway,
    two: TestGateway,
    folder: TempDir,
}

impl Replicas {
    async fn start() -> Self {
        let (folder, pki) = (tempfile::tempdir().unwrap(), Arc::new(Pki::new()));
        let (api, far) = (ApiServer::start().await, kubelet_of(&pki).await);
        api.node("n", far.addr.port());
        api.pod("default/web", "1", "n", &["app"]);
        write_files(folder.path(), &pki, &api);
        let gateway = async |name: &str| {
            let mut config = settings(folder.path());
            config.session.share = true;
            config.cluster.pod.namespace = Some("podgate".into());
            config.cluster.pod.name = Some(name.into());
            let gateway = TestGateway::serve(&config, pki.clone()).await;
            soon("readiness", async {
                while gateway.admin("GET /readyz").await.code() != 200 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
            gateway
        };
        let (one, two) = (gateway("one").await, gateway("two").await);
        Self { api, far, one, two, folder }
    }

    async fn stop(self) {
        self.one.stop().await;
        self.two.stop().await;
        assert_eq!(self.api.all(CONFIG_MAPS), Vec::<Value>::new(), "nothing is left of them");
        drop((self.far, self.folder));
    }
}

/// A session of ana's at this replica.
async fn session(gateway: &TestGateway) -> Client {
    let request = "POST /api/v1/namespaces/default/pods/web/exec?command=id&stdin=1&stdout=1 HTTP/1.1\r\n\
                   Host: podgate.test\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                   X-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0";
    let io = gateway.connect_as("ana").await;
    streams(soon("an answer", spdy::connect(io, request)).await.client()).await
}

async fn ask(gateway: &TestGateway, line: &str) -> (u16, Value) {
    let answer = gateway.ask(&request(line, "")).await;
    (answer.code(), serde_json::from_str(&answer.body).unwrap_or_default())
}

async fn listed(gateway: &TestGateway) -> Vec<Value> {
    let (code, list) = ask(gateway, &format!("GET {SESSIONS}")).await;
    assert_eq!(code, 200, "{list}");
    list["items"].as_array().unwrap().clone()
}

/// As soon as this replica shows one session that is running.
async fn shown(gateway: &TestGateway) -> Value {
    let found = async {
        loop {
            if let [one] = listed(gateway).await.as_slice()
                && one["status"]["phase"] == "Running"
            {
                return one.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LATE, found).await.expect("the session is shown")
}

async fn until_empty(gateway: &TestGateway) {
    let empty = async {
        while !listed(gateway).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LATE, empty).await.expect("no session is shown");
}

fn path_of(session: &Value) -> String {
    format!("{SESSIONS}/{}", session["metadata"]["name"].as_str().unwrap())
}

#[tokio::test]
async fn a_session_of_another_replica_is_shown_watched_and_ended() {
    let replicas = Replicas::start().await;
    let (one, two) = (&replicas.one, &replicas.two);
    let mut watch = one.connect_as("bob").await;
    send(&mut watch, &request(&format!("GET {SESSIONS}?watch=1&timeoutSeconds=60"), "")).await;
    let mut lines = BufReader::new(watch).lines();
    let mut event = async || {
        let next = async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if line.starts_with('{') {
                    return serde_json::from_str::<Value>(&line).unwrap();
                }
            }
        };
        timeout(LATE, next).await.expect("an event")
    };

    let mut client = session(two).await;
    let added = event().await;
    assert_eq!((&added["type"], &added["object"]["status"]["replica"]), (&json!("ADDED"), &json!("two")));
    let there = shown(one).await;
    let path = path_of(&there);
    let own = shown(two).await;
    for field in ["name", "uid", "creationTimestamp", "labels"] {
        assert_eq!(there["metadata"][field], own["metadata"][field], "{field}");
    }
    assert_eq!(there["spec"], own["spec"]);
    let (code, got) = ask(one, &format!("GET {path}")).await;
    assert_eq!((code, &got["metadata"]["uid"]), (200, &own["metadata"]["uid"]));
    let selected = async |selector: &str| ask(one, &format!("GET {SESSIONS}?fieldSelector={selector}")).await;
    assert_eq!(selected("status.replica%3Dtwo").await.1["items"].as_array().unwrap().len(), 1);
    assert_eq!(selected("status.replica%3Done").await.1["items"], json!([]));
    let (code, said) = ask(one, &format!("GET {path}/stream")).await;
    assert!(code == 400 && said["message"].as_str().unwrap().contains("\"two\""), "{said}");

    let (code, said) = ask(one, &format!("DELETE {path}?dryRun=All")).await;
    assert_eq!((code, &said["metadata"]["deletionTimestamp"]), (200, &Value::Null));
    let (code, said) = ask(one, &format!("DELETE {path}")).await;
    assert_eq!(code, 200, "{said}");
    assert!(said["metadata"]["deletionTimestamp"].is_string(), "{said}");
    let told = client.until(StreamType::Error, "this session was ended by ana");
    timeout(LATE, told).await.expect("the client is told");
    drop(client);
    let mut last = event().await;
    while last["type"] != "DELETED" {
        assert_eq!(last["type"], "MODIFIED");
        last = event().await;
    }
    assert_eq!(last["object"]["status"]["phase"], "Ended");
    until_empty(one).await;
    assert_eq!(ask(one, &format!("DELETE {path}")).await.0, 404);
    drop(lines);
    replicas.stop().await;
}

#[tokio::test]
async fn two_replicas_that_are_asked_at_once_to_end_a_session_end_it_once() {
    let replicas = Replicas::start().await;
    let (one, two) = (&replicas.one, &replicas.two);
    let mut client = session(two).await;
    let line = format!("DELETE {}", path_of(&shown(one).await));
    let (first, second) = tokio::join!(ask(one, &line), ask(two, &line));
    assert!([first.0, second.0].iter().all(|code| [200, 404].contains(code)), "{first:?} {second:?}");
    client.until(StreamType::Error, "this session was ended by ana").await;
    drop(client);
    let ended = "podgate_sessions_ended_total{end=\"ended\",subresource=\"exec\"}";
    until("the session's end", || two.metric(ended) == 1.0).await;
    until_empty(one).await;
    replicas.stop().await;
}

#[tokio::test]
async fn a_watch_goes_on_at_the_replica_where_its_list_was_and_at_no_other() {
    let replicas = Replicas::start().await;
    let (one, two) = (&replicas.one, &replicas.two);
    let version = async |gateway: &TestGateway| {
        let (_, list) = ask(gateway, &format!("GET {SESSIONS}")).await;
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    let (at_one, at_two) = (version(one).await, version(two).await);
    let client = session(two).await;
    shown(one).await;
    for (gateway, version, goes_on) in
        [(one, &at_one, true), (two, &at_two, true), (one, &at_two, false), (two, &at_one, false)]
    {
        let mut io = gateway.connect_as("bob").await;
        send(&mut io, &request(&format!("GET {SESSIONS}?watch=1&resourceVersion={version}"), "")).await;
        let mut lines = BufReader::new(io).lines();
        let event = soon("an event", async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if line.starts_with('{') {
                    return serde_json::from_str::<Value>(&line).unwrap();
                }
            }
        })
        .await;
        match goes_on {
            true => assert_eq!(event["type"], "ADDED", "{event}"),
            false => assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410))),
        }
    }
    drop(client);
    replicas.stop().await;
}

#[tokio::test]
async fn a_replica_that_stops_takes_its_list_away() {
    let replicas = Replicas::start().await;
    let Replicas { api, far, one, two, folder } = replicas;
    let client = session(&two).await;
    shown(&one).await;
    two.gateway.drain.announce();
    tokio::join!(two.gateway.stop(Duration::from_millis(100)), client.finish());
    until_empty(&one).await;
    one.stop().await;
    assert_eq!(api.all(CONFIG_MAPS), Vec::<Value>::new());
    drop((far, folder));
}
