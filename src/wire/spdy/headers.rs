//! Header blocks: plain form, inflate side and deflate side.
//!
//! Owns one [`Inflater`] or [`Deflater`] for each direction of a connection. A direction is one zlib stream
//! for the life of the connection, so each block goes through here in wire order, also that of a stream
//! that is refused.
//! Odd choice: we deflate nothing. Blocks are written as *stored* deflate blocks, which every inflater
//! reads and which need no compressor (381 KB each); header blocks here are some 30 bytes long.
//! Another: an inflater and its window are some 40 KB, and nearly all sessions open a few streams and are then idle
//! for hours. So a direction keeps its blocks as they came, for as long as they are few, and inflates them again with
//! an inflater that the thread lends when one more comes.
//! Bounds: [`MAX_PLAIN`] bytes and [`MAX_PAIRS`] pairs a block, both ways; every count and length must fit
//! what is left of the block. A direction keeps [`REPLAYED`] bytes, or an inflater.
//! Source: SPDY 3.1 draft section 2.6.10; RFC 1950 and 1951; spdystream `spdy/{read,write}.go`.

use std::cell::Cell;

use super::{Error, dictionary};
use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

/// Most bytes one header block may have once inflated. Known peers send up to some 60; deflate can blow one
/// frame of [`MAX_CONTROL_PAYLOAD`](super::MAX_CONTROL_PAYLOAD) up to 64 MB, and one of some 20 bytes up to this,
/// which is why there is little room to spare. Beyond it the connection ends.
/// The same both ways, and far below the payload limit: what was decoded can always be encoded as stored blocks
/// again.
pub const MAX_PLAIN: usize = 4 * 1024;

/// Most name and value pairs in one block. Known peers send at most three (port-forward); RFC-sized HTTP
/// heads seldom have more than 100. Beyond it the connection ends.
pub const MAX_PAIRS: usize = 128;

// A stored block's length has 16 bits (RFC 1951 section 3.2.4); every plain block must fit one.
const _: () = assert!(MAX_PLAIN <= u16::MAX as usize);

/// Bytes of blocks, as they came and inflated, up to which they are inflated again for the next one. Some 20 streams of
/// known clients; an exec has five. A direction of more keeps its inflater. Who makes the worst of it has 2 KiB inflated
/// for each block of at least 10 bytes, as long as there is room for it here.
const REPLAYED: u64 = 2 * 1024;

/// Window of Go's inflater, in bytes; see [`Deflater::append`] for why its edge matters.
const WINDOW: usize = 32 * 1024;

/// An empty stored block: what zlib's sync flush leaves behind, and where Go's inflater hands its output
/// over.
const SYNC_FLUSH: [u8; 5] = [0x00, 0x00, 0x00, 0xff, 0xff];

/// The headers of one frame, in wire order, with lower case names.
///
/// Several values of one name travel as one value joined with NUL; they are kept so and split when asked
/// for, so that a block full of NULs costs no more memory than its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    pairs: Vec<(Bytes, Bytes)>,
}

/// The inflating end of one direction.
#[derive(Debug, Default)]
pub(super) struct Inflater {
    /// The blocks so far, while they are few.
    blocks: Vec<u8>,
    /// What has inflated them, once they are many.
    stream: Option<Decompress>,
}

thread_local! {
    static SPARE: Cell<Option<Decompress>> = const { Cell::new(None) };
}

/// The deflating end of one direction.
#[derive(Debug, Default)]
pub(super) struct Deflater {
    started: bool,
    /// Where Go's inflater stands in its window after all blocks so far.
    window_at: usize,
}

// === impl Headers ===

impl Headers {
    /// No headers: what a SYN_REPLY of every known server carries.
    pub fn new() -> Self {
        Self::default()
    }

    /// These headers with one value more. The name is lower-cased; a name that is already there gains a
    /// value.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = name.to_ascii_lowercase();
        let value = value.as_ref();
        match self.pairs.iter_mut().find(|(have, _)| have == name.as_bytes()) {
            Some((_, joined)) => *joined = [joined.as_ref(), value].join(&0).into(),
            None => self.pairs.push((name.into(), Bytes::copy_from_slice(value))),
        }
        self
    }

    /// The first value of a header, whatever the case of `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }

    /// All values of a header, whatever the case of `name`.
    pub fn values<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let pair = self.pairs.iter().find(|(have, _)| have.eq_ignore_ascii_case(name.as_bytes()));
        pair.into_iter().flat_map(|(_, joined)| joined.split(|b| *b == 0))
    }

    /// Name and value, once for each value, in wire order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.pairs
            .iter()
            .flat_map(|(name, joined)| joined.split(|b| *b == 0).map(move |value| (&name[..], value)))
    }

    /// Number of different names.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// True without any header.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Reads the plain form, which must be used up exactly.
    fn parse(plain: Vec<u8>) -> Result<Self, Error> {
        let mut plain = Bytes::from(plain);
        let count = take_u32(&mut plain)?;
        // The block may hold fewer than `MAX_PAIRS`; that shows at the first length that does not fit.
        if count > MAX_PAIRS {
            return Err(Error::TooManyHeaders { count });
        }
        let mut pairs: Vec<(Bytes, Bytes)> = Vec::with_capacity(count.min(plain.len() / 8));
        for _ in 0..count {
            let name = lower_case(take(&mut plain)?);
            let value = take(&mut plain)?;
            // Which of two would count differs between peers, so neither does (spdystream refuses too).
            if pairs.iter().any(|(have, _)| *have == name) {
                return Err(Error::DuplicateHeader);
            }
            pairs.push((name, value));
        }
        if !plain.is_empty() {
            return Err(Error::HeaderBlockSize);
        }
        Ok(Self { pairs })
    }

    /// Writes the plain form, unless a peer with our own limits would refuse it.
    pub(super) fn to_plain(&self) -> Result<Vec<u8>, Error> {
        if self.pairs.len() > MAX_PAIRS {
            return Err(Error::TooManyHeaders { count: self.pairs.len() });
        }
        let len = self.pairs.iter().fold(4, |sum, (name, value)| sum + 8 + name.len() + value.len());
        if len > MAX_PLAIN {
            return Err(Error::HeaderBlockTooLarge);
        }
        let mut plain = Vec::with_capacity(len);
        plain.put_u32(self.pairs.len() as u32);
        for (name, value) in &self.pairs {
            plain.put_u32(name.len() as u32);
            plain.put_slice(name);
            plain.put_u32(value.len() as u32);
            plain.put_slice(value);
        }
        Ok(plain)
    }
}

fn take_u32(plain: &mut Bytes) -> Result<usize, Error> {
    let (head, _) = plain.split_first_chunk::<4>().ok_or(Error::HeaderBlockSize)?;
    let number = u32::from_be_bytes(*head) as usize;
    let _ = plain.split_to(4);
    Ok(number)
}

fn take(plain: &mut Bytes) -> Result<Bytes, Error> {
    let len = take_u32(plain)?;
    if len > plain.len() {
        return Err(Error::HeaderBlockSize);
    }
    Ok(plain.split_to(len))
}

fn lower_case(name: Bytes) -> Bytes {
    if name.iter().any(u8::is_ascii_uppercase) { name.to_ascii_lowercase().into() } else { name }
}

// === impl Inflater ===

impl Inflater {
    /// Inflates and reads one header block. After an error the direction cannot be read any further.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Headers, Error> {
        Headers::parse(self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Error> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.caught_up()?,
        };
        let plain = inflate(&mut stream, block)?;
        if stream.total_in() + stream.total_out() > REPLAYED {
            self.blocks = Vec::new();
            self.stream = Some(stream);
        } else {
            self.blocks.extend_from_slice(block);
            SPARE.set(Some(stream));
        }
        Ok(plain)
    }

    /// An inflater that stands behind all blocks so far.
    fn caught_up(&self) -> Result<Decompress, Error> {
        let mut stream = SPARE.take().unwrap_or_else(|| Decompress::new(true));
        stream.reset(true);
        if !self.blocks.is_empty() {
            inflate(&mut stream, &self.blocks)?;
        }
        Ok(stream)
    }
}

fn inflate(stream: &mut Decompress, block: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    let mut rest = block;
    loop {
        // Room for the usual block in one turn; a hostile one takes `MAX_PLAIN` / 1024 turns.
        let mut chunk = [0; 1024];
        let (used, made) = (stream.total_in(), stream.total_out());
        let outcome = stream.decompress(rest, &mut chunk, FlushDecompress::Sync);
        let used = (stream.total_in() - used) as usize;
        let made = (stream.total_out() - made) as usize;
        rest = &rest[used..];
        if plain.len() + made > MAX_PLAIN {
            return Err(Error::HeaderBlockTooLarge);
        }
        plain.extend_from_slice(&chunk[..made]);
        match outcome {
            Err(error) if error.needs_dictionary().is_some() => {
                stream.set_dictionary(&dictionary::BYTES).map_err(Error::Inflate)?;
            }
            Err(error) => return Err(Error::Inflate(error)),
            Ok(Status::Ok) if made == chunk.len() => {}
            Ok(Status::Ok) if used > 0 && !rest.is_empty() => {}
            // Nothing moves any more: the block is used up, or what is left of it can never be.
            Ok(_) if rest.is_empty() => return Ok(plain),
            Ok(_) => return Err(Error::HeaderBlockSize),
        }
    }
}

// === impl Deflater ===

impl Deflater {
    /// Appends one header block. On an error nothing is written and the direction stays usable.
    pub(super) fn write(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<(), Error> {
        let plain = headers.to_plain()?;
        self.append(&plain, out);
        Ok(())
    }

    fn append(&mut self, plain: &[u8], out: &mut BytesMut) {
        if !self.started {
            self.started = true;
            self.window_at = dictionary::LEN;
            // CMF: deflate with a 32 KiB window. FLG: level 3, FDICT, check bits.
            out.put_slice(&[0x78, 0xf9]);
            out.put_u32(dictionary::ADLER32);
        }
        // One stored block: a byte of type bits and padding, the length and its complement.
        let len = plain.len() as u16;
        out.put_u8(0x00);
        out.put_u16_le(len);
        out.put_u16_le(!len);
        out.put_slice(plain);
        // Go's inflater hands output over at an empty stored block, or as soon as its window is full. When
        // a block ends just there the reader has all it wants and refuses the frame for the five bytes it
        // did not need.
        self.window_at = (self.window_at + plain.len()) % WINDOW;
        if self.window_at != 0 {
            out.put_slice(&SYNC_FLUSH);
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    // All blocks that are inflated again make one.
    const _: () = assert!(REPLAYED <= MAX_PLAIN as u64);

    #[test]
    fn a_direction_of_few_streams_holds_no_inflater_and_one_of_many_holds_its_own() {
        let mut deflater = Compress::new(Compression::best(), true);
        deflater.set_dictionary(&dictionary::BYTES).unwrap();
        let mut inflater = Inflater::default();
        for id in 0..200 {
            let headers = Headers::new().with("streamtype", "data").with("requestid", id.to_string());
            let mut block = Vec::with_capacity(1024);
            deflater.compress_vec(&headers.to_plain().unwrap(), &mut block, FlushCompress::Sync).unwrap();
            assert!(id == 0 || block.len() < 40, "a block refers to those in front of it");
            // Another direction of the same thread has its turn between any two.
            let mut other = BytesMut::new();
            Deflater::default().write(&Headers::new().with("other", "way"), &mut other).unwrap();
            Inflater::default().read(&other).unwrap();

            assert_eq!(inflater.read(&block).unwrap(), headers, "block {id}");
            if id < 10 {
                assert!(inflater.stream.is_none() && inflater.blocks.len() < REPLAYED as usize);
            }
        }
        assert!(inflater.stream.is_some() && inflater.blocks.capacity() == 0);
    }
}
