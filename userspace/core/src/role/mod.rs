//! Roles: which processes are proxy instances, and which leg of a call's way each stream is.
//!
//! Owns the decision who is a proxy ([`instance`]), from the identity of the executable and from what the process did, never from
//! a name; and from that, the leg of every stream ([`leg`]). It judges nothing.

mod instance;
mod leg;

use std::collections::{BTreeMap, BTreeSet};

use crate::channel::{ChannelTable, End, StreamIx};
use crate::delivery::StreamFrames;
use crate::process::{FileId, ProcessIx, ProcessTable};
use crate::time::BootNs;

/// Index of a proxy instance in [`Roles`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceIx(pub usize);

/// What is known of a configured proxy before anything was seen.
#[derive(Clone, Debug, Default)]
pub struct ProxyIdentity {
    /// Its executables.
    pub exes: Vec<FileId>,
    /// Executables that are Countersign's own proxy.
    pub own_exes: Vec<FileId>,
    /// Its log files, by identity, as far as known.
    pub logs: Vec<FileId>,
}

/// How sure it is that a process is the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Countersign's own proxy program, holding the configured log.
    Own,
    /// The configured executable, holding the configured log.
    Verified,
    /// The configured executable; which file it logs to is not known.
    Claimed,
}

impl Strength {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Verified => "verified",
            Self::Claimed => "claimed",
        }
    }
}

/// One running proxy.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its process.
    pub process: ProcessIx,
    /// Index of the configured proxy.
    pub proxy: usize,
    /// How sure that is.
    pub strength: Strength,
    /// It is Countersign's own proxy program.
    pub own: bool,
    /// It runs under the same uid as the process that started it.
    pub same_uid_as_parent: bool,
    /// When it became the proxy.
    pub from: BootNs,
    /// When it ended; `None` while it lives.
    pub to: Option<BootNs>,
    /// Its birth was seen, so nothing of it was missed before the tag.
    pub from_birth: bool,
}

/// Leg of a call's way that a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leg {
    /// Client to proxy.
    ClientToProxy(InstanceIx),
    /// Proxy to server.
    ProxyToServer(InstanceIx),
    /// Server to proxy.
    ServerToProxy(InstanceIx),
    /// Proxy to client.
    ProxyToClient(InstanceIx),
    /// A proxy's writes to a file.
    ProxyFile(InstanceIx),
    /// No proxy at either end.
    Direct,
}

impl Leg {
    /// The proxy instance at one end.
    pub fn instance(self) -> Option<InstanceIx> {
        match self {
            Self::ClientToProxy(ix)
            | Self::ProxyToServer(ix)
            | Self::ServerToProxy(ix)
            | Self::ProxyToClient(ix)
            | Self::ProxyFile(ix) => Some(ix),
            Self::Direct => None,
        }
    }

    /// The proxy's own end of the leg.
    pub fn end_of_proxy(self) -> End {
        if self.proxy_writes() {
            End::Writer
        } else {
            End::Reader
        }
    }

    /// Towards the server: an honest client sends nothing but messages there.
    pub fn is_to_server(self) -> bool {
        matches!(self, Self::ClientToProxy(_) | Self::ProxyToServer(_))
    }

    /// The proxy is the writer.
    pub fn proxy_writes(self) -> bool {
        matches!(
            self,
            Self::ProxyToServer(_) | Self::ProxyToClient(_) | Self::ProxyFile(_)
        )
    }
}

/// The time in which a process acts for an instance: from its execution of the proxy's program to that of another.
#[derive(Clone, Copy, Debug)]
struct Life {
    instance: InstanceIx,
    from: BootNs,
    to: BootNs,
}

/// Who is who.
#[derive(Debug, Default)]
pub struct Roles {
    instances: Vec<Instance>,
    by_process: BTreeMap<ProcessIx, Life>,
    legs: BTreeMap<StreamIx, Leg>,
    /// Of streams between two proxies: what they are to the reader.
    second_legs: BTreeMap<StreamIx, Leg>,
    outsiders: BTreeMap<StreamIx, Vec<ProcessIx>>,
    logs: BTreeSet<StreamIx>,
    intruded: BTreeSet<StreamIx>,
}

impl Roles {
    /// Decides roles from all that was seen. `wrote` says whose log has lines that a process was seen to write: of a log that
    /// is a copy, or was renamed since, that is what ties it to the process.
    pub fn decide(
        proxies: &[ProxyIdentity],
        wrote: &BTreeMap<ProcessIx, BTreeSet<usize>>,
        processes: &ProcessTable,
        channels: &ChannelTable,
        streams: &BTreeMap<StreamIx, StreamFrames>,
    ) -> Self {
        let mut roles = Self::default();
        roles.find_instances(proxies, wrote, processes, channels, streams);
        for (stream, frames) in streams {
            let (leg, second) = roles.legs_of(*stream, frames, processes, channels);
            roles.legs.insert(*stream, leg);
            if let Some(second) = second {
                roles.second_legs.insert(*stream, second);
            }
            for leg in [Some(leg), second].into_iter().flatten() {
                roles.find_outsiders(*stream, leg, frames, processes, channels);
                roles.find_intruders(*stream, leg, frames);
            }
            roles.find_log(*stream, leg, frames, processes);
        }
        roles
    }

    /// Whether a stream leads from a proxy, or what it started, to those that the proxy descends from, and is none of its legs:
    /// standard error, as a rule. Programs print there what they got.
    pub fn is_log(&self, stream: StreamIx) -> bool {
        self.logs.contains(&stream)
    }

    /// Who moved bytes at the server's end of a proxy's upstream stream and is neither the server nor started by it.
    pub fn outsiders(&self, stream: StreamIx) -> &[ProcessIx] {
        self.outsiders
            .get(&stream)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// Whether others than the proxy wrote into its channel to the server, those aside who read there.
    pub fn is_intruded(&self, stream: StreamIx) -> bool {
        self.intruded.contains(&stream)
    }

    /// All proxy instances.
    pub fn instances(&self) -> impl Iterator<Item = (InstanceIx, &Instance)> {
        self.instances
            .iter()
            .enumerate()
            .map(|(ix, instance)| (InstanceIx(ix), instance))
    }

    /// The instance at an index that these roles gave out.
    pub fn instance(&self, ix: InstanceIx) -> &Instance {
        &self.instances[ix.0]
    }

    /// The instance that a process is or was.
    pub fn instance_of(&self, process: ProcessIx) -> Option<InstanceIx> {
        self.by_process.get(&process).map(|life| life.instance)
    }

    /// The instance that a process is at a moment: what it does before it executes the proxy, or after it executes something
    /// else, is not the proxy's doing.
    pub fn instance_at(&self, process: ProcessIx, at: BootNs) -> Option<InstanceIx> {
        self.by_process
            .get(&process)
            .filter(|life| life.from <= at && at <= life.to)
            .map(|life| life.instance)
    }

    /// Whether any stream is this leg. A proxy whose other side is a terminal, a file or a network has none there.
    pub fn has_leg(&self, leg: Leg) -> bool {
        let mut all = self.legs.values().chain(self.second_legs.values());
        all.any(|known| *known == leg)
    }

    /// The leg that a stream is; between two proxies, what it is to its writer.
    pub fn leg(&self, stream: StreamIx) -> Leg {
        self.legs.get(&stream).copied().unwrap_or(Leg::Direct)
    }

    /// Of a stream between two proxies, which is a leg of both: what it is to its reader.
    pub fn second_leg(&self, stream: StreamIx) -> Option<Leg> {
        self.second_legs.get(&stream).copied()
    }

    /// Every leg that a stream is: one, or two between two proxies.
    pub fn legs(&self, stream: StreamIx) -> impl Iterator<Item = Leg> {
        [Some(self.leg(stream)), self.second_leg(stream)]
            .into_iter()
            .flatten()
    }
}
