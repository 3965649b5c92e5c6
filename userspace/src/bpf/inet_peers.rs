//! Which TCP sockets of this host are connected to each other, by inode number: those whose addresses mirror each other.
//!
//! Only sockets of this process's network namespace.

use std::collections::HashMap;
use std::io;

use super::sock_diag::{self, word};

/// Places in `struct inet_diag_msg` (`linux/inet_diag.h`): ports, addresses, inode number.
const PORTS_AT: usize = 4;
const SOURCE_AT: usize = 8;
const DESTINATION_AT: usize = 24;
const INODE_AT: usize = 68;

/// An address in IPv6 and a port in network order.
type Place = ([u8; 16], [u8; 2]);

/// Inode of each TCP socket whose other end is a socket of this host, and of that one.
///
/// # Errors
/// When the kernel refuses the request or answers with something else.
pub fn inet_peers() -> io::Result<HashMap<u64, u64>> {
    let mut sockets = HashMap::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        sock_diag::dump(&request(family), &mut |message| {
            if let Some((local, remote, inode)) = socket(message) {
                sockets.insert((local, remote), inode);
            }
        })?;
    }
    let other = |((local, remote), inode): (&(Place, Place), &u64)| {
        let other = sockets.get(&(*remote, *local))?;
        Some((*inode, *other))
    };
    Ok(sockets.iter().filter_map(other).collect())
}

/// `struct inet_diag_req_v2`: all states.
fn request(family: i32) -> [u8; 56] {
    let mut bytes = [0; 56];
    bytes[0] = u8::try_from(family).unwrap_or(0);
    bytes[1] = u8::try_from(libc::IPPROTO_TCP).unwrap_or(6);
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}

fn socket(message: &[u8]) -> Option<(Place, Place, u64)> {
    let is_ipv4 = i32::from(*message.first()?) == libc::AF_INET;
    let place = |address_at: usize, port_at: usize| -> Option<Place> {
        let mut address = [0; 16];
        if is_ipv4 {
            address[10..12].fill(0xff);
            address[12..].copy_from_slice(message.get(address_at..address_at + 4)?);
        } else {
            address.copy_from_slice(message.get(address_at..address_at + 16)?);
        }
        Some((address, message.get(port_at..port_at + 2)?.try_into().ok()?))
    };
    let inode = word(message, INODE_AT).filter(|inode| *inode != 0)?;
    Some((
        place(SOURCE_AT, PORTS_AT)?,
        place(DESTINATION_AT, PORTS_AT + 2)?,
        u64::from(inode),
    ))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::fs::File;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_ends_of_a_connection_are_each_others_peers() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (far, _) = listener.accept().unwrap();
            let inode = |stream: TcpStream| {
                let file = File::from(OwnedFd::from(stream));
                (file.metadata().unwrap().ino(), file)
            };
            let ((near, _near), (far, _far)) = (inode(near), inode(far));
            let peers = inet_peers().unwrap();
            assert_eq!(peers.get(&near), Some(&far));
            assert_eq!(peers.get(&far), Some(&near));
        }
    }

    #[test]
    fn a_message_that_is_too_short_is_no_socket() {
        for len in 0..INODE_AT + 4 {
            assert!(socket(&vec![2; len]).is_none());
        }
    }
}
