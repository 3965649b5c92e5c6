//! Where a thread runs, and before whom.

use std::sync::OnceLock;

/// The first and the last processor that this process may use.
static USABLE: OnceLock<Option<[usize; 2]>> = OnceLock::new();

/// One of the processors that this process may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    First,
    Last,
}

/// Keeps the calling thread on one processor. Where that is not allowed, it runs where it likes.
pub(crate) fn stay_on(which: Which) {
    // Of the process, not of a thread that was already told where to stay.
    let Some([first, last]) = USABLE.get_or_init(usable) else {
        return;
    };
    let chosen = match which {
        Which::First => *first,
        Which::Last => *last,
    };
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    unsafe {
        libc::CPU_SET(chosen, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn usable() -> Option<[usize; 2]> {
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    if unsafe { libc::sched_getaffinity(0, size, &raw mut set) } != 0 {
        return None;
    }
    let among = usize::try_from(libc::CPU_SETSIZE).ok()?;
    let mut usable = (0..among).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) });
    let first = usable.next()?;
    Some([first, usable.next_back().unwrap_or(first)])
}

/// Lets the calling thread run before all others of its processor: in real time, or else as nice as can be.
pub(crate) fn before_all_others() {
    let first = libc::sched_param { sched_priority: 1 };
    unsafe {
        if libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) != 0 {
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }
}
