//! Properties of the framings: one piece or many, what is held back, and the way back through the encoders.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Choices, Cuts, append};
use crate::wire::channel::{self, Subprotocol};
use crate::wire::http1::{self, BodyScanner, ResponseHead};
use crate::wire::remotecommand::{Asked, StreamType};
use crate::wire::spdy::{self, Frame, Headers};
use crate::wire::ws::{self, Data, Event, Kind, MaskKey};

/// Most bytes that a channel test writes: more than one message of ours carries.
const LONG: usize = channel::MAX_PAYLOAD + 4096;

/// SPDY frames: cut anywhere they say the same, no more than the bound waits, an error stays, and what was read
/// can be written and read again.
pub fn spdy_frames(data: &[u8]) {
    let mut choices = Choices(data);
    let mut cuts = choices.cuts();
    spdy_agrees(choices.rest(), &mut cuts);
}

/// SPDY header blocks: as [`spdy_frames`], for frames that are whole and blocks that are anything, or are those
/// of our encoder.
pub fn spdy_headers(data: &[u8]) {
    let mut choices = Choices(data);
    let mut cuts = choices.cuts();
    if choices.flag() {
        written_headers(choices, &mut cuts);
        return;
    }
    let mut wire = BytesMut::new();
    while !choices.is_empty() {
        // A block may come many times over: it is how few bytes inflate to many.
        let times = 1 + usize::from(choices.byte());
        let len = usize::from(choices.word());
        let block = choices.take(len);
        let block = block.repeat(times.min(spdy::MAX_CONTROL_PAYLOAD / (1 + block.len())).max(1));
        wire.put_u32(0x8003_0002);
        wire.put_u32(4 + block.len() as u32);
        wire.put_u32(1);
        wire.put_slice(&block);
    }
    spdy_agrees(&wire, &mut cuts);
}

/// WebSocket frames, for either side: as [`spdy_frames`].
pub fn ws_frames(data: &[u8]) {
    let mut choices = Choices(data);
    let role = choices.pick(&[ws::Role::Client, ws::Role::Server]);
    let message = choices.pick(&[ws::MAX_MESSAGE, 300]);
    let limits = ws::Limits { message, utf8: choices.flag() };
    let mut cuts = choices.cuts();
    let bytes = choices.rest();

    let (mut whole, fault) = read_ws(role, limits, [bytes]);
    let (mut cut, cut_fault) = read_ws(role, limits, cuts.pieces(bytes));
    assert_eq!(fault, cut_fault, "one piece and many");
    if fault == Some(ws::Error::Text) {
        // How much of a message went out before its fault depends on the cuts.
        for events in [&mut whole, &mut cut] {
            events.retain(|event| !matches!(event, Event::Data(Data { end: false, .. })));
        }
    }
    assert_eq!(whole, cut, "one piece and many");

    let mut wire = BytesMut::new();
    let key = |index: usize| (role == ws::Role::Server).then(|| MaskKey((index as u32).to_le_bytes()));
    for (index, event) in whole.iter().enumerate() {
        let mask = key(index);
        match event {
            Event::Data(Data { kind, bytes, end, .. }) => {
                ws::Encoder::frame(&mut wire, (*kind).into(), *end, bytes, mask);
            }
            Event::Ping(payload) => ws::Encoder::ping(&mut wire, payload, mask),
            Event::Pong(payload) => ws::Encoder::pong(&mut wire, payload, mask),
            Event::Close(close) => ws::Encoder::close(&mut wire, close.as_ref(), mask),
        }
    }
    let (again, fault) = read_ws(role, limits, cuts.pieces(&wire));
    assert_eq!((again, fault), (whole, None), "read, written and read");
}

/// Channel messages, in any subprotocol and for either side: cut anywhere they say the same; what our encoder
/// writes arrives, and no more of it waits than the bound.
pub fn channel_messages(data: &[u8]) {
    let mut choices = Choices(data);
    let subprotocol = choices.pick(&[
        Subprotocol::Unnamed,
        Subprotocol::Channel,
        Subprotocol::Base64,
        Subprotocol::V4,
        Subprotocol::V4Base64,
        Subprotocol::V5,
    ]);
    let asked = asked(&mut choices);
    let role = choices.pick(&[ws::Role::Client, ws::Role::Server]);
    let decoder = || match role {
        ws::Role::Client => channel::Decoder::client(subprotocol, asked),
        ws::Role::Server => channel::Decoder::server(subprotocol, asked),
    };
    let mut cuts = choices.cuts();
    if choices.flag() {
        written_messages(subprotocol, role, asked, decoder(), choices, cuts);
        return;
    }
    let messages: Vec<(Kind, &[u8])> = std::iter::from_fn(|| {
        let kind = choices.pick(&[Kind::Binary, Kind::Text]);
        (!choices.is_empty()).then(|| (kind, choices.bytes()))
    })
    .collect();
    let whole = read_messages(decoder(), &messages, &mut Cuts { lens: &[], at: 0 });
    let cut = read_messages(decoder(), &messages, &mut cuts);
    assert_eq!(whole, cut, "one piece and many");
}

/// The head and body of an answer: more bytes never take back what was said about fewer; the body ends at the
/// same byte however it is cut; the head as we write it says the same about the body.
pub fn http1_head(data: &[u8]) {
    let mut choices = Choices(data);
    let mut cuts = choices.cuts();
    let raw = choices.rest();
    let whole = ResponseHead::parse(raw);

    let mut come = 0;
    for piece in cuts.pieces(raw) {
        come += piece.len();
        match (ResponseHead::parse(&raw[..come]), &whole) {
            (Ok(None), Ok(None)) => assert!(come < http1::MAX_HEAD, "a head that long is an error"),
            (Ok(None), Ok(Some(head))) => assert!(come < head.len, "all of the head was there"),
            (Ok(None), Err(_)) => assert!(come < raw.len(), "the same bytes"),
            (Ok(Some(head)), Ok(Some(whole))) => assert_eq!(&head, whole),
            (Err(_), Err(_)) => break,
            (part, whole) => panic!("{part:?} after {come} bytes, {whole:?} after all"),
        }
    }

    let Ok(Some(head)) = whole else { return };
    assert!(head.len <= raw.len().min(http1::MAX_HEAD));
    let Ok(length) = head.body_length() else { return };
    let body = &raw[head.len..];
    let in_one = scan(BodyScanner::new(length), [body]);
    assert_eq!(scan(BodyScanner::new(length), cuts.pieces(body)), in_one, "one piece and many");

    let written = http1::reserialize(&head, length);
    let may_grow = head.headers.len() + 2 > http1::MAX_HEADERS || written.len() > http1::MAX_HEAD;
    match ResponseHead::parse(&written) {
        Ok(Some(again)) => {
            assert_eq!((again.status, again.minor_version), (head.status, head.minor_version));
            assert_eq!(again.reason, head.reason);
            assert_eq!(again.len, written.len(), "a head and nothing else");
            assert_eq!(again.body_length().ok(), Some(length), "the body ends where it did");
        }
        other => assert!(may_grow, "{other:?} for {written:?}"),
    }
}

/// A choice of streams.
pub(super) fn asked(choices: &mut Choices<'_>) -> Asked {
    let bits = choices.byte();
    let bit = |at: u8| bits >> at & 1 != 0;
    Asked { stdin: bit(0), stdout: bit(1), stderr: bit(2), tty: bit(3) }
}

fn spdy_agrees(bytes: &[u8], cuts: &mut Cuts<'_>) {
    let whole = read_spdy([bytes]);
    assert_eq!(read_spdy(cuts.pieces(bytes)), whole, "one piece and many");

    let mut wire = BytesMut::new();
    let mut encoder = spdy::Encoder::new();
    for frame in &whole.frames {
        encoder.encode(&mut wire, frame).expect("what was read is within the limits");
    }
    let again = read_spdy(cuts.pieces(&wire));
    assert_eq!(again.frames, whole.frames, "read, written and read");
    assert_eq!((again.fault, &again.left[..], again.between), (None, &[][..], true));
}

fn written_headers(mut choices: Choices<'_>, cuts: &mut Cuts<'_>) {
    let mut wire = BytesMut::new();
    let mut encoder = spdy::Encoder::new();
    let mut frames = Vec::new();
    while !choices.is_empty() {
        let mut headers = Headers::new();
        for _ in 0..choices.byte() {
            let name = String::from_utf8_lossy(choices.bytes()).into_owned();
            let value = choices.bytes();
            headers = headers.with(&name, value.repeat(1 + usize::from(choices.byte() % 32)));
        }
        let frame = Frame::SynStream {
            id: 1 + u32::from(choices.word()),
            associated: 0,
            priority: choices.byte() % 8,
            fin: choices.flag(),
            unidirectional: choices.flag(),
            headers,
        };
        let before = wire.len();
        match encoder.encode(&mut wire, &frame) {
            Ok(()) => frames.push(frame),
            // The next block is none the worse for it.
            Err(_) => assert_eq!(wire.len(), before, "nothing is written of what is over a limit"),
        }
    }
    let read = read_spdy(cuts.pieces(&wire));
    assert_eq!((read.frames, read.fault), (frames, None), "written and read");
}

/// What a SPDY decoder said, the pieces of DATA joined.
#[derive(Debug, PartialEq)]
struct ReadSpdy {
    frames: Vec<Frame>,
    fault: Option<String>,
    left: Vec<u8>,
    between: bool,
}

fn read_spdy<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> ReadSpdy {
    let mut decoder = spdy::Decoder::new();
    let mut input = BytesMut::new();
    let mut read = ReadSpdy { frames: Vec::new(), fault: None, left: Vec::new(), between: true };
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(frame)) => push_spdy(&mut read.frames, frame),
                Ok(None) => break,
                Err(error) => {
                    for _ in 0..2 {
                        assert!(matches!(decoder.decode(&mut input), Err(spdy::Error::Failed)));
                        input.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
                    }
                    read.fault = Some(error.to_string());
                    return read;
                }
            }
        }
        assert!(input.len() < spdy::MAX_BUFFERED, "{} bytes wait", input.len());
    }
    read.left = input.to_vec();
    read.between = decoder.is_between_frames();
    read
}

/// Adds a frame, or joins it with the piece of DATA before it.
pub(super) fn push_spdy(frames: &mut Vec<Frame>, frame: Frame) {
    if let Frame::Data { stream, bytes, fin } = &frame
        && let Some(Frame::Data { stream: last, bytes: joined, fin: ended @ false }) = frames.last_mut()
        && stream == last
    {
        append(joined, bytes);
        *ended = *fin;
        return;
    }
    frames.push(frame);
}

/// What a WebSocket decoder said, the pieces of a message joined.
fn read_ws<'a>(
    role: ws::Role,
    limits: ws::Limits,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Event>, Option<ws::Error>) {
    let mut decoder = ws::Decoder::new(role, limits);
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event)) => {
                    assert!(!decoder.is_closed() || matches!(event, Event::Close(_)), "behind a Close");
                    push_ws(&mut events, event);
                }
                Ok(None) => break,
                Err(error) => {
                    for _ in 0..2 {
                        assert_eq!(decoder.decode(&mut input), Err(ws::Error::Failed));
                        input.extend_from_slice(&[0x82, 0x00]);
                    }
                    return (events, Some(error));
                }
            }
        }
        assert!(input.len() < ws::MAX_BUFFERED, "{} bytes wait", input.len());
    }
    (events, None)
}

/// Adds an event, or joins it with the last piece of its message, which is then in front of the control frames
/// in between.
fn push_ws(events: &mut Vec<Event>, event: Event) {
    match event {
        Event::Data(piece) if !piece.start => {
            let open = events.iter_mut().rev().find_map(|event| match event {
                Event::Data(data) if !data.end => Some(data),
                _ => None,
            });
            let open = open.expect("a message that goes on");
            assert_eq!(piece.kind, open.kind, "a message has one kind");
            append(&mut open.bytes, &piece.bytes);
            open.end = piece.end;
        }
        event => events.push(event),
    }
}

/// What a channel decoder said of messages, the bytes of one stream joined.
fn read_messages(
    mut decoder: channel::Decoder,
    messages: &[(Kind, &[u8])],
    cuts: &mut Cuts<'_>,
) -> (Vec<channel::Event>, Option<channel::Error>) {
    let mut events: Vec<channel::Event> = Vec::new();
    for (kind, bytes) in messages {
        for data in in_pieces(*kind, bytes, cuts) {
            match decoder.decode(data) {
                Ok(None) => {}
                Ok(Some(event)) => push_channel(&mut events, event),
                Err(error) => return (events, Some(error)),
            }
        }
    }
    (events, None)
}

fn push_channel(events: &mut Vec<channel::Event>, event: channel::Event) {
    if let channel::Event::Data { stream, bytes } = &event {
        assert!(!bytes.is_empty(), "data without bytes");
        if let Some(channel::Event::Data { stream: last, bytes: joined }) = events.last_mut()
            && stream == last
        {
            append(joined, bytes);
            return;
        }
    }
    events.push(event);
}

/// A message as a WebSocket decoder would give it.
pub(super) fn in_pieces(kind: Kind, bytes: &[u8], cuts: &mut Cuts<'_>) -> Vec<Data> {
    let mut pieces: Vec<Data> = cuts
        .pieces(bytes)
        .map(|piece| Data { kind, bytes: Bytes::copy_from_slice(piece), start: false, end: false })
        .collect();
    if pieces.is_empty() {
        pieces.push(Data { kind, bytes: Bytes::new(), start: false, end: false });
    }
    if let Some(first) = pieces.first_mut() {
        first.start = true;
    }
    if let Some(last) = pieces.last_mut() {
        last.end = true;
    }
    pieces
}

fn written_messages(
    subprotocol: Subprotocol,
    role: ws::Role,
    asked: Asked,
    mut decoder: channel::Decoder,
    mut choices: Choices<'_>,
    mut cuts: Cuts<'_>,
) {
    let encoder = channel::Encoder::new(subprotocol);
    let stream = choices.pick(&StreamType::ALL);
    let times = 1 + usize::from(choices.byte());
    let payload = choices.rest();
    let payload = payload.repeat(times.min(LONG / (1 + payload.len())).max(1));
    let mask = (role == ws::Role::Server).then_some(MaskKey([1, 2, 3, 4]));
    let mut wire = BytesMut::new();
    let mut rest = &payload[..];
    while !rest.is_empty() {
        let written = encoder.message(&mut wire, stream, rest, mask);
        assert!(0 < written && written <= subprotocol.encoding().max_payload());
        rest = &rest[written..];
    }
    let closes = role == ws::Role::Server && encoder.close(&mut wire, stream, mask);

    let mut frames = ws::Decoder::new(role, ws::Limits { utf8: true, ..ws::Limits::default() });
    let mut input = BytesMut::new();
    let mut events = Vec::new();
    for piece in cuts.pieces(&wire) {
        input.extend_from_slice(piece);
        while let Some(event) = frames.decode(&mut input).expect("frames of ours") {
            let Event::Data(data) = event else { panic!("{event:?}") };
            if let Some(event) = decoder.decode(data).expect("messages of ours") {
                push_channel(&mut events, event);
            }
        }
    }
    let mut expected = Vec::new();
    if may_write(role, asked, stream) {
        if !payload.is_empty() {
            expected.push(channel::Event::Data { stream, bytes: payload.into() });
        }
        if closes {
            expected.push(channel::Event::Closed(stream));
        }
    }
    assert_eq!(events, expected, "written and read");
}

/// Whether the other side than `role` may write on a stream.
fn may_write(role: ws::Role, asked: Asked, stream: StreamType) -> bool {
    match (role, stream) {
        (ws::Role::Server, StreamType::Stdin) => asked.stdin,
        (ws::Role::Server, StreamType::Resize) => asked.tty,
        (ws::Role::Client, StreamType::Error) => true,
        (ws::Role::Client, StreamType::Stdout) => asked.stdout,
        (ws::Role::Client, StreamType::Stderr) => asked.stderr && !asked.tty,
        _ => false,
    }
}

/// How many bytes belong to the body, whether it is complete then, and whether the connection may end; `None`
/// when they are no body.
fn scan<'a>(
    mut scanner: BodyScanner,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Option<(usize, bool, bool)> {
    let mut used = 0;
    for piece in pieces {
        let scanned = scanner.scan(piece).ok()?;
        used += scanned.used;
        assert!(scanned.complete || scanned.used == piece.len(), "a body in progress takes all");
    }
    let complete = scanner.scan(&[]).ok()?.complete;
    Some((used, complete, scanner.end().is_ok()))
}
