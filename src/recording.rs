//! Recording: what one is, on disk and in object storage, however it came to be and whoever reads it.
//!
//! Owns the facts about a session that stand in front of its recording and those behind it. Podgate writes recordings
//! through `tap`; auditors read them through `app`'s faces `verify`, `play` and `recordings`.

pub mod facts;
