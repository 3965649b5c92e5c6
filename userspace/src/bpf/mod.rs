//! The kernel side as user space sees it: the embedded object, loading it, tags, structure offsets, `/proc`.
//!
//! Owns every `bpf(2)` call. It knows no correlator: records leave it as bytes.

mod btf;
pub mod load;
mod messages;
pub mod object;
pub mod offsets;
mod rings;
pub mod scan;
pub mod self_test;
pub mod tag;
pub mod unix_peers;
