//! The same sessions over WebSocket, with frames of tungstenite on the client's side.

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

use super::*;
use crate::wire::http1::ResponseHead;
use crate::wire::ws::handshake::check_answer;

pub(super) const V5: &str = "v5.channel.k8s.io";
pub(super) const STATUS: &str = r#"{"metadata":{},"status":"Success"}"#;

/// Channels by their number.
pub(super) const STDIN: u8 = 0;
const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;

/// A client with all that it was sent.
pub(super) struct Ws {
    socket: WebSocketStream<Io>,
    is_base64: bool,
    /// The first message as it came.
    first: Option<Message>,
    channels: [Vec<u8>; 4],
    pongs: Vec<Vec<u8>>,
    /// What the server's Close said.
    close: Option<Option<CloseFrame>>,
}

fn level(streaming: Streaming) -> Settings {
    Settings { streaming, ..Settings::default() }
}

/// The answer to a request with these header lines, and what of the connection follows it.
async fn answer(node: &Harness, request: &[u8]) -> (ResponseHead, Io, BytesMut) {
    let mut io = node.dial().await;
    io.write_all(request).await.unwrap();
    let mut buffer = BytesMut::new();
    loop {
        if let Some(head) = ResponseHead::parse(&buffer).unwrap() {
            let _ = buffer.split_to(head.len);
            return (head, io, buffer);
        }
        assert_ne!(soon("an answer", io.read_buf(&mut buffer)).await.unwrap(), 0);
    }
}

fn request<'a>(target: &'a str, protocols: &'a [&'a str]) -> handshake::Request<'a> {
    handshake::Request { target, host: "node", nonce: [7; 16], protocols, headers: &[] }
}

/// A shell command on a node that speaks v5.
async fn shell(node: &Harness, protocol: &str, query: &str, script: &str) -> Ws {
    open(node, protocol, &target("app", query, &["sh", "-c", script])).await
}

pub(super) async fn open(node: &Harness, protocol: &str, target: &str) -> Ws {
    let protocols: Vec<_> = Some(protocol).filter(|name| !name.is_empty()).into_iter().collect();
    let request = request(target, &protocols);
    let (head, io, early) = answer(node, &request.to_bytes()).await;
    assert_eq!(check_answer(&head, &request.key(), &protocols).unwrap(), protocol);
    assert_eq!(head.values("Sec-WebSocket-Protocol").collect::<Vec<_>>(), [protocol.as_bytes()]);
    Ws {
        socket: WebSocketStream::from_partially_read(io, early.to_vec(), Role::Client, None).await,
        is_base64: protocol.contains("base64"),
        first: None,
        channels: Default::default(),
        pongs: Vec::new(),
        close: None,
    }
}

impl Ws {
    pub(super) async fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.socket.send(Message::binary([&[channel], bytes].concat())).await.unwrap();
    }

    /// Takes one message; false at the end.
    async fn step(&mut self) -> bool {
        let message = match soon("a message", self.socket.next()).await {
            Some(Ok(message)) => message,
            // A server that has said Close may go without the end of TLS being read.
            Some(Err(error)) => {
                assert!(self.close.is_some(), "{error}");
                return false;
            }
            None => return false,
        };
        match &message {
            Message::Binary(bytes) => {
                assert!(!self.is_base64, "binary in base64");
                self.channels[usize::from(bytes[0])].extend(&bytes[1..]);
            }
            Message::Text(text) => {
                assert!(self.is_base64, "text in binary");
                let channel = text.as_bytes()[0] - b'0';
                self.channels[usize::from(channel)].extend(&text.as_bytes()[1..]);
            }
            Message::Pong(payload) => self.pongs.push(payload.to_vec()),
            Message::Close(close) => self.close = Some(close.clone()),
            Message::Ping(_) | Message::Frame(_) => panic!("{message:?}"),
        }
        self.first.get_or_insert(message);
        true
    }

    pub(super) fn stdout(&self) -> &str {
        text(&self.channels[usize::from(STDOUT)])
    }

    pub(super) fn error(&self) -> &str {
        text(&self.channels[usize::from(ERROR)])
    }

    pub(super) async fn until(&mut self, what: &str) {
        while !self.stdout().contains(what) {
            assert!(self.step().await, "ended before {what:?}: {:?}", self.stdout());
        }
    }

    async fn pid(&mut self) -> String {
        self.until("\n").await;
        self.stdout().trim().to_owned()
    }

    /// The code of the Close at the end.
    pub(super) async fn finish(&mut self) -> u16 {
        while self.step().await {}
        self.close.clone().flatten().expect("a Close with a code").code.into()
    }
}

#[tokio::test]
async fn every_subprotocol_carries_the_streams_and_the_result() {
    let node = Harness::with(level(Streaming::V5)).await;
    let script = "read x; echo got $x; echo err >&2; exit 7";
    let why = format!("error executing command [sh -c {script}], exit code 7");
    for protocol in ["", "channel.k8s.io", "v4.channel.k8s.io", V5] {
        let mut client = shell(&node, protocol, PLAIN, script).await;
        // Nothing of these is for the process: no channel, unknown ones, and those it writes itself.
        client.socket.send(Message::binary(&b""[..])).await.unwrap();
        for channel in [STDOUT, ERROR, RESIZE, 9] {
            client.send(channel, b"x").await;
        }
        client.send(STDIN, b"").await;
        client.send(STDIN, b"hi\n").await;
        assert_eq!(client.finish().await, 1000, "{protocol}");
        assert_eq!(client.first, Some(Message::binary(&[STDOUT][..])), "{protocol}");
        assert_eq!(client.stdout(), "got hi\n", "{protocol}");
        assert_eq!(text(&client.channels[usize::from(STDERR)]), "err\n", "{protocol}");
        let message = format!("command terminated with non-zero exit code: {why}");
        if protocol.starts_with('v') {
            let outcome = Outcome::parse(Protocol::V4, client.error().as_bytes()).unwrap();
            let text = if protocol == V5 { "command terminated with exit code 7" } else { &why };
            assert_eq!(outcome, Outcome::Exit { code: 7, text: text.to_owned() });
        } else {
            assert_eq!(client.error(), message, "{protocol}");
        }
    }
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut client = shell(&node, protocol, PLAIN, "read x; echo $x; echo err >&2; exit 7").await;
        // What is no base64 is dropped with its message.
        client.socket.send(Message::text("0!!!!")).await.unwrap();
        client.socket.send(Message::text("0aGVsbG8K")).await.unwrap();
        assert_eq!(client.finish().await, 1000, "{protocol}");
        assert_eq!(client.first, Some(Message::text("1")), "{protocol}");
        assert_eq!(client.stdout(), "aGVsbG8K", "{protocol}");
        assert_eq!(text(&client.channels[usize::from(STDERR)]), "ZXJyCg==", "{protocol}");
        // The front of the text, or of the Status.
        let begin = if protocol.starts_with('v') { "eyJtZXRh" } else { "Y29tbWFu" };
        assert!(client.error().starts_with(begin), "{protocol}: {}", client.error());
    }
    node.stop().await;
}

#[tokio::test]
async fn item_093_v5_tells_a_failure_of_the_runtime_with_the_prefix_twice() {
    let node = Harness::with(level(Streaming::V5)).await;
    for (protocol, prefixes) in [("v4.channel.k8s.io", 1), (V5, 2)] {
        let mut client = open(&node, protocol, &target("app", PLAIN, &["/nope"])).await;
        assert_eq!(client.finish().await, 1000);
        let outcome = Outcome::parse(Protocol::V4, client.error().as_bytes()).unwrap();
        let Outcome::Internal { .. } = outcome else { panic!("{outcome:?}") };
        let prefix = "Internal error occurred: ".repeat(prefixes) + "error executing command in container: ";
        assert!(outcome.message().starts_with(&prefix), "{protocol}: {}", outcome.message());
    }
    node.stop().await;
}

#[tokio::test]
async fn the_first_message_is_on_the_lowest_channel_that_was_asked_for() {
    let node = Harness::start().await;
    for (query, channel) in [("input=1&error=1", STDERR), ("input=1", ERROR), ("output=1&error=1", STDOUT)] {
        let mut client = shell(&node, "v4.channel.k8s.io", query, "exit 0").await;
        assert_eq!(client.finish().await, 1000);
        assert_eq!(client.first, Some(Message::binary(vec![channel])), "{query}");
        assert_eq!(client.error(), STATUS);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_terminal_follows_sizes_on_channel_4() {
    let node = Harness::start().await;
    let mut client =
        shell(&node, "v4.channel.k8s.io", "input=1&output=1&tty=1", "read x; stty size; read x; stty size")
            .await;
    client.send(RESIZE, b"{\"Width\":132,\"Height\":43}\n").await;
    client.send(STDIN, b"\n").await;
    client.until("43 132").await;
    // Cut inside a size.
    client.send(RESIZE, b"{\"Width\":80,").await;
    client.send(RESIZE, b"\"Height\":24}").await;
    client.send(STDIN, b"\n").await;
    client.until("24 80").await;
    assert_eq!((client.finish().await, client.error()), (1000, STATUS));
    node.stop().await;
}

#[tokio::test]
async fn close_of_stdin_ends_cat_and_the_rest_goes_on() {
    let node = Harness::with(level(Streaming::V5)).await;
    let mut client = shell(&node, V5, PLAIN, "cat; echo more").await;
    client.send(STDIN, b"data ").await;
    client.send(255, &[STDIN]).await;
    client.send(STDIN, b"lost").await;
    assert_eq!(client.finish().await, 1000);
    assert_eq!((client.stdout(), client.error()), ("data more\n", STATUS));
    // Elsewhere it is a channel that nobody knows.
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "exec cat").await;
    client.send(255, &[STDIN]).await;
    client.send(STDIN, b"data").await;
    client.until("data").await;
    drop(client);
    // A CLOSE of nothing ends the session.
    let mut client = shell(&node, V5, PLAIN, "exec cat").await;
    client.send(255, &[9]).await;
    assert_eq!((client.finish().await, client.error()), (1002, ""));
    node.stop().await;
}

#[tokio::test]
async fn eight_mebibytes_through_cat_are_the_same_over_websocket() {
    let node = Harness::with(level(Streaming::V5)).await;
    let client = shell(&node, V5, PLAIN, "exec cat").await;
    let sent: Vec<u8> =
        (0..8 * 1024 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut to, mut from) = client.socket.split();
    let write = async {
        for chunk in sent.chunks(32 * 1024) {
            to.feed(Message::binary([&[STDIN], chunk].concat())).await.unwrap();
        }
        to.send(Message::binary(&[255, STDIN][..])).await.unwrap();
    };
    let read = async {
        let (mut stdout, mut error) = (Vec::<u8>::new(), Vec::<u8>::new());
        loop {
            match soon("output", from.next()).await.unwrap().unwrap() {
                Message::Binary(bytes) if bytes[0] == STDOUT => stdout.extend(&bytes[1..]),
                Message::Binary(bytes) => error.extend(&bytes[1..]),
                Message::Close(close) => break (stdout, error, close.unwrap().code.into()),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((), (stdout, error, code)) = tokio::join!(write, read);
    assert!(stdout == sent);
    assert_eq!((text(&error), code), (STATUS, 1000u16));
    drop((to, from));
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_over_websocket_takes_the_process_with_it() {
    let node = Harness::start().await;
    for stuck in [false, true] {
        let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "echo $$; exec sleep 1000").await;
        let pid = client.pid().await;
        assert!(is_alive(&pid));
        if stuck {
            let piece = Message::binary(vec![STDIN; 32 * 1024]);
            let push = async { while client.socket.send(piece.clone()).await.is_ok() {} };
            assert!(tokio::time::timeout(Duration::from_secs(1), push).await.is_err(), "never stuck");
        }
        drop(client);
        until("the process is reaped", || is_gone(&pid)).await;
    }
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "echo $$; exec sleep 1000").await;
    let pid = client.pid().await;
    client.socket.close(Some(CloseFrame { code: 1000.into(), reason: "".into() })).await.unwrap();
    assert_eq!(client.finish().await, 1000, "a Close is answered");
    until("the process is reaped", || is_gone(&pid)).await;
    node.stop().await;
}

#[tokio::test]
async fn pings_without_number_are_answered_by_the_last() {
    const PINGS: u32 = 100_000;
    let node = Harness::start().await;
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "read x; echo $x").await;
    let mut payload = vec![0; 125];
    // Nothing is read meanwhile: more pongs than the sockets hold would be owed.
    for n in 1..=PINGS {
        payload[..4].copy_from_slice(&n.to_be_bytes());
        let ping = client.socket.feed(Message::Ping(payload.clone().into()));
        soon("room for a ping", ping).await.unwrap();
    }
    client.send(STDIN, b"after\n").await;
    assert_eq!(client.finish().await, 1000);
    assert_eq!((client.stdout(), client.error()), ("after\n", STATUS));
    assert_eq!(client.pongs.last(), Some(&payload));
    assert!(client.pongs.len() < PINGS as usize / 2, "{} pongs", client.pongs.len());
    node.stop().await;
}

#[tokio::test]
async fn what_ends_early_says_so_in_its_close() {
    let node = Harness::with(Settings { idle: Duration::from_millis(200), ..Settings::default() }).await;
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "exec sleep 1000").await;
    // Pings do not keep a session.
    client.socket.send(Message::Ping(Bytes::new())).await.unwrap();
    assert_eq!((client.finish().await, client.error()), (1001, ""));
    node.stop().await;

    let node = Harness::start().await;
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "echo $$; exec sleep 1000").await;
    let pid = client.pid().await;
    client.socket.get_mut().write_all(&[0x82, 1, STDIN]).await.unwrap();
    assert_eq!(client.finish().await, 1002, "a frame without a mask");
    until("the process is reaped", || is_gone(&pid)).await;
    let mut client = shell(&node, "v4.channel.k8s.io", PLAIN, "echo $$; exec sleep 1000").await;
    let pid = client.pid().await;
    node.drain.stop();
    node.drain.cut();
    assert_eq!((client.finish().await, client.error()), (1001, ""));
    drop(client);
    assert_eq!(node.drain.finish(Duration::from_secs(5)).await, Drained::Cut);
    assert!(is_gone(&pid));
}

#[tokio::test]
async fn a_node_takes_the_subprotocols_of_its_level() {
    let app = target("app", PLAIN, &["true"]);
    for streaming in Streaming::ALL {
        let node = Harness::with(level(streaming)).await;
        for (protocol, least) in [("v4.channel.k8s.io", 1), (V5, 2), ("v3.channel.k8s.io", 3)] {
            let protocols = [protocol];
            let (head, ..) = answer(&node, &request(&app, &protocols).to_bytes()).await;
            let status = match streaming as usize {
                0 => 400,
                level if level < least => 403,
                _ => 101,
            };
            assert_eq!(head.status, status, "{streaming:?} {protocol}");
        }
        // item 90: v5 counts wherever it stands, and is the translator's alone.
        let protocols = ["v4.channel.k8s.io", V5];
        let (head, ..) = answer(&node, &request(&app, &protocols).to_bytes()).await;
        let chosen = head.values("Sec-WebSocket-Protocol").next();
        let best = [None, Some(protocols[0]), Some(V5)][streaming as usize];
        assert_eq!(chosen, best.map(str::as_bytes), "{streaming:?}");
        node.upgrade(&app, V4).await.client();
        node.stop().await;
    }
}

#[tokio::test]
async fn handshakes_are_refused_in_the_words_of_go_s_server() {
    let node = Harness::start().await;
    let app = target("app", PLAIN, &["true"]);
    let mut good = String::from_utf8(request(&app, &["v4.channel.k8s.io"]).to_bytes().to_vec()).unwrap();
    for (from, to, status, body) in [
        ("v4.channel", "v2.channel", 403, ""),
        ("Version: 13", "Version: 8", 400, "missing or bad WebSocket Version"),
        ("Sec-WebSocket-Key", "X-Key", 400, "mismatch challenge/response"),
        ("GET", "POST", 405, "bad method"),
    ] {
        let (head, mut io, mut early) = answer(&node, good.replace(from, to).as_bytes()).await;
        assert_eq!(head.status, status, "{to}");
        while early.len() < body.len() {
            assert_ne!(soon("the body", io.read_buf(&mut early)).await.unwrap(), 0);
        }
        assert_eq!(text(&early), body, "{to}");
    }
    // Only the first line counts, and in it the client's order.
    good = good.replace("v4.channel.k8s.io", "v9.channel.k8s.io, channel.k8s.io, v4.channel.k8s.io");
    let (head, ..) = answer(&node, good.as_bytes()).await;
    assert_eq!(head.values("Sec-WebSocket-Protocol").next(), Some(&b"channel.k8s.io"[..]));
    assert_eq!(head.values("Connection").collect::<Vec<_>>(), [b"Upgrade"]);
    assert_eq!(head.values("Upgrade").collect::<Vec<_>>(), [b"websocket"]);
    let spdy = Harness::with(level(Streaming::Spdy)).await;
    let websocket = ["Connection: Upgrade", "Upgrade: websocket"];
    let (status, body) = spdy.ask(&app, &websocket).await.refusal();
    assert_eq!(status, 400);
    assert!(body.starts_with("unable to upgrade: missing upgrade headers in request: "), "{body}");
    spdy.stop().await;
    node.stop().await;
}
