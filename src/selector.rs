//! Selector: what rules and grants pick sessions by: patterns, labels of pods, words of commands.
//!
//! As they are written: what was read says nothing that is unknown, contradictory or without a bound, and nothing that could
//! be meant as all and as none.

mod command;
mod labels;
pub mod names;
mod pattern;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error as _, SeqAccess, Visitor};

pub use command::Command;
pub use labels::{LabelSelector, Operator, Requirement};
pub use pattern::Pattern;

/// Items of one list: who names more is better served by a pattern or a group.
const MAX_ITEMS: usize = 256;

/// A list that has something in it, and not too much.
///
/// # Errors
/// When it has nothing in it, or too much.
pub fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    bounded(deserializer, MAX_ITEMS)
}

/// A [`list`] of at most so many items.
///
/// # Errors
/// As [`list`].
pub fn bounded<'de, D, T>(deserializer: D, most: usize) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Items<T>(usize, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == self.0 {
                    return Err(A::Error::custom(format!("has at most {} items", self.0)));
                }
                list.push(item);
            }
            if list.is_empty() { Err(A::Error::custom("is empty: leave it out")) } else { Ok(list) }
        }
    }

    deserializer.deserialize_seq(Items(most, PhantomData))
}

/// A map that has something in it, and not too much.
///
/// # Errors
/// As [`list`].
pub fn map<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, T>, D::Error> {
    let map = BTreeMap::<String, T>::deserialize(deserializer)?;
    match map.len() {
        0 => Err(D::Error::custom("is empty: leave it out")),
        1..=MAX_ITEMS => Ok(map),
        _ => Err(D::Error::custom(format!("has at most {MAX_ITEMS} items"))),
    }
}
