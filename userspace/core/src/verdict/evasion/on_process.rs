//! Attempts against a process: a proxy, Countersign itself, or another.

use super::{ALL, CALLS, Evasions, SIGNATURES, Said, Scene};
use crate::evasion::{Attempt, What};
use crate::process::ProcessIx;
use crate::role::InstanceIx;

/// Signals that end or stop a process without its consent, `signal(7)`: KILL and STOP.
const FORCED: [u64; 2] = [9, 19];
/// Signals that stop a process that does not handle them: STOP, TSTP, TTIN, TTOU.
const STOPS: [u64; 4] = [19, 20, 21, 22];
/// Signals by which a process is asked to end or told things, as whoever started it does: HUP, INT, USR1, USR2, PIPE, ALRM, TERM,
/// CHLD, CONT, URG, WINCH, IO.
const CUSTOMARY: [u64; 12] = [1, 2, 10, 12, 13, 14, 15, 17, 18, 23, 28, 29];

impl Evasions {
    /// Done to a proxy by somebody else.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of a list this long, only what is told is named"
    )]
    pub(super) fn of_proxy(
        &mut self,
        scene: Scene<'_>,
        attempt: &Attempt,
        instance: InstanceIx,
    ) -> Option<Said> {
        let done = attempt.succeeded;
        let failed = |kind, message| Some((kind, "medium", message, None));
        match attempt.what {
            What::Trace(_) => {
                let Some(at) = done else {
                    return failed(
                        "proxy_traced",
                        "a process tried to attach to the proxy, in vain",
                    );
                };
                self.tamper(instance, at, "ptrace");
                self.read_by(instance, attempt.actor);
                Some((
                    "proxy_traced",
                    "high",
                    "a process attached to the proxy, as a debugger does: it can read and change its memory and its system calls",
                    CALLS,
                ))
            }
            What::WriteMemory | What::OpenMemory { writable: true } => {
                let Some(at) = done else {
                    return failed(
                        "proxy_memory_written",
                        "a process tried to write the proxy's memory, in vain",
                    );
                };
                self.tamper(instance, at, "memory_written");
                self.read_by(instance, attempt.actor);
                Some((
                    "proxy_memory_written",
                    "high",
                    "a process wrote the proxy's memory, or opened it for that",
                    CALLS,
                ))
            }
            What::ReadMemory | What::OpenMemory { writable: false } => {
                if done.is_none() {
                    return failed(
                        "proxy_memory_read",
                        "a process tried to read the proxy's memory, in vain",
                    );
                }
                self.read_by(instance, attempt.actor);
                Some((
                    "proxy_memory_read",
                    "high",
                    "a process read the proxy's memory, where its key is",
                    SIGNATURES,
                ))
            }
            What::OpenEnvironment => {
                if done.is_none() {
                    // `ps` tries it with each process.
                    return Some((
                        "proxy_environment_read",
                        "low",
                        "a process tried to read the proxy's environment, in vain",
                        None,
                    ));
                }
                self.read_by(instance, attempt.actor);
                Some((
                    "proxy_environment_read",
                    "medium",
                    "a process read the proxy's environment, where its key can be",
                    SIGNATURES,
                ))
            }
            What::TakeDescriptor => Some((
                "descriptor_taken",
                "high",
                "a process took a descriptor out of the proxy, or tried to",
                None,
            )),
            What::Signal(signal) => {
                let holder = scene.roles.instance(instance).process;
                let starter = scene.processes.descends_from(holder, attempt.actor);
                of_signal(signal, starter, done.is_some())
            }
            What::SetLimit(_) => Some((
                "proxy_limited",
                "medium",
                "a process set a limit of the proxy, as on the size of its files",
                Some("what this proxy's log lacks"),
            )),
            What::AdviseMemory => Some((
                "proxy_memory_advised",
                "low",
                "a process gave the kernel advice about the proxy's memory",
                None,
            )),
            // That a proxy listens, or traces, is its own matter.
            _ => None,
        }
    }

    /// Done to a process that is no proxy.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of a list this long, only what is told is named"
    )]
    pub(super) fn of_other(
        &mut self,
        scene: Scene<'_>,
        attempt: &Attempt,
        target: Option<ProcessIx>,
    ) -> Option<Said> {
        let inside = target.is_some_and(|target| is_watched(scene, target));
        let child = target.is_some_and(|target| {
            scene.processes.descends_from(target, attempt.actor)
                && scene.roles.instance_of(target).is_none()
        });
        if attempt.what == What::TracedExec {
            // Here the target is the tracer, and the actor what is traced.
            let Some(instance) = scene.roles.instance_at(attempt.actor, attempt.at) else {
                return Some((
                    "process_traced",
                    "low",
                    "a program was executed under a tracer, as by a debugger",
                    Some("what is said of this process"),
                ));
            };
            self.tamper(instance, attempt.at, "ptrace");
            if let Some(tracer) = target {
                self.read_by(instance, tracer);
            }
            return Some((
                "proxy_traced",
                "high",
                "the proxy was executed under a tracer, which can read and change its memory and its system calls",
                CALLS,
            ));
        }
        attempt.succeeded?;
        let severity = if child || inside { "low" } else { "medium" };
        match attempt.what {
            What::Trace(_) => Some((
                "process_traced",
                severity,
                "a process attached to another, as a debugger does",
                Some("what is said of that process"),
            )),
            What::WriteMemory | What::OpenMemory { writable: true } => Some((
                "process_memory_written",
                severity,
                "a process wrote another's memory: bytes that pass no channel",
                Some("what is said of that process"),
            )),
            What::ReadMemory | What::OpenMemory { writable: false } => Some((
                "process_memory_read",
                severity,
                "a process read another's memory: bytes that pass no channel",
                Some("what is said of that process"),
            )),
            What::TakeDescriptor => Some((
                "descriptor_taken",
                severity,
                "a process took a descriptor out of another",
                None,
            )),
            What::Connect if !inside => Some((
                "left_the_tree",
                "low",
                "a process spoke to one outside of what is watched, which can act in its place",
                Some("what is said of who does things"),
            )),
            _ => None,
        }
    }
}

/// Whether a process belongs to what is watched: somebody saw it do something, or be made.
fn is_watched(scene: Scene<'_>, process: ProcessIx) -> bool {
    let process = scene.processes.process(process);
    process.tag & countersign_common::tag::TREE != 0 || process.parent.is_some()
}

/// Done to Countersign itself.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of a list this long, only what is told is named"
)]
pub(super) fn of_recorder(attempt: &Attempt) -> Option<Said> {
    match attempt.what {
        What::Signal(signal) if attempt.succeeded.is_none() && !FORCED.contains(&signal) => None,
        What::Connect | What::TracedExec => None,
        What::Signal(_) => Some((
            "witness_touched",
            "high",
            "a process sent a signal to Countersign, or tried to",
            ALL,
        )),
        // There is nothing in it, and `ps` reads it of each process.
        What::OpenEnvironment => Some((
            "witness_touched",
            "low",
            "a process read Countersign's environment, as ps does of each process",
            None,
        )),
        _ => Some((
            "witness_touched",
            "high",
            "a process reached for Countersign's own memory or descriptors",
            ALL,
        )),
    }
}

/// A proxy that the kernel sent a signal on nobody's known behalf.
pub(super) fn of_kernel_signal(signal: u64) -> Option<Said> {
    if CUSTOMARY.contains(&signal) {
        return None;
    }
    let stops = STOPS.contains(&signal);
    Some((
        "proxy_signalled",
        // A person stops what runs in the foreground of a terminal all the time; nothing sends this one by itself.
        if signal == 19 { "medium" } else { "low" },
        if stops {
            "the proxy was sent a signal that stops it by its terminal, or through a file that was set up to send one"
        } else {
            "the proxy was sent a signal that can end it by the kernel, its terminal, or through a file that was set up to send one"
        },
        Some("what this proxy's log lacks"),
    ))
}

fn of_signal(signal: u64, starter: bool, done: bool) -> Option<Said> {
    if CUSTOMARY.contains(&signal) && (starter || !done) {
        return None;
    }
    let stops = STOPS.contains(&signal);
    let severity = if stops && done { "medium" } else { "low" };
    Some((
        "proxy_signalled",
        severity,
        if stops {
            "a process stopped the proxy, or tried to"
        } else {
            "a process sent the proxy a signal that can end it, or tried to"
        },
        Some("what this proxy's log lacks"),
    ))
}
