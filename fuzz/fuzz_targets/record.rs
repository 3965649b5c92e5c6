//! See `oracles/record.rs`.
#![no_main]

#[path = "../oracles/record.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
