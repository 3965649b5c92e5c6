//! Control groups as systemd and container runtimes make them, by name: what they do with them beyond that makes no difference
//! to who is found.

use std::path::PathBuf;
use std::process::Command;

use super::place::{Place, skipped};
use super::session::{Recorder, Session, assert_no_accusation, of, pair, verdict_of};

/// A control group that goes with the test, and the one around it.
pub(super) struct Group(pub(super) PathBuf);

impl Group {
    /// A group below one of the test's own.
    pub(super) fn new(name: &str) -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(PathBuf::from)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())?;
        let around = root.join(format!(
            "countersign-test-{}-{name}.slice",
            std::process::id()
        ));
        let path = around.join(name);
        std::fs::create_dir_all(&path).ok()?;
        Some(Self(path))
    }

    pub(super) fn enter(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// A command that enters the group and then executes its further arguments.
    fn shell(&self, place: &Place) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.0)
            .current_dir(place.path("."));
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process of the group that has ended may not have left it yet.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.0.parent().map(std::fs::remove_dir);
    }
}

/// Calls before and after the attach, in a session that the group holds whole.
fn watch(place: &Place, mut session: Session, target: &[&str]) {
    session.call("before", 1);
    let recorder = Recorder::start(place, target);
    for number in 2..=4 {
        session.call("after", number);
    }
    let (code, said) = recorder.stop();
    assert_eq!(code, 0, "{said}");
    session.end();
    let rows = pair(place);
    assert_no_accusation(&rows);
    assert_eq!(verdict_of(&rows, "before", 1), "outside");
    for number in 2..=4 {
        assert_eq!(verdict_of(&rows, "after", number), "matched");
    }
    for role in ["agent", "proxy", "server"] {
        assert!(
            of(&rows, "processes").any(|row| row["role"] == role),
            "no {role}"
        );
    }
}

#[test]
fn a_unit_is_found_by_its_name_and_recorded() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let name = format!("countersign-{}.service", std::process::id());
    let group = Group::new(&name).expect("this test needs cgroups of version 2");
    let session = Session::within(&place, group.shell(&place), "pipes");
    let unit = name.trim_end_matches(".service");
    watch(&place, session, &["--unit", unit]);
}

#[test]
fn a_container_with_namespaces_of_its_own_is_found_by_its_id_and_recorded() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let id = format!(
        "{:064x}",
        0xc0de_0000_0000_u64 + u64::from(std::process::id())
    );
    let name = format!("docker-{id}.scope");
    let group = Group::new(&name).expect("this test needs cgroups of version 2");
    let mut container = group.shell(&place);
    container.args([
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--ipc",
        "--uts",
        "--net",
    ]);
    let session = Session::within(&place, container, "sockets");
    watch(&place, session, &["--container", &id]);
}

/// A root of its own that shows what the host's does, below a control group file system of version 2 alone: crun refuses one beside
/// version 1.
const CRUN: &str = r#"
if ! [ -e /sys/fs/cgroup/cgroup.procs ]; then
    umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup || exit 1
fi
mkdir rootfs && mount --rbind / rootfs || exit 1
exec crun --root "$PWD/crun" run "$0"
"#;

#[test]
fn a_container_of_crun_is_recorded() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let made = Command::new("crun")
        .arg("spec")
        .current_dir(place.path("."))
        .status();
    if !made.is_ok_and(|status| status.success()) {
        skipped("needs crun: apt-get install crun");
        return;
    }
    let spec = std::fs::read(place.path("config.json")).unwrap();
    let mut spec: serde_json::Value = serde_json::from_slice(&spec).unwrap();
    let arguments: Vec<_> = Session::agent("pipes")
        .into_iter()
        .map(|word| word.to_str().unwrap())
        .collect();
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    spec["root"]["readonly"] = false.into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = arguments.into();
    spec["process"]["env"] = vec![path].into();
    spec["process"]["cwd"] = place.0.path().to_str().into();
    // Rules on devices make crun ask for rights that not every machine gives to root.
    spec["linux"]["resources"].take();
    place.file("config.json", spec.to_string().as_bytes(), 0o600);
    let id = format!(
        "{:064x}",
        0xc40f_0000_0000_u64 + u64::from(std::process::id())
    );
    let mut crun = Command::new("unshare");
    crun.args(["-m", "sh", "-c", CRUN, &id])
        .current_dir(place.path("."));
    let session = Session::within(&place, crun, "pipes");
    watch(&place, session, &["--container", &id]);
}
