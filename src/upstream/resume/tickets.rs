//! Tickets: what one far side has given to be resumed with; each is used once.
//!
//! rustls' own store keeps eight of a name, and sessions that are opened there at the same moment need one each: beyond
//! eight every other handshake was a whole one, with its signature and certificates. Bounds: [`MOST`] of one far side, and
//! [`MOST_IN_ALL`] besides the first of each.
//! Source: RFC 8446 section 4.6.1 and appendix C.4.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls_pki_types::ServerName;

/// Of one far side, at some 2 KiB each. The oldest make room.
const MOST: usize = 64;

/// Of all far sides.
const MOST_IN_ALL: usize = 40_000;

/// Those of one far side.
pub(super) struct Tickets {
    held: Mutex<VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>>,
    in_all: Arc<AtomicUsize>,
    /// What there is besides: sessions of TLS 1.2, and the group for the key exchange.
    rest: ClientSessionMemoryCache,
}

// === impl Tickets ===

impl Tickets {
    /// None yet, of as many as `in_all` counts.
    pub(super) fn new(in_all: Arc<AtomicUsize>) -> Self {
        Self { held: Mutex::default(), in_all, rest: ClientSessionMemoryCache::new(1) }
    }

    /// Nothing that could panic halfway runs under this lock.
    fn held(&self) -> MutexGuard<'_, VecDeque<(ServerName<'static>, Tls13ClientSessionValue)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut held = self.held();
        let full = held.len() >= MOST || self.in_all.load(Ordering::Relaxed) >= MOST_IN_ALL;
        if full && held.pop_front().is_some() {
            self.in_all.fetch_sub(1, Ordering::Relaxed);
        }
        held.push_back((name, ticket));
        self.in_all.fetch_add(1, Ordering::Relaxed);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut held = self.held();
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

impl Drop for Tickets {
    fn drop(&mut self) {
        let held = self.held().len();
        self.in_all.fetch_sub(held, Ordering::Relaxed);
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}
