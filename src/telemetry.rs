//! Telemetry: log set-up, the metric registry, and the one end record of a session.
//!
//! Metric labels are closed sets; no user, pod or address is ever one. Help texts say what may change.

pub mod audience;
pub mod facts;
pub mod metrics;
pub mod record;

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

pub use audience::{Audience, Refused as AudienceError, Seen};
pub use facts::Facts;
pub use metrics::Metrics;
pub use record::{EndReason, Meter, Meters, Record, Slowed};

/// How log lines are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Log lines cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("log filter {filter:?} cannot be read")]
    Filter {
        /// The filter as given.
        filter: String,
        /// The cause.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Some other subscriber was set before.
    #[error("set up logging")]
    Subscriber(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends log lines to standard error, in this format, as far as `filter` lets them through.
///
/// # Errors
/// When the filter cannot be read, or logging is set up already.
pub fn log_to_stderr(format: LogFormat, filter: &str) -> Result<(), Error> {
    let filter =
        EnvFilter::try_new(filter).map_err(|source| Error::Filter { filter: filter.to_owned(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    .map_err(Error::Subscriber)
}

/// An error with all its causes, for one log field: `a: b: c`. A cause that a text ends with already is not repeated.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
