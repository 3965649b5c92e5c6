//! Real recordings of real agents, on kernels and builds that can.

use countersign_common::kind;

use super::place::{IntoOutcome, NOBODY, Place, text};

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

#[test]
fn signals_that_are_not_to_stop_it_do_not_end_the_program() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    // Its parent is the program that watches it; each is sent often enough that three stopping ones would have killed it.
    let script = "trap 'echo one >> got' USR1; trap 'echo two >> got' USR2; up=$PPID; \
        for s in ALRM VTALRM PROF IO PWR STKFLT XCPU XFSZ RTMIN RTMAX; do kill -$s $up; done; \
        for n in 1 2 3 4; do kill -USR1 $up; kill -USR2 $up; sleep 0.1; done; exit 7";
    std::fs::write(place.path("got"), "").unwrap();
    place.file("send", script.as_bytes(), 0o644);
    let arguments = ["run", "-o", "out", "--user", "root", "--linger", "300ms"];
    let mut command = place.command(&arguments);
    command.args(["--proxy-log", "log", "--", "bash", "send"]);
    let outcome = command.output().into_outcome();
    let said = text(&outcome.0.stderr);
    assert!(said.contains("the agent exited with code 7"), "{said}");
    assert!(outcome.0.status.code().is_some(), "{said}");
    let got = std::fs::read_to_string(place.path("got")).unwrap();
    assert!(got.contains("one") && got.contains("two"), "{got} {said}");
}
