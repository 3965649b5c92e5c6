//! Guests: the same command on other kernels, in QEMU.
//!
//! Owns the command line of `cargo xtask vm` and the kernels that count.

mod archive;
mod guest;
mod kernel;
mod machine;

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{bail, ensure};
use clap::Args;

use crate::workspace::{root, say};
use guest::Load;
use machine::{Machine, Preempt};

/// The kernels of `all`: the oldest that is supported, and one of each generation since.
const MATRIX: [&str; 4] = ["6.1", "6.12", "6.18", "7"];

/// Arguments of `cargo xtask vm`.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// The start of a kernel's version, as 6.1 or 7, or `all`
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
    /// Program and arguments: a path, a binary or a test of the workspace as it was built last, or a program of busybox
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Runs the command in the guests.
///
/// # Errors
/// A guest did not come to its end.
pub(crate) fn vm(arguments: &VmArgs) -> anyhow::Result<u8> {
    let missing = guest::missing();
    ensure!(
        missing.is_empty(),
        "missing programs: run cargo xtask setup, or install what Debian calls {}",
        missing.join(" ")
    );
    let load = Load {
        command: arguments.command.clone(),
        with: arguments.with.clone(),
    };
    let machine = Machine {
        cpus: arguments.cpus,
        megabytes: arguments.memory,
        preempt: arguments.preempt,
        parameters: arguments.append.clone(),
        limit: Duration::from_secs(arguments.timeout),
    };
    if arguments.kernel != "all" {
        let code = one(&arguments.kernel, &machine, &load)?;
        return Ok(u8::try_from(code).unwrap_or(u8::MAX));
    }
    let mut bad = Vec::new();
    for wanted in MATRIX {
        match one(wanted, &machine, &load) {
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

/// Runs `load` on one kernel; the command's exit code.
fn one(wanted: &str, machine: &Machine, load: &Load) -> anyhow::Result<i32> {
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
    let result = machine.run(&kernel, &initial, &console, &token);
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
