//! Folder: grants as files, one each, for the one process that holds the folder: `podgate dev`.
//!
//! A file is whole or not there. One that cannot be read is left out, which lets nobody in, and said so.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use jiff::Timestamp;
use tracing::warn;

use super::book::Book;
use super::document::{Grant, MAX_BYTES};
use super::store::{Error, Kept, Key, Store};

/// Files at most; more are not looked at.
const MAX_FILES: usize = 10_000;

/// Bytes of a file at most: that of a grant, and what podgate notes on it.
const MAX_FILE: u64 = 2 * MAX_BYTES as u64;

/// Grants in a folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    book: Arc<Book>,
    /// The version of the last change. Held while a change is made: there is one at a time.
    last: Mutex<u64>,
}

// === impl Folder ===

impl Folder {
    /// Makes the folder where it is missing, and reads what is in it.
    ///
    /// # Errors
    /// When it can be neither made nor read.
    pub fn open(path: &Path, book: Arc<Book>) -> Result<Self, Error> {
        let mut found = BTreeMap::new();
        let mut read = || -> io::Result<()> {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            for entry in fs::read_dir(path)?.take(MAX_FILES) {
                let path = entry?.path();
                if path.extension().is_none_or(|extension| extension != "json") {
                    continue;
                }
                match grant_in(&path) {
                    Some((grant, version)) => drop(found.insert(key_of(&grant), (grant, version))),
                    None => warn!(path = %path.display(), "a file holds no grant, it is left out"),
                }
            }
            Ok(())
        };
        read().map_err(Error::Folder)?;
        // What was deleted had a version too. Microseconds go on faster than anybody can change grants.
        let start = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
        let last = found.values().map(|(_, version)| *version).fold(start, u64::max);
        book.fill(found.into_iter().map(|(key, (grant, version))| (key, grant, version)).collect(), last);
        Ok(Self { path: path.to_owned(), book, last: Mutex::new(last) })
    }

    fn change(
        &self,
        key: &Key,
        may: impl FnOnce(Option<u64>) -> Result<(), Error>,
        grant: Option<&Grant>,
    ) -> Result<u64, Error> {
        let mut last = self.hold();
        may(self.book.get(key).map(|kept| kept.version))?;
        let version = *last + 1;
        match grant {
            Some(grant) => {
                let mut grant = grant.clone();
                grant.metadata.resource_version = version.to_string();
                self.write(key, &grant).map_err(Error::Folder)?;
                *last = version;
                self.book.saw(key.clone(), grant, version);
            }
            None => {
                fs::remove_file(self.file(key)).map_err(Error::Folder)?;
                *last = version;
                self.book.forget(key, version);
            }
        }
        Ok(version)
    }

    fn write(&self, key: &Key, grant: &Grant) -> io::Result<()> {
        // The folder has one writer, so what is there was left by one that was killed.
        let beside = self.path.join(".new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(grant.to_value().to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, self.file(key))
    }

    /// A namespace has no dot, so that two grants never share a file.
    fn file(&self, (namespace, name): &Key) -> PathBuf {
        self.path.join(format!("{namespace}.{name}.json"))
    }

    /// Nothing that could panic halfway runs under this lock.
    fn hold(&self) -> MutexGuard<'_, u64> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key_of(grant: &Grant) -> Key {
    (grant.metadata.namespace.clone(), grant.metadata.name.clone())
}

fn grant_in(path: &Path) -> Option<(Grant, u64)> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    let grant: Grant = serde_json::from_str(&text).ok()?;
    let (namespace, name) = key_of(&grant);
    let version = grant.metadata.resource_version.parse().ok()?;
    let named = format!("{namespace}.{name}.json");
    (path.file_name()?.to_str()? == named).then_some((grant, version))
}

impl Store for Folder {
    fn read<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Kept>, Error>> {
        ready(Ok(self.book.get(key))).boxed()
    }

    fn create<'a>(&'a self, key: &'a Key, grant: &'a Grant) -> BoxFuture<'a, Result<u64, Error>> {
        let new = |there: Option<u64>| there.map_or(Ok(()), |_| Err(Error::Exists));
        async move { self.change(key, new, Some(grant)) }.boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        grant: &'a Grant,
        version: u64,
    ) -> BoxFuture<'a, Result<u64, Error>> {
        async move { self.change(key, |there| same(there, version), Some(grant)) }.boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key, version: u64) -> BoxFuture<'a, Result<(), Error>> {
        async move { self.change(key, |there| same(there, version), None).map(drop) }.boxed()
    }
}

fn same(there: Option<u64>, version: u64) -> Result<(), Error> {
    match there {
        None => Err(Error::Missing),
        Some(there) if there == version => Ok(()),
        Some(_) => Err(Error::Conflict),
    }
}
