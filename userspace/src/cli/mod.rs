//! The commands.
//!
//! Owns parsing, dispatch and the last word: what is printed to standard error and which code is
//! returned. What people or programs read as the result goes to standard output, all else to standard error.

mod args;
mod doctor;
mod pair;
mod pinned;
mod record;
mod run;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub use args::{
    Cli, Command, EvidenceFlags, PairArgs, ProxyFlags, RecordArgs, RunArgs, SchemaArgs, Targets,
    UnpinArgs,
};

use crate::exit::{Code, Failure, OrExit};

/// Runs the command line of this process. The code is one of [`Code`], but for `proxy`, which returns its server's.
pub fn main() -> ExitCode {
    start_log();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own code for a usage error is 2, which means something else here.
            let asked = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            let code = if asked { Code::Clean } else { Code::Usage };
            return if error.print().is_ok() {
                code.into()
            } else {
                Code::Io.into()
            };
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            tell(&format!("error: {failure}"));
            failure.code.into()
        }
    }
}

fn dispatch(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(args) => run::run(args),
        Command::Record(args) => record::record(args),
        Command::Unpin(args) => pinned::unpin(&args),
        Command::Pair(args) => pair::pair(args),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Schema(args) => schema(&args),
        Command::Proxy(args) => return crate::proxy::run(args).map_err(proxy_failure),
    }
    .map(ExitCode::from)
}

fn proxy_failure(error: anyhow::Error) -> Failure {
    let code = match error.downcast_ref::<crate::proxy::StartError>() {
        Some(start) if start.is_not_found() => Code::AgentNotFound,
        Some(_) => Code::AgentNotExecutable,
        None => Code::Config,
    };
    Failure { code, error }
}

fn schema(args: &SchemaArgs) -> Result<Code, Failure> {
    print(&match (args.json, args.markdown) {
        (true, _) => crate::sink::schema::json(),
        (_, true) => crate::sink::schema::markdown(),
        (false, false) => crate::sink::schema::text(),
    })?;
    Ok(Code::Clean)
}

/// Writes one line to standard error. A closed standard error is no reason to fail.
fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "countersign: {line}");
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .or_exit(Code::Io)
}

fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter =
        EnvFilter::try_from_env("COUNTERSIGN_LOG").unwrap_or_else(|_unset| EnvFilter::new("warn"));
    // Fails only if a subscriber exists already, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
}
