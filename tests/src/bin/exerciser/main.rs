//! Moves tokens through every kind of channel by every method that Linux has, and writes down what it did.
//!
//! `countersign-exerciser [--only METHOD] [--kind KIND[,KIND…]] [--max-size BYTES] [--list]` writes one JSON line per attempt to
//! its standard output (`countersign_tests::exercise::Truth`), which should be a file: pipes would be traffic too.
//! `countersign-exerciser --torture COUNT` makes processes instead, in every way, and each writes a line. It
//! knows nothing of the capture. It needs root for the network namespace only, and may be linked statically.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "system calls on buffers and descriptors that the caller owns"
)]

mod aio;
mod attempt;
mod carriers;
mod compat;
mod ends;
mod method;
mod plain;
mod spliced;
mod system;
mod torture;
mod uring;

use std::{io, process::ExitCode};

use attempt::attempt;
use countersign_tests::exercise::{KINDS_OF_ALL_SIZES, Outcome, SIZES, Side};
use ends::Kind;
use method::{Sizes, methods};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.first().map(String::as_str) {
        Some("--move") => carriers::moved_after_exec(&arguments[1..]),
        Some("--write") => torture::written(&arguments[1..]),
        Some("--torture") => match arguments.get(1).map(|count| count.parse()) {
            Some(Ok(count)) => torture::torture(count),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        },
        _ => exercise(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(
                &mut io::stderr(),
                &format!("countersign-exerciser: {error}"),
            );
            ExitCode::FAILURE
        }
    }
}

/// One write per line.
fn say(to: &mut impl io::Write, line: &str) {
    // Nobody could be told that nobody can be told.
    let _unheard = to.write_all(format!("{line}\n").as_bytes());
}

fn exercise(arguments: &[String]) -> io::Result<()> {
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1).cloned()
    };
    let only = value("--only");
    let only_kinds = value("--kind");
    let max_size = match value("--max-size") {
        Some(text) => text.parse().map_err(io::Error::other)?,
        None => usize::MAX,
    };
    let list = arguments.iter().any(|argument| argument == "--list");
    // A peer that closes must be an error, not our end.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    for kind in Kind::ALL {
        if only_kinds
            .as_ref()
            .is_some_and(|names| names.split(',').all(|name| name != kind.name()))
        {
            continue;
        }
        for side in [Side::Send, Side::Receive] {
            for method in methods(side) {
                if only.as_ref().is_some_and(|name| name != method.name) {
                    continue;
                }
                if list {
                    say(
                        &mut io::stdout(),
                        &format!("{} {side:?} {}", kind.name(), method.name),
                    );
                    continue;
                }
                let sizes = match method.sizes {
                    Sizes::Line => &SIZES[..1],
                    Sizes::OneCall => &SIZES[..2],
                    Sizes::All if KINDS_OF_ALL_SIZES.contains(&kind.name()) => &SIZES[..],
                    Sizes::All => &SIZES[..3],
                };
                for &size in sizes.iter().filter(|&&size| size <= max_size) {
                    let truth = attempt(kind, side, &method, size);
                    let line = serde_json::to_string(&truth).map_err(io::Error::other)?;
                    say(&mut io::stdout(), &line);
                    // What is refused is refused whatever its size.
                    if matches!(truth.outcome, Outcome::Refused { .. }) {
                        break;
                    }
                }
            }
        }
    }
    Ok(())
}
