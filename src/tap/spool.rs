//! Spool: the folder where recordings are written while sessions live, and lie until the store has them.
//!
//! `ID.cast.zst.part` or `ID.tape.zst.part` is being written; without `.part` it is closed, and beside it lies
//! `ID.json`, its card, which is written before. What nobody can read lies in `unreadable/`.
//! Invariants: one process has the folder, and nobody else can enter it; a file never has half a chunk in its middle,
//! because each is written behind the last whole one; all files together have at most so many bytes as are allowed,
//! but for the ends of recordings, which are always taken, so that what is there can be closed.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus::IntGauge;
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use crate::wire::tape::ALIGN;

/// The ending of the name of a recording that is being written.
pub const PART: &str = ".part";

/// The ending of a card's name.
pub const CARD: &str = ".json";

/// The ending of a recording's name.
const RECORDING: &str = ".zst";

/// Where lies what nobody can read.
const UNREADABLE: &str = "unreadable";

/// What says whether the spool can be written.
const PROBE: &str = "probe";

/// Held by the process that has the folder.
const LOCK: &str = "lock";

/// Fewer bytes are better off in the page cache.
const DIRECT: usize = 64 * 1024;

/// Permission bits of anybody but the owner.
const OTHERS: u32 = 0o077;

/// The folder.
pub struct Spool {
    dir: PathBuf,
    max_bytes: u64,
    used: AtomicU64,
    bytes: IntGauge,
    /// Names of the parts that are being written.
    live: Mutex<HashSet<String>>,
    disk: Box<dyn Disk>,
    _lock: File,
}

/// What takes the bytes of a file.
pub trait Disk: Send + Sync {
    /// Writes all of these bytes at this offset.
    ///
    /// # Errors
    /// When not all could be written.
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()>;
}

/// The file itself.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

/// A recording that is being written.
pub struct Part {
    spool: Arc<Spool>,
    file: File,
    /// The same file, past the page cache.
    direct: Direct,
    /// Without [`PART`].
    name: String,
    len: u64,
    /// Whether it has lost its [`PART`].
    closed: bool,
}

/// Whether bytes go past the page cache, which costs a fraction of the CPU and drives nothing out of it.
enum Direct {
    /// None were large enough so far.
    Untried,
    /// They do.
    Open(File),
    /// They cannot.
    Refused,
}

/// Which bytes are to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Those that need room.
    Needed,
    /// Those that close a recording.
    Given,
}

/// A file that lies in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lying {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// When it was written last.
    pub modified: SystemTime,
}

/// A spool that cannot be used. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made.
    #[error("make the spool folder {}", path.display())]
    Make {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others can enter it.
    #[error("close the spool folder {} to others; name a folder of podgate's own", path.display())]
    Close {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("the spool folder {} is in use by another process; each needs one of its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// It cannot be locked.
    #[error("lock the spool folder {}", path.display())]
    Lock {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("read the spool folder {}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

// === impl Spool ===

impl Spool {
    /// Opens the folder, and makes it when it is missing. Does blocking I/O.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(
        dir: &Path,
        max_bytes: u64,
        bytes: IntGauge,
        disk: impl Disk + 'static,
    ) -> Result<Arc<Self>, Error> {
        let path = || dir.to_owned();
        let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make(dir).map_err(|source| Error::Make { path: path(), source })?;
        let mode = fs::metadata(dir).map_err(|source| Error::Read { path: path(), source })?;
        if mode.permissions().mode() & OTHERS != 0 {
            let closed = fs::set_permissions(dir, Permissions::from_mode(0o700));
            closed.map_err(|source| Error::Close { path: path(), source })?;
        }
        let lock = private().create(true).truncate(false).open(dir.join(LOCK));
        let lock = lock.map_err(|source| Error::Lock { path: path(), source })?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse { path: path() }),
            Err(errno) => return Err(Error::Lock { path: path(), source: errno.into() }),
        }
        tidy(dir).map_err(|source| Error::Read { path: path(), source })?;
        let unreadable = dir.join(UNREADABLE);
        make(&unreadable).map_err(|source| Error::Make { path: unreadable.clone(), source })?;
        let lying = |dir: &Path| -> Result<u64, Error> {
            let lying = lying(dir).map_err(|source| Error::Read { path: dir.to_owned(), source })?;
            Ok(lying.iter().map(|file| file.bytes).sum())
        };
        let used = lying(dir)? + lying(&unreadable)?;
        let spool = Self {
            dir: dir.to_owned(),
            max_bytes,
            used: AtomicU64::new(0),
            bytes,
            live: Mutex::default(),
            disk: Box::new(disk),
            _lock: lock,
        };
        spool.add(used);
        Ok(Arc::new(spool))
    }

    /// Begins a recording of this name, whose first bytes these are. Does blocking I/O.
    ///
    /// # Errors
    /// When they cannot be written; then nothing is left of it.
    pub fn create(self: &Arc<Self>, name: &str, first: &[u8], room: Room) -> io::Result<Part> {
        let path = self.path(&part(name));
        self.live().insert(part(name));
        let file = private().create_new(true).open(&path).inspect_err(|_| {
            self.live().remove(&part(name));
        })?;
        let mut part = Part::new(self, file, name, 0);
        match part.append(first, room) {
            Ok(()) => Ok(part),
            Err(error) => {
                part.discard();
                Err(error)
            }
        }
    }

    /// Takes up a recording that is lying there, up to this many of its bytes.
    ///
    /// # Errors
    /// When it cannot be opened or cut.
    pub fn reopen(self: &Arc<Self>, name: &str, len: u64) -> io::Result<Part> {
        let file = OpenOptions::new().write(true).open(self.path(&part(name)))?;
        let before = file.metadata()?.len();
        file.set_len(len)?;
        self.sub(before.saturating_sub(len));
        self.live().insert(part(name));
        Ok(Part::new(self, file, name, len))
    }

    /// Whether something can be written, and how much room is left decides as well. Does blocking I/O.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn probe(&self) -> io::Result<()> {
        self.room(1)?;
        let path = self.path(PROBE);
        let file = private().create(true).truncate(true).open(&path)?;
        let written = self.disk.write(&file, b"podgate\n", 0);
        let removed = fs::remove_file(&path);
        written.and(removed)
    }

    /// Closed recordings, those first that were closed first. Does blocking I/O.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn closed(&self) -> io::Result<Vec<Lying>> {
        let mut closed = lying(&self.dir)?;
        closed.retain(|file| file.name.ends_with(RECORDING));
        closed.sort_by(|a, b| (a.modified, &a.name).cmp(&(b.modified, &b.name)));
        Ok(closed)
    }

    /// Recordings that were begun and that nobody writes any more; names without [`PART`]. Does blocking I/O.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn orphans(&self) -> io::Result<Vec<String>> {
        let lying = lying(&self.dir)?;
        let live = self.live();
        let parts = lying.iter().filter(|file| !live.contains(&file.name));
        let names =
            parts.filter_map(|file| file.name.strip_suffix(PART)).filter(|name| name.ends_with(RECORDING));
        Ok(names.map(str::to_owned).collect())
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes a file, if it is there. Does blocking I/O.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        let bytes = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        self.sub(bytes);
        Ok(())
    }

    /// Puts a file where lies what nobody can read. Does blocking I/O.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn set_aside(&self, name: &str) -> io::Result<PathBuf> {
        let to = self.dir.join(UNREADABLE).join(name);
        fs::rename(self.path(name), &to)?;
        Ok(to)
    }

    /// Bytes of all files.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Otherwise the end of the machine could still undo names.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn room(&self, bytes: usize) -> io::Result<()> {
        match self.used() + bytes as u64 <= self.max_bytes {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::QuotaExceeded, "recording.spool.maxBytes is reached")),
        }
    }

    fn add(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes.add(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn sub(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes.sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    fn live(&self) -> MutexGuard<'_, HashSet<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Disk ===

impl Disk for Plain {
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        file.write_all_at(bytes, at)
    }
}

// === impl Part ===

impl Part {
    fn new(spool: &Arc<Spool>, file: File, name: &str, len: u64) -> Self {
        let (spool, name) = (spool.clone(), name.to_owned());
        Self { spool, file, direct: Direct::Untried, name, len, closed: false }
    }

    /// Writes all of these bytes behind the last, or none of them. Does blocking I/O.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn append(&mut self, bytes: &[u8], room: Room) -> io::Result<()> {
        if room == Room::Needed {
            self.spool.room(bytes.len())?;
        }
        let len = bytes.len() as u64;
        let written = match self.direct(bytes) {
            Some(Ok(())) => Ok(()),
            // Not every file system takes them.
            Some(Err(_)) | None => self.spool.disk.write(&self.file, bytes, self.len),
        };
        if let Err(error) = written {
            // What was written of them is of no use, and its room may be. Where even this fails, the next write goes
            // over it, or the recovery does it.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += len;
        self.spool.add(len);
        Ok(())
    }

    /// Writes them past the page cache; `None` where they are few, or do not lie as that takes them.
    fn direct(&mut self, bytes: &[u8]) -> Option<io::Result<()>> {
        let aligned = self.len.is_multiple_of(ALIGN as u64)
            && bytes.len().is_multiple_of(ALIGN)
            && bytes.as_ptr().align_offset(ALIGN) == 0;
        if !aligned || bytes.len() < DIRECT {
            return None;
        }
        if matches!(self.direct, Direct::Untried) {
            let path = self.spool.path(&part(&self.name));
            let flags = OFlags::DIRECT.bits().cast_signed();
            let opened = OpenOptions::new().write(true).custom_flags(flags).open(path);
            self.direct = opened.map_or(Direct::Refused, Direct::Open);
        }
        let Direct::Open(file) = &self.direct else { return None };
        let written = self.spool.disk.write(file, bytes, self.len);
        if written.is_err() {
            self.direct = Direct::Refused;
        }
        Some(written)
    }

    /// Closes it, with this card. May be tried again. Does blocking I/O.
    ///
    /// # Errors
    /// When something of that fails.
    pub fn close(&mut self, id: &str, card: &[u8]) -> io::Result<()> {
        if self.closed {
            return self.spool.sync();
        }
        self.file.sync_all()?;
        let (spool, card_name) = (&self.spool, format!("{id}{CARD}"));
        let temporary = spool.path(&part(&card_name));
        let mut file = private().create(true).truncate(true).open(&temporary)?;
        file.write_all(card)?;
        file.sync_all()?;
        fs::rename(&temporary, spool.path(&card_name))?;
        fs::rename(spool.path(&part(&self.name)), spool.path(&self.name))?;
        spool.add(card.len() as u64);
        self.closed = true;
        spool.sync()
    }

    /// Removes it: there was nothing to record. Does blocking I/O.
    pub fn discard(self) {
        // What cannot be removed is an orphan, and is told as one.
        if fs::remove_file(self.spool.path(&part(&self.name))).is_ok() {
            self.spool.sub(self.len);
        }
    }

    /// Its bytes so far.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True before its first bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.spool.live().remove(&part(&self.name));
    }
}

fn part(name: &str) -> String {
    format!("{name}{PART}")
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).mode(0o600);
    options
}

/// Removes what a process that was killed has left of cards: halves, and those whose recording is not there any more.
fn tidy(dir: &Path) -> io::Result<()> {
    let names: Vec<String> = lying(dir)?.into_iter().map(|file| file.name).collect();
    let id = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let is_recording = |name: &&String| name.trim_end_matches(PART).ends_with(RECORDING);
    let recordings: HashSet<String> = names.iter().filter(is_recording).map(|name| id(name)).collect();
    let half = part(CARD);
    let useless =
        |name: &&String| name.ends_with(&half) || name.ends_with(CARD) && !recordings.contains(&id(name));
    names.iter().filter(useless).try_for_each(|name| fs::remove_file(dir.join(name)))
}

/// The plain files in a folder.
fn lying(dir: &Path) -> io::Result<Vec<Lying>> {
    let mut lying = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = match entry.metadata() {
            Ok(meta) => meta,
            // Taken away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let Ok(name) = entry.file_name().into_string() else { continue };
        if meta.is_file() && name != LOCK && name != PROBE {
            lying.push(Lying { name, bytes: meta.len(), modified: meta.modified()? });
        }
    }
    Ok(lying)
}
