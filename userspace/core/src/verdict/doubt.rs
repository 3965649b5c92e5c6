//! Doubt: which gap can change what would be said of a call or an entry.
//!
//! Owns the list of gaps with their places and the question whether one of them counts. A gap at an untrusted end, or made by
//! an untrusted process's own doing, takes nothing from what the end of record shows and never counts.

use std::collections::BTreeMap;

use crate::channel::{ChannelKind, ChannelTable, End, StreamIx};
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
    /// The other end does not show the missing bytes either, on a stream that is no proxy's: what moved here is known to nobody.
    pub unseen: bool,
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

/// All gaps with their places, found by where and when they lie in O(log n).
#[derive(Debug, Default)]
pub struct Gaps {
    all: Vec<PlacedGap>,
    /// Gaps of record, by leg of a proxy.
    of_legs: BTreeMap<Leg, Intervals>,
    anybodys: Intervals,
    /// Gaps of record, by stream.
    of_streams: BTreeMap<StreamIx, Intervals>,
    /// Those of them that are an untrusted process's own doing.
    own_doing: BTreeMap<StreamIx, Intervals>,
    /// Gaps at the writers' end that no known process made, by stream.
    at_writers: BTreeMap<StreamIx, Intervals>,
    /// Gaps in what a proxy's instances wrote into files, by instance.
    of_files: BTreeMap<InstanceIx, Intervals>,
}

impl Gaps {
    /// Places all gaps.
    pub fn new(
        streams: &BTreeMap<StreamIx, StreamFrames>,
        channels: &ChannelTable,
        roles: &Roles,
        open_tails: &[OpenTail],
    ) -> Self {
        let mut gaps = Self {
            all: placed(streams, channels, roles, open_tails),
            ..Self::default()
        };
        for (ix, gap) in gaps.all.iter().enumerate() {
            let file = match gap.leg {
                Leg::ProxyFile(instance) => Some(instance),
                Leg::ClientToProxy(_)
                | Leg::ProxyToServer(_)
                | Leg::ServerToProxy(_)
                | Leg::ProxyToClient(_)
                | Leg::Direct => None,
            };
            if gap.of_record {
                gaps.of_streams.entry(gap.stream).or_default().add(ix, gap);
                if evidence::self_inflicted(&gap.gap, roles) {
                    gaps.own_doing.entry(gap.stream).or_default().add(ix, gap);
                }
                if gap.leg.instance().is_some() && file.is_none() {
                    gaps.of_legs.entry(gap.leg).or_default().add(ix, gap);
                }
            }
            if gap.anybodys {
                gaps.anybodys.add(ix, gap);
            }
            if gap.end == End::Writer {
                if gap.gap.process.is_none() {
                    gaps.at_writers.entry(gap.stream).or_default().add(ix, gap);
                }
                if let Some(instance) = file {
                    gaps.of_files.entry(instance).or_default().add(ix, gap);
                }
            }
        }
        let lists = gaps.of_legs.values_mut();
        let lists = lists.chain(gaps.of_streams.values_mut());
        let lists = lists.chain(gaps.own_doing.values_mut());
        let lists = lists.chain(gaps.at_writers.values_mut());
        let lists = lists.chain(gaps.of_files.values_mut());
        for list in lists.chain([&mut gaps.anybodys]) {
            list.sort();
        }
        gaps
    }

    /// All of them.
    pub fn all(&self) -> &[PlacedGap] {
        &self.all
    }

    /// A gap that can hide what a proxy read or wrote between two moments.
    pub fn at_proxy(
        &self,
        instance: InstanceIx,
        from: BootNs,
        to: BootNs,
        legs: impl Fn(Leg) -> bool,
    ) -> Option<usize> {
        let of_instance = [
            Leg::ClientToProxy(instance),
            Leg::ProxyToServer(instance),
            Leg::ServerToProxy(instance),
            Leg::ProxyToClient(instance),
        ];
        let of_instance = of_instance.into_iter().filter(|leg| legs(*leg));
        let mut lists = of_instance.filter_map(|leg| self.of_legs.get(&leg));
        lists
            .find_map(|list| list.meeting(from, to))
            .or_else(|| self.anybodys.meeting(from, to))
    }

    /// A gap of record in one stream up to a moment.
    pub fn in_stream(&self, stream: StreamIx, until: BootNs) -> Option<usize> {
        self.of_streams.get(&stream)?.meeting(BootNs(0), until)
    }

    /// A gap of record in one stream between two moments that is an untrusted process's own doing.
    pub fn own_doing(&self, stream: StreamIx, from: BootNs, to: BootNs) -> Option<usize> {
        self.own_doing.get(&stream)?.meeting(from, to)
    }

    /// A gap at the writers' end of one stream up to a moment that no known process made.
    pub fn at_writer(&self, stream: StreamIx, until: BootNs) -> Option<usize> {
        self.at_writers.get(&stream)?.meeting(BootNs(0), until)
    }

    /// A gap in what a proxy instance wrote into files between two moments.
    pub fn in_files_of(&self, instance: InstanceIx, from: BootNs, to: BootNs) -> Option<usize> {
        self.of_files.get(&instance)?.meeting(from, to)
    }
}

/// Gaps by time.
#[derive(Debug, Default)]
struct Intervals {
    /// When it begins, when it ends, and which one it is; in order of beginning.
    gaps: Vec<(BootNs, BootNs, usize)>,
    /// By place in the list: the one that ends last of all up to there.
    longest: Vec<usize>,
}

impl Intervals {
    fn add(&mut self, ix: usize, gap: &PlacedGap) {
        self.gaps.push((gap.gap.since, gap.gap.until, ix));
    }

    fn sort(&mut self) {
        self.gaps.sort_unstable();
        let mut longest = 0;
        let gaps = &self.gaps;
        self.longest = (0..gaps.len())
            .map(|at| {
                if gaps[at].1 > gaps[longest].1 {
                    longest = at;
                }
                longest
            })
            .collect();
    }

    /// Of the gaps that begin by `to` the one that ends last, if it does not end before `from`.
    fn meeting(&self, from: BootNs, to: BootNs) -> Option<usize> {
        let begun = self.gaps.partition_point(|(since, ..)| *since <= to);
        let longest = *self.longest.get(begun.checked_sub(1)?)?;
        let (_, until, ix) = self.gaps[longest];
        (until >= from).then_some(ix)
    }
}

fn placed(
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
            tail.end == leg.end_of_proxy()
        };
        out.push(PlacedGap {
            stream: tail.stream,
            leg,
            end: tail.end,
            gap: tail.gap,
            of_record,
            anybodys: false,
            unseen: false,
        });
    }
    let all = streams
        .iter()
        .flat_map(|(stream, frames)| roles.legs(*stream).map(move |leg| (stream, frames, leg)));
    for (stream, frames, leg) in all {
        let is_private =
            leg == Leg::Direct && channels.channel(stream.channel).kind != ChannelKind::File;
        let shows_all = [End::Writer, End::Reader].map(|end| shows_all(frames, end));
        let shown_elsewhere = |end: End| match end {
            End::Writer => shows_all[1],
            End::Reader => shows_all[0],
        };
        for (end, gap) in &frames.gaps {
            let of_record = match leg {
                Leg::Direct => *end == End::Reader,
                Leg::ClientToProxy(_)
                | Leg::ProxyToServer(_)
                | Leg::ServerToProxy(_)
                | Leg::ProxyToClient(_)
                | Leg::ProxyFile(_) => evidence::is_at_proxy_end(*end, gap, roles, leg),
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
                unseen: is_private && !shown_elsewhere(*end),
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
                end: leg.end_of_proxy(),
                gap: attached,
                of_record: true,
                anybodys: false,
                unseen: false,
            });
        }
    }
    out
}

/// Whether one end of a stream was seen, and nothing is missing there.
fn shows_all(frames: &StreamFrames, end: End) -> bool {
    let seen = match end {
        End::Writer => &frames.writers,
        End::Reader => &frames.readers,
    };
    !seen.is_empty() && !frames.gaps.iter().any(|(of, _)| *of == end)
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
