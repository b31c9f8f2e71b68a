//! The one binary: parse the command line, run one role or verb, exit with its code.

mod allocator;
mod args;
mod dev;
mod failure;
mod files;
mod home;
mod logging;
mod roles;
mod signals;
mod verbs;

use std::process::ExitCode;

use clap::Parser;
use dewar_agent::harden_all_but_files;
use dewar_client::{OutputFormat, exit_code};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{Cli, Command, LogFormat};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // First of all: the compiler limits itself, and a thread more would count.
    if let Command::CompileComponent { .. } = cli.command {
        return dewar_sandbox::compile_child();
    }
    allocator::give_memory_back();
    let format = cli.command.output_format();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print(format);
            ExitCode::from(failure.exit_code)
        }
    }
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let log = cli.log.as_deref();
    match cli.command {
        Command::Agent(args) => roles::agent(&args),
        Command::Router(args) => roles::router(&args, log),
        Command::Broker(args) => roles::broker(&args, log),
        Command::Dev(args) => {
            logging::to_stderr(log, LevelFilter::ERROR, LogFormat::Text)?;
            // Before there are threads.
            let in_force = harden_all_but_files();
            let in_force = in_force.map_err(|error| Failure::from_chain(exit_code::APP, "cannot harden the process", &error))?;
            signals::run_until_signalled(|stop| dev::run(args, in_force, stop))
        }
        verb => {
            logging::to_stderr(log, LevelFilter::ERROR, LogFormat::Text)?;
            signals::run_until_signalled(|stop| async { Ok(verbs::run(verb, stop).await.map(|()| 0)?) })
        }
    }
}

/// Help and version are what was asked for; anything else is a mistake, and has its own code.
fn usage(error: &clap::Error) -> ExitCode {
    // Nobody to tell that nobody can be told.
    drop(error.print());
    ExitCode::from(if error.use_stderr() { exit_code::USAGE } else { 0 })
}

impl Command {
    /// How the command prints, its failure included.
    fn output_format(&self) -> OutputFormat {
        match self {
            Self::Dev(args) => args.output.format(),
            Self::Push(args) => args.output.format(),
            Self::Apps(args) | Self::Agents(args) => args.output.format(),
            Self::App(args) | Self::Start(args) | Self::Stop(args) | Self::Restart(args) | Self::Delete(args) => args.output.format(),
            Self::Logs(args) => args.output.format(),
            Self::Files(args) => args.output.format(),
            Self::Scale(args) => args.output.format(),
            Self::Agent(_) | Self::Router(_) | Self::Broker(_) | Self::Completions { .. } | Self::CompileComponent { .. } => {
                OutputFormat::Human
            }
        }
    }
}
