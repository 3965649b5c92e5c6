//! See `oracles/message.rs`.
#![no_main]

#[path = "../oracles/message.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
