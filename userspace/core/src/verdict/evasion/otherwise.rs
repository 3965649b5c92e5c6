//! Attempts against no process: rights, files, memory that is shared, what a proxy is started with.

use countersign_common::evasion::loader;

use super::index::Index;
use super::{ALL, CALLS, Evasions, SIGNATURES, Said, add_reader};
use crate::evasion::{Attempt, FileClass, What};
use crate::role::InstanceIx;

/// Capabilities with which the witness can be blinded: `SYS_MODULE`, `SYS_RAWIO`, `SYS_PTRACE`, `SYS_ADMIN`, `PERFMON`, `BPF`.
const BLINDING: u64 = 1 << 16 | 1 << 17 | 1 << 19 | 1 << 21 | 1 << 38 | 1 << 39;

impl Evasions {
    /// Done to no process.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of a list this long, only what is told is named"
    )]
    pub(super) fn of_none(
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
                let severity = if concerned.is_some() {
                    "high"
                } else {
                    "medium"
                };
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
                if mask & BLINDING == 0 {
                    "medium"
                } else {
                    "high"
                },
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
                "a process set up io_uring: what it opens into the ring's own table of files, and what it does without leaving a completion, is not looked at",
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
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "of a list this long, only what is told is named"
    )]
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
                    What::RemoveFile(_) => (
                        "log_removed",
                        "a process removed a name of a file that a proxy writes",
                    ),
                    What::RenameFile(_) => (
                        "log_renamed",
                        "a process renamed a file that a proxy writes",
                    ),
                    _ => (
                        "log_opened_for_writing",
                        "a process that is no proxy opened a file that a proxy writes, for writing",
                    ),
                };
                let weakens = instance
                    .map(|_| "what is not covered by a signature or seen written in this log");
                (Some((kind, severity, message, weakens)), instance)
            }
        }
    }
}
