#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn the_child_runs_nothing_before_it_is_released() {
    let place = tempfile::tempdir().unwrap();
    let marker = place.path().join("ran");
    let signals = Signals::block().unwrap();
    let blocked = shell(&format!("echo > {}", marker.display()))
        .fork(&signals)
        .unwrap();
    // It waits, still with this program's image.
    let exe = std::fs::read_link(format!("/proc/{}/exe", blocked.pid())).unwrap();
    assert_eq!(exe, std::env::current_exe().unwrap());
    wait_until(|| state(blocked.pid()) == Some('S'));
    assert!(!marker.exists());
    let pid = blocked.pid();
    let mut agent = blocked.release().unwrap();
    assert_eq!(agent.pid(), pid);
    assert_eq!(end(&mut agent, &signals), End::Exited(0));
    assert!(marker.exists());
}

#[test]
fn a_child_that_is_never_released_never_runs_and_is_gone() {
    let place = tempfile::tempdir().unwrap();
    let marker = place.path().join("ran");
    let signals = Signals::block().unwrap();
    let blocked = shell(&format!("echo > {}", marker.display()))
        .fork(&signals)
        .unwrap();
    let pid = blocked.pid();
    drop(blocked);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert!(!marker.exists());
}

#[test]
fn the_exit_code_and_the_killing_signal_are_told_apart() {
    let signals = Signals::block().unwrap();
    assert_eq!(run("exit 42", &signals), End::Exited(42));
    assert_eq!(run("kill -9 $$", &signals), End::Killed(9));
}

#[test]
fn a_missing_agent_is_not_found_and_a_plain_file_not_executable() {
    let signals = Signals::block().unwrap();
    let error = |program: &Path| {
        command(&[program.to_str().unwrap()])
            .fork(&signals)
            .unwrap()
            .release()
            .unwrap_err()
    };
    assert!(matches!(
        error("/nonexistent/agent".as_ref()),
        LaunchError::NotFound { .. }
    ));
    assert!(matches!(
        error("no-such-agent-in-path".as_ref()),
        LaunchError::NotFound { .. }
    ));
    assert!(matches!(
        error("/etc/passwd".as_ref()),
        LaunchError::NotExecutable { .. }
    ));
    assert!(matches!(
        error("/etc".as_ref()),
        LaunchError::NotExecutable { .. }
    ));
    assert!(matches!(
        error("/etc/passwd/x".as_ref()),
        LaunchError::NotFound { .. }
    ));
}

#[test]
fn the_agent_is_looked_up_along_path() {
    let signals = Signals::block().unwrap();
    let mut agent = command(&["true"])
        .fork(&signals)
        .unwrap()
        .release()
        .unwrap();
    assert_eq!(end(&mut agent, &signals), End::Exited(0));
}

#[test]
fn nothing_but_the_standard_descriptors_is_inherited() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("fds");
    let signals = Signals::block().unwrap();
    // Without close-on-exec, so that only the launcher can keep it from the agent.
    let secret = std::fs::File::open("/etc/hostname").unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    assert!(secret.as_raw_fd() > 2);
    assert_eq!(
        run(&format!("ls /proc/$$/fd > {}", out.display()), &signals),
        End::Exited(0)
    );
    let fds: Vec<u32> = std::fs::read_to_string(out)
        .unwrap()
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    // The shell's own: 10 and up for the redirection.
    assert!(
        fds.iter().all(|fd| *fd <= 2 || *fd >= 10)
            && !fds.contains(&secret.as_raw_fd().unsigned_abs()),
        "{fds:?}"
    );
}

#[test]
fn the_key_variable_is_removed_and_others_stay() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("env");
    let signals = Signals::block().unwrap();
    // PATH exists in every test environment; hiding it shows that hiding works without setting variables here.
    let mut command = command(&[
        "/bin/sh",
        "-c",
        &format!("/usr/bin/env > {}", out.display()),
    ]);
    command.hidden_variables = vec!["CARGO_MANIFEST_DIR".into()];
    let mut agent = command.fork(&signals).unwrap().release().unwrap();
    assert_eq!(end(&mut agent, &signals), End::Exited(0));
    let environment = std::fs::read_to_string(out).unwrap();
    assert!(environment.contains("PATH="));
    assert!(
        std::env::var_os("CARGO_MANIFEST_DIR").is_some(),
        "run by cargo"
    );
    assert!(!environment.contains("CARGO_MANIFEST_DIR="));
}

#[test]
fn new_privileges_are_off_unless_asked_for_and_the_group_is_its_own() {
    let signals = Signals::block().unwrap();
    for (allow, expected) in [(false, "1"), (true, "0")] {
        let mut command = command(&["/bin/sleep", "60"]);
        command.allow_setuid = allow;
        let agent = command.fork(&signals).unwrap().release().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("NoNewPrivs:"))
            .unwrap();
        assert_eq!(line.trim(), expected);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        let group = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .nth(2)
            .unwrap()
            .to_owned();
        assert_eq!(group, agent.pid().to_string());
    }
}

#[test]
fn signals_have_their_default_action_and_mask_again() {
    let signals = Signals::block().unwrap();
    let agent = command(&["/bin/sleep", "60"])
        .fork(&signals)
        .unwrap()
        .release()
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    assert_eq!(field("SigBlk:") & (1 << (libc::SIGINT - 1)), 0);
    assert_eq!(field("SigIgn:") & (1 << (libc::SIGPIPE - 1)), 0);
}

#[test]
fn released_signals_have_their_effect_again_and_earlier_ones_none() {
    let signals = Signals::block().unwrap();
    // SAFETY: sends to this thread, which has it blocked.
    unsafe { libc::raise(libc::SIGTERM) };
    signals.release();
    let mut now = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: only asks, into a place for the answer.
    let blocked = unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), now.as_mut_ptr());
        libc::sigismember(now.as_ptr(), libc::SIGTERM)
    };
    assert_eq!(blocked, 0);
}

#[test]
fn root_drops_to_the_named_user_with_that_users_groups_only() {
    if !rustix::process::geteuid().is_root() {
        eprintln_skip("dropping privileges needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let signals = Signals::block().unwrap();
    let identity = resolve_user(Some("nobody")).unwrap();
    let command = Command {
        identity: identity.clone(),
        ..command(&["/bin/sleep", "60"])
    };
    let agent = command.fork(&signals).unwrap().release().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace()
            .map(|id| id.parse::<u32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(field("Uid:"), [identity.uid; 4]);
    assert_eq!(field("Gid:"), [identity.gid; 4]);
    assert_eq!(field("Groups:"), identity.groups);
    assert!(status.contains("CapEff:\t0000000000000000"));
    drop(place);
}

#[test]
fn a_signal_is_passed_on_to_the_whole_group_and_the_fourth_kills() {
    let place = tempfile::tempdir().unwrap();
    let ready = place.path().join("ready");
    let count = place.path().join("count");
    // SAFETY: the default action needs no handler. A shell can set no trap for a signal that is ignored when it starts, and
    // every process of a background job ignores this one.
    unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
    let signals = Signals::block().unwrap();
    let script = format!(
        "trap 'echo x >> {count}' INT; echo > {ready}; while :; do sleep 0.05; done",
        count = count.display(),
        ready = ready.display()
    );
    let mut agent = shell(&script).fork(&signals).unwrap().release().unwrap();
    wait_until(|| ready.exists());
    for number in 1..=4 {
        // To this thread: another test's thread must not get it.
        // SAFETY: a valid signal to the calling thread, in which it is blocked.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGINT) };
        assert_eq!(
            agent.wait(&signals, DEADLINE).unwrap(),
            Event::Signal(libc::SIGINT)
        );
        if number <= 3 {
            wait_until(|| {
                std::fs::read_to_string(&count).is_ok_and(|text| text.lines().count() == number)
            });
        }
    }
    assert_eq!(end(&mut agent, &signals), End::Killed(9));
}

#[test]
fn an_agent_whose_watcher_gives_up_is_killed() {
    let signals = Signals::block().unwrap();
    let agent = command(&["/bin/sleep", "60"])
        .fork(&signals)
        .unwrap()
        .release()
        .unwrap();
    let pid = agent.pid();
    drop(agent);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn an_agent_that_exits_at_once_is_reaped_with_its_code() {
    let signals = Signals::block().unwrap();
    for _ in 0..50 {
        assert_eq!(run("exit 3", &signals), End::Exited(3));
    }
}

#[test]
fn standard_output_is_the_agents() {
    let signals = Signals::block().unwrap();
    let (mut read, write) = std::io::pipe().unwrap();
    // The agent inherits the standard descriptors only, so the pipe is reached by its path.
    let script = format!(
        "echo hello > /proc/{}/fd/{}",
        std::process::id(),
        write.as_raw_fd()
    );
    assert_eq!(run(&script, &signals), End::Exited(0));
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello\n");
}

fn command(argv: &[&str]) -> Command {
    let own = rustix::process::geteuid().as_raw().to_string();
    Command {
        argv: argv.iter().map(Into::into).collect(),
        identity: resolve_user(Some(&own)).unwrap(),
        allow_setuid: false,
        hidden_variables: Vec::new(),
    }
}

fn shell(script: &str) -> Command {
    command(&["/bin/sh", "-c", script])
}

fn run(script: &str, signals: &Signals) -> End {
    let mut agent = shell(script).fork(signals).unwrap().release().unwrap();
    end(&mut agent, signals)
}

fn end(agent: &mut Agent, signals: &Signals) -> End {
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        if let Event::Ended(end) = agent.wait(signals, Duration::from_millis(50)).unwrap() {
            return end;
        }
    }
    panic!("the agent did not end");
}

fn wait_until(condition: impl Fn() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < until, "the condition did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says why")]
fn eprintln_skip(why: &str) {
    eprintln!("skipped: {why}");
}
