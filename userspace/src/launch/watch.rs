//! The agent's life from exec to exit.
//!
//! Owns waiting for it, passing signals on to its process group and job control on a terminal. The
//! agent's descendants may outlive it; who they are is the capture's knowledge, not this module's.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, waitpid};

use super::Signals;
use super::command::Child;
use super::signals::is_stopping;
use super::terminal::Terminal;

/// How many stopping signals are passed on before the agent's group is killed outright. Stops an agent
/// that ignores them from holding the terminal for ever.
const PATIENCE: u32 = 3;

/// How an agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// A signal killed it.
    Killed(i32),
}

/// What happened while waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The agent's first process has ended (it is reaped).
    Ended(End),
    /// This signal came in and was passed on to the agent's group.
    Signal(i32),
    /// Nothing within the given time.
    Timeout,
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    terminal: Option<Terminal>,
    end: Option<End>,
    /// Those that were to stop it.
    signals_passed: u32,
}

impl Agent {
    pub(super) fn new(child: Child, terminal: Option<Terminal>) -> Self {
        Self {
            child,
            terminal,
            end: None,
            signals_passed: 0,
        }
    }

    /// Process id of its first process.
    pub fn pid(&self) -> u32 {
        self.child.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Pidfd of its first process.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// Waits for the agent's end or a signal, at most for `timeout`. A signal is passed on to the agent's process
    /// group; after three that were to stop it the group is killed.
    ///
    /// # Errors
    /// When the system cannot wait, which is a defect here.
    pub fn wait(&mut self, signals: &Signals, timeout: Duration) -> std::io::Result<Event> {
        if let Some(end) = self.end {
            return Ok(Event::Ended(end));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let mut fds = [
            PollFd::new(&self.child.pidfd, PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(signal) = signals.next() {
            self.pass_on(signal);
            return Ok(Event::Signal(signal));
        }
        // The pidfd does not say when the agent is stopped, so this is asked each time.
        match waitpid(
            Some(self.child.pid),
            WaitOptions::NOHANG | WaitOptions::UNTRACED,
        )? {
            Some((_, status)) if status.stopped() => {
                self.follow_stop();
                Ok(Event::Timeout)
            }
            Some((_, status)) => {
                let end = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => End::Exited(code),
                    (None, signal) => End::Killed(signal.unwrap_or(0)),
                };
                self.end = Some(end);
                self.terminal = None;
                Ok(Event::Ended(end))
            }
            None => Ok(Event::Timeout),
        }
    }

    /// Sends a signal to every process that is still in the agent's group.
    pub fn signal_group(&self, signal: Signal) {
        // Gone already is fine.
        let _ = kill_process_group(self.child.pid, signal);
    }

    fn pass_on(&mut self, signal: i32) {
        if is_stopping(signal) {
            self.signals_passed += 1;
        }
        let signal = if self.signals_passed > PATIENCE {
            Some(Signal::KILL)
        } else {
            Signal::from_named_raw(signal)
        };
        if let Some(signal) = signal {
            self.signal_group(signal);
        }
    }

    /// The agent was stopped (Ctrl-Z): stop along with it, and continue it when we are continued.
    fn follow_stop(&mut self) {
        let Some(terminal) = &self.terminal else {
            return;
        };
        terminal.take();
        // Ignored by the kernel when no shell could continue us; then the agent goes on at once.
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TSTP);
        terminal.give();
        self.signal_group(Signal::CONT);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.end.is_none() {
            // An error path: do not leave an agent running that nobody watches any more.
            self.signal_group(Signal::KILL);
            let pid: Pid = self.child.pid;
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
    }
}
