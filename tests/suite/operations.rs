//! Starting, stopping, and what an operator sees.

use std::sync::Arc;
use std::time::Duration;

use podgate::app::Gateway;
use podgate::cli;
use podgate::config::Config;
use podgate::drain::Drained;
use podgate::telemetry::Metrics;
use podgate::testing::answer::status;
use podgate::testing::cluster::allow;
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{STDIN, data};
use podgate::testing::gateway::{config, exec_request, read_exactly, read_to_end, request, send};
use podgate::testing::{Answer, FakeCluster, Far, Pki, TestGateway, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::rig::rig_with;

async fn session(gateway: &TestGateway) -> TlsStream<TcpStream> {
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    client
}

fn shows(metrics: &Metrics, line: &str) -> bool {
    String::from_utf8(metrics.render()).expect("text").lines().any(|have| have == line)
}

/// Both steps of the stop at once, for what must not outlive them.
async fn cut(gateway: Gateway) -> Drained {
    soon("the stop", gateway.stop(Duration::ZERO)).await
}

// === the two-step stop ===

#[tokio::test]
async fn a_stop_refuses_the_new_lets_the_live_go_on_and_cuts_them_at_the_deadline() {
    let rig = rig_with(config()).await;
    let mut client = session(&rig.gateway).await;
    let mut idle = rig.gateway.connect_as("ana").await;
    send(&mut idle, &request("GET /whoami", "")).await;
    assert_eq!(Answer::read(&mut idle).await.expect("an answer").code(), 200);
    assert_eq!(rig.gateway.admin("GET /readyz").await.body, "ok");

    rig.gateway.gateway.drain.stop();
    assert_eq!(read_to_end(&mut idle).await, "", "an idle connection ends");
    soon("new connections to be refused", async {
        while TcpStream::connect(rig.gateway.gateway.api).await.is_ok() {}
    })
    .await;
    let ready = rig.gateway.admin("GET /readyz").await;
    let failed = "[+]ping ok\n[-]draining failed: reason withheld\nreadyz check failed\n";
    assert_eq!((ready.code(), ready.body.as_str()), (500, failed));
    assert_eq!(rig.gateway.admin("GET /livez").await.body, "ok");
    let words = data(STDIN, b"still here");
    send(&mut client, &words).await;
    assert_eq!(read_exactly(&mut client, words.len()).await, words);

    let (metrics, admin) = (rig.gateway.gateway.metrics.clone(), rig.gateway.gateway.admin);
    let mut rest = Vec::new();
    // Its end is no proper one.
    let (drained, end) = tokio::join!(cut(rig.gateway.gateway), client.read_to_end(&mut rest));
    let goaway = b"\x80\x03\x00\x07\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00";
    assert!(drained == Drained::Cut && rest == goaway && end.is_err(), "{drained:?} {rest:x?} {end:?}");
    assert!(shows(&metrics, "podgate_sessions_ended_total{end=\"drained\",subresource=\"exec\"} 1"));
    assert!(shows(&metrics, "podgate_sessions 0"));
    assert!(TcpStream::connect(admin).await.is_err(), "the admin address goes last, but goes");
    until("the far side to be left", || rig.far.connections() == 0).await;
}

#[tokio::test]
async fn a_stop_is_clean_when_sessions_end_before_the_deadline() {
    let rig = rig_with(config()).await;
    let client = session(&rig.gateway).await;
    let metrics = rig.gateway.gateway.metrics.clone();
    let drain = rig.gateway.gateway.drain.clone();
    let leaves = async {
        drain.stopping().await;
        drop(client);
    };
    let (drained, ()) =
        tokio::join!(soon("the stop", rig.gateway.gateway.stop(Duration::from_secs(60))), leaves);
    assert_eq!(drained, Drained::Clean);
    assert!(shows(&metrics, "podgate_sessions 0"));
}

#[tokio::test]
async fn a_session_asked_for_before_the_stop_and_permitted_after_it_is_503() {
    let rig = rig_with(config()).await;
    let drain = rig.gateway.gateway.drain.clone();
    rig.gateway.cluster.judge(move |_, _| {
        drain.stop();
        Ok(allow())
    });
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "podgate is shutting down, try another replica";
    assert_eq!((answer.code(), answer.body), (503, status(503, "ServiceUnavailable", text, "")));
    assert_eq!(rig.far.accepted(), 0);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_session_whose_far_side_answers_after_the_stop_still_lives_until_the_cut() {
    let pki = Arc::new(Pki::new());
    let (asked, answer) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (tell, wait) = (asked.clone(), answer.clone());
    let far = Far::start(&pki, move |mut io| {
        let (tell, wait) = (tell.clone(), wait.clone());
        async move {
            tell.notify_one();
            wait.notified().await;
            send(&mut io, SWITCHING).await;
            let _ = io.read_u8().await;
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    soon("the request", asked.notified()).await;
    gateway.gateway.drain.stop();
    answer.notify_one();
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    drop(client);
    gateway.stop().await;
}

#[tokio::test]
async fn a_watch_ends_with_the_first_step_of_the_stop() {
    let rig = rig_with(config()).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /api/v1/pods?watch=1", "")).await;
    let mut seen = String::new();
    while !seen.contains("first\n") {
        seen.push(char::from(soon("the first line", client.read_u8()).await.unwrap()));
    }
    rig.gateway.gateway.drain.stop();
    assert!(read_to_end(&mut client).await.ends_with("0\r\n\r\n"), "its end is a proper one");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn a_handshake_that_stalls_does_not_outlive_the_stop() {
    let mut long = config();
    long.api.handshake_timeout = Duration::from_secs(600);
    let rig = rig_with(long).await;
    let mut tcp = TcpStream::connect(rig.gateway.gateway.api).await.unwrap();
    tcp.write_all(b"\x16\x03\x01\x02\x00\x01").await.unwrap();
    until("it to be accepted", || rig.gateway.metric("podgate_connections_accepted_total") == 1.0).await;
    assert_eq!(soon("the stop", rig.gateway.gateway.stop(Duration::from_secs(60))).await, Drained::Clean);
}

#[tokio::test]
async fn a_refusal_whose_body_stalls_does_not_outlive_the_cut() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart").await;
        let _ = io.read_u8().await;
    })
    .await;
    let mut long = config();
    long.session.refusal_timeout = Duration::from_secs(600);
    let gateway = TestGateway::facing(&far, long, pki).await;
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    let head = b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart";
    assert_eq!(read_exactly(&mut client, head.len()).await, head);
    assert_eq!(cut(gateway.gateway).await, Drained::Cut);
}

#[tokio::test]
async fn a_peer_that_does_not_close_does_not_outlive_the_cut() {
    let mut long = config();
    long.session.linger = Duration::from_secs(600);
    let rig = rig_with(long).await;
    // Neither reads on nor closes: the close of the session has nobody to answer it.
    let client = session(&rig.gateway).await;
    assert_eq!(cut(rig.gateway.gateway).await, Drained::Cut);
    drop(client);
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_short_request_waits_for_its_answer() {
    let mut short = config();
    short.api.request_timeout = Duration::from_millis(300);
    let rig = rig_with(short).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &request("GET /hang", "")).await;
    until("it to be served", || !rig.gateway.cluster.served().is_empty()).await;
    rig.gateway.gateway.drain.stop();
    assert_eq!(Answer::read(&mut client).await.expect("an answer").code(), 504);
    rig.gateway.stop().await;
}

// === the admin address ===

#[tokio::test]
async fn item_115_health_has_upstreams_texts_and_headers() {
    let rig = rig_with(config()).await;
    let gateway = &rig.gateway;
    for path in ["/healthz", "/livez", "/readyz"] {
        let answer = gateway.admin(&format!("GET {path}")).await;
        assert_eq!((answer.code(), answer.body.as_str()), (200, "ok"));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    }
    let verbose = gateway.admin("GET /readyz?verbose").await.body;
    assert_eq!(verbose, "[+]ping ok\n[+]draining ok\nreadyz check passed\n");
    let excluded = gateway.admin("GET /readyz?verbose&exclude=draining&exclude=none").await.body;
    assert_eq!(
        excluded,
        "[+]ping ok\n[+]draining excluded: ok\n\
         warn: some health checks cannot be excluded: no matches for \"none\"\nreadyz check passed\n"
    );
    gateway.gateway.drain.stop();
    assert_eq!(gateway.admin("GET /readyz?exclude=draining").await.body, "ok");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn the_admin_address_has_404_and_405_and_outlives_garbage() {
    let rig = rig_with(config()).await;
    let answer = rig.gateway.admin("GET /nothing").await;
    assert_eq!((answer.code(), answer.body.as_str()), (404, "try /healthz, /livez, /readyz or /metrics\n"));
    let answer = rig.gateway.admin("POST /healthz").await;
    assert_eq!((answer.code(), answer.body.as_str()), (405, "only GET and HEAD are served here\n"));
    let mut tcp = TcpStream::connect(rig.gateway.gateway.admin).await.unwrap();
    tcp.write_all(b"\x16\x03\x01\x02\x00\r\n\r\n").await.unwrap();
    assert_eq!(Answer::read(&mut tcp).await.expect("an answer").code(), 400);
    assert_eq!(rig.gateway.admin("GET /healthz").await.code(), 200);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn metrics_show_the_documented_series_after_traffic() {
    let mut rig = rig_with(config()).await;
    let mut client = session(&rig.gateway).await;
    let words = data(STDIN, b"12345");
    send(&mut client, &words).await;
    assert_eq!(read_exactly(&mut client, words.len()).await, words);
    client.shutdown().await.unwrap();
    drop(client);
    until("the session to end", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    assert_eq!(rig.gateway.ask(&request("GET /whoami", "")).await.code(), 200);
    assert_eq!(rig.gateway.ask(&exec_request("container=none", "")).await.code(), 400);
    rig.far.head().await;
    until("the connections to end", || rig.gateway.metric("podgate_connections") == 0.0).await;

    let answer = rig.gateway.admin("GET /metrics").await;
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let lines: Vec<&str> = answer.body.lines().filter(|line| !line.starts_with('#')).collect();
    for wanted in [
        "podgate_connections 0",
        "podgate_connections_accepted_total 3",
        "podgate_refusals_total{reason=\"bad_request\"} 1",
        "podgate_requests_total{code=\"200\"} 1",
        "podgate_requests_total{code=\"400\"} 1",
        "podgate_session_bytes_total{direction=\"down\"} 13",
        "podgate_session_bytes_total{direction=\"up\"} 13",
        "podgate_session_duration_seconds_count 1",
        "podgate_session_setup_seconds_count 1",
        "podgate_sessions 0",
        "podgate_sessions_ended_total{end=\"client_closed\",subresource=\"exec\"} 1",
    ] {
        assert!(lines.contains(&wanted), "{wanted} is not in\n{}", answer.body);
    }
    assert!(lines.iter().any(|line| line.starts_with("process_open_fds ")), "{}", answer.body);
    for secret in ["ana", "default", "web", "127.0.0.1"] {
        assert!(lines.iter().all(|line| !line.contains(secret)), "{secret} in\n{}", answer.body);
    }
    rig.gateway.stop().await;
}

// === settings ===

#[test]
fn settings_that_cannot_be_used_are_refused_with_file_key_and_reason() {
    let load = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut flags = cli::Dev::default();
        flags.gateway.config = Some(file.path().to_owned());
        let path = file.path().display().to_string();
        Config::dev(&flags).map_err(|error| error.to_string().replace(&path, "FILE"))
    };
    let refused = |text: &str| load(text).unwrap_err();
    assert!(refused("apis: {}\n").starts_with("config file FILE, at apis: "));
    assert!(refused("session:\n  linger: soon\n").starts_with("config file FILE, at session.linger: "));
    assert!(refused("session:\n  refusalTimeot: 1s\n").contains("session.refusalTimeot"));
    assert_eq!(refused("{"), "config file FILE: unclosed bracket '{' at line 1, column 1");
    assert_eq!(
        refused("api:\n  maxInFlight: 0\n"),
        "config file FILE, line 2, at api.maxInFlight: is at least 1"
    );
    assert_eq!(
        refused("session:\n  refusalTimeout: 0s\n"),
        "config file FILE, line 2, at session.refusalTimeout: is from 1ms to 8760h"
    );
    assert!(refused("api:\n  listen: 0.0.0.0:1\n").contains("line 2, at api.listen: 0.0.0.0:1 is not"));
    assert_eq!(load("session:\n  linger: 2s\n").unwrap().session.linger, Duration::from_secs(2));
    let mut flags = cli::Dev::default();
    flags.gateway.config = Some("/nonexistent/podgate.yaml".into());
    let missing = Config::dev(&flags).unwrap_err();
    assert_eq!(missing.to_string(), "read config file /nonexistent/podgate.yaml");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let mut config = config();
    config.admin.listen = addr;
    let pki = Pki::new();
    let ground = TestGateway::ground(&pki, FakeCluster::new());
    let error = Gateway::start(&config, ground, podgate::drain::Drain::new()).await.err().expect("no start");
    assert_eq!(error.to_string(), format!("listen on {addr}"));
}
