//! Legs: which part of a call's way each stream is.
//!
//! Owns the decision from who moved bytes at its ends and who made it. Who is a proxy is decided before.

use std::collections::BTreeSet;

use super::{InstanceIx, Leg, Roles};
use crate::channel::{Channel, ChannelKind, ChannelTable, StreamIx};
use crate::delivery::{Moved, StreamFrames};
use crate::process::{ProcessIx, ProcessTable};
use crate::record::Direction;

impl Roles {
    pub(super) fn find_log(
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

    pub(super) fn find_intruders(&mut self, stream: StreamIx, leg: Leg, frames: &StreamFrames) {
        let Leg::ProxyToServer(instance) = leg else {
            return;
        };
        let readers: BTreeSet<ProcessIx> =
            frames.readers.iter().map(|(process, _)| *process).collect();
        let intruder = |(process, _): &(ProcessIx, Moved)| {
            self.instance_of(*process) != Some(instance) && !readers.contains(process)
        };
        if frames.writers.iter().any(intruder) {
            self.intruded.insert(stream);
        }
    }

    /// What a proxy starts descends from it; nobody else has business at the far ends of the channels that it made.
    pub(super) fn find_outsiders(
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

    /// What a stream is to its writer, or to its only proxy; and to its reader, if both are proxies.
    pub(super) fn legs_of(
        &self,
        stream: StreamIx,
        frames: &StreamFrames,
        processes: &ProcessTable,
        channels: &ChannelTable,
    ) -> (Leg, Option<Leg>) {
        let channel = channels.channel(stream.channel);
        let first = |list: &[(ProcessIx, Moved)]| {
            list.iter()
                .find_map(|(process, _)| self.instance_of(*process))
        };
        let writer = first(&frames.writers);
        let reader = first(&frames.readers);
        if channel.kind == ChannelKind::File {
            return (writer.map_or(Leg::Direct, Leg::ProxyFile), None);
        }
        // A proxy has connections for other purposes, and some in framings that are not read: of these nothing can be said.
        if channel.kind.is_for_anything() && !frames.has_json() {
            return (Leg::Direct, None);
        }
        let (writer, reader) = match (writer, reader) {
            (None, None) => self.found_at_ends(stream, frames, channel),
            (Some(_), _) | (None, Some(_)) => (writer, reader),
        };
        if writer.is_some() && writer == reader {
            return (Leg::Direct, None);
        }
        let upstream = |instance: InstanceIx, others: &[(ProcessIx, Moved)]| {
            let proxy = self.instance(instance).process;
            channel.creator() == Some(proxy)
                || others
                    .iter()
                    .any(|(other, _)| *other != proxy && processes.descends_from(*other, proxy))
        };
        let to_writer = writer.map(|proxy| {
            if upstream(proxy, &frames.readers) {
                Leg::ProxyToServer(proxy)
            } else {
                Leg::ProxyToClient(proxy)
            }
        });
        let to_reader = reader.map(|proxy| {
            if upstream(proxy, &frames.writers) {
                Leg::ServerToProxy(proxy)
            } else {
                Leg::ClientToProxy(proxy)
            }
        });
        match (to_writer, to_reader) {
            (Some(leg), second) => (leg, second),
            (None, Some(leg)) => (leg, None),
            (None, None) => (Leg::Direct, None),
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
        let read_end = if channel.kind.is_two_way() {
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
