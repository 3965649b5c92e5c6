//! Balances and the rest of the machine: samples in, gaps of their streams out.

use super::Correlator;
use crate::channel::{ChannelKind, End, StreamIx};
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
        let mut seen = [0; 2];
        for ((end, ops), seen) in [End::Writer, End::Reader]
            .into_iter()
            .zip(counted)
            .zip(&mut seen)
        {
            if let Some(state) = self.ends.get_mut(&(stream, end)) {
                *seen = state.log.position();
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
        for (stream, mut unseen) in self.balances.unseen() {
            unseen.gap.until = unseen.gap.until.min(end).max(unseen.gap.since);
            self.streams
                .entry(stream)
                .or_default()
                .push_gap(unseen.end, unseen.gap);
        }
    }
}
