//! What is not captured is named: signals that no number was given for, channels of other kinds, descriptors in messages, and
//! attempts through `io_uring`.

use std::{ffi::CString, fs, os::unix::fs::MetadataExt, process::Command, ptr::null_mut};

use countersign::{
    bpf::options::{LoadOptions, WatchedId},
    device::kernel_dev,
};
use countersign_common::{
    channel_kind,
    evasion::{Evasion, file_class, flags, foreign, what},
    tag,
};

use crate::harness::{
    Witness, close, open, pipe, read, socket_pair, spawn, witness, witness_with, write,
};
use crate::ring::{Ring, submission};

/// `SIGWINCH`, which does nothing to who does not ask for it.
const WINCH: u64 = 28;
const OPENAT: u8 = 18;
const CONNECT: u8 = 16;
const UNLINKAT: u8 = 36;
const MSG_RING: u8 = 40;
const SOCKET: u8 = 45;

/// The records of one kind.
fn of(witness: &Witness, kind: u16) -> Vec<Evasion> {
    let mut all = witness.evasions();
    all.retain(|evasion| evasion.what == kind);
    all
}

/// The notes of use: number, place and what was done.
fn notes(witness: &Witness) -> Vec<(u64, [u64; 2], u32)> {
    of(witness, what::FOREIGN_CHANNEL)
        .iter()
        .map(|note| (note.number, [note.inode, note.argument], note.dev))
        .collect()
}

fn of_socket(family: i32, protocol: i32) -> u64 {
    let (family, protocol) = (family.cast_unsigned(), protocol.cast_unsigned());
    foreign::SOCKET | u64::from(family) << 8 | u64::from(protocol) << 16
}

#[test]
fn a_signal_to_a_group_is_reported_for_the_proxy_in_it_and_for_those_outside() {
    let Some(mut witness) = witness() else { return };
    for bits in [tag::TREE | tag::PROXY, 0] {
        let (victim, gate) = spawn(|| {});
        let pid = victim.cast_signed();
        // SAFETY: a child of ours that waits.
        assert_eq!(unsafe { libc::setpgid(pid, pid) }, 0);
        if bits != 0 {
            witness.capture.tag_pid(victim, bits).unwrap();
        }
        let seen = of(&witness, what::SIGNAL_ARRIVED).len();
        let actor = witness.run(tag::TREE, || unsafe {
            assert_eq!(libc::kill(-pid, libc::SIGWINCH), 0);
        });
        open(gate);
        witness.reap(victim);
        let arrived = of(&witness, what::SIGNAL_ARRIVED);
        assert_eq!(arrived.len(), seen + 1, "{bits} {arrived:?}");
        let last = &arrived[seen];
        assert_eq!((last.task.tgid, last.target.tgid), (actor, victim));
        assert_eq!((last.number, last.flags), (WINCH, 0));
    }
    // One that is sent by number is told once, with what the call returned.
    let (victim, gate) = spawn(|| {});
    let seen = of(&witness, what::SIGNAL_ARRIVED).len();
    witness.run(tag::TREE, || unsafe {
        assert_eq!(libc::kill(victim.cast_signed(), libc::SIGWINCH), 0);
    });
    open(gate);
    witness.reap(victim);
    assert_eq!(of(&witness, what::SIGNAL_ARRIVED).len(), seen);
    let signals = of(&witness, what::SIGNAL);
    assert_eq!(signals.last().map(|last| last.target.tgid), Some(victim));
}

#[test]
fn a_signal_that_a_file_sends_to_the_proxy_is_reported_as_the_kernels() {
    let Some(mut witness) = witness() else { return };
    let (victim, gate) = spawn(|| {});
    witness
        .capture
        .tag_pid(victim, tag::TREE | tag::PROXY)
        .unwrap();
    let [near, far] = socket_pair();
    witness.run(tag::TREE, || unsafe {
        assert_eq!(libc::fcntl(near, libc::F_SETOWN, victim.cast_signed()), 0);
        // `F_SETSIG`.
        assert_eq!(libc::fcntl(near, 10, libc::SIGWINCH), 0);
        assert_eq!(libc::fcntl(near, libc::F_SETFL, libc::O_ASYNC), 0);
        assert_eq!(write(far, b"x"), 1);
    });
    open(gate);
    witness.reap(victim);
    let arrived = of(&witness, what::SIGNAL_ARRIVED);
    assert!(!arrived.is_empty());
    for signal in arrived {
        assert_eq!(signal.flags, flags::BY_KERNEL, "{signal:?}");
        assert_eq!(signal.number, WINCH);
        assert_eq!((signal.task.tgid, signal.target.tgid), (victim, victim));
    }
}

#[test]
fn sockets_of_other_kinds_are_named_with_their_addresses_and_watched_ones_are_not() {
    let Some(mut witness) = witness() else { return };
    let [told, tell] = pipe();
    witness.run(tag::TREE, || unsafe {
        let socket = |family, kind, protocol| {
            let fd = libc::socket(family, kind, protocol);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            fd
        };
        socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE);
        let bound = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = u16::try_from(libc::AF_INET).unwrap();
        address.sin_addr.s_addr = u32::from_le_bytes([127, 0, 0, 1]);
        let len = u32::try_from(size_of::<libc::sockaddr_in>()).unwrap();
        assert_eq!(libc::bind(bound, (&raw const address).cast(), len), 0);
        let mut got = len;
        libc::getsockname(bound, (&raw mut address).cast(), &raw mut got);
        write(tell, &address.sin_port.to_ne_bytes());
        let sender = socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let text = b"hello";
        let sent = libc::sendto(
            sender,
            text.as_ptr().cast(),
            text.len(),
            0,
            (&raw const address).cast(),
            len,
        );
        assert_eq!(sent, 5);
        assert_eq!(libc::connect(sender, (&raw const address).cast(), len), 0);
    });
    let port = u32::from(u16::from_be_bytes(read(told, 2).try_into().unwrap()));
    let udp = of_socket(libc::AF_INET, libc::IPPROTO_UDP);
    let loopback = [0, 0xffff_0000 | 0x0100_007f << 32];
    assert_eq!(
        notes(&witness),
        [
            (of_socket(libc::AF_NETLINK, 0), [0; 2], foreign::MADE),
            (udp, [0; 2], foreign::MADE),
            (udp, loopback, foreign::BOUND | port),
            (udp, [0; 2], foreign::MADE),
            (udp, loopback, foreign::REACHED | port),
            (udp, loopback, foreign::REACHED | port),
        ]
    );
}

#[test]
fn queues_and_memory_without_a_file_are_named() {
    let Some(mut witness) = witness() else { return };
    let name = format!("/n{}", std::process::id() % 100_000);
    let [told, tell] = pipe();
    witness.run(tag::TREE, || unsafe {
        let path = CString::new(name.clone()).unwrap();
        let queue = libc::mq_open(
            path.as_ptr(),
            libc::O_CREAT | libc::O_RDWR,
            0o600,
            null_mut::<libc::mq_attr>(),
        );
        assert!(queue >= 0, "{}", std::io::Error::last_os_error());
        libc::mq_unlink(path.as_ptr());
        let id = libc::msgget(libc::IPC_PRIVATE, 0o600);
        assert!(id >= 0);
        let message = [1_i64, 0];
        assert_eq!(libc::msgsnd(id, message.as_ptr().cast(), 8, 0), 0);
        libc::msgctl(id, libc::IPC_RMID, null_mut());
        write(tell, &id.to_ne_bytes());
        assert!(libc::memfd_create(c"m".as_ptr(), 0) >= 0);
        let all = libc::PROT_READ | libc::PROT_WRITE;
        let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let place = libc::mmap(null_mut(), 4096, all, shared, -1, 0);
        assert_ne!(place, libc::MAP_FAILED);
    });
    let id = i32::from_ne_bytes(read(told, 4).try_into().unwrap());
    let mut text = [0; 8];
    text[..name.len() - 1].copy_from_slice(&name.as_bytes()[1..]);
    let seen = notes(&witness);
    let numbers: Vec<u64> = seen.iter().map(|note| note.0).collect();
    assert_eq!(
        numbers,
        [
            foreign::MESSAGE_QUEUE,
            foreign::SYSV_QUEUE,
            foreign::SYSV_QUEUE,
            foreign::MEMFD,
            foreign::ANONYMOUS_MEMORY
        ]
    );
    assert_eq!(seen[0].1, [u64::from_le_bytes(text), 0]);
    assert_eq!(seen[2].1[0], u64::from(id.cast_unsigned()));
    assert_ne!(seen[3].1[0], 0);
}

/// Sends descriptors in one message.
fn send(socket: i32, descriptors: &[i32]) {
    let mut control = [0_u64; 32];
    let mut byte = [0_u8];
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: a message with room for the descriptors, all of which outlives the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        let bytes = u32::try_from(size_of_val(descriptors)).unwrap();
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as usize;
        std::ptr::copy_nonoverlapping(
            descriptors.as_ptr().cast::<u8>(),
            libc::CMSG_DATA(header),
            bytes as usize,
        );
        assert_eq!(libc::sendmsg(socket, &raw const message, 0), 1);
    }
}

#[test]
fn descriptors_that_a_process_sends_are_reported_by_what_they_are() {
    let Some(mut witness) = witness() else { return };
    let [near, _far] = socket_pair();
    let [end, _other] = pipe();
    witness.run(tag::TREE, || {
        // SAFETY: a name.
        let memory = unsafe { libc::memfd_create(c"sent".as_ptr(), 0) };
        send(near, &[end, memory]);
    });
    let sent: Vec<_> = of(&witness, what::DESCRIPTOR_SENT)
        .iter()
        .map(|sent| (sent.number, sent.inode))
        .collect();
    let link = fs::read_link(format!("/proc/self/fd/{end}")).unwrap();
    assert_eq!(sent.len(), 2, "{sent:?}");
    assert_eq!(sent[0].0, u64::from(channel_kind::PIPE));
    assert_eq!(link.to_str().unwrap(), format!("pipe:[{}]", sent[0].1));
    assert_eq!(sent[1].0, u64::from(channel_kind::FILE));
}

#[test]
fn what_is_done_through_a_ring_is_reported_as_by_system_calls() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, b"secret").unwrap();
    let meta = fs::metadata(&key).unwrap();
    let (exe, log) = (folder.path().join("proxy"), folder.path().join("log"));
    fs::copy("/bin/dd", &exe).unwrap();
    let of_exe = fs::metadata(&exe).unwrap();
    let options = LoadOptions {
        ring_bytes: 16 << 20,
        proxy_exes: vec![(kernel_dev(of_exe.dev()), of_exe.ino())],
        watched_files: vec![WatchedId {
            dev: kernel_dev(meta.dev()),
            inode: meta.ino(),
            class: file_class::KEY,
        }],
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let path = CString::new(key.to_str().unwrap()).unwrap();
    let written = CString::new(log.to_str().unwrap()).unwrap();
    witness.run(tag::TREE, || {
        let mut command = Command::new(&exe);
        command.args(["if=/etc/passwd", "status=none"]);
        command.arg(format!("of={}", log.display()));
        assert!(command.status().unwrap().success());
        let mut ring = Ring::new(0);
        let run = |ring: &mut Ring, entry| ring.run(&[entry], 1)[0].res;
        let mut entry = submission(OPENAT, libc::AT_FDCWD, path.as_bytes_with_nul());
        entry.len = 0;
        let fd = run(&mut ring, entry);
        assert!(fd >= 0, "{fd}");
        close(fd);
        let mut entry = submission(SOCKET, libc::AF_INET, &[]);
        entry.addr = 0;
        entry.off = u64::from(libc::SOCK_DGRAM.cast_unsigned());
        let socket = run(&mut ring, entry);
        assert!(socket >= 0, "{socket}");
        // SAFETY: plain data.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = u16::try_from(libc::AF_INET).unwrap();
        address.sin_port = 7_u16.to_be();
        address.sin_addr.s_addr = u32::from_le_bytes([127, 0, 0, 1]);
        let mut entry = submission(CONNECT, socket, &[]);
        entry.addr = (&raw const address).addr() as u64;
        entry.len = 0;
        entry.off = size_of::<libc::sockaddr_in>() as u64;
        assert_eq!(run(&mut ring, entry), 0);
        // To the ring itself is refused; it is told all the same.
        let mut entry = submission(MSG_RING, fd, &[]);
        entry.len = 0;
        assert!(run(&mut ring, entry) < 0);
        let mut entry = submission(UNLINKAT, libc::AT_FDCWD, written.as_bytes_with_nul());
        entry.len = 0;
        assert_eq!(run(&mut ring, entry), 0);
    });
    let opened = of(&witness, what::FILE_OPENED);
    assert_eq!(opened.len(), 1, "{:?}", witness.evasions());
    assert_eq!(opened[0].inode, meta.ino());
    assert_eq!(of(&witness, what::FILE_REMOVED).len(), 1);
    let udp = of_socket(libc::AF_INET, libc::IPPROTO_UDP);
    let loopback = [0, 0xffff_0000 | 0x0100_007f << 32];
    assert_eq!(
        notes(&witness),
        [
            (udp, [0; 2], foreign::MADE),
            (udp, loopback, foreign::REACHED + 7)
        ]
    );
    let requests: Vec<_> = of(&witness, what::RING_REQUEST)
        .iter()
        .map(|request| (request.number, request.flags))
        .collect();
    assert_eq!(requests, [(u64::from(MSG_RING), flags::BY_RING)]);
}

#[test]
fn a_file_that_one_writes_and_another_opens_is_reported_with_the_writer() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut witness) = witness() else { return };
    let file = folder.path().join("mailbox");
    let writer = witness.run(tag::TREE, || fs::write(&file, b"to you").unwrap());
    let reader = witness.run(tag::TREE, || {
        for _ in 0..3 {
            fs::read(&file).unwrap();
        }
        fs::read("/etc/passwd").unwrap();
    });
    let shared = of(&witness, what::FILE_SHARED);
    assert_eq!(shared.len(), 3, "{shared:?}");
    for (nth, record) in (1..).zip(&shared) {
        assert_eq!((record.task.tgid, record.target.tgid), (reader, writer));
        assert_eq!(record.argument, fs::metadata(&file).unwrap().ino());
        assert_eq!(record.nth, nth);
    }
}
