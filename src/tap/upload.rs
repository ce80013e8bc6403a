//! Upload: from the spool to the store, where recordings are kept.
//!
//! It works from what lies in the spool, oldest first, so it goes on after a restart, and for as long as the store is
//! down. A recording goes to `YYYY/MM/DD/ID...`, by the day on which its session began, its card behind it, and podgate's
//! public key to `keys/`. What is there already with the right size is not sent again: an answer that was lost is no
//! error, and nothing is doubled. What is there with another size is never written over: it is told, and kept here.
//! Invariants: a recording leaves the spool only after the store has said that it has all its bytes; every request has a
//! deadline; no secret of the store is in a log or an error text.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::Recordings;
use super::spool::{CARD, Lying, Spool};
use crate::recording::card::{Card, MAX_CARD};
use crate::recording::store::{self, Unusable};
use crate::telemetry::chain;

/// For one request to the store, its own tries included.
const REQUEST: Duration = Duration::from_secs(60);

/// A recording up to this size is one request, a larger one so many parts of this size. Stores want parts of 5 MiB at
/// least, and 10,000 of them at most: 80 GiB.
const PART: usize = 8 * 1024 * 1024;

/// The first pause after a failure; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A store, and where in it.
#[derive(Clone)]
pub struct Store {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// Why something is not in the store yet.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{act}")]
    Store {
        act: &'static str,
        #[source]
        source: object_store::Error,
    },
    #[error("{act}: no answer within {REQUEST:?}")]
    Late { act: &'static str },
    #[error("the store has {there} bytes of it, and there are {here}; it is not written over")]
    Other { here: u64, there: u64 },
    #[error("read it from the spool")]
    Read(#[source] io::Error),
    #[error("remove it from the spool")]
    Remove(#[source] io::Error),
}

// === impl Store ===

impl Store {
    /// The store at this URL. Does blocking I/O.
    ///
    /// # Errors
    /// When there is none, or its options make no sense.
    pub fn open(url: &str, options_file: Option<&FilePath>) -> Result<Self, Unusable> {
        let parsed =
            url::Url::parse(url).map_err(|error| Unusable::Url(format!("{url:?} is no URL: {error}")))?;
        if parsed.scheme() == "file" {
            let path =
                parsed.to_file_path().map_err(|()| Unusable::Url(format!("{url:?} names no folder")))?;
            return Self::folder(&path);
        }
        let (store, prefix) = store::open(&parsed, options_file)?;
        Ok(Self { store, prefix })
    }

    fn folder(path: &FilePath) -> Result<Self, Unusable> {
        use std::os::unix::fs::DirBuilderExt;

        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| Unusable::Folder { path: path.to_owned(), source })?;
        let prefix = Path::from_absolute_path(path).map_err(|error| Unusable::Url(error.to_string()))?;
        Ok(Self { store: Arc::new(LocalFileSystem::new().with_fsync(true)), prefix })
    }

    /// A store that there is already.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, prefix: Path::default() }
    }

    /// Whether it has something of this size there.
    async fn has(&self, path: &Path, bytes: u64) -> Result<bool, Error> {
        match within("ask the store for it", self.store.head(path)).await {
            Ok(meta) if meta.size == bytes => Ok(true),
            Ok(meta) => Err(Error::Other { here: bytes, there: meta.size }),
            Err(Error::Store { source: object_store::Error::NotFound { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts bytes there, if nothing is there.
    async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), Error> {
        let put = |mode| {
            let options = PutOptions { mode, ..PutOptions::default() };
            within(
                "put it into the store",
                self.store.put_opts(path, PutPayload::from(bytes.clone()), options),
            )
        };
        use object_store::Error as Said;
        match put(PutMode::Create).await {
            // Whether it is ours is looked at next.
            Ok(_)
            | Err(Error::Store { source: Said::AlreadyExists { .. } | Said::Precondition { .. }, .. }) => {
                Ok(())
            }
            // A store without conditions; that nothing is there was looked at before.
            Err(Error::Store { source: Said::NotImplemented { .. } | Said::NotSupported { .. }, .. }) => {
                put(PutMode::Overwrite).await.map(drop)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a file there in parts, of which nothing shows before the last.
    async fn put_parts(&self, path: &Path, mut file: File) -> Result<(), Error> {
        let mut upload = within("begin an upload", self.store.put_multipart(path)).await?;
        let sent = async {
            loop {
                let part = read(&mut file, PART).await?;
                if part.is_empty() {
                    break;
                }
                within("upload a part", upload.put_part(part.into())).await?;
            }
            within("complete an upload", upload.complete()).await
        };
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) => {
                // Parts that nobody completes cost room; stores have rules to remove those that are left even so.
                let _ = within("give an upload up", upload.abort()).await;
                Err(error)
            }
        }
    }

    /// Sees to it that the store has this file.
    async fn keep(&self, path: &Path, file: &FilePath) -> Result<(), Error> {
        let mut file = File::open(file).await.map_err(Error::Read)?;
        let bytes = file.metadata().await.map_err(Error::Read)?.len();
        if self.has(path, bytes).await? {
            return Ok(());
        }
        if bytes <= PART as u64 {
            self.put(path, read(&mut file, PART).await?).await?;
        } else {
            self.put_parts(path, file).await?;
        }
        match self.has(path, bytes).await? {
            true => Ok(()),
            false => Err(Error::Other { here: bytes, there: 0 }),
        }
    }
}

async fn within<T>(
    act: &'static str,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<T, Error> {
    match timeout(REQUEST, request).await {
        Ok(answer) => answer.map_err(|source| Error::Store { act, source }),
        Err(_) => Err(Error::Late { act }),
    }
}

/// As many bytes as there are, up to so many.
async fn read(file: &mut File, most: usize) -> Result<Bytes, Error> {
    let mut part = Vec::new();
    file.take(most as u64).read_to_end(&mut part).await.map_err(Error::Read)?;
    Ok(part.into())
}

/// Uploads what lies in the spool and what comes to lie there, until the drain stops.
pub(super) async fn run(recordings: Recordings, store: Store) {
    let mut pause = FIRST_PAUSE;
    let mut uploads = Uploads { recordings: recordings.clone(), store, key: false };
    loop {
        let done = tokio::select! {
            done = uploads.pass() => done,
            () = recordings.drain().cutting() => return,
        };
        let wait = async {
            match done {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    recordings.0.closed.notified().await;
                }
                Err(error) => {
                    recordings.metrics().upload_failures.inc();
                    warn!(
                        error = chain(&error),
                        "recordings wait in the spool: the store does not take them"
                    );
                    sleep(jittered(pause)).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            }
        };
        tokio::select! {
            () = wait => {}
            () = recordings.drain().cutting() => return,
        }
    }
}

/// From a half of it to all of it, so that many replicas do not come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() % 512;
    pause.mul_f64(0.5 + random as f64 / 1024.0)
}

struct Uploads {
    recordings: Recordings,
    store: Store,
    /// Whether the store has podgate's public key.
    key: bool,
}

// === impl Uploads ===

impl Uploads {
    /// Uploads everything that lies there now.
    async fn pass(&mut self) -> Result<(), Error> {
        let listed = self.list().await?;
        if !self.key {
            let key = self.recordings.keys().signing.verifying();
            let path = self.store.prefix.clone().join("keys").join(format!("{}.pem", key.id()));
            let pem = Bytes::from(key.to_pem());
            if !self.store.has(&path, pem.len() as u64).await? {
                self.store.put(&path, pem).await?;
            }
            self.key = true;
        }
        for lying in &listed {
            match self.upload(lying).await {
                Ok(()) => {}
                // No reason for others to wait.
                Err(error @ (Error::Other { .. } | Error::Read(_) | Error::Remove(_))) => {
                    self.recordings.metrics().upload_failures.inc();
                    error!(
                        recording.file = lying.name,
                        error = chain(&error),
                        "a recording stays in the spool"
                    );
                }
                Err(error) => {
                    self.list().await?;
                    return Err(error);
                }
            }
        }
        self.list().await.map(drop)
    }

    /// What waits; told to those who want to know.
    async fn list(&self) -> Result<Vec<Lying>, Error> {
        let listed = self.blocking(Spool::closed).await.map_err(Error::Read)?;
        let waiting = listed.len() as u64;
        self.recordings.metrics().waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.recordings.0.waiting.send_replace(waiting);
        Ok(listed)
    }

    async fn upload(&self, lying: &Lying) -> Result<(), Error> {
        let spool = self.recordings.spool();
        let id = lying.name.split('.').next().unwrap_or_default();
        let card = format!("{id}{CARD}");
        let day = self.day(&card, lying).await.to_zoned(TimeZone::UTC);
        let folder = day.strftime("%Y/%m/%d").to_string();
        let to = |name: &str| folder.split('/').chain([name]).fold(self.store.prefix.clone(), Path::join);
        self.store.keep(&to(&lying.name), &spool.path(&lying.name)).await?;
        match self.store.keep(&to(&card), &spool.path(&card)).await {
            Err(Error::Read(error)) if error.kind() == io::ErrorKind::NotFound => {}
            kept => kept?,
        }
        // In this order: a card without its recording is of no use to anybody, and is removed at the next start.
        for name in [lying.name.clone(), card] {
            self.blocking(move |spool| spool.remove(&name)).await.map_err(Error::Remove)?;
        }
        info!(recording.id = id, "recording uploaded");
        Ok(())
    }

    /// When its session began; where nobody says, when it was closed.
    async fn day(&self, card: &str, lying: &Lying) -> Timestamp {
        let path = self.recordings.spool().path(card);
        let read = async {
            let mut text = Vec::new();
            File::open(path).await.ok()?.take(MAX_CARD).read_to_end(&mut text).await.ok()?;
            serde_json::from_slice::<Card>(&text).ok()
        };
        match read.await {
            Some(card) => card.facts.started,
            None => Timestamp::try_from(lying.modified).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let spool = self.recordings.spool().clone();
        tokio::task::spawn_blocking(move || work(&spool)).await.map_err(io::Error::other)?
    }
}
