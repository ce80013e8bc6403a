//! What is written about requests: every stage of every kind of them, compared with reviewed golden files; and what
//! happens when it cannot be written.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podgate::app::{Gateway, Ground};
use podgate::audit::Audit;
use podgate::cluster::kube::{self, KubeCluster, forward};
use podgate::config::{Config, Mode, WhenDown};
use podgate::drain::Drain;
use podgate::reload::Reloader;
use podgate::testing::apiserver::ApiServer;
use podgate::testing::cluster::deny;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Answer, FakeCluster, Far, Pki, TestGateway, golden, soon, until};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use crate::endings::ASKED;
use crate::recording::{only, recording_into};
use crate::rig::{Rig, rig_with};
use crate::websocket::WS_SWITCHING;

/// Where events are written to.
struct Log {
    folder: TempDir,
    path: PathBuf,
}

/// Settings with a file for events.
fn logged() -> (Config, Log) {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut config) = (folder.path().join("audit.log"), config());
    config.audit.file.path = Some(path.clone());
    config.reload.period = Duration::from_millis(10);
    (config, Log { folder, path })
}

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "a line is there whole or not at all");
        text.lines().map(str::to_owned).collect()
    }

    /// The events of a request, once the last of so many is there.
    async fn of(&self, id: &str, count: usize) -> Vec<String> {
        let marked = format!("\"auditID\":\"{id}\"");
        let of = || self.lines().into_iter().filter(|line| line.contains(&marked)).collect::<Vec<_>>();
        until(&format!("{count} events of {id}"), || of().len() >= count).await;
        assert_eq!(of().len(), count, "{id}");
        of()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

/// Events without what is of the moment, one a line.
fn shown(events: &[String]) -> String {
    let mut text = String::new();
    for event in events {
        let mut rest = event.as_str();
        for key in ["requestReceivedTimestamp\":\"", "stageTimestamp\":\""] {
            let (before, after) = rest.split_once(key).unwrap();
            let (time, after) = after.split_at("2026-11-21T11:04:20.818553Z".len());
            assert!(time.ends_with('Z') && time.as_bytes()[19] == b'.', "{time}");
            text.push_str(before);
            text.push_str(key);
            text.push_str("TIME");
            rest = after;
        }
        text.push_str(rest);
        text.push('\n');
    }
    text
}

/// Who may, and why.
fn judged(gateway: &TestGateway) {
    gateway.cluster.judge(|user, asked| match asked.path.as_str() {
        path if path.contains("/secret") => Ok(deny("not <you>")),
        _ if asked.verb == "impersonate" && user.name == "bob" => Ok(deny("")),
        _ => Ok(podgate::cluster::Decision {
            allowed: true,
            reason: format!(
                "RBAC: allowed by RoleBinding \"b/default\" of Role \"r\" to User \"{}\"",
                user.name
            ),
        }),
    });
}

async fn audited() -> (Rig, Log) {
    let (mut config, log) = logged();
    config.api.max_headers = 20;
    let rig = rig_with(config).await;
    judged(&rig.gateway);
    (rig, log)
}

const POD: &str = "/api/v1/namespaces/default/pods/web";

#[tokio::test]
async fn item_111_a_session_has_three_events_with_one_id_and_code_101() {
    let (rig, log) = audited().await;
    let mut client = rig.gateway.connect_as("ana").await;
    let head = "Audit-ID: session\r\nUser-Agent: kubectl/v1.34.0\r\nX-Forwarded-For: 192.0.2.7\r\n";
    let query = "command=sh&command=-c&command=echo%20%3Ca%3E&container=app&stdin=true&stdout=true&tty=true";
    send(&mut client, &exec_request(query, head)).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    // The 101 is there, and so is what says so; the session is not over.
    assert_eq!(log.of("session", 2).await.len(), 2);
    drop(client);
    let events: Vec<_> = log.of("session", 3).await.into_iter().map(without_counts).collect();
    golden::check("audit/session.jsonl", &shown(&events));
    rig.gateway.stop().await;
}

/// The bytes of a session that hardly was one are nobody's business.
fn without_counts(line: String) -> String {
    let Some((before, after)) = line.split_once("\"podgate.dev/bytes-stderr\"") else { return line };
    let (_, rest) = after.split_once("\"podgate.dev/client-protocol\"").unwrap();
    format!("{before}\"podgate.dev/client-protocol\"{rest}")
}

#[tokio::test]
async fn item_112_an_echoed_refusal_is_101_with_the_real_code_beside_it() {
    let (config, log) = logged();
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").await;
    })
    .await;
    let gateway = TestGateway::facing(&far, config, pki).await;
    judged(&gateway);
    let answer = gateway.ask(&exec_request("command=id&stdout=1", "Audit-ID: echoed\r\n")).await;
    assert_eq!(answer.code(), 404);
    golden::check("audit/echoed.jsonl", &shown(&log.of("echoed", 3).await));
    gateway.stop().await;
}

#[tokio::test]
async fn item_114_every_kind_of_answer_has_its_events() {
    let (rig, log) = audited().await;
    let get = |path: &str, id: &str, more: &str| {
        request(&format!("GET {path}"), &format!("Audit-ID: {id}\r\n{more}"))
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let cases = [
        ("forwarded", get("/api/v1/namespaces/default/pods?limit=500&a=%3Cb%3E", "forwarded", ""), 200, 2),
        ("path", get("/version", "path", ""), 200, 2),
        (
            "missing-pod",
            get("/api/v1/namespaces/default/pods/none/exec?command=id", "missing-pod", upgrade),
            404,
            3,
        ),
        ("no-upgrade", get(&format!("{POD}/exec?command=id"), "no-upgrade", ""), 400, 3),
        (
            "forbidden",
            get("/api/v1/namespaces/secret/pods/web/exec?command=id", "forbidden", upgrade),
            403,
            3,
        ),
        (
            "wrong-method",
            request(&format!("PUT {POD}/exec?command=id"), "Audit-ID: wrong-method\r\n"),
            405,
            3,
        ),
        (
            "impersonated",
            get("/version", "impersonated", "Impersonate-User: jane\r\nImpersonate-Group: dev\r\n"),
            200,
            2,
        ),
        ("panic", get("/panic", "panic", ""), 500, 2),
        ("malformed", get("/a%zz", "malformed", ""), 400, 1),
    ];
    for (name, bytes, code, count) in cases {
        assert_eq!(rig.gateway.ask(&bytes).await.code(), code, "{name}");
        golden::check(&format!("audit/{name}.jsonl"), &shown(&log.of(name, count).await));
    }
    let mut bob = rig.gateway.connect_as("bob").await;
    send(&mut bob, &get("/version", "no-impersonation", "Impersonate-User: jane\r\n")).await;
    assert_eq!(Answer::read(&mut bob).await.unwrap().code(), 403);
    golden::check("audit/no-impersonation.jsonl", &shown(&log.of("no-impersonation", 2).await));
    let mut nobody = rig.gateway.connect_anonymously().await;
    send(&mut nobody, &get("/version", "unauthorized", "Authorization: Bearer wrong\r\n")).await;
    assert_eq!(Answer::read(&mut nobody).await.unwrap().code(), 401);
    golden::check("audit/unauthorized.jsonl", &shown(&log.of("unauthorized", 1).await));
    // Nobody wants to read about those.
    assert_eq!(rig.gateway.ask(&get("/readyz", "health", "")).await.code(), 200);
    assert_eq!(rig.gateway.ask(&get("/version", "after-health", "")).await.code(), 200);
    log.of("after-health", 2).await;
    log.of("health", 0).await;
    assert!(log.lines().iter().all(|line| !line.contains("wrong\"")), "no token is written");
    rig.stop_untouched().await;
}

#[tokio::test]
async fn what_is_no_request_is_written_as_far_as_it_is_known() {
    let (rig, log) = audited().await;
    for (bytes, code) in [
        (request("GET /version", &"X-A: b\r\n".repeat(20)), 431),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n".to_vec(), 400),
    ] {
        assert_eq!(rig.gateway.ask(&bytes).await.code(), code);
        let of =
            || log.lines().into_iter().filter(|line| line.contains(&format!("\"code\":{code}"))).collect();
        let mut found: Vec<String> = Vec::new();
        until("its event", || {
            found = of();
            !found.is_empty()
        })
        .await;
        let event: Value = serde_json::from_str(&found[0]).unwrap();
        assert_eq!((&event["stage"], &event["user"]), (&"ResponseStarted".into(), &serde_json::json!({})));
        assert_eq!(event["sourceIPs"], serde_json::json!(["127.0.0.1"]));
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn item_113_without_an_id_of_the_clients_own_one_is_made_and_told() {
    let (rig, log) = audited().await;
    for head in ["", "Audit-ID:\r\n", "Audit-ID: \u{e9}\r\n"] {
        let answer = rig.gateway.ask(&request("GET /version", head)).await;
        let id = answer.header("audit-id").unwrap().to_owned();
        assert_eq!(id.len(), "00000000-0000-0000-0000-000000000000".len(), "{head:?}");
        log.of(&id, 2).await;
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_watch_begins_and_ends() {
    let (rig, log) = audited().await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /api/v1/pods?watch=1", "Audit-ID: watch\r\n")).await;
    soon("the first event of the watch", async {
        let mut seen = Vec::new();
        while !seen.ends_with(b"first\n\r\n") {
            seen.push(client.read_u8().await.unwrap());
        }
    })
    .await;
    assert_eq!(log.of("watch", 2).await.len(), 2);
    drop(client);
    golden::check("audit/watch.jsonl", &shown(&log.of("watch", 3).await));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_client_that_left_before_the_answer_is_written_as_upstream_writes_it() {
    let (rig, log) = audited().await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /hang", "Audit-ID: left\r\n")).await;
    log.of("left", 1).await;
    drop(client);
    golden::check("audit/left.jsonl", &shown(&log.of("left", 2).await));
    rig.stop_untouched().await;
}

#[tokio::test]
async fn limits_of_podgates_own_are_written_like_any_answer() {
    let (mut config, log) = logged();
    config.api.max_in_flight = 1;
    config.api.request_timeout = Duration::from_secs(2);
    let rig = rig_with(config).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /hang", "Audit-ID: timeout\r\n")).await;
    until("the request to hang", || !rig.gateway.cluster.served().is_empty()).await;
    assert_eq!(rig.gateway.ask(&request("GET /version", "Audit-ID: busy\r\n")).await.code(), 429);
    assert_eq!(Answer::read(&mut client).await.unwrap().code(), 504);
    golden::check("audit/busy.jsonl", &shown(&log.of("busy", 2).await));
    golden::check("audit/timeout.jsonl", &shown(&log.of("timeout", 2).await));
    rig.stop_untouched().await;
}

/// A gateway that sends what is no session on to this API server.
async fn forwarding(config: &Config, api: &ApiServer) -> TestGateway {
    let (pki, drain) = (Arc::new(Pki::new()), Drain::new());
    let ground = TestGateway::ground(&pki, FakeCluster::new());
    let (metrics, background) = (ground.metrics.clone(), ground.background.clone());
    let settings = kube::Settings {
        review_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        allowed_for: Duration::ZERO,
        denied_for: Duration::ZERO,
        confirmed_for: Duration::ZERO,
        max_waiting: 64,
        watch: false,
        forward: forward::Settings {
            max_body_bytes: 3000,
            stall_timeout: Duration::from_secs(60),
            max_bytes_per_second: 0,
        },
    };
    let cluster = KubeCluster::start(api.connection(&background), &settings, &drain, &background, &metrics);
    let reloader = Reloader::new(config.reload.period, background.clone(), metrics.clone());
    let audit = Audit::start(&config.audit, &reloader, &background, &metrics).await.unwrap();
    let ground = Ground { cluster, audit, ..ground };
    let gateway = Gateway::start(config, ground, drain).await.unwrap();
    TestGateway { gateway, pki, cluster: FakeCluster::new() }
}

fn post(path: &str, id: &str, media: &str, body: &str) -> Vec<u8> {
    let head = format!("Audit-ID: {id}\r\nContent-Type: {media}\r\nContent-Length: {}\r\n", body.len());
    [request(&format!("POST {path}"), &head), body.as_bytes().to_vec()].concat()
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn what_is_forwarded_is_written_as_far_as_the_policy_says() {
    let (mut config, log) = logged();
    let policy = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
                  - {level: RequestResponse, userGroups: [dev], verbs: [create]}\n- {level: Metadata}\n";
    config.audit.policy_file = Some(log.write("policy.yaml", policy));
    config.audit.max_object_bytes = 200;
    let api = ApiServer::start().await;
    let gateway = forwarding(&config, &api).await;
    let object = "{\"kind\": \"ConfigMap\",\n \"apiVersion\": \"v1\", \"metadata\": {\"name\": \"a\", \
                  \"managedFields\": [{\"manager\": \"m\"}]}, \"data\": {\"k\": \"<v>\\n\"}}";
    let large = format!("{{\"metadata\":{{\"name\":\"large\"}},\"data\":\"{}\"}}", "x".repeat(300));
    let cases = [
        ("not-found", request("GET /api/v1/namespaces/default/pods/none", "Audit-ID: not-found\r\n"), 404),
        ("created", post(CONFIG_MAPS, "created", "application/json", object), 201),
        ("large-object", post(CONFIG_MAPS, "large-object", "application/json", &large), 201),
        ("protobuf", post(CONFIG_MAPS, "protobuf", "application/vnd.kubernetes.protobuf", "k8s"), 201),
        ("too-large", post(CONFIG_MAPS, "too-large", "application/json", &"x".repeat(4000)), 413),
    ];
    for (name, bytes, code) in cases {
        assert_eq!(gateway.ask(&bytes).await.code(), code, "{name}");
        golden::check(&format!("audit/{name}.jsonl"), &shown(&log.of(name, 1).await));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_is_passed_through_lasts_as_long_as_its_connection() {
    let (config, log) = logged();
    let api = ApiServer::start().await;
    let gateway = forwarding(&config, &api).await;
    let mut client = gateway.connect_as("ana").await;
    let path = "/api/v1/namespaces/default/services/web/proxy/socket";
    let head = "Audit-ID: tunnel\r\nConnection: Upgrade\r\nUpgrade: echo\r\n";
    send(&mut client, &request(&format!("GET {path}"), head)).await;
    soon("the 101", async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
    })
    .await;
    send(&mut client, b"hello").await;
    assert_eq!(read_exactly(&mut client, 5).await, b"hello");
    assert_eq!(log.of("tunnel", 2).await.len(), 2);
    drop(client);
    golden::check("audit/tunnel.jsonl", &shown(&log.of("tunnel", 3).await));
    gateway.stop().await;
}

#[tokio::test]
async fn a_policy_that_changes_is_used_and_one_that_is_none_is_not() {
    let (mut config, log) = logged();
    let policy =
        |level: &str| format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n- level: {level}\n");
    config.audit.policy_file = Some(log.write("policy.yaml", &policy("Metadata")));
    let rig = rig_with(config).await;
    let ask = async |id: &str| {
        rig.gateway.ask(&request("GET /version", &format!("Audit-ID: {id}\r\n"))).await.code()
    };
    let reloads = |outcome: &str| {
        rig.gateway
            .metric(&format!("podgate_reloads_total{{outcome=\"{outcome}\",what=\"audit.policyFile\"}}"))
    };
    assert_eq!(ask("before").await, 200);
    log.of("before", 2).await;
    log.write("policy.yaml", &policy("Everything"));
    until("a look at the broken policy", || reloads("failed") > 0.0).await;
    assert_eq!(ask("broken").await, 200);
    log.of("broken", 2).await;
    log.write("policy.yaml", &policy("None"));
    until("a look at the new policy", || reloads("reloaded") > 0.0).await;
    assert_eq!(ask("after").await, 200);
    log.write("policy.yaml", &policy("Request"));
    until("a look at the last policy", || reloads("reloaded") > 1.0).await;
    assert_eq!(ask("last").await, 200);
    assert!(log.of("last", 2).await[0].contains("\"level\":\"Request\""));
    log.of("after", 0).await;
    rig.stop_untouched().await;
}

/// Settings with a webhook.
async fn hooked() -> (Config, ApiServer, TempDir) {
    let (folder, hook, mut config) = (tempfile::tempdir().unwrap(), ApiServer::start().await, config());
    let webhook = &mut config.audit.webhook;
    webhook.kubeconfig = Some(hook.write_webhook(folder.path()));
    webhook.batch_wait = Duration::ZERO;
    webhook.timeout = Duration::from_secs(2);
    webhook.max_batches_per_second = 0;
    (config, hook, folder)
}

/// The events of a request that a webhook has.
fn of<'a>(events: &'a [Value], id: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["auditID"] == id).collect()
}

async fn code(gateway: &TestGateway, path: &str, id: &str) -> u16 {
    gateway.ask(&request(&format!("GET {path}"), &format!("Audit-ID: {id}\r\n"))).await.code()
}

fn written(gateway: &TestGateway) -> f64 {
    gateway.metric("podgate_audit_events_total{sink=\"webhook\"}")
}

fn up(gateway: &TestGateway) -> bool {
    gateway.metric("podgate_audit_up{sink=\"webhook\"}") > 0.0
}

#[tokio::test]
async fn a_webhook_gets_events_in_the_api_servers_form() {
    let (config, hook, _folder) = hooked().await;
    let rig = rig_with(config).await;
    assert_eq!(code(&rig.gateway, "/version", "one").await, 200);
    until("both events", || of(&hook.events(), "one").len() == 2).await;
    let posted: Vec<_> = hook.asked().into_iter().filter(|asked| asked.path == "/audit").collect();
    let list = &posted[0].body;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&"EventList".into(), &"audit.k8s.io/v1".into()));
    assert_eq!(list["items"][0].get("kind"), None);
    assert_eq!(posted[0].headers["content-type"], "application/json");
    assert_eq!(posted[0].headers["authorization"], "Bearer podgates-own");
    assert_eq!(of(&hook.events(), "one")[1]["responseStatus"]["code"], 200);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn while_a_webhook_is_down_nobody_is_let_in_and_whoever_is_in_goes_on() {
    let (config, hook, _folder) = hooked().await;
    let rig = rig_with(config).await;
    let mut session = rig.gateway.connect_as("ana").await;
    send(&mut session, &exec_request("command=cat&stdin=1&stdout=1", "Audit-ID: session\r\n")).await;
    read_exactly(&mut session, SWITCHING.len()).await;
    until("both events to be written", || written(&rig.gateway) == 2.0).await;

    hook.faults(|faults| faults.fails = true);
    assert_eq!(code(&rig.gateway, "/version", "first").await, 200, "nobody knows yet");
    until("the webhook to be down", || !up(&rig.gateway)).await;
    let refused = rig.gateway.ask(&request("GET /version", "Audit-ID: refused\r\n")).await;
    assert_eq!(refused.code(), 503);
    assert!(refused.body.contains("the audit log cannot be written"), "{}", refused.body);
    assert_eq!(rig.gateway.ask(&exec_request("command=id&stdout=1", "")).await.code(), 503);
    assert_eq!(code(&rig.gateway, "/readyz", "health").await, 200);
    assert_eq!(rig.gateway.admin("GET /readyz").await.code(), 500, "others are to be asked instead");
    assert_eq!(rig.gateway.metric("podgate_audit_refused_requests_total"), 2.0);
    assert_eq!(rig.gateway.metric("podgate_audit_lost_events_total{sink=\"webhook\"}"), 0.0);
    // A frame that the far side says back.
    let ping = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01";
    send(&mut session, ping).await;
    assert_eq!(read_exactly(&mut session, ping.len()).await, ping);
    drop(session);
    until("the session to end", || rig.gateway.metric("podgate_sessions") == 0.0).await;

    hook.faults(|faults| faults.fails = false);
    until("the webhook to be up", || up(&rig.gateway)).await;
    until("the last event", || {
        of(&hook.events(), "session").last().is_some_and(|e| e["stage"] == "ResponseComplete")
    })
    .await;
    assert_eq!(code(&rig.gateway, "/version", "again").await, 200);
    until("its events", || of(&hook.events(), "again").len() == 2).await;
    let events = hook.events();
    assert!(of(&events, "refused").is_empty());
    let gaps: Vec<_> = events.iter().filter(|event| event["user"]["username"] == "podgate").collect();
    let told = |key: &str| gaps[0]["annotations"][format!("podgate.dev/{key}")].clone();
    assert_eq!((gaps.len(), told("gap-events"), told("gap-refused-requests")), (1, "0".into(), "2".into()));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn ten_thousand_requests_with_a_dead_webhook_cost_no_more_than_their_room() {
    const REQUESTS: usize = 10_000;
    const ROOM: usize = 500;
    let (mut config, hook, _folder) = hooked().await;
    config.audit.when_down = WhenDown::Continue;
    config.audit.queue_events = ROOM;
    hook.stop().await;
    let rig = rig_with(config).await;
    let (mut client, one) = (rig.gateway.connect_as("ana").await, request("GET /version", ""));
    for _ in 0..REQUESTS / 100 {
        send(&mut client, &one.repeat(100)).await;
        let (mut answers, mut bytes) = (Vec::new(), [0; 64 * 1024]);
        while String::from_utf8_lossy(&answers).matches("HTTP/1.1 200 OK").count() < 100 {
            let read = soon("answers", client.read(&mut bytes)).await.unwrap();
            assert_ne!(read, 0, "the gateway still answers");
            answers.extend_from_slice(&bytes[..read]);
        }
    }
    drop(client);
    let waiting = rig.gateway.metric("podgate_audit_queue_events{sink=\"webhook\"}");
    let bytes = rig.gateway.metric("podgate_audit_queue_bytes{sink=\"webhook\"}");
    let lost = rig.gateway.metric("podgate_audit_lost_events_total{sink=\"webhook\"}");
    assert!(waiting <= ROOM as f64 && bytes <= (ROOM * 1000) as f64, "{waiting} events of {bytes} bytes");
    assert_eq!(waiting + lost, 2.0 * REQUESTS as f64);

    hook.restart().await;
    let gap = |event: &Value| event["annotations"]["podgate.dev/gap-events"].as_str().map(str::to_owned);
    until("the gap to be told", || hook.events().iter().any(|event| gap(event).is_some())).await;
    until("the rest", || hook.events().len() as f64 > waiting).await;
    let gaps: Vec<_> = hook.events().iter().filter_map(gap).collect();
    assert_eq!(gaps, [lost.to_string()]);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_says_that_others_are_to_be_asked() {
    let (mut config, hook, _folder) = hooked().await;
    config.audit.queue_events = 4;
    config.audit.flush_timeout = Duration::from_millis(200);
    hook.faults(|faults| faults.hangs = true);
    let rig = rig_with(config).await;
    assert_eq!(rig.gateway.admin("GET /readyz").await.code(), 200);
    for (id, expected) in [("first", 200), ("second", 200), ("third", 503)] {
        assert_eq!(code(&rig.gateway, "/version", id).await, expected);
    }
    assert_eq!(rig.gateway.admin("GET /readyz").await.code(), 500);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn blocking_a_request_goes_on_when_its_event_is_written() {
    let (mut config, hook, _folder) = hooked().await;
    config.audit.mode = Mode::Blocking;
    config.audit.blocking_timeout = Duration::from_secs(20);
    let rig = rig_with(config).await;
    hook.faults(|faults| faults.hangs = true);
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /version", "Audit-ID: waits\r\n")).await;
    until("the event at the webhook", || of(&hook.events(), "waits").len() == 1).await;
    assert!(rig.gateway.cluster.served().is_empty(), "the webhook has not said that it has it");
    hook.faults(|faults| faults.hangs = false);
    assert_eq!(Answer::read(&mut client).await.unwrap().code(), 200);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn blocking_a_client_that_leaves_before_its_session_is_written_leaves_word_of_what_may_remain() {
    for (headers, begins) in ASKED {
        let (mut config, hook, folder) = hooked().await;
        config.audit.mode = Mode::Blocking;
        config.audit.blocking_timeout = Duration::from_secs(20);
        config.audit.flush_timeout = Duration::from_millis(200);
        let policy = folder.path().join("policy.yaml");
        let rules = "rules: [{level: Metadata, omitStages: [RequestReceived]}]";
        std::fs::write(&policy, format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}\n")).unwrap();
        config.audit.policy_file = Some(policy);
        config.recording = recording_into(folder.path()).recording;
        let pki = Arc::new(Pki::new());
        let far = Far::start(&pki, move |mut io| async move {
            send(&mut io, if begins { WS_SWITCHING } else { SWITCHING }).await;
            let _ = io.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let gateway = TestGateway::facing(&far, config, pki).await;
        hook.faults(|faults| faults.hangs = true);
        let mut client = gateway.connect_as("ana").await;
        let line = "GET /api/v1/namespaces/default/pods/web/exec?command=id&stdout=1";
        send(&mut client, &request(line, &format!("{headers}Audit-ID: blind\r\n"))).await;
        // The far side has agreed by then.
        until("the event at the webhook", || of(&hook.events(), "blind").len() == 1).await;
        drop(client);
        let ending = only(&folder.path().join("spool"), &folder.path().join("key.pem")).await.ending;
        assert_eq!((ending.reason.as_str(), ending.process_may_remain), ("client_lost", begins));
        let remain = gateway.metric("podgate_processes_may_remain_total");
        assert_eq!(remain, f64::from(u8::from(begins)));
        gateway.stop().await;
    }
}

#[tokio::test]
async fn blocking_a_webhook_that_hangs_refuses_or_is_passed_over() {
    for (when_down, expected) in [(WhenDown::Refuse, 503), (WhenDown::Continue, 200)] {
        let (mut config, hook, _folder) = hooked().await;
        config.audit.mode = Mode::Blocking;
        config.audit.when_down = when_down;
        config.audit.blocking_timeout = Duration::from_millis(200);
        config.audit.flush_timeout = Duration::from_millis(200);
        hook.faults(|faults| faults.hangs = true);
        let rig = rig_with(config).await;
        assert_eq!(code(&rig.gateway, "/version", "late").await, expected);
        assert_eq!(rig.gateway.cluster.served().len(), usize::from(expected == 200));
        rig.stop_untouched().await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_whoever_comes_after_it() {
    let mut config = config();
    config.audit.file.path = Some("/dev/full".into());
    config.audit.flush_timeout = Duration::from_millis(100);
    let rig = rig_with(config).await;
    assert_eq!(code(&rig.gateway, "/version", "first").await, 200, "nobody knows yet");
    until("the file to be down", || rig.gateway.metric("podgate_audit_up{sink=\"file\"}") == 0.0).await;
    assert_eq!(code(&rig.gateway, "/version", "second").await, 503);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn blocking_with_a_full_disk_lets_nobody_in_at_all() {
    let mut config = config();
    config.audit.file.path = Some("/dev/full".into());
    config.audit.mode = Mode::Blocking;
    config.audit.blocking_timeout = Duration::from_millis(200);
    config.audit.flush_timeout = Duration::from_millis(100);
    let rig = rig_with(config).await;
    assert_eq!(code(&rig.gateway, "/version", "first").await, 503);
    assert!(rig.gateway.cluster.served().is_empty());
    rig.stop_untouched().await;
}

#[tokio::test]
async fn what_waits_at_the_end_is_still_written() {
    let (mut config, hook, _folder) = hooked().await;
    config.audit.webhook.batch_wait = Duration::from_secs(3600);
    let rig = rig_with(config).await;
    assert_eq!(code(&rig.gateway, "/version", "last").await, 200);
    assert!(hook.events().is_empty());
    rig.stop_untouched().await;
    assert_eq!(of(&hook.events(), "last").len(), 2);
}
