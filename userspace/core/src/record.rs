//! Kernel and spool records: bytes in, typed records out.
//!
//! Owns the only place where record bytes are interpreted. It trusts nothing: every length is checked against the slice,
//! every closed vocabulary is parsed into an enum. It does not know processes or channels.

use countersign_common as abi;
use thiserror::Error;
use zerocopy::FromBytes;

/// One decoded record, borrowing its variable part.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    /// Part of an operation's bytes.
    Chunk(abi::Transfer, Direction, &'a [u8]),
    /// Part of an operation that was not captured.
    Gap(abi::Transfer, Direction, GapReason),
    /// Bytes that the kernel was about to copy to a reader.
    KernelCopy(abi::Transfer, &'a [u8]),
    /// A process was created.
    Fork(abi::Fork),
    /// A program was executed: record, file name, NUL-separated arguments.
    Exec(abi::Exec, &'a [u8], &'a [u8]),
    /// A process ended.
    Exit(abi::Exit),
    /// A process got hold of a channel's end.
    ChannelEnd(abi::ChannelEnd),
    /// A proxy opened a regular file for writing.
    FileOpen(abi::FileOpen),
    /// A process outside the tree is watched from now on.
    Peer(abi::Peer),
    /// What a stream's counts and its queue said at one moment.
    Queued(abi::Queued),
    /// What the kernel itself counted at an end of a TCP connection.
    SocketCounts(abi::SocketCounts),
    /// The addresses of an end of a TCP connection.
    SocketAddress(abi::SocketAddress),
    /// A watched process tried something that can get round the witness.
    Evasion(abi::evasion::Evasion),
    /// Written by user space: kind and JSON text.
    User(abi::RecordHeader, &'a [u8]),
    /// A kind that this version does not know; counted, not interpreted.
    Unknown(abi::RecordHeader),
}

impl Record<'_> {
    /// What every record starts with.
    pub fn header(&self) -> &abi::RecordHeader {
        match self {
            Self::Chunk(transfer, ..) | Self::Gap(transfer, ..) | Self::KernelCopy(transfer, _) => {
                &transfer.header
            }
            Self::Fork(fork) => &fork.header,
            Self::Exec(exec, ..) => &exec.header,
            Self::Exit(exit) => &exit.header,
            Self::ChannelEnd(end) => &end.header,
            Self::FileOpen(open) => &open.header,
            Self::Peer(peer) => &peer.header,
            Self::Queued(queued) => &queued.header,
            Self::SocketCounts(counts) => &counts.header,
            Self::SocketAddress(address) => &address.header,
            Self::Evasion(evasion) => &evasion.header,
            Self::User(header, _) | Self::Unknown(header) => header,
        }
    }
}

/// Direction of an operation as its process sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the channel to the process.
    Read,
    /// From the process to the channel.
    Write,
}

/// Why bytes are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GapReason {
    /// The per-operation limit was reached.
    Limit,
    /// The user memory was unreadable at return.
    Fault,
    /// The ring was full.
    RingFull,
    /// The call moved bytes without a user buffer.
    Splice,
    /// More I/O vectors than the walker follows.
    Vectors,
    /// The kernel moved the bytes in a way that the capture does not follow.
    Iterator,
    /// An `io_uring` request took its buffers from a group.
    Multishot,
    /// A legacy AIO operation left no result.
    Aio,
    /// Vectors of the 32-bit ABI were not followed.
    Compat,
    /// The receiver had no room for the rest of a message, or threw bytes away.
    Truncated,
    /// Its agent had too much on its way already: a flood costs only its own.
    Credit,
    /// Operations or parts of them never arrived; sized from the kernel's counters.
    UnseenOps,
    /// The spool says that records were lost outside the kernel.
    SpoolLoss,
    /// The capture began in the middle of the stream.
    Attached,
    /// A named memory limit of the correlator was reached.
    MemoryLimit,
    /// A reason code that this version does not know.
    Unknown,
}

impl GapReason {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Fault => "fault",
            Self::RingFull => "ring_full",
            Self::Splice => "splice",
            Self::Vectors => "vectors",
            Self::Iterator => "iterator",
            Self::Multishot => "multishot",
            Self::Aio => "aio",
            Self::Compat => "compat",
            Self::Truncated => "truncated",
            Self::Credit => "credit",
            Self::UnseenOps => "unseen_ops",
            Self::SpoolLoss => "spool_loss",
            Self::Attached => "attached",
            Self::MemoryLimit => "memory_limit",
            Self::Unknown => "unknown",
        }
    }

    fn from_abi(reason: u16) -> Self {
        match reason {
            abi::gap::LIMIT => Self::Limit,
            abi::gap::FAULT => Self::Fault,
            abi::gap::RING_FULL => Self::RingFull,
            abi::gap::SPLICE => Self::Splice,
            abi::gap::VECTORS => Self::Vectors,
            abi::gap::ITERATOR => Self::Iterator,
            abi::gap::MULTISHOT => Self::Multishot,
            abi::gap::AIO => Self::Aio,
            abi::gap::COMPAT => Self::Compat,
            abi::gap::TRUNCATED => Self::Truncated,
            abi::gap::CREDIT => Self::Credit,
            _ => Self::Unknown,
        }
    }
}

/// The kernel (or whoever wrote the spool) is to blame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// Shorter than its header or than the layout of its kind.
    #[error("record of kind {kind} has {actual} bytes, its layout needs {needed}")]
    Short {
        /// Kind, 0 when the header itself is short.
        kind: u16,
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        actual: usize,
    },
    /// The header's size disagrees with the slice.
    #[error("record of kind {kind} says it has {said} bytes, it has {actual}")]
    Size {
        /// Kind.
        kind: u16,
        /// Size in the header.
        said: u32,
        /// Bytes there.
        actual: usize,
    },
    /// A transfer with a direction other than read or write.
    #[error("transfer record with direction {0}")]
    Direction(u8),
    /// A transfer whose part lies outside its operation.
    #[error(
        "transfer part of {len} bytes at {offset} lies outside its operation of {returned} bytes"
    )]
    Range {
        /// Offset of the part.
        offset: u64,
        /// Length of the part.
        len: u32,
        /// Bytes of the operation.
        returned: u64,
    },
}

/// Decodes one record.
///
/// # Errors
/// [`RecordError`] when the bytes do not hold the record that their header announces.
pub fn parse(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let (header, _) =
        abi::RecordHeader::read_from_prefix(bytes).map_err(|_short| RecordError::Short {
            kind: 0,
            needed: size_of::<abi::RecordHeader>(),
            actual: bytes.len(),
        })?;
    if usize::try_from(header.size) != Ok(bytes.len()) {
        return Err(RecordError::Size {
            kind: header.kind,
            said: header.size,
            actual: bytes.len(),
        });
    }
    Ok(match header.kind {
        abi::kind::CHUNK => {
            let (transfer, rest) = fixed::<abi::Transfer>(header.kind, bytes)?;
            let direction = transfer_direction(&transfer)?;
            let len = transfer.len as usize;
            let payload = rest.get(..len).ok_or(RecordError::Short {
                kind: header.kind,
                needed: size_of::<abi::Transfer>() + len,
                actual: bytes.len(),
            })?;
            Record::Chunk(transfer, direction, payload)
        }
        abi::kind::GAP => {
            let (transfer, _) = fixed::<abi::Transfer>(header.kind, bytes)?;
            let direction = transfer_direction(&transfer)?;
            Record::Gap(transfer, direction, GapReason::from_abi(transfer.reason))
        }
        abi::kind::KERNEL_COPY => {
            let (transfer, rest) = fixed::<abi::Transfer>(header.kind, bytes)?;
            let len = transfer.len as usize;
            let payload = rest.get(..len).ok_or(RecordError::Short {
                kind: header.kind,
                needed: size_of::<abi::Transfer>() + len,
                actual: bytes.len(),
            })?;
            Record::KernelCopy(transfer, payload)
        }
        abi::kind::FORK => Record::Fork(fixed(header.kind, bytes)?.0),
        abi::kind::EXEC => {
            let (exec, rest) = fixed::<abi::Exec>(header.kind, bytes)?;
            let name_len = usize::from(exec.filename_len).min(rest.len());
            let (name, rest) = rest.split_at(name_len);
            let args = &rest[..usize::from(exec.args_len).min(rest.len())];
            Record::Exec(exec, name, args)
        }
        abi::kind::EXIT => Record::Exit(fixed(header.kind, bytes)?.0),
        abi::kind::CHANNEL_END => Record::ChannelEnd(fixed(header.kind, bytes)?.0),
        abi::kind::FILE_OPEN => Record::FileOpen(fixed(header.kind, bytes)?.0),
        abi::kind::PEER => Record::Peer(fixed(header.kind, bytes)?.0),
        abi::kind::QUEUED => Record::Queued(fixed(header.kind, bytes)?.0),
        abi::kind::SOCKET_COUNTS => Record::SocketCounts(fixed(header.kind, bytes)?.0),
        abi::kind::SOCKET_ADDRESS => Record::SocketAddress(fixed(header.kind, bytes)?.0),
        abi::kind::EVASION => Record::Evasion(fixed(header.kind, bytes)?.0),
        abi::kind::FIRST_USER.. => {
            let (header, json) = fixed::<abi::RecordHeader>(header.kind, bytes)?;
            Record::User(header, json)
        }
        _ => Record::Unknown(header),
    })
}

fn fixed<T: FromBytes>(kind: u16, bytes: &[u8]) -> Result<(T, &[u8]), RecordError> {
    let needed = size_of::<T>();
    let (head, rest) = bytes.split_at_checked(needed).ok_or(RecordError::Short {
        kind,
        needed,
        actual: bytes.len(),
    })?;
    let value = T::read_from_bytes(head).map_err(|_size| RecordError::Short {
        kind,
        needed,
        actual: bytes.len(),
    })?;
    Ok((value, rest))
}

fn transfer_direction(transfer: &abi::Transfer) -> Result<Direction, RecordError> {
    let end = transfer.offset.checked_add(u64::from(transfer.len));
    if end.is_none_or(|end| end > transfer.returned) {
        return Err(RecordError::Range {
            offset: transfer.offset,
            len: transfer.len,
            returned: transfer.returned,
        });
    }
    match transfer.direction {
        abi::direction::READ => Ok(Direction::Read),
        abi::direction::WRITE => Ok(Direction::Write),
        other => Err(RecordError::Direction(other)),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;
    use zerocopy::{FromZeros, IntoBytes};

    #[test]
    fn a_record_shorter_than_it_says_is_an_error() {
        let mut header = abi::RecordHeader::new_zeroed();
        header.kind = abi::kind::EXIT;
        header.size = 56;
        assert_eq!(
            parse(header.as_bytes()).unwrap_err(),
            RecordError::Size {
                kind: abi::kind::EXIT,
                said: 56,
                actual: 32
            }
        );
    }

    #[test]
    fn a_part_outside_its_operation_is_an_error() {
        let mut transfer = abi::Transfer::new_zeroed();
        transfer.header.kind = abi::kind::GAP;
        transfer.header.size = 168;
        transfer.offset = u64::MAX;
        transfer.len = 2;
        assert!(matches!(
            parse(transfer.as_bytes()),
            Err(RecordError::Range { .. })
        ));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0u8..=255, 0..300)) {
            let _ = parse(&bytes);
            let mut sized = bytes.clone();
            if sized.len() >= 8 {
                let len = u32::try_from(sized.len()).unwrap();
                sized[4..8].copy_from_slice(&len.to_le_bytes());
                sized[1] = 0;
                let _ = parse(&sized);
            }
        }
    }
}
