//! Container: the main processes of a node's pods, from the node's start to its stop.
//!
//! In the flow: [`Containers::start`] makes one task of the [`Drain`] for every regular container of the pods
//! that are bound here. A container with a `command` runs it; one without has no process, but is
//! there, as if it only paused. Init containers and ephemeral ones are not run.
//!
//! ```text
//!   clients' stdin -> queue -> feed -> process -> pumps -> log
//!                                                      -> each attached client's buffer
//! ```
//!
//! Invariants:
//! - A process group is ended and reaped inside its container's task; at the drain's first step all of them
//!   are.
//! - The log and whoever is attached get the same bytes. A client sees what came after it attached, nothing
//!   before.
//! - A client that does not take its output makes the process wait, as containerd does, but only for
//!   `client_patience`; then its streams end, after what it was given, and the process goes on.
//! - Nothing holds a lock while it waits.
//!
//! After the exit of the process its group is killed, as a container's is. Output is taken until all that
//! held the pipes is gone, or for [`LEFTOVERS`] when something has left the group on purpose.
//! Source: Kubernetes API reference, Container v1 core (`stdin`, `stdinOnce`, `tty`); kubelet
//! `pkg/kubelet/kuberuntime/kuberuntime_manager.go` (`doBackOff`), `pkg/kubelet/kubelet_pods.go`; containerd
//! `internal/cri/io/container_io.go`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::{debug, warn};
use uuid::Uuid;

use super::logs::{Cutter, RunLog, Source};
use super::process::{Command, Output, Stdin, Streams, Terminal};
use super::{Pods, Runs, environment, is_below, is_name};
use crate::drain::Drain;
use crate::wire::remotecommand::Asked;

/// Bytes read from a process at once.
const CHUNK: usize = 32 * 1024;

/// Pieces of stdin on their way to a process, each as large as a session reads. Full: the clients wait.
const STDIN_QUEUE: usize = 16;

/// How long nothing of an output may move, after the exit of its process, until the rest is given up: something else
/// holds it. A client may use up its patience for each piece.
const LEFTOVERS: Duration = Duration::from_secs(11);

/// The exit code of a process that never came to be, as runc's.
const NOT_STARTED: i32 = 128;

/// Bounds and pace; the defaults are what is used outside tests.
#[derive(Debug, Clone)]
struct Settings {
    /// Between asking a process to end and killing it.
    kill_grace: Duration,
    /// The wait before the first restart. A kubelet has 10 s; here somebody sits and watches.
    first_delay: Duration,
    /// Each wait is twice the one before, up to this.
    longest_delay: Duration,
    /// Bytes of output an attached client may be behind. Full: the process waits.
    client_buffer: usize,
    /// How long the process waits for one client to take a read's worth of output. Then the client's streams
    /// end.
    client_patience: Duration,
    /// Bytes of log per run, as much as a kubelet keeps in a file; a container keeps two runs.
    log: usize,
}

/// The containers of one node; clones share them.
#[derive(Clone)]
pub(super) struct Containers(Arc<Inner>);

struct Inner {
    node: String,
    pods: Arc<dyn Pods>,
    dir: PathBuf,
    settings: Settings,
    /// By namespace, pod and container.
    entries: Mutex<HashMap<[String; 3], Arc<Entry>>>,
}

/// A container, whatever becomes of its processes.
#[derive(Default)]
struct Entry(Mutex<Now>);

#[derive(Default)]
struct Now {
    run: Option<Arc<Run>>,
    /// Of the run, or of the last one.
    log: Option<Arc<RunLog>>,
    /// Of the run that ended last and was, or will be, followed by another.
    previous: Option<Arc<RunLog>>,
}

/// One life of a main process, as clients see it.
struct Run {
    tty: bool,
    /// Who is attached to stdout and to stderr.
    clients: [Mutex<Vec<Client>>; 2],
    stdin: Option<mpsc::Sender<Bytes>>,
    /// Set when the first client's end of stdin is the process's.
    stdin_once: Option<CancellationToken>,
    terminal: Option<Terminal>,
    /// Cancelled when the process has ended and all its output is delivered.
    over: CancellationToken,
    /// Pieces of output that every client has had, or has lost for.
    moved: AtomicU64,
}

/// One output of one attached client.
struct Client {
    to: DuplexStream,
    over: CancellationToken,
    /// Whether it was let go; gone with the client.
    held: Weak<AtomicBool>,
}

/// What a client holds of a main process.
pub(super) struct Attached {
    /// What was asked for and is there. A terminal's output is all on stdout.
    pub(super) streams: Streams,
    /// Resolves when the process has ended, or when this client was too slow; what is in its streams then is
    /// the rest. The attachment lasts for as long as this is held.
    pub(super) ended: BoxFuture<'static, Ended>,
}

/// Why an attachment is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process has ended, and the client has had all its output.
    Over,
    /// The client did not take its output.
    LetGo,
}

/// Where a client's input goes. Its end reaches the process only with `stdinOnce`.
pub(super) struct Inlet {
    to: mpsc::Sender<Bytes>,
    once: Option<CancellationToken>,
}

/// A client's end of an output: ends when its buffer is empty and nothing will come.
struct Outlet {
    from: DuplexStream,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// The log of a container, or why there is none.
pub(super) enum Kept {
    Log(Arc<RunLog>),
    NoPod,
    NoContainer,
    NoPrevious,
}

/// What to run, as the manifest says it.
struct Spec {
    names: [String; 3],
    uid: String,
    argv: Vec<OsString>,
    dir: PathBuf,
    working_dir: Option<PathBuf>,
    env: Vec<(OsString, OsString)>,
    stdin: bool,
    stdin_once: bool,
    tty: bool,
    policy: Policy,
    /// Restarts that the manifest tells of.
    restarts: i32,
}

/// `restartPolicy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    Never,
}

/// The growing wait before restarts.
struct Backoff {
    next: Duration,
    first: Duration,
    longest: Duration,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            kill_grace: Duration::from_millis(500),
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
            client_buffer: 64 * 1024,
            client_patience: Duration::from_secs(10),
            log: 10 * 1024 * 1024,
        }
    }
}

// === impl Containers ===

impl Containers {
    /// The containers of this node's pods, none of which runs yet.
    pub(super) fn new(node: &str, pods: Arc<dyn Pods>, dir: &Path, kill_grace: Duration) -> Self {
        Self::with(node, pods, dir, Settings { kill_grace, ..Settings::default() })
    }

    fn with(node: &str, pods: Arc<dyn Pods>, dir: &Path, settings: Settings) -> Self {
        let (node, dir) = (node.to_owned(), dir.to_owned());
        Self(Arc::new(Inner { node, pods, dir, settings, entries: Mutex::default() }))
    }

    /// Starts what the pods of this node say, as tasks of the drain.
    pub(super) fn start(&self, drain: &Drain) {
        for pod in self.0.pods.bound(&self.0.node) {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            // What a manifest calls ended or not begun stays so.
            if phase.is_some_and(|phase| phase != "Running") {
                continue;
            }
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                let Some(spec) = Spec::of(&pod, container, &self.0.dir) else {
                    continue;
                };
                let entry = Arc::new(Entry::default());
                lock(&self.0.entries).insert(spec.names.clone(), entry.clone());
                drain.spawn(supervise(self.0.clone(), entry, spec, drain.clone()));
            }
        }
    }

    /// A client of a container's main process; `None` when the container is not running.
    pub(super) fn attach(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        asked: Asked,
    ) -> Option<Attached> {
        let run = lock(&self.entry(namespace, pod, container)?.0).run.clone()?;
        Some(run.attach(asked, self.0.settings.client_buffer))
    }

    /// The log of a container's run, or of the one before.
    pub(super) fn log(&self, namespace: &str, pod: &str, container: &str, previous: bool) -> Kept {
        let Some(found) = self.0.pods.pod(namespace, pod) else {
            return Kept::NoPod;
        };
        let Some(spec) = found.spec.as_ref().filter(|spec| spec.node_name.as_ref() == Some(&self.0.node))
        else {
            return Kept::NoPod;
        };
        let regular = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
        if !regular.map(|container| &container.name).chain(ephemeral).any(|name| name == container) {
            return Kept::NoContainer;
        }
        let entry = self.entry(namespace, pod, container);
        let now = entry.as_ref().map(|entry| lock(&entry.0));
        let log = now.and_then(|now| if previous { now.previous.clone() } else { now.log.clone() });
        match log {
            Some(log) => Kept::Log(log),
            None if previous => Kept::NoPrevious,
            // Nothing of it ever ran here, so it said nothing.
            None => {
                let log = RunLog::new(0);
                log.end();
                Kept::Log(log)
            }
        }
    }

    fn entry(&self, namespace: &str, pod: &str, container: &str) -> Option<Arc<Entry>> {
        lock(&self.0.entries).get(&[namespace, pod, container].map(str::to_owned)).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Spec ===

impl Spec {
    /// `None` when a name cannot be a folder's.
    fn of(pod: &Pod, container: &Container, dir: &Path) -> Option<Self> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let names = [namespace, name, container.name.clone()];
        if !names.iter().all(|name| is_name(name)) {
            return None;
        }
        let dir = names.iter().fold(dir.to_owned(), |dir, name| dir.join(name));
        let tty = container.tty.unwrap_or_default();
        let runs = Runs::find(pod, &container.name)?;
        // Arguments alone are for an image's entrypoint, and there is no image.
        let command = container.command.as_ref().filter(|command| !command.is_empty());
        let words =
            command.into_iter().flatten().chain(command.and(container.args.as_ref()).into_iter().flatten());
        let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
        let policy = match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("OnFailure") => Policy::OnFailure,
            Some("Never") => Policy::Never,
            _ => Policy::Always,
        };
        Some(Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            argv: words.map(OsString::from).collect(),
            env: environment(&names[1], &dir, tty, runs.env),
            working_dir: runs.working_dir.map(PathBuf::from).filter(|dir| is_below(dir)),
            stdin: container.stdin.unwrap_or_default(),
            stdin_once: container.stdin_once.unwrap_or_default(),
            tty,
            policy,
            restarts: statuses
                .filter(|status| status.name == container.name)
                .map(|status| status.restart_count)
                .sum(),
            names,
            dir,
        })
    }

    fn command(&self) -> Command {
        Command {
            argv: self.argv.clone(),
            dir: self.dir.clone(),
            env: self.env.clone(),
            tty: self.tty,
            size: None,
            stdin: self.stdin,
            stdout: true,
            stderr: !self.tty,
        }
    }

    fn log_fields(&self) -> String {
        self.names.join("/")
    }
}

// === impl Policy ===

impl Policy {
    fn again(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

// === impl Backoff ===

impl Backoff {
    fn new(settings: &Settings) -> Self {
        let (first, longest) = (settings.first_delay, settings.longest_delay);
        Self { next: first, first, longest }
    }

    /// The wait after a run of this length. After one twice as long as the longest wait all is forgiven, as
    /// with a kubelet.
    fn after(&mut self, run: Duration) -> Duration {
        if run >= self.longest * 2 {
            self.next = self.first;
        }
        let delay = self.next;
        self.next = (delay * 2).min(self.longest);
        delay
    }
}

/// One container from the node's start to its stop.
async fn supervise(inner: Arc<Inner>, entry: Arc<Entry>, spec: Spec, drain: Drain) {
    if spec.argv.is_empty() {
        return pause(&inner, &entry, &spec, &drain).await;
    }
    let mut backoff = Backoff::new(&inner.settings);
    let mut teller = Teller { inner: &inner, spec: &spec, restarts: spec.restarts, last: None };
    loop {
        let began = Instant::now();
        let Some(ended) = run(&inner, &entry, &spec, &teller, &drain).await else {
            return;
        };
        let again = spec.policy.again(ended.exit_code);
        debug!(container = spec.log_fields(), exit.code = ended.exit_code, again, "main process ended");
        if !again {
            let id = ended.container_id.clone();
            return teller.tell(id, ContainerState { terminated: Some(ended), ..ContainerState::default() });
        }
        {
            let mut now = lock(&entry.0);
            now.previous = now.log.clone();
        }
        let delay = backoff.after(began.elapsed());
        let id = ended.container_id.clone();
        teller.last = Some(ended);
        teller.tell(id, teller.waiting(delay));
        tokio::select! {
            biased;
            () = drain.stopping() => return,
            () = sleep(delay) => {}
        }
        teller.restarts = teller.restarts.saturating_add(1);
    }
}

/// A container without a process.
async fn pause(inner: &Inner, entry: &Entry, spec: &Spec, drain: &Drain) {
    let run = Arc::new(Run::new(spec.tty));
    let log = RunLog::new(inner.settings.log);
    *lock(&entry.0) = Now { run: Some(run.clone()), log: Some(log.clone()), previous: None };
    drain.stopping().await;
    lock(&entry.0).run = None;
    log.end();
    run.over.cancel();
}

/// One life of a main process; `None` when the node stops. When dropped the process's leader is killed, its
/// group is not.
async fn run(
    inner: &Inner,
    entry: &Entry,
    spec: &Spec,
    teller: &Teller<'_>,
    drain: &Drain,
) -> Option<ContainerStateTerminated> {
    let log = RunLog::new(inner.settings.log);
    lock(&entry.0).log = Some(log.clone());
    let mut ended = ContainerStateTerminated {
        container_id: Some(format!("podgate://{}", Uuid::new_v4().simple())),
        started_at: Some(Time(Timestamp::now())),
        ..ContainerStateTerminated::default()
    };
    let mut command = spec.command();
    command.dir.extend(&spec.working_dir);
    let (process, streams) = match command.start().await {
        Ok(started) => started,
        Err(why) => {
            warn!(container = spec.log_fields(), error = %why, "the main process did not start");
            log.end();
            ended.finished_at = Some(Time(Timestamp::now()));
            ended.exit_code = NOT_STARTED;
            ended.reason = Some("StartError".into());
            ended.message = Some(why.to_string());
            return (!drain.is_stopping()).then_some(ended);
        }
    };
    let (queue, queued) = mpsc::channel(STDIN_QUEUE);
    let mut run = Run::new(spec.tty);
    run.stdin = streams.stdin.is_some().then_some(queue);
    run.stdin_once = (spec.stdin && spec.stdin_once).then(CancellationToken::new);
    run.terminal = streams.terminal;
    let run = Arc::new(run);
    lock(&entry.0).run = Some(run.clone());
    let running = Some(ContainerStateRunning { started_at: ended.started_at.clone() });
    teller.tell(ended.container_id.clone(), ContainerState { running, ..ContainerState::default() });

    let patience = inner.settings.client_patience;
    let pump = |from, source| run.pump(from, log.cutter(source), source, patience);
    let pumps =
        async { tokio::join!(pump(streams.stdout, Source::Stdout), pump(streams.stderr, Source::Stderr)) };
    let mut pumps = pin!(pumps.fuse());
    let mut fed = pin!(feed(streams.stdin, queued, run.stdin_once.clone()).fuse());
    let mut drained = false;
    let code = loop {
        tokio::select! {
            biased;
            () = drain.stopping() => break None,
            code = process.exited() => break Some(code),
            _ = &mut pumps, if !drained => drained = true,
            () = &mut fed => {}
        }
    };
    // No one comes after the end.
    lock(&entry.0).run = None;
    let finished_at = Timestamp::now();
    let rest = async {
        // A node that stops has no time for what its processes left behind.
        let silence = if code.is_some() { LEFTOVERS } else { inner.settings.kill_grace };
        while !drained {
            let before = run.moved.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                _ = &mut pumps => return,
                () = drain.cutting() => return,
                () = sleep(silence) => drained = run.moved.load(Ordering::Relaxed) == before,
            }
        }
    };
    tokio::join!(process.end(inner.settings.kill_grace), rest);
    log.end();
    run.over.cancel();
    ended.finished_at = Some(Time(finished_at));
    ended.exit_code = i32::from(code?);
    ended.reason = Some(if ended.exit_code == 0 { "Completed" } else { "Error" }.into());
    Some(ended)
}

/// Moves the clients' input to the process. What it does not take any more nobody is told of but the clients.
async fn feed(stdin: Option<Stdin>, mut queue: mpsc::Receiver<Bytes>, once: Option<CancellationToken>) {
    let Some(mut stdin) = stdin else { return };
    let once = once.unwrap_or_default();
    let mut closing = false;
    loop {
        tokio::select! {
            biased;
            bytes = queue.recv() => match bytes {
                None => return stdin.close().await,
                Some(bytes) if stdin.write(&bytes).await.is_err() => return,
                Some(_) => {}
            },
            // What is queued is still delivered, then the queue is at its end.
            () = once.cancelled(), if !closing => {
                closing = true;
                queue.close();
            }
        }
    }
}

/// Tells the cluster how a container is.
struct Teller<'a> {
    inner: &'a Inner,
    spec: &'a Spec,
    restarts: i32,
    last: Option<ContainerStateTerminated>,
}

// === impl Teller ===

impl Teller<'_> {
    /// `id` is the run's that the state is about.
    fn tell(&self, id: Option<String>, state: ContainerState) {
        let [namespace, pod, container] = &self.spec.names;
        let running = state.running.is_some();
        let last = self.last.clone();
        let status = ContainerStatus {
            name: container.clone(),
            container_id: id,
            ready: running,
            started: Some(running),
            restart_count: self.restarts,
            last_state: last
                .map(|last| ContainerState { terminated: Some(last), ..ContainerState::default() }),
            state: Some(state),
            ..ContainerStatus::default()
        };
        self.inner.pods.report(namespace, pod, status);
    }

    fn waiting(&self, delay: Duration) -> ContainerState {
        let [namespace, pod, container] = &self.spec.names;
        let message = format!(
            "back-off {}s restarting failed container={container} pod={pod}_{namespace}({})",
            delay.as_secs(),
            self.spec.uid
        );
        ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some("CrashLoopBackOff".into()),
                message: Some(message),
            }),
            ..ContainerState::default()
        }
    }
}

// === impl Run ===

impl Run {
    fn new(tty: bool) -> Self {
        Self {
            tty,
            clients: [Mutex::default(), Mutex::default()],
            stdin: None,
            stdin_once: None,
            terminal: None,
            over: CancellationToken::new(),
            moved: AtomicU64::new(0),
        }
    }

    fn attach(&self, asked: Asked, buffer: usize) -> Attached {
        let (over, held) = (self.over.child_token(), Arc::new(AtomicBool::new(false)));
        let outlet = |source: Source, wanted: bool| {
            wanted.then(|| {
                let (to, from) = tokio::io::duplex(buffer);
                let mut clients = lock(&self.clients[source as usize]);
                // Whoever left while the process was silent.
                clients.retain(|client| client.held.strong_count() > 0);
                clients.push(Client { to, over: over.clone(), held: Arc::downgrade(&held) });
                let over = Box::pin(over.clone().cancelled_owned());
                Box::pin(Outlet { from, over }) as Output
            })
        };
        let inlet = self.stdin.clone().filter(|_| asked.stdin);
        let streams = Streams {
            stdin: inlet.map(|to| Stdin::Shared(Inlet { to, once: self.stdin_once.clone() })),
            stdout: outlet(Source::Stdout, asked.stdout),
            stderr: outlet(Source::Stderr, asked.stderr && !self.tty),
            // Without a second descriptor there is no size to set, and nothing else is lost.
            terminal: self.terminal.as_ref().and_then(|terminal| terminal.try_clone().ok()),
        };
        let ended = async move {
            over.cancelled().await;
            if held.load(Ordering::Relaxed) { Ended::LetGo } else { Ended::Over }
        };
        Attached { streams, ended: ended.boxed() }
    }

    /// Moves one output of the process to its log and to its clients, until it ends.
    async fn pump(&self, from: Option<Output>, mut log: Cutter, source: Source, patience: Duration) {
        let Some(mut from) = from else { return };
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            buffer.clear();
            match from.read_buf(&mut (&mut buffer).limit(CHUNK)).await {
                // A terminal whose last process has gone answers EIO.
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            log.write(&buffer);
            // Taken out, so that nobody waits for the slowest with a lock in hand.
            let mut clients = std::mem::take(&mut *lock(&self.clients[source as usize]));
            let takes = join_all(clients.iter_mut().map(|client| client.takes(&buffer, patience))).await;
            let mut takes = takes.into_iter();
            clients.retain(|_| takes.next().unwrap_or_default());
            lock(&self.clients[source as usize]).append(&mut clients);
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Client ===

impl Client {
    /// Gives it all of the bytes; false when it is not there any more or was too slow.
    async fn takes(&mut self, bytes: &[u8], patience: Duration) -> bool {
        if self.held.strong_count() == 0 || self.over.is_cancelled() {
            return false;
        }
        match timeout(patience, self.to.write_all(bytes)).await {
            Ok(written) => written.is_ok(),
            Err(_) => {
                warn!(?patience, "an attached client does not take its output: it is let go");
                if let Some(let_go) = self.held.upgrade() {
                    let_go.store(true, Ordering::Relaxed);
                }
                self.over.cancel();
                false
            }
        }
    }
}

// === impl Inlet ===

impl Inlet {
    /// Puts the bytes into the queue; an error says that the process takes no more.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.to.send(Bytes::copy_from_slice(bytes)).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        if let Some(once) = &self.once {
            once.cancel();
        }
    }
}

// === impl Outlet ===

impl AsyncRead for Outlet {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.from).poll_read(cx, buf);
        if read.is_ready() || self.over.as_mut().poll(cx).is_pending() {
            return read;
        }
        // What was written before the end may have come between the two looks.
        match Pin::new(&mut self.from).poll_read(cx, buf) {
            Poll::Pending => Poll::Ready(Ok(())),
            read => read,
        }
    }
}

#[cfg(test)]
mod tests;
