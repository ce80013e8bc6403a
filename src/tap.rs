//! Tap: what is written about a session; open before any byte moves.

pub mod echo;
pub mod rules;
