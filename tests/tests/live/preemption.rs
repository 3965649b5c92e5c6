//! What the kernel skips when it preempts a program: every byte that no record has must be owned up to.
//!
//! Where programs are preemptible, the kernel runs none for the tasks that come in between. The bytes of their calls are gone,
//! and all that tells is the ledger of the program. How much it is depends on the kernel and its preemption, so the test prints
//! it; what it asserts is that nothing is missing in silence, and on trace events nothing at all.

use std::{
    fs,
    io::Write as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use countersign::bpf::{
    hook::Hook, load::is_tracepoint, options::LoadOptions, preemption::Preemption,
};
use countersign_common::{channel_kind, counter, direction, end_how, kind, tag};

use crate::harness::{Witness, close, hook, pipe, read, socket_pair, tier, witness_with, write};

/// Writers, and as many readers.
const PAIRS: u64 = 8;

/// Numbers that a forked child leaves to its parent.
struct Shared {
    reads: AtomicU64,
}

/// Memory that a forked child shares; lives as long as the test program.
fn shared() -> &'static Shared {
    // SAFETY: fresh memory of zeroes, aligned to a page, never unmapped.
    unsafe {
        let place = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Shared>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        assert_ne!(place, libc::MAP_FAILED);
        &*place.cast::<Shared>()
    }
}

/// Times that the kernel skipped a program of this capture.
fn skipped(witness: &Witness, program: &str) -> u64 {
    let ledger = witness.capture.ledger();
    let mut found = ledger.iter().filter(|entry| entry.name == program);
    found.next().expect("it is loaded").recursion_misses
}

/// A capture with room for what a stress leaves.
fn stressed() -> Option<Witness> {
    witness_with(&LoadOptions {
        ring_bytes: 64 << 20,
        ..LoadOptions::default()
    })
}

/// Every message of 8 writers is `bytes` long; `messages` of each.
fn stress(witness: &mut Witness, bytes: usize, messages: u64) {
    let before = skipped(witness, "sys_exit");
    let shared = shared();
    let child = witness.run(tag::TREE, || {
        let threads: Vec<_> = (0..PAIRS)
            .flat_map(|pair| {
                let [read_end, write_end] = if pair % 2 == 0 { pipe() } else { socket_pair() };
                let writer = std::thread::spawn(move || {
                    let message = vec![b'm'; bytes];
                    for _ in 0..messages {
                        assert_eq!(write(write_end, &message), bytes.cast_signed());
                    }
                });
                let reader = std::thread::spawn(move || {
                    let mut buffer = vec![0; bytes];
                    let mut left = messages * bytes as u64;
                    while left > 0 {
                        // SAFETY: a buffer and its length.
                        let got =
                            unsafe { libc::read(read_end, buffer.as_mut_ptr().cast(), bytes) };
                        left -= u64::try_from(got).expect("the read succeeds");
                        shared.reads.fetch_add(1, Ordering::Relaxed);
                    }
                });
                [writer, reader]
            })
            .collect();
        for thread in threads {
            thread.join().expect("the thread ends well");
        }
    });

    // Without the byte that let the child go.
    let mut parts = witness.parts();
    parts.retain(|part| part.task.tgid == child && part.returned > 1);
    let sum = |wanted: u16| -> u64 {
        let of_kind = parts.iter().filter(|part| part.header.kind == wanted);
        of_kind.map(|part| u64::from(part.len)).sum()
    };
    let (captured, gaps) = (sum(kind::CHUNK), sum(kind::GAP));
    let moved = 2 * PAIRS * messages * bytes as u64;
    let missed = moved - captured - gaps;
    let ops = |wanted: u8| -> u64 {
        let first = parts.iter().filter(|part| part.offset == 0);
        first.filter(|part| part.direction == wanted).count() as u64
    };
    let made = PAIRS * messages + shared.reads.load(Ordering::Relaxed);
    let missed_ops = made - ops(direction::WRITE) - ops(direction::READ);
    let exits = skipped(witness, "sys_exit") - before;
    let preemption = Preemption::of_running_kernel();
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::stderr().write_all(
        format!(
            "preemption: {} {preemption} {:?} {:?} messages of {bytes}: of {moved} bytes {missed} unseen ({} per mille), {gaps} in gaps; of {made} operations {missed_ops} unseen, {exits} skips owned up to\n",
            fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            tier(),
            hook(),
            missed * 1000 / moved,
        )
        .as_bytes(),
    );
    assert!(
        missed_ops <= exits,
        "{missed_ops} operations are missing, and the kernel owns up to {exits}"
    );
    assert!(
        missed == 0 || exits > 0,
        "{missed} bytes are missing in silence"
    );
    if hook() == Hook::Event {
        assert_eq!(exits, 0, "programs on trace events are not skipped");
    }
}

/// Rounds of what no function carries, and bytes of a line in each.
const ROUNDS: usize = 400;
const LINE_BYTES: usize = 64;
/// Threads that keep the programs busy meanwhile, with a pipe each.
const PIPES: usize = 8;

/// What hangs on system calls and not on the functions that carry bytes: what a proxy writes to files, the ends that a process
/// makes, and attempts to get round the witness.
#[test]
fn files_ends_and_attempts_are_seen_while_programs_are_preempted() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let options = LoadOptions {
        ring_bytes: 64 << 20,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let child = witness.run(tag::TREE | tag::PROXY, || {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..PIPES {
                scope.spawn(|| {
                    let [read_end, write_end] = pipe();
                    while !over.load(Ordering::Relaxed) {
                        write(write_end, b"noise");
                        read(read_end, 16);
                    }
                });
            }
            let mut log = fs::OpenOptions::new()
                .append(true)
                .open(file.path())
                .expect("it opens");
            for round in 0..ROUNDS {
                let line = format!("{round:>0$}\n", LINE_BYTES - 1);
                log.write_all(line.as_bytes()).expect("it writes");
                pipe().into_iter().for_each(close);
                // Refused, because there are other threads. SAFETY: a plain number.
                unsafe { libc::unshare(libc::CLONE_NEWUSER) };
            }
            over.store(true, Ordering::Relaxed);
        });
    });
    let parts = witness.parts();
    let of_file = parts.iter().filter(|part| {
        let is_file = part.channel.kind == channel_kind::FILE;
        part.task.tgid == child && is_file && part.header.kind == kind::CHUNK
    });
    let lines = of_file
        .filter(|part| part.returned == LINE_BYTES as u64)
        .count();
    let ends = witness.ends();
    let made = ends.iter().filter(|end| {
        let is_pipe = end.channel.kind == channel_kind::PIPE;
        end.task.tgid == child && is_pipe && end.how == end_how::CREATED
    });
    let made = made.count();
    let attempts = usize::try_from(witness.counter(counter::EVASIONS)).expect("it fits");
    let ledger = witness.capture.ledger();
    let on_tracepoints = ledger.iter().filter(|entry| is_tracepoint(&entry.name));
    let skips: u64 = on_tracepoints.map(|entry| entry.recursion_misses).sum();
    let wanted = (ROUNDS, 2 * (ROUNDS + PIPES), ROUNDS);
    let _unheard = std::io::stderr().write_all(
        format!(
            "preemption: of {} lines {lines}, of {} ends {made}, of {} attempts {attempts} seen; {skips} skips owned up to\n",
            wanted.0, wanted.1, wanted.2
        )
        .as_bytes(),
    );
    if hook() == Hook::Event {
        assert_eq!(skips, 0, "{ledger:?}");
    }
    assert!(
        (lines, made, attempts) == wanted || skips > 0,
        "missing in silence"
    );
}

/// Sizes of messages, and how many of each.
const SMALL: (usize, u64) = (64, 1000);
const PAGES: (usize, u64) = (4096, 300);
const LARGE: (usize, u64) = (65536, 30);

#[test]
fn of_many_small_messages_none_is_missing_in_silence() {
    let Some(mut witness) = stressed() else {
        return;
    };
    stress(&mut witness, SMALL.0, SMALL.1);
}

#[test]
fn of_many_messages_of_any_size_none_is_missing_in_silence() {
    let Some(mut witness) = stressed() else {
        return;
    };
    for (bytes, messages) in [SMALL, PAGES, LARGE] {
        stress(&mut witness, bytes, messages);
    }
}
