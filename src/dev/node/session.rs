//! Session: one exec or attach from the 101 to the close, the server's side of a transport around a process.
//!
//! In the flow: after `node` has answered the upgrade. One task per session runs these futures side by side:
//!
//! ```text
//!   socket -> reader -> stdin queue -> feed -> process
//!   socket <- writer <- data queue <- pumps <- process
//!                    <- control queue <- reader (replies, resets, pongs)
//! ```
//!
//! What the bytes of the socket are is the matter of [`spdy`] and [`websocket`], each a [`Read`] and a [`Write`];
//! everything else is the same for both.
//!
//! Invariants:
//! - Output flows whatever stdin does, and the reader waits for nothing but room in the stdin queue and in the
//!   control queue. So a process that never reads stops the socket's stdin and, behind it, pings, as upstream does
//!   with full queues; and a client that sends without reading the answers stops itself. A burst of a client that
//!   does read is answered whatever its size.
//! - Nothing is written on a stream before its reply: the pumps start when all streams are open.
//! - All output is delivered before the result, and the result before the close.
//! - However an exec ends, the process group is ended and its leader reaped before [`run`] returns, unless the node is
//!   to leave orphans, as real ones do: then they are when the node stops. The main process of a container, to which
//!   others may be attached, is left as it is.
//!
//! A client that vanishes: the reader sees the end of the socket, always, unless it waits for room in the
//! stdin queue. There the end may be hidden twice: behind bytes not read yet, where the kernel still tells of
//! it (EPOLLRDHUP), or, once the receive window is shut, behind bytes that the client's kernel could not even
//! send. So each [`STALL_CHECK`] the reader asks the kernel and has a frame sent that peers parse and ignore:
//! a SETTINGS without entries or a pong nobody asked for. A kernel whose process has gone answers bytes with
//! a reset, and the next check sees that. Not a ping, because a client whose own writing is stuck would stop
//! reading to answer it. When the output or the control queue is stuck, the client has unread bytes and its
//! close is a reset at once. TCP keepalive, set by `node`, finds a peer that goes without a word.
//! TCP_USER_TIMEOUT is not set: it would also end a client that only pauses its output. Like upstream, the
//! end of the client's bytes is the end of the session: no known client half-closes TCP.
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
//! output, [`CONTROL_QUEUE`] control frames.
//! Source: `protocol.md` 5 and 6; kubelet `cri/streaming/remotecommand/{httpstream,exec}.go`; spdystream.

mod spdy;
mod websocket;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};

use super::container::{Attached, Ended};
use super::process::{Command, NotStarted, Output, Process, Stdin, Terminal};
use super::{Settings, simulated};
use crate::drain::Drain;
use crate::wire::channel::{self, Subprotocol};
use crate::wire::remotecommand::{Asked, Outcome, Protocol, Resize, ResizeDecoder, StreamType, TerminalSize};
use crate::wire::{spdy as wire_spdy, ws};

/// Room for one read of the socket, in bytes: two full TLS records.
const READ: usize = 32 * 1024;

/// Most bytes of output in one frame, as upstream's copy buffers.
const CHUNK: usize = 32 * 1024;

/// Pieces of stdin on their way, at most [`READ`] bytes each. Full: the reader waits, see the header.
const STDIN_QUEUE: usize = 16;

/// Pieces of output on their way to the socket. Full: the pump waits, so the process does.
const DATA_QUEUE: usize = 4;

/// Control frames on their way to the socket. Known SPDY clients have one ping and five streams open. Full: the
/// reader waits. Over WebSocket only the last ping waits for its answer.
const CONTROL_QUEUE: usize = 64;

/// Sizes kept until there is a terminal. More: the oldest goes.
const EARLY_SIZES: usize = 4;

/// How often a reader that waits for the stdin queue looks whether the client is still there; it takes two looks
/// to find out.
const STALL_CHECK: Duration = Duration::from_secs(1);

/// How long a closing frame may take when the session is cut: less than what the drain gives after the cut.
const CUT_CLOSE: Duration = Duration::from_millis(500);

/// How long a session here outlives the cut. Nodes do not stop with the podgate in front of them, which is to be heard.
const OUTLIVES: Duration = Duration::from_millis(300);

/// What one session is about.
pub(super) struct Job {
    pub(super) transport: Transport,
    pub(super) asked: Asked,
    pub(super) task: Task,
}

/// What the streams travel in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Transport {
    Spdy(Protocol),
    WebSocket(Subprotocol),
}

/// What the streams are connected to.
pub(super) enum Task {
    /// A new process. Size and folder of the command are still open.
    Exec { command: Command, working_dir: Option<PathBuf> },
    /// The main process of a container.
    Attach(Attached),
    /// What is no process.
    Simulated(Vec<String>),
}

/// Why a session ended; for the log.
#[derive(Debug)]
pub(super) enum End {
    /// The process ended and the client was told.
    Done,
    /// The client closed or broke the connection.
    ClientGone,
    /// The client said that it leaves.
    ClientLeft(Option<ws::Close>),
    /// The client sent what is not of its protocol.
    Broken(Broken),
    /// The client did not open its streams in time.
    NoStreams,
    /// Nothing passed for the idle deadline.
    Idle,
    /// Podgate stops.
    Cut,
}

/// What is wrong with a client's bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Not SPDY.
    #[error(transparent)]
    Spdy(#[from] wire_spdy::Error),
    /// Not WebSocket.
    #[error(transparent)]
    WebSocket(#[from] ws::Error),
    /// WebSocket, but not the subprotocol.
    #[error(transparent)]
    Channel(#[from] channel::Error),
}

/// What the process side has to say, in order.
enum Out {
    /// The streams are connected.
    Ready,
    /// A piece of stdout or stderr.
    Data(StreamType, Bytes),
    /// There is no more output, and this is the result. Nothing follows.
    End(Outcome),
}

/// Bytes of a socket into what the client wants. What it writes and resizes goes to an [`Inlet`].
trait Read {
    /// Reads until all streams are open.
    async fn open(&mut self) -> Result<(), End>;

    /// Takes one frame, or reads from the socket once. May be dropped and called again; a piece of stdin that
    /// waits for room in the queue is then lost, which only the end of a session does.
    async fn step(&mut self) -> Result<(), End>;

    /// Has the client told that the session ends before its time, as far as there is room for that.
    fn abort(&mut self, end: &End);

    /// Reads until the client is gone. May be dropped and called again, as [`Read::step`].
    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }
}

/// What is said into frames.
trait Write {
    /// What the [`Read`] has to say.
    type Control;

    /// Appends a control frame; whether it is a sign of life.
    fn control(&mut self, control: Self::Control, out: &mut BytesMut) -> bool;

    /// Appends frames; what is returned follows them.
    fn frames(&mut self, what: Out, out: &mut BytesMut) -> Bytes;
}

/// What the futures of a session tell each other.
#[derive(Default)]
struct Shared {
    /// Frames and pieces, both ways, that count as signs of life: the idle deadline looks whether it moves.
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

/// The socket, and what of it was read and not taken yet.
struct Source<R> {
    io: R,
    buffer: BytesMut,
}

/// The way of the client's input to the process.
struct Inlet<'a> {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: ResizeDecoder,
    watch: TcpStream,
    shared: &'a Shared,
}

/// What the streams of a session are connected to, once they are.
enum Far {
    Process {
        process: Box<Process>,
        shown: String,
    },
    NotStarted(NotStarted),
    /// Resolves at the end of a container's main process, or when it lets this client go.
    Attached(BoxFuture<'static, Ended>),
}

/// Runs a session to its end. `watch` is a second handle on the socket under `io`, `early` what was read past the
/// request. When dropped, the leader of an exec's process is killed, its group is not.
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
    let Job { transport, asked, task } = job;
    let shared = Shared::default();
    let (io, write) = tokio::io::split(io);
    let (data, data_queue) = mpsc::channel(DATA_QUEUE);
    let (stdin, stdin_queue) = mpsc::channel(STDIN_QUEUE);
    let source = Source { io, buffer: BytesMut::from(early) };
    let stdin = asked.stdin.then_some(stdin);
    let inlet = Inlet { stdin, resize: ResizeDecoder::new(), watch, shared: &shared };
    let session = Session { task, asked, data, stdin_queue, shared: &shared, settings, drain };
    match transport {
        Transport::Spdy(protocol) => {
            let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
            let opened = spdy::Opened::default();
            let reader = spdy::Reader::new(source, inlet, control, asked.streams(protocol), &opened);
            let writer = spdy::Writer::new(protocol, &opened, &shared);
            session.run(reader, pin!(send(write, writer, control_queue, data_queue, &shared))).await
        }
        Transport::WebSocket(subprotocol) => {
            let (control, control_queue) = mpsc::channel(CONTROL_QUEUE);
            let pongs = Mutex::default();
            let reader = websocket::Reader::new(source, inlet, control, subprotocol, asked, &pongs);
            let writer = websocket::Writer::new(subprotocol, asked, &pongs);
            session.run(reader, pin!(send(write, writer, control_queue, data_queue, &shared))).await
        }
    }
}

/// What a session is, whatever its transport.
struct Session<'a> {
    task: Task,
    asked: Asked,
    data: mpsc::Sender<Out>,
    stdin_queue: mpsc::Receiver<Bytes>,
    shared: &'a Shared,
    settings: &'a Settings,
    drain: &'a Drain,
}

// === impl Session ===

impl Session<'_> {
    async fn run(
        self,
        mut reader: impl Read,
        mut writer: Pin<&mut impl Future<Output = io::Result<()>>>,
    ) -> End {
        let Self { task, asked, data, stdin_queue, shared, settings, drain } = self;
        let opened = tokio::select! {
            biased;
            () = drain.cutting() => Err(End::Cut),
            _ = &mut writer => Err(End::ClientGone),
            opened = timeout(settings.stream_creation, reader.open()) => {
                opened.unwrap_or(Err(End::NoStreams))
            }
        };
        if let Err(end) = opened {
            if !matches!(end, End::ClientGone) {
                reader.abort(&end);
                drop(data);
                let _ = timeout(CUT_CLOSE, writer).await;
            }
            return end;
        }

        let (mut far, input, outputs) = connect(task, shared).await;
        let end = {
            let mut feed = pin!(feed(input, stdin_queue).fuse());
            let mut idle = pin!(super::idle(&shared.frames, settings.idle));
            // Owns the data queue's sender, so its end lets the writer finish and close.
            let mut main = pin!(deliver(&mut far, asked, outputs, data, settings, shared).fuse());
            let mut watched = pin!(reader.run());
            let mut cut = pin!(async {
                drain.cutting().await;
                sleep(OUTLIVES).await;
            });
            loop {
                tokio::select! {
                    biased;
                    () = &mut cut => break End::Cut,
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
        let terminal = std::mem::take(&mut *lock(&shared.terminal)).terminal;
        let closed = async {
            match end {
                End::Done => {
                    // What the client still sends is read: closing over unread bytes would reset the connection
                    // and could cost it the end of its output.
                    tokio::select! {
                        biased;
                        () = drain.cutting() => {}
                        _ = timeout(settings.linger, reader.run()) => {}
                    }
                }
                End::ClientGone => {}
                End::ClientLeft(_) | End::Broken(_) | End::NoStreams | End::Idle | End::Cut => {
                    reader.abort(&end);
                    let _ = timeout(CUT_CLOSE, writer).await;
                }
            }
        };
        let ended = async {
            let Far::Process { process, .. } = far else { return };
            let grace = settings.kill_grace;
            if !settings.leaves_orphans || matches!(end, End::Done | End::Cut) {
                drop(terminal);
                return process.end(grace).await;
            }
            // A terminal that nobody holds would hang up.
            let stop = drain.clone();
            drain.spawn(async move {
                tokio::select! {
                    _ = process.exited() => {}
                    () = stop.stopping() => {}
                }
                drop(terminal);
                process.end(grace).await;
            });
        };
        tokio::join!(ended, closed);
        end
    }
}

/// Starts the process or takes the container's, and hands its terminal to the reader.
async fn connect(task: Task, shared: &Shared) -> (Far, Option<Stdin>, [Option<Output>; 2]) {
    let (far, streams) = match task {
        Task::Exec { mut command, working_dir } => {
            let shown = shown(&command.argv);
            command.dir.extend(working_dir);
            // Those before the last were for nobody.
            command.size = lock(&shared.terminal).sizes.drain(..).next_back();
            match command.start().await {
                Ok((process, streams)) => (Far::Process { process: Box::new(process), shown }, streams),
                Err(why) => return (Far::NotStarted(why), None, [None, None]),
            }
        }
        Task::Attach(Attached { streams, ended }) => (Far::Attached(ended), streams),
        Task::Simulated(argv) => match simulated::start(&argv) {
            Ok(Attached { streams, ended }) => (Far::Attached(ended), streams),
            Err(why) => return (Far::NotStarted(why), None, [None, None]),
        },
    };
    let mut early = lock(&shared.terminal);
    if let Some(terminal) = &streams.terminal {
        // All of them: attached clients redraw a screen by two different sizes.
        early.sizes.iter().for_each(|size| terminal.resize(*size));
    }
    *early = Early { terminal: streams.terminal, sizes: Vec::new() };
    (far, streams.stdin, [streams.stdout, streams.stderr])
}

/// A command as Go prints a list of strings.
fn shown(argv: &[OsString]) -> String {
    argv.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn lock(terminal: &Mutex<Early>) -> std::sync::MutexGuard<'_, Early> {
    // Whoever panicked left a terminal or none; both are fine.
    terminal.lock().unwrap_or_else(PoisonError::into_inner)
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
async fn deliver(
    far: &mut Far,
    asked: Asked,
    outputs: [Option<Output>; 2],
    data: mpsc::Sender<Out>,
    settings: &Settings,
    shared: &Shared,
) {
    // Sends fail only when the writer has ended; the session then ends with it.
    let _ = data.send(Out::Ready).await;
    let has_output = outputs.iter().any(Option::is_some);
    let [stdout, stderr] = outputs;
    let mut pumps = pin!(
        async {
            tokio::join!(
                pump(stdout, StreamType::Stdout, asked.stdout, &data, shared),
                pump(stderr, StreamType::Stderr, asked.stderr, &data, shared),
            );
        }
        .fuse()
    );
    let outcome = match far {
        Far::Process { process, shown } => {
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
        Far::NotStarted(why) => Outcome::exec_failed(why),
        Far::Attached(ended) => {
            // Its end is the end of the outputs as well, after what they still hold.
            let why = if has_output {
                pumps.await;
                ended.now_or_never().unwrap_or(Ended::Over)
            } else {
                ended.await
            };
            match why {
                Ended::Over => Outcome::Success,
                Ended::LetGo => Outcome::attach_failed("the client did not take its output"),
            }
        }
    };
    let _ = data.send(Out::End(outcome)).await;
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
async fn pump(from: Option<Output>, kind: StreamType, wanted: bool, to: &mpsc::Sender<Out>, shared: &Shared) {
    let Some(mut from) = from else { return };
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
        if !wanted || shared.is_reset(kind) {
            continue;
        }
        shared.blocked.fetch_add(1, Ordering::Relaxed);
        let sent = to.send(Out::Data(kind, bytes)).await;
        shared.blocked.fetch_sub(1, Ordering::Relaxed);
        if sent.is_err() {
            return;
        }
    }
}

/// Sends frames until the data queue's senders are gone, then closes. An error says that the client has gone.
async fn send<W: Write>(
    mut io: impl AsyncWrite + Unpin,
    mut writer: W,
    mut control: mpsc::Receiver<W::Control>,
    mut data: mpsc::Receiver<Out>,
    shared: &Shared,
) -> io::Result<()> {
    let mut head = BytesMut::with_capacity(256);
    loop {
        let mut payload = Bytes::new();
        let alive = tokio::select! {
            biased;
            Some(out) = control.recv() => writer.control(out, &mut head),
            out = data.recv() => match out {
                Some(out) => {
                    payload = writer.frames(out, &mut head);
                    true
                }
                None => break,
            },
        };
        shared.frames.fetch_add(alive.into(), Ordering::Relaxed);
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
    /// Notes a sign of life.
    fn alive(&self) {
        self.frames.fetch_add(1, Ordering::Relaxed);
    }

    fn set_reset(&self, kind: StreamType) {
        self.reset.fetch_or(1 << kind as u8, Ordering::Relaxed);
    }

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

// === impl Source ===

impl<R: AsyncRead + Unpin> Source<R> {
    /// Reads once.
    async fn fill(&mut self) -> Result<(), End> {
        if self.buffer.capacity() - self.buffer.len() < READ / 4 {
            self.buffer.reserve(READ);
        }
        match self.io.read_buf(&mut (&mut self.buffer).limit(READ)).await {
            Ok(0) | Err(_) => Err(End::ClientGone),
            Ok(_) => Ok(()),
        }
    }
}

// === impl Inlet ===

impl Inlet<'_> {
    /// Takes bytes of a stream; those that are not for the process are dropped. While it waits, `probe` is sent
    /// now and then.
    async fn data<C>(
        &mut self,
        kind: StreamType,
        bytes: Bytes,
        control: &mpsc::Sender<C>,
        probe: fn() -> C,
    ) -> Result<(), End> {
        match kind {
            StreamType::Stdin if !bytes.is_empty() => self.push(bytes, control, probe).await,
            StreamType::Resize => {
                let mut input = &bytes[..];
                while let Resize::Size(size) = self.resize.decode(&mut input) {
                    self.shared.resized(size);
                }
                Ok(())
            }
            StreamType::Stdin | StreamType::Error | StreamType::Stdout | StreamType::Stderr => Ok(()),
        }
    }

    /// No more comes on this stream.
    fn finished(&mut self, kind: StreamType) {
        if kind == StreamType::Stdin {
            self.stdin = None;
        }
    }

    async fn push<C>(&self, bytes: Bytes, control: &mpsc::Sender<C>, probe: fn() -> C) -> Result<(), End> {
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
            let _ = control.try_send(probe());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::future::{pending, ready};
    use tokio::net::TcpListener;

    use super::super::process::Streams;
    use super::*;

    /// What a client of v4 gets that asks for this and attaches to that; it sends nothing.
    async fn attach(
        asked: Asked,
        stdout: Option<&'static [u8]>,
        ended: BoxFuture<'static, Ended>,
    ) -> Vec<u8> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let io = listener.accept().await.unwrap().0;
        let watch = TcpStream::from_std(socket2::SockRef::from(&io).try_clone().unwrap().into()).unwrap();
        let stdout = stdout.map(|bytes| Box::pin(bytes) as Output);
        let streams = Streams { stdin: None, stdout, stderr: None, terminal: None };
        let task = Task::Attach(Attached { streams, ended });
        let job = Job { transport: Transport::WebSocket(Subprotocol::V4), asked, task };
        let (settings, drain) = (Settings::default(), Drain::new());
        let mut seen = Vec::new();
        let read = async {
            client.read_to_end(&mut seen).await.unwrap();
            drop(client);
        };
        let (end, ()) = tokio::join!(run(io, watch, Bytes::new(), job, &settings, &drain), read);
        assert!(matches!(end, End::Done), "{end:?}");
        seen
    }

    #[tokio::test]
    async fn an_attach_is_a_success_at_the_end_of_its_streams_or_of_the_process() {
        let status = br#"{"metadata":{},"status":"Success"}"#;
        let end = [&[0x82, 35, 3], &status[..], &[0x88, 2, 0x03, 0xe8]].concat();
        let asked = Asked { stdout: true, ..Asked::default() };
        let seen = attach(asked, Some(b"hello"), pending().boxed()).await;
        assert_eq!(seen, [&[0x82, 1, 1, 0x82, 6, 1], &b"hello"[..], &end].concat());
        let asked = Asked { stdin: true, ..Asked::default() };
        let seen = attach(asked, None, ready(Ended::Over).boxed()).await;
        assert_eq!(seen, [&[0x82, 1, 3], &end[..]].concat());
        // Whoever lost some of it is told so.
        let asked = Asked { stdout: true, ..Asked::default() };
        let seen = attach(asked, Some(b"half"), ready(Ended::LetGo).boxed()).await;
        let text = String::from_utf8_lossy(&seen);
        assert!(text.contains("error attaching to container: the client did not take its output"), "{text}");
    }

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
