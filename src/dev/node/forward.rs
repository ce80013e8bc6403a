//! Forward: one port-forward from its request to its end, with ports of this machine as those of the pod.
//!
//! In the flow: beside `session`, behind the same upgrade. The session's task reads and writes the connection
//! to the client; each connection to a port is a task of the drain:
//!
//! ```text
//!   client -> reader -> a pipe for each connection -> port
//!   client <- writer <- data queue <- connections  <- port
//!                    <- control queue <- reader (replies, resets, pongs)
//! ```
//!
//! Invariants:
//! - Nothing but loopback is ever dialled.
//! - A connection that fails leaves the others as they are.
//! - When [`run`] returns, all connections of the session are closed and their tasks are gone.
//!
//! A full pipe makes the reader wait, and with it everything else the client sends, as upstream. A port that
//! takes nothing for [`STALL`] while the client does loses its connection, so one cannot stop all. A full
//! control queue makes the reader wait too: a client that sends without reading stops itself.
//!
//! Unlike containerd, a connection that breaks after it stood is told by a reset of its data stream, without
//! a text: kubectl gives up the whole port-forward at the first text, and one broken connection is no reason.
//! Unlike it too, a port may take its time to answer after the client's end; after the port's, the client has a second.
//!
//! Old WebSocket clients are served by the same parts: a channel takes the place of a stream's id.
//!
//! Bounds: [`READ`] bytes per read, [`PIPE`] bytes of each connection on their way to a port, [`DATA_QUEUE`]
//! pieces of [`READ`] bytes on their way to the client, [`CONTROL_QUEUE`] frames; pairs and streams as `wire`
//! says.
//! Source: `protocol.md` 3.4, 5.4, 6.1, 7.4; kubelet `cri/streaming/portforward/{httpstream,websocket}.go`;
//! containerd `internal/cri/server/sandbox_portforward_linux.go`.

mod local;
mod request;
mod tunnel;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::unconstrained;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Settings;
use crate::drain::Drain;
use crate::wire::channel::Encoding;
use crate::wire::portforward::{self, Arrival, Failure, Legacy, PAIR_TIMEOUT, Pairs, Ticket};
use crate::wire::spdy::{self, Decoder, Encoder, Frame, Headers, Pings, Pong, Role, RstStatus, StreamIds};
use crate::wire::ws;
use local::Local;
pub(super) use request::{PREFIX, answer};
use tunnel::Tunnel;

/// Room for one read, of the client or of a port, in bytes: two full TLS records.
const READ: usize = 32 * 1024;

/// Bytes of one connection on their way to its port: two reads. Full: the reader waits, see the header.
const PIPE: usize = 64 * 1024;

/// Pieces on their way to the client. Full: the connections wait, each in its turn.
const DATA_QUEUE: usize = 4;

/// Control frames on their way to the client. Full: the reader waits.
const CONTROL_QUEUE: usize = 64;

/// How long a port may take nothing while the reader waits for it: long for a program that thinks, short for
/// the other connections.
const STALL: Duration = Duration::from_secs(10);

/// How long the last frames may take: less than what the drain gives after the cut.
const CLOSE: Duration = Duration::from_millis(500);

/// What one session is about.
pub(super) struct Job {
    kind: Kind,
    /// The pod as a runtime names it in its texts.
    sandbox: String,
}

enum Kind {
    Spdy,
    Tunnel,
    /// Not yet spoken to.
    Legacy(Legacy, Encoding),
}

/// Why a session ended; for the log.
#[derive(Debug)]
pub(super) enum End {
    /// All connections of an old client have ended.
    Done,
    /// The client closed or broke the connection.
    ClientGone,
    /// The client sent what is not SPDY.
    NotSpdy(spdy::Error),
    /// The client sent what is not WebSocket.
    NotWebSocket(ws::Error),
    /// Nothing passed for the idle deadline.
    Idle,
    /// Podgate stops.
    Cut,
}

/// A frame to send. Ids are those of streams, or channels.
#[derive(Debug)]
enum Out {
    Reply(u32),
    Reset(u32, RstStatus),
    Ping(u32),
    Data(u32, Bytes),
    Fin(u32),
    /// The last one: why over WebSocket, and the last stream that was taken.
    End(ws::CloseCode, u32),
    /// Answers a ping of WebSocket.
    Pong(Bytes),
}

/// How frames are written.
enum Framing {
    Spdy(Encoder),
    Legacy(Encoding),
}

/// What the futures of a session tell each other.
#[derive(Default)]
struct Shared {
    /// Pieces and frames, both ways: the idle deadline looks whether it moves.
    frames: AtomicU64,
    /// The last stream that was taken.
    last_good: AtomicU32,
}

/// What it takes to make a connection.
struct Common<'a> {
    drain: &'a Drain,
    tracker: &'a TaskTracker,
    sandbox: String,
    /// Ends all connections.
    end: CancellationToken,
    control: mpsc::Sender<Out>,
    data: mpsc::Sender<Out>,
    done: mpsc::Sender<Link>,
    shared: &'a Shared,
}

/// The streams, or channels, of one connection.
#[derive(Clone, Copy, Debug)]
struct Link {
    error: u32,
    data: u32,
    port: u16,
}

/// The way to a port.
struct Feed {
    /// `None` once the client has said all, or nobody takes it.
    pipe: Option<DuplexStream>,
    /// Resets the connection.
    reset: CancellationToken,
}

/// The server's side of SPDY.
struct Streams<'a> {
    decoder: Decoder,
    ids: StreamIds,
    pings: Pings,
    pairs: Pairs,
    /// The oldest first.
    waiting: BTreeMap<Ticket, Waiting>,
    /// By the id of the data stream, waiting or open.
    feeds: HashMap<u32, Feed>,
    /// The data stream of each open error stream.
    errors: HashMap<u32, u32>,
    /// After the client's GOAWAY nothing counts but the end of its bytes.
    away: bool,
    common: Common<'a>,
}

/// A stream that waits for its other half.
struct Waiting {
    until: Instant,
    stream: u32,
    /// What the port will read, when the data stream came first.
    pipe: Option<DuplexStream>,
}

/// The server's side of an old WebSocket client.
struct Channels<'a> {
    decoder: ws::Decoder,
    legacy: Legacy,
    /// By the place of the port.
    feeds: Vec<Feed>,
    common: Common<'a>,
}

/// Runs a session to its end. `early` is what was read past the request.
pub(super) async fn run<I>(io: I, early: Bytes, job: Job, settings: &Settings, drain: &Drain) -> End
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let Job { kind, sandbox } = job;
    match kind {
        Kind::Spdy => session(io, early, None, sandbox, settings, drain).await,
        Kind::Tunnel => session(Tunnel::new(io, early), Bytes::new(), None, sandbox, settings, drain).await,
        Kind::Legacy(legacy, encoding) => {
            session(io, early, Some((legacy, encoding)), sandbox, settings, drain).await
        }
    }
}

async fn session<I>(
    io: I,
    early: Bytes,
    legacy: Option<(Legacy, Encoding)>,
    sandbox: String,
    settings: &Settings,
    drain: &Drain,
) -> End
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let (shared, tracker, end) = (Shared::default(), TaskTracker::new(), CancellationToken::new());
    // Whatever drops this future ends the connections.
    let _end = end.clone().drop_guard();
    let (read, write) = tokio::io::split(io);
    let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
    let (data, data_queue) = mpsc::channel(DATA_QUEUE);
    // As many as can be there at once, so a connection that ends never waits to say so.
    let (done, done_queue) = mpsc::channel(portforward::MAX_PAIRS);

    let mut first = BytesMut::new();
    let framing = match &legacy {
        None => Framing::Spdy(Encoder::new()),
        Some((legacy, encoding)) => {
            legacy.put_ports(&mut first);
            Framing::Legacy(*encoding)
        }
    };
    let mut writer = pin!(send(write, framing, first, control_queue, data_queue, &shared));
    let why = {
        let common = Common {
            drain,
            tracker: &tracker,
            sandbox,
            end: end.clone(),
            control: control.clone(),
            data: data.clone(),
            done,
            shared: &shared,
        };
        let early = BytesMut::from(early);
        let mut reader = pin!(async {
            match legacy {
                None => Streams::new(common).run(read, early, done_queue).await,
                Some((legacy, _)) => Channels::new(legacy, common).run(read, early, done_queue).await,
            }
        });
        tokio::select! {
            biased;
            () = drain.cutting() => End::Cut,
            _ = &mut writer => return ended(&end, &tracker, End::ClientGone).await,
            why = &mut reader => why,
            () = super::idle(&shared.frames, settings.idle) => End::Idle,
        }
    };
    let why = ended(&end, &tracker, why).await;
    let code = match &why {
        End::NotWebSocket(error) => error.close_code(),
        End::Cut => ws::CloseCode::GOING_AWAY,
        End::Done | End::ClientGone | End::NotSpdy(_) | End::Idle => ws::CloseCode::NORMAL,
    };
    let last = Out::End(code, shared.last_good.load(Ordering::Relaxed));
    match why {
        // Behind what the ports have said, for which a client may take its time.
        End::Done => tokio::select! {
            biased;
            () = drain.cutting() => {}
            _ = async { tokio::join!(data.send(last), writer) } => {}
            () = super::idle(&shared.frames, settings.idle) => {}
        },
        // A client that has gone answers the first byte with an error; one that does not read costs the deadline.
        _ => {
            let _ = timeout(CLOSE, async { tokio::join!(control.send(last), writer) }).await;
        }
    }
    why
}

/// Ends all connections and waits for their tasks, which wait for nothing else then.
async fn ended(end: &CancellationToken, tracker: &TaskTracker, why: End) -> End {
    end.cancel();
    tracker.close();
    tracker.wait().await;
    why
}

/// Sends frames up to the last one, then closes. An error says that the client has gone.
async fn send(
    mut io: impl AsyncWrite + Unpin,
    mut framing: Framing,
    mut out: BytesMut,
    mut control: mpsc::Receiver<Out>,
    mut data: mpsc::Receiver<Out>,
    shared: &Shared,
) -> io::Result<()> {
    loop {
        io.write_all_buf(&mut out).await?;
        if control.is_empty() && data.is_empty() {
            io.flush().await?;
        }
        // The session has a sender of the control queue until it is over.
        let next = tokio::select! {
            biased;
            Some(next) = control.recv() => next,
            Some(next) = data.recv() => next,
            else => return Ok(()),
        };
        shared.frames.fetch_add(1, Ordering::Relaxed);
        let last = matches!(next, Out::End(..));
        framing.put(next, &mut out);
        if last {
            io.write_all_buf(&mut out).await?;
            return io.shutdown().await;
        }
    }
}

/// Reads more, for as long as there is any.
async fn fill(io: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> bool {
    if buffer.capacity() - buffer.len() < READ / 4 {
        buffer.reserve(READ);
    }
    matches!(io.read_buf(&mut buffer.limit(READ)).await, Ok(1..))
}

// === impl Framing ===

impl Framing {
    fn put(&mut self, frame: Out, out: &mut BytesMut) {
        match self {
            Framing::Spdy(encoder) => match frame {
                Out::Reply(id) => encoder.syn_reply(out, id),
                Out::Reset(id, status) => Encoder::rst_stream(out, id, status),
                Out::Ping(id) => Encoder::ping(out, id),
                Out::Data(id, bytes) => {
                    out.put_slice(&Encoder::data_head(id, bytes.len(), false));
                    out.put_slice(&bytes);
                }
                Out::Fin(id) => out.put_slice(&Encoder::data_head(id, 0, true)),
                Out::End(_, last_good) => Encoder::goaway(out, last_good),
                Out::Pong(_) => {}
            },
            Framing::Legacy(encoding) => match frame {
                Out::Data(channel, mut bytes) => {
                    while !bytes.is_empty() {
                        let taken = encoding.message(out, channel as u8, &bytes, None);
                        bytes.advance(taken);
                    }
                }
                Out::Pong(payload) => ws::Encoder::pong(out, &payload, None),
                Out::End(code, _) => ws::Encoder::close(out, Some(&code.into()), None),
                // There is no way to say that a channel has ended.
                Out::Fin(_) | Out::Reset(..) | Out::Reply(_) | Out::Ping(_) => {}
            },
        }
    }
}

// === impl Common ===

impl Common<'_> {
    /// Makes a connection that reads what the client sends from `pipe`.
    fn connect(&self, link: Link, pipe: DuplexStream, reset: CancellationToken) {
        let local = Local {
            link,
            sandbox: self.sandbox.clone(),
            pipe,
            reset,
            end: self.end.clone(),
            data: self.data.clone(),
            done: self.done.clone(),
        };
        drop(self.drain.spawn(self.tracker.track_future(local.run())));
    }

    /// Waits for room. Without a writer the session is at its end.
    async fn say(&self, out: Out) {
        let _ = self.control.send(out).await;
    }

    fn took_one(&self) {
        self.shared.frames.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Feed ===

impl Feed {
    /// A way, and its end for the connection.
    fn new() -> (Self, DuplexStream) {
        let (pipe, far) = tokio::io::duplex(PIPE);
        (Self { pipe: Some(pipe), reset: CancellationToken::new() }, far)
    }

    /// Waits until the port has taken so much that the rest fits. Bytes that nobody takes are dropped.
    async fn push(&mut self, mut bytes: Bytes, common: &Common<'_>) {
        while let Some(pipe) = self.pipe.as_mut().filter(|_| !bytes.is_empty()) {
            match timeout(STALL, pipe.write_buf(&mut bytes)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0) | Err(_)) => self.pipe = None,
                // The client takes nothing either, and the program may wait for just that.
                Err(_) if common.data.capacity() == 0 => {}
                Err(_) => {
                    debug!("a port took nothing for {STALL:?}");
                    self.reset();
                }
            }
        }
    }

    fn reset(&mut self) {
        self.pipe = None;
        self.reset.cancel();
    }
}

// === impl Streams ===

impl<'a> Streams<'a> {
    fn new(common: Common<'a>) -> Self {
        Self {
            decoder: Decoder::new(),
            ids: StreamIds::new(Role::Server),
            pings: Pings::new(Role::Server),
            pairs: Pairs::new(),
            waiting: BTreeMap::new(),
            feeds: HashMap::new(),
            errors: HashMap::new(),
            away: false,
            common,
        }
    }

    async fn run(
        mut self,
        mut io: impl AsyncRead + Unpin,
        mut buffer: BytesMut,
        mut done: mpsc::Receiver<Link>,
    ) -> End {
        loop {
            while !self.away {
                match self.decoder.decode(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(frame)) => {
                        self.common.took_one();
                        self.take(frame).await;
                    }
                    Err(error) => return End::NotSpdy(error),
                }
            }
            if self.away {
                buffer.clear();
            }
            let oldest = self.waiting.first_key_value().map(|(ticket, waiting)| (*ticket, waiting.until));
            let expired = async {
                match oldest {
                    Some((ticket, until)) => {
                        sleep_until(until).await;
                        ticket
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(link) = done.recv() => self.gone(link),
                ticket = expired => self.expire(ticket).await,
                more = fill(&mut io, &mut buffer) => if !more { return End::ClientGone },
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::SynStream { id, fin, headers, .. } => self.syn_stream(id, &headers, fin).await,
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::Headers { id, fin, .. } | Frame::SynReply { id, fin, .. } => {
                self.data(id, Bytes::new(), fin).await;
            }
            Frame::RstStream { id, .. } => self.reset(id),
            Frame::Ping { id } => {
                if self.pings.receive(id) == Pong::Echo {
                    self.common.say(Out::Ping(id)).await;
                }
            }
            Frame::GoAway { .. } => self.away = true,
            Frame::Settings | Frame::WindowUpdate { .. } => {}
        }
    }

    async fn syn_stream(&mut self, id: u32, headers: &Headers, fin: bool) {
        if let Err(status) = self.ids.accept(id) {
            return self.common.say(Out::Reset(id, status)).await;
        }
        self.common.shared.last_good.store(self.ids.last_good(), Ordering::Relaxed);
        let arrival = match self.pairs.accept(id, headers) {
            Ok(Arrival::Duplicate(failure)) => {
                self.ids.close();
                self.common.say(Out::Reset(id, RstStatus::CANCEL)).await;
                if let Some(error) = failure.error {
                    self.common.say(Out::Data(error, failure.text.into())).await;
                }
                return;
            }
            Ok(arrival) => arrival,
            Err(error) => {
                debug!(error = %error, "refused a stream");
                self.ids.close();
                return self.common.say(Out::Reset(id, error.status())).await;
            }
        };
        self.common.say(Out::Reply(id)).await;
        match arrival {
            Arrival::First(ticket) => {
                let is_data = headers.get(portforward::STREAM_TYPE_HEADER) == Some(&b"data"[..]);
                let pipe = is_data.then(|| self.feed(id, fin));
                let until = Instant::now() + PAIR_TIMEOUT;
                self.waiting.insert(ticket, Waiting { until, stream: id, pipe });
            }
            Arrival::Paired(pair) => {
                let held = self.waiting.remove(&pair.ticket).and_then(|waiting| waiting.pipe);
                let pipe = held.unwrap_or_else(|| self.feed(id, fin));
                let Some(feed) = self.feeds.get(&pair.data) else { return };
                self.errors.insert(pair.error, pair.data);
                let link = Link { error: pair.error, data: pair.data, port: pair.port };
                self.common.connect(link, pipe, feed.reset.clone());
            }
            // Answered above.
            Arrival::Duplicate(_) => {}
        }
    }

    /// The way of a new data stream.
    fn feed(&mut self, id: u32, fin: bool) -> DuplexStream {
        let (mut feed, far) = Feed::new();
        feed.pipe = feed.pipe.filter(|_| !fin);
        self.feeds.insert(id, feed);
        far
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) {
        let waits = self.waiting.values().any(|waiting| waiting.stream == id);
        let Some(feed) = self.feeds.get_mut(&id) else { return };
        if !waits {
            feed.push(bytes, &self.common).await;
        } else if unconstrained(feed.push(bytes, &self.common)).now_or_never().is_none() {
            // Nothing takes it before the error stream has come, which may be behind it.
            self.reset(id);
            return self.common.say(Out::Reset(id, RstStatus::CANCEL)).await;
        }
        if fin {
            feed.pipe = None;
        }
    }

    /// The client wants no more of a stream. An open connection ends and says so itself.
    fn reset(&mut self, id: u32) {
        let waits = self.waiting.iter().find(|(_, waiting)| waiting.stream == id).map(|(ticket, _)| *ticket);
        if let Some(ticket) = waits {
            self.waiting.remove(&ticket);
            self.pairs.reset(id);
            self.feeds.remove(&id);
            self.ids.close();
            return;
        }
        let data = self.errors.get(&id).copied().unwrap_or(id);
        if let Some(feed) = self.feeds.get_mut(&data) {
            feed.reset();
        }
    }

    fn gone(&mut self, link: Link) {
        self.feeds.remove(&link.data);
        self.errors.remove(&link.error);
        self.pairs.close();
        self.ids.close();
        self.ids.close();
    }

    async fn expire(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
        let expired = self.pairs.expire(ticket, &self.common.sandbox);
        let Some(Failure { error, data, text }) = expired else { return };
        if let Some(error) = error {
            self.common.say(Out::Data(error, text.into())).await;
        }
        for id in [error, data].into_iter().flatten() {
            self.feeds.remove(&id);
            self.ids.close();
            self.common.say(Out::Reset(id, RstStatus::CANCEL)).await;
        }
    }
}

// === impl Channels ===

impl<'a> Channels<'a> {
    /// Makes all connections.
    fn new(legacy: Legacy, common: Common<'a>) -> Self {
        let connect = |(at, port): (usize, &u16)| {
            let (feed, pipe) = Feed::new();
            let data = 2 * at as u32;
            common.connect(Link { error: data + 1, data, port: *port }, pipe, feed.reset.clone());
            feed
        };
        let feeds = legacy.ports().iter().enumerate().map(connect).collect();
        Self { decoder: ws::Decoder::new(ws::Role::Server, ws::Limits::default()), legacy, feeds, common }
    }

    async fn run(
        mut self,
        mut io: impl AsyncRead + Unpin,
        mut buffer: BytesMut,
        mut done: mpsc::Receiver<Link>,
    ) -> End {
        let mut open = self.feeds.len();
        while open > 0 {
            loop {
                match self.decoder.decode(&mut buffer) {
                    Ok(None) => break,
                    Ok(Some(ws::Event::Close(_))) => return End::ClientGone,
                    Ok(Some(event)) => self.take(event).await,
                    Err(error) => return End::NotWebSocket(error),
                }
            }
            tokio::select! {
                biased;
                Some(_) = done.recv() => open -= 1,
                more = fill(&mut io, &mut buffer) => if !more { return End::ClientGone },
            }
        }
        End::Done
    }

    async fn take(&mut self, event: ws::Event) {
        match event {
            ws::Event::Data(data) => {
                self.common.took_one();
                if let Some((at, bytes)) = self.legacy.decode(data) {
                    self.feeds[at].push(bytes, &self.common).await;
                }
            }
            ws::Event::Ping(payload) => self.common.say(Out::Pong(payload)).await,
            ws::Event::Pong(_) | ws::Event::Close(_) => {}
        }
    }
}
