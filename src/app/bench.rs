//! `podgate bench`: targets out of kubeconfigs, a bar while it runs, a table or JSON at the end.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::client::{self, Pod, Target};
use crate::bench::{self, Commands, Content, Plan, Watch, Work};
use crate::cli;
use crate::cluster::kube::connect;
use crate::drain::Drain;

/// A run cannot begin, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no way to a target.
    #[error(transparent)]
    Kubeconfig(#[from] connect::Error),
    /// Or none that podgate goes.
    #[error("target {name}")]
    Target {
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: client::Error,
    },
    /// A kubelet looks for no container itself.
    #[error("target {0} is a kubelet: name the container with --container")]
    Container(String),
    /// Real pods have no command for that.
    #[error("--content log is for simulated pods: say --commands simulated as well")]
    NoLog,
    /// It ended early.
    #[error(transparent)]
    Run(bench::Error),
    /// The report cannot be written.
    #[error("write the report")]
    Write(#[source] serde_json::Error),
}

/// Shows how far it is, where somebody looks.
struct Bar(ProgressBar);

/// Does what the flags say, and prints the report.
///
/// # Errors
/// When a target cannot be had, or a session of it fails.
pub async fn run(flags: &cli::Bench) -> Result<u8, Error> {
    if flags.commands == Commands::Real && flags.content == Content::Log {
        return Err(Error::NoLog);
    }
    let background = Drain::new();
    let one = [cli::BenchTarget::default()];
    let named = if flags.targets.is_empty() { &one[..] } else { &flags.targets };
    let mut targets = Vec::with_capacity(named.len());
    for named in named {
        targets.push(target(flags, named, &background)?);
    }
    let works = if flags.works.is_empty() { Work::ALL.to_vec() } else { flags.works.clone() };
    let number = |flag: u32| usize::try_from(flag).unwrap_or(usize::MAX);
    let plan = Plan {
        works,
        rounds: number(flags.rounds),
        setups: number(flags.setups),
        at_once: number(flags.at_once),
        bytes: u64::from(flags.mib) << 20,
        strokes: number(flags.strokes),
        beside: number(flags.beside),
        idle: number(flags.idle),
        hold: flags.hold,
        commands: flags.commands,
        content: flags.content,
    };
    let mut bar = Bar::new();
    let report = bench::run(&plan, &targets, &mut bar).await.map_err(Error::Run)?;
    bar.0.finish_and_clear();
    if flags.json {
        println!("{}", serde_json::to_string_pretty(&report).map_err(Error::Write)?);
    } else {
        print!("{report}");
    }
    Ok(0)
}

fn target(flags: &cli::Bench, named: &cli::BenchTarget, background: &Drain) -> Result<Target, Error> {
    let cli::BenchTarget { name, kubeconfig, context, pid, kubelet } = named.clone();
    let config = connect::kubeconfig(kubeconfig.as_deref(), context)?;
    let name =
        name.unwrap_or_else(|| config.cluster_url.authority().map_or_else(String::new, ToString::to_string));
    if kubelet && flags.container.is_none() {
        return Err(Error::Container(name));
    }
    let pod = Pod {
        namespace: flags.namespace.clone().unwrap_or_else(|| config.default_namespace.clone()),
        name: flags.pod.clone(),
        container: flags.container.clone(),
        at_kubelet: kubelet,
    };
    Target::new(name.clone(), &config, pod, flags.protocol, pid, background)
        .map_err(|source| Error::Target { name, source })
}

// === impl Bar ===

impl Bar {
    fn new() -> Self {
        let bar = if io::stderr().is_terminal() { ProgressBar::new(1) } else { ProgressBar::hidden() };
        // The template is fixed.
        let style = ProgressStyle::with_template("{bar:32} {elapsed_precise} {wide_msg}");
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }
}

impl Watch for Bar {
    fn begins(&mut self, what: &str, done: usize, all: usize) {
        self.0.set_length(all as u64);
        self.0.set_position(done as u64);
        self.0.set_message(what.to_owned());
    }
}
