//! Holes in the numbers that each processor gives its records: records that were made and never arrived.
//!
//! Also what was never made a record: programs that the kernel skipped, in the times between two heartbeats.
//!
//! Owns the times in which such a hole lies, and the ends of streams whose last operations can have been in one. Holes between
//! two operations of an end are sized by the kernel's counters elsewhere; what only a hole can tell is that something came after
//! the last operation that was seen.

use std::collections::BTreeMap;

use super::Correlator;
use crate::record::GapReason;
use crate::stream::Gap;
use crate::time::BootNs;
use crate::verdict::doubt::OpenTail;

use countersign_common as abi;

/// Holes kept per processor; the oldest are then final. Stops a spool with made-up numbers from filling memory.
const HOLES_MAX: usize = 1024;

/// Numbers that arrived, by processor.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    cpus: BTreeMap<u16, Cpu>,
    /// Records missing in holes that can no longer be filled.
    lost: u64,
    times: Option<(BootNs, BootNs)>,
}

#[derive(Debug, Default)]
struct Cpu {
    next: u64,
    last: BootNs,
    generation: u64,
    /// First missing number: one past the last, time before, time after.
    holes: BTreeMap<u64, (u64, BootNs, BootNs)>,
}

impl Numbers {
    pub(super) fn take(&mut self, header: &abi::RecordHeader) {
        if header.cpu == abi::RecordHeader::USER_CPU || header.kind >= abi::kind::FIRST_USER {
            return;
        }
        let at = BootNs(header.boot_ns);
        let cpu = self.cpus.entry(header.cpu).or_default();
        if cpu.generation != header.generation {
            *cpu = Cpu {
                generation: header.generation,
                ..Cpu::default()
            };
        }
        let number = header.cpu_seq;
        if number >= cpu.next {
            if number > cpu.next {
                cpu.holes.insert(cpu.next, (number, cpu.last, at));
            }
            cpu.next = number.saturating_add(1);
            cpu.last = cpu.last.max(at);
        } else {
            cpu.fill(number);
        }
        if cpu.holes.len() > HOLES_MAX
            && let Some((first, (end, since, until))) = cpu.holes.pop_first()
        {
            self.lost = self.lost.saturating_add(end - first);
            widen(&mut self.times, since, until);
        }
    }

    /// Records that never arrived.
    pub(super) fn lost(&self) -> u64 {
        let open = self
            .cpus
            .values()
            .flat_map(|cpu| &cpu.holes)
            .map(|(first, (end, ..))| end - first);
        open.fold(self.lost, u64::saturating_add)
    }

    /// From before the first hole to after the last one.
    fn times(&self) -> Option<(BootNs, BootNs)> {
        let mut times = self.times;
        for (_, since, until) in self.cpus.values().flat_map(|cpu| cpu.holes.values()) {
            widen(&mut times, *since, *until);
        }
        times
    }
}

impl Cpu {
    /// A record that arrived late: numbers are given just after the place in the ring is, so neighbours can be swapped.
    fn fill(&mut self, number: u64) {
        let Some((first, (end, since, until))) = self
            .holes
            .range(..=number)
            .next_back()
            .map(|(at, hole)| (*at, *hole))
        else {
            return;
        };
        if number >= end {
            return;
        }
        self.holes.remove(&first);
        if first < number {
            self.holes.insert(first, (number, since, until));
        }
        if number + 1 < end {
            self.holes.insert(number + 1, (end, since, until));
        }
    }
}

fn widen(times: &mut Option<(BootNs, BootNs)>, since: BootNs, until: BootNs) {
    let (from, to) = times.get_or_insert((since, until));
    *from = (*from).min(since);
    *to = (*to).max(until);
}

/// Times in which operations were missed that left no trace in any channel's numbers; those beyond are added to the last. Stops a
/// capture of days on a kernel that skips programs from filling memory.
const UNNAMED_MAX: usize = 256;

/// Ends of streams that such times are told of one by one; beyond, as one time for each. Stops many channels from multiplying with
/// many times.
const UNNAMED_GAPS_MAX: usize = 1 << 16;

/// Losses that name no channel.
#[derive(Debug, Default)]
pub(super) struct Unnamed {
    /// When, at least, and how many operations.
    times: Vec<(BootNs, BootNs, u64)>,
    counted: u64,
    looked_at: BootNs,
}

impl Unnamed {
    /// Takes a heartbeat: how many operations were missed until now.
    pub(super) fn heartbeat(&mut self, at: BootNs, missed: u64) {
        let more = missed.saturating_sub(self.counted);
        if more > 0 {
            if self.times.len() >= UNNAMED_MAX
                && let Some(last) = self.times.last_mut()
            {
                last.1 = at;
                last.2 = last.2.saturating_add(more);
            } else {
                self.times.push((self.looked_at, at, more));
            }
        }
        self.counted = missed;
        self.looked_at = at;
    }

    /// Operations missed in times that meet another.
    fn between(&self, from: BootNs, to: BootNs) -> u64 {
        let meeting = self
            .times
            .iter()
            .filter(|(since, until, _)| *since <= to && *until >= from);
        meeting.fold(0, |sum, (_, _, missed)| sum.saturating_add(*missed))
    }

    fn merged(&self) -> Option<(BootNs, BootNs, u64)> {
        let missed = self
            .times
            .iter()
            .fold(0_u64, |sum, time| sum.saturating_add(time.2));
        Some((self.times.first()?.0, self.times.last()?.1, missed))
    }
}

impl Correlator {
    /// Ends of streams that can have moved something while an operation was missed somewhere, unless their balance shows that it was
    /// not theirs. It shows that of one operation; of two, one at each end can have made up for the other. The kernel's own counts of an end
    /// show it of any number.
    pub(super) fn unnamed_losses(&self) -> Vec<OpenTail> {
        let balances = self.balances.judged();
        let counts = self.counts.judged();
        let merged = self.unnamed.merged();
        let times = if self.ends.len().saturating_mul(self.unnamed.times.len()) > UNNAMED_GAPS_MAX {
            merged.as_slice()
        } else {
            &self.unnamed.times
        };
        let ends = self.ends.iter().flat_map(|(key, state)| {
            let from = self.channels.channel(key.0.channel).first_seen;
            let alive = times.iter().filter(move |(_, until, _)| *until >= from);
            alive.map(move |time| (key, state, time))
        });
        ends.filter(|((stream, end), _, (since, until, missed))| {
            // The kernel's own counts of an end: nothing makes up for what was missed there.
            if counts.clears(*stream, *end, *since, *until) {
                return false;
            }
            *missed > 1
                || balances
                    .even_around(*stream, *since, *until)
                    .is_none_or(|(from, to)| self.unnamed.between(from, to) > 1)
        })
        .map(|((stream, end), state, (since, until, _))| OpenTail {
            stream: *stream,
            end: *end,
            gap: Gap {
                position: state.log.bytes,
                len: None,
                reason: GapReason::UnseenOps,
                process: None,
                since: *since,
                until: *until,
            },
        })
        .collect()
    }

    /// Ends of streams that the kernel's totals did not close, where records were lost after the last operation.
    pub(super) fn open_tails(&self) -> Vec<OpenTail> {
        let Some((since, until)) = self.numbers.times() else {
            return Vec::new();
        };
        let open = self
            .ends
            .iter()
            .filter(|(_, state)| !state.log.is_closed() && state.log.last_exit() <= until)
            // The kernel counted no more than had arrived by then.
            .filter(|(_, state)| state.confirmed.is_none_or(|at| at < until));
        open.map(|((stream, end), state)| OpenTail {
            stream: *stream,
            end: *end,
            gap: Gap {
                position: state.log.bytes,
                len: None,
                reason: GapReason::UnseenOps,
                process: None,
                since: since
                    .max(state.log.last_exit())
                    .max(state.confirmed.unwrap_or_default()),
                until,
            },
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_arrive_late_fill_their_hole() {
        let mut numbers = Numbers::default();
        for seq in [0, 2, 1, 5, 4, 3, 6] {
            numbers.take(&header(seq));
        }
        assert_eq!((numbers.lost(), numbers.times()), (0, None));
        numbers.take(&header(9));
        assert_eq!(numbers.lost(), 2);
        assert_eq!(numbers.times(), Some((BootNs(60), BootNs(90))));
    }

    fn header(cpu_seq: u64) -> abi::RecordHeader {
        abi::RecordHeader {
            kind: abi::kind::EXIT,
            cpu: 1,
            size: 0,
            cpu_seq,
            boot_ns: cpu_seq * 10,
            generation: 1,
        }
    }
}
