//! Tests on the running kernel: root, and kernel programs that are built in. Each forks a child, tags it before it
//! starts and compares what the ring delivered with what the child did.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "system calls on buffers and descriptors that the test owns"
)]

mod aio;
mod balance;
mod calls;
mod compat;
mod counts;
mod coverage;
mod delivery;
mod evasion;
mod floods;
mod functions;
mod functions_uring;
mod harness;
mod hooks;
mod hostile;
mod limits;
mod mending;
mod messages;
mod moves;
mod notes;
mod peers;
mod preemption;
mod processes;
mod ring;
mod sockets;
mod source;
mod terminals;
mod torture;
mod uring;
