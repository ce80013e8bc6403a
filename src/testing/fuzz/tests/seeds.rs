//! What the corpora begin with: sessions as our encoders write them, and vectors that Go wrote.

use std::io::Write;

use bytes::{BufMut, BytesMut};

use super::super::recordings::facts;
use crate::recording::cast;
use crate::recording::container::Writer;
use crate::recording::facts::{Details, Ending};
use crate::recording::keys::{Keys, SigningKey};
use crate::wire::portforward::Half;
use crate::wire::remotecommand::{Outcome, Protocol, StreamType, TerminalSize};
use crate::wire::spdy::{Encoder, Frame, Headers, RstStatus};
use crate::wire::tape::{Buffer, Kind as Channel, Reel, Tape};
use crate::wire::ws::{self, Close, Kind, MaskKey, Opcode};

/// A file of a corpus: its target, its name there, its bytes.
pub(super) type Seed = (&'static str, String, Vec<u8>);

/// Choices of cuts: one piece, single bytes, and pieces of 3, 17 and 1024 bytes in turns.
pub(super) const CUTS: [&[u8]; 3] = [&[0], &[1, 0], &[3, 2, 16, 129]];

const MASK: MaskKey = MaskKey([0x37, 0xfa, 0x21, 0x3d]);

/// Header blocks of a Go client, at level 9 on one connection: the five streams of remotecommand.
const GO_CLIENT: [&str; 5] = [
    "78f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    "c22e555c92929907000000ffff",
    "c22ac5565c92925f5a02000000ffff",
    "c229975a5404000000ffff",
    "c22e57945a9c59950a000000ffff",
];

/// The first two of a Go server: without headers.
const GO_SERVER: [&str; 2] = ["78f9e3c6a7c26260606000000000ffff", "026100000000ffff"];

/// All seeds.
pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    spdy(&mut seeds);
    headers(&mut seeds);
    websocket(&mut seeds);
    channels(&mut seeds);
    http(&mut seeds);
    requests(&mut seeds);
    forwards(&mut seeds);
    commands(&mut seeds);
    links(&mut seeds);
    recordings(&mut seeds);
    seeds
}

/// The same bytes, cut in several ways behind the choices that come first.
fn put_cut(seeds: &mut Vec<Seed>, target: &'static str, name: &str, first: &[u8], rest: &[u8]) {
    for (index, cuts) in CUTS.iter().enumerate() {
        seeds.push((target, format!("{name}-{index}"), [first, cuts, rest].concat()));
    }
}

fn put(seeds: &mut Vec<Seed>, target: &'static str, name: &str, parts: &[&[u8]]) {
    seeds.push((target, name.to_owned(), parts.concat()));
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

/// Behind their length.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// What kubectl writes on one connection of an exec.
pub(super) fn exec_client() -> Vec<u8> {
    let mut encoder = Encoder::new();
    written(|out| {
        for (kind, id) in StreamType::ALL[..4].iter().zip((1..).step_by(2)) {
            encoder.syn_stream(out, id, &Headers::new().with(StreamType::HEADER, kind.name())).unwrap();
        }
        put_data(out, 3, b"echo hello\n", false);
        Encoder::ping(out, 1);
        put_data(out, 3, b"", true);
        Encoder::goaway(out, 0);
    })
}

/// What a kubelet answers.
pub(super) fn exec_server(outcome: &Outcome) -> Vec<u8> {
    let mut encoder = Encoder::new();
    written(|out| {
        [1, 3, 5, 7].iter().for_each(|id| encoder.syn_reply(out, *id));
        Encoder::ping(out, 1);
        put_data(out, 5, b"hello\n", false);
        put_data(out, 7, b"oops\n", true);
        put_data(out, 1, &outcome.to_bytes(Protocol::V4), false);
        [1, 3, 5].iter().for_each(|id| put_data(out, *id, b"", true));
        Encoder::rst_stream(out, 3, RstStatus::CANCEL);
        Encoder::goaway(out, 7);
    })
}

/// What kubectl writes for two connections of a port-forward.
pub(super) fn forward_client() -> Vec<u8> {
    let mut encoder = Encoder::new();
    written(|out| {
        for (request, error) in [(0, 1), (1, 5)] {
            encoder.syn_stream(out, error, &Half::Error.headers(8080, request)).unwrap();
            put_data(out, error, b"", true);
            encoder.syn_stream(out, error + 2, &Half::Data.headers(8080, request)).unwrap();
            put_data(out, error + 2, b"GET / HTTP/1.0\r\n\r\n", false);
        }
        put_data(out, 3, b"", true);
        Encoder::rst_stream(out, 5, RstStatus::CANCEL);
    })
}

/// What a kubelet answers: the second connection fails.
pub(super) fn forward_server() -> Vec<u8> {
    let mut encoder = Encoder::new();
    written(|out| {
        [1, 3, 5, 7].iter().for_each(|id| encoder.syn_reply(out, *id));
        put_data(out, 3, b"HTTP/1.0 200 OK\r\n\r\nbody", true);
        put_data(out, 1, b"", true);
        put_data(out, 5, b"error forwarding port 8080 to pod x, uid : refused", true);
    })
}

fn put_data(out: &mut BytesMut, id: u32, bytes: &[u8], fin: bool) {
    out.put_slice(&Encoder::data_head(id, bytes.len(), fin));
    out.put_slice(bytes);
}

fn spdy(seeds: &mut Vec<Seed>) {
    let frame = |kind: u32, body: &[u8], block: &str| {
        let block = hex(block);
        written(|out| {
            out.put_u32(0x8003_0000 | kind);
            out.put_u32((body.len() + block.len()) as u32);
            out.put_slice(body);
            out.put_slice(&block);
        })
    };
    let go_client: Vec<u8> = GO_CLIENT
        .iter()
        .zip((1..).step_by(2))
        .flat_map(|(block, id)| frame(1, &[0, 0, 0, id, 0, 0, 0, 0, 0, 0], block))
        .collect();
    let go_server: Vec<u8> =
        GO_SERVER.iter().zip([1, 3]).flat_map(|(block, id)| frame(2, &[0, 0, 0, id], block)).collect();
    let rare = written(|out| {
        let mut encoder = Encoder::new();
        for frame in [
            Frame::Settings,
            Frame::WindowUpdate { id: 1, delta: 65536 },
            Frame::Headers { id: 1, fin: true, headers: Headers::new().with("a", "b").with("a", "c") },
            Frame::GoAway { last_good: 3, status: 2 },
        ] {
            encoder.encode(out, &frame).unwrap();
        }
    });
    put_cut(seeds, "spdy_frames", "exec-client", &[], &exec_client());
    put_cut(seeds, "spdy_frames", "exec-server", &[], &exec_server(&Outcome::exit(3)));
    put_cut(seeds, "spdy_frames", "forward-client", &[], &forward_client());
    put_cut(seeds, "spdy_frames", "forward-server", &[], &forward_server());
    put_cut(seeds, "spdy_frames", "go-client", &[], &go_client);
    put_cut(seeds, "spdy_frames", "go-server", &[], &go_server);
    put_cut(seeds, "spdy_frames", "rare", &[], &rare);
}

fn headers(seeds: &mut Vec<Seed>) {
    let block = |times: u8, bytes: &[u8]| {
        [&[times - 1][..], &u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    };
    let client: Vec<u8> = GO_CLIENT.iter().flat_map(|text| block(1, &hex(text))).collect();
    let server: Vec<u8> = GO_SERVER.iter().flat_map(|text| block(1, &hex(text))).collect();
    let empties = [block(1, &hex(GO_SERVER[0])), block(200, &hex(GO_SERVER[1]))].concat();
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&[0; 100_000]).unwrap();
    let bomb = block(1, &bomb.finish().unwrap());
    for (name, bytes) in [("go-client", client), ("go-server", server), ("empties", empties), ("bomb", bomb)]
    {
        put_cut(seeds, "spdy_headers", name, &[], &[&[0], &bytes[..]].concat());
    }
    let pair = |name: &[u8], value: &[u8], times: u8| [sized(name), sized(value), vec![times - 1]].concat();
    let syn = |pairs: &[Vec<u8>]| {
        [&[u8::try_from(pairs.len()).unwrap()], &pairs.concat()[..], &[0, 1, 0, 0, 0]].concat()
    };
    let few = syn(&[pair(b"streamType", b"error", 1), pair(b"Port", b"80", 1), pair(b"port", b"\0x", 1)]);
    let big = syn(&[pair(b"a", &[b'x'; 200], 20), pair(b"", b"", 1)]);
    let over = syn(&[pair(b"a", &[b'x'; 200], 32)]);
    put_cut(seeds, "spdy_headers", "written", &[], &[&[1], &few[..], &big, &over, &few].concat());
}

fn websocket(seeds: &mut Vec<Seed>) {
    let session = |mask: Option<MaskKey>| {
        written(|out| {
            ws::Encoder::message(out, Kind::Binary, b"\x00input", mask);
            ws::Encoder::ping(out, b"are you there", mask);
            ws::Encoder::frame(out, Opcode::Text, false, "aé".as_bytes(), mask);
            ws::Encoder::pong(out, b"", mask);
            ws::Encoder::frame(out, Opcode::Continuation, false, b"", mask);
            ws::Encoder::frame(out, Opcode::Continuation, true, "€😀".as_bytes(), mask);
            ws::Encoder::message(out, Kind::Binary, &[b'x'; 200], mask);
            ws::Encoder::close(out, Some(&Close { reason: "bye".into(), ..Close::normal() }), mask);
        })
    };
    put_cut(seeds, "ws_frames", "server", &[0, 0, 1], &session(None));
    put_cut(seeds, "ws_frames", "client", &[1, 0, 0], &session(Some(MASK)));
    put_cut(seeds, "ws_frames", "short", &[0, 1, 1], &session(None));
    put(seeds, "ws_frames", "long", &[&[0, 0, 0, 0, 0x82, 127, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 1, 2, 3]]);
    put(seeds, "ws_frames", "empty-close", &[&[0, 0, 0, 0, 0x88, 0]]);
}

fn channels(seeds: &mut Vec<Seed>) {
    let messages: [&[u8]; 8] = [
        b"\x00input",
        b"0aW5wdXQ=",
        b"4eyJXaWR0aCI6ODAsIkhlaWdodCI6MjR9Cg==",
        b"\x04{\"Width\":80,\"Height\":24}\n",
        b"\x01output",
        b"\x03{\"metadata\":{},\"status\":\"Success\"}",
        b"",
        b"\xff\x00",
    ];
    let messages: Vec<u8> = messages.iter().flat_map(|bytes| [vec![0], sized(bytes)].concat()).collect();
    for subprotocol in 0..6 {
        for role in 0..2 {
            let name = format!("v{subprotocol}-{role}");
            let cuts = CUTS[usize::from(subprotocol) % 3];
            put(
                seeds,
                "channel_messages",
                &name,
                &[&[subprotocol, 0x0f ^ role << 3, role], cuts, &[0], &messages],
            );
            let first = [subprotocol, 0x0f ^ role << 3, role];
            let stream = [1 + role, 200];
            put(
                seeds,
                "channel_messages",
                &format!("{name}-written"),
                &[&first, cuts, &[1], &stream, &[7; 200]],
            );
        }
    }
}

fn http(seeds: &mut Vec<Seed>) {
    let answers: [(&str, &str); 7] = [
        (
            "switched",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
        ),
        (
            "refused",
            "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 9\r\n\
             X-Content-Type-Options: nosniff\r\n\r\nForbidden",
        ),
        (
            "chunked",
            "HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n\
             5\r\nhello\r\n a;b=c\r\n0\r\nX: y\r\n\r\n",
        ),
        (
            "chunks",
            "HTTP/1.1 500 \r\ntransfer-encoding: Chunked\r\n\r\n3;x\r\nabc\r\n0a \r\n0123456789\r\n0\r\n\r\nrest",
        ),
        ("old", "HTTP/1.0 200 OK\nConnection: keep-alive\n\nuntil the end"),
        (
            "lengths",
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\ncontent-length: 3\r\nConnection: close\r\n\r\nabcd",
        ),
        ("empty", "HTTP/1.1 204 No Content\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n"),
    ];
    for (name, answer) in answers {
        put_cut(seeds, "http1_head", name, &[], answer.as_bytes());
    }
}

fn requests(seeds: &mut Vec<Seed>) {
    let requests: [(&str, &str); 9] = [
        (
            "exec-spdy",
            "POST /api/v1/namespaces/default/pods/web/exec?command=sh&command=-c&command=echo+%24HOME&container=main\
             &stdin=true&stdout=true&tty=false\nConnection: Upgrade\nUpgrade: SPDY/3.1\n\
             X-Stream-Protocol-Version: v5.channel.k8s.io\nUser-Agent: kubectl/v1.31.0\nAccept: */*",
        ),
        (
            "exec-websocket",
            "GET /api/v1/namespaces/default/pods/web/exec?command=id&stdout=1 HTTP\nConnection: Upgrade",
        ),
        (
            "websocket",
            "GET /api/v1/namespaces/default/pods/web/attach?stdin&tty=0&stdout=FALSE&pretty=1\nConnection: Upgrade\n\
             Upgrade: websocket\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nSec-WebSocket-Version: 13\n\
             Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4",
        ),
        ("ports", "GET /api/v1/namespaces/a/pods/b/portforward?ports=80,443&ports=65536&ports="),
        (
            "list",
            "GET /api/v1/pods?watch=1&fieldSelector=metadata.name%3Dweb&limit=500\nAccept: application/json;as=Table;g=meta.k8s.io;v=v1",
        ),
        ("group", "DELETE /apis/apps/v1/namespaces/default/deployments/web/scale?dryRun=All"),
        ("escapes", "PATCH /api/v1/namespaces/%64efault/pods/a%2Fb/exec/%E2%82%AC%ff?a=%zz&b;c=1&=&d=%20+"),
        ("old-watch", "GET /api/v1/watch/namespaces/default/pods/web/exec"),
        ("other", "OPTIONS //healthz//?verbose\nImpersonate-User: x"),
    ];
    for (name, text) in requests {
        put(seeds, "request", name, &[text.as_bytes()]);
    }
}

fn forwards(seeds: &mut Vec<Seed>) {
    // Each stream is a choice of what to do and one byte of what it is: half, port, without a name, name.
    let streams = [3, 0x00, 3, 0x01, 3, 0x10, 3, 0x10, 3, 0x21, 0, 1, 1, 2, 3, 0x08, 3, 0x09, 2];
    put(seeds, "portforward", "pairs", &[&[1], &streams]);
    let named: Vec<u8> = [&b"\x03\xff"[..], &sized(b"7"), &sized(b"error"), &sized(b"80")].concat();
    let data: Vec<u8> = [&b"\x03\xff"[..], &sized(b"7"), &sized(b"data"), &sized(b"65535")].concat();
    let wrong: Vec<u8> = [&b"\x03\xff"[..], &sized(b""), &sized(b"Data"), &sized(b"+1")].concat();
    put(seeds, "portforward", "headers", &[&[1], &named, &data, &wrong, &[0, 0]]);
    let many: Vec<u8> = (0..600_u16).flat_map(|_| [3, 0x08]).collect();
    put(seeds, "portforward", "many", &[&[1], &many]);
    for (encoding, message) in [(0, &b"\x02bytes"[..]), (1, b"2Ynl0ZXM=")] {
        for cuts in CUTS {
            let name = format!("legacy-{encoding}-{}", cuts[0]);
            put(
                seeds,
                "portforward",
                &name,
                &[&[0, encoding, 3], cuts, &[0, 0], &sized(message), &[0, 1, 9]],
            );
            let name = format!("legacy-written-{encoding}-{}", cuts[0]);
            put(seeds, "portforward", &name, &[&[0, encoding, 3], cuts, &[1, 1, 0], b"payload"]);
        }
    }
}

fn commands(seeds: &mut Vec<Seed>) {
    let outcomes = [
        ("success", Outcome::Success),
        ("exit", Outcome::exit(137)),
        ("internal", Outcome::exec_failed("no such \"file\" <&>\u{2028}")),
        ("other", Outcome::Other { message: "gone".into() }),
    ];
    for (name, outcome) in outcomes {
        put(seeds, "remotecommand", name, &[&[0, 0], &outcome.to_bytes(Protocol::V4)]);
    }
    let odd = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"0"}]},"x":null}"#;
    put(seeds, "remotecommand", "odd", &[&[0, 0], odd]);
    let sizes =
        [TerminalSize { width: 80, height: 24 }.to_bytes(), TerminalSize::default().to_bytes()].concat();
    let odd = br#" {"width":1,"HEIGHT":null,"x":{"}":["\""]},"width":2}{}{"Width":70000}"#;
    put_cut(seeds, "remotecommand", "sizes", &[1], &[&[0], &sizes[..]].concat());
    put_cut(seeds, "remotecommand", "sizes-odd", &[1], &[&[0], &odd[..]].concat());
    put(seeds, "remotecommand", "sizes-written", &[&[1, 1, 2, 1, 0, 80, 0, 24, 255, 255, 0, 0]]);
    let lines = "v5.channel.k8s.io, v4.channel.k8s.io\nv3.channel.k8s.io\n,channel.k8s.io\t";
    for server in 0..4 {
        put(seeds, "remotecommand", &format!("negotiate-{server}"), &[&[2, 0, server], lines.as_bytes()]);
    }
}

/// Operations, in the numbers of `links`.
fn links(seeds: &mut Vec<Seed>) {
    const CLIENT: u8 = 0;
    const FAR: u8 = 5;
    let data = |stream: u8, bytes: &[u8], times: u8, fin: u8| {
        [&[FAR, 1, stream][..], &sized(bytes), &[times - 1, fin]].concat()
    };
    let result = |which: u8, fin: u8| vec![FAR, 5, 0, which, 0, fin];
    let fin = |stream: u8| vec![FAR, 4, stream];
    let goaway = vec![FAR, 10, 0, 0];
    let message = |channel: u8, bytes: &[u8], times: u8| {
        [&[CLIENT, 0, channel][..], &sized(bytes), &[times - 1]].concat()
    };
    let from_client =
        |stream: u8, bytes: &[u8], fin: u8| [&[CLIENT, 1, stream][..], &sized(bytes), &[0, fin]].concat();
    let breathe = vec![11, 12, 0, 5, 13, 0, 3, 14];

    let output = [data(2, b"output", 1, 0), data(3, b"oops", 60, 1), breathe.clone()].concat();
    let input = [message(0, b"input", 1), message(4, b"{\"Width\":80,\"Height\":24}", 1)].concat();
    let close = vec![CLIENT, 4, 0];
    let pings = vec![CLIENT, 7, 40, FAR, 9, 1];
    let whole = [&input[..], &output, &pings, &close, &result(0, 1), &fin(2), &fin(3)].concat();
    let cut = [&input[..], &output, &pings, &data(2, &[b'x'; 200], 40, 0)].concat();
    let left = [&output[..], &result(2, 0), &goaway].concat();
    for (subprotocol, cuts) in (0..6).zip(CUTS.iter().cycle()) {
        for (name, operations) in [("whole", &whole), ("cut", &cut), ("left", &left)] {
            let first = [&[subprotocol, 0x07, 0][..], cuts, &[0, 1]].concat();
            put(seeds, "translator", &format!("{name}-{subprotocol}"), &[&first, operations]);
        }
    }

    let input = [from_client(1, b"input", 1), vec![CLIENT, 9, 1]].concat();
    let output = [data(2, b"output", 1, 0), breathe.clone()].concat();
    let whole = [&input[..], &output, &result(0, 1), &fin(2), &fin(1), &goaway].concat();
    let cut = [&input[..], &output, &data(2, &[b'x'; 200], 40, 0), &[FAR, 12, 1, 0, 2, 0]].concat();
    let empty = [&output[..], &fin(0), &fin(2)].concat();
    for (protocol, cuts) in (0..4).zip(CUTS.iter().cycle()) {
        for (name, operations) in [("whole", &whole), ("cut", &cut), ("empty", &empty)] {
            let first = [&[0, protocol][..], cuts, &[0, 1]].concat();
            put(seeds, "spdy_link", &format!("{name}-{protocol}"), &[&first, operations]);
        }
    }
    let request = |wrap: &[u8]| [&[CLIENT][..], wrap, &[1, 1, 7], b"request", &[0, 0]].concat();
    let answer = [data(1, b"answer", 30, 1), breathe.clone(), fin(0)].concat();
    for cuts in CUTS {
        let operations = [request(&[]), answer.clone()].concat();
        put(seeds, "spdy_link", &format!("forward-{}", cuts[0]), &[&[1], cuts, &[0, 1], &operations]);
        let operations = [request(&[1, 3]), vec![CLIENT, 0, 7, 40], answer.clone()].concat();
        put(seeds, "tunnel", &format!("whole-{}", cuts[0]), &[cuts, &[0, 1], &operations]);
        put(
            seeds,
            "tunnel",
            &format!("closed-{}", cuts[0]),
            &[cuts, &[0, 1], &operations, &[CLIENT, 0, 9, 0]],
        );
        put(seeds, "tunnel", &format!("gone-{}", cuts[0]), &[cuts, &[1, 1], &answer]);
    }

    let said =
        |channel: u8, bytes: &[u8], times: u8| [&[FAR, 0, channel][..], &sized(bytes), &[times - 1]].concat();
    let input = [message(0, b"input", 1), vec![CLIENT, 3, 0, 2, 0, b'a', 1, b'b', 0], close, pings].concat();
    let output = [said(1, b"", 1), said(1, b"output", 60), said(2, b"oops", 1), breathe].concat();
    let end = vec![FAR, 9, 0];
    let status = vec![FAR, 5, 0, 0];
    let ports =
        [said(0, b"\x50\0", 1), said(1, b"\x50\0", 1), message(0, b"request", 3), said(0, b"answer", 9)]
            .concat();
    for (subprotocol, cuts) in (0..6).zip(CUTS.iter().cycle()) {
        let whole = [&input[..], &output, &status, &end].concat();
        let cut = [&input[..], &output].concat();
        let lost = [&output[..], &end].concat();
        for (name, operations) in [("whole", &whole), ("cut", &cut), ("lost", &lost)] {
            let first = [&[0, 0, 0, subprotocol][..], cuts, &[0]].concat();
            put(seeds, "ws_link", &format!("{name}-{subprotocol}"), &[&first, operations]);
        }
        let first = [&[subprotocol, 2, 1][..], cuts, &[0]].concat();
        put(seeds, "ws_link", &format!("ports-{subprotocol}"), &[&first, &ports]);
    }

    // A while of each side, thrice; then what is typed and what the far side says to it.
    let (keys, ends) = (&[0, 1, 1][..], &[2, 1][..]);
    let spdy = [from_client(1, b"input", 0), data(2, b"output", 1, 0)].concat();
    let spdy_last = [&data(2, b"^C", 1, 0)[1..], &[1], &result(0, 1)[1..]].concat();
    let mixed = [message(0, b"input", 1), data(1, b"output", 1, 0)].concat();
    let plain = [message(0, b"input", 1), said(1, b"output", 1)].concat();
    let plain_last = [&said(1, b"^C", 1)[1..], &[3], &status[1..]].concat();
    let rounds = |of: &[u8]| [sized(of), sized(of), sized(of)].concat();
    for (tty, cuts) in (0..2).zip(CUTS.iter().cycle()) {
        for (which, opened, begun, session, last) in [
            (0, "open", &[1, 1][..], &spdy, &spdy_last),
            (0, "asked", &[1, 0], &spdy, &spdy_last),
            (1, "open", &[1], &mixed, &spdy_last),
            (1, "asked", &[0], &mixed, &spdy_last),
            (2, "open", &[], &plain, &plain_last),
        ] {
            let first = [&[tty, which, 0][..], cuts, &[0], begun].concat();
            let name = format!("{which}-{opened}-{tty}");
            put(seeds, "hang_up", &name, &[&first, &rounds(session), keys, &[3], last, ends]);
        }
    }
}

/// A short session, as a tape, as a cast, and as files of both.
fn recordings(seeds: &mut Vec<Seed>) {
    let mut tape = Tape::default();
    tape.put(Channel::Resize, br#"{"Width":132,"Height":43}"#);
    tape.put(Channel::Stdout, b"$ \xc3");
    tape.at(std::time::Duration::from_micros(1_500_000));
    tape.put(Channel::Stdout, b"\xbc \xff\x1b[0m");
    tape.put(Channel::Stdin, b"ls\r");
    tape.put(Channel::StdinEnd, b"");
    tape.put(Channel::Result, br#"{"status":"Success"}"#);
    let reel = tape.take();
    let tape = reel.content();
    put(seeds, "tape", "session", &[&tape]);
    let mut text = Vec::new();
    cast::Writer::new(&facts(true), &Details::default()).write(reel.pieces(), &mut text);
    put(seeds, "cast", "session", &[&[1, 1], &text]);
    put(seeds, "cast", "pieces", &[&[0], b"\0\x09\0\x02a\xe2", b"\0\x09\0\x04\x82\xac\xff\xc3"]);
    let signing = SigningKey::from_pem(include_bytes!("../../../recording/testdata/signing.pem")).unwrap();
    let keys = Keys { signing, recipients: Vec::new() };
    let ending = serde_json::json!({ "seconds": 1.5, "reason": "exit", "moved": {} });
    let ending: Ending = serde_json::from_value(ending).unwrap();
    for tty in [false, true] {
        let file = written(|out| {
            let mut file = Buffer::default();
            let mut writer = Writer::begin(&facts(tty), &Details::default(), &keys, &mut file).unwrap();
            writer.chunk(&mut Reel::of(&tape).unwrap(), &mut file).unwrap();
            writer.chunk(&mut Reel::of(&tape).unwrap(), &mut file).unwrap();
            writer.end(&ending, &mut file).unwrap();
            out.put_slice(&file);
        });
        put_cut(seeds, "recording", if tty { "cast" } else { "tape" }, &[], &[&[1], &file[..]].concat());
    }
    let end = serde_json::to_vec(&serde_json::json!({ "ending": ending })).unwrap();
    let part = |kind: u8, bytes: &[u8]| [&[kind, 0, 0, 0, 1], &sized(bytes)[..]].concat();
    let parts = [&[0][..], &part(2, &tape), &part(1, &end)].concat();
    put_cut(seeds, "recording", "parts", &[], &[&[0][..], &parts].concat());
}
