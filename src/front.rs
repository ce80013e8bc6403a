//! Front: the doors. Each turns what its own client speaks into the same request for a session.

pub mod api;
pub mod takeover;
