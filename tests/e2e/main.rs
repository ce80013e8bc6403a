//! `make e2e`: every client reaches every node through podgate, and nothing is lost on the way.
//!
//! Each cell of the matrix is one check of one client at one node. The clients are programs with kubectl's command line:
//! kubectl itself, and small ones around the libraries (`client.py`, `client.mjs`, `kube_rs.rs`), so that every check is
//! written once. Podgate is the real binary, with pods of this matrix alone.
//!
//! What a client cannot do by design stands in [`clients::Client::cannot`] with its reason. Such a cell is tried all the
//! same: should it work one day, the reason is wrong, and the run fails as for a cell that should work and does not.
//!
//! `make e2e ONLY="kube-rs v5"` runs the cells whose line has every word.

#![allow(missing_docs, reason = "a program of its own")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

mod checks;
mod clients;
mod kube_rs;
mod podgate;
mod report;

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::FutureExt;

use checks::{Check, Target};
use podgate::{NODES, Podgate, Translate};
use report::{Cell, Outcome, Report};

/// How long a cell may take. A slow machine needs seconds; what hangs, hangs for ever.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where and why the last check panicked.
static PANIC: Mutex<String> = Mutex::new(String::new());

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == clients::KUBE_RS).is_some() {
        // Not a return: a thread may still wait for input that nobody sends.
        std::process::exit(kube_rs::run(args).await);
    }
    let only: Vec<_> = args.collect();
    panic::set_hook(Box::new(|info| *PANIC.lock().unwrap() = info.to_string()));
    let clients = clients::all().await;
    let mut report = Report::default();
    for translate in [Translate::Always, Translate::WhenNeeded] {
        let podgate = Podgate::start(translate, &clients).await;
        for client in &clients {
            for node in NODES.iter().filter(|node| translate.matters(client, node)) {
                let target = Target::new(client, node, &podgate);
                for check in Check::ALL {
                    let cell = Cell::new(client, node, translate, check);
                    if only.iter().all(|word| cell.to_string().contains(word)) {
                        report.take(cell, outcome(check, &target).await);
                    }
                }
            }
        }
        podgate.stop(report.failed()).await;
    }
    report.finish()
}

/// Runs one cell.
async fn outcome(check: Check, target: &Target<'_>) -> Outcome {
    let run = tokio::time::timeout(PATIENCE, check.run(target));
    let failure = match AssertUnwindSafe(run).catch_unwind().await {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(format!("not over after {PATIENCE:?}")),
        Err(_) => Some(PANIC.lock().unwrap().clone()),
    };
    match (failure, target.client.cannot(target.node, check)) {
        (None, None) => Outcome::Works,
        (Some(_), Some(reason)) => Outcome::Cannot(reason),
        (Some(failure), None) => Outcome::Fails(failure),
        (None, Some(reason)) => Outcome::Fails(format!("it works, yet it is listed as impossible: {reason}")),
    }
}
