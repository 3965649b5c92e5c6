//! Rows of processes, channels and their ends.

use std::collections::{BTreeMap, BTreeSet};

use super::Writer;
use crate::channel::{ChannelIx, ChannelKind, End, Got, Holder, StreamIx};
use crate::process::{Process, ProcessIx};
use crate::role::Leg;
use crate::row::{ChannelEndRow, ChannelRow, ProcessRow};
use crate::time::BootNs;

use countersign_common::tag;

/// What moved through one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    queued: Option<u64>,
    residue: Option<i64>,
    write_ops: u64,
    written: u64,
    read_ops: u64,
    read: u64,
    captured: u64,
}

impl Writer<'_> {
    pub(super) fn processes(&mut self) {
        let correlator = self.correlator;
        let servers = self.servers();
        for (ix, process) in correlator.processes.iter() {
            let programs = process.executions.len().max(1);
            for seq in 0..programs {
                let row = self.process_row(ix, process, seq, servers.contains(&ix));
                self.emit(row);
            }
        }
    }

    /// Processes at the far end of a proxy's upstream channels, or that answer on a direct MCP stream.
    fn servers(&self) -> BTreeSet<ProcessIx> {
        let mut servers = BTreeSet::new();
        for (stream, frames) in &self.correlator.streams {
            let far = match self.derived.roles.leg(*stream) {
                Leg::ProxyToServer(_) => &frames.readers,
                Leg::ServerToProxy(_) => &frames.writers,
                Leg::Direct if self.derived.mcp.contains(stream) => &frames.readers,
                Leg::Direct | Leg::ClientToProxy(_) | Leg::ProxyToClient(_) | Leg::ProxyFile(_) => {
                    continue;
                }
            };
            for (process, _) in far {
                if self.derived.roles.instance_of(*process).is_none() {
                    servers.insert(*process);
                }
            }
        }
        servers
    }

    fn process_row(
        &self,
        ix: ProcessIx,
        process: &Process,
        seq: usize,
        server: bool,
    ) -> ProcessRow {
        let execution = process.executions.get(seq);
        let next = process.executions.get(seq + 1);
        let first_seen = if seq == 0 {
            process.first_seen
        } else {
            execution.map_or(process.first_seen, |execution| execution.at)
        };
        let instance = self.derived.roles.instance_of(ix);
        let ended = next.map(|next| next.at).or(process.exit.map(|(at, _)| at));
        let status = process
            .exit
            .filter(|_| next.is_none())
            .map(|(_, status)| status);
        let signal = status
            .map(|status| status & 0x7f)
            .filter(|signal| *signal != 0);
        let is_peer = process.tag & tag::PEER != 0;
        let role = match (instance, server, is_peer) {
            (Some(_), _, _) => "proxy",
            (None, true, _) => "server",
            (None, false, true) => "peer",
            (None, false, false) if self.root(ix) == ix => "agent",
            (None, false, false) => "other",
        };
        let strength = match instance {
            Some(instance) => self.derived.roles.instance(instance).strength.as_str(),
            None if role == "other" => "none",
            None => "derived",
        };
        let weaknesses = instance
            .filter(|instance| self.derived.roles.instance(*instance).same_uid_as_parent)
            .map(|_| "same_uid")
            .into_iter();
        let weaknesses = weaknesses
            .chain(
                instance
                    .into_iter()
                    .flat_map(|instance| self.derived.evasions.weaknesses(instance)),
            )
            .collect();
        ProcessRow {
            process_id: self.process_id(ix),
            capture_id: self.capture(),
            exec_seq: u32::try_from(seq).unwrap_or(u32::MAX),
            pid: process.incarnation.tgid,
            ns_pid: process.ns_tgid,
            parent_pid: process
                .parent
                .map(|parent| self.correlator.processes.process(parent).incarnation.tgid),
            parent_process_id: process.parent.map(|parent| self.process_id(parent)),
            root_process_id: (!is_peer).then(|| self.process_id(self.root(ix))),
            uid: process.uid.unwrap_or(u32::MAX),
            euid: process.euid,
            gid: process.gid,
            cgroup: process.cgroup,
            exe_path: execution
                .map(|execution| String::from_utf8_lossy(&execution.filename).into_owned()),
            exe_dev: execution.map(|execution| u64::from(execution.exe.dev)),
            exe_inode: execution.map(|execution| execution.exe.inode),
            exe_sha256: None,
            args: execution.and_then(|execution| self.privacy.plain(&blanks(&execution.args))),
            args_truncated: execution.is_some_and(|execution| {
                execution.args.len() >= countersign_common::EXEC_TEXT_MAX_BYTES
            }),
            role,
            role_strength: strength,
            role_weaknesses: weaknesses,
            proxy_name: instance.and_then(|instance| {
                self.proxy_name(self.derived.roles.instance(instance).proxy)
                    .map(str::to_owned)
            }),
            how_tagged: match process.known {
                _ if is_peer => "peer",
                crate::process::Known::Forked => "fork",
                crate::process::Known::Scanned => "scan",
                crate::process::Known::Used if process.tag & tag::TREE != 0 => "root",
                crate::process::Known::Used => "none",
            },
            first_seen_utc: self.utc(first_seen),
            first_seen_boot_ns: first_seen,
            start_boot_ns: process.incarnation.start,
            start_utc: self.utc(process.incarnation.start),
            end_utc: ended.map(|at| self.utc(at)),
            end_boot_ns: ended,
            end: match (next, status, signal) {
                (Some(_), _, _) => "exec",
                (None, Some(_), Some(_)) => "signalled",
                (None, Some(_), None) => "exited",
                (None, None, _) => "alive",
            },
            exit_code: status
                .filter(|_| signal.is_none())
                .map(|status| (status >> 8) & 0xff),
            exit_signal: signal,
        }
    }

    /// First process of the tree that a process belongs to.
    fn root(&self, mut ix: ProcessIx) -> ProcessIx {
        for _ in 0..4096 {
            match self.correlator.processes.process(ix).parent {
                Some(parent) => ix = parent,
                None => break,
            }
        }
        ix
    }

    pub(super) fn channels(&mut self) {
        let correlator = self.correlator;
        let mut frames: BTreeMap<ChannelIx, u64> = BTreeMap::new();
        let mut mcp: BTreeMap<ChannelIx, u64> = BTreeMap::new();
        for frame in &correlator.frames {
            *frames.entry(frame.stream.channel).or_default() += 1;
            if self.derived.mcp.contains(&frame.stream) {
                *mcp.entry(frame.stream.channel).or_default() += 1;
            }
        }
        for (ix, channel) in correlator.channels.iter() {
            let of = |counts: &BTreeMap<ChannelIx, u64>| counts.get(&ix).copied().unwrap_or(0);
            let a = self.moved(StreamIx {
                channel: ix,
                from_end: 0,
            });
            let b = self.moved(StreamIx {
                channel: ix,
                from_end: 1,
            });
            let legs = [0, 1].map(|from_end| {
                self.derived.roles.leg(StreamIx {
                    channel: ix,
                    from_end,
                })
            });
            let leg = legs
                .into_iter()
                .find(|leg| leg.instance().is_some())
                .unwrap_or(Leg::Direct);
            let (gap_bytes, gap_count) = self.gaps_of.get(&ix).copied().unwrap_or_default();
            let role = match leg {
                Leg::ClientToProxy(_) | Leg::ProxyToClient(_) => "client_proxy",
                Leg::ProxyToServer(_) | Leg::ServerToProxy(_) => "proxy_server",
                Leg::ProxyFile(_) => "proxy_log",
                Leg::Direct if of(&mcp) > 0 => "direct",
                Leg::Direct => "other",
            };
            let row = ChannelRow {
                channel_id: self.channel_id(ix),
                capture_id: self.capture(),
                kind: channel.kind.as_str(),
                dev: u64::from(channel.dev),
                a_inode: channel.ends[0].map_or(0, |end| end.inode),
                b_inode: channel.ends[1].map(|end| end.inode),
                a_address: channel.address_of(0).map(|address| address.to_string()),
                b_address: channel.address_of(1).map(|address| address.to_string()),
                undecoded: self.undecoded(ix),
                role,
                proxy_name: self.proxy_name_of_leg(leg),
                start: if channel.created {
                    "created"
                } else {
                    "attached"
                },
                allowed_by: None,
                first_seen_utc: self.utc(channel.first_seen),
                first_seen_boot_ns: channel.first_seen,
                last_seen_utc: self.utc(channel.last_seen),
                last_seen_boot_ns: channel.last_seen,
                a_to_b_write_ops: a.write_ops,
                a_to_b_written_bytes: a.written,
                a_to_b_read_ops: a.read_ops,
                a_to_b_read_bytes: a.read,
                a_to_b_queued_bytes: a.queued,
                a_to_b_residue_bytes: a.residue,
                b_to_a_write_ops: b.write_ops,
                b_to_a_written_bytes: b.written,
                b_to_a_read_ops: b.read_ops,
                b_to_a_read_bytes: b.read,
                b_to_a_queued_bytes: b.queued,
                b_to_a_residue_bytes: b.residue,
                captured_bytes: a.captured + b.captured,
                gap_bytes,
                gap_count,
                frame_count: of(&frames),
                mcp_frame_count: of(&mcp),
            };
            self.emit(row);
            for holder in &channel.holders {
                let row = self.holder_row(ix, channel.kind, holder);
                self.emit(row);
            }
        }
    }

    fn holder_row(&self, ix: ChannelIx, kind: ChannelKind, holder: &Holder) -> ChannelEndRow {
        let total = |end: End, from_end: u8| {
            let frames = self.correlator.streams.get(&StreamIx {
                channel: ix,
                from_end,
            });
            let list = frames.map(|frames| match end {
                End::Writer => frames.writers.as_slice(),
                End::Reader => frames.readers.as_slice(),
            });
            list.unwrap_or_default()
                .iter()
                .find(|(process, _)| *process == holder.process)
                .map(|(_, moved)| *moved)
                .unwrap_or_default()
        };
        let socket = kind.is_two_way();
        let (out, into) = if socket {
            (holder.end, 1 - holder.end)
        } else {
            (0, 0)
        };
        let (written, read) = (total(End::Writer, out), total(End::Reader, into));
        ChannelEndRow {
            channel_id: self.channel_id(ix),
            capture_id: self.capture(),
            process_id: self.process_id(holder.process),
            mode: match (
                holder.reads || holder.got == Got::Created,
                holder.writes || holder.got == Got::Created,
            ) {
                (true, false) => "read",
                (false, true) => "write",
                (true, true) | (false, false) => "both",
            },
            socket_end: socket.then_some(if holder.end == 0 { "a" } else { "b" }),
            how: match holder.got {
                Got::Opened => "opened",
                Got::Created
                | Got::Connected
                | Got::Accepted
                | Got::PidfdGetfd
                | Got::ScmRights
                | Got::Used
                | Got::Scanned => holder.got.as_str(),
            },
            from_process_id: None,
            first_utc: self.utc(holder.first),
            first_boot_ns: holder.first,
            last_utc: self.utc(holder.last),
            last_boot_ns: holder.last,
            write_ops: written.ops,
            written_bytes: written.bytes,
            read_ops: read.ops,
            read_bytes: read.bytes,
        }
    }

    pub(super) fn undecoded(&self, channel: ChannelIx) -> Option<&'static str> {
        [0, 1]
            .into_iter()
            .flat_map(|from_end| [End::Writer, End::Reader].map(|end| (from_end, end)))
            .find_map(|(from_end, end)| {
                let stream = StreamIx { channel, from_end };
                self.correlator.ends.get(&(stream, end))?.framer.undecoded()
            })
    }

    fn moved(&self, stream: StreamIx) -> Moved {
        let of = |end| {
            self.correlator
                .ends
                .get(&(stream, end))
                .map(|state| &state.log)
        };
        let (writer, reader) = (of(End::Writer), of(End::Reader));
        let last = self.correlator.balances.last(stream);
        let last = last.or_else(|| self.correlator.counts.last(stream));
        Moved {
            queued: last.map(|(queued, _)| queued),
            residue: last.and_then(|(_, residue)| i64::try_from(residue).ok()),
            write_ops: writer.map_or(0, |log| log.ops),
            written: writer.map_or(0, |log| log.bytes),
            read_ops: reader.map_or(0, |log| log.ops),
            read: reader.map_or(0, |log| log.bytes),
            captured: writer.map_or(0, |log| log.captured) + reader.map_or(0, |log| log.captured),
        }
    }

    /// When the last thing was seen.
    pub(super) fn end(&self) -> BootNs {
        self.correlator.end()
    }
}

fn blanks(args: &[u8]) -> Vec<u8> {
    let trimmed = args.strip_suffix(b"\0").unwrap_or(args);
    trimmed
        .iter()
        .map(|byte| if *byte == 0 { b' ' } else { *byte })
        .collect()
}
