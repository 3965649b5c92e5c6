//! `countersign record --pin`: a recorder that is killed loses nothing, says nothing twice, and the next one goes on.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use countersign::bpf::pin::{Found, Note, PinDir};
use countersign::outdir::Dir;
use countersign::spool::{SpoolItem, SpoolReader};
use countersign_common::{ABI_VERSION, RecordHeader, kind};
use zerocopy::FromBytes;

use super::flow::{Check, Flows};
use super::place::{IntoOutcome, NOBODY, Place, binary, countersign, text};
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

/// Something to record.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("300").spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_pinned_has_one_user_at_a_time_and_answers_one_question() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("one");
    let (sleeper, other) = (Sleeper::start(), Sleeper::start());
    let (pid, other) = (sleeper.pid(), other.pid());
    let flags = ["--tier", "t", "--pid", &pid, "--pin", &name.0];
    let first = Recorder::start(&place, &flags);
    let record = |flags: &[&str]| {
        let all = [&["record", "--pin", &name.0][..], flags].concat();
        place.command(&all).output().into_outcome()
    };
    record(&["-o", "out2", "--pid", &pid]).fails(69, "another recorder uses");
    Ok(countersign(&["unpin", &name.0]))
        .into_outcome()
        .fails(69, "another recorder uses");
    kill(first);
    assert!(!place.path("out2").exists());
    let asked = record(&["-o", "out", "--pid", &other]);
    asked.fails(64, &format!("--pid {pid},"));
    asked.fails(64, &format!("--pid {other}:"));
    record(&["-o", "out", "--pid", &pid, "--pid", &other]).fails(64, "were asked to record");
    record(&["-o", "out", "--pid", &pid, "--tier", "k"]).fails(64, "of tier T");
    // None of this has touched it.
    let last = Recorder::start(&place, &flags);
    let (code, said) = last.stop();
    assert_eq!(code, 0, "{said}");
    assert!(!name.dir().path().exists());
}

#[test]
fn a_directory_that_somebody_else_made_is_not_adopted() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("foreign");
    let sleeper = Sleeper::start();
    let pid = sleeper.pid();
    let record = || {
        let flags = ["record", "-o", "out", "--pid", &pid, "--pin", &name.0];
        place.command(&flags).output().into_outcome()
    };
    let dir = name.dir();
    // The directories around it are ours.
    drop(dir.claim().unwrap());
    std::fs::create_dir(dir.path()).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    record().fails(69, "belongs to uid 65534");
    std::os::unix::fs::chown(dir.path(), Some(0), Some(0)).unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    record().fails(69, "mode 0777");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::create_dir(dir.path().join("theirs")).unwrap();
    record().fails(69, "is not made by this program");
    assert!(dir.path().join("theirs").exists());
    std::fs::remove_dir(dir.path().join("theirs")).unwrap();
    std::fs::remove_dir(dir.path()).unwrap();
}

#[test]
fn the_bpf_file_system_is_mounted_where_it_is_not_and_nothing_is_left_of_a_name_that_is_not_used() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("unmounted");
    let script = "umount -l /sys/fs/bpf; ! grep -q ' /sys/fs/bpf bpf ' /proc/self/mounts || exit 98
        \"$@\"; echo $? > code; grep ' /sys/fs/bpf bpf ' /proc/self/mounts > mounts; ls /sys/fs/bpf/countersign > left";
    let status = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(binary())
        // Above what the kernel gives.
        .args(["record", "-o", "out", "--pid", "4194305", "--pin", &name.0])
        .current_dir(place.path("."))
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    assert_eq!(read("code").trim(), "66");
    assert!(read("mounts").contains("mode=700"), "{}", read("mounts"));
    assert_eq!(read("left"), "");
}

/// A file system of 24 MiB for this thread and the commands that it starts.
fn small_disk(place: &Place) {
    use std::os::unix::ffi::OsStrExt;
    std::fs::create_dir(place.path("mnt")).unwrap();
    let at = std::ffi::CString::new(place.path("mnt").as_os_str().as_bytes()).unwrap();
    // SAFETY: all strings are NUL-terminated; the namespace is this thread's own and ends with it.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
        let (none, root) = (std::ptr::null(), c"/".as_ptr());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(libc::mount(none, root, none, private, none.cast()), 0);
        let (tmpfs, size) = (c"tmpfs".as_ptr(), c"size=24m,mode=755".as_ptr());
        assert_eq!(libc::mount(tmpfs, at.as_ptr(), tmpfs, 0, size.cast()), 0);
    }
}

/// Takes all that is left of it.
fn fill_up(place: &Place) {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(place.path("mnt/fill"))
        .unwrap();
    while std::io::Write::write(&mut file, &[0; 4096]).is_ok() {}
}

#[test]
fn recorders_that_are_killed_while_the_disk_is_full_lose_nothing_that_the_ring_holds() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    small_disk(&place);
    let name = Name::new("full");
    let flows = Flows::start(1);
    let targets = flows.targets();
    let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
    let fixed = ["record", "-o", "mnt/out", "--tier", "t", "--pin", &name.0];
    let start = |said: &str| {
        let said = std::fs::File::create(place.path(said)).unwrap();
        place
            .command(&[&fixed[..], &targets].concat())
            .stderr(said)
            .spawn()
            .unwrap()
    };
    let said = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_mins(1), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let recording = |name: &str| until(&said(name), &|| said(name).contains("and what they start"));
    let mut first = start("said1");
    recording("said1");
    let waiting = name.dir().waiting().unwrap();
    flows.set_rate(2000);
    until("records", &|| waiting.released() > 0);
    fill_up(&place);
    until("a full disk", &|| {
        said("said1").contains("cannot be written")
    });
    let kept = waiting.bytes();
    until("a ring that keeps", &|| waiting.bytes() > kept + 100_000);
    first.kill().unwrap();
    first.wait().unwrap();
    // The next one finds the disk full, and has the space that the first kept back for its end.
    let mut second = start("said2");
    recording("said2");
    fill_up(&place);
    until("a full disk", &|| {
        said("said2").contains("cannot be written")
    });
    let kept = waiting.bytes();
    until("a ring that keeps", &|| waiting.bytes() > kept + 100_000);
    second.kill().unwrap();
    second.wait().unwrap();
    std::fs::remove_file(place.path("mnt/fill")).unwrap();
    let mut third = start("said3");
    recording("said3");
    let written = flows.end();
    until("an empty ring", &|| waiting.bytes() == 0);
    drop(waiting);
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&third),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(third.wait().unwrap().code(), Some(0), "{}", said("said3"));
    let mut check = Check::default();
    check.read(&place.path("mnt/out/spool"));
    check.finish(written);
}

/// Numbers in the last ledger of a spool.
fn last_counters(place: &Place) -> serde_json::Value {
    let spool = Dir::open_named(&place.path("out/spool")).unwrap();
    let mut reader = SpoolReader::open(spool).unwrap();
    let mut last = serde_json::Value::Null;
    while let Some(item) = reader.next_item().unwrap() {
        let SpoolItem::Record(record) = item else {
            continue;
        };
        let (header, json) = RecordHeader::read_from_prefix(record).unwrap();
        if header.kind == kind::LEDGER {
            let ledger: serde_json::Value = serde_json::from_slice(json).unwrap();
            last = ledger["counters"].clone();
        }
    }
    last
}

/// Sends messages of 60,000 bytes over a pair of unix sockets to itself, as many as it is told to.
const LARGE: &str = r#"
import socket, sys
here, there = socket.socketpair()
for line in sys.stdin:
    for _ in range(int(line)):
        here.sendall(b"x" * 60000)
        left = 60000
        while left:
            left -= len(there.recv(left))
    print("done", flush=True)
"#;

#[test]
fn counters_go_on_where_the_dead_recorder_left_them() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = Name::new("counters");
    let mut agent = Command::new("python3")
        .args(["-c", LARGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs python3");
    let mut answers = BufReader::new(agent.stdout.take().unwrap());
    let mut orders = agent.stdin.take().unwrap();
    let mut send = |count: u32| {
        writeln!(orders, "{count}").unwrap();
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    };
    let pid = agent.id().to_string();
    let flags = ["--tier", "t", "--pid", &pid, "--pin", &name.0];
    let first = Recorder::start(&place, &flags);
    send(100);
    // More than a heartbeat.
    std::thread::sleep(Duration::from_millis(1500));
    kill(first);
    let counted = last_counters(&place);
    send(50);
    let second = Recorder::start(&place, &flags);
    send(7);
    let (code, said) = second.stop();
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert_eq!(code, 0, "{said}");
    let failed = |counters: &serde_json::Value| counters["kernel_copy_failed_bytes"].as_u64();
    // Such a message lies in pages, which are not read: each byte of it counts.
    assert_eq!(failed(&counted), Some(100 * 60_000), "{counted}");
    let counted = last_counters(&place);
    assert_eq!(failed(&counted), Some(157 * 60_000), "{counted}");
    assert_eq!(counted["ring_dropped_records"], 0, "{counted}");
}

#[test]
fn root_pairs_in_a_process_that_has_no_rights_but_to_read() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let mut session = Session::start(&place, "pipes");
    let pid = session.agent.id().to_string();
    let recorder = Recorder::start(&place, &["--tier", "t", "--pid", &pid]);
    for number in 1..20 {
        session.call("one", number);
    }
    session.end();
    recorder.stop();
    let (rows, theirs) = rustix::pipe::pipe().unwrap();
    // Less than what is printed, so that it waits for us to read.
    rustix::pipe::fcntl_setpipe_size(&theirs, 4096).unwrap();
    let mut pairing = place
        .command(&["pair", "out", "--json", "-o", "paired", "--key-file", "key"])
        .stdout(theirs)
        .spawn()
        .unwrap();
    let children = format!("/proc/{0}/task/{0}/children", pairing.id());
    let status = loop {
        let child = std::fs::read_to_string(&children).unwrap_or_default();
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.trim()));
        match status {
            Ok(status) if status.contains("Seccomp:\t2") => break status,
            _ => assert_eq!(pairing.try_wait().unwrap(), None, "it ended"),
        }
    };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    // CAP_DAC_READ_SEARCH.
    assert_eq!(field("CapEff:"), "0000000000000004");
    assert_eq!(field("CapPrm:"), "0000000000000004");
    assert_eq!(field("NoNewPrivs:"), "1");
    let uids: Vec<u32> = field("Uid:")
        .split_whitespace()
        .map(|uid| uid.parse().unwrap())
        .collect();
    assert!(uids.iter().all(|uid| *uid > 0x7000_0000), "{uids:?}");
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut std::fs::File::from(rows), &mut all).unwrap();
    assert_eq!(
        pairing.wait().unwrap().code(),
        Some(2),
        "what came before the attach"
    );
    assert!(all.len() > 4096, "{} bytes", all.len());
    let owner =
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(place.path("paired")).unwrap());
    assert_eq!(owner, 0);
}
