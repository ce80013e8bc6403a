//! Container: the file a recording is, from its first byte to its last.
//!
//! A file is a row of Zstandard frames, so that `zstd -dc` shows its content with stock tools: content is in ordinary
//! frames, and all else in frames that such tools skip. In front stand the facts, in the clear; then the details, the
//! content chunk by chunk, and the ending. Behind each of these stands a seal: a link of a hash chain over every byte
//! so far, and a signature over that. docs/recording.md has it byte by byte.
//!
//! No I/O but that of the caller: the [`Writer`] appends to memory, the [`Reader`] takes any `Read`.
//! Invariants: nothing of a file is believed before its seal is verified; nothing is allocated for a length that a file
//! only announces; every limit below holds on writing too, so that what is written can be read.
//! Sources: RFC 8878 sections 3.1.1 (frames) and 3.1.2 (skippable frames).

#[cfg(any(test, feature = "testing"))]
pub mod forge;
mod open;
mod recover;
mod seal;
mod squeeze;
mod write;

use std::fmt;
use std::time::Duration;

pub use open::{Chunk, Reader, SoFar, Trust};
pub use recover::{Recovered, recover};
pub use write::Writer;

use crate::recording::{cast, keys};
use crate::wire::tape::{self, ALIGN};

/// What the head begins with, for people and for tools that tell files apart.
const MAGIC: &[u8] = b"podgate recording\n";

/// The only form of the file so far.
const VERSION: u32 = 1;

/// Most bytes of facts, and of details: well beyond the most that the header of a request may hold.
const MAX_HEAD: usize = 1 << 20;

/// Most bytes of the ending: typed lines of a long day.
const MAX_END: usize = 16 << 20;

/// Most bytes of content in a chunk.
const MAX_CONTENT: usize = 4 << 20;

/// Most bytes of tape in a chunk that becomes a cast; larger ones become several chunks. As a cast, a byte of tape is less than 12: a piece of
/// three bytes, the end of a character, no text, and the beginning of another, is 191 instead of 16. Others are less,
/// long ones at most 7.4 times as much (control characters with a byte among them that is not UTF-8).
const MAX_CAST: usize = MAX_CONTENT / 12;

/// Most bytes of a frame with content, whose bytes may be beyond compression: zstd's bound, and a tag.
const MAX_FRAME: usize = MAX_CONTENT + MAX_CONTENT / 128 + 1024;

/// Chunks of so many bytes end at a multiple of [`ALIGN`] in the file. For smaller ones that would take too much room.
const LARGE: usize = 64 * ALIGN;

/// Most recipients: each is some work at the beginning of every session.
pub const MAX_RECIPIENTS: usize = 64;

/// The first four bytes of a frame that decompressors skip; its last four bits are ours. Source: RFC 8878 section 3.1.2.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Magic and length of a skippable frame.
const FRAME_HEAD: usize = 8;

/// What a frame is; skippable ones have their number in their magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Facts, key id, and the data key for each recipient.
    Head = 0,
    /// Details.
    Details = 1,
    /// An encrypted zstd frame.
    Hidden = 2,
    /// What proves the frame before it, and by the chain all before that.
    Seal = 3,
    /// The ending.
    End = 4,
    /// What is between a large chunk and its seal, so that this ends at a multiple of [`ALIGN`].
    Pad = 5,
    /// Content in the clear: the only one that is not skippable.
    Content = 16,
}

/// What is wrong with a recording, or with what should become one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is to be recorded is no tape.
    #[error("what is to be recorded is no tape")]
    Tape(#[source] tape::Error),
    /// Facts, details or an ending beyond their limit.
    #[error("{what} of {bytes} bytes are too much for a recording")]
    Size {
        /// What it is.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A key cannot be used.
    #[error("use a key of the recording")]
    Key(#[source] keys::Error),
    /// The compressor failed.
    #[error("compress a chunk of the recording")]
    Compress(#[source] std::io::Error),
    /// The file cannot be read.
    #[error("read the recording")]
    Read(#[source] std::io::Error),
    /// Something else than a recording.
    #[error("it is not a recording of podgate's")]
    NotARecording,
    /// A recording of another version of podgate.
    #[error("it is a recording of version {0}, and this podgate reads version {VERSION}")]
    Version(u32),
    /// Signed with a key that is not trusted.
    #[error("it is signed with the key {id}, which is none of those given")]
    Stranger {
        /// The key.
        id: String,
    },
    /// None of the identities given can read it.
    #[error("none of the identities given is a recipient of it")]
    NotForYou,
    /// Not what podgate wrote.
    #[error("altered {at}: {fault}")]
    Altered {
        /// Where.
        at: Place,
        /// How that shows.
        #[source]
        fault: Fault,
    },
    /// The file is over before the recording is.
    #[error("truncated {at}")]
    Truncated {
        /// Where.
        at: Place,
    },
}

/// How it shows that a file was altered.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A frame that has no place there.
    #[error("a frame that has no place there")]
    Frame,
    /// A frame beyond its limit.
    #[error("a frame of {0} bytes")]
    Length(u64),
    /// Chunks are missing, double or in another order.
    #[error("the seal is number {have} and not {want}")]
    Sequence {
        /// What it says.
        have: u64,
        /// What it has to be.
        want: u64,
    },
    /// Other bytes than those that were sealed.
    #[error("the bytes are not those that were sealed")]
    Chain,
    /// The seal itself.
    #[error("the signature does not fit")]
    Signature,
    /// Sealed by podgate, and yet of no use.
    #[error("the content cannot be decrypted")]
    Decrypt,
    /// Sealed by podgate, and yet of no use.
    #[error("the content cannot be decompressed")]
    Decompress,
    /// Sealed by podgate, and yet of no use.
    #[error("the content is not as podgate writes it")]
    Cast(#[source] cast::Error),
    /// Sealed by podgate, and yet of no use.
    #[error("the content is not as podgate writes it")]
    Tape(#[source] tape::Error),
    /// Sealed by podgate, and yet of no use.
    #[error("facts, details or the ending are not as podgate writes them")]
    Json(#[source] serde_json::Error),
    /// Bytes behind the end.
    #[error("there is something behind the end")]
    Behind,
}

/// Where in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The frame, counted from 0; its seal counts with it.
    pub frame: u64,
    /// Where that begins, in bytes.
    pub offset: u64,
    /// Up to when in the session all is as recorded; `None` when nothing is.
    pub good_until: Option<Duration>,
}

// === impl Kind ===

impl Kind {
    fn from_magic(magic: u32) -> Option<Self> {
        let skippable = [Self::Head, Self::Details, Self::Hidden, Self::Seal, Self::End, Self::Pad];
        if magic == tape::MAGIC {
            return Some(Self::Content);
        }
        skippable.into_iter().find(|kind| SKIPPABLE | *kind as u32 == magic)
    }

    /// Most bytes of one, its first eight not counted.
    fn limit(self) -> usize {
        match self {
            Self::Head | Self::Details => MAX_HEAD,
            Self::Hidden | Self::Content => MAX_FRAME,
            Self::Seal => seal::LEN,
            Self::End => MAX_END,
            Self::Pad => ALIGN,
        }
    }

    /// Appends a skippable frame, whose content `fill` appends.
    fn put<E>(self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let content = self.begin(out);
        fill(out)?;
        Self::end(content, out);
        Ok(())
    }

    /// Appends the head of a skippable frame; where its content begins.
    fn begin(self, out: &mut Vec<u8>) -> usize {
        out.extend_from_slice(&(SKIPPABLE | self as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.len()
    }

    /// Ends the skippable frame whose content began there.
    fn end(content: usize, out: &mut [u8]) {
        let len = u32::try_from(out.len() - content).expect("a frame is within its limit");
        out[content - 4..content].copy_from_slice(&len.to_le_bytes());
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in frame {} at byte {}", self.frame, self.offset)?;
        match self.good_until {
            Some(until) => write!(f, ", as recorded until {:.6} s", until.as_secs_f64()),
            None => f.write_str(", nothing before it is proven"),
        }
    }
}

#[cfg(test)]
mod tests;
