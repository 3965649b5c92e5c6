//! A capture, a forked child that is tagged before it does anything, and what was captured of it.

use std::{
    fmt,
    net::{TcpListener, TcpStream},
    os::fd::IntoRawFd,
    panic,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use countersign::bpf::{
    capture::Capture, hook::Hook, load::load, object::object, options::LoadOptions, tier::Tier,
};
use countersign_common::{
    ChannelEnd, Exec, Exit, FileOpen, Fork, Peer, Queued, RecordHeader, SocketAddress,
    SocketCounts, Transfer, direction, evasion::Evasion, kind, transfer_flags,
};
use countersign_tests::scene::{Outcome, Play};
use zerocopy::FromBytes;

/// Longest wait for a record that must come.
const DEADLINE: Duration = Duration::from_secs(5);

/// `limit`, longer by the factor in `COUNTERSIGN_PATIENCE`: on an emulated machine everything takes longer.
pub(crate) fn patiently(limit: Duration) -> Duration {
    let factor = std::env::var("COUNTERSIGN_PATIENCE");
    limit
        * factor.map_or(1, |factor| {
            factor.parse().expect("COUNTERSIGN_PATIENCE is a number")
        })
}

/// One capture at a time: two would double each other's work, and a test must not depend on the other's time.
static ONE: Mutex<()> = Mutex::new(());

/// A loaded capture and all it has delivered so far.
pub(crate) struct Witness {
    pub(crate) capture: Capture,
    records: Vec<Vec<u8>>,
    one: MutexGuard<'static, ()>,
}

/// One operation put together from its records.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) first: Transfer,
    /// Captured parts at their offsets; gaps are zeroes.
    pub(crate) bytes: Vec<u8>,
    /// Length and reason of each gap.
    pub(crate) gaps: Vec<(u32, u16)>,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:x} before {} op {} dir {} nr {} tid {} flags {:#x} returned {} gaps {:?} bytes {:?}",
            self.first.channel.object,
            self.first.stream_before,
            self.first.op_seq,
            self.first.direction,
            self.first.syscall,
            self.first.task.tid,
            self.first.flags,
            self.first.returned,
            self.gaps,
            String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(40)]),
        )
    }
}

/// Loads the programs, or says why this test cannot run (`None`). With `COUNTERSIGN_REQUIRE_LIVE=1` that is a failure.
pub(crate) fn witness_with(options: &LoadOptions) -> Option<Witness> {
    // SAFETY: no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    let reason = if object().is_empty() {
        "the kernel programs are not built in"
    } else if is_root {
        let one = ONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        crate::messages::listen();
        let options = LoadOptions {
            tier: tier(),
            hook: hook(),
            ..options.clone()
        };
        let capture = load(&options).expect("the programs load");
        return Some(Witness {
            capture,
            records: Vec::new(),
            one,
        });
    } else {
        "capturing needs root"
    };
    assert_ne!(
        std::env::var("COUNTERSIGN_REQUIRE_LIVE").as_deref(),
        Ok("1"),
        "live tests are required here, but {reason}"
    );
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {reason}\n").as_bytes(),
    );
    None
}

/// The tier under test: `COUNTERSIGN_TIER`, else tier T.
pub(crate) fn tier() -> Tier {
    match std::env::var("COUNTERSIGN_TIER") {
        Ok(name) => name.parse().expect("COUNTERSIGN_TIER names a tier"),
        Err(_) => Tier::default(),
    }
}

/// How programs get onto tracepoints: `COUNTERSIGN_HOOK=events`, else by the kernel's types.
pub(crate) fn hook() -> Hook {
    match std::env::var("COUNTERSIGN_HOOK").as_deref() {
        Ok("events") => Hook::Event,
        Ok(other) => panic!("COUNTERSIGN_HOOK={other}: events, or nothing"),
        Err(_) => Hook::default(),
    }
}

/// The flags of an operation in the tier under test: at a kernel function no descriptor is looked up, so none can have been swapped.
pub(crate) fn carried(flags: u16) -> u16 {
    if tier() == Tier::Tracepoints {
        flags
    } else {
        flags & !transfer_flags::FD_SWAPPED | transfer_flags::BY_FUNCTION
    }
}

/// [`witness_with`] the defaults and a small ring.
pub(crate) fn witness() -> Option<Witness> {
    witness_with(&LoadOptions {
        ring_bytes: 16 << 20,
        ..LoadOptions::default()
    })
}

impl Witness {
    /// The capture alone, and what keeps other tests away.
    pub(crate) fn into_capture(self) -> (Capture, MutexGuard<'static, ()>) {
        (self.capture, self.one)
    }

    /// Runs `body` in a forked child that has this tag from before it starts; its pid. Panics if the child fails.
    pub(crate) fn run(&mut self, bits: u32, body: impl FnOnce()) -> u32 {
        let (child, gate) = spawn(body);
        self.capture
            .tag_pid(child, bits)
            .expect("the child can be tagged");
        open(gate);
        self.reap(child);
        child
    }

    /// Drains while waiting for a child; it must exit with 0.
    pub(crate) fn reap(&mut self, child: u32) {
        loop {
            self.drain();
            let mut status = 0;
            // SAFETY: a child of ours and a place for its status.
            let ended =
                unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WNOHANG) };
            if ended != 0 {
                assert_eq!(ended, child.cast_signed());
                assert_eq!(status, 0, "the child failed");
                break;
            }
            self.capture
                .wait(Duration::from_millis(1))
                .expect("the ring can be polled");
        }
        self.drain();
    }

    pub(crate) fn drain(&mut self) {
        let records = &mut self.records;
        self.capture.drain(|record| records.push(record.to_vec()));
    }

    /// Drains until `found` says so.
    pub(crate) fn until(&mut self, mut found: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + patiently(DEADLINE);
        loop {
            self.drain();
            if found(self) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "a record did not come: {:?}",
                self.ops()
            );
            self.capture
                .wait(Duration::from_millis(1))
                .expect("the ring can be polled");
        }
    }

    /// Every operation, in the order of its first record.
    pub(crate) fn ops(&self) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        for record in &self.records {
            let Ok((transfer, payload)) = Transfer::read_from_prefix(record) else {
                continue;
            };
            if !matches!(transfer.header.kind, kind::CHUNK | kind::GAP) {
                continue;
            }
            let place = ops.iter_mut().find(|op| {
                let (a, b) = (&op.first, &transfer);
                (
                    a.channel.object,
                    a.channel.epoch,
                    a.direction,
                    a.op_seq,
                    a.task.tid,
                    a.enter_ns,
                ) == (
                    b.channel.object,
                    b.channel.epoch,
                    b.direction,
                    b.op_seq,
                    b.task.tid,
                    b.enter_ns,
                )
            });
            let op = if let Some(op) = place {
                op
            } else {
                ops.push(Op {
                    first: transfer,
                    bytes: Vec::new(),
                    gaps: Vec::new(),
                });
                ops.last_mut().unwrap()
            };
            assert_eq!(
                op.bytes.len() as u64,
                transfer.offset,
                "parts of {op:?} are contiguous"
            );
            op.bytes.extend(payload);
            op.bytes.resize(
                usize::try_from(transfer.offset).unwrap() + transfer.len as usize,
                0,
            );
            if transfer.header.kind == kind::GAP {
                op.gaps.push((transfer.len, transfer.reason));
            }
        }
        ops
    }

    /// The operations of one direction that moved exactly `bytes`.
    pub(crate) fn moved(&self, op_direction: u8, bytes: &[u8]) -> Vec<Op> {
        self.ops()
            .into_iter()
            .filter(|op| op.first.direction == op_direction && op.bytes == bytes)
            .collect()
    }

    /// All that went in and all that came out of the channel of `op`, in the order of the kernel's numbers.
    pub(crate) fn streams(&self, op: &Op) -> (Vec<u8>, Vec<u8>) {
        let side = |wanted| {
            let mut ops: Vec<_> = self
                .ops()
                .into_iter()
                .filter(|other| {
                    (other.first.channel.object, other.first.channel.epoch)
                        == (op.first.channel.object, op.first.channel.epoch)
                        && other.first.direction == wanted
                })
                .collect();
            ops.sort_by_key(|op| op.first.op_seq);
            let mut before = 0;
            for (number, op) in ops.iter().enumerate() {
                assert_eq!(
                    (op.first.op_seq, op.first.stream_before),
                    (number as u64, before),
                    "{op:?}"
                );
                before += op.first.returned;
            }
            ops.concat_bytes()
        };
        (side(direction::WRITE), side(direction::READ))
    }

    fn of<T: FromBytes>(&self, record_kind: u16) -> Vec<T> {
        self.records
            .iter()
            .filter(|record| record[..2] == record_kind.to_le_bytes())
            .map(|record| T::read_from_prefix(record).ok().unwrap().0)
            .collect()
    }

    pub(crate) fn forks(&self) -> Vec<Fork> {
        self.of(kind::FORK)
    }

    pub(crate) fn execs(&self) -> Vec<Exec> {
        self.of(kind::EXEC)
    }

    pub(crate) fn exits(&self) -> Vec<Exit> {
        self.of(kind::EXIT)
    }

    pub(crate) fn ends(&self) -> Vec<ChannelEnd> {
        self.of(kind::CHANNEL_END)
    }

    pub(crate) fn opens(&self) -> Vec<FileOpen> {
        self.of(kind::FILE_OPEN)
    }

    pub(crate) fn balances(&self) -> Vec<Queued> {
        self.of(kind::QUEUED)
    }

    pub(crate) fn socket_counts(&self) -> Vec<SocketCounts> {
        self.of(kind::SOCKET_COUNTS)
    }

    /// What the core says of everything so far.
    pub(crate) fn judged(&self) -> Outcome {
        Play::of_records(self.records.clone()).run()
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddress> {
        self.of(kind::SOCKET_ADDRESS)
    }

    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.of(kind::PEER)
    }

    /// How many operations of one direction moved exactly these bytes in one record; of very many, quickly.
    pub(crate) fn moved_by_parts(&self, op_direction: u8, bytes: &[u8]) -> usize {
        let records = self.records.iter().filter_map(|record| {
            let (transfer, payload) = Transfer::read_from_prefix(record).ok()?;
            (transfer.header.kind == kind::CHUNK).then_some((transfer, payload))
        });
        records
            .filter(|(part, payload)| part.direction == op_direction && *payload == bytes)
            .count()
    }

    /// Every chunk with its bytes.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (Transfer, Vec<u8>)> {
        let transfers = self
            .records
            .iter()
            .filter_map(|record| Transfer::read_from_prefix(record).ok());
        transfers
            .filter(|(transfer, _)| transfer.header.kind == kind::CHUNK)
            .map(|(transfer, payload)| (transfer, payload.to_vec()))
    }

    pub(crate) fn evasions(&self) -> Vec<Evasion> {
        self.of(kind::EVASION)
    }

    /// Every record of an operation, alone.
    pub(crate) fn parts(&self) -> Vec<Transfer> {
        let transfers = self
            .records
            .iter()
            .filter_map(|record| Transfer::read_from_prefix(record).ok());
        let transfers = transfers.map(|(transfer, _)| transfer);
        transfers
            .filter(|part| matches!(part.header.kind, kind::CHUNK | kind::GAP))
            .collect()
    }

    /// The kernel's own copies, as they came.
    pub(crate) fn copies(&self) -> Vec<(Transfer, Vec<u8>)> {
        let of_kind = |record: &&Vec<u8>| record[..2] == kind::KERNEL_COPY.to_le_bytes();
        let records = self.records.iter().filter(of_kind);
        records
            .map(|record| {
                let (transfer, data) = Transfer::read_from_prefix(record).unwrap();
                (transfer, data[..transfer.len as usize].to_vec())
            })
            .collect()
    }

    /// CPU and number of every record, as they came.
    pub(crate) fn sequence(&self) -> Vec<(u16, u64)> {
        let headers = self
            .records
            .iter()
            .map(|record| RecordHeader::read_from_prefix(record).unwrap().0);
        headers.map(|header| (header.cpu, header.cpu_seq)).collect()
    }

    pub(crate) fn counter(&self, index: u32) -> u64 {
        self.capture.counters().expect("the counters can be read")[index as usize]
    }
}

trait Concat {
    fn concat_bytes(&self) -> Vec<u8>;
}

impl Concat for Vec<Op> {
    fn concat_bytes(&self) -> Vec<u8> {
        self.iter()
            .flat_map(|op| op.bytes.iter().copied())
            .collect()
    }
}

/// Forks a child that waits for [`open`], runs `body` and exits; pid and gate.
pub(crate) fn spawn(body: impl FnOnce()) -> (u32, i32) {
    let [read, write] = pipe();
    // SAFETY: the child runs `body` and leaves with `_exit`; glibc's allocator survives a fork of a threaded process.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        close(write);
        let mut byte = [0];
        // SAFETY: a buffer of one byte.
        unsafe { libc::read(read, byte.as_mut_ptr().cast(), 1) };
        close(read);
        let result = panic::catch_unwind(panic::AssertUnwindSafe(body));
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    close(read);
    (pid.cast_unsigned(), write)
}

/// Lets a spawned child go.
pub(crate) fn open(gate: i32) {
    assert_eq!(write(gate, b"g"), 1);
    close(gate);
}

pub(crate) fn pipe() -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(unsafe { libc::pipe(fds.as_mut_ptr()) }, 0);
    fds
}

pub(crate) fn socket_pair() -> [i32; 2] {
    socket_pair_of(libc::SOCK_STREAM)
}

pub(crate) fn socket_pair_of(kind: i32) -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors.
    assert_eq!(
        unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) },
        0
    );
    fds
}

/// Both ends of a connection to a listener at this address: who connected, who accepted.
pub(crate) fn tcp_pair(address: &str) -> [i32; 2] {
    let listener = TcpListener::bind(address).expect("an address of this host");
    let near = TcpStream::connect(listener.local_addr().unwrap()).expect("it listens");
    let (far, _) = listener.accept().expect("somebody connected");
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    [near.into_raw_fd(), far.into_raw_fd()]
}

/// A pseudo-terminal that changes no bytes: master, slave.
pub(crate) fn terminal() -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors and the settings.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        libc::cfmakeraw(&raw mut settings);
        let [master, slave] = &mut fds;
        assert_eq!(
            libc::openpty(
                master,
                slave,
                std::ptr::null_mut(),
                &raw const settings,
                std::ptr::null()
            ),
            0
        );
    }
    fds
}

pub(crate) fn close(fd: i32) {
    // SAFETY: a descriptor of the test.
    unsafe { libc::close(fd) };
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> isize {
    // SAFETY: a slice and its length.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) }
}

pub(crate) fn read(fd: i32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: a buffer and its length.
    let got = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), len) };
    bytes.truncate(usize::try_from(got).expect("the read succeeds"));
    bytes
}

/// Text that occurs nowhere else.
pub(crate) fn token(name: &str) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("<{name}:{}:{number}>", std::process::id()).into_bytes()
}
