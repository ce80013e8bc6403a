//! Clients that mean harm or know no better: each gets a clear answer, and everybody else is served meanwhile.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use podgate::testing::answer::status;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{
    config, exec_request, read_exactly, read_to_end, request, send, without_certificate,
};
use podgate::testing::{Answer, soon, until};
use podgate::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::rig::{Rig, rig, rig_knowing_tokens, rig_with};

const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec";
const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";

impl Rig {
    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.gateway.gateway.api).await.expect("connect to the gateway")
    }

    /// A client that behaves gets its answer.
    async fn others_are_served(&self) {
        assert_eq!(self.gateway.ask(&request("GET /whoami", "")).await.code(), 200);
    }
}

/// Waits until the gateway closes, one way or another.
async fn closed(tcp: &mut TcpStream) {
    let mut dropped = Vec::new();
    let _ = soon("the gateway to close", tcp.read_to_end(&mut dropped)).await;
}

fn refused(reason: &str) -> String {
    format!("podgate_connections_refused_total{{reason=\"{reason}\"}}")
}

fn bad_request(text: &str) -> (u16, String) {
    (400, status(400, "BadRequest", text, ""))
}

// === before HTTP ===

#[tokio::test]
async fn garbage_or_plain_http_on_the_tls_port_is_closed_and_counted() {
    let rig = rig().await;
    for said in [&b"\x00\x01\x02\x03 what is this\r\n\r\n"[..], b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut tcp = rig.tcp().await;
        tcp.write_all(said).await.unwrap();
        rig.others_are_served().await;
        closed(&mut tcp).await;
    }
    until("both to be counted", || rig.gateway.metric(&refused("handshake_failed")) == 2.0).await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_client_that_stalls_in_its_handshake_is_closed_and_counted() {
    let mut short = config();
    short.api.handshake_timeout = Duration::from_millis(300);
    let rig = rig_with(short).await;
    let mut tcp = rig.tcp().await;
    // A record header that promises a ClientHello.
    tcp.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    rig.others_are_served().await;
    closed(&mut tcp).await;
    until("it to be counted", || rig.gateway.metric(&refused("handshake_timeout")) == 1.0).await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn beyond_the_connection_cap_connections_are_closed_and_freed_slots_serve_again() {
    let mut small = config();
    small.api.max_connections = 2;
    let rig = rig_with(small).await;
    // One slot is a session's: it is held until the session is over.
    let mut session = rig.gateway.connect_as("ana").await;
    send(&mut session, &exec_request("command=id", "")).await;
    assert_eq!(read_exactly(&mut session, SWITCHING.len()).await, SWITCHING);
    let idle = rig.gateway.connect_as("ana").await;
    for times in [1.0, 2.0] {
        let mut third = rig.tcp().await;
        closed(&mut third).await;
        assert_eq!(rig.gateway.metric(&refused("over_limit")), times);
    }
    drop(idle);
    let tls = rig.gateway.client_tls("ana");
    let connect = || rig.gateway.try_connect(tls.clone());
    let mut freed = soon("a freed slot", async {
        loop {
            if let Ok(io) = connect().await {
                break io;
            }
        }
    })
    .await;
    send(&mut freed, &request("GET /whoami", "")).await;
    assert_eq!(Answer::read(&mut freed).await.expect("an answer").code(), 200);
    assert!(connect().await.is_err(), "the session still has its slot");
    drop(session);
    soon("the session's slot", async { while connect().await.is_err() {} }).await;
    drop(freed);
    rig.gateway.stop().await;
}

// === heads ===

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let mut short = config();
    short.api.header_timeout = Duration::from_millis(300);
    let rig = rig_with(short).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, b"GET /version HTTP/1.1\r\nHost: x\r\nX-Mo").await;
    rig.others_are_served().await;
    read_to_end(&mut client).await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off_however_long_it_keeps_dripping() {
    let mut short = config();
    short.api.header_timeout = Duration::from_millis(300);
    let rig = rig_with(short).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, b"GET /version HTTP/1.1\r\nX: ").await;
    let dripping = async {
        let mut byte = [0; 1];
        loop {
            // Each byte comes well within the deadline; only all of them together do not.
            let drip = tokio::time::timeout(Duration::from_millis(30), client.read(&mut byte)).await;
            if drip.is_ok() || client.write_all(b"x").await.is_err() || client.flush().await.is_err() {
                return;
            }
        }
    };
    soon("the gateway to close", dripping).await;
    rig.others_are_served().await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn too_many_headers_or_too_large_a_head_is_431() {
    let mut small = config();
    small.api.max_headers = 20;
    small.api.max_header_bytes = 8192;
    let rig = rig_with(small).await;
    let many: String = (0..30).map(|n| format!("X-{n}: y\r\n")).collect();
    let large = format!("X: {}\r\n", "y".repeat(10_000));
    for headers in [many, large] {
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request("GET /whoami", &headers)).await;
        let answer = Answer::read(&mut client).await.expect("an answer");
        assert_eq!(answer.code(), 431);
        assert_eq!(read_to_end(&mut client).await, "", "and the connection ends");
        rig.others_are_served().await;
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_nul_or_a_bare_carriage_return_in_a_header_is_400_and_the_connection_ends() {
    let rig = rig().await;
    for header in
        ["X: a\0b\r\n", "X: a\rb\r\n", "X\0: a\r\n", "X : a\r\n", " X: a\r\n", "X: a\r\n folded\r\n"]
    {
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &request(&format!("POST {EXEC}"), &format!("{UPGRADE}{header}"))).await;
        let answer = Answer::read(&mut client).await.expect("an answer");
        assert_eq!(answer.code(), 400, "{header:?}");
        assert_eq!(read_to_end(&mut client).await, "");
    }
    rig.others_are_served().await;
    rig.stop_untouched().await;
}

// === paths, queries, methods ===

#[tokio::test]
async fn pod_names_that_are_no_names_reach_no_kubelet() {
    let rig = rig().await;
    let not_found = |name: &str, quoted: &str| {
        let details = format!("{{\"name\":\"{name}\",\"kind\":\"pods\"}}");
        (404, status(404, "NotFound", &format!("pods \"{quoted}\" not found"), &details))
    };
    let invalid =
        |name: &str, problem: &str| bad_request(&format!("Name parameter invalid: \"{name}\": {problem}"));
    let long = "x".repeat(20_000);
    let cases = [
        ("..", invalid("..", "may not be '..'")),
        ("%2e%2E", invalid("..", "may not be '..'")),
        (".", invalid(".", "may not be '.'")),
        ("a%25b", invalid("a%b", "may not contain '%'")),
        ("%ff", not_found("\u{fffd}", "\u{fffd}")),
        ("%00", not_found("\\u0000", "\\x00")),
        ("a%0d%0aX-Evil:%201", not_found("a\\r\\nX-Evil: 1", "a\\r\\nX-Evil: 1")),
        (&long, not_found(&long, &long)),
        ("%zz", bad_request("invalid URL escape in path \"/api/v1/namespaces/default/pods/%zz/exec\"")),
    ];
    for (name, wanted) in cases {
        let line = format!("POST /api/v1/namespaces/default/pods/{name}/exec?command=id");
        let answer = rig.gateway.ask(&request(&line, UPGRADE)).await;
        assert_eq!((answer.code(), answer.body), wanted);
        assert!(!answer.head.contains("Evil"), "{}", answer.head);
    }
    // An escaped slash is a slash: these are other resources, and no sessions.
    rig.gateway.cluster.judge(|_, attributes| {
        assert!(attributes.resource.as_ref().is_none_or(|r| r.subresource != "exec"));
        Ok(podgate::testing::cluster::deny(""))
    });
    for path in ["pods/a%2fb/exec", "pods%2fweb/exec/", "../pods/web/exec", "pods/web%2fexec%2fx/exec"] {
        let line = format!("POST /api/v1/namespaces/default/{path}?command=id");
        let code = rig.gateway.ask(&request(&line, UPGRADE)).await.code();
        assert!(matches!(code, 403 | 500), "{path}: {code}");
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn line_breaks_and_nuls_in_a_command_stay_escaped_on_the_way_to_the_kubelet() {
    let mut rig = rig().await;
    let query = "command=a%0d%0aX-Evil:%201%0d%0a%0d%0a&command=%00&container=app";
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request(query, "")).await;
    let head = rig.far.head().await;
    let line = "POST /exec/default/web/app?command=a%0D%0AX-Evil%3A+1%0D%0A%0D%0A&command=%00 HTTP/1.1\r\n";
    assert!(head.starts_with(line), "{head}");
    assert!(!head.contains("\r\nX-Evil"), "{head}");
    drop(client);
    let answer = rig.gateway.ask(&exec_request("container=a%0d%0aX:%20y", "")).await;
    let wanted = bad_request("container a\r\nX: y is not valid for pod web");
    assert_eq!((answer.code(), answer.body), wanted);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_malformed_query_loses_its_bad_pairs_and_nothing_else() {
    let mut rig = rig().await;
    let mut client = rig.gateway.connect_as("ana").await;
    let query = "command=%zz&command=a;b&&&=&=x&command=ok&%&command=%4&stdout&?&stdin=%";
    send(&mut client, &exec_request(query, "")).await;
    assert!(rig.far.head().await.starts_with("POST /exec/default/web/app?command=ok&output=1 HTTP/1.1\r\n"));
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_request_line_up_to_64_kib_is_served_and_beyond_it_is_414() {
    let mut rig = rig().await;
    let commands = |count| vec!["command=a"; count].join("&");
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request(&commands(6_000), "")).await;
    assert_eq!(rig.far.head().await.matches("command=a").count(), 6_000);
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop(client);
    // kube-apiserver would take up to 1 MiB; hyper's URI type ends here.
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request(&commands(10_000), "")).await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    assert_eq!(answer.code(), 414);
    assert_eq!(read_to_end(&mut client).await, "");
    rig.others_are_served().await;
    assert_eq!(rig.far.accepted(), 1);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn odd_paths_and_methods_are_reviewed_as_what_they_are() {
    let rig = rig().await;
    rig.gateway.cluster.judge(|_, _| Ok(podgate::testing::cluster::deny("")));
    for (line, review) in [
        ("BREW /coffee", "ana brew /coffee"),
        ("OPTIONS *", "ana options *"),
        ("GET //api/v1/nodes", "ana list nodes /"),
        ("GET https://elsewhere.test/api/v1/nodes", "ana list nodes /"),
        ("GET /api/v1/namespaces/default/pods/web/exec/", "ana get pods/exec default/web"),
        ("POST /api/v2/namespaces/default/pods/web/exec", "ana create pods/exec default/web"),
        ("POST /apis/x/v1/namespaces/default/pods/web/exec", "ana create pods/exec default/web"),
        ("BREW /api/v1/nodes/n", "ana  nodes /n"),
    ] {
        let answer = rig.gateway.ask(&request(line, UPGRADE)).await;
        assert_eq!(answer.code(), 403, "{line}");
        assert_eq!(rig.gateway.cluster.reviews().last().unwrap(), review);
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn sessions_of_other_groups_versions_or_depths_are_none() {
    let rig = rig().await;
    for path in [
        "/api/v2/namespaces/default/pods/web/exec",
        "/apis/x/v1/namespaces/default/pods/web/exec",
        "/api/v1/namespaces/default/services/web/exec",
        "/api/v1/namespaces/default/pods/web/EXEC",
    ] {
        let answer = rig.gateway.ask(&request(&format!("POST {path}"), UPGRADE)).await;
        assert_eq!(answer.code(), 200, "the cluster answers {path}");
    }
    let text = "the server could not find the requested resource";
    for path in ["/api/v1/namespaces/default/pods/web/exec/more", "/api/v1/pods/web/exec"] {
        let answer = rig.gateway.ask(&request(&format!("POST {path}"), UPGRADE)).await;
        assert_eq!((answer.code(), answer.body), (404, status(404, "NotFound", text, "{}")));
    }
    rig.stop_untouched().await;
}

// === upgrades ===

#[tokio::test]
async fn an_upgrade_to_anything_but_spdy_and_websocket_is_400_and_no_session() {
    let rig = rig().await;
    let text = "the protocols to upgrade to are SPDY/3.1 and websocket";
    for protocol in ["h2c", "SPDY/2", "", "h2c, SPDY/3.1", "websocket, SPDY/3.1"] {
        let headers = format!("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n");
        let answer = rig.gateway.ask(&request(&format!("POST {EXEC}?command=id"), &headers)).await;
        assert_eq!((answer.code(), answer.body), bad_request(text), "{protocol}");
    }
    assert_eq!(rig.gateway.metric("podgate_session_setup_seconds_count"), 0.0);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_400_however_its_length_is_told() {
    let rig = rig().await;
    let text = "an upgrade request has no body";
    for (headers, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        let asked = [exec_request("command=id", headers), body.into()].concat();
        let answer = rig.gateway.ask(&asked).await;
        assert_eq!((answer.code(), answer.body), bad_request(text));
    }
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_request_with_two_ideas_of_its_length_is_400_and_nothing_is_smuggled() {
    let rig = rig().await;
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    for headers in [
        "Content-Length: 44\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 44\r\n",
        "Content-Length: 0\r\nContent-Length: 44\r\n",
        "Content-Length: +0\r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &[exec_request("command=id", headers), smuggled.into()].concat()).await;
        assert_eq!(Answer::read(&mut client).await.expect("an answer").code(), 400, "{headers}");
    }
    assert_eq!(rig.gateway.metric("podgate_session_setup_seconds_count"), 0.0);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_request_pipelined_behind_an_upgrade_is_no_request() {
    let rig = rig().await;
    let second = request("GET /secret", "");
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &[exec_request("command=id", ""), second.clone()].concat()).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    // It belongs to the session by then: the beginning of a DATA frame of some stream, which the far side says back.
    let (head, rest) = second.split_at(8);
    let said = read_exactly(&mut client, second.len()).await;
    assert_eq!((&said[..4], &said[8..]), (&head[..4], rest));
    assert_eq!(rig.gateway.cluster.served(), Vec::<String>::new());
    assert_eq!(rig.gateway.cluster.reviews(), ["ana create pods/exec default/web"]);
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn an_upgrade_pipelined_behind_a_request_is_a_session() {
    let rig = rig().await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &[request("GET /whoami", ""), exec_request("command=id", "")].concat()).await;
    assert_eq!(Answer::read(&mut client).await.expect("an answer").code(), 200);
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop(client);
    rig.gateway.stop().await;
}

/// A TLS connection as ana that speaks HTTP/2.
async fn http2(rig: &Rig) -> TlsStream<TcpStream> {
    let mut tls = rig.gateway.client_tls("ana");
    Arc::make_mut(&mut tls).alpn_protocols = vec![tls::HTTP2.to_vec()];
    rig.gateway.connect(tls).await
}

#[tokio::test]
async fn an_http2_connection_that_asks_nothing_is_closed() {
    let mut config = config();
    config.api.header_timeout = Duration::from_millis(200);
    config.api.handshake_timeout = Duration::from_millis(500);
    let rig = rig_with(config).await;
    // One that never says its preface, and one that does and then nothing.
    let mut silent = http2(&rig).await;
    let (_asks, quiet) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Empty<bytes::Bytes>>(
        TokioExecutor::new(),
        TokioIo::new(http2(&rig).await),
    )
    .await
    .unwrap();
    read_to_end(&mut silent).await;
    let _ = soon("the end of the quiet connection", quiet).await;
    until("both places are free", || rig.gateway.metric("podgate_connections") == 0.0).await;
    rig.others_are_served().await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn an_http2_connection_leaves_after_a_401() {
    let rig = rig().await;
    let mut tls = without_certificate(rig.gateway.pki.roots());
    Arc::make_mut(&mut tls).alpn_protocols = vec![tls::HTTP2.to_vec()];
    let io = TokioIo::new(rig.gateway.connect(tls).await);
    let (mut asks, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let ask = async {
        let request = http::Request::get("https://localhost/api/v1/pods");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        asks.send_request(request).await.unwrap().status()
    };
    let (connection, code) = soon("a 401 and the end", async { tokio::join!(connection, ask) }).await;
    assert_eq!(code, 401);
    connection.unwrap();
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_401_beside_a_watch_does_not_cut_the_watch() {
    const PATIENCE: Duration = Duration::from_millis(500);
    let mut config = config();
    config.api.handshake_timeout = PATIENCE;
    let rig = rig_knowing_tokens(config).await;
    let ana = podgate::cluster::User { name: "ana".into(), ..Default::default() };
    rig.gateway.cluster.know("t0ken", Some(ana));
    let mut tls = without_certificate(rig.gateway.pki.roots());
    Arc::make_mut(&mut tls).alpn_protocols = vec![tls::HTTP2.to_vec()];
    let io = TokioIo::new(rig.gateway.connect(tls).await);
    let (mut asks, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let mut request = |token: &str, path: &str| {
        let request = http::Request::get(format!("https://localhost{path}"));
        let request = request.header("authorization", format!("Bearer {token}"));
        asks.send_request(request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap())
    };
    let (watch, other) = (request("t0ken", "/api/v1/pods?watch=1"), request("old", "/api/v1/pods"));
    let talk = async {
        let mut watch = watch.await.unwrap().into_body();
        assert!(watch.frame().await.unwrap().unwrap().is_data());
        assert_eq!(other.await.unwrap().status(), 401);
        let more = tokio::time::timeout(PATIENCE * 2, watch.frame()).await;
        assert!(more.is_err(), "the watch ended: {more:?}");
    };
    let (_connection, ()) = tokio::join!(tokio::time::timeout(PATIENCE * 3, connection), talk);
    rig.stop_untouched().await;
}

#[tokio::test]
async fn header_lines_are_counted_in_http2_too() {
    let rig = rig().await;
    let io = TokioIo::new(http2(&rig).await);
    let (mut asks, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let ask = async {
        let mut request = http::Request::get("https://localhost/whoami");
        for number in 0..300 {
            request = request.header("impersonate-group", format!("g{number}"));
        }
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let code = asks.send_request(request).await.unwrap().status();
        drop(asks);
        code
    };
    let (_, code) = soon("an answer", async { tokio::join!(connection, ask) }).await;
    assert_eq!(code, 431);
    assert_eq!(rig.gateway.cluster.reviews(), Vec::<String>::new());
    rig.stop_untouched().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_closed() {
    let mut config = config();
    config.api.write_timeout = Duration::from_millis(300);
    let rig = rig_with(config).await;
    let mut client = rig.gateway.connect_as("ana").await;
    // The answer is the caller's name: a long one fills the sockets in a few dozen answers.
    let name = format!("Impersonate-User: {}\r\n", "x".repeat(60_000));
    let ask = request("GET /whoami", &name);
    // Until the gateway takes no more, because nobody takes its answers.
    let filled = async { while client.write_all(&ask).await.is_ok() {} };
    soon("the end of the connection", filled).await;
    until("its place is free", || rig.gateway.metric("podgate_connections") == 0.0).await;
    rig.others_are_served().await;
    rig.stop_untouched().await;
}

#[tokio::test]
async fn an_upgrade_has_one_host_and_one_upgrade_line() {
    let rig = rig().await;
    for headers in [
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nUpgrade: websocket\r\n",
        "Host: other\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
    ] {
        let answer = rig.gateway.ask(&request(&format!("POST {EXEC}?command=id"), headers)).await;
        assert_eq!(answer.code(), 400, "{headers}");
    }
    rig.stop_untouched().await;
}
