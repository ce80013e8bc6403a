//! `podgate keys`: makes and shows the keys of recordings.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::cli;
use crate::recording::keys::{self, Identity, Key, SigningKey};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be made or read.
    #[error(transparent)]
    Key(keys::Error),
    /// A file or its folder cannot be made.
    #[error("write a key to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Nobody takes what is printed.
    #[error("print a key")]
    Print(#[source] io::Error),
}

/// Runs one of them.
///
/// # Errors
/// When the key cannot be made, read or written, or a file of its name is there.
pub fn run(flags: &cli::Keys) -> Result<(), Error> {
    match flags {
        cli::Keys::Signing { out } => {
            let key = SigningKey::generate().map_err(Error::Key)?;
            let private = key.to_private_pem().map_err(Error::Key)?;
            make(out, "signing", &private, &Key::Signing(key))
        }
        cli::Keys::Recipient { out } => {
            let key = Identity::generate().map_err(Error::Key)?;
            make(out, "recipient", &key.to_private_pem(), &Key::Identity(key))
        }
        cli::Keys::Show { file } => {
            let key = Key::from_file(file).map_err(Error::Key)?;
            let (id, public) = key.public();
            // Whoever reads PEM skips what stands before it.
            say(&format!("{} is {}, with the id {id}\n{public}", file.display(), key.what()))
        }
    }
}

fn make(folder: &Path, name: &str, private: &str, key: &Key) -> Result<(), Error> {
    let (id, public) = key.public();
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Write { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    let (hidden, shown) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.pub.pem")));
    write(&hidden, private, 0o600).map_err(failed(&hidden))?;
    if let Err(error) = write(&shown, &public, 0o644) {
        // Half a pair would only be in the way of the next try.
        let _ = std::fs::remove_file(&hidden);
        return Err(failed(&shown)(error));
    }
    say(&format!("{}\n{}\nid {id}\n", hidden.display(), shown.display()))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn say(text: &str) -> Result<(), Error> {
    io::stdout().write_all(text.as_bytes()).map_err(Error::Print)
}
