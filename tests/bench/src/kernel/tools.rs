//! Other tools on the same traffic: `strace` and `bpftrace`.
//!
//! Owns how they are started, and the question whether they can be.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::traffic::{Pattern, Sample, Test};
use super::{Plan, Setting, take_samples, worker_arguments};

/// What a script for the tool would print of each read and write: who, how much, the first 64 bytes.
const SCRIPT: &str = r#"
tracepoint:raw_syscalls:sys_enter
/ comm == "countersign-ben" && (args->id == 0 || args->id == 1) /
{ @at[tid] = args->args[1]; }
tracepoint:raw_syscalls:sys_exit
/ @at[tid] /
{ printf("%d %d %r\n", tid, args->ret, buf(uptr(@at[tid]), 64)); delete(@at[tid]); }
"#;

/// `bpftrace` needs tracefs, which not every machine has mounted: it gets one in a mount namespace of its own.
const WITH_TRACEFS: &str = "test -e /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec bpftrace \"$@\"";

/// Whether what the setting needs is here.
pub(super) fn usable(setting: Setting) -> anyhow::Result<()> {
    match setting {
        Setting::Bare | Setting::Empty | Setting::Untagged | Setting::Tagged | Setting::Crowd => {
            Ok(())
        }
        Setting::Strace => runs(Command::new("strace").args(["-o", "/dev/null", "true"])),
        Setting::Bpftrace => runs(bpftrace().args(["-c", "/bin/true", "-e", SCRIPT])),
    }
}

/// All tests under one start of the tool.
pub(super) fn measure(
    setting: Setting,
    tests: &[Test],
    plan: &Plan,
) -> anyhow::Result<Vec<Sample>> {
    let folder = tempfile::tempdir_in(&plan.scratch)?;
    let result = folder.path().join("samples.json");
    let program = std::env::current_exe()?;
    let arguments = worker_arguments(tests, plan.duration, &result);
    let mut command = match setting {
        Setting::Strace => {
            let mut command = Command::new("strace");
            command
                .args(["-f", "-e", "trace=read,write", "-o", "/dev/null", "--"])
                .arg(program)
                .args(arguments);
            command
        }
        Setting::Bpftrace => {
            let mut command = bpftrace();
            let line = format!("{} {}", program.display(), arguments.join(" "));
            command
                .args(["-c", &line, "-e", SCRIPT])
                .env("BPFTRACE_STRLEN", "64");
            command
        }
        Setting::Bare | Setting::Empty | Setting::Untagged | Setting::Tagged | Setting::Crowd => {
            bail!("{} is no tool", setting.name())
        }
    };
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path().join("stderr"))?);
    let status = command
        .status()
        .with_context(|| format!("start {}", setting.name()))?;
    anyhow::ensure!(status.success(), "{} ended with {status}", setting.name());
    let samples = take_samples(&result)?;
    anyhow::ensure!(
        samples
            .iter()
            .all(|sample| sample.ops > 0 || sample.test.pattern == Pattern::SystemCall),
        "a test did nothing"
    );
    Ok(samples)
}

fn bpftrace() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", WITH_TRACEFS, "bpftrace"]);
    command
}

fn runs(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{program} cannot be started: install the package {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "{program} ended with {}: {}",
        output.status,
        said.trim()
    );
    Ok(())
}
