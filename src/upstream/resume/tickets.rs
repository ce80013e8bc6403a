//! Tickets: what one far side has given to be resumed with; each is used once.
//!
//! rustls' own store keeps eight of a name, and sessions that are opened there at the same moment need one each: beyond
//! eight every other handshake was a whole one, with its signature and certificates. Bounds: [`MOST`] of one far side, and
//! [`MOST_IN_ALL`] besides the first of each. A connection holds on to the store that its tickets go to, but not to them:
//! once their owner has forgotten them, the store of a session that lives for days is empty, and stays so.
//! Source: RFC 8446 section 4.6.1 and appendix C.4.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

/// Of one far side, at some 2 KiB each. The oldest make room.
const MOST: usize = 32;

/// Of all far sides.
const MOST_IN_ALL: usize = 40_000;

/// Those of one far side, oldest first, for the names that its certificate had to cover.
#[derive(Default)]
pub(super) struct Held(Mutex<VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>>);

/// The way to them.
pub(super) struct Tickets {
    held: Weak<Held>,
    in_all: Arc<AtomicUsize>,
    /// What there is besides: sessions of TLS 1.2, and the group for the key exchange.
    rest: ClientSessionMemoryCache,
}

// === impl Tickets ===

impl Tickets {
    /// To these, of as many as `in_all` counts.
    pub(super) fn to(held: &Arc<Held>, in_all: Arc<AtomicUsize>) -> Self {
        Self { held: Arc::downgrade(held), in_all, rest: ClientSessionMemoryCache::new(1) }
    }
}

impl ClientSessionStore for Tickets {
    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let Some(held) = self.held.upgrade() else { return };
        // Nothing that could panic halfway runs under this lock.
        let mut held = held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = held.len() >= MOST || self.in_all.load(Ordering::Relaxed) >= MOST_IN_ALL;
        if full && held.pop_front().is_some() {
            self.in_all.fetch_sub(1, Ordering::Relaxed);
        }
        held.push_back((name, ticket));
        self.in_all.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let held = self.held.upgrade()?;
        let mut held = held.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = held.iter().rposition(|(of, _)| of == name)?;
        let (_, ticket) = held.remove(newest)?;
        self.in_all.fetch_sub(1, Ordering::Relaxed);
        Some(ticket)
    }

    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.rest.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.rest.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.rest.set_tls12_session(name, session);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.rest.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.rest.remove_tls12_session(name);
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}
