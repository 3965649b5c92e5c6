//! Bad input at the command line: a message that names the fix, the documented exit code, nothing lost.
//!
//! Each test runs the built command. Those that need root, another user or a mount of their own say so
//! and are skipped without them; `COUNTERSIGN_REQUIRE_LIVE=1` makes a skip a failure.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use countersign_common::kind;

const NOBODY: u32 = 65_534;

#[test]
fn usage_errors_never_look_like_findings() {
    for arguments in [
        &["run"][..],
        &["no-such-command"],
        &["run", "--payload", "all", "-o", "x", "--", "true"],
        &[],
    ] {
        assert_eq!(
            countersign(arguments).status.code(),
            Some(64),
            "{arguments:?}"
        );
    }
    assert_eq!(countersign(&["--help"]).status.code(), Some(0));
    assert_eq!(countersign(&["--version"]).status.code(), Some(0));
    assert!(text(&countersign(&["--help"]).stdout).contains("Exit codes:"));
}

#[test]
fn a_run_without_a_proxy_says_which_flag_is_missing() {
    Place::new().run(&[]).fails(64, "--proxy-log");
}

#[test]
fn a_missing_empty_or_oversized_key_is_refused() {
    let place = Place::new();
    place
        .run(&["--proxy-log", "log", "--key-env", "COUNTERSIGN_NO_SUCH_KEY"])
        .fails(78, "COUNTERSIGN_NO_SUCH_KEY");
    place
        .run(&["--proxy-log", "log", "--key-file", "nowhere"])
        .fails(78, "nowhere");
    place.file("empty", b"\n", 0o600);
    place
        .run(&["--proxy-log", "log", "--key-file", "empty"])
        .fails(78, "is empty");
    place.file("huge", &[b'k'; 5000], 0o600);
    place
        .run(&["--proxy-log", "log", "--key-file", "huge"])
        .fails(78, "longer than 4096 bytes");
    place
        .run(&["--proxy-log", "log", "--key-fd", "99"])
        .fails(78, "descriptor 99");
    place
        .run(&["--proxy-log", "log", "--key-fd", "0"])
        .fails(64, "--key-fd");
    place
        .run(&["--proxy-log", "log", "--key-fd", "9", "--key-env", "A"])
        .fails(64, "cannot be used with");
}

#[test]
fn a_key_file_that_everyone_can_read_is_refused_and_never_printed() {
    let place = Place::new();
    place.file("key", b"hunter2", 0o644);
    let output = place.run(&["--proxy-log", "log", "--key-file", "key"]);
    output.fails(78, "chmod 600");
    assert!(!text(&output.0.stderr).contains("hunter2"));
}

#[test]
fn key_flags_without_a_log_are_refused() {
    Place::new()
        .run(&["--key-env", "HOME"])
        .fails(78, "--proxy-log");
}

#[test]
fn a_log_that_is_no_regular_file_is_refused() {
    let place = Place::new();
    symlink("/etc/passwd", place.path("link")).unwrap();
    place
        .run(&["--proxy-log", "link"])
        .fails(66, "symbolic link");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    place.run(&["--proxy-log", "fifo"]).fails(66, "FIFO");
    place.run(&["--proxy-log", "/dev/zero"]).fails(66, "device");
    place.run(&["--proxy-log", "."]).fails(66, "--proxy-log");
}

#[test]
fn a_proxy_executable_that_is_missing_or_a_directory_is_refused() {
    let place = Place::new();
    place
        .run(&["--proxy-log", "log", "--proxy-exe", "/nowhere/mcp-audit"])
        .fails(78, "--proxy-exe");
    place
        .run(&["--proxy-log", "log", "--proxy-exe", "/etc"])
        .fails(78, "--proxy-exe");
}

#[test]
fn mistakes_in_the_configuration_name_file_line_and_key() {
    let place = Place::new();
    place.file("c.toml", b"[[proxy]]\nname = 'a'\nlogg = 'x'\n", 0o600);
    let output = place.run(&["--config", "c.toml"]);
    output.fails(78, "c.toml:3");
    output.fails(78, "logg");
    place.file("w.toml", b"", 0o666);
    place.run(&["--config", "w.toml"]).fails(78, "chmod o-w");
    place
        .run(&["--config", "nowhere.toml"])
        .fails(78, "nowhere.toml");
}

#[test]
fn root_without_sudo_must_name_the_agents_user() {
    let Some(place) = Place::as_root() else {
        return;
    };
    place
        .command(&["run", "--proxy-log", "log", "-o", "out", "--", "true"])
        .output()
        .into_outcome()
        .fails(64, "--user root");
    place
        .command(&[
            "run",
            "--proxy-log",
            "log",
            "-o",
            "out",
            "--user",
            "no-such-user",
            "--",
            "true",
        ])
        .output()
        .into_outcome()
        .fails(64, "no user no-such-user");
}

#[test]
fn without_privileges_recording_is_refused_and_the_way_out_named() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::set_permissions(place.0.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    place
        .command(&["run", "--proxy-log", "log", "-o", "out", "--", "true"])
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .into_outcome()
        .fails(77, "sudo");
    assert!(!place.path("out").exists());
}

#[test]
fn a_kernel_without_types_is_refused_with_the_option_that_it_lacks() {
    let Some(place) = Place::as_root() else {
        return;
    };
    let output = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"",
            "sh",
        ])
        .arg(binary())
        .args([
            "run",
            "--proxy-log",
            "log",
            "-o",
            "out",
            "--user",
            "nobody",
            "--",
            "true",
        ])
        .current_dir(place.0.path())
        .output();
    output.into_outcome().fails(69, "CONFIG_DEBUG_INFO_BTF");
}

#[test]
fn an_output_directory_that_is_not_empty_is_left_alone() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("out")).unwrap();
    place.file("out/precious", b"x", 0o600);
    place.run(&["--proxy-log", "log"]).fails(73, "not empty");
    assert_eq!(std::fs::read(place.path("out/precious")).unwrap(), b"x");
}

#[test]
fn an_output_directory_behind_a_link_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("real")).unwrap();
    symlink("real", place.path("out")).unwrap();
    place
        .run(&["--proxy-log", "log"])
        .fails(73, "symbolic link");
    symlink("real", place.path("way")).unwrap();
    place
        .run_to("way/out", &["--proxy-log", "log"])
        .fails(73, "symbolic link");
    place.file("file", b"", 0o600);
    place
        .run_to("file", &["--proxy-log", "log"])
        .fails(73, "not a directory");
    place
        .run_to("no/such/parent", &["--proxy-log", "log"])
        .fails(73, "does not exist");
}

#[test]
fn an_output_directory_in_reach_of_the_agent_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    // The agent's own directory, then one open to all, then one deeper below it.
    std::fs::create_dir(place.path("home")).unwrap();
    std::os::unix::fs::chown(place.path("home"), Some(NOBODY), None).unwrap();
    place
        .run_to("home/out", &["--proxy-log", "log"])
        .fails(73, "agent (uid 65534) can write to");
    std::fs::create_dir_all(place.path("open/deep")).unwrap();
    std::fs::set_permissions(place.path("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    place
        .run_to("open/deep/out", &["--proxy-log", "log"])
        .fails(73, "open");
    assert!(!place.path("open/deep/out").exists());
    // With the sticky bit only the owner of an entry can move it: the way /tmp works.
    std::fs::set_permissions(place.path("open"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let output = place.run_to("open/deep/out", &["--proxy-log", "log"]);
    assert_ne!(
        output.0.status.code(),
        Some(73),
        "{}",
        text(&output.0.stderr)
    );
    let mode = std::fs::metadata(place.path("open/deep/out"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a_foreign_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("out")).unwrap();
    std::os::unix::fs::chown(place.path("out"), Some(1), None).unwrap();
    place
        .run(&["--proxy-log", "log"])
        .fails(73, "belongs to uid 1");
}

#[test]
fn a_read_only_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    place
        .mounted(
            "-o ro",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt/out",
                "--",
                "true",
            ],
        )
        .fails(73, "read-only");
    place
        .mounted(
            "-o ro",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt",
                "--",
                "true",
            ],
        )
        .fails(73, "read-only");
}

#[test]
fn a_full_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    place
        .mounted(
            "-o size=64k,mode=755",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt/out",
                "--",
                "true",
            ],
        )
        .fails(73, "bytes are free");
}

#[test]
fn pairing_what_is_no_spool_is_refused() {
    let place = Place::new();
    place.file("log", b"", 0o600);
    std::fs::create_dir(place.path("empty")).unwrap();
    let pair = |spool: &str, log: &str| {
        place
            .command(&["pair", spool, "--proxy-log", log, "-o", "out"])
            .output()
            .into_outcome()
    };
    pair("nowhere", "log").fails(66, "nowhere");
    pair("empty", "log").fails(65, "00000001.spool");
    std::fs::create_dir(place.path("spool")).unwrap();
    place.file("spool/00000001.spool", b"not a spool at all", 0o600);
    pair("spool", "gone").fails(66, "does not exist");
}

#[test]
fn recording_needs_a_target_that_exists() {
    let place = Place::new();
    let record = |arguments: &[&str]| {
        let all: Vec<&str> = ["record", "-o", "out"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        place.command(&all).output().into_outcome()
    };
    record(&[]).fails(64, "--pid");
    record(&["--pid", "4194305"]).fails(66, "no process 4194305");
    record(&["--cgroup", "no/such/group"]).fails(66, "--cgroup");
    record(&["--unit", "no-such-unit"]).fails(66, "no-such-unit.service");
    record(&["--container", "abc"]).fails(64, "hex digits");
}

#[test]
fn doctor_names_each_requirement() {
    let output = countersign(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<_> = report["requirements"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["name"].clone())
        .collect();
    assert_eq!(
        names[..4],
        [
            "architecture",
            "privileges",
            "kernel types",
            "kernel programs"
        ]
    );
    let all_met = report["requirements"]
        .as_array()
        .unwrap()
        .iter()
        .all(|item| item["met"] == true);
    assert_eq!(report["can_record"], all_met);
    assert_eq!(output.status.success(), all_met);
}

#[test]
fn an_agent_that_does_not_exist_is_not_found_and_one_without_permission_not_executable() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let start = |output: &str, agent: &str| {
        let arguments = [
            "run",
            "--proxy-log",
            "log",
            "-o",
            output,
            "--user",
            "nobody",
            "--",
            agent,
        ];
        place.command(&arguments).output().into_outcome()
    };
    start("out1", "no-such-agent-anywhere").fails(127, "no-such-agent-anywhere was not found");
    start("out2", "/nowhere/agent").fails(127, "/nowhere/agent was not found");
    place.file("agent", b"#!/bin/sh\n", 0o644);
    start("out3", "./agent").fails(126, "cannot be executed by uid 65534");
}

#[test]
fn an_agent_that_exits_at_once_leaves_its_whole_life_in_the_spool() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.record("out", "echo payload-of-the-agent | cat > /dev/null");
    let (kinds, text) = place.spool("out");
    let count = |kind: u16| kinds.iter().filter(|found| **found == kind).count();
    assert!(
        count(kind::EXEC) >= 2 && count(kind::EXIT) >= 2,
        "{kinds:?}"
    );
    assert_eq!(
        text.matches("payload-of-the-agent\n").count(),
        2,
        "one writer and one reader"
    );
    // The very first thing that the agent did is there: its own exec.
    let first = kinds.iter().find(|kind| **kind < kind::FIRST_USER);
    assert_eq!(first, Some(&kind::EXEC));
    assert_eq!(count(kind::LOSS), 0);
}

#[test]
fn a_log_that_appears_late_is_rotated_and_truncated_is_kept_in_full() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    std::fs::create_dir(place.path("logs")).unwrap();
    std::os::unix::fs::chown(place.path("logs"), Some(NOBODY), None).unwrap();
    let script = "sleep 0.1; echo one > log; sleep 0.1; echo two >> log; sleep 0.1; \
        mv log log.20261120T071855Z; echo three > log; sleep 0.1; : > log; sleep 0.1; echo 4 > log";
    let arguments = ["--proxy-log", "logs/log"];
    place.record_with("out", &arguments, &format!("cd logs; {script}"));
    let kept = place.path("out/spool/logs");
    let read = |name: &str| std::fs::read_to_string(kept.join(name)).unwrap();
    assert_eq!(read("0-0.log"), "one\ntwo\n");
    assert_eq!(read("0-1.log"), "three\n");
    assert_eq!(read("0-2.log"), "4\n");
    let events = read("events.jsonl");
    for event in ["opened", "rotated", "truncated"] {
        assert!(
            events.contains(&format!("\"event\":\"{event}\"")),
            "{events}"
        );
    }
}

#[test]
fn the_agent_does_not_get_the_key_by_default() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    for (output, flags, expected) in [("a", &[][..], ""), ("b", &["--pass-key"][..], "hunter2")] {
        std::fs::write(place.path(&format!("{output}.seen")), "").unwrap();
        std::os::unix::fs::chown(place.path(&format!("{output}.seen")), Some(NOBODY), None)
            .unwrap();
        let arguments: Vec<&str> = ["--proxy-log", "log", "--key-env", "AUDIT_SECRET"]
            .iter()
            .chain(flags)
            .copied()
            .collect();
        place.record_with(
            output,
            &arguments,
            &format!("printf %s \"$AUDIT_SECRET\" > {output}.seen"),
        );
        let seen = std::fs::read_to_string(place.path(&format!("{output}.seen"))).unwrap();
        assert_eq!(seen, expected);
    }
}

#[test]
fn processes_that_outlive_the_agent_are_named() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let stderr = place.record("out", "sleep 3 </dev/null >/dev/null 2>&1 & exit 7");
    assert!(stderr.contains("the agent exited with code 7"), "{stderr}");
    assert!(stderr.contains("1 of its processes still run"), "{stderr}");
}

/// A directory that the command is run in.
struct Place(tempfile::TempDir);

/// What came of a command.
struct Outcome(Output);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// For tests that need root. Checks on the output directory look at its parents, so it lies in the system's
    /// temporary directory, whose sticky bit they know.
    fn as_root() -> Option<Self> {
        if rustix::process::geteuid().is_root() {
            return Some(Self::new());
        }
        assert!(
            std::env::var_os("COUNTERSIGN_REQUIRE_LIVE").is_none(),
            "this test needs root"
        );
        skipped("needs root");
        None
    }

    /// For tests that record: root, and kernel programs in this build.
    fn that_can_record() -> Option<Self> {
        let place = Self::as_root()?;
        if countersign(&["doctor"]).status.success() {
            std::fs::set_permissions(place.0.path(), std::fs::Permissions::from_mode(0o755))
                .unwrap();
            return Some(place);
        }
        assert!(
            std::env::var_os("COUNTERSIGN_REQUIRE_LIVE").is_none(),
            "this test needs kernel programs"
        );
        skipped("`countersign doctor` says that this machine or build cannot record");
        None
    }

    /// Records a shell script and returns what was said.
    fn record(&self, output: &str, script: &str) -> String {
        self.record_with(output, &["--proxy-log", "log"], script)
    }

    fn record_with(&self, output: &str, flags: &[&str], script: &str) -> String {
        let fixed = [
            "run",
            "-o",
            output,
            "--user",
            "nobody",
            "--linger",
            "300ms",
            "--keep-spool",
        ];
        let all: Vec<&str> = fixed
            .iter()
            .chain(flags)
            .chain(&["--", "sh", "-c", script])
            .copied()
            .collect();
        let output = self
            .command(&all)
            .env("AUDIT_SECRET", "hunter2")
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert!(stderr.contains("the agent exited"), "{stderr}");
        stderr
    }

    /// Kinds of all records, and everything in them as text.
    fn spool(&self, output: &str) -> (Vec<u16>, String) {
        use countersign::outdir::Dir;
        use countersign::spool::{SpoolItem, SpoolReader};
        let (mut kinds, mut all) = (Vec::new(), Vec::new());
        let mut reader =
            SpoolReader::open(Dir::open_named(&self.path(output).join("spool")).unwrap()).unwrap();
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                SpoolItem::Record(record) => {
                    let kind = u16::from_le_bytes([record[0], record[1]]);
                    kinds.push(kind);
                    if kind == countersign_common::kind::CHUNK {
                        all.extend_from_slice(&record[size_of::<countersign_common::Transfer>()..]);
                    }
                }
                SpoolItem::Segment(_) => {}
                SpoolItem::Damage(damage) => panic!("{damage:?}"),
            }
        }
        (kinds, text(&all))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8], mode: u32) {
        std::fs::write(self.path(name), content).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("SUDO_UID")
            .env_remove("SUDO_GID");
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_to("out", arguments)
    }

    fn run_to(&self, output: &str, arguments: &[&str]) -> Outcome {
        let user = if rustix::process::geteuid().is_root() {
            &["--user", "nobody"][..]
        } else {
            &[]
        };
        let all: Vec<&str> = ["run", "-o", output]
            .iter()
            .chain(user)
            .chain(arguments)
            .chain(&["--", "true"])
            .copied()
            .collect();
        self.command(&all).output().into_outcome()
    }

    /// Runs with a small file system of its own at `mnt`.
    fn mounted(&self, options: &str, arguments: &[&str]) -> Outcome {
        std::fs::create_dir_all(self.path("mnt")).unwrap();
        Command::new("unshare")
            .args([
                "-m",
                "sh",
                "-c",
                &format!("mount -t tmpfs {options} none mnt && exec \"$@\""),
                "sh",
            ])
            .arg(binary())
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .into_outcome()
    }
}

impl Outcome {
    #[track_caller]
    fn fails(&self, code: i32, needle: &str) {
        let stderr = text(&self.0.stderr);
        assert_eq!(self.0.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(needle), "{stderr:?} lacks {needle:?}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

trait IntoOutcome {
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for std::io::Result<Output> {
    fn into_outcome(self) -> Outcome {
        Outcome(self.unwrap())
    }
}

fn countersign(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// Output as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says why")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
