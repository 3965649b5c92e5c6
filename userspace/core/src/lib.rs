//! Countersign's correlator core.
#![forbid(unsafe_code)]

pub mod json;
pub mod proxylog;
