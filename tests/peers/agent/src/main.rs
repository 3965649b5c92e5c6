//! An agent that mostly behaves: a real MCP client that sends most of its calls through the audit proxy and two around it.
//!
//! The seed decides every call and the two moments. What was really done goes into a plan, so that whoever checks the
//! verdicts knows the truth from the other side. The agent never tells Countersign anything.
#![forbid(unsafe_code)]

mod bypass;
mod plan;
mod script;
mod seed;
mod session;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use serde_json::{Value, json};

use bypass::Door;
use plan::{Direction, Expected, Kind, Outcome, Plan, PlannedCall, Via};
use script::{Step, ToolCall};
use seed::Seed;
use session::Session;

/// Version of the plan's format.
const PLAN_VERSION: u32 = 1;

/// Keeps the draws for ids and doors apart from those of the script.
const MISDEED_SALT: u64 = 0x6d69_7364_6565_6473;

/// A demo agent: an MCP client that bypasses the proxy twice and writes down what it did.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Decides the calls and the moments of the two bypasses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Calls through the proxy
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    calls: u16,
    /// Folder that the server may use; made when missing
    #[arg(long)]
    sandbox: PathBuf,
    /// Where the plan goes
    #[arg(long)]
    plan_out: PathBuf,
    /// The audit proxy's program
    #[arg(long)]
    proxy_cmd: PathBuf,
    /// One argument of the proxy's program; repeat it. `-- SERVER...` is added
    #[arg(long, allow_hyphen_values = true)]
    proxy_arg: Vec<String>,
    /// The MCP server and its arguments
    #[arg(last = true, required = true)]
    server: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.sandbox)
        .with_context(|| format!("cannot create {}", arguments.sandbox.display()))?;
    // The server compares real paths, so a sandbox behind a symbolic link would be refused.
    let sandbox =
        std::fs::canonicalize(&arguments.sandbox).context("cannot resolve the sandbox")?;

    let mut command = vec![arguments.proxy_cmd.to_string_lossy().into_owned()];
    command.extend(arguments.proxy_arg.iter().cloned());
    command.push("--".to_owned());
    command.extend(arguments.server.iter().cloned());

    let mut calls = Vec::new();
    let session = Session::start(
        &command,
        &arguments.plan_out.with_extension("stderr"),
        &mut calls,
    )
    .await?;
    let revision = session.revision();
    session.list_tools(&mut calls).await?;
    let mut draw = Seed::new(arguments.seed ^ MISDEED_SALT);
    for step in script::script(arguments.seed, usize::from(arguments.calls), &sandbox) {
        match step {
            Step::Through(burst) => {
                for call in &burst {
                    prepare(call)?;
                }
                session.call(burst, &mut calls).await?;
            }
            Step::OwnServer(call) => {
                prepare(&call)?;
                let id = if draw.below(2) == 0 {
                    json!(1)
                } else {
                    json!(format!("own-{}", call.marker))
                };
                let (sent, asked) = (call.clone(), id.clone());
                let server = arguments.server.clone();
                let outcome =
                    tokio::task::spawn_blocking(move || bypass::own_server(&server, &sent, &asked))
                        .await??;
                calls.push(bypassed(call, &id, Via::OwnServer, outcome));
            }
            Step::ForeignWriter(call) => {
                prepare(&call)?;
                // A string: the client counts in numbers, so no answer can be taken for one of its own.
                let id = json!(format!("fw-{}", call.marker));
                let door = if draw.below(2) == 0 {
                    Door::ServerInput
                } else {
                    Door::ProxyOutput
                };
                let (sent, asked, proxy) = (call.clone(), id.clone(), session.proxy_pid());
                let outcome = tokio::task::spawn_blocking(move || {
                    bypass::foreign_writer(proxy, door, &sent, &asked)
                })
                .await??;
                calls.push(bypassed(call, &id, Via::ForeignWriter, outcome));
            }
        }
    }
    session.end(&mut calls).await?;
    let plan = Plan {
        version: PLAN_VERSION,
        seed: arguments.seed,
        revision,
        calls,
    };
    plan.write(&arguments.plan_out)?;
    let around = plan
        .calls
        .iter()
        .filter(|call| call.expected == Expected::Bypassed)
        .count();
    writeln!(
        std::io::stderr(),
        "demo agent: {} calls, {around} of them around the proxy",
        plan.calls.len()
    )
    .context("cannot write to stderr")
}

/// Makes the folder and the file that a call reads.
fn prepare(call: &ToolCall) -> anyhow::Result<()> {
    std::fs::create_dir_all(&call.folder)
        .with_context(|| format!("cannot create {}", call.folder.display()))?;
    std::fs::write(
        call.folder.join("notes.txt"),
        format!("notes of {}\nsecond line\n", call.marker),
    )
    .context("cannot write the notes")
}

fn bypassed(call: ToolCall, id: &Value, via: Via, outcome: Outcome) -> PlannedCall {
    PlannedCall {
        marker: Some(call.marker),
        kind: Kind::Request,
        direction: Direction::ClientToServer,
        method: "tools/call".to_owned(),
        tool: Some(call.tool.to_owned()),
        id: Some(id.to_string()),
        via,
        expected: Expected::Bypassed,
        outcome,
    }
}
