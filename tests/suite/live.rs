//! Live sessions as Kubernetes objects: who sees them, who ends them, and what is told about it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use podgate::drain::Drained;
use podgate::testing::answer::status;
use podgate::testing::cluster::{allow, deny};
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{STDOUT, data, opening, replies, result};
use podgate::testing::gateway::{config, exec_request, read_exactly, read_to_end, read_until, request, send};
use podgate::testing::{Answer, Far, Pki, TestGateway, soon, until};
use podgate::wire::remotecommand::Outcome;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::dev::Running;
use crate::kubectl::{Kubectl, all};
use crate::rig::{Rig, rig, rig_with};

/// What must happen within a second is given that, and what a loaded machine takes to start a kubectl or to look.
const SECOND: Duration = Duration::from_millis(1000);

const SESSIONS: &str = "/apis/podgate.dev/v1alpha1/namespaces/default/sessions";

// === with every kubectl ===

/// An exec in `default/web` that says that it runs, and then waits for the end of its input.
async fn exec(kubectl: &Kubectl) -> (Child, BufReader<tokio::process::ChildStdout>) {
    let mut command = kubectl.command(&["exec", "-i", "web", "--", "sh", "-c", "echo in; cat"]);
    let mut child = kubectl.spawn(command.stdin(Stdio::piped()));
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    soon("the first line", out.read_line(&mut line)).await.unwrap();
    assert_eq!(line, "in\n");
    (child, out)
}

async fn names(kubectl: &Kubectl) -> Vec<String> {
    let said = kubectl.run(&["get", "sessions", "-A", "-o", "name"]).await;
    said.out.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shown_in_every_form_and_selected_by_every_kubectl() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let resources = kubectl.run(&["api-resources", "--api-group=podgate.dev"]).await;
        let rows = resources.out.lines().skip(1).map(|row| row.split_whitespace().collect());
        let rows: Vec<Vec<_>> = rows.collect();
        let group = "podgate.dev/v1alpha1";
        assert_eq!(
            rows,
            [vec!["grants", group, "true", "Grant"], vec!["sessions", "sess", group, "true", "Session"]]
        );
        let (child, _out) = exec(&kubectl).await;
        let name = names(&kubectl).await.remove(0);
        let bare = name.strip_prefix("session.podgate.dev/web-").unwrap();
        assert_eq!(bare.len(), 6);
        let table = kubectl.run(&["get", "sess", "-A"]).await.out;
        let (head, row) = table.trim_end().split_once('\n').unwrap();
        let columns = ["NAMESPACE", "NAME", "USER", "POD", "CONTAINER", "COMMAND", "AGE", "IDLE", "BYTES"];
        assert_eq!(head.split_whitespace().collect::<Vec<_>>(), columns);
        let begin =
            ["default", &format!("web-{bare}"), "admin", "web", "web", "sh", "-c", "echo", "in;", "cat"];
        assert_eq!(row.split_whitespace().take(10).collect::<Vec<_>>(), begin);
        let wide = kubectl.run(&["get", "sessions", "-o", "wide"]).await.out;
        for word in ["NODE", "CLIENT", "RECORDING", "LIMITS", "node-a", "127.0.0.1:", "exec", "v4"] {
            assert!(wide.contains(word), "{word}: {wide}");
        }
        let json: Value =
            serde_json::from_str(&kubectl.run(&["get", &name, "-o", "json"]).await.out).unwrap();
        assert_eq!(json["spec"]["command"], json!(["sh", "-c", "echo in; cat"]));
        assert_eq!((&json["status"]["phase"], &json["spec"]["user"]), (&json!("Running"), &json!("admin")));
        let yaml = kubectl.run(&["get", "sessions", "-o", "yaml"]).await.out;
        assert!(yaml.contains("kind: Session") && yaml.contains("phase: Running"), "{yaml}");
        let described = kubectl.run(&["describe", &name]).await.out;
        assert!(
            described.contains("Kind:         Session") && described.contains("User:         admin"),
            "{described}"
        );
        for (selector, found) in [
            ("--selector=podgate.dev/subresource=exec,podgate.dev/pod=web", true),
            ("--selector=podgate.dev/user!=admin", false),
            ("--field-selector=spec.user=admin,status.phase=Running", true),
            ("--field-selector=spec.user=alice", false),
        ] {
            let said = kubectl.run(&["get", "sessions", "-o", "name", selector]).await;
            assert_eq!(!said.out.is_empty(), found, "{selector}: {}{}", said.out, said.err);
        }
        let unknown = kubectl.run(&["get", "sessions", "--field-selector=spec.x=y"]).await;
        assert!(unknown.err.contains("field label not supported: spec.x"), "{}", unknown.err);
        // Old ones know only what a cluster's own document says, and say that they do not.
        let explained = kubectl.run(&["explain", "sessions.spec.user"]).await;
        let (told, missing) = ("The caller.", "couldn't find resource for");
        assert!(explained.out.contains(told) || explained.err.contains(missing), "{}", explained.err);
        drop(child);
        soon("the session's end", async { while !names(&kubectl).await.is_empty() {} }).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_sessions_appear_and_go_within_a_second() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let mut watch = kubectl.spawn(&mut kubectl.command(&["get", "sessions", "-A", "-w"]));
        let mut rows = BufReader::new(watch.stdout.take().unwrap()).lines();
        // The watch has begun when it shows a session that begins after it.
        let (mut first, _) = exec(&kubectl).await;
        soon("a row", rows.next_line()).await.unwrap().unwrap();
        first.kill().await.unwrap();
        soon("its end", async { while !rows.next_line().await.unwrap().unwrap().contains("ended") {} }).await;
        let (mut child, _out) = exec(&kubectl).await;
        let shown = async {
            // Starting, then running.
            while !rows.next_line().await.unwrap().unwrap().contains(" 0s ") {}
        };
        timeout(SECOND, shown).await.expect("the session is shown");
        child.kill().await.unwrap();
        let gone = async { while !rows.next_line().await.unwrap().unwrap().contains("ended") {} };
        timeout(SECOND, gone).await.expect("the session is gone");
        watch.kill().await.unwrap();
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_session_ends_within_a_second_and_its_client_is_told_by_whom() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let (mut child, mut out) = exec(&kubectl).await;
        let name = names(&kubectl).await.remove(0);
        let mut err = child.stderr.take().unwrap();
        let closed = async {
            let (mut said, mut text) = (Vec::new(), String::new());
            out.read_to_end(&mut said).await.unwrap();
            err.read_to_string(&mut text).await.unwrap();
            (Instant::now(), text)
        };
        let started = Instant::now();
        let args = ["delete", &name];
        let deleted = kubectl.run(&args);
        let (deleted, (at, text)) = tokio::join!(deleted, soon("the end of the exec", closed));
        assert_eq!(deleted.code, Some(0), "{}", deleted.err);
        assert!(deleted.out.contains("deleted"), "{}", deleted.out);
        assert!(text.contains("this session was ended by admin"), "{text}");
        // That kubectl has to start before it deletes.
        assert!(at - started < SECOND + Duration::from_secs(3), "{:?}", at - started);
        // It has waited for the end.
        assert!(names(&kubectl).await.is_empty());
        until("the sessions' end", || running.dev.metrics().sessions.get() == 0).await;
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_without_the_right_gets_the_api_servers_forbidden() {
    let running = Running::start().await;
    for kubectl in all(&running.kubeconfig()) {
        let (mut child, _out) = exec(&kubectl).await;
        let name = names(&kubectl).await.remove(0);
        let bare = name.rsplit('/').next().unwrap();
        let scope = "in API group \"podgate.dev\" in the namespace \"default\"";
        for (args, message) in [
            (
                &["get", "sessions"][..],
                format!(
                    "sessions.podgate.dev is forbidden: User \"alice\" cannot list resource \"sessions\" {scope}"
                ),
            ),
            (
                &["delete", &name],
                format!(
                    "sessions.podgate.dev \"{bare}\" is forbidden: User \"alice\" cannot delete resource \"sessions\" {scope}"
                ),
            ),
        ] {
            let said = kubectl.run(&[&["--context", "alice"], args].concat()).await;
            assert_eq!(said.code, Some(1));
            assert_eq!(said.err.trim_end(), format!("Error from server (Forbidden): {message}"));
        }
        assert_eq!(names(&kubectl).await, [name]);
        child.kill().await.unwrap();
    }
    running.stop().await;
}

// === over HTTP ===

impl Rig {
    async fn object(&self, line: &str, headers: &str) -> (u16, Value) {
        let answer = self.gateway.ask(&request(line, headers)).await;
        (answer.code(), serde_json::from_str(&answer.body).unwrap_or_default())
    }

    /// A session of ana's that is running, and its object.
    async fn session(&self) -> (tokio_rustls::client::TlsStream<tokio::net::TcpStream>, Value) {
        let mut client = self.gateway.connect_as("ana").await;
        send(&mut client, &exec_request("command=sh&stdout=true&stdin=true", "")).await;
        assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
        let (code, list) = self.object(&format!("GET {SESSIONS}"), "").await;
        assert_eq!(code, 200);
        (client, list["items"].as_array().unwrap().last().unwrap().clone())
    }
}

fn path_of(session: &Value) -> String {
    format!("{SESSIONS}/{}", session["metadata"]["name"].as_str().unwrap())
}

#[tokio::test]
async fn every_request_is_reviewed_by_the_cluster_and_none_gets_there() {
    let rig = rig().await;
    let (client, session) = rig.session().await;
    let path = path_of(&session);
    let name = session["metadata"]["name"].as_str().unwrap().to_owned();
    rig.gateway.cluster.judge(|_, asked| {
        let ours = asked.resource.as_ref().is_some_and(|resource| resource.group == "podgate.dev");
        Ok(if ours { deny("no") } else { allow() })
    });
    for (line, review) in [
        (format!("GET {SESSIONS}"), "ana list sessions default/".to_owned()),
        (format!("GET {SESSIONS}?watch=1"), "ana watch sessions default/".to_owned()),
        (format!("GET {path}"), format!("ana get sessions default/{name}")),
        (format!("GET {path}/stream"), format!("ana get sessions/stream default/{name}")),
        (format!("DELETE {path}"), format!("ana delete sessions default/{name}")),
        (format!("DELETE {SESSIONS}"), "ana deletecollection sessions default/".to_owned()),
        ("GET /apis/podgate.dev/v1alpha1/sessions".to_owned(), "ana list sessions /".to_owned()),
        (format!("PATCH {path}"), format!("ana patch sessions default/{name}")),
    ] {
        let before = rig.gateway.cluster.reviews().len();
        let (code, said) = rig.object(&line, "").await;
        assert_eq!((code, &said["reason"]), (403, &json!("Forbidden")), "{line}");
        assert_eq!(rig.gateway.cluster.reviews()[before..], [review]);
    }
    assert_eq!(rig.gateway.cluster.served(), Vec::<String>::new());
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_deletion_takes_preconditions_dry_runs_and_selectors() {
    let rig = rig().await;
    let (mut client, session) = rig.session().await;
    let path = path_of(&session);
    let body = |body: Value| {
        let body = body.to_string();
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let delete = async |line: &str, options: Value| {
        let text = format!("DELETE {line} HTTP/1.1\r\nHost: podgate.test\r\n{}", body(options));
        let answer = rig.gateway.ask(text.as_bytes()).await;
        (answer.code(), serde_json::from_str::<Value>(&answer.body).unwrap_or_default())
    };
    let (code, said) = delete(&path, json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!((code, &said["reason"]), (409, &json!("Conflict")));
    let (code, said) = delete(&path, json!({"dryRun": ["All"]})).await;
    assert_eq!((code, &said["status"]["phase"]), (200, &json!("Running")));
    let (code, said) = delete(&format!("{SESSIONS}?labelSelector=podgate.dev/user%3Dbob"), json!({})).await;
    assert_eq!((code, &said["items"]), (200, &json!([])));
    assert_eq!(rig.object(&format!("GET {path}"), "").await.1["status"]["phase"], "Running");
    let uid = session["metadata"]["uid"].clone();
    let (code, said) = delete(&path, json!({"preconditions": {"uid": uid}})).await;
    assert_eq!((code, &said["status"]["phase"]), (200, &json!("Ending")));
    assert!(said["metadata"]["deletionTimestamp"].is_string());
    let started = Instant::now();
    read_to_end(&mut client).await;
    assert!(started.elapsed() < SECOND, "{:?}", started.elapsed());
    drop(client);
    until("the session's end", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    let ended = "podgate_sessions_ended_total{end=\"ended\",subresource=\"exec\"}";
    assert_eq!(rig.gateway.metric(ended), 1.0);
    let name = session["metadata"]["name"].as_str().unwrap();
    let gone = soon("404", async {
        loop {
            let answer = rig.gateway.ask(&request(&format!("GET {path}"), "")).await;
            if answer.code() == 404 {
                break answer;
            }
        }
    })
    .await;
    let about = format!("{{\"name\":\"{name}\",\"group\":\"podgate.dev\",\"kind\":\"sessions\"}}");
    assert_eq!(
        gone.body,
        status(404, "NotFound", &format!("sessions.podgate.dev \"{name}\" not found"), &about)
    );
    rig.gateway.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_to_sessions_is_refused_in_the_api_servers_words() {
    let rig = rig().await;
    let (client, session) = rig.session().await;
    let path = path_of(&session);
    for (line, code) in [
        (format!("POST {SESSIONS}"), 405),
        (format!("PUT {path}"), 405),
        (format!("PATCH {path}"), 405),
        ("DELETE /apis/podgate.dev/v1alpha1/sessions".to_owned(), 405),
        ("GET /apis/podgate.dev/v1alpha1/sessions/web".to_owned(), 404),
        (format!("GET {path}/nothing"), 404),
        (format!("GET {path}/stream/more"), 404),
        (format!("DELETE {path}/stream"), 405),
        (format!("GET {SESSIONS}/%2e%2e"), 400),
        (format!("GET {SESSIONS}?labelSelector=a%3Db%3Dc"), 400),
        (format!("GET {SESSIONS}?watch=1&resourceVersion=x"), 400),
        (format!("DELETE {path}?dryRun=Some"), 400),
    ] {
        let (got, said) = rig.object(&line, "").await;
        assert_eq!((got, &said["kind"]), (code, &json!("Status")), "{line}: {said}");
    }
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_watch_tells_what_is_there_what_changes_and_what_is_too_old() {
    let rig = rig().await;
    let (first, session) = rig.session().await;
    let mut watch = rig.gateway.connect_as("bob").await;
    let ask = format!("GET {SESSIONS}?watch=1&allowWatchBookmarks=1&sendInitialEvents=1&timeoutSeconds=30");
    send(&mut watch, &request(&ask, "")).await;
    let mut lines = BufReader::new(watch).lines();
    let mut event = async || {
        soon("an event", async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if line.starts_with('{') {
                    break serde_json::from_str::<Value>(&line).unwrap();
                }
            }
        })
        .await
    };
    let there = event().await;
    assert_eq!(there["type"], "ADDED");
    assert_eq!(there["object"]["metadata"]["uid"], session["metadata"]["uid"]);
    let mark = event().await;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let (second, _) = rig.session().await;
    let (added, running) = (event().await, event().await);
    assert_eq!((&added["type"], &added["object"]["status"]["phase"]), (&json!("ADDED"), &json!("Starting")));
    assert_eq!(
        (&running["type"], &running["object"]["status"]["phase"]),
        (&json!("MODIFIED"), &json!("Running"))
    );
    drop(second);
    let gone = event().await;
    assert_eq!((&gone["type"], &gone["object"]["status"]["phase"]), (&json!("DELETED"), &json!("Ended")));
    let version = gone["object"]["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(version > running["object"]["metadata"]["resourceVersion"].as_str().unwrap());
    drop(first);
    assert_eq!(event().await["type"], "DELETED");
    // Of another process, or of this one long ago.
    for version in ["1", "9007199254740000"] {
        let mut io = rig.gateway.connect_as("bob").await;
        let ask = format!("GET {SESSIONS}?watch=1&resourceVersion={version}");
        send(&mut io, &request(&ask, "Connection: close\r\n")).await;
        let said = read_to_end(&mut io).await;
        assert!(said.contains("\"type\":\"ERROR\"") && said.contains("\"code\":410"), "{said}");
    }
    drop(lines);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_that_is_being_set_up_is_listed_and_can_be_ended() {
    let pki = Arc::new(Pki::new());
    // It never answers.
    let far = Far::start(&pki, |io| async move {
        std::future::pending::<()>().await;
        drop(io);
    })
    .await;
    let rig = Rig { gateway: TestGateway::facing(&far, config(), pki).await, far };
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=sh&stdout=true", "")).await;
    let session = soon("the session", async {
        loop {
            let (_, list) = rig.object(&format!("GET {SESSIONS}"), "").await;
            if let Some(session) = list["items"].get(0) {
                break session.clone();
            }
        }
    })
    .await;
    assert_eq!(session["status"]["phase"], "Starting");
    // There is nothing to see yet.
    assert_eq!(rig.object(&format!("GET {}/stream", path_of(&session)), "").await.0, 429);
    assert_eq!(rig.object(&format!("DELETE {}", path_of(&session)), "").await.0, 200);
    let answer = soon("an answer", Answer::read(&mut client)).await.unwrap();
    let text = "pods \"web\" is forbidden: this session was ended by ana";
    assert_eq!(
        (answer.code(), answer.body),
        (403, status(403, "Forbidden", text, r#"{"name":"web","kind":"pods"}"#))
    );
    assert_eq!(rig.object(&format!("GET {SESSIONS}"), "").await.1["items"], json!([]));
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn two_who_end_a_session_at_once_end_it_once() {
    let rig = rig().await;
    let (mut client, session) = rig.session().await;
    let line = format!("DELETE {}", path_of(&session));
    let (one, other) = tokio::join!(rig.object(&line, ""), rig.object(&line, ""));
    assert!([one.0, other.0].iter().all(|code| [200, 404].contains(code)), "{one:?} {other:?}");
    read_to_end(&mut client).await;
    drop(client);
    let ended = "podgate_sessions_ended_total{end=\"ended\",subresource=\"exec\"}";
    until("the session's end", || rig.gateway.metric(ended) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_end_by_order_is_in_the_audit_log_with_who_may_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut settings) = (folder.path().join("audit.log"), config());
    settings.audit.file.path = Some(path.clone());
    let rig = rig_with(settings).await;
    rig.gateway
        .cluster
        .judge(|_, _| Ok(podgate::cluster::Decision { allowed: true, reason: "a binding".into() }));
    let (mut client, session) = rig.session().await;
    rig.object(&format!("DELETE {}", path_of(&session)), "Audit-ID: the-end\r\n").await;
    read_to_end(&mut client).await;
    drop(client);
    let events = || {
        let text = std::fs::read_to_string(&path).unwrap();
        // The last line may be on its way.
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>()
    };
    let complete = |id: &Value| {
        events().into_iter().find(|event| event["auditID"] == *id && event["stage"] == "ResponseComplete")
    };
    until("both events", || {
        complete(&json!("the-end")).is_some() && complete(&session["status"]["auditID"]).is_some()
    })
    .await;
    let ending = complete(&json!("the-end")).unwrap();
    assert_eq!(ending["verb"], "delete");
    assert_eq!(ending["objectRef"]["apiGroup"], "podgate.dev");
    assert_eq!(ending["objectRef"]["name"], session["metadata"]["name"]);
    assert_eq!(ending["annotations"]["authorization.k8s.io/reason"], "a binding");
    let ended = complete(&session["status"]["auditID"]).unwrap();
    assert_eq!(ended["annotations"]["podgate.dev/end-reason"], "ended");
    assert_eq!(ended["annotations"]["podgate.dev/end-cause"], "this session was ended by ana");
    rig.gateway.stop().await;
}

// === as it happens ===

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_sees_a_session_as_it_happens_and_how_it_ends() {
    use tokio::io::AsyncWriteExt;

    let running = Running::start().await;
    let kubectl = all(&running.kubeconfig()).remove(0);
    let (mut child, mut out) = exec(&kubectl).await;
    let name = names(&kubectl).await.remove(0);
    let flags = ["watch", &name, "--kubeconfig"];
    let mut watch = tokio::process::Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(flags)
        .arg(running.kubeconfig())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Typed until it is seen: whoever watches sees what passes from then on.
    let mut seen = watch.stdout.take().unwrap();
    let typed = async {
        loop {
            stdin.write_all(b"a\x1b]0;title\x07b\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut echoed = String::new();
    tokio::select! {
        () = typed => {}
        () = async { while out.read_line(&mut echoed).await.unwrap() > 0 {} } => panic!("the exec ended"),
        first = soon("what is echoed", seen.read_u8()) => assert_eq!(first.unwrap(), b'a'),
    }
    let deleted = kubectl.run(&["delete", &name]).await;
    assert_eq!(deleted.code, Some(0), "{}", deleted.err);
    let mut rest = String::new();
    soon("the end", seen.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.starts_with("b\n") && !rest.contains("title"), "{rest:?}");
    assert!(
        rest.ends_with("[podgate: the session is over: this session was ended by admin]\r\n"),
        "{rest:?}"
    );
    assert_eq!(soon("the exit", watch.wait()).await.unwrap().code(), Some(0));
    // One that is gone.
    let gone = tokio::process::Command::new(env!("CARGO_BIN_EXE_podgate"))
        .args(flags)
        .arg(running.kubeconfig())
        .output()
        .await
        .unwrap();
    let bare = name.rsplit('/').next().unwrap();
    let said = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert_eq!(said, format!("podgate: sessions.podgate.dev \"{bare}\" not found\n"));
    assert_eq!(gone.status.code(), Some(1));
    running.stop().await;
}

/// Bytes that a far side writes at once, and how often: more than the sockets of a watcher hold.
const PIECE: usize = 64 * 1024;
const PIECES: usize = 600;

/// A far side that opens its streams, and says this so many times, and then that, once it is told to.
async fn when_told(pki: &Pki, go: &Arc<Notify>, piece: Vec<u8>, times: usize, end: Vec<u8>) -> Far {
    let go = go.clone();
    Far::start(pki, move |mut io| {
        let (go, piece, end) = (go.clone(), piece.clone(), end.clone());
        async move {
            send(&mut io, SWITCHING).await;
            soon("the streams", io.read_exact(&mut vec![0; opening().len()])).await.unwrap();
            send(&mut io, &replies()).await;
            go.notified().await;
            for _ in 0..times {
                send(&mut io, &piece).await;
            }
            send(&mut io, &end).await;
            let _ = io.read_to_end(&mut Vec::new()).await;
        }
    })
    .await
}

#[tokio::test]
async fn a_watcher_who_does_not_read_loses_and_the_session_is_as_quick() {
    let pki = Arc::new(Pki::new());
    let go = Arc::new(Notify::new());
    let far = when_told(&pki, &go, data(STDOUT, &[b'x'; PIECE]), PIECES, result(&Outcome::Success)).await;
    let rig = Rig { gateway: TestGateway::facing(&far, config(), pki).await, far };
    let (mut client, session) = rig.session().await;
    send(&mut client, &opening()).await;
    read_exactly(&mut client, replies().len()).await;
    let mut watcher = rig.gateway.connect_as("bob").await;
    send(&mut watcher, &request(&format!("GET {}/stream", path_of(&session)), "")).await;
    let mut begin = vec![0; b"HTTP/1.1 200 OK".len()];
    soon("an answer", watcher.read_exact(&mut begin)).await.unwrap();
    assert_eq!(begin, b"HTTP/1.1 200 OK");
    go.notify_one();
    // All of it, while nobody reads what the watcher gets.
    read_exactly(&mut client, data(STDOUT, &[0; PIECE]).len() * PIECES).await;
    drop(client);
    let (mut rest, mut piece) = (Vec::new(), vec![0; PIECE]);
    let has = |rest: &[u8], word: &[u8]| rest.windows(word.len()).any(|part| part == word);
    soon("the end of the watch", async {
        while !has(&rest[rest.len().saturating_sub(2 * PIECE)..], b"\"kind\":\"end\"") {
            let count = watcher.read(&mut piece).await.unwrap();
            assert!(count > 0, "the end is told");
            rest.extend_from_slice(&piece[..count]);
        }
    })
    .await;
    assert!(has(&rest, b"\"kind\":\"lost\""), "what is missing is told");
    drop(watcher);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn while_podgate_stops_a_session_is_shown_until_it_is_cut_and_its_end_is_told() {
    let pki = Arc::new(Pki::new());
    let go = Arc::new(Notify::new());
    let far = when_told(&pki, &go, data(STDOUT, b"late"), 1, Vec::new()).await;
    let rig = Rig { gateway: TestGateway::facing(&far, config(), pki).await, far };
    let (mut client, session) = rig.session().await;
    send(&mut client, &opening()).await;
    read_exactly(&mut client, replies().len()).await;
    let mut list = rig.gateway.connect_as("bob").await;
    send(&mut list, &request(&format!("GET {SESSIONS}?watch=1"), "")).await;
    read_until(&mut list, "ADDED").await;
    let mut shown = rig.gateway.connect_as("bob").await;
    send(&mut shown, &request(&format!("GET {}/stream", path_of(&session)), "")).await;
    read_until(&mut shown, "\"kind\":\"session\"").await;

    rig.gateway.gateway.drain.stop();
    read_until(&mut list, "0\r\n\r\n").await;
    go.notify_one();
    read_until(&mut shown, "bGF0ZQ==").await;
    rig.gateway.gateway.drain.cut();
    read_until(&mut shown, "\"message\":\"podgate was stopped before the session ended\"").await;
    read_until(&mut shown, "0\r\n\r\n").await;
    drop((client, list, shown));
    let drained = rig.gateway.gateway.stop(Duration::ZERO).await;
    assert!(!matches!(drained, Drained::Stuck(_)), "{drained:?}");
}
