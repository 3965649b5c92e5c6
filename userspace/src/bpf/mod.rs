//! The kernel side as user space sees it: the embedded object, loading it, tags, structure offsets, `/proc`.
//!
//! Owns every `bpf(2)` call. It knows no correlator: records leave it as bytes.

mod btf;
pub mod capture;
pub mod choice;
pub mod claim;
pub mod features;
pub mod functions;
pub mod hook;
pub mod inet_peers;
mod kprobe;
pub mod load;
mod messages;
pub mod object;
pub mod offsets;
pub mod options;
pub mod pin;
pub mod preemption;
mod ring;
mod rings;
mod run;
pub mod scan;
pub mod self_test;
mod sock_diag;
mod syscall;
pub mod tag;
pub mod tier;
pub mod unix_peers;

pub use rings::Place;
