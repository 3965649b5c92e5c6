//! Test support.

pub mod evidence;
pub mod exercise;
pub mod hostile;
pub mod scene;
