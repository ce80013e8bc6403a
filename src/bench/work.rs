//! Work: what is done through one target, once.

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::client::{Error, Session, Target};
use super::report::Times;
use super::{Commands, Content, Plan};

/// Bytes that are sent at once, as kubectl's copy does.
const PIECE: usize = 32 * 1024;

/// What an idle session is asked at its end.
const ALIVE: &[u8] = b"alive\n";

/// Sessions that began and ended.
pub(super) struct Setups {
    /// All of them.
    pub(super) seconds: f64,
    /// Each, from before its connection to its result.
    pub(super) times: Times,
}

/// Sessions that are open.
pub(super) struct Idle(Vec<Session>);

pub(super) async fn setups(plan: &Plan, target: &Target) -> Result<Setups, Error> {
    let started = Instant::now();
    let times = spread(plan.setups, plan.at_once, |_| {
        let (target, command) = (target.clone(), plan.commands.hello());
        async move {
            let started = Instant::now();
            target.open(&command, false).await?.end().await?;
            Ok(started.elapsed().as_secs_f64())
        }
    });
    let times = Times::new(times.await?);
    Ok(Setups { seconds: started.elapsed().as_secs_f64(), times })
}

pub(super) async fn down(plan: &Plan, target: &Target) -> Result<(), Error> {
    let mut session = target.open(&plan.commands.source(plan.bytes, plan.content), false).await?;
    let mut got = 0;
    while let Some(bytes) = session.output().await? {
        got += bytes.len() as u64;
    }
    session.end().await?;
    if got == plan.bytes { Ok(()) } else { Err(Error::Bytes { got, of: plan.bytes }) }
}

pub(super) async fn up(plan: &Plan, target: &Target) -> Result<(), Error> {
    let mut session = target.open(&plan.commands.sink(plan.bytes), true).await?;
    let piece = vec![0; PIECE];
    let mut left = plan.bytes;
    while left > 0 {
        let len = left.min(PIECE as u64);
        session.send(&piece[..len as usize]).await?;
        left -= len;
    }
    session.end_stdin().await?;
    let mut said = Vec::new();
    while let Some(bytes) = session.output().await? {
        said.extend_from_slice(&bytes);
    }
    session.end().await?;
    let got = std::str::from_utf8(&said).ok().and_then(|said| said.trim().parse().ok()).unwrap_or_default();
    if got == plan.bytes { Ok(()) } else { Err(Error::Bytes { got, of: plan.bytes }) }
}

/// Times of single bytes there and back, beside so many bulk copies.
pub(super) async fn keystrokes(plan: &Plan, target: &Target, beside: usize) -> Result<Times, Error> {
    let mut copies = JoinSet::new();
    for _ in 0..beside {
        let mut copy = target.open(&plan.commands.source(u64::MAX >> 1, Content::Same), false).await?;
        copies.spawn(async move {
            while copy.output().await?.is_some() {}
            copy.end().await
        });
    }
    let strokes = async {
        let mut session = target.open(&plan.commands.echo(), true).await?;
        let mut times = Vec::with_capacity(plan.strokes);
        for _ in 0..plan.strokes {
            let started = Instant::now();
            session.send(b"k").await?;
            session.output().await?.ok_or(Error::Ended)?;
            times.push(started.elapsed().as_secs_f64());
        }
        session.end_stdin().await?;
        session.end().await?;
        Ok(Times::new(times))
    };
    tokio::select! {
        times = strokes => times,
        // None of them ends by itself.
        Some(ended) = copies.join_next() => Err(ended.map_or(Error::Ended, |ended| ended.err().unwrap_or(Error::Ended))),
    }
}

pub(super) async fn idle(plan: &Plan, target: &Target) -> Result<Idle, Error> {
    let open = |_| {
        let (target, command) = (target.clone(), plan.commands.echo());
        async move { target.open(&command, true).await }
    };
    spread(plan.idle, plan.at_once, open).await.map(Idle)
}

// === impl Idle ===

impl Idle {
    /// Ends them, after each has shown that it is alive.
    pub(super) async fn end(self) -> Result<(), Error> {
        for mut session in self.0 {
            session.send(ALIVE).await?;
            let mut left = ALIVE.len();
            while left > 0 {
                left = left.saturating_sub(session.output().await?.ok_or(Error::Ended)?.len());
            }
            session.end_stdin().await?;
            session.end().await?;
        }
        Ok(())
    }
}

// === impl Commands ===

impl Commands {
    fn hello(self) -> Vec<String> {
        self.choose(["true"], "hello".into())
    }

    fn source(self, bytes: u64, content: Content) -> Vec<String> {
        let (file, name) = match content {
            Content::Same => ("/dev/zero", "source"),
            Content::Random => ("/dev/urandom", "random"),
            Content::Log => ("/dev/zero", "log"),
        };
        self.choose(["head", "-c", &bytes.to_string(), file], format!("{name}-{bytes}"))
    }

    fn sink(self, bytes: u64) -> Vec<String> {
        self.choose(["wc", "-c"], format!("sink-{bytes}"))
    }

    fn echo(self) -> Vec<String> {
        self.choose(["cat"], "echo".into())
    }

    fn choose<const N: usize>(self, real: [&str; N], simulated: String) -> Vec<String> {
        match self {
            Self::Real => real.map(str::to_owned).to_vec(),
            Self::Simulated => vec![simulated],
        }
    }
}

/// Does something so many times, so many at a time.
async fn spread<T, F>(times: usize, at_once: usize, one: impl Fn(usize) -> F) -> Result<Vec<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let (mut lanes, mut done) = (JoinSet::new(), Vec::with_capacity(times));
    let mut next = 0..times;
    for index in next.by_ref().take(at_once) {
        lanes.spawn(one(index));
    }
    while let Some(ended) = lanes.join_next().await {
        done.push(ended.unwrap_or(Err(Error::Ended))?);
        if let Some(index) = next.next() {
            lanes.spawn(one(index));
        }
    }
    Ok(done)
}
