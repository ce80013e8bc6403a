//! `podgate serve`.

use crate::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum Error {}

pub async fn run(config: &Config) -> Result<u8, Error> {
    let _ = config;
    Ok(0)
}

pub async fn check(config: &Config) -> Vec<Error> {
    let _ = config;
    Vec::new()
}
