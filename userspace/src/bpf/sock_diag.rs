//! Lists of sockets from the kernel: `sock_diag(7)` over netlink.
//!
//! Only sockets of this process's network namespace.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `SOCK_DIAG_BY_FAMILY` (`linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_DONE: u16 = 3;
const NLMSG_ERROR: u16 = 2;
/// Size of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;

/// Messages read at once; the kernel never sends more than 32 KiB.
const BUFFER_BYTES: usize = 64 * 1024;

/// Asks for a list and gives each message's body to `each`. `request` is what follows the netlink header.
///
/// # Errors
/// When the kernel refuses the request or answers with something else.
pub(super) fn dump(request: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<()> {
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
    let request = with_header(request)?;
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
        if read_messages(&buffer[..got], each)? {
            return Ok(());
        }
    }
}

fn with_header(request: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_BYTES + request.len())
        .map_err(|_overflow| io::Error::from(io::ErrorKind::InvalidInput))?;
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP)
        .map_err(|_overflow| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(request);
    Ok(bytes)
}

/// Takes the messages of one datagram; whether the last was among them.
fn read_messages(mut bytes: &[u8], each: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
    while let Some(length) = word(bytes, 0) {
        let length = length as usize;
        let Some(message) = bytes.get(HEADER_BYTES..length) else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        match half(bytes, 4) {
            Some(NLMSG_DONE) => return Ok(true),
            Some(NLMSG_ERROR) => {
                let number = word(message, 0).map_or(0, u32::cast_signed);
                return Err(io::Error::from_raw_os_error(number.wrapping_neg()));
            }
            Some(_) | None => {}
        }
        each(message);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The word at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The half word at an offset.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_lies_ends_the_reading() {
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = [0; HEADER_BYTES];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(read_messages(&bytes, &mut |_| {}).is_err());
        }
    }
}
