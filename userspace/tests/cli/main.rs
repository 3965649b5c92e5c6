//! The command as its users meet it. Bad input: a message that names the fix, the documented exit code, nothing lost.
//!
//! Each test runs the built command. Those that need root, another user, a mount of their own or kernel
//! programs say so and are skipped without them; `COUNTERSIGN_REQUIRE_LIVE=1` makes a skip a failure.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

mod attach;
mod churn;
mod flow;
mod groups;
mod input;
mod kept;
mod kills;
mod output;
mod place;
mod recording;
mod session;
mod survival;
mod terminal;
mod trouble;
