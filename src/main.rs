//! The podgate binary: arguments, runtime, exit code.

use std::process::ExitCode;

use clap::Parser;
use podgate::app::dev;
use podgate::cli::{Cli, Command};
use podgate::config::Config;
use podgate::telemetry;

/// Exit code for arguments and settings that cannot be used.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let Cli { command: Command::Dev(flags) } = Cli::parse();
    let config = match Config::dev(&flags) {
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
    let ended = runtime.block_on(dev::run(&config));
    // Name look-ups cannot be cancelled and must not delay the end.
    runtime.shutdown_background();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("podgate: {}", telemetry::chain(error));
    ExitCode::from(code)
}
