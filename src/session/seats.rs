//! Seats: how many sessions there may be at once, in all and of one caller.
//!
//! A seat is taken before the far side is dialled, so that a caller who has too many does not even cost a connection,
//! and is given back when the session is over. Nobody waits for one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limits::{By, Limit};

/// All seats; cheap to clone.
#[derive(Debug, Clone)]
pub struct Seats(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// By user name; who has none is not in it.
    callers: HashMap<Arc<str>, usize>,
}

/// One session's place; free again on drop.
#[derive(Debug)]
pub struct Seat {
    shared: Arc<Shared>,
    caller: Arc<str>,
}

/// There is no seat.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Podgate has as many sessions as it may.
    #[error("podgate has {0} sessions open, as many as it may have at once; please try again later")]
    All(usize),
    /// The caller has as many as they may, or more: other rules may let them have those.
    #[error("you have {has} sessions open, and {by} lets you have {most} at once; end some and try again")]
    Caller {
        /// So many.
        has: usize,
        /// So many they may have.
        most: usize,
        /// What says so.
        by: By,
    },
}

// === impl Seat ===

impl Seat {
    /// Whose it is.
    pub fn caller(&self) -> &Arc<str> {
        &self.caller
    }
}

// === impl Seats ===

impl Seats {
    /// So many in all.
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Shared { max, taken: Mutex::default() }))
    }

    /// A seat for this user, if they have fewer than so many.
    ///
    /// # Errors
    /// When there is none.
    pub fn take(&self, caller: &str, per_user: Option<&Limit<usize>>) -> Result<Seat, Full> {
        let mut taken = self.0.taken();
        if taken.all >= self.0.max {
            return Err(Full::All(self.0.max));
        }
        let has = taken.callers.get(caller).copied().unwrap_or_default();
        if let Some(limit) = per_user.filter(|limit| has >= limit.most) {
            return Err(Full::Caller { has, most: limit.most, by: limit.by.clone() });
        }
        let caller = match taken.callers.entry(caller.into()) {
            Entry::Occupied(mut entry) => {
                *entry.get_mut() += 1;
                entry.key().clone()
            }
            Entry::Vacant(entry) => {
                let caller = entry.key().clone();
                entry.insert(1);
                caller
            }
        };
        taken.all += 1;
        Ok(Seat { shared: self.0.clone(), caller })
    }

    /// How many this user has.
    pub fn of(&self, caller: &str) -> usize {
        self.0.taken().callers.get(caller).copied().unwrap_or_default()
    }
}

impl Shared {
    /// Whoever panicked with the lock held left whole numbers.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.shared.taken();
        taken.all -= 1;
        if let Entry::Occupied(mut entry) = taken.callers.entry(self.caller.clone()) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_run_out_for_one_caller_and_then_for_all_and_come_back() {
        let seats = Seats::new(3);
        let most = |most| Limit { most, by: By::Rule("p/a".into()) };
        let (one, two) = (most(1), most(2));
        let full = |has, most| Full::Caller { has, most, by: By::Rule("p/a".into()) };
        let ana = [seats.take("ana", Some(&two)).unwrap(), seats.take("ana", Some(&two)).unwrap()];
        assert_eq!((seats.take("ana", Some(&two)).unwrap_err(), seats.of("ana")), (full(2, 2), 2));
        let ben = seats.take("ben", Some(&two)).unwrap();
        assert_eq!(seats.take("eve", None).unwrap_err(), Full::All(3));
        assert_eq!(seats.take("ana", Some(&one)).unwrap_err(), Full::All(3));
        drop(ben);
        let refused = seats.take("ana", Some(&one)).unwrap_err();
        assert_eq!(refused, full(2, 1));
        let told = "you have 2 sessions open, and rule p/a lets you have 1 at once; end some and try again";
        assert_eq!(refused.to_string(), told);
        drop(ana);
        let ben = seats.take("ben", Some(&one)).unwrap();
        assert_eq!(seats.take("ben", Some(&one)).unwrap_err(), full(1, 1));
        let again = [seats.take("ana", None).unwrap(), seats.take("ana", None).unwrap()];
        assert_eq!(seats.take("ana", None).unwrap_err(), Full::All(3));
        drop((again, ben));
        let taken = seats.0.taken();
        assert!(taken.all == 0 && taken.callers.is_empty(), "{taken:?}");
    }
}
