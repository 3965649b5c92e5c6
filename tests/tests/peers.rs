//! Official SDKs and servers under `countersign run`, against the ground truth that the clients write themselves.
//!
//! Every client does one session through `countersign proxy` and one around it. Every message of both must end in the right
//! verdict, with the parameters that were really sent, and there must be no other verdict.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

const FILESYSTEM: &str = "node_modules/@modelcontextprotocol/server-filesystem/dist/index.js";
const EVERYTHING: &str = "node_modules/@modelcontextprotocol/server-everything/dist/index.js";
const NOBODY: u32 = 65_534;

/// One capture at a time: several would only compete for the two or four processors of a small machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn the_first_python_sdk_with_the_file_system_server_over_pipes() {
    check(
        &[PYTHON, "clients/python_sdk.py", "--scenario", "filesystem"],
        &[NODE, FILESYSTEM, SANDBOX],
    );
}

#[test]
fn the_first_python_sdk_with_answers_out_of_order() {
    check(
        &[PYTHON, "clients/python_sdk.py", "--scenario", "everything"],
        &[NODE, EVERYTHING, "stdio"],
    );
}

#[test]
fn the_second_python_sdk_falls_back_to_2025_11_25() {
    let client = [
        PYTHON_2,
        "clients/python_sdk.py",
        "--scenario",
        "everything",
        "--mode",
        "auto",
    ];
    check(&client, &[NODE, EVERYTHING, "stdio"]);
}

#[test]
fn the_second_python_sdk_speaks_2026_07_28_to_its_own_server() {
    let client = [
        PYTHON_2,
        "clients/python_sdk.py",
        "--scenario",
        "modern",
        "--mode",
        "auto",
    ];
    check(&client, &[PYTHON_2, "servers/modern.py"]);
}

#[test]
fn the_first_typescript_sdk_with_the_file_system_server_over_unix_sockets() {
    let client = [
        NODE,
        "clients/typescript_sdk.mjs",
        "--sdk",
        "1",
        "--scenario",
        "filesystem",
    ];
    check(&client, &[NODE, FILESYSTEM, SANDBOX]);
}

#[test]
fn the_first_typescript_sdk_with_answers_out_of_order() {
    let client = [
        NODE,
        "clients/typescript_sdk.mjs",
        "--sdk",
        "1",
        "--scenario",
        "everything",
    ];
    check(&client, &[NODE, EVERYTHING, "stdio"]);
}

#[test]
fn the_second_typescript_sdk_speaks_2026_07_28() {
    let client = [
        NODE,
        "clients/typescript_sdk.mjs",
        "--sdk",
        "2",
        "--scenario",
        "modern",
        "--mode",
        "2026-07-28",
    ];
    check(&client, &[NODE, "servers/modern.mjs"]);
    check(&client, &[PYTHON_2, "servers/modern.py"]);
}

#[test]
fn frames_that_are_cut_in_every_way_over_pipes() {
    check(
        &[PYTHON, "clients/raw_frames.py"],
        &[NODE, EVERYTHING, "stdio"],
    );
}

#[test]
fn frames_that_are_cut_in_every_way_over_unix_sockets() {
    check(
        &[PYTHON, "clients/raw_frames.py", "--socketpair"],
        &[NODE, EVERYTHING, "stdio"],
    );
}

// Stand for paths that are known only when a test runs.
const NODE: &str = "{node}";
const PYTHON: &str = "{python}";
const PYTHON_2: &str = "{python_2}";
const SANDBOX: &str = "{sandbox}";

/// Runs `client` with `server` and compares the verdicts with the client's ground truth.
fn check(client: &[&str], server: &[&str]) {
    let peers = match Peers::find() {
        Ok(peers) => peers,
        Err(missing) if std::env::var_os("COUNTERSIGN_REQUIRE_PEERS").is_some() => {
            panic!("{missing}")
        }
        Err(missing) => {
            // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
            let _unheard = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("skipped: {missing}\n").as_bytes(),
            );
            return;
        }
    };
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::new(&peers);
    let truth = stage.agent().join("truth.jsonl");
    let evidence = stage.folder.path().join("evidence");

    let mut run = Command::new(&peers.countersign);
    run.args([
        "run",
        "--payload",
        "full",
        "--linger",
        "1s",
        "--user",
        stage.user,
    ]);
    run.arg("--proxy-exe").arg(&peers.countersign);
    run.arg("--proxy-log")
        .arg(stage.log())
        .arg("--key-file")
        .arg(stage.key());
    run.arg("-o").arg(&evidence).arg("--");
    run.args(stage.resolve(&peers, client))
        .arg("--truth")
        .arg(&truth);
    if client.contains(&"--scenario") {
        run.arg("--sandbox").arg(stage.sandbox());
    }
    let proxy = [
        peers.countersign.clone(),
        "proxy".into(),
        "--log".into(),
        stage.log(),
        "--key-file".into(),
        stage.key(),
    ];
    for argument in proxy {
        run.arg(format!("--proxy={}", argument.display()));
    }
    run.arg("--").args(stage.resolve(&peers, server));
    let output = run.current_dir("/").stdin(Stdio::null()).output().unwrap();
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // The session around the proxy is a finding, always.
    assert_eq!(
        output.status.code(),
        Some(1),
        "countersign run said:\n{said}"
    );

    let expected = expected(&fs::read_to_string(&truth).unwrap());
    assert!(
        expected.values().sum::<usize>() > 10,
        "the client wrote no ground truth:\n{said}"
    );
    let judged = judged(&peers, &evidence);
    let mut differences = String::new();
    for name in expected
        .keys()
        .chain(judged.keys().filter(|name| !expected.contains_key(*name)))
    {
        let count = |of: &BTreeMap<String, usize>| of.get(name).copied().unwrap_or(0);
        if count(&expected) != count(&judged) {
            writeln!(
                differences,
                "expected {}, judged {}: {name:.300}",
                count(&expected),
                count(&judged)
            )
            .unwrap();
        }
    }
    assert!(
        differences.is_empty(),
        "verdicts differ from the ground truth:\n{differences}\n{said}"
    );
}

/// What the client says: each call with its verdict, and how often.
fn expected(truth: &str) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for line in truth.lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let kind = message["kind"].as_str().unwrap();
        if kind != "request" && kind != "notification" {
            continue;
        }
        let direction = if message["from"] == "client" {
            "client_to_server"
        } else {
            "server_to_client"
        };
        let verdict = match message["via"].as_str().unwrap() {
            "proxy" => "matched".to_owned(),
            way => format!("bypassed via {way}"),
        };
        let id = if kind == "request" {
            message["id"].to_string()
        } else {
            String::new()
        };
        let name = name(
            &verdict,
            direction,
            kind,
            &message["method"],
            &id,
            &message["params"],
        );
        *calls.entry(name).or_default() += 1;
    }
    calls
}

/// What Countersign says, in the same words.
fn judged(peers: &Peers, evidence: &Path) -> BTreeMap<String, usize> {
    let output = Command::new(&peers.python)
        .arg(peers.folder.join("read_verdicts.py"))
        .arg(evidence)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the evidence cannot be read");
    let mut calls = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let mut verdict = text("verdict");
        for (word, key) in [("via", "via"), ("because", "reason")] {
            if let Some(value) = row[key].as_str() {
                write!(verdict, " {word} {value}").unwrap();
            }
        }
        let params = row["params"]
            .as_str()
            .map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
        let name = name(
            &verdict,
            &text("direction"),
            &text("kind"),
            &row["method"],
            &text("jsonrpc_id"),
            &params,
        );
        *calls.entry(name).or_default() += 1;
    }
    calls
}

fn name(
    verdict: &str,
    direction: &str,
    kind: &str,
    method: &Value,
    id: &str,
    params: &Value,
) -> String {
    let is_empty = params.is_null() || params.as_object().is_some_and(serde_json::Map::is_empty);
    let params = if is_empty {
        String::new()
    } else {
        params.to_string()
    };
    let method = method.as_str().unwrap_or_default();
    format!("{verdict}: {direction} {kind} {method} {id} {params}")
}

/// The programs of a test.
struct Peers {
    folder: PathBuf,
    countersign: PathBuf,
    node: PathBuf,
    python: PathBuf,
    python_2: PathBuf,
}

impl Peers {
    fn find() -> Result<Self, String> {
        if fs::metadata("/proc/self")
            .map_err(|error| error.to_string())?
            .uid()
            != 0
        {
            return Err("recording needs root".to_owned());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let build = std::env::current_exe().map_err(|error| error.to_string())?;
        let profile = build
            .ancestors()
            .nth(2)
            .ok_or("the test's binary lies outside a target folder")?;
        let node = std::env::var_os("COUNTERSIGN_NODE")
            .map(PathBuf::from)
            .or_else(|| {
                let path = std::env::var_os("PATH")?;
                std::env::split_paths(&path)
                    .map(|folder| folder.join("node"))
                    .find(|node| node.exists())
            });
        let peers = Self {
            countersign: profile.join("countersign"),
            node: node.ok_or("there is no node: run `cargo xtask setup`")?,
            python: folder.join(".venv/bin/python"),
            python_2: folder.join(".venv-sdk2/bin/python"),
            folder,
        };
        for path in [
            &peers.countersign,
            &peers.python,
            &peers.python_2,
            &peers.folder.join(FILESYSTEM),
        ] {
            if !path.exists() {
                let path = path.display();
                return Err(format!(
                    "{path} is missing: run `cargo xtask setup` and `cargo build`"
                ));
            }
        }
        let doctor = Command::new(&peers.countersign).arg("doctor").output();
        let doctor = doctor.map_err(|error| error.to_string())?;
        if !doctor.status.success() || doctor.stdout.is_empty() {
            let said = String::from_utf8_lossy(&doctor.stdout);
            return Err(format!(
                "`countersign doctor` says that this machine cannot record: {said}"
            ));
        }
        Ok(peers)
    }
}

/// The folders of one test.
struct Stage {
    folder: tempfile::TempDir,
    user: &'static str,
}

impl Stage {
    fn new(peers: &Peers) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let can_read = Command::new("/usr/bin/test")
            .arg("-r")
            .arg(peers.folder.join("read_verdicts.py"))
            .uid(NOBODY)
            .gid(NOBODY)
            .status()
            .is_ok_and(|status| status.success());
        // A checkout in root's home folder is closed to everybody else.
        let (user, uid) = if can_read {
            ("nobody", NOBODY)
        } else {
            ("root", 0)
        };
        let stage = Self { folder, user };
        fs::create_dir_all(stage.sandbox()).unwrap();
        fs::write(stage.key(), "f1d2d2f924e986ac86fdf7b36c94bcdf32beec15").unwrap();
        fs::set_permissions(stage.key(), fs::Permissions::from_mode(0o600)).unwrap();
        for path in [stage.agent(), stage.sandbox(), stage.key()] {
            chown(path, Some(uid), Some(uid)).unwrap();
        }
        stage
    }

    fn agent(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    fn sandbox(&self) -> PathBuf {
        self.agent().join("sandbox")
    }

    fn log(&self) -> PathBuf {
        self.agent().join("audit.jsonl")
    }

    fn key(&self) -> PathBuf {
        self.agent().join("key")
    }

    /// Puts the real paths into a command line.
    fn resolve(&self, peers: &Peers, words: &[&str]) -> Vec<PathBuf> {
        words
            .iter()
            .map(|word| match *word {
                NODE => peers.node.clone(),
                PYTHON => peers.python.clone(),
                PYTHON_2 => peers.python_2.clone(),
                SANDBOX => self.sandbox(),
                word if word.starts_with("clients/")
                    || word.starts_with("servers/")
                    || word.contains("node_modules/") =>
                {
                    peers.folder.join(word)
                }
                word => word.into(),
            })
            .collect()
    }
}
