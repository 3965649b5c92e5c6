//! Roles: which processes are proxy instances, and which leg of a call's way each stream is.
//!
//! Owns the decision who is a proxy, from the identity of the executable and from what the process did, never from a name;
//! and from that, the leg of every stream. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::channel::{Channel, ChannelKind, ChannelTable, StreamIx};
use crate::delivery::{Moved, StreamFrames};
use crate::process::{FileId, Known, Process, ProcessIx, ProcessTable};
use crate::record::Direction;
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
    outsiders: BTreeMap<StreamIx, Vec<ProcessIx>>,
    logs: BTreeSet<StreamIx>,
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
            let leg = roles.leg_of(*stream, frames, processes, channels);
            roles.legs.insert(*stream, leg);
            roles.find_outsiders(*stream, leg, frames, processes, channels);
            roles.find_log(*stream, leg, frames, processes);
        }
        roles
    }

    /// Whether a stream leads from a proxy, or what it started, to those that the proxy descends from, and is none of its legs:
    /// standard error, as a rule. Programs print there what they got.
    pub fn is_log(&self, stream: StreamIx) -> bool {
        self.logs.contains(&stream)
    }

    fn find_log(
        &mut self,
        stream: StreamIx,
        leg: Leg,
        frames: &StreamFrames,
        processes: &ProcessTable,
    ) {
        if leg != Leg::Direct || frames.readers.is_empty() {
            return;
        }
        let upward = self.instances.iter().any(|instance| {
            let proxy = instance.process;
            let below =
                |(process, _): &(ProcessIx, Moved)| processes.descends_from(*process, proxy);
            let above = |(process, _): &(ProcessIx, Moved)| {
                *process != proxy && processes.descends_from(proxy, *process)
            };
            frames.writers.iter().all(below) && frames.readers.iter().all(above)
        });
        if upward && !frames.writers.is_empty() {
            self.logs.insert(stream);
        }
    }

    /// Who moved bytes at the server's end of a proxy's upstream stream and is neither the server nor started by it.
    pub fn outsiders(&self, stream: StreamIx) -> &[ProcessIx] {
        self.outsiders
            .get(&stream)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// What a proxy starts descends from it; nobody else has business at the far ends of the channels that it made.
    fn find_outsiders(
        &mut self,
        stream: StreamIx,
        leg: Leg,
        frames: &StreamFrames,
        processes: &ProcessTable,
        channels: &ChannelTable,
    ) {
        let (instance, far) = match leg {
            Leg::ProxyToServer(instance) => (instance, &frames.readers),
            Leg::ServerToProxy(instance) => (instance, &frames.writers),
            Leg::ClientToProxy(_) | Leg::ProxyToClient(_) | Leg::ProxyFile(_) | Leg::Direct => {
                return;
            }
        };
        let proxy = self.instance(instance).process;
        // Of a process whose creation was missed it is not known whose it is, unless it is the proxy's own ancestor.
        let inside = |process: ProcessIx| {
            let unknown = processes.process(process).parent.is_none()
                && !processes.descends_from(proxy, process);
            unknown || processes.descends_from(process, proxy)
        };
        let made_it = channels.channel(stream.channel).creator() == Some(proxy);
        if !made_it && !far.iter().any(|(process, _)| inside(*process)) {
            return;
        }
        let outsiders: Vec<ProcessIx> = far
            .iter()
            .map(|(process, _)| *process)
            .filter(|process| !inside(*process))
            .collect();
        if !outsiders.is_empty() {
            self.outsiders.insert(stream, outsiders);
        }
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
        self.legs.values().any(|known| *known == leg)
    }

    /// The leg that a stream is.
    pub fn leg(&self, stream: StreamIx) -> Leg {
        self.legs.get(&stream).copied().unwrap_or(Leg::Direct)
    }

    fn find_instances(
        &mut self,
        proxies: &[ProxyIdentity],
        wrote: &BTreeMap<ProcessIx, BTreeSet<usize>>,
        processes: &ProcessTable,
        channels: &ChannelTable,
        streams: &BTreeMap<StreamIx, StreamFrames>,
    ) {
        let written = files_written(channels, streams);
        for (ix, process) in processes.iter() {
            // A process that became something else by another exec is no proxy any more, but was one: its streams count.
            let found = proxies.iter().enumerate().find_map(|(at, proxy)| {
                process
                    .executions
                    .iter()
                    .rev()
                    .filter(|execution| !execution.inherited)
                    .find_map(|execution| {
                        let own = proxy.own_exes.contains(&execution.exe);
                        (own || proxy.exes.contains(&execution.exe)).then_some((at, execution, own))
                    })
            });
            let Some((proxy, execution, own)) = found else {
                continue;
            };
            let files = files_of(ix, process, &written);
            // With several proxies of one executable, the log that it holds says which one it is.
            let holds = |(at, candidate): (usize, &ProxyIdentity)| {
                candidate.logs.iter().any(|log| files.contains(log))
                    || wrote.get(&ix).is_some_and(|logs| logs.contains(&at))
            };
            let holder = proxies.iter().enumerate().position(|(at, candidate)| {
                (candidate.exes.contains(&execution.exe)
                    || candidate.own_exes.contains(&execution.exe))
                    && holds((at, candidate))
            });
            let logs_known = proxies.iter().any(|candidate| !candidate.logs.is_empty());
            let strength = match (holder, own) {
                (Some(_), true) => Strength::Own,
                (Some(_), false) => Strength::Verified,
                (None, _) if logs_known && !files.is_empty() => continue,
                (None, _) => Strength::Claimed,
            };
            // What was found in `/proc` ran before it was looked at.
            let from = if process.known == Known::Forked {
                execution.at
            } else {
                BootNs(0)
            };
            let left = process
                .executions
                .iter()
                .find(|other| other.at > execution.at)
                .map(|other| other.at);
            let life = Life {
                instance: self.next(),
                from,
                to: left.unwrap_or(BootNs(u64::MAX)),
            };
            let instance = Instance {
                process: ix,
                proxy: holder.unwrap_or(proxy),
                strength,
                own,
                same_uid_as_parent: has_uid_of_parent(process, processes),
                from: execution.at,
                to: left.or(process.exit.map(|(at, _)| at)),
                from_birth: process.known == Known::Forked,
            };
            self.add(life, instance);
        }
        self.add_forked_workers(processes);
        self.add_tagged(proxies, processes, &written);
        self.add_forked_workers(processes);
    }

    /// A process whose execution was missed but whose operations the kernel marked as a proxy's: the mark is set by the identity
    /// of the executable alone.
    fn add_tagged(
        &mut self,
        proxies: &[ProxyIdentity],
        processes: &ProcessTable,
        written: &BTreeMap<ProcessIx, Vec<FileId>>,
    ) {
        for (ix, process) in processes.iter() {
            let Some((first, last)) = process
                .acted_as_proxy
                .filter(|_| !self.by_process.contains_key(&ix))
            else {
                continue;
            };
            // What it executed is known, and is no proxy that was configured.
            // Between its creation and its first exec a proxy's child still has the mark.
            if process
                .parent
                .is_some_and(|parent| self.by_process.contains_key(&parent))
            {
                continue;
            }
            if proxies.is_empty()
                || process
                    .executions
                    .iter()
                    .any(|execution| !execution.inherited && execution.at <= first)
            {
                continue;
            }
            let files = files_of(ix, process, written);
            let holder = proxies
                .iter()
                .position(|proxy| proxy.logs.iter().any(|log| files.contains(log)));
            if holder.is_none()
                && !files.is_empty()
                && proxies.iter().any(|proxy| !proxy.logs.is_empty())
            {
                continue;
            }
            let left = process
                .executions
                .iter()
                .find(|execution| !execution.inherited && execution.at > last);
            let left = left.map(|execution| execution.at);
            let life = Life {
                instance: self.next(),
                from: first,
                to: left.unwrap_or(BootNs(u64::MAX)),
            };
            let instance = Instance {
                process: ix,
                proxy: holder.unwrap_or(0),
                strength: Strength::Claimed,
                own: false,
                same_uid_as_parent: has_uid_of_parent(process, processes),
                from: first,
                to: left.or(process.exit.map(|(at, _)| at)),
                from_birth: false,
            };
            self.add(life, instance);
        }
    }

    fn next(&self) -> InstanceIx {
        InstanceIx(self.instances.len())
    }

    fn add(&mut self, life: Life, instance: Instance) {
        self.by_process.insert(instance.process, life);
        self.instances.push(instance);
    }

    /// A child of a proxy that has executed nothing yet runs the proxy's program: what it writes is the proxy's writing.
    fn add_forked_workers(&mut self, processes: &ProcessTable) {
        for (ix, process) in processes.iter() {
            let runs_parents_program = process
                .executions
                .last()
                .is_some_and(|execution| execution.inherited);
            let instance = process.parent.and_then(|parent| self.instance_of(parent));
            if let Some(instance) = instance
                && runs_parents_program
                && !self.by_process.contains_key(&ix)
                && !(process.acted_unmarked && is_marked(process.parent, processes))
            {
                self.by_process.insert(
                    ix,
                    Life {
                        instance,
                        from: BootNs(0),
                        to: BootNs(u64::MAX),
                    },
                );
            }
        }
    }

    fn leg_of(
        &self,
        stream: StreamIx,
        frames: &StreamFrames,
        processes: &ProcessTable,
        channels: &ChannelTable,
    ) -> Leg {
        let channel = channels.channel(stream.channel);
        let first = |list: &[(ProcessIx, Moved)]| {
            list.iter()
                .find_map(|(process, _)| self.instance_of(*process))
        };
        let writer = first(&frames.writers);
        let reader = first(&frames.readers);
        if channel.kind == ChannelKind::File {
            return writer.map_or(Leg::Direct, Leg::ProxyFile);
        }
        let (writer, reader) = match (writer, reader) {
            (None, None) => self.found_at_ends(stream, frames, channel),
            (Some(_), _) | (None, Some(_)) => (writer, reader),
        };
        if writer.is_some() && writer == reader {
            return Leg::Direct;
        }
        let upstream = |instance: InstanceIx, others: &[(ProcessIx, Moved)]| {
            let proxy = self.instance(instance).process;
            channel.creator() == Some(proxy)
                || others
                    .iter()
                    .any(|(other, _)| *other != proxy && processes.descends_from(*other, proxy))
        };
        match (writer, reader) {
            (Some(proxy), _) if upstream(proxy, &frames.readers) => Leg::ProxyToServer(proxy),
            (Some(proxy), _) => Leg::ProxyToClient(proxy),
            (None, Some(proxy)) if upstream(proxy, &frames.writers) => Leg::ServerToProxy(proxy),
            (None, Some(proxy)) => Leg::ClientToProxy(proxy),
            (None, None) => Leg::Direct,
        }
    }

    /// Proxies that were found with an end that nobody was seen to use: what a server reads when the capture has just begun can
    /// have been written before.
    fn found_at_ends(
        &self,
        stream: StreamIx,
        frames: &StreamFrames,
        channel: &Channel,
    ) -> (Option<InstanceIx>, Option<InstanceIx>) {
        let read_end = if channel.kind == ChannelKind::UnixStream {
            1 - stream.from_end
        } else {
            0
        };
        let find = |end, direction| {
            channel
                .found_with(end, direction)
                .find_map(|process| self.instance_of(process))
        };
        let writer = || find(stream.from_end, Direction::Write);
        let reader = || find(read_end, Direction::Read);
        (
            frames.writers.is_empty().then(writer).flatten(),
            frames.readers.is_empty().then(reader).flatten(),
        )
    }
}

/// Regular files that a process opened for writing or wrote as a proxy.
fn files_of(
    ix: ProcessIx,
    process: &Process,
    written: &BTreeMap<ProcessIx, Vec<FileId>>,
) -> Vec<FileId> {
    process
        .files_opened
        .iter()
        .chain(written.get(&ix).into_iter().flatten())
        .copied()
        .collect()
}

/// Whether the kernel marked what this process did as a proxy's doing: then its children have the mark until they execute.
fn is_marked(process: Option<ProcessIx>, processes: &ProcessTable) -> bool {
    process.is_some_and(|process| processes.process(process).acted_as_proxy.is_some())
}

fn has_uid_of_parent(process: &Process, processes: &ProcessTable) -> bool {
    let parent = process
        .parent
        .and_then(|parent| processes.process(parent).uid);
    process.uid.is_some() && process.uid == parent
}

fn files_written(
    channels: &ChannelTable,
    streams: &BTreeMap<StreamIx, StreamFrames>,
) -> BTreeMap<ProcessIx, Vec<FileId>> {
    let mut files: BTreeMap<ProcessIx, Vec<FileId>> = BTreeMap::new();
    for (stream, frames) in streams {
        let channel = channels.channel(stream.channel);
        if channel.kind != ChannelKind::File {
            continue;
        }
        let Some(key) = channel.ends[0] else { continue };
        for (process, _) in &frames.writers {
            files.entry(*process).or_default().push(FileId {
                dev: channel.dev,
                inode: key.inode,
            });
        }
    }
    files
}
