//! Flags, keys, logs, configuration and what the machine lacks.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::place::{IntoOutcome, NOBODY, Place, binary, countersign, text};

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
fn a_number_below_zero_is_a_wrong_value_and_not_a_flag() {
    for (flag, value, words) in [
        ("--max-disk", "-5", "\"-5\" is no size: write it like"),
        ("--max-disk", "-5GiB", "\"-5GiB\" is no size: write it like"),
        ("--linger", "-5s", "\"-5s\" is no duration: write it like"),
        ("--key-fd", "-1", "-1 is not in 3.."),
    ] {
        let outcome = Place::new().run(&["--proxy-log", "log", flag, value]);
        outcome.fails(64, words);
        assert!(!text(&outcome.0.stderr).contains("as a value"));
    }
    let record = Ok(countersign(&["record", "-o", "out", "--pid", "-5"])).into_outcome();
    record.fails(64, "invalid value '-5' for '--pid <PID>'");
}

#[test]
fn what_the_codes_of_record_say_is_in_its_help() {
    let help = text(&countersign(&["record", "--help"]).stdout);
    assert!(
        help.contains("2    something could not be recorded"),
        "{help}"
    );
}

#[test]
fn a_run_without_a_proxy_says_which_flag_is_missing() {
    Place::new().run(&[]).fails(64, "--proxy-log");
}

/// A name that no text can hold.
fn odd(name: &str) -> OsString {
    OsString::from_vec([name.as_bytes(), b"\xff\xfe"].concat())
}

#[test]
fn a_log_or_executable_whose_name_is_not_utf8_is_refused_in_one_sentence() {
    let place = Place::new();
    std::fs::copy(binary(), place.0.path().join(odd("exe"))).unwrap();
    for (log, exe) in [(odd("log"), "true".into()), ("log".into(), odd("exe"))] {
        let mut command = place.command(&["run", "-o", "out", "--user", "nobody", "--proxy-log"]);
        command
            .arg(log)
            .arg("--proxy-exe")
            .arg(exe)
            .args(["--", "true"]);
        let outcome = command.output().into_outcome();
        outcome.fails(78, "only in UTF-8: rename it");
        assert_eq!(text(&outcome.0.stderr).lines().count(), 1);
        assert!(!place.path("out").exists());
    }
}

#[test]
fn the_program_itself_may_have_any_name() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let program = place.0.path().join(odd("countersign"));
    std::fs::copy(binary(), &program).unwrap();
    let outcome = Command::new(&program)
        .args(["run", "-o", "out", "--user", "nobody", "--linger", "0s"])
        .args(["--proxy-log", "log", "--", "true"])
        .current_dir(place.path("."))
        .output()
        .into_outcome();
    let said = text(&outcome.0.stderr);
    assert!(said.contains("the agent exited with code 0"), "{said}");
}

#[test]
fn other_names_need_not_be_utf8() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file("key", b"0123456789abcdef", 0o600);
    std::fs::rename(place.path("key"), place.0.path().join(odd("key"))).unwrap();
    place.file("log", b"", 0o600);
    let mut command = place.command(&["run", "--user", "nobody", "--keep-spool", "--proxy-log"]);
    command
        .args(["log", "--linger", "0s", "--key-file"])
        .arg(odd("key"));
    command
        .arg("-o")
        .arg(odd("out"))
        .args(["--", "true"])
        .arg(odd("x"));
    let outcome = command.output().into_outcome();
    let said = text(&outcome.0.stderr);
    assert_eq!(outcome.0.status.code(), Some(0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let mut command = place.command(&["pair", "--key-file"]);
    command
        .arg(odd("key"))
        .arg(odd("out"))
        .arg("-o")
        .arg(odd("again"));
    let outcome = command.output().into_outcome();
    assert_eq!(
        outcome.0.status.code(),
        Some(0),
        "{}",
        text(&outcome.0.stderr)
    );
}

#[test]
fn a_missing_empty_or_oversized_key_is_refused() {
    let place = Place::new();
    place
        .run(&["--proxy-log", "log", "--key-env", "COUNTERSIGN_NO_SUCH_KEY"])
        .fails(
            78,
            "COUNTERSIGN_NO_SUCH_KEY with the key is not set: export it",
        );
    place
        .run(&["--proxy-log", "log", "--key-file", "nowhere"])
        .fails(78, "there is no key file nowhere: check --key-file");
    place.file("empty", b"\n", 0o600);
    place
        .run(&["--proxy-log", "log", "--key-file", "empty"])
        .fails(78, "put the proxy's own key there");
    place.file("huge", &[b'k'; 5000], 0o600);
    place
        .run(&["--proxy-log", "log", "--key-file", "huge"])
        .fails(78, "longer than 4096 bytes, so it is none: name the file");
    place
        .run(&["--proxy-log", "log", "--key-fd", "99"])
        .fails(78, "`--key-fd 99 99<audit.key`");
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
    place.run(&["--config", "."]).fails(78, "check --config");
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
    // The checkout can be closed to others, as below root's home folder.
    std::fs::copy(binary(), place.path("countersign")).unwrap();
    Command::new(place.path("countersign"))
        .args(["run", "--proxy-log", "log", "-o", "out", "--", "true"])
        .current_dir(place.0.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .into_outcome()
        .fails(77, "sudo");
    assert!(!place.path("out").exists());
}

#[test]
fn a_kernel_without_types_or_with_broken_ones_is_refused_with_the_way_out() {
    let Some(place) = Place::as_root() else {
        return;
    };
    let types = "/sys/kernel/btf/vmlinux";
    for (content, code, needle) in [
        (String::new(), 69, "CONFIG_DEBUG_INFO_BTF"),
        (
            format!("echo nonsense > {types} &&"),
            69,
            "mount the kernel's own sysfs on /sys",
        ),
        (
            format!("head -c 100000 < hidden > {types} &&"),
            69,
            "btf ends early",
        ),
    ] {
        std::fs::copy(types, place.path("hidden")).unwrap();
        let script = format!("mount -t tmpfs none /sys/kernel/btf && {content} exec \"$@\"");
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", &script, "sh"])
            .arg(binary())
            .args(["run", "--proxy-log", "log", "-o", "out"])
            .args(["--user", "nobody", "--", "true"])
            .current_dir(place.0.path())
            .output();
        output.into_outcome().fails(code, needle);
        let _ = std::fs::remove_dir_all(place.path("out"));
    }
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
    pair("nowhere", "log").fails(66, "name the directory that holds 00000001.spool");
    pair("log", "log").fails(66, "name the directory that holds 00000001.spool");
    pair("empty", "log").fails(65, "name the directory that holds 00000001.spool");
    std::fs::create_dir(place.path("spool")).unwrap();
    place.file("spool/00000001.spool", b"not a spool at all", 0o600);
    pair("spool", "gone").fails(66, "does not exist: check --proxy-log");
    pair("spool", "log").fails(65, "no segment of the spool has a readable header");
}

#[test]
fn a_proxy_that_cannot_begin_says_what_to_change() {
    let place = Place::new();
    place.file("key", b"k", 0o600);
    place.file("plain", b"", 0o644);
    let proxy = |log: &str, key: &str, server: &str| {
        place
            .command(&["proxy", "--log", log, "--key-file", key, "--", server])
            .output()
            .into_outcome()
    };
    proxy("log", "key", "/nowhere/server").fails(127, "check the command after `--`");
    proxy("log", "key", "./plain").fails(126, "check the command after `--`");
    proxy("nowhere/log", "key", "cat").fails(78, "its directory must exist");
    proxy("log", "gone", "cat").fails(78, "check --key-file");
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
        names[..5],
        [
            "architecture",
            "privileges",
            "kernel types",
            "kernel features",
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
