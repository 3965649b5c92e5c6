//! Balances and the rest of the machine: samples in, gaps of their streams out.

use super::Correlator;
use crate::channel::{ChannelKind, End, StreamIx};
use crate::counted::Counted;
use crate::record::Direction;
use crate::time::BootNs;

use countersign_common as abi;

impl Correlator {
    /// A channel that was seen to be made begins at zero.
    pub(super) fn begin_balance(&mut self, end: &abi::ChannelEnd) {
        if end.how != abi::end_how::CREATED {
            return;
        }
        let at = BootNs(end.header.boot_ns);
        if let Some(stream) = self.read_at(&end.channel, at) {
            self.balances.made(stream, at, end.channel.epoch);
        }
    }

    pub(super) fn queued(&mut self, record: &abi::Queued) {
        let at = BootNs(record.header.boot_ns);
        let Some(stream) = self.read_at(&record.channel, at) else {
            return;
        };
        let counted = [record.written_ops, record.read_ops];
        let of_messages = self.channels.channel(stream.channel).kind.is_of_messages();
        let mut seen = [0; 2];
        for ((end, ops), seen) in [End::Writer, End::Reader]
            .into_iter()
            .zip(counted)
            .zip(&mut seen)
        {
            if let Some(state) = self.ends.get_mut(&(stream, end)) {
                *seen = if of_messages {
                    state.log.operations()
                } else {
                    state.log.position()
                };
                if state.log.has_all(ops) {
                    state.confirmed = state.confirmed.max(Some(BootNs(record.begun_ns).min(at)));
                }
            }
        }
        self.balances.sample(stream, record, seen);
    }

    /// How far the readers' count of a stream's bytes is ahead of the writers': by what was in the channel already when its ends began
    /// to be counted. `None` if that is not known.
    pub(super) fn shift(&self, stream: StreamIx) -> Option<i128> {
        if self.channels.channel(stream.channel).created {
            return Some(0);
        }
        self.balances.shift(stream)
    }

    /// The kernel's own counts of an end: of the stream that is written there and of the one that is read there.
    pub(super) fn counted(&mut self, record: &abi::SocketCounts) {
        let at = BootNs(record.header.boot_ns);
        let Some((channel, own)) = self.channels.resolve(&record.channel, at) else {
            return;
        };
        if self.channels.channel(channel).kind != ChannelKind::Tcp {
            return;
        }
        let may_hold = |flag| record.flags & flag != 0;
        let sides = [
            (
                Direction::Write,
                record.sent_bytes,
                record.written_bytes,
                record.written_ops,
                may_hold(abi::count_flags::SENT_END),
            ),
            (
                Direction::Read,
                record.taken_bytes,
                record.read_bytes,
                record.read_ops,
                may_hold(abi::count_flags::TAKEN_END),
            ),
        ];
        for (direction, moved, bytes, ops, may_hold_end) in sides {
            let (stream, end) = self.channels.stream_of(channel, own, direction);
            let mut seen = 0;
            if let Some(state) = self.ends.get_mut(&(stream, end)) {
                seen = state.log.position();
                if state.log.has_all(ops) {
                    state.confirmed = state.confirmed.max(Some(BootNs(record.begun_ns).min(at)));
                }
            }
            let counted = Counted {
                moved,
                bytes,
                ops,
                may_hold_end,
                seen,
            };
            self.counts.sample(stream, end, record, counted);
        }
    }

    /// An operation with urgent data, which is not part of what is read.
    pub(super) fn urgent(&mut self, transfer: &abi::Transfer, at: BootNs) {
        if let Some((channel, end)) = self.channels.resolve(&transfer.channel, at) {
            let (stream, _) = self.channels.stream_of(channel, end, Direction::Write);
            self.counts.urgent(stream);
        }
    }

    /// The stream that is read at the end that a record speaks from. Files are read by nobody.
    fn read_at(&mut self, id: &abi::ChannelId, at: BootNs) -> Option<StreamIx> {
        let (channel, end) = self.channels.resolve(id, at)?;
        if matches!(
            self.channels.channel(channel).kind,
            ChannelKind::File | ChannelKind::Unknown
        ) {
            return None;
        }
        Some(self.channels.stream_of(channel, end, Direction::Read).0)
    }

    /// What does not add up is a gap of its stream.
    pub(super) fn finish_balances(&mut self) {
        let end = self.end();
        let unseen = self.balances.unseen().into_iter();
        for (stream, mut unseen) in unseen.chain(self.counts.unseen()) {
            unseen.gap.until = unseen.gap.until.min(end).max(unseen.gap.since);
            self.streams
                .entry(stream)
                .or_default()
                .push_gap(unseen.end, unseen.gap);
        }
    }
}
