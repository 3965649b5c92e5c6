//! The command line.
//!
//! Owns every flag and its help text, and nothing else: the commands live in their own modules.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::bpf::tier::Tier;
use crate::config::{Flags, Payload, parse_bytes, parse_duration, parse_ring_bytes};
use crate::key::KeySource;

/// A second, independent witness for MCP traffic.
#[derive(Debug, Parser)]
#[command(name = "countersign", version, about, after_help = crate::exit::HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start an agent, record it from its first instruction, pair with the proxy's log, write the evidence.
    Run(RunArgs),
    /// Record processes that run already, until interrupted.
    #[command(after_help = crate::exit::RECORD_HELP)]
    Record(RecordArgs),
    /// Remove kernel programs that `record --pin` left behind.
    Unpin(UnpinArgs),
    /// Pair a spool with the proxy's log, or with the copy that was kept of it, offline and without privileges.
    Pair(PairArgs),
    /// Say whether this machine can record, and what is missing.
    Doctor(DoctorArgs),
    /// Describe the tables of the evidence.
    Schema(SchemaArgs),
    /// Relay a stdio MCP server and write a signed log.
    Proxy(crate::proxy::Args),
}

/// Arguments of `schema`.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub struct SchemaArgs {
    /// As JSON.
    #[arg(long)]
    pub json: bool,
    /// As Markdown.
    #[arg(long)]
    pub markdown: bool,
}

/// One proxy, and the file with more of them.
#[derive(Debug, Args)]
pub struct ProxyFlags {
    /// Configuration with [[proxy]] blocks; the flags below describe one more.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The proxy's log (JSON lines); it may appear later.
    #[arg(long, value_name = "FILE")]
    pub proxy_log: Option<PathBuf>,
    /// Environment variable with the log's signing key.
    #[arg(long, value_name = "NAME", group = "key")]
    pub key_env: Option<String>,
    /// File with the signing key; one line end at its end is ignored.
    #[arg(long, value_name = "FILE", group = "key")]
    pub key_file: Option<PathBuf>,
    /// Inherited descriptor with the signing key.
    #[arg(long, value_name = "N", group = "key", value_parser = clap::value_parser!(RawFd).range(3..), allow_negative_numbers = true)]
    pub key_fd: Option<RawFd>,
    /// The proxy's executable; `countersign proxy` is known without it.
    #[arg(long, value_name = "FILE")]
    pub proxy_exe: Option<PathBuf>,
    /// A word that makes the proxy redact a value, instead of its built-in ones; repeatable.
    #[arg(long, value_name = "WORD")]
    pub redact_key: Vec<String>,
}

/// What goes where.
#[derive(Debug, Args)]
pub struct EvidenceFlags {
    /// Directory for the evidence: new or empty, out of the agent's reach.
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// How much of each payload goes into the evidence [default: redacted].
    #[arg(long, value_enum, value_name = "MODE")]
    pub payload: Option<Payload>,
    /// Print rows as JSON lines instead of the table.
    #[arg(long)]
    pub json: bool,
}

/// How the spool is kept.
#[derive(Debug, Args)]
pub struct SpoolFlags {
    /// Most disk space for raw records, such as 10GiB. Pairing comes after recording, so nothing can make room
    /// meanwhile: from there on payload is dropped, who did what is kept, and the calls concerned are undecided.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub max_disk: Option<u64>,
    /// Size of the kernel's ring, such as 256MiB; memory for what comes while the disk, or a recorder that was killed, is busy
    /// [default: 64MiB].
    #[arg(long, value_name = "SIZE", value_parser = parse_ring_bytes, allow_hyphen_values = true)]
    pub ring_size: Option<u32>,
    /// How to capture: t (tracepoints), k (kprobes) or f (trampolines) [default: the best one that passes its test].
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
    /// Keep the raw records after pairing; they hold full payloads.
    #[arg(long)]
    pub keep_spool: bool,
}

/// `countersign run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    /// The proxy.
    pub proxy: ProxyFlags,
    #[command(flatten)]
    /// The evidence.
    pub evidence: EvidenceFlags,
    #[command(flatten)]
    /// The spool.
    pub spool: SpoolFlags,
    /// Time to go on recording after the agent has ended [default: 2s].
    #[arg(long, value_name = "TIME", value_parser = parse_duration, allow_hyphen_values = true)]
    pub linger: Option<Duration>,
    /// User that the agent runs as [default: the one behind sudo].
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Let set-user-id programs keep their effect for the agent.
    #[arg(long)]
    pub allow_setuid: bool,
    /// Leave the variable of --key-env in the agent's environment.
    #[arg(long)]
    pub pass_key: bool,
    /// The agent and its arguments.
    #[arg(last = true, required = true, value_name = "AGENT")]
    pub agent: Vec<OsString>,
}

/// `countersign record`.
#[derive(Debug, Args)]
pub struct RecordArgs {
    #[command(flatten)]
    /// The proxy.
    pub proxy: ProxyFlags,
    #[command(flatten)]
    /// The evidence.
    pub evidence: EvidenceFlags,
    #[command(flatten)]
    /// The spool.
    pub spool: SpoolFlags,
    #[command(flatten)]
    /// Whom to record.
    pub targets: Targets,
    /// Keep the kernel programs, what they wait to hand over and who is watched in the kernel (pinned under this name in
    /// /sys/fs/bpf/countersign), should this process die; the same command again goes on with them in the same directory.
    #[arg(long, value_name = "NAME")]
    pub pin: Option<String>,
}

/// `countersign unpin`.
#[derive(Debug, Args)]
pub struct UnpinArgs {
    /// The name given to `record --pin`.
    pub name: String,
}

/// Whom to record.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Targets {
    /// A process with its descendants and what they start from now on; repeatable. A child whose parent ended before
    /// is no descendant any more: name a control group where that matters.
    #[arg(long, value_name = "PID", allow_negative_numbers = true)]
    pub pid: Vec<u32>,
    /// A control group of version 2 (path below its file system) with those below it; who joins later is recorded from
    /// then on, and named; repeatable.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<PathBuf>,
    /// A systemd unit, found by the name of its control group; repeatable.
    #[arg(long, value_name = "NAME")]
    pub unit: Vec<String>,
    /// A container by its id, full or at least 12 digits, found by the name of its control group; repeatable.
    #[arg(long, value_name = "ID")]
    pub container: Vec<String>,
}

/// `countersign pair`.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// The spool's directory, or the output directory that holds it.
    pub spool: PathBuf,
    #[command(flatten)]
    /// The proxy.
    pub proxy: ProxyFlags,
    #[command(flatten)]
    /// The evidence.
    pub evidence: EvidenceFlags,
}

/// `countersign doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
    /// Test this tier alone: t (tracepoints), k (kprobes) or f (trampolines).
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
}

impl ProxyFlags {
    fn into_flags(self) -> Flags {
        let key = self
            .key_env
            .map(KeySource::Env)
            .or(self.key_file.map(KeySource::File))
            .or(self.key_fd.map(KeySource::Fd));
        Flags {
            file: self.config,
            log: self.proxy_log,
            key,
            exe: self.proxy_exe,
            redact_keys: self.redact_key,
            ..Flags::default()
        }
    }
}

impl RunArgs {
    /// Splits the arguments into settings, the output flags and the agent's command line.
    pub fn split(self) -> (Flags, EvidenceFlags, Vec<OsString>) {
        let flags = Flags {
            linger: self.linger,
            user: self.user,
            allow_setuid: self.allow_setuid,
            pass_key: self.pass_key,
            payload: self.evidence.payload,
            max_disk_bytes: self.spool.max_disk,
            ring_bytes: self.spool.ring_size,
            keep_spool: self.spool.keep_spool,
            ..self.proxy.into_flags()
        };
        (flags, self.evidence, self.agent)
    }
}

impl RecordArgs {
    /// Splits the arguments into settings, the output flags and the targets.
    pub fn split(self) -> (Flags, EvidenceFlags, Targets, Option<String>) {
        let flags = Flags {
            payload: self.evidence.payload,
            max_disk_bytes: self.spool.max_disk,
            ring_bytes: self.spool.ring_size,
            keep_spool: self.spool.keep_spool,
            ..self.proxy.into_flags()
        };
        (flags, self.evidence, self.targets, self.pin)
    }
}

impl PairArgs {
    /// Splits the arguments into settings, the output flags and the spool.
    pub fn split(self) -> (Flags, EvidenceFlags, PathBuf) {
        let flags = Flags {
            payload: self.evidence.payload,
            ..self.proxy.into_flags()
        };
        (flags, self.evidence, self.spool)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
