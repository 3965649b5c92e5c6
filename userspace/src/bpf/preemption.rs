//! Whether the running kernel preempts itself: then a program that another task was preempted in is skipped, without an error.
//!
//! Trampolines suffer from it on every kernel, tracepoints from Linux 7.0 on, kprobes and trace events by way of perf on none.

use std::{fmt, fs};

/// The kernel's own word, where debugfs is mounted.
const DEBUGFS: &str = "/sys/kernel/debug/sched/preempt";

/// A kernel's preemption mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only where it blocks.
    None,
    /// And where it offers to.
    Voluntary,
    /// Anywhere, but with patience.
    Lazy,
    /// Anywhere.
    Full,
    /// Not to be found out.
    Unknown,
}

/// A mode and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// The mode.
    pub mode: Mode,
    /// The file or option.
    pub source: String,
}

impl Preemption {
    /// Of the running kernel.
    pub fn of_running_kernel() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let release = read("/proc/sys/kernel/osrelease");
        let config = format!("/boot/config-{}", release.trim());
        let sources = [
            (DEBUGFS.to_owned(), chosen(&read(DEBUGFS))),
            (
                "the kernel's command line".to_owned(),
                on_command_line(&read("/proc/cmdline")),
            ),
            (config.clone(), configured(&read(&config))),
            (
                "/proc/sys/kernel/version".to_owned(),
                in_version(&read("/proc/sys/kernel/version")),
            ),
        ];
        for (source, mode) in sources {
            if let Some(mode) = mode {
                return Self { mode, source };
            }
        }
        Self {
            mode: Mode::Unknown,
            source: format!("{DEBUGFS} cannot be read, and nothing else tells"),
        }
    }

    /// Whether a program may be preempted. In doubt it may.
    pub fn is_preemptible(&self) -> bool {
        !matches!(self.mode, Mode::None | Mode::Voluntary)
    }
}

impl fmt::Display for Preemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::None => "none",
            Mode::Voluntary => "voluntary",
            Mode::Lazy => "lazy",
            Mode::Full => "full",
            Mode::Unknown => "unknown",
        };
        write!(f, "{mode} ({})", self.source)
    }
}

fn mode(word: &str) -> Option<Mode> {
    match word {
        "none" => Some(Mode::None),
        "voluntary" => Some(Mode::Voluntary),
        "lazy" => Some(Mode::Lazy),
        "full" => Some(Mode::Full),
        _ => None,
    }
}

/// `none voluntary (full) lazy`.
fn chosen(text: &str) -> Option<Mode> {
    text.split_whitespace()
        .find_map(|word| mode(word.strip_prefix('(')?.strip_suffix(')')?))
}

/// The last `preempt=` counts.
fn on_command_line(text: &str) -> Option<Mode> {
    text.split_whitespace()
        .rev()
        .find_map(|word| mode(word.strip_prefix("preempt=")?))
}

/// What the kernel was built with, which is what it boots with.
fn configured(text: &str) -> Option<Mode> {
    let is_set = |option: &str| {
        text.lines()
            .any(|line| line.strip_suffix("=y") == Some(option))
    };
    [
        ("CONFIG_PREEMPT_RT", Mode::Full),
        ("CONFIG_PREEMPT_LAZY", Mode::Lazy),
        ("CONFIG_PREEMPT", Mode::Full),
        ("CONFIG_PREEMPT_VOLUNTARY", Mode::Voluntary),
        ("CONFIG_PREEMPT_NONE", Mode::None),
    ]
    .into_iter()
    .find_map(|(option, mode)| is_set(option).then_some(mode))
}

/// Words of `uname -v`. A kernel that can change its mode says only that.
fn in_version(text: &str) -> Option<Mode> {
    let mut words = text.split_whitespace();
    match words.find(|word| word.starts_with("PREEMPT"))? {
        "PREEMPT" | "PREEMPT_RT" => Some(Mode::Full),
        "PREEMPT_LAZY" => Some(Mode::Lazy),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_in_brackets_is_the_one_in_force() {
        assert_eq!(chosen("none voluntary (full) lazy\n"), Some(Mode::Full));
        assert_eq!(chosen("none voluntary full"), None);
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn the_last_option_on_the_command_line_counts() {
        let line = "quiet preempt=full preempt=none preempt=nonsense";
        assert_eq!(on_command_line(line), Some(Mode::None));
        assert_eq!(on_command_line("quiet"), None);
    }

    #[test]
    fn a_configuration_and_a_version_that_leave_it_open_tell_nothing() {
        assert_eq!(
            configured("CONFIG_PREEMPT_VOLUNTARY=y\n"),
            Some(Mode::Voluntary)
        );
        assert_eq!(
            configured("CONFIG_PREEMPT_LAZY=y\nCONFIG_PREEMPT_DYNAMIC=y\n"),
            Some(Mode::Lazy)
        );
        assert_eq!(configured("# CONFIG_PREEMPT is not set\n"), None);
        assert_eq!(in_version("#1 SMP PREEMPT_RT Debian"), Some(Mode::Full));
        assert_eq!(in_version("#1 SMP PREEMPT_DYNAMIC Debian"), None);
        assert_eq!(in_version("#1 SMP Debian"), None);
    }

    #[test]
    fn what_is_not_known_counts_as_preemptible() {
        let of = |mode| {
            Preemption {
                mode,
                source: String::new(),
            }
            .is_preemptible()
        };
        assert!(of(Mode::Unknown) && of(Mode::Lazy) && of(Mode::Full));
        assert!(!of(Mode::None) && !of(Mode::Voluntary));
    }
}
