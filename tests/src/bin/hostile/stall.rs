//! Stalls the kernel in the middle of a copy: `userfaultfd` on the second page of a message.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use crate::memory::{Memory, PAGE};

/// `UFFDIO_API`, `UFFDIO_REGISTER` and `UFFDIO_COPY` of `linux/userfaultfd.h`.
const API: libc::c_ulong = 0xc018_aa3f;
const REGISTER: libc::c_ulong = 0xc020_aa00;
const COPY: libc::c_ulong = 0xc028_aa03;

/// What the second page is filled with at the next fault.
pub(crate) type Filling = Arc<Mutex<Vec<u8>>>;

/// From here on whoever needs the second page waits until `meanwhile` has been run.
pub(crate) fn stall(
    memory: &Arc<Memory>,
    meanwhile: impl Fn(&Memory) + Send + 'static,
) -> io::Result<Filling> {
    let ready = |result: libc::c_long| {
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            i32::try_from(result).map_err(io::Error::other)
        }
    };
    let fd = ready(unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) })?;
    let mut api = [0xaa_u64, 0, 0];
    let mut range = [memory.second() as u64, PAGE as u64, 1, 0];
    memory.drop_second();
    ready(unsafe { libc::ioctl(fd, API, api.as_mut_ptr()) }.into())?;
    ready(unsafe { libc::ioctl(fd, REGISTER, range.as_mut_ptr()) }.into())?;
    let filling = Filling::default();
    let (memory, of_thread) = (Arc::clone(memory), Arc::clone(&filling));
    std::thread::spawn(move || {
        let mut event = [0_u64; 4];
        while unsafe { libc::read(fd, event.as_mut_ptr().cast(), 32) } == 32 {
            meanwhile(&memory);
            let mut page = of_thread
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            page.resize(PAGE, 0);
            let mut copy = [
                memory.second() as u64,
                page.as_ptr().addr() as u64,
                PAGE as u64,
                0,
                0,
            ];
            unsafe { libc::ioctl(fd, COPY, copy.as_mut_ptr()) };
        }
    });
    Ok(filling)
}
