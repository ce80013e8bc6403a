//! The upgrade path against a far side that does as it is told.

use std::sync::Arc;
use std::time::Duration;

use podgate::config::Config;
use podgate::testing::answer::status;
use podgate::testing::far::SWITCHING;
use podgate::testing::frames::{ERROR, STDIN, STDOUT, data, opening, payload, replies, result};
use podgate::testing::gateway::{config, exec_request, read_exactly, request, send};
use podgate::testing::{Answer, Far, Pki, TestGateway, soon, until};
use podgate::wire::remotecommand::{Outcome, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use crate::rig::{FarIo, echoes};

/// What a client is told whose far side has gone.
const LOST: &str = "the connection to the pod ended before the session did";

struct Rig {
    far: Far,
    gateway: TestGateway,
}

/// A gateway in front of a far side that runs this script.
async fn rig<S, F>(script: S) -> Rig
where
    S: Fn(FarIo) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    rig_with(config(), script).await
}

async fn rig_with<S, F>(config: Config, script: S) -> Rig
where
    S: Fn(FarIo) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, script).await;
    let gateway = TestGateway::facing(&far, config, pki).await;
    Rig { far, gateway }
}

/// Answers with these bytes, closes its side, and waits for the gateway to close.
fn says(bytes: &'static [u8]) -> impl Fn(FarIo) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    move |mut io| {
        Box::pin(async move {
            send(&mut io, bytes).await;
            io.shutdown().await.expect("the gateway still listens");
            drain(&mut io).await;
        })
    }
}

async fn drain(io: &mut FarIo) {
    let mut dropped = [0; 4096];
    while let Ok(1..) = io.read(&mut dropped).await {}
}

/// Switches, then says this output and how the command ended, whatever it is told, and closes its side.
async fn finishes(mut io: FarIo, output: Vec<u8>) {
    send(&mut io, SWITCHING).await;
    // The result is of streams that the client has opened.
    io.read_exact(&mut vec![0; opening().len()]).await.expect("the client opens its streams");
    send(&mut io, &[replies(), data(STDOUT, &output), result(&Outcome::Success)].concat()).await;
    io.shutdown().await.expect("the gateway still listens");
    drain(&mut io).await;
}

/// Opens a session as ana and takes its 101.
async fn session(gateway: &TestGateway) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut client = gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id&stdin=1&stdout=1", "")).await;
    assert_eq!(read_exactly(&mut client, SWITCHING.len()).await, SWITCHING);
    client
}

fn ended(end: &str) -> String {
    format!("podgate_sessions_ended_total{{end=\"{end}\",subresource=\"exec\"}}")
}

// === what the far side sees ===

#[tokio::test]
async fn item_010_011_012_031_033_the_kubelet_sees_its_own_query_and_nothing_of_the_clients() {
    let mut rig = rig(says(SWITCHING)).await;
    let query = "command=sh&command=-c&command=a+b%26%3D%25&command=-c&command=%ff%c3%a9&stdin&stdout=yes\
                 &stderr=0&tty=False&container=app&container=other&timeout=1s&pretty=true&input=9&Stderr=1";
    rig.gateway.say(&exec_request(query, "")).await;
    let head = rig.far.head().await;
    assert_eq!(
        head.lines().next().unwrap(),
        "POST /exec/default/web/app?command=sh&command=-c&command=a+b%26%3D%25&command=-c&command=%FF%C3%A9\
         &input=1&output=1 HTTP/1.1"
    );
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_031_attach_asks_with_all_four_flags_and_no_command() {
    let mut rig = rig(says(SWITCHING)).await;
    let line = "GET /api/v1/namespaces/default/pods/web/attach?tty=1&stdin=1&stdout=1&stderr=1&command=no";
    rig.gateway.say(&request(line, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n")).await;
    let head = rig.far.head().await;
    assert!(head.starts_with("GET /attach/default/web/app?error=1&input=1&output=1&tty=1 HTTP/1.1\r\n"));
    assert!(!head.contains("Content-Length"), "a GET has none: {head}");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_032_port_forward_names_ports_only_when_the_client_did() {
    let mut rig = rig(says(SWITCHING)).await;
    let path = "POST /api/v1/namespaces/default/pods/web/portforward";
    let upgrade = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    rig.gateway.say(&request(path, upgrade)).await;
    assert!(rig.far.head().await.starts_with("POST /portForward/default/web HTTP/1.1\r\n"));
    rig.gateway.say(&request(&format!("{path}?ports=80,81&ports=82&stdin=1"), upgrade)).await;
    assert!(rig.far.head().await.starts_with("POST /portForward/default/web?port=80%2C81%2C82 HTTP/1.1\r\n"));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_034_the_kubelet_sees_a_client_certificate_and_http1_alone() {
    let (seen, mut facts) = mpsc::unbounded_channel();
    let rig = rig(move |mut io: FarIo| {
        let (_, tls) = io.get_ref();
        let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
        let _ = seen.send((alpn, tls.peer_certificates().map(<[_]>::len)));
        async move { send(&mut io, SWITCHING).await }
    })
    .await;
    rig.gateway.say(&exec_request("command=id", "")).await;
    // The far side prefers h2: it would have been chosen had it been offered.
    assert_eq!(facts.recv().await.unwrap(), (Some(b"http/1.1".to_vec()), Some(1)));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_034_a_kubelet_of_another_authority_is_500_and_gets_no_request() {
    let mut far = Far::start(&Pki::new(), |_| async {}).await;
    let gateway = TestGateway::facing(&far, config(), Arc::new(Pki::new())).await;
    let answer = gateway.ask(&exec_request("command=id", "")).await;
    let text = "error dialing backend: tls: invalid peer certificate: ";
    assert!(answer.body.contains(text) && answer.body.ends_with(",\"code\":500}\n"), "{}", answer.body);
    assert_eq!((answer.code(), far.accepted()), (500, 1));
    assert!(far.untouched());
    gateway.stop().await;
}

#[tokio::test]
async fn item_038_039_040_the_whole_head_that_the_kubelet_gets() {
    let mut rig = rig(says(SWITCHING)).await;
    let headers = "x-stream-protocol-version: v4.channel.k8s.io\r\n\
                   Authorization: Bearer nobodys\r\n\
                   authorization: Basic eDp5\r\n\
                   Impersonate-User: \r\n\
                   X-Remote-User: root\r\n\
                   X-REMOTE-GROUP: system:masters\r\n\
                   X-Remote-Uid: 0\r\n\
                   X-Remote-Extra-Scopes: all\r\n\
                   X-Forwarded-For: 192.0.2.1\r\n\
                   x-forwarded-for: 192.0.2.2, 192.0.2.3\r\n\
                   X-Stream-Protocol-Version: v3.channel.k8s.io\r\n\
                   kubectl-command: kubectl exec\r\n\
                   Cookie: a=b\r\n\
                   Origin: https://podgate.test\r\n\
                   Content-Length: 0\r\n\
                   Trailer: X-Late\r\n";
    rig.gateway.say(&exec_request("command=id", headers)).await;
    assert_eq!(
        rig.far.head().await,
        "POST /exec/default/web/app?command=id HTTP/1.1\r\n\
         Host: podgate.test\r\n\
         User-Agent: Go-http-client/1.1\r\n\
         Content-Length: 0\r\n\
         Connection: Upgrade\r\n\
         Cookie: a=b\r\n\
         Kubectl-Command: kubectl exec\r\n\
         Origin: https://podgate.test\r\n\
         Upgrade: SPDY/3.1\r\n\
         X-Forwarded-For: 192.0.2.1, 192.0.2.2, 192.0.2.3, 127.0.0.1\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
         X-Stream-Protocol-Version: v3.channel.k8s.io\r\n\r\n"
    );
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_038_impersonation_that_succeeded_is_not_told_to_the_kubelet() {
    let mut rig = rig(says(SWITCHING)).await;
    let headers = "Impersonate-User: ben\r\nImpersonate-Group: ops\r\nImpersonate-Uid: 7\r\n\
                   Impersonate-Extra-Scopes: all\r\nUser-Agent: kubectl/v1.36.0\r\n";
    rig.gateway.say(&exec_request("command=id", headers)).await;
    let head = rig.far.head().await;
    assert!(!head.to_ascii_lowercase().contains("impersonate"), "{head}");
    assert!(head.contains("\r\nUser-Agent: kubectl/v1.36.0\r\n"), "{head}");
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_037_upgrade_on_a_second_connection_line_is_recognised() {
    let mut rig = rig(says(SWITCHING)).await;
    let line = "POST /api/v1/namespaces/default/pods/web/exec?command=id";
    for connection in
        ["Connection: keep-alive, Upgrade\r\n", "Connection: keep-alive\r\nConnection: UPGRADE\r\n"]
    {
        let all = rig.gateway.say(&request(line, &format!("{connection}Upgrade: SPDY/3.1\r\n"))).await;
        assert!(all.as_bytes().starts_with(SWITCHING));
        assert!(rig.far.head().await.contains("Connection: keep-alive"));
    }
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_113_an_audit_id_goes_on_if_the_client_gave_one_and_never_comes_with_a_101() {
    let mut rig = rig(says(SWITCHING)).await;
    let all = rig.gateway.say(&exec_request("command=id", "audit-id: mine\r\n")).await;
    assert!(rig.far.head().await.contains("\r\nAudit-Id: mine\r\n"));
    assert!(all.as_bytes().starts_with(SWITCHING));
    let all = rig.gateway.say(&exec_request("command=id", "")).await;
    assert!(!rig.far.head().await.contains("Audit-Id"));
    assert!(all.as_bytes().starts_with(SWITCHING));
    rig.gateway.stop().await;
}

// === 101 ===

#[tokio::test]
async fn item_041_the_101_head_reaches_the_client_byte_for_byte() {
    let rig = rig(|mut io| async move {
        send(&mut io, SWITCHING).await;
        let _ = io.read_u8().await;
    })
    .await;
    drop(session(&rig.gateway).await);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_041_a_101_in_many_segments_arrives_whole_and_as_it_was() {
    const ODD: &[u8] = b"HTTP/1.1 101 Go Ahead\r\nupgrade: SPDY/3.1\r\nX-odd:  two blanks \r\n\
        CONNECTION:Upgrade\r\nx-odd:again\r\n\r\n";
    let rig = rig(|mut io| async move {
        for byte in ODD {
            send(&mut io, &[*byte]).await;
            tokio::task::yield_now().await;
        }
        io.shutdown().await.unwrap();
        drain(&mut io).await;
    })
    .await;
    assert!(rig.gateway.say(&exec_request("command=id", "")).await.as_bytes().starts_with(ODD));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_042_bytes_after_the_101_and_early_bytes_arrive_once_and_in_order() {
    let (behind, early) = (data(STDOUT, b"right behind"), data(STDOUT, b"very early"));
    let (first, sent) = (behind.clone(), early.len());
    let rig = rig(move |mut io| {
        let answer = [SWITCHING, &first].concat();
        async move {
            send(&mut io, &answer).await;
            let mut early = vec![0; sent];
            io.read_exact(&mut early).await.unwrap();
            send(&mut io, &early).await;
            drain(&mut io).await;
        }
    })
    .await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &[exec_request("command=id", ""), early.clone()].concat()).await;
    let all = [SWITCHING, &behind, &early].concat();
    assert_eq!(read_exactly(&mut client, all.len()).await, all);
    drop(client);
    // Neither the 101 nor anything before it counts as moved bytes.
    until("the record", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    let moved = |direction: &str| {
        rig.gateway.metric(&format!("podgate_session_bytes_total{{direction=\"{direction}\"}}"))
    };
    assert_eq!((moved("down"), moved("up")), (38.0, 18.0));
    rig.gateway.stop().await;
}

// === refusals of the far side ===

#[tokio::test]
async fn item_014_035_043_a_refusal_is_echoed_whole_and_the_connection_ends() {
    const NONE: &[u8] =
        b"HTTP/1.1 400 Bad Request\r\ndate: now\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Content-Length: 52\r\n\r\nyou must specify at least 1 of stdin, stdout, stderr";
    const CHUNKED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n\
        5\r\nconta\r\n19;x=y\r\niner not found (\"sidecar\"\r\n1\r\n)\r\n0\r\n\r\n";
    let cases: [(&[u8], &str); 5] = [
        (
            NONE,
            "HTTP/1.1 400 Bad Request\r\nContent-Length: 52\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Date: now\r\n\r\nyou must specify at least 1 of stdin, stdout, stderr",
        ),
        (
            b"HTTP/1.1 404 Not Found\r\nX-B: 2\r\nX-A: 1\r\nX-B: 1\r\n\r\npod does not exist",
            "HTTP/1.1 404 Not Found\r\nConnection: close\r\nX-A: 1\r\nX-B: 2\r\nX-B: 1\r\n\r\npod does not exist",
        ),
        (
            CHUNKED,
            "HTTP/1.1 500 Internal Server Error\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\nconta\r\n19;x=y\r\niner not found (\"sidecar\"\r\n1\r\n)\r\n0\r\n\r\n",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\nnot of this answer",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            b"HTTP/1.0 405 Method Not Allowed\r\nContent-Length: 29\r\n\r\nDebug endpoints are disabled.",
            "HTTP/1.0 405 Method Not Allowed\r\nConnection: close\r\nContent-Length: 29\r\n\r\n\
             Debug endpoints are disabled.",
        ),
    ];
    for (said, wanted) in cases {
        let mut rig = rig(says(said)).await;
        let two = [exec_request("command=id", ""), request("GET /version", "")].concat();
        assert_eq!(rig.gateway.say(&two).await, wanted);
        rig.far.head().await;
        assert!(rig.far.untouched(), "one request, once");
        assert_eq!(rig.gateway.cluster.served(), Vec::<String>::new(), "the second request is not served");
        let code = wanted.split(' ').nth(1).unwrap();
        let series = format!("podgate_far_refusals_total{{code=\"{code}\"}}");
        assert_eq!(rig.gateway.metric(&series), 1.0);
        assert_eq!(rig.gateway.metric("podgate_sessions"), 0.0);
        until("the far side to be left", || rig.far.connections() == 0).await;
        rig.gateway.stop().await;
    }
}

#[tokio::test]
async fn item_043_a_refusal_whose_body_length_is_in_doubt_is_500_and_not_silence() {
    let said = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfour";
    let rig = rig(says(said)).await;
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "HTTP response has a bad Content-Length \"5\"";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_044_a_refusal_with_a_stalled_body_is_cut_at_the_deadline() {
    let mut short = config();
    short.session.refusal_timeout = Duration::from_millis(200);
    let rig = rig_with(short, |mut io| async move {
        send(&mut io, b"HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart").await;
        drain(&mut io).await;
    })
    .await;
    let all = rig.gateway.say(&exec_request("command=id", "")).await;
    assert_eq!(all, "HTTP/1.1 500 No\r\nContent-Length: 100\r\n\r\npart");
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_045_other_answers_are_500_and_no_location_leaks() {
    let cases: [(u16, &'static [u8]); 7] = [
        (200, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Secret: s\r\n\r\nsecret"),
        (204, b"HTTP/1.1 204 No Content\r\nX-Secret: s\r\n\r\n"),
        (300, b"HTTP/1.1 300 Multiple Choices\r\nLocation: https://secret/\r\n\r\n"),
        (301, b"HTTP/1.1 301 Moved Permanently\r\nLocation: https://secret/\r\n\r\n"),
        (302, b"HTTP/1.1 302 Found\r\nLocation: https://secret/\r\nContent-Length: 0\r\n\r\n"),
        (307, b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://secret/\r\n\r\n"),
        (103, b"HTTP/1.1 103 Early Hints\r\nLink: </secret>\r\n\r\nHTTP/1.1 101 Later\r\n\r\n"),
    ];
    for (code, said) in cases {
        let rig = rig(says(said)).await;
        let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
        let text = format!("invalid upgrade response: status code {code}");
        assert_eq!(answer.body, status(500, "", &text, ""));
        assert!(answer.head.starts_with("HTTP/1.1 500 Internal Server Error\r\n"), "{}", answer.head);
        assert_eq!(answer.header("location"), None);
        assert!(!answer.head.to_ascii_lowercase().contains("secret"), "{}", answer.head);
        assert_eq!(rig.gateway.metric("podgate_refusals_total{reason=\"internal\"}"), 1.0);
        rig.gateway.stop().await;
    }
}

#[tokio::test]
async fn item_046_a_redirect_is_not_followed() {
    let pki = Arc::new(Pki::new());
    let tempting = Far::start(&pki, says(SWITCHING)).await;
    let target = tempting.addr;
    let far = Far::start(&pki, move |mut io| async move {
        let said = format!("HTTP/1.1 302 Found\r\nLocation: https://{target}/exec/x\r\n\r\n");
        send(&mut io, said.as_bytes()).await;
        drain(&mut io).await;
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    assert_eq!(gateway.ask(&exec_request("command=id", "")).await.code(), 500);
    assert_eq!((far.accepted(), tempting.accepted()), (1, 0));
    gateway.stop().await;
}

// === far sides that give no answer ===

#[tokio::test]
async fn item_047_a_refused_connection_is_500_in_gos_words() {
    let rig = rig(|_| async {}).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    rig.gateway.cluster.node("n", port);
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = format!("error dialing backend: dial tcp 127.0.0.1:{port}: connect: connection refused");
    assert_eq!((answer.code(), answer.body), (500, status(500, "", &text, "")));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_047_a_kubelet_that_never_ends_its_handshake_is_500() {
    let mut short = config();
    short.upstream.handshake_timeout = Duration::from_millis(200);
    let rig = rig_with(short, |_| async {}).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    rig.gateway.cluster.node("n", silent.local_addr().unwrap().port());
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "error dialing backend: net/http: TLS handshake timeout";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_048_a_far_side_that_closes_before_its_head_is_500() {
    for said in [&b""[..], b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upg"] {
        let rig = rig(says(said)).await;
        let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
        assert_eq!((answer.code(), answer.body), (500, status(500, "", "unexpected EOF", "")));
        rig.gateway.stop().await;
    }
}

#[tokio::test]
async fn item_048_a_far_side_that_drops_the_connection_is_500() {
    let rig = rig(|io| async move { drop(io) }).await;
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    assert_eq!((answer.code(), answer.body), (500, status(500, "", "unexpected EOF", "")));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_048_garbage_for_a_head_is_500_with_the_garbage_quoted() {
    let rig = rig(says(b"\x16<html>\r\nwhat\r\n\r\n")).await;
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "malformed HTTP response \"\\x16<html>\"";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_048_a_head_without_end_is_500_and_read_no_further_than_its_bound() {
    let rig = rig(|mut io| async move {
        let _ = io.write_all(b"HTTP/1.1 101 Switching Protocols\r\n").await;
        let line = [&b"X-Long: "[..], &[b'x'; 8192], b"\r\n"].concat();
        // Ends when the gateway has had enough and closes.
        while io.write_all(&line).await.is_ok() && io.flush().await.is_ok() {}
    })
    .await;
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "HTTP response head is over 65536 bytes or 128 headers";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_048_a_far_side_that_never_answers_is_500_after_the_deadline_and_is_left() {
    let mut short = config();
    short.upstream.upgrade_timeout = Duration::from_millis(200);
    let rig = rig_with(short, |mut io| async move { drain(&mut io).await }).await;
    let answer = rig.gateway.ask(&exec_request("command=id", "")).await;
    let text = "the far side did not answer the upgrade request within 200ms";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_client_that_leaves_before_the_answer_leaves_no_far_side_behind() {
    let mut rig = rig(|mut io| async move { drain(&mut io).await }).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &exec_request("command=id", "")).await;
    rig.far.head().await;
    drop(client);
    until("the far side to be left", || rig.far.connections() == 0).await;
    rig.gateway.stop().await;
}

// === the session ===

#[tokio::test]
async fn item_049_050_a_client_that_closes_ends_the_far_side_and_no_half_stays_open() {
    let rig = rig(echoes).await;
    let mut client = session(&rig.gateway).await;
    let hello = data(STDIN, b"hello");
    send(&mut client, &hello).await;
    assert_eq!(read_exactly(&mut client, hello.len()).await, hello);
    assert_eq!(rig.gateway.metric("podgate_sessions"), 1.0);
    assert_eq!(rig.gateway.metric("podgate_connections"), 1.0, "a session is an open connection");
    // Only this half is closed; the other half must not stay.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end", client.read_to_end(&mut rest)).await.expect("a clean end");
    assert_eq!(rest, b"");
    until("the far side to be left", || rig.far.connections() == 0).await;
    until("the record", || rig.gateway.metric(&ended("client_closed")) == 1.0).await;
    until("the gauges to fall", || {
        rig.gateway.metric("podgate_connections") == 0.0 && rig.gateway.metric("podgate_sessions") == 0.0
    })
    .await;
    assert_eq!(rig.gateway.metric("podgate_session_bytes_total{direction=\"up\"}"), 13.0);
    assert_eq!(rig.gateway.metric("podgate_session_bytes_total{direction=\"down\"}"), 13.0);
    assert_eq!(rig.gateway.metric("podgate_session_setup_seconds_count"), 1.0);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_far_side_that_closes_ends_the_client_cleanly() {
    let rig = rig(|io| finishes(io, b"out".to_vec())).await;
    let mut client = session(&rig.gateway).await;
    send(&mut client, &opening()).await;
    let mut rest = Vec::new();
    soon("the end", client.read_to_end(&mut rest)).await.expect("a clean end");
    assert_eq!(rest, [replies(), data(STDOUT, b"out"), result(&Outcome::Success)].concat());
    drop(client);
    until("the record", || rig.gateway.metric(&ended("far_closed")) == 1.0).await;
    until("the gauges to fall", || rig.gateway.metric("podgate_connections") == 0.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_client_that_resets_ends_the_far_side() {
    let rig = rig(echoes).await;
    let client = session(&rig.gateway).await;
    reset(client.into_inner().0);
    until("the far side to be left", || rig.far.connections() == 0).await;
    until("the record", || rig.gateway.metric(&ended("client_lost")) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_client_that_leaves_while_the_far_side_takes_nothing_ends_the_session() {
    let rig = rig(|mut io| async move {
        send(&mut io, SWITCHING).await;
        std::future::pending::<()>().await;
    })
    .await;
    let mut client = session(&rig.gateway).await;
    // Until nothing is taken any more: the gateway then waits for the far side, not for the client.
    let block = data(STDIN, &[b'i'; 64 * 1024]);
    while tokio::time::timeout(Duration::from_millis(500), client.write_all(&block)).await.is_ok() {}
    reset(client.into_inner().0);
    until("the session to end", || rig.gateway.metric("podgate_sessions") == 0.0).await;
    assert_eq!(rig.gateway.metric(&ended("client_lost")), 1.0);
    drop(rig.far);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_far_side_that_resets_is_no_clean_end_for_the_client() {
    let go = Arc::new(Semaphore::new(0));
    let gone = [replies(), data(STDOUT, b"what was said before the reset")].concat();
    let said = gone.clone();
    let told = go.clone();
    let rig = rig(move |mut io: FarIo| {
        let (told, said) = (told.clone(), said.clone());
        async move {
            send(&mut io, SWITCHING).await;
            io.read_exact(&mut vec![0; opening().len()]).await.expect("the client opens its streams");
            send(&mut io, &said).await;
            told.acquire().await.unwrap().forget();
            reset(io.into_inner().0);
        }
    })
    .await;
    let mut client = session(&rig.gateway).await;
    send(&mut client, &opening()).await;
    assert_eq!(read_exactly(&mut client, gone.len()).await, gone);
    go.add_permits(1);
    let mut rest = Vec::new();
    let end = soon("the end", client.read_to_end(&mut rest)).await;
    assert!(end.is_err(), "a broken session must not look like a finished one");
    // Nor to a client that looks at its streams alone.
    let (error, whole) = payload(&rest, ERROR);
    let told = Outcome::Internal { text: LOST.to_owned() };
    assert_eq!((error, whole), (told.to_bytes(Protocol::V4).to_vec(), true));
    until("the record", || rig.gateway.metric(&ended("far_lost")) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_far_sides_last_bytes_arrive_although_the_client_is_still_sending() {
    const LAST: usize = 5 << 20;
    // Reads nothing of what the client sends until all of its own is out, as a command that ignores its input.
    let rig = rig(|io| finishes(io, vec![b'x'; LAST])).await;
    let (mut reader, mut writer) = tokio::io::split(session(&rig.gateway).await);
    writer.write_all(&opening()).await.unwrap();
    let sending = async {
        let input = data(STDIN, &[b'i'; 64 * 1024]);
        while writer.write_all(&input).await.is_ok() && writer.flush().await.is_ok() {}
    };
    let reading = async {
        let mut all = Vec::new();
        let end = soon("the last bytes", reader.read_to_end(&mut all)).await;
        (payload(&all, STDOUT), end.is_ok())
    };
    let (read, clean) = tokio::select! {
        read = reading => read,
        () = async { sending.await; std::future::pending().await } => unreachable!(),
    };
    assert!(read == (vec![b'x'; LAST], true) && clean);
    until("the record", || rig.gateway.metric(&ended("far_closed")) == 1.0).await;
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_client_that_pauses_at_the_end_gets_everything_although_it_is_still_sending() {
    const ALL: usize = 5 << 20;
    let mut short = config();
    short.session.linger = Duration::from_millis(1500);
    let rig = rig_with(short, |io| finishes(io, vec![b'x'; ALL])).await;
    let mut client = session(&rig.gateway).await;
    send(&mut client, &opening()).await;
    let mut all = read_exactly(&mut client, 1 << 20).await;
    // Longer than the linger in all, with input that never pauses for as long. Input may be refused by then;
    // output must still be there.
    for _ in 0..40 {
        let _ = client.write_all(&data(STDIN, b"input")).await;
        let _ = client.flush().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    soon("the rest", client.read_to_end(&mut all)).await.expect("a clean end");
    assert!(payload(&all, STDOUT) == (vec![b'x'; ALL], true));
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_049_a_client_that_reads_slowly_gets_everything() {
    const ALL: usize = 8 << 20;
    let block = || -> Vec<u8> { (0..=255).cycle().take(ALL).collect() };
    let rig = rig(move |io| finishes(io, block())).await;
    let mut client = session(&rig.gateway).await;
    send(&mut client, &opening()).await;
    let (mut got, mut block_read) = (Vec::new(), vec![0; 256 * 1024]);
    loop {
        match soon("bytes", client.read(&mut block_read)).await.expect("no broken end") {
            0 => break,
            count => got.extend_from_slice(&block_read[..count]),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(payload(&got, STDOUT) == (block(), true));
    rig.gateway.stop().await;
}

#[tokio::test]
async fn item_051_each_direction_of_a_session_keeps_to_the_limit() {
    const RATE: u64 = 100_000;
    const BYTES: usize = 60_000;
    let mut limited = config();
    limited.session.max_bytes_per_second = RATE;
    let rig = rig_with(limited, |mut io| async move {
        send(&mut io, SWITCHING).await;
        let mut all = Vec::new();
        while payload(&all, STDIN).0.len() < BYTES {
            io.read_buf(&mut all).await.unwrap();
        }
        send(&mut io, &data(STDOUT, &payload(&all, STDIN).0)).await;
        drain(&mut io).await;
    })
    .await;
    let mut client = session(&rig.gateway).await;
    let started = tokio::time::Instant::now();
    send(&mut client, &data(STDIN, &[7; BYTES])).await;
    let mut all = Vec::new();
    while payload(&all, STDOUT).0.len() < BYTES {
        soon("the rest", client.read_buf(&mut all)).await.unwrap();
    }
    assert_eq!(payload(&all, STDOUT).0, [7; BYTES]);
    // Six samples each way, of which the first, begun while nothing moved, and the last cost no wait. There is
    // no upper bound: the machine may be busy.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(790), "both directions in {took:?}");
    drop(client);
    rig.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn item_052_a_stalled_session_does_not_slow_a_hundred_others() {
    let pki = Arc::new(Pki::new());
    let far = Far::by_head(&pki, |mut io, head| async move {
        if !head.contains("command=flood") {
            return echoes(io).await;
        }
        send(&mut io, SWITCHING).await;
        let block = data(STDOUT, &[b'f'; 64 * 1024]);
        while io.write_all(&block).await.is_ok() {}
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let mut stalled = gateway.connect_as("ana").await;
    send(&mut stalled, &exec_request("command=flood", "")).await;
    assert_eq!(read_exactly(&mut stalled, SWITCHING.len()).await, SWITCHING);
    let mut others = Vec::new();
    for _ in 0..99 {
        others.push(session(&gateway).await);
    }
    assert_eq!(gateway.metric("podgate_sessions"), 100.0);
    for round in 0..5u8 {
        let words = data(STDIN, &[round; 100]);
        for client in &mut others {
            send(client, &words).await;
        }
        for client in &mut others {
            assert_eq!(read_exactly(client, words.len()).await, words);
        }
    }
    drop(others);
    until("the others to end", || gateway.metric("podgate_sessions") == 1.0).await;
    // The stalled one still stands, and what it has not read is still for it to read.
    let unread = read_exactly(&mut stalled, 1 << 20).await;
    let (flood, _) = payload(&unread, STDOUT);
    assert!(flood.len() > 1 << 19 && flood.iter().all(|&byte| byte == b'f'), "{}", flood.len());
    drop(stalled);
    until("the last to end", || gateway.metric("podgate_sessions") == 0.0).await;
    until("the far sides to be left", || far.connections() == 0).await;
    gateway.stop().await;
}

// === answers to what is no upgrade ===

#[tokio::test]
async fn item_008_an_upgrade_by_http_1_0_is_none() {
    // RFC 9110 section 7.8: a server ignores `Upgrade` in an HTTP/1.0 request.
    let rig = rig(says(SWITCHING)).await;
    let asked = String::from_utf8(exec_request("command=id", "")).unwrap().replace("HTTP/1.1", "HTTP/1.0");
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, asked.as_bytes()).await;
    let answer = Answer::read(&mut client).await.expect("an answer");
    assert_eq!(answer.body, status(400, "BadRequest", "Upgrade request required", ""));
    assert_eq!(rig.far.accepted(), 0);
    rig.gateway.stop().await;
}

/// Closes with a reset.
fn reset(tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).expect("a live socket");
}
