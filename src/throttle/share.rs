//! Share: how many bytes the sessions of one caller may move one way, and those of all callers, and who gets how much.
//!
//! Whoever moves bytes asks for a lease first, and each lease is taken from the budget of its caller and from that of all.
//! Budgets are refilled by the sample. When one is used up, those who want more wait for the next sample, which divides
//! it by what the last one has taught: those who got all that they wanted need as much again, and what is left is for the
//! others in equal shares (max-min fairness, first among callers, then among the sessions of each). So nobody has to tell
//! what they need, and a share that is not used is lent from the next sample on.
//!
//! Whoever has moved little lately, less than half a share and no more than [`LITTLE`] in a second, goes first: where bulk
//! has used the budget up they may overdraw it, by as much as a sample brings, which is made good before bulk gets any. So
//! nobody who types waits for bulk, as long as the typing of all is within the budget.
//!
//! Pure: callers bring the clock. One lock stands between the sessions of all threads, for some dozen instructions per
//! lease. No level passes its rate over any stretch by more than [`BURST`] samples.
//! Sources: M. Devera, "HTB Linux queuing discipline manual"; Bertsekas and Gallager, "Data Networks", 6.5.2.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{Level, PER_SECOND, Rate, SAMPLE};

/// Bytes of a lease at most: some reads, so that a lock is cheap, and little of any budget that is felt to be one.
const LEASE: u64 = 256 * 1024;

/// Bytes in a second up to which a session is one in which somebody types: a screen or two of a terminal.
const LITTLE: u64 = 16 * 1024;

/// Samples whose budget may be used later by those who had to wait: so late a busy machine wakes them.
const CARRY: u64 = 2;

/// Samples' worth of bytes by which a level may pass its rate over any stretch: what was carried over, one overdraft, and the
/// one sample that the stretch begins within.
pub const BURST: u64 = CARRY + 2;

/// Bytes of a bulk copy that are remembered of it: after little more than a second it is one that moves little.
const MUCH: u64 = 4 * LITTLE;

/// Bytes per second and direction; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Of the sessions of one caller together.
    pub caller: u64,
    /// Of all sessions together.
    pub all: u64,
}

/// The budgets of both directions; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shares([Arc<Mutex<Tree>>; 2]);

/// One direction of a session, and what it may move; what it has not used goes back on drop.
#[derive(Debug)]
pub struct Share {
    tree: Arc<Mutex<Tree>>,
    caller: Arc<str>,
    leaf: Leaf,
}

/// The budgets of one direction.
#[derive(Debug)]
struct Tree {
    /// When the first sample began.
    began: Option<Instant>,
    all: Node,
    per_caller: u64,
    /// Those with a session, and those who had one a moment ago: who comes back has used what they have used.
    callers: HashMap<Arc<str>, Caller>,
    /// How many of them have none.
    gone: usize,
}

#[derive(Debug)]
struct Caller {
    node: Node,
    part: Part,
    sessions: usize,
}

/// A budget, and how a sample of it is divided.
#[derive(Debug)]
struct Node {
    /// None where only the level above has one.
    bucket: Option<Bucket>,
    /// The one that it is in, counted from 1.
    sample: u64,
    /// What one part may have of this sample.
    level: u64,
    /// Whether its own bucket is what bounds its parts, rather than the level above.
    own: bool,
    /// Parts that have asked in this sample, and in the last one of a second in which any did.
    asking: u64,
    asked: u64,
    /// Those of them that did not get all they wanted.
    lacking: u64,
    /// Bytes of the others.
    content: u64,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Below 0 where it was overdrawn.
    left: i64,
}

/// What takes part in the division of a budget.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    sample: u64,
    /// Bytes in that sample.
    spent: u64,
    lacks: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Leaf {
    part: Part,
    /// Bytes of about the last second, each sample's for a tenth less in the next.
    recent: u64,
    /// Bytes that it may still move before that.
    lease: u64,
    until: Option<Instant>,
}

// === impl Shares ===

impl Shares {
    /// Budgets of these rates; none where nothing is limited.
    pub fn new(rates: Rates) -> Option<Self> {
        let tree = || Arc::new(Mutex::new(Tree::new(rates)));
        (rates != Rates::default()).then(|| Self([tree(), tree()]))
    }

    /// For the two directions of a session of this caller.
    pub fn join(&self, caller: &Arc<str>) -> [Share; 2] {
        self.0.each_ref().map(|tree| {
            lock(tree).join(caller);
            Share { tree: tree.clone(), caller: caller.clone(), leaf: Leaf::default() }
        })
    }
}

// === impl Share ===

impl Share {
    /// How many bytes may be moved now, at least one, where no more than `most` are of use; else when to ask again, and which
    /// level has none.
    pub(super) fn ask(&mut self, now: Instant, most: u64) -> Result<u64, (Instant, Level)> {
        if self.leaf.lease == 0 || self.leaf.until.is_none_or(|until| until <= now) {
            lock(&self.tree).lease(&self.caller, &mut self.leaf, now, most.min(LEASE))?;
        }
        Ok(self.leaf.lease)
    }

    /// Tells that so many of them were moved.
    pub(super) fn spend(&mut self, bytes: u64) {
        self.leaf.lease = self.leaf.lease.saturating_sub(bytes);
    }

    /// Tells that there is nothing to move.
    pub(super) fn pass(&mut self) {
        if self.leaf.lease > 0 {
            lock(&self.tree).settle(&self.caller, &mut self.leaf);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut tree = lock(&self.tree);
        tree.settle(&self.caller, &mut self.leaf);
        tree.leave(&self.caller);
    }
}

/// Whoever panicked with the lock held left whole numbers.
fn lock(tree: &Mutex<Tree>) -> MutexGuard<'_, Tree> {
    tree.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Tree ===

impl Tree {
    fn new(rates: Rates) -> Self {
        let all = Node::new(rates.all);
        Self { began: None, all, per_caller: rates.caller, callers: HashMap::new(), gone: 0 }
    }

    fn join(&mut self, caller: &Arc<str>) {
        match self.callers.entry(caller.clone()) {
            Entry::Occupied(mut known) => {
                self.gone -= usize::from(known.get().sessions == 0);
                known.get_mut().sessions += 1;
            }
            Entry::Vacant(new) => {
                new.insert(Caller { node: Node::new(self.per_caller), part: Part::default(), sessions: 1 });
            }
        }
    }

    fn leave(&mut self, caller: &str) {
        if let Some(known) = self.callers.get_mut(caller) {
            known.sessions -= 1;
            self.gone += usize::from(known.sessions == 0);
        }
    }

    /// Gives a leaf a lease of at most so many bytes in place of the one it had; else when to ask again, and which level has
    /// none.
    fn lease(
        &mut self,
        caller: &str,
        leaf: &mut Leaf,
        now: Instant,
        most: u64,
    ) -> Result<(), (Instant, Level)> {
        let began = *self.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began).as_millis() / SAMPLE.as_millis();
        // Another thread's clock may have been read later, and its lock had earlier.
        let sample = (1 + u64::try_from(passed).unwrap_or(0)).max(self.all.sample);
        let ends = began + SAMPLE.saturating_mul(u32::try_from(sample).unwrap_or(u32::MAX));
        self.begin(sample);
        self.settle(caller, leaf);
        let Self { all, callers, .. } = self;
        let Some(Caller { node, part, .. }) = callers.get_mut(caller) else { return Ok(()) };
        node.begin(sample, all.level);
        part.begin(sample, all);
        leaf.begin(sample, node);

        let fair = (node.level.saturating_sub(leaf.part.spent)).min(all.level.saturating_sub(part.spent));
        let fair = fair.min(node.left(0)).min(all.left(0));
        // Many that each move little are no more than their caller, nor are those of whom none has lacked anything yet.
        let share = node.level.min(all.level / node.asked.max(node.asking).max(1));
        let share = share.min(node.per_sample()).min(all.per_sample());
        let little = LITTLE.min(share.saturating_mul(PER_SECOND) / 2).saturating_sub(leaf.recent);
        let first = little.min(node.left(1)).min(all.left(1));
        let lease = fair.max(first).min(most);
        if lease == 0 {
            leaf.part.lack(node);
            let of_all = !node.own || all.left(0) == 0;
            if of_all {
                part.lack(all);
            }
            return Err((ends, if of_all { Level::All } else { Level::Caller }));
        }
        for (node, part) in [(node, &mut leaf.part), (all, part)] {
            node.take(lease);
            part.take(lease, node);
        }
        leaf.recent += lease;
        (leaf.lease, leaf.until) = (lease, Some(ends));
        Ok(())
    }

    /// Takes back what is left of a lease. One of long ago is void.
    fn settle(&mut self, caller: &str, leaf: &mut Leaf) {
        let back = std::mem::take(&mut leaf.lease);
        leaf.recent = leaf.recent.saturating_sub(back);
        let Some(Caller { node, part, .. }) = self.callers.get_mut(caller) else { return };
        let leased = leaf.part.sample;
        for (node, part) in [(node, &mut leaf.part), (&mut self.all, part)] {
            if node.sample <= leased + 1 {
                node.put_back(back);
            }
            if node.sample == leased {
                part.put_back(back, node);
            }
        }
    }

    fn begin(&mut self, sample: u64) {
        if sample == self.all.sample {
            return;
        }
        self.all.begin(sample, u64::MAX);
        if self.gone > 0 {
            self.callers.retain(|_, caller| caller.sessions > 0 || caller.node.sample + BURST > sample);
            self.gone = self.callers.values().filter(|caller| caller.sessions == 0).count();
        }
    }
}

// === impl Node ===

impl Node {
    fn new(bytes_per_second: u64) -> Self {
        let bucket = (bytes_per_second > 0).then(|| Bucket { rate: Rate::new(bytes_per_second), left: 0 });
        Self { bucket, sample: 0, level: u64::MAX, own: true, asking: 0, asked: 0, lacking: 0, content: 0 }
    }

    /// Begins a sample of which the level above lets it have so much.
    fn begin(&mut self, sample: u64, above: u64) {
        let passed = sample - self.sample;
        if passed == 0 {
            return;
        }
        // Who came back too late has not waited for this alone.
        let lacking = if passed > CARRY { 0 } else { self.lacking };
        if let Some(bucket) = &mut self.bucket {
            let bytes = bucket.rate.of(passed);
            bucket.put(bytes, if lacking > 0 { CARRY } else { 1 });
        }
        let own = self.left(0);
        let budget = own.min(above);
        self.own = self.bucket.is_some() && own <= above;
        self.level = match lacking {
            0 => u64::MAX,
            // Never less than an equal share: who has been content may have been so at the expense of others.
            _ => budget.saturating_sub(self.content).div_ceil(lacking).max(budget.div_ceil(self.asking)),
        };
        self.asked = if passed <= PER_SECOND { self.asking } else { 0 };
        (self.sample, self.asking) = (sample, 0);
        (self.lacking, self.content) = (0, 0);
    }

    /// What there is, and so many samples' worth on credit.
    fn left(&self, credit: u64) -> u64 {
        self.bucket.as_ref().map_or(u64::MAX, |bucket| {
            let credit = bucket.rate.per_sample() * credit;
            u64::try_from(bucket.left.saturating_add_unsigned(credit)).unwrap_or(0)
        })
    }

    fn per_sample(&self) -> u64 {
        self.bucket.as_ref().map_or(u64::MAX, |bucket| bucket.rate.per_sample())
    }

    fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.left = bucket.left.saturating_sub_unsigned(bytes);
        }
    }

    fn put_back(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bucket {
            bucket.put(bytes, CARRY);
        }
    }
}

// === impl Bucket ===

impl Bucket {
    /// Puts into it what it takes of so many bytes: it holds so many samples' worth.
    fn put(&mut self, bytes: u64, holds: u64) {
        let most = 0_i64.saturating_add_unsigned(self.rate.per_sample().saturating_mul(holds));
        self.left = self.left.saturating_add_unsigned(bytes).min(most);
    }
}

// === impl Part ===

impl Part {
    fn begin(&mut self, sample: u64, of: &mut Node) {
        if self.sample != sample {
            *self = Self { sample, spent: 0, lacks: false };
            of.asking += 1;
        }
    }

    fn lack(&mut self, of: &mut Node) {
        if !self.lacks {
            self.lacks = true;
            of.lacking += 1;
            of.content -= self.spent;
        }
    }

    fn take(&mut self, bytes: u64, of: &mut Node) {
        self.spent += bytes;
        of.content += if self.lacks { 0 } else { bytes };
    }

    fn put_back(&mut self, bytes: u64, of: &mut Node) {
        self.spent -= bytes;
        of.content -= if self.lacks { 0 } else { bytes };
    }
}

// === impl Leaf ===

impl Leaf {
    fn begin(&mut self, sample: u64, of: &mut Node) {
        self.recent = self.recent.min(MUCH);
        for _ in self.part.sample..sample {
            if self.recent == 0 {
                break;
            }
            self.recent -= self.recent.div_ceil(PER_SECOND);
        }
        self.part.begin(sample, of);
    }
}

#[cfg(test)]
mod tests;
