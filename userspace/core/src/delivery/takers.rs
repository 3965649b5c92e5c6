//! Takers: which process took which bytes out of a stream.
//!
//! Owns, by place in the stream, whose operations they were. Where those of two processes were on their way at once, the order of
//! their returns need not be that in which they took the bytes: such places are nobody's.

use crate::process::ProcessIx;
use crate::stream::Op;
use crate::time::BootNs;

/// Spans kept per stream, and as many places that are nobody's. Stops two readers that take turns from filling memory; from then on
/// nothing is known of who took what.
pub const SPANS_MAX: usize = 4096;

/// Bytes from one place up to another.
type Span = (u64, u64);

/// Who took what.
#[derive(Debug, Default)]
pub struct Takers {
    spans: Vec<(Span, ProcessIx)>,
    nobodys: Vec<Span>,
    /// Of the two processes that were last at it: their last operations.
    last: [Option<(ProcessIx, Span, BootNs)>; 2],
    overflowed: bool,
}

impl Takers {
    /// Notes an operation that took bytes.
    pub fn took(&mut self, op: &Op) {
        let span = (
            op.stream_before,
            op.stream_before.saturating_add(op.returned),
        );
        if self.last[0].is_some_and(|(process, ..)| process != op.process) {
            self.last.swap(0, 1);
        }
        self.last[0] = Some((op.process, span, op.exit));
        if let Some((other, of_other, exit)) = self.last[1]
            && other != op.process
            && exit >= op.enter
        {
            let place = (of_other.0.min(span.0), of_other.1.max(span.1));
            let joins = |last: &&mut Span| last.1 >= place.0 && last.0 <= place.0;
            if let Some(last) = self.nobodys.last_mut().filter(joins) {
                last.1 = last.1.max(place.1);
            } else if self.nobodys.len() < SPANS_MAX {
                self.nobodys.push(place);
            } else {
                self.overflowed = true;
            }
        }
        let goes_on =
            |((_, to), process): &&mut (Span, ProcessIx)| *process == op.process && *to == span.0;
        if let Some(((_, to), _)) = self.spans.last_mut().filter(goes_on) {
            *to = span.1;
        } else if self.spans.len() < SPANS_MAX {
            self.spans.push((span, op.process));
        } else {
            self.overflowed = true;
        }
    }

    /// What is known, in order of place, of those processes' bytes alone.
    pub fn of(&self, whose: impl Fn(ProcessIx) -> bool) -> Taken {
        let mut taken = Taken::default();
        if self.overflowed {
            return taken;
        }
        let mut spans = self.spans.clone();
        spans.sort_unstable();
        for ((from, to), _) in spans.iter().filter(|(_, process)| whose(*process)) {
            match taken.spans.last_mut() {
                Some(last) if last.1 == *from => last.1 = *to,
                _ => taken.spans.push((*from, *to)),
            }
        }
        taken.nobodys.clone_from(&self.nobodys);
        taken.nobodys.sort_unstable();
        // What lies within another one would hide it from a search.
        let mut end = 0;
        taken.nobodys.retain(|(_, to)| {
            let reaches = *to > end;
            end = end.max(*to);
            reaches
        });
        taken
    }
}

/// Bytes that certain processes took.
#[derive(Debug, Default)]
pub struct Taken {
    spans: Vec<Span>,
    nobodys: Vec<Span>,
}

impl Taken {
    /// Whether they took all bytes from one place up to another.
    pub fn all(&self, from: u64, to: u64) -> bool {
        let next = self.spans.partition_point(|(_, end)| *end < to);
        let within = self
            .spans
            .get(next)
            .is_some_and(|(start, _)| *start <= from);
        let next = self.nobodys.partition_point(|(_, end)| *end <= from);
        let unclear = self.nobodys.get(next).is_some_and(|(start, _)| *start < to);
        within && !unclear
    }
}
