//! One run: which cells it has, and what comes of each.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;

use crate::checks::{Check, Target};
use crate::report::{Cell, Outcome, Report};

/// How long a cell may take. A slow machine needs seconds; what hangs, hangs for ever.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where and why the last check panicked.
static PANIC: Mutex<String> = Mutex::new(String::new());

pub(crate) struct Run {
    /// Words that a cell's line must have.
    only: Vec<String>,
    report: Report,
}

// === impl Run ===

impl Run {
    pub(crate) fn new(only: Vec<String>) -> Self {
        panic::set_hook(Box::new(|info| *PANIC.lock().unwrap() = info.to_string()));
        Self { only, report: Report::default() }
    }

    /// Whether no cell is left out.
    pub(crate) fn is_whole(&self) -> bool {
        self.only.is_empty()
    }

    /// Runs all checks that are about a client of this kind.
    pub(crate) async fn checks(&mut self, target: &Target<'_>) {
        for check in Check::ALL.into_iter().filter(|check| target.client.takes(*check)) {
            let cell = Cell::new(&target.client.name, &target.place.name, check);
            let works = async {
                check.run(target).await;
                Outcome::Works
            };
            self.cell(cell, target.client.cannot(target.place, check), works).await;
        }
    }

    /// Runs one cell, which fails by panicking.
    pub(crate) async fn cell(
        &mut self,
        cell: Cell,
        cannot: Option<&'static str>,
        check: impl Future<Output = Outcome>,
    ) {
        if !self.only.iter().all(|word| cell.to_string().contains(word)) {
            return;
        }
        let outcome = match (outcome(check).await, cannot) {
            (Outcome::Fails(_), Some(reason)) => Outcome::Cannot(reason),
            (Outcome::Works | Outcome::Same(_), Some(reason)) => {
                Outcome::Fails(format!("it works, yet it is listed as impossible: {reason}"))
            }
            (outcome, _) => outcome,
        };
        self.report.take(cell, outcome);
    }

    /// Something else than a cell panicked.
    pub(crate) fn broke(&mut self) {
        let why = PANIC.lock().unwrap().clone();
        self.report.take(Cell::line("the run", "", ""), Outcome::Fails(why));
    }

    pub(crate) fn failed(&self) -> bool {
        self.report.failed()
    }

    /// Prints the table; whether all is well.
    pub(crate) fn finish(self) -> ExitCode {
        self.report.finish()
    }
}

async fn outcome(check: impl Future<Output = Outcome>) -> Outcome {
    match AssertUnwindSafe(tokio::time::timeout(PATIENCE, check)).catch_unwind().await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Outcome::Fails(format!("not over after {PATIENCE:?}")),
        Err(_) => Outcome::Fails(PANIC.lock().unwrap().clone()),
    }
}
