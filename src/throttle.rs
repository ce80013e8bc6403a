//! Throttle: how many bytes one direction of a session may move, and when it may move more.
//!
//! A token bucket refilled in samples of 100 ms, holding at most one sample's worth: as upstream's limiter, no
//! credit is carried over from idle time, so a limit is a limit over every 100 ms in which its caller comes in time.
//! For one that was told to wait and wakes up late a sample begins where the one before it ended: else each would cost
//! what the machine takes to wake it. It also knows for how long it has held up what there was to move. Pure: the caller
//! brings the clock.
//! Source: `protocol.md` 4.4 (`--max-connection-bytes-per-sec`, `github.com/mxk/go-flowrate`).

use std::time::Duration;

use tokio::time::Instant;

/// Length of a sample.
const SAMPLE: Duration = Duration::from_millis(100);

/// How late somebody who was told to wait may come without losing what could have been moved meanwhile: so late a busy
/// machine wakes a task. Whoever comes later has not waited for this alone, and begins anew.
const LATE: Duration = Duration::from_millis(500);

/// The budget of one direction.
#[derive(Debug)]
pub struct Throttle {
    /// Bytes per sample; `None` when there is no limit.
    per_sample: Option<usize>,
    left: usize,
    sample_ends: Option<Instant>,
    /// Since when nothing may be moved.
    waits: Option<Instant>,
    /// How long that was, until it is known whether there was anything to move.
    waited: Option<Duration>,
    held: Duration,
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
        Self { per_sample, left: 0, sample_ends: None, waits: None, waited: None, held: Duration::ZERO }
    }

    /// Asks for up to `want` bytes, which is more than 0.
    pub fn ask(&mut self, now: Instant, want: usize) -> Grant {
        let Some(per_sample) = self.per_sample else { return Grant::Bytes(want) };
        match self.sample_ends {
            Some(ends) if now < ends && self.left > 0 => {}
            Some(ends) if now < ends => {
                self.waits.get_or_insert(now);
                return Grant::Wait(ends);
            }
            ends => {
                let waits = self.waits.take().zip(ends);
                self.waited = waits.map(|(since, ends)| ends - since);
                let mut begins = waits.map_or(now, |(_, ends)| ends);
                if now - begins >= LATE {
                    begins = now;
                }
                self.left = 0;
                while begins <= now {
                    self.left = self.left.saturating_add(per_sample);
                    begins += SAMPLE;
                }
                self.sample_ends = Some(begins);
            }
        }
        Grant::Bytes(want.min(self.left))
    }

    /// Tells that so many of the granted bytes were moved, at once.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.held += self.waited.take().unwrap_or_default();
    }

    /// Tells that there is nothing to move: nor has there been anything to hold up.
    pub fn pass(&mut self) {
        self.waited = None;
    }

    /// For how long it has held up what there was to move, in all.
    pub fn held(&self) -> Duration {
        self.held
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
    fn whoever_is_woken_late_still_averages_the_limit() {
        let start = Instant::now();
        let (mut throttle, mut now, mut moved) = (Throttle::new(100_000), start, 0);
        let mut late = [0, 3, 40, 7, 130, 1, 0, 450].into_iter().cycle();
        while now < start + Duration::from_secs(60) {
            match throttle.ask(now, 4096) {
                Grant::Bytes(bytes) => {
                    throttle.spend(bytes);
                    moved += bytes;
                }
                Grant::Wait(until) => now = until + Duration::from_millis(late.next().unwrap_or(0)),
            }
        }
        assert!((5_900_000..=6_050_000).contains(&moved), "{moved}");
    }

    #[test]
    fn it_knows_how_long_it_has_held_up_what_there_was_to_move() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut throttle = Throttle::new(1000);
        assert_eq!(throttle.ask(at(0), 4096), Grant::Bytes(100));
        throttle.spend(100);
        // Asked twice, waited for once.
        assert_eq!(throttle.ask(at(40), 4096), Grant::Wait(at(100)));
        assert_eq!(throttle.ask(at(60), 4096), Grant::Wait(at(100)));
        assert_eq!(throttle.ask(at(100), 4096), Grant::Bytes(100));
        throttle.spend(100);
        assert_eq!(throttle.held(), Duration::from_millis(60));
        // There was nothing behind it.
        assert_eq!(throttle.ask(at(120), 4096), Grant::Wait(at(200)));
        assert_eq!(throttle.ask(at(200), 4096), Grant::Bytes(100));
        throttle.pass();
        assert_eq!(throttle.ask(at(210), 4096), Grant::Bytes(100));
        throttle.spend(100);
        assert_eq!(throttle.held(), Duration::from_millis(60));
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
        // Who was told to wait and does something else meanwhile has been idle, too.
        let much_later = later + Duration::from_secs(60);
        assert_eq!(throttle.ask(much_later, 4096), Grant::Bytes(100));
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
