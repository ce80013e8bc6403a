//! Container: the main processes of the node's pods. There are none yet.

use futures_util::future::BoxFuture;

use super::process::Streams;
use crate::wire::remotecommand::Asked;

/// The main processes.
#[derive(Clone, Default)]
pub(super) struct Containers;

/// A client's hold on a main process.
pub(super) struct Attached {
    pub(super) streams: Streams,
    /// Resolves when the process has ended.
    pub(super) ended: BoxFuture<'static, ()>,
}

// === impl Containers ===

impl Containers {
    /// Streams of the container's main process, if it has one that runs.
    pub(super) fn attach(
        &self,
        _namespace: &str,
        _pod: &str,
        _container: &str,
        _asked: Asked,
    ) -> Option<Attached> {
        None
    }
}
