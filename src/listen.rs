//! Listen: binds, accepts, and keeps the number of connections under a cap.
//!
//! In the flow: before every door. The accept loop waits for no peer: each connection is a task of its own from
//! the first byte on, and its slot under the cap is held until its last use, a hijacked session included. Who has too
//! many connections from one address is served all the same, a few at a time, so that the door can say so; its slot
//! tells.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::drain::Drain;

/// Pause after a failed accept, mostly for want of file descriptors: trying at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections at once whose clients are told that their address has too many. More are closed without a word.
const TOLD: usize = 64;

/// Probes without an answer until a silent peer counts as gone.
const KEEPALIVE_PROBES: u32 = 3;

/// A client's connection: who is at the other end, as far as the transport knows.
#[derive(Debug)]
pub struct Conn {
    /// The peer's address.
    pub peer: SocketAddr,
    /// The certificate chain the peer presented and holds the key of; not yet judged. Leaf first.
    pub certificates: Arc<[CertificateDer<'static>]>,
    /// The place under the connection cap.
    pub slot: Option<Slot>,
}

/// The connection that a request came by, as an extension of the request. Whoever keeps it keeps the
/// connection's place under the cap.
#[derive(Clone)]
pub struct Via {
    /// The peer's address.
    pub peer: SocketAddr,
    #[allow(dead_code, reason = "held for its drop")]
    held: Arc<dyn Any + Send + Sync>,
}

/// A place under the caps of a listener; freed on drop.
#[derive(Debug)]
pub struct Slot {
    #[allow(dead_code, reason = "held for its drop")]
    all: OwnedSemaphorePermit,
    #[allow(dead_code, reason = "held for its drop")]
    of_address: Option<OfAddress>,
    /// Held by those who are beyond the cap of their address.
    beyond: Option<OwnedSemaphorePermit>,
}

/// How many connections there may be at once.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// In all.
    pub all: usize,
    /// Of one address, or of one IPv6 network of 64 bits; 0 is no cap.
    pub per_address: usize,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    addr: SocketAddr,
    slots: Arc<Semaphore>,
    per_address: usize,
    addresses: Addresses,
    beyond: Arc<Semaphore>,
    keepalive: Duration,
}

/// Connections by address; cheap to clone.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; counted until its drop.
#[derive(Debug)]
struct OfAddress {
    addresses: Addresses,
    address: IpAddr,
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
        Self { peer: (Ipv4Addr::LOCALHOST, 0).into(), certificates: Arc::default(), slot: None }
    }
}

// === impl Via ===

impl Via {
    /// A connection from `peer`, which lasts as long as `held` does.
    pub fn new(peer: SocketAddr, held: impl Any + Send + Sync) -> Self {
        Self { peer, held: Arc::new(held) }
    }
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Via").field("peer", &self.peer).finish_non_exhaustive()
    }
}

// === impl Listener ===

impl Listener {
    /// Binds `addr`; at most as many connections at once as `caps` say, each with TCP keepalive probes after
    /// `keepalive` of silence.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub async fn bind(addr: SocketAddr, caps: Caps, keepalive: Duration) -> Result<Self, Error> {
        let inner = TcpListener::bind(addr).await.map_err(|source| Error { addr, source })?;
        let addr = inner.local_addr().map_err(|source| Error { addr, source })?;
        Ok(Self {
            inner,
            addr,
            slots: Arc::new(Semaphore::new(caps.all)),
            per_address: caps.per_address,
            addresses: Addresses::default(),
            beyond: Arc::new(Semaphore::new(TOLD)),
            keepalive,
        })
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
            let Some(slot) = self.slot(peer) else {
                over(peer);
                continue;
            };
            if let Err(error) = tune(&stream, self.keepalive) {
                debug!(client.addr = %peer, error = %error, "cannot set socket options");
                continue;
            }
            drain.spawn(serve(stream, peer, slot));
        }
    }

    /// A place for this peer, if there is one.
    fn slot(&self, peer: SocketAddr) -> Option<Slot> {
        let all = self.slots.clone().try_acquire_owned().ok()?;
        if self.per_address == 0 {
            return Some(Slot { all, of_address: None, beyond: None });
        }
        let (of_address, count) = self.addresses.count(peer.ip());
        let beyond = match count > self.per_address {
            true => Some(self.beyond.clone().try_acquire_owned().ok()?),
            false => None,
        };
        Some(Slot { all, of_address: Some(of_address), beyond })
    }
}

// === impl Slot ===

impl Slot {
    /// Whether its address has more connections than it may.
    pub fn is_beyond(&self) -> bool {
        self.beyond.is_some()
    }
}

// === impl Addresses ===

impl Addresses {
    /// Counts one more connection; also how many there are now.
    fn count(&self, address: IpAddr) -> (OfAddress, usize) {
        let address = match address.to_canonical() {
            // One customer's network, mostly one machine: all its addresses are free to use.
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
            v4 @ IpAddr::V4(_) => v4,
        };
        let mut counts = self.counts();
        let count = counts.entry(address).or_default();
        *count += 1;
        (OfAddress { addresses: self.clone(), address }, *count)
    }

    /// Whoever panicked with the lock held left whole numbers.
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts();
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Socket options of every connection podgate has: no delay, and keepalive, so that a peer that is gone without
/// a word is found. No TCP_USER_TIMEOUT: the kernel would also end a peer that merely stopped reading, see
/// [`expect_life`].
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

/// Lets the kernel end a connection whose peer acknowledges nothing, or has no room, for so long; 0 changes nothing.
/// Keepalive does not look while bytes are on their way, and they are sent again for some 15 minutes.
///
/// # Errors
/// When the socket is no longer connected.
pub fn expect_life(stream: &TcpStream, within: Duration) -> io::Result<()> {
    if within.is_zero() {
        return Ok(());
    }
    SockRef::from(stream).set_tcp_user_timeout(Some(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one_and_what_ended_counts_no_more() {
        let addresses = Addresses::default();
        let count = |address: &str| addresses.count(address.parse().unwrap());
        let (first, one) = count("2001:db8::1");
        let (second, two) = count("2001:db8::ffff:0:1");
        assert_eq!((one, two, count("2001:db8:0:1::1").1), (1, 2, 1));
        let (_v4, one) = count("192.0.2.1");
        assert_eq!((one, count("::ffff:192.0.2.1").1, count("192.0.2.2").1), (1, 2, 1));
        drop((first, second));
        assert_eq!(count("2001:db8::2").1, 1);
        drop(_v4);
        assert!(addresses.counts().is_empty());
    }
}
