//! Tags follow every way to make a process; records say what happened.

use std::{ffi::CString, os::unix::fs::MetadataExt, process::Command, ptr::null};

use countersign::bpf::options::LoadOptions;
use countersign_common::{channel_kind, counter, direction, tag, transfer_flags};

use crate::harness::{carried, pipe, read, token, witness, witness_with, write};

fn wait(pid: i32) {
    // SAFETY: a child of the caller.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}

#[test]
fn children_threads_and_orphans_are_captured() {
    let Some(mut witness) = witness() else { return };
    let tokens = [token("fork"), token("thread"), token("orphan")];
    let root = witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        // SAFETY: each child writes and leaves.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                write(write_end, &tokens[0]);
                libc::_exit(3);
            }
            wait(child);
            let bytes = tokens[1].clone();
            std::thread::spawn(move || write(write_end, &bytes))
                .join()
                .unwrap();
            let child = libc::fork();
            if child == 0 {
                libc::setsid();
                if libc::fork() == 0 {
                    // The middle process is gone once this one has another parent.
                    while libc::getppid() == libc::getpgrp() {
                        libc::sched_yield();
                    }
                    write(write_end, &tokens[2]);
                    libc::_exit(0);
                }
                libc::_exit(0);
            }
            wait(child);
        }
        let mut got = Vec::new();
        while got.len() < tokens.concat().len() {
            got.extend(read(read_end, 4096));
        }
    });
    witness.until(|witness| witness.exits().len() == 4);
    for token in &tokens {
        assert_eq!(
            witness.moved(direction::WRITE, token).len(),
            1,
            "{:?}",
            witness.ops()
        );
    }
    let forks = witness.forks();
    assert_eq!(forks.len(), 3, "threads are not reported: {forks:?}");
    assert_eq!(forks[0].parent.tgid, root);
    assert_eq!(forks[0].tag, tag::TREE);
    assert_eq!(forks[2].parent.tgid, forks[1].child.tgid);
    let exit = witness
        .exits()
        .into_iter()
        .find(|exit| exit.task.tgid == forks[0].child.tgid)
        .unwrap();
    assert_eq!(
        (exit.exit_code, exit.task.start_boot_ns),
        (3 << 8, forks[0].child.start_boot_ns)
    );
    let thread = &witness.moved(direction::WRITE, &tokens[1])[0].first.task;
    assert_eq!(thread.tgid, root);
    assert_ne!(thread.tid, root);
    assert_eq!(witness.counter(counter::TAG_FAILED), 0);
}

#[test]
fn an_exec_is_reported_with_its_name_and_keeps_the_tag() {
    let Some(mut witness) = witness() else { return };
    let text = String::from_utf8(token("exec")).unwrap();
    let root = witness.run(tag::TREE, || {
        // vfork and posix_spawn inside.
        let output = Command::new("/bin/echo").arg(&text).output().unwrap();
        assert!(output.status.success());
    });
    let execs = witness.execs();
    assert_eq!(execs.len(), 1);
    let exe = std::fs::metadata(std::fs::canonicalize("/bin/echo").unwrap()).unwrap();
    assert_eq!((execs[0].exe_inode, execs[0].tag), (exe.ino(), tag::TREE));
    assert_ne!(execs[0].task.tgid, root);
    let line = format!("{text}\n").into_bytes();
    assert_eq!(witness.moved(direction::WRITE, &line).len(), 1);
    assert_eq!(witness.moved(direction::READ, &line).len(), 1);
}

#[test]
fn a_thread_that_is_not_the_leader_keeps_the_tag_when_it_executes() {
    let Some(mut witness) = witness() else { return };
    let text = String::from_utf8(token("thread-exec")).unwrap();
    let root = witness.run(tag::TREE, || {
        let [read_end, write_end] = pipe();
        // SAFETY: the child's second thread replaces the program; the descriptor for its output is the pipe's.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::dup2(write_end, 1);
                let arguments = ["echo", &text].map(|text| CString::new(text).unwrap());
                std::thread::spawn(move || {
                    let [name, text] = &arguments;
                    libc::execl(
                        c"/bin/echo".as_ptr(),
                        name.as_ptr(),
                        text.as_ptr(),
                        null::<i8>(),
                    );
                })
                .join()
                .unwrap();
                libc::_exit(1);
            }
            wait(child);
        }
        assert!(read(read_end, 256).starts_with(text.as_bytes()));
    });
    let line = format!("{text}\n").into_bytes();
    let writes = witness.moved(direction::WRITE, &line);
    assert_eq!(writes.len(), 1, "{:?}", witness.ops());
    let fork = witness.forks()[0];
    assert_eq!(
        (fork.parent.tgid, fork.child.tgid),
        (root, writes[0].first.task.tgid)
    );
    assert_eq!(
        writes[0].first.task, fork.child,
        "pid and start time stay those of the process"
    );
    assert_eq!(witness.execs()[0].task, fork.child);
    assert_eq!(
        witness
            .exits()
            .iter()
            .filter(|exit| exit.task.tgid == fork.child.tgid)
            .count(),
        1
    );
}

/// Whether a thread of a process waits in `read` of a descriptor (`proc_pid_syscall(5)`).
fn is_in_read_of(pid: u32, fd: i32) -> bool {
    let begin = format!("{} {fd:#x} ", libc::SYS_read);
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().any(|task| {
        std::fs::read_to_string(task.path().join("syscall"))
            .is_ok_and(|call| call.starts_with(&begin))
    })
}

#[test]
fn one_tag_marks_every_thread_that_a_process_has_already() {
    let Some(mut witness) = witness() else { return };
    let token = token("existing-thread");
    let [ready_read, ready_write] = pipe();
    let [go_read, go_write] = pipe();
    let (child, gate) = crate::harness::spawn(|| {
        let [read_end, write_end] = pipe();
        let thread = std::thread::spawn({
            let token = token.clone();
            move || {
                write(ready_write, b"r");
                read(go_read, 1);
                write(write_end, &token);
            }
        });
        thread.join().unwrap();
        assert_eq!(read(read_end, 256), token);
    });
    crate::harness::open(gate);
    read(ready_read, 1);
    while !is_in_read_of(child, go_read) {
        std::thread::yield_now();
    }
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    assert_eq!(witness.capture.tag_of(child).unwrap(), Some(tag::TREE));
    write(go_write, b"g");
    witness.reap(child);
    let writes = witness.moved(direction::WRITE, &token);
    assert_eq!(writes.len(), 1, "{:?}", witness.ops());
    assert_ne!(writes[0].first.task.tid, child);
    // The thread was in this read when the process was tagged.
    let go = witness.moved(direction::READ, b"g");
    assert_eq!(go.len(), 1);
    assert_eq!(go[0].first.flags, transfer_flags::NO_ENTER);
}

#[test]
fn the_proxy_mark_follows_the_executable_and_its_file_writes_are_seen() {
    let cat = std::fs::metadata(std::fs::canonicalize("/bin/cat").unwrap()).unwrap();
    let dev = (libc::major(cat.dev()) << 20) | libc::minor(cat.dev());
    let options = LoadOptions {
        ring_bytes: 16 << 20,
        proxy_exes: vec![(dev, cat.ino())],
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let text = String::from_utf8(token("log")).unwrap();
    witness.run(tag::TREE, || {
        let script = format!(
            "echo '{text}' | cat >'{0}'; echo '{text}' >'{0}.other'",
            log.display()
        );
        assert!(
            Command::new("/bin/sh")
                .args(["-c", &script])
                .status()
                .unwrap()
                .success()
        );
    });
    let line = format!("{text}\n").into_bytes();
    let file = std::fs::metadata(&log).unwrap();
    let writes: Vec<_> = witness
        .moved(direction::WRITE, &line)
        .into_iter()
        .filter(|op| op.first.channel.kind == channel_kind::FILE)
        .collect();
    assert_eq!(
        writes.len(),
        1,
        "the shell's own write is not the proxy's: {writes:?}"
    );
    assert_eq!(writes[0].first.channel.inode, file.ino());
    assert_eq!(writes[0].first.flags, transfer_flags::BY_PROXY);
    let read = witness.moved(direction::READ, &line);
    assert_eq!(read[0].first.flags, carried(transfer_flags::BY_PROXY));
    let marked: Vec<_> = witness.execs().iter().map(|exec| exec.tag).collect();
    assert_eq!(marked, [tag::TREE, tag::TREE | tag::PROXY]);
}

#[test]
fn a_proxy_that_opens_a_file_for_writing_is_reported() {
    let Some(mut witness) = witness() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "").unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    let root = witness.run(tag::TREE | tag::PROXY, || {
        std::fs::read(&path).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap();
    });
    let opens = witness.opens();
    assert_eq!(opens.len(), 1, "{opens:?}");
    assert_eq!((opens[0].inode, opens[0].task.tgid), (inode, root));
    assert_ne!(opens[0].flags & libc::O_APPEND.cast_unsigned(), 0);
}

#[test]
fn a_process_whose_leader_has_left_is_still_tagged() {
    let Some(mut witness) = witness() else { return };
    let token = token("leaderless");
    let [out_read, out_write] = pipe();
    let (child, gate) = crate::harness::spawn(|| {
        let token = token.clone();
        let leader = unsafe { libc::getpid() };
        std::thread::spawn(move || {
            // The leader is a zombie once its state says so.
            let stat = format!("/proc/self/task/{leader}/stat");
            while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
                std::thread::yield_now();
            }
            write(out_write, &token);
            let child = unsafe { libc::fork() };
            if child == 0 {
                write(out_write, &token);
                unsafe { libc::_exit(0) };
            }
            wait(child);
            unsafe { libc::_exit(0) };
        });
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    crate::harness::open(gate);
    witness.reap(child);
    let writes = witness.moved(direction::WRITE, &token);
    assert_eq!(writes.len(), 2, "{:?}", witness.ops());
    assert_eq!(writes[0].first.task.tgid, child);
    assert_eq!(
        witness
            .exits()
            .iter()
            .filter(|exit| exit.task.tgid == child)
            .count(),
        1
    );
    read(out_read, 256);
}

#[test]
fn a_program_executed_through_the_32_bit_abi_by_a_thread_keeps_the_tag() {
    let Some(mut witness) = witness() else { return };
    let [read_end, write_end] = pipe();
    witness.run(tag::TREE, || {
        std::thread::spawn(move || unsafe {
            libc::dup2(write_end, 1);
            // All pointers of a 32-bit call are 32 bits wide.
            let low = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            );
            let base = u32::try_from(low.addr()).unwrap();
            low.cast::<[u8; 10]>().write(*b"/bin/echo\0");
            low.byte_add(16).cast::<[u8; 6]>().write(*b"int80\0");
            low.byte_add(32)
                .cast::<[u32; 3]>()
                .write([base, base + 16, 0]);
            // `execve` is 11 there; `rbx` cannot be named as an operand.
            std::arch::asm!(
                "xchg {path}, rbx",
                "int 0x80",
                "xchg {path}, rbx",
                path = inout(reg) u64::from(base) => _,
                inout("rax") 11_u64 => _,
                in("rcx") u64::from(base + 32),
                in("rdx") 0_u64,
            );
        })
        .join()
        .unwrap();
        panic!("the kernel has no 32-bit abi");
    });
    assert_eq!(read(read_end, 64), b"int80\n");
    assert_eq!(
        witness.moved(direction::WRITE, b"int80\n").len(),
        1,
        "{:?}",
        witness.ops()
    );
    assert_eq!(witness.counter(counter::COMPAT_SYSCALLS), 0);
}
