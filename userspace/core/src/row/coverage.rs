//! The table of coverage.

use super::ids::{CaptureId, ChannelId, CoverageId, ProcessId};
use super::table::table;
use super::{BootNs, UtcNs};

table! {
    /// What could be seen and what could not: attached programs, heartbeats, ledgers, clocks, gaps. A claim that something did not
    /// happen is worth what this table says for its time.
    CoverageRow: "coverage" by from_utc {
        /// Id of the statement.
        coverage_id: CoverageId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// What it states: `capture` (start and end), `program` (one kernel program), `heartbeat`, `counter` (one of the kernel's), `gap`,
        /// `clock`, `channel` (a balance that does not add up), `segment` (of the spool), `scan`, `log_file` or `loss`.
        kind: &'static str,
        /// Name of the thing: program, counter, file.
        name: Option<String>,
        /// Start of the interval that it speaks of.
        from_utc: UtcNs,
        /// The same by the boot clock.
        from_boot_ns: BootNs,
        /// End of that interval; equal to the start for a moment.
        to_utc: UtcNs,
        /// The same by the boot clock.
        to_boot_ns: BootNs,
        /// It takes something away from the evidence: the rows to read first.
        weakens: bool,
        /// Whether the program is attached, the segment is whole, the scan succeeded; null where that is no question.
        ok: Option<bool>,
        /// Why not, or why there is a gap, in one word.
        reason: Option<&'static str>,
        /// The same for people; never a payload.
        detail: Option<String>,
        /// How often the program ran, or how many of the counted things there were.
        run_count: Option<u64>,
        /// How often the kernel skipped the program: what it would have seen is lost and names no channel.
        miss_count: Option<u64>,
        /// Records lost.
        lost_records: Option<u64>,
        /// Bytes lost, or the length of the gap; null if not known.
        lost_bytes: Option<u64>,
        /// Channel concerned.
        channel_id: Option<ChannelId>,
        /// Stream of it, in the words of `frames.stream`.
        stream: Option<&'static str>,
        /// End of it: `writer` or `reader`.
        end: Option<&'static str>,
        /// Offset of the gap in that stream.
        stream_offset: Option<u64>,
        /// Process concerned.
        process_id: Option<ProcessId>,
        /// The gap is an agent's or server's own doing: it counts against it and buys no doubt.
        self_inflicted: bool,
        /// UTC less boot clock, in nanoseconds, where the row is about clocks.
        clock_offset_ns: Option<i64>,
        /// How far that can be off, in nanoseconds.
        clock_uncertainty_ns: Option<u64>,
    }
}
