#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use super::super::proxylog::Follower;
use super::*;

#[test]
fn a_replay_gives_the_bytes_and_events_back() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.jsonl");
    std::fs::create_dir(directory.path().join("spool")).unwrap();
    let spool = Dir::open_named(&directory.path().join("spool")).unwrap();
    let mut keeper = KeptLogWriter::create(&spool).unwrap();
    std::fs::write(&log, "one\n").unwrap();
    let mut follower = Follower::new(&log).unwrap();
    follower.poll(&mut |event| keeper.event(0, &event));
    std::fs::write(&log, "x\n").unwrap();
    follower.finish(&mut |event| keeper.event(0, &event));
    assert_eq!(keeper.finish(), 0);

    let mut bytes = BTreeMap::<u64, Vec<u8>>::new();
    let mut names = Vec::new();
    let found = replay(&spool, &mut |_, event| {
        match event {
            LogEvent::Bytes { file, data, .. } => bytes.entry(file.0).or_default().extend(data),
            LogEvent::Opened { .. } => names.push("opened"),
            LogEvent::Truncated { .. } => names.push("truncated"),
            LogEvent::Rewritten { .. }
            | LogEvent::Rotated { .. }
            | LogEvent::Removed { .. }
            | LogEvent::Missing
            | LogEvent::Refused { .. }
            | LogEvent::Unreadable { .. }
            | LogEvent::TooMany => names.push("other"),
        }
        Ok(())
    });
    let whole = Replayed {
        found: true,
        sealed: true,
        ..Replayed::default()
    };
    assert_eq!(found.unwrap(), whole);
    assert_eq!(bytes[&0], b"one\n");
    assert_eq!(bytes[&1], b"x\n");
    assert_eq!(names, ["opened", "truncated", "opened"]);
}

#[test]
fn a_copy_that_is_not_what_was_written_is_named() {
    let changed = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let directory = tempfile::tempdir().unwrap();
        let spool = kept(directory.path());
        let path = directory.path().join("spool").join(KEPT_LOGS).join(name);
        let mut content = std::fs::read(&path).unwrap();
        change(&mut content);
        std::fs::write(&path, content).unwrap();
        let replayed = replay(&spool, &mut |_, _| Ok(())).unwrap();
        replayed.trouble.unwrap_or_default()
    };
    let flip = |content: &mut Vec<u8>| content[1] ^= 1;
    assert_eq!(changed("0-0.log", &flip), "0-0.log is not what was written");
    assert_eq!(
        changed("0-0.log", &|content| content.truncate(2)),
        "0-0.log is not what was written"
    );
    assert_eq!(
        changed(EVENTS, &|content| content.truncate(20)),
        "line 1 of events.jsonl cannot be read"
    );
    let rename = |content: &mut Vec<u8>| {
        let at = content.windows(5).position(|word| word == b"audit");
        content[at.unwrap()] ^= 1;
    };
    assert_eq!(
        changed(EVENTS, &rename),
        "events.jsonl is not what was written"
    );
    assert_eq!(changed("0-0.log", &|_| {}), "");
}

#[test]
fn copies_without_a_seal_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let spool = kept(directory.path());
    let path = directory.path().join("spool").join(KEPT_LOGS).join(EVENTS);
    let events = std::fs::read_to_string(&path).unwrap();
    let (first, _) = events.split_once('\n').unwrap();
    std::fs::write(&path, format!("{first}\n")).unwrap();
    let cut = Replayed {
        found: true,
        ..Replayed::default()
    };
    assert_eq!(replay(&spool, &mut |_, _| Ok(())).unwrap(), cut);
    std::fs::remove_file(&path).unwrap();
    let gone = replay(&spool, &mut |_, _| Ok(())).unwrap();
    assert_eq!(gone.trouble.as_deref(), Some("events.jsonl is missing"));
}

/// A spool with the sealed copy of one log.
fn kept(place: &std::path::Path) -> Dir {
    let log = place.join("audit.jsonl");
    std::fs::create_dir(place.join("spool")).unwrap();
    let spool = Dir::open_named(&place.join("spool")).unwrap();
    let mut keeper = KeptLogWriter::create(&spool).unwrap();
    std::fs::write(&log, "one\n").unwrap();
    Follower::new(&log)
        .unwrap()
        .finish(&mut |event| keeper.event(0, &event));
    assert_eq!(keeper.finish(), 0);
    spool
}

#[test]
fn a_copy_that_a_full_disk_cut_is_cut_and_not_damaged() {
    let place = tempfile::tempdir().unwrap();
    std::fs::create_dir(place.path().join("spool")).unwrap();
    let spool = Dir::open_named(&place.path().join("spool")).unwrap();
    let mut keeper = KeptLogWriter::create(&spool).unwrap();
    let log = place.path().join("audit.jsonl");
    std::fs::write(&log, "one\n").unwrap();
    let mut follower = Follower::new(&log).unwrap();
    follower.poll(&mut |event| keeper.event(0, &event));
    // Refuses every byte that is written from here on.
    let full = File::options().write(true).open("/dev/full").unwrap();
    keeper.copies.get_mut(&(0, 0)).unwrap().file = Some(full);
    std::fs::write(&log, "one\ntwo\n").unwrap();
    follower.finish(&mut |event| keeper.event(0, &event));
    // Of a write that failed, the disk took the beginning.
    let copy = place.path().join("spool").join(KEPT_LOGS).join("0-0.log");
    std::fs::write(copy, "one\ntw").unwrap();
    assert_eq!(keeper.finish(), 4);
    let replayed = replay(&spool, &mut |_, _| Ok(())).unwrap();
    assert_eq!(replayed.trouble, None);
    let cut = "0-0.log could not be written to its end";
    assert_eq!(replayed.cut.as_deref(), Some(cut));
    assert!(was_cut(&spool).unwrap());
}

#[test]
fn a_copy_that_could_not_be_made_is_cut_and_a_whole_one_is_not() {
    let place = tempfile::tempdir().unwrap();
    let spool = kept(place.path());
    assert!(!was_cut(&spool).unwrap());
    let logs = place.path().join("spool").join(KEPT_LOGS);
    std::fs::remove_dir_all(&logs).unwrap();
    let mut keeper = KeptLogWriter::create(&spool).unwrap();
    // Its name is taken, so making it fails.
    std::fs::create_dir(logs.join("0-0.log")).unwrap();
    Follower::new(&place.path().join("audit.jsonl"))
        .unwrap()
        .finish(&mut |event| keeper.event(0, &event));
    assert_eq!(keeper.finish(), 4);
    assert!(was_cut(&spool).unwrap());
}

#[test]
fn a_full_disk_takes_events_and_copies_but_never_the_seal() {
    if !rustix::process::geteuid().is_root() {
        // Mounting needs root.
        return;
    }
    // A thread with mounts of its own, which end with it.
    std::thread::spawn(|| {
        let place = tempfile::tempdir().unwrap();
        let name = |text: &str| std::ffi::CString::new(text).unwrap();
        let (root, tmpfs, options) = (name("/"), name("tmpfs"), name("size=512k"));
        let here = name(place.path().to_str().unwrap());
        // SAFETY: strings that live as long as the calls.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0);
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let nothing = std::ptr::null();
            assert_eq!(
                libc::mount(nothing, root.as_ptr(), nothing, private, nothing.cast()),
                0
            );
            let (kind, options) = (tmpfs.as_ptr(), options.as_ptr().cast());
            assert_eq!(libc::mount(kind, here.as_ptr(), kind, 0, options), 0);
        }
        std::fs::create_dir(place.path().join("spool")).unwrap();
        let spool = Dir::open_named(&place.path().join("spool")).unwrap();
        let mut keeper = KeptLogWriter::create(&spool).unwrap();
        let facts = FileFacts {
            kernel_dev: 0,
            inode: 0,
            uid: 0,
            gid: 0,
            mode: 0,
            size: 0,
        };
        for file in 0..6000 {
            let (file, path, again) = (FileId(file), PathBuf::from("log"), None);
            keeper.event(
                0,
                &LogEvent::Opened {
                    file,
                    path,
                    facts,
                    again,
                },
            );
            keeper.event(
                0,
                &LogEvent::Bytes {
                    file,
                    offset: 0,
                    data: b"line\n",
                },
            );
        }
        // Shorter than the seal: without a place of its own it would find none.
        for _ in 0..100 {
            keeper.event(0, &LogEvent::Missing);
        }
        assert!(keeper.finish() > 0);
        let replayed = replay(&spool, &mut |_, _| Ok(())).unwrap();
        assert!(replayed.sealed && was_cut(&spool).unwrap());
        assert_eq!(replayed.trouble, None);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::umount2(here.as_ptr(), libc::MNT_DETACH) }, 0);
    })
    .join()
    .unwrap();
}
