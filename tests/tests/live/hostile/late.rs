//! A writer that lies on a channel that was there before the capture.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{parquet::Table, say};
use crate::harness::{patiently, witness};

/// Lines of which nothing but the writer's memory tells: the first of the capture, whose beginning may be missing, and the last.
const EDGES: usize = 2;

/// Calls that the capture must have seen.
const CALLS_MIN: usize = 100;

#[test]
fn a_writer_that_lies_on_a_channel_from_before_the_capture_buys_no_doubt() {
    if witness().is_none() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let key = place.path().join("key");
    fs::write(&key, b"0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let hostile = Path::new(env!("CARGO_BIN_EXE_countersign-hostile"));
    let countersign = hostile.with_file_name("countersign");
    let shapes = "0,400,0,400";
    let mut agent = Ended(
        Command::new(hostile)
            .current_dir(place.path())
            .args(["agent", "pipe", "stall", "none", "9000000"])
            .args([shapes, "agent.truth", "--"])
            .arg(&countersign)
            .args(["proxy", "--log", "log", "--key-file", "key", "--"])
            .arg(hostile)
            .args(["server", "none", "none", shapes, "server.truth"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // Its proxy has begun to log: the channels are there, and in use.
    let log = place.path().join("log");
    waits(|| fs::metadata(&log).is_ok_and(|log| log.len() > 100_000));
    let mut record = Command::new(&countersign);
    record
        .current_dir(place.path())
        .args(["record", "--pid", &agent.0.id().to_string()])
        .args(["--proxy-log", "log", "--key-file", "key"])
        .args(["--payload", "full", "-o", "out"]);
    if let Ok(tier) = env::var("COUNTERSIGN_TIER") {
        record.args(["--tier", &tier]);
    }
    let mut record = Ended(record.stderr(Stdio::null()).spawn().unwrap());
    waits(|| place.path().join("out").exists());
    let at_first = fs::metadata(&log).unwrap().len();
    // Every second what waits in the channels is looked at.
    thread::sleep(patiently(Duration::from_secs(4)));
    waits(|| fs::metadata(&log).is_ok_and(|log| log.len() > at_first + 400_000));
    let pid = libc::pid_t::try_from(record.0.id()).unwrap();
    unsafe { libc::kill(pid, libc::SIGINT) };
    assert!(record.0.wait().unwrap().success());
    agent.0.kill().unwrap();
    let pair = Command::new(&countersign)
        .current_dir(place.path())
        .args(["pair", "out", "--key-file", "key", "--payload", "full"])
        .args(["-o", "evidence"])
        .output()
        .unwrap();
    let verdicts = Table::read(&place.path().join("evidence"), "verdicts");
    let calls = |verdict: &str, reason: Option<&str>| {
        let rows = verdicts.rows().filter(|row| {
            row.text("verdict") == Some(verdict)
                && (reason.is_none() || row.text("reason") == reason)
        });
        rows.count()
    };
    let (matched, unread) = (calls("matched", None), calls("undecided", Some("not_read")));
    say(&format!(
        "{matched} matched, {unread} undecided as not read\n"
    ));
    let said = String::from_utf8_lossy(&pair.stderr);
    assert!(matched >= CALLS_MIN, "{matched} matched\n{said}");
    assert!(
        unread <= EDGES,
        "{unread} of {matched} lies were believed enough to doubt"
    );
}

/// A process that does not outlive the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _unheard = self.0.wait();
    }
}

fn waits(until: impl Fn() -> bool) {
    let end = Instant::now() + patiently(Duration::from_secs(30));
    while !until() {
        assert!(Instant::now() < end, "it never came");
        thread::sleep(Duration::from_millis(20));
    }
}
