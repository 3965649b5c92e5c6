//! Where things lie in the checkout, and how commands are run.
//!
//! Owns paths and child processes; knows nothing of what the commands are for.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, bail};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}

/// The folder of the third-party MCP programs.
pub(crate) fn peers() -> PathBuf {
    root().join("tests/peers")
}

/// A binary that `cargo build` made in the debug profile.
pub(crate) fn built(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    root().join(target).join("debug").join(name)
}

/// `cargo`, the one that runs us where there is one, at the root of the checkout.
pub(crate) fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Whether this process runs as root.
///
/// # Errors
/// `/proc` is not mounted.
pub(crate) fn is_root() -> anyhow::Result<bool> {
    // The owner of /proc/self is our effective user (proc(5)).
    Ok(fs::metadata("/proc/self")
        .context("cannot read /proc/self: mount /proc")?
        .uid()
        == 0)
}

/// Runs `command` with our own standard streams.
///
/// # Errors
/// It cannot be started or does not succeed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` with our own standard streams and returns how it ended.
///
/// # Errors
/// It cannot be started.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    say(&format!("$ {}", shown(command)))?;
    command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))
}

/// Runs `command`, passes its output on and returns the lines of it for which `keep` holds.
///
/// # Errors
/// It cannot be started or read.
pub(crate) fn run_keeping(
    command: &mut Command,
    keep: impl Fn(&str) -> bool,
) -> anyhow::Result<(ExitStatus, Vec<String>)> {
    say(&format!("$ {}", shown(command)))?;
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let mut kept = Vec::new();
    if let Some(output) = child.stdout.take() {
        let mut ours = io::stdout().lock();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.with_context(|| format!("cannot read from {}", shown(command)))?;
            ours.write_all(&line)?;
            ours.write_all(b"\n")?;
            let text = String::from_utf8_lossy(&line);
            if keep(&text) {
                kept.push(text.into_owned());
            }
        }
    }
    Ok((child.wait()?, kept))
}

/// Runs `command` and returns what it wrote to standard output.
///
/// # Errors
/// It cannot be started, ends with a code outside `accepted`, or writes something that is not UTF-8.
pub(crate) fn output(command: &mut Command, accepted: &[i32]) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !output
        .status
        .code()
        .is_some_and(|code| accepted.contains(&code))
    {
        bail!("{}: {}", shown(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{}: output is not UTF-8", shown(command)))
}

/// Writes a line of progress to standard error.
///
/// # Errors
/// Standard error is closed.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    writeln!(io::stderr(), "{line}").context("cannot write to stderr")
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
