//! The honest part: a session of the official Rust SDK's client, through the proxy.
//!
//! Owns the SDK's types; everything else in this crate sees plans and scripts only.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientConfig, ClientRequest, ServerResult,
};
use rmcp::service::{NotificationContext, PeerRequestOptions, RequestHandle, RunningService};
use rmcp::transport::TokioChildProcess;
use rmcp::{ClientHandler, RoleClient, ServiceExt as _};
use tokio::process::Command;

use crate::plan::{Direction, Expected, Kind, Outcome, PlannedCall, Via};
use crate::script::ToolCall;

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);

/// A running client.
#[derive(Debug)]
pub(crate) struct Session {
    client: RunningService<RoleClient, Ears>,
    proxy_pid: u32,
    heard: Arc<Mutex<Vec<&'static str>>>,
}

impl Session {
    /// Starts `command` (the proxy with its server) and does the handshake. The calls of the handshake go into `calls`.
    ///
    /// # Errors
    /// The command does not start or the handshake fails.
    pub(crate) async fn start(
        command: &[String],
        stderr: &Path,
        calls: &mut Vec<PlannedCall>,
    ) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().context("no command given")?;
        let mut child = Command::new(program);
        child.args(arguments);
        let log = std::fs::File::create(stderr)
            .with_context(|| format!("cannot create {}", stderr.display()))?;
        let (transport, _) = TokioChildProcess::builder(child)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let proxy_pid = transport.id().context("the proxy ended at once")?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let client = Ears {
            heard: Arc::clone(&heard),
        }
        .serve(transport)
        .await
        .with_context(|| {
            let said = std::fs::read_to_string(stderr).unwrap_or_default();
            format!("the handshake failed; the proxy and the server said: {said}")
        })?;
        // The client numbers its requests from 0 and starts with the handshake.
        calls.push(PlannedCall {
            id: Some("0".to_owned()),
            ..plain("initialize", Kind::Request, Outcome::Ok)
        });
        calls.push(plain(
            "notifications/initialized",
            Kind::Notification,
            Outcome::None,
        ));
        Ok(Self {
            client,
            proxy_pid,
            heard,
        })
    }

    /// The process id of the proxy.
    pub(crate) fn proxy_pid(&self) -> u32 {
        self.proxy_pid
    }

    /// The revision that both sides agreed on.
    pub(crate) fn revision(&self) -> String {
        self.client
            .peer_info()
            .map_or_else(String::new, |info| info.protocol_version.to_string())
    }

    /// Lists the tools and checks that the ones the script needs are there.
    ///
    /// # Errors
    /// The call fails or the server is not the file system server.
    pub(crate) async fn list_tools(&self, calls: &mut Vec<PlannedCall>) -> anyhow::Result<()> {
        let listed = self
            .client
            .list_tools(None)
            .await
            .context("cannot list the tools")?;
        calls.push(PlannedCall {
            id: Some("1".to_owned()),
            ..plain("tools/list", Kind::Request, Outcome::Ok)
        });
        for tool in [
            "read_text_file",
            "write_file",
            "list_directory",
            "search_files",
            "get_file_info",
            "create_directory",
        ] {
            ensure!(
                listed.tools.iter().any(|listed| listed.name == tool),
                "the server has no tool {tool}"
            );
        }
        Ok(())
    }

    /// Sends all of `burst` before it reads the first answer, then awaits every answer.
    ///
    /// # Errors
    /// A call is not answered in time or the connection ends.
    pub(crate) async fn call(
        &self,
        burst: Vec<ToolCall>,
        calls: &mut Vec<PlannedCall>,
    ) -> anyhow::Result<()> {
        let mut waiting = Vec::new();
        for call in burst {
            let params =
                CallToolRequestParams::new(call.tool).with_arguments(call.arguments.clone());
            let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
            let handle: RequestHandle<RoleClient> = self
                .client
                .send_cancellable_request(request, PeerRequestOptions::no_options())
                .await
                .with_context(|| format!("cannot send {}", call.marker))?;
            waiting.push((call, handle));
        }
        for (call, handle) in waiting {
            let id = serde_json::to_string(&handle.id).context("the id is not JSON")?;
            let answer = tokio::time::timeout(CALL_TIMEOUT, handle.await_response())
                .await
                .with_context(|| {
                    format!(
                        "no answer to {} in {} s",
                        call.marker,
                        CALL_TIMEOUT.as_secs()
                    )
                })?;
            let outcome = match answer {
                Ok(ServerResult::CallToolResult(result)) if result.is_error == Some(true) => {
                    Outcome::ToolError
                }
                Ok(_) => Outcome::Ok,
                Err(rmcp::ServiceError::McpError(_)) => Outcome::Error,
                Err(other) => return Err(other).with_context(|| format!("{} failed", call.marker)),
            };
            calls.push(PlannedCall {
                marker: Some(call.marker),
                tool: Some(call.tool.to_owned()),
                id: Some(id),
                ..plain("tools/call", Kind::Request, outcome)
            });
        }
        Ok(())
    }

    /// Ends the session: closes the proxy's input and waits for it to end. What the server said unasked goes into `calls`.
    ///
    /// # Errors
    /// The client's task panicked.
    pub(crate) async fn end(self, calls: &mut Vec<PlannedCall>) -> anyhow::Result<()> {
        self.client
            .cancel()
            .await
            .context("cannot end the session")?;
        let heard = std::mem::take(
            &mut *self
                .heard
                .lock()
                .map_err(|_poisoned| anyhow::anyhow!("a handler panicked"))?,
        );
        for method in heard {
            calls.push(PlannedCall {
                direction: Direction::ServerToClient,
                ..plain(method, Kind::Notification, Outcome::None)
            });
        }
        Ok(())
    }
}

/// A call through the proxy without marker, tool or id.
fn plain(method: &str, kind: Kind, outcome: Outcome) -> PlannedCall {
    PlannedCall {
        marker: None,
        kind,
        direction: Direction::ClientToServer,
        method: method.to_owned(),
        tool: None,
        id: None,
        via: Via::Proxy,
        expected: Expected::Matched,
        outcome,
    }
}

/// Notes the notifications that the server sends, for the plan.
#[derive(Debug)]
struct Ears {
    heard: Arc<Mutex<Vec<&'static str>>>,
}

impl Ears {
    fn note(&self, method: &'static str) {
        if let Ok(mut heard) = self.heard.lock() {
            heard.push(method);
        }
    }
}

impl ClientHandler for Ears {
    fn get_info(&self) -> ClientConfig {
        ClientConfig::default()
    }

    async fn on_tool_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.note("notifications/tools/list_changed");
    }

    async fn on_resource_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.note("notifications/resources/list_changed");
    }

    async fn on_prompt_list_changed(&self, _: NotificationContext<RoleClient>) {
        self.note("notifications/prompts/list_changed");
    }
}
