//! TCP's own counts: what moves by whatever call is in them, and what nobody saw is a gap of its end.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    time::Duration,
};

use countersign::bpf::{capture::Balanced, options::LoadOptions};
use countersign_common::{SocketCounts, counter, queued_why, tag};
use countersign_core::row::Row;

use crate::harness::{
    Witness, close, open, pipe, read, spawn, tcp_pair, witness, witness_with, write,
};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// End, length and reason of every gap.
fn gaps(witness: &Witness) -> Vec<(&'static str, Option<u64>, &'static str)> {
    let outcome = witness.judged();
    let mut gaps: Vec<_> = outcome
        .coverage()
        .filter(|row| row.kind == "gap")
        .map(|row| {
            (
                row.end.unwrap_or("?"),
                row.lost_bytes,
                row.reason.unwrap_or("?"),
            )
        })
        .collect();
    gaps.sort_unstable();
    gaps
}

/// Gaps whose reason is that nobody saw the operation.
fn unseen(witness: &Witness) -> Vec<(&'static str, Option<u64>)> {
    let gaps = gaps(witness).into_iter();
    gaps.filter(|(.., reason)| *reason == "unseen_ops")
        .map(|(end, len, _)| (end, len))
        .collect()
}

/// What the kernel counted more than was seen since the first record of each end: sent, taken, of the last record of each.
fn excess(witness: &Witness) -> Vec<(u64, u64)> {
    let mut ends: Vec<(SocketCounts, SocketCounts)> = Vec::new();
    for counts in witness.socket_counts() {
        let of = |other: &SocketCounts| (other.channel.object, other.channel.epoch);
        match ends.iter_mut().find(|(first, _)| of(first) == of(&counts)) {
            Some((_, last)) => *last = counts,
            None => ends.push((counts, counts)),
        }
    }
    let more = |counts: &SocketCounts| {
        [
            counts.sent_bytes.wrapping_sub(counts.written_bytes),
            counts.taken_bytes.wrapping_sub(counts.read_bytes),
        ]
    };
    ends.iter()
        .map(|(first, last)| {
            let ([sent, taken], [sent_last, taken_last]) = (more(first), more(last));
            (sent_last.wrapping_sub(sent), taken_last.wrapping_sub(taken))
        })
        .collect()
}

fn recv(fd: i32, len: usize, flags: i32) -> usize {
    let mut bytes = vec![0; len];
    let got = unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), len, flags) };
    usize::try_from(got).expect("the receive succeeds")
}

fn send(fd: i32, bytes: &[u8], flags: i32) -> usize {
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).expect("the send succeeds")
}

fn shutdown(fd: i32) {
    assert_eq!(unsafe { libc::shutdown(fd, libc::SHUT_WR) }, 0);
}

/// Waits until so many bytes can be read.
fn arrived(fd: i32, wanted: i32) {
    let mut waiting = 0;
    while waiting < wanted {
        assert_eq!(
            unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut waiting) },
            0
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn whatever_a_watched_process_does_with_a_connection_the_kernel_counts_the_same() {
    for address in LOOPBACKS {
        let Some(mut witness) = witness() else { return };
        witness.run(tag::TREE, || {
            let [near, far] = tcp_pair(address);
            assert_eq!(write(near, b"plain"), 5);
            assert_eq!(send(near, b"corked, ", libc::MSG_MORE), 8);
            assert_eq!(send(near, b"pushed", 0), 6);
            arrived(far, 19);
            assert_eq!(recv(far, 19, libc::MSG_PEEK), 19);
            assert_eq!(recv(far, 5, libc::MSG_TRUNC), 5);
            assert_eq!(read(far, 4).len(), 4);
            assert_eq!(recv(far, 10, libc::MSG_WAITALL), 10);
            // More than fits: the rest stays.
            assert_eq!(write(far, &[7; 1000]), 1000);
            arrived(near, 1000);
            assert_eq!(read(near, 300).len(), 300);
            // Out of the one into a pipe and from there into the other; from a file.
            let [out, into] = pipe();
            unsafe {
                let no_place = std::ptr::null_mut();
                assert_eq!(libc::splice(near, no_place, into, no_place, 200, 0), 200);
                assert_eq!(libc::splice(out, no_place, near, no_place, 200, 0), 200);
                let file = tempfile::tempfile().unwrap();
                (&file).write_all(&[1; 5000]).unwrap();
                let mut start = 0;
                let sent = libc::sendfile(near, file.as_raw_fd(), &raw mut start, 5000);
                assert_eq!(sent, 5000);
            }
            assert_eq!(recv(far, 5200, libc::MSG_WAITALL), 5200);
            // Half closed, and the end read.
            shutdown(near);
            assert_eq!(read(far, 1).len(), 0);
            assert_eq!(read(far, 1).len(), 0);
            assert_eq!(write(far, b"late"), 4);
            assert_eq!(recv(near, 504, libc::MSG_WAITALL), 504);
            shutdown(far);
            assert_eq!(read(near, 1).len(), 0);
        });
        let counts = witness.socket_counts();
        let begun = counts.iter().filter(|c| c.why == queued_why::BEGUN);
        assert_eq!(begun.count(), 2, "{counts:?}");
        // The end of a direction takes a number, too.
        let excess = excess(&witness);
        assert_eq!(excess.len(), 2);
        for (sent, taken) in excess {
            assert!(sent <= 1 && taken <= 1, "{counts:?}");
        }
        assert_eq!(unseen(&witness), [], "{counts:?}");
        assert_eq!(balances(&witness), [Some((0, 0)), Some((0, 0))]);
    }
}

/// Of every connection, from one end to the other and back: what waits, and what is missing from the balance.
fn balances(witness: &Witness) -> Vec<Option<(u64, i64)>> {
    let outcome = witness.judged();
    let rows = outcome.rows.iter().filter_map(|row| {
        if let Row::Channel(row) = row {
            Some(row)
        } else {
            None
        }
    });
    let connections = rows.filter(|row| row.kind == "tcp");
    connections
        .flat_map(|row| {
            let there = (row.a_to_b_queued_bytes, row.a_to_b_residue_bytes);
            let back = (row.b_to_a_queued_bytes, row.b_to_a_residue_bytes);
            [there, back].map(|(queued, residue)| queued.zip(residue))
        })
        .collect()
}

#[test]
fn what_an_unwatched_process_moves_through_a_watched_connection_is_a_gap_of_its_end() {
    for address in LOOPBACKS {
        let Some(mut witness) = witness() else { return };
        let [near, far] = tcp_pair(address);
        let (child, gate) = spawn(|| {
            assert_eq!(write(near, b"seen"), 4);
            assert_eq!(read(far, 4).len(), 4);
            unsafe { libc::raise(libc::SIGSTOP) };
            assert_eq!(write(near, b"again"), 5);
            arrived(far, 12);
            assert_eq!(read(far, 2).len(), 2);
        });
        witness.capture.tag_pid(child, tag::TREE).unwrap();
        open(gate);
        stopped(child);
        witness.capture.balance(Balanced::Moved).unwrap();
        witness.drain();
        assert_eq!(unseen(&witness), []);
        // This process has no tag.
        assert_eq!(write(near, b"behind the back"), 15);
        assert_eq!(read(far, 3).len(), 3);
        unsafe { libc::kill(child.cast_signed(), libc::SIGCONT) };
        witness.reap(child);
        assert_eq!(
            unseen(&witness),
            [("reader", Some(3)), ("writer", Some(15))],
            "{:?}",
            witness.socket_counts()
        );
        close(near);
        close(far);
    }
}

fn stopped(child: u32) {
    let mut status = 0;
    unsafe {
        libc::waitpid(child.cast_signed(), &raw mut status, libc::WUNTRACED);
    }
    assert!(libc::WIFSTOPPED(status), "{status:#x}");
}

#[test]
fn bytes_that_are_mapped_instead_of_read_are_a_gap_of_their_length() {
    let Some(mut witness) = witness() else { return };
    let [told, tell] = pipe();
    witness.run(tag::TREE, || {
        let [near, far] = tcp_pair("127.0.0.1:0");
        assert_eq!(write(near, b"seen"), 4);
        assert_eq!(read(far, 4).len(), 4);
        let taken = take_by_mapping(near, far);
        write(tell, &taken.to_le_bytes());
    });
    let taken = u32::from_le_bytes(read(told, 4).try_into().unwrap());
    assert!(taken > 0, "nothing was taken without reading it");
    assert_eq!(
        unseen(&witness),
        [("reader", Some(u64::from(taken)))],
        "{:?}",
        witness.socket_counts()
    );
}

/// `TCP_ZEROCOPY_RECEIVE` with a buffer to copy small amounts to: the bytes are taken, and no call returned their number.
fn take_by_mapping(near: i32, far: i32) -> u32 {
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    const PAGES_BYTES: usize = 16 * 4096;
    /// `struct tcp_zerocopy_receive` (`include/uapi/linux/tcp.h`), Linux >= 5.15.
    #[repr(C)]
    #[derive(Default)]
    struct Receive {
        address: u64,
        length: u32,
        recv_skip_hint: u32,
        inq: u32,
        err: i32,
        copybuf_address: u64,
        copybuf_len: i32,
        flags: u32,
        msg_control: u64,
        msg_controllen: u64,
        msg_flags: u32,
        reserved: u32,
    }
    assert_eq!(write(near, &[9; 2000]), 2000);
    arrived(far, 2000);
    let mut copy = vec![0_u8; PAGES_BYTES];
    unsafe {
        let area = libc::mmap(
            std::ptr::null_mut(),
            PAGES_BYTES,
            libc::PROT_READ,
            libc::MAP_SHARED,
            far,
            0,
        );
        assert_ne!(area, libc::MAP_FAILED);
        let mut receive = Receive {
            address: area as u64,
            length: u32::try_from(PAGES_BYTES).unwrap(),
            copybuf_address: copy.as_mut_ptr() as u64,
            copybuf_len: i32::try_from(PAGES_BYTES).unwrap(),
            ..Receive::default()
        };
        let mut len = libc::socklen_t::try_from(size_of::<Receive>()).unwrap();
        let got = libc::getsockopt(
            far,
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            (&raw mut receive).cast(),
            &raw mut len,
        );
        assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
        receive.length + receive.copybuf_len.cast_unsigned()
    }
}

#[test]
fn a_byte_out_of_turn_makes_no_gap_beyond_its_own_operations() {
    // Passed over by the reader; taken out of turn; read like all others.
    for (taken, inline) in [(false, 0), (true, 0), (false, 1)] {
        let Some(mut witness) = witness() else { return };
        witness.run(tag::TREE, move || {
            let [near, far] = tcp_pair("127.0.0.1:0");
            unsafe {
                let set = libc::setsockopt(
                    far,
                    libc::SOL_SOCKET,
                    libc::SO_OOBINLINE,
                    (&raw const inline).cast(),
                    4,
                );
                assert_eq!(set, 0);
            }
            assert_eq!(write(near, b"before"), 6);
            assert_eq!(send(near, b"!", libc::MSG_OOB), 1);
            assert_eq!(write(near, b"after"), 5);
            arrived(far, 6);
            assert_eq!(read(far, 6).len(), 6);
            if taken {
                assert_eq!(recv(far, 1, libc::MSG_OOB), 1);
            }
            let rest = 5 + usize::try_from(inline).unwrap();
            let mut got = 0;
            while got < rest {
                got += read(far, rest - got).len();
            }
        });
        let told = unseen(&witness);
        // The operation that is no part of the stream leaves a hole of its own length.
        assert!(
            told.iter().all(|(_, len)| *len == Some(1)) && told.len() <= 2,
            "{taken} {inline}: {told:?}"
        );
    }
}

#[test]
fn a_connection_that_ends_with_bytes_unread_has_no_gap() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        let [near, far] = tcp_pair("127.0.0.1:0");
        assert_eq!(write(near, &[3; 5000]), 5000);
        arrived(far, 5000);
        assert_eq!(read(far, 1000).len(), 1000);
        // The rest is thrown away and the connection reset.
        close(far);
        let mut byte = [0];
        let got = unsafe { libc::read(near, byte.as_mut_ptr().cast(), 1) };
        assert!(got <= 0, "{got}");
    });
    assert_eq!(unseen(&witness), [], "{:?}", witness.socket_counts());
}

#[test]
fn bytes_in_the_first_segment_are_counted_once() {
    let Some(mut witness) = witness() else { return };
    witness.run(tag::TREE, || {
        own_network();
        // Data in the first segment is sent (1, 4) and taken (2, 512), without asking for a cookie first.
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "519").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let queue = 16;
        unsafe {
            libc::setsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_FASTOPEN,
                (&raw const queue).cast(),
                4,
            );
        }
        let port = listener.local_addr().unwrap().port();
        for _ in 0..2 {
            let near = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
            let sent = unsafe {
                let mut to: libc::sockaddr_in = std::mem::zeroed();
                to.sin_family = 2;
                to.sin_port = port.to_be();
                to.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
                libc::sendto(
                    near,
                    b"first".as_ptr().cast(),
                    5,
                    libc::MSG_FASTOPEN,
                    (&raw const to).cast(),
                    libc::socklen_t::try_from(size_of_val(&to)).unwrap(),
                )
            };
            assert_eq!(sent, 5, "{}", std::io::Error::last_os_error());
            let (far, _) = listener.accept().unwrap();
            let far = far.into_raw_fd();
            assert!(sent_with_first_segment(near));
            assert_eq!(recv(far, 5, libc::MSG_WAITALL), 5);
            assert_eq!(write(far, b"answer"), 6);
            assert_eq!(recv(near, 6, libc::MSG_WAITALL), 6);
            assert_eq!(write(near, b"second"), 6);
            assert_eq!(recv(far, 6, libc::MSG_WAITALL), 6);
            close(near);
            assert_eq!(read(far, 1).len(), 0);
            close(far);
        }
    });
    assert_eq!(unseen(&witness), [], "{:?}", witness.socket_counts());
}

/// A network of this process's own, with a loopback.
fn own_network() {
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNET), 0);
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let mut lo: libc::ifreq = std::mem::zeroed();
        lo.ifr_name[0] = b'l'.cast_signed();
        lo.ifr_name[1] = b'o'.cast_signed();
        assert_eq!(libc::ioctl(socket, libc::SIOCGIFFLAGS, &raw mut lo), 0);
        lo.ifr_ifru.ifru_flags |= 1;
        assert_eq!(libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const lo), 0);
        close(socket);
    }
}

/// Whether the first segment had data that the other end took: `TCPI_OPT_SYN_DATA` in the options of `struct tcp_info`.
fn sent_with_first_segment(fd: i32) -> bool {
    let mut info = [0_u8; 8];
    let mut len = 8;
    let got = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0);
    info[5] & 32 != 0
}

/// Many connections at once, with bytes of all sizes in both directions, looked at again and again meanwhile.
#[test]
fn honest_connections_have_no_gaps_whenever_they_are_looked_at() {
    const CONNECTIONS: usize = 60;
    let options = LoadOptions {
        ring_bytes: 64 << 20,
        ..LoadOptions::default()
    };
    let Some(mut witness) = witness_with(&options) else {
        return;
    };
    let (child, gate) = spawn(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let echoes: Vec<_> = (0..CONNECTIONS)
                .map(|_| {
                    let (mut stream, _) = listener.accept().unwrap();
                    std::thread::spawn(move || {
                        let mut bytes = vec![0; 70_000];
                        loop {
                            let got = stream.read(&mut bytes).unwrap();
                            if got == 0 {
                                return;
                            }
                            stream.write_all(&bytes[..got]).unwrap();
                        }
                    })
                })
                .collect();
            for echo in echoes {
                echo.join().unwrap();
            }
        });
        let clients: Vec<_> = (0..CONNECTIONS)
            .map(|number| {
                std::thread::spawn(move || {
                    let mut near = TcpStream::connect(address).unwrap();
                    for turn in 0..60 {
                        // Now and then more than the buffers hold: a write that waits.
                        let long = if (number + turn) % 97 == 0 {
                            200_000
                        } else {
                            0
                        };
                        let len = long + 1 + (number * 37 + turn * 1009) % 3_000;
                        let mut back = near.try_clone().unwrap();
                        let answer = std::thread::spawn(move || {
                            back.read_exact(&mut vec![0; len]).unwrap();
                        });
                        near.write_all(&vec![b'x'; len]).unwrap();
                        answer.join().unwrap();
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        server.join().unwrap();
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);
    let mut status = 0;
    while unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WNOHANG) } == 0 {
        witness.drain();
        witness.capture.balance(Balanced::Each).unwrap();
    }
    assert_eq!(status, 0, "the child failed");
    witness.drain();
    let counts = witness.socket_counts();
    let asked = counts.iter().filter(|c| c.why == queued_why::ASKED).count();
    assert!(asked > CONNECTIONS, "{asked} of {}", counts.len());
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    assert_eq!(gaps(&witness), []);
}

#[test]
fn a_connection_under_tls_in_the_kernel_is_not_held_against_its_counts() {
    const TCP_ULP: i32 = 31;
    let Some(mut witness) = witness() else { return };
    let [told, tell] = pipe();
    witness.run(tag::TREE, || {
        let [near, far] = tcp_pair("127.0.0.1:0");
        assert_eq!(write(near, b"before"), 6);
        assert_eq!(read(far, 6).len(), 6);
        let set = unsafe {
            libc::setsockopt(near, libc::IPPROTO_TCP, TCP_ULP, b"tls".as_ptr().cast(), 3)
        };
        write(tell, &[u8::from(set == 0)]);
        assert_eq!(write(near, b"after"), 5);
        assert_eq!(read(far, 5).len(), 5);
        close(near);
        close(far);
    });
    let has_tls = read(told, 1) == [1];
    let closing: Vec<_> = witness
        .socket_counts()
        .into_iter()
        .filter(|counts| counts.why == queued_why::CLOSE)
        .collect();
    // A kernel that has no TLS refuses it, and then both are told.
    assert_eq!(closing.len(), if has_tls { 1 } else { 2 }, "{closing:?}");
    assert_eq!(unseen(&witness), []);
}

#[test]
fn a_connection_that_was_found_is_held_against_its_counts_from_then_on() {
    let Some(mut witness) = witness() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let (near, far) = (near.into_raw_fd(), far.into_raw_fd());
    // Before anybody looks: it is nobody's loss.
    assert_eq!(write(near, b"long ago"), 8);
    assert_eq!(read(far, 3).len(), 3);
    witness.run(tag::TREE, || {
        assert_eq!(write(near, b"now"), 3);
        assert_eq!(recv(far, 8, libc::MSG_WAITALL), 8);
    });
    let counts = witness.socket_counts();
    assert!(counts.iter().any(|c| c.why == queued_why::FOUND));
    assert_eq!(unseen(&witness), [], "{counts:?}");
    for fd in [near, far] {
        drop(unsafe { TcpStream::from_raw_fd(fd) });
    }
}
