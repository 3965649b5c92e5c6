//! Ids of rows: ULIDs that a second run over the same spool and log yields again.
//!
//! The 48 bits of time are the subject's first byte, so that ids sort by time; the 80 bits that are usually random are the
//! first ten bytes of a SHA-256 over the capture, the kind of thing and what tells it from others of its kind. Nothing here
//! is secret: an id is a name, not a proof.

use core::fmt;

use sha2::{Digest, Sha256};
use ulid::Ulid;

use super::table::{Cell, ColumnType, Value};
use crate::time::UtcNs;

macro_rules! ids {
    ($($(#[doc = $doc:literal])* $id:ident;)*) => {
        $($(#[doc = $doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $id(Ulid);

        impl $id {
            /// An id that is already known, as from a spool's header.
            pub const fn from_ulid(ulid: Ulid) -> Self {
                Self(ulid)
            }

            /// The id as a ULID.
            pub const fn as_ulid(self) -> Ulid {
                self.0
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($id), "({})"), self.0)
            }
        }

        impl Cell for $id {
            const TYPE: ColumnType = ColumnType::Id;
            fn value(&self) -> Value<'_> {
                Value::Id(self.0)
            }
        })*
    };
}

ids! {
    /// One run of Countersign on one host, from the header of its spool.
    CaptureId;
    /// One process incarnation.
    ProcessId;
    /// One channel: a pipe, FIFO, socket pair or log file.
    ChannelId;
    /// One frame as seen at one end of one hop.
    FrameId;
    /// One call.
    CallId;
    /// One entry of a proxy's log.
    EntryId;
    /// One verdict.
    VerdictId;
    /// One finding.
    FindingId;
    /// One statement about what could and could not be seen.
    CoverageId;
}

impl CaptureId {
    /// The capture that started at `start` on the boot `boot_id` of `host`; `nonce` tells captures of one nanosecond apart.
    pub fn new(start: UtcNs, boot_id: &[u8], host: &[u8], nonce: u64) -> Self {
        let hash = Hash::new("capture")
            .bytes(boot_id)
            .bytes(host)
            .number(start.0.cast_unsigned())
            .number(nonce);
        Self(hash.at(start))
    }
}

impl ProcessId {
    /// The process `tgid` that started at `start_boot_ns`; `start` is the same moment in UTC.
    pub fn of(capture: CaptureId, tgid: u32, start_boot_ns: u64, start: UtcNs) -> Self {
        Self(
            Hash::new("process")
                .id(capture.0)
                .number(u64::from(tgid))
                .number(start_boot_ns)
                .at(start),
        )
    }
}

impl ChannelId {
    /// The channel of which `identity` is every field that tells it from others (device, inodes, kernel addresses, epoch).
    pub fn of(capture: CaptureId, identity: &[u64], first: UtcNs) -> Self {
        let hash = identity
            .iter()
            .fold(Hash::new("channel").id(capture.0), |hash, part| {
                hash.number(*part)
            });
        Self(hash.at(first))
    }
}

impl FrameId {
    /// The frame that starts at `offset` of the stream `stream` of `channel`, as taken from `end`; `first` is its first byte.
    pub fn of(
        capture: CaptureId,
        channel: ChannelId,
        stream: &str,
        end: &str,
        offset: u64,
        first: UtcNs,
    ) -> Self {
        let hash = Hash::new("frame")
            .id(capture.0)
            .id(channel.0)
            .bytes(stream.as_bytes())
            .bytes(end.as_bytes());
        Self(hash.number(offset).at(first))
    }
}

impl CallId {
    /// The call made by message number `element` (from 0) of the frame `frame`, its sender's; `first` is the frame's first byte.
    pub fn of(capture: CaptureId, frame: FrameId, element: u32, first: UtcNs) -> Self {
        Self(
            Hash::new("call")
                .id(capture.0)
                .id(frame.0)
                .number(u64::from(element))
                .at(first),
        )
    }
}

impl EntryId {
    /// The record at byte `offset` of the log file that `file` names (name or number, device and inode) of the proxy `proxy`.
    pub fn of(capture: CaptureId, proxy: &str, file: &[u8], offset: u64, at: UtcNs) -> Self {
        Self(
            Hash::new("entry")
                .id(capture.0)
                .bytes(proxy.as_bytes())
                .bytes(file)
                .number(offset)
                .at(at),
        )
    }
}

impl VerdictId {
    /// The verdict on `subject` (a call's, entry's or gap's id): there is one for each.
    pub fn of(capture: CaptureId, subject: Ulid, at: UtcNs) -> Self {
        Self(Hash::new("verdict").id(capture.0).id(subject).at(at))
    }
}

impl FindingId {
    /// The `nth` finding of the kind `kind` about `subject` (any text that names it).
    pub fn of(capture: CaptureId, kind: &str, subject: &[u8], nth: u64, at: UtcNs) -> Self {
        Self(
            Hash::new("finding")
                .id(capture.0)
                .bytes(kind.as_bytes())
                .bytes(subject)
                .number(nth)
                .at(at),
        )
    }
}

impl CoverageId {
    /// The `nth` statement of the kind `kind` about `subject` (any text that names it).
    pub fn of(capture: CaptureId, kind: &str, subject: &[u8], nth: u64, at: UtcNs) -> Self {
        Self(
            Hash::new("coverage")
                .id(capture.0)
                .bytes(kind.as_bytes())
                .bytes(subject)
                .number(nth)
                .at(at),
        )
    }
}

/// The hash behind an id. Every part has a length before it, so that no two lists of parts hash alike.
struct Hash {
    sha256: Sha256,
    /// What the hash has not taken yet: it takes long pieces sooner than many short ones.
    text: [u8; PIECE_BYTES],
    len: usize,
}

/// As long as what tells most things from others.
const PIECE_BYTES: usize = 192;

impl Hash {
    fn new(kind: &'static str) -> Self {
        let hash = Self {
            sha256: Sha256::new(),
            text: [0; PIECE_BYTES],
            len: 0,
        };
        hash.raw(b"countersign id 1\n").bytes(kind.as_bytes())
    }

    fn bytes(self, part: &[u8]) -> Self {
        self.raw(&(part.len() as u64).to_le_bytes()).raw(part)
    }

    fn raw(mut self, part: &[u8]) -> Self {
        if let Some(room) = self.text.get_mut(self.len..self.len + part.len()) {
            room.copy_from_slice(part);
            self.len += part.len();
        } else {
            self.sha256.update(&self.text[..self.len]);
            self.sha256.update(part);
            self.len = 0;
        }
        self
    }

    fn number(self, part: u64) -> Self {
        self.bytes(&part.to_le_bytes())
    }

    fn id(self, part: Ulid) -> Self {
        self.bytes(&part.to_bytes())
    }

    fn at(mut self, time: UtcNs) -> Ulid {
        self.sha256.update(&self.text[..self.len]);
        let digest = self.sha256.finalize();
        let random = digest
            .iter()
            .take(10)
            .fold(0_u128, |random, byte| random << 8 | u128::from(*byte));
        Ulid::from_parts(time.unix_ms(), random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: UtcNs = UtcNs(1_795_159_135_189_522_853);

    #[test]
    fn the_same_subject_has_the_same_id_in_every_run_and_version() {
        let capture = CaptureId::new(START, b"boot", b"host", 0);
        let channel = ChannelId::of(capture, &[1, 2, 3], START);
        let frame = FrameId::of(capture, channel, "only", "reader", 4096, START);
        let call = CallId::of(capture, frame, 0, START);
        // Computed with another SHA-256 and another ULID encoder.
        assert_eq!(capture.to_string(), "01M7VX54YNWXTKC1BJRRPE1YZH");
        assert_eq!(channel.to_string(), "01M7VX54YN7QF7QWXDE7EYE8AS");
        assert_eq!(frame.to_string(), "01M7VX54YNAF6GNNWWV2DM8XDK");
        assert_eq!(call.to_string(), "01M7VX54YNG68R594Q0FK80A3B");
    }

    #[test]
    fn an_id_carries_its_time_and_sorts_by_it() {
        let capture = CaptureId::new(START, b"boot", b"host", 0);
        let early = CallId::of(capture, FrameId::from_ulid(Ulid::nil()), 0, START);
        let late = CallId::of(
            capture,
            FrameId::from_ulid(Ulid::nil()),
            0,
            UtcNs(START.0 + 1_000_000),
        );
        assert_eq!(early.as_ulid().timestamp_ms(), START.unix_ms());
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn parts_cannot_run_into_each_other() {
        let capture = CaptureId::new(START, b"boot", b"host", 0);
        assert_ne!(
            FindingId::of(capture, "ab", b"c", 0, START).as_ulid(),
            FindingId::of(capture, "a", b"bc", 0, START).as_ulid()
        );
        assert_ne!(
            FindingId::of(capture, "a", b"b", 0, START).as_ulid(),
            CoverageId::of(capture, "a", b"b", 0, START).as_ulid()
        );
    }
}
