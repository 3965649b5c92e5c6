//! See `oracles/json.rs`.
#![no_main]

#[path = "../oracles/json.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
