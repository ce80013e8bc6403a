//! Sink: where events end up.

mod file;
mod stdout;
mod webhook;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use file::Error as FileError;
pub(super) use file::File;
pub(super) use stdout::Stdout;
pub(super) use webhook::{Target, Webhook};

/// How many events are written at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    /// At most so many.
    pub(super) events: usize,
    /// Of so many bytes, unless one alone has more.
    pub(super) bytes: usize,
    /// How long one waits for more.
    pub(super) wait: Duration,
}

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum Failure {
    /// It may be written later.
    Down(Box<dyn std::error::Error + Send + Sync>),
    /// It will never be, as it is.
    Unacceptable(Box<dyn std::error::Error + Send + Sync>),
}

/// Something that takes events.
pub(super) trait Sink: Send {
    /// How it wants them.
    fn batching(&self) -> Batching;

    /// Writes all of them, or fails. Dropped, some may have been written.
    fn write<'a>(&'a mut self, batch: &'a [Bytes]) -> BoxFuture<'a, Result<(), Failure>>;
}

/// Events of a batch for a file or a pipe, and their bytes: enough to make a system call worth while.
const LINES: Batching = Batching { events: 4096, bytes: 1024 * 1024, wait: Duration::ZERO };

/// One line for each event.
fn lines(batch: &[Bytes]) -> Vec<u8> {
    let mut text = Vec::with_capacity(batch.iter().map(|line| line.len() + 1).sum());
    for line in batch {
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}
