//! Builds the kernel programs, and what that needs.
//!
//! Two toolchains work, both on LLVM 22: Debian's `rustc-web` with `bpf-linker` linked against `llvm-22-dev`, and rustup's
//! toolchain with the `rust-src` component and a `bpf-linker` that loads rustc's own LLVM. What is there is used; if
//! neither is, rustup is tried first and apt second.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

use crate::setup;

const TARGET: &str = "bpfel-unknown-none";
const OBJECT: &str = "countersign-ebpf";
const EMPTY: &str = "countersign-empty";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_SOURCE: &str = "/usr/lib/rustlib/src";
const DEBIAN_LLVM: &str = "/usr/lib/llvm-22";
const DEBIAN_PACKAGES: [&str; 6] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
];

/// Chooses the way by hand: `rustup` or `debian`.
const CHOICE: &str = "COUNTERSIGN_EBPF_TOOLCHAIN";

/// A compiler for kernel programs and its linker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    linker: PathBuf,
    /// Where the standard library's source lies, to be left out of the object.
    source: PathBuf,
}

/// Builds the kernel programs into `target/bpf/countersign-ebpf.o`, from where the next build of `countersign` embeds them.
///
/// # Errors
/// When the toolchain cannot be had or the build fails.
pub(crate) fn build(root: &Path) -> anyhow::Result<PathBuf> {
    // The build of `countersign` watches this folder: nothing else belongs there.
    build_object(root, OBJECT, &root.join("target/bpf"))
}

/// Builds the programs without work that the benchmarks compare with; where the object lies.
///
/// # Errors
/// As for [`build`].
pub(crate) fn build_empty(root: &Path) -> anyhow::Result<PathBuf> {
    build_object(root, EMPTY, &root.join("target/bench"))
}

fn build_object(root: &Path, name: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let toolchain = ensure_toolchain(root)?;
    let crate_dir = root.join("ebpf");
    let target_dir = crate_dir.join("target");
    let cargo_home = cargo_home()?;
    let mut command = toolchain_command(&toolchain.cargo);
    command
        .current_dir(&crate_dir)
        .args([
            "build",
            "-Zbuild-std=core",
            "--release",
            "--locked",
            "--target",
            TARGET,
        ])
        .args(["--bin", name, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            rustflags(root, &cargo_home, &toolchain),
        );
    run(&mut command, "build the kernel programs")?;

    let built = target_dir.join(TARGET).join("release").join(name);
    let object = folder.join(format!("{name}.o"));
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    ensure!(
        bytes.starts_with(b"\x7fELF"),
        "{} is not an ELF object",
        built.display()
    );
    // An unchanged object keeps its time, so that nothing is built again for it.
    if fs::read(&object).ok().as_deref() != Some(bytes.as_slice()) {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(&object, bytes).with_context(|| format!("write {}", object.display()))?;
    }
    Ok(object)
}

/// Finds a toolchain for the kernel programs, or installs one. With everything in place it starts two or three processes.
///
/// # Errors
/// When neither way works.
pub(crate) fn ensure_toolchain(root: &Path) -> anyhow::Result<Toolchain> {
    let choice = env::var(CHOICE).unwrap_or_default();
    ensure!(
        ["", "rustup", "debian"].contains(&choice.as_str()),
        "{CHOICE} is `{choice}`: use `rustup` or `debian`"
    );
    if choice != "debian"
        && let Some(source) = rustup_source(root)
    {
        return rustup(root, source);
    }
    if choice != "rustup" && debian_is_there() {
        return debian(root);
    }
    if choice != "debian"
        && Command::new("rustup")
            .current_dir(root)
            .args(["component", "add", "rust-src"])
            .status()
            .is_ok_and(|status| status.success())
        && let Some(source) = rustup_source(root)
    {
        return rustup(root, source);
    }
    ensure!(
        choice != "rustup",
        "no toolchain for kernel programs: rustup could not add rust-src, or its Rust is not on LLVM 22"
    );
    setup::install(&DEBIAN_PACKAGES)
        .context("no toolchain for kernel programs: neither rustup with rust-src nor Debian's")?;
    ensure!(
        debian_is_there(),
        "no toolchain for kernel programs: {DEBIAN_RUSTC} with LLVM 22 and its source are needed, or rust-src from rustup"
    );
    debian(root)
}

fn debian(root: &Path) -> anyhow::Result<Toolchain> {
    let arguments = ["--no-default-features", "--features", "llvm-22"];
    let linker = bpf_linker(
        root,
        "0.13.0",
        &arguments,
        Some(("LLVM_PREFIX", DEBIAN_LLVM)),
    )?;
    Ok(Toolchain {
        cargo: DEBIAN_CARGO.into(),
        rustc: DEBIAN_RUSTC.into(),
        linker,
        source: fs::canonicalize(DEBIAN_SOURCE).context("find the source of Debian's Rust")?,
    })
}

fn rustup(root: &Path, source: PathBuf) -> anyhow::Result<Toolchain> {
    let linker = bpf_linker(root, "0.10.3", &[], None)?;
    let which = |program: &str| {
        let mut command = Command::new("rustup");
        command.current_dir(root).args(["which", program]);
        output(&mut command).map(PathBuf::from)
    };
    Ok(Toolchain {
        cargo: which("cargo")?,
        rustc: which("rustc")?,
        linker,
        source,
    })
}

/// The source of the pinned rustup toolchain, if that component is installed and the compiler has LLVM 22.
fn rustup_source(root: &Path) -> Option<PathBuf> {
    let rustc =
        |arguments: &[&str]| output(toolchain_command("rustc").current_dir(root).args(arguments));
    let source = Path::new(&rustc(&["--print", "sysroot"]).ok()?).join("lib/rustlib/src/rust");
    let has_llvm = rustc(&["-vV"]).ok()?.contains("LLVM version: 22.");
    // Debian's own compiler can be the only `rustc` there is: its linker is another.
    let is_rustup = !source.starts_with("/usr/lib");
    (is_rustup && has_llvm && source.join("library/core").is_dir()).then_some(source)
}

fn debian_is_there() -> bool {
    let version = output(Command::new(DEBIAN_RUSTC).arg("-vV")).unwrap_or_default();
    version.contains("LLVM version: 22.")
        && Path::new(DEBIAN_CARGO).exists()
        && Path::new(DEBIAN_SOURCE).exists()
        && Path::new(DEBIAN_LLVM).join("include").exists()
}

/// `bpf-linker` of this version in a folder of its own under `.tools`.
fn bpf_linker(
    root: &Path,
    version: &str,
    arguments: &[&str],
    variable: Option<(&str, &str)>,
) -> anyhow::Result<PathBuf> {
    let folder = root.join(".tools").join(format!("bpf-linker-{version}"));
    let linker = folder.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    let mut command = Command::new("cargo");
    command
        .current_dir(root)
        .args(["install", "bpf-linker", "--locked", "--version", version])
        .args(arguments)
        .arg("--root")
        .arg(&folder)
        .envs(variable);
    run(&mut command, "install bpf-linker")?;
    Ok(linker)
}

fn rustflags(root: &Path, cargo_home: &Path, toolchain: &Toolchain) -> String {
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    [
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // BPF_ATOMIC with BPF_FETCH, 32-bit registers.
        "-Ctarget-cpu=v3".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        remap(root, "."),
        remap(cargo_home, "cargo"),
        remap(&toolchain.source, "rust"),
    ]
    .join("\x1f")
}

fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// A command without what the `cargo` that runs this program has put into the environment.
fn toolchain_command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in [
        "CARGO",
        "RUSTC",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(variable);
    }
    command
}

fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .with_context(|| format!("{what}: start {program}"))?;
    ensure!(status.success(), "{what}: {program} ended with {status}");
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output()?;
    if !output.status.success() {
        bail!(io::Error::other(format!(
            "{} ended with {}",
            command.get_program().to_string_lossy(),
            output.status
        )));
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
