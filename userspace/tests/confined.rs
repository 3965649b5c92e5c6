//! The process that parses hostile bytes has no privileges, and what it makes belongs to its parent afterwards.
//!
//! One test alone in its program: the child is a copy of a process without other threads.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use countersign::confine::{self, ConfineError, Rights};
use countersign::outdir::OutDir;

/// What the child finds when it tries.
#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Tried {
    uid: u32,
    capabilities: String,
    wrote: bool,
    secret: bool,
    socket: Option<i32>,
    program: Option<i32>,
    thread: bool,
}

#[test]
fn the_child_can_write_evidence_and_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        assert!(
            std::env::var_os("COUNTERSIGN_REQUIRE_LIVE").is_none(),
            "this test needs root"
        );
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("out");
    let out = OutDir::create(&path, None).unwrap();
    out.dir().create_dir("spool").unwrap();
    std::fs::write(path.join("spool/record"), b"bytes").unwrap();
    let secret = place.path().join("secret");
    std::fs::write(&secret, b"key").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();

    let tried = confine::run(out.dir(), Rights::None, || Tried {
        uid: rustix::process::geteuid().as_raw(),
        capabilities: status("CapEff:") + &status("CapPrm:"),
        wrote: out
            .temp_file(Path::new("frames/date=2026-11-20/part"))
            .and_then(|mut file| {
                file.write_all(b"rows")?;
                file.commit()
            })
            .is_ok(),
        secret: std::fs::read(&secret).is_ok(),
        socket: std::net::UdpSocket::bind("127.0.0.1:0")
            .err()
            .and_then(|error| error.raw_os_error()),
        program: std::process::Command::new("/bin/true")
            .status()
            .err()
            .and_then(|error| error.raw_os_error()),
        thread: std::thread::Builder::new().spawn(|| ()).is_ok(),
    })
    .unwrap();
    assert!(tried.uid > 0x7000_0000, "{tried:?}");
    assert_eq!(
        tried,
        Tried {
            uid: tried.uid,
            capabilities: "0000000000000000".repeat(2),
            wrote: true,
            secret: false,
            socket: Some(libc::EPERM),
            program: Some(libc::EPERM),
            thread: false,
        }
    );
    let file = path.join("frames/date=2026-11-20/part");
    assert_eq!(std::fs::read(&file).unwrap(), b"rows");
    for made in [
        &path,
        &file,
        &path.join("frames"),
        &path.join("spool/record"),
    ] {
        assert_eq!(std::fs::metadata(made).unwrap().uid(), 0, "{made:?}");
    }

    let died = confine::run(out.dir(), Rights::None, || -> u8 { std::process::abort() });
    assert!(matches!(died, Err(ConfineError::Died(_))), "{died:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().uid(), 0);
}

fn status(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap_or_default().trim().to_owned()
}
