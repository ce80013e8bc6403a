//! The podgate binary: arguments, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use podgate::app::{bench, dev, keys, play, recordings, serve, verify, watch};
use podgate::cli::{self, Cli, Command};
use podgate::config::{self, Config};
use podgate::recording::safe::plain;
use podgate::telemetry;

/// Of allocators that were measured the one that gives back most of what many sessions have used.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit code for arguments and settings that cannot be used.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(flags) => run(Config::serve(&flags), &flags.gateway, async |config| {
            serve::run(&config).await.map_err(Into::into)
        }),
        Command::Check(flags) => run(Config::serve(&flags), &flags.gateway, async |config| {
            let problems = serve::check(&config).await;
            for problem in &problems {
                eprintln!("podgate: {}", telemetry::chain(problem));
            }
            Ok(if problems.is_empty() { 0 } else { USAGE })
        }),
        Command::Dev(flags) => run(Config::dev(&flags), &flags.gateway, async |config| {
            dev::run(&config).await.map_err(Into::into)
        }),
        Command::Verify(flags) => done(verify::run(&flags).map_err(Into::into), USAGE),
        Command::Keys(flags) => done(keys::run(&flags).map(|()| 0).map_err(Into::into), 1),
        Command::Watch(flags) => read(watch::run(&flags), |_| 1),
        Command::Bench(flags) => read(bench::run(&flags), |_| 1),
        Command::Play(flags) => read(play::run(&flags), recordings::Error::exit_code),
        Command::Recordings(command) => read(recordings::run(&command), recordings::Error::exit_code),
    }
}

/// Runs one face of podgate, whose exit code `face` says.
fn run(
    config: Result<Config, config::Error>,
    flags: &cli::Gateway,
    face: impl AsyncFnOnce(Config) -> Result<u8, Box<dyn std::error::Error>>,
) -> ExitCode {
    let config = match config {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    if flags.print_config {
        print!("{}", config.to_yaml());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = telemetry::log_to_stderr(config.log.format, &config.log.filter) {
        return fail(&error, USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let ended = runtime.block_on(face(config));
    // Name look-ups cannot be cancelled and must not delay the end.
    runtime.shutdown_background();
    done(ended, 1)
}

/// The exit code of a face, or that of its error.
fn done(ended: Result<u8, Box<dyn std::error::Error>>, failed: u8) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&*error, failed),
    }
}

/// Runs one of the faces for auditors, which need no settings and write no log.
fn read<E: std::error::Error>(
    face: impl Future<Output = Result<u8, E>>,
    exit_code: impl Fn(&E) -> u8,
) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let ended = runtime.block_on(face);
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // It may quote what stands in a file, whoever made that.
            eprintln!("podgate: {}", plain(&telemetry::chain(&error)));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("podgate: {}", telemetry::chain(error));
    ExitCode::from(code)
}
