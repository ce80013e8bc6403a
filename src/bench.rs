//! Bench: load on an API server, a podgate or a kubelet, and what it costs whoever carries it.
//!
//! `app` hands [`run`] a [`Plan`] and [`Target`]s. Each work of the plan is done for one target after the other, in turn and
//! as often as the plan says, because machines change while they run; a [`Report`] tells the medians. [`client`] speaks as
//! kubectl does, [`work`] is what it does, and [`process`] asks the operating system what that cost.
//! Invariants: a session that fails ends the run with what the server said; nothing is reported that was not all there:
//! every byte is counted, and every idle session has to answer at its end.

pub mod client;
pub mod process;
pub mod report;
mod work;

use std::io;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;

use client::Target;
use report::{Report, Unit};

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Sessions that begin and end.
    Setups,
    /// Bytes from a pod.
    Down,
    /// Bytes to a pod.
    Up,
    /// One byte there and back, alone and beside bulk copies.
    Keystroke,
    /// Sessions in which nothing happens.
    Idle,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In this order.
    pub works: Vec<Work>,
    /// How often, each.
    pub rounds: usize,
    /// Set-ups a round.
    pub setups: usize,
    /// How many of them at a time.
    pub at_once: usize,
    /// Bytes of a bulk copy.
    pub bytes: u64,
    /// What they are like.
    pub content: Content,
    /// Round trips of a byte.
    pub strokes: usize,
    /// Bulk copies beside them.
    pub beside: usize,
    /// Idle sessions.
    pub idle: usize,
    /// For how long.
    pub hold: Duration,
    /// What runs in the pods.
    pub commands: Commands,
}

/// Which commands the pods know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Commands {
    /// true, head, wc and cat.
    Real,
    /// hello, source-N, sink-N and echo: those of `podgate dev --simulate`.
    Simulated,
}

/// What the bytes of a bulk copy from a pod are like; those to a pod are all alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Content {
    /// All alike.
    #[default]
    Same,
    /// Nothing compresses them.
    Random,
    /// Lines of a log; only simulated pods have them.
    Log,
}

/// The run cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A session failed.
    #[error("{target}: {work}")]
    Session {
        /// Name of the target.
        target: String,
        /// What was being done.
        work: &'static str,
        /// Why.
        #[source]
        source: client::Error,
    },
    /// The process that is measured.
    #[error("read what process {pid} has used")]
    Process {
        /// Its id.
        pid: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Who is told how far a run is: what is being done for whom, and which part of the whole that is.
pub trait Watch {
    /// This begins, after so many of so many.
    fn begins(&mut self, what: &str, done: usize, all: usize);
}

/// Does all of it.
///
/// # Errors
/// At the first session that fails, or when a process that is measured is gone.
pub async fn run(plan: &Plan, targets: &[Target], watch: &mut impl Watch) -> Result<Report, Error> {
    let mut report = Report::new(targets.iter().map(|target| target.name.clone()));
    let all = plan.works.len() * plan.rounds * targets.len();
    let mut done = 0;
    for work in &plan.works {
        for round in 0..plan.rounds {
            for (index, target) in targets.iter().enumerate() {
                let name = work.name();
                watch.begins(
                    &format!("{name}, round {} of {}, {}", round + 1, plan.rounds, target.name),
                    done,
                    all,
                );
                one(plan, *work, target, &mut report.column(index)).await?;
                done += 1;
            }
        }
    }
    Ok(report)
}

/// Does one work once for one target.
async fn one(plan: &Plan, work: Work, target: &Target, column: &mut report::Column<'_>) -> Result<(), Error> {
    let failed = |source| Error::Session { target: target.name.clone(), work: work.name(), source };
    let before = usage(target)?;
    let spent = || -> Result<Option<f64>, Error> {
        let after = usage(target)?;
        Ok(before.zip(after).map(|(before, after)| (after.cpu - before.cpu).as_secs_f64()))
    };
    match work {
        Work::Setups => {
            let setups = work::setups(plan, target).await.map_err(failed)?;
            column.add("set-ups per second", Unit::Count, Some(plan.setups as f64 / setups.seconds));
            column.add("set-up, p50", Unit::Milliseconds, Some(setups.times.at(0.5) * 1e3));
            column.add("set-up, p99", Unit::Milliseconds, Some(setups.times.at(0.99) * 1e3));
            let each = spent()?.map(|spent| spent * 1e3 / plan.setups as f64);
            column.add("CPU per set-up", Unit::Milliseconds, each);
        }
        Work::Down | Work::Up => {
            let started = Instant::now();
            match work {
                Work::Down => work::down(plan, target).await.map_err(failed)?,
                _ => work::up(plan, target).await.map_err(failed)?,
            }
            let gibibytes = plan.bytes as f64 / f64::from(1 << 30);
            let (rate, cpu) = match work {
                Work::Down => ("MiB per second down", "CPU per GiB down"),
                _ => ("MiB per second up", "CPU per GiB up"),
            };
            let seconds = started.elapsed().as_secs_f64();
            column.add(rate, Unit::Count, Some(gibibytes * 1024.0 / seconds));
            column.add(cpu, Unit::Seconds, spent()?.map(|spent| spent / gibibytes));
        }
        Work::Keystroke => {
            let alone = work::keystrokes(plan, target, 0).await.map_err(failed)?;
            column.add("keystroke, p50", Unit::Microseconds, Some(alone.at(0.5) * 1e6));
            column.add("keystroke, p99", Unit::Microseconds, Some(alone.at(0.99) * 1e6));
            if plan.beside > 0 {
                let beside = work::keystrokes(plan, target, plan.beside).await.map_err(failed)?;
                column.add("keystroke beside bulk, p50", Unit::Microseconds, Some(beside.at(0.5) * 1e6));
                column.add("keystroke beside bulk, p99", Unit::Microseconds, Some(beside.at(0.99) * 1e6));
            }
        }
        Work::Idle => {
            let idle = work::idle(plan, target).await.map_err(failed)?;
            let held = usage(target)?;
            let each = before.zip(held).map(|(before, held)| {
                (held.memory as f64 - before.memory as f64) / 1024.0 / plan.idle as f64
            });
            let rested = usage(target)?;
            tokio::time::sleep(plan.hold).await;
            let share = rested.zip(usage(target)?).map(|(before, after)| {
                (after.cpu - before.cpu).as_secs_f64() / plan.hold.as_secs_f64() * 100.0
            });
            idle.end().await.map_err(failed)?;
            column.add("memory per idle session", Unit::Kibibytes, each);
            column.add("CPU while all are idle", Unit::Percent, share.filter(|share| share.is_finite()));
        }
    }
    Ok(())
}

fn usage(target: &Target) -> Result<Option<process::Usage>, Error> {
    let read = |pid| process::usage(pid).map_err(|source| Error::Process { pid, source });
    target.pid.map(read).transpose()
}

// === impl Work ===

impl Work {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Setups, Self::Down, Self::Up, Self::Keystroke, Self::Idle];

    fn name(self) -> &'static str {
        match self {
            Self::Setups => "set-ups",
            Self::Down => "bulk down",
            Self::Up => "bulk up",
            Self::Keystroke => "keystrokes",
            Self::Idle => "idle sessions",
        }
    }
}
