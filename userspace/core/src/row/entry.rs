//! The table of entries.

use super::ids::{CaptureId, EntryId, ProcessId};
use super::table::{PayloadText, table};
use super::{BootNs, UtcNs};

table! {
    /// The proxy's view: one row per record of a proxy's log, or per line of it that is no record.
    EntryRow: "entries" by observed_utc {
        /// Id of the entry.
        entry_id: EntryId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// The proxy's name in the configuration.
        proxy_name: String,
        /// Process of the proxy that wrote the line; null if its writing was not seen.
        proxy_process_id: Option<ProcessId>,
        /// Format of the log: `mcp_audit`.
        format: &'static str,
        /// Name of the log file, as configured or found by rotation.
        file: String,
        /// Device of the log file; null if unknown.
        file_dev: Option<u64>,
        /// Inode of the log file; null if unknown.
        file_inode: Option<u64>,
        /// Line number in the file, from 1.
        line_number: u64,
        /// Offset of the line's first byte in the file.
        byte_offset: u64,
        /// Length of the line in bytes, its line end not included.
        byte_len: u64,
        /// Lower-case hexadecimal SHA-256 of the line's bytes, its line end not included.
        line_sha256: String,
        /// When the capture got the line; for what was there before, when the capture started. Never taken from the log itself.
        observed_utc: UtcNs,
        /// The same by the boot clock; null where the log was read after the fact.
        observed_boot_ns: Option<BootNs>,
        /// When the proxy's own write of the line returned; null if it was not seen.
        written_utc: Option<UtcNs>,
        /// The same by the boot clock.
        written_boot_ns: Option<BootNs>,
        /// `ok`, or why the line is no record: `torn`, `not_json`, `not_an_entry`, `oversized`. Such a line has no further values.
        state: &'static str,
        /// What in the line strict JSON forbids, in the words of `frames.leniency`.
        leniency: Vec<&'static str>,
        /// The record's own id, a ULID for mcp-audit.
        log_id: Option<String>,
        /// The record's time as the log has it.
        timestamp: Option<String>,
        /// The record's time; null if it cannot be read. It says when the log claims it was, nothing more.
        timestamp_utc: Option<UtcNs>,
        /// `client_to_server` or `server_to_client`, whatever the log's spelling; for a request with its answer that of the answer.
        direction: Option<&'static str>,
        /// Transport as the log has it.
        transport: Option<String>,
        /// Method as the log has it.
        method: Option<String>,
        /// The request's id as the log has it: mcp-audit does not tell `7` from `"7"`.
        request_id: Option<String>,
        /// Tool as the log has it.
        tool_name: Option<String>,
        /// Parameters as the log has them, after this capture's payload mode.
        params: Option<PayloadText>,
        /// Result as the log has it, after this capture's payload mode.
        result: Option<PayloadText>,
        /// Error as the log has it, after this capture's payload mode.
        error: Option<PayloadText>,
        /// The `code` of the error.
        error_code: Option<i64>,
        /// Duration in milliseconds, as the log has it.
        duration_ms: Option<i64>,
        /// Client as the proxy was configured; it was not taken from the wire.
        client_id: Option<String>,
        /// Server as the proxy was configured; it was not taken from the wire.
        server_id: Option<String>,
        /// Signature as the log has it.
        signature: Option<String>,
        /// `valid_disk`, `valid_wire` (only with the bytes seen on the wire), `recovered` (the log was re-serialised), `bad`, `absent`,
        /// `no_key`, or `not_checked` for a line that is no record.
        signature_state: &'static str,
        /// First entry with the same record id or the same line; null if this is the first.
        duplicate_of: Option<EntryId>,
        /// What the proxy's own writes to the file say: `seen_written`, `changed` (it wrote another line there), `not_written` (its writes were seen
        /// without a gap and this is not among them), or `unknown`.
        third_view: &'static str,
        /// The proxy instance was covered when the entry was made, so that the entry needs a call.
        covered: bool,
    }
}
