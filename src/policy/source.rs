//! Source: policies out of files and folders, read again when they change.
//!
//! Invariant: all of it is good, or none of it is used: a set that is missing a file, or has one fault, never takes the
//! place of the last good one, and at start podgate does not run without.

pub mod api;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::document::{Document, Fault};
use super::set::Set;
use crate::reload::{Live, Reloader};

/// Bytes of one file: ConfigMaps and etcd hold no more.
const MAX_FILE: u64 = 1024 * 1024;

/// Files in all.
const MAX_FILES: usize = 256;

/// Faults that are told at once; more of them come of the same mistake, mostly.
const MAX_FAULTS: usize = 20;

/// How often files are looked at, at least: what has changed is to end sessions within 5 s.
pub const LOOK: Duration = Duration::from_secs(2);

/// Policies cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A folder cannot be listed.
    #[error("list policies in {}", path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read.
    #[error("read policies in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any policy should be.
    #[error("policy file {} has more than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    /// There are more files than policies should take.
    #[error("policy.files are more than {MAX_FILES} files")]
    TooMany,
    /// There is nothing where policies should be. That is not taken for no rules: they may have been moved.
    #[error("{} holds no policy", .0.display())]
    Empty(PathBuf),
    /// What is written is no set of policies.
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
}

/// The rules of these files, and of the files in these folders, from now on; `records` says whether there can be recordings.
///
/// # Errors
/// When they cannot be used now.
pub async fn follow(reloader: &Reloader, paths: Vec<PathBuf>, records: bool) -> Result<Live<Set>, Error> {
    let looked = paths.clone();
    // What cannot be listed is looked at itself: that it cannot be read any more is a change.
    let files =
        move || looked.iter().flat_map(|path| list(path).unwrap_or_else(|_| vec![path.clone()])).collect();
    reloader.at_least_each(LOOK).load_named("policy.files", files, move || read(&paths, records)).await
}

/// The rules of these files, and of the files in these folders.
///
/// # Errors
/// All that is wrong with them.
pub fn read(paths: &[PathBuf], records: bool) -> Result<Set, Error> {
    let (mut documents, mut faults, mut count) = (Vec::new(), Vec::new(), 0);
    for path in paths {
        let files = list(path)?;
        if files.is_empty() {
            return Err(Error::Empty(path.clone()));
        }
        for file in files {
            count += 1;
            if count > MAX_FILES {
                return Err(Error::TooMany);
            }
            let origin = file.display().to_string();
            match Document::read_all(&origin, &text(&file)?) {
                Ok(read) if read.is_empty() => return Err(Error::Empty(file)),
                Ok(read) => documents.extend(read.into_iter().map(|document| (origin.clone(), document))),
                Err(wrong) => faults.extend(wrong),
            }
        }
    }
    if faults.is_empty() {
        match Set::compile(documents, records) {
            Ok(set) => return Ok(set),
            Err(wrong) => faults = wrong,
        }
    }
    Err(Error::Faults(faults))
}

/// A file itself, or the policy files of a folder, in order of name; folders in it are not entered.
fn list(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| Error::List { path: path.to_owned(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if ["yaml", "yml", "json"].contains(&extension) && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn text(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE { Err(Error::TooLarge(path.to_owned())) } else { Ok(text) }
}

fn lines(faults: &[Fault]) -> String {
    let mut lines: Vec<_> = faults.iter().take(MAX_FAULTS).map(ToString::to_string).collect();
    if faults.len() > MAX_FAULTS {
        lines.push(format!("and {} more", faults.len() - MAX_FAULTS));
    }
    lines.join("\n")
}
