//! The server's process: starting it, passing signals on, waiting for its end.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::signal::unix::{SignalKind, signal as listen};

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot start server {}: check the command after `--`", program.display())]
pub struct StartError {
    /// As given.
    program: OsString,
    /// The system's reason.
    source: std::io::Error,
}

impl StartError {
    /// There is no such program, as opposed to one that cannot be executed.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == std::io::ErrorKind::NotFound
    }
}

/// The server as other threads may signal it.
#[derive(Debug, Clone, Default)]
pub(super) struct Server {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not started; the signal that came already.
    Starting(Option<Signal>),
    Running(Pid),
    /// Its pid may be another process's by now. True once a signal came after it.
    Ended(bool),
}

impl Default for State {
    fn default() -> Self {
        Self::Starting(None)
    }
}

impl Server {
    /// From here on, what would end this process ends the server instead; its end then ends this.
    pub(super) fn pass_signals_on(&self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        let guard = runtime.enter();
        let mut terminate = listen(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = listen(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut hangup = listen(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
        drop(guard);
        let server = self.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    let seen = tokio::select! {
                        _ = terminate.recv() => Signal::TERM,
                        _ = interrupt.recv() => Signal::INT,
                        _ = hangup.recv() => Signal::HUP,
                    };
                    server.signal(seen);
                }
            });
        });
        Ok(())
    }

    /// Starts the server; returns it with its standard input and output.
    pub(super) fn start(&self, command: &[OsString]) -> Result<(Child, File, File)> {
        let (program, args) = command
            .split_first()
            .context("no server to start: name it after `--`")?;
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| StartError {
                program: program.clone(),
                source,
            })?;
        let input = child
            .stdin
            .take()
            .context("the server has no standard input")?;
        let output = child
            .stdout
            .take()
            .context("the server has no standard output")?;
        let pid = Pid::from_child(&child);
        let before = std::mem::replace(&mut *self.lock(), State::Running(pid));
        if let State::Starting(Some(signal)) = before {
            self.signal(signal);
        }
        Ok((
            child,
            File::from(OwnedFd::from(input)),
            File::from(OwnedFd::from(output)),
        ))
    }

    /// Signals the server if it runs.
    pub(super) fn signal(&self, signal: Signal) {
        let mut state = self.lock();
        match *state {
            State::Starting(_) => *state = State::Starting(Some(signal)),
            State::Running(pid) => {
                if let Err(error) = rustix::process::kill_process(pid, signal) {
                    tracing::debug!(%error, "cannot signal the server");
                }
            }
            State::Ended(_) => *state = State::Ended(true),
        }
    }

    /// A signal came after the server had ended: nobody waits for its output any more.
    pub(super) fn is_abandoned(&self) -> bool {
        *self.lock() == State::Ended(true)
    }

    /// Waits for the server's end; afterwards its pid is not signalled any more.
    pub(super) fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        let id = WaitId::Pid(Pid::from_child(child));
        // Leaves the zombie, so that the pid is still the server's until nobody can signal it.
        while let Err(rustix::io::Errno::INTR) =
            rustix::process::waitid(id.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        {
        }
        *self.lock() = State::Ended(false);
        child.wait().context("cannot wait for the server")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the server ended, for the log.
pub(super) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("the server ended with code {code}"),
        (None, Some(signal)) => format!("the server was ended by signal {signal}"),
        (None, None) => "the server ended".to_owned(),
    }
}

/// The server's exit code, or 128 + n if signal n ended it, as in a shell.
pub(super) fn exit_code(status: ExitStatus) -> u8 {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use std::io::Read as _;

    use rustix::process::Signal;

    use super::{Server, exit_code};

    #[test]
    fn signals_reach_the_server_before_and_while_it_runs_and_none_after() {
        let server = Server::default();
        let script = "trap 'exit 9' TERM; echo; while :; do sleep 0.01; done";
        let command = ["sh", "-c", script].map(Into::into);
        let (mut child, _input, mut output) = server.start(&command).unwrap();
        // The trap stands once there is output.
        output.read_exact(&mut [0]).unwrap();
        server.signal(Signal::TERM);
        assert_eq!(exit_code(server.wait(&mut child).unwrap()), 9);
        assert!(!server.is_abandoned());
        server.signal(Signal::TERM);
        assert!(server.is_abandoned());

        let server = Server::default();
        server.signal(Signal::KILL);
        let (mut child, _input, _output) = server.start(&command).unwrap();
        assert_eq!(exit_code(server.wait(&mut child).unwrap()), 128 + 9);
    }
}
