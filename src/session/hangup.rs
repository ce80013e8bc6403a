//! Hang-up: ends what a session has left running at the far side, as a terminal does that is hung up.
//!
//! In the flow: after the farewell, while the client is told. A kubelet does nothing about a program whose connection
//! is gone: it would run on for as long as its container. So the program in a terminal is interrupted and told, again
//! and again, that there is no more to read, which ends a shell and whatever it waits for; one without a terminal is
//! told so once, by the protocol. Then the far side has some time to say how its program ended. One that has not said yet
//! that its streams are open may have begun all the same, and is waited for.
//! Invariants: nothing is typed behind bytes that the far side has not taken; nothing it says goes to the client, or
//! counts as passed; keys are on the tape as podgate's own.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use super::splice::{READ, Side};
use crate::telemetry::Meter;
use crate::wire::link::{HangUp, Link, Out, Runs, Spoken};

/// Between two keys: what one of them has ended gives the terminal back to the program that waits for it. The kernel
/// throws away what was typed behind an interrupt and not read.
const PAUSE: Duration = Duration::from_millis(100);

/// One interrupt, then so many ends of file less one: as many as a shell with IGNOREEOF (10 by default) wants, and what
/// waited behind it.
const ROUND: usize = 12;

/// The far side of a session that is over.
pub(super) struct Last<'a, F> {
    pub(super) far: &'a mut Side<F>,
    pub(super) link: &'a mut dyn Link,
    pub(super) out: &'a mut Out,
    pub(super) meter: &'a Meter,
    /// Nothing more can be heard.
    deaf: bool,
}

/// How long to wait.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// For the end of the program.
    Ended,
    /// For that, or until all bytes are out.
    Sent,
    /// For that, or any other word.
    Heard,
}

// === impl Last ===

impl<'a, F: AsyncRead + AsyncWrite + Unpin> Last<'a, F> {
    pub(super) fn new(
        far: &'a mut Side<F>,
        link: &'a mut dyn Link,
        out: &'a mut Out,
        meter: &'a Meter,
    ) -> Self {
        Self { far, link, out, meter, deaf: false }
    }

    /// Delivers what the client had said within `flush`, then hangs up, and waits for `within` in all. `stamp` is called
    /// before a key is noted.
    pub(super) async fn hang_up(
        &mut self,
        runs: Runs,
        flush: Duration,
        within: Duration,
        mut stamp: impl FnMut(&mut Out),
    ) {
        self.hear();
        let _ = timeout(flush, self.wait(Until::Sent)).await;
        let until = Instant::now() + within;
        if runs.tty() {
            // The rest is for the end of stdin.
            let keys_until = until - within / 4;
            let mut said = 0;
            while !self.is_over() && Instant::now() < keys_until {
                // While bytes wait, the program reads nothing, and keys would only wait with them.
                if self.out.far.is_empty() {
                    let step = if said % ROUND == 0 { HangUp::Interrupt } else { HangUp::EndOfFile };
                    if !self.say(step, keys_until).await {
                        break;
                    }
                    said += 1;
                    stamp(self.out);
                    self.out.tap.typed(step.key());
                }
                let _ = timeout_at(keys_until.min(Instant::now() + PAUSE), self.wait(Until::Ended)).await;
            }
        }
        // Without stdin there is nothing to be said, and no reason to expect an end.
        if self.say(HangUp::EndOfStdin, until).await {
            let _ = timeout_at(until, self.wait(Until::Ended)).await;
        }
    }

    /// Says something to the program as soon as its stdin is open; false where that comes to nothing.
    async fn say(&mut self, step: HangUp, until: Instant) -> bool {
        while !self.is_over() {
            match self.link.hang_up(step, self.out) {
                Spoken::Yes => return true,
                Spoken::No => return false,
                // Of a far side that always has a word nobody would see that its time is over.
                Spoken::NotYet if Instant::now() >= until => return false,
                Spoken::NotYet if timeout_at(until, self.wait(Until::Heard)).await.is_err() => return false,
                Spoken::NotYet => {}
            }
        }
        false
    }

    fn is_over(&self) -> bool {
        self.deaf || self.link.is_done()
    }

    fn hear(&mut self) {
        self.deaf |= self.link.hear_last(&mut self.far.input).is_err();
    }

    async fn wait(&mut self, until: Until) {
        poll_fn(|cx| self.poll(cx, until)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<()> {
        let sent = self.far.poll_send(cx, &mut self.out.far, self.meter);
        if matches!(sent, Poll::Ready(Err(_))) {
            // It may still say how its program ended.
            self.out.far.clear();
        }
        while !self.is_over() {
            match self.far.poll_fill(cx, READ) {
                Poll::Ready(Ok(1..)) => {
                    self.hear();
                    if until == Until::Heard {
                        break;
                    }
                }
                Poll::Ready(_) => self.deaf = true,
                Poll::Pending if until == Until::Sent && sent.is_ready() => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}
