//! `countersign record --pin`: a recorder that is killed loses nothing, says nothing twice, and the next one goes on.

use std::process::Command;
use std::time::Duration;

use countersign::bpf::pin::{Found, Note, PinDir};
use countersign_common::ABI_VERSION;

use super::place::{Place, countersign, text};
use super::session::{Recorder, Session, assert_no_accusation, of, pair_with, verdicts};

/// A name under which only this test pins.
pub(super) struct Name(pub(super) String);

impl Name {
    pub(super) fn new(of: &str) -> Self {
        let name = Self(format!("test-{of}-{}", std::process::id()));
        name.dir().remove().unwrap();
        name
    }

    pub(super) fn dir(&self) -> PinDir {
        PinDir::named(&self.0).unwrap()
    }
}

/// Nothing stays in the kernel after a test that fails.
impl Drop for Name {
    fn drop(&mut self) {
        let _ = self.dir().remove();
    }
}

fn kill(mut recorder: Recorder) {
    recorder.child.kill().unwrap();
    recorder.child.wait().unwrap();
}

pub(super) fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn a_session_whose_recorder_is_killed_in_mid_call_is_matched_whole() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("session");
    let mut session = Session::start(&place, "pipes");
    let pid = session.agent.id().to_string();
    let flags = ["--pid", &pid, "--pin", &name.0];
    let first = Recorder::start(&place, &flags);
    session.call("one", 1);
    session.ask("slow", 2);
    super::session::wait_for(&place.path("got"));
    kill(first);
    // Nobody reads meanwhile.
    place.file("go", b"", 0o644);
    session.answer(2);
    session.call("three", 3);
    let second = Recorder::start(&place, &flags);
    session.call("four", 4);
    session.end();
    let (code, said) = second.stop();
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("going on with capture"), "{said}");
    assert_eq!(name.dir().look().unwrap(), Found::Nothing);
    let flags = ["--key-file", "key"];
    let (code, rows, said) = pair_with(&place, &flags, "paired");
    // What came before the attach was not seen.
    let findings: Vec<_> = of(&rows, "findings").collect();
    assert_eq!(code, 2, "{said} {findings:?}");
    assert_no_accusation(&rows);
    for (tool, id) in [("one", 1), ("slow", 2), ("three", 3), ("four", 4)] {
        let found = verdicts(&rows)[&(tool.to_owned(), id.to_string())].clone();
        assert_eq!(found, ["matched"], "{tool}: {:?}", verdicts(&rows));
    }
    assert!(of(&rows, "coverage").any(|row| row["name"] == "resumed"));
}

#[test]
fn a_log_that_was_cut_while_nobody_recorded_is_found_out() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("cut");
    let mut session = Session::start(&place, "pipes");
    let pid = session.agent.id().to_string();
    let flags = ["--pid", &pid, "--pin", &name.0];
    let first = Recorder::start(&place, &flags);
    session.call("one", 1);
    session.call("two", 2);
    // The recorder has read both lines.
    std::thread::sleep(Duration::from_millis(200));
    kill(first);
    let log = std::fs::read(place.path("log")).unwrap();
    let line = log.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // In place, as somebody would who knows that copying it aside and back makes another inode.
    let mut cut = log[line..].to_vec();
    cut.resize(log.len(), b' ');
    std::fs::write(place.path("log"), cut).unwrap();
    let second = Recorder::start(&place, &flags);
    session.end();
    second.stop();
    let (code, rows, said) = pair_with(&place, &["--key-file", "key"], "paired");
    assert_eq!(code, 1, "{said}");
    assert!(
        of(&rows, "findings").any(|row| row["kind"] == "log_rewritten"),
        "{said}"
    );
}

#[test]
fn programs_of_another_layout_are_neither_used_nor_removed_unasked() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("layout");
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = sleeper.id().to_string();
    let flags = ["--pid", &pid, "--pin", &name.0];
    kill(Recorder::start(&place, &flags));
    let Found::Ours(note) = name.dir().look().unwrap() else {
        panic!("nothing is pinned")
    };
    std::fs::remove_file(name.dir().path().join("note")).unwrap();
    let other = Note {
        abi_version: ABI_VERSION + 1,
        ..note
    };
    name.dir().sign(&other).unwrap();
    let output = place
        .command(&["record", "-o", "out", "--pid", &pid, "--pin", &name.0])
        .output()
        .unwrap();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("countersign unpin"), "{said}");
    assert_eq!(name.dir().look().unwrap(), Found::Other(other));
    let output = countersign(&["unpin", &name.0]);
    assert!(
        matches!(output.status.code(), Some(0 | 2)),
        "{}",
        text(&output.stderr)
    );
    assert!(!name.dir().path().exists());
    let output = countersign(&["unpin", &name.0]);
    assert_eq!(output.status.code(), Some(66), "{}", text(&output.stderr));
}
