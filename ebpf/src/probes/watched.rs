//! Files that matter to the evidence: a proxy's log, a signing key, Countersign's own. Who opens them, and what becomes of them.
//!
//! A file is known by its inode, never by a path: what a call that takes paths did is told from the inode before and after.
//! Of two such calls at the same time either can be named as the one that did it.

use core::ffi::c_void;

use aya_ebpf::{bindings::task_struct, helpers::generated::bpf_for_each_map_elem};
use countersign_common::{
    channel_kind, counter,
    evasion::{file_class, what},
    load::{ExeKey, WatchedFile},
    tag,
};

use crate::{
    attempt::{Attempt, begin, report},
    emit::count,
    maps::{WATCHED_FILES, WRITTEN_FILES},
    offsets::{current, group_leader, kernel, off},
    resolve::{FILES, WHOLE, file_of, resolve},
    scope::Held,
    target::{self, PROC_MAGIC},
};

const FMODE_WRITE: u64 = 2;
const FMODE_READ_WRITE: u64 = 3;
/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Names of entries of `/proc/PID`, as the first eight bytes in memory.
const MEM: u64 = u64::from_le_bytes(*b"mem\0\0\0\0\0");
const ENVIRON: u64 = u64::from_le_bytes(*b"environ\0");

/// A proxy has opened a regular file for writing: from now on nobody else may unseen.
#[inline(never)]
fn watch(held: &Held) -> i64 {
    let key = ExeKey {
        inode: held.channel.inode,
        dev: held.channel.dev,
        reserved: 0,
    };
    let entry: u64 = kernel(held.file, off!(file_dentry)).unwrap_or(0);
    if let Some(known) = WATCHED_FILES.get_ptr_mut(&key) {
        // SAFETY: words of a value of the map.
        unsafe {
            (*known).object = held.channel.object;
            (*known).entry = entry;
        }
        return 0;
    }
    let file = WatchedFile {
        class: file_class::WRITTEN_BY_PROXY,
        links: 0,
        object: held.channel.object,
        entry,
        place: 0,
        size: 0,
    };
    if WATCHED_FILES.insert(&key, &file, NO_EXIST).is_err() {
        count(counter::CHANNEL_FAILED, 1);
    }
    0
}

/// At `sys_exit` of an open by a watched process.
///
/// # Safety
/// `task` is the current task.
#[inline(never)]
pub unsafe fn opened(task: *mut task_struct, bits: u32, fd: u64, number: u64) -> i64 {
    let mut held = Held::empty();
    let file = file_of(task, fd);
    resolve(&mut held, file, FILES | WHOLE);
    if held.channel.kind != channel_kind::FILE {
        return 0;
    }
    let magic: u64 = kernel(held.super_block, off!(sb_magic)).unwrap_or(0);
    // SAFETY: the current task; a value of the map.
    unsafe {
        if magic == PROC_MAGIC {
            of_process(task, &held, number);
            return 0;
        }
        let of_proxy = bits & tag::PROXY != 0;
        let writes = held.mode & FMODE_WRITE != 0;
        if of_proxy && writes {
            watch(&held);
        }
        let key = ExeKey {
            inode: held.channel.inode,
            dev: held.channel.dev,
            reserved: 0,
        };
        let class = match WATCHED_FILES.get_ptr(&key) {
            Some(known) => (*known).class,
            None if lies_in_own(&held) => file_class::OWN,
            None => {
                shared(task, &held, &key, number);
                return 0;
            }
        };
        if (class == file_class::WRITTEN_BY_PROXY && (of_proxy || !writes))
            || (class == file_class::KEY && of_proxy)
        {
            return 0;
        }
        let Some(attempt) = begin(task, number) else {
            return 0;
        };
        let flags: u32 = kernel(file, off!(file_flags)).unwrap_or(0);
        (*attempt).inode = held.channel.inode;
        (*attempt).dev = held.channel.dev;
        (*attempt).returned = fd as i64;
        (*attempt).argument = held.mode & FMODE_READ_WRITE | u64::from(flags) << 32;
        (*attempt).number = u64::from(class);
        (*attempt).what = u32::from(what::FILE_OPENED);
        report(attempt);
    }
    0
}

/// A file like any other: whoever writes it and whoever opens it then can speak through it.
#[inline(always)]
unsafe fn shared(task: *mut task_struct, held: &Held, key: &ExeKey, number: u64) {
    // SAFETY: the current task; a value of the map.
    unsafe {
        let own = current(group_leader(task));
        if let Some(writer) = WRITTEN_FILES.get_ptr(key)
            && ((*writer).tgid != own.tgid || (*writer).start_boot_ns != own.start_boot_ns)
            && let Some(attempt) = begin(task, number)
        {
            // The file is no part of what makes two alike: a thousand files between the same two are one row.
            (*attempt).target.tgid = (*writer).tgid;
            (*attempt).target.tid = (*writer).tid;
            (*attempt).target.start_boot_ns = (*writer).start_boot_ns;
            (*attempt).argument = held.channel.inode;
            (*attempt).number = held.mode & FMODE_READ_WRITE;
            (*attempt).what = u32::from(what::FILE_SHARED);
            report(attempt);
        }
        if held.mode & FMODE_WRITE != 0 {
            let _ = WRITTEN_FILES.insert(key, &own, 0);
        }
    }
}

/// Whether the file lies in a folder of Countersign's, or in one of its folders: as deep as the spool is.
#[inline(always)]
fn lies_in_own(held: &Held) -> bool {
    let entry: u64 = kernel(held.file, off!(file_dentry)).unwrap_or(0);
    let folder: u64 = kernel(entry, off!(dentry_parent)).unwrap_or(0);
    let above: u64 = kernel(folder, off!(dentry_parent)).unwrap_or(0);
    is_own(held, folder) || is_own(held, above)
}

#[inline(always)]
fn is_own(held: &Held, folder: u64) -> bool {
    let inode: u64 = kernel(folder, off!(dentry_inode)).unwrap_or(0);
    let key = ExeKey {
        inode: kernel(inode, off!(inode_ino)).unwrap_or(0),
        dev: held.channel.dev,
        reserved: 0,
    };
    match WATCHED_FILES.get_ptr(&key) {
        // SAFETY: a value of the map.
        Some(known) => unsafe { (*known).class == file_class::OWN },
        None => false,
    }
}

/// An entry of `/proc/PID`: whose memory or environment it is.
#[inline(always)]
unsafe fn of_process(task: *mut task_struct, held: &Held, number: u64) {
    let entry: u64 = kernel(held.file, off!(file_dentry)).unwrap_or(0);
    let name: u64 = kernel(entry, off!(dentry_name)).unwrap_or(0);
    let text: u64 = kernel(name, 0).unwrap_or(0);
    let len: u32 = kernel(entry, off!(dentry_name_len)).unwrap_or(0);
    let kind = if len == 3 && text & 0xffff_ffff == MEM {
        what::MEMORY_OPENED
    } else if len == 7 && text == ENVIRON {
        what::ENVIRONMENT_OPENED
    } else {
        return;
    };
    let pid = target::pid_of_proc(held.channel.object).unwrap_or(0);
    // SAFETY: the current task.
    unsafe {
        let Some(attempt) = begin(task, number) else {
            return;
        };
        if pid == 0 || !target::by_pid(attempt, pid) {
            return;
        }
        let own = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
        if (*attempt).target.tgid == own {
            return;
        }
        (*attempt).number = held.mode & FMODE_READ_WRITE;
        (*attempt).what = u32::from(kind);
        report(attempt);
    }
}

/// At `sys_enter` of a call that may cut, remove or rename: how the watched files are now.
#[inline(never)]
pub fn note() -> i64 {
    each(look as *const () as *mut c_void, core::ptr::null_mut());
    0
}

/// At its `sys_exit`: reports what is different.
///
/// # Safety
/// `attempt` is the current thread's.
#[inline(never)]
pub unsafe fn compare(attempt: *mut Attempt) -> i64 {
    let mut context = attempt;
    each(
        differs as *const () as *mut c_void,
        (&raw mut context).cast(),
    );
    0
}

#[inline(always)]
fn each(callback: *mut c_void, context: *mut c_void) {
    // SAFETY: a map of this object and a callback of this program.
    unsafe {
        bpf_for_each_map_elem(
            core::ptr::from_ref(&WATCHED_FILES).cast_mut().cast(),
            callback,
            context,
            0,
        );
    }
}

/// Links, length and place of a watched file, unless its inode is another's by now.
#[inline(always)]
fn state(key: &ExeKey, file: &WatchedFile) -> Option<(u32, u64, u64)> {
    if file.object == 0 || kernel::<u64>(file.object, off!(inode_ino))? != key.inode {
        return None;
    }
    let sb: u64 = kernel(file.object, off!(inode_sb))?;
    if kernel::<u32>(sb, off!(sb_dev))? != key.dev {
        return None;
    }
    let mut place = 0;
    // A directory entry that is another's by now tells nothing.
    if file.entry != 0 && kernel::<u64>(file.entry, off!(dentry_inode))? == file.object {
        let parent: u64 = kernel(file.entry, off!(dentry_parent))?;
        // The hash lies before the length, `struct qstr`.
        let name: u64 = kernel(file.entry, off!(dentry_name_len) - 4)?;
        place = parent ^ name;
    }
    Some((
        kernel(file.object, off!(inode_nlink))?,
        kernel(file.object, off!(inode_size))?,
        place,
    ))
}

unsafe extern "C" fn look(
    _map: *mut c_void,
    key: *const ExeKey,
    file: *mut WatchedFile,
    _context: *mut c_void,
) -> i64 {
    // SAFETY: an element of the map.
    unsafe {
        if let Some((links, size, place)) = state(&*key, &*file) {
            (*file).links = links;
            (*file).size = size;
            (*file).place = place;
        }
    }
    0
}

unsafe extern "C" fn differs(
    _map: *mut c_void,
    key: *const ExeKey,
    file: *mut WatchedFile,
    context: *mut c_void,
) -> i64 {
    // SAFETY: an element of the map; `compare` passes the address of its pointer.
    unsafe {
        let Some((links, size, place)) = state(&*key, &*file) else {
            return 0;
        };
        let kind = if links < (*file).links {
            what::FILE_REMOVED
        } else if size < (*file).size {
            what::FILE_CUT
        } else if place != (*file).place && place != 0 && (*file).place != 0 {
            what::FILE_RENAMED
        } else {
            return 0;
        };
        // Whoever comes after finds it as it is now.
        (*file).links = links;
        (*file).size = size;
        (*file).place = place;
        let attempt = *context.cast::<*mut Attempt>();
        (*attempt).inode = (*key).inode;
        (*attempt).dev = (*key).dev;
        (*attempt).number = u64::from((*file).class);
        (*attempt).what = u32::from(kind);
        report(attempt);
    }
    0
}
