//! Which unix sockets are connected to which, by inode number, as `sock_diag(7)` tells it.
//!
//! Only sockets of this process's network namespace; `/proc` tells of none.

use std::collections::HashMap;
use std::io;

use super::sock_diag::{self, half, word};

/// `UDIAG_SHOW_PEER` and `UNIX_DIAG_PEER` (`linux/unix_diag.h`).
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
/// Sizes of `struct unix_diag_msg` and of `struct nlattr`.
const MESSAGE_BYTES: usize = 16;
const ATTRIBUTE_BYTES: usize = 4;

/// Inode of each connected unix socket and of its peer.
///
/// # Errors
/// When the kernel refuses the request or answers with something else.
pub fn unix_peers() -> io::Result<HashMap<u64, u64>> {
    let mut peers = HashMap::new();
    sock_diag::dump(&request(), &mut |message| {
        if let (Some(inode), Some(peer)) = (word(message, 4), peer(message)) {
            peers.insert(u64::from(inode), u64::from(peer));
        }
    })?;
    Ok(peers)
}

/// `struct unix_diag_req`: all states, with peers.
fn request() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0] = u8::try_from(libc::AF_UNIX).unwrap_or(1);
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes[12..16].copy_from_slice(&UDIAG_SHOW_PEER.to_ne_bytes());
    bytes
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::fs::File;
    use std::os::fd::OwnedFd;
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
    fn an_attribute_s_length_that_lies_ends_the_reading() {
        assert!(peer(&[0; MESSAGE_BYTES + 4]).is_none());
    }
}
