//! The table of processes.

use super::ids::{CaptureId, ProcessId};
use super::table::{PayloadText, table};
use super::{BootNs, UtcNs};

table! {
    /// One row per process incarnation and executed program: a process that executes another program gets a further row with the
    /// same id and the next `exec_seq`.
    ProcessRow: "processes" by first_seen_utc {
        /// Id of the process incarnation.
        process_id: ProcessId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// Programs that it had executed before this one in the capture, so that (`process_id`, `exec_seq`) is unique.
        exec_seq: u32,
        /// Process id in the initial pid namespace.
        pid: u32,
        /// Process id in its own pid namespace; null if not known.
        ns_pid: Option<u32>,
        /// Process id of its parent in the initial pid namespace; null if not known.
        parent_pid: Option<u32>,
        /// Its parent, if that was watched.
        parent_process_id: Option<ProcessId>,
        /// First process of the watched tree that it belongs to; null for peers.
        root_process_id: Option<ProcessId>,
        /// Real user id, initial user namespace.
        uid: u32,
        /// Effective user id; null if not known.
        euid: Option<u32>,
        /// Real group id; null if not known.
        gid: Option<u32>,
        /// Id of its cgroup (inode of its directory in the v2 hierarchy); null if not known.
        cgroup: Option<u64>,
        /// Path of the executable as given to `execve` or found in `/proc`; it is a hint, device and inode are the identity.
        exe_path: Option<String>,
        /// Device of the executable.
        exe_dev: Option<u64>,
        /// Inode of the executable.
        exe_inode: Option<u64>,
        /// Lower-case hexadecimal SHA-256 of the executable, where it was needed to tell a proxy.
        exe_sha256: Option<String>,
        /// First arguments, separated by blanks, after this capture's payload mode: arguments hold secrets often enough.
        args: Option<PayloadText>,
        /// The arguments were longer than what was kept.
        args_truncated: bool,
        /// `agent`, `proxy`, `server`, `peer` or `other`.
        role: &'static str,
        /// How sure the role is: `own` (our own proxy), `verified`, `claimed`, `derived` (from what it does) or `none`.
        role_strength: &'static str,
        /// What lowers that, as `ld_preload`, `ptrace`, `same_uid`, `interpreted`.
        role_weaknesses: Vec<&'static str>,
        /// Name of the proxy that it is an instance of.
        proxy_name: Option<String>,
        /// Why it was watched: `root`, `fork`, `peer`, `scan` or `none` (only mentioned).
        how_tagged: &'static str,
        /// When the capture first saw it with this program.
        first_seen_utc: UtcNs,
        /// The same by the boot clock.
        first_seen_boot_ns: BootNs,
        /// When the process started, by the boot clock: with `pid` the kernel's identity of it.
        start_boot_ns: BootNs,
        /// The same in UTC.
        start_utc: UtcNs,
        /// When the process exited or executed the next program; null if it lived when the capture ended.
        end_utc: Option<UtcNs>,
        /// The same by the boot clock.
        end_boot_ns: Option<BootNs>,
        /// How that row ended: `exited`, `signalled`, `exec` or `alive`.
        end: &'static str,
        /// Exit code; null unless it exited.
        exit_code: Option<u32>,
        /// Signal that killed it; null unless one did.
        exit_signal: Option<u32>,
    }
}
