//! Counts that the kernel keeps itself: of each end of a TCP connection it knows how many bytes processes handed over and took.
//!
//! Owns what follows when these are held against what was counted of the operations that were seen: how much moved unseen, in which
//! direction, between which moments; and that nothing did. Unlike a balance of what was written, read and waits, each end stands for
//! itself: nothing at the other one can make up for what was missed here, and the other one need not be watched.
//!
//! An operation on its way is in the kernel's count before it is in ours. So a difference bounds what was missed from above, at every
//! sample, for all time before it; and from below by what is left when everything known to have been on its way is taken off.

use ahash::AHashMap;
use countersign_common as abi;

use crate::balance::Unseen;
use crate::channel::{End, StreamIx};
use crate::on_the_way::{self, OnTheWay};
use crate::record::GapReason;
use crate::stream::{Gap, Op};
use crate::time::BootNs;

/// Samples kept per end; then every second one goes. Stops a capture of days from filling memory; what remains says the same with less
/// exact times.
pub const SAMPLES_MAX: usize = 4096;

/// Ends of streams that are held against the kernel's counts. Stops an agent that connects in a loop from filling memory.
pub const ENDS_MAX: usize = 1 << 20;

/// One end of one stream.
type Key = (StreamIx, End);

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Before anything was read.
    begun: BootNs,
    /// After everything was.
    ended: BootNs,
    /// Bytes: what the kernel counted less what was counted of operations.
    excess: i128,
    /// Of these, one can be the number that the end of the stream takes.
    slack: i128,
    /// Operations counted.
    ops: u64,
    /// Bytes of them.
    bytes: u64,
    /// Some operation was counted at this end of the connection, in whichever direction: whoever uses it is watched.
    used: bool,
    /// Bytes of operations on their way, which can have moved and were not counted.
    on_their_way: i128,
    /// The same, added from this sample on; it ends where a later one has the opposite.
    more: i128,
}

/// What is known of one end of one stream.
#[derive(Debug, Default)]
struct Counts {
    /// Which of our counters the samples are of.
    epoch: Option<u64>,
    samples: Vec<Sample>,
    open: OnTheWay,
    /// Nothing had moved when the first sample was taken.
    whole: bool,
    /// An operation was attributed to the connection whose descriptor named something else when it returned: it can have moved
    /// elsewhere, and then makes up for one that was missed.
    swapped: bool,
    /// Our last word: operations.
    total: Option<u64>,
}

/// One end, as a record states it.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Bytes by the kernel's count.
    pub moved: u64,
    /// Bytes of the operations counted.
    pub bytes: u64,
    /// Operations counted.
    pub ops: u64,
    /// The end of the stream can be among the bytes, as one.
    pub may_hold_end: bool,
    /// Bytes that the end is known to have moved so far: what is beyond the counts was on its way.
    pub seen: u64,
}

/// All ends with counts of the kernel's own.
#[derive(Debug, Default)]
pub struct KernelCounts {
    of: AHashMap<Key, Counts>,
    /// Urgent bytes sent into a stream. A reader passes over such a byte, or takes it out of turn: at that end it moved and no operation
    /// of the stream has it.
    urgent: AHashMap<StreamIx, i128>,
    /// Ends that found no room.
    pub overflowed: u64,
}

/// What the counts of one end say.
#[derive(Debug, Default)]
struct Judged {
    unseen: Vec<Unseen>,
    /// From when on the counts speak.
    since: BootNs,
    /// Up to when nothing moved unseen.
    even_until: Option<BootNs>,
}

/// What the counts of all ends say.
#[derive(Debug)]
pub struct AllJudged {
    of: AHashMap<Key, Judged>,
}

impl AllJudged {
    /// Whether nothing moved unseen at this end between two moments, however many operations were missed somewhere.
    pub fn clears(&self, stream: StreamIx, end: End, since: BootNs, until: BootNs) -> bool {
        let judged = self.of.get(&(stream, end));
        judged.is_some_and(|judged| {
            judged.since <= since && judged.even_until.is_some_and(|even| even >= until)
        })
    }
}

impl KernelCounts {
    /// Takes the counts of one end of a stream from a record.
    pub fn sample(
        &mut self,
        stream: StreamIx,
        end: End,
        record: &abi::SocketCounts,
        counted: Counted,
    ) {
        let key = (stream, end);
        if self.of.len() >= ENDS_MAX && !self.of.contains_key(&key) {
            self.overflowed += 1;
            return;
        }
        self.of.entry(key).or_default().sample(record, counted);
    }

    /// Takes an operation: while it was on its way, its bytes can have been in the kernel's count without being in ours.
    pub fn operation(&mut self, stream: StreamIx, end: End, number: u64, op: &Op) {
        if let Some(counts) = self.of.get_mut(&(stream, end)) {
            counts.operation(number, op);
        }
    }

    /// Takes an operation with urgent data.
    pub fn urgent(&mut self, stream: StreamIx) {
        if self.urgent.len() < ENDS_MAX || self.urgent.contains_key(&stream) {
            *self.urgent.entry(stream).or_default() += 1;
        }
    }

    /// Takes our last count of the operations of one end.
    pub fn total(&mut self, stream: StreamIx, end: End, ops: u64) {
        if let Some(counts) = self.of.get_mut(&(stream, end)) {
            counts.total = Some(ops);
        }
    }

    /// What waited in a stream, at either end or in between, when both ends were last looked at, and what was missing from its balance
    /// then. Known if both were seen from the beginning and nothing was counted since.
    pub fn last(&self, stream: StreamIx) -> Option<(u64, i128)> {
        let [(sent, written), (taken, read)] = [
            self.of.get(&(stream, End::Writer))?.last()?,
            self.of.get(&(stream, End::Reader))?.last()?,
        ];
        let waits = u64::try_from(sent - taken).ok()?;
        Some((waits, written - read - i128::from(waits)))
    }

    /// What follows for each end.
    pub fn judged(&self) -> AllJudged {
        let judged = |(key, counts): (&Key, &Counts)| (*key, self.judge(key, counts));
        AllJudged {
            of: self.of.iter().map(judged).collect(),
        }
    }

    /// What is missing at each end, in order.
    pub fn unseen(&self) -> Vec<(StreamIx, Unseen)> {
        let mut all: Vec<_> = self
            .of
            .iter()
            .flat_map(|(key, counts)| {
                let unseen = self.judge(key, counts).unseen;
                unseen.into_iter().map(|unseen| (key.0, unseen))
            })
            .collect();
        all.sort_by_key(|(stream, unseen)| (*stream, unseen.end, unseen.gap.until));
        all
    }

    fn judge(&self, key: &Key, counts: &Counts) -> Judged {
        let (stream, end) = *key;
        let urgent = match end {
            End::Writer => 0,
            End::Reader => self.urgent.get(&stream).copied().unwrap_or_default(),
        };
        counts.judge(end, urgent)
    }
}

impl Counts {
    fn sample(&mut self, record: &abi::SocketCounts, counted: Counted) {
        let begun = BootNs(record.begun_ns.min(record.header.boot_ns));
        let again = self.epoch != Some(record.channel.epoch);
        if !again
            && let Some(last) = self.samples.last()
            && (begun < last.begun || counted.ops < last.ops)
        {
            // Two that were taken at once came in the wrong order.
            return;
        }
        if again {
            // The number that a connection begins with counts as one byte at the end that connected.
            let untouched = counted.moved <= 1 && counted.ops == 0 && counted.bytes == 0;
            self.whole = self.epoch.is_none() && untouched;
            self.epoch = Some(record.channel.epoch);
            self.samples.clear();
            self.open.clear();
        }
        if self.samples.len() >= SAMPLES_MAX {
            self.thin_out();
        }
        let on_their_way = counted.seen.saturating_sub(counted.bytes);
        self.samples.push(Sample {
            begun,
            ended: BootNs(record.header.boot_ns),
            excess: i128::from(counted.moved) - i128::from(counted.bytes),
            slack: i128::from(counted.may_hold_end),
            ops: counted.ops,
            bytes: counted.bytes,
            used: (record.written_ops | record.read_ops) != 0,
            on_their_way: i128::from(on_their_way),
            more: self.open.look(counted.ops),
        });
    }

    /// Bytes that have moved since the beginning, by the kernel's count and by ours.
    fn last(&self) -> Option<(i128, i128)> {
        let last = self.samples.last()?;
        if !self.whole || self.total.is_some_and(|ops| ops > last.ops) {
            return None;
        }
        let base = self.samples.iter().map(|sample| sample.excess).min()?;
        let more = last.excess - base;
        let end = last.slack.min(more);
        let bytes = i128::from(last.bytes);
        Some((bytes + more - end, bytes))
    }

    /// The first stays: all others are held against it.
    fn thin_out(&mut self) {
        self.open.say_again();
        let mut carried = 0;
        for sample in &mut self.samples {
            carried += std::mem::take(&mut sample.more);
            sample.on_their_way += carried;
        }
        let mut nth = 0;
        self.samples.retain(|_| {
            nth += 1;
            nth % 2 == 1
        });
    }

    fn operation(&mut self, number: u64, op: &Op) {
        if op.flags & abi::transfer_flags::FD_SWAPPED != 0 {
            self.swapped = true;
        }
        let enter = on_the_way::since(op);
        // Nearly always there is nothing behind its beginning.
        if self.samples.last().is_none_or(|last| last.ended < enter) {
            return;
        }
        let from = self.samples.partition_point(|sample| sample.ended < enter);
        // Samples that counted it are the last ones.
        let to = self.samples.partition_point(|sample| sample.ops <= number);
        if from >= to {
            return;
        }
        let bytes = i128::from(op.returned);
        self.samples[from].more += bytes;
        match self.samples.get_mut(to) {
            Some(after) => after.more -= bytes,
            None => self.open.add(number, bytes),
        }
    }

    fn judge(&self, end: End, urgent: i128) -> Judged {
        let (Some(first), Some(base)) = (
            self.samples.first(),
            // Where the kernel's count began. What was on its way in the first sample is not in a later one.
            self.samples.iter().map(|sample| sample.excess).min(),
        ) else {
            return Judged::default();
        };
        // What is not there at any later moment was on its way, even if no record of it came.
        let mut at_most: Vec<_> = self.samples.iter().map(|s| s.excess - base).collect();
        for at in (1..at_most.len()).rev() {
            at_most[at - 1] = at_most[at - 1].min(at_most[at]);
        }
        let (mut at_least, mut told, mut way) = (0, 0, 0);
        let mut since = first.begun;
        let mut judged = Judged {
            since: if self.whole { BootNs(0) } else { first.ended },
            ..Judged::default()
        };
        // Of what was on its way in the first sample and counted later, as much can have been missed since.
        let clears = !self.swapped && (self.whole || first.on_their_way + first.more == 0);
        for (sample, at_most) in self.samples.iter().zip(&at_most) {
            way += sample.more;
            let left = sample.excess - base - sample.slack - urgent;
            at_least = at_least.max(left - sample.on_their_way - way);
            let missed = at_least.min(*at_most - urgent);
            // Of an end that nobody who is watched ever used, this is no news.
            if missed > told && sample.used {
                judged
                    .unseen
                    .push(unseen(end, sample, missed - told, since));
                told = missed;
            }
            if left <= told {
                since = sample.begun;
            }
            if left <= 0 && clears {
                judged.even_until = Some(sample.begun);
            }
        }
        judged
    }
}

fn unseen(end: End, sample: &Sample, bytes: i128, since: BootNs) -> Unseen {
    Unseen {
        end,
        gap: Gap {
            position: sample.bytes,
            len: u64::try_from(bytes).ok(),
            reason: GapReason::UnseenOps,
            process: None,
            since,
            until: sample.ended,
        },
    }
}

#[cfg(test)]
#[path = "counted_tests.rs"]
mod tests;
