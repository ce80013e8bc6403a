//! Session: one exec from the 101 to the close, the server's side of SPDY around a process.
//!
//! In the flow: after `node` has answered the upgrade. One task per session runs these futures side by side:
//!
//! ```text
//!   socket -> reader -> stdin queue -> feed -> process
//!   socket <- writer <- data queue <- pumps <- process
//!                    <- control queue <- reader (replies, resets, pongs)
//! ```
//!
//! Invariants:
//! - Output flows whatever stdin does, and the reader waits for nothing but room in the stdin queue. So a process
//!   that never reads stops the socket's stdin and, behind it, pings; as upstream does with full queues.
//! - Nothing is written on a stream before its reply: the pumps start when all streams are open.
//! - All output is delivered before the result, and the result before the close.
//! - However the session ends, the process group is ended and its leader reaped before [`run`] returns.
//!
//! A client that vanishes: the reader sees the end of the socket, always, unless it waits for room in the stdin
//! queue. There the end may be hidden twice: behind bytes not read yet, where the kernel still tells of it
//! (EPOLLRDHUP), or, once the receive window is shut, behind bytes that the client's kernel could not even send.
//! So each [`STALL_CHECK`] the reader asks the kernel and has a SETTINGS frame without entries sent, which peers
//! parse and ignore: a kernel whose process has gone answers bytes with a reset, and the next check sees that. Not
//! a PING, because a client whose own writing is stuck would stop reading to answer it. When the output is stuck
//! too, the client has unread bytes and its close is a reset at once. TCP keepalive, set by `node`, finds a peer
//! that goes without a word. TCP_USER_TIMEOUT is not set: it would also end a client that only pauses its output.
//! Like upstream, the end of the client's bytes is the end of the session: SPDY clients do not half-close TCP.
//!
//! Output after the exit: something in the background may hold the pipes. What it writes is delivered until
//! nothing came for `exit_silence`; then the group is killed, and what still comes is delivered by the same rule.
//! Time in which the client does not take what there is does not count as silence. Before either, the pipes are
//! looked at once more: on a machine that stalls, the end of the silence may be seen together with the output.
//!
//! Starting a process makes folders, searches `PATH` and waits for a fork and an exec, one session at a time, so
//! it runs on a thread for blocking work. The session does nothing else meanwhile; it is soon over.
//!
//! Bounds: [`READ`] bytes per read, [`STDIN_QUEUE`] reads of stdin, [`DATA_QUEUE`] writes of [`CHUNK`] bytes of
//! output, [`CONTROL_QUEUE`] control frames, beyond which a client that does not read is cut off.
//! Source: `protocol.md` 5 and 6; kubelet `cri/streaming/remotecommand/{httpstream,exec}.go`; spdystream.

use std::ffi::OsString;
use std::io;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::Settings;
use super::process::{Command, NotStarted, Output, Process, Stdin, Streams, Terminal};
use crate::drain::Drain;
use crate::wire::remotecommand::{
    Asked, Outcome, Protocol, Resize, ResizeDecoder, StreamSet, StreamType, TerminalSize,
};
use crate::wire::spdy::{self, Decoder, Encoder, Frame, Pings, Pong, Role, RstStatus, StreamIds};

/// Room for one read of the socket, in bytes: two full TLS records.
const READ: usize = 32 * 1024;

/// Most bytes of a DATA frame, as upstream's copy buffers.
const CHUNK: usize = 32 * 1024;

/// Pieces of stdin on their way, at most [`READ`] bytes each. Full: the reader waits, see the header.
const STDIN_QUEUE: usize = 16;

/// DATA frames on their way to the socket. Full: the pump waits, so the process does.
const DATA_QUEUE: usize = 4;

/// Control frames on their way to the socket. Known clients have one ping and five streams open. Full: the client
/// sends without reading, and the session ends.
const CONTROL_QUEUE: usize = 64;

/// Sizes kept until there is a terminal. More: the oldest goes.
const EARLY_SIZES: usize = 4;

/// How often a reader that waits for the stdin queue looks whether the client is still there; it takes two looks
/// to find out.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// How long a closing frame may take when the session is cut: less than what the drain gives after the cut.
const CUT_CLOSE: Duration = Duration::from_millis(500);

/// What one session is about.
pub(super) struct Job {
    pub(super) protocol: Protocol,
    pub(super) asked: Asked,
    /// Size and folder are still open.
    pub(super) command: Command,
    pub(super) working_dir: Option<PathBuf>,
}

/// Why a session ended; for the log.
#[derive(Debug)]
pub(super) enum End {
    /// The process ended and the client was told.
    Done,
    /// The client closed or broke the connection.
    ClientGone,
    /// The client sent what is not SPDY.
    NotSpdy(spdy::Error),
    /// The client sends without reading.
    Flooded,
    /// The client did not open its streams in time.
    NoStreams,
    /// Nothing passed for the idle deadline.
    Idle,
    /// Podgate stops.
    Cut,
}

/// A frame to send.
enum Out {
    Reply(u32),
    Reset(u32, RstStatus),
    Pong(u32),
    Data(u32, Bytes),
    Fin(u32),
    GoAway(u32),
    /// Anything that a living client ignores.
    Probe,
}

/// What the futures of a session tell each other.
#[derive(Default)]
struct Shared {
    /// Frames and pieces, both ways: the idle deadline looks whether it moves.
    frames: AtomicU64,
    /// Reads of the process's output.
    outputs: AtomicU64,
    /// Pumps that wait for the client to take something.
    blocked: AtomicUsize,
    /// Bits of the stream types that the client has reset.
    reset: AtomicU8,
    terminal: Mutex<Early>,
}

/// The terminal, or the sizes that wait for it.
#[derive(Default)]
struct Early {
    terminal: Option<Terminal>,
    sizes: Vec<TerminalSize>,
}

/// The client's streams.
#[derive(Clone, Copy, Default)]
struct Opened {
    ids: [Option<u32>; 5],
    last_good: u32,
}

struct Reader<'a, R> {
    io: R,
    buffer: BytesMut,
    decoder: Decoder,
    ids: StreamIds,
    pings: Pings,
    /// Accepted and not reset; the type of those we know.
    streams: Vec<(u32, Option<StreamType>)>,
    opened: Opened,
    /// No stream is taken any more.
    complete: bool,
    control: mpsc::Sender<Out>,
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: ResizeDecoder,
    /// After the client's GOAWAY nothing counts but the end of its bytes.
    away: bool,
    watch: TcpStream,
    shared: &'a Shared,
}

/// Runs a session to its end. `watch` is a second handle on the socket under `io`, `early` what was read past the
/// request. When dropped, the process's leader is killed, its group is not.
pub(super) async fn run<I>(
    io: I,
    watch: TcpStream,
    early: Bytes,
    job: Job,
    settings: &Settings,
    drain: &Drain,
) -> End
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let shared = Shared::default();
    let (read, write) = tokio::io::split(io);
    let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
    let (data, data_queue) = mpsc::channel(DATA_QUEUE);
    let (stdin, stdin_queue) = mpsc::channel(STDIN_QUEUE);
    let stdin = job.asked.stdin.then_some(stdin);
    let mut reader = Reader::new(read, early, control.clone(), stdin, watch, &shared);
    let mut writer = pin!(send(write, control_queue, data_queue, &shared));
    let expected = job.asked.streams(job.protocol);

    let opened = tokio::select! {
        biased;
        () = drain.cutting() => Err(End::Cut),
        _ = &mut writer => Err(End::ClientGone),
        opened = timeout(settings.stream_creation, reader.open(expected)) => {
            opened.unwrap_or(Err(End::NoStreams))
        }
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(end) => {
            if !matches!(end, End::ClientGone) {
                let _ = control.try_send(Out::GoAway(reader.ids.last_good()));
                drop(data);
                let _ = timeout(CUT_CLOSE, writer).await;
            }
            return end;
        }
    };

    let shown = shown(&job.command.argv);
    let (process, streams) = match start(job.command, job.working_dir, &shared).await {
        Ok((process, streams)) => (Ok(process), Some(streams)),
        Err(why) => (Err(why), None),
    };
    let (input, outputs) = match streams {
        Some(streams) => {
            early_sizes(&shared, streams.terminal);
            (streams.stdin, [streams.stdout, streams.stderr])
        }
        None => (None, [None, None]),
    };
    let end = {
        let mut feed = pin!(feed(input, stdin_queue).fuse());
        let mut idle = pin!(idle(&shared, settings.idle));
        // Owns the data queue's sender, so its end lets the writer finish and close.
        let mut main = pin!(
            deliver(process.as_ref(), &shown, outputs, opened, job.protocol, data, settings, &shared).fuse()
        );
        let mut watched = pin!(reader.run());
        loop {
            tokio::select! {
                biased;
                () = drain.cutting() => break End::Cut,
                written = &mut writer => break match written {
                    Ok(()) => End::Done,
                    Err(_) => End::ClientGone,
                },
                end = &mut watched => break end,
                () = &mut idle => break End::Idle,
                () = &mut main => {}
                () = &mut feed => {}
            }
        }
    };
    // Everything but the reader and the writer is gone now, and with it our ends of the process's streams.
    drop(std::mem::take(&mut *lock(&shared.terminal)));
    let closed = async {
        match end {
            End::Done => {
                // What the client still sends is read: closing over unread bytes would reset the connection and
                // could cost it the end of its output.
                tokio::select! {
                    biased;
                    () = drain.cutting() => {}
                    _ = timeout(settings.linger, reader.run()) => {}
                }
            }
            End::ClientGone => {}
            End::NotSpdy(_) | End::Flooded | End::NoStreams | End::Idle | End::Cut => {
                for id in opened.ids.into_iter().flatten() {
                    let _ = control.try_send(Out::Reset(id, RstStatus::CANCEL));
                }
                let _ = control.try_send(Out::GoAway(opened.last_good));
                let _ = timeout(CUT_CLOSE, writer).await;
            }
        }
    };
    let ended = async {
        if let Ok(process) = process {
            process.end(settings.kill_grace).await;
        }
    };
    tokio::join!(ended, closed);
    end
}

/// When dropped the process, once it runs, is killed at once.
async fn start(
    mut command: Command,
    working_dir: Option<PathBuf>,
    shared: &Shared,
) -> Result<(Process, Streams), NotStarted> {
    if let Some(dir) = working_dir {
        command.dir.push(dir);
    }
    command.size = lock(&shared.terminal).sizes.last().copied();
    let started = spawn_blocking(move || {
        super::make_private(&command.dir).map_err(|error| NotStarted::folder(&command.dir, &error))?;
        command.start()
    });
    match started.await {
        Ok(started) => started,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(error) => Err(NotStarted::stopping(&error)),
        },
    }
}

/// A command as Go prints a list of strings.
fn shown(argv: &[OsString]) -> String {
    argv.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Hands the terminal to the reader. Sizes but the last were for nobody.
fn early_sizes(shared: &Shared, terminal: Option<Terminal>) {
    *lock(&shared.terminal) = Early { terminal, sizes: Vec::new() };
}

fn lock(terminal: &Mutex<Early>) -> std::sync::MutexGuard<'_, Early> {
    // Whoever panicked left a terminal or none; both are fine.
    terminal.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when no frame passed for `deadline`, at most twice that long after the last one.
async fn idle(shared: &Shared, deadline: Duration) {
    loop {
        let before = shared.frames.load(Ordering::Relaxed);
        sleep(deadline).await;
        if shared.frames.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Moves stdin to the process; what it does not take is dropped, so that the client can go on.
async fn feed(stdin: Option<Stdin>, mut queue: mpsc::Receiver<Bytes>) {
    if let Some(mut stdin) = stdin {
        loop {
            match queue.recv().await {
                None => return stdin.close().await,
                Some(bytes) if stdin.write(&bytes).await.is_err() => break,
                Some(_) => {}
            }
        }
    }
    while queue.recv().await.is_some() {}
}

/// From the start of the process to the last frame.
#[expect(clippy::too_many_arguments, reason = "the parts of one session, used once")]
async fn deliver(
    process: Result<&Process, &NotStarted>,
    shown: &str,
    outputs: [Option<Output>; 2],
    opened: Opened,
    protocol: Protocol,
    data: mpsc::Sender<Out>,
    settings: &Settings,
    shared: &Shared,
) {
    // Sends fail only when the writer has ended; the session then ends with it.
    let stream = |kind: StreamType| opened.ids[kind as usize];
    if protocol == Protocol::V1 {
        // What kubelets of 1.0 did by mistake and all do since (`protocol.md` 6.4).
        if let Some(id) = stream(StreamType::Stdin) {
            let _ = data.send(Out::Fin(id)).await;
        }
        if let Some(id) = stream(StreamType::Error) {
            let _ = data.send(Out::Reset(id, RstStatus::CANCEL)).await;
        }
    }
    let outcome = match process {
        Ok(process) => {
            let [stdout, stderr] = outputs;
            let mut pumps = pin!(
                async {
                    tokio::join!(
                        pump(stdout, StreamType::Stdout, opened, &data, shared),
                        pump(stderr, StreamType::Stderr, opened, &data, shared),
                    );
                }
                .fuse()
            );
            let mut done = false;
            let code = loop {
                tokio::select! {
                    code = process.exited() => break code,
                    () = &mut pumps, if !done => done = true,
                }
            };
            for last in [false, true] {
                if !done {
                    done = silent_or(&mut pumps, shared, settings.exit_silence).await;
                }
                if !last {
                    process.kill_all().await;
                }
            }
            match code {
                0 => Outcome::Success,
                code => Outcome::Exit {
                    code,
                    text: format!("error executing command [{shown}], exit code {code}"),
                },
            }
        }
        Err(why) => Outcome::exec_failed(why),
    };
    for kind in [StreamType::Stdout, StreamType::Stderr] {
        if let Some(id) = stream(kind)
            && !shared.is_reset(kind)
        {
            let _ = data.send(Out::Fin(id)).await;
        }
    }
    if protocol != Protocol::V1
        && let Some(id) = stream(StreamType::Error)
        && !shared.is_reset(StreamType::Error)
    {
        let result = outcome.to_bytes(protocol);
        if !result.is_empty() {
            let _ = data.send(Out::Data(id, result)).await;
        }
        let _ = data.send(Out::Reset(id, RstStatus::CANCEL)).await;
    }
    for kind in [StreamType::Stdin, StreamType::Resize] {
        let finished = protocol == Protocol::V1 && kind == StreamType::Stdin;
        if let Some(id) = stream(kind)
            && !finished
            && !shared.is_reset(kind)
        {
            let _ = data.send(Out::Reset(id, RstStatus::CANCEL)).await;
        }
    }
    let _ = data.send(Out::GoAway(opened.last_good)).await;
}

/// True when the pumps are done, false after a silence of theirs.
async fn silent_or(
    pumps: &mut (impl Future<Output = ()> + Unpin),
    shared: &Shared,
    silence: Duration,
) -> bool {
    loop {
        let before = shared.outputs.load(Ordering::Relaxed);
        tokio::select! {
            biased;
            () = &mut *pumps => return true,
            () = sleep(silence) => {}
        }
        // Lets the runtime ask the kernel what came in the meantime, then takes it without waiting. The pumps are
        // polled again by whoever goes on, so the wake-up that is not left here is not missed.
        yield_now().await;
        if (&mut *pumps).now_or_never().is_some() {
            return true;
        }
        let moved = shared.outputs.load(Ordering::Relaxed) != before;
        if !moved && shared.blocked.load(Ordering::Relaxed) == 0 {
            return false;
        }
    }
}

/// Moves output of the process to a stream until it ends. Output nobody asked for or takes is read and dropped.
async fn pump(
    from: Option<Output>,
    kind: StreamType,
    opened: Opened,
    to: &mpsc::Sender<Out>,
    shared: &Shared,
) {
    let Some(mut from) = from else { return };
    let id = opened.ids[kind as usize];
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < CHUNK / 4 {
            buffer.reserve(CHUNK);
        }
        match from.read_buf(&mut (&mut buffer).limit(CHUNK)).await {
            // A terminal whose last process has gone answers EIO.
            Ok(0) | Err(_) => return,
            Ok(_) => shared.outputs.fetch_add(1, Ordering::Relaxed),
        };
        let bytes = buffer.split().freeze();
        let Some(id) = id.filter(|_| !shared.is_reset(kind)) else {
            continue;
        };
        shared.blocked.fetch_add(1, Ordering::Relaxed);
        let sent = to.send(Out::Data(id, bytes)).await;
        shared.blocked.fetch_sub(1, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
}

/// Sends frames until the data queue's senders are gone, then closes. An error says that the client has gone.
async fn send(
    mut io: impl AsyncWrite + Unpin,
    mut control: mpsc::Receiver<Out>,
    mut data: mpsc::Receiver<Out>,
    shared: &Shared,
) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut head = BytesMut::with_capacity(256);
    loop {
        let out = tokio::select! {
            biased;
            Some(out) = control.recv() => out,
            out = data.recv() => match out {
                Some(out) => out,
                None => break,
            },
        };
        // A probe is no sign of life.
        shared.frames.fetch_add(u64::from(!matches!(out, Out::Probe)), Ordering::Relaxed);
        let mut payload = Bytes::new();
        match out {
            Out::Reply(id) => encoder.syn_reply(&mut head, id),
            Out::Reset(id, status) => Encoder::rst_stream(&mut head, id, status),
            Out::Pong(id) => Encoder::ping(&mut head, id),
            Out::Data(id, bytes) => {
                head.put_slice(&Encoder::data_head(id, bytes.len(), false));
                payload = bytes;
            }
            Out::Fin(id) => head.put_slice(&Encoder::data_head(id, 0, true)),
            Out::GoAway(last_good) => Encoder::goaway(&mut head, last_good),
            Out::Probe => {
                let written = encoder.encode(&mut head, &Frame::Settings);
                debug_assert!(written.is_ok(), "only headers can be too long");
            }
        }
        io.write_all_buf(&mut (&mut head).chain(&mut payload)).await?;
        if control.is_empty() && data.is_empty() {
            io.flush().await?;
        }
    }
    io.flush().await?;
    io.shutdown().await
}

// === impl Shared ===

impl Shared {
    fn is_reset(&self, kind: StreamType) -> bool {
        self.reset.load(Ordering::Relaxed) & (1 << kind as u8) != 0
    }

    fn resized(&self, size: TerminalSize) {
        let mut early = lock(&self.terminal);
        match &early.terminal {
            Some(terminal) => terminal.resize(size),
            None => {
                if early.sizes.len() == EARLY_SIZES {
                    early.sizes.remove(0);
                }
                early.sizes.push(size);
            }
        }
    }
}

// === impl Reader ===

impl<'a, I: AsyncRead + AsyncWrite> Reader<'a, ReadHalf<I>> {
    fn new(
        io: ReadHalf<I>,
        early: Bytes,
        control: mpsc::Sender<Out>,
        stdin: Option<mpsc::Sender<Bytes>>,
        watch: TcpStream,
        shared: &'a Shared,
    ) -> Self {
        Self {
            io,
            buffer: BytesMut::from(early),
            decoder: Decoder::new(),
            ids: StreamIds::new(Role::Server),
            pings: Pings::new(Role::Server),
            streams: Vec::new(),
            opened: Opened::default(),
            complete: false,
            control,
            stdin,
            resize: ResizeDecoder::new(),
            away: false,
            watch,
            shared,
        }
    }
}

impl<R: AsyncRead + Unpin> Reader<'_, R> {
    /// Reads until all expected streams are open. A stream may be open twice; the later one counts.
    async fn open(&mut self, expected: StreamSet) -> Result<Opened, End> {
        while expected.iter().any(|kind| self.opened.ids[kind as usize].is_none()) {
            self.step().await?;
        }
        self.complete = true;
        self.opened.last_good = self.ids.last_good();
        Ok(self.opened)
    }

    /// Reads until the client is gone. May be dropped and called again; a piece of stdin that waits for room in
    /// the queue is then lost, which only the end of a session does.
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    async fn step(&mut self) -> Result<(), End> {
        if self.away {
            self.buffer.clear();
        } else if let Some(frame) = self.decoder.decode(&mut self.buffer).map_err(End::NotSpdy)? {
            self.shared.frames.fetch_add(1, Ordering::Relaxed);
            return self.take(frame).await;
        }
        if self.buffer.capacity() - self.buffer.len() < READ / 4 {
            self.buffer.reserve(READ);
        }
        match self.io.read_buf(&mut (&mut self.buffer).limit(READ)).await {
            Ok(0) | Err(_) => Err(End::ClientGone),
            Ok(_) => Ok(()),
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), End> {
        match frame {
            Frame::SynStream { id, fin, headers, .. } => {
                let kind = headers.get(StreamType::HEADER).and_then(StreamType::from_name);
                self.syn_stream(id, kind, fin)
            }
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::RstStream { id, .. } => {
                if let Some(at) = self.streams.iter().position(|(have, _)| *have == id) {
                    let (_, kind) = self.streams.swap_remove(at);
                    self.ids.close();
                    if let Some(kind) = kind {
                        self.shared.reset.fetch_or(1 << kind as u8, Ordering::Relaxed);
                        self.finished(kind);
                    }
                }
                Ok(())
            }
            Frame::Ping { id } => match self.pings.receive(id) {
                Pong::Echo => self.answer(Out::Pong(id)),
                Pong::Answer | Pong::Stray => Ok(()),
            },
            Frame::GoAway { .. } => {
                self.away = true;
                self.stdin = None;
                Ok(())
            }
            Frame::Headers { id, fin, .. } | Frame::SynReply { id, fin, .. } => {
                if fin && let Some(kind) = self.kind(id) {
                    self.finished(kind);
                }
                Ok(())
            }
            Frame::Settings | Frame::WindowUpdate { .. } => Ok(()),
        }
    }

    fn syn_stream(&mut self, id: u32, kind: Option<StreamType>, fin: bool) -> Result<(), End> {
        if let Err(status) = self.ids.accept(id) {
            return self.answer(Out::Reset(id, status));
        }
        if self.complete {
            // Upstream never answers these; a refusal lets the client go on.
            self.ids.close();
            return self.answer(Out::Reset(id, RstStatus::CANCEL));
        }
        match kind {
            Some(kind) => self.opened.ids[kind as usize] = Some(id),
            None => debug!(spdy.stream = id, "client opened a stream of an unknown type"),
        }
        self.streams.push((id, kind));
        if let Some(kind) = kind.filter(|_| fin) {
            self.finished(kind);
        }
        self.answer(Out::Reply(id))
    }

    async fn data(&mut self, id: u32, bytes: Bytes, fin: bool) -> Result<(), End> {
        let Some(kind) = self.kind(id) else {
            return Ok(());
        };
        match kind {
            StreamType::Stdin if !bytes.is_empty() => self.push(bytes).await?,
            StreamType::Resize => {
                let mut input = &bytes[..];
                while let Resize::Size(size) = self.resize.decode(&mut input) {
                    self.shared.resized(size);
                }
            }
            StreamType::Stdin | StreamType::Error | StreamType::Stdout | StreamType::Stderr => {}
        }
        if fin {
            self.finished(kind);
        }
        Ok(())
    }

    fn kind(&self, id: u32) -> Option<StreamType> {
        self.streams.iter().find(|(have, _)| *have == id).and_then(|(_, kind)| *kind)
    }

    fn finished(&mut self, kind: StreamType) {
        if kind == StreamType::Stdin {
            self.stdin = None;
        }
    }

    async fn push(&mut self, bytes: Bytes) -> Result<(), End> {
        let Some(stdin) = &self.stdin else {
            return Ok(());
        };
        loop {
            tokio::select! {
                biased;
                room = stdin.reserve() => {
                    // Without a receiver the session is at its end.
                    if let Ok(room) = room {
                        room.send(bytes);
                    }
                    return Ok(());
                }
                () = sleep(STALL_CHECK) => {}
            }
            // Not awaited: the question is what the kernel has already told.
            let state = self.watch.ready(Interest::READABLE).now_or_never();
            if state.is_some_and(|state| state.is_ok_and(|state| state.is_read_closed())) {
                return Err(End::ClientGone);
            }
            // Full or closed: there is something else on its way that will tell.
            let _ = self.control.try_send(Out::Probe);
        }
    }

    fn answer(&self, out: Out) -> Result<(), End> {
        match self.control.try_send(out) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(End::Flooded),
            // The writer closes the connection as the last thing it does.
            Err(mpsc::error::TrySendError::Closed(_)) | Ok(()) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_together_with_the_end_of_the_silence_is_taken() {
        let silence = Duration::from_millis(500);
        // Often, since a choice by chance would be right every other time.
        for _ in 0..64 {
            let mut pumps = pin!(sleep(silence));
            assert!(silent_or(&mut pumps, &Shared::default(), silence).await);
            let mut pumps = pin!(async {
                sleep(silence).await;
                yield_now().await;
            });
            assert!(silent_or(&mut pumps, &Shared::default(), silence).await);
        }
        let mut pumps = pin!(std::future::pending());
        assert!(!silent_or(&mut pumps, &Shared::default(), silence).await);
    }
}
