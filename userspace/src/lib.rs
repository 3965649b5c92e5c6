//! Countersign's shell: everything that touches the kernel, files, processes and clocks.

pub mod bpf;
pub mod clock;
pub mod exit;
pub mod key;
pub mod launch;
pub mod outdir;
pub mod report;
pub mod sink;
pub mod source;
pub mod spool;
