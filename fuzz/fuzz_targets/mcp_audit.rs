//! See `oracles/mcp_audit.rs`.
#![no_main]

#[path = "../oracles/mcp_audit.rs"]
mod oracle;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| oracle::check(bytes));
