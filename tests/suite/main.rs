//! Podgate from outside: one binary, a module per behaviour, real loopback sockets.

#![allow(missing_docs, reason = "names of tests are claims already")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod dev;
mod rig;

mod answers;
mod attach;
mod audit;
mod auditor;
mod authn;
mod badlink;
mod bench;
mod binary;
mod bounds;
mod cluster;
mod copy;
mod endings;
mod forward;
mod grants;

mod kubectl;
mod live;
mod sessions;

mod hostile;
mod limits;
mod network;
mod operations;
mod passthrough;
mod pipeline;
mod policy;
mod recheck;
mod recording;
mod recording_matrix;
mod serve;
mod share;
mod upgrade;
mod upstream;
mod verify;
mod websocket;
