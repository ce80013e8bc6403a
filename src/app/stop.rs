//! Stop: from the first signal to the exit code, the same for every face of podgate that serves.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

use super::Gateway;
use crate::drain::Drained;

/// Exit code after a second signal: 128 and SIGINT, as a shell counts.
const INTERRUPTED: u8 = 130;

/// Exit code when something outlived the drain.
const STUCK: u8 = 70;

/// The signals that ask for a stop.
pub(super) struct Signals([Signal; 3]);

// === impl Signals ===

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    /// The next one of any kind. Cancel safe.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Serves until a signal, goes on for as long as `announce` while it says that it is not ready, then drains for as long as
/// `deadline`, or until a second signal; the exit code.
pub(super) async fn on_signal(
    gateway: Gateway,
    mut signals: Signals,
    announce: Duration,
    deadline: Duration,
) -> u8 {
    signals.next().await;
    info!(?announce, ?deadline, "stopping; once more to stop at once");
    let drain = gateway.drain.clone();
    drain.announce();
    tokio::select! {
        () = tokio::time::sleep(announce) => {}
        () = signals.next() => {
            drain.cut();
            gateway.stop(deadline).await;
            return INTERRUPTED;
        }
    }
    let mut stop = std::pin::pin!(gateway.stop(deadline));
    let (drained, again) = tokio::select! {
        drained = &mut stop => (drained, false),
        () = signals.next() => {
            drain.cut();
            (stop.await, true)
        }
    };
    match drained {
        Drained::Stuck(_) => STUCK,
        Drained::Clean | Drained::Cut if again => INTERRUPTED,
        Drained::Clean | Drained::Cut => 0,
    }
}
