//! Kernels for guests: Debian's cloud packages, unpacked into a folder of their own, nothing installed.
//!
//! Owns the private apt state under `target/vm` and the choice of a package; takes the mirror and the proxy from the
//! machine's own apt configuration.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};

use crate::workspace::{output, run, say};

/// Where kernels come from: each of these has some that the others lack. A mirror need not have all.
const SUITES: [&str; 5] = [
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "bullseye",
];
/// Flavour: small, without drivers of hardware, with BTF.
const FLAVOUR: &str = "-cloud-amd64";
/// The packages of one kernel: since 7.0 the image and the modules are packages of their own.
const PARTS: [&str; 3] = ["image", "binary", "modules"];
/// Package lists older than this are fetched again before a kernel is downloaded.
const LISTS_MAX_AGE: Duration = Duration::from_hours(7 * 24);
/// Signs the packages of all suites, where the machine has it there.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// As `uname -r` says.
    pub(crate) release: String,
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// Folder of the modules: `kernel/…` below it.
    pub(crate) modules: PathBuf,
}

/// The newest kernel whose version starts with `wanted`, from the cache when it is there.
///
/// # Errors
/// There is no such kernel, or it cannot be had.
pub(crate) fn kernel(cache: &Path, wanted: &str) -> anyhow::Result<Kernel> {
    ensure!(
        wanted.starts_with(|first: char| first.is_ascii_digit()) && !wanted.contains(['/', ' ']),
        "a kernel is named by the start of its version, as in 6.1 or 7"
    );
    let kernels = cache.join("kernels");
    fs::create_dir_all(&kernels)?;
    if let Some(found) = newest(&names(&kernels)?, wanted) {
        return unpacked(&kernels, &found);
    }
    let apt = Apt::new(cache)?;
    apt.update()?;
    let releases = apt.releases()?;
    let Some(release) = newest(&releases, wanted) else {
        bail!(
            "the mirror has no kernel {wanted}; it has {}",
            releases.join(", ")
        );
    };
    apt.unpack(&release, &kernels)?;
    unpacked(&kernels, &release)
}

fn unpacked(kernels: &Path, release: &str) -> anyhow::Result<Kernel> {
    let root = kernels.join(release);
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|folder| root.join(folder).join(release))
        .into_iter()
        .find(|folder| folder.is_dir())
        .with_context(|| format!("{} has no modules", root.display()))?;
    let image = [
        root.join(format!("boot/vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ]
    .into_iter()
    .find(|image| image.is_file())
    .with_context(|| format!("{} has no kernel", root.display()))?;
    Ok(Kernel {
        release: release.to_owned(),
        image,
        modules,
    })
}

fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// The newest of `releases` that starts with the numbers of `wanted`: 6.1 is not 6.12.
fn newest(releases: &[String], wanted: &str) -> Option<String> {
    let prefix = numbers(wanted);
    releases
        .iter()
        .filter(|release| release.ends_with(FLAVOUR) && numbers(release).starts_with(&prefix))
        .max_by_key(|release| numbers(release))
        .cloned()
}

/// The numbers of a version, in order: what it is compared by.
fn numbers(version: &str) -> Vec<u32> {
    let version = version.strip_suffix(FLAVOUR).unwrap_or(version);
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// apt with sources, lists and packages of its own.
#[derive(Debug)]
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(cache: &Path) -> anyhow::Result<Self> {
        let folder = cache.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        Ok(Self { folder })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = |name: &str| self.folder.join(name).display().to_string();
        command
            .args(["-o", "APT::Sandbox::User="])
            .args(["-o", "Acquire::Languages=none"])
            .arg("-o")
            .arg(format!("Dir::Etc::SourceList={}", place("sources.list")))
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .arg("-o")
            .arg(format!("Dir::State::Lists={}", place("lists")))
            .arg("-o")
            .arg(format!("Dir::Cache={}", self.folder.display()))
            .stdin(Stdio::null());
        command
    }

    /// Fetches the lists unless they are young.
    fn update(&self) -> anyhow::Result<()> {
        let stamp = self.folder.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|file| file.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        if age.is_some_and(|age| age < LISTS_MAX_AGE) {
            return Ok(());
        }
        let mirror = mirror()?;
        let trust = if Path::new(KEYRING).exists() {
            format!("[signed-by={KEYRING}] ")
        } else {
            String::new()
        };
        let mut sources = String::new();
        for suite in SUITES {
            use std::fmt::Write as _;
            writeln!(sources, "deb {trust}{mirror} {suite} main")?;
        }
        fs::write(self.folder.join("sources.list"), sources)?;
        say("fetching the lists of kernel packages")?;
        // A mirror that lacks a suite still serves the others; what is missing then shows as a kernel that is not there.
        let status = self
            .command("apt-get")
            .args(["--quiet=2", "update"])
            .status()
            .context("cannot start apt-get")?;
        if !status.success() {
            say("some package lists could not be fetched")?;
        }
        fs::File::create(stamp)?.write_all(b"")?;
        Ok(())
    }

    /// The kernels that the lists have.
    fn releases(&self) -> anyhow::Result<Vec<String>> {
        let names = output(
            self.command("apt-cache").args(["pkgnames", "linux-image-"]),
            &[0],
        )?;
        let mut releases = Vec::new();
        for release in names
            .lines()
            .filter_map(|name| name.strip_prefix("linux-image-"))
        {
            let numbered = release.starts_with(|first: char| first.is_ascii_digit());
            if numbered && release.ends_with(FLAVOUR) {
                releases.push(release.to_owned());
            }
        }
        releases.sort_by_key(|release| numbers(release));
        Ok(releases)
    }

    /// Whether there is such a package and not only its name, left over from one that was installed here.
    fn has_files(&self, package: &str) -> anyhow::Result<bool> {
        let shown = self
            .command("apt-cache")
            .args(["--quiet=2", "show", "--no-all-versions", package])
            .output()
            .context("cannot start apt-cache")?;
        Ok(String::from_utf8_lossy(&shown.stdout)
            .lines()
            .any(|line| line.starts_with("Filename: ")))
    }

    /// Downloads a kernel and unpacks it; it appears in `kernels` when it is whole.
    fn unpack(&self, release: &str, kernels: &Path) -> anyhow::Result<()> {
        // Another run may be at the same.
        let folder = kernels.join(format!("{release}.{}.part", std::process::id()));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let root = folder.join("root");
        fs::create_dir_all(&root)?;
        for part in PARTS {
            let package = format!("linux-{part}-{release}");
            if !self.has_files(&package)? {
                continue;
            }
            say(&format!("downloading {package}"))?;
            let status = self
                .command("apt-get")
                .args(["--quiet=2", "download", &package])
                .current_dir(&folder)
                .status()
                .context("cannot start apt-get")?;
            ensure!(status.success(), "{package}: apt-get download: {status}");
        }
        for file in names(&folder)? {
            if Path::new(&file).extension().is_some_and(|end| end == "deb") {
                run(Command::new("dpkg")
                    .arg("-x")
                    .arg(folder.join(file))
                    .arg(&root))?;
            }
        }
        let place = kernels.join(release);
        let moved = fs::rename(&root, &place);
        fs::remove_dir_all(&folder)?;
        ensure!(
            moved.is_ok() || place.is_dir(),
            "cannot move a kernel to {}",
            place.display()
        );
        Ok(())
    }
}

/// Address of the Debian archive that this machine's apt uses.
fn mirror() -> anyhow::Result<String> {
    let targets = output(
        Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE)",
            "Identifier: Packages",
        ]),
        &[0],
    )
    .context("kernels for guests come from a Debian mirror, through apt")?;
    for line in targets.lines() {
        if let Some((address, release)) = line.split_once(' ')
            && !release.contains('-')
            && !release.is_empty()
        {
            return Ok(address.to_owned());
        }
    }
    bail!("apt has no sources: run apt-get update")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn releases() -> Vec<String> {
        ["6.1.0-47", "6.1.0-50", "6.12.9+deb12", "6.12.107+deb13"]
            .map(|version| format!("{version}{FLAVOUR}"))
            .to_vec()
    }

    #[test]
    fn the_newest_kernel_is_chosen_by_number() {
        let found = newest(&releases(), "6.12");
        assert_eq!(found.as_deref(), Some("6.12.107+deb13-cloud-amd64"));
    }

    #[test]
    fn a_shorter_number_is_not_the_start_of_a_longer_one() {
        let found = newest(&releases(), "6.1");
        assert_eq!(found.as_deref(), Some("6.1.0-50-cloud-amd64"));
        assert_eq!(newest(&releases(), "6.2"), None);
    }
}
