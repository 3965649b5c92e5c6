//! Countersign's correlator core: kernel records and proxy log entries in, evidence rows out.
//!
//! Sans-IO: no files, no clocks, no threads. Modules in data-flow order; a module knows those before it, never those after.
#![forbid(unsafe_code)]

pub mod balance;
pub mod call;
pub mod channel;
pub mod correlator;
pub mod counted;
pub mod delivery;
pub mod evasion;
pub mod evidence;
pub mod foreign;
pub mod frame;
pub mod hex;
pub mod invariants;
pub mod json;
pub mod message;
pub mod on_the_way;
pub mod pairing;
pub mod process;
pub mod proxylog;
pub mod record;
pub mod role;
pub mod row;
pub mod stream;
pub mod time;
pub mod verdict;
