//! `countersign record` on sessions that run already: what came before is never held against anybody.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use super::groups::Group;
use super::place::{NOBODY, Place, text};
use super::session::{Recorder, Row, Session, of, pair, verdicts, wait_for};

fn assert_only_the_later_calls_are_judged(rows: &[Row]) {
    let verdicts = verdicts(rows);
    for ((tool, id), found) in &verdicts {
        let expected: &[&str] = match tool.as_str() {
            "before" => &["outside"],
            "after" => &["matched"],
            // Whatever is said of the call in between and of gaps, it is that it was not seen.
            _ => &["undecided", "outside"],
        };
        for verdict in found {
            assert!(
                expected.contains(&verdict.as_str()),
                "{tool} {id} is {verdict}: {verdicts:?}"
            );
        }
    }
    for (tool, id) in [
        ("before", 1),
        ("before", 2),
        ("after", 4),
        ("after", 5),
        ("after", 6),
    ] {
        assert_eq!(
            verdicts
                .get(&(tool.to_owned(), id.to_string()))
                .map(Vec::len),
            Some(1),
            "{tool} {id}: {verdicts:?}"
        );
    }
}

#[test]
fn what_a_session_does_after_the_attach_is_matched_and_nothing_before_is_accused() {
    for kind in ["pipes", "sockets"] {
        let Some(place) = Place::that_can_record() else {
            return;
        };
        let mut session = Session::start(&place, kind);
        session.call("before", 1);
        session.call("before", 2);
        session.ask("slow", 3);
        wait_for(&place.path("got"));
        let pid = session.agent.id().to_string();
        let recorder = Recorder::start(&place, &["--pid", &pid]);
        place.file("go", b"", 0o644);
        session.answer(3);
        for number in 4..=6 {
            session.call("after", number);
        }
        let (code, said) = recorder.stop();
        assert_eq!(code, 0, "{said}");
        session.end();
        let rows = pair(&place);
        assert_only_the_later_calls_are_judged(&rows);
        // The test itself holds the other ends of the agent's pipes.
        let me = u64::from(std::process::id());
        let peer = of(&rows, "processes").find(|row| row["pid"] == me);
        assert_eq!(peer.unwrap()["role"], "peer");
        let roles: Vec<_> = of(&rows, "processes")
            .map(|row| row["role"].clone())
            .collect();
        for role in ["agent", "proxy", "server"] {
            assert!(roles.iter().any(|found| found == role), "{roles:?}");
        }
        assert!(
            of(&rows, "channel_ends").any(|row| row["how"] == "scan"),
            "ends that were held before are there"
        );
    }
}

#[test]
fn a_control_group_is_recorded_and_who_joins_it_later_is_named_as_unseen_until_then() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let group = Group::new("joined").expect("this test needs cgroups of version 2");
    let mut session = Session::start(&place, "pipes");
    session.call("before", 1);
    session.call("before", 2);
    // The group has the agent only; proxy and server stand outside it, and descend from it.
    group.enter(session.agent.id());
    let below = group.0.ancestors().nth(2).unwrap();
    let name = group.0.strip_prefix(below).unwrap().to_str().unwrap();
    let mut recorder = Recorder::start(&place, &["--cgroup", name]);
    for number in 4..=6 {
        session.call("after", number);
    }
    let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
    group.enter(stranger.id());
    recorder.until("had no tag");
    let (code, said) = recorder.stop();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("1 processes ran for a while without being watched"),
        "{said}"
    );
    session.end();
    let rows = pair(&place);
    let verdicts = verdicts(&rows);
    for accused in ["bypassed", "unlogged", "altered", "forged", "unobserved"] {
        assert!(
            !verdicts
                .values()
                .flatten()
                .any(|verdict| verdict == accused),
            "{verdicts:?}"
        );
    }
    let missed = of(&rows, "coverage").find(|row| row["name"] == "tag_reconciled");
    assert_eq!(missed.unwrap()["weakens"], true);
}

#[test]
fn a_directory_that_a_recorded_user_can_write_to_is_refused() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let open = place.path("open");
    std::fs::create_dir(&open).unwrap();
    std::os::unix::fs::chown(&open, Some(NOBODY), None).unwrap();
    // A process may call itself what it likes, in bytes that are no text.
    let script = "import time\nopen('/proc/self/comm', 'wb').write(b'\\xff\\n')\nprint(flush=True)\ntime.sleep(60)";
    let mut agent = Command::new("python3")
        .args(["-c", script])
        .uid(NOBODY)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = agent.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
    assert_eq!(ready, 1);
    let output = place
        .command(&["record", "-o", "open/out", "--pid", &agent.id().to_string()])
        .output()
        .unwrap();
    agent.kill().unwrap();
    agent.wait().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(
        said.contains("the agent (uid 65534) can write to"),
        "{said}"
    );
    assert!(!open.join("out").exists());
}

#[test]
fn a_recording_of_processes_ends_with_the_last_of_them() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file("key", b"k", 0o600);
    let mut agent = Command::new("sleep").arg("60").spawn().unwrap();
    let mut recorder = Recorder::start(&place, &["--pid", &agent.id().to_string()]);
    agent.kill().unwrap();
    agent.wait().unwrap();
    recorder.until("all recorded processes have ended");
    recorder.until("/out --key-file KEY -o ANOTHER_DIRECTORY`");
    assert_eq!(recorder.child.wait().unwrap().code(), Some(0));
}
