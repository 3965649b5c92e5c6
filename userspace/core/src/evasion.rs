//! Attempts to get round the witness: what the kernel reported, folded and in order.
//!
//! Owns the list of attempts and its limit. It judges nothing: what an attempt takes from the evidence is decided by
//! [`verdict::evasion`](crate::verdict::evasion).

use std::collections::HashMap;

use countersign_common as abi;
use countersign_common::evasion::{self as wire, what};

use crate::foreign::Foreign;
use crate::process::{FileId, Incarnation, ProcessIx};
use crate::time::BootNs;

/// Different attempts kept. Stops an agent that makes ever new ones from filling memory; later ones are counted.
pub const ATTEMPTS_MAX: usize = 1 << 16;

/// What was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// To attach to a process as a debugger does, with this request; request 0: to be attached to by the parent.
    Trace(u64),
    /// A program was executed under a tracer: the target.
    TracedExec,
    /// To read a process's memory.
    ReadMemory,
    /// To write a process's memory.
    WriteMemory,
    /// To open a process's memory as a file; whether for writing.
    OpenMemory {
        /// It can be written through it.
        writable: bool,
    },
    /// To open a process's environment.
    OpenEnvironment,
    /// A proxy was executed with variables that put code into it: bits of [`wire::loader`].
    Loader(u64),
    /// A signal.
    Signal(u64),
    /// A limit of another process.
    SetLimit(u64),
    /// To give advice about another process's memory.
    AdviseMemory,
    /// A shared mapping of a file or memory object.
    Share {
        /// It can be written through it.
        writable: bool,
    },
    /// A System V segment.
    ShareSegment {
        /// It can be written through it.
        writable: bool,
    },
    /// A descriptor was taken out of another process.
    TakeDescriptor,
    /// A watched file was opened.
    OpenFile(FileClass),
    /// A watched file became shorter.
    CutFile(FileClass),
    /// A watched file lost a name.
    RemoveFile(FileClass),
    /// A watched file got another name.
    RenameFile(FileClass),
    /// It became root.
    BecomeRoot,
    /// It gained these capabilities.
    GainCapabilities(u64),
    /// A user namespace.
    UserNamespace,
    /// A supervisor of system calls.
    Supervisor,
    /// `bpf`.
    Bpf,
    /// `perf_event_open`.
    PerfEvent,
    /// A ring of `io_uring`.
    Ring,
    /// System calls of another ABI.
    OtherAbi,
    /// A connection to a socket on which the target listens.
    Connect,
    /// A signal that the kernel sent on nobody's known behalf, as a terminal's.
    KernelSignal(u64),
    /// A channel of a kind whose bytes are not captured.
    Foreign(Foreign),
    /// A descriptor was sent in a message; whether it is one of a channel.
    SendDescriptor {
        /// A pipe, socket or terminal.
        channel: bool,
    },
    /// A request of `io_uring` that is not looked into, by opcode.
    RingRequest(u64),
    /// A file was opened that the target had opened for writing.
    ShareFile,
}

/// Why a file is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileClass {
    /// A proxy opened it for writing.
    WrittenByProxy,
    /// It holds a signing key.
    Key,
    /// It is Countersign's own.
    Own,
}

/// A process that records, as it found itself in `/proc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorder {
    /// Its id.
    pub tgid: u32,
    /// Its start, cut to a clock tick.
    pub start: BootNs,
    /// Length of a tick, nanoseconds.
    pub tick_ns: u64,
}

impl Recorder {
    /// Whether an incarnation is this process.
    pub fn is(&self, process: Incarnation) -> bool {
        let late = process.start.0.checked_sub(self.start.0);
        self.tgid == process.tgid && late.is_some_and(|late| late < self.tick_ns.max(1))
    }
}

/// One attempt, with those like it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it was made first.
    pub at: BootNs,
    /// Who.
    pub actor: ProcessIx,
    /// Whom it was done to, when a process is concerned that could be found.
    pub target: Option<Incarnation>,
    /// What.
    pub what: What,
    /// The file or object concerned.
    pub file: Option<FileId>,
    /// What it was given by, where the target could not be found: a process id, negative for a group.
    pub given: Option<i64>,
    /// What the first returned; `None` when the record was made before it returned.
    pub returned: Option<i64>,
    /// One of them succeeded; that is its time.
    pub succeeded: Option<BootNs>,
    /// How many there were, as far as reported.
    pub count: u64,
}

/// Attempts are alike when all of this is the same.
type Key = (ProcessIx, What, Option<Incarnation>, Option<FileId>);

/// Addresses kept of what one process reaches by channels that are not watched. Stops one that sprays them from using up the room
/// of all attempts; what comes later has none.
const PLACES_MAX: u32 = 64;

/// All attempts of a capture.
#[derive(Debug, Default)]
pub struct Attempts {
    all: Vec<Attempt>,
    places: HashMap<ProcessIx, u32>,
    known: HashMap<Key, usize>,
    /// Attempts of a kind that this version does not know.
    pub unknown: u64,
    /// Attempts that found no room.
    pub overflowed: u64,
}

impl Attempts {
    /// All of them, in the order in which they were first made.
    pub fn all(&self) -> &[Attempt] {
        &self.all
    }

    /// Takes a record; `actor` is the row of its task.
    pub fn take(&mut self, record: &wire::Evasion, actor: ProcessIx) {
        let Some(mut what) = what_of(record) else {
            self.unknown += 1;
            return;
        };
        let at = BootNs(record.header.boot_ns);
        let target = (record.target.tgid != 0).then_some(Incarnation {
            tgid: record.target.tgid,
            start: BootNs(record.target.start_boot_ns),
        });
        let has_file = record.inode != 0 && !matches!(what, What::Foreign(_));
        let file = has_file.then_some(FileId {
            dev: record.dev,
            inode: record.inode,
        });
        if let What::Foreign(foreign) = what
            && !self.known.contains_key(&(actor, what, target, file))
        {
            let places = self.places.entry(actor).or_default();
            *places = places.saturating_add(1);
            if *places > PLACES_MAX {
                what = What::Foreign(foreign.anywhere());
            }
        }
        let returned = (record.flags & wire::flags::NO_RESULT == 0).then_some(record.returned);
        let succeeded = returned.is_none_or(|returned| returned >= 0).then_some(at);
        let key = (actor, what, target, file);
        if let Some(known) = self.known.get(&key).and_then(|ix| self.all.get_mut(*ix)) {
            known.at = known.at.min(at);
            known.succeeded = match (known.succeeded, succeeded) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            // The kernel's count starts again where it had to make room.
            known.count = record.nth.max(known.count.saturating_add(1));
            return;
        }
        if self.all.len() >= ATTEMPTS_MAX {
            self.overflowed += 1;
            return;
        }
        self.known.insert(key, self.all.len());
        self.all.push(Attempt {
            at,
            actor,
            target,
            what,
            file,
            given: (record.flags & wire::flags::TARGET_UNKNOWN != 0)
                .then_some(record.argument.cast_signed()),
            returned,
            succeeded,
            count: record.nth.max(1),
        });
    }
}

fn what_of(record: &wire::Evasion) -> Option<What> {
    let number = record.number;
    let writable = number & 2 != 0;
    Some(match record.what {
        what::PTRACE => What::Trace(number),
        what::TRACED_EXEC => What::TracedExec,
        what::MEMORY_READ => What::ReadMemory,
        what::MEMORY_WRITTEN => What::WriteMemory,
        what::MEMORY_OPENED => What::OpenMemory { writable },
        what::ENVIRONMENT_OPENED => What::OpenEnvironment,
        what::LOADER_ENVIRONMENT => What::Loader(number),
        what::LIMIT_SET => What::SetLimit(number),
        what::MEMORY_ADVICE => What::AdviseMemory,
        what::SHARED_MAPPING => What::Share { writable },
        what::SEGMENT_ATTACHED => What::ShareSegment { writable },
        what::DESCRIPTOR_TAKEN => What::TakeDescriptor,
        what::FILE_OPENED => What::OpenFile(class_of(number)?),
        what::FILE_CUT => What::CutFile(class_of(number)?),
        what::FILE_REMOVED => What::RemoveFile(class_of(number)?),
        what::FILE_RENAMED => What::RenameFile(class_of(number)?),
        what::ROOT_GAINED => What::BecomeRoot,
        what::CAPABILITIES_GAINED => What::GainCapabilities(number),
        what::USER_NAMESPACE => What::UserNamespace,
        what::SYSTEM_CALL_SUPERVISOR => What::Supervisor,
        what::BPF => What::Bpf,
        what::PERF_EVENT => What::PerfEvent,
        what::IO_URING => What::Ring,
        what::OTHER_ABI => What::OtherAbi,
        what::CONNECTED => What::Connect,
        what::SIGNAL_ARRIVED if record.flags & wire::flags::BY_KERNEL != 0 => {
            What::KernelSignal(number)
        }
        what::SIGNAL | what::SIGNAL_ARRIVED => What::Signal(number),
        what::FOREIGN_CHANNEL => What::Foreign(Foreign::of(record)?),
        what::DESCRIPTOR_SENT => What::SendDescriptor {
            channel: number != 0 && number != u64::from(abi::channel_kind::FILE),
        },
        what::RING_REQUEST => What::RingRequest(number),
        what::FILE_SHARED => What::ShareFile,
        _ => return None,
    })
}

fn class_of(number: u64) -> Option<FileClass> {
    match u32::try_from(number) {
        Ok(abi::evasion::file_class::WRITTEN_BY_PROXY) => Some(FileClass::WrittenByProxy),
        Ok(abi::evasion::file_class::KEY) => Some(FileClass::Key),
        Ok(abi::evasion::file_class::OWN) => Some(FileClass::Own),
        _ => None,
    }
}
