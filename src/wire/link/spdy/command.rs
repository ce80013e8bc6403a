//! Command: whether the client of an exec or attach has had its result.
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

use super::{Done, LEFT, Streams, forward, put_last};
use crate::wire::link::Fate;
use crate::wire::remotecommand::{Outcome, Protocol, StreamType};
use crate::wire::spdy::Headers;

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
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, error: None, result: Progress::Awaited, outputs: [None; OUTPUTS] }
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
    fn opened(&mut self, id: u32, headers: &Headers, _fin: bool) -> Result<(), forward::TooMany> {
        match headers.get(StreamType::HEADER).and_then(StreamType::from_name) {
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

    fn client_done(&mut self, id: u32, done: Done) {
        if done == Done::Reset {
            self.error.take_if(|error| error.id == id);
            self.end_output(id);
        }
    }

    fn client_left(&mut self) {
        if matches!(self.result, Progress::Awaited | Progress::Begun) {
            self.result = Progress::Given;
        }
    }

    fn accepted(&mut self, id: u32) {
        if let Some(error) = self.error(id) {
            error.accepted = true;
        }
    }

    fn far_data(&mut self, payload: &[u8]) {
        if payload.is_empty() {
            return;
        }
        self.result = match self.result {
            Progress::Awaited if Outcome::parse(self.protocol, payload).is_ok() => Progress::Given,
            Progress::Awaited => Progress::Begun,
            other => other,
        };
    }

    fn far_done(&mut self, id: u32, _done: Done) -> Option<Bytes> {
        if self.end_output(id) && self.result == Progress::Awaited {
            self.result = Progress::Given;
        }
        let error = self.error.take_if(|error| error.id == id)?;
        let awaited = self.result == Progress::Awaited;
        self.settle();
        let lost = awaited && self.result == Progress::Lost && error.accepted;
        lost.then(|| self.failure(LEFT))
    }

    fn far_left(&mut self, _orderly: bool) {
        match self.result {
            Progress::Begun => self.result = Progress::Given,
            Progress::Awaited if self.protocol == Protocol::V1 => self.result = Progress::Given,
            _ => {}
        }
    }

    fn tell(&mut self, why: &str, out: &mut BytesMut) {
        let text = match self.result {
            Progress::Awaited => self.failure(why),
            // Half a Status is an error to any client. More would not make it clearer.
            Progress::Begun => Bytes::new(),
            Progress::Given | Progress::Lost => return,
        };
        self.result = Progress::Lost;
        if let Some(error) = self.error.take() {
            put_last(out, error.id, error.accepted, &text);
        }
    }

    fn has_result(&self) -> bool {
        self.result == Progress::Given
    }

    fn fate(&self) -> Fate {
        if self.has_result() { Fate::Whole } else { Fate::Cut }
    }
}
