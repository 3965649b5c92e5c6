//! Who gets hold of a watched channel is seen: inside the tree and outside.

use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
};

use countersign_common::{channel_kind, direction, end_how, tag, transfer_flags};

use crate::harness::{carried, open, pipe, read, socket_pair, spawn, token, witness, write};

#[test]
fn a_process_outside_that_opens_a_watched_pipe_through_proc_becomes_a_peer() {
    let Some(mut witness) = witness() else { return };
    let [ends_read, ends_write] = pipe();
    let [done_read, done_write] = pipe();
    let own = token("own");
    let foreign = token("foreign");
    let (child, gate) = spawn(|| {
        let [read_end, write_end] = pipe();
        write(write_end, &own);
        assert_eq!(read(read_end, 256), own);
        write(ends_write, &write_end.to_le_bytes());
        read(done_read, 1);
        assert_eq!(read(read_end, 256), foreign);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let fd = i32::from_le_bytes(read(ends_read, 4).try_into().unwrap());
    let (outsider, gate) = spawn(|| {
        let mut file = OpenOptions::new()
            .write(true)
            .open(format!("/proc/{child}/fd/{fd}"))
            .unwrap();
        file.write_all(&foreign).unwrap();
        // What a peer does elsewhere is its own business.
        let [read_end, write_end] = pipe();
        write(write_end, b"private");
        read(read_end, 256);
    });
    open(gate);
    witness.reap(outsider);
    write(done_write, b"d");
    witness.reap(child);
    let peers = witness.peers();
    assert_eq!(peers.len(), 1, "{peers:?}");
    assert_eq!((peers[0].task.tgid, peers[0].tag), (outsider, tag::PEER));
    let writes = witness.moved(direction::WRITE, &foreign);
    assert_eq!(writes.len(), 1);
    assert_eq!(
        (writes[0].first.task.tgid, writes[0].first.flags),
        (outsider, carried(transfer_flags::BY_PEER))
    );
    assert_eq!(
        writes[0].first.channel,
        witness.moved(direction::WRITE, &own)[0].first.channel
    );
    assert_eq!(witness.moved(direction::WRITE, b"private"), []);
    let end = witness
        .ends()
        .into_iter()
        .find(|end| end.task.tgid == outsider)
        .unwrap();
    assert_eq!((end.how, end.mode), (end_how::OPENED, 2));
}

#[test]
fn a_process_outside_that_connects_to_the_tree_becomes_a_peer() {
    let Some(mut witness) = witness() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let [ready_read, ready_write] = pipe();
    let (question, answer) = (token("question"), token("answer"));
    let (child, gate) = spawn(|| {
        let listener = UnixListener::bind(&path).unwrap();
        write(ready_write, b"r");
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; question.len()];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&answer).unwrap();
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    read(ready_read, 1);
    let (outsider, gate) = spawn(|| {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(&question).unwrap();
        let mut bytes = vec![0; answer.len()];
        stream.read_exact(&mut bytes).unwrap();
    });
    open(gate);
    witness.reap(outsider);
    witness.reap(child);
    assert_eq!(witness.peers().len(), 1);
    for token in [&question, &answer] {
        let [written, read] =
            [direction::WRITE, direction::READ].map(|end| witness.moved(end, token));
        assert_eq!((written.len(), read.len()), (1, 1), "{:?}", witness.ops());
        assert_ne!(written[0].first.task.tgid, read[0].first.task.tgid);
    }
    let how: Vec<_> = witness
        .ends()
        .iter()
        .filter(|end| end.channel.kind == channel_kind::UNIX_STREAM)
        .map(|end| (end.task.tgid == outsider, end.how))
        .collect();
    assert!(
        how.contains(&(true, end_how::CONNECTED)) && how.contains(&(false, end_how::ACCEPTED)),
        "{how:?}"
    );
}

#[test]
fn a_process_outside_that_accepts_from_the_tree_becomes_a_peer() {
    let Some(mut witness) = witness() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let token = token("to-outside");
    let listener = UnixListener::bind(&path).unwrap();
    let [ready_read, ready_write] = pipe();
    let (child, gate) = spawn(|| {
        let mut stream = UnixStream::connect(&path).unwrap();
        write(ready_write, b"r");
        stream.write_all(&token).unwrap();
        stream.read_exact(&mut [0]).unwrap();
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    read(ready_read, 1);
    let (outsider, gate) = spawn(|| {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; token.len()];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(b"!").unwrap();
    });
    open(gate);
    witness.reap(outsider);
    witness.reap(child);
    assert_eq!(
        witness
            .peers()
            .iter()
            .map(|peer| peer.task.tgid)
            .collect::<Vec<_>>(),
        [outsider]
    );
    let reads = witness.moved(direction::READ, &token);
    assert_eq!(reads.len(), 1, "{:?}", witness.ops());
    assert_eq!(reads[0].first.task.tgid, outsider);
}

#[test]
fn both_ends_of_what_the_tree_creates_are_reported() {
    let Some(mut witness) = witness() else { return };
    let root = witness.run(tag::TREE, || {
        pipe();
        socket_pair();
    });
    let created: Vec<_> = witness
        .ends()
        .into_iter()
        .filter(|end| end.how == end_how::CREATED)
        .collect();
    assert_eq!(created.len(), 4, "{created:?}");
    assert!(created.iter().all(|end| end.task.tgid == root));
    assert_eq!(
        [created[0].mode, created[1].mode, created[2].mode],
        [1, 2, 3]
    );
    assert_eq!(created[0].channel, created[1].channel);
    assert_eq!(created[2].channel.peer_inode, created[3].channel.inode);
}

#[test]
fn a_descriptor_that_comes_in_a_message_is_reported() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [left, right] = socket_pair();
        let [read_end, _write_end] = pipe();
        send_descriptor(left, read_end);
        receive_descriptor(right);
    });
    let handed: Vec<_> = witness
        .ends()
        .into_iter()
        .filter(|end| end.how == end_how::SCM_RIGHTS)
        .collect();
    assert_eq!(handed.len(), 1, "{handed:?}");
    assert_eq!(
        (handed[0].channel.kind, handed[0].mode),
        (channel_kind::PIPE, 1)
    );
}

#[test]
fn a_process_outside_that_takes_a_descriptor_becomes_a_peer() {
    let Some(mut witness) = witness() else { return };
    let [ends_read, ends_write] = pipe();
    let [done_read, done_write] = pipe();
    let stolen = token("stolen");
    let (child, gate) = spawn(|| {
        let [read_end, write_end] = pipe();
        write(ends_write, &read_end.to_le_bytes());
        write(write_end, &stolen);
        read(done_read, 1);
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let fd = i32::from_le_bytes(read(ends_read, 4).try_into().unwrap());
    let (outsider, gate) = spawn(|| {
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, child, 0) };
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) };
        assert_eq!(read(i32::try_from(taken).unwrap(), 256), stolen);
    });
    open(gate);
    witness.reap(outsider);
    write(done_write, b"d");
    witness.reap(child);
    let reads = witness.moved(direction::READ, &stolen);
    assert_eq!(reads.len(), 1, "{:?}", witness.ops());
    assert_eq!(
        (reads[0].first.task.tgid, reads[0].first.flags),
        (outsider, carried(transfer_flags::BY_PEER))
    );
    let end = witness
        .ends()
        .into_iter()
        .find(|end| end.task.tgid == outsider)
        .unwrap();
    assert_eq!((end.how, end.mode), (end_how::PIDFD_GETFD, 1));
}

fn send_descriptor(socket: i32, fd: i32) {
    let mut control = [0_u64; 3];
    let mut byte = *b"x";
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: a message of one byte with room for one descriptor.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(first).cast::<i32>().write_unaligned(fd);
        assert_eq!(libc::sendmsg(socket, &raw const header, 0), 1);
    }
}

fn receive_descriptor(socket: i32) {
    let mut control = [0_u64; 3];
    let mut byte = [0_u8];
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: as above.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut vector;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        assert_eq!(libc::recvmsg(socket, &raw mut header, 0), 1);
        assert_ne!(header.msg_controllen, 0);
    }
}
