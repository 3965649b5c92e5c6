//! `countersign proxy`: a signing stdio proxy that writes mcp-audit's log format.
//!
//! Owns: starting the server, relaying both directions untouched, and an entry for everything that
//! passes, including what mcp-audit is silent about (see
//! [`own`](countersign_core::proxylog::own)). Does not own: judging. It refuses nothing.
//!
//! An entry is written when its answer passes, a notification's at once, and what is unanswered when
//! the server ends. Forwarding waits for the log, unless `--fail-open`. The limits of the log: lines over
//! 64 MiB stand in it by length and hash; a message spread over several lines stands in it as lines
//! that are no JSON; if the proxy is killed outright, requests in flight are lost.

mod files;
mod journal;
mod ledger;
mod lines;
mod queue;
mod relay;
mod server;

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use countersign_core::proxylog::{Direction, Key, Redaction};
use rustix::process::Signal;

use crate::key::KeySource;
use journal::{Journal, Names};
use ledger::Ledger;
use queue::Queue;
use relay::{Log, Progress, relay};
use server::Server;
pub use server::StartError;

/// How long the server's output may stay open after the server has ended, because a process that it
/// left behind holds it.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

/// How often the end of the server's output is looked for.
const DRAIN_POLL: Duration = Duration::from_millis(5);

/// Exit code when the log could not be written to its end.
pub const EXIT_LOG_FAILED: u8 = 74;

/// Command line of `countersign proxy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Log file, JSON lines as mcp-audit writes them; made 0600 if new, else appended to.
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    #[expect(missing_docs, reason = "clap would show it as help")]
    #[command(flatten)]
    pub key: KeyArgs,
    /// Name of the client in each entry.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub client_id: String,
    /// Name of the server in each entry.
    #[arg(long, value_name = "NAME", default_value = "")]
    pub server_id: String,
    /// Redact members whose key contains PATTERN, ignoring case, instead of the built-in list. May be
    /// repeated.
    #[arg(long = "redact-key", value_name = "PATTERN")]
    pub redact_keys: Vec<String>,
    /// Redact nothing.
    #[arg(long, conflicts_with = "redact_keys")]
    pub no_redact: bool,
    /// Forward even what cannot be logged; the log's last entry counts what it lacks.
    #[arg(long)]
    pub fail_open: bool,
    /// Entries that may wait for the disk before forwarding waits too.
    #[arg(long, value_name = "N", default_value = "1024")]
    pub queue: NonZeroUsize,
    /// The MCP server and its arguments.
    #[arg(last = true, required = true, value_name = "SERVER")]
    pub command: Vec<OsString>,
}

/// Where the signing key comes from. Never the environment: the server would inherit it.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub struct KeyArgs {
    /// File with the signing key; one line end at its end is not part of it.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Open descriptor to read the signing key from; closed before the server starts.
    #[arg(long, value_name = "N")]
    pub key_fd: Option<RawFd>,
}

impl KeyArgs {
    fn load(&self) -> Result<Key> {
        let source = match (self.key_fd, &self.key_file) {
            (Some(fd), _) => {
                anyhow::ensure!(
                    fd > 2,
                    "--key-fd {fd}: standard input and output are the relay's"
                );
                KeySource::Fd(fd)
            }
            (None, Some(path)) => KeySource::File(path.clone()),
            (None, None) => anyhow::bail!("no key: give --key-file or --key-fd"),
        };
        Ok(Key::new(source.load()?.as_bytes().to_vec())?)
    }
}

/// Runs the proxy between this process's standard input and output and the server.
///
/// Returns the server's exit code, 128 + n if signal n ended it, or [`EXIT_LOG_FAILED`].
///
/// # Errors
/// The key, the log or the server cannot be opened or started.
pub fn run(args: Args) -> Result<ExitCode> {
    // Before anything else opens descriptors: the key's number is the caller's.
    let key = args.key.load()?;
    let proxy = Proxy::open(args, key)?;
    let ends = Ends::standard()?;
    let server = Server::default();
    server.pass_signals_on()?;
    Ok(ExitCode::from(proxy.serve(ends, &server)?))
}

/// The client's ends.
struct Ends {
    input: File,
    output: File,
}

impl Ends {
    /// Takes over standard input and output, so that closing them closes them for the client.
    fn standard() -> Result<Self> {
        let input = own(std::io::stdin().as_fd())?;
        let output = own(std::io::stdout().as_fd())?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .context("/dev/null")?;
        rustix::stdio::dup2_stdin(&null).context("cannot release standard input")?;
        rustix::stdio::dup2_stdout(&null).context("cannot release standard output")?;
        Ok(Self { input, output })
    }
}

fn own(fd: impl AsFd) -> Result<File> {
    let fd = fd
        .as_fd()
        .try_clone_to_owned()
        .context("standard input and output must be open")?;
    Ok(File::from(fd))
}

/// Everything that is fixed before the server starts.
struct Proxy {
    command: Vec<OsString>,
    log_file: File,
    log: Log,
    queue: Arc<Queue>,
    fail_open: bool,
    output_grace: Duration,
}

impl Proxy {
    fn open(args: Args, key: Key) -> Result<Self> {
        let redaction = if args.no_redact {
            Redaction::none()
        } else if args.redact_keys.is_empty() {
            Redaction::default()
        } else {
            Redaction::new(&args.redact_keys)
        };
        let log_file = files::open_log(&args.log)?;
        let queue = Arc::new(Queue::new(args.queue.get()));
        let names = Names {
            client_id: args.client_id,
            server_id: args.server_id,
        };
        let journal = Journal::new(key, names, Arc::clone(&queue), args.fail_open)?;
        let log = Log::new(Ledger::new(redaction), journal);
        Ok(Self {
            command: args.command,
            log_file,
            log,
            queue,
            fail_open: args.fail_open,
            output_grace: OUTPUT_GRACE,
        })
    }

    /// Runs until the server has ended and its output is forwarded.
    fn serve(self, ends: Ends, server: &Server) -> Result<u8> {
        let Self {
            command,
            log_file,
            log,
            queue,
            fail_open,
            output_grace,
        } = self;
        let (mut child, to_server, from_server) = server.start(&command)?;
        let log = Arc::new(log);
        let (upstream, up) = (Arc::clone(&log), Progress::default());
        // Not joined: it may wait for a client that never ends its input.
        std::thread::spawn(move || {
            relay(
                &upstream,
                &up,
                Direction::ClientToServer,
                ends.input,
                to_server,
            );
        });
        let down = Arc::new(Progress::default());
        let (downstream, progress) = (Arc::clone(&log), Arc::clone(&down));
        std::thread::spawn(move || {
            relay(
                &downstream,
                &progress,
                Direction::ServerToClient,
                from_server,
                ends.output,
            );
        });
        let (lines, stopping) = (Arc::clone(&queue), server.clone());
        let writer = std::thread::spawn(move || {
            let outcome = journal::write_lines(&lines, log_file, fail_open);
            if outcome.is_err() {
                // Nothing can be logged any more, so nothing may pass any more.
                stopping.signal(Signal::TERM);
            }
            outcome
        });

        let status = server.wait(&mut child)?;
        drain(&down, server, output_grace);
        let dropped = log.close(&server::ended(status));
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the log writer panicked")));
        match written {
            Ok(lost) if dropped + lost > 0 => {
                tracing::warn!(entries = dropped + lost, "entries are missing from the log");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "cannot write the log: the server was stopped");
                return Ok(EXIT_LOG_FAILED);
            }
        }
        Ok(server::exit_code(status))
    }
}

/// Waits until the ended server's output is forwarded, for as long as the client takes to read it. A
/// process that the server left behind may hold the output open: silence is its end then.
fn drain(progress: &Progress, server: &Server, grace: Duration) {
    let mut silent_since = (Instant::now(), progress.idle_at());
    while !progress.ended() && !server.is_abandoned() {
        let idle = progress.idle_at();
        if idle.is_none() || idle != silent_since.1 {
            silent_since = (Instant::now(), idle);
        } else if silent_since.0.elapsed() > grace {
            return;
        }
        std::thread::sleep(DRAIN_POLL);
    }
}

#[cfg(test)]
mod tests;
