//! Local: one connection to a port of this machine, and what the client is told about it.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Link, Out, READ};
use crate::wire::portforward::forward_failed;
use crate::wire::spdy::RstStatus;

/// From the first packet to a connection, for each address: loopback answers at once, unless the backlog
/// is full.
const DIAL: Duration = Duration::from_secs(5);

/// How long a port that has ended is still written to, as containerd has it.
const LAST_INPUT: Duration = Duration::from_secs(1);

/// One connection.
pub(super) struct Local {
    pub(super) link: Link,
    pub(super) sandbox: String,
    /// What the client sends.
    pub(super) pipe: DuplexStream,
    /// Ends this connection.
    pub(super) reset: CancellationToken,
    /// Ends all of the session, without a word.
    pub(super) end: CancellationToken,
    pub(super) data: mpsc::Sender<Out>,
    pub(super) done: mpsc::Sender<Link>,
}

/// Why neither address could be had, in containerd's words.
#[derive(Debug)]
struct Refused {
    port: u16,
    v4: io::Error,
    v6: io::Error,
}

/// An error of a dial as Go prints it.
struct Go<'a>(&'a io::Error);

// === impl Local ===

impl Local {
    /// Connects, moves bytes until both sides have ended or one broke, and tells the client and the session.
    pub(super) async fn run(self) {
        let Self { link, sandbox, pipe, reset, end, data, done } = self;
        let tell = async {
            let forwarded = async {
                match dial(link.port).await {
                    Ok(tcp) => Ok(copy(tcp, pipe, link, &data).await),
                    Err(refused) => Err(refused),
                }
            };
            let forwarded = tokio::select! {
                biased;
                () = reset.cancelled() => Ok(Err(io::ErrorKind::ConnectionAborted.into())),
                forwarded = forwarded => forwarded,
            };
            let cancel = |id| Out::Reset(id, RstStatus::CANCEL);
            // Sends fail only when the writer has ended, and the session with it.
            match forwarded {
                Ok(Ok(())) => {
                    let _ = data.send(Out::Fin(link.error)).await;
                }
                Ok(Err(error)) => {
                    debug!(error = %error, port = link.port, "a forwarded connection broke");
                    let _ = data.send(cancel(link.data)).await;
                    let _ = data.send(Out::Fin(link.error)).await;
                }
                Err(refused) => {
                    let text = forward_failed(link.port, &sandbox, "", refused);
                    let _ = data.send(Out::Data(link.error, text.into())).await;
                    let _ = data.send(cancel(link.error)).await;
                    let _ = data.send(cancel(link.data)).await;
                }
            }
        };
        tokio::select! {
            biased;
            () = end.cancelled() => {}
            () = tell => {
                let _ = done.send(link).await;
            }
        }
    }
}

async fn dial(port: u16) -> Result<TcpStream, Refused> {
    let to = async |ip: IpAddr| match timeout(DIAL, TcpStream::connect(SocketAddr::new(ip, port))).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let v4 = match to(Ipv4Addr::LOCALHOST.into()).await {
        Ok(tcp) => return Ok(tcp),
        Err(error) => error,
    };
    to(Ipv6Addr::LOCALHOST.into()).await.map_err(|v6| Refused { port, v4, v6 })
}

/// Both directions to their ends. A port that takes no more may still have something to say; one that has ended gets
/// [`LAST_INPUT`] of what the client still says, for kubectl closes its side only once both streams have ended.
async fn copy(
    mut tcp: TcpStream,
    mut pipe: DuplexStream,
    link: Link,
    data: &mpsc::Sender<Out>,
) -> io::Result<()> {
    let (mut read, mut write) = tcp.split();
    let up = async move {
        if tokio::io::copy(&mut pipe, &mut write).await.is_ok() {
            let _ = write.shutdown().await;
        }
        Ok(())
    };
    let mut up = std::pin::pin!(up);
    let mut down = std::pin::pin!(down(&mut read, link.data, data));
    tokio::select! {
        said = &mut down => {
            said?;
            timeout(LAST_INPUT, up).await.unwrap_or(Ok(()))
        }
        taken = &mut up => {
            taken?;
            down.await
        }
    }
}

async fn down(from: &mut (impl AsyncRead + Unpin), id: u32, data: &mpsc::Sender<Out>) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < READ / 4 {
            buffer.reserve(READ);
        }
        let read = from.read_buf(&mut (&mut buffer).limit(READ)).await?;
        let out = if read == 0 { Out::Fin(id) } else { Out::Data(id, buffer.split().freeze()) };
        if data.send(out).await.is_err() || read == 0 {
            return Ok(());
        }
    }
}

// === impl Refused ===

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, v4, v6 } = self;
        // Processes of this node have the host's network, and its ports.
        write!(
            f,
            "failed to execute portforward in network namespace \"host\": failed to connect to \
             localhost:{port} inside namespace \"host\", IPv4: dial tcp4 127.0.0.1:{port}: {} IPv6 dial tcp6 \
             [::1]:{port}: {} ",
            Go(v4),
            Go(v6),
        )
    }
}

impl fmt::Display for Go<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::ConnectionRefused => f.write_str("connect: connection refused"),
            io::ErrorKind::TimedOut => f.write_str("i/o timeout"),
            io::ErrorKind::AddrNotAvailable => f.write_str("connect: cannot assign requested address"),
            _ => write!(f, "connect: {}", self.0),
        }
    }
}
