//! Notes of use: ways to speak that are not watched, folded to one row for each process and kind.
//!
//! Normal programs have most of them, so a note alone is `low`. It is `medium` where it is a way from one process of the tree to
//! another: both have the same queue, or one is bound to a port that the other reached.

use std::collections::BTreeMap;

use countersign_common::tag;

use super::{Finding, Said, Scene, on_process};
use crate::channel::ChannelIx;
use crate::evasion::{Attempt, What};
use crate::foreign::{Done, Kind, Meeting};
use crate::process::ProcessIx;
use crate::role::{InstanceIx, Leg};

/// Addresses named in one row; how many more there are is said.
const NAMED_MAX: usize = 4;

/// Whether an attempt is judged here.
pub(super) fn is_one(attempt: &Attempt) -> bool {
    matches!(
        attempt.what,
        What::Foreign(_)
            | What::SendDescriptor { .. }
            | What::RingRequest(_)
            | What::ShareFile
            | What::KernelSignal(_)
    )
}

/// Who was seen at a meeting place: of each side the first process, and another.
#[derive(Debug, Default)]
struct Met {
    bound: [Option<ProcessIx>; 2],
    reached: [Option<ProcessIx>; 2],
}

fn put(side: &mut [Option<ProcessIx>; 2], process: ProcessIx) {
    match side {
        [None, _] => side[0] = Some(process),
        [Some(first), None] if *first != process => side[1] = Some(process),
        _ => {}
    }
}

impl Met {
    /// Whether a process met another here.
    fn meets(&self, process: ProcessIx, done: Done) -> bool {
        let others = if done == Done::Bound {
            &self.reached
        } else {
            &self.bound
        };
        others.iter().flatten().any(|other| *other != process)
    }
}

/// Rows of one process and kind.
#[derive(Debug)]
struct Row {
    attempt: usize,
    met: bool,
    count: u64,
    places: Vec<String>,
    more: usize,
}

/// All notes.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a list this long, only what is told is named"
)]
pub(super) fn of(scene: Scene<'_>) -> Vec<Finding> {
    let mut findings = of_foreign(scene);
    let sent_into = of_proxies(scene);
    for (ix, attempt) in scene.attempts.iter().enumerate() {
        let (said, instance, target) = match attempt.what {
            What::SendDescriptor { channel } => {
                let of_proxy = attempt.file.filter(|_| channel).and_then(|file| {
                    let instance = sent_into.get(&file.inode)?;
                    let own = scene.roles.instance_at(attempt.actor, attempt.at);
                    (own != Some(*instance)).then_some(*instance)
                });
                (Some(descriptor(channel, of_proxy)), of_proxy, None)
            }
            What::RingRequest(opcode) => (Some(ring(opcode)), None, None),
            What::KernelSignal(signal) => {
                let instance = scene.roles.instance_at(attempt.actor, attempt.at);
                let said = instance.and_then(|_| on_process::of_kernel_signal(signal));
                (said, instance, Some(attempt.actor))
            }
            What::ShareFile => {
                let writer = attempt
                    .target
                    .and_then(|writer| scene.processes.known(writer));
                (shared_file(scene, attempt, writer), None, writer)
            }
            _ => continue,
        };
        if let Some((kind, severity, message, weakens)) = said {
            let detail = if let What::RingRequest(opcode) = attempt.what {
                Some(opcode_words(opcode))
            } else {
                None
            };
            findings.push(Finding {
                attempt: ix,
                kind,
                severity,
                message,
                detail,
                count: None,
                weakens,
                instance,
                target,
            });
        }
    }
    findings
}

fn of_foreign(scene: Scene<'_>) -> Vec<Finding> {
    let of_tree = |attempt: &Attempt| scene.processes.process(attempt.actor).tag & tag::TREE != 0;
    let mut met: BTreeMap<Meeting, Met> = BTreeMap::new();
    for attempt in scene.attempts.iter().filter(|attempt| of_tree(attempt)) {
        if let What::Foreign(foreign) = attempt.what
            && let Some(meeting) = foreign.meeting()
        {
            let at = met.entry(meeting).or_default();
            // Whoever has an object is on both sides of it.
            let object = matches!(meeting, Meeting::Object(..));
            if object || foreign.done == Done::Bound {
                put(&mut at.bound, attempt.actor);
            }
            if object || foreign.done == Done::Reached {
                put(&mut at.reached, attempt.actor);
            }
        }
    }
    let mut rows: BTreeMap<(ProcessIx, Kind), Row> = BTreeMap::new();
    for (ix, attempt) in scene.attempts.iter().enumerate() {
        let What::Foreign(foreign) = attempt.what else {
            continue;
        };
        let row = rows.entry((attempt.actor, foreign.kind)).or_insert(Row {
            attempt: ix,
            met: false,
            count: 0,
            places: Vec::new(),
            more: 0,
        });
        row.count = row.count.saturating_add(attempt.count);
        row.met |= foreign
            .meeting()
            .and_then(|meeting| met.get(&meeting))
            .is_some_and(|met| met.meets(attempt.actor, foreign.done));
        if let Some(place) = foreign.place_words() {
            if row.places.len() < NAMED_MAX {
                row.places.push(place);
            } else {
                row.more += 1;
            }
        }
    }
    rows.into_values().map(|row| found(scene, &row)).collect()
}

fn found(scene: Scene<'_>, row: &Row) -> Finding {
    let mut detail = if let What::Foreign(foreign) = scene.attempts[row.attempt].what {
        foreign.words()
    } else {
        String::new()
    };
    for (nth, place) in row.places.iter().enumerate() {
        detail.push_str(if nth == 0 { " " } else { ", " });
        detail.push_str(place);
    }
    if row.more > 0 {
        detail.push_str(" and ");
        detail.push_str(&row.more.to_string());
        detail.push_str(" more");
    }
    Finding {
        attempt: row.attempt,
        kind: "unwatched_channel",
        severity: if row.met { "medium" } else { "low" },
        message: if row.met {
            "two processes of the tree can speak through a channel whose bytes are not captured"
        } else {
            "a process used a channel whose bytes are not captured"
        },
        detail: Some(detail),
        count: Some(row.count),
        weakens: row
            .met
            .then_some("that what these processes say to each other was seen"),
        instance: None,
        target: None,
    }
}

/// Inodes of the channels of proxies, each with an instance.
fn of_proxies(scene: Scene<'_>) -> BTreeMap<u64, InstanceIx> {
    let sends = |attempt: &Attempt| matches!(attempt.what, What::SendDescriptor { channel: true });
    if !scene.attempts.iter().any(sends) {
        return BTreeMap::new();
    }
    let of = |ix: ChannelIx| {
        [0, 1].into_iter().find_map(|from_end| {
            let leg = scene.roles.leg(crate::channel::StreamIx {
                channel: ix,
                from_end,
            });
            leg.instance().filter(|_| !matches!(leg, Leg::ProxyFile(_)))
        })
    };
    let mut channels = BTreeMap::new();
    for (ix, channel) in scene.channels.iter() {
        if let Some(instance) = of(ix) {
            for end in channel.ends.iter().flatten() {
                channels.insert(end.inode, instance);
            }
        }
    }
    channels
}

fn descriptor(channel: bool, of_proxy: Option<InstanceIx>) -> Said {
    if of_proxy.is_some() {
        (
            "descriptor_sent",
            "medium",
            "a process sent an end of a proxy's channel to another in a message, or tried to",
            Some("who speaks on this proxy's channels"),
        )
    } else if channel {
        (
            "descriptor_sent",
            "low",
            "a process sent an end of a channel to another in a message",
            None,
        )
    } else {
        (
            "descriptor_sent",
            "low",
            "a process sent a descriptor that is no channel, as of memory or a file, to another in a message: what they say through it is not captured",
            None,
        )
    }
}

/// `IORING_OP_MSG_RING` hands descriptors from one ring to another.
const MSG_RING: u64 = 40;

fn ring(opcode: u64) -> Said {
    (
        "io_uring_request_unwatched",
        if opcode == MSG_RING { "medium" } else { "low" },
        "a process made a request of io_uring that is not looked into",
        Some("what is said of this process's attempts"),
    )
}

/// Name of an opcode that is told (`include/uapi/linux/io_uring.h`).
fn opcode_words(opcode: u64) -> String {
    match opcode {
        13 => "accept into the ring's own table".to_owned(),
        18 | 28 => "open into the ring's own table".to_owned(),
        40 => "msg_ring".to_owned(),
        45 => "socket into the ring's own table".to_owned(),
        46 => "uring_cmd".to_owned(),
        54 => "fixed_fd_install".to_owned(),
        57 => "listen".to_owned(),
        62 => "pipe".to_owned(),
        _ => format!("opcode {opcode}"),
    }
}

/// A file between two that live at the same time: what one leaves behind for a later one is no conversation.
fn shared_file(scene: Scene<'_>, attempt: &Attempt, writer: Option<ProcessIx>) -> Option<Said> {
    let writer = scene.processes.process(writer?);
    let lives = writer.exit.is_none_or(|(at, _)| at > attempt.at);
    lives.then_some((
        "unwatched_channel",
        "low",
        "a process opened a file that another, which still runs, had opened for writing: they can speak through it",
        None,
    ))
}
