//! From a channel's identity to its place in the tables: enrolled or found, numbered, counted.
//!
//! What a descriptor is is found out by [`resolve`](crate::resolve).

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_loop};
use countersign_common::{
    ChannelId, Transfer, channel_kind, counter, direction,
    load::{ChannelKey, ChannelState, MOVED},
    tag,
};

use crate::{
    emit::{count, fetch_add},
    inet,
    maps::{CHANNELS, PROXY_CHANNELS},
    resolve::{identify, is_own_terminal},
    scope::Held,
};

/// `BPF_NOEXIST`.
const NO_EXIST: u64 = 1;
/// Looks at a channel that another CPU is moving. A move takes some ten nanoseconds.
const READY_SPINS: u32 = 1 << 14;

/// How [`enrol`] found a channel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// It was in the table.
    Known,
    /// It is now.
    New,
    /// It is not, and must not or cannot be.
    No,
}

impl From<u64> for Enrolled {
    #[inline(always)]
    fn from(how: u64) -> Self {
        if how == Self::Known as u64 {
            Self::Known
        } else if how == Self::New as u64 {
            Self::New
        } else {
            Self::No
        }
    }
}

/// What [`enrol`] may do: add the channel to the table.
pub const MAY_ADD: u64 = 1;
/// What [`enrol`] must do: move the channel to the proxies' table.
pub const BY_PROXY: u64 = 2;

/// What [`enrol`] may and must do for an operation of a task with this tag.
#[inline(always)]
pub const fn leave(bits: u32) -> u64 {
    let mut leave = 0;
    if bits & tag::TREE != 0 {
        leave |= MAY_ADD;
    }
    if bits & tag::PROXY != 0 {
        leave |= BY_PROXY;
    }
    leave
}

/// Finds the channel in the tables, adding it with [`MAY_ADD`] or when its other end is there. Completes the channel's id with
/// device, kind, epoch and the last peer known.
#[inline(always)]
pub fn enrol(held: &mut Held, leave: u64) -> Enrolled {
    // SAFETY: a reference.
    Enrolled::from(unsafe { enrol_channel(held, leave) })
}

/// [`enrol`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn enrol_channel(held: *mut Held, leave: u64) -> u64 {
    if held.is_null() {
        return Enrolled::No as u64;
    }
    // SAFETY: the caller's.
    find(unsafe { &mut *held }, leave).0 as u64
}

/// [`enrol`], and numbers an operation of `bytes` in `transfer`, all with one look-up. Without bytes nothing is numbered.
///
/// # Safety
/// `transfer` is the record under construction.
#[inline(always)]
pub unsafe fn enrol_operation(
    held: &mut Held,
    leave: u64,
    op_direction: u64,
    bytes: u64,
    transfer: *mut Transfer,
) -> Enrolled {
    // SAFETY: the caller's.
    Enrolled::from(unsafe { enrol_transfer(held, leave, op_direction, bytes, transfer) })
}

/// [`enrol_operation`], verified once.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn enrol_transfer(
    held: *mut Held,
    leave: u64,
    op_direction: u64,
    bytes: u64,
    transfer: *mut Transfer,
) -> u64 {
    if held.is_null() || transfer.is_null() {
        return Enrolled::No as u64;
    }
    // SAFETY: the caller's.
    let held = unsafe { &mut *held };
    let (how, state) = find(held, leave);
    let mut place = (0, 0);
    if let Some(state) = state
        && bytes != 0
    {
        let key = key_of(&held.channel);
        // SAFETY: a value of the maps for this key.
        place = unsafe { advance_at(&key, state, op_direction as u8, bytes) };
    }
    // SAFETY: the caller's.
    unsafe { ((*transfer).op_seq, (*transfer).stream_before) = place };
    how as u64
}

#[inline(always)]
fn key_of(id: &ChannelId) -> ChannelKey {
    ChannelKey {
        object: id.object,
        inode: id.inode,
    }
}

/// The tables are asked in the order in which the channel is likely to be there. One that has moved is still in the first
/// table, marked, until it makes room.
#[inline(always)]
fn find(held: &mut Held, leave: u64) -> (Enrolled, Option<*mut ChannelState>) {
    let key = key_of(&held.channel);
    let mut how = Enrolled::Known;
    let mut found = None;
    let mut here = None;
    if leave & BY_PROXY == 0 {
        here = CHANNELS.get_ptr_mut(&key).filter(|state| {
            // SAFETY: a value of the map.
            unsafe { !has_moved(*state) }
        });
    }
    if here.is_none() {
        found = PROXY_CHANNELS.get_ptr_mut(&key);
    }
    if found.is_none() {
        found = here.or_else(|| CHANNELS.get_ptr_mut(&key));
        if found.is_none() {
            if !may_be_added(held, leave) {
                return (Enrolled::No, None);
            }
            let _ = identify(held);
            let id = &held.channel;
            let what = u64::from(id.dev) << 8 | u64::from(id.kind);
            add_channel(key.object, key.inode, what, held.super_block);
            found = CHANNELS.get_ptr_mut(&key);
            how = Enrolled::New;
            if held.channel.kind == channel_kind::TCP {
                let id = &held.channel;
                tell_peer(id.object, id.inode, id.peer_object, id.peer_inode);
            }
        } else if let Some(state) = found
            && held.channel.kind == channel_kind::TCP
        {
            // SAFETY: a value of the map. No socket leads to the other end of a TCP connection: it was found before, or it told.
            unsafe {
                held.channel.peer_object = (*state).peer_object;
                held.channel.peer_inode = (*state).peer_inode;
            }
        }
        if leave & BY_PROXY != 0 || other_end_of_proxy(&held.channel) {
            move_channel(key.object, key.inode);
            if let Some(moved) = PROXY_CHANNELS.get_ptr_mut(&key) {
                found = Some(moved);
            }
        }
    }
    let Some(state) = found else {
        count(counter::CHANNEL_FAILED, 1);
        // SAFETY: no arguments. An epoch of its own: the numbers that follow continue nothing.
        held.channel.epoch = unsafe { bpf_ktime_get_boot_ns() };
        return (Enrolled::No, None);
    };
    // SAFETY: a value of the map, word-sized accesses.
    unsafe {
        if (*state).super_block == held.super_block {
            held.channel.dev = (*state).dev;
            held.channel.kind = (*state).kind as u8;
        } else {
            // Memory that was another file system's inode of that number before.
            let _ = identify(held);
        }
        let id = &mut held.channel;
        id.epoch = (*state).epoch;
        if id.peer_inode != 0 {
            (*state).peer_object = id.peer_object;
            (*state).peer_inode = id.peer_inode;
        } else if id.peer_object == 0 || id.peer_object == (*state).peer_object {
            id.peer_object = (*state).peer_object;
            id.peer_inode = (*state).peer_inode;
        } else {
            (*state).peer_object = id.peer_object;
            (*state).peer_inode = 0;
        }
    }
    (how, Some(state))
}

/// Whether a channel that is not in the tables may be added. Finds the other end of a TCP connection.
#[inline(always)]
fn may_be_added(held: &mut Held, leave: u64) -> bool {
    let of_tree = leave & MAY_ADD != 0;
    if held.channel.kind == channel_kind::TCP {
        let peer = inet::tcp_meet(held.channel.object, held.channel.inode, of_tree);
        held.channel.peer_object = peer;
        held.channel.peer_inode = inet::socket_inode(peer);
        return of_tree || peer != 0;
    }
    let near = other_end_known(&held.channel);
    if held.channel.kind == channel_kind::TTY {
        // Nobody outside is drawn in by holding the other side of a terminal: they may be whoever shows it to a person.
        let own = is_own_terminal(held.channel.object, held.channel.inode) != 0;
        return of_tree && (near || own);
    }
    of_tree || near
}

/// Names this end in the state of the other one, which came first.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_peer(object: u64, inode: u64, peer_object: u64, peer_inode: u64) -> u64 {
    let key = ChannelKey {
        object: peer_object,
        inode: peer_inode,
    };
    if let Some(state) = PROXY_CHANNELS
        .get_ptr_mut(&key)
        .or_else(|| CHANNELS.get_ptr_mut(&key))
    {
        // SAFETY: a value of the map, word-sized stores.
        unsafe {
            (*state).peer_object = object;
            (*state).peer_inode = inode;
        }
    }
    0
}

/// Forgets a TCP socket that connects: what it was connected to before is another channel.
#[inline(always)]
pub fn forget(id: &ChannelId) {
    let key = key_of(id);
    let _ = CHANNELS.remove(&key);
    let _ = PROXY_CHANNELS.remove(&key);
}

/// Whether the channel has begun to move to the proxies' table: its counters are marked one after the other, this one first.
///
/// # Safety
/// `state` is a value of a map.
#[inline(always)]
unsafe fn has_moved(state: *mut ChannelState) -> bool {
    // SAFETY: the caller's.
    unsafe { read_volatile(&raw const (*state).ops[0]) & MOVED != 0 }
}

// Functions with a C name are global to the verifier: it looks at each once, and not again in every state of every caller.

/// Adds a channel: `what` is device and kind. Another CPU may have added it since: then this one is refused.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn add_channel(object: u64, inode: u64, what: u64, super_block: u64) -> u64 {
    let key = ChannelKey { object, inode };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let state = ChannelState {
        epoch: now,
        peer_object: 0,
        peer_inode: 0,
        ops: [0; 2],
        bytes: [0; 2],
        dev: (what >> 8) as u32,
        kind: (what & 0xff) as u32,
        ready: 1,
        super_block,
        told_ops: 0,
    };
    let _ = CHANNELS.insert(&key, &state, NO_EXIST);
    0
}

/// Moves a channel to the proxies' table.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn move_channel(object: u64, inode: u64) -> u64 {
    let key = ChannelKey { object, inode };
    if let Some(state) = CHANNELS.get_ptr_mut(&key) {
        // SAFETY: a value of the map.
        let _ = unsafe { move_to_proxies(&key, state) };
    }
    0
}

/// Whether a channel is in one of the tables. 1 if so.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn has_channel(object: u64, inode: u64) -> u64 {
    if object == 0 || inode == 0 {
        return 0;
    }
    let key = ChannelKey { object, inode };
    u64::from(CHANNELS.get_ptr(&key).is_some() || PROXY_CHANNELS.get_ptr(&key).is_some())
}

/// Moves a channel to the proxies' table with its epoch and counts. An operation on another CPU meanwhile finds [`MOVED`] in
/// the old counter and counts in the new one, once it is ready.
///
/// # Safety
/// `old` is a value of [`CHANNELS`] for this key.
#[inline(always)]
unsafe fn move_to_proxies(key: &ChannelKey, old: *mut ChannelState) -> Option<*mut ChannelState> {
    // SAFETY: word-sized reads of a value, atomic additions to its counters.
    unsafe {
        // For a zero that it knows LLVM calls a `memset`, and its frame.
        let zero = core::hint::black_box(0_u64);
        let state = ChannelState {
            epoch: (*old).epoch,
            peer_object: (*old).peer_object,
            peer_inode: (*old).peer_inode,
            ops: [zero; 2],
            bytes: [zero; 2],
            dev: (*old).dev,
            kind: (*old).kind,
            ready: 0,
            super_block: (*old).super_block,
            told_ops: (*old).told_ops,
        };
        if PROXY_CHANNELS.insert(key, &state, NO_EXIST).is_err() {
            // Another CPU moves it, or there is no room: then it stays where it was.
            return PROXY_CHANNELS.get_ptr_mut(key);
        }
        let new = PROXY_CHANNELS.get_ptr_mut(key)?;
        let counted = fetch_add(&raw mut (*old).ops[0], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).ops[0], counted);
        let counted = fetch_add(&raw mut (*old).ops[1], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).ops[1], counted);
        let counted = fetch_add(&raw mut (*old).bytes[0], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).bytes[0], counted);
        let counted = fetch_add(&raw mut (*old).bytes[1], MOVED) & !MOVED;
        fetch_add(&raw mut (*new).bytes[1], counted);
        fetch_add(&raw mut (*new).ready, 1);
        Some(new)
    }
}

/// Waits until another CPU has moved the counts of a channel here: four additions, unless it is interrupted. Counted when it
/// takes longer than that can.
///
/// # Safety
/// `state` is a value of the map.
#[inline(always)]
unsafe fn wait_ready(state: *mut ChannelState) {
    // SAFETY: the caller's; the callback gets the address of `context`, which lives until the helper returns.
    unsafe {
        if read_volatile(&raw const (*state).ready) != 0 {
            return;
        }
        let mut context = state;
        bpf_loop(
            READY_SPINS,
            is_ready as *const () as *mut c_void,
            (&raw mut context).cast(),
            0,
        );
        if read_volatile(&raw const (*state).ready) == 0 {
            count(counter::CHANNEL_FAILED, 1);
        }
    }
}

unsafe extern "C" fn is_ready(_index: u64, context: *mut c_void) -> i64 {
    // SAFETY: `wait_ready` passes the address of its pointer.
    unsafe {
        let state = *context.cast::<*mut ChannelState>();
        i64::from(read_volatile(&raw const (*state).ready) != 0)
    }
}

/// Takes a number and a place in the stream for an operation of `bytes`; `(op_seq, stream_before)`.
///
/// The two counters move one after the other: for operations whose probes run at the same time on two CPUs the order of
/// the bytes can be that of the numbers swapped. Such operations overlap in time too, and the sums are exact.
#[inline(always)]
pub fn advance(id: &ChannelId, op_direction: u8, bytes: u64) -> (u64, u64) {
    let key = ChannelKey {
        object: id.object,
        inode: id.inode,
    };
    let Some(state) = PROXY_CHANNELS
        .get_ptr_mut(&key)
        .or_else(|| CHANNELS.get_ptr_mut(&key))
    else {
        return (0, 0);
    };
    // SAFETY: a value of the maps for this key.
    unsafe { advance_at(&key, state, op_direction, bytes) }
}

/// [`advance`] for a channel that was looked up.
///
/// # Safety
/// `state` is a value of the maps for this key.
#[inline(always)]
unsafe fn advance_at(
    key: &ChannelKey,
    state: *mut ChannelState,
    op_direction: u8,
    bytes: u64,
) -> (u64, u64) {
    // SAFETY: values of the maps, aligned to 8 and only ever changed atomically.
    unsafe {
        wait_ready(state);
        let mut place = add(state, op_direction, 1, bytes);
        if (place.0 | place.1) & MOVED != 0 {
            let Some(state) = PROXY_CHANNELS.get_ptr_mut(key) else {
                return (0, 0);
            };
            wait_ready(state);
            // One of the two can have been counted before the move.
            let ops = if place.0 & MOVED != 0 { 1 } else { 0 };
            let more = if place.1 & MOVED != 0 { bytes } else { 0 };
            let there = add(state, op_direction, ops, more);
            if ops != 0 {
                place.0 = there.0;
            }
            if place.1 & MOVED != 0 {
                place.1 = there.1;
            }
        }
        place
    }
}

/// Adds to both counters of a direction; their values before. The bytes first: whoever reads the number of operations, and then the bytes,
/// has the bytes of all of these.
///
/// # Safety
/// `state` is a value of a map.
#[inline(always)]
unsafe fn add(state: *mut ChannelState, op_direction: u8, ops: u64, bytes: u64) -> (u64, u64) {
    // SAFETY: the caller's.
    unsafe {
        if op_direction == direction::READ {
            let before = fetch_add(&raw mut (*state).bytes[0], bytes);
            (fetch_add(&raw mut (*state).ops[0], ops), before)
        } else {
            let before = fetch_add(&raw mut (*state).bytes[1], bytes);
            (fetch_add(&raw mut (*state).ops[1], ops), before)
        }
    }
}

/// A channel's place in the tables, where it counts now.
#[inline(always)]
pub fn state_of(key: &ChannelKey) -> Option<*mut ChannelState> {
    PROXY_CHANNELS.get_ptr_mut(key).or_else(|| {
        CHANNELS.get_ptr_mut(key).filter(|state| {
            // SAFETY: a value of the map.
            unsafe { !has_moved(*state) }
        })
    })
}

/// Whether the channel is in one of the tables.
#[inline(always)]
pub fn is_known(id: &ChannelId) -> bool {
    has_channel(id.object, id.inode) != 0
}

/// Whether the socket at the other end is in one of the tables.
#[inline(always)]
pub fn other_end_known(id: &ChannelId) -> bool {
    has_channel(id.peer_object, id.peer_inode) != 0
}

/// Whether the socket at the other end is one that a proxy has used.
#[inline(always)]
fn other_end_of_proxy(id: &ChannelId) -> bool {
    if id.peer_object == 0 || id.peer_inode == 0 {
        return false;
    }
    let key = ChannelKey {
        object: id.peer_object,
        inode: id.peer_inode,
    };
    PROXY_CHANNELS.get_ptr(&key).is_some()
}
