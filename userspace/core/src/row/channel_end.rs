//! The table of channel ends.

use super::ids::{CaptureId, ChannelId, ProcessId};
use super::table::table;
use super::{BootNs, UtcNs};

table! {
    /// One row per process that held an end of a channel, and how it came by it.
    ChannelEndRow: "channel_ends" by first_utc {
        /// Channel.
        channel_id: ChannelId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// Process that held the end.
        process_id: ProcessId,
        /// What it could do: `read`, `write` or `both`.
        mode: &'static str,
        /// End of a socket pair: `a` or `b`; null for other kinds.
        socket_end: Option<&'static str>,
        /// How it came by it: `created`, `connected`, `accepted`, `opened`, `pidfd_getfd`, `scm_rights`, `inherited`, `used` (first seen by an
        /// operation) or `scan` (it had it when the capture looked).
        how: &'static str,
        /// Process that it was inherited from or handed over by; null if none or not known.
        from_process_id: Option<ProcessId>,
        /// When it was first seen with it.
        first_utc: UtcNs,
        /// The same by the boot clock.
        first_boot_ns: BootNs,
        /// When it was last seen with it.
        last_utc: UtcNs,
        /// The same by the boot clock.
        last_boot_ns: BootNs,
        /// Operations that it wrote with.
        write_ops: u64,
        /// Bytes that it wrote.
        written_bytes: u64,
        /// Operations that it read with.
        read_ops: u64,
        /// Bytes that it read.
        read_bytes: u64,
    }
}
