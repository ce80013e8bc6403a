//! Base64 as Go reads and writes it, in pieces cut anywhere.
//!
//! Go skips line ends and does not look at the bits that are left over in the last digit; so does this.
//! Source: RFC 4648 sections 4 and 5; Go encoding/base64 (`StdEncoding`, `RawURLEncoding`).

use bytes::{BufMut, BytesMut};

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// No digit of any alphabet.
const NONE: u8 = 0xff;

static STANDARD_VALUES: [u8; 256] = values([b'+', b'/']);
static URL_VALUES: [u8; 256] = values([b'-', b'_']);

/// The bytes are not base64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) struct Invalid;

/// Base64 of one message into bytes.
#[derive(Debug)]
pub(in crate::wire) struct Decoder {
    url: bool,
    /// The digits of a group that is not whole yet.
    group: u32,
    /// How many there are, 0 to 3.
    digits: u8,
    /// How many `=` followed them.
    padding: u8,
    /// The last group was padded: nothing but line ends may follow.
    done: bool,
}

impl Decoder {
    /// The standard alphabet, padded.
    pub(in crate::wire) fn standard() -> Self {
        Self { url: false, group: 0, digits: 0, padding: 0, done: false }
    }

    /// The alphabet for URLs, without padding.
    pub(in crate::wire) fn url() -> Self {
        Self { url: true, ..Self::standard() }
    }

    /// Appends what the next digits say. After an error there is no use in going on.
    pub(in crate::wire) fn push(&mut self, input: &[u8], out: &mut BytesMut) -> Result<(), Invalid> {
        out.reserve(input.len() / 4 * 3 + 3);
        let values = if self.url { &URL_VALUES } else { &STANDARD_VALUES };
        for byte in input {
            match values[usize::from(*byte)] {
                NONE if matches!(byte, b'\r' | b'\n') => {}
                NONE if *byte == b'=' => self.pad(out)?,
                NONE => return Err(Invalid),
                _ if self.done || self.padding > 0 => return Err(Invalid),
                value => {
                    self.group = self.group << 6 | u32::from(value);
                    self.digits += 1;
                    if self.digits == 4 {
                        out.put_slice(&self.group.to_be_bytes()[1..]);
                        (self.group, self.digits) = (0, 0);
                    }
                }
            }
        }
        Ok(())
    }

    /// The input is over. Appends the last bytes where there is no padding to tell of them.
    pub(in crate::wire) fn finish(&mut self, out: &mut BytesMut) -> Result<(), Invalid> {
        match self.digits {
            0 => Ok(()),
            2.. if self.url => {
                self.flush(out);
                Ok(())
            }
            _ => Err(Invalid),
        }
    }

    fn pad(&mut self, out: &mut BytesMut) -> Result<(), Invalid> {
        if self.url || self.digits < 2 {
            return Err(Invalid);
        }
        self.padding += 1;
        if self.digits + self.padding == 4 {
            self.flush(out);
            self.done = true;
        }
        Ok(())
    }

    /// Appends the one or two bytes of two or three digits.
    fn flush(&mut self, out: &mut BytesMut) {
        let group = (self.group << (6 * (4 - u32::from(self.digits)))).to_be_bytes();
        out.put_slice(&group[1..usize::from(self.digits)]);
        (self.group, self.digits, self.padding) = (0, 0, 0);
    }
}

/// Length of the standard form of `len` bytes.
pub(in crate::wire) fn encoded_len(len: usize) -> usize {
    len.div_ceil(3) * 4
}

/// Appends the standard form, padded.
pub(in crate::wire) fn encode(bytes: &[u8], out: &mut BytesMut) {
    out.reserve(encoded_len(bytes.len()));
    for three in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=three.len()].copy_from_slice(three);
        let group = u32::from_be_bytes(group);
        for at in 0..4 {
            let digit = STANDARD[(group >> (18 - 6 * at) & 0x3f) as usize];
            out.put_u8(if at <= three.len() { digit } else { b'=' });
        }
    }
}

const fn values(last: [u8; 2]) -> [u8; 256] {
    let mut values = [NONE; 256];
    let mut at = 0;
    while at < 62 {
        values[STANDARD[at] as usize] = at as u8;
        at += 1;
    }
    values[last[0] as usize] = 62;
    values[last[1] as usize] = 63;
    values
}
