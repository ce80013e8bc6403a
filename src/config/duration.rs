//! Durations as people write them: `10s`, `1m30s`, `250ms`.

use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let value = SignedDuration::try_from(*value).map_err(serde::ser::Error::custom)?;
    serializer.serialize_str(&format!("{value:#}").replace(' ', ""))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed: Result<SignedDuration, _> = text.parse();
    let parsed =
        parsed.map_err(|_| D::Error::custom(format!("{text:?} is no duration, such as 30s or 1m30s")))?;
    Duration::try_from(parsed).map_err(|_| D::Error::custom(format!("{text:?} is below zero")))
}
