//! Guests: the same command on other kernels, in QEMU.
//!
//! Owns the command line of `cargo xtask vm` and the kernels that count.

mod archive;
mod guest;
mod kernel;
mod machine;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;

use crate::workspace::{built, cargo, output, root, run, say};
use guest::Load;
use machine::{Files, Machine, Preempt};

/// The kernels of `all`: the oldest that is supported, and one of each generation since.
const MATRIX: [&str; 4] = ["6.1", "6.12", "6.18", "7"];
/// The kernels of `cargo xtask test`: the oldest, and the newest, which preempts programs.
const ENDS: [&str; 2] = ["6.1", "7"];
/// What runs in a guest: the tests of the tier and of the hook that are chosen there, a few of tier T, and those that are about preemption. No task
/// preempts another, except in the tests that are about that.
const CHECKS: &str = "set -e
export COUNTERSIGN_REQUIRE_LIVE=1 COUNTERSIGN_PATIENCE=6 COUNTERSIGN_EXERCISER=@EXERCISER@
export COUNTERSIGN_COVERAGE_DIR=@TABLES@
export COUNTERSIGN_EXERCISER_ARGS='--kind unix_seqpacket --max-size 9000'
@COUNTERSIGN@ doctor >/tmp/doctor || { cat /tmp/doctor; exit 1; }
cat /tmp/doctor
if grep -q 'they are on trace events' /tmp/doctor; then export COUNTERSIGN_HOOK=events; fi
tier=$(sed -n 's/^ok *self-test: tier \\(.\\) .*/\\1/p' /tmp/doctor | tr FKT fkt)
COUNTERSIGN_TIER=$tier chrt -f 10 @LIVE@ --exact @TESTS@
COUNTERSIGN_TIER=t chrt -f 10 @LIVE@ --exact @TESTS_T@
COUNTERSIGN_TIER=$tier @LIVE@ --exact preemption::of_many_small_messages_none_is_missing_in_silence \
    preemption::files_ends_and_attempts_are_seen_while_programs_are_preempted
";
/// Every test loads the programs anew, which an emulated CPU verifies for ten seconds and more: all of them would take half an hour. Those
/// here go once through each part of the programs that reads structures of the kernel or depends on its version: offsets, functions
/// and tracepoints that were renamed or changed, both ABIs, rings, identities of sockets, the life of processes.
const TESTS: [&str; 8] = [
    // A part of the coverage table, held against the whole one in `docs/coverage`.
    "coverage::every_way_to_move_bytes_is_captured_or_declared",
    "calls::every_call_on_a_socket_pair_is_captured_at_both_ends",
    "functions::the_32_bit_abi_and_aio_are_captured",
    "functions::what_io_uring_moves_is_captured_with_any_kind_of_buffer_and_by_workers",
    "functions::every_watched_function_is_on_the_ledger_and_has_missed_nothing",
    "evasion::reading_and_writing_anothers_memory_is_reported_and_ones_own_is_not",
    "peers::a_process_outside_that_connects_to_the_tree_becomes_a_peer",
    "processes::a_thread_that_is_not_the_leader_keeps_the_tag_when_it_executes",
];
/// The same for what only tier T does: look descriptors up, follow rings to their buffers, and read the kernel's copy.
const TESTS_T: [&str; 3] = [
    "calls::every_call_on_a_tcp_connection_over_ipv4_is_captured_at_both_ends",
    "delivery::what_the_kernel_delivers_is_copied_from_its_own_buffers",
    "uring::vectors_through_a_ring_are_captured_at_both_ends",
];
/// Time limit of a guest that runs the checks, several at once on a busy machine.
const CHECKS_LIMIT: Duration = Duration::from_mins(7);

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// The start of a kernel's version, as 6.1 or 7; `all` for one of each generation; `ends` for what `cargo xtask test` does
    kernel: String,
    /// Preemption of the kernel; its own default without
    #[arg(long)]
    preempt: Option<Preempt>,
    /// CPUs of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 3072)]
    memory: u32,
    /// Time limit of a guest in seconds, boot included
    #[arg(long, default_value_t = 240)]
    timeout: u64,
    /// A file or folder to bring along, at the same path
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// A further kernel parameter
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Program and arguments: a path, a binary or a test of the workspace as it was built last, or a program of busybox. Without,
    /// what this checkout has is built and run: `countersign doctor` and the live tests
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Debian packages that guests need and that are not here.
pub(crate) fn missing() -> Vec<&'static str> {
    guest::missing()
}

/// Runs the command in the guests.
///
/// # Errors
/// A guest did not come to its end.
pub(crate) fn vm(arguments: &VmArgs) -> anyhow::Result<u8> {
    let missing = missing();
    ensure!(
        missing.is_empty(),
        "missing programs: run cargo xtask setup, or install what Debian calls {}",
        missing.join(" ")
    );
    if arguments.kernel == "ends" {
        return both_ends().map(|()| 0);
    }
    let mut load = if arguments.command.is_empty() {
        checks()?
    } else {
        Load {
            command: arguments.command.clone(),
            with: Vec::new(),
        }
    };
    load.with.extend(arguments.with.iter().cloned());
    let machine = Machine {
        cpus: arguments.cpus,
        megabytes: arguments.memory,
        preempt: arguments.preempt,
        parameters: arguments.append.clone(),
        limit: Duration::from_secs(arguments.timeout),
    };
    if arguments.kernel != "all" {
        let code = one(&arguments.kernel, &machine, &load, None)?;
        return Ok(u8::try_from(code).unwrap_or(u8::MAX));
    }
    let mut bad = Vec::new();
    for wanted in MATRIX {
        match one(wanted, &machine, &load, None) {
            Ok(0) => {}
            Ok(code) => bad.push(format!("{wanted}: exit code {code}")),
            Err(error) => bad.push(format!("{wanted}: {error:#}")),
        }
    }
    if !bad.is_empty() {
        bail!("{}", bad.join("\n"));
    }
    Ok(0)
}

/// Runs the checks of this checkout on the oldest and the newest kernel, at the same time: each guest mostly waits for its one
/// CPU that verifies programs. The output goes to files; what failed is shown.
///
/// # Errors
/// A check failed, or a kernel could not be had.
pub(crate) fn both_ends() -> anyhow::Result<()> {
    let load = checks()?;
    let cache = root().join("target/vm");
    for wanted in ENDS {
        kernel::kernel(&cache, wanted)?;
    }
    let machine = Machine {
        cpus: 2,
        megabytes: 3072,
        preempt: None,
        parameters: Vec::new(),
        limit: CHECKS_LIMIT,
    };
    let results = thread::scope(|scope| {
        let guests = ENDS.map(|wanted| {
            let output = cache.join(format!("runs/{wanted}.output"));
            let (machine, load) = (&machine, &load);
            let guest = scope.spawn({
                let output = output.clone();
                move || one(wanted, machine, load, Some(&output))
            });
            (wanted, output, guest)
        });
        guests.map(|(wanted, output, guest)| {
            let result = guest
                .join()
                .unwrap_or_else(|_| Err(anyhow!("the guest's thread panicked")));
            (wanted, output, result)
        })
    });
    let mut bad = Vec::new();
    for (wanted, output, result) in results {
        let text = fs::read(&output).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let outcome = match result {
            Ok(0) => {
                for line in text
                    .lines()
                    .filter(|line| line.starts_with("test result: "))
                {
                    say(line)?;
                }
                continue;
            }
            Ok(code) => format!("{wanted}: exit code {code}, {}", output.display()),
            Err(error) => format!("{wanted}: {error:#}"),
        };
        say(&text)?;
        bad.push(outcome);
    }
    ensure!(bad.is_empty(), "{}", bad.join("; "));
    Ok(())
}

/// Runs one live test on a kernel, with its output in a file.
///
/// # Errors
/// There are no guests here, or the test fails or does not come to its end.
pub(crate) fn live_test(
    wanted: &str,
    test: &str,
    live: &Live<'_>,
    output: &Path,
) -> anyhow::Result<()> {
    let program = live_tests()?;
    let mut command = Vec::new();
    if live.unpreempted {
        command.extend(["chrt", "-f", "10"].map(OsString::from));
    }
    command.push(program.clone().into());
    command.extend(["--exact", test, "--nocapture"].map(OsString::from));
    let script: Vec<_> = live
        .environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut with = live.with.to_vec();
    with.push(program);
    let load = Load {
        command: ["env".to_owned()]
            .into_iter()
            .chain(script)
            .map(OsString::from)
            .chain(command)
            .collect(),
        with,
    };
    let machine = Machine {
        cpus: 2,
        megabytes: 3072,
        preempt: None,
        parameters: Vec::new(),
        limit: live.limit,
    };
    let code = one(wanted, &machine, &load, Some(output))?;
    ensure!(
        code == 0,
        "{wanted}: exit code {code}, {}",
        output.display()
    );
    Ok(())
}

/// How a live test runs in a guest.
#[derive(Debug)]
pub(crate) struct Live<'a> {
    /// What it is told.
    pub(crate) environment: &'a [(&'a str, &'a str)],
    /// What it needs beside itself.
    pub(crate) with: &'a [PathBuf],
    /// No task preempts another: all have one real-time priority.
    pub(crate) unpreempted: bool,
    /// Boot included.
    pub(crate) limit: Duration,
}

/// Builds the live tests; where they lie.
fn live_tests() -> anyhow::Result<PathBuf> {
    let messages = output(
        &mut cargo([
            "test",
            "--locked",
            "--package",
            "countersign-tests",
            "--test",
            "live",
            "--no-run",
            "--message-format",
            "json-render-diagnostics",
        ]),
        &[0],
    )?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "live")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo does not say where it put the live tests")
}

/// Builds this checkout; what runs its checks in a guest.
fn checks() -> anyhow::Result<Load> {
    run(&mut cargo([
        "build",
        "--locked",
        "--package",
        "countersign",
        "--package",
        "countersign-tests",
        "--bins",
    ]))?;
    let live = live_tests()?;
    let countersign = built("countersign");
    let exerciser = built("countersign-exerciser");
    let tables = root().join("docs/coverage");
    let script = CHECKS
        .replace("@COUNTERSIGN@", &countersign.display().to_string())
        .replace("@EXERCISER@", &exerciser.display().to_string())
        .replace("@TABLES@", &tables.display().to_string())
        .replace("@LIVE@", &live.display().to_string())
        .replace("@TESTS@", &TESTS.join(" "))
        .replace("@TESTS_T@", &TESTS_T.join(" "));
    Ok(Load {
        command: ["/usr/bin/sh", "-c", &script].map(OsString::from).to_vec(),
        with: vec![countersign, exerciser, live, root().join("docs/coverage")],
    })
}

/// Runs `load` on one kernel, its output to ours or into a file; the command's exit code.
fn one(wanted: &str, machine: &Machine, load: &Load, output: Option<&Path>) -> anyhow::Result<i32> {
    let cache = root().join("target/vm");
    let kernel = kernel::kernel(&cache, wanted)?;
    let start = Instant::now();
    let runs = cache.join("runs");
    fs::create_dir_all(&runs)?;
    // Two guests at once have files of their own, and a command cannot guess what ends the guest.
    let stamp = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_nanos();
    let name = format!("{}-{}", kernel.release, std::process::id());
    let token = format!("countersign-guest-{}-{stamp:x}", std::process::id());
    let initial = runs.join(format!("{name}.cpio"));
    let console = runs.join(format!("{name}.console"));
    guest::write(&initial, &kernel, load, &token)?;
    say(&format!("# Linux {}", kernel.release))?;
    let files = Files {
        initial: &initial,
        console: &console,
        output,
    };
    let result = machine.run(&kernel, &files, &token);
    fs::remove_file(&initial)?;
    if result.is_ok() {
        let _unheard = fs::rename(&console, runs.join(format!("{}.console", kernel.release)));
    }
    let code = result?;
    say(&format!(
        "# Linux {}: exit code {code} after {} s",
        kernel.release,
        start.elapsed().as_secs()
    ))?;
    Ok(code)
}
