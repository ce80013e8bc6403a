//! Recording: what one is, on disk and in object storage, however it came to be and whoever reads it.
//!
//! Owns the facts about a session that stand in front of its recording and those behind it, the file they are in, and
//! the keys that prove and hide it. Podgate writes recordings through `tap`; auditors read them through `app`'s faces
//! `verify`, `play` and `recordings`.

pub mod card;
pub mod cast;
pub mod container;
pub mod facts;
pub mod keys;
pub mod library;
pub mod safe;
pub mod search;
pub mod store;
pub mod text;
pub mod typed;
