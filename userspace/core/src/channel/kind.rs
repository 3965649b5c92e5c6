//! Kinds of channels and what follows from them.

use countersign_common as abi;

/// Kind of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// An anonymous pipe.
    Pipe,
    /// A named pipe.
    Fifo,
    /// A connected `AF_UNIX` stream socket pair.
    UnixStream,
    /// A regular file that a proxy writes.
    File,
    /// An `AF_UNIX` datagram socket; a pair only where two are connected to each other.
    UnixDatagram,
    /// A connected `AF_UNIX` seqpacket socket pair.
    UnixSeqpacket,
    /// A TCP connection.
    Tcp,
    /// A pseudo-terminal: end a or b is the master's side, whichever was seen first.
    Terminal,
    /// A kind that this version does not know.
    Unknown,
}

impl ChannelKind {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pipe => "pipe",
            Self::Fifo => "fifo",
            Self::UnixStream => "unix_stream",
            Self::File => "file",
            Self::UnixDatagram => "unix_dgram",
            Self::UnixSeqpacket => "unix_seqpacket",
            Self::Tcp => "tcp",
            Self::Terminal => "tty",
            Self::Unknown => "unknown",
        }
    }

    pub(super) fn from_abi(kind: u8) -> Self {
        match kind {
            abi::channel_kind::PIPE => Self::Pipe,
            abi::channel_kind::FIFO => Self::Fifo,
            abi::channel_kind::UNIX_STREAM => Self::UnixStream,
            abi::channel_kind::FILE => Self::File,
            abi::channel_kind::UNIX_DGRAM => Self::UnixDatagram,
            abi::channel_kind::UNIX_SEQPACKET => Self::UnixSeqpacket,
            abi::channel_kind::TCP => Self::Tcp,
            abi::channel_kind::TTY => Self::Terminal,
            _ => Self::Unknown,
        }
    }

    /// It has two ends that both read and write, so two streams.
    pub fn is_two_way(self) -> bool {
        matches!(
            self,
            Self::UnixStream
                | Self::UnixDatagram
                | Self::UnixSeqpacket
                | Self::Tcp
                | Self::Terminal
        )
    }

    /// What is written in one operation is read in one, or not at all.
    pub fn is_of_messages(self) -> bool {
        matches!(self, Self::UnixDatagram | Self::UnixSeqpacket)
    }

    /// Carries all sorts of protocols besides messages in lines: that a proxy uses one says nothing of what for.
    pub fn is_for_anything(self) -> bool {
        matches!(self, Self::Tcp | Self::Terminal | Self::UnixDatagram)
    }
}
