use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::PollSender;

use super::*;
use crate::recording::container::{Reader, Trust};
use crate::recording::facts::{Details, Facts, Stdin};
use crate::recording::keys::{Keys, SigningKey};
use crate::tap;
use crate::tap::record::{self, Begin};
use crate::telemetry::{self, Metrics};
use crate::testing::PATIENCE;
use crate::throttle::Grant;
use crate::wire::link::{HangUp, Out, Spoken};
use crate::wire::remotecommand::StreamType;

/// Passes everything on; knows no frames, but a `!` of either side ends the session, and `?` is none of its bytes.
struct Through {
    over: bool,
    whole: bool,
    runs: Runs,
    /// The far side has said `exit`, which is heard only once the client is gone.
    ended: bool,
    /// It takes stdin: from the begin on, or once it has said `open`.
    open: bool,
}

impl Through {
    fn new(runs: Runs, open: bool) -> Self {
        Self { over: false, whole: false, runs, ended: false, open }
    }
}

impl Link for Through {
    fn begin(&mut self, _: &mut Out) {}

    fn client(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        let bytes = input.split().freeze();
        if bytes.contains(&b'?') {
            out.client.put().extend_from_slice(b"<no>");
            return Err(Fault::Client("a question".into()));
        }
        self.over |= bytes.ends_with(b"!");
        out.active = !bytes.starts_with(b"ping");
        out.far.push(bytes);
        Ok(())
    }

    fn far(&mut self, input: &mut BytesMut, out: &mut Out) -> Result<(), Fault> {
        let bytes = input.split().freeze();
        if bytes.contains(&b'?') {
            return Err(Fault::Far("a question".into()));
        }
        self.over |= bytes.ends_with(b"!");
        self.whole |= self.over;
        if self.over {
            out.far.put().extend_from_slice(b"<seen>");
        }
        out.active = true;
        out.tap.pass(StreamType::Stdout, &bytes);
        out.client.push(bytes);
        Ok(())
    }

    fn leave(&mut self, out: &mut Out) {
        out.far.put().extend_from_slice(b"<bye>");
    }

    fn end(&mut self, why: &str, out: &mut Out) -> Fate {
        if self.whole {
            return Fate::Whole;
        }
        out.client.put().extend_from_slice(format!("<{why}>").as_bytes());
        Fate::Cut
    }

    fn announce(&mut self, text: &str, out: &mut Out) {
        if self.runs.tty() {
            out.client.put().extend_from_slice(text.as_bytes());
        }
    }

    fn is_done(&self) -> bool {
        !self.runs.own() || self.ended || self.whole
    }

    fn hang_up(&mut self, step: HangUp, out: &mut Out) -> Spoken {
        if !self.open {
            return Spoken::NotYet;
        }
        let keys: &[u8] = match step {
            HangUp::Interrupt => b"C",
            HangUp::EndOfFile => b"D",
            HangUp::EndOfStdin => b".",
        };
        out.far.put().extend_from_slice(keys);
        Spoken::Yes
    }

    fn hear_last(&mut self, input: &mut BytesMut) -> Result<(), Fault> {
        self.ended |= input.windows(4).any(|part| part == b"exit");
        self.open |= input.windows(4).any(|part| part == b"open");
        input.clear();
        Ok(())
    }

    fn tick(&mut self, out: &mut Out) {
        out.far.put().extend_from_slice(b"<tick>");
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

pub(super) fn settings() -> Settings {
    Settings {
        max_sessions: 1,
        max_sessions_per_caller: 1,
        recheck_period: Duration::ZERO,
        max_bytes_per_second: 0,
        max_bytes_per_second_per_caller: 0,
        max_bytes_per_second_in_all: 0,
        linger: Duration::from_secs(1),
        hang_up: Duration::from_secs(2),
        refusal_timeout: Duration::from_secs(10),
        open_timeout: Duration::from_secs(30),
        max_duration: Duration::ZERO,
        idle_timeout: Duration::from_secs(3600),
    }
}

fn record(metrics: &Metrics) -> Record {
    let facts = Arc::new(telemetry::Facts::example("shop", "cart-0"));
    Record::begin(facts, metrics.clone(), crate::audit::Trail::default())
}

/// A limit of rule `p/a`.
fn rule<T>(most: T) -> Option<Limit<T>> {
    Some(Limit { most, by: limits::By::Rule("p/a".into()) })
}

/// A session between two ends that a test holds.
struct Rig {
    settings: Settings,
    drain: Drain,
    metrics: Metrics,
    timing: Timing,
    runs: Runs,
    limits: Limits,
    open: bool,
    recorder: std::sync::Mutex<Option<Recorder>>,
    orders: std::sync::Mutex<Option<BoxFuture<'static, Order>>>,
}

impl Rig {
    fn new() -> Self {
        Self {
            settings: settings(),
            drain: Drain::new(),
            metrics: Metrics::new(),
            timing: Timing::default(),
            runs: Runs::Forward,
            limits: Limits::default(),
            open: true,
            recorder: None.into(),
            orders: None.into(),
        }
    }

    async fn run<C, F>(&self, client: C, socket: Option<OwnedFd>, far: F)
    where
        C: AsyncRead + AsyncWrite + Unpin,
        F: AsyncRead + AsyncWrite + Unpin,
    {
        let session = Session {
            caller: "ana".into(),
            client,
            socket: Box::new(move |_| Socket::of(socket.as_ref().ok_or(io::ErrorKind::Unsupported)?)),
            head: Bytes::from_static(b"HEAD"),
            early: Bytes::from_static(b"early "),
            far,
            first: Bytes::from_static(b"first "),
            link: Box::new(Through::new(self.runs, self.open)),
            runs: self.runs,
            timing: self.timing,
            limits: self.limits.clone(),
            orders: self.orders.lock().unwrap().take().unwrap_or_else(|| Box::pin(std::future::pending())),
            record: record(&self.metrics),
            recorder: self.recorder.lock().unwrap().take(),
        };
        Sessions::new(self.settings.clone(), self.drain.clone()).run(session).await;
    }

    /// The word of the end record, and bytes up and down.
    fn ended(&self) -> (String, u64, u64) {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let bytes = |direction: &str| {
            let series = format!("podgate_session_bytes_total{{direction=\"{direction}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
        };
        let reason = text.lines().find_map(|line| {
            let rest = line.strip_prefix("podgate_sessions_ended_total{end=\"")?;
            rest.ends_with(" 1").then(|| rest.split('"').next().unwrap().to_owned())
        });
        (reason.expect("one session has ended"), bytes("up"), bytes("down"))
    }

    fn may_remain(&self) -> bool {
        self.metrics.processes_may_remain.get() == 1
    }
}

async fn all(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut got = Vec::new();
    io.read_to_end(&mut got).await.unwrap();
    String::from_utf8(got).unwrap()
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|n| b'a' + u8::try_from(n % 23).unwrap()).collect()
}

#[tokio::test]
async fn every_byte_arrives_in_order_through_narrow_pipes_both_ways_at_once() {
    let rig = Rig::new();
    let (client, ours) = duplex(7);
    let (far, theirs) = duplex(3);
    let (up, down) = (pattern(50_000), pattern(70_000));
    let peer = |io: DuplexStream, says: Vec<u8>, hears: usize| async move {
        let (mut reader, mut writer) = tokio::io::split(io);
        let mut got = vec![0; hears];
        let (wrote, read) = tokio::join!(writer.write_all(&says), reader.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        (got, reader.unsplit(writer))
    };
    let peers = async {
        let ((at_client, client), (at_far, far)) = tokio::join!(
            peer(client, up.clone(), b"HEADfirst ".len() + down.len()),
            peer(far, down.clone(), b"early ".len() + up.len()),
        );
        assert!(at_client == [b"HEADfirst ", &down[..]].concat());
        assert!(at_far == [b"early ", &up[..]].concat());
        drop(client);
        let mut far = far;
        assert_eq!(all(&mut far).await, "<bye>");
    };
    let ((), ()) = tokio::join!(rig.run(ours, None, theirs), peers);
    // With `<bye>`, without the head.
    assert_eq!(rig.ended(), ("client_closed".into(), 50_011, 70_006));
}

/// A far side that always has something to say, up to its end.
struct Endless {
    left: usize,
    said: Arc<AtomicUsize>,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let says = buf.remaining().min(self.left);
        buf.put_slice(&vec![b'x'; says]);
        self.left -= says;
        self.said.fetch_add(says, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_session_that_always_has_something_to_move_gives_way_to_others() {
    const QUANTA: usize = 20;
    let (rig, said) = (Rig::new(), Arc::new(AtomicUsize::new(0)));
    let endless = Endless { left: QUANTA * splice::QUANTUM, said: said.clone() };
    let (_client, reads) = duplex(1 << 16);
    let client = tokio::io::join(reads, tokio::io::sink());
    let others = async {
        let (mut turns, mut before, mut most) = (0, 0, 0);
        while before < QUANTA * splice::QUANTUM {
            let now = said.load(Ordering::Relaxed);
            (turns, before, most) = (turns + 1, now, most.max(now - before));
            tokio::task::yield_now().await;
        }
        (turns, most)
    };
    let ((), (turns, most)) =
        tokio::join!(biased; rig.run(client, None, tokio::io::join(endless, tokio::io::sink())), others);
    assert!(turns >= QUANTA && most < splice::QUANTUM + splice::READ, "{turns} turns, {most} bytes in one");
}

#[tokio::test(start_paused = true)]
async fn item_051_a_throttled_direction_takes_as_long_as_its_limit_says() {
    let mut rig = Rig::new();
    rig.settings.max_bytes_per_second = 10_000;
    let (client, ours) = duplex(1 << 20);
    let (mut far, theirs) = duplex(1 << 20);
    far.write_all(&[b'x'; 100_000]).await.unwrap();
    far.write_all(b"!").await.unwrap();
    let start = Instant::now();
    let hears = async {
        let (mut reader, _writer) = tokio::io::split(client);
        let mut got = vec![0; b"HEADfirst ".len() + 100_001];
        reader.read_exact(&mut got).await.unwrap();
        start.elapsed()
    };
    let ((), took, _) = tokio::join!(rig.run(ours, None, theirs), hears, async { far });
    assert!(took >= Duration::from_millis(9_900) && took <= Duration::from_millis(10_200), "{took:?}");
    assert_eq!(rig.ended().0, "far_closed");
}

/// A session that moves bytes by these budgets, up and down.
fn limited<C, F>(client: C, far: F, [up, down]: [Option<Box<Throttle>>; 2]) -> Splice<C, F>
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let link = Box::new(Through::new(Runs::Forward, true));
    Splice::new(
        Side::new(client, BytesMut::new(), up, 0),
        Side::new(far, BytesMut::new(), down, 0),
        link,
        None,
    )
}

/// What another may move up and down in the sample in which such a session has had a turn, of which this is the last event.
async fn beside<C, F>(sample: usize, client: C, far: F) -> ([usize; 2], Poll<Event>)
where
    C: AsyncRead + AsyncWrite + Unpin,
    F: AsyncRead + AsyncWrite + Unpin,
{
    let shares = Shares::new(Rates { caller: 0, all: 10 * sample as u64 }).unwrap();
    let throttles = |caller: &str| shares.join(&caller.into()).map(|share| Throttle::new(0, Some(share)));
    let mut splice = limited(client, far, throttles("ana"));
    let meters = record(&Metrics::new()).meters();
    let polled = poll_fn(|cx| Poll::Ready(splice.poll(cx, &meters))).await;
    let left = throttles("ben").map(|other| match other.unwrap().ask(Instant::now(), sample) {
        Grant::Bytes(bytes) => bytes,
        Grant::Wait(_) => 0,
    });
    (left, polled)
}

#[tokio::test(start_paused = true)]
async fn a_session_leaves_to_others_what_it_has_no_room_for() {
    const SAMPLE: usize = 200_000;
    let said = Arc::new(AtomicUsize::new(0));
    let endless = || {
        said.store(0, Ordering::Relaxed);
        Endless { left: SAMPLE, said: said.clone() }
    };
    let ((_reads, reader), (_idle, idle)) = (duplex(1), duplex(1));
    let down = beside(SAMPLE, reader, tokio::io::join(endless(), tokio::io::sink())).await;
    let moved = said.load(Ordering::Relaxed);
    assert!(
        moved > 0 && matches!(down, (left, Poll::Pending) if left == [SAMPLE, SAMPLE - moved]),
        "{down:?}"
    );
    let ((_takes, taker), up) = (duplex(1), tokio::io::join(endless(), idle));
    let up = beside(SAMPLE, up, taker).await;
    let moved = said.load(Ordering::Relaxed);
    assert!(moved > 0 && up.0 == [SAMPLE - moved, SAMPLE], "{up:?} of {moved}");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_leaves_its_share_to_others_at_once() {
    const SAMPLE: usize = 200_000;
    let (_client, reader) = duplex(SAMPLE);
    let far = tokio::io::join(&b"bye"[..], tokio::io::sink());
    let over = beside(SAMPLE, reader, far).await;
    assert!(
        matches!(over, ([SAMPLE, left], Poll::Ready(Event::FarEnded(None))) if left == SAMPLE - 3),
        "{over:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_is_held_up_is_so_since_it_was_and_not_since_it_could_be() {
    let ((_client, ours), (mut far, theirs)) = (duplex(1 << 20), duplex(1 << 20));
    let mut splice = limited(ours, theirs, [Throttle::new(1000, None), Throttle::new(1000, None)]);
    let meters = record(&Metrics::new()).meters();
    let _ = poll_fn(|cx| Poll::Ready(splice.poll(cx, &meters))).await;
    let before = jiff::Timestamp::now();
    far.write_all(&[b'x'; 10_000]).await.unwrap();
    let slowed = loop {
        let _ = poll_fn(|cx| Poll::Ready(splice.poll(cx, &meters))).await;
        match meters.slowed() {
            Some(slowed) => break slowed,
            None => sleep_until(splice.resume_at().unwrap()).await,
        }
    };
    assert!(slowed.since >= before, "{slowed:?}, and there was nothing before {before}");
}

#[tokio::test]
async fn a_far_side_that_ends_too_early_is_told_to_the_client_behind_all_it_said() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    far.write_all(b"last words").await.unwrap();
    drop(far);
    let ((), got) = tokio::join!(rig.run(ours, None, theirs), all(&mut client));
    assert_eq!(got, "HEADfirst last words<the connection to the pod ended before the session did>");
    assert_eq!(rig.ended().0, "far_lost");
}

#[tokio::test]
async fn what_was_read_before_a_reset_of_the_far_side_arrives_first() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let theirs = tokio::io::join(AsyncReadExt::chain(&b"last words"[..], Failing), tokio::io::sink());
    let ((), got) = tokio::join!(rig.run(ours, None, theirs), all(&mut client));
    assert!(got.starts_with("HEADfirst last words<the connection"), "{got}");
    assert_eq!(rig.ended().0, "far_lost");
}

#[tokio::test]
async fn a_side_that_says_it_is_done_ends_the_session_once_its_words_are_out() {
    for far_ends in [true, false] {
        let rig = Rig::new();
        let (client, ours) = duplex(4);
        let (far, theirs) = duplex(4);
        let peer = |mut io: DuplexStream, says: &'static [u8]| async move {
            io.write_all(says).await.unwrap();
            all(&mut io).await
        };
        let (up, down): (&[u8], &[u8]) = if far_ends { (b"", b"done!") } else { (b"done!", b"") };
        let ((), at_client, at_far) =
            tokio::join!(rig.run(ours, None, theirs), peer(client, up), peer(far, down));
        match far_ends {
            true => {
                assert_eq!((at_client.as_str(), at_far.as_str()), ("HEADfirst done!", "early <seen><bye>"))
            }
            false => assert_eq!((at_client.as_str(), at_far.as_str()), ("HEADfirst ", "early done!<bye>")),
        }
        assert_eq!(rig.ended().0, if far_ends { "far_closed" } else { "client_closed" });
    }
}

#[tokio::test]
async fn a_peer_that_does_not_speak_its_protocol_ends_the_session_and_the_client_is_told() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    client.write_all(b"what?").await.unwrap();
    let ((), at_client, at_far) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), all(&mut far));
    assert_eq!((at_client.as_str(), at_far.as_str()), ("HEADfirst <no>", "early <bye>"));
    assert_eq!(rig.ended().0, "client_protocol");

    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    far.write_all(b"what?").await.unwrap();
    let ((), at_client, _) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), all(&mut far));
    assert_eq!(at_client, "HEADfirst <the far side does not speak the protocol of the session>");
    assert_eq!(rig.ended().0, "far_protocol");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_ordered_to_ends_and_says_why() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    let order = Box::pin(async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        Order { reason: EndReason::Lapsed, why: "the token is not known any more".into() }
    });
    *rig.orders.lock().unwrap() = Some(order);
    let start = Instant::now();
    let ((), at_client, at_far) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), all(&mut far));
    assert_eq!(at_client, "HEADfirst <the token is not known any more>");
    assert_eq!((at_far.as_str(), rig.ended().0.as_str()), ("early <bye>", "lapsed"));
    assert!(start.elapsed() >= Duration::from_secs(60) && start.elapsed() < Duration::from_secs(65));
}

#[tokio::test(start_paused = true)]
async fn the_clock_ticks_and_ends_a_session_in_which_nothing_but_pings_passes() {
    let mut rig = Rig::new();
    rig.settings.idle_timeout = Duration::from_secs(60);
    rig.timing = Timing { keepalive: Some(Duration::from_secs(5)) };
    let (client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    let start = Instant::now();
    let pinging = async {
        let (mut reader, mut writer) = tokio::io::split(client);
        let ping = async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            writer.write_all(b"words").await.unwrap();
            while writer.write_all(b"ping").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let (got, ()) = tokio::join!(all(&mut reader), ping);
        got
    };
    let ((), at_client, at_far) = tokio::join!(rig.run(ours, None, theirs), pinging, all(&mut far));
    assert_eq!(
        at_client,
        "HEADfirst <this session was idle for 1m, as long as setting session.idleTimeout lets it>"
    );
    let ticks = at_far.matches("<tick>").count();
    assert!((17..=19).contains(&ticks), "{ticks} in 90 s");
    assert_eq!(rig.ended().0, "idle");
    assert!(start.elapsed() >= Duration::from_secs(90) && start.elapsed() < Duration::from_secs(95));
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_ends_although_its_client_takes_nothing() {
    let mut rig = Rig::new();
    rig.settings.idle_timeout = Duration::from_secs(60);
    // Not even the head has room.
    let (_client, ours) = duplex(1);
    let (mut far, theirs) = duplex(1 << 16);
    let start = Instant::now();
    let left = async {
        assert_eq!(all(&mut far).await, "early <bye>");
        start.elapsed()
    };
    let ((), left) = tokio::join!(rig.run(ours, None, theirs), left);
    assert_eq!(rig.ended().0, "idle");
    assert!(left < Duration::from_secs(62), "the far side is left at once, not after {left:?}");
    assert!(start.elapsed() < Duration::from_secs(130), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_far_side_has_ended_is_still_held_to_its_limits_and_orders() {
    let longest = Limits { longest: rule(Duration::from_secs(90)), ..Limits::default() };
    let idle = Limits { idle: rule(Duration::from_secs(90)), ..Limits::default() };
    for (limits, ordered, word) in
        [(longest, false, "overlong"), (idle, false, "idle"), (Limits::default(), true, "ended")]
    {
        let mut rig = Rig::new();
        rig.limits = limits;
        rig.settings.idle_timeout = Duration::ZERO;
        if ordered {
            *rig.orders.lock().unwrap() = Some(Box::pin(async {
                tokio::time::sleep(Duration::from_secs(90)).await;
                Order { reason: EndReason::Ended, why: "this session was ended by ana".into() }
            }));
        }
        // What the far side has said has no room.
        let (_client, ours) = duplex(1);
        let (mut far, theirs) = duplex(1 << 16);
        far.write_all(b"done!").await.unwrap();
        let start = Instant::now();
        let ended = timeout(Duration::from_secs(600), rig.run(ours, None, theirs)).await;
        let took = start.elapsed();
        assert!(
            ended.is_ok() && took >= Duration::from_secs(90) && took < Duration::from_secs(92),
            "{took:?}"
        );
        assert_eq!(rig.ended().0, word);
    }
}

/// A recorder that writes into this folder.
async fn recorder(folder: &std::path::Path, drain: &Drain, metrics: &Metrics) -> Recorder {
    let keys = Keys { signing: SigningKey::generate().unwrap(), recipients: Vec::new() };
    let settings = tap::Settings { dir: folder.to_owned(), max_bytes: 1 << 20, keys, store: None };
    let recordings = tap::Recordings::start(settings, drain, metrics).unwrap();
    let facts = Facts {
        id: "r".into(),
        audit_id: String::new(),
        started: jiff::Timestamp::now(),
        subresource: "exec".into(),
        namespace: "shop".into(),
        pod: "cart-0".into(),
        container: "app".into(),
        node: "n".into(),
        user: "ana".into(),
        groups: Vec::new(),
        impersonator: String::new(),
        client: String::new(),
        tty: false,
        stdin: false,
        records_stdin: Stdin::None,
        rule: "default".into(),
    };
    let begin = Begin { facts, details: Details::default(), strict: true };
    let recorder = Recorder::begin(&recordings, begin).await.unwrap();
    recorder.keep();
    recorder
}

#[tokio::test]
async fn a_recording_says_how_its_session_ended_in_the_same_word() {
    let (mut rig, folder) = (Rig::new(), tempfile::tempdir().unwrap());
    rig.limits.longest = rule(Duration::from_millis(300));
    *rig.recorder.lock().unwrap() = Some(recorder(folder.path(), &rig.drain, &rig.metrics).await);
    // What the far side has said, which has ended, has no room.
    let (_client, ours) = duplex(1);
    let (mut far, theirs) = duplex(1 << 16);
    far.write_all(b"done!").await.unwrap();
    soon_ended(rig.run(ours, None, theirs)).await;
    assert_eq!(rig.ended().0, "overlong");
    let file = std::fs::File::open(folder.path().join("r.tape.zst")).unwrap();
    let mut reader = Reader::open(file, Trust::Anyone, &[]).unwrap();
    while reader.next().unwrap().is_some() {}
    assert_eq!(reader.ending().unwrap().reason, "overlong");
}

/// A peer that always has something to say, a little at a time.
struct Sips;

impl AsyncRead for Sips {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        buf.put_slice(&[b'x'; 1000][..buf.remaining().min(1000)]);
        Poll::Ready(Ok(()))
    }
}

/// The session runs on a thread of its own, which it may never give back.
#[test]
fn a_session_whose_recorder_has_no_room_leaves_its_thread_to_others() {
    let (ran, others_ran) = std::sync::mpsc::channel();
    let session = async move {
        let (mut rig, folder) = (Rig::new(), tempfile::tempdir().unwrap());
        rig.limits.bytes_per_second = rule(16 << 20);
        let mut recorder = recorder(folder.path(), &rig.drain, &rig.metrics).await;
        let (full, _held) = tokio::sync::mpsc::channel(1);
        full.try_send(record::Order::default()).unwrap();
        let _working = recorder.replace_channel(PollSender::new(full));
        *rig.recorder.lock().unwrap() = Some(recorder);
        // The client uses its share up first: while it waits for the clock, the far side fills the tape.
        let far = tokio::io::join(Sips, tokio::io::sink());
        tokio::select! {
            () = rig.run(restless(), None, far) => panic!("it ended"),
            // By then there is no room.
            () = tokio::time::sleep(Duration::from_millis(300)) => ran.send(()).unwrap(),
        }
    };
    std::thread::spawn(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(session);
    });
    others_ran.recv_timeout(PATIENCE).unwrap();
}

#[tokio::test]
async fn of_a_client_that_had_sent_more_than_can_be_kept_nobody_says_that_it_ended_properly() {
    let rig = Rig::new();
    let (client, ours, socket) = pair().await;
    // What the kernel holds, and far more.
    let (_, writer) = ours.into_split();
    let ours = tokio::io::join(tokio::io::repeat(b'x').take(2 * REST), writer);
    let (_far_takes_nothing, theirs) = duplex(1);
    drop(client);
    soon_ended(rig.run(ours, Some(socket), theirs)).await;
    assert_eq!(rig.ended().0, "client_lost");
}

const TERMINAL: Runs = Runs::Exec { tty: true };

/// A far side that has read so many bytes says that its program has ended, or never does; what it heard, and when.
async fn program(mut far: DuplexStream, ends_after: Option<usize>) -> (String, Duration) {
    let (start, mut heard) = (Instant::now(), Vec::new());
    while let Ok(byte) = far.read_u8().await {
        heard.push(byte);
        if Some(heard.len()) == ends_after {
            far.write_all(b"exit").await.unwrap();
        }
    }
    (String::from_utf8(heard).unwrap(), start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_terminal_that_its_client_has_left_is_hung_up_until_its_program_has_ended() {
    let mut rig = Rig::new();
    rig.runs = TERMINAL;
    let (client, ours) = duplex(1 << 16);
    let (far, theirs) = duplex(1 << 16);
    drop(client);
    let ((), (heard, took)) =
        tokio::join!(rig.run(ours, None, theirs), program(far, Some("early CDD".len())));
    assert_eq!(heard, "early CDD<bye>");
    assert!(took >= Duration::from_millis(200) && took < Duration::from_millis(300), "{took:?}");
    assert!(!rig.may_remain());
}

#[tokio::test(start_paused = true)]
async fn a_program_that_may_have_begun_is_waited_for_and_hung_up_or_told_of() {
    for opens in [true, false] {
        let mut rig = Rig::new();
        (rig.runs, rig.open) = (TERMINAL, false);
        let (client, ours) = duplex(1 << 16);
        let (far, theirs) = duplex(1 << 16);
        drop(client);
        let far = async {
            let mut far = far;
            far.read_exact(&mut [0; "early ".len()]).await.unwrap();
            if opens {
                tokio::time::sleep(Duration::from_millis(700)).await;
                far.write_all(b"open").await.unwrap();
            }
            program(far, opens.then_some("CD".len())).await.0
        };
        let ((), heard) = tokio::join!(rig.run(ours, None, theirs), far);
        assert_eq!((heard.as_str(), rig.may_remain()), (if opens { "CD<bye>" } else { "<bye>" }, !opens));
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_program_that_heeds_no_hang_up_it_is_told_that_it_may_remain() {
    let mut rig = Rig::new();
    rig.runs = TERMINAL;
    let (client, ours) = duplex(1 << 16);
    let (far, theirs) = duplex(1 << 16);
    drop(client);
    let ((), (heard, took)) = tokio::join!(rig.run(ours, None, theirs), program(far, None));
    assert_eq!(heard, format!("early C{}CDD.<bye>", "D".repeat(11)));
    assert!(took >= Duration::from_secs(2) && took < Duration::from_millis(2500), "{took:?}");
    assert!(rig.may_remain());
}

#[tokio::test(start_paused = true)]
async fn without_a_terminal_stdin_is_ended_and_the_main_process_of_a_container_is_left_alone() {
    for (runs, expected, remains) in [
        (Runs::Exec { tty: false }, "early .<bye>", false),
        (Runs::Attach { tty: true }, "early <bye>", false),
        (Runs::Forward, "early <bye>", false),
    ] {
        let mut rig = Rig::new();
        rig.runs = runs;
        let (client, ours) = duplex(1 << 16);
        let (far, theirs) = duplex(1 << 16);
        drop(client);
        let ends_after = Some("early .".len());
        let ((), (heard, _)) = tokio::join!(rig.run(ours, None, theirs), program(far, ends_after));
        assert_eq!((heard.as_str(), rig.may_remain()), (expected, remains), "{runs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hung_up_that_has_ended_or_where_that_is_not_wanted() {
    let mut rig = Rig::new();
    rig.runs = TERMINAL;
    let (client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    far.write_all(b"done!").await.unwrap();
    let ((), heard) = tokio::join!(rig.run(ours, None, theirs), all(&mut far));
    assert!(heard.ends_with("<seen><bye>") && !rig.may_remain(), "{heard}");
    drop(client);

    let mut rig = Rig::new();
    (rig.runs, rig.settings.hang_up) = (TERMINAL, Duration::ZERO);
    let (client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    drop(client);
    let ((), heard) = tokio::join!(rig.run(ours, None, theirs), all(&mut far));
    assert!(heard == "early <bye>" && rig.may_remain(), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_far_side_that_takes_nothing_or_is_gone_holds_no_session() {
    let mut rig = Rig::new();
    rig.runs = TERMINAL;
    let (client, ours) = duplex(1 << 16);
    let (_far, theirs) = duplex(1);
    drop(client);
    rig.settings.linger = Duration::from_millis(100);
    let start = Instant::now();
    rig.run(ours, None, theirs).await;
    assert!(start.elapsed() <= FAR_DRAIN + Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(rig.may_remain());

    let mut rig = Rig::new();
    rig.runs = TERMINAL;
    let (mut client, ours) = duplex(1 << 16);
    let (far, theirs) = duplex(1 << 16);
    drop(far);
    let start = Instant::now();
    let ((), _) = tokio::join!(rig.run(ours, None, theirs), all(&mut client));
    assert!(start.elapsed() < Duration::from_secs(2) && rig.may_remain());
    assert_eq!(rig.ended().0, "far_lost");
}

#[tokio::test(start_paused = true)]
async fn each_limit_ends_a_session_in_time_and_says_so_in_the_terminal_and_as_an_error() {
    let (idle, longest) = (rule(Duration::from_secs(60)), rule(Duration::from_secs(90)));
    let limits = Limits { idle, ..Limits::default() };
    let of_its_own = (limits.clone(), Duration::ZERO, Duration::ZERO);
    let of_all = (Limits::default(), Duration::from_secs(60), Duration::ZERO);
    let told = "this session was idle for 1m, as long as rule p/a lets it";
    let told_all = "this session was idle for 1m, as long as setting session.idleTimeout lets it";
    let overlong = "this session has lasted 1m30s, as long as rule p/a lets it";
    let overlong_all = "this session has lasted 1m30s, as long as setting session.maxDuration lets it";
    for (limits, idle_timeout, max_duration, seconds, why, word) in [
        (of_its_own.0, of_its_own.1, of_its_own.2, 60, told, "idle"),
        (of_all.0, of_all.1, of_all.2, 60, told_all, "idle"),
        (
            Limits { longest: longest.clone(), ..limits },
            Duration::from_secs(7200),
            Duration::from_secs(7200),
            60,
            told,
            "idle",
        ),
        (Limits { longest, ..Limits::default() }, Duration::ZERO, Duration::ZERO, 90, overlong, "overlong"),
        (Limits::default(), Duration::ZERO, Duration::from_secs(90), 90, overlong_all, "overlong"),
    ] {
        let mut rig = Rig::new();
        (rig.runs, rig.limits) = (TERMINAL, limits);
        (rig.settings.idle_timeout, rig.settings.max_duration) = (idle_timeout, max_duration);
        let (mut client, ours) = duplex(1 << 16);
        let (far, theirs) = duplex(1 << 16);
        let start = Instant::now();
        let hears = async {
            let got = all(&mut client).await;
            (got, start.elapsed())
        };
        let ((), (got, took), _) = tokio::join!(rig.run(ours, None, theirs), hears, program(far, Some(8)));
        assert_eq!(got, format!("HEADfirst \r\npodgate: {why}\r\n<{why}>"));
        let due = Duration::from_secs(seconds);
        assert!(took >= due && took < due + Duration::from_secs(1), "{took:?}");
        assert_eq!((rig.ended().0.as_str(), rig.may_remain()), (word, false));
    }
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_wrote_cannot_act_on_the_terminal_in_which_it_is_told() {
    let mut rig = Rig::new();
    rig.runs = Runs::Attach { tty: true };
    let (mut client, ours) = duplex(1 << 16);
    let (_far, theirs) = duplex(1 << 16);
    let why = "ended by \x1b]0;root\x07".to_owned();
    let order = Order { reason: EndReason::Ended, why };
    *rig.orders.lock().unwrap() = Some(Box::pin(std::future::ready(order)));
    let ((), got) = tokio::join!(rig.run(ours, None, theirs), all(&mut client));
    assert!(got.contains("\r\npodgate: ended by \\u{1b}]0;root\\u{7}\r\n"), "{got:?}");
}

#[tokio::test(start_paused = true)]
async fn the_drains_cut_hangs_up_as_well_and_shortens_what_takes_too_long() {
    let mut rig = Rig::new();
    (rig.runs, rig.settings.hang_up) = (TERMINAL, Duration::from_secs(10));
    let (mut client, ours) = duplex(1 << 16);
    let (far, theirs) = duplex(1 << 16);
    rig.drain.cut();
    let start = Instant::now();
    let ((), got, (heard, _)) =
        tokio::join!(rig.run(ours, None, theirs), all(&mut client), program(far, None));
    assert!(got.contains("podgate was stopped"), "{got}");
    assert!(heard.starts_with("early CDDD") && heard.ends_with("<bye>"), "{heard}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(rig.may_remain());
}

/// The terminal of a session that is held to so many bytes a second, in which so many pass; and how long that takes.
async fn held(rate: Option<Limit<u64>>, bytes: usize) -> (String, Duration, Rig) {
    let mut rig = Rig::new();
    (rig.runs, rig.limits.bytes_per_second) = (TERMINAL, rate);
    rig.settings.linger = Duration::from_millis(10);
    let (mut client, ours) = duplex(1 << 20);
    let (mut far, theirs) = duplex(1 << 20);
    let start = Instant::now();
    let talk = async {
        far.write_all(&vec![b'x'; bytes]).await.unwrap();
        far.write_all(b"!").await.unwrap();
        far
    };
    let ((), got, _) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), talk);
    (got, start.elapsed(), rig)
}

#[tokio::test(start_paused = true)]
async fn a_terminal_is_told_once_when_its_limit_of_bytes_is_felt() {
    const NOTICE: &str = "\r\npodgate: held to 9.7 KiB/s by rule p/a\r\n";
    let (got, took, _rig) = held(rule(10_000), 50_000).await;
    assert!(took >= Duration::from_millis(4_800) && took < Duration::from_millis(5_300), "{took:?}");
    assert_eq!(got.matches(NOTICE).count(), 1);
    let before = got.find(NOTICE).unwrap();
    assert!((10_000..=15_000).contains(&before), "told after a second, not behind {before} bytes");
    assert_eq!(got.replace(NOTICE, "").matches('x').count(), 50_000);
    // What is over before anybody feels it is not told, nor is a terminal that is held to nothing.
    for (rate, bytes) in [(rule(10_000), 9_000), (None, 50_000)] {
        assert!(!held(rate, bytes).await.0.contains("podgate"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_ignores_the_close_and_goes_on_sending_does_not_keep_what_was_ended() {
    let rig = Rig::new();
    let (_peer, _ours, socket) = pair().await;
    let (client, ours) = duplex(1 << 16);
    let (_far, theirs) = duplex(1 << 20);
    let order = Order { reason: EndReason::Ended, why: "this session was ended by ana".into() };
    *rig.orders.lock().unwrap() = Some(Box::pin(std::future::ready(order)));
    let (mut reader, mut writer) = tokio::io::split(client);
    let sends = async {
        while writer.write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let start = Instant::now();
    let run = async {
        rig.run(ours, Some(socket), theirs).await;
        start.elapsed()
    };
    let (took, got, ()) = tokio::join!(run, all(&mut reader), sends);
    assert_eq!(got, "HEADfirst <this session was ended by ana>");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

async fn soon_ended(run: impl Future<Output = ()>) {
    timeout(Duration::from_secs(20), run).await.expect("the session ends");
}

#[tokio::test(start_paused = true)]
async fn the_drain_ends_a_session_and_tells_the_client_within_its_grace() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (_far, theirs) = duplex(1 << 16);
    let cut = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.drain.cut();
    };
    let start = Instant::now();
    let ((), got, ()) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), cut);
    assert_eq!(got, "HEADfirst <podgate was stopped before the session ended>");
    assert_eq!(rig.ended().0, "drained");
    assert!(start.elapsed() <= Duration::from_secs(3), "{:?}", start.elapsed());
}

/// A peer that takes everything, and has something to say whenever it is asked.
fn restless() -> impl AsyncRead + AsyncWrite + Unpin {
    tokio::io::join(tokio::io::repeat(b'x'), tokio::io::sink())
}

#[tokio::test]
async fn a_session_that_never_rests_is_ended_when_it_has_to_be() {
    for word in ["overlong", "ended", "drained"] {
        let mut rig = Rig::new();
        rig.settings.linger = Duration::from_millis(10);
        if word == "overlong" {
            rig.limits.longest = rule(Duration::from_millis(100));
        }
        let (tell, mut told) = tokio::sync::watch::channel(false);
        *rig.orders.lock().unwrap() = Some(Box::pin(async move {
            told.wait_for(|told| *told).await.unwrap();
            Order { reason: EndReason::Ended, why: "this session was ended by ana".into() }
        }));
        let (_says_nothing, listens) = duplex(1);
        let client = tokio::io::join(listens, tokio::io::sink());
        let act = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match word {
                "ended" => drop(tell.send_replace(true)),
                "drained" => rig.drain.cut(),
                _ => {}
            }
        };
        tokio::join!(soon_ended(rig.run(client, None, restless())), act);
        assert_eq!(rig.ended().0, word);
    }
}

#[tokio::test]
async fn a_far_side_that_never_rests_is_not_hung_up_for_longer_than_it_may_take() {
    // One opens no stdin, the other has more time than the drain.
    for (open, hang_up, cut) in [(false, 1, false), (true, 60, true)] {
        let mut rig = Rig::new();
        (rig.runs, rig.open, rig.settings.hang_up) = (TERMINAL, open, Duration::from_secs(hang_up));
        rig.settings.linger = Duration::from_millis(10);
        if cut {
            rig.drain.cut();
        }
        let (client, ours) = duplex(1 << 16);
        drop(client);
        soon_ended(rig.run(ours, None, restless())).await;
        assert!(rig.may_remain());
    }
}

/// Reads fail as after a reset, or as TLS tells it when a connection ends without close_notify.
struct Failing;

impl AsyncRead for Failing {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }
}

/// A connected pair: the peer, and our end with another descriptor of it.
async fn pair() -> (TcpStream, TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    let socket = ours.as_fd().try_clone_to_owned().unwrap();
    (peer, ours, socket)
}

#[tokio::test]
async fn a_client_that_dies_behind_unread_bytes_is_found_while_the_far_side_takes_nothing() {
    let rig = Rig::new();
    let (mut client, ours, socket) = pair().await;
    let (reader, writer) = ours.into_split();
    let ours = tokio::io::join(reader.take(150_000).chain(Failing), writer);
    let (_far_takes_nothing, theirs) = duplex(1);
    let talk = async {
        client.read_exact(&mut [0; 10]).await.unwrap();
        client.write_all(&vec![b'x'; 160_000]).await.unwrap();
        drop(client);
    };
    let both = async { tokio::join!(rig.run(ours, Some(socket), theirs), talk) };
    timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!(rig.ended().0, "client_lost");
}

#[tokio::test]
async fn what_a_client_sent_before_it_closed_properly_arrives_however_slow_the_far_side() {
    let rig = Rig::new();
    let (mut client, ours, socket) = pair().await;
    let watch = Socket::of(&ours).unwrap();
    let (mut far, theirs) = duplex(64);
    let slow = async {
        client.read_exact(&mut [0; 10]).await.unwrap();
        client.write_all(&vec![b'x'; 160_000]).await.unwrap();
        drop(client);
        // The far side takes nothing until the hang-up must have been seen.
        assert_eq!(watch.hangup().await, Hangup::Closed);
        // By then the session has closed its side of the client as well.
        watch.hangup().await;
        all(&mut far).await.len()
    };
    let both = async { tokio::join!(rig.run(ours, Some(socket), theirs), slow) };
    let ((), got) = timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!(got, "early ".len() + 160_000 + "<bye>".len());
    assert_eq!(rig.ended().0, "client_closed");
}

#[tokio::test]
async fn a_far_side_that_takes_nothing_more_may_still_say_how_it_ended() {
    let rig = Rig::new();
    let (mut client, ours) = duplex(1 << 16);
    let (mut far, theirs) = duplex(1 << 16);
    let (reader, _) = tokio::io::split(theirs);
    // Every write fails.
    let (closed, _) = duplex(1);
    let theirs = tokio::io::join(reader, closed);
    let talk = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        far.write_all(b"the reason!").await.unwrap();
    };
    let ((), got, ()) = tokio::join!(rig.run(ours, None, theirs), all(&mut client), talk);
    assert_eq!(got, "HEADfirst the reason!");
    assert_eq!(rig.ended().0, "far_closed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn buffers_do_not_mix_up_bytes_whatever_the_sizes(
        chunks in proptest::collection::vec(1usize..100_000, 1..20),
        pipe in 1usize..200_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut rig = Rig::new();
            rig.settings.linger = Duration::from_millis(5);
            let (mut client, ours) = duplex(pipe);
            let (mut far, theirs) = duplex(1 << 18);
            let sent: Vec<u8> = pattern(u32::try_from(chunks.iter().sum::<usize>()).unwrap());
            let talk = async {
                let mut rest = &sent[..];
                for chunk in &chunks {
                    far.write_all(&rest[..*chunk]).await.unwrap();
                    rest = &rest[*chunk..];
                }
                far.write_all(b"!").await.unwrap();
                drop(far);
            };
            let ((), (), got) = tokio::join!(rig.run(ours, None, theirs), talk, all(&mut client));
            assert!(got.as_bytes() == [b"HEADfirst ", &sent[..], b"!"].concat());
        });
    }
}
