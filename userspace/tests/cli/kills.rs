//! `kill -9` of a pinned recorder at any moment of its life, under load: nothing is lost, nothing is there twice.
//!
//! A kill with a full ring does not come by itself: a recorder that keeps up leaves the ring near empty. So one round in eight leaves
//! the ring without a reader until more than half of it waits, starts the next recorder, and kills that one while it resumes or
//! drains. How full the ring was is told for each kill.

use std::fs::File;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use aya::maps::{Map, PerCpuArray};
use countersign::bpf::pin::{PinDir, Waiting};
use countersign_common::{counter, load::CpuState};
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::FromBytes;

use super::flow::{Check, Flows};
use super::place::Place;
use super::survival::{Name, number};

/// Kills; more by the variable.
const KILLS: u32 = 12;
const KILLS_VARIABLE: &str = "COUNTERSIGN_SURVIVAL_KILLS";
/// Messages a second. With `peak` in the variable: 80 % of the highest rate that the recorder keeps up with, measured first.
const RATE: u64 = 10_000;
const RATE_VARIABLE: &str = "COUNTERSIGN_SURVIVAL_RATE";
/// `--ring-size`.
const RING: &str = "16MiB";
const RING_VARIABLE: &str = "COUNTERSIGN_SURVIVAL_RING";
/// `--tier`.
const TIER_VARIABLE: &str = "COUNTERSIGN_TIER";

/// Writers, each with a reader.
const AGENTS: usize = 4;
/// Rounds after which the flow is stopped, and what was recorded so far is checked and removed: it is much.
const CHECK_EVERY: u32 = 20;
/// One round in so many kills with the ring more than half full.
const FULL_EVERY: u32 = 8;
/// Longest wait for a recorder, a ring that fills or one that drains: an emulated machine is slow.
const PATIENCE: Duration = Duration::from_mins(2);
/// Fill of the ring, in per cent, below which a recorder is killed in the other rounds: what comes until the next one reads must find
/// room, or the kernel rightly counts a loss.
const MOST: u64 = 30;
/// Time for a rate while the peak is looked for, and for the one that is taken for it.
const STEP: Duration = Duration::from_secs(2);
const HOLD: Duration = Duration::from_secs(20);

struct Recorders<'a> {
    place: &'a Place,
    name: &'a Name,
    targets: Vec<String>,
    ring: String,
    tier: Option<String>,
    out: &'static str,
}

impl Recorders<'_> {
    fn start(&self) -> Child {
        let flags = [
            "record",
            "-o",
            self.out,
            "--pin",
            &self.name.0,
            "--ring-size",
            &self.ring,
        ];
        let mut command = self.place.command(&flags);
        command.args(&self.targets);
        if let Some(tier) = &self.tier {
            command.args(["--tier", tier]);
        }
        let said = File::create(self.place.path("said")).unwrap();
        command.stderr(Stdio::from(said)).spawn().unwrap()
    }

    /// Starts one and waits until it records.
    fn started(&self) -> Child {
        let mut recorder = self.start();
        until("a recorder", || {
            assert_eq!(recorder.try_wait().unwrap(), None, "{}", self.said());
            self.said().contains("and what they start")
        });
        recorder
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.place.path("said")).unwrap()
    }

    /// Ends one as an operator would.
    fn stop(&self, mut recorder: Child) {
        kill_process(Pid::from_child(&recorder), Signal::INT).unwrap();
        let code = recorder.wait().unwrap().code();
        assert_eq!(code, Some(0), "{}", self.said());
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: too long");
        sleep(Duration::from_millis(1));
    }
}

/// Fill of the data ring in per cent.
fn fill(ring: &Waiting) -> u64 {
    ring.bytes() * 100 / ring.size()
}

/// Records that found no room, by the kernel's count.
fn dropped(dir: &PinDir) -> u64 {
    let map = Map::from_map_data(dir.map("CPUS").unwrap()).unwrap();
    let cpus: PerCpuArray<_, [u8; size_of::<CpuState>()]> = PerCpuArray::try_from(map).unwrap();
    let values = cpus.get(&0, 0).unwrap();
    let of = |bytes: &[u8; size_of::<CpuState>()]| {
        CpuState::read_from_bytes(bytes).unwrap().counters[counter::RING_DROPPED_RECORDS as usize]
    };
    values.iter().map(of).sum()
}

/// The highest rate that the recorder keeps up with, in messages a second as they came: found in short steps, then held for so long
/// that memory no longer hides a disk that is too slow.
fn peak(place: &Place, ring: &str, tier: Option<&str>) -> u64 {
    let name = Name::new("peak");
    let flows = Flows::start(AGENTS);
    let recorders = Recorders {
        place,
        name: &name,
        targets: flows.targets(),
        ring: ring.to_owned(),
        tier: tier.map(str::to_owned),
        out: "peak",
    };
    let recorder = recorders.started();
    let waiting = name.dir().waiting().unwrap();
    // What came in a second, if it was kept up with.
    let hold = |rate: u64, time: Duration| {
        let lost = dropped(&name.dir());
        flows.set_rate(rate);
        let (start, before) = (Instant::now(), flows.written());
        sleep(time);
        let came = u128::from(flows.written() - before) * 1_000_000 / start.elapsed().as_micros();
        let left = fill(&waiting);
        let lost = dropped(&name.dir()) - lost;
        flows.set_rate(0);
        tell(&format!(
            "at {rate} messages/s for {time:?}: {came} came, {lost} records dropped, ring {left} % full at the end"
        ));
        until("an empty ring", || fill(&waiting) == 0);
        (lost == 0 && left < 10).then(|| u64::try_from(came).unwrap())
    };
    let (mut best, mut misses, mut rate) = (0, 0, 50_000);
    while misses < 2 {
        match hold(rate, STEP).filter(|came| *came > best) {
            Some(came) => (best, misses) = (came, 0),
            None => misses += 1,
        }
        rate = rate * 5 / 4;
    }
    let held = loop {
        if let Some(came) = hold(best, HOLD) {
            break came;
        }
        best = best * 4 / 5;
    };
    drop(flows);
    let mut recorder = recorder;
    kill_process(Pid::from_child(&recorder), Signal::INT).unwrap();
    recorder.wait().unwrap();
    std::fs::remove_dir_all(place.path("peak")).unwrap();
    held
}

/// Moves segments out of the spool that no recorder will look at again: all but the newest, which a ring may hold again. Whether
/// there were any.
fn set_aside(place: &Place, keep_bytes: u64) -> bool {
    let spool = place.path("out").join("spool");
    let mut segments: Vec<_> = std::fs::read_dir(&spool)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "spool"))
        .collect();
    segments.sort_by_key(|entry| std::cmp::Reverse(entry.file_name()));
    let mut bytes = 0;
    let old = segments.iter().skip_while(|entry| {
        bytes += entry.metadata().unwrap().len();
        bytes < keep_bytes
    });
    // The one that goes over the limit stays, too.
    let old: Vec<_> = old.skip(1).collect();
    std::fs::create_dir_all(place.path("aside")).unwrap();
    for entry in &old {
        std::fs::rename(entry.path(), place.path("aside").join(entry.file_name())).unwrap();
    }
    !old.is_empty()
}

fn tell(line: &str) {
    let line = format!("{line}\n");
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}

/// What comes of the rounds.
struct Rounds<'a> {
    recorders: &'a Recorders<'a>,
    flows: &'a Flows,
    rate: u64,
    waiting: Waiting,
    /// Fill of the ring at each kill, in per cent.
    fills: Vec<u64>,
    /// From the start of a recorder, after a kill with the ring half full, to its first record.
    slowest_restart: Duration,
    check: Check,
}

impl Rounds<'_> {
    /// A recorder is killed and the next one started.
    fn round(&mut self, round: u32, mut recorder: Child) -> Child {
        // Spread over the whole life of a recorder, from before it has opened anything: by a fixed sequence.
        let random = u64::from(round.wrapping_mul(2_654_435_761) >> 16);
        let full = round % FULL_EVERY == FULL_EVERY - 1;
        if full {
            until("a ring with room", || fill(&self.waiting) < MOST);
            recorder.kill().unwrap();
            recorder.wait().unwrap();
            until("a ring more than half full", || fill(&self.waiting) > 56);
            recorder = self.recorders.start();
            if (round / FULL_EVERY).is_multiple_of(2) {
                // While it resumes: it opens, compares, recounts.
                sleep(Duration::from_millis(random % 60));
            } else {
                // While it drains. No pause between two looks: it is quick.
                let most = 52 + random % 8;
                let start = Instant::now();
                while fill(&self.waiting) > most && start.elapsed() < PATIENCE {}
            }
        } else {
            sleep(Duration::from_millis(random % 500));
            until("a ring with room", || fill(&self.waiting) < MOST);
        }
        self.kill(recorder);
        recorder = self.recorders.start();
        if full {
            let (started, read) = (Instant::now(), self.waiting.released());
            until("a recorder that reads", || self.waiting.released() > read);
            self.slowest_restart = self.slowest_restart.max(started.elapsed());
        }
        let lost = dropped(&self.recorders.name.dir());
        assert_eq!(
            lost, 0,
            "round {round}: records found the ring full; slowest restart {:?}; fills at the kills {:?}",
            self.slowest_restart, self.fills
        );
        if round % CHECK_EVERY == CHECK_EVERY - 1 {
            self.check_what_is_old();
        }
        recorder
    }

    /// What waits when the recorder dies: as much as was there just before, less what it had given back by its end.
    fn kill(&mut self, mut recorder: Child) {
        let produced = self.waiting.produced();
        recorder.kill().unwrap();
        recorder.wait().unwrap();
        let left = produced.saturating_sub(self.waiting.released());
        self.fills.push(left * 100 / self.waiting.size());
    }

    fn check_what_is_old(&mut self) {
        self.flows.set_rate(0);
        until("an empty ring", || fill(&self.waiting) == 0);
        let place = self.recorders.place;
        if set_aside(place, 4 * self.waiting.size()) {
            self.check.read(&place.path("aside"));
            std::fs::remove_dir_all(place.path("aside")).unwrap();
        }
        self.flows.set_rate(self.rate);
    }
}

#[test]
fn a_recorder_killed_again_and_again_loses_no_record_and_writes_none_twice() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let text = |variable: &str, default: &str| {
        std::env::var(variable).unwrap_or_else(|_| default.to_owned())
    };
    let ring = text(RING_VARIABLE, RING);
    let tier = std::env::var(TIER_VARIABLE).ok();
    let rate = match text(RATE_VARIABLE, &RATE.to_string()).as_str() {
        "peak" => {
            let peak = peak(&place, &ring, tier.as_deref());
            tell(&format!("peak: {peak} messages/s"));
            peak * 4 / 5
        }
        rate => rate.parse().unwrap(),
    };
    let name = Name::new("kills");
    let flows = Flows::start(AGENTS);
    let recorders = Recorders {
        place: &place,
        name: &name,
        targets: flows.targets(),
        ring: ring.clone(),
        tier,
        out: "out",
    };
    let mut recorder = recorders.started();
    flows.set_rate(rate);
    let mut rounds = Rounds {
        recorders: &recorders,
        flows: &flows,
        rate,
        waiting: name.dir().waiting().unwrap(),
        fills: Vec::new(),
        slowest_restart: Duration::ZERO,
        check: Check::default(),
    };
    let kills = number(KILLS_VARIABLE, KILLS);
    for round in 0..kills {
        recorder = rounds.round(round, recorder);
    }
    recorder.kill().unwrap();
    recorder.wait().unwrap();
    let last = recorders.started();
    let Rounds {
        waiting,
        fills,
        slowest_restart,
        mut check,
        ..
    } = rounds;
    let written = flows.end();
    until("an empty ring", || fill(&waiting) == 0);
    drop(waiting);
    recorders.stop(last);

    let messages: u64 = written.iter().sum();
    check.read(&place.path("out").join("spool"));
    let records = check.finish(written);
    let fuller = fills.iter().filter(|fill| **fill > 50).count();
    tell(&format!(
        "{kills} kills at {rate} messages/s with a ring of {ring}: {messages} messages, {records} records, none lost, none \
         twice; ring more than half full at {fuller} kills, slowest restart then {slowest_restart:?}; fill at each, in per \
         cent: {fills:?}"
    ));
    assert!(
        fuller >= usize::try_from(kills / FULL_EVERY / 2).unwrap(),
        "{fills:?}"
    );
}
