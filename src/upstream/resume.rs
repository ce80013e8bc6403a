//! Resume: TLS with far sides that were spoken to before, without another look at certificates.
//!
//! In the flow: what `upstream` connects with. Kubelets hand out tickets, and a handshake with one needs no signature and
//! no certificate of either side, which is a good part of what a set-up costs. What the first handshake has proven is
//! believed of those that follow from it, so it is not believed for long: a certificate that ends is found out.
//! Each far side has a configuration of its own, and its tickets with it, because rustls keeps tickets by the name that a
//! certificate has to cover, and that may be the same of every kubelet. Invariants: tickets go nowhere but to the address
//! they came from; a ticket that came by one TLS configuration is never used with another; every ticket follows from a
//! whole handshake that began at most [`BELIEVED_FOR`] ago.
//! Source: RFC 8446 section 2.2; crypto/tls `handshake_server_tls13.go`, which keeps the client's certificate in the ticket.

mod tickets;

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use tokio::time::Instant;

use crate::locate::HostPort;
use tickets::{Held, Tickets};

/// How long what a handshake has proven is believed. A kubelet that is asked without pause costs one whole handshake in so
/// long; one whose certificate has ended, or was taken from it, is heeded for no longer.
const BELIEVED_FOR: Duration = Duration::from_secs(10 * 60);

/// Far sides that are remembered at most: as many as a cluster may have nodes. One takes some 4 KiB with the one ticket that a
/// kubelet gives, and another 2 KiB for each session that was opened there at the same moment ([`tickets`]). Beyond it all
/// are forgotten, which costs each a whole handshake.
/// Source: Kubernetes, "Considerations for large clusters".
const MAX_FAR_SIDES: usize = 5000;

/// What is remembered of far sides.
#[derive(Debug, Default)]
pub(super) struct Resume(Mutex<Option<Age>>);

/// What was learnt since `began`, by one TLS configuration. A connection that outlives its age adds to what nobody uses any
/// more.
#[derive(Debug)]
struct Age {
    of: Arc<ClientConfig>,
    began: Instant,
    far_sides: HashMap<HostPort, (Arc<ClientConfig>, Arc<Held>)>,
    /// How many tickets there are of all of them.
    tickets: Arc<AtomicUsize>,
}

// === impl Resume ===

impl Resume {
    /// What to connect to `addr` with: `tls`, and what tickets there are of that address.
    pub(super) fn with(&self, tls: Arc<ClientConfig>, addr: &HostPort) -> Arc<ClientConfig> {
        // Whoever panicked with the lock held left an age that is whole.
        let mut age = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let age = match &mut *age {
            Some(age) if age.holds(&tls) => age,
            over => over.insert(Age::begin(tls)),
        };
        if let Some((known, _)) = age.far_sides.get(addr) {
            return known.clone();
        }
        if age.far_sides.len() == MAX_FAR_SIDES {
            age.far_sides.clear();
            age.tickets = Arc::default();
        }
        let mut own = ClientConfig::clone(&age.of);
        let held = Arc::new(Held::default());
        own.resumption = Resumption::store(Arc::new(Tickets::to(&held, age.tickets.clone())));
        let own = Arc::new(own);
        age.far_sides.insert(addr.clone(), (own.clone(), held));
        own
    }
}

// === impl Age ===

impl Age {
    fn begin(of: Arc<ClientConfig>) -> Self {
        Self { of, began: Instant::now(), far_sides: HashMap::new(), tickets: Arc::default() }
    }

    fn holds(&self, tls: &Arc<ClientConfig>) -> bool {
        Arc::ptr_eq(&self.of, tls) && self.began.elapsed() < BELIEVED_FOR
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use futures_util::future::join_all;
    use rustls::{HandshakeKind, ServerConfig};
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::testing::Pki;
    use crate::tls::{self, Clients};

    fn at(port: u16) -> HostPort {
        HostPort { host: "localhost".into(), port }
    }

    fn client(pki: &Pki) -> Arc<ClientConfig> {
        tls::client(Some(&pki.client("podgate", &[])), pki.roots(), false).unwrap()
    }

    fn node(pki: &Pki) -> Arc<ServerConfig> {
        tls::server(&pki.server(), &[tls::HTTP1], Clients::Require(pki.roots())).unwrap()
    }

    /// A connection to `server`, of which nothing is read yet that came behind the handshake.
    async fn connect(client: Arc<ClientConfig>, server: &Arc<ServerConfig>) -> TlsStream<DuplexStream> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("localhost").unwrap();
        let accepted = async {
            let mut far = TlsAcceptor::from(server.clone()).accept(far).await.unwrap();
            far.write_all(b"x").await.unwrap();
            far.flush().await.unwrap();
            far
        };
        let (near, _far) = tokio::join!(TlsConnector::from(client).connect(name, near), accepted);
        near.unwrap()
    }

    /// How the handshake went, once the tickets behind it were read.
    async fn kind(mut io: TlsStream<DuplexStream>) -> HandshakeKind {
        io.read_u8().await.unwrap();
        io.get_ref().1.handshake_kind().unwrap()
    }

    #[tokio::test]
    async fn the_next_handshake_with_the_same_far_side_is_resumed_and_with_another_is_not() {
        let (pki, resume) = (Pki::new(), Resume::default());
        let (tls, node) = (client(&pki), node(&pki));
        for (port, expected) in [
            (1, HandshakeKind::Full),
            (1, HandshakeKind::Resumed),
            // It has the key of the tickets, and the same name: nothing is offered to it all the same.
            (2, HandshakeKind::Full),
            (2, HandshakeKind::Resumed),
            (1, HandshakeKind::Resumed),
        ] {
            let io = connect(resume.with(tls.clone(), &at(port)), &node).await;
            assert_eq!(kind(io).await, expected, "port {port}");
        }
    }

    #[tokio::test]
    async fn as_many_at_once_as_there_were_at_once_before_are_resumed() {
        let (pki, resume) = (Pki::new(), Resume::default());
        let (tls, node) = (client(&pki), node(&pki));
        let held = || resume.0.lock().unwrap().as_ref().unwrap().tickets.load(Ordering::Relaxed);
        for (at_once, resumed, left) in [(20, 0, 20), (20, 20, 20), (7, 7, 20), (100, 20, 32)] {
            let all = (0..at_once).map(|_| connect(resume.with(tls.clone(), &at(1)), &node));
            let kinds = join_all(join_all(all).await.into_iter().map(kind)).await;
            let kinds = kinds.iter().filter(|kind| **kind == HandshakeKind::Resumed).count();
            assert_eq!((kinds, held()), (resumed, left), "{at_once} at once");
        }
    }

    #[tokio::test]
    async fn another_identity_or_other_roots_begin_anew() {
        let (pki, resume) = (Pki::new(), Resume::default());
        let node = node(&pki);
        for _ in 0..2 {
            let tls = client(&pki);
            for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let io = connect(resume.with(tls.clone(), &at(1)), &node).await;
                assert_eq!(kind(io).await, expected);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_proven_is_believed_for_a_time_and_its_followers_for_no_longer() {
        let (pki, resume) = (Pki::new(), Resume::default());
        let (tls, node) = (client(&pki), node(&pki));
        let first = connect(resume.with(tls.clone(), &at(1)), &node).await;
        assert_eq!(kind(first).await, HandshakeKind::Full);
        tokio::time::advance(BELIEVED_FOR - Duration::from_secs(1)).await;
        let over = resume.with(tls.clone(), &at(1));
        let second = connect(over.clone(), &node).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        let own = resume.with(tls.clone(), &at(1));
        // Its ticket comes late, and is none of the next age, nor kept for the one that is over.
        assert_eq!(kind(second).await, HandshakeKind::Resumed);
        assert_eq!(kind(connect(own, &node).await).await, HandshakeKind::Full);
        assert_eq!(kind(connect(over, &node).await).await, HandshakeKind::Full);
    }

    #[test]
    fn no_more_far_sides_are_remembered_than_there_is_room_for() {
        let (pki, resume) = (Pki::new(), Resume::default());
        let tls = client(&pki);
        let ports = 1..=u16::try_from(MAX_FAR_SIDES).unwrap() + 1;
        let all: Vec<_> = ports.map(|port| resume.with(tls.clone(), &at(port))).collect();
        assert_eq!(resume.0.lock().unwrap().as_ref().unwrap().far_sides.len(), 1);
        assert!(Arc::ptr_eq(all.last().unwrap(), &resume.with(tls.clone(), &at(5001))));
        assert!(!Arc::ptr_eq(&all[0], &resume.with(tls, &at(1))));
    }
}
