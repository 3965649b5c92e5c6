//! `cargo xtask coverage`: the table of what is captured, for the running kernel or in guests.
//!
//! Owns the command only: the live test of that name tries and compares, and `countersign-coverage` puts tables together.

use std::fs;
use std::time::Duration;

use clap::Args;

use crate::vm::{self, Live};
use crate::workspace::{built, cargo, root, run, say};

/// The live test.
const TEST: &str = "coverage::every_way_to_move_bytes_is_captured_or_declared";
/// Time limit of a guest that tries all cells: programs load in half a minute, and each of 1,400 attempts takes 100 ms there.
const LIMIT: Duration = Duration::from_mins(10);

/// Arguments of `cargo xtask coverage`.
#[derive(Debug, Args)]
pub(crate) struct CoverageArgs {
    /// Also put cells that are missed now on the list of those that may be
    #[arg(long, conflicts_with = "vm")]
    allow_missed: bool,
    #[command(flatten)]
    guest: GuestArgs,
    /// Only rewrite the index of the tables
    #[arg(long, conflicts_with_all = ["vm", "allow_missed"])]
    index: bool,
}

/// Where and how in a guest.
#[derive(Debug, Args)]
struct GuestArgs {
    /// The start of another kernel's version, as 6.1 or 7: in a guest
    #[arg(long, requires = "tier")]
    vm: Option<String>,
    /// The tier in the guest
    #[arg(long, requires = "vm", value_parser = ["t", "k", "f"])]
    tier: Option<String>,
    /// In the guest no tokens longer than this, in bytes; the table says so
    #[arg(long, requires = "vm", default_value_t = 70_000)]
    max_size: usize,
    /// In the guest no task preempts another; the table says so
    #[arg(long, requires = "vm")]
    unpreempted: bool,
    /// In the guest programs of tracepoints hang on trace events, as they do on kernels that skip tracepoints
    #[arg(long, requires = "vm")]
    events: bool,
    /// Kinds of channels, one guest for each group of them, as pipe,fifo; all in one guest without
    #[arg(long, requires = "vm", value_name = "KINDS")]
    part: Vec<String>,
}

/// Rewrites the table, and the index of all tables.
///
/// # Errors
/// The kernel programs are not built, this is not root, there are no guests, or a cell is missed that is not on the list.
pub(crate) fn coverage(arguments: &CoverageArgs) -> anyhow::Result<()> {
    let mut outputs = Vec::new();
    match (&arguments.guest.vm, &arguments.guest.tier) {
        (Some(kernel), Some(tier)) => outputs = in_guests(kernel, tier, &arguments.guest)?,
        _ if arguments.index => {}
        _ => here(arguments.allow_missed)?,
    }
    run(cargo([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "countersign-tests",
        "--bin",
        "countersign-coverage",
        "--",
        "docs/coverage",
    ])
    .args(outputs))
}

fn here(allow_missed: bool) -> anyhow::Result<()> {
    let mut command = cargo([
        "test",
        "-p",
        "countersign-tests",
        "--test",
        "live",
        "--",
        "--exact",
        TEST,
    ]);
    command
        .env("COUNTERSIGN_REQUIRE_LIVE", "1")
        .env("COUNTERSIGN_BLESS", "1");
    if allow_missed {
        command.env("COUNTERSIGN_ALLOW_MISSED", "1");
    }
    run(&mut command)
}

/// The results of all parts, in files.
fn in_guests(
    kernel: &str,
    tier: &str,
    arguments: &GuestArgs,
) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let missing = vm::missing();
    anyhow::ensure!(
        missing.is_empty(),
        "missing programs: run cargo xtask setup, or install what Debian calls {}",
        missing.join(" ")
    );
    run(&mut cargo([
        "build",
        "--locked",
        "--package",
        "countersign-tests",
        "--bin",
        "countersign-exerciser",
    ]))?;
    let exerciser = built("countersign-exerciser");
    let place = exerciser.display().to_string();
    let runs = root().join("target/vm/runs");
    fs::create_dir_all(&runs)?;
    let whole = [String::new()];
    let parts = if arguments.part.is_empty() {
        &whole[..]
    } else {
        &arguments.part[..]
    };
    let mut outputs = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let output = runs.join(format!("coverage-{kernel}-{tier}-{number}.output"));
        let mut tried = format!("--max-size {}", arguments.max_size);
        if !part.is_empty() {
            tried = format!("{tried} --kind {part}");
        }
        let mut environment = vec![
            ("COUNTERSIGN_REQUIRE_LIVE", "1"),
            ("COUNTERSIGN_COVERAGE_LINES", "1"),
            ("COUNTERSIGN_TIER", tier),
            ("COUNTERSIGN_EXERCISER", place.as_str()),
            ("COUNTERSIGN_EXERCISER_ARGS", tried.as_str()),
        ];
        if arguments.events {
            environment.push(("COUNTERSIGN_HOOK", "events"));
        }
        let live = Live {
            environment: &environment,
            with: std::slice::from_ref(&exerciser),
            unpreempted: arguments.unpreempted,
            limit: LIMIT,
        };
        vm::live_test(kernel, TEST, &live, &output)?;
        say(&format!("results in {}", output.display()))?;
        outputs.push(output);
    }
    Ok(outputs)
}
