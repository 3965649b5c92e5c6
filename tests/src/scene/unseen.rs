//! What the kernel programs do not see, and what gives it away: balances and heartbeats.

use countersign_common as abi;
use zerocopy::IntoBytes;

use super::{End, Scene, TICK_NS};

impl Scene {
    /// Bytes come into a channel by a way that the kernel programs do not see.
    pub fn write_unseen(&mut self, end: End, bytes: &[u8]) {
        self.now += TICK_NS;
        let from = if self.is_socket(end) { end.end } else { 0 };
        let channel = &mut self.channels[end.channel];
        channel.queues[from].extend(bytes);
        channel.uncounted[from][1] += bytes.len() as u64;
    }

    /// Bytes are taken out of a channel by a way that the kernel programs do not see.
    pub fn read_unseen(&mut self, end: End, max: usize) -> Vec<u8> {
        self.now += TICK_NS;
        let (at, from) = if self.is_socket(end) {
            (end.end, 1 - end.end)
        } else {
            (0, 0)
        };
        let channel = &mut self.channels[end.channel];
        let queue = &mut channel.queues[from];
        let bytes: Vec<u8> = queue.drain(..max.min(queue.len())).collect();
        channel.uncounted[at][0] += bytes.len() as u64;
        bytes
    }

    /// The kernel's own counts of an end of a TCP connection, beside those of the operations seen there.
    pub fn counts(&mut self, end: End) {
        let channel = &self.channels[end.channel];
        let [(read_ops, read_bytes), (written_ops, written_bytes)] = channel.counts[end.end];
        let [taken, sent] = channel.uncounted[end.end];
        // Who connected counts its `SYN`.
        let begin = u64::from(end.end == 0);
        let waiting = channel.queues[1 - end.end].len();
        let why = if written_ops + read_ops == 0 {
            abi::queued_why::BEGUN
        } else {
            abi::queued_why::ASKED
        };
        let begun_ns = self.now;
        self.now += TICK_NS / 10;
        let record = abi::SocketCounts {
            header: self.header(abi::kind::SOCKET_COUNTS, size_of::<abi::SocketCounts>()),
            channel: self.channel_id(end),
            sent_bytes: begin + written_bytes + sent,
            taken_bytes: read_bytes + taken,
            written_bytes,
            read_bytes,
            written_ops,
            read_ops,
            begun_ns,
            waiting_bytes: u32::try_from(waiting).expect("small"),
            unacked_bytes: 0,
            why,
            state: 1,
            flags: 0,
            reserved: [0; 5],
        };
        self.emit(record.as_bytes(), &[]);
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
        // A message is read in one operation, and a scene reads all that there is.
        let queued_messages = u32::from(queued_bytes > 0);
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
            queued_messages,
            reserved: [0; 3],
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
