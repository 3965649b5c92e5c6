//! Addresses of TCP connections, and the two ends of one tied by them.
//!
//! Each end is a kernel object of its own. As a rule the kernel programs name the other end; where they could not, two ends are one
//! connection if their addresses mirror each other *and* each end's bytes begin at the number at which the other expects them. Ports
//! are used again; both sequence numbers of a connection, as good as never.

use std::collections::HashMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use countersign_common as abi;

use super::{ChannelIx, ChannelKind, ChannelTable, EndKey};
use crate::time::BootNs;

/// Ends remembered of one pair of addresses. Stops an agent that connects from one port over and over from making the search long.
const SAME_ADDRESS_MAX: usize = 8;

/// The ends seen, by what the other end's addresses must be.
pub(super) type Ends = HashMap<Sockets, Vec<(ChannelIx, u8)>>;

/// A pair of socket addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Sockets {
    local: ([u8; 16], u16),
    remote: ([u8; 16], u16),
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", text(self.local), text(self.remote))
    }
}

/// A TCP connection's addresses, as one end sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    sockets: Sockets,
    /// Inode number of the network namespace.
    pub net_ns: u32,
    /// Sequence numbers at which this end's and the other end's bytes begin; 0: not known.
    starts: [u32; 2],
}

impl Address {
    fn of(record: &abi::SocketAddress) -> Self {
        Self {
            sockets: Sockets {
                local: (record.local, record.local_port),
                remote: (record.remote, record.remote_port),
            },
            net_ns: record.net_ns,
            starts: [record.local_start, record.remote_start],
        }
    }

    /// This end's address and port.
    pub fn local(&self) -> SocketAddr {
        text(self.sockets.local)
    }

    /// The other end's address and port.
    pub fn remote(&self) -> SocketAddr {
        text(self.sockets.remote)
    }

    fn mirrors(&self, other: &Self) -> bool {
        // Who connected counts its `SYN`, who accepted does not.
        let same = |a: u32, b: u32| a != 0 && b != 0 && a.abs_diff(b) <= 1;
        self.sockets.local == other.sockets.remote
            && self.sockets.remote == other.sockets.local
            && same(self.starts[0], other.starts[1])
            && same(self.starts[1], other.starts[0])
    }
}

fn text((address, port): ([u8; 16], u16)) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(address).to_canonical(), port)
}

impl ChannelTable {
    /// Takes the addresses of an end; they come before anything that moves there.
    pub fn addressed(&mut self, record: &abi::SocketAddress) {
        let at = BootNs(record.header.boot_ns);
        let address = Address::of(record);
        let id = &record.channel;
        if ChannelKind::from_abi(id.kind) != ChannelKind::Tcp {
            return;
        }
        let key = EndKey {
            object: id.object,
            inode: id.inode,
        };
        let known = self.by_key.get(&key).copied();
        let place = match known {
            Some((ix, end)) => {
                let before = self.channel(ix).addresses[usize::from(end)];
                if before.is_some_and(|before| before.sockets != address.sockets) {
                    // A socket that was connected again: another connection.
                    self.by_key.remove(&key);
                    self.tie(&address, key).or_else(|| self.add(key, id, at))
                } else {
                    known
                }
            }
            None => self
                .named(id)
                .is_none()
                .then(|| self.tie(&address, key))
                .flatten()
                .or_else(|| self.resolve(id, at)),
        };
        let Some((ix, end)) = place else {
            return;
        };
        let channel = &mut self.channels[ix.0 as usize];
        channel.last_seen = channel.last_seen.max(at);
        if channel.addresses[usize::from(end)] == Some(address) {
            return;
        }
        channel.addresses[usize::from(end)] = Some(address);
        let ends = self.by_address.entry(address.sockets).or_default();
        if !ends.contains(&(ix, end)) {
            if ends.len() == SAME_ADDRESS_MAX {
                ends.remove(0);
            }
            ends.push((ix, end));
        }
    }

    /// The channel whose end the kernel names as the other one.
    fn named(&self, id: &abi::ChannelId) -> Option<(ChannelIx, u8)> {
        self.by_key
            .get(&EndKey {
                object: id.peer_object,
                inode: id.peer_inode,
            })
            .copied()
    }

    /// Ties an end to the one that it mirrors: in the same network namespace if there is one, else if there is only one.
    fn tie(&mut self, address: &Address, key: EndKey) -> Option<(ChannelIx, u8)> {
        let mirrored = Sockets {
            local: address.sockets.remote,
            remote: address.sockets.local,
        };
        let found: Vec<(ChannelIx, u8, u32)> = self
            .by_address
            .get(&mirrored)?
            .iter()
            .filter_map(|(ix, end)| {
                let channel = self.channel(*ix);
                let other = channel.addresses[usize::from(*end)]?;
                let free = channel.ends[usize::from(1 - end)].is_none();
                (free && other.mirrors(address)).then_some((*ix, *end, other.net_ns))
            })
            .collect();
        let near: Vec<_> = found
            .iter()
            .filter(|(.., ns)| *ns == address.net_ns)
            .copied()
            .collect();
        let (ix, end) = match (near.as_slice(), found.as_slice()) {
            ([(ix, end, _)], _) | ([], [(ix, end, _)]) => (*ix, *end),
            _ => return None,
        };
        self.join(ix, 1 - end, key);
        Some((ix, 1 - end))
    }
}
