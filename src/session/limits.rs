//! Limits: what bounds a session, what has set each bound, and what its client is told of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Order, Settings};
use crate::config::duration::spelled;
use crate::telemetry::EndReason;
use crate::throttle::Level;

/// What bounds one session. Where the settings of all say less, that holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes per second and direction.
    pub bytes_per_second: Option<Limit<u64>>,
    /// The same of all sessions together of whoever has opened it.
    pub bytes_per_second_per_user: Option<Limit<u64>>,
    /// The same of all sessions together.
    pub bytes_per_second_in_all: Option<Limit<u64>>,
    /// How long it may last.
    pub longest: Option<Limit<Duration>>,
    /// How long nothing but keepalives may pass.
    pub idle: Option<Limit<Duration>>,
    /// Sessions at once of whoever has opened it.
    pub sessions_per_user: Option<Limit<usize>>,
}

/// A bound, and who has set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit<T> {
    /// As much as that.
    pub most: T,
    /// What says so.
    pub by: By,
}

/// What has set a bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A house rule, by `document/rule`.
    Rule(Arc<str>),
    /// A setting, by its path.
    Setting(&'static str),
}

// === impl Limits ===

impl Limits {
    /// The stricter of each kind; of two that are alike the first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            bytes_per_second: stricter(self.bytes_per_second, other.bytes_per_second),
            bytes_per_second_per_user: stricter(
                self.bytes_per_second_per_user,
                other.bytes_per_second_per_user,
            ),
            bytes_per_second_in_all: stricter(self.bytes_per_second_in_all, other.bytes_per_second_in_all),
            longest: stricter(self.longest, other.longest),
            idle: stricter(self.idle, other.idle),
            sessions_per_user: stricter(self.sessions_per_user, other.sessions_per_user),
        }
    }

    /// That of the bytes of such a level.
    pub fn bytes(&self, level: Level) -> Option<&Limit<u64>> {
        match level {
            Level::Session => self.bytes_per_second.as_ref(),
            Level::Caller => self.bytes_per_second_per_user.as_ref(),
            Level::All => self.bytes_per_second_in_all.as_ref(),
        }
    }
}

impl From<&Settings> for Limits {
    fn from(all: &Settings) -> Self {
        let time = |most: Duration, path| Limit::setting(most, path).filter(|limit| !limit.most.is_zero());
        let rate = |most: u64, path| Limit::setting(most, path).filter(|limit| limit.most > 0);
        Self {
            bytes_per_second: rate(all.max_bytes_per_second, "session.maxBytesPerSecond"),
            bytes_per_second_per_user: rate(
                all.max_bytes_per_second_per_caller,
                "session.maxBytesPerSecondPerCaller",
            ),
            bytes_per_second_in_all: rate(all.max_bytes_per_second_in_all, "session.maxBytesPerSecondInAll"),
            longest: time(all.max_duration, "session.maxDuration"),
            idle: time(all.idle_timeout, "session.idleTimeout"),
            sessions_per_user: Limit::setting(all.max_sessions_per_caller, "session.maxSessionsPerCaller"),
        }
    }
}

fn stricter<T: Ord>(a: Option<Limit<T>>, b: Option<Limit<T>>) -> Option<Limit<T>> {
    a.into_iter().chain(b).min_by(|a, b| a.most.cmp(&b.most))
}

// === impl Limit ===

impl<T> Limit<T> {
    fn setting(most: T, path: &'static str) -> Option<Self> {
        Some(Self { most, by: By::Setting(path) })
    }
}

impl Limit<u64> {
    /// What the client of a terminal is told that this holds up, as the limit of such a level.
    pub(super) fn holds(&self, level: Level) -> String {
        let who = match level {
            Level::Session => "",
            Level::Caller => "all your sessions together are ",
            Level::All => "all sessions together are ",
        };
        format!("{who}held to {} by {}", per_second(self.most), self.by)
    }
}

impl Limit<Duration> {
    /// Nothing has passed for so long.
    pub(super) fn idle(&self) -> Order {
        let why = format!("this session was idle for {}, as long as {} lets it", spelled(self.most), self.by);
        Order { reason: EndReason::Idle, why }
    }

    /// It has gone on for so long.
    pub(super) fn overlong(&self) -> Order {
        let why = format!("this session has lasted {}, as long as {} lets it", spelled(self.most), self.by);
        Order { reason: EndReason::Overlong, why }
    }
}

// === impl By ===

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(name) => write!(f, "rule {name}"),
            Self::Setting(path) => write!(f, "setting {path}"),
        }
    }
}

/// A rate for people.
fn per_second(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes/s");
    }
    // In tenths: rates are given in round numbers, of either kind.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10 / 1024, 0);
    while tenths >= 10 * 1024 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    match (tenths / 10, tenths % 10) {
        (whole, 0) => format!("{whole} {}/s", UNITS[unit]),
        (whole, tenth) => format!("{whole}.{tenth} {}/s", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_told_in_units_that_people_know() {
        for (bytes, told) in [
            (1, "1 bytes/s"),
            (1000, "1000 bytes/s"),
            (1 << 20, "1 MiB/s"),
            (3 << 19, "1.5 MiB/s"),
            (1_000_000, "976.5 KiB/s"),
            (u64::MAX, "16383.9 PiB/s"),
        ] {
            assert_eq!(per_second(bytes), told);
        }
    }

    #[test]
    fn whoever_is_held_up_is_told_by_what_and_with_whom() {
        let settings = Settings {
            max_bytes_per_second: 1 << 20,
            max_bytes_per_second_per_caller: 2 << 20,
            max_bytes_per_second_in_all: 3 << 20,
            ..crate::session::tests::settings()
        };
        let limits = Limits::from(&settings);
        for (level, told) in [
            (Level::Session, "held to 1 MiB/s by setting session.maxBytesPerSecond"),
            (
                Level::Caller,
                "all your sessions together are held to 2 MiB/s by setting session.maxBytesPerSecondPerCaller",
            ),
            (
                Level::All,
                "all sessions together are held to 3 MiB/s by setting session.maxBytesPerSecondInAll",
            ),
        ] {
            assert_eq!(limits.bytes(level).unwrap().holds(level), told);
        }
        assert_eq!(Limits::from(&crate::session::tests::settings()).bytes(Level::All), None);
    }

    #[test]
    fn of_two_bounds_the_stricter_holds_and_of_two_alike_the_first() {
        let rule =
            |name: &str, seconds| Limit { most: Duration::from_secs(seconds), by: By::Rule(name.into()) };
        let longest = |limit| Limits { longest: Some(limit), ..Limits::default() };
        for (a, b, holds) in [
            (rule("a", 5), rule("b", 9), "rule a"),
            (rule("a", 9), rule("b", 5), "rule b"),
            (rule("a", 5), rule("b", 5), "rule a"),
        ] {
            assert_eq!(longest(a).and(longest(b)).longest.unwrap().by.to_string(), holds);
        }
        assert_eq!(longest(rule("a", 5)).and(Limits::default()), longest(rule("a", 5)));
    }
}
