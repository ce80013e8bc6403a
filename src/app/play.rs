//! Play: a recording in a terminal, at the pace at which it was, or one of its channels into a pipe.
//!
//! The whole recording is verified before any of it is shown. What a pod wrote reaches the terminal through
//! [`safe::Filter`](crate::recording::safe::Filter) alone; a pipe gets it byte for byte where a channel is named.

use std::io::{self, IsTerminal, Read, StdoutLock, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::runtime::Handle;

use super::recordings::{CUT, Error, Keyring, Place, blocking, kind};
use crate::cli;
use crate::recording::container::Reader;
use crate::recording::facts::{Ending, Facts};
use crate::recording::safe::{Filter, plain};
use crate::recording::text::Lines;
use crate::telemetry;
use crate::wire::remotecommand::{Resize, ResizeDecoder, TerminalSize};
use crate::wire::tape::{self, Connection, Kind, Piece};

/// How far an arrow goes.
const SKIP: Duration = Duration::from_secs(10);

/// Slowest and fastest that a recording is played.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;

/// Longest wait at once; poll takes no more than so many milliseconds.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// One that is open, at its beginning.
type Recording = Reader<Box<dyn Read + Send>>;

/// What a look through the whole recording found.
#[derive(Debug, Default)]
struct Seen {
    size: Option<TerminalSize>,
    larger: bool,
    gaps: u64,
    withheld: u64,
    facts: Option<Facts>,
    ending: Option<Ending>,
}

/// What somebody at the keyboard wants, or the end of the recording.
#[derive(Debug, PartialEq)]
enum Next {
    On,
    End,
    Back(Duration),
}

struct Player<'a> {
    flags: &'a Flags,
    out: StdoutLock<'static>,
    /// Keys, where there is somebody to press them.
    keys: Option<io::Stdin>,
    speed: f64,
    paused: bool,
    /// When in the session we are, and until when nothing waits.
    now: Duration,
    hurry: Duration,
    filter: Filter,
    lines: [Lines; 3],
}

/// What was asked for.
#[derive(Debug, Clone)]
struct Flags {
    speed: f64,
    idle_limit: Option<Duration>,
    from: Duration,
    no_input: bool,
    channel: Option<Kind>,
    /// Whether stdout is a terminal.
    terminal: bool,
}

/// A terminal that gives each key at once, until it is dropped.
struct Raw(Termios);

/// Plays a recording.
///
/// # Errors
/// When it cannot be read, or is not as it was written.
pub async fn run(flags: &cli::Play) -> Result<u8, Error> {
    let keyring = Keyring::of(&flags.reading, false)?;
    let place = Place::find(&flags.what, &flags.reading.store).await?;
    let idle_limit = flags.idle_limit.map(|limit| Duration::try_from_secs_f64(limit).unwrap_or_default());
    let wanted = Flags {
        speed: flags.speed.clamp(*SPEEDS.start(), *SPEEDS.end()),
        idle_limit,
        from: flags.from.unwrap_or_default(),
        no_input: flags.no_input,
        channel: flags.channel.map(kind),
        terminal: io::stdout().is_terminal(),
    };
    let danger = flags.reading.danger_unverified;
    let handle = Handle::current();
    blocking(move || {
        let open = || keyring.reader(handle.block_on(place.open())?, place.facts());
        let (seen, problem) = look(open()?)?;
        if let Some(error) = problem {
            if !danger {
                return Err(error);
            }
            eprintln!(
                "podgate: NOT as it was written, and shown up to there: {}",
                plain(&telemetry::chain(&error))
            );
        }
        warn(&seen, &wanted);
        let ended = match wanted.channel {
            Some(channel) => write(open()?, channel, wanted.terminal),
            None => play(open, &wanted, seen.facts.as_ref().is_some_and(|facts| facts.tty)),
        };
        match ended {
            // Whatever is wrong there was told already.
            Err(Error::Recording(_)) if danger => {}
            Err(Error::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            ended => ended?,
        }
        Ok(summary(&seen))
    })
    .await
}

/// Reads all of it.
fn look(mut reader: Recording) -> Result<(Seen, Option<Error>), Error> {
    if reader.details().is_none() {
        return Err(Error::Encrypted);
    }
    let (mut seen, mut sizes) = (Seen::default(), ResizeDecoder::new());
    let problem = loop {
        match reader.next() {
            Ok(Some(chunk)) => pieces(&chunk.tape.unwrap_or_default(), |piece| {
                match piece.kind {
                    Kind::Gap => seen.gaps += 1,
                    Kind::Withheld => {
                        let len =
                            std::str::from_utf8(piece.bytes).ok().and_then(|len| len.parse::<u64>().ok());
                        seen.withheld = seen.withheld.saturating_add(len.unwrap_or_default());
                    }
                    Kind::Resize => {
                        let mut rest = piece.bytes;
                        while let Resize::Size(size) = sizes.decode(&mut rest) {
                            let first = *seen.size.get_or_insert(size);
                            seen.larger |= size.width > first.width || size.height > first.height;
                        }
                    }
                    _ => {}
                }
                Ok(true)
            })
            .map(drop)?,
            Ok(None) => break None,
            Err(error) => break Some(Error::Recording(error)),
        }
    };
    seen.facts = Some(reader.facts().clone());
    seen.ending = reader.ending().cloned();
    Ok((seen, problem))
}

/// Control keys as terminals show them.
fn carets(keys: &[u8]) -> String {
    keys.iter().map(|key| format!("^{}", char::from(key ^ 0x40))).collect::<Vec<_>>().join(" ")
}

/// Hands on pieces until one is the last; whether none was. They were looked at when the chunk was read.
fn pieces(tape: &[u8], mut each: impl FnMut(Piece<'_>) -> Result<bool, Error>) -> Result<bool, Error> {
    let mut rest = tape;
    while let Ok(Some(piece)) = tape::next(&mut rest) {
        if !each(piece)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says what would otherwise look wrong.
fn warn(seen: &Seen, flags: &Flags) {
    let here = flags.terminal.then(|| tcgetwinsize(io::stdout()).ok()).flatten();
    if let (Some(size), Some(here)) = (seen.size, here)
        && (here.ws_col < size.width || here.ws_row < size.height)
        && flags.channel.is_none()
    {
        let (width, height) = (size.width, size.height);
        let (cols, rows) = (here.ws_col, here.ws_row);
        let later = if seen.larger { " and more later" } else { "" };
        eprintln!(
            "podgate: recorded on {width}x{height}{later}, and this terminal is {cols}x{rows}: it will not look right"
        );
    }
}

/// What the recording does not show, and the exit code.
fn summary(seen: &Seen) -> u8 {
    let tell = |text: String| eprintln!("podgate: {}", plain(&text));
    if seen.gaps > 0 {
        tell(format!("{} parts of the session are not recorded", seen.gaps));
    }
    if seen.withheld > 0 {
        tell(format!("{} bytes were typed that the terminal did not show, and are not kept", seen.withheld));
    }
    let Some(ending) = &seen.ending else {
        return 0;
    };
    let code = ending.exit_code.map_or_else(String::new, |code| format!(", exit code {code}"));
    tell(format!("ended after {:.3} s: {}{code}", ending.seconds, ending.reason));
    if ending.cut {
        tell("the end is missing: podgate was killed".to_owned());
        return CUT;
    }
    0
}

/// One channel, as it was.
fn write(mut reader: Recording, channel: Kind, terminal: bool) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let (mut filter, mut safe) = (Filter::new(), Vec::new());
    while let Some(chunk) = reader.next().map_err(Error::Recording)? {
        pieces(&chunk.tape.unwrap_or_default(), |piece| {
            if piece.kind == channel && terminal {
                filter.push(piece.bytes, &mut safe);
                out.write_all(&safe).map_err(Error::Write)?;
                safe.clear();
            } else if piece.kind == channel {
                out.write_all(piece.bytes).map_err(Error::Write)?;
            }
            Ok(true)
        })?;
    }
    if terminal {
        filter.finish(&mut safe);
        out.write_all(&safe).map_err(Error::Write)?;
    }
    out.flush().map_err(Error::Write)
}

fn play(open: impl Fn() -> Result<Recording, Error>, flags: &Flags, tty: bool) -> Result<(), Error> {
    let stdin = io::stdin();
    let raw = (flags.terminal && stdin.is_terminal()).then(|| Raw::new(&stdin)).flatten();
    let mut player = Player {
        flags,
        out: io::stdout().lock(),
        keys: raw.is_some().then_some(stdin),
        speed: flags.speed,
        paused: false,
        now: Duration::ZERO,
        hurry: flags.from,
        filter: Filter::new(),
        lines: Default::default(),
    };
    let played = loop {
        match player.once(open()?, tty) {
            Ok(Next::Back(to)) => {
                player.reset(tty)?;
                (player.now, player.hurry) = (Duration::ZERO, to);
            }
            ended => break ended.map(drop),
        }
    };
    player.reset(tty)?;
    drop(player);
    drop(raw);
    played
}

// === impl Player ===

impl Player<'_> {
    /// From the beginning.
    fn once(&mut self, mut reader: Recording, tty: bool) -> Result<Next, Error> {
        let mut next = Next::On;
        while let Some(chunk) = reader.next().map_err(Error::Recording)? {
            let on = pieces(&chunk.tape.unwrap_or_default(), |piece| {
                next = self.wait(piece.at)?;
                if next == Next::On {
                    self.show(piece, tty)?;
                }
                Ok(next == Next::On)
            });
            if !on? {
                return Ok(next);
            }
        }
        for (channel, lines) in std::mem::take(&mut self.lines).into_iter().enumerate() {
            let mut last = String::new();
            lines.finish(&mut |at, line| last = labelled(at, channel, line, self.keys.is_some()));
            self.out.write_all(last.as_bytes()).map_err(Error::Write)?;
        }
        Ok(Next::End)
    }

    /// Until something happened; only somebody at a terminal waits for that.
    fn wait(&mut self, at: Duration) -> Result<Next, Error> {
        let mut left = at.saturating_sub(self.now);
        if at <= self.hurry || !self.flags.terminal {
            left = Duration::ZERO;
        }
        left = left.min(self.flags.idle_limit.unwrap_or(LONGEST));
        if left > Duration::ZERO {
            self.out.flush().map_err(Error::Write)?;
        }
        let mut left = left.div_f64(self.speed);
        while self.paused || left > Duration::ZERO {
            let began = tokio::time::Instant::now();
            let timeout = (!self.paused).then_some(left.min(LONGEST));
            match self.key(timeout).map_err(Error::Write)? {
                Some(b' ') => self.paused = !self.paused,
                Some(b'+') => self.speed = (self.speed * 2.0).min(*SPEEDS.end()),
                Some(b'-') => self.speed = (self.speed / 2.0).max(*SPEEDS.start()),
                // The last letters of the arrows' sequences.
                Some(b'C') => {
                    (self.hurry, self.paused) = (self.now + SKIP, false);
                    break;
                }
                Some(b'D') => {
                    self.paused = false;
                    return Ok(Next::Back(self.now.saturating_sub(SKIP)));
                }
                Some(b'q' | 0x03 | 0x04) => return Ok(Next::End),
                _ => {}
            }
            if timeout.is_some() {
                left = left.saturating_sub(began.elapsed());
            }
        }
        self.now = self.now.max(at);
        Ok(Next::On)
    }

    /// A key, if one is pressed in time.
    fn key(&self, timeout: Option<Duration>) -> io::Result<Option<u8>> {
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let Some(keys) = &self.keys else {
            poll(&mut [], timeout.as_ref())?;
            return Ok(None);
        };
        let mut wanted = [PollFd::new(keys, PollFlags::IN)];
        if poll(&mut wanted, timeout.as_ref())? == 0 {
            return Ok(None);
        }
        let mut key = [0];
        // An end of the keyboard is one of the playing.
        let read = rustix::io::read(keys.as_fd(), &mut key)?;
        Ok(Some(if read == 0 { b'q' } else { key[0] }))
    }

    fn show(&mut self, piece: Piece<'_>, tty: bool) -> Result<(), Error> {
        let raw = self.keys.is_some();
        let end = if raw { "\r\n" } else { "\n" };
        let mut shown = Vec::new();
        match piece.kind {
            // The client saw both, and in this order.
            Kind::Stdout | Kind::Told if tty => self.filter.push(piece.bytes, &mut shown),
            Kind::Typed => {
                let keys = carets(piece.bytes);
                shown.extend_from_slice(format!("{end}[podgate hung up: {keys}]{end}").as_bytes());
            }
            Kind::Stdin if tty || self.flags.no_input => {}
            Kind::Stdin | Kind::Stdout | Kind::Stderr => {
                let channel = piece.kind as usize - Kind::Stdin as usize;
                self.lines[channel].push(piece.at, piece.bytes, &mut |at, line| {
                    shown.extend_from_slice(labelled(at, channel, line, raw).as_bytes());
                });
            }
            Kind::Gap => {
                let text = plain(&String::from_utf8_lossy(piece.bytes));
                shown.extend_from_slice(format!("{end}[podgate: {text}]{end}").as_bytes());
            }
            Kind::Connection => {
                let Ok(Connection { connection, port, open, up, down, error }) =
                    serde_json::from_slice(piece.bytes)
                else {
                    return Ok(());
                };
                let state = if open { "opened" } else { "closed" };
                let error = if error.is_empty() { error } else { format!(": {}", plain(&error)) };
                let at = piece.at.as_secs_f64();
                let text = format!(
                    "{at:>10.3} s  connection {connection} to port {port} {state}, {up} bytes up, {down} down{error}{end}"
                );
                shown.extend_from_slice(text.as_bytes());
            }
            Kind::Result | Kind::Resize | Kind::StdinEnd | Kind::Withheld | Kind::Told => {}
        }
        self.out.write_all(&shown).map_err(Error::Write)
    }

    /// The terminal as it was.
    fn reset(&mut self, tty: bool) -> Result<(), Error> {
        let mut out = Vec::new();
        if tty && self.flags.terminal {
            self.filter.finish(&mut out);
            out.extend_from_slice(b"\r\n");
        }
        self.lines = Default::default();
        self.out.write_all(&out).and_then(|()| self.out.flush()).map_err(Error::Write)
    }
}

fn labelled(at: Duration, channel: usize, line: &str, raw: bool) -> String {
    let label = ["in", "out", "err"][channel];
    format!("{:>10.3} s  {label:<3}  {}{}", at.as_secs_f64(), plain(line), if raw { "\r\n" } else { "\n" })
}

// === impl Raw ===

impl Raw {
    fn new(stdin: &io::Stdin) -> Option<Self> {
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
