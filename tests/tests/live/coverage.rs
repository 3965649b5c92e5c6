//! The coverage table: the exerciser under a capture, every cell of method and kind accounted for.
//!
//! `COUNTERSIGN_BLESS=1` writes the table and takes cells that are no longer missed off the list;
//! `COUNTERSIGN_ALLOW_MISSED=1` also puts those on it that are missed. `COUNTERSIGN_EXERCISER` and
//! `COUNTERSIGN_COVERAGE_DIR` name the program (default: as built, else beside the test)
//! and the folder of tables where the checkout is not there (in a guest).
//! `COUNTERSIGN_EXERCISER_ARGS`, as `--kind tcp4,pipe --max-size 9000`, tries a part: the table of it is printed, and its cells are
//! compared with those of the whole table. `COUNTERSIGN_COVERAGE_LINES=1` only writes each result to the standard output, for whoever puts a table together
//! (`cargo xtask coverage --vm`); nothing is compared then.

use std::{
    collections::BTreeSet,
    env,
    ffi::CString,
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, Write},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use countersign::bpf::{hook::Hook, options::LoadOptions, preemption::Preemption, tier::Tier};
use countersign_common::{counter, tag};
use countersign_tests::exercise::{
    Truth,
    attempted::{About, Attempted, Line},
    classify::{Part, Status, classify},
    index::Summary,
    rule::may_declare,
    table::{Cell, Table, cells_of, list_of},
};

use crate::harness::{hook, open, spawn, tier, witness_with};

/// Longest run of the exerciser. A method that hangs must fail here, not hold the machine.
const DEADLINE: Duration = Duration::from_secs(400);

/// The name of the tier under test in tables, and the cells that may be missed in it.
fn expected() -> (&'static str, &'static str) {
    match tier() {
        Tier::Tracepoints => (
            "tracepoints",
            include_str!("../../coverage/tracepoints.missed"),
        ),
        Tier::Kprobes => ("kprobes", include_str!("../../coverage/kprobes.missed")),
        Tier::Trampolines => (
            "trampolines",
            include_str!("../../coverage/trampolines.missed"),
        ),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where the exerciser lies.
pub(crate) fn exerciser() -> PathBuf {
    if let Some(path) = env::var_os("COUNTERSIGN_EXERCISER") {
        return PathBuf::from(path);
    }
    let built = PathBuf::from(env!("CARGO_BIN_EXE_countersign-exerciser"));
    if built.exists() {
        return built;
    }
    // Not where it was built: beside this program.
    env::current_exe()
        .unwrap()
        .with_file_name("countersign-exerciser")
}

/// What the running kernel is called in tables: major and minor version, and whether it is Debian's.
fn kernel(release: &str) -> String {
    let parts: Vec<_> = release.split('.').take(2).collect();
    let version = fs::read_to_string("/proc/version").unwrap_or_default();
    let system = if version.contains("debian-kernel@") {
        "-debian"
    } else {
        ""
    };
    parts.join(".") + system
}

/// What is tried here.
fn about() -> About {
    let read = |path| fs::read_to_string(path).map(|text| text.trim().to_owned());
    let release = read("/proc/sys/kernel/osrelease").unwrap();
    let arguments = part().unwrap_or_default();
    let mut words = arguments.split_whitespace();
    let max_size = words
        .find(|word| *word == "--max-size")
        .and_then(|_| words.next());
    let preemption = Preemption::of_running_kernel().to_string();
    // SAFETY: asks about this process.
    let policy = unsafe { libc::sched_getscheduler(0) };
    About {
        kernel: kernel(&release),
        release,
        preemption: preemption.split(" (").next().unwrap_or_default().to_owned(),
        tier: expected().0.to_owned(),
        max_size: max_size.map(|size| size.parse().expect("--max-size takes bytes")),
        unpreempted: policy == libc::SCHED_FIFO,
        on_events: hook() == Hook::Event,
        emulated: env::var_os("COUNTERSIGN_COVERAGE_LINES").is_some(),
    }
}

/// Cells that are declared and would have to be captured.
fn not_to_be_declared(table: &Table) -> Vec<Cell> {
    let tier = expected().0;
    let declared = table.declared().into_iter();
    declared
        .filter(|(side, method, kind)| may_declare(tier, *side, method, kind).is_none())
        .collect()
}

/// What a part of the whole is tried with.
fn part() -> Option<String> {
    env::var("COUNTERSIGN_EXERCISER_ARGS").ok()
}

/// Runs the exerciser tagged and classifies each attempt as soon as it is told, so that no more than its records are kept. `heard` is
/// told of each.
fn run(mut heard: impl FnMut(&Attempted)) -> Option<Table> {
    let mut witness = witness_with(&LoadOptions::default())?;
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut arguments = vec![exerciser().into_os_string().into_string().unwrap()];
    arguments.extend(
        part()
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned),
    );
    let arguments: Vec<_> = arguments
        .into_iter()
        .map(|text| CString::new(text).unwrap())
        .collect();
    let mut pointers: Vec<_> = arguments.iter().map(|text| text.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (child, gate) = spawn(|| unsafe {
        libc::dup2(file.as_file().as_raw_fd(), 1);
        libc::execv(pointers[0], pointers.as_ptr());
        panic!("the exerciser does not start");
    });
    witness.capture.tag_pid(child, tag::TREE).unwrap();
    open(gate);

    let mut truths = BufReader::new(fs::File::open(file.path()).unwrap());
    let (mut parts, mut table, mut line) = (Vec::new(), Table::default(), String::new());
    let deadline = Instant::now() + DEADLINE;
    let mut ended = false;
    loop {
        let more = truths.read_line(&mut line).unwrap() > 0;
        // What the line tells of is in the ring by now, but can lie behind a record that another CPU is still writing.
        let written = witness.capture.produced();
        loop {
            witness
                .capture
                .drain(|record| parts.extend(Part::of(record)));
            if witness.capture.place().is_past(written) {
                break;
            }
            assert!(Instant::now() < deadline, "a record is never finished");
            std::thread::yield_now();
        }
        if line.ends_with('\n') {
            let truth: Truth = serde_json::from_str(&line).unwrap();
            let attempted = Attempted::new(&truth, classify(&truth, &parts));
            heard(&attempted);
            if matches!(attempted.status, Status::Missed | Status::Wrong(_)) {
                explain(&truth, &attempted, &parts);
            }
            table.add(attempted);
            parts.retain(|part: &Part| part.exit_ns() > truth.to_ns);
            line.clear();
        } else if !more {
            if ended {
                break;
            }
            assert!(Instant::now() < deadline, "the exerciser hangs: {table:?}");
            let mut status = 0;
            ended =
                unsafe { libc::waitpid(child.cast_signed(), &raw mut status, libc::WNOHANG) } != 0;
            assert_eq!(status, 0, "the exerciser failed");
            witness.capture.wait(Duration::from_millis(1)).unwrap();
        }
    }
    assert_eq!(witness.counter(counter::RING_DROPPED_RECORDS), 0);
    assert_eq!(witness.counter(counter::TAG_FAILED), 0);
    Some(table)
}

/// What the capture has of the process of an attempt that came out badly.
fn explain(truth: &Truth, attempted: &Attempted, parts: &[Part]) {
    let mut text = format!("{attempted:?} {truth:?}\n");
    for part in parts
        .iter()
        .filter(|part| (truth.from_ns..=truth.to_ns).contains(&part.exit_ns()))
    {
        let _ok = writeln!(text, "  {}", part.short());
    }
    // Not `eprintln!`: it is of use where the cell is on the list of those that may be missed, too.
    let _unheard = io::stderr().write_all(text.as_bytes());
}

/// Writes a line to the standard output, which a test runner would keep for itself if it were `println!`.
fn tell(line: &Line) {
    let mut out = io::stdout().lock();
    let _unheard = out.write_all(line.text().as_bytes());
    let _unheard = out.flush();
}

#[test]
fn every_way_to_move_bytes_is_captured_or_declared() {
    let about = about();
    if env::var_os("COUNTERSIGN_COVERAGE_LINES").is_some() {
        tell(&Line::About(about));
        let all = run(|attempted| tell(&Line::Attempted(attempted.clone())));
        all.expect("results are wanted");
        tell(&Line::Ended);
        return;
    }
    let Some(table) = run(|_| {}) else { return };
    let is_whole = part().is_none();
    assert!(
        !is_whole || table.tried().len() > 300,
        "the exerciser did next to nothing"
    );
    let (tier, may_be_missed) = expected();
    let list = root().join("tests/coverage").join(format!("{tier}.missed"));
    let dir = env::var_os("COUNTERSIGN_COVERAGE_DIR")
        .map_or_else(|| root().join("docs/coverage"), PathBuf::from);
    let path = dir.join(about.file_name());
    let markdown = table.markdown(&about);

    let mut allowed = cells_of(may_be_missed);
    let (missed, tried) = (table.missed(), table.tried());
    if env::var_os("COUNTERSIGN_ALLOW_MISSED").is_some() {
        allowed.extend(missed.iter().cloned());
    }
    let stale: BTreeSet<_> = allowed
        .iter()
        .filter(|cell| tried.contains(*cell) && !missed.contains(*cell))
        .cloned()
        .collect();
    if !is_whole {
        let _unheard = io::stdout().write_all(markdown.as_bytes());
        if let Ok(committed) = fs::read_to_string(&path) {
            let all = Summary::of(&committed).expect("a table");
            let unlike = table.unlike(&all.cells);
            assert!(unlike.is_empty(), "unlike {}: {unlike:#?}", path.display());
        } else {
            let _unheard = writeln!(io::stdout(), "there is no {}", path.display());
        }
    }
    if is_whole && env::var_os("COUNTERSIGN_BLESS").is_some() {
        fs::create_dir_all(&dir).unwrap();
        fs::write(&path, &markdown).unwrap();
        allowed.retain(|cell| !stale.contains(cell));
        if list.parent().is_some_and(Path::exists) {
            fs::write(list, list_of(&allowed)).unwrap();
        }
    } else {
        assert!(
            stale.is_empty(),
            "no longer missed, take them off the list (cargo xtask coverage):\n{}",
            list_of(&stale)
        );
    }
    assert!(table.wrong().is_empty(), "wrong: {:#?}", table.wrong());
    let mut new: BTreeSet<_> = missed.difference(&allowed).cloned().collect();
    // What stands above the cells depends on the machine.
    let committed = fs::read_to_string(&path).ok().filter(|_| is_whole);
    let differs = |table: &Table| {
        let body = table.body();
        committed
            .as_ref()
            .is_some_and(|text| !text.ends_with(&body))
    };
    let mut table = table;
    if !new.is_empty() || differs(&table) {
        // Once more: what the exerciser measures from outside, the time of a call above all, can be off on a loaded machine. What
        // is missed twice is missed.
        table = run(|_| {}).expect("it ran before");
        assert!(table.wrong().is_empty(), "wrong: {:#?}", table.wrong());
        new = new.intersection(&table.missed()).cloned().collect();
        assert!(
            !differs(&table),
            "{} is out of date (cargo xtask coverage); it would be:\n{}",
            path.display(),
            table.markdown(&about)
        );
    }
    assert!(new.is_empty(), "missed:\n{}", list_of(&new));
    let declared = not_to_be_declared(&table);
    assert!(
        declared.is_empty(),
        "declared and not captured: {declared:#?}"
    );
}
