//! Remotecommand: what the streams of an exec or attach carry, whatever the framing below.
//!
//! Owns the five protocol versions and their negotiation over SPDY ([`negotiate`]), the streams of a
//! session ([`StreamType`], [`StreamSet`]), the result on the error stream ([`Outcome`]) and terminal sizes
//! ([`ResizeDecoder`]).
//! Invariants: results are the byte forms of Go's `encoding/json`, since clients of ten versions parse
//! them; an exit code is always 0 to 255; bad resize bytes end resizing and nothing else.
//! Bounds: [`MAX_RESULT`] bytes of error stream, [`MAX_RESIZE`] bytes of one terminal size.
//! Source: apimachinery `pkg/util/remotecommand/constants.go` and `pkg/util/httpstream/httpstream.go`;
//! kubelet `pkg/cri/streaming/remotecommand`; client-go `tools/remotecommand/{errorstream,v2,v3,v4}.go`.

#[cfg(test)]
mod tests;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess};
use std::fmt;

use crate::status::go_json_string;

/// Request header that lists the protocols a client speaks, and response header that names the chosen one.
pub const PROTOCOL_HEADER: &str = "X-Stream-Protocol-Version";

/// Response header of a refused negotiation, one line for each protocol of the server.
pub const ACCEPTED_HEADER: &str = "X-Accepted-Stream-Protocol-Versions";

/// Most bytes of an error stream that are read as a result: a Status is some 400 bytes and twice the
/// runtime's message. Beyond it the result is an error of the protocol.
pub const MAX_RESULT: usize = 64 * 1024;

/// Most bytes of one terminal size, from `{` to `}`. Known clients send some 30. Beyond it resizing ends.
pub const MAX_RESIZE: usize = 1024;

const EXIT_PREFIX: &str = "command terminated with non-zero exit code: ";
const INTERNAL_PREFIX: &str = "Internal error occurred: ";
const EXEC_PREFIX: &str = "error executing command in container: ";
const ATTACH_PREFIX: &str = "error attaching to container: ";

const NON_ZERO_EXIT_CODE: &str = "NonZeroExitCode";
const INTERNAL_ERROR: &str = "InternalError";
const EXIT_CODE: &str = "ExitCode";

/// Why the bytes of an error stream are no result. The texts after the colon are client-go's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More than [`MAX_RESULT`] bytes.
    #[error("error stream protocol error: result is over {MAX_RESULT} bytes")]
    TooLarge,
    /// Not a Status.
    #[error("error stream protocol error: result is not a Status")]
    NotStatus(#[source] serde_json::Error),
    /// A Status that is neither success nor failure.
    #[error("error stream protocol error: unknown error")]
    UnknownStatus,
    /// A non-zero exit without details.
    #[error("error stream protocol error: details must be set")]
    NoDetails,
    /// A non-zero exit whose details do not have the code.
    #[error("error stream protocol error: no {EXIT_CODE} cause given")]
    NoExitCode,
    /// An exit code that is not decimal, or over 255.
    #[error("error stream protocol error: invalid exit code value {0:?}")]
    ExitCode(String),
}

/// A version of the remotecommand protocol, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// The first; its name has no version.
    V1,
    /// The client waits for all output before it ends.
    V2,
    /// Adds the resize stream.
    V3,
    /// Writes results as a Status.
    V4,
    /// Adds the closing of single channels; spoken over WebSocket only.
    V5,
}

/// How a negotiation over SPDY ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// The protocol to be named in the 101.
    Chosen(Protocol),
    /// Nothing in common: 403, with [`no_common_body`] and a line of [`ACCEPTED_HEADER`] for each of our
    /// protocols.
    NoCommon {
        /// What the client asked for, in its order.
        client: Vec<String>,
    },
    /// No header line at all: 400, with [`missing_body`].
    Missing,
}

/// One of the streams of a session, by what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamType {
    /// The result, once, at the end.
    Error,
    /// To the process.
    Stdin,
    /// From the process.
    Stdout,
    /// From the process, never with a terminal.
    Stderr,
    /// Terminal sizes, to the process.
    Resize,
}

/// The streams that a caller asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Wants to write to the process.
    pub stdin: bool,
    /// Wants its output.
    pub stdout: bool,
    /// Wants its errors; without effect with a terminal.
    pub stderr: bool,
    /// Wants a terminal.
    pub tty: bool,
}

/// A set of stream types; iterates in the order in which clients open them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamSet(u8);

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or the end of an attach.
    Success,
    /// Any other exit code.
    Exit {
        /// The code; 0 only when a peer claims a non-zero exit with code 0.
        code: u8,
        /// What the runtime says about it; see [`Outcome::exit`] for ours.
        text: String,
    },
    /// The command could not be run or watched.
    Internal {
        /// Why, without `Internal error occurred: `.
        text: String,
    },
    /// Any other failure, from a peer: a whole message. In v1 to v3 every failure is this one.
    Other {
        /// The message.
        message: String,
    },
}

/// A terminal size, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns. 0 is passed on; containerd ignores such a size.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// The bytes of a resize stream into sizes.
#[derive(Debug, Default)]
pub struct ResizeDecoder {
    state: ResizeState,
}

/// What a [`ResizeDecoder`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// A size.
    Size(TerminalSize),
    /// All input is taken in and more is needed.
    More,
    /// There was an error: no size will come any more, further input is thrown away. The session goes on.
    Ended,
}

#[derive(Debug)]
enum ResizeState {
    /// Inside an object once `object` has its brace; else between objects.
    Reading {
        object: Vec<u8>,
        depth: usize,
        in_string: bool,
        escaped: bool,
    },
    Ended,
}

/// What we read of a `metav1.Status`; what is missing reads as in Go.
#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    causes: Vec<Cause>,
}

#[derive(Deserialize)]
struct Cause {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

// === impl Protocol ===

impl Protocol {
    /// What servers accept over SPDY, in the order in which they list it. V5 is not in it: no known server
    /// selects it here, though clients offer it first.
    pub const SPDY: [Protocol; 4] = [Protocol::V4, Protocol::V3, Protocol::V2, Protocol::V1];

    /// The name in headers.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::V1 => "channel.k8s.io",
            Protocol::V2 => "v2.channel.k8s.io",
            Protocol::V3 => "v3.channel.k8s.io",
            Protocol::V4 => "v4.channel.k8s.io",
            Protocol::V5 => "v5.channel.k8s.io",
        }
    }

    /// The protocol of that exact name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::V5, Self::V4, Self::V3, Self::V2, Self::V1]
            .into_iter()
            .find(|protocol| protocol.name() == name)
    }

    /// Whether there is a resize stream (over SPDY; over WebSocket there always is).
    pub fn supports_resize(self) -> bool {
        self >= Protocol::V3
    }

    /// Whether results are a Status, rather than text on failure and nothing on success.
    pub fn writes_status(self) -> bool {
        self >= Protocol::V4
    }

    /// Whether a client can close one channel and keep the others, over WebSocket.
    pub fn supports_close(self) -> bool {
        self >= Protocol::V5
    }

    /// Whether a client waits for the end of stdout and stderr besides that of the error stream.
    pub fn waits_for_output(self) -> bool {
        self >= Protocol::V2
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Chooses the first protocol of the client that the server has. `lines` are the values of
/// [`PROTOCOL_HEADER`], each of which may be a comma list.
pub fn negotiate<'a>(lines: impl IntoIterator<Item = &'a str>, server: &[Protocol]) -> Negotiation {
    let mut client = Vec::new();
    let mut missing = true;
    for line in lines {
        missing = false;
        client.extend(
            line.split(',').map(|item| item.trim_matches([' ', '\t'])).filter(|item| !item.is_empty()),
        );
    }
    let common = |name: &&str| Protocol::from_name(name).filter(|protocol| server.contains(protocol));
    match client.iter().find_map(common) {
        _ if missing => Negotiation::Missing,
        Some(protocol) => Negotiation::Chosen(protocol),
        None => Negotiation::NoCommon { client: client.into_iter().map(String::from).collect() },
    }
}

/// Body of the 403 for [`Negotiation::NoCommon`]. The client's names are its own bytes: the answer is plain
/// text.
pub fn no_common_body(client: &[String], server: &[Protocol]) -> String {
    let client = client.join(" ");
    let server = server.iter().map(|protocol| protocol.name()).collect::<Vec<_>>().join(" ");
    let why = format!("client supports [{client}], server accepts [{server}]");
    format!("unable to upgrade: unable to negotiate protocol: {why}\n")
}

/// Body of the 400 for [`Negotiation::Missing`], in the words of 1.35 and later. `headers` is the number of
/// different header names in the request, without `Host`, which Go keeps elsewhere.
pub fn missing_body(headers: usize) -> String {
    format!("unable to upgrade: header {PROTOCOL_HEADER} does not exist in request with {headers} headers\n")
}

// === impl StreamType ===

impl StreamType {
    /// The header that says what a SPDY stream is. Travels in lower case.
    pub const HEADER: &str = "streamType";

    /// Every type, in the order in which clients open them.
    pub const ALL: [StreamType; 5] = [Self::Error, Self::Stdin, Self::Stdout, Self::Stderr, Self::Resize];

    /// The value of [`StreamType::HEADER`].
    pub fn name(self) -> &'static str {
        match self {
            StreamType::Error => "error",
            StreamType::Stdin => "stdin",
            StreamType::Stdout => "stdout",
            StreamType::Stderr => "stderr",
            StreamType::Resize => "resize",
        }
    }

    /// The type of that exact name.
    pub fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.name().as_bytes() == name)
    }
}

// === impl Asked ===

impl Asked {
    /// The streams a client opens and a server waits for, over SPDY.
    pub fn streams(self, protocol: Protocol) -> StreamSet {
        let wanted = |stream: &StreamType| match stream {
            StreamType::Error => true,
            StreamType::Stdin => self.stdin,
            StreamType::Stdout => self.stdout,
            StreamType::Stderr => self.stderr && !self.tty,
            StreamType::Resize => self.tty && protocol.supports_resize(),
        };
        StreamType::ALL.into_iter().filter(wanted).collect()
    }
}

// === impl StreamSet ===

impl StreamSet {
    /// Adds a type; false when it was there already.
    pub fn insert(&mut self, stream: StreamType) -> bool {
        let new = !self.contains(stream);
        self.0 |= 1 << stream as u8;
        new
    }

    /// Takes a type out; false when it was not there.
    pub fn remove(&mut self, stream: StreamType) -> bool {
        let there = self.contains(stream);
        self.0 &= !(1 << stream as u8);
        there
    }

    /// Whether a type is in it.
    pub fn contains(self, stream: StreamType) -> bool {
        self.0 & 1 << stream as u8 != 0
    }

    /// How many types are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// True without any type.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The types, in the order of [`StreamType::ALL`].
    pub fn iter(self) -> impl Iterator<Item = StreamType> {
        StreamType::ALL.into_iter().filter(move |stream| self.contains(*stream))
    }
}

impl FromIterator<StreamType> for StreamSet {
    fn from_iter<I: IntoIterator<Item = StreamType>>(streams: I) -> Self {
        let mut set = Self::default();
        for stream in streams {
            set.insert(stream);
        }
        set
    }
}

impl fmt::Debug for StreamSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

// === impl Outcome ===

impl Outcome {
    /// The end of a process with this code; success when it is 0. The text is that of every translator.
    pub fn exit(code: u8) -> Self {
        match code {
            0 => Self::Success,
            code => Self::Exit { code, text: format!("command terminated with exit code {code}") },
        }
    }

    /// A failure to run the command of an exec.
    pub fn exec_failed(why: impl fmt::Display) -> Self {
        Self::Internal { text: format!("{EXEC_PREFIX}{why}") }
    }

    /// A failure to attach to a container.
    pub fn attach_failed(why: impl fmt::Display) -> Self {
        Self::Internal { text: format!("{ATTACH_PREFIX}{why}") }
    }

    /// What the error stream carries, from its first byte to its end; may be nothing.
    pub fn to_bytes(&self, protocol: Protocol) -> Bytes {
        if protocol.writes_status() { self.to_status().into() } else { self.message().into() }
    }

    /// The message of the failure; empty on success. Before v4 this is all there is.
    pub fn message(&self) -> String {
        match self {
            Outcome::Success => String::new(),
            Outcome::Exit { text, .. } => format!("{EXIT_PREFIX}{text}"),
            Outcome::Internal { text } => format!("{INTERNAL_PREFIX}{text}"),
            Outcome::Other { message } => message.clone(),
        }
    }

    fn to_status(&self) -> String {
        // By hand, because clients and tests upstream compare bytes: key order, no kind, an empty metadata.
        let failure = |rest: &str| {
            let message = go_json_string(&self.message());
            format!(r#"{{"metadata":{{}},"status":"Failure","message":{message}{rest}}}"#)
        };
        match self {
            Outcome::Success => r#"{"metadata":{},"status":"Success"}"#.to_owned(),
            Outcome::Exit { code, .. } => {
                let cause = format!(r#"{{"reason":"{EXIT_CODE}","message":"{code}"}}"#);
                failure(&format!(r#","reason":"{NON_ZERO_EXIT_CODE}","details":{{"causes":[{cause}]}}"#))
            }
            Outcome::Internal { text } => failure(&format!(
                r#","reason":"{INTERNAL_ERROR}","details":{{"causes":[{{"message":{}}}]}},"code":500"#,
                go_json_string(text)
            )),
            Outcome::Other { .. } => failure(""),
        }
    }

    /// What a client makes of a whole error stream. `Internal` is told from `Other` by its reason and
    /// prefix.
    pub fn parse(protocol: Protocol, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.is_empty() {
            return Ok(Outcome::Success);
        }
        if bytes.len() > MAX_RESULT {
            return Err(Error::TooLarge);
        }
        if !protocol.writes_status() {
            return Ok(Outcome::Other { message: String::from_utf8_lossy(bytes).into_owned() });
        }
        let status: Status = serde_json::from_slice(bytes).map_err(Error::NotStatus)?;
        match (status.status.as_str(), status.reason.as_str()) {
            ("Success", _) => Ok(Outcome::Success),
            ("Failure", NON_ZERO_EXIT_CODE) => {
                let code = status.details.ok_or(Error::NoDetails)?.exit_code()?;
                let text = strip(status.message, EXIT_PREFIX).unwrap_or_else(|whole| whole);
                Ok(Outcome::Exit { code, text })
            }
            ("Failure", INTERNAL_ERROR) => Ok(match strip(status.message, INTERNAL_PREFIX) {
                Ok(text) => Outcome::Internal { text },
                Err(message) => Outcome::Other { message },
            }),
            ("Failure", _) => Ok(Outcome::Other { message: status.message }),
            _ => Err(Error::UnknownStatus),
        }
    }

    /// The error that client-go reports, `None` on success. With it, the exit code of kubectl is that of
    /// [`Outcome::Exit`], else 1.
    pub fn client_error(&self, protocol: Protocol) -> Option<String> {
        match (self, protocol) {
            (Outcome::Success, _) => None,
            (Outcome::Exit { code, .. }, Protocol::V4 | Protocol::V5) => {
                Some(format!("command terminated with exit code {code}"))
            }
            (_, Protocol::V4 | Protocol::V5) => Some(self.message()),
            (_, Protocol::V2 | Protocol::V3) => {
                Some(format!("error executing remote command: {}", self.message()))
            }
            (_, Protocol::V1) => Some(format!("Error executing remote command: {}", self.message())),
        }
    }
}

impl Details {
    fn exit_code(self) -> Result<u8, Error> {
        let cause =
            self.causes.into_iter().find(|cause| cause.reason == EXIT_CODE).ok_or(Error::NoExitCode)?;
        // Go's ParseUint takes no sign, Rust's parse takes a plus.
        match cause.message.parse() {
            Ok(code) if cause.message.bytes().all(|b| b.is_ascii_digit()) => Ok(code),
            _ => Err(Error::ExitCode(cause.message)),
        }
    }
}

/// The text without its prefix, or the whole as an error.
fn strip(text: String, prefix: &str) -> Result<String, String> {
    text.strip_prefix(prefix).map(String::from).ok_or(text)
}

// === impl TerminalSize ===

impl TerminalSize {
    /// The size as Go clients write it, one a line.
    pub fn to_bytes(self) -> Bytes {
        let TerminalSize { width, height } = self;
        format!("{{\"Width\":{width},\"Height\":{height}}}\n").into()
    }
}

impl<'de> Deserialize<'de> for TerminalSize {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SizeVisitor)
    }
}

/// Reads a size with the manners of Go's decoder: keys in any case, the last of equal keys, null for "as it
/// was", 0 for what is missing.
struct SizeVisitor;

impl<'de> de::Visitor<'de> for SizeVisitor {
    type Value = TerminalSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a terminal size")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<TerminalSize, A::Error> {
        let mut size = TerminalSize::default();
        while let Some(key) = map.next_key::<String>()? {
            let field = match &key {
                key if key.eq_ignore_ascii_case("width") => &mut size.width,
                key if key.eq_ignore_ascii_case("height") => &mut size.height,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if let Some(value) = map.next_value::<Option<u16>>()? {
                *field = value;
            }
        }
        Ok(size)
    }
}

// === impl ResizeDecoder ===

impl Default for ResizeState {
    fn default() -> Self {
        Self::Reading { object: Vec::new(), depth: 0, in_string: false, escaped: false }
    }
}

impl ResizeDecoder {
    /// A decoder at the first byte of a resize stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input` up to the end of the next size. Call it until [`Resize::More`]
    /// or [`Resize::Ended`], which both leave `input` empty.
    pub fn decode(&mut self, input: &mut &[u8]) -> Resize {
        while let Some((byte, rest)) = input.split_first() {
            *input = rest;
            match self.step(*byte) {
                Resize::More => {}
                Resize::Size(size) => return Resize::Size(size),
                Resize::Ended => {
                    self.state = ResizeState::Ended;
                    *input = &[];
                }
            }
        }
        match self.state {
            ResizeState::Reading { .. } => Resize::More,
            ResizeState::Ended => Resize::Ended,
        }
    }

    fn step(&mut self, byte: u8) -> Resize {
        let ResizeState::Reading { object, depth, in_string, escaped } = &mut self.state else {
            return Resize::Ended;
        };
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if object.is_empty() => return Resize::More,
            // Go would take a bare null for 0 by 0, which runtimes ignore; anything else is its error too.
            _ if object.is_empty() && byte != b'{' => return Resize::Ended,
            _ if object.len() >= MAX_RESIZE => return Resize::Ended,
            _ => object.push(byte),
        }
        // Finds the end of the object; whether what is inside is JSON, the parser says.
        match byte {
            _ if *escaped => *escaped = false,
            b'\\' if *in_string => *escaped = true,
            b'"' => *in_string = !*in_string,
            _ if *in_string => {}
            b'{' => *depth += 1,
            b'}' => *depth -= 1,
            _ => {}
        }
        if *depth > 0 {
            return Resize::More;
        }
        match serde_json::from_slice(object) {
            Ok(size) => {
                object.clear();
                Resize::Size(size)
            }
            Err(_) => Resize::Ended,
        }
    }
}
