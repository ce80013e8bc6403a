//! Recheck: whether the callers of live sessions may go on. Asked once for all sessions that are alike: of one credential, one
//! caller and one pod. A hundred of them cost one question a period.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::sleep;

use super::Door;
use crate::authn::Caller;
use crate::request::Attributes;

/// What is asked about.
type Key = (Caller, Attributes);

/// A caller as they are known now, or why they may not go on.
pub(super) type Known = Result<Caller, String>;

/// Who is asked about. There are no more of them than live sessions.
#[derive(Default)]
pub(super) struct Rechecks(Mutex<HashMap<Arc<Key>, watch::Sender<Known>>>);

// === impl Rechecks ===

impl Rechecks {
    /// What is known of this caller, asked anew each `session.recheckPeriod`, and told when it has changed.
    pub(super) fn follow(door: &Door, caller: &Caller, attributes: &Attributes) -> watch::Receiver<Known> {
        let period = door.shared.sessions.settings().recheck_period;
        if period.is_zero() {
            return watch::channel(Ok(caller.clone())).1;
        }
        let key = Arc::new((caller.clone(), attributes.clone()));
        let mut asked = door.shared.rechecks.asked();
        if let Some(known) = asked.get(&key) {
            return known.subscribe();
        }
        let (known, follow) = watch::channel(Ok(caller.clone()));
        asked.insert(key.clone(), known.clone());
        let (shared, drain) = (door.shared.clone(), door.shared.drain.clone());
        drain.spawn(async move {
            loop {
                tokio::select! {
                    () = known.closed() => {}
                    () = sleep(period) => {}
                }
                let answer = match known.receiver_count() {
                    0 => None,
                    _ => {
                        let (caller, attributes) = &*key;
                        tokio::select! {
                            () = known.closed() => None,
                            answer = shared.pipeline.still(caller, attributes) => Some(answer),
                        }
                    }
                };
                let mut asked = shared.rechecks.asked();
                // Whoever has come meanwhile found it under the same lock.
                let over = known.receiver_count() == 0 || matches!(answer, Some(Err(_)));
                if over {
                    asked.remove(&key);
                }
                if let Some(answer) = answer {
                    tell(&known, answer);
                }
                if over {
                    return;
                }
            }
        });
        follow
    }

    /// Nothing that could panic halfway runs under this lock.
    fn asked(&self) -> MutexGuard<'_, HashMap<Arc<Key>, watch::Sender<Known>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Thousands may follow: they are woken when it is another answer, and for that alone.
fn tell(known: &watch::Sender<Known>, answer: Known) {
    known.send_if_modified(|was| {
        let changed = *was != answer;
        *was = answer;
        changed
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn followers_are_woken_by_another_answer_alone() {
        let answers = [Err("no right".to_owned()), Err("no longer known".to_owned())];
        for was in &answers {
            for is in &answers {
                let (known, follow) = watch::channel(was.clone());
                tell(&known, is.clone());
                assert_eq!(follow.has_changed().unwrap(), was != is, "{was:?} {is:?}");
                assert_eq!(*follow.borrow(), *is);
            }
        }
    }
}
