//! Keeps the agent from typing into the terminal that it shares with its operator.
//!
//! Owns the system call filter that refuses `TIOCSTI` and `TIOCLINUX`: with them a process puts input into its terminal, and the
//! operator's shell, often root's, would execute it when the agent has ended. Linux can refuse this by itself from 6.2 on, if
//! `dev.tty.legacy_tiocsti` is 0. Everything else the agent may do as before.

use libc::{c_long, sock_filter, sock_fprog};

/// Loads a word of `struct seccomp_data`.
const LOAD: u16 = 0x20;
/// Compares it with a constant.
const EQUALS: u16 = 0x15;
/// Ends with a result.
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`: the number, the architecture, and the lower half of the second argument, which is all that
/// the kernel reads of an ioctl's request.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const REQUEST: u32 = 24;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// `ioctl` in the three system call tables of x86: 64 bits, x32, 32 bits.
const IOCTL_64: u32 = 16;
const IOCTL_X32: u32 = 0x4000_0000 | 0x202;
const IOCTL_32: u32 = 54;

const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

const ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_ERRNO` with `EPERM`, as without the right to do it.
const REFUSE: u32 = 0x0005_0001;

/// Instructions of [`FILTER`].
const LENGTH: u16 = 13;

/// The jumps count the instructions to skip; those without effect on other architectures let everything pass.
static FILTER: [sock_filter; LENGTH as usize] = [
    statement(LOAD, ARCHITECTURE),
    jump(AUDIT_ARCH_X86_64, 0, 3),
    statement(LOAD, NUMBER),
    jump(IOCTL_64, 4, 0),
    jump(IOCTL_X32, 3, 6),
    jump(AUDIT_ARCH_I386, 0, 5),
    statement(LOAD, NUMBER),
    jump(IOCTL_32, 0, 3),
    statement(LOAD, REQUEST),
    jump(TIOCSTI, 2, 0),
    jump(TIOCLINUX, 1, 0),
    statement(RETURN, ALLOW),
    statement(RETURN, REFUSE),
];

/// Installs the filter in this thread and all that it starts; negative when the kernel refuses. A raw system call on static memory:
/// safe to use between fork and exec.
pub(super) fn install() -> c_long {
    let program = sock_fprog {
        len: LENGTH,
        filter: FILTER.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the filter, of which `len` instructions are there, and changes nothing.
    unsafe {
        libc::syscall(
            libc::SYS_prctl,
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    }
}

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn jump(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter {
        code: EQUALS,
        jt,
        jf,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_is_refused_in_every_table_and_nothing_else_is() {
        for (architecture, ioctl) in [
            (AUDIT_ARCH_X86_64, IOCTL_64),
            (AUDIT_ARCH_X86_64, IOCTL_X32),
            (AUDIT_ARCH_I386, IOCTL_32),
        ] {
            for request in [TIOCSTI, TIOCLINUX] {
                assert_eq!(decide(architecture, ioctl, request), REFUSE);
                assert_eq!(decide(architecture, ioctl + 1, request), ALLOW);
            }
            for request in [
                0,
                TIOCSTI - 1,
                TIOCSTI + 1,
                0x5401,
                0x541b,
                0x541d,
                u32::MAX,
            ] {
                assert_eq!(decide(architecture, ioctl, request), ALLOW);
            }
        }
        // The numbers of one table mean something else in another.
        assert_eq!(decide(AUDIT_ARCH_I386, IOCTL_64, TIOCSTI), ALLOW);
        assert_eq!(decide(AUDIT_ARCH_X86_64, IOCTL_32, TIOCSTI), ALLOW);
        assert_eq!(decide(0xc000_00b7, IOCTL_64, TIOCSTI), ALLOW);
    }

    #[test]
    fn the_kernel_takes_the_filter_and_obeys_it() {
        let thread = std::thread::spawn(|| {
            // A closed descriptor: only what is refused before it is looked at differs.
            let ask = |request: u32| {
                // SAFETY: no descriptor, so nothing is done.
                let result = unsafe { libc::syscall(libc::SYS_ioctl, -1, request, 0) };
                assert_eq!(result, -1);
                std::io::Error::last_os_error().raw_os_error()
            };
            assert_eq!(ask(TIOCSTI), Some(libc::EBADF));
            // SAFETY: plain numbers.
            let quiet = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            assert_eq!((quiet, install()), (0, 0));
            assert_eq!(ask(TIOCSTI), Some(libc::EPERM));
            assert_eq!(ask(TIOCLINUX), Some(libc::EPERM));
            assert_eq!(ask(0x5413), Some(libc::EBADF));
        });
        assert!(thread.join().is_ok());
    }

    /// What the filter says, by the rules of classic BPF.
    fn decide(architecture: u32, number: u32, request: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let instruction = FILTER[at];
            at += 1;
            match instruction.code {
                LOAD => {
                    loaded = match instruction.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        REQUEST => request,
                        other => unreachable!("nothing is at {other}"),
                    }
                }
                EQUALS => {
                    let skip = if loaded == instruction.k {
                        instruction.jt
                    } else {
                        instruction.jf
                    };
                    at += usize::from(skip);
                }
                RETURN => return instruction.k,
                other => unreachable!("no instruction {other:#x}"),
            }
        }
    }
}
