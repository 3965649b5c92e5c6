//! Running a program that is attached to nothing, wherever it was loaded.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::syscall;

/// `BPF_PROG_TEST_RUN`.
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// The start of `union bpf_attr` for it.
#[derive(Default)]
#[repr(C)]
struct RunAttr {
    program: u32,
    returned: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// Runs a raw tracepoint's program here with these arguments; what it returns.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn run_program(program: BorrowedFd<'_>, arguments: &[u64]) -> io::Result<u32> {
    let mut attr = RunAttr {
        program: program.as_raw_fd().cast_unsigned(),
        context_in: arguments.as_ptr() as u64,
        context_size_in: u32::try_from(size_of_val(arguments)).map_err(io::Error::other)?,
        ..RunAttr::default()
    };
    // SAFETY: the arguments live until the call returns, and are as long as is said.
    unsafe { syscall::bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.returned)
}
