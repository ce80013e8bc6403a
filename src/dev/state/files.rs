//! The folder's files: private to their owner, whole, and held by one process.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Error;

/// Permission bits of anybody but the owner.
const OTHERS: u32 = 0o077;

/// Most bytes of a file that is read back: 1 MiB; the longest is a token file. A longer one counts as damaged.
const MAX_FILE: u64 = 1024 * 1024;

/// Most bytes of a process id in the lock file.
const MAX_PID: u64 = 32;

/// A folder that only its owner can enter.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

/// The hold on a folder; let go when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "holds the lock by being open")] File);

// === impl Folder ===

impl Folder {
    /// Makes the folder when it is missing; checks or mends it when it is there.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        // Without a trailing slash, behind which a symbolic link would not be seen.
        let path: PathBuf = path.components().collect();
        make(&path)?;
        check(&path)?;
        Ok(Self(path))
    }

    pub(super) fn make_sub(&self, name: &str) -> Result<(), Error> {
        Self::open(&self.file(name)).map(drop)
    }

    pub(super) fn lock(&self) -> Result<Lock, Error> {
        let path = self.file("lock");
        let failed = |source| Error::Lock { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // The pid is for people; without it the error still names the folder.
                let _ = (&mut file).take(MAX_PID).read_to_string(&mut pid);
                let pid = pid.trim();
                return Err(Error::InUse {
                    path: self.0.clone(),
                    pid: if pid.is_empty() { "?" } else { pid }.to_owned(),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Lock(file))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The text of a file; `None` when it is missing, or cannot be trusted or used and is to be made again.
    pub(super) fn read(&self, name: &str) -> Option<String> {
        self.read_kept(name).ok()?
    }

    /// The text of a file that is not made again unless it is missing, which is `None`.
    pub(super) fn read_kept(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.file(name);
        let failed = |source| Error::Read { path: path.clone(), source };
        let unfit = |what, remedy| Err(Error::Unfit { path: path.clone(), what, remedy });
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return unfit("is a symbolic link", "put the file itself there");
            }
            Err(error) => return Err(failed(error)),
        };
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return unfit("is not a plain file", "move it away");
        }
        if meta.uid() != own_id() {
            return unfit("belongs to somebody else", "see who wrote it, then run chown on it");
        }
        if meta.mode() & OTHERS != 0 {
            return unfit("can be reached by others", "run chmod 0600 on it");
        }
        if meta.len() > MAX_FILE {
            return unfit("is larger than 1 MiB", "make it shorter");
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        Ok(Some(text))
    }

    /// Replaces a file, mode 0600. The name beside it is fixed: the lock leaves one writer, and what a killed
    /// process left there is replaced too.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.file(name);
        let beside = self.file(&format!(".{name}.new"));
        let written = || -> io::Result<()> {
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)
        };
        written().map_err(|source| Error::Write { path, source })
    }
}

fn make(path: &Path) -> Result<(), Error> {
    // A dangling link is an existing path to `check`, not a missing folder.
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::Create { path: path.to_owned(), source })
}

fn check(path: &Path) -> Result<(), Error> {
    let path_buf = || path.to_owned();
    let meta = path.symlink_metadata().map_err(|source| Error::Inspect { path: path_buf(), source })?;
    if meta.is_symlink() {
        return Err(Error::Symlink { path: path_buf() });
    }
    if !meta.is_dir() {
        return Err(Error::NotAFolder { path: path_buf() });
    }
    if meta.uid() != own_id() {
        return Err(Error::Foreign { path: path_buf(), owner: meta.uid() });
    }
    if meta.mode() & 0o777 != 0o700 {
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|source| Error::Mend { path: path_buf(), source })?;
    }
    Ok(())
}

fn own_id() -> u32 {
    rustix::process::geteuid().as_raw()
}
