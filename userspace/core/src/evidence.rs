//! Evidence of record: which end's bytes are believed for each delivery.
//!
//! The kernel's own copy comes first where there is one; then the proxy's end, because the proxy is
//! trusted to forward; then the reader's end, marked untrusted; the writer's end serves attribution and is the record only
//! where nothing else was seen.

mod ends;

use std::collections::BTreeMap;
use std::rc::Rc;

use ends::Ends;

use crate::channel::StreamIx;
use crate::delivery::{Delivery, StreamFrames};
use crate::frame::{Frame, FrameFlags, FrameIx};
use crate::record::GapReason;
use crate::role::{InstanceIx, Leg, Roles};
use crate::stream::Gap;
use crate::time::BootNs;

use crate::channel::End;

/// Why an end is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The kernel's own copy of what it delivered to the reader.
    KernelCopy,
    /// Taken at the proxy's end of the leg.
    ProxyEnd,
    /// Taken from the reader's memory at return.
    ReaderEnd,
    /// Taken from the writer's memory; nobody was seen to read it.
    WriterEnd,
}

impl Source {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KernelCopy => "kernel_copy",
            Self::ProxyEnd => "proxy_end",
            Self::ReaderEnd => "reader_end",
            Self::WriterEnd => "writer_end",
        }
    }
}

/// Who wrote a delivery on a leg that a proxy writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The proxy, alone.
    Proxy,
    /// Somebody else, or the proxy and somebody else.
    Other,
    /// No writer was seen, though the writer's end was watched.
    Unseen,
}

/// A delivery with its place and the end that is believed.
#[derive(Clone, Copy, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts about one delivery that do not depend on each other"
)]
pub struct Placed {
    /// Its stream.
    pub stream: StreamIx,
    /// The stream's leg.
    pub leg: Leg,
    /// Both ends.
    pub delivery: Delivery,
    /// The frame that is believed.
    pub record: FrameIx,
    /// Why.
    pub source: Source,
    /// The record is the memory of an untrusted process.
    pub untrusted: bool,
    /// Who wrote it.
    pub author: Author,
    /// Every byte is there, in proved order: by the record alone, or because both ends show the same bytes.
    pub proved: bool,
    /// It was written and never read, though later bytes of its stream were and nothing is missing at the reader: it cannot have
    /// been in the channel, whatever its writer was told.
    pub overtaken: bool,
    /// Only its writer's memory shows it, and a better end shows other bytes at its place: it was never in the channel, and an
    /// untrusted writer changed its buffer around the system call.
    pub contradicted: bool,
    /// When its first byte moved at the record's end.
    pub at: BootNs,
    /// When its last byte moved there.
    pub until: BootNs,
}

/// Places every delivery of every stream, in order of time. `shift` says how far the readers' count of a stream's bytes is ahead of the
/// writers', if that is known.
pub fn place(
    frames: &[Frame],
    streams: &BTreeMap<StreamIx, StreamFrames>,
    shift: impl Fn(StreamIx) -> Option<i128>,
    roles: &Roles,
) -> Vec<Placed> {
    let mut placed: Vec<Placed> = streams
        .iter()
        .flat_map(|(stream, of_stream)| {
            let ends = Rc::new(Ends::new(of_stream, frames, roles, shift(*stream)));
            roles.legs(*stream).flat_map(move |leg| {
                let ends = Rc::clone(&ends);
                of_stream.deliveries(frames).filter_map(move |delivery| {
                    let contended =
                        |frame: &Frame| of_stream.contended(frame.first_enter, frame.last_exit);
                    let mut placed = place_one(*stream, leg, delivery, frames, roles, &contended)?;
                    let record = frames.get(placed.record.0 as usize)?;
                    placed.overtaken =
                        delivery.read.is_none() && record.is_whole() && ends.overtook(record);
                    placed.contradicted =
                        placed.source == Source::WriterEnd && ends.contradict(record, placed.leg);
                    Some(placed)
                })
            })
        })
        .collect();
    placed.sort_by_key(|placed| (placed.at, placed.stream, placed.record));
    placed
}

/// Whether bytes that no watched process wrote can have entered a stream that a proxy writes.
///
/// `false` means that others wrote too little to account for a line of `len` bytes, so one that came out and that the proxy did
/// not write is a reader's lie about its own memory.
pub fn foreign_bytes_possible(
    of_stream: &StreamFrames,
    roles: &Roles,
    instance: InstanceIx,
    created: bool,
    len: u64,
) -> bool {
    let (mut by_proxy, mut by_others) = (0u64, 0u64);
    for (process, moved) in &of_stream.writers {
        if roles.instance_of(*process) == Some(instance) {
            by_proxy = by_proxy.saturating_add(moved.bytes);
        } else {
            by_others = by_others.saturating_add(moved.bytes);
        }
    }
    let read = of_stream.bytes_read();
    let writer_gap = of_stream.gaps.iter().any(|(end, gap)| {
        *end == End::Writer
            && gap
                .process
                .is_none_or(|process| roles.instance_of(process) != Some(instance))
    });
    by_others >= len || writer_gap || !created || read > by_proxy.saturating_add(by_others)
}

/// Whether a gap is an untrusted process's own doing.
pub fn self_inflicted(gap: &Gap, roles: &Roles) -> bool {
    let untrusted = |process| roles.instance_of(process).is_none();
    gap.process.is_some_and(untrusted)
        && matches!(
            gap.reason,
            GapReason::Limit
                | GapReason::Fault
                | GapReason::Splice
                | GapReason::Vectors
                | GapReason::Iterator
                | GapReason::Multishot
                | GapReason::Aio
                | GapReason::Compat
                | GapReason::Truncated
        )
}

/// Whether a gap lies at a proxy's own end of a stream: then it can hide what the proxy read or wrote. A gap at the other end, or
/// by another process, takes nothing from what the proxy's end shows.
pub fn is_at_proxy_end(end: End, gap: &Gap, roles: &Roles, leg: Leg) -> bool {
    end == leg.end_of_proxy()
        && gap.process.is_none_or(|process| {
            leg.instance().is_some() && roles.instance_of(process) == leg.instance()
        })
}

fn place_one(
    stream: StreamIx,
    leg: Leg,
    delivery: Delivery,
    frames: &[Frame],
    roles: &Roles,
    contended: &impl Fn(&Frame) -> bool,
) -> Option<Placed> {
    let frame = |ix: FrameIx| frames.get(ix.0 as usize);
    let acts = |frame: &Frame, instance| {
        let at = [frame.first_exit, frame.last_exit];
        frame.by.iter().all(|process| {
            at.iter()
                .all(|at| roles.instance_at(*process, *at) == Some(instance))
        })
    };
    // Read by somebody who was the proxy once: no proxy's end.
    let leg = match (leg, delivery.read.and_then(frame)) {
        (Leg::ClientToProxy(instance) | Leg::ServerToProxy(instance), Some(read))
            if !acts(read, instance) =>
        {
            // Between two proxies the other one's leg tells of it.
            if roles.second_leg(stream).is_some() {
                return None;
            }
            Leg::Direct
        }
        _ => leg,
    };
    let author = match (leg.instance(), delivery.written.and_then(frame)) {
        (_, None) => Author::Unseen,
        (Some(instance), Some(written)) if acts(written, instance) => Author::Proxy,
        (_, Some(_)) => Author::Other,
    };
    let (record, source) = match (leg, delivery.written, delivery.read) {
        (Leg::ClientToProxy(_) | Leg::ServerToProxy(_), _, Some(read)) => (read, Source::ProxyEnd),
        (Leg::ProxyToServer(_) | Leg::ProxyToClient(_) | Leg::ProxyFile(_), Some(written), _)
            if author == Author::Proxy =>
        {
            (written, Source::ProxyEnd)
        }
        (_, _, Some(read)) => (read, Source::ReaderEnd),
        (_, Some(written), None) => (written, Source::WriterEnd),
        (_, None, None) => return None,
    };
    let record_frame = frame(record)?;
    // At the same end as the reader's memory, and better than it.
    let source =
        if source == Source::ReaderEnd && record_frame.flags.contains(FrameFlags::KERNEL_COPY) {
            Source::KernelCopy
        } else {
            source
        };
    let tied = delivery.written.is_some() && delivery.read.is_some();
    let complete = record_frame.is_complete();
    Some(Placed {
        stream,
        leg,
        delivery,
        record,
        source,
        untrusted: !matches!(source, Source::ProxyEnd | Source::KernelCopy),
        author,
        proved: (record_frame.is_whole()
            && !(record_frame.end == End::Writer && contended(record_frame)))
            || (complete && tied),
        overtaken: false,
        contradicted: false,
        at: match record_frame.end {
            End::Writer => record_frame.first_enter,
            End::Reader => record_frame.first_exit,
        },
        until: record_frame.last_exit,
    })
}
