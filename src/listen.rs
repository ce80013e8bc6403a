//! Listen: binds, accepts, and keeps the number of connections under a cap.
//!
//! In the flow: before every door. The accept loop waits for no peer: each connection is a task of its own from
//! the first byte on, and its slot under the cap is held until its last use, a hijacked session included.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::drain::Drain;

/// Pause after a failed accept, mostly for want of file descriptors: trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Probes without an answer until a silent peer counts as gone.
const KEEPALIVE_PROBES: u32 = 3;

/// A client's connection: who is at the other end, as far as the transport knows.
#[derive(Debug)]
pub struct Conn {
    /// The peer's address.
    pub peer: SocketAddr,
    /// The certificate chain the peer presented and holds the key of; not yet judged. Leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The place under the connection cap.
    pub slot: Option<Slot>,
}

/// A place under the cap of a listener; freed on drop.
#[derive(Debug)]
pub struct Slot(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    addr: SocketAddr,
    slots: Arc<Semaphore>,
    keepalive: Duration,
}

/// A listener cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listen on {addr}")]
pub struct Error {
    /// The address asked for.
    pub addr: SocketAddr,
    /// The cause.
    #[source]
    pub source: io::Error,
}

// === impl Conn ===

impl Default for Conn {
    fn default() -> Self {
        Self { peer: (Ipv4Addr::LOCALHOST, 0).into(), certificates: Vec::new(), slot: None }
    }
}

// === impl Listener ===

impl Listener {
    /// Binds `addr`; at most `max` connections at once, each with TCP keepalive probes after `keepalive` of
    /// silence.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(addr: SocketAddr, max: usize, keepalive: Duration) -> Result<Self, Error> {
        let inner = TcpListener::bind(addr).await.map_err(|source| Error { addr, source })?;
        let addr = inner.local_addr().map_err(|source| Error { addr, source })?;
        Ok(Self { inner, addr, slots: Arc::new(Semaphore::new(max)), keepalive })
    }

    /// The address bound, with the port the kernel chose if none was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until the drain's first step, and makes every connection a tracked task. `over` is told of each
    /// connection that is closed because the cap is reached.
    pub async fn run<S, F, O>(self, drain: Drain, over: O, serve: S)
    where
        S: Fn(TcpStream, SocketAddr, Slot) -> F,
        F: Future<Output = ()> + Send + 'static,
        O: Fn(SocketAddr),
    {
        loop {
            let accepted = tokio::select! {
                biased;
                () = drain.stopping() => return,
                accepted = self.inner.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(listen.addr = %self.addr, error = %error, "cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = self.slots.clone().try_acquire_owned() else {
                over(peer);
                continue;
            };
            if let Err(error) = tune(&stream, self.keepalive) {
                debug!(client.addr = %peer, error = %error, "cannot set socket options");
                continue;
            }
            drain.spawn(serve(stream, peer, Slot(slot)));
        }
    }
}

/// Socket options of every connection podgate has: no delay, and keepalive, so that a peer that is gone without
/// a word is found. No TCP_USER_TIMEOUT: the kernel would also end a peer that merely stopped reading.
///
/// # Errors
/// When the socket is no longer connected.
pub fn tune(stream: &TcpStream, keepalive: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(keepalive)
        .with_interval((keepalive / 3).max(Duration::from_secs(1)))
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(stream).set_tcp_keepalive(&probes)
}
