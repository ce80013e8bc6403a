//! WebSocket clients against a far side that does as it is told: what it is asked for, and what they are answered.

use std::sync::Arc;

use podgate::config::{Config, Translate};
use podgate::testing::answer::status;
use podgate::testing::far::SWITCHING;
use podgate::testing::gateway::{config, read_exactly, request, send};
use podgate::testing::{Answer, Far, Pki, TestGateway, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// RFC 6455 section 1.3: a key, and the proof for it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const PROOF: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The token of [`TestGateway`] as a subprotocol.
const BEARER: &str = "base64url.bearer.authorization.k8s.io.YW5hLXRva2Vu";

const EXEC: &str = "/api/v1/namespaces/default/pods/web/exec?command=id&stdout=1";
const FORWARD: &str = "/api/v1/namespaces/default/pods/web/portforward";

/// What a runtime answers a WebSocket client.
pub(crate) const WS_SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n";

struct Rig {
    far: Far,
    gateway: TestGateway,
}

/// A gateway in front of a far side that answers every request with these bytes and waits.
async fn rig(answer: impl Into<Vec<u8>>) -> Rig {
    rig_with(config(), answer).await
}

async fn rig_with(config: Config, answer: impl Into<Vec<u8>>) -> Rig {
    let (pki, answer) = (Arc::new(Pki::new()), Arc::new(answer.into()));
    let far = Far::start(&pki, move |mut io| {
        let answer = answer.clone();
        async move {
            send(&mut io, &answer).await;
            let mut dropped = [0; 4096];
            while let Ok(1..) = io.read(&mut dropped).await {}
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, config, pki).await;
    Rig { far, gateway }
}

/// A WebSocket handshake with these subprotocols, as kubectl asks, and these further lines.
fn handshake(target: &str, protocols: &str, more: &str) -> Vec<u8> {
    let protocols =
        if protocols.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {protocols}\r\n") };
    let headers = format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\
         {protocols}User-Agent: kubectl/v1.36.0\r\nKubectl-Command: kubectl exec\r\n{more}"
    );
    request(&format!("GET {target}"), &headers)
}

impl Rig {
    /// The first answer to these bytes, on a connection of ana's that is then closed.
    async fn ask(&self, bytes: &[u8]) -> Answer {
        self.gateway.ask(bytes).await
    }

    async fn stop(self) {
        until("the far side to be left", || self.far.connections() == 0).await;
        self.gateway.stop().await;
    }
}

// === WebSocket to WebSocket ===

#[tokio::test]
async fn item_075_082_older_subprotocols_go_on_as_the_clients_own_request_without_extensions() {
    let mut rig = rig(WS_SWITCHING).await;
    let more = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &handshake(EXEC, "v4.channel.k8s.io, channel.k8s.io", more)).await;
    assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING, "byte for byte");
    assert_eq!(
        rig.far.head().await,
        format!(
            "GET /exec/default/web/app?command=id&output=1 HTTP/1.1\r\nHost: podgate.test\r\n\
             User-Agent: kubectl/v1.36.0\r\nConnection: Upgrade\r\nKubectl-Command: kubectl exec\r\n\
             Sec-Websocket-Key: {KEY}\r\nSec-Websocket-Protocol: v4.channel.k8s.io, channel.k8s.io\r\n\
             Sec-Websocket-Version: 13\r\nUpgrade: websocket\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n"
        )
    );
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_075_a_client_without_a_subprotocol_goes_on_without_one() {
    let said = String::from_utf8(WS_SWITCHING.to_vec()).unwrap().replace(": v4.channel.k8s.io", ": ");
    let mut rig = rig(said.clone()).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &handshake(EXEC, "", "")).await;
    assert_eq!(read_exactly(&mut client, said.len()).await, said.as_bytes());
    assert!(!rig.far.head().await.to_ascii_lowercase().contains("sec-websocket-protocol"));
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_076_the_runtimes_403_for_a_strange_subprotocol_is_passed_on() {
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, |mut io| async move {
        send(&mut io, b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
        io.shutdown().await.expect("the gateway still listens");
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let all = gateway.say(&handshake(EXEC, "v9.channel.k8s.io", "")).await;
    assert_eq!(all, "HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\n");
    gateway.stop().await;
}

#[tokio::test]
async fn a_far_side_that_switches_to_something_else_is_500_and_nothing_of_it_is_shown() {
    let ws = |line: &str| {
        let said = String::from_utf8(WS_SWITCHING.to_vec()).unwrap();
        said.replace("Sec-WebSocket-Protocol: v4.channel.k8s.io", line)
    };
    let missing = "unable to upgrade: missing upgrade headers in response";
    let cases = [
        (handshake(EXEC, "v4.channel.k8s.io", ""), SWITCHING.to_vec(), missing.to_owned()),
        (handshake(EXEC, "v5.channel.k8s.io", ""), WS_SWITCHING.to_vec(), missing.to_owned()),
        (handshake(FORWARD, "SPDY/3.1+portforward.k8s.io", ""), WS_SWITCHING.to_vec(), missing.to_owned()),
        (
            handshake(EXEC, "v4.channel.k8s.io", ""),
            ws("Sec-WebSocket-Extensions: permessage-deflate").into_bytes(),
            "invalid upgrade response: unexpected WebSocket extension".to_owned(),
        ),
        (
            handshake(EXEC, "v4.channel.k8s.io", ""),
            ws("Sec-WebSocket-Protocol: v9.channel.k8s.io").into_bytes(),
            "invalid upgrade response: unknown subprotocol \"v9.channel.k8s.io\"".to_owned(),
        ),
    ];
    for (asked, said, text) in cases {
        let rig = rig(said).await;
        let answer = rig.ask(&asked).await;
        assert_eq!((answer.code(), answer.body), (500, status(500, "", &text, "")));
        rig.stop().await;
    }
}

// === the token among the subprotocols ===

#[tokio::test]
async fn item_038_077_a_token_among_the_subprotocols_authenticates_and_goes_no_further() {
    let mut rig = rig(WS_SWITCHING).await;
    let mut client = rig.gateway.connect_anonymously().await;
    send(&mut client, &handshake(EXEC, &format!("{BEARER}, v4.channel.k8s.io,channel.k8s.io"), "")).await;
    assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING);
    let head = rig.far.head().await;
    assert!(head.contains("\r\nSec-Websocket-Protocol: v4.channel.k8s.io,channel.k8s.io\r\n"), "{head}");
    assert!(!head.contains("bearer"), "{head}");
    assert_eq!(rig.gateway.cluster.reviews()[0], "ana get pods/exec default/web");
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_038_077_a_token_that_was_not_needed_goes_no_further_either() {
    let mut rig = rig(WS_SWITCHING).await;
    let mut client = rig.gateway.connect_as("ben").await;
    let more = format!("Sec-WebSocket-Protocol: {}, x\r\n", BEARER.to_ascii_uppercase());
    send(&mut client, &handshake(EXEC, "v4.channel.k8s.io", &more)).await;
    assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING);
    let head = rig.far.head().await;
    assert!(head.contains("\r\nSec-Websocket-Protocol: v4.channel.k8s.io,x\r\n"), "{head}");
    assert!(rig.gateway.cluster.reviews()[0].starts_with("ben "));
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_077_090_a_token_in_a_line_of_its_own_hides_nothing_of_the_others() {
    let mut rig = rig(SWITCHING).await;
    let mut client = rig.gateway.connect_anonymously().await;
    let more = "Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n";
    send(&mut client, &handshake(EXEC, BEARER, more)).await;
    assert!(rig.far.head().await.starts_with("POST /exec/default/web/app?"), "it is translated");
    let answer = "HTTP/1.1 101 Switching Protocols\r\n";
    assert_eq!(read_exactly(&mut client, answer.len()).await, answer.as_bytes());
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_077_a_token_alone_or_a_wrong_one_is_401_and_only_websocket_has_it() {
    let rig = rig(WS_SWITCHING).await;
    let wrong = "base64url.bearer.authorization.k8s.io.d3Jvbmc, v4.channel.k8s.io";
    let twice = format!("{BEARER}, {BEARER}, v4.channel.k8s.io");
    let spdy = request(
        &format!("POST {EXEC}"),
        &format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nSec-WebSocket-Protocol: {BEARER}, x\r\n"),
    );
    for asked in [handshake(EXEC, BEARER, ""), handshake(EXEC, wrong, ""), handshake(EXEC, &twice, ""), spdy]
    {
        let mut client = rig.gateway.connect_anonymously().await;
        send(&mut client, &asked).await;
        assert_eq!(Answer::read(&mut client).await.expect("an answer").code(), 401);
    }
    assert_eq!(rig.far.accepted(), 0);
    rig.stop().await;
}

// === WebSocket v5, translated ===

#[tokio::test]
async fn item_090_094_a_translated_session_is_a_request_of_podgates_own() {
    for protocols in ["v5.channel.k8s.io", "v4.channel.k8s.io, v5.channel.k8s.io"] {
        let mut rig = rig(SWITCHING).await;
        let target = "/api/v1/namespaces/default/pods/web/exec?command=sh&command=a+b&stdin=1&stdout=1&tty=1";
        let more = "Cookie: a=b\r\nX-Forwarded-For: 192.0.2.1\r\nAudit-ID: mine\r\n";
        let mut client = rig.gateway.connect_as("ana").await;
        send(&mut client, &handshake(target, protocols, more)).await;
        let kubelet = rig.far.addr;
        assert_eq!(
            rig.far.head().await,
            format!(
                "POST /exec/default/web/app?command=sh&command=a+b&input=1&output=1&tty=1 HTTP/1.1\r\n\
                 Host: {kubelet}\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\
                 Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                 X-Stream-Protocol-Version: v5.channel.k8s.io\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\
                 X-Stream-Protocol-Version: v3.channel.k8s.io\r\nX-Stream-Protocol-Version: v2.channel.k8s.io\r\n\
                 X-Stream-Protocol-Version: channel.k8s.io\r\n\r\n"
            )
        );
        // And, right behind the answer, the empty message on stdout.
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {PROOF}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n\u{2}"
        );
        let mut answer = answer.into_bytes();
        answer.pop();
        answer.extend_from_slice(&[0x82, 1, 1]);
        assert_eq!(read_exactly(&mut client, answer.len()).await, answer);
        drop(client);
        rig.stop().await;
    }
}

#[tokio::test]
async fn item_091_092_the_kubelets_refusal_of_a_translated_session_stays_an_http_status() {
    // Unlike kube-apiserver, which has answered 101 by then: see docs/differences.md.
    let refusal =
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 26\r\n\r\ncontainer not found (\"a\")\n";
    let rig = rig(refusal).await;
    let answer = rig.ask(&handshake(EXEC, "v5.channel.k8s.io", "")).await;
    assert_eq!((answer.code(), answer.body.as_str()), (500, "container not found (\"a\")\n"));
    rig.stop().await;
}

#[tokio::test]
async fn item_095_a_redirect_of_a_translated_session_or_a_tunnel_is_500_and_not_followed() {
    for code in [301, 302, 303, 307, 308] {
        for (target, protocol) in [(EXEC, "v5.channel.k8s.io"), (FORWARD, "SPDY/3.1+portforward.k8s.io")] {
            let rig = rig(format!("HTTP/1.1 {code} Moved\r\nLocation: https://secret/\r\n\r\n")).await;
            let answer = rig.ask(&handshake(target, protocol, "")).await;
            let text = format!("invalid upgrade response: status code {code}");
            assert_eq!((answer.code(), answer.body), (500, status(500, "", &text, "")));
            assert_eq!(rig.far.accepted(), 1);
            rig.stop().await;
        }
    }
}

#[tokio::test]
async fn a_handshake_that_is_none_is_answered_as_a_websocket_server_does() {
    let rig = rig(SWITCHING).await;
    let good = String::from_utf8(handshake(EXEC, "v5.channel.k8s.io", "")).unwrap();
    let cases = [
        (good.replace("GET ", "POST "), 405, "bad method"),
        (good.replace("Sec-WebSocket-Key", "X-Key"), 400, "mismatch challenge/response"),
        (good.replace("Version: 13", "Version: 8"), 400, "missing or bad WebSocket Version"),
    ];
    for (asked, code, text) in cases {
        let answer = rig.ask(asked.as_bytes()).await;
        assert_eq!((answer.code(), answer.body.as_str()), (code, text));
        assert_eq!(answer.header("connection"), Some("close"));
        let version = answer.header("sec-websocket-version");
        assert_eq!(version, text.contains("Version").then_some("13"));
    }
    assert_eq!(rig.far.accepted(), 0);
    rig.stop().await;
}

#[tokio::test]
async fn a_node_that_speaks_v5_gets_it_where_that_is_wanted_and_no_other_does() {
    for (translate, declares, passes) in [
        (Translate::Always, true, false),
        (Translate::WhenNeeded, false, false),
        (Translate::WhenNeeded, true, true),
    ] {
        let mut config = config();
        config.upstream.translate = translate;
        let mut rig = rig_with(config, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        if declares {
            rig.gateway.cluster.v5_node("n", rig.far.addr.port());
        }
        assert_eq!(rig.ask(&handshake(EXEC, "v5.channel.k8s.io", "")).await.code(), 400);
        let head = rig.far.head().await;
        assert_eq!(head.starts_with("GET ") && head.contains("\r\nUpgrade: websocket\r\n"), passes, "{head}");
        rig.stop().await;
    }
}

#[tokio::test]
async fn a_kubelet_that_refuses_websocket_is_asked_in_spdy_and_one_that_refuses_the_session_is_not() {
    for (code, protocols, asked_again) in [
        (400, "v4.channel.k8s.io", true),
        (403, "base64.channel.k8s.io", true),
        (405, "", true),
        (404, "v4.channel.k8s.io", false),
        (500, "v4.channel.k8s.io", false),
        (403, "v9.channel.k8s.io", false),
    ] {
        let pki = Arc::new(Pki::new());
        let mut far = Far::by_head(&pki, move |mut io, head| async move {
            if head.contains("Upgrade: SPDY/3.1") {
                send(&mut io, SWITCHING).await;
            } else {
                send(&mut io, format!("HTTP/1.1 {code} No\r\nContent-Length: 2\r\n\r\nno").as_bytes()).await;
            }
            let mut dropped = [0; 4096];
            while let Ok(1..) = io.read(&mut dropped).await {}
        })
        .await;
        let gateway = TestGateway::facing(&far, config(), pki).await;
        let mut client = gateway.connect_as("ana").await;
        send(&mut client, &handshake(EXEC, protocols, "")).await;
        let answer = read_exactly(&mut client, 12).await;
        let wanted = if asked_again { "HTTP/1.1 101".to_owned() } else { format!("HTTP/1.1 {code}") };
        assert_eq!(answer, wanted.as_bytes(), "{protocols} {code}");
        assert!(far.head().await.starts_with("GET "));
        assert_eq!(far.accepted(), if asked_again { 2 } else { 1 });
        drop(client);
        gateway.stop().await;
    }
}

// === the tunnel ===

#[tokio::test]
async fn item_098_099_a_tunnel_is_the_clients_request_rewritten_to_spdy() {
    let said = String::from_utf8(SWITCHING.to_vec()).unwrap().replace("v4.channel", "portforward");
    let mut rig = rig(said).await;
    let more =
        "X-Stream-Protocol-Version: x\r\nOrigin: https://podgate.test\r\nX-Forwarded-For: 192.0.2.1\r\n";
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &handshake(FORWARD, "SPDY/3.1+portforward.k8s.io", more)).await;
    assert_eq!(
        rig.far.head().await,
        "POST /portForward/default/web HTTP/1.1\r\nHost: podgate.test\r\nUser-Agent: kubectl/v1.36.0\r\n\
         Content-Length: 0\r\nConnection: Upgrade\r\nKubectl-Command: kubectl exec\r\n\
         Origin: https://podgate.test\r\nUpgrade: SPDY/3.1\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n\
         X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
    );
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {PROOF}\r\nSec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n\r\n"
    );
    assert_eq!(read_exactly(&mut client, answer.len()).await, answer.as_bytes());
    drop(client);
    rig.stop().await;
}

#[tokio::test]
async fn item_098_101_a_refused_tunnel_is_an_http_status() {
    for (code, body) in [(403, "Forbidden (user=podgate)"), (500, "pod not found (\"web_default\")")] {
        let rig = rig(format!("HTTP/1.1 {code} No\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let answer = rig.ask(&handshake(FORWARD, "SPDY/3.1+portforward.k8s.io", "")).await;
        assert_eq!((answer.code(), answer.body.as_str()), (code, body));
        rig.stop().await;
    }
    let said = String::from_utf8(SWITCHING.to_vec()).unwrap();
    let long = said.replace("\r\nUpgrade", &format!("\r\nX-Long: {}\r\nUpgrade", "x".repeat(2 << 20)));
    let pki = Arc::new(Pki::new());
    let far = Far::start(&pki, move |mut io| {
        let long = long.clone();
        async move {
            // It is cut off before the end.
            let _ = io.write_all(long.as_bytes()).await;
        }
    })
    .await;
    let gateway = TestGateway::facing(&far, config(), pki).await;
    let answer = gateway.ask(&handshake(FORWARD, "SPDY/3.1+portforward.k8s.io", "")).await;
    let text = "HTTP response head is over 65536 bytes or 128 headers";
    assert_eq!((answer.code(), answer.body), (500, status(500, "", text, "")));
    gateway.stop().await;
}

// === pages in browsers ===

#[tokio::test]
async fn only_pages_of_podgates_own_host_and_of_named_origins_open_sessions() {
    let mut named = config();
    named.api.allowed_origins = vec!["https://console.example.com".to_owned()];
    let rig = rig_with(named, WS_SWITCHING).await;
    let text = "pods \"web\" is forbidden: pages of https://evil.example.com may not open sessions, \
                api.allowedOrigins names those that may";
    let details = "{\"name\":\"web\",\"kind\":\"pods\"}";
    let foreign =
        rig.ask(&handshake(EXEC, "v4.channel.k8s.io", "Origin: https://evil.example.com\r\n")).await;
    assert_eq!((foreign.code(), foreign.body), (403, status(403, "Forbidden", text, details)));
    for origin in ["null", "https://console.example.com.evil.example.com", "https://podgate.test:8443"] {
        let asked = handshake(EXEC, "v4.channel.k8s.io", &format!("Origin: {origin}\r\n"));
        assert_eq!(rig.ask(&asked).await.code(), 403, "{origin}");
    }
    let spdy = format!("POST {EXEC}");
    let spdy =
        request(&spdy, "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nOrigin: https://evil.example.com\r\n");
    assert_eq!(rig.ask(&spdy).await.code(), 403, "whatever the protocol");
    assert_eq!(rig.far.accepted(), 0);
    for origin in ["https://console.example.com", "https://podgate.test", "http://PODGATE.test"] {
        let mut client = rig.gateway.connect_as("ana").await;
        let asked = handshake(EXEC, "v4.channel.k8s.io", &format!("Origin: {origin}\r\n"));
        send(&mut client, &asked).await;
        assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING, "{origin}");
    }
    // A token is nothing that a page has by itself.
    let mut client = rig.gateway.connect_anonymously().await;
    let foreign = "Authorization: Bearer ana-token\r\nOrigin: http://localhost\r\n";
    send(&mut client, &handshake(EXEC, "v4.channel.k8s.io", foreign)).await;
    assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING);
    drop(client);
    rig.stop().await;

    let mut any = config();
    any.api.allowed_origins = vec!["*".to_owned()];
    let rig = rig_with(any, WS_SWITCHING).await;
    let mut client = rig.gateway.connect_as("ana").await;
    send(&mut client, &handshake(EXEC, "v4.channel.k8s.io", "Origin: https://evil.example.com\r\n")).await;
    assert_eq!(read_exactly(&mut client, WS_SWITCHING.len()).await, WS_SWITCHING);
    drop(client);
    rig.stop().await;
}
