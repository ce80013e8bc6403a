//! Splice: moves the bytes of one direction, from a reader to a writer, until either is done.
//!
//! A buffer has one owner: it is taken from the thread's spares when bytes are there, filled by one read,
//! written out whole, and given back. A direction that waits for bytes holds none, so an idle session costs
//! no buffer. Nothing is read before the last bytes were handed on: the writer's back pressure is the reader's.
//! That has a blind spot: while a writer takes nothing, nobody reads, so a reader that goes away is not seen. Its
//! [`Socket`] is asked about it from time to time, only then.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

use super::close::FAR_DRAIN;
use super::socket::{Hangup, Socket};
use super::throttle::{Grant, Throttle};
use crate::telemetry::Meter;

/// Read size in bytes: four full TLS records (RFC 8446 section 5.1), so that a burst takes one wake-up.
const READ: usize = 64 * 1024;

/// Spare buffers a thread keeps: as many directions as can be between a read and its write on one thread
/// without an allocation. More are freed.
const SPARES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Reads after which a busy direction lets the others of its task run: below tokio's budget per poll (128), so
/// that a bulk copy one way cannot starve the keystrokes the other way.
const TURN: u32 = 16;

/// Most bytes read at once of a peer that has closed while its bytes could not be handed on: more than a socket's
/// receive buffer holds.
const REST: u64 = 8 * 1024 * 1024;

/// How long reading them may take: they are on this machine already.
const REST_READ: Duration = Duration::from_secs(1);

/// Which side ended a direction, and how.
#[derive(Debug)]
pub enum End {
    /// The reader came to its end; everything was handed on.
    Finished,
    /// Reading failed; everything read before was handed on.
    Read(io::Error),
    /// Writing failed.
    Write(io::Error),
    /// The reader's peer died while the writer took nothing; what it had sent last is lost.
    Gone,
}

/// Moves bytes until the reader ends or either side fails. Dropping the future loses at most the bytes of one
/// read, so it is dropped only when the session is over. A peer that takes nothing is waited for as long as it
/// answers its keepalive: whoever pipes a session into a pager may read it tomorrow.
pub async fn pump<R, W>(
    reader: &mut R,
    writer: &mut W,
    throttle: &mut Throttle,
    meter: &Meter,
    socket: Option<&Socket>,
) -> End
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut turn = 0;
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
        if let Err(end) = hand_on(reader, writer, &buffer[..filled], meter, socket).await {
            return end;
        }
        give_back(buffer);
        turn += 1;
        if turn == TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Writes all bytes and flushes them. `socket` is the reader's: when its peer closes while the writer takes
/// nothing, what it had sent is read to the end, and a proper end is still handed on, within
/// [`close::FAR_DRAIN`]; that makes the error [`End::Finished`].
pub async fn hand_on<R, W>(
    reader: &mut R,
    writer: &mut W,
    bytes: &[u8],
    meter: &Meter,
    socket: Option<&Socket>,
) -> Result<(), End>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut written = 0;
    let hangup = async {
        match socket {
            Some(socket) => socket.hangup().await,
            None => std::future::pending().await,
        }
    };
    let hangup = tokio::select! {
        biased;
        done = push(writer, bytes, &mut written) => {
            done.map_err(End::Write)?;
            meter.add(bytes.len());
            return Ok(());
        }
        // Polled, and its timer made, only when the write has to wait.
        hangup = hangup => hangup,
    };
    if hangup == Hangup::Broken {
        return Err(End::Gone);
    }
    let mut rest = Vec::new();
    let read = timeout(REST_READ, reader.take(REST).read_to_end(&mut rest)).await;
    if !matches!(read, Ok(Ok(_))) {
        // No proper end: the peer died, and nobody waits for what it had sent.
        return Err(End::Gone);
    }
    let all = async {
        push(writer, bytes, &mut written).await?;
        push(writer, &rest, &mut 0).await
    };
    match timeout(FAR_DRAIN, all).await {
        Ok(Ok(())) => meter.add(bytes.len() + rest.len()),
        Ok(Err(error)) => return Err(End::Write(error)),
        Err(_) => return Err(End::Gone),
    }
    Err(End::Finished)
}

/// Writes from `written` on and flushes. Cancel safe: `written` says how far it got.
async fn push<W: AsyncWrite + Unpin>(writer: &mut W, bytes: &[u8], written: &mut usize) -> io::Result<()> {
    while *written < bytes.len() {
        match writer.write(&bytes[*written..]).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            more => *written += more,
        }
    }
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
        b"last words".chain(failing())
    }

    fn failing() -> impl AsyncRead + Unpin {
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
        Failing
    }

    /// A connected pair: the peer, and our end with its second hold.
    async fn pair() -> (tokio::net::TcpStream, tokio::net::TcpStream, Socket) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (ours, _) = listener.accept().await.unwrap();
        let socket = Socket::of(&ours).unwrap();
        (peer, ours, socket)
    }

    #[tokio::test]
    async fn a_peer_that_dies_behind_unread_bytes_is_found_while_the_writer_takes_nothing() {
        let (mut peer, ours, socket) = pair().await;
        // As TLS tells it when a connection ends without close_notify.
        let mut reader = ours.take(70_000).chain(failing());
        let (mut writer, _never_read) = tokio::io::duplex(1);
        peer.write_all(&[7; 100_000]).await.unwrap();
        drop(peer);
        let (meter, mut throttle) = (Meter::default(), Throttle::new(0));
        let moved = pump(&mut reader, &mut writer, &mut throttle, &meter, Some(&socket));
        let end = timeout(Duration::from_secs(20), moved).await.unwrap();
        assert!(matches!(end, End::Gone), "{end:?}");
    }

    #[tokio::test]
    async fn what_a_peer_sent_before_it_closed_properly_arrives_however_slow_the_writer() {
        let (mut peer, mut ours, socket) = pair().await;
        let (mut writer, mut sink) = tokio::io::duplex(1);
        peer.write_all(&[7; 50_000]).await.unwrap();
        drop(peer);
        let (meter, mut throttle) = (Meter::default(), Throttle::new(100_000));
        // The first read is a tenth of the limit; the rest, and the end, wait in the socket.
        let slow = async {
            // The far side takes nothing until the hang-up must have been seen.
            assert_eq!(socket.hangup().await, Hangup::Closed);
            assert_eq!(socket.hangup().await, Hangup::Closed);
            let mut got = Vec::new();
            sink.read_to_end(&mut got).await.unwrap();
            got.len()
        };
        let moved = async {
            let end = pump(&mut ours, &mut writer, &mut throttle, &meter, Some(&socket)).await;
            drop(writer);
            end
        };
        let (end, got) = timeout(Duration::from_secs(20), async { tokio::join!(moved, slow) }).await.unwrap();
        assert!(matches!(end, End::Finished), "{end:?}");
        assert_eq!((got, meter.bytes()), (50_000, 50_000));
    }
}
