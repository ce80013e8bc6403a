//! HTTP/1.1 answers of the far side to an upgrade request: head, body length, and the head written anew.
//!
//! In the flow: `upstream` collects raw bytes and asks [`ResponseHead::parse`] until the head is there. A
//! 101 is passed on from those raw bytes, which is why nothing here consumes them; an error answer is
//! passed on as [`reserialize`] writes its head, with as many body bytes as [`BodyScanner`] counts.
//! Invariants: the body is counted, never changed, so chunks stay as they came; a head in doubt is an
//! error, never a guess about where the body ends.
//! Bounds: [`MAX_HEAD`] bytes and [`MAX_HEADERS`] lines of head, [`MAX_CHUNK_LINE`] and [`MAX_TRAILERS`]
//! bytes of chunk head and trailers; body bytes are not kept here.
//! Source: RFC 9112; Go net/http `response.go` (`ReadResponse`, `Response.Write`) and `transfer.go`, whose
//! relay Kubernetes clients know.

#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

use crate::status::go_quote;

/// Most bytes of a response head. The kubelet's are below 1 KiB, and nothing here reads more than some
/// headers. Beyond it the upgrade fails.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most header lines of a response head. Beyond it the upgrade fails.
pub const MAX_HEADERS: usize = 128;

/// Most bytes of the first line that are quoted in an error: enough to tell a TLS alert or an HTML page.
const MAX_QUOTED: usize = 256;

/// Longest line before a chunk, with its extensions: Go's `maxLineLength`. Beyond it the body is an error.
pub const MAX_CHUNK_LINE: usize = 4096;

/// Most bytes of trailers: a quarter of the bound of a head, no known peer sends any. Beyond it the body is
/// an error.
pub const MAX_TRAILERS: usize = 16 * 1024;

/// Most hexadecimal digits of a chunk size: 64 bits.
const MAX_SIZE_DIGITS: u8 = 16;

/// Why the far side's bytes are not an HTTP/1.1 answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not HTTP/1.x, or a head that cannot be read. The text is Go's, which clients see.
    #[error("malformed HTTP response {0}")]
    Malformed(Quoted),
    /// A head of more than [`MAX_HEAD`] bytes or [`MAX_HEADERS`] lines.
    #[error("HTTP response head is over {MAX_HEAD} bytes or {MAX_HEADERS} headers")]
    TooLarge,
    /// A `Content-Length` that is no number, or several that differ.
    #[error("HTTP response has a bad Content-Length {0}")]
    ContentLength(Quoted),
    /// A `Transfer-Encoding` other than `chunked` alone.
    #[error("HTTP response has an unsupported transfer encoding {0}")]
    TransferEncoding(Quoted),
    /// A body that is not chunked as announced.
    #[error("malformed chunked encoding")]
    Chunk,
    /// The connection ended before the body did.
    #[error("unexpected EOF")]
    Truncated,
}

/// Bytes of a peer in Go's `%q` form, bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted(String);

/// The head of an answer, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 0 or 1, for HTTP/1.0 and HTTP/1.1.
    pub minor_version: u8,
    /// Three digits, not otherwise checked.
    pub status: u16,
    /// The reason phrase; may be empty.
    pub reason: Bytes,
    /// Name and value of each header, in order, names in the case they came in.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Number of bytes up to and with the blank line.
    pub len: usize,
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// This status never has one.
    None,
    /// Bytes, from `Content-Length`; may be 0.
    Known(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// Counts the bytes of one body as they pass.
#[derive(Debug)]
pub struct BodyScanner {
    state: State,
}

/// What a [`BodyScanner`] says about a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// How many bytes from the front belong to the body; all of them unless it is complete.
    pub used: usize,
    /// The last of those is the last of the body.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Rest(u64),
    UntilClose,
    /// In the digits of a chunk size.
    Size {
        size: u64,
        digits: u8,
    },
    /// After the digits, up to the CR.
    Extension {
        size: u64,
        line: usize,
    },
    /// At the LF of a chunk head.
    SizeLf {
        size: u64,
    },
    Chunk {
        rest: u64,
    },
    ChunkCr,
    ChunkLf,
    /// In the trailers; `blank` while the line has nothing in it.
    Trailer {
        used: usize,
        blank: bool,
    },
    TrailerLf {
        used: usize,
        blank: bool,
    },
    Done,
}

// === impl Quoted ===

impl Quoted {
    fn new(bytes: &[u8]) -> Self {
        Self(go_quote(&bytes[..bytes.len().min(MAX_QUOTED)]))
    }
}

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    /// Reads a head from the front of `raw`; `None` when more bytes are needed. `raw` may go on past the
    /// head.
    ///
    /// A caller reads on while this is `None`; at [`MAX_HEAD`] bytes it is an error instead. At the end of
    /// the connection before that the error is [`Error::Truncated`].
    pub fn parse(raw: &[u8]) -> Result<Option<Self>, Error> {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut lines);
        // A blank line first is not an answer, though the parser would skip it.
        if matches!(raw.first(), Some(b'\r' | b'\n')) {
            return Err(malformed(raw));
        }
        let len = match response.parse(&raw[..raw.len().min(MAX_HEAD)]) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) if raw.len() < MAX_HEAD => return Ok(None),
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return Err(Error::TooLarge);
            }
            Err(_) => return Err(malformed(raw)),
        };
        let (Some(minor_version), Some(status)) = (response.version, response.code) else {
            return Err(malformed(raw));
        };
        // Taken from the line itself: the parser blanks a reason phrase that is not ASCII.
        let reason = first_line(raw).get("HTTP/1.1 200".len()..).unwrap_or_default().trim_ascii_start();
        let reason = Bytes::copy_from_slice(reason);
        let field = |line: &httparse::Header<'_>| {
            (Bytes::copy_from_slice(line.name.as_bytes()), Bytes::copy_from_slice(line.value))
        };
        let headers = response.headers.iter().map(field).collect();
        Ok(Some(Self { minor_version, status, reason, headers, len }))
    }

    /// The values of a header, in order, whatever the case of `name`.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers
            .iter()
            .filter(move |(have, _)| have.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value.as_ref())
    }

    /// How long the body is. The request must not have been a HEAD.
    pub fn body_length(&self) -> Result<BodyLength, Error> {
        // Go's order: a bad length is an error even where it would not count, and chunked beats a length.
        let chunked = self.is_chunked()?;
        let length = self.content_length()?;
        Ok(match (self.status, length) {
            (100..=199 | 204 | 304, _) => BodyLength::None,
            _ if chunked => BodyLength::Chunked,
            (_, Some(length)) => BodyLength::Known(length),
            (_, None) => BodyLength::UntilClose,
        })
    }

    fn is_chunked(&self) -> Result<bool, Error> {
        // HTTP/1.0 has no transfer encodings; Go ignores the header there.
        if self.minor_version == 0 {
            return Ok(false);
        }
        let mut values = self.values("transfer-encoding");
        let Some(value) = values.next() else {
            return Ok(false);
        };
        if let Some(second) = values.next() {
            return Err(Error::TransferEncoding(Quoted::new(second)));
        }
        if value.eq_ignore_ascii_case(b"chunked") {
            Ok(true)
        } else {
            Err(Error::TransferEncoding(Quoted::new(value)))
        }
    }

    fn content_length(&self) -> Result<Option<u64>, Error> {
        let mut length = None;
        for value in self.values("content-length") {
            let bad = || Error::ContentLength(Quoted::new(value));
            let digits = str::from_utf8(value.trim_ascii()).map_err(|_| bad())?;
            if !digits.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            let number = digits.parse().map_err(|_| bad())?;
            // Go holds lengths in 63 bits.
            if number > i64::MAX as u64 || length.is_some_and(|have| have != number) {
                return Err(bad());
            }
            length = Some(number);
        }
        Ok(length)
    }

    /// Whether the far side will close after this answer whatever its length (Go's `shouldClose`).
    fn says_close(&self) -> bool {
        self.connection_has("close") || (self.minor_version == 0 && !self.connection_has("keep-alive"))
    }

    fn connection_has(&self, token: &str) -> bool {
        self.values("connection")
            .flat_map(|value| value.split(|b| *b == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    }
}

fn first_line(raw: &[u8]) -> &[u8] {
    let line = raw.split(|b| *b == b'\n').next().unwrap_or_default();
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn malformed(raw: &[u8]) -> Error {
    Error::Malformed(Quoted::new(first_line(raw)))
}

/// The head as Go's `Response.Write` would write it before the unchanged body bytes.
///
/// `length` is [`ResponseHead::body_length`]. `Connection: close` comes first when only the end of the
/// connection ends the body; it then replaces what the far side said about its own connection. `Trailer` is
/// dropped, so trailers come unannounced, which RFC 9112 section 7.1.2 allows.
pub fn reserialize(head: &ResponseHead, length: BodyLength) -> Bytes {
    let mut out = BytesMut::with_capacity(head.len + 64);
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out.extend_from_slice(b"\r\n");
    };
    let start = format!("HTTP/1.{} {:03} ", head.minor_version, head.status);
    line(&[start.as_bytes(), &head.reason]);

    let says_close = head.connection_has("close");
    let add_close = (length == BodyLength::UntilClose || head.says_close()) && !says_close;
    if add_close {
        line(&[b"Connection: close"]);
    }
    match length {
        BodyLength::Known(0) | BodyLength::None | BodyLength::UntilClose => {}
        BodyLength::Known(length) => line(&[b"Content-Length: ", length.to_string().as_bytes()]),
        BodyLength::Chunked => line(&[b"Transfer-Encoding: chunked"]),
    }

    let mut rest: Vec<(String, &Bytes)> =
        head.headers.iter().map(|(name, value)| (canonical(name), value)).collect();
    rest.retain(|(name, _)| match name.as_str() {
        "Content-Length" | "Transfer-Encoding" | "Trailer" => false,
        "Connection" | "Keep-Alive" => !add_close,
        _ => true,
    });
    // Stable, so that several values of a name keep their order.
    rest.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, value) in rest {
        line(&[name.as_bytes(), b": ", value]);
    }
    // Go finds out that the body is empty only after the headers.
    if length == BodyLength::Known(0) {
        line(&[b"Content-Length: 0"]);
    }
    line(&[]);
    out.freeze()
}

/// A header name in Go's canonical case: `sec-websocket-key` is `Sec-Websocket-Key`. A name that is no HTTP
/// token stays as it is, but for bytes that are not UTF-8.
pub fn canonical(name: impl AsRef<[u8]>) -> String {
    let name = name.as_ref();
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let mut text = String::from_utf8_lossy(name).into_owned();
    if !name.iter().all(is_token) {
        return text;
    }
    text.make_ascii_lowercase();
    let mut upper = true;
    let recase = |c: char| {
        let c = if upper { c.to_ascii_uppercase() } else { c };
        upper = c == '-';
        c
    };
    text.chars().map(recase).collect()
}

// === impl BodyScanner ===

impl BodyScanner {
    /// A scanner at the first byte of the body.
    pub fn new(length: BodyLength) -> Self {
        let state = match length {
            BodyLength::None | BodyLength::Known(0) => State::Done,
            BodyLength::Known(length) => State::Rest(length),
            BodyLength::Chunked => State::Size { size: 0, digits: 0 },
            BodyLength::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Says how many of the next bytes belong to the body. Ask with an empty run whether there is a body at
    /// all.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scanned, Error> {
        let mut used = 0;
        while used < bytes.len() && self.state != State::Done {
            used += self.step(&bytes[used..])?;
        }
        Ok(Scanned { used, complete: self.state == State::Done })
    }

    /// The connection ended: an error unless the body ended before or ends by it.
    pub fn end(&self) -> Result<(), Error> {
        match self.state {
            State::Done | State::UntilClose => Ok(()),
            _ => Err(Error::Truncated),
        }
    }

    /// Takes at least one byte off a run that has one.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let byte = bytes[0];
        let (used, next) = match self.state {
            State::Done => (0, State::Done),
            State::UntilClose => (bytes.len(), State::UntilClose),
            State::Rest(rest) => match pass(bytes, rest) {
                (used, 0) => (used, State::Done),
                (used, rest) => (used, State::Rest(rest)),
            },
            State::Chunk { rest } => match pass(bytes, rest) {
                (used, 0) => (used, State::ChunkCr),
                (used, rest) => (used, State::Chunk { rest }),
            },
            State::Size { size, digits } => (1, after_size(byte, size, digits)?),
            State::Extension { size, .. } if byte == b'\r' => (1, State::SizeLf { size }),
            // A bare LF would let two readers see two different ends of this line.
            State::Extension { line: MAX_CHUNK_LINE.., .. } => return Err(Error::Chunk),
            State::Extension { .. } if byte == b'\n' => return Err(Error::Chunk),
            State::Extension { size, line } => (1, State::Extension { size, line: line + 1 }),
            State::SizeLf { size: 0 } => (expect(byte, b'\n')?, State::Trailer { used: 0, blank: true }),
            State::SizeLf { size } => (expect(byte, b'\n')?, State::Chunk { rest: size }),
            State::ChunkCr => (expect(byte, b'\r')?, State::ChunkLf),
            State::ChunkLf => (expect(byte, b'\n')?, State::Size { size: 0, digits: 0 }),
            State::Trailer { used, blank } if byte == b'\r' => (1, State::TrailerLf { used, blank }),
            State::Trailer { used: MAX_TRAILERS.., .. } => return Err(Error::Chunk),
            State::Trailer { .. } if byte == b'\n' => return Err(Error::Chunk),
            State::Trailer { used, .. } => (1, State::Trailer { used: used + 1, blank: false }),
            State::TrailerLf { blank: true, .. } => (expect(byte, b'\n')?, State::Done),
            State::TrailerLf { used, .. } => {
                (expect(byte, b'\n')?, State::Trailer { used: used + 2, blank: true })
            }
        };
        self.state = next;
        Ok(used)
    }
}

/// How many bytes of a run belong to a stretch of `rest` bytes, and what then is left of the stretch.
fn pass(bytes: &[u8], rest: u64) -> (usize, u64) {
    let used = usize::try_from(rest).map_or(bytes.len(), |rest| rest.min(bytes.len()));
    (used, rest - used as u64)
}

fn after_size(byte: u8, size: u64, digits: u8) -> Result<State, Error> {
    match (char::from(byte).to_digit(16), byte) {
        (Some(digit), _) if digits < MAX_SIZE_DIGITS => {
            Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
        }
        (None, b'\r') if digits > 0 => Ok(State::SizeLf { size }),
        (None, b';' | b' ' | b'\t') if digits > 0 => {
            Ok(State::Extension { size, line: usize::from(digits) + 1 })
        }
        _ => Err(Error::Chunk),
    }
}

fn expect(byte: u8, wanted: u8) -> Result<usize, Error> {
    if byte == wanted { Ok(1) } else { Err(Error::Chunk) }
}
