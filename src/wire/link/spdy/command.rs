//! Command: what the streams of an exec or attach carry, and whether their client has had its result.
//!
//! A stream is what its `streamType` says, whatever was asked for: a runtime takes a stdin that comes unasked.
//!
//! What counts as a result, by protocol:
//! - v4 writes a Status. A frame that is one is the result, whatever follows; a Status in several frames is
//!   one when the far side ends the stream, by FIN, RST or GOAWAY. A stream that ends without a byte is a
//!   runtime that died, and an error goes in front of that end.
//! - v1 to v3 write text on failure and nothing on success: text, or the end of the stream, is the result. A
//!   GOAWAY without either is none.
//! - v1 moreover resets the error stream as soon as the set-up is through. From then on nothing can be told,
//!   and the end of all output is the result, or GOAWAY.
//!
//! Source: `protocol.md` 5.2 and 6.4; client-go `tools/remotecommand/{errorstream,v1,v2,v4}.go`.

use bytes::{Bytes, BytesMut};

use super::{Done, LEFT, Refused, Streams, Way, put_last};
use crate::wire::link::{Fate, Runs, Spoken};
use crate::wire::remotecommand::{Outcome, Protocol, StreamType};
use crate::wire::spdy::Headers;
use crate::wire::tap::Tap;

/// Streams with output of the command: what a v1 client opens besides the error stream and stdin.
const OUTPUTS: usize = 2;

/// The streams of a command.
#[derive(Debug)]
pub(super) struct Command {
    protocol: Protocol,
    /// Where the client waits for a result; `None` once either side has ended it.
    error: Option<ErrorStream>,
    result: Progress,
    /// Output streams that the far side has not ended; followed in v1 only.
    outputs: [Option<u32>; OUTPUTS],
    /// What the streams are: one of each type, the last.
    channels: Vec<Channel>,
    runs: Runs,
    /// The far side has written to the error stream, or said GOAWAY: it does so when the program has ended.
    ended: bool,
}

/// A stream of a known type. It stays known when it has ended: what still comes on it is not that of another.
#[derive(Clone, Copy, Debug)]
struct Channel {
    id: u32,
    kind: StreamType,
    accepted: bool,
    client: Option<Done>,
    far: Option<Done>,
}

#[derive(Clone, Copy, Debug)]
struct ErrorStream {
    id: u32,
    accepted: bool,
}

/// How far the result has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Awaited,
    /// Some bytes of it.
    Begun,
    /// All of it, or nobody waits for more.
    Given,
    /// There will be none.
    Lost,
}

// === impl Command ===

impl Command {
    pub(super) fn new(protocol: Protocol, runs: Runs) -> Self {
        let (result, channels) = (Progress::Awaited, Vec::new());
        Self { protocol, error: None, result, outputs: [None; OUTPUTS], channels, runs, ended: false }
    }

    fn of_type(&self, kind: StreamType) -> Option<&Channel> {
        self.channels.iter().find(|channel| channel.kind == kind)
    }

    /// Whether a program runs that the client must not take podgate's last word from.
    fn is_left_behind(&self) -> bool {
        self.runs.own() && !self.is_done()
    }

    fn channel(&mut self, id: u32) -> Option<&mut Channel> {
        self.channels.iter_mut().find(|channel| channel.id == id)
    }

    fn error(&mut self, id: u32) -> Option<&mut ErrorStream> {
        self.error.as_mut().filter(|error| error.id == id)
    }

    /// The far side has said all it will on the error stream.
    fn settle(&mut self) {
        match self.result {
            Progress::Begun => self.result = Progress::Given,
            Progress::Awaited if self.protocol == Protocol::V1 => {}
            Progress::Awaited if !self.protocol.writes_status() => self.result = Progress::Given,
            Progress::Awaited => self.result = Progress::Lost,
            Progress::Given | Progress::Lost => {}
        }
    }

    /// Takes an output stream off the list; true when it was the last.
    fn end_output(&mut self, id: u32) -> bool {
        let Some(output) = self.outputs.iter_mut().find(|output| **output == Some(id)) else {
            return false;
        };
        *output = None;
        self.outputs == [None; OUTPUTS]
    }

    fn failure(&self, why: &str) -> Bytes {
        Outcome::Internal { text: why.to_owned() }.to_bytes(self.protocol)
    }
}

impl Streams for Command {
    fn opened(&mut self, id: u32, headers: &Headers, fin: bool, tap: &mut Tap) -> Result<(), Refused> {
        let kind = headers.get(StreamType::HEADER).and_then(StreamType::from_name);
        if tap.is_recording() {
            if kind.is_none() || headers.values(StreamType::HEADER).count() > 1 {
                return Err(Refused::Unclear("its client opens a stream of no known type"));
            }
            if self.channels.iter().any(|channel| Some(channel.kind) == kind) {
                return Err(Refused::Unclear("its client opens two streams of one type"));
            }
        }
        if let Some(kind) = kind {
            self.channels.retain(|channel| channel.kind != kind);
            self.channels.push(Channel { id, kind, accepted: false, client: None, far: None });
            if fin {
                self.client_done(id, Done::Fin, tap);
            }
        }
        match kind {
            // Of several, a server takes the last.
            Some(StreamType::Error) if self.result == Progress::Awaited => {
                self.error = Some(ErrorStream { id, accepted: false });
            }
            Some(StreamType::Stdout | StreamType::Stderr) if self.protocol == Protocol::V1 => {
                if let Some(free) = self.outputs.iter_mut().find(|output| output.is_none()) {
                    *free = Some(id);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn watched(&self) -> Option<u32> {
        self.error.map(|error| error.id)
    }

    fn client_data(&mut self, id: u32, payload: &[u8], fin: bool, tap: &mut Tap) -> Result<bool, Refused> {
        let recording = tap.is_recording();
        let Some(channel) = self.channel(id) else {
            return match recording {
                true if payload.is_empty() => Ok(false),
                true => Err(Refused::Unclear("its client writes on a stream that it has not opened")),
                false => Ok(true),
            };
        };
        let (kind, is_input) = (channel.kind, matches!(channel.kind, StreamType::Stdin | StreamType::Resize));
        if recording {
            if channel.client.is_some() || channel.far == Some(Done::Reset) {
                return Ok(false);
            }
            if !is_input && !payload.is_empty() {
                return Err(Refused::Unclear("its client writes on a stream that it is to read"));
            }
            if is_input && !channel.accepted && (fin || !payload.is_empty()) {
                return Err(Refused::Unclear("its client writes on a stream before that is open"));
            }
        }
        if is_input {
            tap.pass(kind, payload);
        }
        Ok(true)
    }

    fn client_done(&mut self, id: u32, done: Done, tap: &mut Tap) {
        if let Some(channel) = self.channel(id) {
            let before = channel.client.replace(done);
            if channel.kind == StreamType::Stdin && before.is_none() {
                tap.stdin_ended();
            }
        }
        if done == Done::Reset {
            self.error.take_if(|error| error.id == id);
            self.end_output(id);
        }
    }

    fn is_activity(&self, id: u32) -> bool {
        self.of_type(StreamType::Resize).is_none_or(|sizes| sizes.id != id)
    }

    fn reset_goes(&self, id: u32) -> Way {
        let is = |kind| self.of_type(kind).is_some_and(|channel| channel.id == id);
        match self.is_left_behind() {
            true if is(StreamType::Error) => Way::Last,
            true if is(StreamType::Stdin) && self.runs.tty() => Way::Here,
            _ => Way::On,
        }
    }

    fn goaway_goes(&self) -> Way {
        if self.is_left_behind() { Way::Last } else { Way::On }
    }

    fn client_left(&mut self, _tap: &mut Tap) {
        if matches!(self.result, Progress::Awaited | Progress::Begun) {
            self.result = Progress::Given;
        }
    }

    fn accepted(&mut self, id: u32) {
        if let Some(channel) = self.channel(id) {
            channel.accepted = true;
        }
        if let Some(error) = self.error(id) {
            error.accepted = true;
        }
    }

    fn far_data(&mut self, id: u32, payload: &[u8], tap: &mut Tap) -> Result<bool, Refused> {
        let recording = tap.is_recording();
        match self.channel(id) {
            Some(channel) => {
                let (kind, is_input) =
                    (channel.kind, matches!(channel.kind, StreamType::Stdin | StreamType::Resize));
                if recording && (channel.far.is_some() || channel.client == Some(Done::Reset)) {
                    return Ok(false);
                }
                if recording && !payload.is_empty() && (is_input || !channel.accepted) {
                    return Err(Refused::Unclear("the far side writes on a stream that is not for it"));
                }
                if !is_input {
                    tap.pass(kind, payload);
                }
                self.ended |= kind == StreamType::Error && !payload.is_empty();
            }
            None if recording && !payload.is_empty() => {
                return Err(Refused::Unclear("the far side writes on a stream that is not there"));
            }
            None => {}
        }
        if self.watched() == Some(id) && !payload.is_empty() {
            self.result = match self.result {
                Progress::Awaited if Outcome::parse(self.protocol, payload).is_ok() => Progress::Given,
                Progress::Awaited => Progress::Begun,
                other => other,
            };
        }
        Ok(true)
    }

    fn far_done(&mut self, id: u32, done: Done, tap: &mut Tap) -> Option<Bytes> {
        if let Some(channel) = self.channel(id) {
            channel.far = Some(done);
        }
        if self.end_output(id) && self.result == Progress::Awaited {
            self.result = Progress::Given;
        }
        let error = self.error.take_if(|error| error.id == id)?;
        let awaited = self.result == Progress::Awaited;
        self.settle();
        let lost = awaited && self.result == Progress::Lost && error.accepted;
        lost.then(|| {
            let text = self.failure(LEFT);
            tap.pass(StreamType::Error, &text);
            text
        })
    }

    fn far_left(&mut self, _orderly: bool) {
        self.ended = true;
        match self.result {
            Progress::Begun => self.result = Progress::Given,
            Progress::Awaited if self.protocol == Protocol::V1 => self.result = Progress::Given,
            _ => {}
        }
    }

    fn tell(&mut self, why: &str, out: &mut BytesMut, tap: &mut Tap) {
        let text = match self.result {
            Progress::Awaited => self.failure(why),
            // Half a Status is an error to any client. More would not make it clearer.
            Progress::Begun => Bytes::new(),
            Progress::Given | Progress::Lost => return,
        };
        self.result = Progress::Lost;
        if let Some(error) = self.error.take() {
            if error.accepted {
                tap.pass(StreamType::Error, &text);
            }
            put_last(out, error.id, error.accepted, &text);
        }
    }

    fn has_result(&self) -> bool {
        self.result == Progress::Given
    }

    fn fate(&self) -> Fate {
        if self.has_result() { Fate::Whole } else { Fate::Cut }
    }

    /// A server begins once all streams are there, which it may have said already and nobody read; and ends all of them
    /// when the program has ended, if it does not say so before.
    fn is_done(&self) -> bool {
        let output = |channel: &&Channel| !matches!(channel.kind, StreamType::Stdin | StreamType::Resize);
        let begun = !self.channels.is_empty();
        !begun || self.ended || self.channels.iter().filter(output).all(|channel| channel.far.is_some())
    }

    fn stdin(&mut self, fin: bool) -> Result<u32, Spoken> {
        let open = |channel: &&mut Channel| channel.kind == StreamType::Stdin && channel.client.is_none();
        let v1 = self.protocol == Protocol::V1;
        let stdin = self.channels.iter_mut().find(open).ok_or(Spoken::No)?;
        // A server of v1 ends its own side of stdin at once, and reads on.
        if stdin.far.is_some_and(|done| done == Done::Reset || !v1) {
            return Err(Spoken::No);
        }
        if !stdin.accepted {
            return Err(Spoken::NotYet);
        }
        if fin {
            stdin.client = Some(Done::Fin);
        }
        Ok(stdin.id)
    }

    fn terminal(&self) -> Option<u32> {
        let stdout = self.of_type(StreamType::Stdout).filter(|_| self.runs.tty() && !self.has_result())?;
        let open = stdout.accepted && stdout.far.is_none() && stdout.client != Some(Done::Reset);
        open.then_some(stdout.id)
    }
}
