mod attach;
mod websocket;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;

use bytes::BytesMut;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStatus,
};
use k8s_openapi::api::core::v1::{EphemeralContainer, PodSpec, PodStatus};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream as ClientStream;

use super::*;
use crate::drain::Drained;
use crate::testing::spdy::{self, Answer, Client};
use crate::testing::{Pki, soon, until};
use crate::tls::{self, Clients, Identity};
use crate::wire::remotecommand::StreamType::{Error as Result_, Resize, Stderr, Stdin, Stdout};
use crate::wire::remotecommand::{Outcome, StreamType};
use crate::wire::spdy::{Encoder, Headers, RstStatus};

const PLAIN: &str = "input=1&output=1&error=1";
const V4: &str = "X-Stream-Protocol-Version: v4.channel.k8s.io";

/// One pod `shop/cart-0` on node `one`.
struct One(Arc<Pod>);

impl Pods for One {
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        (namespace == "shop" && ["cart-0", "elsewhere"].contains(&name)).then(|| {
            let mut pod = self.0.clone();
            if name == "elsewhere" {
                let spec = Arc::make_mut(&mut pod).spec.as_mut().unwrap();
                spec.node_name = Some("two".to_owned());
            }
            pod
        })
    }
}

fn container(name: &str) -> Container {
    let variable = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    };
    Container {
        name: name.to_owned(),
        env: Some(vec![variable("GREETING", "hello")]),
        working_dir: Some("deep/er".to_owned()),
        ..Container::default()
    }
}

fn pod() -> Pod {
    let status = |name: &str, ended: bool| ContainerStatus {
        name: name.to_owned(),
        state: Some(ContainerState {
            running: (!ended).then(ContainerStateRunning::default),
            terminated: ended.then(ContainerStateTerminated::default),
            ..ContainerState::default()
        }),
        ..ContainerStatus::default()
    };
    Pod {
        spec: Some(PodSpec {
            node_name: Some("one".to_owned()),
            containers: vec![container("app")],
            init_containers: Some(vec![container("init-done"), container("init-runs")]),
            ephemeral_containers: Some(vec![EphemeralContainer {
                name: "debug".to_owned(),
                ..EphemeralContainer::default()
            }]),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            init_container_statuses: Some(vec![status("init-done", true), status("init-runs", false)]),
            ..PodStatus::default()
        }),
        ..Pod::default()
    }
}

struct Harness {
    addr: SocketAddr,
    pki: Pki,
    drain: Drain,
    dir: TempDir,
}

type Io = ClientStream<TcpStream>;

impl Harness {
    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        Self::of(Arc::new(One(Arc::new(pod()))), settings).await
    }

    async fn of(pods: Arc<dyn Pods>, settings: Settings) -> Self {
        let (pki, dir, drain) = (Pki::new(), tempfile::tempdir().unwrap(), Drain::new());
        let tls = tls::server(&pki.server(), &[tls::HTTP1], Clients::Require(pki.roots())).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = Endpoint::bind(any, tls, "one", pods, dir.path(), settings).await.unwrap();
        let addr = endpoint.local_addr();
        drain.spawn(endpoint.run(drain.clone()));
        Self { addr, pki, drain, dir }
    }

    async fn dial(&self) -> Io {
        self.dial_as(&self.pki.client("podgate", &[])).await.unwrap()
    }

    async fn dial_as(&self, identity: &Identity) -> io::Result<Io> {
        let config = tls::client(Some(identity), self.pki.roots(), false).unwrap();
        let tcp = TcpStream::connect(self.addr).await?;
        TlsConnector::from(config).connect(ServerName::from(self.addr.ip()), tcp).await
    }

    async fn ask(&self, target: &str, headers: &[&str]) -> Answer<Io> {
        let mut request = format!("POST {target} HTTP/1.1\r\nHost: node");
        for header in headers {
            request.push_str("\r\n");
            request.push_str(header);
        }
        soon("an answer", spdy::connect(self.dial().await, &request)).await
    }

    async fn upgrade(&self, target: &str, protocol: &str) -> Answer<Io> {
        self.ask(target, &["Connection: Upgrade", "Upgrade: SPDY/3.1", protocol]).await
    }

    /// A shell command on pipes, or on a terminal when `query` says so, with the streams kubectl opens.
    async fn shell(&self, query: &str, script: &str) -> Client<Io> {
        self.exec(query, &["sh", "-c", script]).await
    }

    async fn exec(&self, query: &str, argv: &[&str]) -> Client<Io> {
        let mut client = self.upgrade(&target("app", query, argv), V4).await.client();
        let has = |flag| query.split('&').any(|pair| pair == flag);
        let mut kinds = vec![Result_];
        kinds.extend(has("input=1").then_some(Stdin));
        kinds.extend(has("output=1").then_some(Stdout));
        kinds.extend((has("error=1") && !has("tty=1")).then_some(Stderr));
        kinds.extend(has("tty=1").then_some(Resize));
        client.open(&kinds).await;
        client
    }

    /// Fails when a task, and with it a process that was not reaped, is left.
    async fn stop(self) {
        assert_eq!(self.drain.finish(Duration::from_secs(20)).await, Drained::Clean);
    }
}

fn target(container: &str, query: &str, argv: &[&str]) -> String {
    let mut target = format!("/exec/shop/cart-0/{container}?{query}");
    for arg in argv {
        target.push_str("&command=");
        for byte in arg.bytes() {
            target.push_str(&format!("%{byte:02x}"));
        }
    }
    target
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// Alive, not a zombie. Zombies of ours would be children that were not reaped; others are init's to reap.
fn is_alive(pid: &str) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    !stat.contains(") Z ") && !stat.contains(") X ")
}

fn is_gone(pid: &str) -> bool {
    !Path::new("/proc").join(pid).exists()
}

/// Waits for the process ids that a script prints on one line.
async fn pids(client: &mut Client<Io>) -> Vec<String> {
    client.until(Stdout, "\n").await;
    text(client.seen().data(Stdout)).split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn output_of_both_streams_and_the_exit_code_come_back() {
    let node = Harness::start().await;
    let client = node.shell("output=1&error=1", "echo out; echo err >&2; exit 7").await;
    assert_eq!(client.head.values("Connection").next(), Some(&b"Upgrade"[..]));
    assert_eq!(client.head.values("Upgrade").next(), Some(&b"SPDY/3.1"[..]));
    assert_eq!(client.head.values("Date").count(), 1);
    assert!(client.head.headers.iter().any(|(name, _)| name == "X-Stream-Protocol-Version"));
    let done = client.finish().await;
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("out\n", "err\n"));
    assert_eq!(
        text(&done.error),
        "{\"metadata\":{},\"status\":\"Failure\",\"message\":\"command terminated with non-zero exit code: \
         error executing command [sh -c echo out; echo err \\u003e\\u00262; exit 7], exit code 7\",\
         \"reason\":\"NonZeroExitCode\",\"details\":{\"causes\":[{\"reason\":\"ExitCode\",\"message\":\"7\"}]}}"
    );
    assert!(done.seen.fin(Stdout) && done.seen.fin(Stderr) && done.seen.goaway);
    assert_eq!(done.seen.reset("error"), Some(RstStatus::CANCEL));
    node.stop().await;
}

#[tokio::test]
async fn eight_mebibytes_through_cat_are_the_same() {
    let node = Harness::start().await;
    let mut client = node.exec(PLAIN, &["cat"]).await;
    let sent: Vec<u8> =
        (0..8 * 1024 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    client.write(&sent).await;
    client.close_stdin().await;
    let done = client.finish().await;
    assert!(done.stdout == sent);
    assert_eq!(text(&done.error), r#"{"metadata":{},"status":"Success"}"#);
    assert_eq!(done.seen.reset("stdin"), Some(RstStatus::CANCEL));
    node.stop().await;
}

#[tokio::test]
async fn a_container_has_its_own_folder_and_a_clean_environment() {
    let node = Harness::start().await;
    let done = node.shell("output=1", "pwd; env | sort").await.finish().await;
    let home = node.dir.path().join("shop/cart-0/app");
    let home = home.to_str().unwrap();
    let mut lines: Vec<_> = text(&done.stdout).lines().filter(|line| !line.starts_with("PATH=")).collect();
    lines.retain(|line| {
        !line.starts_with("_=") && !line.starts_with("SHLVL=") && !line.starts_with("OLDPWD=")
    });
    let pwd = format!("{home}/deep/er");
    let set = [format!("HOME={home}"), format!("PWD={pwd}")];
    assert_eq!(lines, [&pwd, "GREETING=hello", &set[0], "HOSTNAME=cart-0", &set[1]]);
    let mode = std::fs::metadata(home).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    node.stop().await;
}

#[tokio::test]
async fn arguments_are_passed_as_bytes() {
    let node = Harness::start().await;
    let target = "/exec/shop/cart-0/app?output=1&command=printf&command=%25s&command=%ff+a%2Bb";
    let mut client = node.upgrade(target, V4).await.client();
    client.open(&[Result_, Stdout]).await;
    assert_eq!(client.finish().await.stdout, b"\xff a+b");
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_follows_the_client_s_size_and_eof_ends_its_input() {
    let node = Harness::start().await;
    let mut client =
        node.shell("input=1&output=1&error=1&tty=1", "read x; stty size; tty; cat; echo $TERM").await;
    client.resize(0, 5).await;
    client.resize(132, 43).await;
    client.write(b"go\n").await;
    client.until(Stdout, "43 132").await;
    client.until(Stdout, "/dev/").await;
    client.resize(80, 24).await;
    client.write(b"half a line").await;
    client.close_stdin().await;
    client.until(Stdout, "xterm").await;
    let done = client.finish().await;
    assert_eq!(done.result.unwrap(), Outcome::Success);
    assert_eq!(done.seen.reset("resize"), Some(RstStatus::CANCEL));
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_s_signals_and_job_control_work() {
    let node = Harness::start().await;
    // Waits in short steps: a key that comes just in front of a long one would be heeded behind it.
    let script = "trap 'echo caught; caught=1' INT; echo up; until [ \"$caught\" ]; do sleep 0.05; done; read x; exit 4";
    let mut client = node.shell("input=1&output=1&tty=1", script).await;
    client.until(Stdout, "up").await;
    client.write(b"\x03").await;
    client.until(Stdout, "caught").await;
    client.write(b"\n").await;
    let Outcome::Exit { code, .. } = client.finish().await.result.unwrap() else { panic!("an exit code") };
    assert_eq!(code, 4);
    node.stop().await;
}

#[tokio::test]
async fn a_signal_gives_128_and_its_number() {
    let node = Harness::start().await;
    let done = node.shell("output=1", "kill -KILL $$").await.finish().await;
    assert!(matches!(done.result.unwrap(), Outcome::Exit { code: 137, .. }));
    let done = node.shell("output=1", "exit 255").await.finish().await;
    assert!(matches!(done.result.unwrap(), Outcome::Exit { code: 255, .. }));
    node.stop().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_told_in_the_runtime_s_words() {
    let node = Harness::start().await;
    let script = node.dir.path().join("script");
    std::fs::write(&script, "").unwrap();
    let script = script.to_str().unwrap().to_owned();
    let start = "unable to start container process: exec: ";
    for (argv, why) in [
        (vec!["nope"], format!("{start}\"nope\": executable file not found in $PATH")),
        (vec!["/nope"], format!("{start}\"/nope\": stat /nope: no such file or directory")),
        (vec!["/"], format!("{start}\"/\": is a directory")),
        (vec![script.as_str()], format!("{start}\"{script}\": permission denied")),
        (vec!["echo", "a\0b"], format!("{start}\"echo\": invalid argument")),
        (vec![], "args must not be empty".to_owned()),
    ] {
        let done = node.exec("output=1", &argv).await.finish().await;
        let Outcome::Internal { text } = done.result.unwrap() else { panic!("{argv:?}") };
        let (before, after) = text.split_once('"').unwrap();
        let begin =
            "error executing command in container: failed to exec in container: failed to start exec ";
        assert_eq!(before, begin);
        let (id, after) = after.split_once('"').unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(after, format!(": OCI runtime exec failed: exec failed: {why}: unknown"));
    }
    node.stop().await;
}

#[tokio::test]
async fn the_older_protocols_write_text_and_v1_nothing() {
    let node = Harness::start().await;
    for (protocol, error) in [
        (
            "v3.channel.k8s.io",
            "command terminated with non-zero exit code: error executing command [false], exit code 1",
        ),
        (
            "v2.channel.k8s.io",
            "command terminated with non-zero exit code: error executing command [false], exit code 1",
        ),
        ("channel.k8s.io", ""),
    ] {
        let header = format!("X-Stream-Protocol-Version: {protocol}");
        let query = "input=1&output=1";
        let mut client = node.upgrade(&target("app", query, &["false"]), &header).await.client();
        client.open(&[Result_, Stdin, Stdout]).await;
        let done = client.finish().await;
        assert_eq!(text(&done.error), error, "{protocol}");
        assert_eq!(done.seen.fin(Stdin), protocol == "channel.k8s.io");
    }
    node.stop().await;
}

#[tokio::test]
async fn streams_may_come_in_any_order_with_strangers_among_them() {
    let node = Harness::start().await;
    let mut client = node.upgrade(&target("app", PLAIN, &["cat"]), V4).await.client();
    client.open_named("telemetry").await;
    client.open(&[Stderr, Stdout]).await;
    // A spent id, and data before the last stream is there.
    client.open_with(2, "again").await;
    client.open_named("stdin").await;
    client.write(b"early").await;
    client.ping().await;
    assert_eq!(client.seen().reset("again"), Some(RstStatus::PROTOCOL_ERROR));
    assert!(client.seen().is_open("telemetry"));
    let mut noise = vec![0x80, 3, 0, 4, 0, 0, 0, 4, 0, 0, 0, 0];
    noise.extend([0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0]);
    client.send(noise.into()).await;
    client.open_named("error").await;
    client.until(Stdout, "early").await;
    client.open_named("stdin").await;
    client.ping().await;
    assert_eq!(client.seen().reset("stdin"), Some(RstStatus::CANCEL), "a stream too many is refused");
    client.close_stdin().await;
    assert_eq!(client.finish().await.result.unwrap(), Outcome::Success);
    node.stop().await;
}

#[tokio::test]
async fn streams_that_do_not_come_end_the_connection() {
    let settings = Settings { stream_creation: Duration::from_secs(1), ..Settings::default() };
    let node = Harness::with(settings).await;
    let mut client = node.upgrade(&target("app", PLAIN, &["cat"]), V4).await.client();
    client.open(&[Result_]).await;
    assert!(client.finish().await.seen.goaway);
    node.stop().await;
}

#[tokio::test]
async fn output_flows_while_stdin_is_not_read_and_the_rest_is_dropped() {
    let node = Harness::start().await;
    let mut client = node.shell(PLAIN, "exec <&-; seq 1 300000; echo done >&2").await;
    // The shell has closed its stdin: what comes is dropped and the session goes on.
    client.write(&vec![b'x'; 4 * 1024 * 1024]).await;
    let done = client.finish().await;
    assert_eq!(done.stdout.len(), 1_988_895);
    assert_eq!((text(&done.stderr), done.result.unwrap()), ("done\n", Outcome::Success));

    let mut client =
        node.shell(PLAIN, "until [ -e go ]; do sleep 0.01; done; echo went; exec sleep 1000").await;
    assert!(client.write_until_stuck(Duration::from_secs(1)).await > 16);
    // What was pushed is stuck; what the command says from now on is not.
    std::fs::write(node.dir.path().join("shop/cart-0/app/deep/er/go"), "").unwrap();
    client.until(Stdout, "went").await;
    drop(client);
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_takes_the_process_group_with_it() {
    let node = Harness::start().await;
    let script = "trap '' HUP TERM; sleep 1000 >/dev/null 2>&1 & echo $$ $!; cat >/dev/null; sleep 1000";
    let mut client = node.shell(PLAIN, script).await;
    let pids = pids(&mut client).await;
    assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(pid)));
    drop(client);
    until("the leader is reaped", || is_gone(&pids[0])).await;
    until("the background is gone", || !is_alive(&pids[1])).await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_behind_unread_stdin_is_found() {
    let node = Harness::start().await;
    let mut client = node.shell(PLAIN, "echo $$; exec sleep 1000").await;
    let pids = pids(&mut client).await;
    assert!(client.write_until_stuck(Duration::from_secs(1)).await > 16);
    drop(client);
    until("the process is reaped", || is_gone(&pids[0])).await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_vanishes_before_a_full_output_is_found() {
    let node = Harness::start().await;
    let mut client = node.shell(PLAIN, "echo $$; exec yes").await;
    let pids = pids(&mut client).await;
    drop(client);
    until("the process is reaped", || is_gone(&pids[0])).await;
    node.stop().await;
}

#[tokio::test]
async fn all_of_a_terminal_s_session_is_ended() {
    let node = Harness::start().await;
    // With job control each background job has a group of its own.
    let script = "set -m; trap '' HUP; sleep 1000 & echo $$ $!; read x";
    let mut client = node.exec("input=1&output=1&tty=1", &["sh", "-c", script]).await;
    let pids = pids(&mut client).await;
    assert_eq!(pids.len(), 2, "{pids:?}");
    drop(client);
    until("the leader is reaped", || is_gone(&pids[0])).await;
    until("the other group is gone", || !is_alive(&pids[1])).await;
    node.stop().await;
}

#[tokio::test]
async fn what_is_left_after_the_exit_is_delivered_then_ended() {
    // Many times what the script takes: the silence must not begin before the output on a busy machine.
    let node = Harness::with(Settings { exit_silence: Duration::from_secs(2), ..Settings::default() }).await;
    let script = "(sleep 0.2; echo late; exec sleep 1000) & echo $!; exit 3";
    let done = node.shell("output=1", script).await.finish().await;
    let words: Vec<_> = text(&done.stdout).split_whitespace().collect();
    assert_eq!(words[1], "late");
    assert!(matches!(done.result.unwrap(), Outcome::Exit { code: 3, .. }));
    until("the background is gone", || !is_alive(words[0])).await;
    node.stop().await;
}

#[tokio::test]
async fn the_cut_ends_sessions_and_their_processes() {
    let node = Harness::start().await;
    let mut client = node.shell(PLAIN, "echo $$; exec sleep 1000").await;
    let pids = pids(&mut client).await;
    node.drain.stop();
    client.ping().await;
    assert!(
        TcpStream::connect(node.addr).await.is_err()
            || node.dial_as(&node.pki.client("x", &[])).await.is_err()
    );
    node.drain.cut();
    let done = client.finish().await;
    assert!(done.seen.goaway && done.error.is_empty());
    assert_eq!(node.drain.finish(Duration::from_secs(5)).await, Drained::Cut);
    assert!(is_gone(&pids[0]));
}

#[tokio::test]
async fn an_idle_session_ends() {
    let node = Harness::with(Settings { idle: Duration::from_millis(100), ..Settings::default() }).await;
    let client = node.shell(PLAIN, "exec sleep 1000").await;
    assert!(client.finish().await.seen.goaway);
    node.stop().await;
}

#[tokio::test]
async fn refusals_have_the_kubelet_s_codes_and_texts() {
    let node = Harness::start().await;
    let exec = |path: &str, query: &str| format!("/exec/{path}?{query}&command=true");
    for (target, status, body) in [
        (exec("shop/cart-0/app", "input=true"), 400, "you must specify at least 1 of stdin, stdout, stderr"),
        (exec("shop/nope/app", PLAIN), 404, "pod does not exist"),
        (exec("shop/elsewhere/app", PLAIN), 404, "pod does not exist"),
        (exec("%2e%2e/cart-0/app", PLAIN), 404, "pod does not exist"),
        (exec("shop/cart-0/nope", PLAIN), 500, "container not found (\"nope\")"),
        (exec("shop/cart-0/init-done", PLAIN), 500, "container not found (\"init-done\")"),
        ("/exec/shop/cart-0".to_owned(), 404, "404 page not found\n"),
        ("/exec/shop/cart-0/uid/app".to_owned(), 404, "404 page not found\n"),
        ("/runningpods/".to_owned(), 404, "404 page not found\n"),
        ("/healthz".to_owned(), 200, "ok"),
    ] {
        let refusal = node.upgrade(&target, V4).await.refusal();
        assert_eq!((refusal.0, refusal.1.as_str()), (status, body), "{target}");
    }
    for container in ["debug", "init-runs"] {
        node.upgrade(&target(container, PLAIN, &["true"]), V4).await.client();
    }
    let app = target("app", PLAIN, &["true"]);
    let (status, body) = node.ask(&app, &[V4]).await.refusal();
    assert_eq!(status, 400);
    assert!(body.starts_with("unable to upgrade: missing upgrade headers in request: "), "{body}");
    let websocket = ["Connection: Upgrade", "Upgrade: websocket"];
    assert_eq!(node.ask(&app, &websocket).await.refusal(), (405, "bad method".to_owned()));
    let attach = "/attach/shop/cart-0/nope?output=1";
    let (status, body) = node.upgrade(attach, V4).await.refusal();
    assert_eq!((status, body.as_str()), (500, "container nope not found in pod cart-0_shop"));
    let (status, body) = node.ask(&app, &["Connection: Upgrade", "Upgrade: SPDY/3.1"]).await.refusal();
    assert_eq!(status, 400);
    let missing =
        "unable to upgrade: header X-Stream-Protocol-Version does not exist in request with 3 headers\n";
    assert_eq!(body, missing);
    let Answer::Refused(head, body) = node.upgrade(&app, "X-Stream-Protocol-Version: a, b").await else {
        panic!("no common protocol")
    };
    assert_eq!(head.status, 403);
    assert_eq!(head.values("X-Accepted-Stream-Protocol-Versions").count(), 4);
    assert!(body.contains("client supports [a b], server accepts [v4.channel.k8s.io"), "{body}");
    node.stop().await;
}

#[tokio::test]
async fn nobody_but_podgate_gets_past_the_handshake() {
    let node = Harness::start().await;
    let stranger = Pki::new().client("podgate", &[]);
    let none =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(node.pki.roots())
            .with_no_client_auth();
    let tcp = TcpStream::connect(node.addr).await.unwrap();
    let anonymous = TlsConnector::from(Arc::new(none)).connect(ServerName::from(node.addr.ip()), tcp).await;
    for io in [node.dial_as(&stranger).await, anonymous] {
        // With TLS 1.3 the client's side may finish first; the refusal then comes with the first read.
        let refused = match io {
            Err(_) => true,
            Ok(mut io) => {
                let _ = io.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\n\r\n").await;
                let mut answer = Vec::new();
                io.read_to_end(&mut answer).await.is_err() && answer.is_empty()
            }
        };
        assert!(refused);
    }
    node.stop().await;
}

#[tokio::test]
async fn only_loopback_is_bound() {
    let pki = Pki::new();
    let tls = tls::server(&pki.server(), &[tls::HTTP1], Clients::Require(pki.roots())).unwrap();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let bound =
        Endpoint::bind(any, tls, "one", Arc::new(One(Arc::default())), "/", Settings::default()).await;
    assert!(matches!(bound, Err(Error::NotLoopback { .. })));
}

#[tokio::test]
async fn a_client_that_does_not_speak_spdy_is_cut_off() {
    let node = Harness::start().await;
    let mut client = node.shell(PLAIN, "echo $$; exec sleep 1000").await;
    let pids = pids(&mut client).await;
    client.send(Bytes::from_static(&[0x80, 3, 0, 99, 0, 0, 0, 0])).await;
    assert!(client.finish().await.seen.goaway);
    until("the process is reaped", || is_gone(&pids[0])).await;
    node.stop().await;
}

#[tokio::test]
async fn a_burst_of_pings_is_answered_and_the_session_goes_on() {
    let node = Harness::start().await;
    let mut client = node.exec(PLAIN, &["cat"]).await;
    let mut pings = BytesMut::new();
    (1..200_000).step_by(2).for_each(|id| Encoder::ping(&mut pings, id));
    client.send(pings.freeze()).await;
    // Answered in order, so this one's answer is the last.
    client.ping().await;
    client.write(b"on").await;
    client.close_stdin().await;
    let done = client.finish().await;
    assert_eq!((text(&done.stdout), done.result.unwrap()), ("on", Outcome::Success));
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_pings_without_reading_stops_itself_and_is_found_when_it_vanishes() {
    let node = Harness::start().await;
    let mut io = node.dial().await;
    let target = target("app", "output=1", &["sh", "-c", "echo $$ >new; mv new pid; exec sleep 1000"]);
    let head = ["Host: node", "Connection: Upgrade", "Upgrade: SPDY/3.1", V4].join("\r\n");
    io.write_all(format!("POST {target} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut encoder, mut bytes) = (Encoder::new(), BytesMut::new());
    for (id, kind) in [(1, Result_), (3, Stdout)] {
        let headers = Headers::new().with(StreamType::HEADER, kind.name());
        encoder.syn_stream(&mut bytes, id, &headers).unwrap();
    }
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("an answer", io.read_u8()).await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
    io.write_all(&bytes).await.unwrap();
    io.flush().await.unwrap();
    let pid = node.dir.path().join("shop/cart-0/app/deep/er/pid");
    until("the command runs", || pid.exists()).await;
    let pid = std::fs::read_to_string(pid).unwrap().trim().to_owned();
    bytes.clear();
    (1..2000).step_by(2).for_each(|id| Encoder::ping(&mut bytes, id));
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), io.write_all(&bytes)).await {
        written.expect("the session goes on");
    }
    assert!(is_alive(&pid));
    drop(io);
    until("the process is reaped", || is_gone(&pid)).await;
    node.stop().await;
}

#[tokio::test]
async fn connections_over_the_bound_wait() {
    let node = Harness::with(Settings { max_connections: 1, ..Settings::default() }).await;
    let mut client = node.shell(PLAIN, "cat").await;
    let tasks = node.drain.tasks();
    let mut second = Box::pin(node.dial());
    // Time enough to be accepted, counted in answers to the first connection.
    for _ in 0..50 {
        tokio::select! {
            _ = &mut second => panic!("over the bound"),
            () = client.ping() => {}
        }
    }
    assert_eq!(node.drain.tasks(), tasks, "accepted over the bound");
    client.close_stdin().await;
    client.finish().await;
    drop(soon("the second connection", second).await);
    node.stop().await;
}

#[test]
fn names_and_folders_that_lead_elsewhere_are_refused() {
    for good in ["a", "cart-0", "a.b"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", ".", "..", "-a", "a/b", "A", "a\0", &"a".repeat(254)] {
        assert!(!is_name(bad), "{bad:?}");
    }
    assert!(is_below(Path::new("a/./b")) && !is_below(Path::new("/a")) && !is_below(Path::new("a/../..")));
}
