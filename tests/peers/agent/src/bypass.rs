//! The misdeeds: one call to a server of the agent's own, one call written into the proxy's pipe.
//!
//! Plain blocking system calls on purpose: each sends exactly one frame in exactly one `write`, and nothing else.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use crate::plan::Outcome;
use crate::script::{ToolCall, written_file};

/// How long the server may take for one call.
const DEADLINE: Duration = Duration::from_secs(20);

/// Which end of the proxy's pipe is re-opened. Both lead to the same pipe.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door {
    /// The server's standard input, opened for writing.
    ServerInput,
    /// The proxy's own write end.
    ProxyOutput,
}

/// The frame of `call`, without the newline.
pub(crate) fn frame(call: &ToolCall, id: &Value) -> String {
    json!({
        "jsonrpc": "2.0",
        "id": id,
        "method": "tools/call",
        "params": { "name": call.tool, "arguments": call.arguments },
    })
    .to_string()
}

/// Starts a second copy of the server, sends `call` to it and reads the answer.
///
/// The call is the first and only frame: the reference servers execute it without a handshake.
///
/// # Errors
/// The server does not start, or does not answer this call within [`DEADLINE`].
pub(crate) fn own_server(
    server: &[String],
    call: &ToolCall,
    id: &Value,
) -> anyhow::Result<Outcome> {
    let [program, arguments @ ..] = server else {
        bail!("no server given")
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let answer = (|| {
        let mut input = child.stdin.take().context("the server has no input")?;
        let output = child.stdout.take().context("the server has no output")?;
        input
            .write_all(format!("{}\n", frame(call, id)).as_bytes())
            .context("cannot write to the own server")?;
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(output).read_line(&mut line).map(|_| line);
            // The receiver is gone only when the deadline has passed.
            let _ = sender.send(read);
        });
        let line = receiver
            .recv_timeout(DEADLINE)
            .context("the own server did not answer in time")??;
        let answer: Value =
            serde_json::from_str(&line).context("the own server's answer is not JSON")?;
        ensure!(
            answer.get("id") == Some(id),
            "the own server answered something else"
        );
        Ok(outcome(&answer))
    })();
    if answer.is_err() {
        child.kill().context("cannot stop the own server")?;
    }
    child.wait().context("cannot wait for the own server")?;
    answer
}

/// Writes `call` into the pipe from the proxy to its server and waits until the server has done it.
///
/// # Errors
/// The proxy has no child with a pipe as its input, the pipe cannot be opened, or the server does not act in time.
pub(crate) fn foreign_writer(
    proxy: u32,
    door: Door,
    call: &ToolCall,
    id: &Value,
) -> anyhow::Result<Outcome> {
    let path = pipe_to_server(proxy, door)?;
    {
        let mut pipe = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {} for writing", path.display()))?;
        let line = format!("{}\n", frame(call, id));
        let written = pipe
            .write(line.as_bytes())
            .context("cannot write into the proxy's pipe")?;
        ensure!(
            written == line.len(),
            "the proxy's pipe took {written} of {} bytes",
            line.len()
        );
    }
    let file = written_file(call);
    let wanted = call
        .arguments
        .get("content")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let start = Instant::now();
    while fs::read_to_string(&file).ok().as_deref() != Some(wanted) {
        ensure!(
            start.elapsed() < DEADLINE,
            "the server did not act on the call in the proxy's pipe"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(Outcome::DoneAnswerDropped)
}

/// What an answer says.
fn outcome(answer: &Value) -> Outcome {
    if answer.get("error").is_some() {
        Outcome::Error
    } else if answer.pointer("/result/isError") == Some(&Value::Bool(true)) {
        Outcome::ToolError
    } else {
        Outcome::Ok
    }
}

fn pipe_to_server(proxy: u32, door: Door) -> anyhow::Result<PathBuf> {
    for child in children(proxy)? {
        let input = PathBuf::from(format!("/proc/{child}/fd/0"));
        let Ok(target) = fs::read_link(&input) else {
            continue;
        };
        if !target.to_string_lossy().starts_with("pipe:") {
            continue;
        }
        return match door {
            Door::ServerInput => Ok(input),
            Door::ProxyOutput => descriptor_of(proxy, &target),
        };
    }
    bail!("process {proxy} has no child that reads from a pipe")
}

/// The descriptor of `pid` that refers to `target`, in the way `/proc` names it.
fn descriptor_of(pid: u32, target: &Path) -> anyhow::Result<PathBuf> {
    let folder = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))? {
        let path = entry
            .with_context(|| format!("cannot list {folder}"))?
            .path();
        if fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(path);
        }
    }
    bail!("process {pid} does not hold {}", target.display())
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> anyhow::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        let name = entry.context("cannot list /proc")?.file_name();
        let Some(candidate) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look at it.
        let Ok(stat) = fs::read_to_string(format!("/proc/{candidate}/stat")) else {
            continue;
        };
        // The name in parentheses may hold anything: the last one closes it (proc_pid_stat(5)).
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent.and_then(|parent| parent.parse().ok()) == Some(pid) {
            found.push(candidate);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use serde_json::Map;

    use super::*;

    /// Stands for the proxy: holds the write end of the anonymous pipe that its child reads.
    const PROXY: &str = r#"exec 3> >(read -r line; printf '%s' "$line" > "$1/got"; printf hello > "$1/written.txt"); wait"#;

    #[test]
    fn a_call_written_into_the_pipe_of_another_process_reaches_its_reader() {
        for door in [Door::ServerInput, Door::ProxyOutput] {
            let folder = temporary("foreign");
            let call = call(&folder);
            let mut proxy = Command::new("bash")
                .args(["-c", PROXY, "bash"])
                .arg(&folder)
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + DEADLINE;
            while pipe_to_server(proxy.id(), door).is_err() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(2));
            }
            let done = foreign_writer(proxy.id(), door, &call, &json!("x"));
            proxy.kill().unwrap();
            proxy.wait().unwrap();
            done.unwrap();
            assert_eq!(
                fs::read_to_string(folder.join("got")).unwrap(),
                frame(&call, &json!("x"))
            );
        }
    }

    #[test]
    fn the_own_server_gets_exactly_one_frame_and_its_answer_counts() {
        let folder = temporary("own");
        let call = call(&folder);
        let file = folder.join("got");
        let answer = r#"{"jsonrpc":"2.0","id":5,"result":{"isError":true}}"#;
        let server = [
            "/bin/sh",
            "-c",
            r#"read -r line; printf '%s\n' "$2"; { printf '%s' "$line"; cat; } > "$1""#,
            "sh",
        ]
        .map(String::from)
        .into_iter()
        .chain([file.to_string_lossy().into_owned(), answer.to_owned()])
        .collect::<Vec<_>>();
        assert!(matches!(
            own_server(&server, &call, &json!(5)).unwrap(),
            Outcome::ToolError
        ));
        assert_eq!(fs::read_to_string(file).unwrap(), frame(&call, &json!(5)));
        assert!(
            own_server(&server, &call, &json!(6)).is_err(),
            "an answer to another id is not an answer"
        );
    }

    #[test]
    fn children_are_found_by_their_parent() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        let found = children(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&child.id()));
    }

    fn call(folder: &Path) -> ToolCall {
        let mut arguments = Map::new();
        arguments.insert("content".to_owned(), Value::from("hello"));
        ToolCall {
            marker: "m".to_owned(),
            tool: "write_file",
            arguments,
            folder: folder.to_owned(),
        }
    }

    fn temporary(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("countersign-agent-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }
}
