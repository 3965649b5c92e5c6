//! Workspace commands: set-up, the kernel programs, the demo, the benchmarks, the checks.
//!
//! Owns the command line only; each command is a module of its own.

#[path = "../../tests/peers/agent/src/seed.rs"]
mod seed;

mod bench;
mod checks;
mod coverage;
mod demo;
mod ebpf;
mod setup;
mod tamper;
mod verify;
mod vm;
mod workspace;

use clap::{Parser, Subcommand};

use checks::Strictness;

/// Workspace commands of Countersign.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the demo and the tests need; instant when nothing is missing
    Setup,
    /// Build the kernel programs, with their toolchain if need be
    BuildEbpf,
    /// Run a misbehaving agent under Countersign, tamper with the log, and check every verdict against the plan
    Demo {
        /// Decides the calls, the bypasses and the tampering
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Measure: what the capture costs (root), how fast the core is, how pairing scales; all of it by default
    Bench {
        /// What to measure
        which: Vec<bench::Which>,
        /// Replace these parts of docs/benchmarks.md
        #[arg(long)]
        bless: bool,
        /// Passed on to the benchmark, as `--repetitions 9`
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Run a command on another kernel, in QEMU; ends with its exit code
    Vm(vm::VmArgs),
    /// Move bytes by every method through every kind of channel under a capture, and rewrite the kernel's table in
    /// docs/coverage: this one's (root), or with --vm that of another
    Coverage(coverage::CoverageArgs),
    /// Run every check: formatting, lints, tests and, as root, the live tests, the peers and the demo
    Test,
    /// The same as in CI: whatever cannot run is a failure
    Ci,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup => {
            setup::all()?;
            if let Err(error) = setup::for_guests() {
                workspace::say(&format!("no guests: {error:#}"))?;
            }
            ebpf::ensure_toolchain(&workspace::root()).map(drop)
        }
        Command::BuildEbpf => kernel_programs(),
        Command::Demo { seed } => demo::demo(seed),
        Command::Bench { which, bless, rest } => bench::bench(&which, bless, &rest),
        Command::Vm(arguments) => {
            let code = vm::vm(&arguments)?;
            std::process::exit(i32::from(code));
        }
        Command::Coverage(arguments) => coverage::coverage(&arguments),
        Command::Test => checks::all(Strictness::Developer),
        Command::Ci => checks::all(Strictness::Ci),
    }
}

/// Builds the kernel programs.
fn kernel_programs() -> anyhow::Result<()> {
    ebpf::build(&workspace::root()).map(drop)
}
