//! Ends: how the two ends of one stream agree, and which of them is refuted by the other.
//!
//! Owns the places at which both count the same byte, and what an end that can be believed shows there.

use std::cell::OnceCell;

use crate::channel::End;
use crate::delivery::StreamFrames;
use crate::delivery::takers::Taken;
use crate::frame::{Frame, FrameFlags, FrameIx};
use crate::record::GapReason;
use crate::role::{InstanceIx, Leg, Roles};

/// One stream's ends.
pub(super) struct Ends<'a> {
    of_stream: &'a StreamFrames,
    frames: &'a [Frame],
    roles: &'a Roles,
    /// How far the readers' count is ahead of the writers', if that is known.
    shift: Option<i128>,
    /// Nothing is missing at the readers' end.
    read_whole: bool,
    /// How much is missing is known everywhere, so that both ends count right.
    countable: bool,
    /// Bytes that were read.
    read: u64,
    /// Where each line lies that was seen at both ends, by the writers' count, and whether the readers' is the same; in order.
    tied: Vec<(u64, bool)>,
    /// Where what the kernel itself delivered lies that no writer shows: from, to; in order.
    delivered: Vec<(u64, u64)>,
    /// What each proxy of the leg that asked took; there is one or none.
    of_proxy: OnceCell<(InstanceIx, OfProxy)>,
}

/// What a proxy that reads a stream shows of it.
struct OfProxy {
    taken: Taken,
    /// Whole lines that it alone read, in order of their places.
    lines: Vec<FrameIx>,
    /// Nobody else reads.
    alone: bool,
}

impl<'a> Ends<'a> {
    pub(super) fn new(
        of_stream: &'a StreamFrames,
        frames: &'a [Frame],
        roles: &'a Roles,
        shift: Option<i128>,
    ) -> Self {
        let of = |ix: Option<FrameIx>| frames.get(ix?.0 as usize);
        let unknown = |(end, gap): &(End, crate::stream::Gap)| {
            gap.len.is_none() || (*end == End::Writer && gap.reason == GapReason::UnseenOps)
        };
        let mut ends = Self {
            of_stream,
            frames,
            roles,
            shift,
            read_whole: !of_stream.gaps.iter().any(|(end, _)| *end == End::Reader),
            countable: of_stream.gaps_folded == 0 && !of_stream.gaps.iter().any(unknown),
            read: of_stream.bytes_read(),
            tied: Vec::new(),
            delivered: Vec::new(),
            of_proxy: OnceCell::new(),
        };
        for delivery in of_stream.deliveries(frames) {
            match (of(delivery.written), of(delivery.read)) {
                (Some(written), Some(read)) => {
                    let same = ends.place(written.position) == Some(read.position);
                    ends.tied.push((written.position, same));
                }
                (None, Some(read)) if read.flags.contains(FrameFlags::KERNEL_COPY) => {
                    let to = read.position.saturating_add(read.len);
                    ends.delivered.push((read.position, to));
                }
                (_, None) | (None, Some(_)) => {}
            }
        }
        ends.tied.sort_unstable();
        ends.delivered.sort_unstable();
        ends
    }

    /// The readers' count of a byte, by the writers'.
    fn place(&self, written: u64) -> Option<u64> {
        u64::try_from(i128::from(written).checked_add(self.shift?)?).ok()
    }

    /// Whether a line that was written and not read was left out, though one behind it was read.
    ///
    /// Where the next line that both ends show lies at the same place at both, all bytes before it came through: then it is
    /// the reader's memory that does not show them, and that buys it nothing.
    pub(super) fn overtook(&self, written: &Frame) -> bool {
        let next = self
            .tied
            .partition_point(|(position, _)| *position <= written.position);
        let next = self.tied.get(next);
        self.read_whole && next.is_some_and(|(_, same)| !same)
    }

    /// Whether a line that only its writer's memory shows is refuted by what came out at its place: as the proxy read it, or as the
    /// kernel delivered it.
    pub(super) fn contradict(&self, written: &Frame, leg: Leg) -> bool {
        let spans = written.flags.contains(FrameFlags::SPANS_LINES);
        // Of a line that was not taken whole, as one over the limit per operation, the rest says nothing.
        let taken = written.is_whole() && written.is_a_line();
        let Some(from) = self.place(written.position).filter(|_| taken && !spans) else {
            return false;
        };
        let to = from.saturating_add(written.len);
        if self.read < to {
            return false;
        }
        match leg {
            Leg::ClientToProxy(instance) | Leg::ServerToProxy(instance) => {
                let (of, proxy) = self
                    .of_proxy
                    .get_or_init(|| (instance, self.of_proxy(instance)));
                *of == instance && self.refuted_by(proxy, written, from, to)
            }
            Leg::Direct => {
                let behind = self.delivered.partition_point(|(from, _)| *from < to);
                behind > 0 && self.delivered[behind - 1].1 > from
            }
            Leg::ProxyToServer(_) | Leg::ProxyToClient(_) | Leg::ProxyFile(_) => false,
        }
    }

    fn of_proxy(&self, instance: InstanceIx) -> OfProxy {
        let by_proxy = |process| self.roles.instance_of(process) == Some(instance);
        let mut lines: Vec<FrameIx> = self
            .of_stream
            .read()
            .filter(|ix| {
                self.frames.get(ix.0 as usize).is_some_and(|frame| {
                    frame.is_whole()
                        && !frame.flags.contains(FrameFlags::SPANS_LINES)
                        && !frame.bytes.is_empty()
                        && frame.by.iter().all(|process| by_proxy(*process))
                })
            })
            .collect();
        lines.sort_by_key(|ix| self.frames[ix.0 as usize].position);
        OfProxy {
            taken: self.of_stream.takers.of(by_proxy),
            lines,
            alone: (self.of_stream.readers.iter()).all(|(reader, _)| by_proxy(*reader)),
        }
    }

    /// With nothing missing, what the proxy took at this place and has not is not there. The byte before it must be the proxy's
    /// too: else another reader's memory would say where the line begins. Otherwise it has to show another byte there.
    fn refuted_by(&self, proxy: &OfProxy, written: &Frame, from: u64, to: u64) -> bool {
        if self.read_whole && proxy.alone {
            return true;
        }
        if !self.countable || !proxy.taken.all(from.saturating_sub(1), to) {
            return false;
        }
        self.read_whole || self.differs(proxy, written, from, to)
    }

    /// Whether a line of the proxy's that lies at this place has another byte there.
    fn differs(&self, proxy: &OfProxy, written: &Frame, from: u64, to: u64) -> bool {
        let of = |ix: &FrameIx| &self.frames[ix.0 as usize];
        let behind = proxy.lines.partition_point(|ix| of(ix).position < to);
        let lines = proxy.lines[..behind].iter().rev().map(of);
        lines
            .take_while(|line| line.position.saturating_add(line.len) > from)
            .any(|line| {
                let first = from.max(line.position);
                let one = bytes_from(written, first - from);
                let other = bytes_from(line, first - line.position);
                one.iter().zip(other).any(|(one, other)| one != other)
            })
    }
}

fn bytes_from(frame: &Frame, skip: u64) -> &[u8] {
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    frame.bytes.get(skip..).unwrap_or_default()
}
