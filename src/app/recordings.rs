//! Recordings: the faces for auditors, over a folder, an object store or one file.
//!
//! What is shown in a terminal is plain text. A recording is believed when a key that was named signed it, and read
//! without one only where the flag for that says so.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp, Zoned, civil};
use serde_json::json;

use crate::cli;
use crate::config;
use crate::recording::container::{self, Reader, Trust};
use crate::recording::facts::Facts;
use crate::recording::keys::{self, Identity, SigningKey, VerifyingKey};
use crate::recording::library::{self, Entry, Library, Shelf};
use crate::recording::safe::plain;
use crate::recording::search::{Filter, Hit, Needle, Verdict, place};
use crate::recording::text::Lines;
use crate::recording::{card::Card, cast};
use crate::telemetry;
use crate::wire::tape::{self, Kind};

/// Exit code for a recording that is not as it was written, and for all else that fails.
const FAILED: u8 = 1;

/// Exit code for what cannot be done as it was asked.
const USAGE: u8 = 2;

/// Exit code for a recording whose end is missing, as podgate itself found it.
pub(super) const CUT: u8 = 3;

/// What is in the way.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No place was named.
    #[error("name a store with --store, or settings that have one with --config")]
    NoStore,
    /// Settings that cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A flag that cannot be understood.
    #[error("{flag}: {text:?} is no time; write 2026-01-31, 2026-01-31T12:00:00Z, 3h or 2d")]
    Time {
        /// The flag.
        flag: &'static str,
        /// Its value.
        text: String,
    },
    /// The store.
    #[error(transparent)]
    Library(#[from] library::Error),
    /// A key.
    #[error(transparent)]
    Key(#[from] keys::Error),
    /// Nothing to verify with.
    #[error("name the public key with --key, or read what nothing proves with --danger-unverified")]
    NoKey,
    /// No such recording.
    #[error("there is no recording {0:?}, neither a file nor in the store")]
    Unknown(String),
    /// Several.
    #[error("there is more than one recording that begins with {0:?}")]
    Ambiguous(String),
    /// It cannot be opened.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not as podgate wrote it, or not for this reader.
    #[error("read the recording")]
    Recording(#[source] container::Error),
    /// It is not the one that was asked for.
    #[error("the recording is not that of its card: one of them was changed or put there for the other")]
    Swapped,
    /// Whatever is in there would be up to the terminal.
    #[error("only text goes to a terminal: export into a file or a pipe, or with --format text")]
    Terminal,
    /// Not what was asked for.
    #[error("it is no recording of a terminal, so there is no cast of it; export its channels")]
    NoTerminal,
    /// Encrypted.
    #[error("it is encrypted; name the private key of a recipient with --identity")]
    Encrypted,
    /// Nothing to look for.
    #[error(
        "say what to look for: --typed, --text, or one of --user, --namespace, --pod, --since, --until, --exit-code"
    )]
    NoNeedle,
    /// Nobody reads what is written.
    #[error("write what was found")]
    Write(#[source] io::Error),
    /// The work was given up.
    #[error("read a recording")]
    Stopped(#[source] tokio::task::JoinError),
}

/// Keys of an auditor.
#[derive(Debug, Clone, Default)]
pub(super) struct Keyring {
    /// `None`: whoever made it is believed.
    verifying: Option<Vec<VerifyingKey>>,
    pub(super) identities: Vec<Identity>,
}

/// A recording that was asked for.
#[derive(Debug, Clone)]
pub(super) enum Place {
    File(PathBuf),
    Stored(Library, Box<Entry>),
}

// === impl Error ===

impl Error {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Recording(container::Error::Read(_) | container::Error::NotARecording)
            | Self::NoStore
            | Self::Config(_)
            | Self::Time { .. }
            | Self::Library(_)
            | Self::Key(_)
            | Self::NoKey
            | Self::Unknown(_)
            | Self::Ambiguous(_)
            | Self::Open { .. }
            | Self::Terminal
            | Self::NoTerminal
            | Self::Encrypted
            | Self::NoNeedle => USAGE,
            Self::Recording(_) | Self::Swapped | Self::Write(_) | Self::Stopped(_) => FAILED,
        }
    }
}

/// Runs one of `podgate recordings`.
///
/// # Errors
/// When it cannot be done.
pub async fn run(command: &cli::Recordings) -> Result<u8, Error> {
    match command {
        cli::Recordings::List(flags) => list(flags).await,
        cli::Recordings::Show(flags) => show(flags).await,
        cli::Recordings::Search(flags) => search(flags).await,
        cli::Recordings::Export(flags) => export(flags).await,
    }
}

async fn list(flags: &cli::List) -> Result<u8, Error> {
    let filter = filter(&flags.which)?;
    let shelf = shelf(&library(&flags.store)?, &flags.which).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    let wide = flags.output == cli::Output::Wide;
    let mut rows = Vec::new();
    for Entry { card, size, path, .. } in shelf.entries.iter().filter(|entry| filter.takes(&entry.card)) {
        match flags.output {
            cli::Output::Json => {
                let Card { facts, ending, .. } = card;
                let line = json!({"path": path.as_ref(), "size": size, "facts": facts, "ending": ending});
                writeln!(out, "{line}").map_err(Error::Write)?;
            }
            _ => rows.push(row(card, *size, wide)),
        }
    }
    if flags.output != cli::Output::Json {
        let mut head = vec!["STARTED", "ID", "USER", "WHERE", "WHAT", "LASTED", "EXIT"];
        if wide {
            head.extend(["REASON", "NODE", "CLIENT", "RULE", "SIZE", "NOTES"]);
        }
        table(&mut out, &head, &rows).map_err(Error::Write)?;
    }
    out.flush().map_err(Error::Write)?;
    Ok(complain(&shelf))
}

async fn show(flags: &cli::Show) -> Result<u8, Error> {
    let keyring = Keyring::of(&flags.reading, true)?;
    let proven = keyring.verifying.is_some();
    let found = Place::find(&flags.what, &flags.reading.store).await?;
    let read = found.open().await?;
    let (facts, details, ending, encrypted, problem) = blocking(move || {
        let mut reader = keyring.reader(read, found.facts())?;
        let problem = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let (details, ending) = (reader.details().cloned(), reader.ending().cloned());
        Ok((reader.facts().clone(), details, ending, reader.is_encrypted(), problem))
    })
    .await?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut line =
        |name: &str, value: &str| writeln!(out, "{name:<12}{}", plain(value)).map_err(Error::Write);
    line("id", &facts.id)?;
    line("audit id", &facts.audit_id)?;
    line("started", &facts.started.to_string())?;
    line("user", &who(&facts))?;
    line("groups", &facts.groups.join(", "))?;
    line("client", &facts.client)?;
    line("what", &what(&facts))?;
    line("where", &format!("{} on {}", place(&facts), facts.node))?;
    line("rule", &facts.rule)?;
    match &details {
        Some(details) => line("command", &format!("{:?}", details.command))?,
        None => line("command", "(encrypted)")?,
    }
    if let Some(ending) = &ending {
        line("lasted", &format!("{:.3} s", ending.seconds))?;
        let code = ending.exit_code.map_or_else(String::new, |code| format!(", exit code {code}"));
        line("ended", &format!("{}{code}", ending.reason))?;
        let moved = serde_json::to_string(&ending.moved).unwrap_or_default();
        line("bytes", &moved)?;
        for gap in &ending.gaps {
            line(
                "missing",
                &format!("{} bytes, {:.3} s to {:.3} s: {}", gap.bytes, gap.from, gap.to, gap.cause),
            )?;
        }
        for typed in &ending.typed {
            line("typed", &format!("{:>10.3} s  {}", typed.at, typed.line))?;
        }
    }
    let cut = ending.as_ref().is_some_and(|ending| ending.cut);
    let proof = match (&problem, proven) {
        (Some(error), _) => telemetry::chain(error),
        (None, false) => "whole, but signed by nobody knows whom: no --key was given".to_owned(),
        (None, true) if cut => "as recorded up to where podgate was killed; the end is missing".to_owned(),
        (None, true) => "whole, and signed with a key that was given".to_owned(),
    };
    line("proof", &proof)?;
    if encrypted {
        line("encrypted", "for its recipients")?;
    }
    out.flush().map_err(Error::Write)?;
    Ok(match problem {
        Some(_) => FAILED,
        None if cut => CUT,
        None => 0,
    })
}

async fn search(flags: &cli::Search) -> Result<u8, Error> {
    let (filter, needle) =
        (filter(&flags.which)?, Needle { typed: flags.typed.clone(), text: flags.text.clone() });
    if needle.is_empty() && filter == Filter::default() {
        return Err(Error::NoNeedle);
    }
    let keyring = Keyring::of(&flags.reading, true)?;
    let library = library(&flags.reading.store)?;
    let shelf = shelf(&library, &flags.which).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut found, mut unread, mut sealed) = (0, 0, 0);
    for entry in shelf.entries.iter().filter(|entry| filter.takes(&entry.card)) {
        let Entry { card, path, .. } = entry;
        let hits = match needle.ask(card, &keyring.identities) {
            Verdict::No => continue,
            Verdict::Hits(hits) => hits,
            Verdict::Open(_) => match look(&library, entry, &keyring, &needle).await {
                Ok(hits) if hits.is_empty() => continue,
                Ok(hits) => hits,
                Err(Error::Recording(container::Error::NotForYou)) => {
                    sealed += 1;
                    continue;
                }
                Err(error) => {
                    eprintln!("podgate: {}: {}", plain(path.as_ref()), plain(&telemetry::chain(&error)));
                    unread += 1;
                    continue;
                }
            },
        };
        if flags.limit > 0 && found == flags.limit {
            eprintln!("podgate: there is more than the newest {found} recordings; --limit shows more");
            break;
        }
        found += 1;
        tell(&mut out, card, path, &hits, flags.output).map_err(Error::Write)?;
    }
    out.flush().map_err(Error::Write)?;
    if sealed > 0 {
        eprintln!("podgate: {sealed} recordings are encrypted for others and could not be searched");
    }
    let complained = complain(&shelf);
    Ok(if unread > 0 { FAILED } else { complained })
}

/// Looks into a recording.
async fn look(
    library: &Library,
    entry: &Entry,
    keyring: &Keyring,
    needle: &Needle,
) -> Result<Vec<Hit>, Error> {
    let read = library.read(&entry.path).await?;
    let (facts, keyring, needle) = (entry.card.facts.clone(), keyring.clone(), needle.clone());
    blocking(move || {
        let reader = keyring.reader(read, Some(&facts))?;
        needle.search(reader).map_err(Error::Recording)
    })
    .await
}

async fn export(flags: &cli::Export) -> Result<u8, Error> {
    let keyring = Keyring::of(&flags.reading, false)?;
    let (format, channel) = (flags.format, kind(flags.channel));
    if format != cli::Format::Text && io::stdout().is_terminal() {
        return Err(Error::Terminal);
    }
    let found = Place::find(&flags.what, &flags.reading.store).await?;
    let read = found.open().await?;
    blocking(move || {
        let mut reader = keyring.reader(read, found.facts())?;
        let details = reader.details().cloned().ok_or(Error::Encrypted)?;
        let facts = reader.facts().clone();
        if format == cli::Format::Cast && !facts.tty {
            return Err(Error::NoTerminal);
        }
        let mut cast = cast::Writer::new(&facts, &details);
        let (mut lines, mut buffer) = (Lines::default(), Vec::new());
        let mut out = BufWriter::new(io::stdout().lock());
        while let Some(chunk) = reader.next().map_err(Error::Recording)? {
            let tape = chunk.tape.ok_or(Error::Encrypted)?;
            buffer.clear();
            if format == cli::Format::Cast {
                cast.write(tape::pieces(&tape), &mut buffer);
            }
            let mut rest = &tape[..];
            // Pieces were looked at when the chunk was read.
            while let Ok(Some(piece)) = tape::next(&mut rest) {
                match format {
                    _ if piece.kind != channel => {}
                    cli::Format::Cast => {}
                    cli::Format::Raw => buffer.extend_from_slice(piece.bytes),
                    cli::Format::Text => lines.push(piece.at, piece.bytes, &mut |_, line| {
                        buffer.extend_from_slice(plain(line).as_bytes());
                        buffer.push(b'\n');
                    }),
                }
            }
            out.write_all(&buffer).map_err(Error::Write)?;
        }
        if format == cli::Format::Text {
            let mut last = String::new();
            lines.finish(&mut |_, line| last = format!("{}\n", plain(line)));
            out.write_all(last.as_bytes()).map_err(Error::Write)?;
        }
        out.flush().map_err(Error::Write)?;
        Ok(if reader.ending().is_some_and(|ending| ending.cut) { CUT } else { 0 })
    })
    .await
}

/// Runs what blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Stopped)?
}

pub(super) fn kind(channel: cli::Channel) -> Kind {
    match channel {
        cli::Channel::Stdin => Kind::Stdin,
        cli::Channel::Stdout => Kind::Stdout,
        cli::Channel::Stderr => Kind::Stderr,
    }
}

fn settings(flags: &cli::Store) -> Result<Option<config::Recording>, Error> {
    Ok(flags.config.as_deref().map(config::Recording::from_file).transpose()?)
}

fn library(flags: &cli::Store) -> Result<Library, Error> {
    if let Some(store) = &flags.store {
        return Ok(Library::open(store, None)?);
    }
    let recording = settings(flags)?.unwrap_or_default();
    let dir = recording.spool.dir.map(|dir| dir.display().to_string());
    let config::recording::Store { url, options_file } = recording.store;
    Ok(Library::open(&url.or(dir).ok_or(Error::NoStore)?, options_file.as_deref())?)
}

async fn shelf(library: &Library, which: &cli::Which) -> Result<Shelf, Error> {
    let cache = library.cache().filter(|_| !which.no_cache);
    Ok(library.list(cache.as_deref()).await?)
}

/// Says what could not be read, and the exit code for that.
fn complain(shelf: &Shelf) -> u8 {
    for (name, error) in &shelf.broken {
        eprintln!("podgate: {}: {}", plain(name), plain(&telemetry::chain(error)));
    }
    if shelf.broken.is_empty() { 0 } else { FAILED }
}

fn filter(which: &cli::Which) -> Result<Filter, Error> {
    let time = |flag, text: &Option<String>| {
        let parsed = text.as_ref().map(|text| time(text).ok_or(Error::Time { flag, text: text.clone() }));
        parsed.transpose()
    };
    Ok(Filter {
        user: which.user.clone(),
        namespace: which.namespace.clone(),
        pod: which.pod.clone(),
        since: time("--since", &which.since)?,
        until: time("--until", &which.until)?,
        exit_code: which.exit_code,
    })
}

/// A point in time, a day or a time of a day here, or so long ago.
fn time(text: &str) -> Option<Timestamp> {
    let here = |time: civil::DateTime| time.to_zoned(jiff::tz::TimeZone::system()).ok();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    if let Ok(time) = text.parse::<civil::DateTime>() {
        return here(time).map(|time| time.timestamp());
    }
    let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<i64>().ok());
    let ago = match days {
        Some(days) => SignedDuration::from_hours(days.checked_mul(24)?),
        None => text.parse::<SignedDuration>().ok()?,
    };
    Zoned::now().timestamp().checked_sub(ago.abs()).ok()
}

fn who(facts: &Facts) -> String {
    match facts.impersonator.as_str() {
        "" => facts.user.clone(),
        impersonator => format!("{} (by {impersonator})", facts.user),
    }
}

fn what(facts: &Facts) -> String {
    format!("{}{}", facts.subresource, if facts.tty { " tty" } else { "" })
}

fn row(card: &Card, size: u64, wide: bool) -> Vec<String> {
    let Card { facts, ending, .. } = card;
    let mut row = vec![
        facts.started.to_string().chars().take(19).collect::<String>() + "Z",
        plain(&facts.id),
        plain(&who(facts)),
        place(facts),
        plain(&what(facts)),
        format!("{:.0}s", ending.seconds),
        ending.exit_code.map_or("-".to_owned(), |code| code.to_string()),
    ];
    if wide {
        let mut notes = Vec::new();
        notes.extend(ending.cut.then_some("cut"));
        notes.extend((!ending.gaps.is_empty()).then_some("gaps"));
        notes.extend(card.is_sealed().then_some("encrypted"));
        let [reason, node, client, rule] =
            [&ending.reason, &facts.node, &facts.client, &facts.rule].map(|text| plain(text));
        row.extend([reason, node, client, rule, size.to_string(), notes.join(",")]);
    }
    row
}

fn table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

fn tell(
    out: &mut impl Write,
    card: &Card,
    path: &object_store::path::Path,
    hits: &[Hit],
    output: cli::Output,
) -> io::Result<()> {
    if output == cli::Output::Json {
        let Card { facts, ending, .. } = card;
        return writeln!(
            out,
            "{}",
            json!({"path": path.as_ref(), "facts": facts, "ending": ending, "hits": hits})
        );
    }
    writeln!(out, "{}", row(card, 0, false).join("  "))?;
    for Hit { at, channel, line } in hits {
        writeln!(out, "    {at:>10.3} s  {channel:<7}  {line}")?;
    }
    Ok(())
}

// === impl Keyring ===

impl Keyring {
    /// Reads the keys. Where nothing says whom to believe, `lenient` is for faces that say so in what they show.
    pub(super) fn of(flags: &cli::Reading, lenient: bool) -> Result<Self, Error> {
        let mut verifying: Vec<VerifyingKey> =
            flags.key.iter().map(|path| VerifyingKey::from_file(path)).collect::<Result<_, _>>()?;
        if let Some(path) = settings(&flags.store)?.and_then(|recording| recording.signing_key_file)
            && flags.key.is_empty()
            && !flags.danger_unverified
        {
            verifying.push(SigningKey::from_file(&path)?.verifying().clone());
        }
        let identities =
            flags.identity.iter().map(|path| Identity::from_file(path)).collect::<Result<_, _>>()?;
        let anyone = flags.danger_unverified || verifying.is_empty();
        if verifying.is_empty() && !flags.danger_unverified && !lenient {
            return Err(Error::NoKey);
        }
        Ok(Self { verifying: (!anyone).then_some(verifying), identities })
    }

    /// Opens a recording, that of this card if one led there.
    pub(super) fn reader<R: Read>(&self, read: R, card: Option<&Facts>) -> Result<Reader<R>, Error> {
        let trust = self.verifying.as_deref().map_or(Trust::Anyone, Trust::Keys);
        let reader = Reader::open(read, trust, &self.identities).map_err(Error::Recording)?;
        if card.is_some_and(|facts| facts != reader.facts()) {
            return Err(Error::Swapped);
        }
        Ok(reader)
    }
}

// === impl Place ===

impl Place {
    /// A file of this name, or the recording of this id, of which the beginning is enough.
    pub(super) async fn find(what: &str, store: &cli::Store) -> Result<Self, Error> {
        let path = PathBuf::from(what);
        if path.is_file() {
            return Ok(Self::File(path));
        }
        let library = match library(store) {
            Err(Error::NoStore) => return Err(Error::Unknown(what.to_owned())),
            library => library?,
        };
        let shelf = library.list(library.cache().as_deref()).await?;
        let mut same = shelf.entries.into_iter().filter(|entry| entry.card.facts.id.starts_with(what));
        match (same.next(), same.next()) {
            (Some(entry), None) => Ok(Self::Stored(library, Box::new(entry))),
            (None, _) => Err(Error::Unknown(what.to_owned())),
            (Some(_), Some(_)) => Err(Error::Ambiguous(what.to_owned())),
        }
    }

    /// The file; reading it blocks.
    pub(super) async fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        match self {
            Self::File(path) => {
                let open = File::open(path).map_err(|source| Error::Open { path: path.clone(), source });
                Ok(Box::new(open?))
            }
            Self::Stored(library, entry) => Ok(library.read(&entry.path).await?),
        }
    }

    /// What the recording has to be about, where its card was believed so far.
    pub(super) fn facts(&self) -> Option<&Facts> {
        match self {
            Self::File(_) => None,
            Self::Stored(_, entry) => Some(&entry.card.facts),
        }
    }
}
