//! Balances: what went into a stream, came out of it and waits in it must add up; what does not is an operation that nobody saw.
//!
//! Owns the samples of each stream and what follows from them: how much is missing, at which end, between which moments; and
//! whether nothing is. The only way to catch an operation that no hook sees. Two that cancel each other, such as a write and a read
//! of the same bytes that were both missed, it cannot.

use ahash::AHashMap;
use countersign_common as abi;

use crate::channel::{End, StreamIx};
use crate::on_the_way::{self, OnTheWay};
use crate::record::GapReason;
use crate::stream::{Gap, Op};
use crate::time::BootNs;

/// Samples kept per stream; then every second one goes. Stops a capture of days from filling memory; what remains says the same with
/// less exact times.
pub const SAMPLES_MAX: usize = 4096;

/// Streams that are balanced. Stops an agent that opens pipes in a loop from filling memory.
pub const STREAMS_MAX: usize = 1 << 20;

/// What was counted and what waited at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Before the counters were read.
    begun: BootNs,
    /// After the queue was.
    ended: BootNs,
    /// Written, less read, less waiting: bytes, or messages.
    residue: i128,
    /// The same in bytes.
    residue_bytes: i128,
    /// Bytes waiting.
    queued: u64,
    /// Operations counted, by side.
    ops: [u64; 2],
    bytes: [u64; 2],
    /// By side: bytes, or messages, of operations on their way, which can have moved and were not counted.
    on_their_way: [i128; 2],
    /// The same, added from this sample on; it ends where a later one has the opposite.
    more: [i128; 2],
}

/// The balance of one stream.
#[derive(Debug, Default)]
pub struct Balance {
    /// Which counters of the reading end the samples are of.
    epoch: Option<u64>,
    /// When the stream was made and which counters of the reading end began with it, at zero like everything else.
    born: Option<(BootNs, u64)>,
    samples: Vec<Sample>,
    /// By side.
    open: [OnTheWay; 2],
    /// The kernel's last word on the counters, by side: operations, bytes.
    totals: [Option<(u64, u64)>; 2],
    /// Further samples had no room, or counters began anew.
    broken: bool,
    /// What is written in one operation is read in one, or not at all. Such are counted and not their bytes: of a message that a receiver
    /// had no room for, some are gone.
    of_messages: bool,
    /// Some are.
    truncated: bool,
}

/// Bytes that moved unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unseen {
    /// At which end.
    pub end: End,
    /// As a gap of that end; its position is the end's count of bytes.
    pub gap: Gap,
}

/// The balances of all streams.
#[derive(Debug, Default)]
pub struct Balances {
    of: AHashMap<StreamIx, Balance>,
    /// Streams that found no room.
    pub overflowed: u64,
}

const WRITER: usize = 0;
const READER: usize = 1;

fn side(end: End) -> usize {
    match end {
        End::Writer => WRITER,
        End::Reader => READER,
    }
}

impl Balances {
    fn of(&mut self, stream: StreamIx) -> Option<&mut Balance> {
        if self.of.len() >= STREAMS_MAX && !self.of.contains_key(&stream) {
            self.overflowed += 1;
            return None;
        }
        Some(self.of.entry(stream).or_default())
    }

    /// A stream was made, and its reading end counts since then.
    pub fn made(&mut self, stream: StreamIx, at: BootNs, epoch: u64) {
        if let Some(balance) = self.of(stream) {
            balance.born.get_or_insert((at, epoch));
        }
    }

    /// Takes a sample. `seen` are the bytes (or messages, where those are counted) that each end, writer first, is known to have moved so
    /// far: what is beyond the counts was on its way.
    pub fn sample(&mut self, stream: StreamIx, record: &abi::Queued, seen: [u64; 2]) {
        if let Some(balance) = self.of(stream) {
            balance.sample(record, seen);
        }
    }

    /// Takes the kernel's last counts of one end.
    pub fn total(&mut self, stream: StreamIx, end: End, ops: u64, bytes: u64) {
        // Of a stream that was never sampled they say nothing.
        if let Some(balance) = self.of.get_mut(&stream) {
            balance.totals[side(end)] = Some((ops, bytes));
        }
    }

    /// Takes an operation: while it was on its way, its bytes can have been in the channel or out of it without being counted.
    pub fn operation(&mut self, stream: StreamIx, end: End, number: u64, op: &Op) {
        if let Some(balance) = self.of.get_mut(&stream) {
            balance.operation(side(end), number, op);
        }
    }

    /// What waited in a stream when it was last looked at, and what was missing from its balance then, if nothing was counted since.
    pub fn last(&self, stream: StreamIx) -> Option<(u64, i128)> {
        let balance = self.of.get(&stream)?;
        let last = balance.samples.last()?;
        let as_counted =
            |side: usize| balance.totals[side].is_none_or(|(ops, _)| ops <= last.ops[side]);
        (as_counted(WRITER) && as_counted(READER)).then_some((last.queued, last.residue_bytes))
    }

    /// How far the readers' count of a stream's bytes is ahead of the writers', at least and at most, where what waited in it says so and
    /// nothing was missed.
    pub fn shift(&self, stream: StreamIx) -> Option<(i128, i128)> {
        let balance = self.of.get(&stream)?;
        let adds_up = !balance.broken && balance.judge().unseen.is_empty();
        adds_up.then(|| balance.shift()).flatten()
    }

    /// What follows for each stream.
    pub fn judged(&self) -> AllJudged {
        AllJudged {
            of: self
                .of
                .iter()
                .map(|(stream, balance)| (*stream, balance.judge()))
                .collect(),
        }
    }

    /// What is missing of each stream, in order.
    pub fn unseen(&self) -> Vec<(StreamIx, Unseen)> {
        let mut all: Vec<_> = self
            .of
            .iter()
            .flat_map(|(stream, balance)| {
                let unseen = balance.judge().unseen;
                unseen.into_iter().map(|unseen| (*stream, unseen))
            })
            .collect();
        all.sort_by_key(|(stream, unseen)| (*stream, unseen.gap.until, side(unseen.end)));
        all
    }
}

/// What all balances say.
#[derive(Debug)]
pub struct AllJudged {
    of: AHashMap<StreamIx, Judged>,
}

impl AllJudged {
    /// The moments next to a time, before and after it, at which a stream added up, if it did all along between them. That *one*
    /// operation which was missed in between was not of this stream.
    pub fn even_around(
        &self,
        stream: StreamIx,
        since: BootNs,
        until: BootNs,
    ) -> Option<(BootNs, BootNs)> {
        self.of.get(&stream)?.even_around(since, until)
    }
}

/// What a balance says.
#[derive(Debug, Default)]
struct Judged {
    unseen: Vec<Unseen>,
    /// Moments at which it added up with nothing on its way: when it was begun and when it was ended to be looked at.
    even: Vec<(BootNs, BootNs)>,
}

impl Judged {
    fn even_around(&self, since: BootNs, until: BootNs) -> Option<(BootNs, BootNs)> {
        let before = self.even.partition_point(|(_, ended)| *ended <= since);
        let after = self.even.partition_point(|(begun, _)| *begun < until);
        let (from, _) = self.even.get(before.checked_sub(1)?)?;
        let (to, last) = self.even.get(after)?;
        // In between, too, everything must have added up or been on its way.
        let first = self
            .unseen
            .partition_point(|unseen| unseen.gap.until < *from);
        let whole = self
            .unseen
            .get(first)
            .is_none_or(|unseen| unseen.gap.since >= *to);
        whole.then_some((*from, *last))
    }
}

impl Balance {
    fn sample(&mut self, record: &abi::Queued, seen: [u64; 2]) {
        if self.epoch.is_none_or(|epoch| epoch != record.channel.epoch) {
            self.broken |= self.epoch.is_some();
            self.epoch = Some(record.channel.epoch);
            self.begin_again();
        }
        let bytes = [record.written_bytes, record.read_bytes];
        let ops = [record.written_ops, record.read_ops];
        self.of_messages = counts_messages(record.channel.kind);
        if let Some(last) = self.samples.last()
            && (ops[WRITER] < last.ops[WRITER] || ops[READER] < last.ops[READER])
        {
            if record.begun_ns < last.begun.0 {
                // Two that were taken at once came in the wrong order.
                return;
            }
            // The writing end's counters began anew.
            self.broken = true;
            self.begin_again();
        }
        if self.samples.len() >= SAMPLES_MAX {
            self.thin_out();
        }
        let residue_of = |[written, read]: [u64; 2], queued: u64| {
            i128::from(written) - i128::from(read) - i128::from(queued)
        };
        let residue_bytes = residue_of(bytes, record.queued_bytes);
        let (moved, residue) = if self.of_messages {
            (ops, residue_of(ops, u64::from(record.queued_messages)))
        } else {
            (bytes, residue_bytes)
        };
        let on_their_way =
            [WRITER, READER].map(|side| i128::from(seen[side].saturating_sub(moved[side])));
        self.samples.push(Sample {
            begun: BootNs(record.begun_ns.min(record.header.boot_ns)),
            ended: BootNs(record.header.boot_ns),
            residue,
            residue_bytes,
            queued: record.queued_bytes,
            ops,
            bytes,
            on_their_way,
            more: [WRITER, READER].map(|side| self.open[side].look(ops[side])),
        });
    }

    fn begin_again(&mut self) {
        self.samples.clear();
        self.open.iter_mut().for_each(OnTheWay::clear);
    }

    fn thin_out(&mut self) {
        self.open.iter_mut().for_each(OnTheWay::say_again);
        let mut carried = [0; 2];
        for sample in &mut self.samples {
            for side in [WRITER, READER] {
                carried[side] += std::mem::take(&mut sample.more[side]);
                sample.on_their_way[side] += carried[side];
            }
        }
        let mut nth = 0;
        self.samples.retain(|_| {
            nth += 1;
            nth % 2 == 0
        });
    }

    fn operation(&mut self, side: usize, number: u64, op: &Op) {
        self.truncated |= op.flags & abi::transfer_flags::MESSAGE_TRUNCATED != 0;
        let enter = on_the_way::since(op);
        // Nearly always there is nothing behind its beginning.
        if self.samples.last().is_none_or(|last| last.ended < enter) {
            return;
        }
        let from = self.samples.partition_point(|sample| sample.ended < enter);
        // Samples that counted it are the last ones.
        let to = self
            .samples
            .partition_point(|sample| sample.ops[side] <= number);
        if from >= to {
            return;
        }
        let moved = if self.of_messages {
            1
        } else {
            i128::from(op.returned)
        };
        self.samples[from].more[side] += moved;
        match self.samples.get_mut(to) {
            Some(after) => after.more[side] -= moved,
            None => self.open[side].add(number, moved),
        }
    }

    /// What was on its way at a moment was in the channel, or out of it, as far as it was counted or up to all of it.
    fn shift(&self) -> Option<(i128, i128)> {
        let mut more = [0; 2];
        let mut shift: Option<(i128, i128)> = None;
        for sample in &self.samples {
            for side in [WRITER, READER] {
                more[side] += sample.more[side];
            }
            let way = [WRITER, READER].map(|side| sample.on_their_way[side] + more[side]);
            let (least, most) = (-sample.residue - way[WRITER], -sample.residue + way[READER]);
            let (from, to) = shift.unwrap_or((least, most));
            shift = Some((from.max(least), to.min(most)));
        }
        shift.filter(|(least, most)| least <= most)
    }

    fn judge(&self) -> Judged {
        let mut judged = Judged::default();
        let Some(first) = self.samples.first() else {
            return judged;
        };
        let born = self
            .born
            .filter(|(_, epoch)| !self.broken && self.epoch == Some(*epoch));
        // Of a stream that is older than the counters, the first sample is what the others are held against.
        let mut expected = if born.is_some() { 0 } else { first.residue };
        let mut even_bytes = if born.is_some() {
            0
        } else {
            first.residue_bytes
        };
        let mut since = born.map_or(first.begun, |(at, _)| at);
        judged.even.extend(born.map(|(at, _)| (at, at)));
        let mut more = [0; 2];
        for sample in &self.samples {
            for side in [WRITER, READER] {
                more[side] += sample.more[side];
            }
            let excess = sample.residue - expected;
            let way = [WRITER, READER].map(|side| sample.on_their_way[side] + more[side]);
            let missing = if excess > 0 {
                Some((End::Reader, excess - way[READER]))
            } else {
                Some((End::Writer, -excess - way[WRITER]))
            };
            if let Some((end, missed)) = missing.filter(|(_, missed)| *missed > 0) {
                expected += if end == End::Reader { missed } else { -missed };
                let bytes = if self.of_messages {
                    let bytes = (sample.residue_bytes - even_bytes).abs();
                    even_bytes = sample.residue_bytes;
                    (!self.truncated && way == [0; 2]).then_some(bytes)
                } else {
                    Some(missed)
                };
                // Of an end that nobody who is watched ever used, this is no news.
                if sample.ops[side(end)] > 0 {
                    let position = sample.bytes[side(end)];
                    judged
                        .unseen
                        .push(unseen(end, position, bytes, since, sample.ended));
                }
            } else if excess == 0 && way == [0; 2] {
                judged.even.push((sample.begun, sample.ended));
            }
            since = sample.begun;
        }
        self.judge_rest(expected, &mut judged);
        judged
    }

    /// After the last sample only the counters are known. What is left over then was never read, or was read unseen.
    fn judge_rest(&self, expected: i128, judged: &mut Judged) {
        let (Some(last), [Some(written), Some(read)]) = (self.samples.last(), self.totals) else {
            return;
        };
        let grew = written.0 > last.ops[WRITER] || read.0 > last.ops[READER];
        if !grew || read.0 == 0 || written.0 == 0 {
            return;
        }
        let (went_in, came_out) = if self.of_messages {
            (written.0, read.0)
        } else {
            (written.1, read.1)
        };
        let excess = i128::from(went_in) - i128::from(came_out) - expected;
        let (end, position) = if excess > 0 {
            (End::Reader, read.1)
        } else {
            (End::Writer, written.1)
        };
        if excess != 0 {
            let until = BootNs(u64::MAX);
            let bytes = (!self.of_messages).then_some(excess.abs());
            judged
                .unseen
                .push(unseen(end, position, bytes, last.begun, until));
        }
    }
}

/// Of these kinds messages are counted.
fn counts_messages(kind: u8) -> bool {
    matches!(
        kind,
        abi::channel_kind::UNIX_DGRAM | abi::channel_kind::UNIX_SEQPACKET
    )
}

fn unseen(end: End, position: u64, bytes: Option<i128>, since: BootNs, until: BootNs) -> Unseen {
    Unseen {
        end,
        gap: Gap {
            position,
            len: bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            reason: GapReason::UnseenOps,
            process: None,
            since,
            until,
        },
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
