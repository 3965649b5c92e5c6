//! What an attempt to get round the witness is worth: a finding, doubt about a proxy, a key that is known.
//!
//! Owns the severities, and the rule what weakens what: only what clears somebody. A call that went past the proxy, or that the log
//! lacks, stays what it is, or an agent could buy doubt about its own deeds by tampering with its own proxy.

use std::collections::{BTreeMap, BTreeSet};

use countersign_common::evasion::loader;

use crate::evasion::{Attempt, FileClass, Recorder, What};
use crate::process::{FileId, ProcessIx, ProcessTable};
use crate::role::{InstanceIx, ProxyIdentity, Roles};
use crate::time::BootNs;
use crate::verdict::KeyReach;

/// Signals that end or stop a process without its consent, `signal(7)`: KILL and STOP.
const FORCED: [u64; 2] = [9, 19];
/// Signals by which a process is asked to end or told things, as whoever started it does: HUP, INT, USR1, USR2, PIPE, ALRM, TERM,
/// CHLD, CONT, URG, WINCH, IO.
const CUSTOMARY: [u64; 12] = [1, 2, 10, 12, 13, 14, 15, 17, 18, 23, 28, 29];

/// Capabilities with which the witness can be blinded: `SYS_MODULE`, `SYS_RAWIO`, `SYS_PTRACE`, `SYS_ADMIN`, `PERFMON`, `BPF`.
const BLINDING: u64 = 1 << 16 | 1 << 17 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;

/// Processes remembered as having read one secret. Stops an agent from making the question who has it long; the first tell
/// enough.
const READERS_MAX: usize = 16;

/// What an attempt means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The attempt, by index.
    pub attempt: usize,
    /// In one word.
    pub kind: &'static str,
    /// As in the table of findings.
    pub severity: &'static str,
    /// One sentence.
    pub message: &'static str,
    /// What it takes from the rest.
    pub weakens: Option<&'static str>,
    /// The proxy instance concerned.
    pub instance: Option<InstanceIx>,
    /// The process concerned, where it is known.
    pub target: Option<ProcessIx>,
}

/// All that attempts mean.
#[derive(Debug, Default)]
pub struct Evasions {
    /// In the order of the attempts.
    pub findings: Vec<Finding>,
    /// From when on an instance's own doing may be another's.
    tampered: BTreeMap<InstanceIx, BootNs>,
    /// Who has read what an instance keeps secret.
    readers: BTreeMap<InstanceIx, BTreeSet<ProcessIx>>,
    /// Who has opened a key's file.
    key_readers: BTreeSet<ProcessIx>,
    /// Words for what lowers the trust in an instance.
    weaknesses: BTreeMap<InstanceIx, BTreeSet<&'static str>>,
}

/// What it takes to judge.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// All attempts.
    pub attempts: &'a [Attempt],
    /// All processes.
    pub processes: &'a ProcessTable,
    /// Who is a proxy.
    pub roles: &'a Roles,
    /// The configured proxies.
    pub proxies: &'a [ProxyIdentity],
    /// The processes that record.
    pub recorders: &'a [Recorder],
}

/// A finding without what is the same for all.
type Said = (&'static str, &'static str, &'static str, Option<&'static str>);

const SIGNATURES: Option<&str> = Some("every signature of this proxy");
const CALLS: Option<&str> = Some("every call of this proxy from then on");
const ALL: Option<&str> = Some("everything from then on");

impl Evasions {
    /// Judges all attempts.
    pub fn of(scene: Scene<'_>) -> Self {
        let mut evasions = Self::default();
        let index = Index::of(scene);
        for (ix, from) in &index.under {
            evasions.tamper(*ix, *from, "system_calls_supervised");
        }
        for (ix, attempt) in scene.attempts.iter().enumerate() {
            evasions.judge(scene, &index, ix, attempt);
        }
        evasions
    }

    /// Whether what an instance did up to a moment may be another's doing.
    pub fn tampered(&self, instance: InstanceIx, until: BootNs) -> bool {
        self.tampered
            .get(&instance)
            .is_some_and(|from| *from <= until)
    }

    /// Words for what lowers the trust in an instance.
    pub fn weaknesses(&self, instance: InstanceIx) -> impl Iterator<Item = &'static str> {
        self.weaknesses.get(&instance).into_iter().flatten().copied()
    }

    /// Who has the key of an instance by what was seen; `None` when nothing was.
    pub fn key_reach(
        &self,
        instance: InstanceIx,
        roles: &Roles,
        processes: &ProcessTable,
    ) -> Option<KeyReach> {
        let of_instance = self.readers.get(&instance).into_iter().flatten();
        let mut readers = of_instance.chain(&self.key_readers).peekable();
        readers.peek()?;
        let holder = roles.instance(instance).process;
        Some(if readers.all(|reader| processes.descends_from(*reader, holder)) {
            KeyReach::Server
        } else {
            KeyReach::Agent
        })
    }

    fn judge(&mut self, scene: Scene<'_>, index: &Index, ix: usize, attempt: &Attempt) {
        let target = attempt
            .target
            .and_then(|target| scene.processes.known(target));
        let own = scene.roles.instance_at(attempt.actor, attempt.at);
        let instance = target
            .and_then(|target| scene.roles.instance_at(target, attempt.at))
            .filter(|instance| own != Some(*instance));
        let recorder = attempt
            .target
            .is_some_and(|target| scene.recorders.iter().any(|recorder| recorder.is(target)));
        let (said, concerned) = if recorder {
            (of_recorder(attempt), None)
        } else if let Some(instance) = instance {
            (self.of_proxy(scene, attempt, instance), Some(instance))
        } else if let Some(target) = attempt.target {
            let known = scene.processes.known(target);
            (self.of_other(scene, attempt, known), None)
        } else {
            self.of_none(index, attempt, own)
        };
        if let Some((kind, severity, message, weakens)) = said {
            self.findings.push(Finding {
                attempt: ix,
                kind,
                severity,
                message,
                weakens,
                instance: concerned,
                target,
            });
        }
    }

    /// Done to a proxy by somebody else.
    fn of_proxy(
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
                    return failed("proxy_traced", "a process tried to attach to the proxy, in vain");
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
            What::Connect | What::TracedExec => None,
            _ => None,
        }
    }

    /// Done to a process that is no proxy.
    fn of_other(
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

    /// Done to no process.
    fn of_none(
        &mut self,
        index: &Index,
        attempt: &Attempt,
        own: Option<InstanceIx>,
    ) -> (Option<Said>, Option<InstanceIx>) {
        let none = (None, None);
        let plain = |said| (Some(said), None);
        match attempt.what {
            What::Loader(bits) => self.of_loader(attempt, bits, own),
            // It is traced by its parent from then on; what it executes is told by `TracedExec`.
            What::Trace(_) => match own {
                Some(instance) if attempt.succeeded.is_some() => {
                    self.tamper(instance, attempt.at, "ptrace");
                    let said = (
                        "proxy_traced",
                        "high",
                        "the proxy let its parent attach to it",
                        CALLS,
                    );
                    (Some(said), own)
                }
                Some(_) | None => none,
            },
            What::TracedExec => match own {
                Some(instance) => {
                    self.tamper(instance, attempt.at, "ptrace");
                    let said = (
                        "proxy_traced",
                        "high",
                        "the proxy was executed under a tracer that could not be told",
                        CALLS,
                    );
                    (Some(said), own)
                }
                None => none,
            },
            What::Supervisor if attempt.succeeded.is_some() => {
                let concerned = index.supervised.get(&attempt.actor).copied();
                let severity = if concerned.is_some() { "high" } else { "medium" };
                let said = (
                    "system_calls_supervised",
                    severity,
                    "a process has system calls, its own and its children's, answered by another process in the kernel's place",
                    Some("every operation of that process and its children"),
                );
                (Some(said), concerned)
            }
            What::BecomeRoot => plain((
                "root_gained",
                "high",
                "a process became root: it can read every key, change every log and stop the recording",
                ALL,
            )),
            What::GainCapabilities(mask) => plain((
                "capabilities_gained",
                if mask & BLINDING == 0 { "medium" } else { "high" },
                "a process gained rights over the machine that it did not have",
                ALL,
            )),
            What::UserNamespace if attempt.succeeded.is_some() => plain((
                "user_namespace",
                "low",
                "a process made a user namespace, in which it is root",
                None,
            )),
            What::Bpf => plain((
                "bpf_used",
                "medium",
                "a process called bpf, with which kernel programs and their tables are made and changed",
                attempt.succeeded.and(ALL),
            )),
            What::PerfEvent if attempt.succeeded.is_some() => plain((
                "perf_event_opened",
                "low",
                "a process opened a performance event, with which others' doings are watched",
                None,
            )),
            What::Ring => plain((
                "io_uring_used",
                "low",
                "a process set up io_uring: files, sockets and connections that it opens through it are not looked at",
                Some("what is said of this process's attempts"),
            )),
            What::OtherAbi => plain((
                "other_abi_used",
                "low",
                "a process made system calls of another ABI, which are not looked at",
                Some("what is said of this process's attempts"),
            )),
            What::Share { .. } | What::ShareSegment { .. } => (index.shared(attempt), None),
            What::OpenFile(class)
            | What::CutFile(class)
            | What::RemoveFile(class)
            | What::RenameFile(class) => self.of_file(index, attempt, class, own),
            _ => none,
        }
    }

    /// The environment of a proxy at its start.
    fn of_loader(
        &mut self,
        attempt: &Attempt,
        bits: u64,
        own: Option<InstanceIx>,
    ) -> (Option<Said>, Option<InstanceIx>) {
        let Some(instance) = own else {
            return (None, None);
        };
        let said = if bits & (loader::PRELOAD | loader::AUDIT) != 0 {
            self.tamper(instance, attempt.at, "ld_preload");
            (
                "proxy_code_loaded",
                "high",
                "the proxy was started with LD_PRELOAD or LD_AUDIT: somebody else's code runs in it",
                CALLS,
            )
        } else if bits & loader::LIBRARY_PATH != 0 {
            self.tamper(instance, attempt.at, "ld_library_path");
            (
                "proxy_code_loaded",
                "medium",
                "the proxy was started with LD_LIBRARY_PATH: its libraries can be somebody else's",
                CALLS,
            )
        } else if bits & loader::UNREAD != 0 {
            self.tamper(instance, attempt.at, "environment_unread");
            (
                "proxy_code_loaded",
                "medium",
                "the proxy was started with an environment that could not be read whole: it can have loaded somebody else's code",
                CALLS,
            )
        } else {
            self.weak(instance, "interpreter_variables");
            (
                "proxy_code_loaded",
                "low",
                "the proxy was started with variables that make an interpreter load code",
                None,
            )
        };
        (Some(said), own)
    }

    /// A log, a key or a file of Countersign's.
    fn of_file(
        &mut self,
        index: &Index,
        attempt: &Attempt,
        class: FileClass,
        own: Option<InstanceIx>,
    ) -> (Option<Said>, Option<InstanceIx>) {
        if own.is_some() && class != FileClass::Own {
            return (None, None);
        }
        match class {
            FileClass::Own => (
                Some((
                    "witness_touched",
                    "high",
                    "a process opened or changed a file of Countersign's",
                    ALL,
                )),
                None,
            ),
            FileClass::Key => {
                if matches!(attempt.what, What::OpenFile(_)) {
                    add_reader(&mut self.key_readers, attempt.actor);
                }
                (
                    Some((
                        "key_file_touched",
                        "high",
                        "a process that is no proxy opened or changed the file of a signing key",
                        SIGNATURES,
                    )),
                    None,
                )
            }
            FileClass::WrittenByProxy => {
                let log = attempt.file.and_then(|file| index.logs.get(&file));
                let instance = log.copied();
                let severity = if instance.is_some() { "high" } else { "low" };
                let (kind, message) = match attempt.what {
                    What::CutFile(_) => ("log_cut", "a process cut a file that a proxy writes"),
                    What::RemoveFile(_) => {
                        ("log_removed", "a process removed a name of a file that a proxy writes")
                    }
                    What::RenameFile(_) => {
                        ("log_renamed", "a process renamed a file that a proxy writes")
                    }
                    _ => (
                        "log_opened_for_writing",
                        "a process that is no proxy opened a file that a proxy writes, for writing",
                    ),
                };
                let weakens = instance.map(|_| "what is not covered by a signature or seen written in this log");
                (Some((kind, severity, message, weakens)), instance)
            }
        }
    }

    fn tamper(&mut self, instance: InstanceIx, at: BootNs, how: &'static str) {
        let from = self.tampered.entry(instance).or_insert(at);
        *from = (*from).min(at);
        self.weak(instance, how);
    }

    fn weak(&mut self, instance: InstanceIx, how: &'static str) {
        self.weaknesses.entry(instance).or_default().insert(how);
    }

    fn read_by(&mut self, instance: InstanceIx, reader: ProcessIx) {
        add_reader(self.readers.entry(instance).or_default(), reader);
    }
}

/// Whether a process belongs to what is watched: somebody saw it do something, or be made.
fn is_watched(scene: Scene<'_>, process: ProcessIx) -> bool {
    let process = scene.processes.process(process);
    process.tag & countersign_common::tag::TREE != 0 || process.parent.is_some()
}

fn add_reader(readers: &mut BTreeSet<ProcessIx>, reader: ProcessIx) {
    if readers.len() < READERS_MAX {
        readers.insert(reader);
    }
}

/// Done to Countersign itself.
fn of_recorder(attempt: &Attempt) -> Option<Said> {
    match attempt.what {
        What::Signal(signal) if attempt.succeeded.is_none() && !FORCED.contains(&signal) => None,
        What::Connect | What::TracedExec => None,
        What::Signal(_) => Some((
            "witness_touched",
            "high",
            "a process sent a signal to Countersign, or tried to",
            ALL,
        )),
        _ => Some((
            "witness_touched",
            "high",
            "a process reached for Countersign's own memory, descriptors or environment",
            ALL,
        )),
    }
}

fn of_signal(signal: u64, starter: bool, done: bool) -> Option<Said> {
    if CUSTOMARY.contains(&signal) && (starter || !done) {
        return None;
    }
    let stops = signal == 19;
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

/// What is looked up for each attempt, made once: an agent can make many.
#[derive(Debug, Default)]
struct Index {
    /// By object: a process of a proxy or behind it has mapped it, another has, somebody can write it.
    shared: BTreeMap<(bool, FileId), [bool; 3]>,
    /// By log: an instance of its proxy.
    logs: BTreeMap<FileId, InstanceIx>,
    /// By who asked for a supervisor: an instance that inherited it.
    supervised: BTreeMap<ProcessIx, InstanceIx>,
    /// Instances under a supervisor, and from when on.
    under: BTreeMap<InstanceIx, BootNs>,
}

impl Index {
    fn of(scene: Scene<'_>) -> Self {
        let mut index = Self::default();
        let mut asked: BTreeMap<ProcessIx, BootNs> = BTreeMap::new();
        for attempt in scene.attempts {
            if let Some((object, writable)) = shared_object(attempt) {
                let inside = is_of_proxy(scene, attempt.actor);
                let users = index.shared.entry(object).or_default();
                users[0] |= inside;
                users[1] |= !inside;
                users[2] |= writable;
            }
            if let (What::Supervisor, Some(at)) = (attempt.what, attempt.succeeded) {
                let first = asked.entry(attempt.actor).or_insert(at);
                *first = (*first).min(at);
            }
        }
        for (ix, instance) in scene.roles.instances() {
            for log in scene
                .proxies
                .get(instance.proxy)
                .into_iter()
                .flat_map(|proxy| &proxy.logs)
            {
                index.logs.entry(*log).or_insert(ix);
            }
            index.find_supervisors(scene, &asked, ix);
        }
        index
    }

    /// Whoever asks for a supervisor has it for itself and for what it makes later.
    fn find_supervisors(
        &mut self,
        scene: Scene<'_>,
        asked: &BTreeMap<ProcessIx, BootNs>,
        ix: InstanceIx,
    ) {
        if asked.is_empty() {
            return;
        }
        let instance = scene.roles.instance(ix);
        let born = scene.processes.process(instance.process).incarnation.start;
        for process in scene.processes.ancestry(instance.process) {
            let Some(at) = asked.get(&process).copied() else {
                continue;
            };
            let itself = process == instance.process;
            if itself || born >= at {
                self.supervised.entry(process).or_insert(ix);
                let from = self.under.entry(ix).or_insert(BootNs(u64::MAX));
                *from = (*from).min(at.max(instance.from));
            }
        }
    }

    /// Something is to be told when one user is of a proxy or its servers, and another is not.
    fn shared(&self, attempt: &Attempt) -> Option<Said> {
        let (object, _) = shared_object(attempt)?;
        (*self.shared.get(&object)? == [true; 3]).then_some((
            "memory_shared",
            "medium",
            "a process outside the proxy and one behind it share memory: what they say there passes no channel",
            Some("that calls went through the proxy alone"),
        ))
    }
}

/// A System V segment or a file, and whether it can be written.
fn shared_object(attempt: &Attempt) -> Option<((bool, FileId), bool)> {
    let file = attempt.file?;
    match attempt.what {
        What::Share { writable } => Some(((false, file), writable)),
        What::ShareSegment { writable } => Some(((true, file), writable)),
        _ => None,
    }
}

/// Whether a process is a proxy or was started by one.
fn is_of_proxy(scene: Scene<'_>, process: ProcessIx) -> bool {
    let mut ancestry = scene.processes.ancestry(process);
    ancestry.any(|process| scene.roles.instance_of(process).is_some())
}
