//! The kernel side as user space sees it: the embedded object, loading it, tags, structure offsets, `/proc`.
//!
//! Owns every `bpf(2)` call. It knows no correlator: records leave it as bytes.

mod btf;
pub mod inet_peers;
pub mod load;
mod messages;
pub mod object;
pub mod offsets;
pub mod scan;
pub mod self_test;
mod sock_diag;
pub mod tag;
pub mod unix_peers;
