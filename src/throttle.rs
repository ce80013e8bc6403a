//! Throttle: how many bytes one direction of a session may move, and when it may move more.
//!
//! A token bucket refilled in samples of 100 ms, holding at most one sample's worth: as upstream's limiter, no
//! credit is carried over from idle time, so a limit is a limit over every 100 ms. Pure: the caller brings the
//! clock. Source: `protocol.md` 4.4 (`--max-connection-bytes-per-sec`, `github.com/mxk/go-flowrate`).

use std::time::Duration;

use tokio::time::Instant;

/// Length of a sample.
const SAMPLE: Duration = Duration::from_millis(100);

/// The budget of one direction.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes per sample; `None` when there is no limit.
    per_sample: Option<usize>,
    left: usize,
    sample_ends: Option<Instant>,
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Up to so many bytes; at least one.
    Bytes(usize),
    /// Nothing before this instant.
    Wait(Instant),
}

// === impl Throttle ===

impl Throttle {
    /// At most this many bytes per second on average; 0 is no limit.
    pub fn new(bytes_per_second: u64) -> Self {
        let per_sample = (bytes_per_second > 0)
            .then(|| usize::try_from(bytes_per_second.saturating_add(5) / 10).unwrap_or(usize::MAX).max(1));
        Self { per_sample, left: 0, sample_ends: None }
    }

    /// Asks for up to `want` bytes, which is more than 0.
    pub fn ask(&mut self, now: Instant, want: usize) -> Grant {
        let Some(per_sample) = self.per_sample else { return Grant::Bytes(want) };
        match self.sample_ends {
            Some(ends) if now < ends => {}
            _ => {
                self.left = per_sample;
                self.sample_ends = Some(now + SAMPLE);
            }
        }
        match self.sample_ends {
            Some(ends) if self.left == 0 => Grant::Wait(ends),
            _ => Grant::Bytes(want.min(self.left)),
        }
    }

    /// Tells that so many of the granted bytes were moved.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Moves as much as allowed for `seconds` of a pretend clock, and returns the bytes moved.
    fn greedy(rate: u64, seconds: u64, chunk: usize) -> u64 {
        let start = Instant::now();
        let (mut throttle, mut now, mut moved) = (Throttle::new(rate), start, 0);
        while now < start + Duration::from_secs(seconds) {
            match throttle.ask(now, chunk) {
                Grant::Bytes(bytes) => {
                    throttle.spend(bytes);
                    moved += bytes as u64;
                }
                Grant::Wait(until) => {
                    assert!(until > now, "a wait must move the clock");
                    now = until;
                }
            }
        }
        moved
    }

    #[test]
    fn item_051_zero_is_off() {
        assert_eq!(Throttle::new(0).ask(Instant::now(), 1 << 20), Grant::Bytes(1 << 20));
    }

    #[test]
    fn item_051_a_greedy_direction_averages_its_limit() {
        assert_eq!(greedy(1_000_000, 10, 4096), 10_000_000);
        assert_eq!(greedy(1, 10, 4096), 100, "at least one byte a sample");
    }

    #[test]
    fn idle_time_earns_no_credit() {
        let start = Instant::now();
        let mut throttle = Throttle::new(1000);
        assert_eq!(throttle.ask(start, 4096), Grant::Bytes(100));
        throttle.spend(100);
        let later = start + Duration::from_secs(60);
        assert_eq!(throttle.ask(later, 4096), Grant::Bytes(100));
        throttle.spend(100);
        assert_eq!(throttle.ask(later, 4096), Grant::Wait(later + SAMPLE));
    }

    proptest! {
        #[test]
        fn the_budget_of_any_stretch_is_never_passed(
            rate in 10u64..10_000_000,
            steps in proptest::collection::vec((1usize..100_000, 0u64..300), 1..200),
        ) {
            let start = Instant::now();
            let (mut throttle, mut now, mut moved) = (Throttle::new(rate), start, 0u64);
            for (want, pause) in steps {
                if let Grant::Bytes(bytes) = throttle.ask(now, want) {
                    prop_assert!(bytes >= 1 && bytes <= want);
                    throttle.spend(bytes);
                    moved += bytes as u64;
                }
                now += Duration::from_millis(pause);
                // Samples begun so far, each good for a tenth of the rate (rounded).
                let samples = u64::try_from((now - start).as_millis() / SAMPLE.as_millis()).unwrap() + 1;
                prop_assert!(moved <= samples * ((rate + 5) / 10));
            }
        }
    }
}
