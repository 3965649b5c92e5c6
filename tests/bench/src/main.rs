//! The benchmarks: what the capture costs the watched and everybody else, how fast the core is, how pairing scales.
//!
//! `cargo xtask bench` builds and runs this. Each benchmark prints Markdown to standard output and its progress to standard
//! error. Nothing here passes or fails by time. The hidden commands are the processes that the benchmarks start.

mod core_speed;
mod exchanges;
mod feed;
mod kernel;
mod memory;
mod pairing;
mod table;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use countersign::bpf::tier::Tier;

use kernel::traffic::{self, Test};

/// Benchmarks of Countersign.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What the capture costs pipes, watched and not (root)
    Kernel {
        /// Object with programs that do nothing
        #[arg(long)]
        empty: PathBuf,
        /// Existing folder for spools, on a disk
        #[arg(long)]
        scratch: PathBuf,
        /// Interleaved repetitions
        #[arg(long, default_value_t = 7)]
        repetitions: usize,
        /// Milliseconds of each measurement
        #[arg(long, default_value_t = 100)]
        milliseconds: u64,
        /// Only these settings, by their names in the table; the bare one is always there
        #[arg(long)]
        only: Vec<String>,
        /// Only these tests, as round-trip:1024
        #[arg(long)]
        test: Vec<Test>,
        /// The tier of the capture: t, k or f; without, the one that works best
        #[arg(long)]
        tier: Option<Tier>,
        /// Milliseconds of each step of the search for the highest rate without loss; 0 for none
        #[arg(long, default_value_t = 3000)]
        rate_milliseconds: u64,
    },
    /// Bytes and messages per second from a spool to rows
    Core {
        /// Existing folder for spools, on a disk
        #[arg(long)]
        scratch: PathBuf,
        /// Interleaved repetitions
        #[arg(long, default_value_t = 3)]
        repetitions: usize,
    },
    /// Time per exchange and memory for many exchanges
    Pairing {
        /// Numbers of exchanges
        #[arg(long, default_values_t = [10_000, 100_000, 1_000_000])]
        exchanges: Vec<u64>,
    },
    /// One end of the traffic
    #[command(hide = true)]
    Worker {
        #[arg(long)]
        milliseconds: u64,
        #[arg(long)]
        result: PathBuf,
        tests: Vec<Test>,
    },
    /// The other end of a round trip
    #[command(hide = true)]
    Echo { bytes: usize },
    /// The other end of a one-way stream
    #[command(hide = true)]
    Sink { bytes: usize },
    /// One of many tagged tasks
    #[command(hide = true)]
    Member,
    /// One measurement of the core in a process of its own
    #[command(hide = true)]
    MeasureCore(core_speed::Measurement),
    /// One measurement of pairing in a process of its own
    #[command(hide = true)]
    MeasurePairing { exchanges: u64 },
}

fn main() -> anyhow::Result<()> {
    // As the command does: kernel programs are loaded with the messages that somebody listens to.
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(io::stderr)
        .init();
    let text = match Arguments::parse().command {
        Command::Kernel {
            empty,
            scratch,
            repetitions,
            milliseconds,
            only,
            test,
            tier,
            rate_milliseconds,
        } => {
            let duration = Duration::from_millis(milliseconds);
            kernel::run(&kernel::Plan {
                empty,
                scratch,
                repetitions,
                duration,
                only,
                tests: test,
                tier,
                highest: (rate_milliseconds > 0).then(|| Duration::from_millis(rate_milliseconds)),
            })?
        }
        Command::Core {
            scratch,
            repetitions,
        } => core_speed::run(&scratch, repetitions)?,
        Command::Pairing { exchanges } => pairing::run(&exchanges)?,
        Command::Worker {
            milliseconds,
            result,
            tests,
        } => {
            return traffic::worker(&tests, Duration::from_millis(milliseconds), &result);
        }
        Command::Echo { bytes } => return traffic::echo(bytes),
        Command::Sink { bytes } => return traffic::sink(bytes),
        Command::Member => return traffic::member(),
        Command::MeasureCore(measurement) => measurement.run()?,
        Command::MeasurePairing { exchanges } => pairing::measure(exchanges)?,
    };
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .context("write the table")
}

/// Writes a line of progress to standard error.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stderr(), "{line}").context("write to stderr")
}
