//! `countersign run` on a terminal: it belongs to the agent while that runs, and to the shell afterwards.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::place::{Place, binary, text};

/// Longest wait for something that must come.
const DEADLINE: Duration = Duration::from_secs(20);

/// A shell on a terminal of its own.
struct Terminal {
    shell: Child,
    keys: File,
    seen: String,
}

impl Terminal {
    /// Runs a script there that finds `countersign run` with its flags in `$run`.
    fn start(place: &Place, script: &str) -> Self {
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: each descriptor was just opened and belongs to nobody else. Processes of other tests must not inherit them:
        // a terminal is gone only when nobody has it any more.
        let (keys, line) = unsafe {
            let keys = libc::posix_openpt(flags);
            assert!(keys >= 0 && libc::unlockpt(keys) == 0, "no terminal");
            let line = libc::ioctl(keys, libc::TIOCGPTPEER, flags);
            assert!(line >= 0, "no line to the terminal");
            (File::from_raw_fd(keys), File::from_raw_fd(line))
        };
        let run = format!(
            "{} run --user root --linger 100ms --proxy-log log -o out --",
            binary().display()
        );
        let mut command = Command::new("bash");
        command
            .args(["--norc", "-c", script])
            .env("run", run)
            .env_remove("SUDO_UID")
            .current_dir(place.path("."))
            .stdin(Stdio::from(line.try_clone().unwrap()))
            .stdout(Stdio::from(line.try_clone().unwrap()))
            .stderr(Stdio::from(line));
        // SAFETY: two system calls that are allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let shell = command.spawn().expect("this test needs bash");
        // The command holds copies of the line; while they are open, its end does not show.
        drop(command);
        Self {
            shell,
            keys,
            seen: String::new(),
        }
    }

    /// Waits until this stands on the screen.
    #[track_caller]
    fn until(&mut self, needle: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !self.seen.contains(needle) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let mut wait = [PollFd::new(&self.keys, PollFlags::IN)];
            poll(&mut wait, Some(&left)).unwrap();
            let ready = !wait[0].revents().is_empty();
            let mut bytes = [0; 4096];
            // At the end of the line a read fails.
            let length = if ready {
                self.keys.read(&mut bytes).unwrap_or(0)
            } else {
                0
            };
            assert!(length > 0, "{needle:?} never came: {}", self.seen);
            self.seen.push_str(&text(&bytes[..length]));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Takes the terminal away, as closing its window does.
    fn close(&mut self) {
        self.keys = File::open("/dev/null").unwrap();
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: an open terminal and a size that is only read.
        let done = unsafe { libc::ioctl(self.keys.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(done, 0);
    }
}

/// Nothing outlives a test that fails.
impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

#[test]
fn ctrl_c_goes_to_the_agent_and_the_evidence_is_still_written() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file(
        "agent",
        b"trap 'echo got it; exit 5' INT; echo ready; while :; do sleep 0.05; done",
        0o644,
    );
    let mut terminal = Terminal::start(&place, "$run sh agent; echo ended with $?");
    terminal.until("ready");
    terminal.press("\x03");
    terminal.until("got it");
    terminal.until("the agent exited with code 5");
    terminal.until("EVIDENCE of capture");
    terminal.until("ended with ");
    assert!(!terminal.seen.contains("passed on"), "{}", terminal.seen);
}

#[test]
fn ctrl_z_stops_both_and_fg_continues_both() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    // One process that only waits: a shell that is stopped while it starts a program by vfork cannot be stopped itself.
    let agent = b"echo ready; read -r line; echo went on with $line";
    place.file("agent", agent, 0o644);
    let script = "set -m; $run sh agent; echo shell again; read -r line; echo shell read $line; \
        fg; echo ended with $?";
    let mut terminal = Terminal::start(&place, script);
    terminal.until("ready");
    terminal.press("\x1a");
    terminal.until("shell again");
    terminal.press("one\n");
    terminal.until("shell read one");
    terminal.press("two\n");
    terminal.until("went on with two");
    terminal.until("the agent exited with code 0");
    terminal.until("ended with ");
}

#[test]
fn the_agent_is_told_of_a_new_window_size() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    place.file(
        "agent",
        b"trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done",
        0o644,
    );
    let mut terminal = Terminal::start(&place, "$run bash agent; echo ended");
    terminal.until("ready");
    terminal.resize(41, 123);
    terminal.until("41 123");
    terminal.until("the agent exited with code 0");
    terminal.until("ended");
}

#[test]
fn the_terminal_is_the_shells_again_when_the_agent_has_ended() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let script = "$run true; read -r line; echo shell read $line";
    let mut terminal = Terminal::start(&place, script);
    terminal.until("EVIDENCE of capture");
    terminal.press("this\n");
    terminal.until("shell read this");
}

#[test]
fn a_window_that_is_closed_ends_the_agent_and_not_the_evidence() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    let mut terminal = Terminal::start(&place, "$run sh -c 'echo ready; sleep 60'");
    terminal.until("ready");
    terminal.close();
    // The spool goes last, once the evidence is complete.
    let deadline = Instant::now() + DEADLINE;
    while !place.path("out/coverage").exists() || place.path("out/spool").exists() {
        assert!(Instant::now() < deadline, "the evidence never came");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_agent_cannot_type_into_the_terminal_that_it_shares() {
    let Some(place) = Place::that_can_record() else {
        return;
    };
    // As root it could, if nothing kept it from doing so.
    place.file(
        "agent.py",
        b"import fcntl, termios, sys
for request in termios.TIOCSTI, 0x541c:
    try:
        fcntl.ioctl(0, request, b'x')
        print('typed')
    except OSError as error:
        print('refused', error.errno)
print(fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)) == bytes(8), 'size')
",
        0o644,
    );
    let mut terminal = Terminal::start(&place, "$run python3 agent.py; echo ended");
    terminal.until("ended");
    assert_eq!(
        terminal.seen.matches("refused 1\r\n").count(),
        2,
        "{}",
        terminal.seen
    );
    assert!(terminal.seen.contains("True size"), "{}", terminal.seen);
}
