//! Children of the tree that have no tag: they are found, tagged, and said to have been missed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use countersign::tree::{Missed, Tree, Untagged};
use countersign_common::{Fork, direction, kind, tag};
use zerocopy::{FromZeros, IntoBytes};

use crate::harness::{open, patiently, pipe, read, spawn, token, witness, write};

/// Longest wait for a comparison with `/proc`; there is one a second.
const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn a_child_that_lost_its_tag_is_found_in_proc_and_watched_from_then_on() {
    let Some(mut witness) = witness() else { return };
    let tokens = [token("tagged"), token("unseen"), token("mended")];
    // A pipe for each, so that none is watched for what another carried.
    let pipes = [pipe(), pipe(), pipe()];
    let [go, ask] = pipe();
    let (root, gate) = spawn(|| {
        // SAFETY: the child writes and leaves; the parent waits for it.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                for (token, [_, into]) in tokens.iter().zip(pipes) {
                    read(go, 1);
                    write(into, token);
                }
                libc::_exit(0);
            }
            libc::waitpid(child, std::ptr::null_mut(), 0);
        }
    });
    witness.capture.tag_pid(root, tag::TREE).unwrap();
    open(gate);
    witness.until(|witness| witness.forks().len() == 1);
    let child = witness.forks()[0].child.tgid;
    let speak = |which: usize| {
        write(ask, b"g");
        assert_eq!(read(pipes[which][0], 256), tokens[which]);
    };
    speak(0);
    let tagger = witness.capture.tagger().clone();
    tagger.tag_pid(child, 0).unwrap();
    speak(1);

    let mut tree = Tree::new(tagger.clone(), &[], Arc::new(Untagged::default()));
    assert_eq!(tree.members().unwrap(), [root]);
    let deadline = Instant::now() + patiently(DEADLINE);
    let missed: Vec<Missed> = loop {
        let missed = tree.mend();
        if !missed.is_empty() {
            break missed;
        }
        assert!(Instant::now() < deadline, "the child was never found");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert_eq!((missed[0].pid, missed[0].how), (child, "proc"));
    let scan = missed[0].scan.as_ref().unwrap();
    assert_eq!(scan["pid"], child);
    assert_eq!(scan["tag"], tag::TREE);
    assert_eq!(tree.reconciled(), 1);
    assert!(tree.is_member(child));

    speak(2);
    witness.reap(root);
    let seen = tokens
        .each_ref()
        .map(|token| witness.moved(direction::WRITE, token).len());
    assert_eq!(seen, [1, 0, 1], "{:?}", witness.ops());
    assert!(tree.mend().is_empty());
}

#[test]
fn a_child_that_the_kernel_could_not_tag_is_tagged_as_soon_as_it_says_so() {
    let Some(mut witness) = witness() else { return };
    let token = token("late");
    let [out, into] = pipe();
    let (child, gate) = spawn(|| {
        write(into, &token);
    });
    let untagged = Arc::new(Untagged::default());
    let tagger = witness.capture.tagger().clone();
    let mut tree = Tree::new(tagger, &[], Arc::clone(&untagged));
    let mut fork = Fork::new_zeroed();
    fork.header.kind = kind::FORK;
    fork.child.tgid = child;
    untagged.look(fork.as_bytes());
    // One that was tagged at birth is none of them, nor is what is no fork.
    fork.tag = tag::TREE;
    fork.child.tgid = std::process::id();
    untagged.look(fork.as_bytes());
    untagged.look(b"short");
    let missed = tree.mend();
    assert_eq!(missed.len(), 1, "{missed:?}");
    assert_eq!((missed[0].pid, missed[0].how), (child, "fork_record"));
    open(gate);
    witness.reap(child);
    assert_eq!(read(out, 256), token);
    assert_eq!(witness.moved(direction::WRITE, &token).len(), 1);
}

#[test]
fn who_has_ended_and_was_not_waited_for_is_no_member_whatever_its_tag() {
    let Some(witness) = witness() else { return };
    let (child, gate) = spawn(|| {});
    let (capture, _one) = witness.into_capture();
    capture.tag_pid(child, tag::TREE).unwrap();
    let untagged = Arc::new(Untagged::default());
    let tree = Tree::new(capture.tagger().clone(), &[], untagged);
    assert!(tree.members().unwrap().contains(&child));
    open(gate);
    let deadline = Instant::now() + patiently(DEADLINE);
    while !countersign::bpf::scan::is_zombie(child) {
        assert!(Instant::now() < deadline, "the child did not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    // The kernel keeps its tag with it, so only what `/proc` says of it tells.
    assert!(!tree.members().unwrap().contains(&child));
    // SAFETY: a child of ours, whose status is not asked for.
    unsafe { libc::waitpid(child.cast_signed(), std::ptr::null_mut(), 0) };
}
