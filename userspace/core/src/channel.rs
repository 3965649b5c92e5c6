//! Channels: kernel objects told apart, socket ends joined into pairs, holders of ends remembered.
//!
//! Owns the identity of pipes, FIFOs, sockets and their pairs, terminals and proxies' files. A channel is keyed by kernel address *and* inode
//! number, so a reused address is another channel. It does not look at bytes.

mod address;
mod kind;

use std::collections::HashMap;
use std::net::SocketAddr;

use countersign_common as abi;

use crate::process::ProcessIx;
use crate::record::Direction;
use crate::time::BootNs;

pub use address::Address;
pub use kind::ChannelKind;

/// Channels kept. Stops an agent that opens pipes in a loop from filling memory.
pub const CHANNELS_MAX: usize = 1 << 20;

/// Holders kept per channel. Stops an agent that forks in a loop from filling memory.
pub const HOLDERS_MAX: usize = 256;

/// Ends found in `/proc` that are kept until a record names their channel. Stops a process with very many descriptors from
/// filling memory.
pub const FOUND_MAX: usize = 1 << 20;

/// Index of a channel in its [`ChannelTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelIx(pub u32);

/// One direction of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamIx {
    /// The channel.
    pub channel: ChannelIx,
    /// The end that writes into this direction: 0 for pipes and files, 0 or 1 for sockets.
    pub from_end: u8,
}

/// Which side of a stream something was seen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// Where bytes go in.
    Writer,
    /// Where bytes come out.
    Reader,
}

impl End {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Writer => "writer",
            Self::Reader => "reader",
        }
    }
}

/// How a process got its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Got {
    /// It made the channel.
    Created,
    /// It connected.
    Connected,
    /// It accepted.
    Accepted,
    /// It opened a FIFO, or another process's descriptor through `/proc`.
    Opened,
    /// `pidfd_getfd`.
    PidfdGetfd,
    /// Passed over a socket.
    ScmRights,
    /// First seen using it; inherited, or got in a way that was not seen.
    Used,
    /// It had it when the capture looked.
    Scanned,
}

impl Got {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Connected => "connected",
            Self::Accepted => "accepted",
            Self::Opened => "reopened",
            Self::PidfdGetfd => "pidfd_getfd",
            Self::ScmRights => "scm_rights",
            Self::Used => "used",
            Self::Scanned => "scan",
        }
    }

    fn from_abi(how: u8) -> Self {
        match how {
            abi::end_how::CREATED => Self::Created,
            abi::end_how::CONNECTED => Self::Connected,
            abi::end_how::ACCEPTED => Self::Accepted,
            abi::end_how::OPENED => Self::Opened,
            abi::end_how::PIDFD_GETFD => Self::PidfdGetfd,
            abi::end_how::SCM_RIGHTS => Self::ScmRights,
            _ => Self::Used,
        }
    }
}

/// A process at an end of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub process: ProcessIx,
    /// Which end; always 0 for pipes and files.
    pub end: u8,
    /// How it got there.
    pub got: Got,
    /// It read, or was found with an end that reads.
    pub reads: bool,
    /// It wrote, or was found with an end that writes.
    pub writes: bool,
    /// First seen there.
    pub first: BootNs,
    /// Last seen there.
    pub last: BootNs,
}

/// Kernel identity of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndKey {
    /// Kernel address of the inode or socket.
    pub object: u64,
    /// Inode number.
    pub inode: u64,
}

/// One channel.
#[derive(Clone, Debug)]
pub struct Channel {
    /// What it is.
    pub kind: ChannelKind,
    /// Its ends; pipes and files have the first only.
    pub ends: [Option<EndKey>; 2],
    /// Of a TCP connection: the addresses as each end sees them.
    pub addresses: [Option<Address>; 2],
    /// Kernel `dev_t` of its file system, 0 for sockets.
    pub dev: u32,
    /// First record that named it.
    pub first_seen: BootNs,
    /// Last record that named it.
    pub last_seen: BootNs,
    /// Its creation was seen, so its streams start at byte 0.
    pub created: bool,
    /// When the last of its holders that were found in `/proc` was found, all of them being watched by then.
    pub found_at: Option<BootNs>,
    /// Who held an end.
    pub holders: Vec<Holder>,
    /// Holders that found no room.
    pub holders_overflowed: u64,
}

impl Channel {
    /// From when on everything in a channel is seen that existed before the capture: since all that held it were watched, else
    /// since it was first used.
    pub fn watched_from(&self) -> BootNs {
        self.found_at.unwrap_or(self.first_seen)
    }

    /// Who was found with this end, able to move bytes in that direction.
    pub fn found_with(
        &self,
        end: u8,
        direction: Direction,
    ) -> impl Iterator<Item = ProcessIx> + '_ {
        let fits = move |holder: &&Holder| match direction {
            Direction::Read => holder.reads,
            Direction::Write => holder.writes,
        };
        let found = self
            .holders
            .iter()
            .filter(move |holder| holder.got == Got::Scanned && holder.end == end);
        found.filter(fits).map(|holder| holder.process)
    }

    /// The address of an end of a TCP connection, as it said itself, else as the other one sees it.
    pub fn address_of(&self, end: u8) -> Option<SocketAddr> {
        let own = self.addresses[usize::from(end)].map(|address| address.local());
        own.or_else(|| self.addresses[usize::from(1 - end)].map(|address| address.remote()))
    }

    /// The process that made the channel, when that was seen.
    pub fn creator(&self) -> Option<ProcessIx> {
        self.holders
            .iter()
            .find(|holder| holder.got == Got::Created)
            .map(|holder| holder.process)
    }
}

/// An end that a process was found with in `/proc`, where channels have no kernel address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who.
    pub process: ProcessIx,
    /// Kernel `dev_t`, 0 for sockets.
    pub dev: u32,
    /// Inode number of this end.
    pub inode: u64,
    /// It can read.
    pub reads: bool,
    /// It can write.
    pub writes: bool,
    /// When.
    pub at: BootNs,
}

/// All channels of a capture.
#[derive(Debug, Default)]
pub struct ChannelTable {
    channels: Vec<Channel>,
    by_key: HashMap<EndKey, (ChannelIx, u8)>,
    /// Socket ends known from their peer before their inode number was.
    awaited: HashMap<u64, (ChannelIx, u8)>,
    by_inode: HashMap<(u32, u64), (ChannelIx, u8)>,
    by_address: address::Ends,
    /// Ends found whose channel no record has named yet.
    found: HashMap<(u32, u64), Vec<Found>>,
    found_len: usize,
    /// Records whose channel found no room.
    pub overflowed: u64,
}

impl ChannelTable {
    /// All channels in order of first mention.
    pub fn iter(&self) -> impl Iterator<Item = (ChannelIx, &Channel)> {
        self.channels
            .iter()
            .enumerate()
            .map(|(ix, channel)| (ChannelIx(u32::try_from(ix).unwrap_or(u32::MAX)), channel))
    }

    /// The channel at an index that this table gave out.
    pub fn channel(&self, ix: ChannelIx) -> &Channel {
        &self.channels[ix.0 as usize]
    }

    /// The channel of a record and the end that it speaks of; `None` when the table is full.
    pub fn resolve(&mut self, id: &abi::ChannelId, at: BootNs) -> Option<(ChannelIx, u8)> {
        let key = EndKey {
            object: id.object,
            inode: id.inode,
        };
        let (ix, end) = match self.by_key.get(&key) {
            Some(found) => *found,
            None => self.learn(key, id, at)?,
        };
        self.learn_peer(ix, end, id);
        let channel = &mut self.channels[ix.0 as usize];
        channel.last_seen = channel.last_seen.max(at);
        Some((ix, end))
    }

    /// The stream that an operation at an end belongs to, and the side it was seen at.
    pub fn stream_of(&self, ix: ChannelIx, end: u8, direction: Direction) -> (StreamIx, End) {
        let from_end = match (self.channel(ix).kind.is_two_way(), direction) {
            (true, Direction::Write) => end,
            (true, Direction::Read) => 1 - end,
            (false, Direction::Read | Direction::Write) => 0,
        };
        let side = match direction {
            Direction::Write => End::Writer,
            Direction::Read => End::Reader,
        };
        (
            StreamIx {
                channel: ix,
                from_end,
            },
            side,
        )
    }

    /// Takes a channel-end record.
    pub fn got_end(&mut self, record: &abi::ChannelEnd, process: ProcessIx) {
        let at = BootNs(record.header.boot_ns);
        let Some((ix, end)) = self.resolve(&record.channel, at) else {
            return;
        };
        let got = Got::from_abi(record.how);
        let channel = &mut self.channels[ix.0 as usize];
        if matches!(got, Got::Created) {
            channel.created = true;
        }
        let holder = holder(channel, process, end, got, at);
        if let Some(holder) = holder {
            if holder.got == Got::Used {
                holder.got = got;
            }
            holder.last = at;
        }
    }

    /// Notes that a process moved bytes at an end.
    pub fn used(
        &mut self,
        ix: ChannelIx,
        end: u8,
        process: ProcessIx,
        direction: Direction,
        at: BootNs,
    ) {
        let channel = &mut self.channels[ix.0 as usize];
        if let Some(holder) = holder(channel, process, end, Got::Used, at) {
            holder.last = holder.last.max(at);
            match direction {
                Direction::Read => holder.reads = true,
                Direction::Write => holder.writes = true,
            }
        }
    }

    /// Takes an end that a process was found with. It counts once a record names the channel.
    pub fn found(&mut self, found: Found) {
        let place = (found.dev, found.inode);
        if let Some((ix, end)) = self.by_inode.get(&place).copied() {
            return self.holds(ix, end, found);
        }
        if self.found_len >= FOUND_MAX {
            self.overflowed += 1;
            return;
        }
        self.found_len += 1;
        self.found.entry(place).or_default().push(found);
    }

    fn holds(&mut self, ix: ChannelIx, end: u8, found: Found) {
        let channel = &mut self.channels[ix.0 as usize];
        channel.found_at = channel.found_at.max(Some(found.at));
        let process = found.process;
        let known = channel.holders.iter().any(|holder| {
            holder.process == process && holder.end == end && holder.got != Got::Scanned
        });
        if let Some(holder) = holder(channel, process, end, Got::Scanned, found.at)
            && !known
        {
            holder.reads |= found.reads;
            holder.writes |= found.writes;
        }
    }

    /// Gives an end its inode number, and to the channel those that were found with it.
    fn name(&mut self, ix: ChannelIx, end: u8, inode: u64) {
        let place = (self.channels[ix.0 as usize].dev, inode);
        self.by_inode.insert(place, (ix, end));
        for found in self.found.remove(&place).into_iter().flatten() {
            self.found_len -= 1;
            self.holds(ix, end, found);
        }
    }

    fn learn(&mut self, key: EndKey, id: &abi::ChannelId, at: BootNs) -> Option<(ChannelIx, u8)> {
        let kind = ChannelKind::from_abi(id.kind);
        if let Some((ix, end)) = self.awaited.get(&key.object).copied() {
            let other = self.channels[ix.0 as usize].ends[usize::from(1 - end)];
            // The memory of a TCP socket can be another's by now, one that has not been found its other end.
            let unsaid = id.peer_object == 0 && kind != ChannelKind::Tcp;
            if kind == self.channels[ix.0 as usize].kind
                && other.is_some_and(|other| other.object == id.peer_object || unsaid)
            {
                self.awaited.remove(&key.object);
                self.join(ix, end, key);
                return Some((ix, end));
            }
        }
        let peer = EndKey {
            object: id.peer_object,
            inode: id.peer_inode,
        };
        if peer.object != 0
            && let Some((ix, end)) = self.by_key.get(&peer).copied()
            && self.channels[ix.0 as usize].kind == kind
            && self.channels[ix.0 as usize].ends[usize::from(1 - end)].is_none()
        {
            // The other end came first, when it could not name this one.
            self.join(ix, 1 - end, key);
            return Some((ix, 1 - end));
        }
        self.add(key, id, at)
    }

    /// Gives a channel its second end.
    fn join(&mut self, ix: ChannelIx, end: u8, key: EndKey) {
        self.channels[ix.0 as usize].ends[usize::from(end)] = Some(key);
        self.by_key.insert(key, (ix, end));
        self.name(ix, end, key.inode);
    }

    /// Makes a channel of an end of which no other is known.
    fn add(&mut self, key: EndKey, id: &abi::ChannelId, at: BootNs) -> Option<(ChannelIx, u8)> {
        if self.channels.len() >= CHANNELS_MAX {
            self.overflowed += 1;
            return None;
        }
        let ix = ChannelIx(u32::try_from(self.channels.len()).ok()?);
        self.channels.push(Channel {
            kind: ChannelKind::from_abi(id.kind),
            ends: [Some(key), None],
            addresses: [None, None],
            dev: id.dev,
            first_seen: at,
            last_seen: at,
            created: false,
            found_at: None,
            holders: Vec::new(),
            holders_overflowed: 0,
        });
        self.by_key.insert(key, (ix, 0));
        self.name(ix, 0, key.inode);
        Some((ix, 0))
    }

    fn learn_peer(&mut self, ix: ChannelIx, end: u8, id: &abi::ChannelId) {
        if id.peer_object == 0 || !self.channels[ix.0 as usize].kind.is_two_way() {
            return;
        }
        let slot = usize::from(1 - end);
        if self.channels[ix.0 as usize].ends[slot].is_some() {
            return;
        }
        if id.peer_inode == 0 {
            self.awaited.insert(id.peer_object, (ix, 1 - end));
            return;
        }
        let key = EndKey {
            object: id.peer_object,
            inode: id.peer_inode,
        };
        if self.by_key.contains_key(&key) {
            // The peer came first as a channel of its own, before either end could name the other: the two rows stay
            // apart, which can only lose a pairing, never make one up.
            return;
        }
        self.join(ix, 1 - end, key);
    }
}

fn holder(
    channel: &mut Channel,
    process: ProcessIx,
    end: u8,
    got: Got,
    at: BootNs,
) -> Option<&mut Holder> {
    let known = channel
        .holders
        .iter()
        .position(|holder| holder.process == process && holder.end == end);
    let position = match known {
        Some(position) => position,
        None if channel.holders.len() < HOLDERS_MAX => {
            channel.holders.push(Holder {
                process,
                end,
                got,
                reads: false,
                writes: false,
                first: at,
                last: at,
            });
            channel.holders.len() - 1
        }
        None => {
            channel.holders_overflowed += 1;
            return None;
        }
    };
    channel.holders.get_mut(position)
}
