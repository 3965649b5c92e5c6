//! What only programs on kernel functions see, or what they must not see twice. In tier T these tests have nothing to show.

use std::{ffi::CString, ptr::null_mut};

use countersign::bpf::tier::Tier;
use countersign_common::{SYSCALL_UNKNOWN, counter, direction, gap, tag, transfer_flags};

use crate::functions_uring::{self as uring, Uring};
use crate::harness::{Witness, carried, pipe, read, socket_pair, tier, token, witness, write};

fn witness_of_functions() -> Option<Witness> {
    (tier() != Tier::Tracepoints).then(witness).flatten()
}

#[test]
fn every_watched_function_is_on_the_ledger_and_has_missed_nothing() {
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let text = token("ledger");
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        assert!(write(write_end, &text) > 0);
        read(read_end, 256);
    });
    assert_eq!(witness.moved(direction::READ, &text).len(), 1);
    let functions = witness.capture.functions();
    assert!(
        functions.iter().all(|function| function.attached),
        "{functions:?}"
    );
    let ledger = witness.capture.ledger();
    let sides = match tier() {
        Tier::Kprobes => ["kprobe", "kretprobe"],
        Tier::Tracepoints | Tier::Trampolines => ["fentry", "fexit"],
    };
    for function in functions {
        // Only its entry says something.
        let sides = if function.function == "schedule_tail" {
            &sides[..1]
        } else {
            &sides
        };
        for side in sides {
            let name = format!("{side}:{}", function.function);
            let line = ledger.iter().find(|line| line.name == name).unwrap();
            assert_eq!(line.recursion_misses, 0, "{line:?}");
        }
    }
    if tier() == Tier::Kprobes {
        let hits = ledger
            .iter()
            .find(|line| line.name.starts_with("kretprobe:") && line.name.ends_with("pipe_read"));
        assert!(hits.unwrap().run_count > 0, "{ledger:?}");
    }
}

#[test]
fn the_32_bit_abi_and_aio_are_captured() {
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let (old, aio) = (token("int80"), token("aio"));
    witness.run(tag::TREE, || unsafe {
        let [read_end, write_end] = pipe();
        // 32-bit pointers: the bytes must lie low.
        let low = libc::mmap(
            null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        );
        assert_ne!(low, libc::MAP_FAILED);
        low.cast::<u8>()
            .copy_from_nonoverlapping(old.as_ptr(), old.len());
        let written: i64;
        // `write` has number 4 there.
        std::arch::asm!(
            "xchg rbx, {fd}",
            "int 0x80",
            "xchg rbx, {fd}",
            fd = inout(reg) i64::from(write_end) => _,
            inout("rax") 4_i64 => written,
            in("rcx") low,
            in("rdx") old.len(),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
        if written != i64::try_from(old.len()).unwrap() {
            // This kernel has no 32-bit ABI: the bytes go the usual way, and the test shows less.
            assert!(write(write_end, &old) > 0);
        }
        assert_eq!(read(read_end, 256), old);
        let mut context = 0_u64;
        assert_eq!(libc::syscall(libc::SYS_io_setup, 1, &raw mut context), 0);
        // `struct iocb`: opcode 1 is `IOCB_CMD_PWRITE`.
        let mut block = [0_u64; 8];
        block[2] = 1 | u64::try_from(write_end).unwrap() << 32;
        block[3] = aio.as_ptr() as u64;
        block[4] = aio.len() as u64;
        let blocks = [block.as_ptr()];
        assert_eq!(
            libc::syscall(libc::SYS_io_submit, context, 1, blocks.as_ptr()),
            1
        );
        assert_eq!(read(read_end, 256), aio);
    });
    let old = witness.moved(direction::WRITE, &old);
    assert_eq!(old.len(), 1, "{:?}", witness.ops());
    assert!(
        [carried(0), carried(transfer_flags::COMPAT)].contains(&old[0].first.flags),
        "{old:?}"
    );
    let aio = witness.moved(direction::WRITE, &aio);
    assert_eq!(aio.len(), 1, "{:?}", witness.ops());
    assert_eq!(aio[0].first.flags, carried(transfer_flags::AIO));
}

#[test]
fn every_message_of_one_call_is_captured_once_and_in_order() {
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let parts = ["first", "second", "third"].map(token);
    witness.run(tag::TREE, || unsafe {
        let [left, right] = socket_pair();
        for part in &parts {
            assert!(write(left, part) > 0);
        }
        let mut buffers = parts.clone();
        let mut vectors: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = vectors
            .iter_mut()
            .map(|vector| {
                let mut message: libc::mmsghdr = std::mem::zeroed();
                message.msg_hdr.msg_iov = vector;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let got = libc::recvmmsg(right, messages.as_mut_ptr(), 3, 0, null_mut());
        assert_eq!(got, 3);
    });
    for (number, part) in parts.iter().enumerate() {
        let reads = witness.moved(direction::READ, part);
        assert_eq!(reads.len(), 1, "{:?}", witness.ops());
        assert_eq!(reads[0].first.op_seq, number as u64);
        assert_eq!(reads[0].first.flags, carried(0));
    }
    assert_eq!(witness.counter(counter::FUNCTION_MISSED), 0);
}

#[test]
fn what_sendfile_puts_into_a_socket_is_captured_once_or_declared() {
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let text = token("sendfile");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, &text).unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    witness.run(tag::TREE, || unsafe {
        let [left, right] = socket_pair();
        let file = libc::open(path.as_ptr(), libc::O_RDONLY);
        let sent = libc::sendfile(left, file, null_mut(), text.len());
        assert_eq!(sent, isize::try_from(text.len()).unwrap());
        assert_eq!(read(right, 256), text);
    });
    let sent: Vec<_> = witness
        .ops()
        .into_iter()
        .filter(|op| op.first.direction == direction::WRITE)
        .collect();
    assert_eq!(sent.len(), 1, "{:?}", witness.ops());
    // Linux < 6.5 has a function of its own for it, which is not watched.
    let len = u32::try_from(text.len()).unwrap();
    assert!(
        (sent[0].gaps.is_empty() && sent[0].bytes == text) || sent[0].gaps == [(len, gap::SPLICE)],
        "{sent:?}"
    );
    assert_eq!(witness.moved(direction::READ, &text).len(), 1);
}

#[test]
fn a_read_that_many_tasks_wait_in_is_captured_for_each() {
    const WAITING: usize = 64;
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let texts: Vec<_> = (0..WAITING).map(|n| token(&format!("wait{n}"))).collect();
    witness.run(tag::TREE, || {
        let pipes: Vec<_> = (0..WAITING).map(|_| pipe()).collect();
        let readers: Vec<_> = pipes
            .iter()
            .map(|[read_end, _]| {
                let read_end = *read_end;
                std::thread::spawn(move || read(read_end, 256))
            })
            .collect();
        // Not a proof that all of them wait; most do.
        std::thread::sleep(std::time::Duration::from_millis(500));
        for ([_, write_end], text) in pipes.iter().zip(&texts) {
            assert!(write(*write_end, text) > 0);
        }
        for (reader, text) in readers.into_iter().zip(&texts) {
            assert_eq!(reader.join().unwrap(), *text);
        }
    });
    for text in &texts {
        let reads = witness.moved(direction::READ, text);
        assert_eq!(reads.len(), 1);
        assert_eq!(reads[0].first.flags, carried(0));
    }
    assert_eq!(witness.counter(counter::FUNCTION_MISSED), 0);
    assert_eq!(witness.counter(counter::FUNCTION_UNPAIRED), 0);
}

#[test]
fn every_child_of_a_storm_is_tagged_before_it_writes() {
    const FORKS: usize = 50;
    const THREADS: usize = 4;
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let texts: Vec<_> = (0..FORKS * THREADS)
        .map(|n| token(&format!("storm{n}")))
        .collect();
    witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        std::thread::scope(|scope| {
            for part in texts.chunks(FORKS) {
                scope.spawn(move || {
                    for text in part {
                        // SAFETY: the child makes two system calls.
                        unsafe {
                            let child = libc::fork();
                            if child == 0 {
                                write(write_end, text);
                                libc::_exit(0);
                            }
                            assert!(child > 0);
                            libc::waitpid(child, null_mut(), 0);
                        }
                    }
                });
            }
        });
        drop(read(read_end, 65536));
    });
    for text in &texts {
        assert_eq!(witness.moved(direction::WRITE, text).len(), 1);
    }
    assert_eq!(witness.forks().len(), texts.len());
}

#[test]
fn what_io_uring_moves_is_captured_with_any_kind_of_buffer_and_by_workers() {
    let Some(mut witness) = witness_of_functions() else {
        return;
    };
    let names = ["plain", "fixed", "worker"];
    let texts = names.map(token);
    witness.run(tag::TREE, || {
        let Some(ring) = Uring::new() else {
            panic!("io_uring is not permitted here");
        };
        let mut buffer = vec![0_u8; 3 * 4096];
        ring.register(&mut buffer);
        let ways = [
            (uring::WRITE, uring::READ, 0),
            (uring::WRITE_FIXED, uring::READ_FIXED, 0),
            (uring::WRITE, uring::READ, uring::BY_WORKER),
        ];
        for (text, (write_code, read_code, flags)) in texts.iter().zip(ways) {
            let [read_end, write_end] = pipe();
            // Across the end of a page.
            let place = &mut buffer[4090..][..text.len()];
            place.copy_from_slice(text);
            let len = i32::try_from(text.len()).unwrap();
            let address = place.as_mut_ptr();
            assert_eq!(
                ring.run(write_code, flags, write_end, address, text.len()),
                len
            );
            place.fill(0);
            let address = place.as_mut_ptr();
            assert_eq!(
                ring.run(read_code, flags, read_end, address, text.len()),
                len
            );
            assert_eq!(place, text.as_slice());
        }
    });
    for text in &texts {
        for side in [direction::WRITE, direction::READ] {
            let ops = witness.moved(side, text);
            assert_eq!(ops.len(), 1, "{:?}", witness.ops());
            assert_eq!(ops[0].first.flags, carried(transfer_flags::IO_URING));
            assert_eq!(ops[0].first.syscall, SYSCALL_UNKNOWN);
        }
    }
}
