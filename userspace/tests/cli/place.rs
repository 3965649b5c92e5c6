//! A directory to run the command in, and what came of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(super) const NOBODY: u32 = 65_534;

/// A directory that the command is run in.
pub(super) struct Place(pub(super) tempfile::TempDir);

/// What came of a command.
pub(super) struct Outcome(pub(super) Output);

impl Place {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// For tests that need root. Checks on the output directory look at its parents, so it lies in the system's
    /// temporary directory, whose sticky bit they know.
    pub(super) fn as_root() -> Option<Self> {
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
    pub(super) fn that_can_record() -> Option<Self> {
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
    pub(super) fn record(&self, output: &str, script: &str) -> String {
        self.record_with(output, &["--proxy-log", "log"], script)
    }

    pub(super) fn record_with(&self, output: &str, flags: &[&str], script: &str) -> String {
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
    pub(super) fn spool(&self, output: &str) -> (Vec<u16>, String) {
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn file(&self, name: &str, content: &[u8], mode: u32) {
        std::fs::write(self.path(name), content).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("SUDO_UID")
            .env_remove("SUDO_GID");
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_to("out", arguments)
    }

    pub(super) fn run_to(&self, output: &str, arguments: &[&str]) -> Outcome {
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
    pub(super) fn mounted(&self, options: &str, arguments: &[&str]) -> Outcome {
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
    pub(super) fn fails(&self, code: i32, needle: &str) {
        let stderr = text(&self.0.stderr);
        assert_eq!(self.0.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(needle), "{stderr:?} lacks {needle:?}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

pub(super) trait IntoOutcome {
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for std::io::Result<Output> {
    fn into_outcome(self) -> Outcome {
        Outcome(self.unwrap())
    }
}

pub(super) fn countersign(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

pub(super) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_countersign"))
}

/// Output as text.
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn skipped(why: &str) {
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("skipped: {why}\n").as_bytes(),
    );
}
