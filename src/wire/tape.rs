//! Tape: what a session moved, as pieces one after another; the form in which it goes to a recording.
//!
//! A piece is its kind (one byte), its time (microseconds since the session began, eight bytes) and the length of
//! what follows (four bytes), numbers in network order, then so many bytes. Output of a program is never changed,
//! cut out or joined across pieces of another kind; where a piece begins and ends means nothing.
//!
//! Recordings are Zstandard frames, and a stream of gigabytes is stored in them as it is. So that nobody has to copy it
//! for that, a tape is such a frame from the beginning: pieces lie in raw blocks, none across two of them, with room in
//! front for what a frame begins with. Source: RFC 8878 section 3.1.1.
//! Invariant: reading is bounded by [`MAX_PIECE`] whatever a length says.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

/// Bytes in front of what a piece carries.
pub const HEAD: usize = 13;

/// Most bytes of one piece: with its head, as much as a block holds.
pub const MAX_PIECE: usize = BLOCK - HEAD;

/// Where large buffers begin in memory, so that disks take them past the page cache.
pub const ALIGN: usize = 4096;

/// What a frame begins with. Source: RFC 8878 section 3.1.1.
pub const MAGIC: u32 = 0xfd2f_b528;

/// Most bytes of a block. Source: RFC 8878 section 3.1.1.2.4.
pub const BLOCK: usize = 128 << 10;

/// Bytes in front of a block. Source: RFC 8878 section 3.1.1.2.
pub const BLOCK_HEAD: usize = 3;

/// Bytes in front of the first block: magic, descriptor, and the size of the content.
pub const FRAME_HEAD: usize = 4 + 1 + 4;

/// A single segment, whose size takes four bytes. Source: RFC 8878 section 3.1.1.1.1.
const DESCRIPTOR: u8 = 0b1010_0000;

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

/// Bytes to be written to a file. Those of a large one begin at a multiple of [`ALIGN`] in memory, for as long as it does
/// not outgrow its capacity.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    /// So many bytes in front are no part of it.
    lead: usize,
    /// Whoever lent it counts these.
    lent: Option<Arc<()>>,
}

/// Pieces one after another, as they come.
#[derive(Debug, Default)]
pub struct Tape {
    buffer: Buffer,
    /// Where the last block begins.
    block: usize,
    /// Bytes of pieces.
    len: usize,
    now: Duration,
    /// When the first piece was, and the last.
    span: (Duration, Duration),
}

/// What was on a tape.
#[derive(Debug, Default)]
pub struct Reel {
    /// The frame; nothing where there are no pieces.
    frame: Buffer,
    len: usize,
    span: (Duration, Duration),
}

/// The pieces of a reel.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    blocks: &'a [u8],
    block: &'a [u8],
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

// === impl Buffer ===

impl Buffer {
    /// An empty one that takes this many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Self { bytes: Vec::with_capacity(bytes + ALIGN), lead: 0, lent: None };
        buffer.clear();
        buffer
    }

    /// The same buffer, which holds this for as long as there is one.
    pub fn lent(self, by: Arc<()>) -> Self {
        Self { lent: Some(by), ..self }
    }

    /// Whether it holds this.
    pub fn is_lent_by(&self, lender: &Arc<()>) -> bool {
        self.lent.as_ref().is_some_and(|by| Arc::ptr_eq(by, lender))
    }

    /// Bytes that it takes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity().saturating_sub(ALIGN)
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.lead = match self.capacity() {
            0 => 0,
            _ => self.bytes.as_ptr().align_offset(ALIGN),
        };
        self.bytes.clear();
        self.bytes.resize(self.lead, 0);
    }

    /// All of it, behind `lead` bytes that are no part of it. It is only to be appended to.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.lead..]
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

    /// Bytes of the pieces that it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when there is nothing on it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that its buffer takes.
    pub fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Everything so far; the tape goes on empty, and holds no memory.
    pub fn take(&mut self) -> Reel {
        self.replace(Buffer::default())
    }

    /// The same; the tape goes on in this buffer, whose content is dropped.
    pub fn replace(&mut self, mut buffer: Buffer) -> Reel {
        buffer.clear();
        let mut frame = std::mem::replace(&mut self.buffer, buffer);
        let len = std::mem::take(&mut self.len);
        if len > 0 {
            end_block(&mut frame, self.block, true);
            let start = frame.lead;
            frame.bytes[start..start + FRAME_HEAD].copy_from_slice(&frame_head(len));
        }
        Reel { frame, len, span: self.span }
    }

    fn piece(&mut self, kind: Kind, bytes: &[u8]) {
        let (micros, len) = (self.now.as_micros(), bytes.len());
        self.buffer.bytes.reserve(FRAME_HEAD + BLOCK_HEAD + HEAD + len);
        if self.len == 0 {
            self.buffer.bytes.extend_from_slice(&[0; FRAME_HEAD]);
            self.begin_block();
            self.span.0 = self.now;
        } else if self.buffer.bytes.len() - self.block + HEAD + len > BLOCK_HEAD + BLOCK {
            end_block(&mut self.buffer, self.block, false);
            self.begin_block();
        }
        self.span.1 = self.now;
        let out = &mut self.buffer.bytes;
        out.push(kind as u8);
        // More than 500,000 years, and checked by the caller.
        out.extend_from_slice(&u64::try_from(micros).unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(bytes);
        self.len += HEAD + len;
    }

    fn begin_block(&mut self) {
        self.block = self.buffer.bytes.len();
        self.buffer.bytes.extend_from_slice(&[0; BLOCK_HEAD]);
    }
}

/// Writes the head of the last block, which begins there.
fn end_block(buffer: &mut Buffer, head: usize, last: bool) {
    let len = buffer.bytes.len() - head - BLOCK_HEAD;
    buffer.bytes[head..head + BLOCK_HEAD].copy_from_slice(&block_head(len, last));
}

// === impl Reel ===

impl Reel {
    /// The reel of these pieces.
    ///
    /// # Errors
    /// When there is something else.
    pub fn of(mut pieces: &[u8]) -> Result<Self, Error> {
        let mut tape = Tape::default();
        while let Some(Piece { at, kind, bytes }) = next(&mut pieces)? {
            tape.now = at;
            tape.piece(kind, bytes);
        }
        Ok(tape.take())
    }

    /// Bytes of its pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// When its first piece was, and its last.
    pub fn span(&self) -> (Duration, Duration) {
        self.span
    }

    /// Its pieces.
    pub fn pieces(&self) -> Pieces<'_> {
        Pieces { blocks: self.frame.get(FRAME_HEAD..).unwrap_or_default(), block: &[] }
    }

    /// Its pieces, as [`next`] reads them.
    pub fn content(&self) -> Vec<u8> {
        let mut content = Vec::with_capacity(self.len);
        self.copy_content(&mut content);
        content
    }

    /// Appends the same.
    pub fn copy_content(&self, out: &mut Vec<u8>) {
        let mut pieces = self.pieces();
        while pieces.next_block() {
            out.extend_from_slice(pieces.block);
        }
    }

    /// As much of its content as is in the first block.
    pub fn first_block(&self) -> &[u8] {
        let mut pieces = self.pieces();
        pieces.next_block();
        pieces.block
    }

    /// Appends all of it as a frame. Where there is nothing yet in `out`, the two buffers change places instead, and the
    /// reel is empty.
    pub fn move_frame(&mut self, out: &mut Buffer) {
        if out.is_empty() {
            self.len = 0;
            std::mem::swap(&mut self.frame, out);
        } else {
            out.bytes().extend_from_slice(&self.frame);
        }
    }

    /// Its buffer.
    pub fn into_buffer(self) -> Buffer {
        self.frame
    }
}

// === impl Pieces ===

impl Pieces<'_> {
    fn next_block(&mut self) -> bool {
        let Some((&[a, b, c], rest)) = self.blocks.split_first_chunk() else { return false };
        (self.block, self.blocks) = rest.split_at(u32::from_le_bytes([a, b, c, 0]) as usize >> 3);
        true
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        while self.block.is_empty() {
            if !self.next_block() {
                return None;
            }
        }
        // What made these saw to it that they are whole pieces.
        next(&mut self.block).ok().flatten()
    }
}

/// The pieces of what is known to be whole ones.
pub fn pieces(whole: &[u8]) -> Pieces<'_> {
    Pieces { blocks: &[], block: whole }
}

/// What a frame of so many bytes in raw blocks begins with.
pub fn frame_head(content: usize) -> [u8; FRAME_HEAD] {
    let [m0, m1, m2, m3] = MAGIC.to_le_bytes();
    // Less than what a chunk of a recording may hold.
    let [l0, l1, l2, l3] = u32::try_from(content).unwrap_or(u32::MAX).to_le_bytes();
    [m0, m1, m2, m3, DESCRIPTOR, l0, l1, l2, l3]
}

/// What a raw block of so many bytes, at most [`BLOCK`], begins with.
pub fn block_head(len: usize, last: bool) -> [u8; BLOCK_HEAD] {
    let [a, b, c, ..] = (len << 3 | usize::from(last)).to_le_bytes();
    [a, b, c]
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
    /// Adds what these say.
    ///
    /// # Panics
    /// When they say what links do not.
    pub fn read(&mut self, pieces: Pieces<'_>) {
        for Piece { kind, bytes, .. } in pieces {
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
        let reel = tape.take();
        assert!(tape.is_empty() && tape.take().is_empty());
        let later = 1_500_000;
        let pieces = [
            (0, Kind::Stdout, 4),
            (later, Kind::StdinEnd, 0),
            (later, Kind::Stderr, MAX_PIECE),
            (later, Kind::Stderr, 1),
        ];
        assert_eq!(reel.span(), (Duration::ZERO, Duration::from_micros(1_500_000)));
        let seen = |piece: Piece<'_>| (piece.at.as_micros(), piece.kind, piece.bytes.len());
        assert_eq!(reel.pieces().map(seen).collect::<Vec<_>>(), pieces);
        let bytes = reel.content();
        assert_eq!(bytes.len(), reel.len());
        let mut rest = &bytes[..];
        let again = std::iter::from_fn(|| next(&mut rest).unwrap());
        assert_eq!(again.map(seen).collect::<Vec<_>>(), pieces);
        assert_eq!(Reel::of(&bytes).unwrap().content(), bytes);
        for cut in [1, HEAD - 1, HEAD, HEAD + 3] {
            assert_eq!(next(&mut &bytes[..cut]), Err(Error::Cut), "at {cut}");
        }
    }

    #[test]
    fn a_reel_is_a_frame_that_stock_decompressors_read_wherever_its_blocks_end() {
        for (len, count) in [(1, 1), (MAX_PIECE, 3), (60_000, 11), (MAX_PIECE - 1, 2), (3, 70_000)] {
            let mut tape = Tape::default();
            // A buffer that is used again, and is aligned until the tape outgrows it.
            for _ in 0..2 {
                tape.replace(Buffer::with_capacity(1 << 20));
                (0..count).for_each(|n| tape.put(Kind::Stdout, &vec![n as u8; len]));
                let reel = tape.take();
                let (content, frame) = (reel.content(), reel.into_buffer());
                assert_eq!(content.len(), count * (len + HEAD));
                assert!(frame.len() > 1 << 20 || frame.as_ptr().align_offset(ALIGN) == 0);
                assert!(zstd::stream::decode_all(&frame[..]).unwrap() == content, "{count} of {len}");
            }
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
