//! What the settings of grants name: the place where they are kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Ready;
use crate::cluster::kube::collection::Collection;
use crate::cluster::kube::connect::Connection;
use crate::config::Config;
use crate::drain::Drain;
use crate::grant::book::Book;
use crate::grant::configmaps::ConfigMaps;
use crate::grant::folder::Folder;
use crate::grant::{Grants, store, wall_clock};
use crate::reload::Live;
use crate::telemetry::Metrics;

/// For one read or write of a grant: people wait for it.
const WITHIN: Duration = Duration::from_secs(10);

/// Grants in a folder that is this process's own.
///
/// # Errors
/// When the folder cannot be used.
pub(super) fn in_folder(config: &Config, folder: &Path, background: &Drain) -> Result<Grants, store::Error> {
    let book = Arc::new(Book::default());
    let store = Arc::new(Folder::open(folder, book.clone())?);
    Ok(Grants::start(store, book, config.policy.grants.settings(), wall_clock(), background))
}

/// Grants in the ConfigMaps of a namespace, if one is named, and whether they have been read.
pub(super) fn in_cluster(
    config: &Config,
    connection: Live<Connection>,
    background: &Drain,
    metrics: &Metrics,
) -> Option<(Grants, Ready)> {
    let namespace = config.policy.grants.namespace.clone()?;
    let (book, path) = (Arc::new(Book::default()), ConfigMaps::path(&namespace));
    let most = config.cluster.max_waiting;
    let maps = Collection::new(connection, "grants", path, &ConfigMaps::selector(), WITHIN, most);
    let store = Arc::new(ConfigMaps::start(maps, namespace, book.clone(), background, metrics));
    let read = book.clone();
    let ready = Ready { name: "grants", check: Box::new(move || read.is_complete()) };
    let grants = Grants::start(store, book, config.policy.grants.settings(), wall_clock(), background);
    Some((grants, ready))
}
