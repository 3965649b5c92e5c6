//! Test support.

pub mod evidence;
pub mod scene;
