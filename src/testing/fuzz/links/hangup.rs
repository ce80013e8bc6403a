//! What podgate says itself: notices in a terminal while the session goes on, and what a program is told that its client
//! has left behind. Whatever both sides say before and meanwhile, a notice stands between frames and on the tape as
//! podgate's own; what is typed comes behind what the client had typed, and nothing behind the end of stdin; and the
//! client is told nothing of it.

use super::peers::{SpdyPeer, WsPeer};
use super::views::{self, Channels, Spdy, Ws};
use super::{End, SUBPROTOCOLS, Session};
use crate::testing::fuzz::Choices;
use crate::wire::channel::{self, Encoding};
use crate::wire::link::spdy::SpdyLink;
use crate::wire::link::translate::Translator;
use crate::wire::link::ws::WsLink;
use crate::wire::link::{HangUp, Link, Runs, Spoken};
use crate::wire::remotecommand::{Asked, Protocol, StreamType};
use crate::wire::spdy;
use crate::wire::ws::{self, MaskKey};

/// What the terminal is told.
const NOTICE: &str = "\r\npodgate: held to 1 MiB/s by rule p/a\r\n";

/// Whiles of a session, with a notice behind each.
const WHILES: usize = 3;

const STEPS: [HangUp; 3] = [HangUp::Interrupt, HangUp::EndOfFile, HangUp::EndOfStdin];

/// Reads something of what the client got and what the far side got.
type ReadBoth<'a> = &'a dyn Fn(&[u8], &[u8]) -> Vec<u8>;

/// How what the peers got is read.
struct Read<'a> {
    /// What the far side got on stdin.
    stdin: &'a dyn Fn(&[u8]) -> Vec<u8>,
    /// What the client got on stdout, of this and of what the far side got.
    stdout: ReadBoth<'a>,
    /// Whether the far side got no half frame.
    whole: &'a dyn Fn(&[u8]) -> bool,
}

/// A command whose client leaves, over each link.
pub fn hang_up(data: &[u8]) {
    for recorded in [false, true] {
        let mut choices = Choices(data);
        let tty = choices.flag();
        match choices.byte() % 3 {
            0 => over_spdy(choices, tty, recorded),
            1 => over_both(choices, tty, recorded),
            _ => over_websocket(choices, tty, recorded),
        }
    }
}

fn over_spdy(mut choices: Choices<'_>, tty: bool, recorded: bool) {
    const KINDS: &[&str] = &["error", "stdin", "stdout"];
    let protocol = choices.pick(&[Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1]);
    let link = SpdyLink::command(protocol, Runs::Exec { tty });
    let (mut client, mut far) = (SpdyPeer::new(), SpdyPeer::new());
    let mut session = Session::new(link, (spdy::MAX_HELD + 1, spdy::MAX_HELD + 1), &mut choices, recorded);
    if choices.flag() {
        session.client_writes(&client.opens(KINDS));
        if choices.flag() {
            session.far_writes(&far.replies(KINDS.len()));
        }
    }
    let read = Read {
        stdin: &|to_far| on(to_far, to_far, "stdin"),
        stdout: &|to_client, to_far| on(to_client, to_far, "stdout"),
        whole: &|to_far| Spdy::read(to_far).whole,
    };
    check(session, choices, tty, |choices| client.write(choices), |choices| far.write(choices), &read);
}

/// Bytes of the stream of this type, of which the last counts that was opened.
fn on(bytes: &[u8], to_far: &[u8], kind: &str) -> Vec<u8> {
    let opened = views::opened(to_far);
    let id = opened.iter().rev().find(|(_, name)| name == kind.as_bytes()).map(|(id, _)| *id);
    id.map(|id| Spdy::read(bytes).on(id).bytes).unwrap_or_default()
}

fn over_both(mut choices: Choices<'_>, tty: bool, recorded: bool) {
    let subprotocol = choices.pick(&SUBPROTOCOLS);
    let asked = Asked { stdin: true, stdout: true, stderr: false, tty };
    let protocol = choices.pick(&[Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1]);
    let (mut client, mut far) = (WsPeer::client(subprotocol.encoding()), SpdyPeer::new());
    let link = Translator::new(subprotocol, asked, protocol);
    let mut session = Session::new(link, (ws::MAX_BUFFERED, spdy::MAX_BUFFERED), &mut choices, recorded);
    if choices.flag() {
        session.far_writes(&far.replies(asked.streams(protocol).len()));
    }
    let read = Read {
        stdin: &|to_far| on(to_far, to_far, "stdin"),
        stdout: &|to_client, _| from_server(to_client, subprotocol.encoding()),
        whole: &|to_far| Spdy::read(to_far).whole,
    };
    check(session, choices, tty, |choices| client.write(choices), |choices| far.write(choices), &read);
}

fn over_websocket(mut choices: Choices<'_>, tty: bool, recorded: bool) {
    const KEY: fn() -> MaskKey = || MaskKey([1, 2, 3, 4]);
    let subprotocol = choices.pick(&SUBPROTOCOLS);
    let (asked, encoding) = (Asked { stdin: true, stdout: true, stderr: false, tty }, subprotocol.encoding());
    let (mut client, mut far) = (WsPeer::client(encoding), WsPeer::server(encoding));
    let link = WsLink::command(subprotocol, asked, KEY);
    let session = Session::new(link, (ws::MAX_BUFFERED, ws::MAX_BUFFERED), &mut choices, recorded);
    let stdin = |bytes: &[u8]| {
        let to_far = Ws::read(ws::Role::Server, bytes);
        Channels::read(encoding, &to_far).on(channel::number(StreamType::Stdin)).to_vec()
    };
    let whole = |bytes: &[u8]| {
        Ws::read(ws::Role::Server, bytes).assert_ours();
        true
    };
    let read =
        Read { stdin: &stdin, stdout: &|to_client, _| from_server(to_client, encoding), whole: &whole };
    check(session, choices, tty, |choices| client.write(choices), |choices| far.write(choices), &read);
}

/// What a client of a WebSocket got on stdout, in messages that are whole.
fn from_server(bytes: &[u8], encoding: Encoding) -> Vec<u8> {
    let to_client = Ws::read(ws::Role::Client, bytes);
    to_client.assert_ours();
    Channels::read(encoding, &to_client).on(channel::number(StreamType::Stdout)).to_vec()
}

fn check<L: Link>(
    mut session: Session<'_, L>,
    mut choices: Choices<'_>,
    tty: bool,
    mut client: impl FnMut(&mut Choices<'_>) -> Vec<u8>,
    mut far: impl FnMut(&mut Choices<'_>) -> Vec<u8>,
    read: &Read<'_>,
) {
    session.stays = true;
    let mut told = 0;
    for _ in 0..WHILES {
        session.run(Choices(choices.bytes()), &mut client, &mut far);
        if session.end.is_none() {
            session.own += 3 * NOTICE.len();
            let queued = session.out.client.len();
            session.link.announce(NOTICE, &mut session.out);
            told += usize::from(session.out.client.len() > queued) * NOTICE.len();
            session.drain();
        }
    }
    assert!(tty || told == 0, "told in the output of a program");
    if let Some(taped) = &session.taped {
        assert_eq!(taped.told.len(), told, "what was told is on the tape");
        let heard = (read.stdout)(&session.client.heard, &session.far.heard);
        assert_eq!(heard.len(), taped.stdout.len() + told, "stdout");
    }
    session.end.get_or_insert(End::ClientGone);
    let (before, for_client) = ((read.stdin)(&session.far.heard), session.out.client.len());
    let (mut keys, mut ended, mut deaf) = (Vec::new(), false, false);
    while !choices.is_empty() && !session.link.is_done() {
        match choices.byte() % 8 {
            step @ 0..=2 => {
                let step = STEPS[usize::from(step)];
                if session.link.hang_up(step, &mut session.out) == Spoken::Yes {
                    assert!(!ended, "said behind the end of stdin");
                    keys.extend_from_slice(step.key());
                    ended = step == HangUp::EndOfStdin;
                }
            }
            _ if deaf => {}
            _ => {
                session.far.input.extend_from_slice(&far(&mut choices));
                deaf = session.link.hear_last(&mut session.far.input).is_err();
            }
        }
        session.far.write(&mut session.out.far, usize::MAX);
    }
    assert_eq!(session.out.client.len(), for_client, "the client was told something");
    assert_eq!((read.stdin)(&session.far.heard), [before, keys].concat(), "what is typed");
    session.link.leave(&mut session.out);
    session.far.write(&mut session.out.far, usize::MAX);
    assert!((read.whole)(&session.far.heard), "half a frame for the far side");
}
