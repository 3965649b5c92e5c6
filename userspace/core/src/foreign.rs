//! Channels of kinds whose bytes are not captured: what a record says of one, in words.

use std::net::{IpAddr, Ipv6Addr};

use countersign_common::evasion::{Evasion, foreign};

/// `AF_INET`, `AF_INET6`, `AF_NETLINK`, `AF_PACKET`, `AF_ALG`, `AF_VSOCK`, `AF_SMC` (`include/linux/socket.h`).
const INTERNET: [u8; 2] = [2, 10];
const AF_NETLINK: u8 = 16;
const AF_PACKET: u8 = 17;
const AF_ALG: u8 = 38;
const AF_VSOCK: u8 = 40;
const AF_SMC: u8 = 43;
/// `NETLINK_USERSOCK`: for processes to speak with each other.
const NETLINK_USERSOCK: u16 = 2;
/// The name servers' port.
const DNS: u16 = 53;

/// What was done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Done {
    /// Made, or opened.
    Made,
    /// Bound to the address.
    Bound,
    /// Connected to the address, or something was sent there.
    Reached,
}

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A socket: address family and protocol as in `socket(2)`.
    Socket {
        /// Of `AF_*`.
        family: u8,
        /// Of the family.
        protocol: u16,
    },
    /// A POSIX message queue.
    MessageQueue,
    /// A System V message queue.
    SysvQueue,
    /// Memory from `memfd_create`.
    Memfd,
    /// Shared memory without a file, which children inherit.
    AnonymousMemory,
}

/// One such channel, as one process has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Foreign {
    /// Which kind.
    pub kind: Kind,
    /// What was done to it.
    pub done: Done,
    /// Address, name or number, in the order of the bytes in memory.
    pub place: [u64; 2],
    /// Port of a socket; 0 for none.
    pub port: u16,
}

/// What two processes must have in common to be able to speak with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meeting {
    /// The same object.
    Object(Kind, [u64; 2]),
    /// A port of a protocol: one bound to it, the other reached it.
    Port(u8, u16, u16),
}

impl Foreign {
    /// What a record says. `None` for a kind that this version does not know.
    pub fn of(record: &Evasion) -> Option<Self> {
        let [_, family, low, high, ..] = record.number.to_le_bytes();
        let protocol = u16::from_le_bytes([low, high]);
        let kind = match record.number & 0xff {
            foreign::SOCKET => Kind::Socket { family, protocol },
            foreign::MESSAGE_QUEUE => Kind::MessageQueue,
            foreign::SYSV_QUEUE => Kind::SysvQueue,
            foreign::MEMFD => Kind::Memfd,
            foreign::ANONYMOUS_MEMORY => Kind::AnonymousMemory,
            _ => return None,
        };
        let done = match record.dev & 0xffff_0000 {
            foreign::BOUND => Done::Bound,
            foreign::REACHED => Done::Reached,
            _ => Done::Made,
        };
        let [low, high, ..] = record.dev.to_le_bytes();
        Some(Self {
            kind,
            done,
            place: [record.inode, record.argument],
            port: u16::from_le_bytes([low, high]),
        })
    }

    /// The same without what tells it from others of its kind.
    #[must_use]
    pub fn anywhere(self) -> Self {
        Self {
            place: [0; 2],
            port: 0,
            ..self
        }
    }

    /// Where another process can meet this one, if it can be told.
    pub fn meeting(&self) -> Option<Meeting> {
        match self.kind {
            Kind::MessageQueue | Kind::SysvQueue => {
                (self.place != [0; 2]).then_some(Meeting::Object(self.kind, self.place))
            }
            Kind::Socket {
                family: AF_NETLINK,
                protocol: NETLINK_USERSOCK,
            } => Some(Meeting::Object(self.kind, [0; 2])),
            Kind::Socket { family, protocol } => {
                let of_internet = INTERNET.contains(&family) || family == AF_SMC;
                let class = if of_internet { INTERNET[0] } else { family };
                let spoken = self.port != 0
                    && self.port != DNS
                    && self.done != Done::Made
                    && !(of_internet && self.address().is_multicast());
                spoken.then_some(Meeting::Port(class, protocol, self.port))
            }
            Kind::Memfd | Kind::AnonymousMemory => None,
        }
    }

    fn address(&self) -> IpAddr {
        let mut bytes = [0; 16];
        let [first, second] = self.place.map(u64::to_le_bytes);
        bytes[..8].copy_from_slice(&first);
        bytes[8..].copy_from_slice(&second);
        Ipv6Addr::from(bytes).to_canonical()
    }

    fn name(&self) -> String {
        let text = self.place.map(u64::to_le_bytes).concat();
        let end = text.iter().position(|byte| *byte == 0);
        String::from_utf8_lossy(&text[..end.unwrap_or(text.len())]).into_owned()
    }

    /// The kind in a few words.
    pub fn words(&self) -> String {
        match self.kind {
            Kind::Socket { family, protocol } => socket_words(family, protocol),
            Kind::MessageQueue => "a POSIX message queue".to_owned(),
            Kind::SysvQueue => "a System V message queue".to_owned(),
            Kind::Memfd => "memory of memfd_create".to_owned(),
            Kind::AnonymousMemory => "shared memory without a file".to_owned(),
        }
    }

    /// Address or name, if there is one.
    pub fn place_words(&self) -> Option<String> {
        match self.kind {
            Kind::MessageQueue if self.place != [0; 2] => Some(format!("/{}", self.name())),
            Kind::SysvQueue => Some(format!("id {}", self.place[0])),
            Kind::Socket { .. } if self.done == Done::Made => None,
            Kind::Socket { family, .. } => {
                let place = if INTERNET.contains(&family) || family == AF_SMC {
                    match self.address() {
                        IpAddr::V4(address) => format!("{address}:{}", self.port),
                        IpAddr::V6(address) => format!("[{address}]:{}", self.port),
                    }
                } else if family == AF_VSOCK {
                    format!("context {} port {}", self.place[0], self.port)
                } else {
                    return None;
                };
                let verb = if self.done == Done::Bound {
                    "bound to"
                } else {
                    "to"
                };
                Some(format!("{verb} {place}"))
            }
            Kind::MessageQueue | Kind::Memfd | Kind::AnonymousMemory => None,
        }
    }
}

fn socket_words(family: u8, protocol: u16) -> String {
    let of = match (family, protocol) {
        (2 | 10, 17) => "UDP",
        (2 | 10, 132) => "SCTP",
        (2 | 10, 136) => "UDP-Lite",
        (2 | 10, 262) => "MPTCP",
        (AF_PACKET, _) => "packet",
        (AF_VSOCK, _) => "vsock",
        (AF_ALG, _) => "AF_ALG",
        (AF_SMC, _) => "SMC",
        (2 | 10, _) => return format!("an internet socket of protocol {protocol}"),
        (AF_NETLINK, _) => return format!("a netlink socket of protocol {protocol}"),
        _ => return format!("a socket of address family {family}"),
    };
    format!("a {of} socket")
}
