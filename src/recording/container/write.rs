//! Write: facts, tapes and an ending into the bytes of a file.

use std::time::Duration;

use serde::Serialize;

use super::seal::{self, Chain, Cipher, Head, Seal};
use super::squeeze::{Content, Squeeze};
use super::{
    Error, FRAME_HEAD, Kind, LARGE, MAGIC, MAX_CAST, MAX_CONTENT, MAX_END, MAX_HEAD, MAX_RECIPIENTS, VERSION,
};
use crate::recording::cast;
use crate::recording::facts::{Details, Ending, Facts};
use crate::recording::keys::{Keys, SigningKey};
use crate::wire::tap::Moved;
use crate::wire::tape::{self, ALIGN, Buffer, Connection, HEAD, Piece, Reel, Tape};

/// What pads consist of: not zeros, which are what a torn file ends with.
const PADDING: u8 = b' ';

/// Writes one recording. What it appends has to become the file, all of it and in this order: bytes that cannot be
/// written now are kept and tried again before anything else is asked for. After an error it is of no use any more.
#[derive(Debug)]
pub struct Writer {
    signing: SigningKey,
    cipher: Option<Cipher>,
    chain: Chain,
    sequence: u64,
    /// Bytes so far, those of a part without its seal not counted.
    written: usize,
    until: Duration,
    moved: Moved,
    squeeze: Squeeze,
    /// Where there is a terminal.
    cast: Option<cast::Writer>,
}

/// The ending, as its frame has it.
#[derive(Debug, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct End {
    /// Without what was typed, where that is hidden.
    pub(super) ending: Ending,
    /// What was typed, encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) hidden_typed: Option<String>,
}

// === impl Writer ===

impl Writer {
    /// Begins a recording: appends its head and its details, sealed.
    ///
    /// # Errors
    /// When facts or details are too large, there are too many recipients, or a key cannot be used.
    pub fn begin(facts: &Facts, details: &Details, keys: &Keys, out: &mut Buffer) -> Result<Self, Error> {
        if keys.recipients.len() > MAX_RECIPIENTS {
            return Err(Error::Size { what: "recipients", bytes: keys.recipients.len() });
        }
        let hidden = (!keys.recipients.is_empty())
            .then(|| Cipher::new(&facts.id, &keys.recipients).map_err(Error::Key))
            .transpose()?;
        let (cipher, recipients) = hidden.unzip();
        let recipients = recipients.unwrap_or_default();
        let key = keys.signing.verifying().id().to_owned();
        let head = Head { version: VERSION, key, recipients, facts: facts.clone() };
        let from = out.len();
        Kind::Head.put(out.bytes(), |out| {
            out.extend_from_slice(MAGIC);
            json("facts", &head, MAX_HEAD - MAGIC.len(), out)
        })?;
        let mut writer = Self {
            signing: keys.signing.clone(),
            cipher,
            chain: Chain::new(&out[from..]),
            sequence: 0,
            written: out.len() - from,
            until: Duration::ZERO,
            moved: Moved::default(),
            squeeze: Squeeze::new(),
            cast: facts.tty.then(|| cast::Writer::new(facts, details)),
        };
        let from = out.len();
        Kind::Details.put(out.bytes(), |out| {
            let from = out.len();
            json("details", details, MAX_HEAD - 16, out)?;
            writer.hide(from, out)
        })?;
        writer.seal(from, 0, out)?;
        Ok(writer)
    }

    /// Appends what was on a tape, sealed; as several chunks where it is large. Where nothing is to be done to it, and
    /// nothing is in `out` yet, the two change their buffers.
    ///
    /// # Errors
    /// When the compressor fails, or a key cannot be used.
    pub fn chunk(&mut self, reel: &mut Reel, out: &mut Buffer) -> Result<(), Error> {
        let most = if self.cast.is_some() { MAX_CAST } else { MAX_CONTENT };
        if reel.is_empty() {
            return Ok(());
        }
        if reel.len() <= most {
            return self.one(reel, out);
        }
        let mut part = Tape::default();
        for Piece { at, kind, bytes } in reel.pieces() {
            if part.len() + HEAD + bytes.len() > most {
                self.one(&mut part.take(), out)?;
            }
            part.at(at);
            part.put(kind, bytes);
        }
        self.one(&mut part.take(), out)
    }

    /// Ends the recording. Typed lines that are too many are left out, the last ones first.
    ///
    /// # Errors
    /// When the rest of the ending is too large, or a key cannot be used.
    pub fn end(mut self, ending: &Ending, out: &mut Buffer) -> Result<(), Error> {
        if self.cast.as_ref().is_some_and(cast::Writer::is_new) {
            self.one(&mut Reel::default(), out)?;
        }
        let mut ending = ending.clone();
        // As JSON and as base64 of JSON, no line takes more than this.
        let mut room = MAX_END / 2;
        ending.typed.retain(|typed| {
            room = room.saturating_sub(typed.line.len() * 6 + 80);
            room > 0
        });
        let mut hidden_typed = None;
        if self.cipher.is_some() && !ending.typed.is_empty() {
            let mut typed = Vec::new();
            json("typed lines", &std::mem::take(&mut ending.typed), MAX_END, &mut typed)?;
            self.hide(0, &mut typed)?;
            hidden_typed = Some(base64(&typed));
        }
        let from = out.len();
        Kind::End.put(out.bytes(), |out| json("the ending", &End { ending, hidden_typed }, MAX_END, out))?;
        self.seal(from, 0, out)
    }

    fn one(&mut self, reel: &mut Reel, out: &mut Buffer) -> Result<(), Error> {
        for piece in reel.pieces() {
            count(&mut self.moved, &piece);
            self.until = self.until.max(piece.at);
        }
        let content = match &mut self.cast {
            Some(cast) => {
                // What it mostly comes to.
                let mut lines = Vec::with_capacity(reel.len() + reel.len() / 4);
                cast.write(reel.pieces(), &mut lines);
                Content::Lines(lines)
            }
            None => Content::Reel(reel),
        };
        let len = content.len();
        if len > MAX_CONTENT {
            return Err(Error::Size { what: "a chunk", bytes: len });
        }
        let from = out.len();
        let hidden = self.cipher.as_ref().map(|_| Kind::Hidden.begin(out.bytes()));
        self.squeeze.frame(self.until, content, out).map_err(Error::Compress)?;
        if let Some(hidden) = hidden {
            self.hide(hidden, out.bytes())?;
            Kind::end(hidden, out.bytes());
        }
        if out.len() - from >= LARGE {
            self.pad(out.len() - from, out.bytes())?;
        }
        self.seal(from, len as u64, out)
    }

    /// Appends so much that the seal behind it ends where the next part is to begin.
    fn pad(&self, len: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let end = self.written + len + 2 * FRAME_HEAD + seal::LEN;
        let pad = end.next_multiple_of(ALIGN) - end;
        Kind::Pad.put(out, |out| {
            out.resize(out.len() + pad, PADDING);
            Ok(())
        })
    }

    /// Encrypts what is behind `from`, if anything is to be.
    fn hide(&self, from: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let Some(cipher) = &self.cipher else { return Ok(()) };
        cipher.hide(self.sequence, from, out).map_err(Error::Key)
    }

    /// Appends the seal of the frame that begins there.
    fn seal(&mut self, from: usize, content: u64, out: &mut Buffer) -> Result<(), Error> {
        self.chain = self.chain.after(&out[from..]);
        let Self { sequence, until, moved, .. } = *self;
        let seal = Seal { sequence, until, content, moved, chain: self.chain.link() };
        self.sequence += 1;
        Kind::Seal.put(out.bytes(), |out| seal.put(&self.signing, out)).map_err(Error::Key)?;
        self.written += out.len() - from;
        Ok(())
    }
}

/// Appends JSON within a limit.
pub(super) fn json(
    what: &'static str,
    value: &impl Serialize,
    limit: usize,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let from = out.len();
    serde_json::to_writer(&mut *out, value).expect("text and numbers are JSON");
    let bytes = out.len() - from;
    if bytes > limit { Err(Error::Size { what, bytes }) } else { Ok(()) }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

/// Adds what a piece says of bytes.
fn count(moved: &mut Moved, piece: &Piece<'_>) {
    let len = piece.bytes.len() as u64;
    match piece.kind {
        tape::Kind::Stdin => moved.stdin += len,
        tape::Kind::Stdout => moved.stdout += len,
        tape::Kind::Stderr => moved.stderr += len,
        tape::Kind::Withheld => {
            let withheld = std::str::from_utf8(piece.bytes).ok().and_then(|text| text.parse::<u64>().ok());
            moved.stdin = moved.stdin.saturating_add(withheld.unwrap_or(0));
        }
        tape::Kind::Connection => {
            if let Ok(Connection { open, up, down, .. }) = serde_json::from_slice(piece.bytes) {
                moved.connections += u64::from(open);
                moved.up = moved.up.saturating_add(if open { 0 } else { up });
                moved.down = moved.down.saturating_add(if open { 0 } else { down });
            }
        }
        // What podgate said itself did not pass.
        tape::Kind::Result
        | tape::Kind::Resize
        | tape::Kind::StdinEnd
        | tape::Kind::Gap
        | tape::Kind::Typed
        | tape::Kind::Told => {}
    }
}
