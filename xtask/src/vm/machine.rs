//! One run of QEMU.
//!
//! Owns the process: its arguments, its time limit, and how the guest's exit code comes out.

use std::fs;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::kernel::Kernel;
use crate::workspace::say;

/// How a kernel preempts itself; names of its `preempt=` parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preempt {
    Full,
    Voluntary,
    Lazy,
    None,
}

impl Preempt {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Voluntary => "voluntary",
            Self::Lazy => "lazy",
            Self::None => "none",
        }
    }
}

/// The machine around a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) megabytes: u32,
    /// The kernel's own default without.
    pub(crate) preempt: Option<Preempt>,
    /// Further kernel parameters.
    pub(crate) parameters: Vec<String>,
    /// The whole run, boot included.
    pub(crate) limit: Duration,
}

/// What a run reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Files<'a> {
    /// The guest's file system.
    pub(crate) initial: &'a Path,
    /// Where the kernel's messages go.
    pub(crate) console: &'a Path,
    /// Where the command's output goes; to ours without.
    pub(crate) output: Option<&'a Path>,
}

/// Kernels that get no `cmpxchg16b`, by the start of their names: after it QEMU 7.2 now and then has wrong flags, and their allocator, which uses it
/// most, dies of that with a double fault within a minute of forks. Later ones need it: without it Linux 7 has no task storage.
const WITHOUT_CX16: [&str; 1] = ["6.12."];
/// Lines of the kernel's messages that are shown when a guest dies.
const LAST_WORDS: usize = 40;
/// How often the end of the guest is looked for.
const POLL: Duration = Duration::from_millis(50);

impl Machine {
    /// Boots the kernel and returns the exit code that the guest says with `token`.
    ///
    /// # Errors
    /// The guest does not come to its end: a panic, a hang, no QEMU.
    pub(crate) fn run(
        &self,
        kernel: &Kernel,
        files: &Files<'_>,
        token: &str,
    ) -> anyhow::Result<i32> {
        let is_without = WITHOUT_CX16
            .iter()
            .any(|start| kernel.release.starts_with(start));
        let cpu = if is_without { "max,-cx16" } else { "max" };
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-cpu", cpu])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.megabytes.to_string()])
            // Not KVM even where there is one: a nested one may be there and not work, and results should compare.
            .args(["-accel", "tcg,thread=multi"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(files.initial)
            .args(["-append", &self.parameters()])
            .arg("-serial")
            .arg(format!("file:{}", files.console.display()))
            .args(["-serial", "stdio"]);
        if let Some(output) = files.output {
            command.stdout(
                fs::File::create(output)
                    .with_context(|| format!("cannot write {}", output.display()))?,
            );
        }
        if files.output.is_some() || !std::io::stdin().is_terminal() {
            command.stdin(Stdio::null());
        }
        let _unheard = fs::remove_file(files.console);
        let mut child = command
            .spawn()
            .context("cannot start qemu-system-x86_64: run cargo xtask setup")?;
        let ended = wait(&mut child, self.limit)?;
        let messages = fs::read(files.console).unwrap_or_default();
        let messages = String::from_utf8_lossy(&messages);
        if let Some(code) = ended.then(|| exit_code(&messages, token)).flatten() {
            return Ok(code);
        }
        let lines: Vec<_> = messages.lines().collect();
        for line in &lines[lines.len().saturating_sub(LAST_WORDS)..] {
            say(line)?;
        }
        if ended {
            bail!("the guest died: {}", files.console.display());
        }
        bail!("the guest did not end within {} s", self.limit.as_secs());
    }

    fn parameters(&self) -> String {
        let mut all = vec![
            "console=ttyS0".to_owned(),
            "rdinit=/init".to_owned(),
            // A panic ends QEMU, which is told not to reboot.
            "panic=-1".to_owned(),
            "mitigations=off".to_owned(),
            // An emulated CPU that the host does not run for a while is no reason to complain.
            "nowatchdog".to_owned(),
            "clocksource=tsc".to_owned(),
            "tsc=reliable".to_owned(),
        ];
        all.extend(
            self.preempt
                .map(|preempt| format!("preempt={}", preempt.name())),
        );
        all.extend(self.parameters.iter().cloned());
        all.join(" ")
    }
}

/// Whether the child ended within `limit`; it is gone in any case.
fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            return Ok(true);
        }
        thread::sleep(POLL);
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

/// The code in the guest's last message.
fn exit_code(messages: &str, token: &str) -> Option<i32> {
    let (_, rest) = messages.rsplit_once(token)?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_follows_the_token() {
        assert_eq!(exit_code("[ 1.2] t0k 3\r\n[ 1.3] off", "t0k"), Some(3));
        assert_eq!(exit_code("Kernel panic", "t0k"), None);
    }
}
