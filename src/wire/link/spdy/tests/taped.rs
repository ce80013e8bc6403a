//! What the tap is told: of any session the bytes that a peer of upstream takes, and none besides.

use super::*;
use crate::wire::tape::{Connection, Taped};

/// What a peer of upstream takes of one direction: nothing on streams that were not opened, or have ended.
#[derive(Debug, Default)]
struct Takes {
    data: BTreeMap<u32, Vec<u8>>,
    ended: Vec<u32>,
    /// Bytes that it drops.
    dropped: usize,
}

/// A frame of the client, or of the far side.
#[derive(Debug, Clone)]
enum Step {
    Client(Frame),
    Far(Frame),
}

impl Takes {
    fn of(bytes: &[u8]) -> Self {
        let (mut takes, mut left) = (Self::default(), false);
        for frame in frames(bytes) {
            match frame {
                Frame::Data { stream, bytes, fin } => {
                    if left || takes.ended.contains(&stream) {
                        takes.dropped += bytes.len();
                        continue;
                    }
                    takes.data.entry(stream).or_default().extend_from_slice(&bytes);
                    takes.ended.extend(fin.then_some(stream));
                }
                Frame::RstStream { id, .. } | Frame::SynStream { id, fin: true, .. } => takes.ended.push(id),
                Frame::GoAway { .. } => left = true,
                _ => {}
            }
        }
        takes.data.retain(|_, bytes| !bytes.is_empty());
        takes
    }

    fn take(&mut self, id: Option<&u32>) -> Vec<u8> {
        id.and_then(|id| self.data.remove(id)).unwrap_or_default()
    }
}

impl Rig {
    fn recorded(link: SpdyLink) -> Self {
        let mut rig = Self::new(link);
        rig.out.tap.record();
        rig
    }

    fn taped(&mut self) -> Taped {
        self.out.tap.end();
        let mut taped = Taped::default();
        taped.read(self.out.tap.tape().unwrap().take().pieces());
        taped
    }

    /// Runs all steps, cut like this, up to a fault, and ends the session.
    fn run(&mut self, steps: &[Step], cuts: &[usize]) {
        for step in steps {
            let fed = match step {
                Step::Client(frame) => {
                    let bytes = encode_with(&mut self.client_encoder, std::slice::from_ref(frame));
                    cut(&bytes, cuts).into_iter().try_for_each(|part| self.client(part))
                }
                Step::Far(frame) => {
                    let bytes = encode_with(&mut self.far_encoder, std::slice::from_ref(frame));
                    cut(&bytes, cuts).into_iter().try_for_each(|part| self.far(part))
                }
            };
            match fed {
                Ok(()) => {}
                Err(Fault::Client(_)) => return,
                Err(Fault::Far(_)) => break,
            }
        }
        self.end();
    }
}

fn open(id: u32, kind: &str) -> Frame {
    syn(id, Headers::new().with(StreamType::HEADER, kind))
}

/// The steps of a session: streams opened and accepted in any order, then mostly what peers do, and seldom not.
fn session(
    opens: &'static [&'static str],
    headers: fn(u32, &str) -> Frame,
) -> impl Strategy<Value = Vec<Step>> {
    let opened = Just(opens.to_vec()).prop_shuffle();
    let id = || (0..opens.len() as u32 + 1).prop_map(|at| 2 * at + 1);
    let bytes = || proptest::collection::vec(any::<u8>(), 0..300);
    let any_data = move || {
        (id(), bytes(), any::<bool>()).prop_map(|(stream, bytes, fin)| Frame::Data {
            stream,
            bytes: bytes.into(),
            fin: fin && stream % 4 == 1,
        })
    };
    let odd = move || {
        prop_oneof![
            id().prop_map(reset),
            id().prop_map(reply),
            id().prop_map(|id| Frame::Headers { id, fin: false, headers: Headers::new() }),
            Just(goaway()),
            (id(), prop::sample::select(opens)).prop_map(move |(id, kind)| headers(id + 10, kind)),
            Just(open(31, "other")),
        ]
    };
    let step = prop_oneof![
        12 => (any_data(), any::<bool>()).prop_map(|(data, up)| if up { Step::Client(data) } else { Step::Far(data) }),
        2 => Just(Step::Client(Frame::Ping { id: 1 })),
        1 => (odd(), any::<bool>()).prop_map(|(odd, up)| if up { Step::Client(odd) } else { Step::Far(odd) }),
    ];
    (opened, proptest::collection::vec(step, 0..25), any::<bool>()).prop_map(move |(opened, steps, late)| {
        let open = opened.iter().enumerate().map(|(at, kind)| headers(2 * at as u32 + 1, kind));
        let mut all: Vec<Step> = open.map(Step::Client).collect();
        let replies = opened.iter().enumerate().map(|(at, _)| Step::Far(reply(2 * at as u32 + 1)));
        all.extend(replies.take(if late { 2 } else { opened.len() }));
        all.extend(steps);
        all
    })
}

/// Drops the bytes that go against the way of a stream, which are faults, from most sessions: they would be short.
fn along(steps: Vec<Step>, keep: bool, kind: impl Fn(u32, &[Step]) -> Option<Vec<u8>>) -> Vec<Step> {
    let all = steps.clone();
    let fits = |step: &Step| {
        let (Step::Client(frame) | Step::Far(frame)) = step;
        let Frame::Data { stream, .. } = frame else { return true };
        let name = kind(*stream, &all);
        match (step, name.as_deref()) {
            (_, Some(b"data")) => true,
            (Step::Client(_), name) => matches!(name, Some(b"stdin" | b"resize")),
            (Step::Far(_), name) => matches!(name, Some(b"stdout" | b"stderr" | b"error")),
        }
    };
    steps.into_iter().filter(|step| keep || fits(step)).collect()
}

fn kind_of(id: u32, steps: &[Step]) -> Option<Vec<u8>> {
    steps.iter().find_map(|step| match step {
        Step::Client(Frame::SynStream { id: have, headers, .. }) if *have == id => {
            Some(headers.get(StreamType::HEADER)?.to_vec())
        }
        _ => None,
    })
}

/// The ids of the streams that reached the far side, by type.
fn ids(bytes: &[u8]) -> BTreeMap<Vec<u8>, u32> {
    let opened = frames(bytes).into_iter().filter_map(|frame| match frame {
        Frame::SynStream { id, headers, .. } => Some((headers.get(StreamType::HEADER)?.to_vec(), id)),
        _ => None,
    });
    opened.collect()
}

const COMMAND: &[&str] = &["error", "stdin", "stdout", "stderr", "resize"];
const FORWARD: &[&str] = &["0/error", "0/data", "1/error", "1/data", "2/data"];

/// Streams of a port-forward: which request, and which half.
fn forwarded(id: u32, name: &str) -> Frame {
    match name.split_once('/') {
        Some((request, kind)) => syn(
            id,
            Headers::new()
                .with("streamType", kind)
                .with("port", format!("808{request}"))
                .with("requestID", request),
        ),
        None => open(id, name),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_tape_has_what_each_peer_takes_and_nothing_passes_beside_it(
        steps in session(COMMAND, open),
        keep in prop::bool::weighted(0.2),
        protocol in prop::sample::select(&Protocol::SPDY[..]),
        cuts in proptest::collection::vec(1..200usize, 1..8),
    ) {
        let mut rig = Rig::recorded(SpdyLink::command(protocol, Runs::Attach { tty: false }));
        rig.run(&along(steps, keep, kind_of), &cuts);
        let taped = rig.taped();
        let ids = ids(&rig.to_far);
        let id = |kind: &str| ids.get(kind.as_bytes());
        let (mut up, mut down) = (Takes::of(&rig.to_far), Takes::of(&rig.to_client));
        prop_assert_eq!((up.dropped, down.dropped), (0, 0));
        let ended = id("stdin").is_some_and(|id| up.ended.contains(id));
        prop_assert_eq!(taped.stdin_ends, usize::from(ended));
        prop_assert_eq!((&taped.stdin, &taped.sizes), (&up.take(id("stdin")), &up.take(id("resize"))));
        prop_assert_eq!((&taped.stdout, &taped.stderr), (&down.take(id("stdout")), &down.take(id("stderr"))));
        prop_assert_eq!(&taped.result, &down.take(id("error")));
        prop_assert!(up.data.is_empty() && down.data.is_empty(), "unseen: {:?} {:?}", up.data, down.data);
        prop_assert_eq!(rig.out.tap.result(), &taped.result);
        let moved = rig.out.tap.moved();
        prop_assert_eq!([moved.stdin, moved.stdout, moved.stderr],
            [&taped.stdin, &taped.stdout, &taped.stderr].map(|bytes| bytes.len() as u64));
    }

    #[test]
    fn a_tape_of_a_port_forward_has_every_connection_and_its_bytes_are_those_that_pass(
        steps in session(FORWARD, forwarded),
        cuts in proptest::collection::vec(1..200usize, 1..8),
    ) {
        let mut rig = Rig::recorded(SpdyLink::port_forward());
        rig.run(&along(steps, true, kind_of), &cuts);
        let taped = rig.taped();
        let (mut up, mut down) = (Takes::of(&rig.to_far), Takes::of(&rig.to_client));
        prop_assert_eq!((up.dropped, down.dropped), (0, 0));
        let mut opened: Vec<(u32, u16)> = Vec::new();
        for frame in frames(&rig.to_far) {
            if let Frame::SynStream { id, headers, .. } = frame && headers.get("streamType") == Some(b"data") {
                opened.push((id, str::from_utf8(headers.get("port").unwrap()).unwrap().parse().unwrap()));
            }
        }
        let closed: Vec<&Connection> = taped.connections.iter().filter(|event| !event.open).collect();
        prop_assert_eq!(closed.len(), opened.len());
        let (mut sum_up, mut sum_down) = (0, 0);
        for (at, (id, port)) in opened.iter().enumerate() {
            let event = closed.iter().find(|event| event.connection == at as u32 + 1).unwrap();
            let (sent, got) = (up.take(Some(id)).len() as u64, down.take(Some(id)).len() as u64);
            prop_assert_eq!((event.port, event.up, event.down), (*port, sent, got));
            sum_up += sent;
            sum_down += got;
        }
        let moved = rig.out.tap.moved();
        prop_assert_eq!((moved.up, moved.down, moved.connections), (sum_up, sum_down, opened.len() as u64));
        prop_assert!(up.data.is_empty(), "unseen: {:?}", up.data);
    }
}

/// What a session may not do where it is recorded, and may where it is not.
#[test]
fn what_servers_may_take_for_different_things_is_a_fault_in_front_of_it() {
    let headers = |id| Frame::Headers { id, fin: false, headers: Headers::new().with("streamtype", "stdin") };
    let two = Headers::new().with("streamtype", "stdout").with("streamtype", "stdin");
    let client = [
        open(9, "stdin"),
        open(9, "Stdin"),
        open(9, "other"),
        syn(9, Headers::new()),
        syn(9, two),
        open(7, "resize"),
        open(8, "resize"),
        headers(STDOUT),
        reply(STDIN),
        data(99, "x"),
        data(STDOUT, "x"),
        data(ERROR, "x"),
    ];
    let far = [open(2, "stdout"), headers(STDOUT), data(99, "x"), data(STDIN, "x")];
    for recorded in [true, false] {
        let rig = || {
            let mut rig = Rig::new(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
            if recorded {
                rig.out.tap.record();
            }
            rig.client_says(&opening());
            rig.far_says(&replies());
            rig
        };
        for frame in &client {
            let mut rig = rig();
            let before = rig.to_far.clone();
            let bytes = encode_with(&mut rig.client_encoder, std::slice::from_ref(frame));
            let fed = rig.client(&bytes);
            assert_eq!(matches!(fed, Err(Fault::Client(_))), recorded, "{frame:?}");
            if recorded {
                assert_eq!(rig.to_far, before, "{frame:?}");
                let told = fed.unwrap_err().to_string();
                assert_eq!(rig.seen().outcome(Protocol::V4), internal(&told));
                assert_eq!(rig.taped().result, internal(&told).to_bytes(Protocol::V4), "{frame:?}");
            } else {
                assert_eq!(rig.to_far[before.len()..], bytes, "{frame:?}");
            }
        }
        for frame in &far {
            let mut rig = rig();
            let before = rig.to_client.clone();
            let bytes = encode_with(&mut rig.far_encoder, std::slice::from_ref(frame));
            let fed = rig.far(&bytes);
            assert_eq!(matches!(fed, Err(Fault::Far(_))), recorded, "{frame:?}");
            let passed = if recorded { &[][..] } else { &bytes };
            assert_eq!(rig.to_client[before.len()..], *passed, "{frame:?}");
        }
    }
}

#[test]
fn data_before_a_reply_is_a_fault_and_behind_an_end_it_is_dropped() {
    for (early, faults) in [(data(STDIN, "x"), true), (fin(STDIN), true), (fin(ERROR), false)] {
        let mut rig = Rig::recorded(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
        rig.client_says(&opening());
        let bytes = encode_with(&mut rig.client_encoder, &[early]);
        assert_eq!(rig.client(&bytes).is_err(), faults);
    }
    for end in [fin(STDIN), reset(STDIN), goaway()] {
        let mut rig = Rig::recorded(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
        rig.client_says(&opening());
        rig.far_says(&replies());
        rig.client_says(&[data(STDIN, "in"), end]);
        let before = rig.to_far.len();
        // Go's copy of stdin goes on for a moment, and what is cut is dropped to its end.
        let late =
            encode_with(&mut rig.client_encoder, &[data(STDIN, "late"), fin(STDIN), data(STDIN, "again")]);
        for part in cut(&late, &[3, 7]) {
            rig.client(part).unwrap();
        }
        assert_eq!(rig.to_far.len(), before);
        rig.client_says(&[Frame::Ping { id: 7 }]);
        assert_eq!(rig.to_far[before..], hex("80030006 00000004 00000007"));
        assert_eq!(rig.taped().stdin, b"in");
    }
    // The far side reads no more: what was on its way is dropped as there.
    let mut rig = Rig::recorded(SpdyLink::command(Protocol::V4, Runs::Attach { tty: false }));
    rig.client_says(&opening());
    rig.far_says(&[replies(), vec![reset(STDIN)]].concat());
    rig.client_says(&[data(STDIN, "late")]);
    assert!(rig.taped().stdin.is_empty());
}

#[test]
fn a_stream_that_half_the_servers_would_refuse_is_no_connection_of_a_recording() {
    let opening = |port: &str, request: &str| {
        syn(1, Headers::new().with("streamType", "data").with("port", port).with("requestID", request))
    };
    let bad = [
        opening("0", "1"),
        opening("+80", "1"),
        opening("80\u{0}443", "1"),
        opening("80", "1\u{0}2"),
        opening("80", &"1".repeat(300)),
        open(1, "data"),
        syn(1, Headers::new().with("port", "80")),
    ];
    for frame in bad {
        let mut rig = Rig::recorded(SpdyLink::port_forward());
        let bytes = encode_with(&mut rig.client_encoder, std::slice::from_ref(&frame));
        assert!(matches!(rig.client(&bytes), Err(Fault::Client(_))), "{frame:?}");
        assert!(rig.to_far.is_empty());
    }
    let mut rig = Rig::recorded(SpdyLink::port_forward());
    rig.client_says(&[half(1, Half::Error), half(3, Half::Data)]);
    let again = encode_with(&mut rig.client_encoder, &[syn(5, Half::Data.headers(81, 0))]);
    assert!(rig.client(&again).is_err(), "one that is open already");
}

#[test]
fn an_error_of_a_port_forward_is_told_with_its_connection() {
    let mut rig = Rig::recorded(SpdyLink::port_forward());
    rig.client_says(&[
        half(1, Half::Error),
        fin(1),
        half(3, Half::Data),
        half(5, Half::Error),
        half(7, Half::Data),
    ]);
    rig.far_says(&[reply(1), reply(3), reply(5), reply(7)]);
    rig.client_says(&[data(7, "up")]);
    rig.far_says(&[data(7, "down"), data(1, "refused"), reset(1), reset(3)]);
    assert_eq!(rig.end(), Fate::Cut);
    let closed: Vec<Connection> = rig.taped().connections.into_iter().filter(|event| !event.open).collect();
    let event = |connection, up, down, error: &str| Connection {
        connection,
        port: 80,
        open: false,
        up,
        down,
        error: error.into(),
    };
    assert_eq!(closed, [event(1, 0, 0, "refused"), event(2, 2, 4, WHY)]);
}

#[test]
fn without_a_tape_the_channels_are_counted_and_nothing_is_kept() {
    let mut rig = Rig::command(Protocol::V4);
    rig.far_says(&replies());
    rig.client_says(&[data(STDIN, "in")]);
    let status = Outcome::exit(3).to_bytes(Protocol::V4);
    rig.far_says(&[data(STDOUT, "out"), data(STDERR, "error"), data(ERROR, &status)]);
    let moved = rig.out.tap.moved();
    assert_eq!((moved.stdin, moved.stdout, moved.stderr), (2, 3, 5));
    assert_eq!((rig.out.tap.exit_code(), rig.out.tap.tape().is_none()), (Some(3), true));
}
