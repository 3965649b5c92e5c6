//! Countersign's shell: everything that touches the kernel, files, processes and clocks.

pub mod bpf;
pub mod report;
pub mod sink;
