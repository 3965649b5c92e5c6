//! Messages for people, through aya-log: that something goes wrong for the first time, while it does. The counters and gap
//! records say how much, and are what the evidence goes by.
//!
//! Each kind of message comes at most once in [`SILENCE_NS`]. Only paths that lose something or give something up have one, so an
//! operation that is captured never comes here. No message holds payload.
//!
//! The functions are global to the verifier, which so looks at each once, and not again in every state of every caller.
//!
//! Call from a program itself, not from a callback: a message takes some of the 512 bytes of stack that all frames share.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns};
use aya_log_ebpf::{error, warn};

use crate::maps::SPOKEN;

/// Time between two messages of a kind. Stops a flood of losses from becoming a flood of messages.
const SILENCE_NS: u64 = 10_000_000_000;

/// What messages are about: places in [`SPOKEN`].
#[derive(Clone, Copy)]
#[repr(u32)]
enum Subject {
    RingFull,
    Fault,
    Compat,
    Unseen,
    Splice,
    Tag,
    Thread,
    Channel,
}

/// Number of subjects.
pub const SUBJECTS: usize = Subject::Channel as usize + 1;

/// The name under which user space shows them.
const TARGET: &str = "countersign::kernel";

/// Bytes found no room in the ring.
#[unsafe(export_name = "log_ring_full")]
#[inline(never)]
pub extern "C" fn ring_full(bytes: u64) -> u64 {
    if may_speak(Subject::RingFull) {
        warn!(&(), target: TARGET, "the ring is full: of an operation of {} bytes by process {} some are not captured", bytes, tgid());
    }
    0
}

/// Bytes could not be read from user memory.
#[unsafe(export_name = "log_fault")]
#[inline(never)]
pub extern "C" fn fault(bytes: u64) -> u64 {
    if may_speak(Subject::Fault) {
        warn!(&(), target: TARGET, "of an operation of {} bytes by process {} some could not be read back from its memory", bytes, tgid());
    }
    0
}

/// A watched task makes system calls of the 32-bit or x32 ABI.
#[unsafe(export_name = "log_compat")]
#[inline(never)]
pub extern "C" fn compat(number: u64) -> u64 {
    if may_speak(Subject::Compat) {
        warn!(&(), target: TARGET, "process {} makes system calls of another ABI, which are not captured: number {}", tgid(), number);
    }
    0
}

/// A watched task submits work that is not decoded.
#[unsafe(export_name = "log_unseen")]
#[inline(never)]
pub extern "C" fn unseen(number: u64) -> u64 {
    if may_speak(Subject::Unseen) {
        warn!(&(), target: TARGET, "process {} moves bytes through io_uring or aio in a way that is not captured: system call or opcode {}", tgid(), number);
    }
    0
}

/// A watched task moves bytes past user memory.
#[unsafe(export_name = "log_spliced")]
#[inline(never)]
pub extern "C" fn spliced(number: u64) -> u64 {
    if may_speak(Subject::Splice) {
        warn!(&(), target: TARGET, "process {} moves bytes past its memory, which are counted and not captured: system call {}", tgid(), number);
    }
    0
}

/// A process could not be tagged.
#[unsafe(export_name = "log_untagged")]
#[inline(never)]
pub extern "C" fn untagged(child: u64) -> u64 {
    if may_speak(Subject::Tag) {
        error!(&(), target: TARGET, "process {} could not be tagged for lack of memory", child);
    }
    0
}

/// The state of a system call could not be kept.
#[unsafe(export_name = "log_no_thread_state")]
#[inline(never)]
pub extern "C" fn no_thread_state() -> u64 {
    if may_speak(Subject::Thread) {
        error!(&(), target: TARGET, "no memory for the state of a thread of process {}: its operations are not captured", tgid());
    }
    0
}

/// A channel found no place in the table.
#[unsafe(export_name = "log_no_channel")]
#[inline(never)]
pub extern "C" fn no_channel(inode: u64) -> u64 {
    if may_speak(Subject::Channel) {
        error!(&(), target: TARGET, "the table of channels has no place for inode {} of process {}", inode, tgid());
    }
    0
}

/// Whether the last message about this is long enough ago. Two CPUs may both find that it is, and both speak.
#[inline(always)]
fn may_speak(subject: Subject) -> bool {
    let Some(spoken) = SPOKEN.get_ptr_mut(subject as u32) else {
        return false;
    };
    // SAFETY: no arguments; an aligned word of the map.
    unsafe {
        let now = bpf_ktime_get_boot_ns();
        let last = spoken.read_volatile();
        if last != 0 && now.wrapping_sub(last) < SILENCE_NS {
            return false;
        }
        spoken.write_volatile(now);
    }
    true
}

#[inline(always)]
fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}
