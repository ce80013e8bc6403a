//! Socket: a second hold on the client's socket, for what TLS over it cannot do.
//!
//! It tells whether the peer has closed, even behind bytes that nobody has read yet, and it can end the sending
//! side without the close_notify that would make a cut look like a proper end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;

/// How often a peer is asked whether it is still there.
const CHECK: Duration = Duration::from_millis(250);

/// A descriptor of its own on a socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

/// How a peer went away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// It closed its sending side; what it sent before is still to be read.
    Closed,
    /// The connection is broken.
    Broken,
}

// === impl Socket ===

impl Socket {
    /// A hold on this socket.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn of(socket: impl AsFd) -> io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    /// Whether the peer has gone, as far as the kernel knows.
    pub fn hangup_now(&self) -> Option<Hangup> {
        let mut fds = [PollFd::new(&self.0, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).ok()?;
        let events = fds[0].revents();
        if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Some(Hangup::Broken);
        }
        events.contains(PollFlags::RDHUP).then_some(Hangup::Closed)
    }

    /// Resolves once the peer has gone; asks for the first time after a pause, so that a wait which is short
    /// costs nothing. Cancel safe.
    pub async fn hangup(&self) -> Hangup {
        loop {
            tokio::time::sleep(CHECK).await;
            if let Some(hangup) = self.hangup_now() {
                return hangup;
            }
        }
    }

    /// Ends the sending side below TLS: what was written still arrives, a proper end does not.
    pub fn finish(&self) {
        // A socket that is gone already has nothing to finish.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
    }
}
