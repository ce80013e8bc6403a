//! The bodies of one exchange: the client's is counted, and both end together.
//!
//! The API server may answer before it has read everything. Once that answer is over nobody has a deadline for the rest
//! of the request any more, so a client that stops sending would keep its connection, and one to the API server, for
//! ever: its body ends with the answer's.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::Body;

type Polled = Poll<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

/// What the two bodies know of each other.
pub(super) struct Exchange {
    limit: Option<u64>,
    fault: Arc<OnceLock<Fault>>,
    over: CancellationToken,
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
    fault: Arc<OnceLock<Fault>>,
    over: BoxFuture<'static, ()>,
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
    /// One with at most so many bytes of a request body.
    pub(super) fn new(limit: Option<u64>) -> Self {
        Self { limit, fault: Arc::default(), over: CancellationToken::new() }
    }

    /// The request body as it is sent on.
    pub(super) fn request(&self, inner: Body) -> Body {
        let over = Box::pin(self.over.clone().cancelled_owned());
        let (limit, fault) = (self.limit, self.fault.clone());
        Upload { inner, limit, passed: 0, fault, over }.boxed_unsync()
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
            None => {}
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
