//! The bodies of one exchange: the client's is counted, and both end together.
//!
//! The API server may answer before it has read everything. Once that answer is over nobody has a deadline
//! for the rest of the request any more, so a client that stops sending would keep its connection, and one to
//! the API server, for ever: its body ends with the answer's.
//!
//! What a client still sends of a body that nobody wants is read and dropped for a moment: a connection that
//! is closed on unread bytes is reset, and the client would lose the answer that says why.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::Body;
use crate::drain::Drain;

/// How long the rest of an unwanted body is read. Go's server closes its side and waits for half a second;
/// the clients of a gateway are further away.
const DISCARD: Duration = Duration::from_secs(2);

type Polled = Poll<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

/// What the two bodies know of each other.
pub(super) struct Exchange {
    limit: Option<u64>,
    fault: Arc<OnceLock<Fault>>,
    over: CancellationToken,
    drain: Drain,
}

/// What was wrong with a request body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It passed the limit.
    TooLarge(u64),
    /// The client did not finish it.
    Broken,
}

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the request body has more than {0} bytes")]
    TooLarge(u64),
    #[error("the answer is over, and the request body is not")]
    Over,
    #[error("the answer stood still for {0:?}")]
    Stalled(Duration),
}

/// The client's body.
struct Upload {
    inner: Body,
    limit: Option<u64>,
    passed: u64,
    done: bool,
    fault: Arc<OnceLock<Fault>>,
    over: BoxFuture<'static, ()>,
    /// Whether the client sends nothing before it is asked to; reading is asking.
    expects: bool,
    drain: Drain,
}

/// The API server's.
struct Answer {
    inner: Body,
    stall: Option<Duration>,
    stalled: Option<Pin<Box<Sleep>>>,
    _over: DropGuard,
}

// === impl Exchange ===

impl Exchange {
    /// One with at most so many bytes of a request body; what is left of it in the end is read by a task of
    /// `drain`.
    pub(super) fn new(limit: Option<u64>, drain: Drain) -> Self {
        Self { limit, fault: Arc::default(), over: CancellationToken::new(), drain }
    }

    /// The request body as it is sent on; `expects` tells whether the client waits for a 100 with it.
    pub(super) fn request(&self, inner: Body, expects: bool) -> Body {
        let over = Box::pin(self.over.clone().cancelled_owned());
        let (limit, fault, drain) = (self.limit, self.fault.clone(), self.drain.clone());
        Upload { inner, limit, passed: 0, done: false, fault, over, expects, drain }.boxed_unsync()
    }

    /// What was wrong with the request body so far.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.fault.get().copied()
    }

    /// The answer's body as it is passed on; when nothing of it comes for `stall`, it breaks off.
    pub(super) fn answer(self, inner: Body, stall: Option<Duration>) -> Body {
        Answer { inner, stall, stalled: None, _over: self.over.drop_guard() }.boxed_unsync()
    }
}

// === impl Upload ===

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            ready!(this.over.as_mut().poll(cx));
            return Poll::Ready(Some(Err(Error::Over.into())));
        };
        match &frame {
            Some(Ok(frame)) => this.passed += frame.data_ref().map_or(0, |data| data.remaining() as u64),
            // The first fault is the one that counts.
            Some(Err(_)) => drop(this.fault.set(Fault::Broken)),
            None => this.done = true,
        }
        if let Some(limit) = this.limit.filter(|&limit| this.passed > limit) {
            let _ = this.fault.set(Fault::TooLarge(limit));
            return Poll::Ready(Some(Err(Error::TooLarge(limit).into())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let asked = self.passed > 0 || !self.expects;
        // Without a runtime there is no connection left either.
        let done = self.done || self.inner.is_end_stream();
        if done || !asked || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let nothing = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut rest = std::mem::replace(&mut self.inner, nothing);
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            let read = async { while let Some(Ok(_)) = rest.frame().await {} };
            tokio::select! {
                biased;
                () = drain.cutting() => {}
                _ = tokio::time::timeout(DISCARD, read) => {}
            }
        });
    }
}

// === impl Answer ===

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) {
            this.stalled = None;
            return Poll::Ready(frame);
        }
        let Some(stall) = this.stall else { return Poll::Pending };
        let timer = this.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::Stalled(stall).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
