//! Tests of the translator. Those of the conformance checklist carry its item number.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use super::*;
use crate::wire::channel::CLOSE;
use crate::wire::link::ws::tests::{
    Bench, close_from_client, cut, cuts, fragmented, from_client, ping_from_client,
};
use crate::wire::ws::Kind;
use bytes::Buf;
use proptest::prelude::*;
use std::io::IoSlice;

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

const PROTOCOLS: [Protocol; 4] = [Protocol::V1, Protocol::V2, Protocol::V3, Protocol::V4];

const ALL: Asked = Asked { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Asked = Asked { stdin: true, stdout: true, stderr: true, tty: true };

/// The far side's end: it reads what the translator wrote, by stream, and writes frames.
struct Server {
    encoder: Encoder,
    /// Types and ids in the order in which they were opened.
    streams: Vec<(StreamType, u32)>,
}

/// What a far side was told, other than new streams.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    data: Vec<(StreamType, Vec<u8>)>,
    fins: Vec<StreamType>,
    resets: Vec<StreamType>,
    pings: Vec<u32>,
    goaway: bool,
}

/// How a far side ends a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Half-closes each stream.
    Fins,
    /// Resets each stream, and goes away, as Go servers do when they close.
    Closes,
}

fn opened(asked: Asked, protocol: Protocol) -> (Bench<Translator>, Server) {
    let (mut bench, mut server) = begun(asked, protocol);
    bench.far(&server.replies()).unwrap();
    assert!(bench.link.is_open() && bench.link.takes_client());
    (bench, server)
}

fn begun(asked: Asked, protocol: Protocol) -> (Bench<Translator>, Server) {
    read(Bench::new(Translator::new(Subprotocol::V5, asked, protocol)))
}

/// The far side, once it has read what is said first.
fn read(bench: Bench<Translator>) -> (Bench<Translator>, Server) {
    let mut input = BytesMut::from(&bench.to_far[..]);
    let mut decoder = spdy::Decoder::new();
    let mut streams = Vec::new();
    while let Some(frame) = decoder.decode(&mut input).unwrap() {
        let Frame::SynStream { id, associated: 0, fin: false, unidirectional: false, headers, .. } = frame
        else {
            panic!("{frame:?}");
        };
        assert_eq!(headers.len(), 1);
        streams.push((StreamType::from_name(headers.get("streamType").unwrap()).unwrap(), id));
    }
    (bench, Server { encoder: Encoder::new(), streams })
}

impl Server {
    fn id(&self, kind: StreamType) -> u32 {
        self.streams.iter().find(|(have, _)| *have == kind).unwrap().1
    }

    fn has(&self, kind: StreamType) -> bool {
        self.streams.iter().any(|(have, _)| *have == kind)
    }

    fn replies(&mut self) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (_, id) in &self.streams {
            self.encoder.syn_reply(&mut out, *id);
        }
        out.to_vec()
    }

    fn data(&self, kind: StreamType, bytes: &[u8]) -> Vec<u8> {
        [&Encoder::data_head(self.id(kind), bytes.len(), false)[..], bytes].concat()
    }

    fn fin(&self, kind: StreamType) -> Vec<u8> {
        Encoder::data_head(self.id(kind), 0, true).to_vec()
    }

    fn reset(&self, kind: StreamType) -> Vec<u8> {
        frames(|out| Encoder::rst_stream(out, self.id(kind), RstStatus::CANCEL))
    }

    /// The end of a session in which nothing was ended before.
    fn ends(&self, result: &[u8], manner: Manner) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !result.is_empty() {
            bytes.extend(self.data(StreamType::Error, result));
        }
        for (kind, _) in &self.streams {
            match manner {
                Manner::Fins => bytes.extend(self.fin(*kind)),
                Manner::Closes => bytes.extend(self.reset(*kind)),
            }
        }
        if manner == Manner::Closes {
            bytes.extend(frames(|out| Encoder::goaway(out, 9)));
        }
        bytes
    }

    /// What it was told, behind the frames that opened its streams.
    fn told(&self, bytes: &[u8]) -> Told {
        let mut input = BytesMut::from(bytes);
        let mut decoder = spdy::Decoder::new();
        let mut told = Told::default();
        let kind = |id| self.streams.iter().find(|(_, have)| *have == id).unwrap().0;
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            assert!(!told.goaway, "nothing counts behind a GOAWAY");
            match frame {
                Frame::SynStream { .. } => {}
                Frame::Data { stream, bytes, fin } => {
                    let kind = kind(stream);
                    assert!(!told.fins.contains(&kind) && !told.resets.contains(&kind), "it was ended");
                    match told.data.iter_mut().find(|(have, _)| *have == kind) {
                        Some((_, data)) => data.extend_from_slice(&bytes),
                        None if bytes.is_empty() => {}
                        None => told.data.push((kind, bytes.to_vec())),
                    }
                    told.fins.extend(fin.then_some(kind));
                }
                Frame::RstStream { id, status } => {
                    assert_eq!(status, RstStatus::CANCEL);
                    told.resets.push(kind(id));
                }
                Frame::Ping { id } => told.pings.push(id),
                Frame::GoAway { last_good, status } => {
                    assert_eq!((last_good, status), (0, 0));
                    told.goaway = true;
                }
                frame => panic!("{frame:?}"),
            }
        }
        assert!(input.is_empty());
        told
    }
}

impl Told {
    fn stdin(&self) -> &[u8] {
        self.of(StreamType::Stdin)
    }

    fn of(&self, kind: StreamType) -> &[u8] {
        self.data.iter().find(|(have, _)| *have == kind).map_or(&[], |(_, data)| data)
    }
}

fn frames(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

/// The Status that ended the session; a Go client takes it and Close 1000 only together.
fn result(bench: &Bench<Translator>) -> String {
    assert!(bench.link.is_over());
    let heard = bench.heard_by_client();
    assert_eq!(heard.close, Some((1000, String::new())));
    let status = heard.messages.last().unwrap();
    assert_eq!(heard.messages.iter().filter(|message| message[0] == 3 && message.len() > 1).count(), 1);
    assert_eq!(status[0], 3, "the Status is the last message");
    String::from_utf8(status[1..].to_vec()).unwrap()
}

fn internal(text: &str) -> String {
    let bytes = Outcome::Internal { text: text.to_owned() }.to_bytes(Protocol::V5);
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn item_067_streams_are_opened_together_in_the_order_of_upstream() {
    use StreamType::*;
    let order = |asked, protocol| {
        begun(asked, protocol).1.streams.into_iter().map(|(kind, _)| kind).collect::<Vec<_>>()
    };
    for protocol in PROTOCOLS {
        assert_eq!(order(ALL, protocol), [Error, Stdin, Stdout, Stderr]);
        assert_eq!(order(Asked { stdout: true, ..Asked::default() }, protocol), [Error, Stdout]);
    }
    let (_, server) = begun(ALL, Protocol::V4);
    assert_eq!(server.streams.iter().map(|(_, id)| *id).collect::<Vec<_>>(), [1, 3, 5, 7]);
}

#[test]
fn item_096_with_a_terminal_there_is_no_stderr_and_sizes_pass() {
    use StreamType::*;
    for protocol in PROTOCOLS {
        let (mut bench, server) = opened(TERMINAL, protocol);
        assert!(!server.has(Stderr));
        assert_eq!(server.has(Resize), protocol >= Protocol::V3);
        bench.client(&from_client(b"\x04{\"Width\":80,\"Height\":24}\n")).unwrap();
        bench.client(&from_client(b"\0in")).unwrap();
        let told = server.told(&bench.to_far);
        assert_eq!(told.stdin(), b"in", "sizes that go nowhere stall nothing");
        let size: &[u8] = if server.has(Resize) { b"{\"Width\":80,\"Height\":24}\n" } else { b"" };
        assert_eq!(told.of(Resize), size);
    }
}

#[test]
fn item_085_sizes_pass_unchanged_and_bad_ones_do_no_harm() {
    let (mut bench, server) = opened(TERMINAL, Protocol::V4);
    bench.client(&from_client(b"\x04{nonsense")).unwrap();
    bench.client(&from_client(b"\0in")).unwrap();
    let told = server.told(&bench.to_far);
    assert_eq!((told.of(StreamType::Resize), told.stdin()), (&b"{nonsense"[..], &b"in"[..]));

    let (mut bench, server) = opened(ALL, Protocol::V4);
    for _ in 0..10_000 {
        bench.client_stuck(&from_client(b"\x04{\"Width\":80,\"Height\":24}")).unwrap();
    }
    assert!(bench.out.far.is_empty(), "without a terminal they are dropped");
    bench.client(&from_client(b"\0in")).unwrap();
    assert_eq!(server.told(&bench.to_far).stdin(), b"in");
}

#[test]
fn item_078_the_first_message_does_not_wait_for_the_far_side() {
    for (asked, channel) in [
        (ALL, 1),
        (Asked { stdin: true, stderr: true, ..Asked::default() }, 2),
        (Asked { stdin: true, ..Asked::default() }, 3),
    ] {
        let (bench, _) = begun(asked, Protocol::V4);
        assert_eq!(bench.heard_by_client().messages, [[channel]]);
    }
}

#[test]
fn item_060_nothing_is_written_on_a_stream_before_all_replies_have_come() {
    let (mut bench, mut server) = begun(ALL, Protocol::V4);
    assert!(!bench.link.takes_client() && !bench.link.is_open());
    let mut bytes = ping_from_client(b"early");
    bytes.extend(from_client(b"\0one"));
    bytes.extend(ping_from_client(b"behind"));
    bytes.extend(from_client(b"\0two"));
    let begun = bench.to_far.len();
    bench.client(&bytes).unwrap();
    assert_eq!(bench.heard_by_client().pongs, [b""; 0], "nothing is taken yet");

    // The last reply is the one of stdin.
    server.streams.sort_by_key(|(kind, _)| *kind == StreamType::Stdin);
    let replies = server.replies();
    for byte in &replies[..replies.len() - 1] {
        bench.far(&[*byte]).unwrap();
        assert_eq!(bench.to_far.len(), begun);
        assert!(!bench.link.takes_client());
    }
    bench.far(&replies[replies.len() - 1..]).unwrap();
    assert!(bench.link.takes_client());
    bench.client(b"").unwrap();
    assert_eq!(server.told(&bench.to_far).stdin(), b"onetwo");
    assert_eq!(bench.heard_by_client().pongs, [b"behind"], "of several pings the last is answered");
}

#[test]
fn item_061_080_a_close_of_stdin_is_a_fin_and_the_rest_goes_on() {
    for length in 1..=3 {
        let (mut bench, server) = opened(ALL, Protocol::V4);
        bench.client(&from_client(b"\0in")).unwrap();
        bench.client(&fragmented(&[CLOSE, 0], &[length])).unwrap();
        bench.client(&from_client(b"\0dropped")).unwrap();
        bench.client(&from_client(&[CLOSE, 0])).unwrap();
        let told = server.told(&bench.to_far);
        assert_eq!((told.stdin(), &told.fins[..]), (&b"in"[..], &[StreamType::Stdin][..]));

        bench.far(&server.data(StreamType::Stdout, b"out")).unwrap();
        bench.far(&server.ends(SUCCESS.as_bytes(), Manner::Fins)).unwrap();
        assert_eq!(result(&bench), SUCCESS);
        assert_eq!(bench.heard_by_client().channel(1), b"out");
        let told = server.told(&bench.to_far);
        assert_eq!(told.resets, [StreamType::Error, StreamType::Stdout, StreamType::Stderr]);
    }
}

#[test]
fn what_is_dropped_is_not_on_the_tape_and_the_result_is_the_clients() {
    let (mut bench, mut server) = read(Bench::recorded(Translator::new(Subprotocol::V4, ALL, Protocol::V2)));
    bench.far(&server.data(StreamType::Stdout, b"early")).unwrap();
    bench.far(&server.replies()).unwrap();
    bench.client(&from_client(b"\0in")).unwrap();
    bench.client(&from_client(b"\x01out")).unwrap();
    bench.client(&from_client(b"\x04{}")).unwrap();
    bench.far(&server.data(StreamType::Stdin, b"not read")).unwrap();
    bench.far(&server.fin(StreamType::Stdin)).unwrap();
    bench.client(&from_client(b"\0late")).unwrap();
    bench.far(&server.data(StreamType::Stderr, b"err")).unwrap();
    bench.far(&server.fin(StreamType::Stderr)).unwrap();
    bench.far(&server.data(StreamType::Stderr, b"late")).unwrap();
    bench.far(&server.ends(b"no such thing", Manner::Fins)).unwrap();
    let taped = bench.taped();
    assert_eq!((&taped.stdin[..], &taped.sizes[..], taped.stdin_ends), (&b"in"[..], &b""[..], 0));
    assert_eq!((&taped.stdout[..], &taped.stderr[..]), (&b"early"[..], &b"err"[..]));
    let heard = bench.heard_by_client();
    assert_eq!((taped.result, bench.out.tap.exit_code()), (heard.channel(3), None));
    assert_eq!((taped.stdout, taped.stderr), (heard.channel(1), heard.channel(2)));

    // An end that the client asked for, and a result that podgate makes.
    let (mut bench, mut server) = read(Bench::recorded(Translator::new(Subprotocol::V5, ALL, Protocol::V4)));
    bench.far(&server.replies()).unwrap();
    bench.client(&from_client(&[CLOSE, 0])).unwrap();
    bench.client(&from_client(&[CLOSE, 0])).unwrap();
    assert_eq!(bench.end("the node is gone"), Fate::Cut);
    let taped = bench.taped();
    assert_eq!((taped.stdin_ends, taped.result), (1, internal("the node is gone").into_bytes()));
}

#[test]
fn item_080_a_malformed_close_ends_the_session() {
    for message in [&[CLOSE][..], &[CLOSE, 0, 0], &[CLOSE, 9]] {
        let (mut bench, server) = opened(ALL, Protocol::V4);
        assert!(matches!(bench.client_stuck(&from_client(message)), Err(Fault::Client(_))));
        bench.leave();
        assert_eq!(bench.heard_by_client().close_code(), Some(1002));
        assert!(server.told(&bench.to_far).goaway);
    }
}

#[test]
fn item_062_a_reset_ends_a_stream_behind_its_data() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    let mut bytes = server.data(StreamType::Stdout, b"out");
    bytes.extend(server.data(StreamType::Stderr, b"err"));
    bytes.extend(server.ends(SUCCESS.as_bytes(), Manner::Closes));
    bench.far(&bytes).unwrap();
    assert_eq!(result(&bench), SUCCESS);
    let heard = bench.heard_by_client();
    assert_eq!((heard.channel(1), heard.channel(2)), (b"out".to_vec(), b"err".to_vec()));
    assert_eq!(bench.end("late"), Fate::Whole);
}

#[test]
fn item_063_a_client_that_is_gone_resets_what_is_open_and_says_goaway() {
    use StreamType::*;
    for close in [true, false] {
        let (mut bench, server) = opened(TERMINAL, Protocol::V4);
        bench.client(&from_client(&[CLOSE, 0])).unwrap();
        bench.far(&server.reset(Resize)).unwrap();
        if close {
            bench.client(&close_from_client(1001)).unwrap();
            assert_eq!(bench.heard_by_client().close_code(), Some(1001), "it is answered");
        }
        bench.leave();
        let told = server.told(&bench.to_far);
        assert_eq!(told.resets, [Error, Stdout], "stdin was finished, resize reset");
        assert!(told.goaway && bench.link.is_over() == close);
        assert!(!bench.hears_last(&server.data(Stdout, b"late")));
        assert_eq!(bench.heard_by_client().channel(1), b"");
    }
}

#[test]
fn item_079_messages_to_other_channels_and_empty_ones_are_ignored() {
    let (mut bench, server) = opened(Asked { stdin: false, ..ALL }, Protocol::V4);
    let begun = bench.to_far.len();
    for message in [&b""[..], b"\0", b"\0in", b"\x01x", b"\x02x", b"\x03x", b"\x04x", b"\x05x", b"\xfex"] {
        bench.client_stuck(&from_client(message).repeat(1000)).unwrap();
        bench.client_stuck(&fragmented(message, &[1])).unwrap();
    }
    assert!(bench.out.far.is_empty());
    assert!(!bench.out.active, "nothing went by");
    bench.client(&from_client(&[CLOSE, 0])).unwrap();
    assert_eq!(bench.to_far.len(), begun, "there is no stdin to close");
    assert!(!server.has(StreamType::Stdin) && !bench.link.is_over());
}

#[test]
fn item_083_fragments_of_a_client_are_one_message() {
    for length in 1..8 {
        let (mut bench, server) = opened(ALL, Protocol::V4);
        for run in cut(&fragmented(b"\0\x03\xff\0\x04", &[length]), &[3]) {
            bench.client(run).unwrap();
        }
        let told = server.told(&bench.to_far);
        assert_eq!((told.stdin(), told.fins.len()), (&b"\x03\xff\0\x04"[..], 0));
    }
}

#[test]
fn item_084_pings_are_answered_while_stdin_is_blocked() {
    let (mut bench, _) = opened(ALL, Protocol::V4);
    bench.client_stuck(&from_client(&[0; 100_000])).unwrap();
    bench.client_stuck(&ping_from_client(b"here?")).unwrap();
    assert_eq!(&bench.out.client.copy_to_bytes(7)[2..], b"here?");

    // With so much waiting the pings are not read any more.
    bench.link.tick(&mut bench.out);
    assert_eq!(bench.out.client.len(), 2);
    bench.link.tick(&mut bench.out);
    assert_eq!(bench.out.client.len(), 2, "not another behind it");
    bench.drain();
    assert_eq!(bench.heard_by_client().pongs, [b""]);
    bench.link.tick(&mut bench.out);
    assert!(bench.out.client.is_empty(), "none without need");
}

#[test]
fn item_086_087_093_results_become_the_status_of_a_translator() {
    let exec = "error executing command in container: no such file";
    let runtime = Outcome::Internal { text: exec.to_owned() };
    let exit = |code| String::from_utf8(Outcome::exit(code).to_bytes(Protocol::V5).to_vec()).unwrap();
    let named = Outcome::Exit { code: 3, text: "error executing command [sh], exit code 3".to_owned() };
    let v4 = |outcome: Outcome| outcome.to_bytes(Protocol::V4).to_vec();
    let bad_code = String::from_utf8(v4(Outcome::exit(3))).unwrap().replace("\"3\"", "\"256\"");
    let stream = "error stream protocol error";
    let table: Vec<(Vec<Protocol>, Vec<u8>, String)> = vec![
        (vec![Protocol::V4], v4(Outcome::Success), SUCCESS.to_owned()),
        (vec![Protocol::V4], v4(Outcome::exit(1)), exit(1)),
        (vec![Protocol::V4], v4(Outcome::exit(255)), exit(255)),
        (vec![Protocol::V4], v4(named), exit(3)),
        (vec![Protocol::V4], v4(runtime.clone()), internal(&format!("Internal error occurred: {exec}"))),
        (vec![Protocol::V4], v4(Outcome::Other { message: "no".to_owned() }), internal("no")),
        (vec![Protocol::V4], b"text".to_vec(), internal(&format!("{stream}: result is not a Status"))),
        (vec![Protocol::V4], b"{}".to_vec(), internal(&format!("{stream}: unknown error"))),
        (
            vec![Protocol::V4],
            bad_code.into(),
            internal(&format!("{stream}: invalid exit code value \"256\"")),
        ),
        (vec![Protocol::V4], vec![b' '; 70_000], internal(&format!("{stream}: result is over 65536 bytes"))),
        (PROTOCOLS[..3].to_vec(), Vec::new(), SUCCESS.to_owned()),
        (PROTOCOLS[1..3].to_vec(), b"no".to_vec(), internal("error executing remote command: no")),
        (vec![Protocol::V1], b"no".to_vec(), internal("Error executing remote command: no")),
    ];
    for (protocols, bytes, expected) in table {
        for (protocol, manner) in protocols.iter().flat_map(|p| [(*p, Manner::Fins), (*p, Manner::Closes)]) {
            for length in [1, 7, 100_000] {
                let (mut bench, server) = opened(ALL, protocol);
                for run in cut(&server.ends(&bytes, manner), &[length]) {
                    bench.far(run).unwrap();
                }
                assert_eq!(result(&bench), expected, "{protocol} {manner:?}");
                assert!(server.told(&bench.to_far).goaway);
            }
        }
    }
}

#[test]
fn item_088_089_the_session_ends_when_stdout_stderr_and_error_have_all_ended() {
    use StreamType::*;
    for protocol in PROTOCOLS {
        for order in [
            [Error, Stdout, Stderr],
            [Error, Stderr, Stdout],
            [Stdout, Error, Stderr],
            [Stdout, Stderr, Error],
            [Stderr, Error, Stdout],
            [Stderr, Stdout, Error],
        ] {
            let (mut bench, server) = opened(ALL, protocol);
            if protocol.writes_status() {
                bench.far(&server.data(Error, SUCCESS.as_bytes())).unwrap();
            }
            for kind in &order[..2] {
                bench.far(&server.fin(*kind)).unwrap();
                bench.far(&server.fin(Stdin)).unwrap();
            }
            assert!(!bench.link.is_over());
            assert_eq!(bench.heard_by_client().close, None);
            let mut last = Vec::new();
            if order[2] != Error {
                last.extend(server.data(order[2], b"last"));
            }
            last.extend(server.fin(order[2]));
            bench.far(&last).unwrap();
            assert_eq!(result(&bench), SUCCESS, "{protocol} {order:?}");
            if order[2] != Error {
                assert_eq!(bench.heard_by_client().channel(channel::number(order[2])), b"last");
            }
        }
    }
}

#[test]
fn a_server_of_v1_resets_the_error_stream_at_once_and_reads_stdin_all_the_same() {
    let (mut bench, server) = opened(ALL, Protocol::V1);
    bench.far(&server.fin(StreamType::Stdin)).unwrap();
    bench.far(&server.reset(StreamType::Error)).unwrap();
    bench.client(&from_client(b"\0in")).unwrap();
    assert_eq!(server.told(&bench.to_far).stdin(), b"in");
    bench.far(&server.data(StreamType::Stdout, b"out")).unwrap();
    bench.far(&server.fin(StreamType::Stdout)).unwrap();
    assert!(!bench.link.is_over());
    bench.far(&server.fin(StreamType::Stderr)).unwrap();
    assert_eq!(result(&bench), SUCCESS);
    assert_eq!(bench.heard_by_client().channel(1), b"out");
}

#[test]
fn stdin_is_dropped_once_the_far_side_has_ended_it() {
    for protocol in PROTOCOLS {
        for fin in [true, false] {
            let (mut bench, server) = opened(ALL, protocol);
            bench.client(&from_client(b"\0in")).unwrap();
            let end = if fin { server.fin(StreamType::Stdin) } else { server.reset(StreamType::Stdin) };
            bench.far(&end).unwrap();
            bench.client(&from_client(b"\0dropped")).unwrap();
            bench.client(&from_client(&[CLOSE, 0])).unwrap();
            let told = server.told(&bench.to_far);
            let read: &[u8] = if fin && protocol == Protocol::V1 { b"indropped" } else { b"in" };
            assert_eq!(told.stdin(), read);
            assert_eq!(told.fins.len(), usize::from(fin), "a FIN is answered, a reset is not");
            assert!(!bench.link.is_over());
        }
    }
}

#[test]
fn a_reset_before_the_streams_are_open_is_a_failed_set_up() {
    for protocol in PROTOCOLS {
        for kind in [StreamType::Error, StreamType::Stdin, StreamType::Stdout] {
            let (mut bench, server) = begun(ALL, protocol);
            bench.far(&server.reset(kind)).unwrap();
            assert_eq!(result(&bench), internal("Stream reset"));
            assert_eq!(bench.end("late"), Fate::Cut);
        }
    }
}

#[test]
fn streams_that_end_before_all_are_open_are_no_result_yet() {
    for protocol in PROTOCOLS {
        let (mut bench, mut server) = begun(ALL, protocol);
        bench.far(&server.ends(b"", Manner::Fins)).unwrap();
        assert!(!bench.link.is_over());
        assert_eq!(server.told(&bench.to_far), Told::default(), "not even the FIN of stdin goes out before");
        bench.far(&server.replies()).unwrap();
        let silence = if protocol == Protocol::V4 { internal(NO_RESULT) } else { SUCCESS.to_owned() };
        assert_eq!(result(&bench), silence);
    }
}

#[test]
fn an_error_stream_without_an_end_is_held_up_to_the_longest_result() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    for _ in 0..100 {
        bench.far(&server.data(StreamType::Error, &[b' '; 10_000])).unwrap();
    }
    assert_eq!(bench.link.result.len(), MAX_RESULT + 1);
    assert!(!bench.link.is_over());
}

#[test]
fn a_session_that_does_not_open_is_ended_with_the_reason() {
    let (mut bench, server) = begun(ALL, Protocol::V4);
    assert_eq!(bench.end("Timeout occurred"), Fate::Cut);
    assert_eq!(result(&bench), internal("Timeout occurred"));
    bench.leave();
    assert!(server.told(&bench.to_far).goaway);
}

#[test]
fn every_prefix_of_a_session_is_an_error_unless_it_has_the_whole_status() {
    for protocol in PROTOCOLS {
        for outcome in [Outcome::Success, Outcome::exit(3)] {
            for manner in [Manner::Fins, Manner::Closes] {
                let (_, mut server) = begun(ALL, protocol);
                let mut bytes = server.replies();
                bytes.extend(server.data(StreamType::Stdout, b"out"));
                bytes.extend(server.data(StreamType::Stderr, b"err"));
                // What comes behind the last of these ends counts no more.
                let status = outcome.to_bytes(protocol);
                let status_ends = bytes.len() + 8 + status.len();
                let end = server.ends(&status, manner);
                let counts = end.len() - if manner == Manner::Closes { 16 } else { 0 };
                bytes.extend(&end[..counts]);
                for len in 0..bytes.len() {
                    let (mut bench, _) = begun(ALL, protocol);
                    bench.far(&bytes[..len]).unwrap();
                    assert!(!bench.link.is_over(), "{protocol} {manner:?} {len} of {}", bytes.len());
                    if protocol == Protocol::V4 && len >= status_ends {
                        assert_eq!(bench.end("the cable was cut"), Fate::Whole);
                        assert_eq!(result(&bench), String::from_utf8_lossy(&status));
                    } else {
                        assert_eq!(bench.end("the cable was cut"), Fate::Cut);
                        assert_eq!(result(&bench), internal("the cable was cut"));
                    }
                }
                let (mut bench, _) = begun(ALL, protocol);
                bench.far(&bytes).unwrap();
                assert_eq!(result(&bench) == SUCCESS, outcome == Outcome::Success);
                assert_eq!(bench.end("late"), Fate::Whole);
            }
        }
    }
}

#[test]
fn streams_that_are_ended_before_the_result_are_an_error() {
    use StreamType::*;
    let goaway = frames(|out| Encoder::goaway(out, 9));
    for protocol in PROTOCOLS {
        // Nobody said that these outputs are whole.
        let (mut bench, server) = opened(ALL, protocol);
        bench.far(&server.fin(Error)).unwrap();
        bench.far(&server.data(Stdout, b"half")).unwrap();
        bench.far(&goaway).unwrap();
        assert_eq!(result(&bench), internal(NO_RESULT));
        assert_eq!(bench.end("late"), Fate::Cut);

        // Here somebody did, but where a Status is due it has to come. (To Go clients, an error stream that ends empty
        // is a success in any protocol.)
        let (mut bench, server) = opened(ALL, protocol);
        bench.far(&server.ends(b"", Manner::Fins)).unwrap();
        let silence = if protocol == Protocol::V4 { internal(NO_RESULT) } else { SUCCESS.to_owned() };
        assert_eq!(result(&bench), silence);

        let (mut bench, _) = opened(ALL, protocol);
        bench.far(&goaway).unwrap();
        assert_eq!(result(&bench), internal(NO_RESULT));
        assert_eq!(bench.end("late"), Fate::Cut);
    }
    for reset in [Error, Stdout, Stderr] {
        let (mut bench, server) = opened(ALL, Protocol::V4);
        bench.far(&server.reset(reset)).unwrap();
        assert!(!bench.link.is_over());
        bench.far(&server.ends(SUCCESS.as_bytes(), Manner::Fins)).unwrap();
        assert_eq!(result(&bench), internal(NO_RESULT), "{reset:?}");
        assert_eq!(bench.end("late"), Fate::Cut);
    }
    let (mut bench, server) = opened(ALL, Protocol::V4);
    bench.far(&server.data(Error, &SUCCESS.as_bytes()[..20])).unwrap();
    bench.far(&goaway).unwrap();
    assert_eq!(result(&bench), internal("error stream protocol error: result is not a Status"));
    assert_eq!(bench.end("late"), Fate::Cut);
}

#[test]
fn item_075_087_older_subprotocols_are_translated_in_their_own_encoding_and_with_their_own_results() {
    use crate::wire::ws;
    let cases = [
        (0, b"".to_vec(), Outcome::Success),
        (3, Outcome::exit(3).to_bytes(Protocol::V4).to_vec(), Outcome::exit(3)),
    ];
    for subprotocol in Subprotocol::RUNTIME {
        for (code, status, outcome) in &cases {
            let mut bench = Bench::new(Translator::new(subprotocol, ALL, Protocol::V4));
            let mut server = Server {
                encoder: Encoder::new(),
                streams: ALL.streams(Protocol::V4).iter().zip((1..).step_by(2)).collect(),
            };
            bench.far(&server.replies()).unwrap();
            let stdin = {
                let mut out = BytesMut::new();
                let key = ws::MaskKey([1, 2, 3, 4]);
                channel::Encoder::new(subprotocol).message(&mut out, StreamType::Stdin, b"to it", Some(key));
                out
            };
            bench.client(&stdin).unwrap();
            assert_eq!(server.told(&bench.to_far).data, [(StreamType::Stdin, b"to it".to_vec())]);
            bench.far(&server.data(StreamType::Stdout, b"from it")).unwrap();
            let status = if *code == 0 { SUCCESS.as_bytes() } else { status };
            bench.far(&server.ends(status, Manner::Closes)).unwrap();
            assert!(bench.link.is_over() && bench.end("late") == Fate::Whole);

            let mut frames = ws::Decoder::new(ws::Role::Client, ws::Limits::default());
            let mut channels = channel::Decoder::client(subprotocol, ALL);
            let (mut input, mut got, mut closed) = (BytesMut::from(&bench.to_client[..]), Vec::new(), None);
            while let Some(event) = frames.decode(&mut input).unwrap() {
                match event {
                    ws::Event::Data(data) => got.extend(channels.decode(data).unwrap()),
                    ws::Event::Close(close) => closed = close,
                    other => panic!("{other:?}"),
                }
            }
            let mut wanted = vec![(StreamType::Stdout, Bytes::from_static(b"from it"))];
            let result = outcome.to_bytes(subprotocol.version());
            wanted.extend((!result.is_empty()).then_some((StreamType::Error, result)));
            let wanted: Vec<_> =
                wanted.into_iter().map(|(stream, bytes)| channel::Event::Data { stream, bytes }).collect();
            assert_eq!(got, wanted, "{subprotocol:?}");
            assert_eq!(closed, Some(Close::normal()));
        }
    }
}

#[test]
fn item_097_the_far_side_is_pinged_on_every_tick_unless_a_ping_is_unanswered() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    let pings = |bench: &mut Bench<Translator>| {
        bench.link.tick(&mut bench.out);
        bench.drain();
        server.told(&bench.to_far).pings
    };
    assert_eq!(pings(&mut bench), [1]);
    assert_eq!(pings(&mut bench), [1], "it is unanswered");
    bench.far(&frames(|out| Encoder::ping(out, 1))).unwrap();
    assert_eq!(pings(&mut bench), [1, 3]);
    assert!(!bench.out.active, "keepalives are none of the session's bytes");

    bench.end("enough");
    let len = bench.to_far.len();
    bench.link.tick(&mut bench.out);
    bench.drain();
    assert_eq!(bench.to_far.len(), len);
}

#[test]
fn item_057_pings_of_the_far_side_are_echoed_and_a_flood_of_them_costs_no_memory() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    bench.far(&frames(|out| Encoder::ping(out, 2))).unwrap();
    bench.far(&frames(|out| Encoder::ping(out, 7))).unwrap();
    assert_eq!(server.told(&bench.to_far).pings, [2], "one of our parity is not the far side's");

    for id in 1..50_000 {
        bench.far_stuck(&frames(|out| Encoder::ping(out, 2 * id))).unwrap();
        bench.client_stuck(&ping_from_client(&id.to_be_bytes())).unwrap();
    }
    assert!(bench.out.far.len() <= ANSWER_ROOM + 12 && bench.out.client.len() <= ANSWER_ROOM + 6);
    bench.drain();
    assert_eq!(server.told(&bench.to_far).pings.last(), Some(&99_998));
    assert_eq!(bench.heard_by_client().pongs.last().unwrap(), &49_999u32.to_be_bytes());
}

#[test]
fn item_058_frames_that_mean_nothing_are_tolerated_and_unknown_ones_end_the_session() {
    let (mut bench, mut server) = opened(ALL, Protocol::V4);
    let begun = bench.to_far.len();
    let odd = frames(|out| {
        let id = server.id(StreamType::Stdout);
        for round in 0..1000 {
            for frame in [
                Frame::Settings,
                Frame::WindowUpdate { id, delta: 1 },
                Frame::Headers { id, fin: false, headers: Headers::new() },
                Frame::SynReply { id, fin: false, headers: Headers::new() },
                Frame::RstStream { id: 99, status: RstStatus::CANCEL },
                Frame::Data { stream: 98, bytes: Bytes::from_static(b"x"), fin: true },
                Frame::SynStream {
                    id: 2 + 2 * round,
                    associated: 0,
                    priority: 0,
                    fin: false,
                    unidirectional: false,
                    headers: Headers::new(),
                },
            ] {
                server.encoder.encode(out, &frame).unwrap();
            }
        }
    });
    bench.far_stuck(&odd).unwrap();
    assert!(bench.out.far.is_empty() && bench.out.client.is_empty());
    bench.far(&server.ends(SUCCESS.as_bytes(), Manner::Fins)).unwrap();
    assert_eq!(result(&bench), SUCCESS);
    assert!(bench.to_far.len() > begun);

    let (mut bench, server) = opened(ALL, Protocol::V4);
    bench.far(&server.data(StreamType::Stdout, b"out")).unwrap();
    assert!(matches!(bench.far_stuck(b"\x80\x03\x00\x63\0\0\0\0"), Err(Fault::Far(_))));
    assert_eq!(bench.end("not SPDY"), Fate::Cut);
    assert_eq!(result(&bench), internal("not SPDY"));
}

#[test]
fn a_client_that_breaks_the_protocol_is_told_so() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    let unmasked = frames(|out| crate::wire::ws::Encoder::message(out, Kind::Binary, b"\0x", None));
    assert!(matches!(bench.client_stuck(&unmasked), Err(Fault::Client(_))));
    bench.leave();
    let heard = bench.heard_by_client();
    assert_eq!((heard.close_code(), heard.channel(3)), (Some(1002), Vec::new()));
    assert!(server.told(&bench.to_far).goaway);
}

#[test]
fn long_runs_pass_in_pieces_and_without_a_copy() {
    let (mut bench, server) = opened(ALL, Protocol::V4);
    let long: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
    let mut input = BytesMut::from(&server.data(StreamType::Stdout, &long)[..]);
    let range = input.as_ptr_range();
    bench.link.far(&mut input, &mut bench.out).unwrap();
    let mut slices = [IoSlice::new(&[]); 64];
    let filled = bench.out.client.chunks_vectored(&mut slices);
    let copied = slices[..filled].iter().filter(|slice| !range.contains(&slice.as_ptr()));
    let ours: usize = copied.map(|slice| slice.len()).sum();
    assert!(ours < 10 * 6, "heads only: {ours}");
    bench.drain();
    assert!(bench.heard_by_client().channel(1) == long);

    let mut message = vec![0];
    message.extend(&long);
    bench.client(&from_client(&message)).unwrap();
    assert!(server.told(&bench.to_far).stdin() == long);
}

/// What goes by in a session, in one direction or the other.
#[derive(Clone, Debug)]
enum Step {
    Up(u8, Vec<u8>),
    Down(StreamType, Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let payload = || {
        prop_oneof![
            4 => prop::collection::vec(any::<u8>(), 0..60),
            1 => (2000..50_000usize).prop_map(|len| (0..len).map(|at| (at * 7 % 253) as u8).collect()),
        ]
    };
    let up = (prop::sample::select(vec![0u8, 4, 1, 9]), payload()).prop_map(|(c, bytes)| Step::Up(c, bytes));
    let down = (prop::sample::select(vec![StreamType::Stdout, StreamType::Stderr]), payload())
        .prop_map(|(kind, bytes)| Step::Down(kind, bytes));
    prop::collection::vec(prop_oneof![up, down], 0..16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_bytes_of_every_channel_pass_whatever_the_cuts(
        steps in steps(),
        tty in any::<bool>(),
        protocol in prop::sample::select(&PROTOCOLS[..]),
        outcome in prop_oneof![Just(Outcome::Success), (1..=255u8).prop_map(Outcome::exit)],
        manner in prop_oneof![Just(Manner::Fins), Just(Manner::Closes)],
        fragments in cuts(),
        (up_cuts, down_cuts) in (cuts(), cuts()),
    ) {
        let link = Translator::new(Subprotocol::V5, Asked { tty, ..ALL }, protocol);
        let (mut bench, mut server) = read(Bench::recorded(link));
        bench.far(&server.replies()).unwrap();
        let [mut client, mut far] = [(); 2].map(|()| Vec::<u8>::new());
        let [mut stdin, mut sizes, mut stdout, mut stderr] = [(); 4].map(|()| Vec::<u8>::new());
        for step in &steps {
            match step {
                Step::Up(channel, bytes) => {
                    client.extend(fragmented(&[&[*channel], &bytes[..]].concat(), &fragments));
                    match channel {
                        0 => stdin.extend(bytes),
                        4 if server.has(StreamType::Resize) => sizes.extend(bytes),
                        _ => {}
                    }
                }
                Step::Down(kind, bytes) if server.has(*kind) => {
                    far.extend(server.data(*kind, bytes));
                    far.extend(frames(|out| Encoder::ping(out, 2)));
                    if *kind == StreamType::Stdout { stdout.extend(bytes) } else { stderr.extend(bytes) }
                }
                Step::Down(..) => {}
            }
        }
        let (mut client, mut far) = (cut(&client, &up_cuts).into_iter(), cut(&far, &down_cuts).into_iter());
        loop {
            match (client.next(), far.next()) {
                (None, None) => break,
                (client, far) => {
                    bench.client(client.unwrap_or_default()).unwrap();
                    bench.far(far.unwrap_or_default()).unwrap();
                }
            }
        }
        let told = server.told(&bench.to_far);
        prop_assert!(told.stdin() == stdin && told.of(StreamType::Resize) == sizes);
        prop_assert_eq!(told.data.len(), usize::from(!stdin.is_empty()) + usize::from(!sizes.is_empty()));

        for run in cut(&server.ends(&outcome.to_bytes(protocol), manner), &down_cuts) {
            bench.far(run).unwrap();
        }
        let heard = bench.heard_by_client();
        prop_assert!(heard.channel(1) == stdout && heard.channel(2) == stderr);
        let text = result(&bench);
        match (&outcome, protocol.writes_status()) {
            (Outcome::Success, _) => prop_assert_eq!(text, SUCCESS),
            (outcome, true) => prop_assert_eq!(text.as_bytes(), &outcome.to_bytes(Protocol::V5)[..]),
            (outcome, false) => prop_assert_eq!(text, internal(&outcome.client_error(protocol).unwrap())),
        }
        let taped = bench.taped();
        prop_assert!(taped.stdin == told.stdin() && taped.sizes == told.of(StreamType::Resize));
        prop_assert!(taped.stdout == stdout && taped.stderr == stderr);
        prop_assert_eq!((taped.result, taped.stdin_ends), (heard.channel(3), 0));
    }

    #[test]
    fn garbage_never_panics_never_succeeds_and_is_bounded(
        client in prop::collection::vec(any::<u8>(), 0..400),
        far in prop::collection::vec(any::<u8>(), 0..400),
        lengths in cuts(),
    ) {
        let (mut bench, server) = opened(ALL, Protocol::V4);
        let fed = client.len() + far.len();
        let ok = cut(&client, &lengths).into_iter().try_for_each(|run| bench.client_stuck(run)).is_ok();
        let _ = ok && cut(&far, &lengths).into_iter().try_for_each(|run| bench.far_stuck(run)).is_ok();
        if ok {
            bench.link.end("garbage", &mut bench.out);
        }
        prop_assert!(bench.out.client.len() + bench.out.far.len() <= 8 * fed + 1000);
        bench.drain();
        server.told(&bench.to_far);
        prop_assert!(bench.heard_by_client().channel(3) != SUCCESS.as_bytes());
    }
}

#[test]
fn a_terminal_is_hung_up_on_stdin_and_its_end_is_heard() {
    for protocol in PROTOCOLS {
        for manner in [Manner::Fins, Manner::Closes] {
            let (mut bench, server) = opened(TERMINAL, protocol);
            bench.client(&close_from_client(1001)).unwrap();
            assert!(bench.link.is_over() && !bench.link.is_done());
            assert!(bench.hangs_up(HangUp::Interrupt) && bench.hangs_up(HangUp::EndOfFile));
            assert!(bench.hangs_up(HangUp::EndOfStdin) && !bench.hangs_up(HangUp::EndOfFile));
            let told = server.told(&bench.to_far);
            assert_eq!(
                (told.stdin(), &told.fins[..], told.goaway),
                (&b"\x03\x04"[..], &[StreamType::Stdin][..], false)
            );
            let to_client = bench.to_client.len();
            assert!(!bench.hears_last(&server.data(StreamType::Stdout, b"^C$ exit")));
            let last = server.ends(&Outcome::exit(130).to_bytes(protocol), manner);
            assert!(bench.hears_last(&last) && bench.to_client.len() == to_client);
            bench.leave();
            assert!(server.told(&bench.to_far).goaway);
        }
    }
}

#[test]
fn nothing_was_started_before_it_has_begun() {
    let mut link = Translator::new(Subprotocol::V5, TERMINAL, Protocol::V4);
    assert!(link.is_done() && link.hang_up(HangUp::Interrupt, &mut Out::default()) == Spoken::No);
}

#[test]
fn what_may_have_begun_before_its_replies_were_read_is_hung_up_when_they_are() {
    let (mut bench, mut server) = begun(TERMINAL, Protocol::V4);
    assert!(!bench.link.is_done(), "the far side may have begun");
    assert_eq!(bench.spoken(HangUp::Interrupt), Spoken::NotYet);
    assert!(!bench.hears_last(&server.replies()));
    assert!(bench.hangs_up(HangUp::Interrupt) && bench.hangs_up(HangUp::EndOfStdin));
    assert_eq!(server.told(&bench.to_far).stdin(), b"\x03");
    // One that refuses a stream has not begun.
    let (mut bench, server) = begun(TERMINAL, Protocol::V4);
    assert!(bench.hears_last(&server.reset(StreamType::Stdout)));
}

#[test]
fn a_notice_in_the_middle_stands_between_messages_and_the_session_goes_on() {
    let (mut bench, server) = opened(TERMINAL, Protocol::V4);
    let words = server.data(StreamType::Stdout, b"one two");
    bench.far(&words[..11]).unwrap();
    bench.link.announce("\r\nslow\r\n", &mut bench.out);
    bench.far(&words[11..]).unwrap();
    bench.far(&server.ends(&Outcome::exit(3).to_bytes(Protocol::V4), Manner::Closes)).unwrap();
    let heard = bench.heard_by_client().channel(1);
    let text = String::from_utf8_lossy(&heard).into_owned();
    assert!(text.contains("\r\nslow\r\n") && text.replace("\r\nslow\r\n", "") == "one two", "{text}");
    assert_eq!(bench.out.tap.moved().stdout, 7, "podgate's own words are no output");
}

#[test]
fn why_podgate_ends_a_session_stands_in_its_terminal_in_front_of_the_error() {
    let (mut bench, _) = opened(TERMINAL, Protocol::V4);
    bench.link.announce("\r\nidle\r\n", &mut bench.out);
    assert_eq!(bench.end("idle"), Fate::Cut);
    assert_eq!(
        (bench.heard_by_client().channel(1), result(&bench)),
        (b"\r\nidle\r\n".to_vec(), internal("idle"))
    );
    let (mut bench, _) = opened(ALL, Protocol::V4);
    bench.link.announce("idle", &mut bench.out);
    bench.drain();
    assert_eq!(bench.heard_by_client().channel(1), b"");
}

#[test]
fn terminal_sizes_are_no_activity() {
    let (mut bench, _) = opened(TERMINAL, Protocol::V4);
    bench.out.active = false;
    bench.client(&from_client(b"\x04{\"Width\":80,\"Height\":24}")).unwrap();
    assert!(!bench.out.active);
    bench.client(&from_client(b"\0x")).unwrap();
    assert!(bench.out.active);
}
