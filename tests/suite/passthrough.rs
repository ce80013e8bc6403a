//! What is no session goes on to the API server: as the caller, whole, at once, and back again.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podgate::app::Gateway;
use podgate::cluster::kube::forward::{ApiServer, Forward, Settings};
use podgate::cluster::{Body, Cluster, Decision, Error, Node, Pod, User};
use podgate::config::Config;
use podgate::drain::{Drain, Drained};
use podgate::request::{Ask, Attributes};
use podgate::status::Refusal;
use podgate::testing::answer::status;
use podgate::testing::gateway::{config, read_exactly, read_to_end, read_until, request, send};
use podgate::testing::{Answer, FakeCluster, Far, Pki, TestGateway, soon, until};
use podgate::tls;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// A far side's connection, in a script.
type Io = tokio_rustls::server::TlsStream<TcpStream>;

/// A path whose request may be of any size and take any time.
const PROXY: &str = "/api/v1/namespaces/default/services/web/proxy/echo";

/// One whose request may not.
const SHORT: &str = "/api/v1/namespaces/default/configmaps";

/// Small enough for one frame.
const LIMIT: u64 = 100;

/// One connection to a far side per request.
struct Dial {
    addr: std::net::SocketAddr,
    tls: Arc<ClientConfig>,
    tasks: Drain,
}

impl ApiServer for Dial {
    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        let down = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unreachable {
            act: "ask".into(),
            source,
        };
        let tcp = TcpStream::connect(self.addr).await.map_err(|error| down(error.into()))?;
        let name = ServerName::try_from("localhost").expect("a name");
        let io = TlsConnector::from(self.tls.clone())
            .connect(name, tcp)
            .await
            .map_err(|error| down(error.into()))?;
        let (mut send, driven) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.expect("no I/O yet");
        self.tasks.spawn(async move { drop(driven.with_upgrades().await) });
        let response = send.send_request(request).await.map_err(|error| down(error.into()))?;
        Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
    }
}

/// A cluster that forwards, and leaves the rest to a fake one.
struct Forwarding {
    forward: Forward,
    server: Dial,
    rest: Arc<FakeCluster>,
}

impl Cluster for Forwarding {
    fn token<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> BoxFuture<'a, Result<Option<User>, Error>> {
        self.rest.token(token, audiences)
    }

    fn review<'a>(&'a self, user: &'a User, asked: &'a Attributes) -> BoxFuture<'a, Result<Decision, Error>> {
        self.rest.review(user, asked)
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Pod>>, Error>> {
        Cluster::pod(&*self.rest, namespace, name)
    }

    fn node<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Arc<Node>>, Error>> {
        Cluster::node(&*self.rest, name)
    }

    fn serve<'a>(
        &'a self,
        user: &'a User,
        ask: &'a Ask,
        request: Request<Body>,
    ) -> BoxFuture<'a, Result<Response<Body>, Refusal>> {
        Box::pin(self.forward.serve(&self.server, user, ask, request))
    }
}

struct Rig {
    far: Far,
    gateway: TestGateway,
}

fn limits() -> Settings {
    Settings { max_body_bytes: LIMIT, stall_timeout: Duration::from_secs(60), max_bytes_per_second: 0 }
}

/// A gateway in front of an API server that does as scripted.
async fn rig<S, F>(script: S) -> Rig
where
    S: Fn(Io, String) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    rig_with(config(), limits(), script).await
}

async fn rig_with<S, F>(config: Config, settings: Settings, script: S) -> Rig
where
    S: Fn(Io, String) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, script).await;
    let (drain, rest) = (Drain::new(), FakeCluster::new());
    let tls = tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false).expect("TLS");
    let server = Dial { addr: far.addr, tls, tasks: Drain::new() };
    let cluster = Forwarding { forward: Forward::new(settings, drain.clone()), server, rest: rest.clone() };
    let mut ground = TestGateway::ground(&pki, rest.clone());
    ground.cluster = Arc::new(cluster);
    let gateway = Gateway::start(&config, ground, drain).await.expect("start the gateway");
    Rig { far, gateway: TestGateway { gateway, pki, cluster: rest } }
}

/// A far side that answers everything with this.
async fn answering(answer: &'static str) -> Rig {
    rig(move |mut io, _| async move {
        send(&mut io, answer.as_bytes()).await;
        let _ = io.read_u8().await;
    })
    .await
}

/// How [`echo`] begins.
const ECHO: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\nX-Far: yes\r\n\r\n\
    early ";

/// A far side that switches, and says back what it hears until its peer is done.
async fn echo(mut io: Io, _: String) {
    send(&mut io, ECHO).await;
    let mut bytes = vec![0; 4096];
    while let Ok(count @ 1..) = io.read(&mut bytes).await {
        send(&mut io, &bytes[..count]).await;
    }
    send(&mut io, b"late").await;
    let _ = io.shutdown().await;
}

fn upgrade_request(path: &str) -> Vec<u8> {
    request(&format!("GET {path}"), "Connection: upgrade\r\nUpgrade: chat\r\n")
}

fn sum(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA256, bytes).as_ref().to_vec()
}

/// Bytes that differ everywhere.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(count)
    .collect()
}

// === as the caller ===

#[tokio::test]
async fn the_api_server_sees_the_caller_and_none_of_the_callers_credentials() {
    let mut rig = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let headers = "Authorization: Bearer ana-token\r\nX-Remote-User: root\r\nx_remote_user: root\r\n\
        Connection: Impersonate-User, keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 1\r\nCookie: a=b\r\n\
        Audit-ID: my-id\r\nX-Forwarded-For: 10.0.0.1\r\nAccept: application/json\r\n";
    let answer = rig.gateway.ask(&request("GET /api/v1/pods?limit=1&x=%2f%20+", headers)).await;
    assert_eq!((answer.code(), answer.body.as_str()), (200, "ok"));
    assert_eq!(answer.head.to_lowercase().matches("audit-id: my-id").count(), 1, "{}", answer.head);
    let head = rig.far.head().await;
    let mut lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    assert_eq!(lines.remove(0), "GET /api/v1/pods?limit=1&x=%2f%20+ HTTP/1.1");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "accept: application/json",
            "audit-id: my-id",
            "cookie: a=b",
            "impersonate-group: dev",
            "impersonate-group: system:authenticated",
            "impersonate-user: ana",
            "x-forwarded-for: 10.0.0.1, 127.0.0.1",
        ]
    );
    rig.gateway.stop().await;
}

#[tokio::test]
async fn who_is_impersonated_after_a_check_is_who_the_api_server_sees() {
    let mut rig = answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let headers = "Impersonate-User: bob\r\nImpersonate-Group: ops\r\nImpersonate-Extra-Team%2fA: x\r\n";
    assert_eq!(rig.gateway.ask(&request("GET /version", headers)).await.code(), 200);
    let head = rig.far.head().await;
    let mut lines: Vec<&str> = head.lines().filter(|line| line.starts_with("impersonate-")).collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "impersonate-extra-team%2fa: x",
            "impersonate-group: ops",
            "impersonate-group: system:authenticated",
            "impersonate-user: bob"
        ]
    );
    let reviews = rig.gateway.cluster.reviews();
    assert!(reviews[0].starts_with("ana impersonate users"), "{reviews:?}");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn that_the_api_server_does_not_know_podgate_is_not_told_as_the_callers_fault() {
    let rig = answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let answer = rig.gateway.ask(&request(&format!("GET {SHORT}"), "")).await;
    assert_eq!(answer.code(), 500);
    let words = "the API server does not know podgate: it answered 401 Unauthorized";
    assert!(answer.body.contains(words), "{}", answer.body);
    let of_an_application = rig.gateway.ask(&request(&format!("GET {PROXY}"), "")).await;
    assert_eq!(of_an_application.code(), 401);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_401_of_an_application_ends_no_http2_connection() {
    let rig = answering("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
    let mut tls = ClientConfig::clone(&rig.gateway.client_tls("ana"));
    tls.alpn_protocols = vec![tls::HTTP2.to_vec()];
    let io = TokioIo::new(rig.gateway.connect(Arc::new(tls)).await);
    let (mut client, driven) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let mut driven = std::pin::pin!(driven);
    let asked = Request::get(format!("https://podgate.test{PROXY}")).body(Full::new(Bytes::new())).unwrap();
    let response = soon("an answer", async {
        tokio::select! {
            response = client.send_request(asked) => response.unwrap(),
            _ = &mut driven => panic!("the connection ended"),
        }
    })
    .await;
    assert_eq!(response.status(), 401);
    // Whoever is told to leave does so at once.
    let left = tokio::time::timeout(Duration::from_millis(500), driven).await;
    assert!(left.is_err(), "the connection ended");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_http2_client_is_served_by_an_http1_api_server() {
    let mut rig = rig(|mut io, head| async move {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        io.read_exact(&mut body).await.expect("the body");
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n"
        );
        send(&mut io, answer.as_bytes()).await;
        send(&mut io, &body).await;
    })
    .await;
    let mut tls = ClientConfig::clone(&rig.gateway.client_tls("ana"));
    tls.alpn_protocols = vec![tls::HTTP2.to_vec()];
    let io = TokioIo::new(rig.gateway.connect(Arc::new(tls)).await);
    let (mut client, driven) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let tasks = Drain::new();
    tasks.spawn(async move { drop(driven.await) });
    let body = Bytes::from(noise(3 << 20));
    let asked = Request::post(format!("https://podgate.test{PROXY}"))
        .header("cookie", "a=b")
        .header("cookie", "c=d")
        .body(Full::new(body.clone()))
        .unwrap();
    let response = soon("an answer", client.send_request(asked)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("x-hop"));
    let back = soon("the body", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(sum(&back), sum(&body));
    let head = rig.far.head().await;
    assert!(!head.contains("\r\nhost: podgate.test") && head.contains("\r\ncookie: a=b; c=d\r\n"), "{head}");
    drop(client);
    rig.gateway.stop().await;
}

// === whole and at once ===

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways_as_they_come() {
    let rig = rig(|mut io, _| async move {
        read_until(&mut io, "5\r\nfirst\r\n").await;
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Far-Sum\r\n\r\n4\r\none \r\n";
        send(&mut io, head.as_bytes()).await;
        read_until(&mut io, "6\r\nsecond\r\n").await;
        send(&mut io, b"4\r\ntwo \r\n").await;
        read_until(&mut io, "0\r\nx-sum: 7\r\n\r\n").await;
        send(&mut io, b"0\r\nX-Far-Sum: 8\r\n\r\n").await;
        let _ = io.read_u8().await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    let headers = "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\nTE: trailers\r\nConnection: TE\r\n";
    send(&mut client, &request(&format!("POST {PROXY}"), headers)).await;
    send(&mut client, b"5\r\nfirst\r\n").await;
    let head = read_until(&mut client, "4\r\none \r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    send(&mut client, b"6\r\nsecond\r\n").await;
    read_until(&mut client, "4\r\ntwo \r\n").await;
    send(&mut client, b"0\r\nX-Sum: 7\r\n\r\n").await;
    let end = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(end.to_lowercase(), "0\r\nx-far-sum: 8\r\n\r\n");
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways_unaltered() {
    const SIZE: usize = 48 << 20;
    let rig = rig(|mut io, _| async move {
        send(&mut io, format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).await;
        let (mut read, mut write) = tokio::io::split(io);
        let mut body = (&mut read).take(SIZE as u64);
        tokio::io::copy(&mut body, &mut write).await.expect("the body comes and goes");
        write.flush().await.expect("the rest goes");
        let _ = read.read_u8().await;
    })
    .await;
    let body = noise(SIZE);
    let (mut read, mut write) = tokio::io::split(rig.gateway.connect_as("ana").await);
    let length = format!("Content-Length: {SIZE}\r\n");
    let upload = async {
        send(&mut write, &request(&format!("POST {PROXY}"), &length)).await;
        send(&mut write, &body).await;
    };
    let download = async {
        read_until(&mut read, "\r\n\r\n").await;
        let mut back = vec![0; SIZE];
        soon("the body", read.read_exact(&mut back)).await.expect("all of it");
        back
    };
    let ((), back) = tokio::join!(upload, download);
    assert_eq!(sum(&back), sum(&body));
    drop((read, write));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_watch_shows_each_event_at_once_and_ends_properly_when_podgate_stops() {
    let rig = rig(|mut io, _| async move {
        send(&mut io, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
        let _ = io.read_u8().await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /api/v1/pods?watch=1", "")).await;
    read_until(&mut client, "3\r\none\r\n").await;
    rig.gateway.gateway.drain.stop();
    read_until(&mut client, "0\r\n\r\n").await;
    until("the API server to be left", || rig.far.connections() == 0).await;
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn codes_and_bodies_are_the_api_servers_own() {
    let rig = answering(
        "HTTP/1.1 418 Short And Stout\r\nContent-Length: 4\r\nX-Own: a\r\nLocation: /x\r\n\r\nbody",
    )
    .await;
    let answer = rig.gateway.ask(&request("DELETE /api/v1/pods", "")).await;
    assert!(answer.head.starts_with("HTTP/1.1 418 Short And Stout\r\n"), "{}", answer.head);
    assert_eq!((answer.header("x-own"), answer.header("location")), (Some("a"), Some("/x")));
    assert_eq!(answer.body, "body");
    assert!((rig.gateway.metric("podgate_requests_total{code=\"418\"}") - 1.0).abs() < 0.1);
    rig.gateway.stop().await;
}

// === upgrades ===

#[tokio::test]
async fn an_upgrade_is_passed_through_with_all_that_came_with_the_101_and_both_ends() {
    for path in [PROXY, "/apis/x.io/v1/namespaces/d/machines/vm/console", "/api/v1/pods?watch=1"] {
        let mut rig = rig(echo).await;
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &upgrade_request(path)).await;
        let head = read_until(&mut client, "\r\n\r\n").await.to_lowercase();
        assert!(head.starts_with("http/1.1 101 switching protocols\r\n"), "{head}");
        for line in ["connection: upgrade", "upgrade: chat", "x-far: yes"] {
            assert_eq!(head.matches(&format!("\r\n{line}\r\n")).count(), 1, "{head}");
        }
        assert_eq!(read_exactly(&mut client, 6).await, b"early ");
        let far = rig.far.head().await;
        assert!(
            far.contains("\r\nconnection: Upgrade\r\n") && far.contains("\r\nupgrade: chat\r\n"),
            "{far}"
        );
        let said = noise(300_000);
        let (mut read, mut write) = tokio::io::split(client);
        let (back, ()) = tokio::join!(
            async {
                let mut back = vec![0; said.len()];
                soon("the echo", read.read_exact(&mut back)).await.expect("all of it");
                back
            },
            send(&mut write, &said),
        );
        assert_eq!(sum(&back), sum(&said));
        // The far side hears the end, and has the last word.
        write.shutdown().await.expect("an end");
        let mut rest = String::new();
        soon("the far side's end", read.read_to_string(&mut rest)).await.expect("a proper end");
        assert_eq!(rest, "late");
        rig.gateway.stop().await;
    }
}

#[tokio::test]
async fn what_a_client_sends_with_its_upgrade_request_is_not_lost() {
    let rig = rig(echo).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &[upgrade_request(PROXY), b"at once".to_vec()].concat()).await;
    read_until(&mut client, "\r\n\r\nearly at once").await;
    drop(client);
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let mut rig = answering("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
    let mut client = rig.gateway.connect_as("ana").await;
    for _ in 0..2 {
        send(&mut client, &upgrade_request(PROXY)).await;
        let answer = Answer::read(&mut client).await.expect("an answer");
        assert_eq!((answer.code(), answer.body.as_str()), (403, "no"));
        rig.far.head().await;
    }
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_leads_past_podgate_is_not_forwarded() {
    let mut rig = rig(echo).await;
    for (headers, text) in [
        ("Connection: upgrade\r\nUpgrade: h2c\r\n", "an upgrade to HTTP is not forwarded"),
        ("Connection: upgrade\r\nUpgrade: chat, TLS/1.2\r\n", "an upgrade to HTTP is not forwarded"),
        ("Connection: upgrade\r\nUpgrade: chat\r\nContent-Length: 1\r\n", "an upgrade request has no body"),
    ] {
        let answer = rig.gateway.ask(&request(&format!("GET {PROXY}"), headers)).await;
        assert_eq!(answer.body, status(400, "BadRequest", text, ""), "{headers}");
    }
    assert!(rig.far.untouched());
    // Without a protocol, or without a word about the connection, nothing is asked for; a far side that
    // switches all the same is not believed.
    for headers in ["Upgrade: chat\r\n", "Connection: upgrade\r\n", ""] {
        let answer = rig.gateway.ask(&request(&format!("GET {PROXY}"), headers)).await;
        let text = "the API server switched protocols without being asked to";
        assert_eq!(answer.body, status(500, "", text, ""), "{headers}");
    }
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_foreign_page_does_not_upgrade_with_its_visitors_certificate() {
    let mut rig = rig(echo).await;
    for (origin, code) in [("https://evil.test", 403), ("https://podgate.test", 101)] {
        let headers = format!("Connection: upgrade\r\nUpgrade: chat\r\nOrigin: {origin}\r\n");
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request("GET /api/v1/secrets?watch=1", &headers)).await;
        let head = read_until(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{head}");
        assert_eq!(rig.far.untouched(), code == 403);
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn what_is_no_watch_may_end_while_podgate_stops_and_is_seen_to_be_cut() {
    let rig = rig(|mut io, _| async move {
        send(&mut io, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
        while let Ok(1..) = io.read(&mut [0]).await {}
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /api/v1/namespaces/default/pods/web/log?follow=1", "")).await;
    read_until(&mut client, "3\r\none\r\n").await;
    rig.gateway.gateway.drain.stop();
    let more = tokio::time::timeout(Duration::from_millis(200), client.read_u8()).await;
    assert!(more.is_err(), "it goes on: {more:?}");
    let mut rest = Vec::new();
    let (drained, end) =
        tokio::join!(rig.gateway.gateway.stop(Duration::ZERO), client.read_to_end(&mut rest));
    assert!(drained == Drained::Cut && rest.is_empty() && end.is_err(), "{drained:?} {rest:?} {end:?}");
}

#[tokio::test]
async fn an_upgraded_connection_keeps_its_place_under_the_cap_and_ends_at_the_cut() {
    let mut one = config();
    one.api.max_connections = 1;
    let rig = rig_with(one, limits(), echo).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &upgrade_request(PROXY)).await;
    read_until(&mut client, "\r\n\r\nearly ").await;
    let tls = rig.gateway.client_tls("ana");
    assert!(rig.gateway.try_connect(tls).await.is_err(), "there is one place, and it is taken");
    rig.gateway.gateway.drain.stop();
    send(&mut client, b"still here").await;
    assert_eq!(read_exactly(&mut client, 10).await, b"still here");
    let mut rest = Vec::new();
    let (drained, end) =
        tokio::join!(rig.gateway.gateway.stop(Duration::ZERO), client.read_to_end(&mut rest));
    assert!(drained == Drained::Cut && rest.is_empty() && end.is_err(), "{drained:?} {rest:?} {end:?}");
}

#[tokio::test]
async fn an_upgraded_connection_that_breaks_on_one_side_breaks_on_the_other() {
    let rig = rig(|mut io, _| async move {
        send(&mut io, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\n\r\nhalf a wo").await;
        let _ = io.read_u8().await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &upgrade_request(PROXY)).await;
    read_until(&mut client, "\r\n\r\nhalf a wo").await;
    send(&mut client, b"!").await;
    let end = soon("the end", client.read_u8()).await.expect_err("no more");
    assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "{end:?}");
    assert!(
        end.to_string().contains("close_notify") || end.raw_os_error().is_some(),
        "no proper end: {end:?}"
    );
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_upgraded_connection_is_throttled() {
    let settings = Settings { max_bytes_per_second: 10_000, ..limits() };
    let rig = rig_with(config(), settings, echo).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &upgrade_request(PROXY)).await;
    read_until(&mut client, "\r\n\r\nearly ").await;
    let started = Instant::now();
    send(&mut client, &noise(5_000)).await;
    read_exactly(&mut client, 5_000).await;
    // Five samples, of which the first comes at once.
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
    drop(client);
    rig.gateway.stop().await;
}

// === sessions have one way only ===

#[tokio::test]
async fn a_session_in_disguise_never_reaches_the_api_server() {
    let rig = rig(echo).await;
    let nowhere = status(404, "NotFound", "the server could not find the requested resource", "{}");
    for path in [
        "/api/v1//namespaces/default/pods/web/exec",
        "/api/v1/namespaces/default/pods/web/log/../exec",
        "/apis/core/v1/namespaces/default/pods/web/exec",
        "/api/v1/namespaces/default/pods/web/EXEC",
    ] {
        let answer = rig.gateway.ask(&upgrade_request(path)).await;
        assert_eq!(answer.body, nowhere, "{path}");
    }
    let answer =
        rig.gateway.ask(&upgrade_request("/api/v1/nodes/n/proxy/logs/../exec/default/web/app")).await;
    let text = "nodes \"n\" is forbidden: sessions are not opened through a node's proxy, use pods/exec, \
        pods/attach or pods/portforward";
    assert_eq!(answer.body, status(403, "Forbidden", text, "{\"name\":\"n\",\"kind\":\"nodes\"}"));
    assert_eq!(rig.far.accepted(), 0);
    rig.gateway.stop().await;
}

// === limits and faults ===

fn too_large() -> String {
    status(413, "RequestEntityTooLarge", &format!("Request entity too large: limit is {LIMIT}"), "")
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_before_anything_is_sent() {
    let rig = rig(echo).await;
    let headers = format!("Content-Length: {}\r\nExpect: 100-continue\r\n", LIMIT + 1);
    let answer = rig.gateway.ask(&request(&format!("POST {SHORT}"), &headers)).await;
    assert_eq!((answer.code(), answer.body), (413, too_large()));
    assert_eq!(rig.far.accepted(), 0);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_all_of_it_first_hears_that_its_body_is_too_large() {
    // More than the sockets between take.
    const SIZE: usize = 16 << 20;
    let rig = rig(|mut io, _| async move {
        let _ = io.read_to_end(&mut Vec::new()).await;
    })
    .await;
    for headers in [format!("Content-Length: {SIZE}\r\n"), "Transfer-Encoding: chunked\r\n".to_owned()] {
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request(&format!("POST {SHORT}"), &headers)).await;
        if headers.starts_with('T') {
            send(&mut client, format!("{SIZE:x}\r\n").as_bytes()).await;
        }
        send(&mut client, &vec![b'a'; SIZE]).await;
        if headers.starts_with('T') {
            send(&mut client, b"\r\n0\r\n\r\n").await;
        }
        let answer = Answer::read(&mut client).await.expect("an answer");
        assert_eq!((answer.code(), answer.body), (413, too_large()), "{headers}");
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_body_that_grows_too_large_is_refused_and_one_of_the_limit_is_not() {
    let rig = rig(|mut io, _| async move {
        let size = usize::try_from(LIMIT).expect("it is small");
        read_until(&mut io, &format!("{size:x}\r\n")).await;
        let mut body = vec![0; size];
        io.read_exact(&mut body).await.expect("the body");
        if read_until(&mut io, "\r\n\r\n").await == "\r\n0\r\n\r\n" {
            send(&mut io, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        }
        let _ = io.read_u8().await;
    })
    .await;
    for (more, code) in [("", 201), ("1\r\nx\r\n", 413)] {
        let mut client = rig.gateway.connect_as("ana").await;
        let size = usize::try_from(LIMIT).expect("it is small");
        send(&mut client, &request(&format!("POST {SHORT}"), "Transfer-Encoding: chunked\r\n")).await;
        send(&mut client, format!("{size:x}\r\n").as_bytes()).await;
        send(&mut client, &vec![b'a'; size]).await;
        send(&mut client, format!("\r\n{more}0\r\n\r\n").as_bytes()).await;
        let answer = Answer::read(&mut client).await.expect("an answer");
        assert_eq!(answer.code(), code, "{}", answer.body);
        if code == 413 {
            assert_eq!(answer.body, too_large());
        }
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_a_timeout() {
    let mut hasty = config();
    hasty.api.request_timeout = Duration::from_millis(300);
    let rig = rig_with(hasty, limits(), |mut io, _| async move {
        let _ = io.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request(&format!("POST {SHORT}"), "Content-Length: 10\r\n")).await;
    send(&mut client, b"half").await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    assert_eq!(answer.code(), 504, "{}", answer.body);
    until("the API server to be left", || rig.far.connections() == 0).await;
    // Nobody reads the rest.
    read_to_end(&mut client).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_over_ends_a_request_that_is_not() {
    let rig = rig(|mut io, _| async move {
        send(&mut io, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno").await;
        let _ = io.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request(&format!("POST {SHORT}"), "Content-Length: 10\r\n")).await;
    send(&mut client, b"half").await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    assert_eq!((answer.code(), answer.body.as_str()), (403, "no"));
    until("the API server to be left", || rig.far.connections() == 0).await;
    read_to_end(&mut client).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    for head in [
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\none",
        "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none",
    ] {
        for path in [SHORT, "/api/v1/namespaces/default/pods/web/log?follow=1"] {
            let rig = rig(move |mut io, _| async move {
                // Not the end of a TLS connection: the socket is just gone.
                send(&mut io, head.as_bytes()).await;
            })
            .await;
            for version in ["HTTP/1.1", "HTTP/1.0"] {
                let mut client = rig.gateway.connect_as("ana").await;
                let line = format!("GET {path} {version}\r\nHost: podgate.test\r\n\r\n");
                send(&mut client, line.as_bytes()).await;
                let mut all = Vec::new();
                let end = soon("the end", client.read_to_end(&mut all)).await;
                let all = String::from_utf8_lossy(&all);
                assert!(!all.ends_with("0\r\n\r\n"), "{head} {version}: {all}");
                let unclean = end.is_err() || all.to_lowercase().contains("content-length: 30");
                assert!(unclean, "{head} {path} {version}: {all}");
            }
            rig.gateway.stop().await;
        }
    }
}

#[tokio::test]
async fn an_answer_that_stands_still_breaks_off() {
    let settings = Settings { stall_timeout: Duration::from_millis(200), ..limits() };
    let rig = rig_with(config(), settings, |mut io, _| async move {
        send(&mut io, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
        let _ = io.read_u8().await;
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request(&format!("GET {SHORT}"), "")).await;
    let all = read_to_end(&mut client).await;
    assert!(all.ends_with("3\r\none\r\n"), "{all}");
    until("the API server to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_api_server_that_is_down_is_503() {
    let rig = rig(|_, _| async {}).await;
    let Rig { far, gateway } = rig;
    drop(far);
    // Its socket goes with its task.
    soon("the far side to be gone", async {
        while gateway.ask(&request("GET /version", "")).await.code() != 503 {}
    })
    .await;
    let answer = gateway.ask(&request("GET /version", "")).await;
    assert!(answer.body.contains("the API server cannot be reached"), "{}", answer.body);
    gateway.stop().await;
}
