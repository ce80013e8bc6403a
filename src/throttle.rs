//! Throttle: how many bytes one direction of a session may move, and when it may move more.
//!
//! Its own limit is a token bucket refilled in samples of 100 ms, holding at most one sample's worth: as upstream's limiter,
//! no credit is carried over from idle time, so a limit is a limit over every 100 ms in which its caller comes in time.
//! For one that was told to wait and wakes up late a sample begins where the one before it ended: else each would cost
//! what the machine takes to wake it. Beside it there may be a [`Share`] of what its caller may move, and all together.
//! It also knows for how long it has held up what there was to move, and what has. Pure: the caller brings the clock. What
//! nothing limits has no throttle, and asks no clock.
//! Source: `protocol.md` 4.4 (`--max-connection-bytes-per-sec`, `github.com/mxk/go-flowrate`).

pub mod share;

use std::time::Duration;

use tokio::time::Instant;

use share::Share;

/// Length of a sample.
const SAMPLE: Duration = Duration::from_millis(100);

/// Samples in a second.
const PER_SECOND: u64 = 10;

/// How late somebody who was told to wait may come without losing what could have been moved meanwhile: so late a busy
/// machine wakes a task. Whoever comes later has not waited for this alone, and begins anew.
const LATE: Duration = Duration::from_millis(500);

/// The budget of one direction.
#[derive(Debug)]
pub struct Throttle {
    own: Option<Own>,
    share: Option<Share>,
    /// Since when nothing may be moved, until when, and because of what.
    waits: Option<(Instant, Instant, Level)>,
    /// How long that was before the last grant, until it is known whether there was anything to move.
    waited: Option<(Duration, Level)>,
    /// By level.
    held: [Duration; 3],
}

/// The limit of a direction itself.
#[derive(Debug)]
struct Own {
    rate: Rate,
    left: u64,
    sample_ends: Option<Instant>,
    /// Nothing was left before the sample's end.
    waits: bool,
}

/// Bytes per second, by the sample: what does not fill a byte is kept for the next.
#[derive(Debug)]
struct Rate {
    per_second: u64,
    /// Tenths of a byte.
    rest: u64,
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Up to so many bytes; at least one.
    Bytes(usize),
    /// Nothing before this instant.
    Wait(Instant),
}

/// What has a budget of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Level {
    /// One session.
    #[default]
    Session,
    /// The sessions of one caller together.
    Caller,
    /// All sessions together.
    All,
}

/// That budgets have held up what there was to move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// For how long in all.
    pub long: Duration,
    /// What has, for the most part.
    pub by: Level,
}

// === impl Throttle ===

impl Throttle {
    /// At most this many bytes per second on average, where that is not 0, and no more than the share has. None where there is
    /// no limit: nothing is to be paid for it.
    pub fn new(bytes_per_second: u64, share: Option<Share>) -> Option<Box<Self>> {
        let own = (bytes_per_second > 0).then(|| Own::new(bytes_per_second));
        (own.is_some() || share.is_some())
            .then(|| Box::new(Self { own, share, waits: None, waited: None, held: [Duration::ZERO; 3] }))
    }

    /// Asks for up to `want` bytes, which is more than 0.
    pub fn ask(&mut self, now: Instant, want: usize) -> Grant {
        match self.granted(now, want as u64) {
            Ok(bytes) => {
                self.waited = self.waits.take().map(|(since, until, level)| (until - since, level));
                Grant::Bytes(usize::try_from(bytes).unwrap_or(want))
            }
            Err((until, level)) => {
                let (since, ..) = self.waits.unwrap_or((now, until, level));
                self.waits = Some((since, until, level));
                Grant::Wait(until)
            }
        }
    }

    fn granted(&mut self, now: Instant, want: u64) -> Result<u64, (Instant, Level)> {
        let own = match self.own.as_mut().map_or(Ok(u64::MAX), |own| own.ask(now)) {
            Ok(own) => own,
            Err(until) => {
                // Others may have what it may not use.
                self.pass();
                return Err((until, Level::Session));
            }
        };
        let share = self.share.as_mut().map_or(Ok(u64::MAX), |share| share.ask(now, own))?;
        Ok(want.min(own).min(share))
    }

    /// Tells that so many of the granted bytes were moved, at once.
    pub fn spend(&mut self, bytes: usize) {
        if let Some(own) = &mut self.own {
            own.left = own.left.saturating_sub(bytes as u64);
        }
        if let Some(share) = &mut self.share {
            share.spend(bytes as u64);
        }
        if let Some((waited, level)) = self.waited.take() {
            self.held[level as usize] += waited;
        }
    }

    /// Tells that there is nothing to move, or nowhere to: others may have what was granted and not spent. Nor has there been
    /// anything to hold up.
    pub fn pass(&mut self) {
        self.waited = None;
        if let Some(share) = &mut self.share {
            share.pass();
        }
    }

    /// For how long it has held up what there was to move.
    pub fn held(&self) -> Held {
        // Of equals it is the last.
        let levels = [Level::All, Level::Caller, Level::Session];
        let by = levels.into_iter().max_by_key(|&level| self.held[level as usize]).unwrap_or_default();
        Held { long: self.held.iter().sum(), by }
    }
}

// === impl Own ===

impl Own {
    fn new(bytes_per_second: u64) -> Self {
        Self { rate: Rate::new(bytes_per_second), left: 0, sample_ends: None, waits: false }
    }

    /// How many bytes there are, at least one; else when there are more.
    fn ask(&mut self, now: Instant) -> Result<u64, Instant> {
        if self.sample_ends.is_none_or(|ends| ends <= now) {
            let late =
                self.sample_ends.filter(|_| self.waits).map(|ends| now - ends).filter(|&late| late < LATE);
            let late = late.unwrap_or_default();
            let samples = 1 + late.as_millis() / SAMPLE.as_millis();
            let samples = u32::try_from(samples).expect("there are no more than in what is late");
            self.left = self.rate.of(samples.into());
            self.sample_ends = Some(now - late + SAMPLE * samples);
        }
        self.waits = self.left == 0;
        match self.sample_ends {
            Some(ends) if self.waits => Err(ends),
            _ => Ok(self.left),
        }
    }
}

// === impl Rate ===

impl Rate {
    fn new(per_second: u64) -> Self {
        Self { per_second, rest: 0 }
    }

    /// The bytes of so many samples.
    fn of(&mut self, samples: u64) -> u64 {
        let tenths = self.per_second.saturating_mul(samples).saturating_add(self.rest);
        self.rest = tenths % PER_SECOND;
        tenths / PER_SECOND
    }

    /// Those of one at most.
    fn per_sample(&self) -> u64 {
        self.per_second.div_ceil(PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Samples' worth of bytes by which a limit may be passed over any stretch, as docs/sessions.md says: those of who came as
    /// late as may be, at once, and the one that begins right after them.
    const BURST: u64 = 6;

    fn limited(rate: u64) -> Box<Throttle> {
        Throttle::new(rate, None).unwrap()
    }

    /// Moves as much as allowed for `seconds` of a pretend clock, and returns the bytes moved.
    fn greedy(rate: u64, seconds: u64, chunk: usize) -> u64 {
        let start = Instant::now();
        let (mut throttle, mut now, mut moved) = (limited(rate), start, 0);
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
        assert!(Throttle::new(0, None).is_none());
    }

    #[test]
    fn item_051_a_greedy_direction_averages_its_limit() {
        assert_eq!(greedy(1_000_000, 10, 4096), 10_000_000);
        for rate in [1, 3, 9, 10, 11, 14, 15, 19, 20, 99, 10_485_760] {
            assert_eq!(greedy(rate, 10, 65_536), 10 * rate);
        }
    }

    #[test]
    fn whoever_is_woken_late_still_averages_the_limit() {
        let start = Instant::now();
        let (mut throttle, mut now, mut moved) = (limited(100_000), start, 0);
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
        let mut throttle = limited(1000);
        assert_eq!(throttle.held(), Held::default());
        assert_eq!(throttle.ask(at(0), 4096), Grant::Bytes(100));
        throttle.spend(100);
        // Asked twice, waited for once.
        assert_eq!(throttle.ask(at(40), 4096), Grant::Wait(at(100)));
        assert_eq!(throttle.ask(at(60), 4096), Grant::Wait(at(100)));
        assert_eq!(throttle.ask(at(100), 4096), Grant::Bytes(100));
        throttle.spend(100);
        assert_eq!(throttle.held().long, Duration::from_millis(60));
        // There was nothing behind it.
        assert_eq!(throttle.ask(at(120), 4096), Grant::Wait(at(200)));
        assert_eq!(throttle.ask(at(200), 4096), Grant::Bytes(100));
        throttle.pass();
        assert_eq!(throttle.ask(at(210), 4096), Grant::Bytes(100));
        throttle.spend(100);
        assert_eq!(throttle.held().long, Duration::from_millis(60));
    }

    #[test]
    fn what_its_own_limit_holds_back_is_left_to_others_and_what_holds_is_known() {
        let shares = share::Shares::new(share::Rates { caller: 0, all: 100_000 }).unwrap();
        let direction = |own, caller: &str| {
            let [share, _] = shares.join(&caller.into());
            (Throttle::new(own, Some(share)).unwrap(), 0)
        };
        let mut both = [direction(10_000, "ana"), direction(0, "ben")];
        let start = Instant::now();
        for tick in 0..1000 {
            let now = start + Duration::from_millis(10) * tick;
            for (throttle, moved) in &mut both {
                while let Grant::Bytes(bytes) = throttle.ask(now, 4096) {
                    throttle.spend(bytes);
                    *moved += bytes;
                }
            }
        }
        let [(slow, few), (fast, many)] = both;
        assert!((99_000..=101_000).contains(&few) && (860_000..=910_000).contains(&many), "{few} and {many}");
        assert_eq!((slow.held().by, fast.held().by), (Level::Session, Level::All));
        let long = slow.held().long.min(fast.held().long);
        assert!(long > Duration::from_secs(7), "{long:?}");
    }

    #[test]
    fn idle_time_earns_no_credit() {
        let start = Instant::now();
        let mut throttle = limited(1000);
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
            rate in 1u64..10_000_000,
            steps in proptest::collection::vec((1usize..100_000, 0u64..300), 1..200),
        ) {
            let start = Instant::now();
            let (mut throttle, mut now, mut moved) = (limited(rate), start, 0u64);
            for (want, pause) in steps {
                if let Grant::Bytes(bytes) = throttle.ask(now, want) {
                    prop_assert!(bytes >= 1 && bytes <= want);
                    throttle.spend(bytes);
                    moved += bytes as u64;
                }
                now += Duration::from_millis(pause);
                // Samples begun so far, each good for a tenth of the rate.
                let samples = u64::try_from((now - start).as_millis() / SAMPLE.as_millis()).unwrap() + 1;
                prop_assert!(moved <= samples * rate / 10);
            }
        }

        #[test]
        fn no_stretch_passes_the_limit_by_more_than_its_burst(
            rate in 1u64..100_000,
            steps in proptest::collection::vec((1usize..100_000, 0u64..600), 1..200),
        ) {
            let (mut throttle, mut now) = (limited(rate), Instant::now());
            // Thousandths of bytes beyond what the rate brings, in the stretch for which they are most.
            let mut excess = 0;
            for (want, pause) in steps {
                if let Grant::Bytes(bytes) = throttle.ask(now, want) {
                    throttle.spend(bytes);
                    excess += 1000 * bytes as u64;
                }
                // What does not fill a byte is kept for the next.
                prop_assert!(excess <= BURST * SAMPLE.as_millis() as u64 * rate + 1000);
                now += Duration::from_millis(pause);
                excess = excess.saturating_sub(rate * pause);
            }
        }
    }
}
