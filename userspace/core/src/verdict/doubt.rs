//! Doubt: which gap can change what would be said of a call or an entry.
//!
//! Owns the list of gaps with their places and the question whether one of them counts. A gap at an untrusted end, or made by
//! an untrusted process's own doing, takes nothing from what the end of record shows and never counts.

use std::collections::BTreeMap;

use crate::channel::{ChannelTable, End, StreamIx};
use crate::delivery::StreamFrames;
use crate::evidence;
use crate::record::GapReason;
use crate::role::{InstanceIx, Leg, Roles};
use crate::stream::Gap;
use crate::time::BootNs;

/// A gap with its place.
#[derive(Clone, Copy, Debug)]
pub struct PlacedGap {
    /// Its stream.
    pub stream: StreamIx,
    /// The stream's leg.
    pub leg: Leg,
    /// At which end.
    pub end: End,
    /// What is missing.
    pub gap: Gap,
    /// It lies at the end of record: what is missing there is missing from the evidence.
    pub of_record: bool,
    /// Nobody was ever seen at this end of a stream that is no proxy's as far as is known: it can be any proxy's.
    pub anybodys: bool,
}

/// An end of a stream behind whose last known operation records were lost: more may have moved.
#[derive(Clone, Copy, Debug)]
pub struct OpenTail {
    /// The stream.
    pub stream: StreamIx,
    /// At which end.
    pub end: End,
    /// What may be missing.
    pub gap: Gap,
}

/// Places all gaps.
pub fn gaps(
    streams: &BTreeMap<StreamIx, StreamFrames>,
    channels: &ChannelTable,
    roles: &Roles,
    open_tails: &[OpenTail],
) -> Vec<PlacedGap> {
    let mut out = Vec::new();
    let tails = open_tails
        .iter()
        .flat_map(|tail| roles.legs(tail.stream).map(move |leg| (tail, leg)));
    for (tail, leg) in tails {
        let of_record = if leg == Leg::Direct {
            tail.end == End::Reader
        } else {
            tail.end == end_of_proxy(leg)
        };
        out.push(PlacedGap {
            stream: tail.stream,
            leg,
            end: tail.end,
            gap: tail.gap,
            of_record,
            anybodys: false,
        });
    }
    let all = streams
        .iter()
        .flat_map(|(stream, frames)| roles.legs(*stream).map(move |leg| (stream, frames, leg)));
    for (stream, frames, leg) in all {
        let counted: Vec<Gap> = evidence::gaps_at_proxy_end(frames, roles, leg)
            .copied()
            .collect();
        for (end, gap) in &frames.gaps {
            let of_record = match leg {
                Leg::Direct => *end == End::Reader,
                Leg::ClientToProxy(_)
                | Leg::ProxyToServer(_)
                | Leg::ServerToProxy(_)
                | Leg::ProxyToClient(_)
                | Leg::ProxyFile(_) => counted.contains(gap) && *end == end_of_proxy(leg),
            };
            let seen = match end {
                End::Writer => &frames.writers,
                End::Reader => &frames.readers,
            };
            let anybodys = leg == Leg::Direct && gap.process.is_none() && seen.is_empty();
            out.push(PlacedGap {
                stream: *stream,
                leg,
                end: *end,
                gap: *gap,
                of_record,
                anybodys,
            });
        }
        // Of a proxy that ran before the capture, what it moved before is lost, unless the channel is younger.
        let channel = channels.channel(stream.channel);
        let moved = !frames.writers.is_empty() || !frames.readers.is_empty();
        let older = leg
            .instance()
            .is_some_and(|instance| !roles.instance(instance).from_birth);
        if !channel.created && moved && older && !matches!(leg, Leg::ProxyFile(_)) {
            let attached = attached_gap(channel.watched_from());
            out.push(PlacedGap {
                stream: *stream,
                leg,
                end: end_of_proxy(leg),
                gap: attached,
                of_record: true,
                anybodys: false,
            });
        }
    }
    out
}

/// The first gap that can hide what a proxy read or wrote between two moments.
pub fn at_proxy(
    gaps: &[PlacedGap],
    instance: InstanceIx,
    from: BootNs,
    to: BootNs,
    legs: impl Fn(Leg) -> bool,
) -> Option<usize> {
    gaps.iter().position(|gap| {
        let of_its_leg = gap.of_record
            && gap.leg.instance() == Some(instance)
            && !matches!(gap.leg, Leg::ProxyFile(_))
            && legs(gap.leg);
        (of_its_leg || gap.anybodys) && gap.gap.since <= to && gap.gap.until >= from
    })
}

/// The first gap of record in one stream up to a moment.
pub fn in_stream(gaps: &[PlacedGap], stream: StreamIx, until: BootNs) -> Option<usize> {
    gaps.iter()
        .position(|gap| gap.of_record && gap.stream == stream && gap.gap.since <= until)
}

/// The first gap at the writers' end of one stream up to a moment that no known process made.
pub fn at_writer(gaps: &[PlacedGap], stream: StreamIx, until: BootNs) -> Option<usize> {
    gaps.iter().position(|gap| {
        gap.stream == stream
            && gap.end == End::Writer
            && gap.gap.process.is_none()
            && gap.gap.since <= until
    })
}

/// Whether a gap is an untrusted process's own doing.
pub fn self_inflicted(gap: &PlacedGap, roles: &Roles) -> bool {
    evidence::self_inflicted(&gap.gap, roles)
}

fn end_of_proxy(leg: Leg) -> End {
    if leg.proxy_writes() {
        End::Writer
    } else {
        End::Reader
    }
}

fn attached_gap(until: BootNs) -> Gap {
    Gap {
        position: 0,
        len: None,
        reason: GapReason::Attached,
        process: None,
        since: BootNs(0),
        until,
    }
}
