//! Processes made in every way, thousands of them at once: every one is tagged before it does anything.
//!
//! `COUNTERSIGN_TORTURE` sets how many.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env,
    ffi::CString,
    io::Write as _,
    time::{Duration, Instant},
};

use countersign::bpf::load::is_tracepoint;
use countersign_common::{counter, direction, tag, transfer_flags};

use crate::harness::{close, hook, open, pipe, spawn, tier, witness};

/// Processes by default. The makers go through all ways in turn, four at a time.
const COUNT: usize = 2_000;
/// Time for each thousand of them.
const PATIENCE_PER_THOUSAND: Duration = Duration::from_mins(1);

#[test]
fn every_process_of_a_storm_is_seen_writing() {
    let Some(mut witness) = witness() else { return };
    let count = env::var("COUNTERSIGN_TORTURE").map_or(COUNT, |text| text.parse().unwrap());
    let [read_end, write_end] = pipe();
    // SAFETY: descriptors of the test.
    unsafe { libc::fcntl(read_end, libc::F_SETFL, libc::O_NONBLOCK) };
    let arguments = [
        crate::coverage::exerciser().to_str().unwrap(),
        "--torture",
        &count.to_string(),
    ]
    .map(|text| CString::new(text).unwrap());
    let mut pointers: Vec<_> = arguments.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (root, gate) = spawn(|| unsafe {
        libc::dup2(write_end, 1);
        close(write_end);
        close(read_end);
        libc::execv(pointers[0], pointers.as_ptr());
        panic!("the exerciser does not start");
    });
    close(write_end);
    witness.capture.tag_pid(root, tag::TREE).unwrap();
    open(gate);

    let mut written = Vec::new();
    let thousands = u32::try_from(count / 1_000 + 1).unwrap();
    let deadline = Instant::now() + PATIENCE_PER_THOUSAND * thousands;
    let mut buffer = vec![0; 65_536];
    loop {
        witness.drain();
        let got = unsafe { libc::read(read_end, buffer.as_mut_ptr().cast(), buffer.len()) };
        match usize::try_from(got) {
            Ok(0) => break,
            Ok(got) => written.extend(&buffer[..got]),
            Err(_negative) => witness.capture.wait(Duration::from_millis(1)).unwrap(),
        }
        assert!(Instant::now() < deadline, "{} bytes so far", written.len());
    }
    close(read_end);
    witness.reap(root);

    // What came out of the pipe is what was written, whoever saw it.
    let written: Vec<_> = written.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(written.len(), count);
    let mut seen: HashMap<Vec<u8>, Vec<_>> = HashMap::new();
    for (transfer, payload) in witness.chunks() {
        // The root waited for its gate when it was tagged; everybody else was tagged before the first call.
        let is_root = transfer.task.tgid == root;
        assert!(
            is_root || transfer.flags & transfer_flags::NO_ENTER == 0,
            "{transfer:?}"
        );
        if transfer.direction == direction::WRITE {
            seen.entry(payload).or_default().push(transfer.task);
        }
    }
    let forks = witness.forks();
    let children: HashSet<_> = forks
        .iter()
        .filter(|fork| fork.tag == tag::TREE)
        .map(|fork| (fork.child.tgid, fork.child.start_boot_ns))
        .collect();
    assert_eq!(children.len(), forks.len(), "untagged, or twice the same");
    let mut missed: BTreeMap<String, usize> = BTreeMap::new();
    for line in &written {
        let kind = String::from_utf8_lossy(&line[9..line.len() - 1]).into_owned();
        match seen.get(*line).map(Vec::as_slice) {
            Some([task]) => assert!(
                children.contains(&(task.tgid, task.start_boot_ns)),
                "{kind}: {task:?} was never made"
            ),
            Some(tasks) => panic!("{kind}: {tasks:?}"),
            None => *missed.entry(kind).or_default() += 1,
        }
    }
    let ledger = witness.capture.ledger();
    let on_tracepoints = ledger.iter().filter(|entry| is_tracepoint(&entry.name));
    let skips: u64 = on_tracepoints.map(|entry| entry.recursion_misses).sum();
    let _unheard = std::io::stderr().write_all(
        format!(
            "tagging: Linux {}, tier {}, {}: of {count} writes {} seen; {} processes forked; {skips} skips owned up to\n",
            std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim(),
            tier(),
            hook().as_str(),
            count - missed.values().sum::<usize>(),
            children.len(),
        )
        .as_bytes(),
    );
    assert!(missed.is_empty(), "not seen: {missed:?}");
    let exits: Vec<_> = witness.exits().iter().map(|exit| exit.task).collect();
    let ended: HashSet<_> = exits.iter().map(|t| (t.tgid, t.start_boot_ns)).collect();
    assert_eq!(ended.len(), exits.len(), "a process ends once");
    assert!(children.is_subset(&ended), "a process has no end");
    for (index, name) in [
        (counter::TAG_FAILED, "TAG_FAILED"),
        (counter::PENDING_FAILED, "PENDING_FAILED"),
        (counter::RING_DROPPED_RECORDS, "RING_DROPPED_RECORDS"),
    ] {
        assert_eq!(witness.counter(index), 0, "{name}");
    }
}
