//! The benchmarks: builds them in the release profile, runs them, prints their tables and keeps them on request.
//!
//! Owns `docs/benchmarks.md`. What is measured and how is the matter of `tests/bench`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;

use crate::ebpf;
use crate::workspace::{cargo, output, root, run, say};

/// A part of the benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// What the capture costs pipes, watched and not; needs root
    Kernel,
    /// From a spool to rows
    Core,
    /// Many exchanges at once
    Pairing,
}

impl Which {
    const ALL: [Self; 3] = [Self::Kernel, Self::Core, Self::Pairing];

    fn command(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Core => "core",
            Self::Pairing => "pairing",
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Self::Kernel => "## Kernel: what the capture costs",
            Self::Core => "## Core: from a spool to rows",
            Self::Pairing => "## Pairing: many exchanges",
        }
    }
}

/// Measures and prints; with `bless`, keeps the tables.
///
/// # Errors
/// Something cannot be built or measured.
pub(crate) fn bench(which: &[Which], bless: bool, rest: &[String]) -> anyhow::Result<()> {
    let which = if which.is_empty() { &Which::ALL } else { which };
    let scratch = root().join("target/bench");
    fs::create_dir_all(&scratch).context("create target/bench")?;
    // The programs are embedded by the build that follows.
    ebpf::build(&root())?;
    let empty = ebpf::build_empty(&root())?;
    run(&mut cargo([
        "build",
        "--release",
        "--locked",
        "--package",
        "countersign-bench",
    ]))?;
    for part in which {
        let text = output(command(*part, &empty, &scratch).args(rest), &[0])?;
        let section = format!("{}\n\n{}\n\n{text}", part.heading(), machine()?);
        writeln!(io::stdout(), "{section}").context("print the tables")?;
        if bless {
            keep(*part, &section)?;
        }
    }
    Ok(())
}

fn command(part: Which, empty: &Path, scratch: &Path) -> Command {
    let mut command = Command::new(release("countersign-bench"));
    command.arg(part.command()).current_dir(root());
    match part {
        Which::Kernel => {
            command
                .arg("--empty")
                .arg(empty)
                .arg("--scratch")
                .arg(scratch);
        }
        Which::Core => {
            command.arg("--scratch").arg(scratch);
        }
        Which::Pairing => {}
    }
    command
}

fn release(name: &str) -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    root().join(target).join("release").join(name)
}

/// Replaces one section of the document and leaves the others.
fn keep(part: Which, section: &str) -> anyhow::Result<()> {
    let path = root().join("docs/benchmarks.md");
    let old = match fs::read_to_string(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    fs::write(&path, replaced(&old, part, section))
        .with_context(|| format!("write {}", path.display()))?;
    say(&format!("{} holds the new tables", path.display()))
}

const PREFACE: &str = "# Benchmarks\n\nMeasured by `cargo xtask bench --bless`. Ratios travel between machines, times do not.\n";

fn replaced(old: &str, part: Which, section: &str) -> String {
    let mut text = PREFACE.to_owned();
    for other in Which::ALL {
        let kept = if other == part {
            Some(section.trim_end())
        } else {
            section_of(old, other)
        };
        if let Some(kept) = kept {
            // A string takes everything.
            let _ = write!(text, "\n{kept}\n");
        }
    }
    text
}

fn section_of(text: &str, part: Which) -> Option<&str> {
    let start = text.find(part.heading())?;
    let section = &text[start..];
    let end = section.find("\n## ").unwrap_or(section.len());
    Some(section[..end].trim_end())
}

/// What the numbers were measured on.
fn machine() -> anyhow::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("an unnamed CPU", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let number = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    // "6.18.44-cloud-amd64": the version says enough.
    let version = release.split('-').next().unwrap_or_default().trim();
    let virtual_machine = cpus
        .lines()
        .any(|line| line.starts_with("flags") && line.contains(" hypervisor"));
    let kind = if virtual_machine {
        ", in a virtual machine"
    } else {
        ""
    };
    Ok(format!("Linux {version}, {number} × {model}{kind}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_section_leaves_the_others() {
        let old = replaced(
            "",
            Which::Core,
            "## Core: from a spool to rows\n\nold core\n",
        );
        let both = replaced(
            &old,
            Which::Pairing,
            "## Pairing: many exchanges\n\nnew pairing",
        );
        assert!(both.contains("old core") && both.contains("new pairing"));
        let newer = replaced(
            &both,
            Which::Core,
            "## Core: from a spool to rows\n\nnew core",
        );
        assert!(
            !newer.contains("old core")
                && newer.contains("new core")
                && newer.contains("new pairing")
        );
    }
}
