//! Starting the agent so that it is watched from its first instruction.
//!
//! Owns the fork, the wait for the tag, the drop of privileges, the exec, and the agent's life until it
//! ends. Does not know how a process is tagged: the caller does that between [`Command::fork`] and
//! [`Blocked::release`], while the child waits in a `ppoll` and has run none of the agent's code.

mod child;
mod command;
mod signals;
mod terminal;
mod terminal_guard;
mod user;
mod watch;

#[cfg(test)]
mod tests;

pub use command::{Blocked, Command, LaunchError};
pub use signals::Signals;
pub use user::{Identity, Origin, UserError, resolve as resolve_user};
pub use watch::{Agent, End, Event};
