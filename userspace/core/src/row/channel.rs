//! The table of channels.

use super::ids::{CaptureId, ChannelId};
use super::table::table;
use super::{BootNs, UtcNs};

table! {
    /// One row per pipe, FIFO, socket, TCP connection, terminal or log file that was watched, with its balance: what was written must have been read.
    ChannelRow: "channels" by first_seen_utc {
        /// Id of the channel.
        channel_id: ChannelId,
        /// Capture that it belongs to.
        capture_id: CaptureId,
        /// `pipe`, `fifo`, `unix_stream`, `unix_dgram`, `unix_seqpacket`, `tcp`, `tty` or `file`.
        kind: &'static str,
        /// Device of the inode (`major << 20 | minor`); 0 for sockets.
        dev: u64,
        /// Inode; for sockets that of end a, the one with the lower identity.
        a_inode: u64,
        /// Inode of end b; null for other kinds than sockets, or if it is not known.
        b_inode: Option<u64>,
        /// Address and port of end a of a TCP connection; null for other kinds.
        a_address: Option<String>,
        /// Address and port of end b; null for other kinds.
        b_address: Option<String>,
        /// Framing that is not read: `http`, `http2` or `tls`, by the first bytes of either direction. Its bytes are counted, no message in
        /// it is known. Null for what is read.
        undecoded: Option<&'static str>,
        /// What it carries: `client_proxy`, `proxy_server`, `direct`, `proxy_log`, `other` or `unknown`.
        role: &'static str,
        /// Name of the proxy that it leads to or from, or whose log it is.
        proxy_name: Option<String>,
        /// Whether its first byte is known: `created`, or `attached` (it was in use before the capture).
        start: &'static str,
        /// An operator's rule that allowed it; null if none did.
        allowed_by: Option<String>,
        /// When the capture first saw it.
        first_seen_utc: UtcNs,
        /// The same by the boot clock.
        first_seen_boot_ns: BootNs,
        /// When the capture last saw it.
        last_seen_utc: UtcNs,
        /// The same by the boot clock.
        last_seen_boot_ns: BootNs,
        /// Operations that wrote into the only stream, or the one from a to b.
        a_to_b_write_ops: u64,
        /// Bytes that they moved.
        a_to_b_written_bytes: u64,
        /// Operations that read from that stream.
        a_to_b_read_ops: u64,
        /// Bytes that they moved.
        a_to_b_read_bytes: u64,
        /// Bytes in the kernel's queue when it was last looked at (of a TCP connection: at both ends and between them); null if something
        /// was counted since, or it never was. Terminals change what goes through them: they have no balance.
        a_to_b_queued_bytes: Option<u64>,
        /// Written less read less queued: anything but 0 moved by a way that was not seen, or before it was counted; of messages also what
        /// their receiver had no room for. Null if the queue is not known.
        a_to_b_residue_bytes: Option<i64>,
        /// Operations that wrote into the stream from b to a; 0 for other kinds than sockets, here and below.
        b_to_a_write_ops: u64,
        /// Bytes that they moved.
        b_to_a_written_bytes: u64,
        /// Operations that read from that stream.
        b_to_a_read_ops: u64,
        /// Bytes that they moved.
        b_to_a_read_bytes: u64,
        /// Bytes in the kernel's queue, as above.
        b_to_a_queued_bytes: Option<u64>,
        /// Written less read less queued, as above.
        b_to_a_residue_bytes: Option<i64>,
        /// Payload bytes that were captured, both ends and directions.
        captured_bytes: u64,
        /// Bytes that moved and were not captured at an end where they should have been.
        gap_bytes: u64,
        /// Number of gaps.
        gap_count: u64,
        /// Frames found in it.
        frame_count: u64,
        /// Frames that are MCP traffic.
        mcp_frame_count: u64,
    }
}
