use std::fs::{self, File};
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Condvar, Mutex};
use std::task::Poll;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tokio_util::sync::PollSender;

use super::*;
use crate::recording::container::{Reader, Trust};
use crate::recording::facts::Ending;
use crate::recording::keys::SigningKey;
use crate::telemetry::EndReason;
use crate::testing::{recordings, soon, until};
use crate::wire::remotecommand::StreamType;
use crate::wire::tap::Tap;
use crate::wire::tape::Kind;

mod store;

/// A disk that does what a test says.
#[derive(Clone, Default)]
struct TestDisk(Arc<(Mutex<State>, Condvar)>, Arc<AtomicUsize>);

#[derive(Clone, Copy, Default, PartialEq)]
enum State {
    #[default]
    Works,
    /// Takes a half of what it is given, and has no room for the rest.
    Full,
    /// Takes nothing until it does something else.
    Hangs,
    /// Takes nothing past the page cache.
    Cached,
}

impl TestDisk {
    fn is(&self, state: State) {
        *self.0.0.lock().unwrap() = state;
        self.0.1.notify_all();
    }

    /// Bytes that went past the page cache.
    fn direct(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }
}

impl Disk for TestDisk {
    fn write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let state = self.0.1.wait_while(self.0.0.lock().unwrap(), |state| *state == State::Hangs).unwrap();
        if *state == State::Full {
            file.write_all_at(&bytes[..bytes.len() / 2], at)?;
            return Err(Errno::NOSPC.into());
        }
        let direct = fcntl_getfl(file)?.contains(OFlags::DIRECT);
        if direct && *state == State::Cached {
            return Err(Errno::INVAL.into());
        }
        file.write_all_at(bytes, at)?;
        self.1.fetch_add(if direct { bytes.len() } else { 0 }, Ordering::Relaxed);
        Ok(())
    }
}

/// Recordings on a disk that does what a test says.
struct Rig {
    folder: TempDir,
    disk: TestDisk,
    drain: Drain,
    metrics: Metrics,
    key: SigningKey,
    recordings: Recordings,
}

impl Rig {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap(), SigningKey::generate().unwrap(), None, 1 << 30)
    }

    fn at(folder: TempDir, key: SigningKey, store: Option<Store>, max_bytes: u64) -> Self {
        let (disk, drain, metrics) = (TestDisk::default(), Drain::new(), Metrics::new());
        let keys = Keys { signing: key.clone(), recipients: Vec::new() };
        let settings = Settings { dir: folder.path().join("spool"), max_bytes, keys, store };
        let recordings = Recordings::start_on(disk.clone(), settings, &drain, &metrics).unwrap();
        Self { folder, disk, drain, metrics, key, recordings }
    }

    /// As after a restart.
    async fn again(self, store: Option<Store>) -> Self {
        let Self { folder, key, drain, recordings, .. } = self;
        drop(recordings);
        soon("the end of its tasks", drain.finish(Duration::ZERO)).await;
        Self::at(folder, key, store, 1 << 30)
    }

    async fn begin(&self, facts: Facts, strict: bool) -> Result<Recorder, record::Error> {
        let begin = Begin { facts, details: Details::default(), strict };
        soon("the beginning", Recorder::begin(&self.recordings, begin)).await
    }

    /// The names in the spool.
    fn names(&self) -> Vec<String> {
        names(&self.folder.path().join("spool"))
    }

    fn outcome(&self, outcome: &str) -> u64 {
        self.metrics.recording.closed.with_label_values(&[outcome]).get()
    }

    /// The only recording there is.
    fn only(&self) -> Read {
        let names = self.names();
        let [name] = &names.iter().filter(|name| name.ends_with(".zst")).collect::<Vec<_>>()[..] else {
            panic!("one recording: {names:?}")
        };
        read(&self.folder.path().join("spool").join(name), &self.key)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| name != "lock" && name != "unreadable" && name != "probe");
    names.sort();
    names
}

/// Each of another session, of the day by which the store has its path.
fn facts(tty: bool) -> Facts {
    let started = "2026-03-04T05:06:07Z".parse().unwrap();
    Facts { id: uuid::Uuid::new_v4().to_string(), started, ..recordings::facts(tty) }
}

/// A recording, as its reader has it.
#[derive(Debug)]
struct Read {
    pieces: Vec<(Kind, Vec<u8>)>,
    ending: Ending,
}

impl Read {
    fn of(&self, wanted: Kind) -> Vec<u8> {
        let pieces = self.pieces.iter().filter(|(kind, _)| *kind == wanted);
        pieces.flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }
}

/// Bytes of stdout that are proven in what is there of a recording.
fn written(path: &Path) -> usize {
    let Ok(mut reader) = Reader::open(File::open(path).unwrap(), Trust::Anyone, &[]) else { return 0 };
    while let Ok(Some(_)) = reader.next() {}
    usize::try_from(reader.so_far().moved.stdout).unwrap()
}

fn read(path: &Path, key: &SigningKey) -> Read {
    let trusted = [key.verifying().clone()];
    let mut reader = Reader::open(File::open(path).unwrap(), Trust::Keys(&trusted), &[]).unwrap();
    Read { pieces: recordings::pieces(&mut reader), ending: reader.ending().unwrap().clone() }
}

/// A session's tap, and what a session does with it.
struct Session {
    tap: Tap,
    recorder: Recorder,
    drain: Drain,
}

impl Session {
    fn of(recorder: Recorder) -> Self {
        let mut tap = Tap::default();
        tap.record();
        recorder.keep();
        Self { tap, recorder, drain: Drain::new() }
    }

    /// Says something, and waits until the recorder lets it read on.
    async fn says(&mut self, channel: StreamType, bytes: &[u8]) -> Result<(), String> {
        let Self { tap, recorder, .. } = self;
        tap.tape().unwrap().at(recorder.began().elapsed());
        tap.pass(channel, bytes);
        soon("room", poll_fn(|cx| recorder.poll(cx, tap.tape().unwrap()))).await
    }

    /// Says nothing until the recorder has taken what there is, or has failed.
    async fn rests(&mut self) -> Result<(), String> {
        loop {
            let Self { tap, recorder, .. } = self;
            let tape = tap.tape().unwrap();
            let failed = poll_fn(|cx| match recorder.poll(cx, tape) {
                Poll::Ready(Err(why)) => Poll::Ready(Some(why)),
                _ if tape.is_empty() => Poll::Ready(None),
                _ => Poll::Pending,
            });
            // The clock of a session asks again when it is due; here it is often enough.
            match timeout(Duration::from_millis(200), failed).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) => return Err(why),
                Err(_) => {}
            }
        }
    }

    /// Says nothing until the recording has failed.
    async fn fails(&mut self) -> String {
        let handed = self.rests().await;
        let Self { tap, recorder, .. } = self;
        let failure = poll_fn(|cx| match recorder.poll(cx, tap.tape().unwrap()) {
            Poll::Ready(Err(why)) => Poll::Ready(why),
            _ => Poll::Pending,
        });
        match handed {
            Err(why) => why,
            Ok(()) => soon("the failure", failure).await,
        }
    }

    async fn ends(mut self) -> Option<record::Done> {
        self.recorder.finish(&mut self.tap, EndReason::FarClosed, false, &self.drain).await
    }
}

const OUT: StreamType = StreamType::Stdout;

/// Bytes that do not compress well.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[tokio::test]
async fn what_a_session_said_is_in_its_recording_when_it_is_over() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
    let said = noise(1_000_000, 1);
    for part in said.chunks(60_000) {
        session.says(OUT, part).await.unwrap();
    }
    session.says(StreamType::Stdin, b"typed").await.unwrap();
    let result = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
    session.says(StreamType::Error, result).await.unwrap();
    let done = session.ends().await.unwrap();
    let read = rig.only();
    assert!(read.of(Kind::Stdout) == said && read.of(Kind::Stdin) == b"typed");
    assert_eq!(read.of(Kind::Result), result);
    assert_eq!(read.ending, done.ending);
    assert_eq!((read.ending.exit_code, read.ending.reason.as_str()), (Some(7), "far_closed"));
    assert_eq!((read.ending.moved.stdout, read.ending.moved.stdin), (1_000_000, 5));
    let spool = rig.folder.path().join("spool");
    assert_eq!(rig.names(), [format!("{}.json", done.id), format!("{}.tape.zst", done.id)]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&spool), 0o700);
    for name in rig.names() {
        assert_eq!(mode(&spool.join(name)), 0o600);
    }
    let bytes: u64 = rig.names().iter().map(|name| fs::metadata(spool.join(name)).unwrap().len()).sum();
    assert_eq!(rig.metrics.recording.spool.get(), i64::try_from(bytes).unwrap());
    assert_eq!(rig.outcome("whole"), 1);
}

#[tokio::test]
async fn bulk_goes_past_the_page_cache_where_that_is_possible_and_is_whole_either_way() {
    for (state, past) in [(State::Works, true), (State::Cached, false)] {
        let rig = Rig::new();
        rig.disk.is(state);
        let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
        let said = noise(4_000_000, 3);
        for part in said.chunks(60_000) {
            session.says(OUT, part).await.unwrap();
        }
        session.rests().await.unwrap();
        session.says(OUT, b"and a little").await.unwrap();
        session.rests().await.unwrap();
        for part in said.chunks(60_000) {
            session.says(OUT, part).await.unwrap();
        }
        session.ends().await.unwrap();
        assert!(rig.only().of(Kind::Stdout) == [&said[..], b"and a little", &said].concat(), "{past}");
        assert_eq!(rig.disk.direct() > said.len(), past, "{} bytes", rig.disk.direct());
    }
}

#[tokio::test]
async fn in_a_terminal_only_what_it_shows_of_the_keys_is_recorded() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(true), true).await.unwrap());
    for (channel, bytes) in [
        (OUT, "$ "),
        (StreamType::Stdin, "su\r"),
        (OUT, "su\r\nPassword: "),
        (StreamType::Stdin, "s3cret\r"),
        (OUT, "\r\n# "),
    ] {
        session.says(channel, bytes.as_bytes()).await.unwrap();
    }
    session.ends().await.unwrap();
    let read = rig.only();
    assert_eq!(read.of(Kind::Stdin), b"su\r\r");
    assert_eq!(read.of(Kind::Withheld), b"6");
    assert_eq!(read.of(Kind::Stdout), b"$ su\r\nPassword: \r\n# ");
}

#[tokio::test]
async fn what_became_no_session_leaves_nothing_and_what_did_always_something() {
    let rig = Rig::new();
    let recorder = rig.begin(facts(false), true).await.unwrap();
    assert_eq!(rig.names().len(), 1);
    drop(recorder);
    until("it is gone", || rig.names().is_empty() && rig.metrics.recording.spool.get() == 0).await;
    assert_eq!(rig.outcome("discarded"), 1);

    let session = Session::of(rig.begin(facts(false), true).await.unwrap());
    drop(session);
    until("it is closed", || rig.outcome("whole") == 1).await;
    assert_eq!(rig.only().ending.reason, "aborted");
}

#[tokio::test]
async fn a_spool_that_is_full_lets_no_strict_session_begin_and_every_tolerant_one() {
    let rig = Rig::new();
    rig.disk.is(State::Full);
    let error = rig.begin(facts(false), true).await.err().unwrap();
    let refusal = error.refusal();
    assert_eq!(refusal.code(), 503);
    let text = refusal.message();
    assert!(text.starts_with("this session has to be recorded, and cannot be: No space left"), "{text}");
    assert!(rig.names().is_empty() && !rig.recordings.is_writable());

    let mut session = Session::of(rig.begin(facts(false), false).await.unwrap());
    let (lost, kept) = (noise(600_000, 2), noise(600_000, 3));
    session.says(OUT, &lost).await.unwrap();
    session.says(OUT, &lost).await.unwrap();
    let gaps = || rig.metrics.recording.gaps.get();
    // Both have been given up when there is room for a third.
    session.says(OUT, b"x").await.unwrap();
    session.rests().await.unwrap();
    rig.disk.is(State::Works);
    session.says(OUT, &kept).await.unwrap();
    session.ends().await.unwrap();
    let read = rig.only();
    assert!(read.of(Kind::Stdout).ends_with(&kept));
    assert_eq!((gaps(), read.ending.gaps.len(), rig.outcome("gap")), (1, 1, 1));
    let [gap] = &read.ending.gaps[..] else { panic!("one gap") };
    assert!(gap.bytes >= 600_000 && gap.cause.contains("No space left"), "{gap:?}");
    let mark = String::from_utf8(read.of(Kind::Gap)).unwrap();
    assert!(mark.contains("could not be recorded: No space left"), "{mark}");
    assert!(rig.recordings.is_writable());
}

#[tokio::test]
async fn a_strict_session_ends_within_two_seconds_when_its_recording_fails_and_what_it_had_said_is_kept() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
    let said = noise(600_000, 4);
    session.says(OUT, &said).await.unwrap();
    let part = rig.folder.path().join("spool").join(&rig.names()[0]);
    until("it is written", || written(&part) == said.len()).await;
    rig.disk.is(State::Full);
    let start = Instant::now();
    session.says(OUT, b"more").await.unwrap();
    let why = session.fails().await;
    assert!(why.contains("No space left"), "{why}");
    assert!(start.elapsed() < Duration::from_secs(2));
    let drain = session.drain.clone();
    drain.cut();
    assert_eq!(session.ends().await, None, "it cannot be closed, and its session does not wait for that");
    rig.disk.is(State::Works);
    until("there is room to close it", || rig.outcome("whole") == 1).await;
    assert!(rig.only().of(Kind::Stdout) == [&said[..], b"more"].concat());
}

#[tokio::test]
async fn a_slow_disk_slows_the_session_and_no_byte_is_lost() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
    rig.disk.is(State::Hangs);
    let part = noise(64 * 1024, 5);
    let mut said = 0;
    // Until it is full: one chunk is written, a large one waits, and one is on the tape.
    loop {
        session.tap.pass(OUT, &part);
        said += 1;
        let Session { tap, recorder, .. } = &mut session;
        let room = poll_fn(|cx| recorder.poll(cx, tap.tape().unwrap()));
        if timeout(Duration::from_millis(100), room).await.is_err() {
            break;
        }
        assert!(said < 100, "what is not written is bounded");
    }
    rig.disk.is(State::Works);
    for _ in 0..20 {
        session.says(OUT, &part).await.unwrap();
        said += 1;
    }
    assert!(rig.metrics.recording.wait.get() >= 0.1);
    session.ends().await.unwrap();
    assert!(rig.only().of(Kind::Stdout) == part.repeat(said));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_ends_a_strict_session_and_leaves_a_gap_in_a_tolerant_one() {
    for strict in [true, false] {
        let rig = Rig::new();
        let mut session = Session::of(rig.begin(facts(false), strict).await.unwrap());
        // A thread that blocks holds the clock still, so the chunk that it blocks on is one that nobody takes.
        let (full, _held) = tokio::sync::mpsc::channel(1);
        full.try_send(record::Order::default()).unwrap();
        let working = session.recorder.replace_channel(PollSender::new(full));
        session.tap.pass(OUT, &noise(600_000, 6));
        let start = Instant::now();
        let ended = session.rests().await;
        assert!(start.elapsed() >= Duration::from_secs(30) && start.elapsed() < Duration::from_secs(33));
        assert_eq!(ended.is_err(), strict, "{ended:?}");
        session.recorder.replace_channel(working);
        let done = session.ends().await.unwrap();
        assert_eq!(done.ending.gaps.len(), usize::from(!strict));
    }
}

#[tokio::test]
async fn closed_recordings_count_and_beyond_the_bound_nothing_begins_but_everything_ends() {
    let (folder, key) = (tempfile::tempdir().unwrap(), SigningKey::generate().unwrap());
    let rig = Rig::at(folder, key, None, 700_000);
    let mut other = Session::of(rig.begin(facts(false), true).await.unwrap());
    let mut session = Session::of(rig.begin(facts(false), false).await.unwrap());
    session.says(OUT, &noise(680_000, 7)).await.unwrap();
    session.ends().await.unwrap();
    // A head would still fit; a chunk does not.
    other.says(OUT, &noise(600_000, 8)).await.unwrap();
    let why = other.fails().await;
    assert!(why.contains("recording.spool.maxBytes"), "{why}");
    other.ends().await.unwrap();
    until("both are closed", || rig.outcome("whole") + rig.outcome("gap") == 2).await;
    let refused = rig.begin(facts(false), true).await.err().unwrap().refusal().message();
    assert!(refused.contains("recording.spool.maxBytes"), "{refused}");
}

#[tokio::test]
async fn what_a_killed_process_leaves_is_recovered_as_cut_and_what_cannot_be_read_is_kept() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(false), true).await.unwrap());
    let said = noise(600_000, 9);
    for part in said.chunks(100_000) {
        session.says(OUT, part).await.unwrap();
        session.rests().await.unwrap();
    }
    let spool = rig.folder.path().join("spool");
    let [name] = &rig.names()[..] else { panic!("one part") };
    until("all of it is written", || written(&spool.join(name)) == said.len()).await;
    let written = fs::read(spool.join(name)).unwrap();
    let whole = written.len();
    for cut in [whole, whole - 1, whole - 200_000, whole / 2] {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("spool");
        fs::create_dir(&left).unwrap();
        fs::write(left.join(name), &written[..cut]).unwrap();
        fs::write(left.join("empty.tape.zst.part"), b"").unwrap();
        fs::write(left.join("garbage.cast.zst.part"), b"not a recording").unwrap();
        let next = Rig::at(folder, rig.key.clone(), None, 1 << 30);
        until("it is recovered", || next.outcome("cut") == 1 && next.outcome("unreadable") == 1).await;
        let read = next.only();
        assert!(said.starts_with(&read.of(Kind::Stdout)) && read.ending.cut);
        assert_eq!(read.ending.reason, "crashed");
        assert_eq!(cut == whole, read.of(Kind::Stdout) == said, "whole chunks are kept");
        assert!(!read.of(Kind::Stdout).is_empty());
        assert_eq!(names(&next.folder.path().join("spool/unreadable")), ["garbage.cast.zst.part"]);
        assert_eq!(next.names().len(), 2, "a card and a recording: {:?}", next.names());
    }
}

#[tokio::test]
async fn a_spool_is_of_one_process_and_a_folder_that_cannot_be_one_is_told() {
    let rig = Rig::new();
    let open = |dir: &Path| {
        let keys = Keys { signing: rig.key.clone(), recipients: Vec::new() };
        let settings = Settings { dir: dir.to_owned(), max_bytes: 1 << 30, keys, store: None };
        let opened = Recordings::start(settings, &Drain::new(), &Metrics::new());
        opened.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let text = open(&rig.folder.path().join("spool"));
    assert!(text.contains("is in use by another process"), "{text}");
    let file = rig.folder.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(open(&file.join("spool")).starts_with("make the spool folder"));
}

#[tokio::test(start_paused = true)]
async fn a_gap_stands_behind_what_waited_when_it_began() {
    let rig = Rig::new();
    let mut session = Session::of(rig.begin(facts(true), false).await.unwrap());
    rig.disk.is(State::Hangs);
    // One is written, the next one, a large one, waits for that, and the third finds no room until it is too late.
    session.says(OUT, &[b'a'; 600_000]).await.unwrap();
    session.says(OUT, &[b'b'; 2_200_000]).await.unwrap();
    let Session { tap, recorder, .. } = &mut session;
    tap.tape().unwrap().at(Duration::from_secs(9));
    tap.pass(OUT, &[b'c'; 2_200_000]);
    assert!(poll_fn(|cx| Poll::Ready(recorder.poll(cx, tap.tape().unwrap()))).await.is_pending());
    tokio::time::advance(Duration::from_secs(31)).await;
    soon("room", poll_fn(|cx| recorder.poll(cx, tap.tape().unwrap()))).await.unwrap();
    rig.disk.is(State::Works);
    session.ends().await.unwrap();
    let mut order: Vec<_> =
        rig.only().pieces.iter().map(|(kind, bytes)| (*kind, bytes.first().copied())).collect();
    order.dedup();
    assert_eq!(order, [(Kind::Stdout, Some(b'a')), (Kind::Stdout, Some(b'b')), (Kind::Gap, Some(b'2'))]);
}

#[tokio::test]
async fn what_cannot_be_removed_still_takes_room() {
    let folder = tempfile::tempdir().unwrap();
    let gauge = Metrics::new().recording.spool.clone();
    let spool = Spool::open(folder.path(), 1 << 20, gauge, spool::Plain).unwrap();
    let begin = |name: &str| spool.create(name, b"head", spool::Room::Needed).unwrap();
    begin("a").discard();
    assert_eq!(spool.used(), 0);
    let part = begin("b");
    // A folder is what nobody can remove as a file.
    fs::remove_file(spool.path("b.part")).unwrap();
    fs::create_dir(spool.path("b.part")).unwrap();
    part.discard();
    assert_eq!(spool.used(), 4);
}

#[tokio::test]
async fn a_start_removes_what_is_left_of_cards_whose_recordings_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    fs::create_dir(&spool).unwrap();
    for name in ["gone.json", "half.json.part", "here.json", "here.tape.zst", "other.yaml"] {
        fs::write(spool.join(name), b"{}").unwrap();
    }
    let rig = Rig::at(folder, SigningKey::generate().unwrap(), None, 1 << 30);
    assert_eq!(rig.names(), ["here.json", "here.tape.zst", "other.yaml"]);
    assert_eq!(rig.metrics.recording.spool.get(), 6);
}
