//! Splice: moves the bytes of one direction, from a reader to a writer, until either is done.
//!
//! A buffer has one owner: it is taken from the thread's spares when bytes are there, filled by one read,
//! written out whole, and given back. A direction that waits for bytes holds none, so an idle session costs
//! no buffer. Nothing is read before the last bytes were handed on: the writer's back pressure is the reader's.
//! That has a blind spot: while a writer takes nothing, nobody reads, so a reader that goes away is not seen. A
//! [`Hangup`] is asked about it from time to time, only then.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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

/// How often a direction that cannot write asks whether its reader's peer is still there.
const STALL_CHECK: Duration = Duration::from_millis(250);

/// Tells whether the peer of a socket has closed, even behind bytes that nobody has read.
#[derive(Debug)]
pub struct Hangup(OwnedFd);

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
    /// The reader's peer went away while the writer took nothing; what was read last is lost.
    Gone,
}

// === impl Hangup ===

impl Hangup {
    /// Watches a socket through a descriptor of its own.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    fn is_there(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        match poll(&mut fds, Some(&now)) {
            Ok(_) => fds[0].revents().intersects(gone),
            Err(_) => false,
        }
    }

    /// Resolves once the peer has closed.
    async fn happens(&self) {
        while !self.is_there() {
            tokio::time::sleep(STALL_CHECK).await;
        }
    }
}

// === impl Meter ===

impl Meter {
    /// Bytes moved so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Moves bytes until the reader ends or either side fails. Dropping the future loses at most the bytes of one
/// read, so it is dropped only when the session is over. A peer that takes nothing is waited for as long as it
/// answers its keepalive: whoever pipes a session into a pager may read it tomorrow.
pub async fn pump<R, W>(
    reader: &mut R,
    writer: &mut W,
    throttle: &mut Throttle,
    meter: &Meter,
    hangup: Option<&Hangup>,
) -> End
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
        if let Err(end) = write(writer, &buffer[..filled], hangup).await {
            return end;
        }
        meter.add(filled);
        give_back(buffer);
    }
}

/// Writes all bytes and flushes them. Not cancel safe: a part may have been written.
pub async fn write<W>(writer: &mut W, bytes: &[u8], hangup: Option<&Hangup>) -> Result<(), End>
where
    W: AsyncWrite + Unpin,
{
    let written = async {
        writer.write_all(bytes).await?;
        writer.flush().await
    };
    let Some(hangup) = hangup else { return written.await.map_err(End::Write) };
    tokio::select! {
        biased;
        written = written => written.map_err(End::Write),
        // Polled, and its timer made, only when the write has to wait.
        () = async { tokio::time::sleep(STALL_CHECK).await; hangup.happens().await } => Err(End::Gone),
    }
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
            let end = pump(&mut reader, &mut writer, &mut Throttle::new(0), &meter, None).await;
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
        pump(&mut reader, &mut writer, &mut Throttle::new(10_000), &meter, None).await;
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
        let end = pump(&mut reader, &mut writer, &mut Throttle::new(0), &meter, None).await;
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

    #[tokio::test]
    async fn a_peer_that_vanishes_behind_unread_bytes_is_found_while_the_writer_takes_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut socket, _) = listener.accept().await.unwrap();
        let hangup = Hangup::of(&socket).unwrap();
        let (mut writer, _never_read) = tokio::io::duplex(1);
        peer.write_all(&[7; 100_000]).await.unwrap();
        drop(peer);
        let meter = Meter::default();
        let mut throttle = Throttle::new(0);
        let moved = pump(&mut socket, &mut writer, &mut throttle, &meter, Some(&hangup));
        let end = tokio::time::timeout(Duration::from_secs(20), moved).await.unwrap();
        assert!(matches!(end, End::Gone), "{end:?}");
    }
}
