//! What a guest gets: busybox, the command with its libraries, and a first process that runs it.
//!
//! Owns the contents of the guest's file system. Everything of this machine lies at the same path in the guest, so that
//! programs find what was compiled into them.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};

use super::archive::Archive;
use super::kernel::Kernel;
use crate::workspace::built;

/// Modules that the programs under test need and that a guest cannot load by itself.
const MODULES: [&str; 3] = [
    "net/unix/unix_diag",
    "net/ipv4/inet_diag",
    "net/ipv4/tcp_diag",
];
/// Programs that are this machine's, not busybox's: tests tell processes apart by their executables.
const PROGRAMS: [&str; 9] = [
    "/usr/bin/chrt",
    "/usr/bin/sh",
    "/usr/bin/cat",
    "/usr/bin/sleep",
    "/usr/bin/bash",
    "/usr/bin/dd",
    "/usr/bin/echo",
    "/usr/bin/id",
    "/usr/bin/true",
];
/// Folders that are links on systems with one `/usr`.
const MERGED: [&str; 4] = ["/bin", "/sbin", "/lib", "/lib64"];
/// Variables that the command inherits, by the start of their names.
const INHERITED: [&str; 3] = ["COUNTERSIGN_", "RUST_", "PROPTEST_"];
/// Starts the guest; what it says at the end is read by the host.
const INIT: &str = include_str!("init.sh");

/// What to run, with what around it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Load {
    /// Program and arguments. A program of this machine or of `target/debug` is brought along, any other is busybox's.
    pub(crate) command: Vec<OsString>,
    /// Further files and folders to bring along.
    pub(crate) with: Vec<PathBuf>,
}

/// Writes the file system of a guest into `place`. The guest ends with a kernel message `token CODE`.
///
/// # Errors
/// Something that the guest needs is not on this machine.
pub(crate) fn write(place: &Path, kernel: &Kernel, load: &Load, token: &str) -> anyhow::Result<()> {
    let file = File::create(place).with_context(|| format!("cannot write {}", place.display()))?;
    let mut guest = Archive::new(BufWriter::new(file));
    for folder in MERGED {
        match fs::read_link(folder) {
            Ok(target) => guest.link(Path::new(folder), &target)?,
            Err(_) => guest.directory(Path::new(folder))?,
        }
    }
    for folder in [
        "/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/etc", "/var",
    ] {
        guest.directory(Path::new(folder))?;
    }
    guest.device(Path::new("/dev/console"), 5, 1)?;
    guest.file(
        Path::new("/etc/passwd"),
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    guest.file(
        Path::new("/etc/group"),
        0o644,
        b"root:x:0:\nnogroup:x:65534:\n",
    )?;
    guest.file(
        Path::new("/etc/hosts"),
        0o644,
        b"127.0.0.1 localhost\n::1 localhost\n",
    )?;
    let busybox = busybox()?;
    guest.file(
        Path::new("/busybox"),
        0o755,
        &fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?,
    )?;
    let mut modules = Vec::new();
    for module in MODULES {
        if let Some(bytes) = module_bytes(kernel, module)? {
            let place = PathBuf::from(format!("/modules/{}.ko", module.replace('/', "-")));
            guest.file(&place, 0o644, &bytes)?;
            modules.push(place.display().to_string());
        }
    }

    let mut brought = Vec::new();
    let mut command = load.command.clone();
    let first = command.first_mut().context("no command to run")?;
    if let Some(program) = on_this_machine(first)? {
        *first = program.clone().into_os_string();
        brought.push(program);
    }
    for program in PROGRAMS.map(PathBuf::from) {
        if let Ok(target) = program.canonicalize() {
            if target != program {
                guest.link(&program, &target)?;
            }
            brought.push(target);
        }
    }
    for path in &load.with {
        let whole = path
            .canonicalize()
            .with_context(|| format!("cannot bring {} along", path.display()))?;
        brought.push(whole);
    }
    let mut binaries = BTreeSet::new();
    for path in brought {
        bring(&mut guest, &path, &mut binaries)?;
    }
    for library in libraries(&binaries)? {
        guest.same(&library)?;
    }

    let directory = env::current_dir()?;
    guest.directory(&directory)?;
    let mut script = format!("cd {}\n", quoted(directory.as_os_str())?);
    for (name, value) in env::vars_os() {
        let plain = name.to_str().filter(|name| {
            INHERITED.iter().any(|start| name.starts_with(start))
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        if let Some(name) = plain {
            writeln!(script, "export {name}={}", quoted(&value)?)?;
        }
    }
    script.push_str("exec");
    for argument in &command {
        script.push(' ');
        script.push_str(&quoted(argument)?);
    }
    script.push('\n');
    guest.file(Path::new("/command"), 0o755, script.as_bytes())?;
    let init = INIT
        .replace("@TOKEN@", token)
        .replace("@MODULES@", &modules.join(" "));
    guest.file(Path::new("/init"), 0o755, init.as_bytes())?;
    guest.end().map(drop)
}

fn busybox() -> anyhow::Result<PathBuf> {
    let found = ["/usr/bin/busybox", "/bin/busybox"]
        .map(PathBuf::from)
        .into_iter()
        .find(|place| place.is_file())
        .context("no busybox: run cargo xtask setup")?;
    ensure!(
        libraries(&BTreeSet::from([found.clone()]))?.is_empty(),
        "{} is not static: run apt-get install busybox-static",
        found.display()
    );
    Ok(found)
}

/// The module's bytes, not compressed; `None` if the kernel has it built in or not at all.
fn module_bytes(kernel: &Kernel, module: &str) -> anyhow::Result<Option<Vec<u8>>> {
    let plain = kernel.modules.join(format!("kernel/{module}.ko"));
    if plain.exists() {
        return Ok(Some(fs::read(plain)?));
    }
    let packed = kernel.modules.join(format!("kernel/{module}.ko.xz"));
    if !packed.exists() {
        return Ok(None);
    }
    let out = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(&packed)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start xz")?;
    ensure!(
        out.status.success(),
        "xz {}: {}",
        packed.display(),
        out.status
    );
    Ok(Some(out.stdout))
}

/// Where a program is that the guest does not have: by its path, or by the name of a binary or a test of the workspace.
fn on_this_machine(program: &OsStr) -> anyhow::Result<Option<PathBuf>> {
    let path = Path::new(program);
    if path.components().count() > 1 {
        return Ok(path.canonicalize().ok());
    }
    let plain = built(&program.to_string_lossy());
    if plain.is_file() {
        return Ok(Some(plain));
    }
    newest_test(program)
}

/// The newest binary of that test in `target/debug/deps`.
fn newest_test(name: &OsStr) -> anyhow::Result<Option<PathBuf>> {
    let Ok(folder) = fs::read_dir(built("deps")) else {
        return Ok(None);
    };
    let mut found = None;
    for entry in folder {
        let entry = entry?;
        let file = entry.file_name();
        let is_test = file
            .to_str()
            .zip(name.to_str())
            .and_then(|(file, name)| file.strip_prefix(name)?.strip_prefix('-'))
            .is_some_and(|hash| hash.chars().all(|c| c.is_ascii_hexdigit()));
        if is_test {
            let age = entry.metadata()?.modified()?;
            if found.as_ref().is_none_or(|(newest, _)| *newest < age) {
                found = Some((age, entry.path()));
            }
        }
    }
    Ok(found.map(|(_, path)| path))
}

/// Puts a file or a folder at the same place in the guest and notes what is a program or a library.
fn bring(
    guest: &mut Archive<BufWriter<File>>,
    path: &Path,
    binaries: &mut BTreeSet<PathBuf>,
) -> anyhow::Result<()> {
    let mut waiting = vec![path.to_path_buf()];
    while let Some(path) = waiting.pop() {
        let kind = fs::symlink_metadata(&path)
            .with_context(|| format!("cannot bring {} along", path.display()))?;
        if kind.is_dir() {
            guest.directory(&path)?;
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else if kind.is_symlink() {
            guest.link(&path, &fs::read_link(&path)?)?;
        } else if kind.is_file() {
            if is_elf(&path)? {
                binaries.insert(path.clone());
            }
            guest.same(&path)?;
        }
    }
    Ok(())
}

fn is_elf(path: &Path) -> anyhow::Result<bool> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut magic = [0; 4];
    Ok(file.read_exact(&mut magic).is_ok() && &magic == b"\x7fELF")
}

/// The shared libraries of programs of this machine, as the loader finds them.
fn libraries(binaries: &BTreeSet<PathBuf>) -> anyhow::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for binary in binaries {
        let out = Command::new("ldd")
            .arg(binary)
            .stderr(Stdio::null())
            .output()
            .context("cannot start ldd")?;
        // It fails for what is static or of another machine: those need nothing or cannot run.
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            if line.contains("not found") {
                bail!("{}: {}", binary.display(), line.trim());
            }
            let place = line.split("=> ").last().unwrap_or(line).trim();
            if let Some(path) = place
                .split(" (")
                .next()
                .filter(|path| path.starts_with('/'))
            {
                found.insert(merged(Path::new(path))?);
            }
        }
    }
    Ok(found)
}

/// The same file without the links that all systems with one `/usr` have; other links keep their names.
fn merged(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path.file_name().context("a library without a name")?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    Ok(parent.canonicalize()?.join(name))
}

/// One word of a shell script.
fn quoted(word: &OsStr) -> anyhow::Result<String> {
    let text = word
        .to_str()
        .with_context(|| format!("{} is not UTF-8", word.display()))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// Whether the machine has what guests need, and what is missing.
pub(crate) fn missing() -> Vec<&'static str> {
    let has = |program: &str| {
        env::var_os("PATH").is_some_and(|path| {
            env::split_paths(&path).any(|folder| {
                fs::metadata(folder.join(program))
                    .is_ok_and(|file| file.permissions().mode() & 0o111 != 0)
            })
        })
    };
    [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("xz", "xz-utils"),
        ("dpkg", "dpkg"),
    ]
    .into_iter()
    .filter(|(program, _)| !has(program))
    .map(|(_, package)| package)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_script_stays_one_word() -> anyhow::Result<()> {
        assert_eq!(quoted(OsStr::new("a'b $c"))?, r"'a'\''b $c'");
        Ok(())
    }

    #[test]
    fn this_program_brings_its_libraries() -> anyhow::Result<()> {
        let found = libraries(&BTreeSet::from([env::current_exe()?]))?;
        let has = |part: &str| {
            found
                .iter()
                .any(|path| path.display().to_string().contains(part))
        };
        assert!(has("libc.so") && has("ld-linux"), "{found:?}");
        Ok(())
    }
}
