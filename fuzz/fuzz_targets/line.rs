//! See `oracles/line.rs`.
#![no_main]

#[path = "../oracles/line.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
