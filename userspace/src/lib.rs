//! Countersign's shell: everything that touches the kernel, files, processes and clocks.

pub mod bpf;
pub mod cli;
pub mod clock;
pub mod config;
pub mod confine;
pub mod device;
pub mod evidence;
pub mod exit;
pub mod key;
pub mod launch;
pub mod outdir;
pub mod proxy;
pub mod recording;
pub mod report;
pub mod sink;
pub mod source;
pub mod spool;
pub mod tree;
mod watched;
pub mod witness;
