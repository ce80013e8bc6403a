//! Standard output, one event a line.

use std::io::{self, Write as _};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Batching, Failure, LINES, Sink, lines};

/// Standard output. It may be a pipe that nobody reads, so it is written where waiting holds nothing up.
#[derive(Debug)]
pub(in crate::audit) struct Stdout;

impl Sink for Stdout {
    fn batching(&self) -> Batching {
        LINES
    }

    fn write<'a>(&'a mut self, batch: &'a [Bytes]) -> BoxFuture<'a, Result<(), Failure>> {
        let text = lines(batch);
        Box::pin(async move {
            let written = tokio::task::spawn_blocking(move || {
                let mut out = io::stdout().lock();
                out.write_all(&text)?;
                out.flush()
            });
            let written = written.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            written.map_err(|error| Failure::Down(Box::new(error)))
        })
    }
}
