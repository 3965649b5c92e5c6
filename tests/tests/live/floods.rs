//! Floods: who floods loses his own; a quiet agent beside him, and what says who did what, lose nothing.

use std::time::{Duration, Instant};

use countersign::bpf::options::LoadOptions;
use countersign_common::{counter, direction, gap, tag};

use crate::harness::{Witness, close, open, pipe, read, spawn, witness_with, write};

/// Small, so that a flood fills it at once.
const RING_BYTES: u32 = 1 << 20;
const QUIET_MESSAGES: u32 = 100;
/// As a disk would that takes this long for each batch.
const SLOW: Duration = Duration::from_millis(40);

/// A flood by agent 1 beside a quiet agent 2 and a proxy of agent 1, taken out by somebody slow; whether the flood lost something.
fn flood(body: fn()) -> Option<Witness> {
    let mut witness = witness_with(&LoadOptions {
        ring_bytes: RING_BYTES,
        ..LoadOptions::default()
    })?;
    let quiet_body = |name: &'static [u8]| {
        move || {
            let [read_end, write_end] = pipe();
            for number in 0..QUIET_MESSAGES {
                let message = [name, number.to_string().as_bytes()].concat();
                write(write_end, &message);
                assert_eq!(read(read_end, 256), message);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let (flooder, flood_gate) = spawn(move || {
        let until = Instant::now() + Duration::from_millis(600);
        while Instant::now() < until {
            body();
        }
    });
    let (quiet, quiet_gate) = spawn(quiet_body(b"quiet-"));
    let (proxy, proxy_gate) = spawn(quiet_body(b"proxy-"));
    let tags = [
        (flooder, tag::TREE | tag::of_agent(1)),
        (quiet, tag::TREE | tag::of_agent(2)),
        (proxy, tag::TREE | tag::PROXY | tag::of_agent(1)),
    ];
    for (pid, bits) in tags {
        witness.capture.tag_pid(pid, bits).unwrap();
    }
    for gate in [quiet_gate, proxy_gate, flood_gate] {
        open(gate);
    }
    for child in [flooder, quiet, proxy] {
        let mut status = 0;
        // SAFETY: a child of ours and a place for its status.
        while unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WNOHANG) } == 0 {
            std::thread::sleep(SLOW);
            witness.drain();
        }
        assert_eq!(status, 0, "the child failed");
    }
    witness.drain();
    for name in [b"quiet-", b"proxy-"] {
        for number in 0..QUIET_MESSAGES {
            let message = [&name[..], number.to_string().as_bytes()].concat();
            for side in [direction::WRITE, direction::READ] {
                let seen = witness.moved_by_parts(side, &message);
                assert_eq!(seen, 1, "{}", String::from_utf8_lossy(&message));
            }
        }
    }
    assert_eq!(witness.counter(counter::CONTROL_DROPPED_RECORDS), 0);
    assert_eq!(
        witness.counter(counter::RING_DROPPED_RECORDS),
        witness.counter(counter::CREDIT_DROPPED_RECORDS),
        "the ring itself never was full"
    );
    Some(witness)
}

/// The flood was one: it lost something, and some of it says why.
fn lost_by_credit(witness: &Witness) {
    assert!(witness.counter(counter::CREDIT_DROPPED_RECORDS) > 0);
    let parts = witness.parts();
    assert!(parts.iter().any(|part| part.reason == gap::CREDIT));
    assert!(!parts.iter().any(|part| part.reason == gap::RING_FULL));
}

#[test]
fn a_flood_of_64_byte_operations_costs_only_its_own_agent() {
    let witness = flood(|| {
        let [read_end, write_end] = pipe();
        for _ in 0..500 {
            assert_eq!(write(write_end, &[7; 64]), 64);
            assert_eq!(read(read_end, 64).len(), 64);
        }
        close(read_end);
        close(write_end);
    });
    if let Some(witness) = witness {
        lost_by_credit(&witness);
    }
}

#[test]
fn a_flood_of_32_mebibyte_operations_costs_only_its_own_agent() {
    let witness = flood(|| {
        let [read_end, write_end] = pipe();
        let reader = std::thread::spawn(move || {
            let mut left = 32 << 20;
            while left > 0 {
                left -= read(read_end, 1 << 20).len();
            }
        });
        assert_eq!(write(write_end, &vec![7; 32 << 20]), 32 << 20);
        reader.join().unwrap();
        close(read_end);
        close(write_end);
    });
    if let Some(witness) = witness {
        lost_by_credit(&witness);
    }
}

#[test]
fn a_storm_of_forks_costs_nobody_a_process_record() {
    let Some(witness) = flood(|| {
        // SAFETY: the child does nothing but end.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(0);
            }
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    }) else {
        return;
    };
    let (forks, exits) = (witness.forks(), witness.exits());
    assert!(forks.len() > 50, "{}", forks.len());
    for fork in forks {
        let ended = exits.iter().any(|exit| {
            (exit.task.tgid, exit.task.start_boot_ns) == (fork.child.tgid, fork.child.start_boot_ns)
        });
        assert!(ended, "{fork:?}");
    }
}

#[test]
fn a_storm_of_duplicated_descriptors_costs_nobody_anything() {
    let witness = flood(|| {
        let [read_end, write_end] = pipe();
        for _ in 0..500 {
            // SAFETY: descriptors of the child.
            unsafe { libc::close(libc::dup(write_end)) };
            write(write_end, b"x");
            read(read_end, 1);
        }
        close(read_end);
        close(write_end);
    });
    if let Some(witness) = witness {
        // Balances at each close are records of data, too.
        assert!(witness.balances().len() > 100);
    }
}
