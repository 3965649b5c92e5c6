//! What goes wrong while a recording runs: the disk fills up, the recorder is killed, the log is replaced. The agent goes on, what
//! was captured stays of use, and nobody is accused of what was not seen.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::place::{Place, binary};
use super::session::{
    Row, Session, assert_no_accusation, of, pair_with, run, verdict_of, verdicts,
};

fn assert_doubt_but_no_accusation(code: i32, rows: &[Row], said: &str) {
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("the agent exited with code 0"), "{said}");
    assert!(said.contains("did not fit into the spool"), "{said}");
    assert_no_accusation(rows);
    let verdicts = verdicts(rows);
    let all: Vec<_> = verdicts.values().flatten().collect();
    assert!(
        all.iter().any(|verdict| *verdict == "matched"),
        "{verdicts:?}"
    );
    assert!(
        all.iter().any(|verdict| *verdict == "undecided"),
        "{verdicts:?}"
    );
    let loss = of(rows, "coverage").find(|row| row["name"] == "spool");
    let loss = loss.expect("the loss is in the evidence");
    assert_eq!(loss["weakens"], true);
    assert!(loss["lost_records"].as_u64().unwrap() > 0);
}

/// A few calls, then more bytes than there is room for, then a few calls.
fn commands() -> String {
    let big: String = (3..103)
        .flat_map(|number| ["big ".to_owned(), number.to_string(), "\n".to_owned()])
        .collect();
    format!("first 1\nfirst 2\n{big}last 103\n")
}

#[test]
fn a_disk_budget_that_is_too_small_costs_certainty_and_accuses_nobody() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let (code, rows, said) = run(&place, "out", &["--max-disk", "6MiB"], &commands());
    assert!(said.contains("raise --max-disk"), "{said}");
    assert_doubt_but_no_accusation(code, &rows, &said);
}

/// A small file system that somebody else fills up once the second call is under way, and keeps full until the end.
const FULL_DISK: &str = r#"
mkdir -p mnt && mount -t tmpfs -o size=40m,mode=755 none mnt || exit 99
( while [ ! -e got ]; do sleep 0.01; done; sleep 0.5
  cat /dev/zero > mnt/fill; : > go
  while [ ! -e stop ]; do cat /dev/zero >> mnt/fill; sleep 0.002; done ) 2> /dev/null &
"$@" < commands > printed 2> said; echo $? > code
: > stop; wait; rm mnt/fill
cp -a mnt/out out
"#;

#[test]
fn a_disk_that_fills_up_disturbs_no_agent_and_what_was_captured_stays_of_use() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    Session::files(&place, "first 1\nslow 2\nlast 3\nlast 4\n");
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", FULL_DISK, "sh"])
        .arg(binary())
        .args(["run", "--user", "root", "--json", "--proxy-log", "log"])
        .args(["--key-file", "key", "-o", "mnt/out", "--"])
        .args(Session::agent("pipes"))
        .current_dir(place.path("."))
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let said = read("said");
    assert!(said.contains("the agent exited with code 0"), "{said}");
    assert_eq!(read("printed").matches("\"result\": {\"n\":").count(), 4);
    // There is no room for evidence; the recording is there, and the way on is named.
    assert_eq!(read("code"), "74\n", "{said}");
    assert!(said.contains("did not fit into the spool"), "{said}");
    assert!(said.contains("what was recorded is kept"), "{said}");
    assert!(said.contains("countersign pair"), "{said}");
    // Whatever became of the copy of the log is a gap and no damage.
    for (flags, output) in [
        (&["--proxy-log", "log", "--key-file", "key"][..], "named"),
        (&["--key-file", "key"], "recorded"),
    ] {
        let (code, rows, said) = pair_with(&place, flags, output);
        assert_eq!(code, 2, "{said}");
        assert_no_accusation(&rows);
        assert_eq!(
            of(&rows, "findings")
                .filter(|row| row["kind"] == "kept_log_damaged")
                .count(),
            0
        );
        assert_eq!(verdict_of(&rows, "first", 1), "matched");
        assert_eq!(verdict_of(&rows, "last", 4), "undecided");
    }
}

/// A file system that the recording itself fills up.
const SMALL_DISK: &str = r#"
mkdir -p mnt && mount -t tmpfs -o size=20m,mode=755 none mnt || exit 99
"$@" < commands > printed 2> said; echo $? > code
cp -a mnt/out out
"#;

#[test]
fn a_log_whose_copy_does_not_fit_is_read_where_it_lies_and_nothing_is_called_damaged() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    Session::files(&place, &commands());
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", SMALL_DISK, "sh"])
        .arg(binary())
        .args(["run", "--user", "root", "--keep-spool", "--proxy-log"])
        .args(["log", "--key-file", "key", "-o", "mnt/out", "--"])
        .args(Session::agent("pipes"))
        .current_dir(place.path("."))
        .status()
        .unwrap();
    assert!(status.success());
    let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let said = read("said");
    assert_eq!(read("code"), "2\n", "{said}");
    assert!(said.contains("bytes of proxy logs were not kept"), "{said}");
    for (flags, output) in [
        (&["--proxy-log", "log", "--key-file", "key"][..], "named"),
        (&["--key-file", "key"], "recorded"),
    ] {
        let (code, rows, said) = pair_with(&place, flags, output);
        assert!(said.contains("could not be"), "{said}");
        assert_eq!(code, 2, "{said}");
        assert_no_accusation(&rows);
        assert_eq!(
            of(&rows, "findings")
                .filter(|row| row["kind"] == "kept_log_damaged")
                .count(),
            0
        );
        assert_eq!(verdict_of(&rows, "first", 1), "matched");
    }
}

#[test]
fn a_recorder_that_is_killed_leaves_the_agent_running_and_a_hole_that_is_declared() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let mut recorder = place.command(&["run", "--user", "root", "--proxy-log", "log"]);
    recorder.args(["--key-file", "key", "-o", "out", "--"]);
    recorder.stderr(Stdio::null());
    let mut session = Session::within(&place, recorder, "pipes");
    session.call("seen", 1);
    session.call("seen", 2);
    // Longer than the spool keeps anything to itself.
    std::thread::sleep(Duration::from_millis(600));
    kill_process(Pid::from_child(&session.agent), Signal::KILL).unwrap();
    session.agent.wait().unwrap();
    session.call("unwatched", 3);
    session.hang_up();
    let logged = || std::fs::read_to_string(place.path("log")).unwrap();
    assert_eq!(logged().lines().count(), 3);

    for (flags, output) in [
        (&["--key-file", "key"][..], "kept"),
        (&["--proxy-log", "log", "--key-file", "key"][..], "named"),
    ] {
        let (code, rows, said) = pair_with(&place, flags, output);
        assert_eq!(code, 2, "{said}");
        assert_no_accusation(&rows);
        for number in [1, 2] {
            assert_eq!(verdict_of(&rows, "seen", number), "matched");
        }
        assert_ne!(verdict_of(&rows, "unwatched", 3), "matched");
        let hole = of(&rows, "coverage").find(|row| row["name"] == "end_missing");
        assert_eq!(hole.expect("the hole is in the evidence")["weakens"], true);
    }
}

#[test]
fn a_log_that_is_replaced_by_a_fifo_or_a_link_is_not_followed_there() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    std::fs::create_dir(place.path("logs")).unwrap();
    std::os::unix::fs::chown(place.path("logs"), Some(super::place::NOBODY), None).unwrap();
    let script = "echo one > log; sleep 0.2; rm log; mkfifo log; sleep 0.2; \
        rm log; ln -s /etc/passwd log; sleep 0.2";
    place.record_with(
        "out",
        &["--proxy-log", "logs/log"],
        &format!("cd logs; {script}"),
    );
    let kept = place.path("out/spool/logs");
    assert_eq!(
        std::fs::read_to_string(kept.join("0-0.log")).unwrap(),
        "one\n"
    );
    assert!(!kept.join("0-1.log").exists());
    let (code, rows, said) = pair_with(&place, &[], "paired");
    assert_eq!(code, 1, "{said}");
    let refused: Vec<_> = of(&rows, "findings")
        .filter(|row| row["kind"] == "log_refused")
        .map(|row| row["message"].to_string())
        .collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused[0].contains("FIFO"), "{refused:?}");
    assert!(refused[1].contains("symbolic link"), "{refused:?}");
}

#[test]
fn a_write_longer_than_is_taken_of_one_accuses_nobody() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let (code, rows, said) = run(&place, "out", &[], "small 1\nhuge 2\nsmall 3\n");
    assert_eq!(code, 0, "{said}");
    for (tool, id) in [("small", 1), ("huge", 2), ("small", 3)] {
        assert_eq!(verdict_of(&rows, tool, id), "matched", "{said}");
    }
    let kinds: Vec<_> = of(&rows, "findings").map(|row| &row["kind"]).collect();
    assert_eq!(kinds, ["key_in_reach"], "{said}");
}
