use std::ops::Range;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// How often peers look at what there is to move.
const TICK: Duration = Duration::from_millis(10);

/// Bytes that are moved at once.
const READ: u64 = 64 * 1024;

const RATE: u64 = 10 << 20;

/// One direction of a session, and what it has to move.
struct Peer {
    share: Share,
    /// Bytes a tick; none is more than anybody lets it.
    need: Option<u64>,
    waiting: u64,
    asks_at: Instant,
    moved: u64,
    /// How often it was told to wait.
    waits: u32,
}

struct Rig {
    shares: Shares,
    peers: Vec<Peer>,
    now: Instant,
}

impl Rig {
    fn new(caller: u64, all: u64) -> Self {
        let shares = Shares::new(Rates { caller, all }).unwrap();
        Self { shares, peers: Vec::new(), now: Instant::now() }
    }

    fn join(&mut self, caller: &str, need: Option<u64>) {
        let [share, _] = self.shares.join(&caller.into());
        self.peers.push(Peer { share, need, waiting: 0, asks_at: self.now, moved: 0, waits: 0 });
    }

    fn greedy(caller: u64, all: u64, callers: &[&str]) -> Self {
        let mut rig = Self::new(caller, all);
        callers.iter().for_each(|caller| rig.join(caller, None));
        rig
    }

    /// What each has moved in this time, as a part of what a rate of [`RATE`] brings.
    fn run(&mut self, time: Duration) -> Vec<f64> {
        let ends = self.now + time;
        self.peers.iter_mut().for_each(|peer| peer.moved = 0);
        while self.now < ends {
            for peer in &mut self.peers {
                peer.waiting = peer.need.map_or(u64::MAX, |need| peer.waiting + need);
            }
            while self.peers.iter_mut().map(|peer| peer.step(self.now)).fold(false, |a, b| a | b) {}
            self.now += TICK;
        }
        self.peers.iter().map(|peer| peer.moved as f64 / RATE as f64 / time.as_secs_f64()).collect()
    }

    fn seconds(&mut self, seconds: u64) -> Vec<f64> {
        self.run(Duration::from_secs(seconds))
    }
}

impl Peer {
    /// Moves a piece; false when it has none, or may not.
    fn step(&mut self, now: Instant) -> bool {
        if self.waiting == 0 || self.asks_at > now {
            return false;
        }
        match self.share.ask(now, u64::MAX) {
            Ok(bytes) => {
                let bytes = bytes.min(READ).min(self.waiting);
                self.share.spend(bytes);
                self.waiting -= bytes;
                self.moved += bytes;
                if self.waiting == 0 {
                    self.share.pass();
                }
                true
            }
            Err((until, _)) => {
                assert!(until > now, "a wait must move the clock");
                self.asks_at = until;
                self.waits += 1;
                false
            }
        }
    }
}

#[track_caller]
fn assert_near(parts: &[f64], expected: &[f64]) {
    let near = parts.iter().zip(expected).all(|(part, expected)| (part - expected).abs() <= 0.05 * expected);
    assert!(near && parts.len() == expected.len(), "{parts:?}, not {expected:?}");
}

#[test]
fn without_a_rate_there_are_no_budgets() {
    assert!(Shares::new(Rates::default()).is_none());
}

#[test]
fn callers_share_what_all_may_move_and_sessions_what_their_caller_may() {
    let parts = |caller, all, callers: &[&str]| {
        let mut rig = Rig::greedy(caller, all, callers);
        // In the first sample nobody knows of the others.
        rig.run(SAMPLE * 3);
        rig.seconds(10)
    };
    assert_near(&parts(0, RATE, &["ana"]), &[1.0]);
    assert_near(&parts(0, RATE, &["ana"; 7]), &[1.0 / 7.0; 7]);
    let many: Vec<String> = (0..100).map(|n| format!("user-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_near(&parts(0, RATE, &many), &[0.01; 100]);
    let third = 0.5 / 3.0;
    assert_near(&parts(0, RATE, &["ana", "ben", "ana", "ana"]), &[third, 0.5, third, third]);
    // Each caller has their own, where all have none.
    assert_near(&parts(RATE, 0, &["ana", "ben", "ana"]), &[0.5, 1.0, 0.5]);
}

#[test]
fn rates_that_are_no_round_numbers_are_shared_to_the_byte() {
    for rate in [1, 7, 13, 999, 12_345] {
        let mut rig = Rig::greedy(0, rate, &["ana", "ben"]);
        rig.seconds(20);
        let moved: u64 = rig.peers.iter().map(|peer| peer.moved).sum();
        let most = 20 * rate + BURST * rate.div_ceil(10);
        assert!((19 * rate..=most).contains(&moved), "{moved} bytes in 20 seconds of {rate}");
    }
}

#[test]
fn who_needs_less_than_their_share_gets_it_all_and_the_rest_is_lent() {
    let mut rig = Rig::greedy(0, RATE, &["ana", "ben"]);
    // A tenth of the rate, by the tick.
    rig.join("eve", Some(RATE / 1000));
    rig.seconds(1);
    assert_near(&rig.seconds(5), &[0.45, 0.45, 0.1]);
    // The same among the sessions of one caller.
    let mut rig = Rig::greedy(0, RATE, &["ben", "ana"]);
    rig.join("ana", Some(RATE / 1000));
    rig.seconds(1);
    assert_near(&rig.seconds(5), &[0.5, 0.4, 0.1]);
}

#[test]
fn who_may_not_use_their_share_lends_it_too() {
    let mut rig = Rig::greedy(RATE / 10, RATE, &["ana", "ana", "ben"]);
    assert_near(&rig.seconds(5), &[0.05, 0.05, 0.1]);
    let mut rig = Rig::greedy(RATE / 2, RATE, &["ana", "ben", "eve"]);
    rig.seconds(1);
    assert_near(&rig.seconds(5), &[1.0 / 3.0; 3]);
}

#[test]
fn a_share_is_lent_and_given_back_within_three_samples() {
    let soon = SAMPLE * 3;
    let mut rig = Rig::greedy(0, RATE, &["ana", "ben"]);
    rig.seconds(2);
    rig.peers[1].need = Some(0);
    rig.peers[1].waiting = 0;
    rig.run(soon);
    assert_near(&rig.seconds(1)[..1], &[1.0]);
    rig.peers[1].need = None;
    rig.run(soon);
    assert_near(&rig.seconds(1), &[0.5, 0.5]);
    // Nobody is owed what they have lent.
    let left = rig.peers.pop().unwrap();
    drop(left);
    rig.run(soon);
    assert_near(&rig.seconds(1), &[1.0]);
}

#[test]
fn whoever_types_does_not_wait_for_bulk() {
    for (caller, all) in [(0, 100_000), (100_000, 0), (100_000, 100_000), (RATE, RATE)] {
        let mut rig = Rig::greedy(caller, all, &["ana"; 8]);
        // Four terminals, of which one is that of whoever copies.
        let typing = ["ana", "ben", "ben", "eve"];
        rig.seconds(1);
        typing.iter().for_each(|caller| rig.join(caller, Some(10)));
        rig.seconds(10);
        let waits: Vec<u32> = rig.peers[8..].iter().map(|peer| peer.waits).collect();
        assert_eq!(waits, [0; 4], "of {caller} and {all}");
    }
}

#[test]
fn many_sessions_that_each_move_little_are_no_more_than_their_callers_share() {
    const ALL: u64 = 4 << 20;
    // As much as all may move, nearly, each a little less than the most with which one goes first.
    for need in [150, 60] {
        let mut rig = Rig::greedy(0, ALL, &["ben"]);
        (0..250).for_each(|_| rig.join("ana", Some(need)));
        rig.seconds(2);
        let moved = rig.seconds(10);
        let [ben, ana] = [moved[0], moved[1..].iter().sum()].map(|part| part * RATE as f64 / ALL as f64);
        let needs = (250 * 100 * need) as f64 / ALL as f64;
        println!("{need}: ben {ben:.3}, ana {ana:.3} of {needs:.3}");
        assert!(ana < 0.55 && ben > 0.45, "{ben} beside {ana}");
    }
}

#[test]
fn who_comes_back_alone_is_not_judged_by_how_many_they_were_long_ago() {
    let mut rig = Rig::greedy(0, 100_000, &["ben"]);
    (0..250).for_each(|_| rig.join("ana", Some(1)));
    rig.seconds(2);
    rig.peers[1..].iter_mut().for_each(|peer| peer.need = Some(0));
    rig.seconds(60);
    rig.peers[1].need = Some(40);
    let before = rig.peers[1].waits;
    rig.seconds(1);
    assert_eq!(rig.peers[1].waits, before);
}

#[test]
fn who_was_content_goes_on_when_the_share_of_their_caller_becomes_smaller_than_that() {
    let shares = Shares::new(Rates { caller: 0, all: 1_000_000 }).unwrap();
    let [mut content, _] = shares.join(&"ana".into());
    let [mut greedy, _] = shares.join(&"ana".into());
    let [mut other, _] = shares.join(&"ben".into());
    let now = Instant::now();
    assert_eq!(content.ask(now, u64::MAX), Ok(100_000));
    content.spend(50_000);
    content.pass();
    for greedy in [&mut greedy, &mut other] {
        while let Ok(bytes) = greedy.ask(now, u64::MAX) {
            greedy.spend(bytes);
        }
    }
    // Both callers want more, so half is ana's, of which one session has had more than that, and wants the same again.
    assert!(content.ask(now + SAMPLE, u64::MAX).is_ok());
}

#[test]
fn typing_beyond_the_rate_waits_and_is_shared() {
    let mut rig = Rig::new(0, 10_000);
    (0..10).for_each(|_| rig.join("ana", Some(20)));
    rig.seconds(1);
    let moved = rig.seconds(10);
    let all: f64 = moved.iter().sum();
    assert!(all * (RATE as f64) < 10_000.0 * 1.05, "{all}");
    let expected = vec![all / 10.0; 10];
    assert_near(&moved, &expected);
}

#[test]
fn who_comes_back_has_used_what_they_have_used_and_is_forgotten_later() {
    let mut rig = Rig::greedy(1_000_000, 0, &["ana"]);
    rig.run(TICK);
    assert_eq!(rig.peers.pop().unwrap().moved, 100_000);
    rig.join("ana", None);
    rig.run(TICK);
    assert!(rig.peers[0].moved <= LITTLE, "{}", rig.peers[0].moved);
    rig.peers.clear();
    rig.join("ben", None);
    rig.seconds(1);
    assert_eq!(lock(&rig.shares.0[0]).callers.keys().map(|name| &**name).collect::<Vec<_>>(), ["ben"]);
}

#[test]
fn idle_time_earns_no_credit() {
    let mut rig = Rig::greedy(0, 1_000_000, &["ana"]);
    rig.run(TICK);
    rig.peers[0].need = Some(0);
    rig.peers[0].waiting = 0;
    rig.seconds(60);
    rig.peers[0].need = None;
    rig.run(TICK);
    assert!(rig.peers[0].moved <= 200_000, "{}", rig.peers[0].moved);
}

/// Most bytes of any stretch beyond what the rate brings in it.
fn excess(moved: &[(Instant, u64)], rate: u64) -> f64 {
    let mut most = 0.0_f64;
    for from in 0..moved.len() {
        let mut sum = 0;
        for &(at, bytes) in &moved[from..] {
            sum += bytes;
            most = most.max(sum as f64 - rate as f64 * (at - moved[from].0).as_secs_f64());
        }
    }
    most
}

const RATES: Range<u64> = 10..3_000_000;

proptest! {
    #[test]
    fn no_level_passes_its_rate_over_any_stretch_by_more_than_its_burst(
        (caller, all) in (RATES, RATES),
        steps in proptest::collection::vec((0usize..5, 1u64..200_000, 0u64..200, any::<bool>()), 1..300),
    ) {
        let shares = Shares::new(Rates { caller, all }).unwrap();
        let names = ["ana", "ana", "ana", "ben", "eve"];
        let mut sessions = names.map(|name| {
            let [share, _] = shares.join(&name.into());
            share
        });
        let (mut now, mut moved) = (Instant::now(), Vec::new());
        for (who, want, pause, over) in steps {
            if let Ok(bytes) = sessions[who].ask(now, want) {
                let bytes = bytes.min(want);
                prop_assert!(bytes > 0);
                sessions[who].spend(bytes);
                moved.push((now, names[who], bytes));
                if over {
                    sessions[who].pass();
                }
            }
            now += Duration::from_millis(if pause < 120 { 0 } else { pause });
        }
        let of = |caller: Option<&str>| -> Vec<(Instant, u64)> {
            let its = moved.iter().filter(|(_, name, _)| caller.is_none_or(|caller| caller == *name));
            its.map(|&(at, _, bytes)| (at, bytes)).collect()
        };
        let burst = |rate: u64| (BURST * rate.div_ceil(PER_SECOND)) as f64;
        prop_assert!(excess(&of(None), all) <= burst(all));
        for name in ["ana", "ben", "eve"] {
            prop_assert!(excess(&of(Some(name)), caller) <= burst(caller));
        }
    }
}
