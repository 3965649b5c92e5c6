//! What a capture has of one attempt: its bytes, a declaration that they are missing, or neither.

use countersign_common::{Transfer, channel_kind, direction, gap, kind, transfer_flags};
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::{Outcome, Side, Truth, token};

/// Nanoseconds in a clock tick (`USER_HZ` is 100).
const TICK_NS: u64 = 10_000_000;

/// What a capture has of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The kernel refused the method: nothing to capture. With the error.
    Refused(String),
    /// Every byte, up to the documented limit per operation.
    Captured,
    /// Every byte, but some were only looked up in the kernel's buffers while others could change them.
    Snapshot,
    /// Every byte that was not captured is a gap of the right channel, direction and process.
    Declared,
    /// Bytes moved and no record of that channel, direction and process accounts for them.
    Missed,
    /// The capture claims bytes that did not move.
    Wrong(String),
}

/// One record of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    transfer: Transfer,
    payload: Vec<u8>,
}

impl Part {
    /// The operation's part in a record; `None` for records of other kinds.
    pub fn of(record: &[u8]) -> Option<Self> {
        let (transfer, payload) = Transfer::read_from_prefix(record).ok()?;
        let payload = match transfer.header.kind {
            kind::CHUNK => payload.get(..transfer.len as usize)?.to_vec(),
            kind::GAP => Vec::new(),
            _ => return None,
        };
        Some(Self { transfer, payload })
    }

    /// When its operation returned, `CLOCK_BOOTTIME` nanoseconds.
    pub fn exit_ns(&self) -> u64 {
        self.transfer.exit_ns
    }

    /// What it is, for whoever looks for the cause of a cell that came out badly.
    pub fn short(&self) -> String {
        let Transfer {
            header,
            task,
            channel,
            direction,
            syscall,
            flags,
            reason,
            offset,
            len,
            returned,
            op_seq,
            ..
        } = &self.transfer;
        format!(
            "record {} direction {direction} kind {} inode {} tgid {} tid {} call {syscall} flags {flags:#x} reason {reason} \
             op {op_seq} returned {returned} offset {offset} len {len} exit {}",
            header.kind,
            channel.kind,
            channel.inode,
            task.tgid,
            task.tid,
            self.exit_ns()
        )
    }

    /// Whether the process, the direction, the time and the channel are those of the attempt.
    fn belongs_to(&self, truth: &Truth) -> bool {
        let transfer = &self.transfer;
        let wanted = match truth.side {
            Side::Send => direction::WRITE,
            Side::Receive => direction::READ,
        };
        let is_tty = channel_kind_of(&truth.kind) == channel_kind::TTY
            && transfer.channel.kind == channel_kind::TTY;
        transfer.direction == wanted
            && transfer.task.tgid == truth.pid
            && transfer.task.start_boot_ns / TICK_NS == truth.start_ticks
            && (truth.from_ns..=truth.to_ns).contains(&transfer.exit_ns)
            // A terminal's device node is no identity: every master has the same.
            && (transfer.channel.inode == truth.inode || is_tty)
    }
}

/// The record layout's number for a kind of the exerciser.
fn channel_kind_of(name: &str) -> u8 {
    match name {
        "pipe" => channel_kind::PIPE,
        "fifo" => channel_kind::FIFO,
        "unix_stream" | "unix_stream_listener" => channel_kind::UNIX_STREAM,
        "unix_dgram" | "unix_dgram_named" => channel_kind::UNIX_DGRAM,
        "unix_seqpacket" | "unix_seqpacket_listener" => channel_kind::UNIX_SEQPACKET,
        "tcp4" | "tcp6" | "tcp4_netns" => channel_kind::TCP,
        "pty_master" | "pty_slave" => channel_kind::TTY,
        _ => 0,
    }
}

/// Compares an attempt with what was captured meanwhile, in any order.
pub fn classify(truth: &Truth, parts: &[Part]) -> Status {
    let bytes = match &truth.outcome {
        Outcome::Refused { errno } => return Status::Refused(errno.clone()),
        Outcome::Odd { why } => return Status::Wrong(format!("the exerciser: {why}")),
        Outcome::Moved { bytes } | Outcome::Discarded { bytes } => *bytes,
    };
    let expected = token(truth.seed, bytes);
    let mut parts: Vec<_> = parts.iter().filter(|part| part.belongs_to(truth)).collect();
    parts.sort_by_key(|part| {
        let transfer = &part.transfer;
        (transfer.exit_ns, transfer.op_seq, transfer.offset)
    });
    let mut at = 0;
    let (mut declared, mut snapshot) = (false, false);
    for part in parts {
        let transfer = &part.transfer;
        if transfer.channel.kind != channel_kind_of(&truth.kind) {
            return Status::Wrong(format!("channel kind {}", transfer.channel.kind));
        }
        let end = at + transfer.len as usize;
        if transfer.header.kind == kind::GAP && transfer.reason == gap::TRUNCATED && end > bytes {
            // The rest of a message, which nobody received.
            declared |= at < bytes;
            at = bytes;
            continue;
        }
        let Some(moved) = expected.get(at..end) else {
            return Status::Wrong(format!("{end} bytes, {bytes} moved"));
        };
        if transfer.header.kind == kind::GAP {
            declared |= transfer.reason != gap::LIMIT;
        } else if part.payload != moved {
            return Status::Wrong(format!("other bytes at {at}"));
        }
        snapshot |= transfer.flags & transfer_flags::SNAPSHOT != 0;
        at = end;
    }
    if at < bytes {
        Status::Missed
    } else if declared {
        Status::Declared
    } else if snapshot {
        Status::Snapshot
    } else {
        Status::Captured
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth() -> Truth {
        Truth {
            method: "write".to_owned(),
            kind: "pipe".to_owned(),
            side: Side::Send,
            size: 32,
            seed: 7,
            pid: 70,
            start_ticks: 3,
            inode: 9,
            from_ns: 100,
            to_ns: 200,
            outcome: Outcome::Moved { bytes: 32 },
        }
    }

    fn part(offset: usize, payload: &[u8]) -> Part {
        let mut transfer = Transfer::read_from_bytes(&[0; size_of::<Transfer>()]).expect("zeroes");
        transfer.header.kind = kind::CHUNK;
        transfer.task.tgid = 70;
        transfer.task.start_boot_ns = 3 * TICK_NS + 5;
        transfer.channel.inode = 9;
        transfer.channel.kind = channel_kind::PIPE;
        transfer.direction = direction::WRITE;
        transfer.exit_ns = 150;
        transfer.offset = offset as u64;
        transfer.len = u32::try_from(payload.len()).expect("short");
        Part {
            transfer,
            payload: payload.to_vec(),
        }
    }

    fn gap_of(len: u32, reason: u16) -> Part {
        let mut part = part(0, b"");
        part.transfer.header.kind = kind::GAP;
        part.transfer.len = len;
        part.transfer.reason = reason;
        part
    }

    #[test]
    fn the_bytes_in_any_order_of_records_are_captured() {
        let bytes = token(7, 32);
        let parts = [part(20, &bytes[20..]), part(0, &bytes[..20])];
        assert_eq!(classify(&truth(), &parts), Status::Captured);
    }

    #[test]
    fn a_gap_declares_and_a_limit_is_no_loss() {
        assert_eq!(
            classify(&truth(), &[gap_of(32, gap::SPLICE)]),
            Status::Declared
        );
        assert_eq!(
            classify(&truth(), &[gap_of(32, gap::LIMIT)]),
            Status::Captured
        );
    }

    #[test]
    fn a_snapshot_is_told_apart_and_what_nobody_received_is_no_surplus() {
        let mut part = part(0, &token(7, 32));
        part.transfer.flags = transfer_flags::SNAPSHOT;
        assert_eq!(classify(&truth(), &[part.clone()]), Status::Snapshot);
        part.transfer.flags = 0;
        let mut rest = gap_of(9, gap::TRUNCATED);
        rest.transfer.offset = 32;
        assert_eq!(classify(&truth(), &[part, rest.clone()]), Status::Captured);
        rest.transfer.reason = gap::SPLICE;
        assert_eq!(classify(&truth(), &[rest]), Status::Missed);
    }

    #[test]
    fn bytes_without_a_record_are_missed() {
        assert_eq!(classify(&truth(), &[]), Status::Missed);
        assert_eq!(
            classify(&truth(), &[gap_of(31, gap::SPLICE)]),
            Status::Missed
        );
    }

    #[test]
    fn records_of_another_process_channel_direction_or_time_do_not_count() {
        let right = part(0, &token(7, 32));
        assert_eq!(
            classify(&truth(), std::slice::from_ref(&right)),
            Status::Captured
        );
        let changes: [fn(&mut Transfer); 5] = [
            |t| t.task.tgid = 71,
            |t| t.task.start_boot_ns = 4 * TICK_NS,
            |t| t.channel.inode = 10,
            |t| t.direction = direction::READ,
            |t| t.exit_ns = 201,
        ];
        for change in changes {
            let mut other = right.clone();
            change(&mut other.transfer);
            assert_eq!(classify(&truth(), &[other]), Status::Missed);
        }
    }

    #[test]
    fn other_bytes_and_more_bytes_are_wrong() {
        let mut bytes = token(7, 32);
        let twice = [part(0, &bytes), part(32, &bytes)];
        assert!(matches!(classify(&truth(), &twice), Status::Wrong(_)));
        bytes[31] ^= 1;
        assert!(matches!(
            classify(&truth(), &[part(0, &bytes)]),
            Status::Wrong(_)
        ));
    }
}
