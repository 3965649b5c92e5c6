//! How much memory this process has used at most.

use std::fs;

use anyhow::Context as _;

/// Peak resident set in bytes (`VmHWM`, `proc_pid_status(5)`).
pub(crate) fn peak_bytes() -> anyhow::Result<u64> {
    field("/proc/self/status", "VmHWM")
}

/// Memory that can be had without swapping, in bytes (`proc_meminfo(5)`).
pub(crate) fn available_bytes() -> anyhow::Result<u64> {
    field("/proc/meminfo", "MemAvailable")
}

fn field(file: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix(" kB")?
                .parse::<u64>()
                .ok()
        })
        .map(|kib| kib << 10)
        .with_context(|| format!("{file} has no {name}"))
}
