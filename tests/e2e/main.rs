//! `make e2e`: every client reaches every node through podgate, and nothing is lost on the way.
//!
//! Each cell of the matrix is one check of one client at one node. The clients are programs with kubectl's command line:
//! kubectl itself, and small ones around the libraries (`client.py`, `client.mjs`, `kube_rs.rs`), so that every check is
//! written once. Podgate is the real binary: `podgate dev` with pods of this matrix alone, or, with
//! `make e2e KUBECONFIG=FILE`, `podgate serve` before the cluster that this file leads to (`real.rs`).
//!
//! What a client cannot do by design stands in [`clients::Client::cannot`] with its reason. Such a cell is tried all the
//! same: should it work one day, the reason is wrong, and the run fails as for a cell that should work and does not.
//!
//! `make e2e ONLY="kube-rs v5"` runs the cells whose line has every word.

#![allow(missing_docs, reason = "a program of its own")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

mod answers;
mod audit;
mod checks;
mod clients;
mod endings;
mod house;
mod http;
mod identity;
mod kube_rs;
mod objects;
mod pki;
mod place;
mod podgate;
mod real;
mod report;
mod requests;
mod rights;
mod run;

use std::process::ExitCode;

use checks::{Echo, Target};
use clients::Client;
use podgate::{NODES, Podgate, Translate};
use run::Run;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if(|arg| arg == clients::KUBE_RS).is_some() {
        // Not a return: a thread may still wait for input that nobody sends.
        std::process::exit(kube_rs::run(args).await);
    }
    let mut run = Run::new(args.collect());
    let clients = clients::all().await;
    match std::env::var_os("PODGATE_E2E_KUBECONFIG") {
        Some(kubeconfig) => real::run(kubeconfig.into(), &clients, &mut run).await,
        None => embedded(&clients, &mut run).await,
    }
    run.finish()
}

/// All clients at the nodes of `podgate dev`.
async fn embedded(clients: &[Client], run: &mut Run) {
    for translate in [Translate::Always, Translate::WhenNeeded] {
        let podgate = Podgate::dev(translate, clients).await;
        for client in clients {
            for node in NODES.iter().filter(|node| translate.matters(client, node)) {
                let pod = client.pod(node.name);
                let target = Target {
                    client,
                    place: &node.place(translate),
                    folder: podgate.scratch(&pod),
                    kubeconfig: podgate.kubeconfig(),
                    echo: Echo::Here,
                    image: "podgate.dev/main:1".to_owned(),
                    pod,
                };
                run.checks(&target).await;
            }
        }
        podgate.stop(run.failed()).await;
    }
}
