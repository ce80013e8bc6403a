//! What settings of recording name: keys, spool and store. Read once, at start.

use std::path::{Path, PathBuf};

use crate::config;
use crate::drain::Drain;
use crate::recording::keys::{self, Keys, Recipient, SigningKey};
use crate::recording::store;
use crate::tap::upload::Store;
use crate::tap::{Recordings, Settings, spool};
use crate::telemetry::Metrics;

/// What a setting names is of no use.
#[derive(Debug, thiserror::Error)]
#[error("setting recording.{key}")]
pub struct Error {
    key: &'static str,
    #[source]
    source: Unusable,
}

/// Why it is not.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error(transparent)]
    Key(#[from] keys::Error),
    #[error(transparent)]
    Spool(#[from] spool::Error),
    #[error(transparent)]
    Store(#[from] store::Unusable),
}

fn of<T, E: Into<Unusable>>(key: &'static str, read: Result<T, E>) -> Result<T, Error> {
    read.map_err(|error| Error { key, source: error.into() })
}

/// The key that signs.
pub(super) fn signing_key(path: &Path) -> Result<SigningKey, Error> {
    of("signingKeyFile", SigningKey::from_file(path))
}

fn recipients(paths: &[PathBuf]) -> Result<Vec<Recipient>, Error> {
    paths.iter().map(|path| of("recipientFiles", Recipient::from_file(path))).collect()
}

fn opened(store: &config::recording::Store) -> Result<Option<Store>, Error> {
    let opened = store.url.as_deref().map(|url| Store::open(url, store.options_file.as_deref()));
    of("store", opened.transpose())
}

/// Everything that can be read without writing anything; what is wrong with it.
pub(super) fn check(config: &config::Recording) -> Vec<Error> {
    let key = config.signing_key_file.as_deref().map(signing_key);
    let wrong = [key.and_then(Result::err), recipients(&config.recipient_files).err()];
    let looks_up = config.store.url.as_deref().is_some_and(|url| !url.starts_with("file:"));
    let store = looks_up.then(|| opened(&config.store).err()).flatten();
    wrong.into_iter().chain([store]).flatten().collect()
}

/// Opens all of it, where sessions are recorded. Does blocking I/O.
///
/// # Errors
/// When something cannot be used; the text names the setting.
///
/// # Panics
/// When the settings are not those of `podgate serve`, which have been looked at.
pub fn open(
    config: &config::Recording,
    background: &Drain,
    metrics: &Metrics,
) -> Result<Option<Recordings>, Error> {
    if !config.enabled {
        return Ok(None);
    }
    let (key, dir) = (config.signing_key_file.as_ref(), config.spool.dir.as_ref());
    let (key, dir) = key.zip(dir).expect("recording without a key or a spool is refused before");
    start(config, signing_key(key)?, dir, background, metrics).map(Some)
}

/// Opens the spool and the store.
pub(super) fn start(
    config: &config::Recording,
    signing: SigningKey,
    dir: &Path,
    background: &Drain,
    metrics: &Metrics,
) -> Result<Recordings, Error> {
    let settings = Settings {
        dir: dir.to_owned(),
        max_bytes: config.spool.max_bytes,
        keys: Keys { signing, recipients: recipients(&config.recipient_files)? },
        store: opened(&config.store)?,
    };
    of("spool.dir", Recordings::start(settings, background, metrics))
}
