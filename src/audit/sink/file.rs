//! A file, one event a line: opened for appending by nobody but its owner, put aside when it is large, and opened anew
//! when somebody else has moved it away.
//!
//! Invariant: a line is there whole or not at all. What a full disk took of a batch is cut off again, and so is, when the
//! file is opened, what a crash has left of a line. Files put aside are named as kube-apiserver names them:
//! `audit-2026-03-04T05-06-07.890.log` beside `audit.log`.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tracing::{info, warn};

use super::{Batching, Failure, LINES, Sink, lines};
use crate::config::AuditFile;

/// How far back from the end of a file the end of its last whole line is looked for: further than any event reaches.
const LONGEST_LINE: u64 = 16 * 1024 * 1024;

/// Read size of that look.
const LOOK: usize = 64 * 1024;

/// A file that takes events.
#[derive(Debug)]
pub(in crate::audit) struct File {
    settings: Settings,
    open: Option<Open>,
}

#[derive(Debug, Clone)]
struct Settings {
    path: PathBuf,
    max_bytes: u64,
    max_files: usize,
    max_age: Duration,
}

#[derive(Debug)]
struct Open {
    file: fs::File,
    /// What it is, so that another at its path is noticed.
    id: (u64, u64),
    /// Up to where it has whole lines; nothing where that cannot be said, of a pipe or a device.
    len: Option<u64>,
    /// Whether there is more behind that, which is to be cut off first.
    torn: bool,
}

/// Events cannot be written to a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("open audit log {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be written.
    #[error("write audit log {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It cannot be put aside.
    #[error("put audit log {path} aside")]
    Rotate {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The thread that writes has panicked.
    #[error("write audit log")]
    Thread(#[source] tokio::task::JoinError),
}

// === impl File ===

impl File {
    /// Opens the file.
    ///
    /// # Errors
    /// When it cannot be.
    pub(in crate::audit) fn open(path: &Path, settings: &AuditFile) -> Result<Self, Error> {
        let AuditFile { max_bytes, max_files, max_age, .. } = *settings;
        let settings = Settings { path: path.to_owned(), max_bytes, max_files, max_age };
        let open = settings.open()?;
        Ok(Self { settings, open: Some(open) })
    }
}

impl Sink for File {
    fn batching(&self) -> Batching {
        LINES
    }

    fn write<'a>(&'a mut self, batch: &'a [Bytes]) -> BoxFuture<'a, Result<(), Failure>> {
        let (text, settings, open) = (lines(batch), self.settings.clone(), self.open.take());
        Box::pin(async move {
            let wrote = tokio::task::spawn_blocking(move || {
                let mut open = open;
                let written = settings.append(&mut open, &text);
                (open, written)
            });
            let written = match wrote.await {
                Ok((open, written)) => {
                    self.open = open;
                    written
                }
                Err(error) => Err(Error::Thread(error)),
            };
            written.map_err(|error| Failure::Down(Box::new(error)))
        })
    }
}

// === impl Settings ===

impl Settings {
    /// Writes whole lines at the end of the file that is at the path now.
    fn append(&self, open: &mut Option<Open>, text: &[u8]) -> Result<(), Error> {
        // Whoever moves files away makes no other promise than that the next line goes to a new one.
        if !open.as_mut().is_some_and(|open| open.is_at(&self.path)) {
            *open = Some(self.open()?);
        }
        let grown = |open: &Open| open.len.map_or(0, |len| len + text.len() as u64);
        if self.max_bytes > 0
            && let Some(full) = open.take_if(|open| open.len != Some(0) && grown(open) > self.max_bytes)
        {
            drop(full);
            self.put_aside()?;
            *open = Some(self.open()?);
        }
        let file = open.as_mut().expect("opened above");
        file.append(text).map_err(|source| Error::Write { path: self.path.clone(), source })
    }

    fn open(&self) -> Result<Open, Error> {
        let wrong = |source| Error::Open { path: self.path.clone(), source };
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600);
        // Some pipes and devices may only be written.
        let special = fs::metadata(&self.path).is_ok_and(|data| !data.is_file());
        let file = options.read(!special).open(&self.path).map_err(wrong)?;
        let data = file.metadata().map_err(wrong)?;
        let id = (data.dev(), data.ino());
        if special {
            return Ok(Open { file, id, len: None, torn: false });
        }
        let mut open = Open { file, id, len: Some(data.len()), torn: false };
        let whole = whole_lines(&mut open.file, data.len()).map_err(wrong)?;
        if whole < data.len() {
            warn!(path = %self.path.display(), bytes = data.len() - whole, "cut off a part of an audit event");
            open.file.set_len(whole).map_err(wrong)?;
            open.len = Some(whole);
        }
        Ok(open)
    }

    /// Gives the file a name with the time in it, and removes the oldest of those that have one.
    fn put_aside(&self) -> Result<(), Error> {
        let wrong = |source| Error::Rotate { path: self.path.clone(), source };
        let now = Timestamp::now();
        // Two within a millisecond are two all the same.
        let free =
            (0..1000).map(|ms| self.aside(now + Duration::from_millis(ms))).find(|path| !path.exists());
        let aside = free.ok_or_else(|| wrong(io::ErrorKind::AlreadyExists.into()))?;
        fs::rename(&self.path, &aside).map_err(wrong)?;
        info!(path = %aside.display(), "an audit log was put aside");
        if let Err(error) = self.remove_old() {
            warn!(path = %self.path.display(), error = %error, "cannot remove old audit logs");
        }
        Ok(())
    }

    fn aside(&self, at: Timestamp) -> PathBuf {
        let (stem, extension) = self.name();
        self.path.with_file_name(format!("{stem}-{}{extension}", at.strftime("%Y-%m-%dT%H-%M-%S%.3f")))
    }

    /// The file's name and its extension with the dot.
    fn name(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = part(self.path.extension());
        let dot = if extension.is_empty() { "" } else { "." };
        (part(self.path.file_stem()), format!("{dot}{extension}"))
    }

    fn remove_old(&self) -> io::Result<()> {
        let (stem, extension) = self.name();
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut aside = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
            let (entry, is_time) = (entry?, |text: &str| {
                text.len() == "2026-03-04T05-06-07.890".len()
                    && text.bytes().all(|b| b.is_ascii_digit() || b"-T.".contains(&b))
            });
            let name = entry.file_name().to_string_lossy().into_owned();
            let time = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            if time.is_some_and(is_time) {
                aside.push((name.clone(), entry.path(), entry.metadata()?.modified()?));
            }
        }
        // Their names are in the order of their times.
        aside.sort();
        let keep = if self.max_files == 0 { aside.len() } else { self.max_files };
        let many = aside.len().saturating_sub(keep);
        let old = |changed: &SystemTime| {
            !self.max_age.is_zero() && changed.elapsed().is_ok_and(|age| age > self.max_age)
        };
        for (index, (_, path, changed)) in aside.iter().enumerate() {
            if index < many || old(changed) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

// === impl Open ===

impl Open {
    /// Whether it is still the file at this path. Somebody else may have emptied it meanwhile, so its length is that of
    /// now: nothing is to be cut off behind an older one, nor filled up to it.
    fn is_at(&mut self, path: &Path) -> bool {
        let Ok(data) = fs::metadata(path) else { return false };
        if let Some(len) = &mut self.len {
            *len = if self.torn { data.len().min(*len) } else { data.len() };
        }
        (data.dev(), data.ino()) == self.id
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if let (true, Some(len)) = (self.torn, self.len) {
            self.file.set_len(len)?;
            self.torn = false;
        }
        let written = self.file.write_all(text);
        let Some(len) = &mut self.len else { return written };
        match written {
            Ok(()) => *len += text.len() as u64,
            Err(_) => self.torn = self.file.set_len(*len).is_err(),
        }
        written
    }
}

/// Up to where a file of `len` bytes has whole lines.
fn whole_lines(file: &mut fs::File, len: u64) -> io::Result<u64> {
    let (mut end, mut part) = (len, vec![0; LOOK]);
    while end > len.saturating_sub(LONGEST_LINE) {
        let start = end.saturating_sub(LOOK as u64);
        let size = usize::try_from(end - start).unwrap_or(LOOK);
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut part[..size])?;
        if let Some(at) = memchr::memrchr(b'\n', &part[..size]) {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    // Whatever this is, it is not ours to cut.
    Ok(if end == 0 { 0 } else { len })
}

#[cfg(test)]
mod tests;
