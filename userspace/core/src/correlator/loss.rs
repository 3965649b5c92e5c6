//! Holes in the numbers that each processor gives its records: records that were made and never arrived.
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

impl Correlator {
    /// Ends of streams that the kernel's totals did not close, where records were lost after the last operation.
    pub(super) fn open_tails(&self) -> Vec<OpenTail> {
        let Some((since, until)) = self.numbers.times() else {
            return Vec::new();
        };
        let open = self
            .ends
            .iter()
            .filter(|(_, state)| !state.log.is_closed() && state.log.last_exit() <= until);
        open.map(|((stream, end), state)| OpenTail {
            stream: *stream,
            end: *end,
            gap: Gap {
                position: state.log.bytes,
                len: None,
                reason: GapReason::UnseenOps,
                process: None,
                since: since.max(state.log.last_exit()),
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
