//! Forge: files whose seals are good and whose parts are anything, to see what a reader makes of them. For tests.

use std::time::Duration;

use super::seal::{Chain, Seal};
use super::{Kind, Reader, Trust, Writer};
use crate::recording::facts::{Details, Facts};
use crate::recording::keys::{Keys, SigningKey};
use crate::wire::tap::Moved;
use crate::wire::tape::Buffer;

/// A file that grows.
#[derive(Debug)]
pub struct Forged {
    /// All of it so far.
    pub bytes: Vec<u8>,
    key: SigningKey,
    chain: Chain,
    sequence: u64,
}

/// A file with a good head and good details, in the clear.
///
/// # Panics
/// When the facts are too large.
pub fn begin(facts: &Facts, key: &SigningKey) -> Forged {
    let mut buffer = Buffer::default();
    let keys = Keys { signing: key.clone(), recipients: Vec::new() };
    Writer::begin(facts, &Details::default(), &keys, &mut buffer).expect("facts are small");
    let bytes = buffer.to_vec();
    let reader = Reader::open(&bytes[..], Trust::Anyone, &[]).expect("it is just written");
    let (chain, sequence) = reader.link();
    Forged { bytes, key: key.clone(), chain, sequence }
}

// === impl Forged ===

impl Forged {
    /// Appends a part and its seal: a skippable frame of one of podgate's kinds, or these bytes as they are.
    ///
    /// # Panics
    /// When the key does not sign.
    pub fn part(&mut self, kind: u32, content: u64, bytes: &[u8]) {
        let from = self.bytes.len();
        let kinds = [Kind::Head, Kind::Details, Kind::Hidden, Kind::Seal, Kind::End];
        match kinds.into_iter().find(|one| *one as u32 == kind) {
            Some(kind) => {
                let put = kind.put(&mut self.bytes, |out| {
                    out.extend_from_slice(bytes);
                    Ok::<_, ()>(())
                });
                put.expect("memory takes all");
            }
            None => self.bytes.extend_from_slice(bytes),
        }
        self.chain = self.chain.after(&self.bytes[from..]);
        let (until, moved) = (Duration::ZERO, Moved::default());
        let seal = Seal { sequence: self.sequence, until, content, moved, chain: self.chain.link() };
        self.sequence += 1;
        Kind::Seal.put(&mut self.bytes, |out| seal.put(&self.key, out)).expect("the key signs");
    }
}
