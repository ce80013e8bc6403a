//! Text: what a recording says, line by line, and a short signature of it.
//!
//! The text of a channel is what was written in the order in which it was written, without what only moves the cursor
//! or changes colours. For a shell that is what was seen; what a full-screen program draws is in it too, in the order of
//! its drawing. A [`Signature`] tells of a text that it is not in a recording, without opening that; so that a search
//! opens few of many.
//! Invariants: memory is bounded, whatever is fed; a signature never says no to text that is there.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vte::{Params, Parser, Perform};

use super::safe::advance;

/// Longest line, in bytes. A longer one is several.
const MAX_LINE: usize = 4096;

/// Bits that are kept while a session lives, as a power of two: 16 KiB.
const MOST_BITS: u32 = 17;

/// Bits of the smallest signature, as a power of two.
const LEAST_BITS: u32 = 9;

/// Bytes of a session that are read for a signature, whether they are text or not: it is made while the session lives, and
/// what is more is a bulk copy. The signature then says "maybe" to everything.
const MAX_READ: usize = 1 << 20;

/// Lines of one channel.
#[derive(Default)]
pub struct Lines {
    parser: Parser,
    line: Line,
}

#[derive(Debug, Default)]
struct Line {
    text: String,
    began: Duration,
    now: Duration,
    /// A carriage return that has not been followed by anything yet.
    returned: bool,
}

/// The parser's other side.
struct Draw<'a, F> {
    line: &'a mut Line,
    each: &'a mut F,
}

/// Which groups of three bytes are in a text, and a few more. Letters of ASCII count as small ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// A power of two; empty where it would say "maybe" to everything.
    bits: Vec<u8>,
}

/// Makes a [`Signature`].
#[derive(Debug)]
pub struct Signer {
    bits: Vec<u8>,
    left: usize,
}

// === impl Lines ===

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl Lines {
    /// Takes bytes, and hands on each line that they end, with the time of its first character.
    pub fn push(&mut self, at: Duration, bytes: &[u8], each: &mut impl FnMut(Duration, &str)) {
        self.line.now = at;
        let mut draw = Draw { line: &mut self.line, each };
        advance(&mut self.parser, &mut draw, bytes);
    }

    /// Hands on what is left.
    pub fn finish(mut self, each: &mut impl FnMut(Duration, &str)) {
        self.line.end(each);
    }
}

// === impl Line ===

impl Line {
    fn end(&mut self, each: &mut impl FnMut(Duration, &str)) {
        if !self.text.is_empty() {
            each(self.began, &self.text);
            self.text.clear();
        }
        self.returned = false;
    }
}

// === impl Draw ===

impl<F: FnMut(Duration, &str)> Perform for Draw<'_, F> {
    fn print(&mut self, c: char) {
        if self.line.returned || self.line.text.len() >= MAX_LINE {
            self.line.end(self.each);
        }
        if self.line.text.is_empty() {
            self.line.began = self.line.now;
        }
        self.line.text.push(c);
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            b'\n' | 0x0b | 0x0c => self.line.end(self.each),
            b'\r' => self.line.returned = true,
            b'\t' => self.print('\t'),
            0x08 => {
                self.line.text.pop();
            }
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, _: &Params, _: &[u8], _: bool, action: char) {
        // Goes somewhere else.
        if matches!(action, 'A' | 'B' | 'E' | 'F' | 'H' | 'd' | 'f') {
            self.line.end(self.each);
        }
    }
}

// === impl Signature ===

impl Signature {
    /// Says "maybe" to everything.
    pub fn anything() -> Self {
        Self { bits: Vec::new() }
    }

    /// False when this text, in whatever case, is in no line of the recording.
    pub fn may_have(&self, text: &str) -> bool {
        if self.bits.is_empty() {
            return true;
        }
        let text = text.to_ascii_lowercase();
        groups(text.as_bytes()).all(|bit| {
            let bit = bit & (self.bits.len() * 8 - 1);
            self.bits[bit / 8] & 1 << (bit % 8) != 0
        })
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        BASE64_STANDARD.encode(&self.bits).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature {
    /// What is of no use says "maybe" to everything.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bits = BASE64_STANDARD.decode(text.as_bytes()).unwrap_or_default();
        let usable = bits.len().is_power_of_two() && bits.len() <= 1 << (MOST_BITS - 3);
        Ok(Self { bits: if usable { bits } else { Vec::new() } })
    }
}

// === impl Signer ===

impl Default for Signer {
    fn default() -> Self {
        Self { bits: vec![0; 1 << (MOST_BITS - 3)], left: MAX_READ }
    }
}

impl Signer {
    /// True when more text would change nothing.
    pub fn is_full(&self) -> bool {
        self.left == 0
    }

    /// So many bytes are read for it. Without this being told there is no bound.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Takes a line.
    pub fn line(&mut self, line: &str) {
        if self.is_full() {
            return;
        }
        let mut small = [0; MAX_LINE + 4];
        let len = line.len().min(small.len());
        small[..len].copy_from_slice(&line.as_bytes()[..len]);
        small[..len].make_ascii_lowercase();
        for bit in groups(&small[..len]) {
            self.bits[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// As small as it can be for what is in it.
    pub fn finish(mut self) -> Signature {
        let fill = |bits: &[u8]| bits.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
        // More than half of the bits would tell too little.
        if self.is_full() || fill(&self.bits) > self.bits.len() * 4 {
            return Signature::anything();
        }
        while self.bits.len() > 1 << (LEAST_BITS - 3) {
            let (low, high) = self.bits.split_at(self.bits.len() / 2);
            let folded: Vec<u8> = low.iter().zip(high).map(|(a, b)| a | b).collect();
            if fill(&folded) > folded.len() * 2 {
                break;
            }
            self.bits = folded;
        }
        Signature { bits: self.bits }
    }
}

/// A bit for each three bytes in a row.
fn groups(text: &[u8]) -> impl Iterator<Item = usize> {
    text.windows(3).map(|group| {
        let number = u32::from(group[0]) | u32::from(group[1]) << 8 | u32::from(group[2]) << 16;
        // Fibonacci hashing: the upper bits are the good ones.
        (number.wrapping_mul(0x9e37_79b1) >> (32 - MOST_BITS)) as usize
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(bytes: &[u8], step: usize) -> Vec<String> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut each = |_: Duration, line: &str| found.push(line.to_owned());
        bytes.chunks(step).for_each(|bytes| lines.push(Duration::ZERO, bytes, &mut each));
        lines.finish(&mut each);
        found
    }

    #[test]
    fn lines_are_what_was_seen_of_a_shell() {
        let shown = b"$ l\x08l\x1b[01;31ms\x1b[0m -l\r\n\x1b]0;title\x07a\xffb\r\n10%\r20%\r\n\x1b[2;1Hup\x1b[5;1Hdown";
        for step in [1, 2, 100] {
            assert_eq!(lines(shown, step), ["$ ls -l", "a\u{fffd}b", "10%", "20%", "up", "down"]);
        }
        let long = vec![b'x'; 3 * MAX_LINE];
        assert_eq!(lines(&long, 1000).iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE; 3]);
    }

    #[test]
    fn a_signature_is_small_and_says_no_to_most_that_is_not_there() {
        let mut signer = Signer::default();
        (0..200).for_each(|i| signer.line(&format!("file-{i}.txt of the user ana in /srv/shop/{i}")));
        let signature = signer.finish();
        assert!(signature.may_have("FILE-17.txt") && signature.may_have("ab"));
        let absent = (0..100).filter(|i| signature.may_have(&format!("{i}needle{i}"))).count();
        assert_eq!(absent, 0);
        assert!(signature.bits.len() <= 512, "{} bytes", signature.bits.len());
        let mut signer = Signer::default();
        signer.line(&"x".repeat(MAX_LINE + 4));
        signer.spend(MAX_READ);
        assert_eq!(signer.finish(), Signature::anything());
    }

    proptest! {
        #[test]
        fn a_signature_never_says_no_to_text_that_is_there(
            lines in prop::collection::vec("\\PC{0,40}", 0..40),
            from in 0usize..40,
            len in 0usize..20,
        ) {
            let mut signer = Signer::default();
            lines.iter().for_each(|line| signer.line(line));
            let signature = signer.finish();
            let json = serde_json::to_string(&signature).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Signature>(&json).unwrap(), &signature);
            for line in lines {
                let part: String = line.chars().skip(from).take(len).collect();
                prop_assert!(signature.may_have(&part));
            }
        }
    }
}
