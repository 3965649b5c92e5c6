//! Programs of a scene, by the inode of their executables.

/// The agent.
pub const AGENT: u64 = 100;
/// The proxy.
pub const PROXY: u64 = 200;
/// An MCP server.
pub const SERVER: u64 = 300;
/// A shell or another helper.
pub const TOOL: u64 = 400;
