//! What the settings of policy name: rules out of files.

use std::sync::Arc;

use crate::config::Config;
use crate::policy::document::Effect;
use crate::policy::source::{self, Error};
use crate::policy::{Grants, Policy, Settings};
use crate::reload::Reloader;

/// The house rules of these settings.
///
/// # Errors
/// When their files cannot be used.
pub async fn open(config: &Config, reloader: &Reloader, grants: Arc<dyn Grants>) -> Result<Policy, Error> {
    let settings =
        Settings { allow: config.policy.default == Effect::Allow, record: config.recording.default };
    let mut sets = Vec::new();
    if !config.policy.files.is_empty() {
        sets.push(source::follow(reloader, config.policy.files.clone(), config.recording.enabled).await?);
    }
    Ok(Policy::new(settings, sets, grants))
}

/// What is wrong with their files.
pub(super) fn check(config: &Config) -> Option<Error> {
    source::read(&config.policy.files, config.recording.enabled).err()
}
