//! What the settings of policy name: rules out of files, and out of the cluster.

use std::sync::Arc;

use crate::admin::Ready;
use crate::cluster::kube::collection::Collection;
use crate::cluster::kube::connect::Connection;
use crate::config::Config;
use crate::drain::Drain;
use crate::policy::document::Effect;
use crate::policy::set::Set;
use crate::policy::source::{self, Error, api};
use crate::policy::{Grants, Policy, Settings};
use crate::reload::{Live, Reloader};
use crate::telemetry::Metrics;

/// The house rules of these settings, and of a set that is already followed.
///
/// # Errors
/// When their files cannot be used.
pub async fn open(
    config: &Config,
    reloader: &Reloader,
    grants: Arc<dyn Grants>,
    followed: Option<Live<Set>>,
) -> Result<Policy, Error> {
    let settings =
        Settings { allow: config.policy.default == Effect::Allow, record: config.recording.default };
    let mut sets = Vec::from_iter(followed);
    if !config.policy.files.is_empty() {
        sets.push(source::follow(reloader, config.policy.files.clone(), config.recording.enabled).await?);
    }
    Ok(Policy::new(settings, sets, grants))
}

/// The policies of the cluster, if they are wanted, and whether they have been read.
///
/// # Errors
/// When what holds until then is no set of rules.
pub(super) fn of_cluster(
    config: &Config,
    connection: Live<Connection>,
    background: &Drain,
    metrics: &Metrics,
) -> Result<Option<(Live<Set>, Ready)>, Error> {
    if !config.policy.from_api {
        return Ok(None);
    }
    let collection = |name, path: &str| {
        let (within, most) = (config.cluster.read_timeout, config.cluster.max_waiting);
        Collection::new(connection.clone(), name, path.to_owned(), "", within, most)
    };
    let objects = collection(api::NAME, api::PATH);
    let events = collection(api::events::NAME, api::events::PATH);
    let (set, read) = api::follow(&objects, events, config.recording.enabled, background, metrics)?;
    Ok(Some((set, Ready { name: "policies", check: Box::new(move || read.is_done()) })))
}

/// What is wrong with their files.
pub(super) fn check(config: &Config) -> Option<Error> {
    source::read(&config.policy.files, config.recording.enabled).err()
}
