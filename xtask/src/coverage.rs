//! `cargo xtask coverage`: the table of what is captured, for the running kernel.
//!
//! Owns the command only: the live test of that name tries, compares and writes.

use crate::workspace;

/// Rewrites the table, and takes cells that are no longer missed off the list of those that may be.
///
/// # Errors
/// The kernel programs are not built, this is not root, or a cell is missed that is not on the list.
pub(crate) fn coverage(allow_missed: bool) -> anyhow::Result<()> {
    const TEST: &str = "coverage::every_way_to_move_bytes_is_captured_or_declared";
    let mut command = workspace::cargo([
        "test",
        "-p",
        "countersign-tests",
        "--test",
        "live",
        "--",
        "--exact",
        TEST,
    ]);
    command
        .env("COUNTERSIGN_REQUIRE_LIVE", "1")
        .env("COUNTERSIGN_BLESS", "1");
    if allow_missed {
        command.env("COUNTERSIGN_ALLOW_MISSED", "1");
    }
    workspace::run(&mut command)
}
