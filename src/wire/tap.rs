//! Tap: reads what a link passes, and changes nothing of it.
//!
//! Every [`Link`](super::link::Link) tells the tap in its [`Out`](super::link::Out) what of each channel it hands to
//! the other side, in the same call. It counts always; where the session is recorded it also writes a [`Tape`].
//! Invariants: what it was told and what the peers were sent are the same bytes in the same order on each channel;
//! off, it copies nothing but the result, which is bounded.
//!
//! What a link told is what it has handed on, whoever wrote it: an error that podgate puts on the error stream is the
//! session's result if it reaches the client, and is told as such. What it dropped was not told.
//!
//! Where there is a tape nothing may pass that is not on it, so a link is stricter then. What a peer of upstream would
//! drop is dropped by the link, and what servers might take for different things ends the session as a
//! [`Fault`](super::link::Fault) before it is handed on. Without a tape all of this passes, and is counted as far as it
//! can be told apart.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::portforward::Half;
use super::remotecommand::{MAX_RESULT, Outcome, Protocol, StreamType};
use super::tape::{Connection, Kind, Tape};

/// Most bytes of what a far side says against a connection that go into the recording.
const MAX_ERROR: usize = 1024;

/// What of a session has passed.
#[derive(Debug, Default)]
pub struct Tap {
    moved: Moved,
    result: Vec<u8>,
    /// Connections of a port-forward that are open, by what the link calls them; bounded by the link.
    open: BTreeMap<u32, Open>,
    tape: Option<Tape>,
    listener: Option<Arc<dyn Listener>>,
}

/// Somebody who is told what passes, while that goes on; it may neither wait nor fail.
pub trait Listener: std::fmt::Debug + Send + Sync {
    /// Whether it wants to hear anything now.
    fn listens(&self) -> bool;

    /// Bytes of this kind have passed.
    fn hear(&self, kind: Kind, bytes: &[u8]);
}

/// Bytes by channel, and connections; the payload, without any frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Moved {
    /// To the program.
    pub stdin: u64,
    /// From the program.
    pub stdout: u64,
    /// Its second output.
    pub stderr: u64,
    /// Connections of a port-forward that were opened.
    pub connections: u64,
    /// Bytes to the pod on all of them.
    pub up: u64,
    /// Bytes from the pod on all of them.
    pub down: u64,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the client to the pod.
    Up,
    /// From the pod to the client.
    Down,
}

#[derive(Debug)]
struct Open {
    /// As [`Connection`] numbers it.
    number: u32,
    port: u16,
    up: u64,
    down: u64,
    error: Vec<u8>,
}

// === impl Tap ===

impl Tap {
    /// From now on everything is also written down. To be called before the link begins: what it saw before it knows
    /// nothing of.
    pub fn record(&mut self) {
        self.tape.get_or_insert_default();
    }

    /// From now on this listener is told as well.
    pub fn tell(&mut self, listener: Arc<dyn Listener>) {
        self.listener = Some(listener);
    }

    /// Whether everything is written down, and nothing may pass unseen.
    pub fn is_recording(&self) -> bool {
        self.tape.is_some()
    }

    /// Bytes of a channel of an exec or attach that go on.
    pub fn pass(&mut self, channel: StreamType, bytes: &[u8]) {
        let (count, kind) = match channel {
            StreamType::Stdin => (Some(&mut self.moved.stdin), Kind::Stdin),
            StreamType::Stdout => (Some(&mut self.moved.stdout), Kind::Stdout),
            StreamType::Stderr => (Some(&mut self.moved.stderr), Kind::Stderr),
            StreamType::Resize => (None, Kind::Resize),
            StreamType::Error => {
                // One byte too many shows that it is too long.
                let room = MAX_RESULT + 1 - self.result.len();
                self.result.extend_from_slice(&bytes[..bytes.len().min(room)]);
                (None, Kind::Result)
            }
        };
        if let Some(count) = count {
            *count += bytes.len() as u64;
        }
        self.put(kind, bytes);
    }

    /// The client has ended stdin, and this goes on.
    pub fn stdin_ended(&mut self) {
        if let Some(tape) = &mut self.tape {
            tape.put(Kind::StdinEnd, &[]);
        }
    }

    /// Keys that podgate types itself. They are nobody's stdin, and do not count as such.
    pub fn typed(&mut self, keys: &[u8]) {
        if let Some(tape) = &mut self.tape {
            tape.put(Kind::Typed, keys);
        }
    }

    /// What podgate writes to the client's terminal itself.
    pub fn told(&mut self, text: &[u8]) {
        if let Some(tape) = &mut self.tape {
            tape.put(Kind::Told, text);
        }
    }

    /// A connection of a port-forward begins. `id` is the link's; one that is open already is not opened again.
    pub fn connect(&mut self, id: u32, port: u16) {
        if self.open.contains_key(&id) {
            return;
        }
        self.moved.connections += 1;
        let number = u32::try_from(self.moved.connections).unwrap_or(u32::MAX);
        let open = Open { number, port, up: 0, down: 0, error: Vec::new() };
        if self.is_heard() {
            self.put(Kind::Connection, &open.to_json(true));
        }
        self.open.insert(id, open);
    }

    /// Bytes of a connection that go on. Those of its error half are not counted: they are podgate's record of what
    /// went wrong.
    pub fn carry(&mut self, id: u32, half: Half, way: Way, bytes: &[u8]) {
        let (len, open) = (bytes.len() as u64, self.open.get_mut(&id));
        match (half, way) {
            (Half::Data, Way::Up) => {
                self.moved.up += len;
                if let Some(open) = open {
                    open.up += len;
                }
            }
            (Half::Data, Way::Down) => {
                self.moved.down += len;
                if let Some(open) = open {
                    open.down += len;
                }
            }
            (Half::Error, Way::Down) => {
                if let Some(open) = open {
                    let room = MAX_ERROR - open.error.len();
                    open.error.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
            }
            (Half::Error, Way::Up) => {}
        }
    }

    /// A connection is over.
    pub fn disconnect(&mut self, id: u32) {
        if let Some(open) = self.open.remove(&id).filter(|_| self.is_heard()) {
            self.put(Kind::Connection, &open.to_json(false));
        }
    }

    fn is_heard(&self) -> bool {
        self.tape.is_some() || self.listener.as_ref().is_some_and(|listener| listener.listens())
    }

    fn put(&mut self, kind: Kind, bytes: &[u8]) {
        if let Some(tape) = &mut self.tape {
            tape.put(kind, bytes);
        }
        if let Some(listener) = self.listener.as_ref().filter(|listener| listener.listens()) {
            listener.hear(kind, bytes);
        }
    }

    /// The session is over: so are the connections that were open.
    pub fn end(&mut self) {
        while let Some((&id, _)) = self.open.first_key_value() {
            self.disconnect(id);
        }
    }

    /// Bytes so far.
    pub fn moved(&self) -> Moved {
        self.moved
    }

    /// What the far side wrote as its result: all of it, or one byte more than [`MAX_RESULT`].
    pub fn result(&self) -> &[u8] {
        &self.result
    }

    /// The exit code, where the result says it: 0 for a success. Before v4 results are text, and say none.
    pub fn exit_code(&self) -> Option<u8> {
        if self.result.is_empty() {
            return None;
        }
        match Outcome::parse(Protocol::V4, &self.result) {
            Ok(Outcome::Success) => Some(0),
            Ok(Outcome::Exit { code, .. }) => Some(code),
            Ok(Outcome::Internal { .. } | Outcome::Other { .. }) | Err(_) => None,
        }
    }

    /// What is written down, where that is wanted.
    pub fn tape(&mut self) -> Option<&mut Tape> {
        self.tape.as_mut()
    }
}

// === impl Open ===

impl Open {
    fn to_json(&self, open: bool) -> Vec<u8> {
        let Self { number, port, up, down, ref error } = *self;
        let error = String::from_utf8_lossy(error).into_owned();
        let event = Connection { connection: number, port, open, up, down, error };
        serde_json::to_vec(&event).expect("numbers and text are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tape;
    use bytes::Bytes;

    #[test]
    fn a_tap_that_is_off_counts_and_keeps_nothing_but_the_result() {
        let mut tap = Tap::default();
        tap.pass(StreamType::Stdout, &[1; 70_000]);
        tap.pass(StreamType::Error, &vec![b'x'; MAX_RESULT + 9]);
        tap.pass(StreamType::Error, b"y");
        assert_eq!(tap.moved(), Moved { stdout: 70_000, ..Moved::default() });
        assert_eq!(tap.result().len(), MAX_RESULT + 1);
        assert!(tap.tape().is_none());
    }

    #[test]
    fn an_exit_code_is_what_a_status_says() {
        for (result, code) in [
            (Outcome::Success.to_bytes(Protocol::V4), Some(0)),
            (Outcome::exit(3).to_bytes(Protocol::V4), Some(3)),
            (Outcome::exit(3).to_bytes(Protocol::V1), None),
            (Outcome::exec_failed("no").to_bytes(Protocol::V4), None),
            (Bytes::new(), None),
        ] {
            let mut tap = Tap::default();
            tap.pass(StreamType::Error, &result);
            assert_eq!(tap.exit_code(), code, "{result:?}");
        }
    }

    #[test]
    fn connections_are_written_down_with_their_bytes_and_no_content() {
        let mut tap = Tap::default();
        tap.record();
        tap.connect(3, 80);
        tap.connect(3, 80);
        tap.carry(3, Half::Data, Way::Up, b"GET secret");
        tap.carry(3, Half::Data, Way::Down, b"200");
        tap.carry(3, Half::Error, Way::Down, b"refused");
        tap.end();
        let bytes = tap.tape().unwrap().take().content();
        assert!(!bytes.windows(6).any(|part| part == b"secret"));
        let (mut rest, mut events) = (&bytes[..], Vec::new());
        while let Some(piece) = tape::next(&mut rest).unwrap() {
            events.push(serde_json::from_slice::<Connection>(piece.bytes).unwrap());
        }
        let opened = Connection { connection: 1, port: 80, open: true, up: 0, down: 0, error: String::new() };
        let closed = Connection { open: false, up: 10, down: 3, error: "refused".into(), ..opened.clone() };
        assert_eq!(events, [opened, closed]);
        assert_eq!(tap.moved(), Moved { connections: 1, up: 10, down: 3, ..Moved::default() });
    }
}
