//! Cores: a thread with a runtime of its own for each core, and which of them a connection lives on.
//!
//! In the flow: beneath `listen`, which gives each connection to the core that has the fewest. All of a connection stays
//! there: TLS, requests, the far side, the session. A byte then wakes the one thread that does something about it; the
//! runtime of the process would wake any, and that one another to look for more to do. What is of no connection, such as
//! watches and signals, stays with that runtime, and what blocks goes to the blocking threads of either.
//! Invariants: a connection does not change its core; a panic ends its own task and nothing else; the cores outlive every task
//! of a drain, and are ended behind it.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Bytes of a core's stack: as of a thread of the other runtime, which expressions are bounded for.
const STACK: usize = 2 * 1024 * 1024;

/// Turns of tasks until the kernel is asked what has come. A turn of a bulk copy takes some 100 us, and so many of them may be
/// ahead of a keystroke; asking takes one.
const TURNS: u32 = 4;

/// How long a core may take to drop what is left when it is ended: nothing, unless a task was stuck.
const END: Duration = Duration::from_secs(1);

/// The cores that connections live on.
#[derive(Debug)]
pub struct Cores {
    cores: Vec<Core>,
    running: TaskTracker,
    stop: DropGuard,
}

/// One thread, and the connections that live on it.
#[derive(Debug)]
struct Core {
    runtime: Handle,
    connections: Arc<()>,
}

/// A connection's place on a core, which has one connection more until its drop.
#[derive(Debug)]
pub struct Place {
    runtime: Handle,
    #[allow(dead_code, reason = "counted by its references")]
    counted: Arc<()>,
}

/// A core cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("start a thread for connections")]
pub struct Error(#[source] io::Error);

// === impl Cores ===

impl Cores {
    /// Starts as many threads, or one for each core that this process may use when that is 0.
    ///
    /// # Errors
    /// When the system gives no thread, or no descriptors for it.
    pub fn start(threads: usize) -> Result<Self, Error> {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, NonZeroUsize::get),
            threads => threads,
        };
        let (stop, running) = (CancellationToken::new(), TaskTracker::new());
        // When a later one cannot be had, its drop ends those that were started.
        let mut started = Self { cores: Vec::new(), running, stop: stop.clone().drop_guard() };
        for index in 0..threads {
            let runtime = Builder::new_current_thread().enable_all().event_interval(TURNS).build();
            let runtime = runtime.map_err(Error)?;
            let core = Core { runtime: runtime.handle().clone(), connections: Arc::default() };
            let (stop, running) = (stop.clone(), started.running.token());
            let run = move || {
                runtime.block_on(stop.cancelled());
                // Name look-ups cannot be cancelled and must not delay the end.
                Runtime::shutdown_background(runtime);
                drop(running);
            };
            thread::Builder::new()
                .name(format!("core-{index}"))
                .stack_size(STACK)
                .spawn(run)
                .map_err(Error)?;
            started.cores.push(core);
        }
        Ok(started)
    }

    /// A place on the core that has the fewest connections.
    pub fn place(&self) -> Place {
        let fewest = self.cores.iter().min_by_key(|core| Arc::strong_count(&core.connections));
        let core = fewest.expect("at least one is started");
        Place { runtime: core.runtime.clone(), counted: core.connections.clone() }
    }

    /// Ends the threads, with whatever tasks are left on them; `false` when one of them does not end.
    pub async fn end(self) -> bool {
        let Self { running, stop, .. } = self;
        drop(stop);
        running.close();
        timeout(END, running.wait()).await.is_ok()
    }
}

// === impl Place ===

impl Place {
    /// Where tasks of this connection are to be started.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// The same connection, whose bytes wake this core from now on.
    ///
    /// # Errors
    /// When the kernel does not let it be waited for.
    pub fn take(&self, stream: TcpStream) -> io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _here = self.runtime.enter();
        TcpStream::from_std(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread::ThreadId;

    use super::*;
    use crate::testing::soon;

    /// The thread that tasks of this place run on.
    async fn thread_of(place: &Place) -> ThreadId {
        place.runtime().spawn(async { thread::current().id() }).await.unwrap()
    }

    #[tokio::test]
    async fn connections_go_where_the_fewest_are_and_stay_there() {
        let cores = Cores::start(3).unwrap();
        let mut places = [cores.place(), cores.place(), cores.place()];
        let mut threads = Vec::new();
        for place in &places {
            threads.push(thread_of(place).await);
        }
        assert!(threads[0] != threads[1] && threads[1] != threads[2] && threads[0] != threads[2]);
        assert!(!threads.contains(&thread::current().id()));
        // Two on each of the others, none where one has left.
        let _more = [cores.place(), cores.place(), cores.place()];
        let [_, left, _] = &mut places;
        *left = cores.place();
        let again = cores.place();
        assert_eq!((thread_of(left).await, thread_of(&again).await), (threads[0], threads[1]));
        assert!(soon("the end", cores.end()).await);
    }

    #[tokio::test]
    async fn a_panic_is_the_end_of_its_task_alone() {
        let cores = Cores::start(1).unwrap();
        let place = cores.place();
        let other = place.runtime().spawn(async { tokio::time::sleep(Duration::from_millis(20)).await });
        let panicked = place.runtime().spawn(async { panic!("of one connection") });
        assert!(panicked.await.unwrap_err().is_panic());
        other.await.unwrap();
        thread_of(&place).await;
        assert!(cores.end().await);
    }

    #[tokio::test]
    async fn what_is_left_is_dropped_with_the_cores() {
        let cores = Cores::start(1).unwrap();
        let (held, dropped) = mpsc::channel::<()>();
        cores.place().runtime().spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert!(cores.end().await);
        assert_eq!(dropped.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
