//! Library: the recordings of a folder or an object store, by their cards.
//!
//! Beside the flow, for auditors. Cards are read once: what was read is kept in a file of the user's cache, which is
//! only extended by what is new. That file and the cards prove nothing; whoever opens a recording verifies it.
//! Invariants: every card, and the number of recordings, is bounded; what cannot be used of the cache file is read
//! again from where it came from; nothing in the library is changed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::card::{Card, MAX_CARD};
use super::container::{self, Reader, Trust};
use super::store;

/// Endings of the names of recordings.
const RECORDINGS: [&str; 2] = [".cast.zst", ".tape.zst"];

/// And of their cards.
const CARD: &str = ".json";

/// Most objects that are listed: a year of a thousand sessions a day, with their cards.
const MAX_OBJECTS: usize = 1 << 20;

/// Largest cache file that is read.
const MAX_CACHE: u64 = 4 << 30;

/// Lines of the cache file that may be of no use before it is written anew.
const MAX_USELESS: usize = 1000;

/// Cards that are fetched at the same time.
const FETCHES: usize = 16;

/// Longest wait for one answer of a store.
const ANSWER: Duration = Duration::from_secs(60);

/// Recordings in one place.
#[derive(Debug, Clone)]
pub struct Library {
    store: Arc<dyn ObjectStore>,
    /// Where that is, if it is a folder: files are then read without a detour.
    folder: Option<PathBuf>,
    name: String,
}

/// One of its recordings.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Where it lies.
    pub path: Path,
    /// Bytes of the file.
    pub size: u64,
    /// Its card.
    pub card: Card,
    source: Source,
}

/// What could be listed.
#[derive(Debug, Default)]
pub struct Shelf {
    /// Newest first.
    pub entries: Vec<Entry>,
    /// What cannot be read, and why; the rest is not affected.
    pub broken: Vec<(String, Error)>,
}

/// What is in the way of a look into a library.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place is none.
    #[error("open {name} as a store of recordings")]
    Open {
        /// The place.
        name: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store does not answer as it should.
    #[error("{act} {name}")]
    Store {
        /// What was asked.
        act: &'static str,
        /// Of what.
        name: String,
        /// The cause.
        #[source]
        source: object_store::Error,
    },
    /// The store does not answer at all.
    #[error("{act} {name}: no answer within {ANSWER:?}")]
    Late {
        /// What was asked.
        act: &'static str,
        /// Of what.
        name: String,
    },
    /// More than can be listed.
    #[error("there are more than {MAX_OBJECTS} objects in {name}; name a part of it")]
    TooMany {
        /// The place.
        name: String,
    },
    /// A card that is none.
    #[error("the card has {0} bytes, at most {MAX_CARD} are read")]
    CardSize(u64),
    /// A card that is none.
    #[error("the card is not as podgate writes it")]
    Card(#[source] serde_json::Error),
    /// The recording cannot be opened.
    #[error("open the recording")]
    OpenFile(#[source] io::Error),
    /// Neither a card nor a recording.
    #[error("read the recording, which has no card")]
    Recording(#[source] container::Error),
    /// The cache file cannot be written.
    #[error("write {path}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A recording and its card, as listed.
#[derive(Debug, Default)]
struct Found {
    recording: Option<ObjectMeta>,
    card: Option<ObjectMeta>,
}

/// What a card was read from, or made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Source {
    path: String,
    size: u64,
    /// In milliseconds; only compared.
    modified: i64,
}

/// A line of the cache file.
#[derive(Debug, Serialize, Deserialize)]
struct Line<C, S = Source> {
    source: S,
    card: C,
}

// === impl Library ===

impl Library {
    /// A folder, or the URL of a store: `s3://bucket/prefix`, `gs://...`, `az://...`, `file:///...`; with options as
    /// [`store::open`] takes them. Does blocking I/O.
    ///
    /// # Errors
    /// When there is no such folder, or the URL is none of a store.
    pub fn open(name: &str, options_file: Option<&FilePath>) -> Result<Self, Error> {
        let wrong =
            |source: Box<dyn std::error::Error + Send + Sync>| Error::Open { name: name.to_owned(), source };
        let url = url::Url::parse(name).ok().filter(|_| name.contains("://"));
        let folder = match &url {
            Some(url) if url.scheme() == "file" => {
                Some(url.to_file_path().map_err(|()| wrong("it is no path of a file".into()))?)
            }
            Some(_) => None,
            None => Some(PathBuf::from(name)),
        };
        let (store, folder): (Arc<dyn ObjectStore>, _) = match (folder, url) {
            (Some(folder), _) => {
                let folder = folder.canonicalize().map_err(|error| wrong(error.into()))?;
                let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| wrong(error.into()))?;
                (Arc::new(store), Some(folder))
            }
            (None, Some(url)) => {
                let (store, prefix) = store::open(&url, options_file).map_err(|error| wrong(error.into()))?;
                (Arc::new(PrefixStore::new(store, prefix)), None)
            }
            (None, None) => return Err(wrong("it is neither a folder nor a URL".into())),
        };
        let name = folder.as_ref().map_or_else(|| name.to_owned(), |folder| folder.display().to_string());
        Ok(Self { store, folder, name })
    }

    /// Its own file of the user's cache; `None` where the user has none.
    pub fn cache(&self) -> Option<PathBuf> {
        let home = |name: &str, below: &str| {
            let path = PathBuf::from(std::env::var_os(name)?).join(below);
            path.is_absolute().then_some(path)
        };
        let dir = home("XDG_CACHE_HOME", "").or_else(|| home("HOME", ".cache"))?;
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, self.name.as_bytes());
        let hash: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Some(dir.join("podgate").join(format!("recordings-{hash}.jsonl")))
    }

    /// All recordings. Cards that are in the cache file as they are in the store are not read again; others are, and
    /// go into it. A cache file that cannot be written only costs time the next time: that is among what is broken.
    ///
    /// # Errors
    /// When the library cannot be listed.
    pub async fn list(&self, cache: Option<&FilePath>) -> Result<Shelf, Error> {
        let found = self.found().await?;
        let (mut known, lines) = cache.and_then(|path| read_cache(path).ok()).unwrap_or_default();
        let (mut shelf, mut wanted) = (Shelf::default(), Vec::new());
        for found in found.into_values() {
            let Some(recording) = found.recording else {
                continue;
            };
            let source = Source::of(found.card.as_ref().unwrap_or(&recording));
            match known.remove(&source.path).filter(|line| line.source == source) {
                Some(Line { card, .. }) => {
                    shelf.entries.push(Entry {
                        path: recording.location,
                        size: recording.size,
                        card,
                        source,
                    });
                }
                None => wanted.push((source, recording, found.card)),
            }
        }
        let kept = shelf.entries.len();
        let mut read = stream::iter(wanted)
            .map(|(source, recording, card)| async move {
                let read = self.card(&recording, card.as_ref()).await;
                (source, recording, read)
            })
            .buffer_unordered(FETCHES);
        while let Some((source, recording, card)) = read.next().await {
            let ObjectMeta { location: path, size, .. } = recording;
            match card {
                Ok(card) => shelf.entries.push(Entry { path, size, card, source }),
                Err(error) => shelf.broken.push((path.to_string(), error)),
            }
        }
        if let Some(path) = cache {
            // Where most lines of the file are of no use any more it begins anew.
            let anew = lines > 2 * kept + MAX_USELESS;
            let fresh = if anew { &shelf.entries[..] } else { &shelf.entries[kept..] };
            if let Err(source) = write_cache(path, fresh, anew) {
                let error = Error::Cache { path: path.to_owned(), source };
                shelf.broken.push((path.display().to_string(), error));
            }
        }
        shelf.entries.sort_by(|a, b| {
            (b.card.facts.started, &b.card.facts.id).cmp(&(a.card.facts.started, &a.card.facts.id))
        });
        Ok(shelf)
    }

    /// Opens the file of a recording. The reader blocks, and must not be used on a runtime's own threads.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn read(&self, path: &Path) -> Result<Box<dyn Read + Send>, Error> {
        if let Some(folder) = &self.folder {
            let file = fs::File::open(folder.join(path.as_ref())).map_err(Error::OpenFile)?;
            return Ok(Box::new(file));
        }
        let (act, name) = ("read", path.to_string());
        let get = tokio::time::timeout(ANSWER, self.store.get(path)).await;
        let get = get.map_err(|_| Error::Late { act, name: name.clone() })?;
        let get = get.map_err(|source| Error::Store { act, name, source })?;
        let stream = get.into_stream().map_err(io::Error::other);
        Ok(Box::new(SyncIoBridge::new(StreamReader::new(Box::pin(stream)))))
    }

    async fn found(&self) -> Result<BTreeMap<String, Found>, Error> {
        let act = "list";
        let (mut found, mut list) = (BTreeMap::<String, Found>::new(), self.store.list(None));
        let mut count = 0;
        loop {
            let next = tokio::time::timeout(ANSWER, list.try_next()).await;
            let next = next.map_err(|_| Error::Late { act, name: self.name.clone() })?;
            let next = next.map_err(|source| Error::Store { act, name: self.name.clone(), source })?;
            let Some(meta) = next else {
                return Ok(found);
            };
            count += 1;
            if count > MAX_OBJECTS {
                return Err(Error::TooMany { name: self.name.clone() });
            }
            let path = meta.location.to_string();
            if let Some(stem) = RECORDINGS.iter().find_map(|ending| path.strip_suffix(ending)) {
                found.entry(stem.to_owned()).or_default().recording = Some(meta);
            } else if let Some(stem) = path.strip_suffix(CARD) {
                found.entry(stem.to_owned()).or_default().card = Some(meta);
            }
        }
    }

    /// Reads a card, or makes the one that is missing.
    async fn card(&self, recording: &ObjectMeta, card: Option<&ObjectMeta>) -> Result<Card, Error> {
        let Some(card) = card else {
            let read = self.read(&recording.location).await?;
            let made = tokio::task::spawn_blocking(|| Card::of(Reader::open(read, Trust::Anyone, &[])?));
            return made.await.map_err(|error| Error::OpenFile(error.into()))?.map_err(Error::Recording);
        };
        if card.size > MAX_CARD {
            return Err(Error::CardSize(card.size));
        }
        let (act, name) = ("read", card.location.to_string());
        let json = async { self.store.get(&card.location).await?.bytes().await };
        let json = tokio::time::timeout(ANSWER, json).await;
        let json = json.map_err(|_| Error::Late { act, name: name.clone() })?;
        let json = json.map_err(|source| Error::Store { act, name, source })?;
        serde_json::from_slice(&json).map_err(Error::Card)
    }
}

// === impl Source ===

impl Source {
    fn of(meta: &ObjectMeta) -> Self {
        let modified = meta.last_modified.timestamp_millis();
        Self { path: meta.location.to_string(), size: meta.size, modified }
    }
}

/// What the cache file holds, by what it was read from, and how many lines it has. Lines that are none are left out.
fn read_cache(path: &FilePath) -> io::Result<(HashMap<String, Line<Card>>, usize)> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_CACHE).read_to_end(&mut bytes)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let known = lines.clone().filter_map(|line| serde_json::from_slice::<Line<Card>>(line).ok());
    Ok((known.map(|line| (line.source.path.clone(), line)).collect(), lines.count()))
}

/// Appends lines, at once: two that run at the same time do not mix theirs. Nobody else may read them.
fn write_cache(path: &FilePath, entries: &[Entry], anew: bool) -> io::Result<()> {
    if entries.is_empty() && !anew {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // Behind a line that was cut off.
    let mut lines = b"\n".to_vec();
    for Entry { source, card, .. } in entries {
        serde_json::to_writer(&mut lines, &Line { source, card })?;
        lines.push(b'\n');
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    if anew {
        file.set_len(0)?;
    }
    (&file).write_all(&lines)
}
