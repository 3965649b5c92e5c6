//! What the kernel programs do not see, and what gives it away: balances and heartbeats.

use countersign_common as abi;
use zerocopy::IntoBytes;

use super::{End, Scene, TICK_NS};

impl Scene {
    /// Bytes come into a channel by a way that the kernel programs do not see.
    pub fn write_unseen(&mut self, end: End, bytes: &[u8]) {
        self.now += TICK_NS;
        let from = if self.is_socket(end) { end.end } else { 0 };
        self.channels[end.channel].queues[from].extend(bytes);
    }

    /// Bytes are taken out of a channel by a way that the kernel programs do not see.
    pub fn read_unseen(&mut self, end: End, max: usize) -> Vec<u8> {
        self.now += TICK_NS;
        let from = if self.is_socket(end) { 1 - end.end } else { 0 };
        let queue = &mut self.channels[end.channel].queues[from];
        queue.drain(..max.min(queue.len())).collect()
    }

    /// The kernel holds counts and queue of what is read at an end against each other.
    pub fn balance(&mut self, end: End) {
        let socket = self.is_socket(end);
        let (reads, writes) = if socket {
            (end.end, 1 - end.end)
        } else {
            (0, 0)
        };
        let channel = &self.channels[end.channel];
        let (written_ops, written_bytes) = channel.counts[writes][1];
        let (read_ops, read_bytes) = channel.counts[reads][0];
        let queued_bytes = channel.queues[writes].len() as u64;
        let begun_ns = self.now;
        self.now += TICK_NS / 10;
        let record = abi::Queued {
            header: self.header(abi::kind::QUEUED, size_of::<abi::Queued>()),
            channel: self.channel_id(end),
            written_bytes,
            read_bytes,
            queued_bytes,
            written_ops,
            read_ops,
            begun_ns,
            why: abi::queued_why::ASKED,
            reserved: [0; 7],
        };
        self.emit(record.as_bytes(), &[]);
    }

    /// A heartbeat: the kernel skipped the program for `sys_exit` so often until now.
    pub fn heartbeat(&mut self, recursion_misses: u64) {
        let ledger = format!(
            r#"{{"programs":[{{"name":"sys_exit","recursion_misses":{recursion_misses}}}]}}"#
        );
        self.user(abi::kind::LEDGER, ledger.as_bytes());
    }
}
