//! Tests of the WebSocket handshake. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// The key of RFC 6455 section 1.3 and its proof.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    lines.iter().map(line).collect()
}

fn challenge(protocols: &[&str]) -> Challenge {
    let good = [
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "WebSocket"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
    ];
    let lines = protocols.iter().map(|line| (PROTOCOL_HEADER, *line));
    Challenge::read(&Method::GET, &headers(&good.into_iter().chain(lines).collect::<Vec<_>>())).unwrap()
}

/// The chosen subprotocol among those of a runtime, in short.
fn chosen(lines: &[&str]) -> Result<String, Refusal> {
    let server = ["", "v4.channel.k8s.io", "channel.k8s.io"];
    challenge(lines).choose(&server).map(|answer| answer.protocol().to_owned())
}

fn answer(text: &str) -> ResponseHead {
    ResponseHead::parse(text.as_bytes()).unwrap().unwrap()
}

#[test]
fn the_proof_is_that_of_rfc_6455_and_of_an_independent_peer() {
    assert_eq!(accept_key(KEY.as_bytes()), ACCEPT);
    for key in ["", "x", "AQIDBAUGBwgJCgsMDQ4PEA=="] {
        assert_eq!(accept_key(key.as_bytes()), derive_accept_key(key.as_bytes()));
    }
}

#[test]
fn the_answer_has_the_headers_of_go_in_their_order() {
    let answer = challenge(&["v4.channel.k8s.io"]).choose(&["v4.channel.k8s.io"]).unwrap();
    let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n";
    assert_eq!(answer.to_bytes(), expected);
    assert_eq!(challenge(&[]).settle(None).headers().count(), 3, "no header without a protocol");
}

#[test]
fn item_075_the_first_known_protocol_of_the_client_is_echoed_alone() {
    assert_eq!(chosen(&["channel.k8s.io, v4.channel.k8s.io"]).unwrap(), "channel.k8s.io");
    assert_eq!(chosen(&["v9.channel.k8s.io ,\tv4.channel.k8s.io"]).unwrap(), "v4.channel.k8s.io");
    assert_eq!(chosen(&["channel.k8s.io", "v4.channel.k8s.io"]).unwrap(), "channel.k8s.io");
    let two = challenge(&["channel.k8s.io", "v4.channel.k8s.io"]);
    assert_eq!(two.protocols(), ["channel.k8s.io"], "Go reads the first line only");
}

#[test]
fn without_a_protocol_the_answer_has_an_empty_header() {
    for lines in [&[][..], &[""], &["  "]] {
        let answer = challenge(lines).choose(&["", "v4.channel.k8s.io"]).unwrap();
        assert!(answer.to_bytes().ends_with(b"\r\nSec-WebSocket-Protocol: \r\n\r\n"), "{lines:?}");
    }
    assert_eq!(challenge(&[]).choose(&["v5.channel.k8s.io"]), Err(Refusal::Protocol));
}

#[test]
fn item_076_an_unknown_protocol_is_a_bare_403() {
    let refusal = chosen(&["v5.channel.k8s.io"]).unwrap_err();
    assert_eq!(refusal.to_bytes(), "HTTP/1.1 403 Forbidden\r\n\r\n");
    assert_eq!(refusal.status(), 403);
}

#[test]
fn other_refusals_are_those_of_go_in_its_order() {
    let all = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "x"),
        ("Sec-WebSocket-Version", "13"),
    ];
    let read = |method, lines: &[(&str, &str)]| Challenge::read(&method, &headers(lines));
    let good = read(Method::GET, &all).unwrap();
    assert_eq!(good.accept, accept_key(b"x"), "the length of a key is not checked");
    for (method, lines, refusal, bytes) in [
        (Method::POST, &all[..2], Refusal::Method, "HTTP/1.1 405 Method Not Allowed\r\n\r\nbad method"),
        (
            Method::GET,
            &all[1..],
            Refusal::NotWebSocket,
            "HTTP/1.1 400 Bad Request\r\n\r\nnot websocket protocol",
        ),
        (Method::GET, &all[..2], Refusal::Key, "HTTP/1.1 400 Bad Request\r\n\r\nmismatch challenge/response"),
        (
            Method::GET,
            &all[..3],
            Refusal::Version,
            "HTTP/1.1 400 Bad Request\r\nSec-WebSocket-Version: 13\r\n\r\nmissing or bad WebSocket Version",
        ),
    ] {
        assert_eq!(read(method, lines), Err(refusal));
        assert_eq!(refusal.to_bytes(), bytes);
        let head = answer(str::from_utf8(&refusal.to_bytes()).unwrap());
        assert_eq!(head.status, refusal.status());
    }
    let eight = [&all[..3], &[("Sec-WebSocket-Version", "8")]].concat();
    assert_eq!(read(Method::GET, &eight), Err(Refusal::Version));
}

#[test]
fn item_077_the_bearer_protocol_is_taken_out_from_any_line() {
    let lines = [&b"a, base64url.bearer.authorization.k8s.io.dDBrZW4"[..], b"b , c"];
    let found = bearer(lines).unwrap().unwrap();
    assert_eq!((found.token.as_str(), without_bearer(lines).as_deref()), ("t0ken", Some(&b"a,b,c"[..])));
    assert_eq!(without_bearer([&lines[0][3..]]).as_deref(), Some(&b""[..]));
    assert_eq!(without_bearer([&b"a,b"[..], b"c"]), None);
    assert!(!format!("{found:?}").contains("t0ken"), "a token is never printed");
    assert_eq!(bearer([&b"a"[..], b"b"]), Ok(None));
    assert_eq!(bearer([&b"base64url.bearer.authorization.k8s.io."[..]]), Ok(None), "as for Go");
}

#[test]
fn item_077_a_bearer_protocol_that_does_not_do_is_an_error() {
    let read = |items: &[&str]| {
        let line = items.iter().map(|item| item.replace("T:", BEARER_PREFIX)).collect::<Vec<_>>().join(",");
        bearer([line.as_bytes()]).unwrap_err().to_string()
    };
    assert_eq!(read(&["T:dDBrZW4"]), "missing additional subprotocol");
    assert_eq!(
        read(&["a", "T:dDBrZW4", "T:dDBrZW4"]),
        "multiple base64.bearer.authorization tokens specified"
    );
    for bad in ["T:dDBrZW4=", "T:d", "T:dDB+", "T:d DB"] {
        assert_eq!(read(&["a", bad]), "invalid base64.bearer.authorization token encoding");
    }
    assert_eq!(read(&["a", "T:_w"]), "invalid base64.bearer.authorization token");
}

#[test]
fn a_request_is_a_challenge_to_our_own_server_and_its_answer_is_good() {
    let request = Request {
        target: "/api/v1/namespaces/shop/pods/cart-0/exec?command=id",
        host: "gate.example:443",
        nonce: *b"the sample nonce",
        protocols: &["v5.channel.k8s.io", "v4.channel.k8s.io"],
        headers: &[("Authorization", "Bearer t0ken")],
    };
    assert_eq!(request.key(), KEY);
    let bytes = request.to_bytes();
    let mut lines = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Request::new(&mut lines);
    assert_eq!(parsed.parse(&bytes).unwrap(), httparse::Status::Complete(bytes.len()));
    assert_eq!((parsed.method, parsed.path), (Some("GET"), Some(request.target)));
    let lines: Vec<_> =
        parsed.headers.iter().map(|line| (line.name, str::from_utf8(line.value).unwrap())).collect();
    assert!(
        lines.contains(&("Host", "gate.example:443")) && lines.contains(&("Authorization", "Bearer t0ken"))
    );

    let answered = Challenge::read(&Method::GET, &headers(&lines)).unwrap().choose(&["v4.channel.k8s.io"]);
    let head = ResponseHead::parse(&answered.unwrap().to_bytes()).unwrap().unwrap();
    assert_eq!(check_answer(&head, KEY, request.protocols).unwrap(), "v4.channel.k8s.io");
}

#[test]
fn go_clients_take_only_the_answer_they_asked_for() {
    let good = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    let check =
        |from: &str, to: &str| check_answer(&answer(&good.replace(from, to)), KEY, &["v5.channel.k8s.io"]);
    assert_eq!(check("", "").unwrap(), "v5.channel.k8s.io");
    for (from, to) in [
        ("101 ", "200 "),
        ("Upgrade: WebSocket", "Upgrade: websocket, x"),
        ("Connection: upgrade", "Connection: keep-alive, upgrade"),
        ("s3pP", "s3pp"),
    ] {
        let status = if to == "200 " { 200 } else { 101 };
        assert_eq!(check(from, to), Err(BadAnswer::Handshake(status)), "{to}");
    }
    for other in ["v4.channel.k8s.io", ""] {
        let error = check("v5.channel.k8s.io", other).unwrap_err();
        assert!(matches!(error, BadAnswer::Protocol { got, .. } if got == other));
    }
    let bare = good.replace("Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", "");
    assert!(check_answer(&answer(&bare), KEY, &["v5.channel.k8s.io"]).is_err());
    assert_eq!(check_answer(&answer(&bare), KEY, &[]).unwrap(), "");
}
