//! The two ways to far sides: through the API server as the caller, and to kubelets with keys and tokens that change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use podgate::cluster::Pod;
use podgate::config::{Config, Translate};
use podgate::drain::{Drain, Drained};
use podgate::reload::{Live, Reloader};
use podgate::secret::Secret;
use podgate::telemetry::Metrics;
use podgate::testing::answer::status;
use podgate::testing::cluster::{allow, deny};
use podgate::testing::far::{FarApiServer, SWITCHING};
use podgate::testing::frames::{STDIN, data};
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Answer, Far, Pki, TestGateway, soon};
use podgate::tls::{self, ClientVerifier, Clients, Identity};
use podgate::upstream::Route;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::client;

use crate::rig::{FarIo, echoes};

/// RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

const WEB: &str = "/api/v1/namespaces/default/pods/web";

/// What kube-apiserver 1.20.2 passes on of containerd's runtime when asked for v5, byte for byte.
const NO_V5: &[u8] = b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n";

/// What kube-apiserver 1.29 and newer answer that translate v5 themselves.
const V5: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";

struct Rig {
    far: Far,
    gateway: TestGateway,
}

impl Rig {
    /// The first answer to these bytes, on a connection of ana's that is then closed.
    async fn ask(&self, bytes: &[u8]) -> Answer {
        self.gateway.ask(bytes).await
    }

    async fn stop(self) {
        self.gateway.stop().await;
    }
}

/// A gateway whose API server runs this script.
async fn api_server<S, F>(config: Config, script: S) -> Rig
where
    S: Fn(FarIo, String) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, script).await;
    let route = Route::ApiServer(Arc::new(FarApiServer::at(far.addr, &pki)));
    let gateway = TestGateway::routed(&far, config, pki, route).await;
    Rig { far, gateway }
}

/// A gateway whose API server answers every request with these bytes.
async fn api_server_says(answer: impl Into<Vec<u8>>) -> Rig {
    let answer = Arc::new(answer.into());
    api_server(config(), move |io, _| {
        let answer = answer.clone();
        async move { says(io, &answer).await }
    })
    .await
}

/// Answers, and waits for the gateway to close.
async fn says(mut io: FarIo, answer: &[u8]) {
    send(&mut io, answer).await;
    let mut dropped = [0; 4096];
    while let Ok(1..) = io.read(&mut dropped).await {}
}

/// Opens a session as ana and takes its 101.
async fn session(gateway: &TestGateway) -> client::TlsStream<TcpStream> {
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id&stdin=1&stdout=1", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    client
}

/// Sees that a session of [`echoes`] is alive.
async fn lives(client: &mut client::TlsStream<TcpStream>) {
    let hello = data(STDIN, b"hello");
    send(client, &hello).await;
    assert_eq!(read_exactly(client, hello.len()).await, hello);
}

/// A WebSocket handshake with these subprotocols.
fn handshake(target: &str, protocols: &str) -> Vec<u8> {
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {protocols}\r\nUser-Agent: kubectl/v1.36.0\r\n"
    );
    request(&format!("GET {WEB}/{target}"), &headers)
}

fn when_needed() -> Config {
    let mut config = config();
    config.upstream.translate = Translate::WhenNeeded;
    config
}

/// A kubelet with this certificate that wants one of its clients, and a gateway that goes this way to it.
async fn kubelet(identity: &Identity, pki: Arc<Pki>, route: Route) -> Rig {
    let far = Far::serving(identity, Clients::Require(pki.roots()), |io, _| echoes(io)).await;
    let gateway = TestGateway::routed(&far, config(), pki, route).await;
    Rig { far, gateway }
}

/// To kubelets, with a certificate, expecting this name.
fn named(pki: &Pki, name: &'static str) -> Route {
    let tls = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false).unwrap();
    let server_name = Some(ServerName::try_from(name).unwrap());
    Route::Kubelet { tls: Live::fixed(tls), token: None, server_name }
}

// === what the API server sees ===

#[tokio::test]
async fn the_whole_head_that_the_api_server_gets_and_nothing_of_who_the_client_says_it_is() {
    let mut rig = api_server_says(SWITCHING).await;
    let headers = "User-Agent: kubectl/v1.36.0\r\n\
                   x-stream-protocol-version: v4.channel.k8s.io\r\n\
                   Authorization: Bearer nobodys\r\n\
                   Proxy-Authorization: Basic eDp5\r\n\
                   Impersonate-User: \r\n\
                   X-Remote-User: root\r\n\
                   X-REMOTE-GROUP: system:masters\r\n\
                   X-Remote-Uid: 0\r\n\
                   X-Remote-Extra-Scopes: all\r\n\
                   X_Remote_User: root\r\n\
                   Impersonate_User: root\r\n\
                   X-Forwarded-For: 192.0.2.1\r\n\
                   Connection: Impersonate-User, Authorization, close\r\n\
                   Keep-Alive: timeout=5\r\n\
                   Proxy-Connection: keep-alive\r\n\
                   TE: trailers\r\n\
                   kubectl-command: kubectl exec\r\n\
                   Audit-ID: mine\r\n";
    let query = "tty=0&stdout=1&command=sh&command=-c&stdin=yes&command=a+b%26%ff&timeout=1s&container=";
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request(query, headers)).await;
    let addr = rig.far.addr;
    assert_eq!(
        rig.far.head().await,
        format!(
            "POST {WEB}/exec?command=sh&command=-c&command=a+b%26%FF&container=app&stdin=true&stdout=true HTTP/1.1\r\n\
             Host: {addr}\r\n\
             User-Agent: kubectl/v1.36.0\r\n\
             Content-Length: 0\r\n\
             Audit-Id: mine\r\n\
             Authorization: Bearer podgates-own\r\n\
             Connection: Upgrade\r\n\
             Impersonate-Group: dev\r\n\
             Impersonate-Group: system:authenticated\r\n\
             Impersonate-User: ana\r\n\
             Kubectl-Command: kubectl exec\r\n\
             Upgrade: SPDY/3.1\r\n\
             X-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        )
    );
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING, "byte for byte");
    assert_eq!(rig.gateway.cluster.reads(), ["pod default/web"], "the node is the API server's to find");
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn the_api_server_is_told_of_the_caller_that_podgate_has_checked() {
    let mut rig = api_server_says(SWITCHING).await;
    let headers = "Impersonate-User: ben\r\nImpersonate-Group: ops\r\nImpersonate-Uid: 7\r\n\
                   Impersonate-Extra-Example.com%2f%53copes%25: all\r\n";
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", headers)).await;
    let head = rig.far.head().await;
    let told: Vec<_> = head.lines().filter(|line| line.starts_with("Impersonate-")).collect();
    assert_eq!(
        told,
        [
            "Impersonate-Extra-Example.com%2f%53copes%25: all",
            "Impersonate-Group: ops",
            "Impersonate-Group: system:authenticated",
            "Impersonate-Uid: 7",
            "Impersonate-User: ben"
        ]
    );
    drop(client);

    rig.gateway
        .cluster
        .judge(|_, attributes| Ok(if attributes.verb == "impersonate" { deny("") } else { allow() }));
    assert_eq!(rig.ask(&exec_request("command=id", "Impersonate-User: root\r\n")).await.code(), 403);
    assert_eq!(rig.far.accepted(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_caller_that_no_header_can_name_is_403_and_the_api_server_hears_nothing() {
    let rig = api_server_says(SWITCHING).await;
    let mut client = rig.gateway.connect_with(&rig.gateway.pki.client("ana ", &[])).await;
    send(&mut client, &exec_request("command=id", "")).await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    let text = "forbidden: user \"ana \" cannot be told to the API server: no header has such a value";
    assert_eq!((answer.code(), answer.body), (403, status(403, "Forbidden", text, "{}")));
    assert_eq!(rig.far.accepted(), 0);
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn each_kind_of_session_is_asked_for_in_the_apis_own_words() {
    let spdy = |target: &str| {
        request(&format!("POST {WEB}/{target}"), "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n")
    };
    let offered = |head: &str| {
        let lines = head.lines().filter_map(|line| line.strip_prefix("X-Stream-Protocol-Version: "));
        lines.map(|name| name.trim_end_matches(".k8s.io").to_owned()).collect::<Vec<_>>().join(" ")
    };
    let all = "v5.channel v4.channel v3.channel v2.channel channel";
    let attach = "attach?container=app&stderr=true&stdin=true&stdout=true&tty=true";
    for (asked, line, upgrade, protocols) in [
        (spdy("attach?tty=1&stdin=1&stdout=1&stderr=1"), format!("POST {WEB}/{attach}"), "SPDY/3.1", ""),
        (spdy("portforward"), format!("POST {WEB}/portforward"), "SPDY/3.1", ""),
        (
            handshake("portforward", "SPDY/3.1+portforward.k8s.io"),
            format!("POST {WEB}/portforward"),
            "SPDY/3.1",
            "portforward",
        ),
        (
            handshake("portforward?ports=80,81", "v4.channel.k8s.io"),
            format!("GET {WEB}/portforward?ports=80&ports=81"),
            "websocket",
            "",
        ),
        (
            handshake("exec?command=id&stdout=1", "v4.channel.k8s.io"),
            format!("GET {WEB}/exec?command=id&container=app&stdout=true"),
            "websocket",
            "",
        ),
        (
            handshake("exec?command=id&stdout=1", "v5.channel.k8s.io"),
            format!("POST {WEB}/exec?command=id&container=app&stdout=true"),
            "SPDY/3.1",
            all,
        ),
    ] {
        let mut rig = api_server_says("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(rig.ask(&asked).await.code(), 404);
        let head = rig.far.head().await;
        assert!(head.starts_with(&format!("{line} HTTP/1.1\r\n")), "{head}");
        assert_eq!(offered(&head), protocols, "{head}");
        let websocket = upgrade == "websocket";
        assert_eq!(head.contains(&format!("\r\nSec-Websocket-Key: {KEY}\r\n")), websocket, "{head}");
        for line in [
            &format!("Upgrade: {upgrade}"),
            "Connection: Upgrade",
            "Impersonate-User: ana",
            "X-Forwarded-For: 127.0.0.1",
        ] {
            assert_eq!(head.lines().filter(|have| have == &line).count(), 1, "{line} in {head}");
        }
        rig.stop().await;
    }
}

// === WebSocket v5 through the API server ===

#[tokio::test]
async fn an_api_server_that_speaks_v5_gets_it_where_that_is_wanted() {
    let mut rig = api_server(when_needed(), |io, _| says(io, V5)).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &handshake("exec?command=id&stdout=1", "v5.channel.k8s.io")).await;
    assert_eq!(read_exactly(&mut client, V5.len()).await, V5, "byte for byte");
    let head = rig.far.head().await;
    assert!(head.starts_with("GET ") && head.contains("\r\nSec-Websocket-Protocol: v5.channel.k8s.io\r\n"));
    assert_eq!(rig.far.accepted(), 1);
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn an_api_server_that_knows_no_v5_is_asked_again_in_spdy_and_the_client_stays_with_v5() {
    for protocols in ["v5.channel.k8s.io", "v9.channel.k8s.io, v5.channel.k8s.io"] {
        let mut rig = api_server(when_needed(), |io, head| async move {
            says(io, if head.starts_with("GET ") { NO_V5 } else { SWITCHING }).await;
        })
        .await;
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &handshake("exec?command=id&stdout=1", protocols)).await;
        assert_eq!(read_exactly(&mut client, V5.len()).await, V5);
        assert!(rig.far.head().await.starts_with("GET "));
        let again = rig.far.head().await;
        assert!(again.starts_with("POST ") && again.contains("\r\nImpersonate-User: ana\r\n"), "{again}");
        assert_eq!(rig.far.accepted(), 2);
        drop(client);
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_declares_v5_and_refuses_it_is_asked_again_in_spdy() {
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, |io, head| async move {
        says(io, if head.starts_with("GET ") { NO_V5 } else { SWITCHING }).await;
    })
    .await;
    let gateway = TestGateway::facing(&far, when_needed(), pki).await;
    gateway.cluster.v5_node("n", far.addr.port());
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &handshake("exec?command=id&stdout=1", "v5.channel.k8s.io")).await;
    assert_eq!(read_exactly(&mut client, V5.len()).await, V5);
    assert_eq!(far.accepted(), 2);
    drop(client);
    gateway.stop().await;
}

// === what the API server answers ===

#[tokio::test]
async fn a_refusal_of_the_api_server_is_echoed_as_it_is_and_asked_once() {
    let text = "pods \"web\" is forbidden: User \"ana\" cannot get resource \"pods/exec\" in API group \"\" in \
                the namespace \"default\"";
    let body = status(403, "Forbidden", text, "{\"name\":\"web\",\"kind\":\"pods\"}");
    let said = format!(
        "HTTP/1.1 403 Forbidden\r\nAudit-Id: theirs\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for protocols in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let said = said.clone();
        let rig = api_server(when_needed(), move |io, _| {
            let said = said.clone();
            async move { says(io, said.as_bytes()).await }
        })
        .await;
        let answer = rig.ask(&handshake("exec?command=id&stdout=1", protocols)).await;
        assert_eq!(
            (answer.code(), answer.header("audit-id"), answer.body.as_str()),
            (403, Some("theirs"), &*body)
        );
        assert_eq!(rig.far.accepted(), 1, "a Status is about the caller, not about WebSocket");
        rig.stop().await;
    }
}

#[tokio::test]
async fn that_podgate_is_not_known_is_no_401_of_the_callers() {
    let rig = api_server_says("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let answer = rig.ask(&exec_request("command=id", "")).await;
    let text = "the API server, or the kubelet behind it, does not accept podgate's own credentials";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    rig.stop().await;
}

#[tokio::test]
async fn an_api_server_that_cannot_be_reached_is_503() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |_| async {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nowhere = listener.local_addr().unwrap();
    drop(listener);
    let wrong = Far::start(&Pki::new(), |_| async {}).await;
    let refused =
        format!("the API server cannot be reached: dial tcp {nowhere}: connect: connection refused");
    for (api, text) in [
        (FarApiServer::at(nowhere, &pki), refused.as_str()),
        (
            FarApiServer::at(wrong.addr, &pki),
            "the API server cannot be reached: tls: invalid peer certificate",
        ),
        (
            FarApiServer::at(far.addr, &pki).without_credentials(),
            "get a token: the API server cannot be reached",
        ),
    ] {
        let route = Route::ApiServer(Arc::new(api));
        let gateway = TestGateway::routed(&far, config(), pki.clone(), route).await;
        let answer = gateway.ask(&exec_request("command=id", "")).await;
        assert_eq!(answer.code(), 503);
        assert!(
            answer.body.contains(text) && answer.body.contains("\"ServiceUnavailable\""),
            "{}",
            answer.body
        );
        gateway.stop().await;
    }
    assert_eq!(far.accepted(), 0);
}

#[tokio::test]
async fn what_is_wrong_with_the_pod_is_said_in_upstreams_words_here_as_well() {
    let rig = api_server_says(SWITCHING).await;
    let mut pod = Pod { containers: vec!["app".to_owned()], ..Default::default() };
    rig.gateway.cluster.pod("default/web", pod.clone());
    let unscheduled = status(400, "BadRequest", "pod web does not have a host assigned", "");
    assert_eq!(rig.ask(&exec_request("command=id", "")).await.body, unscheduled);
    pod.node = Some("n".to_owned());
    rig.gateway.cluster.pod("default/web", pod);
    let wrong = status(400, "BadRequest", "container x is not valid for pod web", "");
    assert_eq!(rig.ask(&exec_request("command=id&container=x", "")).await.body, wrong);
    assert_eq!(rig.far.accepted(), 0);
    rig.stop().await;
}

// === kubelets that do not answer ===

#[tokio::test]
async fn item_047_a_kubelet_that_never_takes_the_connection_is_500_after_the_deadline() {
    // A queue of one that is full: the kernel answers nobody else.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let addr = full.local_addr().unwrap().as_socket().unwrap();
    let _waits = std::net::TcpStream::connect(addr).unwrap();

    let mut short = config();
    short.upstream.connect_timeout = Duration::from_millis(200);
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |_| async {}).await;
    let gateway = TestGateway::facing(&far, short, pki).await;
    gateway.cluster.node("n", addr.port());
    let answer = gateway.ask(&exec_request("command=id", "")).await;
    let text = format!("error dialing backend: dial tcp {addr}: i/o timeout");
    assert_eq!((answer.code(), answer.body), (500, status(500, "", &text, "")));
    gateway.stop().await;
}

#[tokio::test]
async fn item_044_a_refusal_that_ends_in_mid_body_is_passed_on_as_far_as_it_came_and_never_looks_whole() {
    let pki = Arc::new(Pki::new());
    let said = b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart";
    let far = Far::start(&pki, move |mut io| async move {
        send(&mut io, said).await;
        io.shutdown().await.expect("the gateway still listens");
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    let mut all = Vec::new();
    let end = soon("the end of the connection", client.read_to_end(&mut all)).await;
    assert_eq!(all, said);
    assert!(end.is_err(), "a clean end would be the end of an answer");
    gateway.stop().await;
}

// === certificates of kubelets ===

#[tokio::test]
async fn a_kubelet_with_a_wrong_or_expired_certificate_is_500_and_gets_no_request() {
    let (pki, other) = (Arc::new(Pki::new()), Pki::new());
    for (identity, text) in [
        (other.server(), "invalid peer certificate: "),
        (
            pki.server_of(&["192.0.2.1", "localhost"]),
            "invalid peer certificate: certificate not valid for name",
        ),
        (pki.expired_server(), "invalid peer certificate: certificate expired"),
    ] {
        let mut rig = kubelet(&identity, pki.clone(), TestGateway::route(&pki)).await;
        let answer = rig.ask(&exec_request("command=id", "")).await;
        assert!(answer.body.contains(&format!("error dialing backend: tls: {text}")), "{}", answer.body);
        assert_eq!((answer.code(), rig.far.accepted()), (500, 1));
        assert!(rig.far.untouched());
        rig.stop().await;
    }
}

#[tokio::test]
async fn the_name_a_kubelet_has_to_have_can_be_set_and_then_holds() {
    let pki = Arc::new(Pki::new());
    let identity = pki.server_of(&["node-1.internal"]);
    let rig = kubelet(&identity, pki.clone(), named(&pki, "node-1.internal")).await;
    lives(&mut session(&rig.gateway).await).await;
    rig.stop().await;

    // A certificate for the address dialled is not what was asked for.
    let mut rig = kubelet(&pki.server(), pki.clone(), named(&pki, "node-1.internal")).await;
    let answer = rig.ask(&exec_request("command=id", "")).await;
    assert!(answer.code() == 500 && answer.body.contains("not valid for name"), "{}", answer.body);
    assert!(rig.far.untouched());
    rig.stop().await;
}

#[tokio::test]
async fn the_danger_switch_takes_any_certificate() {
    let (pki, other) = (Arc::new(Pki::new()), Pki::new());
    let tls = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), true).unwrap();
    for identity in [other.server(), pki.server_of(&["elsewhere"]), pki.expired_server()] {
        let rig = kubelet(&identity, pki.clone(), Route::kubelet(tls.clone())).await;
        lives(&mut session(&rig.gateway).await).await;
        rig.stop().await;
    }
}

// === keys and tokens that change ===

fn reloader(drain: &Drain) -> Reloader {
    Reloader::new(Duration::from_millis(5), drain.clone(), Metrics::new())
}

/// The TLS configuration of the files in a folder, as [`Pki::write_client`] makes them.
fn from_folder(folder: &Path) -> Result<ClientConfig, tls::Error> {
    let identity = Identity::from_files(&folder.join("client.crt"), &folder.join("client.key"))?;
    Ok(Arc::unwrap_or_clone(tls::client(Some(&identity), tls::roots(&folder.join("ca.crt"))?, false)?))
}

#[tokio::test]
async fn a_rotated_token_is_used_by_the_next_session_and_the_older_one_goes_on() {
    let (pki, drain) = (Arc::new(Pki::new()), Drain::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let file = path.clone();
    let read = move || Secret::from_file(&file);
    let mut token = reloader(&drain).load("token", vec![path.clone()], read).await.unwrap();
    let tls = Live::fixed(tls::client(None, pki.roots(), false).unwrap());
    let route = Route::Kubelet { tls, token: Some(token.clone()), server_name: None };
    let mut far = Far::serving(&pki.server(), Clients::Ask, |io, _| echoes(io)).await;
    let gateway = TestGateway::routed(&far, config(), pki, route).await;

    let mut older = session(&gateway).await;
    assert!(far.head().await.contains("\r\nAuthorization: Bearer first\r\n"));
    std::fs::write(&path, "second\n").unwrap();
    soon("the token to be reloaded", token.replaced()).await;
    let mut newer = session(&gateway).await;
    let head = far.head().await;
    assert!(head.contains("\r\nAuthorization: Bearer second\r\n") && !head.contains("first"), "{head}");
    lives(&mut older).await;
    lives(&mut newer).await;

    // Whatever the session is carried by.
    let mut translated = gateway.connect_as("ana").await;
    send(&mut translated, &handshake("exec?command=id&stdout=1", "v5.channel.k8s.io")).await;
    assert!(far.head().await.contains("\r\nAuthorization: Bearer second\r\n"));
    drop((older, newer, translated));
    gateway.stop().await;
    assert_eq!(drain.finish(Duration::from_secs(10)).await, Drained::Clean);
}

#[tokio::test]
async fn the_next_handshake_with_a_kubelet_is_resumed_unless_podgates_identity_is_another_one() {
    let pki = Arc::new(Pki::new());
    let (seen, mut handshakes) = mpsc::unbounded_channel();
    let verifier = ClientVerifier::new(pki.roots()).unwrap();
    let far = Far::start(&pki, move |io| {
        let tls = io.get_ref().1;
        let known = verifier.verify(tls.peer_certificates().unwrap(), UnixTime::now()).unwrap();
        let _ = seen.send((known.common_name, tls.handshake_kind().unwrap()));
        echoes(io)
    })
    .await;
    let identity = |name: &str| tls::client(Some(&pki.client(name, &[])), pki.roots(), false).unwrap();
    let (current, tls) = watch::channel(identity("podgate-1"));
    let route = Route::Kubelet { tls: Live::of(tls), token: None, server_name: None };
    let gateway = TestGateway::routed(&far, config(), pki.clone(), route).await;

    let mut opened = Vec::new();
    for name in ["podgate-1", "podgate-2"] {
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            opened.push(session(&gateway).await);
            assert_eq!(handshakes.recv().await.unwrap(), (name.to_owned(), kind));
        }
        current.send_replace(identity("podgate-2"));
    }
    for client in &mut opened {
        lives(client).await;
    }
    drop(opened);
    gateway.stop().await;
}

#[tokio::test]
async fn reloaded_keys_and_authorities_are_used_by_the_next_session_and_the_older_one_goes_on() {
    let (one, two, drain) = (Arc::new(Pki::new()), Pki::new(), Drain::new());
    let folder = tempfile::tempdir().unwrap();
    let (current, next) = (folder.path().join("current"), folder.path().join("next"));
    // As Kubernetes swaps the files of a Secret: all at once, by a link.
    let swap = |pki: &Pki, name: &str| {
        let of = folder.path().join(name);
        std::fs::create_dir(&of).unwrap();
        pki.write_client(name, &of);
        std::os::unix::fs::symlink(&of, &next).unwrap();
        std::fs::rename(&next, &current).unwrap();
    };
    swap(&one, "podgate-1");
    let (seen, mut names) = mpsc::unbounded_channel();
    let kubelet_of = async |pki: &Pki| {
        let (seen, verifier) = (seen.clone(), ClientVerifier::new(pki.roots()).unwrap());
        Far::start(pki, move |io| {
            let chain = io.get_ref().1.peer_certificates().unwrap();
            let _ = seen.send(verifier.verify(chain, UnixTime::now()).unwrap().common_name);
            echoes(io)
        })
        .await
    };
    let (before, after) = (kubelet_of(&one).await, kubelet_of(&two).await);
    let paths = ["client.crt", "client.key", "ca.crt"].map(|name| current.join(name)).to_vec();
    let from = current.clone();
    let mut tls = reloader(&drain).load("kubelet", paths, move || from_folder(&from)).await.unwrap();
    let route = Route::Kubelet { tls: tls.clone(), token: None, server_name: None };
    let gateway = TestGateway::routed(&before, config(), one, route).await;

    let mut older = session(&gateway).await;
    assert_eq!(names.recv().await.unwrap(), "podgate-1");
    swap(&two, "podgate-2");
    soon("the keys to be reloaded", tls.replaced()).await;
    gateway.cluster.node("n", after.addr.port());
    let mut newer = session(&gateway).await;
    assert_eq!(names.recv().await.unwrap(), "podgate-2");
    lives(&mut older).await;
    lives(&mut newer).await;

    gateway.cluster.node("n", before.addr.port());
    let answer = gateway.ask(&exec_request("command=id", "")).await;
    assert!(answer.body.contains("invalid peer certificate"), "the old authority is gone: {}", answer.body);
    drop((older, newer));
    gateway.stop().await;
    assert_eq!(drain.finish(Duration::from_secs(10)).await, Drained::Clean);
}
