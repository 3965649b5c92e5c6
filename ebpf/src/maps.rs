//! Every map of the programs.

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_TASK_STORAGE, task_struct,
    },
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    helpers::generated::bpf_task_storage_get,
    macros::btf_map,
};
use countersign_common::{
    Task,
    load::{
        AttemptKey, ChannelKey, ChannelState, CpuState, Credit, ExeKey, TcpListener, TcpTuple,
        WatchedFile,
    },
    tag::POOLS,
};

use crate::{
    attempt::Attempt,
    log::SUBJECTS,
    probes::process::Forked,
    scope::{Request, Thread},
};

/// The data ring. The size here is the default; user space may set another power of two.
#[btf_map]
pub static RING: RingBuf<u8, { 64 << 20 }> = RingBuf::new();

/// The control ring: what says who did what. A flood of data never fills it.
#[btf_map]
pub static CONTROL: RingBuf<u8, { 16 << 20 }> = RingBuf::new();

/// Balances made in this run. In a map and not on the stack, because what comes from a map is unknown to the verifier: else it follows
/// each count by itself ("The sequence of 8193 jumps is too complex").
#[btf_map]
pub static BALANCED: Array<u64, 1> = Array::new();

/// What each pool has on its way. Mapped by user space, which gives credit back without a system call.
#[btf_map]
pub static CREDITS: Array<Credit, POOLS, { BPF_F_MMAPABLE as usize }> = Array::new();

/// A process's [`tag`](countersign_common::tag), in the storage of its thread-group leader.
#[btf_map]
pub static TAGS: TaskStorage<u32> = TaskStorage::new();

/// What is known of a new task before its first step, by its number: where programs are on trace events, which name the child by that alone. Each
/// entry goes with that step, so that the room, which is set at load, is for tasks that were made and have not run yet.
#[btf_map]
pub static FORKED: HashMap<u32, Forked, 8192> = HashMap::new();

/// The system call that a thread is in, in the storage of that thread.
#[btf_map]
pub static THREADS: TaskStorage<Thread> = TaskStorage::new();

/// Channels that a task of the tree has held or used. Least recently used ones make room, so that churning through pipes
/// costs a channel in use nothing: it has been used since.
#[btf_map]
pub static CHANNELS: LruHashMap<ChannelKey, ChannelState, 65536> = LruHashMap::new();

/// Channels that a proxy has used, and the other ends of its sockets. A table of their own, so that no churn through pipes makes
/// room at their expense; only starting thousands of proxies does.
#[btf_map]
pub static PROXY_CHANNELS: LruHashMap<ChannelKey, ChannelState, 16384> = LruHashMap::new();

/// Addresses (`struct unix_address`, shared by a listener and what it accepts) on which the tree listens.
#[btf_map]
pub static LISTENERS: LruHashMap<u64, u64, 1024> = LruHashMap::new();

/// Ends of TCP connections of the tree, by their addresses: how the other end is found. Each is compared with its socket when it is
/// used, so one that is out of date finds nothing.
#[btf_map]
pub static TUPLES: LruHashMap<TcpTuple, ChannelKey, 32768> = LruHashMap::new();

/// Sockets (`struct sock`) with which the tree is connecting over TCP.
#[btf_map]
pub static CONNECTING: LruHashMap<u64, u64, 4096> = LruHashMap::new();

/// Addresses and ports on which the tree listens, with the listening socket.
#[btf_map]
pub static TCP_LISTENERS: LruHashMap<TcpListener, u64, 1024> = LruHashMap::new();

/// Executables that are proxies.
#[btf_map]
pub static PROXY_EXES: HashMap<ExeKey, u32, 256> = HashMap::new();

/// `io_uring` requests of watched tasks between submission and completion, by the address of `struct io_kiocb`. One that had to make
/// room is captured with the time of its completion only, and its vectors are a gap.
#[btf_map]
pub static REQUESTS: LruHashMap<u64, Request, 16384> = LruHashMap::new();

/// Requests that complete more than once, by ring and user data: their completions name no request. The value is the request's
/// address, or [`AMBIGUOUS`](crate::probes::uring::AMBIGUOUS).
#[btf_map]
pub static MULTISHOTS: LruHashMap<[u64; 2], u64, 4096> = LruHashMap::new();

/// The program that goes on at `sys_enter` in the 32-bit ABI.
#[btf_map]
pub static COMPAT_ENTER: ProgramArray<1> = ProgramArray::new();

/// The program that goes on at `sys_exit` in the 32-bit ABI.
#[btf_map]
pub static COMPAT_EXIT: ProgramArray<1> = ProgramArray::new();
/// The program that goes on at `sys_enter` for calls that can get round the witness.
#[btf_map]
pub static EVASION_AT_ENTER: ProgramArray<1> = ProgramArray::new();

/// The same for `sys_exit`.
#[btf_map]
pub static EVASION_AT_EXIT: ProgramArray<1> = ProgramArray::new();

/// The program that goes on at `sys_exit` of a call that sent messages.
#[btf_map]
pub static SENT_AT_EXIT: ProgramArray<1> = ProgramArray::new();

/// The program that goes on at `io_uring_complete` of a request that can get round the witness.
#[btf_map]
pub static RING_ATTEMPTS: ProgramArray<1> = ProgramArray::new();

/// A signal that a thread sends: beside its [`ATTEMPTS`], which is the system call that it sends it by.
#[btf_map]
pub static SIGNALS: TaskStorage<Attempt> = TaskStorage::new();

/// Who opened a file for writing last.
#[btf_map]
pub static WRITTEN_FILES: LruHashMap<ExeKey, Task, 16384> = LruHashMap::new();

/// The attempt to get round the witness that a thread is at, in the storage of that thread.
#[btf_map]
pub static ATTEMPTS: TaskStorage<Attempt> = TaskStorage::new();

/// How often each attempt was made. One that made room here is reported again, so that no flood of others hides it.
#[btf_map]
pub static ATTEMPT_COUNTS: LruHashMap<AttemptKey, u64, 16384> = LruHashMap::new();

/// Files whose opening, cutting or renaming is an attempt.
#[btf_map]
pub static WATCHED_FILES: HashMap<ExeKey, WatchedFile, 512> = HashMap::new();

/// Record numbers and counters.
#[btf_map]
pub static CPUS: PerCpuArray<CpuState, 1> = PerCpuArray::new();

/// When a message about each subject came last, `CLOCK_BOOTTIME` nanoseconds.
#[btf_map]
pub static SPOKEN: Array<u64, SUBJECTS> = Array::new();

/// A map with one value per task, freed with it (`BPF_MAP_TYPE_TASK_STORAGE`; Linux >= 5.11). aya-ebpf 0.2.1 has none.
#[repr(C)]
pub struct TaskStorage<T> {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: a definition for the loader; the pointers are never followed.
unsafe impl<T> Sync for TaskStorage<T> {}

impl<T> TaskStorage<T> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// The task's value.
    ///
    /// # Safety
    /// `task` is trusted or RCU-protected in the verifier's eyes.
    #[inline(always)]
    pub unsafe fn find(&self, task: *mut task_struct) -> Option<*mut T> {
        // SAFETY: the verifier checks the pointer.
        let value =
            unsafe { bpf_task_storage_get(self.pointer(), task.cast(), core::ptr::null_mut(), 0) };
        (!value.is_null()).then_some(value.cast())
    }

    /// The task's value, made of zeroes if there is none.
    ///
    /// # Safety
    /// As [`find`](Self::find).
    #[inline(always)]
    pub unsafe fn find_or_create(&self, task: *mut task_struct) -> Option<*mut T> {
        // SAFETY: the verifier checks the pointer.
        let value = unsafe {
            bpf_task_storage_get(
                self.pointer(),
                task.cast(),
                core::ptr::null_mut(),
                u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE),
            )
        };
        (!value.is_null()).then_some(value.cast())
    }

    #[inline(always)]
    fn pointer(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}
