//! `countersign record --pin`: a recorder that is killed loses nothing, says nothing twice, and the next one goes on.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use countersign::bpf::pin::{Found, Note, PinDir};
use countersign::outdir::Dir;
use countersign::spool::{SpoolItem, SpoolReader};
use countersign_common::{ABI_VERSION, RecordHeader, Transfer, channel_kind, kind};
use zerocopy::FromBytes;

use super::place::{Place, countersign, text};
use super::session::{Recorder, Session, assert_no_accusation, of, pair_with, verdicts};

/// Kills of the long test; more by [`KILLS_VARIABLE`].
const KILLS: u32 = 12;
const KILLS_VARIABLE: &str = "COUNTERSIGN_SURVIVAL_KILLS";
/// Writes a second of the long test; more by [`RATE_VARIABLE`].
const RATE: u32 = 10_000;
const RATE_VARIABLE: &str = "COUNTERSIGN_SURVIVAL_RATE";

/// Writes numbered messages of 512 bytes into a pipe that its child reads, so many a second, until its input ends.
const WRITER: &str = r#"
import os, select, sys, time
rate = int(sys.argv[1])
out, into = os.pipe()
if os.fork() == 0:
    os.close(into)
    while os.read(out, 65536):
        pass
    os._exit(0)
os.close(out)
print("ready", flush=True)
sys.stdin.readline()
number, start = 0, time.monotonic()
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(max(rate // 200, 1)):
        os.write(into, b"%012d" % number + b"x" * 500)
        number += 1
    time.sleep(max(start + number / rate - time.monotonic(), 0))
print(number, flush=True)
os.close(into)
os.wait()
"#;

/// A name under which only this test pins.
struct Name(String);

impl Name {
    fn new(of: &str) -> Self {
        let name = Self(format!("test-{of}-{}", std::process::id()));
        name.dir().remove().unwrap();
        name
    }

    fn dir(&self) -> PinDir {
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

fn number(variable: &str, default: u32) -> u32 {
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

/// Transfers of one direction of one pipe.
#[derive(Default)]
struct Direction {
    /// Operations with their bytes and the bytes before them.
    ops: BTreeMap<u64, (u64, u64)>,
    captured: u64,
}

#[test]
fn a_recorder_killed_again_and_again_loses_no_record_and_writes_none_twice() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("kills");
    let rate = number(RATE_VARIABLE, RATE).to_string();
    let mut writer = Command::new("python3")
        .args(["-c", WRITER, &rate])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs python3");
    let mut answers = BufReader::new(writer.stdout.take().unwrap());
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    let pid = writer.id().to_string();
    let start = |place: &Place| -> Child {
        place
            .command(&["record", "-o", "out", "--pid", &pid, "--pin", &name.0])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let flags = ["--pid", &pid, "--pin", &name.0];
    let mut recorder = Recorder::start(&place, &flags).child;
    std::io::Write::write_all(writer.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let mut fuller = 0;
    for round in 0..number(KILLS_VARIABLE, KILLS) {
        // Spread over the whole life of a recorder, from before it has opened anything: 0 to 500 ms, by a fixed sequence.
        let pause = u64::from(round.wrapping_mul(2_654_435_761) >> 16) % 500;
        std::thread::sleep(Duration::from_millis(pause));
        recorder.kill().unwrap();
        recorder.wait().unwrap();
        let waiting = name.dir().waiting_bytes().unwrap();
        fuller += u32::from(waiting > u64::from(countersign::bpf::options::RING_BYTES_DEFAULT) / 2);
        recorder = start(&place);
    }
    drop(recorder.stderr.take());
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    let last = Recorder::start(&place, &flags);
    drop(writer.stdin.take());
    line.clear();
    answers.read_line(&mut line).unwrap();
    let written: u64 = line.trim().parse().unwrap();
    writer.wait().unwrap();
    let (_, said) = last.stop();

    let mut seen = HashSet::new();
    let mut highest: BTreeMap<u16, u64> = BTreeMap::new();
    let mut directions: BTreeMap<(u64, u8), Direction> = BTreeMap::new();
    let spool = Dir::open_named(&place.path("out").join("spool")).unwrap();
    let mut reader = SpoolReader::open(spool).unwrap();
    while let Some(item) = reader.next_item().unwrap() {
        let record = match item {
            SpoolItem::Record(record) => record,
            SpoolItem::Segment(_) => continue,
            SpoolItem::Damage(damage) => panic!("{damage:?}"),
        };
        let (header, _) = RecordHeader::read_from_prefix(record).unwrap();
        if header.kind >= kind::FIRST_USER {
            continue;
        }
        assert!(
            seen.insert((header.cpu, header.cpu_seq)),
            "twice: {header:?}"
        );
        let highest = highest.entry(header.cpu).or_default();
        *highest = (*highest).max(header.cpu_seq);
        if header.kind == kind::CHUNK {
            let (transfer, payload) = Transfer::read_from_prefix(record).unwrap();
            if transfer.channel.kind == channel_kind::PIPE {
                let key = (transfer.channel.object, transfer.direction);
                let direction = directions.entry(key).or_default();
                let op = (transfer.returned, transfer.stream_before);
                direction.ops.insert(transfer.op_seq, op);
                direction.captured += payload.len() as u64;
            }
        }
    }
    let records: u64 = highest.values().map(|highest| highest + 1).sum();
    assert_eq!(seen.len() as u64, records, "records are missing: {said}");
    let full = directions
        .values()
        .filter(|direction| direction.captured == written * 512)
        .count();
    assert_eq!(full, 2, "both ends of the pipe, to the byte: {said}");
    for direction in directions.values() {
        let (last, _) = direction.ops.last_key_value().unwrap();
        assert_eq!(direction.ops.len() as u64, last + 1);
        let mut before = 0;
        for (returned, stream_before) in direction.ops.values() {
            assert_eq!(*stream_before, before);
            before += returned;
        }
    }
    let kills = number(KILLS_VARIABLE, KILLS);
    let counted = format!(
        "{written} messages, {kills} kills, {fuller} of them with the ring more than half full\n"
    );
    std::io::Write::write_all(&mut std::io::stderr(), counted.as_bytes()).unwrap();
}
