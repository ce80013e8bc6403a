//! Simulated: commands that are no processes, so that a load test costs its node next to nothing.
//!
//! A pod with the annotation [`SIMULATED`] runs these and no others:
//!
//! | command | what it does |
//! | --- | --- |
//! | `hello` | says `hello` |
//! | `source-N` | says N bytes, all alike |
//! | `log-N` | says N bytes of lines as a web server logs them, no two alike |
//! | `random-N` | says N bytes that nothing compresses |
//! | `sink-N` | takes N bytes, or what there is until the end of stdin, and says how many that were |
//! | `echo` | says what it is told, until the end of stdin |
//! | `sleep-N` | says nothing for N seconds |
//!
//! Bounds: [`BUFFER`] bytes of stdin on their way, and [`BLOCK`] bytes that all logs are of, and all that is random.

use std::io;
use std::io::Write;
use std::pin::{Pin, pin};
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::pending;
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf, ReadHalf, SimplexStream};
use tokio::time::{Sleep, sleep};

use super::container::Attached;
use super::process::{NotStarted, Output, Stdin, Streams};
use crate::dev::manifests::SIMULATED;

/// Bytes of stdin on their way to a command.
const BUFFER: usize = 64 * 1024;

/// What is taken at once and thrown away.
const SCRATCH: usize = 16 * 1024;

/// What is said over and over: more than compressors look back.
const BLOCK: usize = 8 * 1024 * 1024;

static LOG: LazyLock<Vec<u8>> = LazyLock::new(log_lines);

static RANDOM: LazyLock<Vec<u8>> = LazyLock::new(|| noise().flatten().take(BLOCK).collect());

/// Takes bytes, and says how many.
struct Sink {
    stdin: ReadHalf<SimplexStream>,
    taken: u64,
    most: u64,
    said: bool,
}

/// Says a block over and over.
struct Over {
    block: &'static [u8],
    at: usize,
    left: u64,
}

/// Says nothing, and ends.
struct Silence(Pin<Box<Sleep>>);

/// Whether commands of this pod are simulated.
pub(super) fn is(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(SIMULATED)).is_some_and(|value| value == "true")
}

/// Starts one.
pub(super) fn start(argv: &[String]) -> Result<Attached, NotStarted> {
    let (stdin, stdout) = streams(argv)?;
    let streams =
        Streams { stdin: stdin.map(Stdin::Simulated), stdout: Some(stdout), stderr: None, terminal: None };
    // The end of its output is its end.
    Ok(Attached { streams, ended: pending().boxed() })
}

fn streams(argv: &[String]) -> Result<(Option<tokio::io::WriteHalf<SimplexStream>>, Output), NotStarted> {
    let unknown = || {
        NotStarted::exec(
            argv.first().map_or("", |name| name).as_ref(),
            "no such simulated command".to_owned(),
        )
    };
    let [name] = argv else { return Err(unknown()) };
    let (name, number) = name.split_once('-').map_or((&**name, None), |(name, number)| (name, Some(number)));
    let number = number.map(|number| number.parse::<u64>().map_err(|_| unknown())).transpose()?;
    Ok(match (name, number) {
        ("hello", None) => (None, Box::pin(&b"hello\n"[..])),
        ("source", Some(bytes)) => (None, Box::pin(tokio::io::repeat(b'x').take(bytes))),
        ("log", Some(left)) => (None, Box::pin(Over { block: &LOG, at: 0, left })),
        ("random", Some(left)) => (None, Box::pin(Over { block: &RANDOM, at: 0, left })),
        ("sleep", Some(seconds)) => (None, Box::pin(Silence(Box::pin(sleep(Duration::from_secs(seconds)))))),
        ("echo", None) => {
            let (stdout, stdin) = tokio::io::simplex(BUFFER);
            (Some(stdin), Box::pin(stdout))
        }
        ("sink", Some(most)) => {
            let (from, stdin) = tokio::io::simplex(BUFFER);
            (Some(stdin), Box::pin(Sink { stdin: from, taken: 0, most, said: false }))
        }
        _ => return Err(unknown()),
    })
}

/// Numbers without an order that shows, the same in every process: a linear congruential generator (Knuth's MMIX), of whose
/// numbers the upper halves are good.
fn noise() -> impl Iterator<Item = [u8; 4]> {
    let next = |seed: &u64| {
        Some(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
    };
    std::iter::successors(Some(1_u64), next).map(|seed| {
        let [a, b, c, d, ..] = seed.to_be_bytes();
        [a, b, c, d]
    })
}

fn log_lines() -> Vec<u8> {
    let mut lines = Vec::with_capacity(BLOCK + 256);
    for (number, [a, b, c, d]) in noise().enumerate() {
        if lines.len() >= BLOCK {
            break;
        }
        // Memory takes everything.
        let _ = writeln!(
            lines,
            "10.{a}.{b}.{c} - - [21/Nov/2026:10:{:02}:{:02} +0000] \"GET /shop/items/{number:x}{a:02x}{c:02x}{b:02x}?page={d} \
             HTTP/1.1\" {} {} \"-\" \"Mozilla/5.0 (X11; Linux x86_64)\" {}.{:03}",
            d % 60,
            b % 60,
            if c > 30 { 200 } else { 404 },
            number * 7,
            a % 3,
            u16::from(c) * 3,
        );
    }
    lines.truncate(BLOCK);
    lines
}

impl AsyncRead for Over {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.block[self.at..];
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        let said = rest.len().min(out.remaining()).min(left);
        out.put_slice(&rest[..said]);
        self.at = (self.at + said) % self.block.len();
        self.left -= said as u64;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Sink {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said {
            return Poll::Ready(Ok(()));
        }
        while self.taken < self.most {
            let mut scratch = [0; SCRATCH];
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(pin!(&mut self.stdin).poll_read(cx, &mut buffer))?;
            match buffer.filled().len() as u64 {
                0 => break,
                len => self.taken += len,
            }
        }
        self.said = true;
        // Twenty digits at most; nobody reads with less room.
        let text = format!("{}\n", self.taken);
        out.put_slice(&text.as_bytes()[..text.len().min(out.remaining())]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Silence {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn says(command: &str, told: &[u8]) -> Vec<u8> {
        let (stdin, mut stdout) = streams(&[command.to_owned()]).unwrap();
        let tell = async {
            if let Some(mut stdin) = stdin {
                // Fails when it takes no more.
                let _ = stdin.write_all(told).await;
                let _ = stdin.shutdown().await;
            }
        };
        let mut said = Vec::new();
        let (_, read) = tokio::join!(tell, stdout.read_to_end(&mut said));
        read.unwrap();
        said
    }

    #[tokio::test(start_paused = true)]
    async fn each_command_says_what_it_is_for() {
        assert_eq!(says("hello", b"").await, b"hello\n");
        assert!(says("source-100000", b"").await == vec![b'x'; 100_000]);
        let long = BLOCK + 1000;
        let (log, random) =
            (says(&format!("log-{long}"), b"").await, says(&format!("random-{long}"), b"").await);
        assert!(log.len() == long && log.starts_with(b"10.") && log[BLOCK..] == log[..1000]);
        let seen = random[..BLOCK].iter().fold([0_usize; 256], |mut seen, byte| {
            seen[usize::from(*byte)] += 1;
            seen
        });
        let even = BLOCK / 256;
        assert!(random.len() == long && seen.iter().all(|seen| seen.abs_diff(even) < even / 50));
        assert_eq!(says("sink-300000", &[0; 300_000]).await, b"300000\n");
        assert_eq!(says("sink-300000", &[0; 1000]).await, b"1000\n");
        assert!(says("echo", &[7; 200_000]).await == [7; 200_000]);
        let before = tokio::time::Instant::now();
        assert!(says("sleep-30", b"").await.is_empty());
        assert_eq!(before.elapsed().as_secs(), 30);
    }

    #[test]
    fn what_is_no_command_does_not_start() {
        for argv in [&["true"][..], &["source"], &["source-x"], &["hello-1"], &["hello", "x"], &[]] {
            let argv: Vec<_> = argv.iter().map(|word| (*word).to_owned()).collect();
            assert!(start(&argv).is_err(), "{argv:?}");
        }
    }
}
