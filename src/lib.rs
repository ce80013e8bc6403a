//! Podgate: the gateway through which people and programs get into Kubernetes pods.
//!
//! Rooms in reading order; ARCHITECTURE.md is the map.

pub mod app;
pub mod bench;
pub mod cli;
pub mod config;
pub mod drain;
mod expression;
mod flight;
pub mod reload;
pub mod status;
pub mod telemetry;
pub mod throttle;
mod tree;

pub mod admin;
pub mod audit;
pub mod front;
pub mod group;
pub mod listen;
pub mod pipeline;

pub mod authn;
pub mod authz;
pub mod grant;
pub mod locate;
pub mod policy;
pub mod recording;
pub mod session;
pub mod tap;
pub mod upstream;

pub mod cluster;
pub mod health;
pub mod request;
pub mod secret;
pub mod selector;
pub mod serving;
pub mod spare;
pub mod tls;
pub mod wire;

pub mod dev;

#[cfg(feature = "testing")]
pub mod testing;
