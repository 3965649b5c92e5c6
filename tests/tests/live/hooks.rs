//! Both ways onto tracepoints: what is pinned goes on without the process that loaded it, and a tag reaches a child that loses its parent.

use countersign::bpf::{
    load::{load, resume},
    options::LoadOptions,
    pin::{Found, PinDir},
};
use countersign_common::{Transfer, direction, kind, tag};
use zerocopy::FromBytes;

use crate::harness::{hook, open, pipe, read, spawn, tier, token, witness, write};

/// Children that lose their parent.
const ORPHANS: usize = 200;

/// Takes the pins away, whatever becomes of the test.
struct Pinned(PinDir);

impl Drop for Pinned {
    fn drop(&mut self) {
        let _gone = self.0.remove();
    }
}

#[test]
fn what_is_pinned_goes_on_without_its_loader() {
    // For the lock, and to find out whether anything can be loaded here.
    let Some(witness) = witness() else { return };
    let (_, _one) = witness.into_capture();
    let dir = PinDir::named(&format!("test-hooks-{}", std::process::id())).unwrap();
    let pinned = Pinned(dir.clone());
    dir.remove().unwrap();
    dir.make().unwrap();
    let options = LoadOptions {
        pin: Some((dir.clone(), "01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned())),
        tier: tier(),
        hook: hook(),
        ..LoadOptions::default()
    };
    let mut loaded = load(&options).unwrap();
    let note = loaded.take_unsigned().unwrap();
    dir.sign(&note).unwrap();
    let token = token("pinned");
    let [read_end, write_end] = pipe();
    let (child, gate) = spawn(|| {
        write(write_end, &token);
    });
    loaded.tag_pid(child, tag::TREE).unwrap();
    drop(loaded);

    open(gate);
    assert_eq!(read(read_end, 256), token);
    // SAFETY: a child of ours.
    unsafe { libc::waitpid(child.cast_signed(), std::ptr::null_mut(), 0) };
    let Found::Ours(note) = dir.look().unwrap() else {
        panic!("it is not there");
    };
    let mut resumed = resume(dir, &note).unwrap();
    assert_eq!((resumed.tier(), resumed.hook()), (tier(), hook()));
    let mut seen = 0;
    resumed.drain(|record| {
        if let Ok((transfer, payload)) = Transfer::read_from_prefix(record) {
            let is_write = transfer.direction == direction::WRITE;
            seen += u32::from(
                transfer.header.kind == kind::CHUNK && is_write && payload == token.as_slice(),
            );
        }
    });
    assert_eq!(seen, 1);
    drop(pinned);
}

#[test]
fn a_child_whose_parent_is_gone_before_its_first_step_is_tagged() {
    let Some(mut witness) = witness() else { return };
    let token = token("orphan");
    let [read_end, write_end] = pipe();
    witness.run(tag::TREE, || {
        for _ in 0..ORPHANS {
            // SAFETY: what runs in the children makes system calls only.
            unsafe {
                let middle = libc::fork();
                if middle == 0 {
                    // The parent ends at once, and whoever takes the child is not watched.
                    if libc::fork() == 0 {
                        libc::write(write_end, token.as_ptr().cast(), token.len());
                    }
                    libc::_exit(0);
                }
                libc::waitpid(middle, std::ptr::null_mut(), 0);
            }
        }
    });
    let mut written = 0;
    while written < ORPHANS * token.len() {
        written += read(read_end, 65_536).len();
    }
    witness.until(|witness| witness.moved_by_parts(direction::WRITE, &token) >= ORPHANS);
}
