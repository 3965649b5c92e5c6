//! The proxy's view: log formats, signatures, and comparison with what was seen on the wire.
//!
//! Owns: reading lines into [`Entry`], checking their signatures, the proxies' canonical form.
//! Does not own: files and rotation (the shell), pairing and verdicts.

pub mod canonical;
pub mod compare;
mod decimal;
pub mod draft;
pub mod entry;
pub mod mcp_audit;
pub mod own;
pub mod redact;
pub mod signature;
pub mod timestamp;

#[cfg(test)]
mod corpus;

pub use canonical::Redaction;
pub use compare::{Comparison, Difference};
pub use draft::Draft;
pub use entry::{BadLine, BadReason, Direction, Entry, Line, LogItem};
pub use signature::{Key, KeyError, SignatureState};
