//! Open: the bytes of a file into facts, tapes and an ending, each believed only once its seal is verified.

use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::seal::{Chain, Cipher, Head, Seal};
use super::write::End;
use super::{Error, Fault, Kind, Place, VERSION, squeeze};
use crate::recording::cast;
use crate::recording::facts::{Details, Ending, Facts};
use crate::recording::keys::{Identity, VerifyingKey};
use crate::wire::tap::Moved;
use crate::wire::tape;

/// Who is believed.
#[derive(Debug, Clone, Copy)]
pub enum Trust<'a> {
    /// The holders of these keys.
    Keys(&'a [VerifyingKey]),
    /// Whoever wrote the file. It may then be a whole forgery, or end early.
    Anyone,
}

/// Reads a recording from its front.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    key: Option<VerifyingKey>,
    head: Head,
    cipher: Option<Cipher>,
    details: Option<Details>,
    chain: Chain,
    next: u64,
    first: bool,
    done: bool,
    so_far: SoFar,
    ending: Option<Ending>,
}

/// A part of a recording, as it was written at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its number, counted from 1.
    pub number: u64,
    /// When in the session its last piece was.
    pub until: Duration,
    /// Bytes of its content.
    pub content: u64,
    /// Its pieces, for [`tape::next`]; `None` where none of the identities could decrypt it.
    pub tape: Option<Vec<u8>>,
}

/// What is proven up to some place in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SoFar {
    /// Chunks.
    pub chunks: u64,
    /// When in the session the last piece was; `None` before the first seal.
    pub until: Option<Duration>,
    /// Bytes by channel that were recorded.
    pub moved: Moved,
    /// Bytes of content.
    pub content: u64,
    /// Bytes of the file.
    pub offset: u64,
}

/// The file, frame by frame.
#[derive(Debug)]
struct Input<R> {
    read: BufReader<R>,
    offset: u64,
    frame: u64,
    /// Where what the next seal proves begins.
    unit: Place,
}

// === impl Reader ===

impl<R: Read> Reader<R> {
    /// Reads and verifies what stands in front: facts and details. Identities are needed only where the recording is
    /// encrypted and its content wanted; without any, facts and proof are all there is.
    ///
    /// # Errors
    /// When it is no recording, or none of those trusted signed it, or it is not as it was written, or there are
    /// identities and none of them is a recipient.
    pub fn open(read: R, trust: Trust<'_>, identities: &[Identity]) -> Result<Self, Error> {
        let unit = Place { frame: 0, offset: 0, good_until: None };
        let mut input = Input { read: BufReader::new(read), offset: 0, frame: 0, unit };
        let frame = match input.frame() {
            Ok(Some((Kind::Head, frame))) => frame,
            Ok(_) | Err(Error::Altered { .. }) => return Err(Error::NotARecording),
            Err(error) => return Err(error),
        };
        let head = Head::read(frame.get(8..).unwrap_or_default())?;
        if head.version != VERSION {
            return Err(Error::Version(head.version));
        }
        let key = match trust {
            Trust::Anyone => None,
            Trust::Keys(keys) => match keys.iter().find(|key| key.id() == head.key) {
                Some(key) => Some(key.clone()),
                None => return Err(Error::Stranger { id: head.key }),
            },
        };
        let mut reader = Self {
            input,
            key,
            cipher: None,
            details: None,
            chain: Chain::new(&frame),
            next: 0,
            first: true,
            done: false,
            so_far: SoFar::default(),
            ending: None,
            head,
        };
        // The head has no seal of its own: that of the details proves both.
        let Some((kind, mut frame)) = reader.input.frame()? else { return Err(reader.input.truncated()) };
        if kind != Kind::Details {
            return Err(reader.input.altered(Fault::Frame));
        }
        reader.sealed(kind, &mut frame)?;
        let Head { facts, recipients, .. } = &reader.head;
        if !recipients.is_empty() && !identities.is_empty() {
            let opened = Cipher::open(&facts.id, recipients, identities).map_err(Error::Key)?;
            reader.cipher = Some(opened.ok_or(Error::NotForYou)?);
        }
        let content = &mut frame[8..];
        let json = match &reader.cipher {
            Some(cipher) => cipher.show(0, content).map_err(|fault| reader.input.altered(fault))?,
            None => content,
        };
        if !reader.is_encrypted() || reader.cipher.is_some() {
            let details = serde_json::from_slice(json);
            reader.details = Some(details.map_err(|error| reader.input.altered(Fault::Json(error)))?);
        }
        Ok(reader)
    }

    /// Who, what and where.
    pub fn facts(&self) -> &Facts {
        &self.head.facts
    }

    /// The id of the key that signed it.
    pub fn key(&self) -> &str {
        &self.head.key
    }

    /// True where only recipients can read the content.
    pub fn is_encrypted(&self) -> bool {
        !self.head.recipients.is_empty()
    }

    /// The command; `None` where none of the identities could decrypt it.
    pub fn details(&self) -> Option<&Details> {
        self.details.as_ref()
    }

    /// What is proven so far.
    pub fn so_far(&self) -> SoFar {
        self.so_far
    }

    /// How it ended, once [`Self::next`] gave `None`. Without what was typed, where that could not be decrypted.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// The next chunk; `None` behind the last, when the whole file is verified.
    ///
    /// # Errors
    /// When something is not as it was written. Then nothing more can be read.
    #[allow(clippy::should_implement_trait, reason = "an iterator would have to go on after an error")]
    pub fn next(&mut self) -> Result<Option<Chunk>, Error> {
        if self.done {
            return Ok(None);
        }
        self.done = true;
        let chunk = self.unit()?;
        self.done = chunk.is_none();
        Ok(chunk)
    }

    /// The chain and the number that the next seal has.
    pub(super) fn link(&self) -> (Chain, u64) {
        (self.chain.clone(), self.next)
    }

    fn unit(&mut self) -> Result<Option<Chunk>, Error> {
        self.input.begin(self.so_far.until);
        let Some((kind, mut frame)) = self.input.frame()? else { return Err(self.input.truncated()) };
        match (kind, self.is_encrypted()) {
            (Kind::End, _) | (Kind::Content, false) | (Kind::Hidden, true) => {}
            _ => return Err(self.input.altered(Fault::Frame)),
        }
        let len = frame.len();
        let Seal { sequence, until, content, .. } = self.sealed(kind, &mut frame)?;
        frame.truncate(len);
        if kind == Kind::End {
            let ending = self.end(sequence, &frame[8..])?;
            self.input.begin(self.so_far.until);
            if !self.input.at_end()? {
                return Err(self.input.altered(Fault::Behind));
            }
            self.ending = Some(ending);
            return Ok(None);
        }
        let shown = match (&self.cipher, kind) {
            (Some(cipher), _) => Some(cipher.show(sequence, &mut frame[8..])),
            (None, Kind::Content) => Some(Ok(&frame[..])),
            (None, _) => None,
        };
        let tape = match shown {
            Some(shown) => {
                let tape = shown.and_then(|frame| self.tape(frame, content));
                Some(tape.map_err(|fault| self.input.altered(fault))?)
            }
            None => None,
        };
        self.first = false;
        self.so_far.chunks += 1;
        Ok(Some(Chunk { number: sequence, until, content, tape }))
    }

    /// Content as it was compressed into a tape of whole pieces.
    fn tape(&self, frame: &[u8], len: u64) -> Result<Vec<u8>, Fault> {
        let content = squeeze::content(frame, len).ok_or(Fault::Decompress)?;
        if self.head.facts.tty {
            return cast::read(&content, self.first).map_err(Fault::Cast);
        }
        let mut rest = &content[..];
        while tape::next(&mut rest).map_err(Fault::Tape)?.is_some() {}
        Ok(content)
    }

    fn end(&self, sequence: u64, json: &[u8]) -> Result<Ending, Error> {
        let wrong = |error| self.input.altered(Fault::Json(error));
        let End { mut ending, hidden_typed } = serde_json::from_slice(json).map_err(wrong)?;
        if let (Some(cipher), Some(hidden)) = (&self.cipher, hidden_typed) {
            let hidden = BASE64_STANDARD.decode(hidden).map_err(|_| Fault::Decrypt);
            let typed = hidden.and_then(|mut hidden| {
                let json = cipher.show(sequence, &mut hidden)?;
                serde_json::from_slice(json).map_err(Fault::Json)
            });
            ending.typed = typed.map_err(|fault| self.input.altered(fault))?;
        }
        Ok(ending)
    }

    /// Verifies the seal behind a frame of this kind, to which the pad between them is appended.
    fn sealed(&mut self, of: Kind, frame: &mut Vec<u8>) -> Result<Seal, Error> {
        let next = |input: &mut Input<R>| input.frame()?.ok_or_else(|| input.truncated());
        let (mut kind, mut seal) = next(&mut self.input)?;
        if kind == Kind::Pad && matches!(of, Kind::Content | Kind::Hidden) {
            frame.append(&mut seal);
            (kind, seal) = next(&mut self.input)?;
        }
        let wrong = |fault| self.input.altered(fault);
        if kind != Kind::Seal {
            return Err(wrong(Fault::Frame));
        }
        let seal = Seal::read(&seal[8..], self.key.as_ref()).map_err(wrong)?;
        if seal.sequence != self.next {
            return Err(wrong(Fault::Sequence { have: seal.sequence, want: self.next }));
        }
        let chain = self.chain.after(frame);
        if seal.chain != chain.link() {
            return Err(wrong(Fault::Chain));
        }
        self.chain = chain;
        self.next += 1;
        self.so_far.until = Some(seal.until);
        self.so_far.moved = seal.moved;
        self.so_far.content = self.so_far.content.saturating_add(seal.content);
        self.so_far.offset = self.input.offset;
        Ok(seal)
    }
}

// === impl Input ===

impl<R: Read> Input<R> {
    /// The next frame, all of it; `None` at the end of the file.
    fn frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, Error> {
        if self.at_end()? {
            return Ok(None);
        }
        let mut frame = Vec::new();
        let [a, b, c, d] = *self.take::<4>(&mut frame)?;
        let kind = Kind::from_magic(u32::from_le_bytes([a, b, c, d]));
        let kind = kind.ok_or_else(|| self.altered(Fault::Frame))?;
        if kind == Kind::Content {
            self.blocks(&mut frame)?;
        } else {
            let len = u32::from_le_bytes(*self.take::<4>(&mut frame)?);
            self.fill(kind, len.into(), &mut frame)?;
        }
        self.frame += 1;
        Ok(Some((kind, frame)))
    }

    /// The rest of a zstd frame: its header, its blocks, its checksum. Source: RFC 8878 section 3.1.1.
    fn blocks(&mut self, frame: &mut Vec<u8>) -> Result<(), Error> {
        const SINGLE_SEGMENT: u8 = 1 << 5;
        const CHECKSUM: u8 = 1 << 2;
        let [descriptor] = *self.take::<1>(frame)?;
        let single = descriptor & SINGLE_SEGMENT != 0;
        let window = u64::from(!single);
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size = [u64::from(single), 2, 4, 8][usize::from(descriptor >> 6)];
        self.fill(Kind::Content, window + dictionary + size, frame)?;
        loop {
            let [a, b, c] = *self.take::<3>(frame)?;
            let head = u32::from_le_bytes([a, b, c, 0]);
            // A block of one byte that is repeated takes one, whatever its size.
            let len = match head >> 1 & 3 {
                0 | 2 => head >> 3,
                1 => 1,
                _ => return Err(self.altered(Fault::Frame)),
            };
            self.fill(Kind::Content, len.into(), frame)?;
            if head & 1 != 0 {
                let checksum = if descriptor & CHECKSUM == 0 { 0 } else { 4 };
                return self.fill(Kind::Content, checksum, frame);
            }
        }
    }

    /// So many bytes more.
    fn take<'a, const N: usize>(&mut self, frame: &'a mut Vec<u8>) -> Result<&'a [u8; N], Error> {
        self.fill(Kind::Content, N as u64, frame)?;
        frame.last_chunk().ok_or_else(|| self.truncated())
    }

    /// So many bytes more, unless the frame would then be too long. Takes no memory for what does not come.
    fn fill(&mut self, kind: Kind, len: u64, frame: &mut Vec<u8>) -> Result<(), Error> {
        let whole = frame.len() as u64 + len;
        if whole > kind.limit() as u64 + 8 {
            return Err(self.altered(Fault::Length(whole)));
        }
        let read = self.read.by_ref().take(len).read_to_end(frame).map_err(Error::Read)? as u64;
        self.offset += read;
        if read < len { Err(self.truncated()) } else { Ok(()) }
    }

    fn at_end(&mut self) -> Result<bool, Error> {
        loop {
            match self.read.fill_buf() {
                Ok(bytes) => return Ok(bytes.is_empty()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
    }

    /// What is read from now on is for the next seal.
    fn begin(&mut self, good_until: Option<Duration>) {
        self.unit = Place { frame: self.frame, offset: self.offset, good_until };
    }

    fn altered(&self, fault: Fault) -> Error {
        Error::Altered { at: self.unit, fault }
    }

    fn truncated(&self) -> Error {
        Error::Truncated { at: self.unit }
    }
}
