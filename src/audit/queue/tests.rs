use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::testing::{soon, until};

const LIMITS: Limits = Limits { events: 16, bytes: 1000 };

/// What becomes of the next batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Taken,
    Down,
    /// Not for as long as it has this event.
    NotWith(&'static str),
    /// Never, whatever is in it.
    Never,
    /// Not for as long as it has this event, or tells of a gap.
    Picky(&'static str),
}

/// Takes batches when a test lets it.
struct Scripted {
    batching: Batching,
    fate: Arc<Mutex<Fate>>,
    gate: Arc<Semaphore>,
    taken: mpsc::UnboundedSender<Vec<String>>,
}

impl Sink for Scripted {
    fn batching(&self) -> Batching {
        self.batching
    }

    fn write<'a>(&'a mut self, batch: &'a [Bytes]) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.gate.acquire().await.unwrap().forget();
            let lines: Vec<_> = batch.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            let fate = *self.fate.lock().unwrap();
            match fate {
                Fate::Down => return Err(Failure::Down("no".into())),
                Fate::NotWith(line) if lines.iter().any(|have| have == line) => {
                    return Err(Failure::Unacceptable("no".into()));
                }
                Fate::Picky(line) if lines.iter().any(|have| have == line || have.starts_with('{')) => {
                    return Err(Failure::Unacceptable("no".into()));
                }
                Fate::Never => return Err(Failure::Unacceptable("no".into())),
                Fate::Taken | Fate::NotWith(_) | Fate::Picky(_) => {}
            }
            self.taken.send(lines).unwrap();
            Ok(())
        })
    }
}

struct Rig {
    queue: Arc<Queue>,
    metrics: Metrics,
    fate: Arc<Mutex<Fate>>,
    gate: Arc<Semaphore>,
    taken: mpsc::UnboundedReceiver<Vec<String>>,
    drain: Drain,
}

fn rig(batching: Batching, open: usize) -> Rig {
    let (metrics, drain) = (Metrics::new(), Drain::new());
    let queue = Queue::new("file", LIMITS, &metrics);
    let (fate, gate) = (Arc::new(Mutex::new(Fate::Taken)), Arc::new(Semaphore::new(open)));
    let (sender, taken) = mpsc::unbounded_channel();
    let sink = Scripted { batching, fate: fate.clone(), gate: gate.clone(), taken: sender };
    drain.spawn(queue.clone().run(Box::new(sink), drain.clone()));
    Rig { queue, metrics, fate, gate, taken, drain }
}

const AT_ONCE: Batching = Batching { events: 4, bytes: 100, wait: Duration::ZERO };

impl Rig {
    async fn next(&mut self) -> Vec<String> {
        soon("a batch", self.taken.recv()).await.unwrap()
    }

    fn push(&self, line: &'static str) {
        self.queue.push(Bytes::from_static(line.as_bytes()));
    }

    async fn stop(self) {
        self.drain.cut();
        self.drain.finish(Duration::ZERO).await;
    }
}

/// The number that a gap event has.
fn gap(line: &str, key: &str) -> u64 {
    let event: serde_json::Value = serde_json::from_str(line).unwrap();
    let text = event["annotations"][format!("podgate.dev/{key}")].as_str().unwrap();
    text.parse().unwrap()
}

#[tokio::test]
async fn events_arrive_in_order_in_batches() {
    let mut rig = rig(AT_ONCE, 0);
    for line in ["1", "2", "3", "4", "5"] {
        rig.push(line);
    }
    rig.gate.add_permits(9);
    let mut all = rig.next().await;
    while all.len() < 5 {
        let batch = rig.next().await;
        assert!(batch.len() <= 4);
        all.extend(batch);
    }
    assert_eq!(all, ["1", "2", "3", "4", "5"]);
    soon("nothing to wait for", rig.queue.flush()).await;
    rig.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_more_but_not_for_long() {
    let wait = Duration::from_secs(30);
    let mut rig = rig(Batching { wait, ..AT_ONCE }, 99);
    let start = Instant::now();
    rig.push("1");
    assert_eq!(rig.taken.recv().await.unwrap(), ["1"]);
    assert_eq!(start.elapsed(), wait);
    for line in ["2", "3", "4", "5"] {
        rig.push(line);
    }
    assert_eq!(rig.taken.recv().await.unwrap(), ["2", "3", "4", "5"]);
    assert_eq!(start.elapsed(), wait, "a full batch waits no longer");
    // Nor does one that somebody waits for.
    let mut room = rig.queue.reserve(1, 10).unwrap();
    let written = room.push(Bytes::from_static(b"6"), true).unwrap();
    written.await.unwrap();
    assert_eq!(start.elapsed(), wait);
    rig.stop().await;
}

#[tokio::test]
async fn what_finds_no_room_is_counted_and_told_once_when_the_sink_is_back() {
    let mut rig = rig(AT_ONCE, usize::MAX >> 4);
    *rig.fate.lock().unwrap() = Fate::Down;
    for _ in 0..20 {
        rig.push("x");
    }
    until("the sink to be down", || rig.queue.is_down()).await;
    let lost = rig.metrics.audit_lost.with_label_values(&["file"]);
    assert_eq!(lost.get(), 12);
    *rig.fate.lock().unwrap() = Fate::Taken;
    let mut all = Vec::new();
    while all.len() < 9 {
        all.extend(rig.next().await);
    }
    let (gaps, events): (Vec<_>, Vec<_>) = all.into_iter().partition(|line| line != "x");
    assert_eq!((gaps.len(), events.len()), (1, 8));
    assert_eq!((gap(&gaps[0], "gap-events"), gap(&gaps[0], "gap-refused-requests")), (12, 0));
    soon("nothing to wait for", rig.queue.flush()).await;
    assert!(!rig.queue.is_down() && rig.taken.try_recv().is_err());
    rig.stop().await;
}

#[tokio::test]
async fn reserved_room_is_there_whatever_else_comes() {
    let mut rig = rig(AT_ONCE, 0);
    let mut room = rig.queue.reserve(2, 10).unwrap();
    assert!(rig.queue.reserve(15, 10).is_none(), "sixteen are all there is");
    assert!(rig.queue.reserve(1, 981).is_none(), "a thousand bytes are all there is");
    for _ in 0..9 {
        rig.push("x");
    }
    assert_eq!(rig.metrics.audit_lost.with_label_values(&["file"]).get(), 1);
    room.push(Bytes::from_static(b"reserved"), false);
    drop(room);
    rig.gate.add_permits(99);
    let mut all = Vec::new();
    while all.len() < 10 {
        all.extend(rig.next().await);
    }
    assert!(all.contains(&"reserved".to_owned()), "{all:?}");
    // What was not used is free again.
    soon("nothing to wait for", rig.queue.flush()).await;
    assert!(rig.queue.reserve(8, 125).is_some());
    rig.stop().await;
}

#[tokio::test]
async fn one_event_that_is_not_taken_does_not_hold_up_the_others() {
    let mut rig = rig(AT_ONCE, 0);
    *rig.fate.lock().unwrap() = Fate::NotWith("bad");
    for line in ["1", "bad", "2", "3"] {
        rig.push(line);
    }
    rig.gate.add_permits(99);
    let mut all = Vec::new();
    while all.len() < 4 {
        all.extend(rig.next().await);
    }
    let gaps: Vec<_> = all.iter().filter(|line| line.starts_with('{')).collect();
    assert_eq!(gap(gaps[0], "gap-events"), 1);
    all.retain(|line| !line.starts_with('{'));
    assert_eq!(all, ["1", "2", "3"]);
    rig.stop().await;
}

#[tokio::test]
async fn whoever_waits_for_an_event_that_is_lost_is_not_told_that_it_was_written() {
    let rig = rig(AT_ONCE, 99);
    *rig.fate.lock().unwrap() = Fate::NotWith("bad");
    let mut room = rig.queue.reserve(2, 10).unwrap();
    let bad = room.push(Bytes::from_static(b"bad"), true).unwrap();
    let good = room.push(Bytes::from_static(b"good"), true).unwrap();
    assert!(soon("the event to be lost", bad).await.is_err());
    assert!(soon("the event to be written", good).await.is_ok());
    rig.stop().await;
}

#[tokio::test]
async fn a_sink_that_takes_nothing_at_all_is_down_and_not_given_all_there_is_to_lose() {
    let mut rig = rig(AT_ONCE, usize::MAX >> 4);
    *rig.fate.lock().unwrap() = Fate::Never;
    rig.push("1");
    until("the sink to be down", || rig.queue.is_down()).await;
    let lost = rig.metrics.audit_lost.with_label_values(&["file"]);
    assert_eq!(lost.get(), 1);
    *rig.fate.lock().unwrap() = Fate::Taken;
    let told = rig.next().await;
    assert_eq!(gap(&told[0], "gap-events"), 1);
    until("the sink to be up", || !rig.queue.is_down()).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_sink_that_takes_all_but_what_is_told_of_a_gap_gets_all_but_that() {
    let mut rig = rig(AT_ONCE, usize::MAX >> 4);
    *rig.fate.lock().unwrap() = Fate::Picky("bad");
    for line in ["1", "bad", "2", "3"] {
        rig.push(line);
    }
    let mut all = Vec::new();
    while all.len() < 3 {
        all.extend(rig.next().await);
    }
    assert_eq!(all, ["1", "2", "3"]);
    until("the sink to be up", || !rig.queue.is_down()).await;
    soon("nothing to wait for", rig.queue.flush()).await;
    rig.stop().await;
}

#[tokio::test]
async fn those_who_are_not_let_in_fill_no_more_than_half_of_the_queue() {
    let rig = rig(AT_ONCE, 0);
    for _ in 0..99 {
        rig.push("x");
    }
    assert!(rig.queue.reserve(8, 10).is_some());
    rig.stop().await;
}

#[tokio::test]
async fn refused_requests_are_told_of_without_any_event_being_lost() {
    let mut rig = rig(AT_ONCE, 99);
    rig.queue.refused();
    rig.queue.refused();
    let told: u64 = {
        let first = rig.next().await;
        let first = gap(&first[0], "gap-refused-requests");
        // The writer may have been quicker than this test.
        if first == 2 { first } else { first + gap(&rig.next().await[0], "gap-refused-requests") }
    };
    assert_eq!(told, 2);
    rig.stop().await;
}
