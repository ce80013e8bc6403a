//! Testing: the harness of tests and benches: a certificate authority, a cluster to be told what to say, a far
//! side to be told what to do, and a gateway between them, over real loopback sockets.
//!
//! Never in a shipped binary: behind the feature `testing`.

pub mod answer;
pub mod apiserver;
pub mod cluster;
pub mod far;
pub mod frames;
pub mod fuzz;
pub mod gateway;
pub mod golden;
pub mod kubelet;
pub mod pki;
pub mod recordings;
pub mod relay;
pub mod spdy;

use std::time::Duration;

pub use answer::Answer;
pub use cluster::FakeCluster;
pub use far::Far;
pub use gateway::TestGateway;
pub use pki::Pki;

/// How long a test waits for an event that must come. Long, because a loaded machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for an event that must come.
///
/// # Panics
/// When it does not come within [`PATIENCE`].
pub async fn soon<F: Future>(what: &str, event: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, event).await {
        Ok(output) => output,
        Err(_) => panic!("{what}: did not happen within {PATIENCE:?}"),
    }
}

/// Asks again until the answer is yes: for facts nobody announces, such as a process being gone.
///
/// # Panics
/// When it is still no after [`PATIENCE`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
