//! The kernel side, as the commands need it.
//!
//! Owns the checks that tell an operator what is missing before anything is started, and what a capture is asked for. Does
//! not load kernel programs itself.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::bpf::choice::Choice;
use crate::bpf::hook::Hook;
use crate::bpf::pin::{Note, PinDir};
use crate::bpf::preemption::Preemption;
use crate::bpf::self_test::SKIPPED;
use crate::bpf::tier::Tier;
use crate::bpf::{
    capture::Capture,
    load::{load, resume},
    options::{LoadOptions, WatchedId},
};
use crate::device::kernel_dev;
use crate::exit::{Code, Failure};

/// Where the kernel publishes its types.
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// `CAP_PERFMON`, `CAP_BPF`: capability(7).
const CAPABILITIES: [(u32, &str); 2] = [(38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// What a capture is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// ULID of the capture.
    pub capture: String,
    /// Executables of proxies.
    pub proxy_exes: Vec<ProxyExe>,
    /// Where the capture is pinned, so that it outlives this process, with what it was asked to record.
    pub pin: Option<(PinDir, String)>,
    /// Size of the ring in bytes, a power of two.
    pub ring_bytes: u32,
    /// Files whose opening by the watched is told: keys, logs, the output.
    pub watched_files: Vec<WatchedId>,
    /// How to capture transfers; `None`: as works best.
    pub tier: Option<Tier>,
}

/// The executable of a proxy, by path and as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProxyExe {
    /// Index of the configured proxy; `None`: this program itself.
    pub proxy: Option<usize>,
    /// Where it lies.
    #[serde(serialize_with = "in_utf8")]
    pub path: PathBuf,
    /// Kernel device number of its file system.
    pub dev: u32,
    /// Its inode.
    pub inode: u64,
}

/// Only for people to read: the file is known by its device and inode.
fn in_utf8<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl ProxyExe {
    /// The file at a path now, symbolic links followed: what the kernel would execute.
    ///
    /// # Errors
    /// When there is no regular file.
    pub fn identify(proxy: Option<usize>, path: &Path) -> std::io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("it is not a file"));
        }
        Ok(Self {
            proxy,
            path: path.to_owned(),
            dev: kernel_dev(metadata.dev()),
            inode: metadata.ino(),
        })
    }
}

/// One thing that recording needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Requirement {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub met: bool,
    /// What was found, and the fix if it is not there.
    pub detail: String,
    /// Exit code of a command that needs it.
    #[serde(skip)]
    pub code: Code,
}

/// What recording needs on this machine, in the order in which it is needed.
pub fn requirements() -> Vec<Requirement> {
    vec![architecture(), privileges(), btf(), features(), programs()]
}

/// What the choice of a tier found: loads the programs of each candidate and moves a token through a pipe and a socket pair. A tier counts only
/// if it comes back, exact, from both ends. Takes a second or two and leaves nothing behind.
pub fn self_test(forced: Option<Tier>) -> Vec<Requirement> {
    let choice = Choice::make(forced);
    let preemption = Requirement {
        name: "preemption",
        met: true,
        detail: choice.preemption.to_string(),
        code: Code::Clean,
    };
    let refused = choice.refused();
    let tested = Requirement {
        name: "self-test",
        met: choice.tier.is_some(),
        detail: match choice.tier {
            Some(tier) => {
                let mut rest = match choice.hook {
                    Hook::Typed => String::new(),
                    Hook::Event => {
                        "; the kernel skips programs on tracepoints under load, so that they are on trace events"
                            .to_owned()
                    }
                };
                if !choice.skipped.is_empty() {
                    let skipped = choice.skipped.join(", ");
                    rest = format!(
                        "{rest}; the kernel skips programs on system calls under load, so that ends, spliced bytes and \
                         files can be missed, which is counted: {skipped}"
                    );
                }
                if !refused.is_empty() {
                    rest = format!("{rest}; not used: {refused}");
                }
                format!(
                    "tier {tier}: a token came back from both ends of a pipe and of a socket pair{rest}"
                )
            }
            None => refused,
        },
        // Programs that load and are skipped now and then do record, but not everything.
        code: if choice
            .tried
            .iter()
            .any(|(_, failure)| skipped(failure.as_deref()))
        {
            Code::CouldNotSee
        } else {
            Code::Unavailable
        },
    };
    vec![preemption, tested]
}

fn skipped(failure: Option<&str>) -> bool {
    failure.is_some_and(|failure| failure.starts_with(SKIPPED))
}

/// Refuses early when this process lacks the privileges, before anything else asks for them in its own words.
///
/// # Errors
/// When capabilities are missing.
pub fn check_privileges() -> Result<(), Failure> {
    let Requirement {
        met, detail, code, ..
    } = privileges();
    if met {
        Ok(())
    } else {
        Err(Failure::new(code, detail))
    }
}

/// Loads and attaches the kernel programs.
///
/// # Errors
/// The first [`Requirement`] that is not met, or why loading failed.
pub fn attach(request: &Request) -> Result<Capture, Failure> {
    if let Some(unmet) = requirements()
        .into_iter()
        .find(|requirement| !requirement.met)
    {
        return Err(Failure::new(unmet.code, unmet.detail));
    }
    tracing::debug!(?request, "attaching");
    let proxy_exes = request
        .proxy_exes
        .iter()
        .map(|exe| (exe.dev, exe.inode))
        .collect();
    // The generation tells captures of one boot apart; the capture's own id does that.
    let generation = request.capture.bytes().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let unavailable = |error| Failure {
        code: Code::Unavailable,
        error,
    };
    let forced = request.tier;
    let chosen = || {
        let choice = Choice::make(forced);
        let refused = choice.refused();
        tracing::debug!(tier = ?choice.tier, hook = choice.hook.as_str(), refused, preemption = %choice.preemption, "chosen");
        if choice.tier.is_none() {
            tracing::warn!(
                refused,
                "no tier passes its test: what is recorded will have holes"
            );
        }
        (choice.tier.or(forced).unwrap_or_default(), choice.hook)
    };
    let (tier, hook) = match forced {
        // Where nothing is preempted there is nothing to choose.
        Some(tier) if !Preemption::of_running_kernel().is_preemptible() => (tier, Hook::default()),
        Some(_) | None => chosen(),
    };
    let options = LoadOptions {
        generation,
        tier,
        hook,
        proxy_exes,
        ring_bytes: request.ring_bytes,
        pin: request
            .pin
            .clone()
            .map(|(dir, _)| (dir, request.capture.clone())),
        watched_files: request.watched_files.clone(),
        ..LoadOptions::default()
    };
    if let Some((dir, asked)) = &request.pin {
        dir.make()
            .and_then(|()| dir.keep_asked(asked))
            .map_err(unavailable)?;
    }
    load(&options).map_err(|error| {
        // Half of a capture must not go on by itself.
        if let Some((dir, _)) = &request.pin
            && let Err(error) = dir.remove()
        {
            tracing::warn!(%error, "what was pinned could not be removed");
        }
        unavailable(error)
    })
}

/// Opens a capture that a process before this one has pinned; loads nothing.
///
/// # Errors
/// The first [`Requirement`] that is not met, or what is missing of the capture.
pub fn go_on(dir: &PinDir, note: &Note) -> Result<Capture, Failure> {
    resume(dir.clone(), note).map_err(|error| Failure {
        code: Code::Unavailable,
        error,
    })
}

fn architecture() -> Requirement {
    let found = std::env::consts::ARCH;
    Requirement {
        name: "architecture",
        met: found == "x86_64",
        detail: format!("{found} (recording is possible on x86_64; pairing everywhere)"),
        code: Code::Unavailable,
    }
}

fn privileges() -> Requirement {
    let missing = missing_capabilities();
    let detail = match &missing {
        Some(missing) if missing.is_empty() => "may load kernel programs".to_owned(),
        Some(missing) => format!(
            "recording needs root (missing: {}): run with sudo; `countersign pair` needs no privileges",
            missing.join(", ")
        ),
        None => "the privileges cannot be read from /proc/self/status: mount /proc".to_owned(),
    };
    Requirement {
        name: "privileges",
        met: missing.is_some_and(|missing| missing.is_empty()),
        detail,
        code: Code::NoPermission,
    }
}

fn missing_capabilities() -> Option<Vec<&'static str>> {
    // The name in it need not be UTF-8.
    let status = std::fs::read("/proc/self/status").ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    let effective = u64::from_str_radix(line.trim(), 16).ok()?;
    let sys_admin = effective & (1 << 21) != 0;
    Some(
        CAPABILITIES
            .into_iter()
            .filter(|(bit, _)| !sys_admin && effective & (1 << bit) == 0)
            .map(|(_, name)| name)
            .collect(),
    )
}

fn btf() -> Requirement {
    let found = std::fs::File::open(Path::new(KERNEL_BTF));
    Requirement {
        name: "kernel types",
        met: found.is_ok(),
        detail: match found {
            Ok(_) => format!("{KERNEL_BTF} is there"),
            Err(error) => format!(
                "this kernel has no type information in {KERNEL_BTF} ({error}): use one built with \
                 CONFIG_DEBUG_INFO_BTF, as distributions' kernels are"
            ),
        },
        code: Code::Unavailable,
    }
}

fn features() -> Requirement {
    let missing = crate::bpf::features::missing();
    Requirement {
        name: "kernel features",
        met: missing.as_ref().is_ok_and(Vec::is_empty),
        detail: match missing {
            Ok(missing) if missing.is_empty() => {
                "all that the kernel programs use are there".to_owned()
            }
            Ok(missing) => format!(
                "this kernel lacks {}: recording needs a newer one, Linux 6.1 is the oldest that is tested; \
                 `countersign pair` runs on any",
                missing.join(", ")
            ),
            Err(error) => error.to_string(),
        },
        code: Code::Unavailable,
    }
}

fn programs() -> Requirement {
    let built_in = crate::bpf::object::require_object();
    Requirement {
        name: "kernel programs",
        met: built_in.is_ok(),
        detail: match built_in {
            Ok(object) => format!("{} bytes are built in", object.len()),
            Err(error) => error.to_string(),
        },
        code: Code::Unavailable,
    }
}
