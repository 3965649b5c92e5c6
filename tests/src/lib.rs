//! Test support.

pub mod evidence;
