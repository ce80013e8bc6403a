//! Wire: bytes from peers into events, and events into bytes. No socket, clock, task or log in here.
//!
//! In the flow: below `session`, `tap` and `upstream`, which own the I/O and feed these machines.
//! Invariants: input may be cut at any byte and gives the same events; bytes of a peer never panic; nothing
//! is allocated for a length that a peer only announced, and each limit is a named constant with its
//! reason.
//!
//! In reading order: the upgrade answer of the far side, the frames that follow it on either transport, what
//! the frames mean, what is noted of that, and what stands between the two connections of a session.

pub mod http1;
pub mod spdy;
pub mod ws;

pub mod channel;
pub mod portforward;
pub mod remotecommand;

pub mod tap;
pub mod tape;

pub mod link;
