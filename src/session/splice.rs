//! Splice: moves the bytes of one direction, from a reader to a writer, until either is done.
//!
//! A buffer has one owner: it is taken from the thread's spares when bytes are there, filled by one read,
//! written out whole, and given back. A direction that waits for bytes holds none, so an idle session costs
//! no buffer. Nothing is read before the last bytes were handed on: the writer's back pressure is the reader's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;

use super::throttle::{Grant, Throttle};

/// Read size in bytes: four full TLS records (RFC 8446 section 5.1), so that a burst takes one wake-up.
const READ: usize = 64 * 1024;

/// Spare buffers a thread keeps: as many directions as can be between a read and its write on one thread
/// without an allocation. More are freed.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes moved so far, readable while the session lives.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

/// Which side ended a direction, and how.
#[derive(Debug)]
pub enum End {
    /// The reader came to its end; everything was handed on.
    Finished,
    /// Reading failed; everything read before was handed on.
    Read(io::Error),
    /// Writing failed.
    Write(io::Error),
}

// === impl Meter ===

impl Meter {
    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Moves bytes until the reader ends or either side fails. Dropping the future loses at most the bytes of one
/// read, so it is dropped only when the session is over. A peer that takes nothing is waited for as long as it
/// answers its keepalive: whoever pipes a session into a pager may read it tomorrow.
pub async fn pump<R, W>(reader: &mut R, writer: &mut W, throttle: &mut Throttle, meter: &Meter) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    loop {
        let allowed = match throttle.ask(Instant::now(), READ) {
            Grant::Bytes(allowed) => allowed,
            Grant::Wait(until) => {
                tokio::time::sleep_until(until).await;
                continue;
            }
        };
        let (buffer, filled) = match read(reader, allowed).await {
            Ok((_, 0)) => return End::Finished,
            Ok(read) => read,
            Err(error) => return End::Read(error),
        };
        throttle.spend(filled);
        if let Err(error) = write(writer, &buffer[..filled]).await {
            return End::Write(error);
        }
        meter.add(filled);
        give_back(buffer);
    }
}

/// Writes all bytes and flushes them. Not cancel safe: a part may have been written.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8]) -> io::Result<()> {
    writer.write_all(bytes).await?;
    writer.flush().await
}

/// One read of at most `allowed` bytes. Holds a buffer only inside a poll, until there are bytes. Cancel safe.
async fn read<R: AsyncRead + Unpin>(reader: &mut R, allowed: usize) -> io::Result<(Box<[u8]>, usize)> {
    poll_fn(|cx| {
        let mut buffer = take();
        let end = allowed.min(buffer.len());
        let mut into = ReadBuf::new(&mut buffer[..end]);
        let polled = Pin::new(&mut *reader).poll_read(cx, &mut into);
        let filled = into.filled().len();
        match polled {
            Poll::Ready(Ok(())) if filled > 0 => Poll::Ready(Ok((buffer, filled))),
            Poll::Ready(done) => {
                give_back(buffer);
                Poll::Ready(done.map(|()| (Box::default(), 0)))
            }
            Poll::Pending => {
                give_back(buffer);
                Poll::Pending
            }
        }
    })
    .await
}

fn take() -> Box<[u8]> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; READ].into_boxed_slice())
}

fn give_back(buffer: Box<[u8]>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < SPARES {
            spare.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn every_byte_arrives_in_order_through_a_narrow_pipe() {
        let (mut source, mut reader) = tokio::io::duplex(7);
        let (mut writer, mut sink) = tokio::io::duplex(3);
        let sent: Vec<u8> = (0..50_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let expected = sent.clone();
        let feed = async move {
            source.write_all(&sent).await.unwrap();
            drop(source);
        };
        let meter = Meter::default();
        let move_all = async {
            let end = pump(&mut reader, &mut writer, &mut Throttle::new(0), &meter).await;
            drop(writer);
            end
        };
        let mut got = Vec::new();
        let ((), end, read) = tokio::join!(feed, move_all, sink.read_to_end(&mut got));
        read.unwrap();
        assert!(matches!(end, End::Finished));
        assert!(got == expected);
        assert_eq!(meter.bytes(), 50_000);
    }

    #[tokio::test(start_paused = true)]
    async fn item_051_a_throttled_direction_takes_as_long_as_its_limit_says() {
        let (mut source, mut reader) = tokio::io::duplex(1 << 20);
        let (mut writer, mut sink) = tokio::io::duplex(1 << 20);
        source.write_all(&[7; 100_000]).await.unwrap();
        drop(source);
        let start = Instant::now();
        let meter = Meter::default();
        pump(&mut reader, &mut writer, &mut Throttle::new(10_000), &meter).await;
        drop(writer);
        let mut got = Vec::new();
        sink.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), 100_000);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(9_900) && took <= Duration::from_millis(10_100), "{took:?}");
    }

    #[tokio::test]
    async fn bytes_read_before_a_reset_are_handed_on() {
        let mut reader = ten_bytes_then_a_reset();
        let (mut writer, mut sink) = tokio::io::duplex(64);
        let meter = Meter::default();
        let end = pump(&mut reader, &mut writer, &mut Throttle::new(0), &meter).await;
        assert!(matches!(end, End::Read(error) if error.kind() == io::ErrorKind::ConnectionReset));
        drop(writer);
        let mut got = String::new();
        sink.read_to_string(&mut got).await.unwrap();
        assert_eq!((got.as_str(), meter.bytes()), ("last words", 10));
    }

    /// Ten bytes, then a reset.
    fn ten_bytes_then_a_reset() -> impl AsyncRead + Unpin {
        struct Failing;
        impl AsyncRead for Failing {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        b"last words".chain(Failing)
    }
}
