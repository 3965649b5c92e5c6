//! The programs' bodies, one file per subject. The entry points are in `main.rs`: another tier is further entry points
//! over the same bodies and the same walker.

pub mod aio;
pub mod balance;
pub mod compat;
pub mod counts;
pub mod delivery;
pub mod ends;
pub mod environment;
pub mod evasion;
pub mod foreign;
pub mod function;
pub mod inet;
pub mod process;
pub mod signal;
pub mod splice;
pub mod transfer;
pub mod uring;
pub mod uring_attempt;
pub mod uring_message;
pub mod uring_submit;
pub mod watched;
