//! The checks: formatting, lints, every test, the demo; and one summary at the end.
//!
//! Owns which checks there are and what each promises to run. A check that fails does not stop the others, so that one run
//! shows everything.

use std::process::Command;
use std::time::Instant;

use anyhow::bail;

use crate::workspace::{cargo, is_root, root, run, run_keeping, say};
use crate::{demo, kernel_programs, setup, vm};

/// Seeds of the demos that end the checks.
const DEMO_SEEDS: [u64; 2] = [1, 20];

/// How strictly to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strictness {
    /// Without root, what needs root is left out and said to be.
    Developer,
    /// Whatever cannot run is a failure.
    Ci,
}

/// Runs every check.
///
/// # Errors
/// A check failed; the summary names it.
pub(crate) fn all(strictness: Strictness) -> anyhow::Result<()> {
    let live = is_root()?;
    if strictness == Strictness::Ci && !live {
        bail!("the live tests load kernel programs: run this as root");
    }
    setup::all()?;
    let mut report = Report::default();
    report.check("formatting", || {
        run(&mut cargo(["fmt", "--all", "--check"]))?;
        run(&mut cargo([
            "fmt",
            "--manifest-path",
            "ebpf/Cargo.toml",
            "--check",
        ]))
    });
    report.check(
        "npm lock file without addresses",
        lock_files_name_no_registry,
    );
    report.check("kernel programs", kernel_programs);
    report.check("lints", || {
        let mut clippy = cargo([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ]);
        run(strict(&mut clippy, strictness))
    });
    let mut kept = Vec::new();
    report.check("tests", || {
        let mut tests = cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
        strict(&mut tests, strictness);
        tests
            .env("COUNTERSIGN_REQUIRE_READERS", "1")
            .env("COUNTERSIGN_NODE", setup::node()?);
        if live {
            tests
                .env("COUNTERSIGN_REQUIRE_LIVE", "1")
                .env("COUNTERSIGN_REQUIRE_PEERS", "1");
        }
        let (status, lines) = run_keeping(&mut tests, |line| line.starts_with("test result: "))?;
        kept = lines;
        if !status.success() {
            bail!("{status}");
        }
        Ok(())
    });
    if live {
        for seed in DEMO_SEEDS {
            report.check(&format!("demo, seed {seed}"), || demo::demo(seed));
        }
    } else {
        report
            .lines
            .push("SKIP  live tests, peer tests and demo: they need root".to_owned());
    }
    match setup::for_guests() {
        Ok(()) => report.check("guests: doctor and live tests on other kernels", || {
            vm::both_ends()
        }),
        Err(error) if strictness == Strictness::Ci => report.check("guests", || Err(error)),
        Err(error) => report.lines.push(format!("SKIP  guests: {error:#}")),
    }
    report.end(&kept)
}

/// The environment of a CI run: no incremental state that nobody will use again.
fn strict(command: &mut Command, strictness: Strictness) -> &mut Command {
    match strictness {
        Strictness::Developer => command,
        Strictness::Ci => command.env("CI", "true").env("CARGO_INCREMENTAL", "0"),
    }
}

/// A lock file with addresses ties everybody to the registry of whoever wrote it.
fn lock_files_name_no_registry() -> anyhow::Result<()> {
    for file in [
        "tests/peers/package-lock.json",
        "tests/peers/node/package-lock.json",
    ] {
        let text = std::fs::read_to_string(root().join(file))?;
        if text.contains("\"resolved\": \"http") {
            bail!(
                "{file} has resolved addresses: make it with omit-lockfile-registry-resolved=true"
            );
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Report {
    lines: Vec<String>,
    failed: usize,
}

impl Report {
    fn check(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<()>) {
        let start = Instant::now();
        let result = check();
        let seconds = start.elapsed().as_secs();
        self.lines.push(match result {
            Ok(()) => format!("ok    {name} ({seconds} s)"),
            Err(error) => {
                self.failed += 1;
                format!("FAIL  {name} ({seconds} s): {error:#}")
            }
        });
    }

    fn end(self, kept: &[String]) -> anyhow::Result<()> {
        say("\n# summary\n")?;
        for line in self.lines.iter().chain(kept) {
            say(line)?;
        }
        if self.failed > 0 {
            bail!("{} of the checks failed", self.failed);
        }
        Ok(())
    }
}
