//! The table of frames.

use super::ids::{CaptureId, ChannelId, FrameId, ProcessId};
use std::sync::Arc;

use super::table::{PayloadBytes, table};
use super::{BootNs, UtcNs};

table! {
    /// The host's view: one row per frame (the bytes of one JSON-RPC payload in a stream), as taken from one end of one hop.
    /// A call that goes through a stdio proxy has up to eight of them; `sightings` ties them to verdicts.
    FrameRow: "frames" by first_byte_utc {
        /// Id of the frame.
        frame_id: FrameId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// Channel that it went through.
        channel_id: ChannelId,
        /// Which of the channel's byte streams: `only` (pipe, FIFO, file), `a_to_b` or `b_to_a` (sockets, terminals; `channels` says which end is a).
        stream: &'static str,
        /// Leg of the call's way: `client_to_proxy`, `proxy_to_server`, `server_to_proxy`, `proxy_to_client`, `direct_request`,
        /// `direct_response`, or `unknown`.
        hop: &'static str,
        /// End at which these bytes were taken: `writer` or `reader`.
        end: &'static str,
        /// Why this end is believed: `kernel_copy`, `proxy_end`, `reader_end` or `writer_end`, best first.
        evidence_source: &'static str,
        /// The bytes come from the memory of a process that is not trusted, which could have changed them around the system call.
        untrusted_end: bool,
        /// Process that wrote the first byte; null if no writer was seen.
        writer_process_id: Option<ProcessId>,
        /// Process that read the first byte; null if no reader was seen.
        reader_process_id: Option<ProcessId>,
        /// More than one process wrote into this frame.
        several_writers: bool,
        /// When the operation that moved the first byte returned.
        first_byte_utc: UtcNs,
        /// The same by the boot clock.
        first_byte_boot_ns: BootNs,
        /// When the operation that moved the last byte returned.
        last_byte_utc: UtcNs,
        /// The same by the boot clock.
        last_byte_boot_ns: BootNs,
        /// Offset of the first byte in the stream, in bytes from the first byte that the capture knows of.
        stream_offset: u64,
        /// Length in bytes, the terminator included.
        byte_len: u64,
        /// How the stream was cut into frames: `line`, or `value` for JSON over several lines, whose lines are frames too.
        framing: &'static str,
        /// First to last byte were captured.
        complete: bool,
        /// Bytes of the frame that were not captured.
        gap_bytes: u64,
        /// Why they were not: `limit`, `fault`, `ring_full`, `splice`, `vectors`, `multishot`, `aio`, `compat`, `attached` (the stream began before the capture),
        /// `order_ambiguous`, `unseen_ops`, `peer_unmarked`, `spool`; null without a gap.
        gap_reason: Option<&'static str>,
        /// Bytes follow a gap, so that something may stand before this frame in the stream that was not seen.
        after_gap: bool,
        /// The stream ended before the frame's terminator.
        unterminated: bool,
        /// What in the text strict JSON forbids but real servers execute, as `duplicate_key`, `case_variant_key`, `invalid_utf8`,
        /// `lone_surrogate`, `not_a_number`, `control_character`, `byte_order_mark`.
        leniency: Vec<&'static str>,
        /// What the frame is: `request`, `notification`, `response`, `error_response`, `batch`, `not_json`, `not_json_rpc`, `oversized`,
        /// `incomplete`, or `refuted`: only the memory of a process that changed it around the system call shows it.
        kind: &'static str,
        /// Number of JSON-RPC messages: 1, or more in a batch; 0 if there is none.
        element_count: u32,
        /// The JSON-RPC id as it stands in the text (`7` and `"7"` differ); null in a batch or without id.
        jsonrpc_id: Option<String>,
        /// Method of a request or notification.
        method: Option<String>,
        /// Name of the tool in a `tools/call`.
        tool_name: Option<String>,
        /// Why this is not MCP traffic, as `proxy_own`, `unknown_method`, `other_protocol`; null if it is.
        out_of_scope: Option<&'static str>,
        /// What `payload` holds: `full` (the bytes on the wire), `redacted` (the same with the values of sensitive keys replaced), `hash` (nothing),
        /// `withheld` (nothing: out of scope) or `refuted` (nothing: it was never in the channel).
        payload_mode: &'static str,
        /// The frame's bytes, which need not be valid UTF-8; null unless `payload_mode` is `full` or `redacted`.
        payload: Option<PayloadBytes>,
        /// Lower-case hexadecimal SHA-256 of the bytes on the wire without the terminator; where the payload is not stored, HMAC-SHA-256
        /// under a key that is thrown away with the capture, so that short secrets cannot be guessed from it. Null if incomplete.
        payload_hash: Option<Arc<str>>,
    }
}
