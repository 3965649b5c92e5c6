//! Sockets of a scene other than unix streams, and terminals.

use std::net::Ipv4Addr;

use countersign_common as abi;
use zerocopy::IntoBytes;

use super::{End, Proc, Scene, task};

/// Port of the first connection of a scene at the end that connected.
const FIRST_PORT: u16 = 40_000;

/// Port that every server of a scene listens on.
const SERVER_PORT: u16 = 8080;

/// Kinds of channels with two streams.
pub(super) fn is_two_way(kind: u8) -> bool {
    use abi::channel_kind as kinds;
    matches!(
        kind,
        kinds::UNIX_STREAM | kinds::UNIX_DGRAM | kinds::UNIX_SEQPACKET | kinds::TCP | kinds::TTY
    )
}

impl Scene {
    /// A pair of seqpacket sockets: the first end.
    pub fn seqpacket_pair(&mut self, creator: Proc) -> End {
        self.pair_of(abi::channel_kind::UNIX_SEQPACKET, creator)
    }

    /// A pair of datagram sockets: the first end.
    pub fn datagram_pair(&mut self, creator: Proc) -> End {
        self.pair_of(abi::channel_kind::UNIX_DGRAM, creator)
    }

    /// A terminal: the master's side.
    pub fn terminal(&mut self) -> End {
        self.channel(abi::channel_kind::TTY)
    }

    fn pair_of(&mut self, kind: u8, creator: Proc) -> End {
        let end = self.channel(kind);
        self.got(creator, end, abi::end_how::CREATED);
        self.got(creator, end.other(), abi::end_how::CREATED);
        end
    }

    /// A TCP connection: the end that connected. Neither end names the other; their addresses are up to the scene.
    pub fn connection(&mut self) -> End {
        let end = self.channel(abi::channel_kind::TCP);
        self.channels[end.channel].unnamed = true;
        end
    }

    /// The addresses of an end are told: `port` tells connections apart, and `start` those of one port.
    pub fn addressed(&mut self, process: Proc, end: End, port: u16, start: u32) {
        self.addressed_in(process, end, port, start, 1);
    }

    /// [`addressed`](Self::addressed), in a network namespace.
    pub fn addressed_in(&mut self, process: Proc, end: End, port: u16, start: u32, net_ns: u32) {
        let loopback = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let client = end.end == 0;
        let mut ports = [FIRST_PORT + port, SERVER_PORT];
        // Who connected counts its `SYN`.
        let mut starts = [start, start + 5_000];
        if !client {
            ports.reverse();
            starts.reverse();
            starts[1] += 1;
        }
        let record = abi::SocketAddress {
            header: self.header(abi::kind::SOCKET_ADDRESS, size_of::<abi::SocketAddress>()),
            task: task(process),
            channel: self.channel_id(end),
            cookie: 0,
            local: loopback,
            remote: loopback,
            net_ns,
            local_port: ports[0],
            remote_port: ports[1],
            local_start: starts[0],
            remote_start: starts[1],
            family: 2,
            state: 1,
            reserved: [0; 5],
        };
        self.emit(record.as_bytes(), &[]);
    }
}
