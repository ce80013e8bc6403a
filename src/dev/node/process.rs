//! Process: a container's command as a local process, its streams, and its certain end.
//!
//! Without a terminal the process leads a group of its own, with one a session. Both ids stay taken as long as
//! the leader was not reaped, so [`Process`] learns of the exit through a pidfd, leaves the zombie in place while
//! it signals the rest, and reaps last: no signal can hit a stranger that was given the same id.
//!
//! What leaves the group on purpose (`setsid` without a terminal) is not followed: dev mode runs the user's own
//! commands and is no jail.
//! Source: waitid(2), pidfd_open(2), proc_pid_stat(5); runc `libcontainer`, Go `os/exec` for the error texts.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::rand;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWriteExt, SimplexStream, WriteHalf};
use tokio::process::{Child, ChildStdin};
use tokio::task::spawn_blocking;

use super::container::Inlet;
use crate::wire::remotecommand::TerminalSize;

/// `PATH` when podgate has none: what runtimes give containers that say nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Rounds of looking for processes of a terminal's session. Each round kills all that it sees, so only a process
/// that forks faster than we read `/proc` needs more than two.
const SESSION_ROUNDS: usize = 8;

/// Held while file descriptors without close-on-exec may exist: a terminal's master is opened in two steps, and a
/// process that another session starts in between would keep it open.
static STARTING: Mutex<()> = Mutex::new(());

/// What to run.
#[derive(Debug, Default)]
pub(super) struct Command {
    /// Program and arguments, bytes as they came.
    pub(super) argv: Vec<OsString>,
    /// The container's folder, which exists.
    pub(super) dir: PathBuf,
    /// The whole environment but `PATH`, unless it is in here.
    pub(super) env: Vec<(OsString, OsString)>,
    /// On a terminal, of this size; the three below are then one.
    pub(super) tty: bool,
    pub(super) size: Option<TerminalSize>,
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// A running process. Must be [`Process::end`]ed; a drop kills the leader alone.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    leader: Pid,
    exited: AsyncFd<OwnedFd>,
    terminal: bool,
}

/// Where the process's output comes from.
pub(super) type Output = Pin<Box<dyn AsyncRead + Send>>;

/// Our ends of its streams.
pub(super) struct Streams {
    pub(super) stdin: Option<Stdin>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) terminal: Option<Terminal>,
}

/// Where its input goes.
pub(super) enum Stdin {
    Pipe(ChildStdin),
    Terminal {
        to: pty_process::OwnedWritePty,
        terminal: Terminal,
        line_open: bool,
    },
    /// The input of a main process, which others may write to as well.
    Shared(Inlet),
    /// The input of what is no process.
    Simulated(WriteHalf<SimplexStream>),
}

/// A hold on a terminal, for its size and its modes.
#[derive(Debug)]
pub(super) struct Terminal(OwnedFd);

/// Why a command did not start, in containerd's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotStarted(String);

// === impl Command ===

impl Command {
    /// Starts the process, in its folder, which is made where it is missing. When dropped the process, once it runs, is
    /// killed at once.
    pub(super) async fn start(self) -> Result<(Process, Streams), NotStarted> {
        let started = spawn_blocking(move || {
            make_private(&self.dir).map_err(|error| NotStarted::folder(&self.dir, &error))?;
            self.start_here()
        });
        match started.await {
            Ok(started) => started,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                Err(error) => Err(NotStarted::stopping(&error)),
            },
        }
    }

    /// Blocks for as long as a fork and an exec take.
    fn start_here(mut self) -> Result<(Process, Streams), NotStarted> {
        let Some(name) = self.argv.first().cloned() else {
            return Err(NotStarted::before_exec("args must not be empty"));
        };
        if !self.env.iter().any(|(name, _)| name == "PATH") {
            let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
            self.env.push(("PATH".into(), path));
        }
        let search = self.env.iter().rev().find(|(name, _)| name == "PATH");
        let search = search.map_or(OsStr::new(""), |(_, path)| path);
        let program = look_path(&name, search, &self.dir).map_err(|why| NotStarted::exec(&name, why))?;
        if self.argv.iter().any(|arg| arg.as_bytes().contains(&0)) {
            return Err(NotStarted::exec(&name, go_errno(Errno::INVAL)));
        }
        let mut command = tokio::process::Command::new(&program);
        command.arg0(&name).args(&self.argv[1..]).current_dir(&self.dir).env_clear().kill_on_drop(true);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        // A poisoned lock guards nothing that could be broken.
        let starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let started = if self.tty { self.on_terminal(command) } else { self.on_pipes(command) };
        drop(starting);
        started.map_err(|error| {
            let why = error.raw_os_error().map_or_else(|| error.to_string(), go_raw);
            NotStarted::unprefixed(&format!("exec {}: {why}", program.display()))
        })
    }

    fn on_pipes(&self, mut command: tokio::process::Command) -> io::Result<(Process, Streams)> {
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        command.stdin(pipe(self.stdin)).stdout(pipe(self.stdout)).stderr(pipe(self.stderr));
        let mut child = command.process_group(0).spawn()?;
        let streams = Streams {
            stdin: child.stdin.take().map(Stdin::Pipe),
            stdout: child.stdout.take().map(|pipe| Box::pin(pipe) as Output),
            stderr: child.stderr.take().map(|pipe| Box::pin(pipe) as Output),
            terminal: None,
        };
        Ok((Process::watch(child, false)?, streams))
    }

    fn on_terminal(&self, command: tokio::process::Command) -> io::Result<(Process, Streams)> {
        let (pty, pts) = pty_process::open().map_err(io_error)?;
        let terminal = Terminal(pty.as_fd().try_clone_to_owned()?);
        if let Some(size) = self.size {
            terminal.resize(size);
        }
        let child = pty_process::Command::from(command).spawn(pts).map_err(io_error)?;
        let process = Process::watch(child, true)?;
        let (from, to) = pty.into_split();
        let stdin = if self.stdin {
            let terminal = Terminal(terminal.0.try_clone()?);
            Some(Stdin::Terminal { to, terminal, line_open: false })
        } else {
            None
        };
        // Read even when nobody asked for it: a full terminal would stop the process.
        let streams = Streams { stdin, stdout: Some(Box::pin(from)), stderr: None, terminal: Some(terminal) };
        Ok((process, streams))
    }
}

fn io_error(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(errno) => errno.into(),
        other => io::Error::other(other.to_string()),
    }
}

/// Finds a program as Go's `exec.LookPath` does, with a relative path seen from `dir`.
fn look_path(name: &OsStr, search: &OsStr, dir: &Path) -> Result<PathBuf, String> {
    let shown = name.display();
    if name.as_bytes().contains(&0) {
        return Err(format!("stat {shown}: {}", go_errno(Errno::INVAL)));
    }
    if name.as_bytes().contains(&b'/') {
        let path = dir.join(name);
        let meta = path.metadata().map_err(|error| {
            format!("stat {shown}: {}", error.raw_os_error().map_or_else(|| error.to_string(), go_raw))
        })?;
        if meta.is_dir() {
            return Err(go_errno(Errno::ISDIR));
        }
        return match is_executable(&path) {
            true => Ok(path),
            false => Err(go_errno(Errno::ACCESS)),
        };
    }
    let mut folders = search.as_bytes().split(|byte| *byte == b':');
    let found = folders.find_map(|folder| {
        let path = dir.join(OsStr::from_bytes(folder)).join(name);
        let is_file = !name.is_empty() && path.metadata().is_ok_and(|meta| !meta.is_dir());
        (is_file && is_executable(&path)).then_some(path)
    });
    found.ok_or_else(|| "executable file not found in $PATH".to_owned())
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn go_raw(raw: i32) -> String {
    go_errno(Errno::from_raw_os_error(raw))
}

/// Go's text of an error number; the ones that starting a program can give.
fn go_errno(errno: Errno) -> String {
    match errno {
        Errno::PERM => "operation not permitted",
        Errno::NOENT => "no such file or directory",
        Errno::TOOBIG => "argument list too long",
        Errno::NOEXEC => "exec format error",
        Errno::AGAIN => "resource temporarily unavailable",
        Errno::NOMEM => "cannot allocate memory",
        Errno::ACCESS => "permission denied",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::INVAL => "invalid argument",
        Errno::MFILE => "too many open files",
        Errno::NFILE => "too many open files in system",
        Errno::TXTBSY => "text file busy",
        Errno::NAMETOOLONG => "file name too long",
        Errno::LOOP => "too many levels of symbolic links",
        other => return format!("errno {}", other.raw_os_error()),
    }
    .to_owned()
}

// === impl NotStarted ===

impl NotStarted {
    pub(super) fn exec(name: &OsStr, why: String) -> Self {
        Self::unprefixed(&format!("exec: {:?}: {why}", name.to_string_lossy()))
    }

    fn unprefixed(why: &str) -> Self {
        Self::before_exec(&format!("unable to start container process: {why}"))
    }

    fn before_exec(why: &str) -> Self {
        Self(format!(
            "failed to exec in container: failed to start exec \"{}\": OCI runtime exec failed: exec failed: \
             {why}: unknown",
            exec_id()
        ))
    }

    /// For a runtime that ends before it came to the command.
    pub(super) fn stopping(error: &tokio::task::JoinError) -> Self {
        Self::unprefixed(&error.to_string())
    }

    /// For what keeps podgate itself from getting as far as the command.
    pub(super) fn folder(path: &Path, error: &io::Error) -> Self {
        Self::unprefixed(&format!("chdir to cwd ({:?}) set in config.json failed: {error}", path.display()))
    }
}

/// 64 hexadecimal digits, as containerd names each exec. Nothing depends on it being random.
fn exec_id() -> String {
    let mut bytes = [0; 32];
    let _ = rand::fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// === impl Process ===

impl Process {
    fn watch(mut child: Child, terminal: bool) -> io::Result<Self> {
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let leader = pid.expect("a child that nobody waited for has an id");
        let watched = rustix::process::pidfd_open(leader, PidfdFlags::NONBLOCK);
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd is the same descriptor all its life"
        )]
        match watched.map_err(io::Error::from).and_then(AsyncFd::new) {
            Ok(exited) => Ok(Self { child, leader, exited, terminal }),
            Err(error) => {
                // Without the watch there is no session; the drop of the child reaps it.
                let _ = child.start_kill();
                Err(error)
            }
        }
    }

    /// Waits for the leader's exit and gives its code, 128+N for signal N. Leaves it unreaped. Cancel safe.
    pub(super) async fn exited(&self) -> u8 {
        // An error of the readiness itself only shortens the wait; the state is asked for below.
        loop {
            if let Some(code) = self.exit_code() {
                return code;
            }
            match self.exited.readable().await {
                Ok(mut ready) => {
                    if let Some(code) = self.exit_code() {
                        return code;
                    }
                    ready.clear_ready();
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    fn exit_code(&self) -> Option<u8> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::Pid(self.leader), options) {
            Ok(None) | Err(Errno::INTR) => None,
            Ok(Some(status)) => Some(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code as u8,
                (None, Some(signal)) => (128 + signal) as u8,
                (None, None) => return None,
            }),
            // Cannot happen to a child that was not reaped; 255 as runtimes say for "unknown".
            Err(_) => Some(255),
        }
    }

    fn signal_group(&self, signal: Signal) {
        // ESRCH, when all of it has gone, is as good as success.
        let _ = rustix::process::kill_process_group(self.leader, signal);
    }

    /// Kills all that is left of the group, and of the terminal's session.
    pub(super) async fn kill_all(&self) {
        self.signal_group(Signal::KILL);
        if self.terminal {
            let session = self.leader;
            // Reads all of `/proc`.
            let killed = spawn_blocking(move || kill_session(session)).await;
            debug_assert!(killed.is_ok(), "looking through /proc does not panic");
        }
    }

    /// Ends whatever is left: hang-up and terminate, the kill after `grace` or once the leader is gone, then
    /// reaps. When it is dropped half-way the leader is killed and left to the runtime to reap.
    pub(super) async fn end(mut self, grace: Duration) {
        if self.exit_code().is_none() {
            self.signal_group(Signal::HUP);
            self.signal_group(Signal::TERM);
            // A stopped process acts on the two only when it goes on.
            self.signal_group(Signal::CONT);
            let _ = tokio::time::timeout(grace, self.exited()).await;
        }
        self.kill_all().await;
        // Cannot fail for a child that nobody else waits for.
        let _ = self.child.wait().await;
    }
}

/// Kills the members of a session other than its leader, who was killed with its group.
fn kill_session(session: Pid) {
    for _ in 0..SESSION_ROUNDS {
        let mut found = false;
        let Ok(entries) = std::fs::read_dir("/proc") else {
            return;
        };
        for entry in entries.flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid.filter(|pid| *pid != session && is_member(*pid, session)) else {
                continue;
            };
            // The handle is taken before the second look: the id may have been given away since the first.
            let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            if is_member(pid, session) {
                found |= rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok();
            }
        }
        if !found {
            return;
        }
    }
}

/// Whether a process lives and belongs to the session.
fn is_member(pid: Pid, session: Pid) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())) else {
        return false;
    };
    // The second field is a name in brackets that may hold anything; the rest is plain.
    let Some(at) = stat.iter().rposition(|byte| *byte == b')') else {
        return false;
    };
    let rest = String::from_utf8_lossy(&stat[at + 1..]);
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next();
    let of = fields.nth(2).and_then(|field| field.parse::<i32>().ok());
    state != Some("Z") && state != Some("X") && of == Some(session.as_raw_nonzero().get())
}

// === impl Stdin ===

impl Stdin {
    /// Writes all of it. An error says that the process takes no more. Not cancel safe.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Terminal { to, line_open, .. } => {
                to.write_all(bytes).await?;
                if let Some(last) = bytes.last() {
                    *line_open = !matches!(last, b'\n' | b'\r');
                }
                Ok(())
            }
            Self::Shared(inlet) => inlet.write(bytes).await,
            Self::Simulated(to) => to.write_all(bytes).await,
        }
    }

    /// Lets the process see the end of its input. On a terminal that is the end-of-file character, typed twice
    /// after an unfinished line, and nothing at all in raw mode, where no character means the end.
    pub(super) async fn close(self) {
        match self {
            Self::Terminal { mut to, terminal, line_open } => {
                let Some(end) = terminal.end_of_file() else {
                    return;
                };
                let typed = if line_open { &[end, end][..] } else { &[end][..] };
                // Fails when the process has gone.
                let _ = to.write_all(typed).await;
            }
            Self::Simulated(mut to) => {
                // Fails when what read it has ended.
                let _ = to.shutdown().await;
            }
            Self::Pipe(_) | Self::Shared(_) => {}
        }
    }
}

// === impl Terminal ===

impl Terminal {
    /// Sizes with a zero are ignored, as containerd does; a terminal that has gone has no size.
    pub(super) fn resize(&self, size: TerminalSize) {
        if size.width == 0 || size.height == 0 {
            return;
        }
        let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        let _ = rustix::termios::tcsetwinsize(&self.0, size);
    }

    /// A second hold on it.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    fn end_of_file(&self) -> Option<u8> {
        let modes = rustix::termios::tcgetattr(&self.0).ok()?;
        let canonical = modes.local_modes.contains(LocalModes::ICANON);
        canonical.then(|| modes.special_codes[SpecialCodeIndex::VEOF])
    }
}

/// Makes a folder and its parents, for the owner alone.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
