//! Which unix sockets are connected to which, by inode number, as `sock_diag(7)` tells it.
//!
//! Only sockets of this process's network namespace; `/proc` tells of none.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `UDIAG_SHOW_PEER` and `UNIX_DIAG_PEER` (`linux/unix_diag.h`).
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
/// Sizes of `struct nlmsghdr`, of `struct unix_diag_msg`, of `struct nlattr`.
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// Messages read at once; the kernel never sends more than 32 KiB.
const BUFFER_BYTES: usize = 64 * 1024;

/// Inode of each connected unix socket and of its peer.
///
/// # Errors
/// When the kernel refuses the request or answers with something else.
pub fn unix_peers() -> io::Result<HashMap<u64, u64>> {
    // SAFETY: plain numbers; the descriptor is owned at once.
    let socket = unsafe {
        let fd = libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_SOCK_DIAG,
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    let request = request();
    // SAFETY: a buffer and its length.
    let sent = unsafe {
        libc::send(
            socket.as_raw_fd(),
            request.as_ptr().cast(),
            request.len(),
            0,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut peers = HashMap::new();
    let mut buffer = vec![0_u8; BUFFER_BYTES];
    loop {
        // SAFETY: a buffer and its length.
        let got = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let Ok(got) = usize::try_from(got) else {
            return Err(io::Error::last_os_error());
        };
        if read_messages(&buffer[..got], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// `struct nlmsghdr` and `struct unix_diag_req`: all states, with peers.
fn request() -> [u8; 40] {
    let mut bytes = [0; 40];
    bytes[0..4].copy_from_slice(&40_u32.to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[16] = u8::try_from(libc::AF_UNIX).unwrap_or(1);
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes[28..32].copy_from_slice(&UDIAG_SHOW_PEER.to_ne_bytes());
    bytes
}

/// Takes the messages of one datagram; whether the last was among them.
fn read_messages(mut bytes: &[u8], peers: &mut HashMap<u64, u64>) -> io::Result<bool> {
    while let Some(length) = word(bytes, 0) {
        let length = length as usize;
        let Some(message) = bytes.get(HEADER_BYTES..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match half(bytes, 4) {
            Some(NLMSG_DONE) => return Ok(true),
            Some(NLMSG_ERROR) => {
                let number = word(message, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(-number));
            }
            Some(_) | None => {}
        }
        if let (Some(inode), Some(peer)) = (word(message, 4), peer(message)) {
            peers.insert(u64::from(inode), u64::from(peer));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The peer's inode among the attributes of a message.
fn peer(message: &[u8]) -> Option<u32> {
    let mut attributes = message.get(MESSAGE_BYTES..)?;
    loop {
        let (length, kind) = (usize::from(half(attributes, 0)?), half(attributes, 2)?);
        if length < ATTRIBUTE_BYTES {
            return None;
        }
        if kind == UNIX_DIAG_PEER {
            return word(attributes, ATTRIBUTE_BYTES).filter(|inode| *inode != 0);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_ends_of_a_socket_pair_are_each_others_peers() {
        let (left, right) = UnixStream::pair().unwrap();
        let inode = |stream: UnixStream| {
            let file = File::from(OwnedFd::from(stream));
            (file.metadata().unwrap().ino(), file)
        };
        let ((left, _left), (right, _right)) = (inode(left), inode(right));
        let peers = unix_peers().unwrap();
        assert_eq!(peers.get(&left), Some(&right));
        assert_eq!(peers.get(&right), Some(&left));
    }

    #[test]
    fn a_length_that_lies_ends_the_reading() {
        let mut peers = HashMap::new();
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(read_messages(&bytes, &mut peers).is_err());
        }
        assert!(peer(&[0; MESSAGE_BYTES + 4]).is_none());
    }
}
