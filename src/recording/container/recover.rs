//! Recover: what a recording lacks that was being written when podgate went away.

use std::io::{Read, Seek, SeekFrom};

use super::open::{Reader, SoFar, Trust};
use super::seal::Seal;
use super::write::{End, json};
use super::{Error, Kind, MAX_END};
use crate::recording::facts::{Ending, Facts};
use crate::recording::keys::Keys;

/// Why a recovered recording ended, in the place of an end reason.
const CRASHED: &str = "crashed";

/// Zeros at the end of a file that no recording ends with, but what a file system leaves where power failed: half of
/// a signature.
const TORN: usize = 32;

/// How what is left of a recording becomes a whole one that is marked as cut.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovered {
    /// Who, what and where.
    pub facts: Facts,
    /// Bytes of the file to keep.
    pub keep: u64,
    /// Bytes to append to those; none where the recording was whole already.
    pub tail: Vec<u8>,
    /// How it ended, as that tail says, or the recording itself.
    pub ending: Ending,
}

/// Reads a recording whose writer is gone. What it lost is its end, and only that: a file that was altered is not
/// recovered. The keys need no identity, and have to be those it was begun with.
///
/// # Errors
/// When not even its beginning is whole, another key signed it, it was altered, or it cannot be read.
pub fn recover<R: Read + Seek>(mut file: R, keys: &Keys) -> Result<Recovered, Error> {
    let trusted = std::slice::from_ref(keys.signing.verifying());
    let mut reader = Reader::open(&mut file, Trust::Keys(trusted), &[])?;
    let lost = loop {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let facts = reader.facts().clone();
    let SoFar { until, moved, offset, .. } = reader.so_far();
    let (chain, sequence) = reader.link();
    match lost {
        None => {
            let ending = reader.ending().cloned().expect("a reader at its end has read the ending");
            return Ok(Recovered { facts, keep: offset, tail: Vec::new(), ending });
        }
        Some(Error::Truncated { .. }) => {}
        Some(error) => {
            drop(reader);
            if !is_torn(&mut file).map_err(Error::Read)? {
                return Err(error);
            }
        }
    }
    let until = until.unwrap_or_default();
    let ending = Ending {
        seconds: until.as_secs_f64(),
        reason: CRASHED.to_owned(),
        exit_code: None,
        process_may_remain: facts.has_process(),
        moved,
        cut: true,
        gaps: Vec::new(),
        typed: Vec::new(),
    };
    let mut tail = Vec::new();
    let end = End { ending: ending.clone(), hidden_typed: None };
    Kind::End.put(&mut tail, |out| json("the ending", &end, MAX_END, out))?;
    let chain = chain.after(&tail);
    let seal = Seal { sequence, until, content: 0, moved, chain: chain.link() };
    Kind::Seal.put(&mut tail, |out| seal.put(&keys.signing, out)).map_err(Error::Key)?;
    Ok(Recovered { facts, keep: offset, tail, ending })
}

fn is_torn(file: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    let mut last = [1; TORN];
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(len.saturating_sub(TORN as u64)))?;
    file.read_exact(&mut last)?;
    Ok(last == [0; TORN])
}
