//! Tape: what a session moved, as pieces one after another; the form in which it goes to a recording.
//!
//! A piece is its kind (one byte), its time (microseconds since the session began, eight bytes) and the length of
//! what follows (four bytes), numbers in network order, then so many bytes. Output of a program is never changed,
//! cut out or joined across pieces of another kind; where a piece begins and ends means nothing.
//! Invariant: reading is bounded by [`MAX_PIECE`] whatever a length says.

use std::time::Duration;

/// Bytes in front of what a piece carries.
pub const HEAD: usize = 13;

/// Most bytes of one piece: as much as a read of a connection brings, twice.
pub const MAX_PIECE: usize = 128 * 1024;

/// What a piece carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Bytes to the program.
    Stdin = 1,
    /// Bytes from the program; with a terminal all of them.
    Stdout = 2,
    /// Its second output; never with a terminal.
    Stderr = 3,
    /// The result, as the far side wrote it.
    Result = 4,
    /// Terminal sizes, as the client wrote them: JSON objects, cut anywhere.
    Resize = 5,
    /// The client ended stdin; carries nothing.
    StdinEnd = 6,
    /// A connection of a port-forward: [`Connection`] as JSON.
    Connection = 7,
    /// Something is missing here: a sentence for people.
    Gap = 8,
    /// Stdin that was left out because the terminal did not show it: its length, in decimal.
    Withheld = 9,
    /// Keys that podgate typed itself, to hang up a terminal.
    Typed = 10,
    /// What podgate wrote itself to the client's terminal.
    Told = 11,
}

/// A piece that lies in a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Since the session began; whole microseconds.
    pub at: Duration,
    /// What it carries.
    pub kind: Kind,
    /// That.
    pub bytes: &'a [u8],
}

/// What happened to a connection of a port-forward.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Connection {
    /// Which one: counted from 1.
    pub connection: u32,
    /// The port in the pod.
    pub port: u16,
    /// Whether it is open from now on, or closed.
    pub open: bool,
    /// Bytes to the pod so far.
    pub up: u64,
    /// Bytes from the pod so far.
    pub down: u64,
    /// What the far side said against it, shortened; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
}

/// Pieces one after another.
#[derive(Debug, Default)]
pub struct Tape {
    bytes: Vec<u8>,
    now: Duration,
}

/// What is no piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A kind that nobody knows.
    #[error("unknown kind of piece: {0}")]
    Kind(u8),
    /// A length beyond [`MAX_PIECE`].
    #[error("a piece of {0} bytes, at most {MAX_PIECE} are allowed")]
    Length(u32),
    /// The end of the tape inside a piece.
    #[error("the tape ends inside a piece")]
    Cut,
}

// === impl Kind ===

impl Kind {
    const ALL: [Self; 11] = [
        Self::Stdin,
        Self::Stdout,
        Self::Stderr,
        Self::Result,
        Self::Resize,
        Self::StdinEnd,
        Self::Connection,
        Self::Gap,
        Self::Withheld,
        Self::Typed,
        Self::Told,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

// === impl Tape ===

impl Tape {
    /// What is put from now on happened then; time does not go back.
    pub fn at(&mut self, now: Duration) {
        self.now = self.now.max(now);
    }

    /// Appends bytes, in as many pieces as they need; none for none, unless the kind carries nothing.
    pub fn put(&mut self, kind: Kind, bytes: &[u8]) {
        if kind == Kind::StdinEnd {
            self.piece(kind, &[]);
        }
        bytes.chunks(MAX_PIECE).for_each(|bytes| self.piece(kind, bytes));
    }

    /// Bytes that it holds.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True when there is nothing on it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Everything so far; the tape goes on empty, and holds no memory.
    pub fn take(&mut self) -> Vec<u8> {
        self.replace(Vec::new())
    }

    /// The same; the tape goes on in this buffer, whose content is dropped.
    pub fn replace(&mut self, mut buffer: Vec<u8>) -> Vec<u8> {
        buffer.clear();
        std::mem::replace(&mut self.bytes, buffer)
    }

    fn piece(&mut self, kind: Kind, bytes: &[u8]) {
        let (micros, len) = (self.now.as_micros(), bytes.len());
        self.bytes.reserve(HEAD + len);
        self.bytes.push(kind as u8);
        // More than 500,000 years, and checked by the caller.
        self.bytes.extend_from_slice(&u64::try_from(micros).unwrap_or(u64::MAX).to_be_bytes());
        self.bytes.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        self.bytes.extend_from_slice(bytes);
    }
}

/// Takes the first piece off the front of a tape; `None` at its end.
///
/// # Errors
/// When there is something else; then nothing of it can be read.
pub fn next<'a>(tape: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Error> {
    let whole: &'a [u8] = tape;
    if whole.is_empty() {
        return Ok(None);
    }
    let (head, rest) = whole.split_first_chunk::<HEAD>().ok_or(Error::Cut)?;
    let [kind, t0, t1, t2, t3, t4, t5, t6, t7, l0, l1, l2, l3] = *head;
    let kind = Kind::from_number(kind).ok_or(Error::Kind(kind))?;
    let len = u32::from_be_bytes([l0, l1, l2, l3]);
    let taken = usize::try_from(len).ok().filter(|&len| len <= MAX_PIECE).ok_or(Error::Length(len))?;
    let (bytes, rest) = rest.split_at_checked(taken).ok_or(Error::Cut)?;
    *tape = rest;
    let at = Duration::from_micros(u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]));
    Ok(Some(Piece { at, kind, bytes }))
}

/// What a tape says, the pieces of each kind joined: for tests.
#[cfg(any(test, feature = "testing"))]
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Taped {
    /// Bytes to the program.
    pub stdin: Vec<u8>,
    /// Bytes from it.
    pub stdout: Vec<u8>,
    /// And of its second output.
    pub stderr: Vec<u8>,
    /// The result.
    pub result: Vec<u8>,
    /// Terminal sizes.
    pub sizes: Vec<u8>,
    /// How often the end of stdin was told.
    pub stdin_ends: usize,
    /// Connections that were opened and closed.
    pub connections: Vec<Connection>,
    /// Keys of podgate's own.
    pub typed: Vec<u8>,
    /// What podgate wrote itself.
    pub told: Vec<u8>,
}

#[cfg(any(test, feature = "testing"))]
impl Taped {
    /// Adds what this tape says.
    ///
    /// # Panics
    /// When it is none, or says what links do not.
    pub fn read(&mut self, mut tape: &[u8]) {
        while let Some(Piece { kind, bytes, .. }) = next(&mut tape).expect("whole pieces") {
            let all = match kind {
                Kind::Stdin => &mut self.stdin,
                Kind::Stdout => &mut self.stdout,
                Kind::Stderr => &mut self.stderr,
                Kind::Result => &mut self.result,
                Kind::Resize => &mut self.sizes,
                Kind::Typed => &mut self.typed,
                Kind::Told => &mut self.told,
                Kind::StdinEnd => {
                    self.stdin_ends += 1;
                    continue;
                }
                Kind::Connection => {
                    self.connections.push(serde_json::from_slice(bytes).expect("a connection"));
                    continue;
                }
                Kind::Gap | Kind::Withheld => panic!("{kind:?} of a link"),
            };
            all.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_again_and_what_is_cut_is_not() {
        let mut tape = Tape::default();
        tape.put(Kind::Stdout, b"one\xff");
        tape.at(Duration::from_micros(1_500_000));
        tape.at(Duration::from_micros(7));
        tape.put(Kind::Stdin, &[]);
        tape.put(Kind::StdinEnd, &[]);
        tape.put(Kind::Stderr, &vec![9; MAX_PIECE + 1]);
        let bytes = tape.take();
        assert!(tape.is_empty());
        let mut rest = &bytes[..];
        let mut read = Vec::new();
        while let Some(Piece { at, kind, bytes }) = next(&mut rest).unwrap() {
            read.push((at.as_micros(), kind, bytes.len()));
        }
        let later = 1_500_000;
        let pieces = [
            (0, Kind::Stdout, 4),
            (later, Kind::StdinEnd, 0),
            (later, Kind::Stderr, MAX_PIECE),
            (later, Kind::Stderr, 1),
        ];
        assert_eq!(read, pieces);
        for cut in [1, HEAD - 1, HEAD, HEAD + 3] {
            assert_eq!(next(&mut &bytes[..cut]), Err(Error::Cut), "at {cut}");
        }
    }

    #[test]
    fn hostile_lengths_and_kinds_are_errors() {
        let mut piece = [0xff; 20];
        assert_eq!(next(&mut &piece[..]), Err(Error::Kind(0xff)));
        piece[0] = Kind::Stdout as u8;
        assert_eq!(next(&mut &piece[..]), Err(Error::Length(u32::MAX)));
    }
}
