//! Attempts to get round the witness, each made for real: the record names who, whom, and what came of it.

use std::{
    ffi::CString,
    fs,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
    ptr::{null, null_mut},
};

use countersign::{
    bpf::options::{LoadOptions, WatchedId},
    device::kernel_dev,
};
use countersign_common::{
    counter,
    evasion::{Evasion, file_class, flags, loader, what},
    tag,
};

use crate::harness::{Witness, close, open, pipe, read, spawn, witness, witness_with, write};

/// Start of a process as the kernel has it, cut to a clock tick, nanoseconds.
fn start_of(pid: u32) -> u64 {
    let scan = countersign::bpf::scan::process(pid).unwrap().unwrap();
    scan.start_boot_ns
}

fn is_process(task: &countersign_common::Task, pid: u32, start: u64) -> bool {
    task.tgid == pid && task.start_boot_ns.wrapping_sub(start) < 10_000_000
}

/// The records of one kind.
fn of(witness: &Witness, kind: u16) -> Vec<Evasion> {
    let mut all = witness.evasions();
    all.retain(|evasion| evasion.what == kind);
    all
}

/// Runs `body` in a tagged child against another process that only waits; the child's pid, and the other's with its start.
fn against(witness: &mut Witness, body: impl FnOnce(i32)) -> (u32, u32, u64) {
    let (victim, gate) = spawn(|| {});
    let start = start_of(victim);
    let actor = witness.run(tag::TREE, || body(victim.cast_signed()));
    open(gate);
    witness.reap(victim);
    (actor, victim, start)
}

#[test]
fn attaching_to_another_process_is_reported_with_the_incarnation_that_it_was() {
    let Some(mut witness) = witness() else { return };
    let (actor, victim, start) = against(&mut witness, |victim| unsafe {
        assert_eq!(
            libc::ptrace(libc::PTRACE_ATTACH, victim, 0, 0),
            0,
            "{}",
            std::io::Error::last_os_error()
        );
        assert_eq!(libc::waitpid(victim, null_mut(), 0), victim);
        // What an attached process is asked for is no attempt of its own.
        assert_ne!(libc::ptrace(libc::PTRACE_PEEKUSER, victim, 0, 0), -1);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, victim, 0, 0), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, 0x3f_ffff, 0, 0), -1);
    });
    let found = of(&witness, what::PTRACE);
    assert_eq!(found.len(), 2, "{found:?}");
    assert_eq!((found[0].task.tgid, found[0].number), (actor, 16));
    assert!(is_process(&found[0].target, victim, start), "{found:?}");
    assert_eq!((found[0].returned, found[0].nth, found[0].flags), (0, 1, 0));
    assert_eq!(
        (found[1].returned, found[1].flags, found[1].argument),
        (-i64::from(libc::ESRCH), flags::TARGET_UNKNOWN, 0x3f_ffff)
    );
}

#[test]
fn asking_to_be_traced_and_executing_traced_are_reported() {
    let Some(mut witness) = witness() else { return };
    let parent = witness.run(tag::TREE, || unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::execl(c"/bin/true".as_ptr(), c"true".as_ptr(), null::<i8>());
            libc::_exit(1);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert!(libc::WIFSTOPPED(status));
        assert_eq!(libc::ptrace(libc::PTRACE_CONT, child, 0, 0), 0);
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        assert_eq!(status, 0);
    });
    let asked = of(&witness, what::PTRACE);
    assert_eq!((asked.len(), asked[0].number), (1, 0));
    let traced = of(&witness, what::TRACED_EXEC);
    assert_eq!(traced.len(), 1);
    assert_eq!(traced[0].task.tgid, asked[0].task.tgid);
    assert_eq!(traced[0].target.tgid, parent);
}

#[test]
fn reading_and_writing_anothers_memory_is_reported_and_ones_own_is_not() {
    let Some(mut witness) = witness() else { return };
    let word = Box::new(7_u64);
    let place = (&raw const *word).cast_mut();
    let (_, victim, start) = against(&mut witness, |victim| unsafe {
        let mut mine = 0_u64;
        let local = libc::iovec {
            iov_base: (&raw mut mine).cast(),
            iov_len: 8,
        };
        let remote = libc::iovec {
            iov_base: place.cast(),
            iov_len: 8,
        };
        let me = libc::getpid();
        assert_eq!(
            libc::process_vm_readv(me, &raw const local, 1, &raw const remote, 1, 0),
            8
        );
        assert_eq!(
            libc::process_vm_readv(victim, &raw const local, 1, &raw const remote, 1, 0),
            8
        );
        assert_eq!(mine, 7);
        assert_eq!(
            libc::process_vm_writev(victim, &raw const local, 1, &raw const remote, 1, 0),
            8
        );
    });
    for kind in [what::MEMORY_READ, what::MEMORY_WRITTEN] {
        let found = of(&witness, kind);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(is_process(&found[0].target, victim, start));
        assert_eq!(found[0].returned, 8);
    }
}

#[test]
fn opening_anothers_memory_and_environment_is_reported_by_whatever_path() {
    let Some(mut witness) = witness() else { return };
    let (_, victim, start) = against(&mut witness, |victim| {
        let open = |path: &str, flags| unsafe {
            let path = CString::new(path).unwrap();
            let fd = libc::open(path.as_ptr(), flags);
            assert!(fd >= 0, "{path:?}");
            fd
        };
        close(open(&format!("/proc/{victim}/mem"), libc::O_RDWR));
        close(open(
            &format!("/proc/{victim}/task/{victim}/mem"),
            libc::O_RDONLY,
        ));
        let folder = open(
            &format!("/proc/{victim}"),
            libc::O_RDONLY | libc::O_DIRECTORY,
        );
        let fd = unsafe { libc::openat(folder, c"environ".as_ptr(), libc::O_RDONLY) };
        assert!(fd >= 0);
        close(open("/proc/self/mem", libc::O_RDWR));
        close(open(&format!("/proc/{victim}/status"), libc::O_RDONLY));
    });
    let opened = of(&witness, what::MEMORY_OPENED);
    let modes: Vec<_> = opened.iter().map(|evasion| evasion.number).collect();
    assert_eq!(modes, [3, 1]);
    let environments = of(&witness, what::ENVIRONMENT_OPENED);
    assert_eq!(environments.len(), 1);
    for evasion in opened.iter().chain(&environments) {
        assert!(is_process(&evasion.target, victim, start), "{evasion:?}");
    }
    assert_eq!(witness.evasions().len(), 3, "{:?}", witness.evasions());
}

#[test]
fn signals_by_every_call_are_reported_with_their_target_even_when_it_is_gone_afterwards() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || unsafe {
        // Nobody waits for them: the kernel removes them at once.
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        for way in 0..4 {
            let victim = libc::fork();
            if victim == 0 {
                libc::pause();
            }
            let pidfd = libc::syscall(libc::SYS_pidfd_open, victim, 0);
            assert!(pidfd >= 0);
            let sent = match way {
                0 => i64::from(libc::kill(victim, libc::SIGKILL)),
                1 => libc::syscall(libc::SYS_tgkill, victim, victim, libc::SIGKILL),
                2 => libc::syscall(libc::SYS_tkill, victim, libc::SIGKILL),
                _ => libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    pidfd,
                    libc::SIGKILL,
                    null::<libc::siginfo_t>(),
                    0,
                ),
            };
            assert_eq!(sent, 0);
            while libc::kill(victim, 0) == 0 {
                libc::sched_yield();
            }
        }
        // To itself, and a mere question.
        libc::kill(libc::getpid(), libc::SIGCHLD);
        libc::kill(libc::getppid(), 0);
        assert_eq!(libc::kill(-0x3f_ffff, libc::SIGSTOP), -1);
    });
    let forks = witness.forks();
    let found = of(&witness, what::SIGNAL);
    assert_eq!(found.len(), 5, "{found:?}");
    for (evasion, fork) in found.iter().zip(&forks) {
        assert_eq!(
            (evasion.target.tgid, evasion.target.start_boot_ns),
            (fork.child.tgid, fork.child.start_boot_ns)
        );
        assert_eq!((evasion.number, evasion.returned), (9, 0));
    }
    assert_eq!(
        (
            found[4].number,
            found[4].argument.cast_signed(),
            found[4].flags
        ),
        (19, -0x3f_ffff, flags::TARGET_UNKNOWN)
    );
}

#[test]
fn the_target_of_a_process_in_a_namespace_of_its_own_is_found_by_its_number_there() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWPID), 0);
        let init = libc::fork();
        if init == 0 {
            let victim = libc::fork();
            if victim == 0 {
                libc::pause();
            }
            assert_eq!(victim, 2);
            assert_eq!(libc::kill(2, libc::SIGKILL), 0);
            libc::waitpid(2, null_mut(), 0);
            libc::_exit(0);
        }
        libc::waitpid(init, null_mut(), 0);
    });
    let (forks, found) = (witness.forks(), of(&witness, what::SIGNAL));
    assert_eq!((forks.len(), found.len()), (2, 1));
    assert_ne!(forks[1].child.tgid, 2);
    assert_eq!(found[0].target.tgid, forks[1].child.tgid);
    assert_eq!(found[0].target.start_boot_ns, forks[1].child.start_boot_ns);
}

#[test]
fn what_puts_code_into_a_proxy_at_its_start_is_reported_and_other_variables_are_not() {
    let exe = fs::canonicalize("/bin/true").unwrap();
    let meta = fs::metadata(&exe).unwrap();
    let options = LoadOptions {
        ring_bytes: 16 << 20,
        proxy_exes: vec![(kernel_dev(meta.dev()), meta.ino())],
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let filler = "x".repeat(63 - "LONG=".len());
    witness.run(tag::TREE, || {
        let run = |program: &str, name: &str, value: &str| {
            let mut command = Command::new(program);
            command
                .env_clear()
                .env("LONG", &filler)
                .env("A", "x".repeat(5000));
            command.env(name, value).status().unwrap();
        };
        run("/bin/true", "LD_PRELOAD", "");
        run("/bin/true", "XLD_PRELOAD", "/nowhere.so");
        run("/bin/true", "B", "LD_PRELOAD=/nowhere.so");
        run("/bin/echo", "LD_PRELOAD", "/nowhere.so");
        run("/bin/true", "LD_PRELOAD", "/nowhere.so");
        run("/bin/true", "LD_AUDIT", "/nowhere.so");
        run("/bin/true", "LD_LIBRARY_PATH", "/nowhere");
        run("/bin/true", "NODE_OPTIONS", "--require x");
        run("/bin/true", "PYTHONPATH", "/nowhere");
        let wide = "y".repeat(100_000);
        let mut command = Command::new("/bin/true");
        command
            .env_clear()
            .envs((0..3).map(|n| (format!("W{n}"), wide.clone())));
        command.status().unwrap();
    });
    let found: Vec<_> = of(&witness, what::LOADER_ENVIRONMENT)
        .iter()
        .map(|evasion| evasion.number)
        .collect();
    assert_eq!(
        found,
        [
            loader::PRELOAD,
            loader::AUDIT,
            loader::LIBRARY_PATH,
            loader::NODE_OPTIONS,
            loader::PYTHON,
            loader::UNREAD
        ]
    );
}

#[test]
fn memory_that_is_shared_through_a_file_a_memfd_or_a_segment_is_reported_by_its_object() {
    let Some(mut witness) = witness() else { return };
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) };
    assert!(segment >= 0);
    let [told, tell] = pipe();
    witness.run(tag::TREE, || unsafe {
        let memory = libc::memfd_create(c"shared".as_ptr(), 0);
        assert_eq!(libc::ftruncate(memory, 4096), 0);
        let mut stat = std::mem::zeroed::<libc::stat>();
        assert_eq!(libc::fstat(memory, &raw mut stat), 0);
        write(tell, &stat.st_ino.to_le_bytes());
        let map = |fd, protection, flags| {
            let place = libc::mmap(null_mut(), 4096, protection, flags, fd, 0);
            assert_ne!(place, libc::MAP_FAILED);
        };
        let all = libc::PROT_READ | libc::PROT_WRITE;
        map(memory, all, libc::MAP_PRIVATE);
        map(-1, all, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // It can be made writable later.
        map(memory, libc::PROT_READ, libc::MAP_SHARED);
        let exe = libc::open(c"/bin/true".as_ptr(), libc::O_RDONLY);
        map(exe, libc::PROT_READ, libc::MAP_SHARED);
        assert_ne!(
            libc::shmat(segment, null(), 0).expose_provenance(),
            usize::MAX
        );
    });
    unsafe { libc::shmctl(segment, libc::IPC_RMID, null_mut()) };
    let inode = u64::from_le_bytes(read(told, 8).try_into().unwrap());
    let mapped = of(&witness, what::SHARED_MAPPING);
    assert_eq!(mapped.len(), 2, "{mapped:?}");
    assert_eq!((mapped[0].inode, mapped[0].number), (inode, 2));
    assert_eq!(mapped[1].number, 1);
    let attached = of(&witness, what::SEGMENT_ATTACHED);
    assert_eq!(attached.len(), 1);
    assert_eq!(
        (attached[0].inode, attached[0].number),
        (u64::from(segment.cast_unsigned()), 2)
    );
}

#[test]
fn a_descriptor_taken_out_of_another_process_names_that_process() {
    let Some(mut witness) = witness() else { return };
    let [near, _far] = pipe();
    let (_, victim, start) = against(&mut witness, |victim| unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, victim, 0);
        let taken = libc::syscall(libc::SYS_pidfd_getfd, pidfd, near, 0);
        assert!(taken >= 0, "{}", std::io::Error::last_os_error());
    });
    let found = of(&witness, what::DESCRIPTOR_TAKEN);
    assert_eq!(found.len(), 1);
    assert!(is_process(&found[0].target, victim, start));
    let link = fs::read_link(format!("/proc/self/fd/{near}")).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("pipe:[{}]", found[0].inode));
}

/// A capture whose proxy is `/bin/sh`'s stand-in: a copy of `dd`.
fn with_log(body: impl FnOnce(&std::path::Path)) -> Option<(Witness, u64)> {
    let folder = tempfile::tempdir().unwrap();
    let exe = folder.path().join("proxy");
    fs::copy("/bin/dd", &exe).unwrap();
    let meta = fs::metadata(&exe).unwrap();
    let options = LoadOptions {
        ring_bytes: 16 << 20,
        proxy_exes: vec![(kernel_dev(meta.dev()), meta.ino())],
        ..LoadOptions::default()
    };
    let mut witness = witness_with(&options)?;
    let log = folder.path().join("log");
    fs::write(&log, b"").unwrap();
    let inode = fs::metadata(&log).unwrap().ino();
    witness.run(tag::TREE, || {
        let status = Command::new(&exe)
            .args(["if=/etc/passwd", "conv=notrunc", "status=none"])
            .arg(format!("of={}", log.display()))
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        body(&log);
    });
    Some((witness, inode))
}

#[test]
fn opening_a_proxys_log_for_writing_is_reported_and_reading_it_is_not() {
    let Some((witness, inode)) = with_log(|log| {
        drop(fs::File::open(log).unwrap());
        drop(fs::OpenOptions::new().append(true).open(log).unwrap());
        let link = log.with_file_name("other");
        fs::hard_link(log, &link).unwrap();
        drop(fs::OpenOptions::new().write(true).open(&link).unwrap());
    }) else {
        return;
    };
    let found = of(&witness, what::FILE_OPENED);
    assert_eq!(found.len(), 2, "{found:?}");
    for evasion in &found {
        assert_eq!(evasion.inode, inode);
        assert_eq!(evasion.number, u64::from(file_class::WRITTEN_BY_PROXY));
        assert_eq!(evasion.argument & 2, 2);
    }
}

#[test]
fn cutting_renaming_and_removing_a_proxys_log_is_told_from_what_became_of_it() {
    let Some((witness, inode)) = with_log(|log| {
        let folder = log.parent().unwrap();
        fs::write(folder.join("another"), b"not the log").unwrap();
        fs::remove_file(folder.join("another")).unwrap();
        let path = CString::new(log.as_os_str().as_encoded_bytes()).unwrap();
        unsafe { assert_eq!(libc::truncate(path.as_ptr(), 1), 0) };
        let moved = folder.join("moved");
        fs::rename(log, &moved).unwrap();
        fs::remove_file(&moved).unwrap();
    }) else {
        return;
    };
    let about: Vec<_> = witness
        .evasions()
        .iter()
        .filter(|evasion| evasion.inode == inode)
        .map(|evasion| evasion.what)
        .collect();
    assert_eq!(
        about,
        [what::FILE_CUT, what::FILE_RENAMED, what::FILE_REMOVED]
    );
}

#[test]
fn opening_a_key_or_a_file_below_countersigns_folder_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let own = folder.path().join("evidence");
    fs::write(&key, b"secret").unwrap();
    fs::create_dir_all(own.join("spool")).unwrap();
    fs::write(own.join("spool/segment"), b"").unwrap();
    let watched = |path: &std::path::Path, class| {
        let meta = fs::metadata(path).unwrap();
        WatchedId {
            dev: kernel_dev(meta.dev()),
            inode: meta.ino(),
            class,
        }
    };
    let options = LoadOptions {
        ring_bytes: 16 << 20,
        watched_files: vec![
            watched(&key, file_class::KEY),
            watched(&own, file_class::OWN),
        ],
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    witness.run(tag::TREE, || {
        fs::read(&key).unwrap();
        fs::read(own.join("spool/segment")).unwrap();
        fs::write(folder.path().join("other"), b"").unwrap();
    });
    let found: Vec<_> = of(&witness, what::FILE_OPENED)
        .iter()
        .map(|evasion| (evasion.number, evasion.inode))
        .collect();
    let inode = |path: &std::path::Path| fs::metadata(path).unwrap().ino();
    assert_eq!(
        found,
        [
            (u64::from(file_class::KEY), inode(&key)),
            (
                u64::from(file_class::OWN),
                inode(&own.join("spool/segment"))
            )
        ]
    );
}

#[test]
fn rights_that_a_process_gains_are_reported_and_those_that_it_had_are_not() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || unsafe {
        // As root it has all of them: nothing is gained.
        assert_eq!(libc::setuid(0), 0);
        assert_eq!(libc::setresuid(1000, 1000, 0), 0);
        assert_eq!(libc::setresuid(0, 0, 0), 0);
    });
    let gained = of(&witness, what::ROOT_GAINED);
    assert_eq!(gained.len(), 1, "{gained:?}");
    assert_eq!((gained[0].number, gained[0].euid), (1000, 0));
    let capabilities = of(&witness, what::CAPABILITIES_GAINED);
    assert_eq!(capabilities.len(), 1);
    assert_ne!(capabilities[0].number & 1 << 21, 0);
}

#[test]
fn a_program_that_gives_its_caller_another_user_is_reported() {
    let Some(mut witness) = witness() else { return };
    let folder = tempfile::tempdir().unwrap();
    let exe = folder.path().join("id");
    fs::copy("/usr/bin/id", &exe).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4755);
    fs::set_permissions(&exe, mode).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), mode).unwrap();
    witness.run(tag::TREE, || unsafe {
        assert_eq!(libc::setresuid(1000, 1000, 1000), 0);
        let output = Command::new(&exe).arg("-u").output().unwrap();
        assert_eq!(output.stdout, b"0\n");
    });
    let gained = of(&witness, what::ROOT_GAINED);
    assert_eq!(gained.len(), 1, "{:?}", witness.evasions());
    assert_eq!(gained[0].number, 1000);
}

#[test]
fn a_supervisor_of_system_calls_kernel_programs_rings_and_namespaces_are_reported() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || unsafe {
        let mut setup = [0_u32; 30];
        let ring = libc::syscall(libc::SYS_io_uring_setup, 4, setup.as_mut_ptr());
        assert!(ring >= 0, "{}", std::io::Error::last_os_error());
        libc::syscall(libc::SYS_bpf, 5, null::<u8>(), 0);
        libc::syscall(libc::SYS_perf_event_open, null::<u8>(), 0, -1, -1, 0);
        let child = libc::fork();
        if child == 0 {
            libc::_exit(libc::unshare(libc::CLONE_NEWUSER));
        }
        libc::waitpid(child, null_mut(), 0);
        // Allows everything, and could answer in the kernel's place.
        let allow = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0x7fff_0000,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: (&raw const allow).cast_mut(),
        };
        let listener = libc::syscall(libc::SYS_seccomp, 1, 8, &raw const program);
        assert!(listener >= 0, "{}", std::io::Error::last_os_error());
    });
    let kinds: Vec<_> = witness.evasions().iter().map(|found| found.what).collect();
    assert_eq!(
        kinds,
        [
            what::IO_URING,
            what::BPF,
            what::PERF_EVENT,
            what::USER_NAMESPACE,
            what::SYSTEM_CALL_SUPERVISOR
        ]
    );
}

#[test]
fn a_limit_that_is_set_on_another_process_is_reported_and_asking_for_it_is_not() {
    let Some(mut witness) = witness() else { return };
    let (_, victim, start) = against(&mut witness, |victim| unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        let files = libc::RLIMIT_FSIZE;
        assert_eq!(libc::prlimit(victim, files, null(), &raw mut limit), 0);
        assert_eq!(
            libc::prlimit(libc::getpid(), files, &raw const limit, null_mut()),
            0
        );
        assert_eq!(
            libc::prlimit(victim, files, &raw const limit, null_mut()),
            0
        );
    });
    let found = of(&witness, what::LIMIT_SET);
    assert_eq!(found.len(), 1);
    assert!(is_process(&found[0].target, victim, start));
    assert_eq!(found[0].number, u64::from(libc::RLIMIT_FSIZE));
}

#[test]
fn a_connection_to_a_listener_outside_names_the_process_that_listens() {
    let Some(mut witness) = witness() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    witness.run(tag::TREE, || {
        drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
    });
    drop(listener);
    let found = of(&witness, what::CONNECTED);
    assert_eq!(found.len(), 1);
    let me = std::process::id();
    assert!(is_process(&found[0].target, me, start_of(me)));
}

#[test]
fn attempts_that_are_alike_are_counted_exactly_and_hide_no_other() {
    let Some(mut witness) = witness() else { return };
    let before = witness.counter(counter::EVASIONS);
    let (_, victim, _) = against(&mut witness, |victim| unsafe {
        for _ in 0..1000 {
            libc::kill(victim, libc::SIGCONT);
        }
        libc::kill(victim, libc::SIGWINCH);
    });
    let found = of(&witness, what::SIGNAL);
    let alike: Vec<_> = found
        .iter()
        .filter(|evasion| evasion.number == 18)
        .map(|evasion| evasion.nth)
        .collect();
    assert_eq!(alike, [1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512]);
    let other = found.iter().find(|evasion| evasion.number == 28).unwrap();
    assert_eq!(other.target.tgid, victim);
    let all = witness.counter(counter::EVASIONS) - before;
    let folded = witness.counter(counter::EVASIONS_FOLDED);
    assert_eq!((all, folded), (1001, 1001 - 12));
}
