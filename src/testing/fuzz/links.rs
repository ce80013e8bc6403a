//! Properties of the links: whatever both sides say, and in whatever pieces it comes and goes, nobody is sent half
//! a frame, a channel's bytes are those that were written, and a client whose session was ended is not told that it
//! went well. Where the session is recorded, the tape has, by channel, the bytes that the peers got and take, and they
//! got no others.
//!
//! The data is a list of operations: a side writes, podgate writes out some of what it has queued, time passes, a
//! side goes away. What the sides write is mostly frames, because few other bytes get past the first. What should
//! come out is read from what went in, by the decoders alone.

mod hangup;
mod peers;
mod views;

use bytes::{Buf, BytesMut};

pub use hangup::hang_up;

use super::frames::asked;
use super::{Choices, Cuts};
use crate::wire::channel::{self, CLOSE, Encoding, Subprotocol};
use crate::wire::link::spdy::SpdyLink;
use crate::wire::link::translate::Translator;
use crate::wire::link::tunnel::Tunnel;
use crate::wire::link::ws::WsLink;
use crate::wire::link::{Fate, Fault, Link, Out, Queue, Runs};
use crate::wire::portforward::Half;
use crate::wire::remotecommand::{Asked, Outcome, Protocol, StreamType};
use crate::wire::spdy;
use crate::wire::tape::Taped;
use crate::wire::ws::{self, CloseCode, Kind, MaskKey};
use peers::{SpdyPeer, TunnelPeer, WsPeer};
use views::{Channels, Spdy, Stop, Streams, Taken, Ws};

/// Bytes that a link may queue for each that it is given. The worst are those of a result that has to be told in a
/// Status: six when it is escaped, in two places, and in base64.
const GROWTH: usize = 6 * 2 * 4 / 3 + 1;

/// Bytes that a link may queue of its own accord: what it begins and ends with.
const OWN: usize = 4 * 1024;

/// Bytes for each port of an old port-forward, which hears why on its error channel.
const OWN_PORT: usize = 128;

/// Bytes that one tick may cost: a ping and a pong.
const OWN_TICK: usize = 16;

/// Behind so many bytes no WebSocket's ping is answered.
const NO_PONG: usize = 33 * 1024;

/// The first stream that a client opens: where it waits for the result.
const ERROR: u32 = 1;

/// Most bytes that are read at once.
const READ: usize = 64 * 1024;

/// What a session is told when it is ended.
const WHY: &str = "podgate is done";

/// Subprotocols of a command.
const SUBPROTOCOLS: [Subprotocol; 6] = [
    Subprotocol::V5,
    Subprotocol::V4,
    Subprotocol::V4Base64,
    Subprotocol::Unnamed,
    Subprotocol::Channel,
    Subprotocol::Base64,
];

/// A link between two peers.
struct Session<'a, L> {
    link: L,
    out: Out,
    cuts: Cuts<'a>,
    client: Socket,
    far: Socket,
    /// Bytes that the link may queue for what it was not given.
    own: usize,
    /// The client opened its streams, and after that the far side said something.
    begun: bool,
    end: Option<End>,
    /// How it ends if it does not end before.
    client_leaves: bool,
    /// The far side is not left with it.
    stays: bool,
    /// What is on the tape, where there is one.
    taped: Option<Taped>,
}

/// The connection to a peer.
#[derive(Default)]
struct Socket {
    /// Written by the peer, not read yet.
    unread: BytesMut,
    /// Read, and not taken by the link.
    input: BytesMut,
    /// All that was read.
    said: Vec<u8>,
    /// All that the peer got.
    heard: Vec<u8>,
    /// The link leaves fewer bytes than that.
    bound: usize,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By itself.
    Over(Fate),
    /// By podgate, or since the far side did not speak its protocol.
    Ended(Fate),
    ClientFault,
    ClientGone,
}

/// A WebSocket client in any subprotocol, and a SPDY far side.
pub fn translator(data: &[u8]) {
    [false, true].into_iter().for_each(|recorded| translator_of(data, recorded));
}

fn translator_of(data: &[u8], recorded: bool) {
    let mut choices = Choices(data);
    let subprotocol = choices.pick(&SUBPROTOCOLS);
    let asked = asked(&mut choices);
    let protocol = choices.pick(&[Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1]);
    let mut client = WsPeer::client(subprotocol.encoding());
    let mut far = SpdyPeer::new();
    let link = Translator::new(subprotocol, asked, protocol);
    let mut session = Session::new(link, (ws::MAX_BUFFERED, spdy::MAX_BUFFERED), &mut choices, recorded);
    if choices.flag() {
        session.far_writes(&far.replies(asked.streams(protocol).len()));
    }
    session.run(choices, |choices| client.write(choices), |choices| far.write(choices));
    check_translator(&session, subprotocol, asked, protocol);
    session.finish();
    check_translator(&session, subprotocol, asked, protocol);
}

/// SPDY on both sides: a command in any protocol, or a port-forward.
pub fn spdy_link(data: &[u8]) {
    [false, true].into_iter().for_each(|recorded| spdy_link_of(data, recorded));
}

fn spdy_link_of(data: &[u8], recorded: bool) {
    let mut choices = Choices(data);
    let protocols = [Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1].map(Some);
    let protocol = if choices.flag() { None } else { choices.pick(&protocols) };
    let runs = Runs::Attach { tty: false };
    let link = protocol.map_or_else(SpdyLink::port_forward, |protocol| SpdyLink::command(protocol, runs));
    let (mut client, mut far) = (SpdyPeer::new(), SpdyPeer::new());
    let mut session = Session::new(link, (spdy::MAX_HELD + 1, spdy::MAX_HELD + 1), &mut choices, recorded);
    session.begun = choices.flag();
    if session.begun {
        session.client_writes(&client.opens(opening(protocol)));
        session.far_writes(&far.replies(opening(protocol).len()));
    }
    session.run(choices, |choices| client.write(choices), |choices| far.write(choices));
    let check = |session: &Session<'_, SpdyLink>| {
        check_spdy(session, protocol, &session.client.said, &session.client.heard);
    };
    check(&session);
    session.finish();
    check(&session);
}

/// SPDY in a WebSocket, and a SPDY far side.
pub fn tunnel(data: &[u8]) {
    [false, true].into_iter().for_each(|recorded| tunnel_of(data, recorded));
}

fn tunnel_of(data: &[u8], recorded: bool) {
    let mut choices = Choices(data);
    let (mut client, mut far) = (TunnelPeer::new(), SpdyPeer::new());
    let mut session =
        Session::new(Tunnel::new(), (ws::MAX_BUFFERED, spdy::MAX_HELD + 1), &mut choices, recorded);
    session.begun = choices.flag();
    if session.begun {
        session.client_writes(&client.opens(opening(None)));
        session.far_writes(&far.replies(opening(None).len()));
    }
    session.run(choices, |choices| client.write(choices), |choices| far.write(choices));
    check_tunnel(&session);
    session.finish();
    check_tunnel(&session);
}

/// WebSockets on both sides: a command in any subprotocol, or a port-forward of an old client.
pub fn ws_link(data: &[u8]) {
    [false, true].into_iter().for_each(|recorded| ws_link_of(data, recorded));
}

fn ws_link_of(data: &[u8], recorded: bool) {
    const KEY: fn() -> MaskKey = || MaskKey([1, 2, 3, 4]);
    let mut choices = Choices(data);
    let bounds = (ws::MAX_BUFFERED, ws::MAX_BUFFERED);
    let encoding = choices.pick(&[Encoding::Binary, Encoding::Base64]);
    // Means the one or the other.
    let (ports, asked) = (usize::from(choices.clone().byte() % 8), asked(&mut choices));
    let (subprotocol, link) = if choices.flag() {
        (None, WsLink::port_forward(encoding, vec![80; ports], KEY).expect("few ports"))
    } else {
        let subprotocol = choices.pick(&SUBPROTOCOLS);
        (Some(subprotocol), WsLink::command(subprotocol, asked, KEY))
    };
    let encoding = subprotocol.map_or(encoding, Subprotocol::encoding);
    let (mut client, mut far) = (WsPeer::client(encoding), WsPeer::server(encoding));
    let mut session = Session::new(link, bounds, &mut choices, recorded);
    session.own += ports * OWN_PORT;
    session.run(choices, |choices| client.write(choices), |choices| far.write(choices));
    check_ws(&session, (subprotocol, asked, ports), encoding);
    session.finish();
    check_ws(&session, (subprotocol, asked, ports), encoding);
}

/// The streams that clients open first.
fn opening(protocol: Option<Protocol>) -> &'static [&'static str] {
    match protocol {
        Some(_) => &["error", "stdin", "stdout"],
        None => &["error", "data"],
    }
}

fn check_translator(
    session: &Session<'_, Translator>,
    subprotocol: Subprotocol,
    asked: Asked,
    protocol: Protocol,
) {
    let to_far = Spdy::read(&session.far.heard);
    assert!(to_far.whole, "half a frame for the far side");
    let from_far = Spdy::read(&session.far.said);
    let opened = views::opened(&session.far.heard);
    let id =
        |kind: StreamType| opened.iter().find(|(_, name)| name == kind.name().as_bytes()).map(|(id, _)| *id);
    let from_client = Ws::read(ws::Role::Server, &session.client.said);
    let to_client = Ws::read(ws::Role::Client, &session.client.heard);
    to_client.assert_ours();
    let said = Streams::read(subprotocol, asked, ws::Role::Server, &from_client);
    let heard = Streams::read(subprotocol, asked, ws::Role::Client, &to_client);

    for kind in [StreamType::Stdin, StreamType::Resize] {
        let Some(id) = id(kind) else { continue };
        let (written, sent, far) = (said.on(kind), to_far.on(id), from_far.on(id));
        assert!(written.starts_with(&sent.bytes), "{kind:?}: not what was written");
        let may_close = kind == StreamType::Stdin && protocol != Protocol::V1 && far.stop == Some(Stop::Fin);
        assert!(sent.stop != Some(Stop::Fin) || said.closed(kind) || may_close, "{kind:?}: closed by nobody");
        if session.is_settled() && far.stop.is_none() {
            assert_eq!(sent.bytes.len(), written.len(), "{kind:?}: bytes are missing");
        }
    }
    if let Some(taped) = &session.taped {
        let sent = |kind| id(kind).map_or_else(Vec::new, |id| to_far.on(id).bytes);
        assert_eq!(taped.stdin, sent(StreamType::Stdin), "stdin on the tape");
        assert_eq!(taped.sizes, sent(StreamType::Resize), "sizes on the tape");
        assert_eq!(taped.stdout, heard.on(StreamType::Stdout), "stdout on the tape");
        assert_eq!(taped.stderr, heard.on(StreamType::Stderr), "stderr on the tape");
        assert_eq!(taped.result, heard.on(StreamType::Error), "the result on the tape");
        assert!(
            taped.stdin_ends <= usize::from(said.closed(StreamType::Stdin)),
            "an end of stdin on the tape"
        );
    }
    let success = views::verdict(subprotocol.version(), &to_client, heard.on(StreamType::Error))
        == Some(Outcome::Success);
    for kind in [StreamType::Stdout, StreamType::Stderr] {
        let Some(id) = id(kind) else { continue };
        let (said, got) = (from_far.on(id).bytes, heard.on(kind));
        assert!(said.starts_with(got), "{kind:?}: not what was written");
        if session.is_settled()
            || success && matches!(session.end, Some(End::Over(_))) && from_client.close.is_none()
        {
            assert_eq!(got.len(), said.len(), "{kind:?}: bytes are missing");
        }
    }
    if session.end.is_none() {
        assert!(to_client.close.is_none() && to_far.left().is_none(), "the end was told before it came");
        return;
    }
    assert!(to_far.left().is_some(), "the far side was not told of the end");
    let gone = matches!(session.end, Some(End::ClientFault | End::ClientGone)) || from_client.close.is_some();
    if gone {
        return;
    }
    assert!(to_client.close.is_some(), "the client was not told of the end");
    if !success {
        return;
    }
    assert!(
        matches!(session.end, Some(End::Over(Fate::Whole) | End::Ended(Fate::Whole))),
        "success, and cut"
    );
    let streams = [StreamType::Error, StreamType::Stdout, StreamType::Stderr];
    let ids: Vec<u32> = streams.into_iter().filter_map(id).collect();
    let result = from_far.on(ids[0]).bytes;
    assert_eq!(Outcome::parse(protocol, &result).ok(), Some(Outcome::Success), "success, by nobody's word");
    let silence = !protocol.writes_status() && ids.iter().all(|id| from_far.on(*id).stop.is_some());
    assert!(silence || !result.is_empty(), "silence, which is no success");
}

/// The client's SPDY, which may have come in a WebSocket.
fn check_spdy<L: Link>(session: &Session<'_, L>, protocol: Option<Protocol>, said: &[u8], heard: &[u8]) {
    let (from_client, to_far) = (Spdy::read(said), Spdy::read(&session.far.heard));
    let (from_far, to_client) = (Spdy::read(&session.far.said), Spdy::read(heard));
    assert!(to_far.whole, "half a frame for the far side");
    assert!(to_client.whole, "half a frame for the client");
    match &session.taped {
        // Some of what the client wrote may be dropped, behind the end of a stream.
        Some(taped) => check_spdy_tape(session, protocol, taped, &to_far, &to_client),
        None => assert!(to_far.begins(&from_client), "not what the client wrote"),
    }
    let all = session.is_settled() && session.taped.is_none();
    if all {
        assert_eq!(to_far.frames, from_client.frames, "frames are missing");
    }

    let opened = views::opened(said);
    let errors: Vec<u32> =
        opened.iter().filter(|(_, kind)| kind == Half::Error.name().as_bytes()).map(|(id, _)| *id).collect();
    for id in to_client.streams() {
        if errors.contains(&id) {
            continue;
        }
        let (said, got) = (from_far.on(id), to_client.on(id));
        assert!(said.bytes.starts_with(&got.bytes), "stream {id}: not what the far side wrote");
        assert!(got.stop.is_none() || got.stop == said.stop, "stream {id} was ended by nobody");
    }
    if session.is_settled() && from_far.left().is_none() && from_client.left().is_none() {
        assert_eq!(to_client.controls(), from_far.controls(), "control frames are missing");
        for id in from_far.streams().into_iter().filter(|id| all && !errors.contains(id)) {
            assert_eq!(to_client.on(id).bytes, from_far.on(id).bytes, "stream {id}: bytes are missing");
        }
    }

    // What is said about a stream before it is opened counts for nothing, and would confuse what follows.
    let Some(End::Ended(fate)) = session.end.filter(|_| session.begun) else { return };
    let alone =
        errors.iter().filter(|id| **id == ERROR).count() == 1 && (errors.len() == 1 || protocol.is_none());
    if !alone || from_client.resets(ERROR) > 0 || from_client.left().is_some() {
        return;
    }
    let (said, got) = (from_far.on(ERROR), to_client.on(ERROR));
    match protocol {
        None => {
            let told = !got.bytes.is_empty() || got.stop.is_some();
            assert!(told || from_far.left().is_some(), "the client was told nothing");
        }
        Some(protocol) if protocol.writes_status() => {
            if got.replied && Outcome::parse(protocol, &got.bytes).ok() == Some(Outcome::Success) {
                let silent = got.bytes.is_empty();
                assert!(!silent && said.bytes.starts_with(&got.bytes), "success, by nobody's word");
                assert_eq!(fate, Fate::Whole);
            }
        }
        // The first version resets its error streams when it begins.
        Some(Protocol::V1) => {}
        Some(_) => {
            let silent = got.replied && got.bytes.is_empty();
            assert!(!silent || said.stop.is_some(), "silence, which is success");
        }
    }
}

/// The tape of a session in SPDY against what reached the peers: by the types of the streams that did.
fn check_spdy_tape<L: Link>(
    session: &Session<'_, L>,
    protocol: Option<Protocol>,
    taped: &Taped,
    to_far: &Spdy,
    to_client: &Spdy,
) {
    let opened = views::opened(&session.far.heard);
    let (mut up, mut down) = (Taken::of(to_far), Taken::of(to_client));
    let id = |name: &str| opened.iter().find(|(_, kind)| kind == name.as_bytes()).map(|(id, _)| *id);
    if protocol.is_some() {
        assert_eq!(taped.stdin, up.take(id("stdin")), "stdin on the tape");
        assert_eq!(taped.sizes, up.take(id("resize")), "sizes on the tape");
        assert_eq!(taped.stdout, down.take(id("stdout")), "stdout on the tape");
        assert_eq!(taped.stderr, down.take(id("stderr")), "stderr on the tape");
        assert_eq!(taped.result, down.take(id("error")), "the result on the tape");
        assert_eq!(taped.stdin_ends, usize::from(id("stdin").is_some_and(|id| up.has_ended(id))));
    } else {
        let data = || opened.iter().filter(|(_, kind)| kind == Half::Data.name().as_bytes());
        let (mut sent, mut got) = (0, 0);
        for (id, _) in data() {
            sent += up.take(Some(*id)).len() as u64;
            got += down.take(Some(*id)).len() as u64;
        }
        let moved = session.out.tap.moved();
        assert_eq!((moved.up, moved.down), (sent, got), "what connections carry");
        assert_eq!(moved.connections, data().count() as u64, "connections");
        // Errors are text, on streams that the client opened.
        opened.iter().for_each(|(id, _)| drop(down.take(Some(*id))));
    }
    up.assert_all_taken();
    down.assert_all_taken();
}

fn check_tunnel(session: &Session<'_, Tunnel>) {
    let from_client = Ws::read(ws::Role::Server, &session.client.said);
    let to_client = Ws::read(ws::Role::Client, &session.client.heard);
    to_client.assert_ours();
    let binary = from_client.messages.iter().take_while(|message| message.kind == Kind::Binary);
    let said: Vec<u8> = binary.flat_map(|message| message.bytes.to_vec()).collect();
    check_spdy(session, None, &said, &to_client.payload());
    let code = to_client.close.as_ref().and_then(|close| close.as_ref()).map(|close| close.code);
    match session.end {
        None => assert_eq!(to_client.close, None, "the end was told before it came"),
        Some(End::Ended(Fate::Cut)) => assert_eq!(code, Some(CloseCode::INTERNAL_ERROR)),
        Some(End::Ended(Fate::Whole)) => assert_eq!(code, Some(CloseCode::NORMAL)),
        Some(End::ClientFault) => assert!(code.is_some_and(|code| code != CloseCode::NORMAL)),
        Some(End::Over(_)) => assert!(from_client.close.is_some() && to_client.close.is_some()),
        Some(End::ClientGone) => {}
    }
}

/// `ports` is how many the client has named, and `asked` the streams that it wants, whichever it does.
fn check_ws(
    session: &Session<'_, WsLink>,
    (subprotocol, asked, ports): (Option<Subprotocol>, Asked, usize),
    encoding: Encoding,
) {
    let from_client = Ws::read(ws::Role::Server, &session.client.said);
    let to_client = Ws::read(ws::Role::Client, &session.client.heard);
    let from_far = Ws::read(ws::Role::Client, &session.far.said);
    let to_far = Ws::read(ws::Role::Server, &session.far.heard);
    to_client.assert_ours();
    to_far.assert_ours();
    let is_error = |channel: u8| match subprotocol {
        Some(_) => channel == channel::number(StreamType::Error),
        None => !channel.is_multiple_of(2),
    };
    for (from, to, may_add) in
        [(&from_client, &to_far, false), (&from_far, &to_client, session.end.is_some())]
    {
        let (said, got) = (Channels::read(encoding, from), Channels::read(encoding, to));
        for (channel, bytes) in &got.bytes {
            let (all, added) = (said.on(*channel), may_add && is_error(*channel));
            let same =
                all.starts_with(bytes) || added && bytes.starts_with(&all[..all.len().min(bytes.len())]);
            assert!(same || added && session.end.is_some(), "channel {channel}: not what was written");
        }
        if session.is_settled() && session.taped.is_none() {
            for (channel, len) in &said.settled {
                assert!(got.on(*channel).len() >= *len, "channel {channel}: bytes are missing");
            }
        }
    }
    if let Some(taped) = &session.taped {
        let (up, down) = (Channels::read(encoding, &to_far), Channels::read(encoding, &to_client));
        check_ws_tape(session, (subprotocol, asked, ports), taped, &up, &down);
    }
    if session.end.is_none() {
        assert!(to_client.close.is_none() && to_far.close.is_none(), "the end was told before it came");
        return;
    }
    assert!(to_far.close.is_some(), "the far side was not told of the end");
    if matches!(session.end, Some(End::ClientFault | End::ClientGone)) || from_client.close.is_some() {
        return;
    }
    assert!(to_client.close.is_some(), "the client was not told of the end");
    let Some(version) = subprotocol.map(Subprotocol::version) else { return };
    let result = |ws: &Ws| Channels::read(encoding, ws).on(channel::number(StreamType::Error)).to_vec();
    let (said, got) = (result(&from_far), result(&to_client));
    if views::verdict(version, &to_client, &got) == Some(Outcome::Success) {
        let given = if version.writes_status() { !got.is_empty() } else { from_far.close.is_some() };
        assert!(given && said.starts_with(&got), "success, by nobody's word");
    }
}

/// The tape of a session in WebSocket against what reached the peers, by channel.
fn check_ws_tape(
    session: &Session<'_, WsLink>,
    (subprotocol, asked, ports): (Option<Subprotocol>, Asked, usize),
    taped: &Taped,
    up: &Channels,
    down: &Channels,
) {
    if let Some(subprotocol) = subprotocol {
        up.assert_only(|channel| match channel {
            0 => asked.stdin,
            CLOSE => subprotocol == Subprotocol::V5,
            channel => channel == channel::number(StreamType::Resize),
        });
        down.assert_only(|channel| matches!(channel, 1..=3));
        assert_eq!((&taped.stdin[..], &taped.sizes[..]), (up.on(0), up.on(4)), "input on the tape");
        assert_eq!((&taped.stdout[..], &taped.stderr[..]), (down.on(1), down.on(2)), "output on the tape");
        assert_eq!(taped.result, down.on(3), "the result on the tape");
        return;
    }
    up.assert_only(|channel| channel.is_multiple_of(2) && usize::from(channel / 2) < ports);
    down.assert_only(|channel| usize::from(channel / 2) < ports);
    // The far side names the port in two bytes before it carries anything.
    let carried = |channels: &Channels, named: usize| -> usize {
        let data = channels.bytes.iter().filter(|(channel, _)| channel.is_multiple_of(2));
        data.map(|(_, bytes)| bytes.len().saturating_sub(named)).sum()
    };
    let moved = session.out.tap.moved();
    let passed = [carried(up, 0), carried(down, 2), ports].map(|count| count as u64);
    assert_eq!([moved.up, moved.down, moved.connections], passed, "what connections carry");
}

// === impl Session ===

impl<'a, L: Link> Session<'a, L> {
    fn new(link: L, (client, far): (usize, usize), choices: &mut Choices<'a>, recorded: bool) -> Self {
        let mut session = Self {
            link,
            out: Out::default(),
            cuts: choices.cuts(),
            client: Socket { bound: client, ..Socket::default() },
            far: Socket { bound: far, ..Socket::default() },
            own: OWN,
            begun: false,
            end: None,
            client_leaves: choices.flag(),
            stays: false,
            taped: recorded.then(Taped::default),
        };
        if recorded {
            session.out.tap.record();
        }
        session.link.begin(&mut session.out);
        session
    }

    /// Does what the choices say, then lets everything come through that can.
    fn run(
        &mut self,
        mut choices: Choices<'_>,
        mut client: impl FnMut(&mut Choices<'_>) -> Vec<u8>,
        mut far: impl FnMut(&mut Choices<'_>) -> Vec<u8>,
    ) {
        while !choices.is_empty() && self.end.is_none() {
            match choices.byte() % 16 {
                0..=4 => self.client_writes(&client(&mut choices)),
                5..=10 => self.far_writes(&far(&mut choices)),
                11 => {
                    self.own += OWN_TICK;
                    self.link.tick(&mut self.out);
                }
                12 => self.write_client(choices.word().into()),
                13 => self.write_far(choices.word().into()),
                14 => self.drain(),
                _ if choices.byte() == 0xff => self.finish(),
                _ => {}
            }
            self.assert_bounded();
        }
        while self.end.is_none() && self.pump() {
            self.drain();
        }
        self.drain();
        self.assert_bounded();
    }

    /// Ends it, unless it has ended.
    fn finish(&mut self) {
        if self.end.is_none() {
            self.end = Some(if self.client_leaves {
                End::ClientGone
            } else {
                End::Ended(self.link.end(WHY, &mut self.out))
            });
            self.link.leave(&mut self.out);
        }
        self.drain();
        self.assert_bounded();
    }

    fn client_writes(&mut self, bytes: &[u8]) {
        self.client.unread.extend_from_slice(bytes);
        self.pump();
    }

    fn far_writes(&mut self, bytes: &[u8]) {
        self.far.unread.extend_from_slice(bytes);
        self.pump();
    }

    /// Reads what there is room for, and gives it to the link; false when nothing moved.
    fn pump(&mut self) -> bool {
        let mut moved = false;
        loop {
            let far = self.end.is_none() && !self.out.client.is_full() && self.far.read(&mut self.cuts);
            if far {
                let taken = self.link.far(&mut self.far.input, &mut self.out);
                self.after(taken);
            }
            let client = self.end.is_none()
                && !self.out.far.is_full()
                && self.link.takes_client()
                && self.client.read(&mut self.cuts);
            if client {
                let stuck = self.out.client.len();
                let taken = self.link.client(&mut self.client.input, &mut self.out);
                let told = self.out.client.len() - stuck;
                self.after(taken);
                // Only an end may come behind so much, and it is short.
                assert!(
                    stuck < NO_PONG || self.end.is_some() || told == 0,
                    "{told} bytes for one who reads not"
                );
            }
            if !far && !client {
                return moved;
            }
            moved = true;
        }
    }

    fn after(&mut self, taken: Result<(), Fault>) {
        self.note(taken);
        if self.end.is_some() && !self.stays {
            self.link.leave(&mut self.out);
        }
    }

    fn note(&mut self, taken: Result<(), Fault>) {
        match taken {
            Err(Fault::Client(_)) => self.end = Some(End::ClientFault),
            Err(Fault::Far(_)) => self.end = Some(End::Ended(self.link.end(WHY, &mut self.out))),
            Ok(()) if self.link.is_over() => {
                let queued = (self.out.client.len(), self.out.far.len());
                self.end = Some(End::Over(self.link.end(WHY, &mut self.out)));
                assert_eq!((self.out.client.len(), self.out.far.len()), queued, "it had ended already");
            }
            Ok(()) => {
                assert!(self.far.input.len() < self.far.bound, "{} bytes wait", self.far.input.len());
                assert!(
                    self.client.input.len() < self.client.bound,
                    "{} bytes wait",
                    self.client.input.len()
                );
            }
        }
    }

    fn write_client(&mut self, most: usize) {
        if self.client.write(&mut self.out.client, most) {
            self.link.drained(&mut self.out);
        }
    }

    fn write_far(&mut self, most: usize) {
        if self.far.write(&mut self.out.far, most) {
            self.link.drained(&mut self.out);
        }
    }

    /// Writes out all there is.
    fn drain(&mut self) {
        loop {
            self.write_client(usize::MAX);
            self.write_far(usize::MAX);
            if self.out.client.is_empty() && self.out.far.is_empty() {
                break;
            }
        }
        if let (Some(taped), Some(tape)) = (&mut self.taped, self.out.tap.tape()) {
            taped.read(tape.take().pieces());
            let moved = self.out.tap.moved();
            let lens = [&taped.stdin, &taped.stdout, &taped.stderr].map(|bytes| bytes.len() as u64);
            assert_eq!([moved.stdin, moved.stdout, moved.stderr], lens, "counted, and not written down");
        }
    }

    /// The session lives, and all that was said has been read.
    fn is_settled(&self) -> bool {
        self.end.is_none() && self.client.unread.is_empty() && self.far.unread.is_empty()
    }

    fn assert_bounded(&self) {
        let given = self.client.said.len() + self.far.said.len();
        let queued = self.out.client.len() + self.out.far.len();
        let told = self.client.heard.len() + self.far.heard.len() + queued;
        assert!(told <= GROWTH * given + self.own, "{told} bytes for {given}");
    }
}

// === impl Socket ===

impl Socket {
    /// Reads some of what was written; false when there is nothing.
    fn read(&mut self, cuts: &mut Cuts<'_>) -> bool {
        if self.unread.is_empty() {
            return false;
        }
        let piece = self.unread.split_to(cuts.next_len().min(self.unread.len()).min(READ));
        self.input.extend_from_slice(&piece);
        self.said.extend_from_slice(&piece);
        true
    }

    /// Writes some of what is queued; true when that was the last of it.
    fn write(&mut self, queue: &mut Queue, most: usize) -> bool {
        let mut left = most.min(queue.len());
        while left > 0 {
            let len = queue.chunk().len().min(left);
            self.heard.extend_from_slice(&queue.copy_to_bytes(len));
            left -= len;
        }
        queue.is_empty()
    }
}
