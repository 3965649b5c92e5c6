//! The demo: a real agent that bypasses a real proxy, a log that is tampered with afterwards, and what Countersign says.
//!
//! Owns the order of events and the folder they happen in. Whatever the seed, the verdicts must equal the plan.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::verify::{Expectation, Judged};
use crate::workspace::{built, cargo, is_root, output, peers, run, say, status};
use crate::{kernel_programs, setup, tamper};

/// Calls through the proxy.
const CALLS: u32 = 24;

/// `nobody`: the agent must not be root, and needs no account of its own.
const NOBODY: u32 = 65_534;

/// Exit code of `countersign` for "findings".
const FINDINGS: i32 = 1;

/// Runs the demo of `seed`.
///
/// # Errors
/// Something is missing, a program fails, or a verdict differs from the plan.
pub(crate) fn demo(seed: u64) -> anyhow::Result<()> {
    ensure!(
        is_root()?,
        "the demo loads kernel programs: run it as root, or with sudo"
    );
    setup::for_demo()?;
    kernel_programs()?;
    run(&mut cargo([
        "build",
        "--package",
        "countersign",
        "--package",
        "countersign-demo-agent",
    ]))?;

    let stage = Stage::build(seed)?;
    say(&format!(
        "\n# seed {seed}: the agent runs under `countersign run`, the log is honest\n"
    ))?;
    let recorded = stage.root.join("recorded");
    let ended = status(&mut stage.record(seed, &recorded))?;
    ensure!(
        ended.code() == Some(FINDINGS),
        "countersign run: {ended}, but the two bypasses are findings: code {FINDINGS}"
    );
    let plan =
        fs::read_to_string(stage.agent.join("plan.json")).context("the agent left no plan")?;
    let honest = Expectation::from_plan(&plan)?;
    honest
        .check(&read_parquet(&recorded)?)
        .context("with the honest log")?;

    let log = stage.log();
    let text =
        fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let tampered = tamper::tamper(seed, &text, &honest.logged())?;
    // In place: the file keeps its inode, as it would under an editor that knows what it is doing.
    fs::write(&log, &tampered.log).with_context(|| format!("cannot write {}", log.display()))?;
    let expected = honest.after(&tampered);

    say(
        "\n# one line of the log is edited, one deleted, one invented; the recording is paired again\n",
    )?;
    let evidence = stage.root.join("evidence");
    let ended = status(&mut stage.pair(&recorded, &evidence))?;
    ensure!(
        ended.code() == Some(FINDINGS),
        "countersign pair: {ended}, but there are findings: code {FINDINGS}"
    );
    expected
        .check(&read_parquet(&evidence)?)
        .context("in the Parquet files, read by DuckDB")?;

    let again = stage.root.join("evidence-again");
    let lines = output(stage.pair(&recorded, &again).arg("--json"), &[FINDINGS])?;
    expected
        .check(&read_json(&lines)?)
        .context("in the output of `countersign pair --json`")?;
    let differing = status(
        Command::new("diff")
            .args(["--recursive", "--brief"])
            .arg(&evidence)
            .arg(&again),
    )?;
    ensure!(
        differing.success(),
        "the same recording and log gave other files the second time"
    );
    fs::remove_dir_all(&again).with_context(|| format!("cannot remove {}", again.display()))?;

    say(&format!(
        "\nseed {seed}: every verdict is as planned: {}\nedited: {}, deleted: {}, invented: {}\nevidence: {}",
        expected.summary(),
        tampered.edited,
        tampered.deleted,
        tampered.invented,
        evidence.display()
    ))
}

/// The folder in which a demo happens, and who the agent is.
struct Stage {
    root: PathBuf,
    agent: PathBuf,
    /// The user to name to `countersign run`; none where it finds the user itself.
    user: Option<&'static str>,
    node: PathBuf,
}

impl Stage {
    /// Makes the folder. It lies in the temporary folder, because evidence must not lie below a folder that the agent can
    /// write, and under `sudo` the checkout is such a folder.
    fn build(seed: u64) -> anyhow::Result<Self> {
        let root =
            std::env::temp_dir().join(format!("countersign-demo-{seed}-{}", std::process::id()));
        fs::create_dir(&root).with_context(|| format!("cannot create {}", root.display()))?;
        // The agent has to reach its own folder below this one, and nothing else here.
        fs::set_permissions(&root, Permissions::from_mode(0o711))
            .context("cannot open the folder to the agent")?;
        let node = setup::node()?;
        let (user, uid, gid) = agent_user(&node)?;
        let agent = root.join("agent");
        let sandbox = agent.join("sandbox");
        fs::create_dir_all(&sandbox)
            .with_context(|| format!("cannot create {}", sandbox.display()))?;
        let key = agent.join("key");
        let mut random = [0_u8; 32];
        fs::File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut random))
            .context("no randomness")?;
        let hex = random
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&key)
            .and_then(|mut file| file.write_all(hex.as_bytes()))
            .with_context(|| format!("cannot write {}", key.display()))?;
        for path in [&agent, &sandbox, &key] {
            chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to the agent", path.display()))?;
        }
        Ok(Self {
            root,
            agent,
            user,
            node,
        })
    }

    fn log(&self) -> PathBuf {
        self.agent.join("audit.jsonl")
    }

    /// `countersign run … -- demo agent … -- server`.
    fn record(&self, seed: u64, out: &Path) -> Command {
        let countersign = built("countersign");
        let mut command = Command::new(&countersign);
        command.arg("run").args(["--keep-spool", "--linger", "1s"]);
        command.arg("--proxy-exe").arg(&countersign);
        self.log_and_key(&mut command);
        command.arg("-o").arg(out);
        if let Some(user) = self.user {
            command.args(["--user", user]);
        }
        command.arg("--").arg(built("demo-agent"));
        command.args(["--seed", &seed.to_string(), "--calls", &CALLS.to_string()]);
        command.arg("--sandbox").arg(self.agent.join("sandbox"));
        command.arg("--plan-out").arg(self.agent.join("plan.json"));
        command.arg("--proxy-cmd").arg(&countersign);
        for argument in ["proxy", "--log"] {
            command.arg(format!("--proxy-arg={argument}"));
        }
        for argument in [
            self.log().to_string_lossy(),
            "--key-file".into(),
            self.agent.join("key").to_string_lossy(),
        ] {
            command.arg(format!("--proxy-arg={argument}"));
        }
        command
            .arg("--")
            .arg(&self.node)
            .arg(server())
            .arg(self.agent.join("sandbox"));
        command.stdin(Stdio::null()).current_dir("/");
        command
    }

    /// `countersign pair` of what `record` left in `recorded`.
    fn pair(&self, recorded: &Path, out: &Path) -> Command {
        let mut command = Command::new(built("countersign"));
        command.arg("pair").arg(recorded);
        self.log_and_key(&mut command);
        command.arg("-o").arg(out);
        command
    }

    fn log_and_key(&self, command: &mut Command) {
        command
            .arg("--proxy-log")
            .arg(self.log())
            .arg("--key-file")
            .arg(self.agent.join("key"));
    }
}

/// The file system server's program.
fn server() -> PathBuf {
    peers().join("node_modules/@modelcontextprotocol/server-filesystem/dist/index.js")
}

/// Who the agent is: the user behind `sudo`, else `nobody` where that user can execute what the agent needs, else root.
fn agent_user(node: &Path) -> anyhow::Result<(Option<&'static str>, u32, u32)> {
    let sudo = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|id| id.parse::<u32>().ok())
    };
    if let (Some(uid), Some(gid)) = (sudo("SUDO_UID"), sudo("SUDO_GID"))
        && uid != 0
    {
        return Ok((None, uid, gid));
    }
    let can = |command: &mut Command| {
        let command = command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if can(Command::new(built("demo-agent")).arg("--version"))
        && can(Command::new(built("countersign")).arg("--version"))
        && can(Command::new(node).arg("--check").arg(server()))
    {
        return Ok((Some("nobody"), NOBODY, NOBODY));
    }
    say(
        "the checkout is closed to the user nobody: the agent runs as root, which the evidence will call a weakness",
    )?;
    Ok((Some("root"), 0, 0))
}

/// The verdicts in the Parquet files, joined with the parameters of their calls and entries by `DuckDB`.
fn read_parquet(evidence: &Path) -> anyhow::Result<Vec<Judged>> {
    let text = output(
        Command::new(setup::python())
            .arg(peers().join("read_verdicts.py"))
            .arg(evidence),
        &[0],
    )?;
    text.lines()
        .map(|line| {
            let row: Value = serde_json::from_str(line).context("the reader wrote no JSON")?;
            Ok(judged(
                &row,
                row["params"].as_str().unwrap_or_default().to_owned(),
            ))
        })
        .collect()
}

/// The verdicts in the JSON lines of `countersign pair --json`, which leave the parameters out.
fn read_json(lines: &str) -> anyhow::Result<Vec<Judged>> {
    let mut verdicts = Vec::new();
    for line in lines.lines() {
        let row: Value = serde_json::from_str(line).context("a line of the output is not JSON")?;
        if row["table"] == "verdicts" {
            verdicts.push(judged(&row, String::new()));
        }
    }
    ensure!(!verdicts.is_empty(), "the output holds no verdicts");
    Ok(verdicts)
}

fn judged(row: &Value, params: String) -> Judged {
    let text = |key: &str| row[key].as_str().map(str::to_owned);
    Judged {
        verdict: text("verdict").unwrap_or_default(),
        via: text("via"),
        method: text("method"),
        request_id: text("request_id"),
        params,
    }
}
