//! The table of findings.

use super::ids::{
    CallId, CaptureId, ChannelId, CoverageId, EntryId, FindingId, ProcessId, VerdictId,
};
use super::table::table;
use super::{BootNs, UtcNs};

table! {
    /// One row per thing that an auditor must look at: a bad verdict, an evasion, a signing key in reach, a hole in coverage.
    FindingRow: "findings" by found_utc {
        /// Id of the finding.
        finding_id: FindingId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// When it happened, or when it was found where that is not known.
        found_utc: UtcNs,
        /// The same by the boot clock.
        found_boot_ns: Option<BootNs>,
        /// `info`, `low`, `medium`, `high` or `critical`.
        severity: &'static str,
        /// What it is, in one word, as `bypassed`, `key_in_reach`, `writer_reader_mismatch`, `evidence_denied`, `log_truncated`.
        kind: &'static str,
        /// One sentence for people. It names things, it never quotes payloads.
        message: String,
        /// What it takes away from the rest of the evidence; null if nothing.
        weakens: Option<String>,
        /// Verdict behind it.
        verdict_id: Option<VerdictId>,
        /// Call concerned.
        call_id: Option<CallId>,
        /// Entry concerned.
        entry_id: Option<EntryId>,
        /// Process that did it.
        process_id: Option<ProcessId>,
        /// Process that it was done to, where one of the capture's.
        target_process_id: Option<ProcessId>,
        /// The id of that process in the initial pid namespace, whether of the capture or not.
        target_pid: Option<u32>,
        /// When that process started, by the boot clock: with the id the kernel's identity of it.
        target_start_boot_ns: Option<BootNs>,
        /// Channel concerned.
        channel_id: Option<ChannelId>,
        /// Statement of coverage concerned.
        coverage_id: Option<CoverageId>,
        /// Name of the proxy concerned.
        proxy_name: Option<String>,
        /// How often it happened, where repetitions are folded into one row.
        count: u64,
    }
}
