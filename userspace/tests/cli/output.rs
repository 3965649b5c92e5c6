//! Output directories that are refused.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::place::{NOBODY, Place, text};

#[test]
fn an_output_directory_that_is_not_empty_is_left_alone() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("out")).unwrap();
    place.file("out/precious", b"x", 0o600);
    place.run(&["--proxy-log", "log"]).fails(73, "not empty");
    assert_eq!(std::fs::read(place.path("out/precious")).unwrap(), b"x");
}

#[test]
fn an_output_directory_behind_a_link_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("real")).unwrap();
    symlink("real", place.path("out")).unwrap();
    place
        .run(&["--proxy-log", "log"])
        .fails(73, "symbolic link");
    symlink("real", place.path("way")).unwrap();
    place
        .run_to("way/out", &["--proxy-log", "log"])
        .fails(73, "symbolic link");
    place.file("file", b"", 0o600);
    place
        .run_to("file", &["--proxy-log", "log"])
        .fails(73, "not a directory");
    place
        .run_to("no/such/parent", &["--proxy-log", "log"])
        .fails(73, "does not exist");
}

#[test]
fn an_output_directory_in_reach_of_the_agent_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    // The agent's own directory, then one open to all, then one deeper below it.
    std::fs::create_dir(place.path("home")).unwrap();
    std::os::unix::fs::chown(place.path("home"), Some(NOBODY), None).unwrap();
    place
        .run_to("home/out", &["--proxy-log", "log"])
        .fails(73, "agent (uid 65534) can write to");
    std::fs::create_dir_all(place.path("open/deep")).unwrap();
    std::fs::set_permissions(place.path("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    place
        .run_to("open/deep/out", &["--proxy-log", "log"])
        .fails(73, "open");
    assert!(!place.path("open/deep/out").exists());
    // With the sticky bit only the owner of an entry can move it: the way /tmp works.
    std::fs::set_permissions(place.path("open"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let output = place.run_to("open/deep/out", &["--proxy-log", "log"]);
    assert_ne!(
        output.0.status.code(),
        Some(73),
        "{}",
        text(&output.0.stderr)
    );
    let mode = std::fs::metadata(place.path("open/deep/out"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn a_foreign_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    std::fs::create_dir(place.path("out")).unwrap();
    std::os::unix::fs::chown(place.path("out"), Some(1), None).unwrap();
    place
        .run(&["--proxy-log", "log"])
        .fails(73, "belongs to uid 1");
}

#[test]
fn a_read_only_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    place
        .mounted(
            "-o ro",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt/out",
                "--",
                "true",
            ],
        )
        .fails(73, "read-only");
    place
        .mounted(
            "-o ro",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt",
                "--",
                "true",
            ],
        )
        .fails(73, "read-only");
}

#[test]
fn a_full_output_directory_is_refused() {
    let Some(place) = Place::as_root() else {
        return;
    };
    place
        .mounted(
            "-o size=64k,mode=755",
            &[
                "run",
                "--proxy-log",
                "log",
                "--user",
                "nobody",
                "-o",
                "mnt/out",
                "--",
                "true",
            ],
        )
        .fails(73, "bytes are free");
}
