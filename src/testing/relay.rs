//! A bad link: a TCP relay that delays, splits and joins what passes, keeps to a rate, and may break in the middle.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::drain::Drain;

/// Most bytes of one segment.
const SEGMENT: usize = 48 * 1024;

/// How bad the link is.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// What its dice begin with; the same seed makes the same cuts of the same reads.
    pub seed: u64,
    /// Longest delay of a segment.
    pub delay: Duration,
    /// Bytes per second and direction; 0 is no limit.
    pub bytes_per_second: u64,
    /// The bytes from the server after which a connection is reset; 0 is never.
    pub breaks_after: u64,
}

/// A running relay.
pub struct Relay {
    /// Where it listens.
    pub addr: SocketAddr,
    passed: Arc<AtomicU64>,
    breaks_after: Arc<AtomicU64>,
    drain: Drain,
}

/// As many dice as a direction throws: xorshift64*.
struct Dice(u64);

// === impl Relay ===

impl Relay {
    /// Passes connections on to `to`.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start(to: SocketAddr, weather: Weather) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind loopback");
        let addr = listener.local_addr().expect("a bound address");
        let (drain, passed) = (Drain::new(), Arc::new(AtomicU64::new(0)));
        let breaks_after = Arc::new(AtomicU64::new(weather.breaks_after));
        let (tasks, count, breaks) = (drain.clone(), passed.clone(), breaks_after.clone());
        drain.spawn(async move {
            let mut seed = weather.seed;
            loop {
                let client = tokio::select! {
                    accepted = listener.accept() => accepted.expect("accept on loopback").0,
                    () = tasks.stopping() => return,
                };
                seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let weather = Weather { seed, breaks_after: breaks.load(Ordering::Relaxed), ..weather };
                let (stop, count) = (tasks.clone(), count.clone());
                tasks.spawn(async move {
                    tokio::select! {
                        () = pass(client, to, weather, &count) => {}
                        () = stop.stopping() => {}
                    }
                });
            }
        });
        Self { addr, passed, breaks_after, drain }
    }

    /// Bytes that came from the server so far, over all connections.
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// From now on new connections break after so many bytes from the server; 0 is never.
    pub fn break_after(&self, bytes: u64) {
        self.breaks_after.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

async fn pass(client: TcpStream, to: SocketAddr, weather: Weather, passed: &AtomicU64) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    for socket in [&client, &server] {
        // Without it the kernel would join what is split here.
        socket.set_nodelay(true).expect("a live socket");
        if weather.breaks_after > 0 {
            SockRef::from(socket).set_linger(Some(Duration::ZERO)).expect("a live socket");
        }
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let never = AtomicU64::new(0);
    let up = one_way(from_client, to_server, Weather { breaks_after: 0, ..weather }, &never);
    let down = one_way(from_server, to_client, Weather { seed: !weather.seed, ..weather }, passed);
    tokio::pin!(up, down);
    // A break drops all four halves, which resets both connections.
    let (mut up_done, mut down_done) = (false, false);
    while !(up_done && down_done) {
        tokio::select! {
            whole = &mut up, if !up_done => match whole {
                true => up_done = true,
                false => return,
            },
            whole = &mut down, if !down_done => match whole {
                true => down_done = true,
                false => return,
            },
        }
    }
}

/// Passes bytes until the reader ends; false when the link broke.
async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: Weather,
    passed: &AtomicU64,
) -> bool {
    let mut dice = Dice(weather.seed | 1);
    let mut buffer = vec![0; SEGMENT];
    let (start, mut moved) = (Instant::now(), 0u64);
    loop {
        let room = dice.up_to(SEGMENT);
        let count = match from.read(&mut buffer[..room]).await {
            Ok(0) => return to.shutdown().await.is_ok(),
            Ok(count) => count,
            Err(_) => return false,
        };
        if weather.delay > Duration::ZERO && dice.up_to(4) == 1 {
            let longest = usize::try_from(weather.delay.as_micros()).unwrap_or(usize::MAX);
            tokio::time::sleep(Duration::from_micros(dice.up_to(longest) as u64)).await;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(dice.up_to(rest.len()));
            if to.write_all(piece).await.is_err() {
                return false;
            }
            rest = more;
            moved += piece.len() as u64;
            passed.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if weather.breaks_after > 0 && moved >= weather.breaks_after {
                return false;
            }
        }
        if weather.bytes_per_second > 0 {
            let due = Duration::from_secs_f64(moved as f64 / weather.bytes_per_second as f64);
            tokio::time::sleep_until(start + due).await;
        }
    }
}

// === impl Dice ===

impl Dice {
    /// From 1 to `most`; small numbers are likelier.
    fn up_to(&mut self, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let thrown = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        let shift = (thrown >> 58) % u64::from(usize::BITS - most.leading_zeros());
        let within = (most >> shift).max(1) as u64;
        1 + usize::try_from((thrown & 0xffff_ffff) % within).unwrap_or(0)
    }
}
