//! The environment that a proxy is executed with: variables by which whoever starts it puts code into it.
//!
//! Read when the program is in place and has not run: nobody but the kernel has written there yet.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::task_struct,
    helpers::generated::{bpf_loop, bpf_probe_read_user_str},
};
use countersign_common::evasion::loader;

use crate::offsets::{kernel, off};

/// Bytes looked at at a time: longer than any name that is looked for.
const PIECE_BYTES: u64 = 64;
/// Pieces looked at: 256 KiB of environment, or so many variables. A longer one counts as unread.
const PIECES_MAX: u32 = 4096;

struct Search {
    place: u64,
    end: u64,
    found: u64,
    /// Not at the beginning of a variable.
    within: u64,
}

/// Bits of [`loader`] of what is set.
#[inline(always)]
pub fn variables(task: *mut task_struct) -> u64 {
    let mm: u64 = kernel(task as u64, off!(task_mm)).unwrap_or(0);
    if mm == 0 {
        return 0;
    }
    let mut search = Search {
        place: kernel(mm, off!(mm_env_start)).unwrap_or(0),
        end: kernel(mm, off!(mm_env_end)).unwrap_or(0),
        found: 0,
        within: 0,
    };
    // SAFETY: the callback gets the address of `search`, which lives until the helper returns.
    unsafe {
        bpf_loop(
            PIECES_MAX,
            step as *const () as *mut c_void,
            (&raw mut search).cast(),
            0,
        );
        if core::ptr::read_volatile(&raw const search.place)
            < core::ptr::read_volatile(&raw const search.end)
        {
            return core::ptr::read_volatile(&raw const search.found) | loader::UNREAD;
        }
        core::ptr::read_volatile(&raw const search.found)
    }
}

unsafe extern "C" fn step(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `variables` passes the address of its search; the helper checks the address in user memory.
    unsafe {
        let search = context.cast::<Search>();
        if (*search).place >= (*search).end {
            return 1;
        }
        let mut text = [0_u64; (PIECE_BYTES / 8) as usize];
        let read = bpf_probe_read_user_str(
            text.as_mut_ptr().cast(),
            PIECE_BYTES as u32,
            (*search).place as *const c_void,
        );
        if read < 0 {
            // What lies behind it is not known.
            return 1;
        }
        // Of nothing but a NUL older kernels say that they read nothing.
        let read = if read == 0 { 1 } else { read as u64 };
        if (*search).within == 0 {
            (*search).found |= named(text[0], text[1]);
        }
        if read == PIECE_BYTES {
            // The last byte is the helper's own NUL.
            (*search).place += PIECE_BYTES - 1;
            (*search).within = 1;
        } else {
            (*search).place += read;
            (*search).within = 0;
        }
    }
    0
}

/// The variable whose first sixteen bytes these are. One without a value does nothing.
#[inline(always)]
fn named(first: u64, second: u64) -> u64 {
    if starts(first, second, b"LD_PRELOAD=\0\0\0\0\0", 11) {
        loader::PRELOAD
    } else if starts(first, second, b"LD_AUDIT=\0\0\0\0\0\0\0", 9) {
        loader::AUDIT
    } else if starts(first, second, b"LD_LIBRARY_PATH=", 15) {
        loader::LIBRARY_PATH
    } else if starts(first, second, b"NODE_OPTIONS=\0\0\0", 13) {
        loader::NODE_OPTIONS
    } else if starts(first, second, b"PYTHONPATH=\0\0\0\0\0", 11)
        || starts(first, second, b"PYTHONHOME=\0\0\0\0\0", 11)
    {
        loader::PYTHON
    } else {
        0
    }
}

/// Whether the text begins with the first `len` bytes of `name`, `len` over 8, and goes on behind it.
#[inline(always)]
fn starts(first: u64, second: u64, name: &[u8; 16], len: u32) -> bool {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *name;
    if first != u64::from_le_bytes([a, b, c, d, e, f, g, h]) {
        return false;
    }
    let wanted = u64::from_le_bytes(rest);
    let bits = (len - 8) * 8;
    let mask = (1_u64 << bits) - 1;
    second & mask == wanted & mask && (len >= 15 || (second >> bits) & 0xff != 0)
}
