//! An agent and a server that change their own memory while the kernel copies it, and write down what was really transferred.
//!
//! `countersign-hostile agent CHANNEL WRITES READS COUNT SHAPES TRUTH -- PROGRAM…` starts a program, a proxy or a server of its
//! own, and makes calls. `countersign-hostile server READS WRITES SHAPES TRUTH` answers them. `WRITES` and `READS` are the attacks;
//! `SHAPES` is how much stands before and behind the word of a call and of an answer. A line of the truth is what was done
//! (`wrote` or `read`), the way, the number of the call, and two words: for a writer what its buffer held before and after the
//! call, for a reader what came and what its buffer held in the end. It knows nothing of the capture.
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "system calls on memory and descriptors that the program owns"
)]

mod memory;
mod message;
mod processor;
mod reader;
mod stall;
mod writer;

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    os::unix::net::UnixStream,
    process::{Command, ExitCode, Stdio},
};

use countersign_tests::hostile::{Shape, Way};
use reader::Reader;
use writer::Writer;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [
            "agent",
            channel,
            writes,
            reads,
            count,
            shapes,
            truth,
            "--",
            program @ ..,
        ] => agent(channel, [writes, reads], count, shapes, truth, program),
        ["server", reads, writes, shapes, truth] => server([reads, writes], shapes, truth),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _unheard = writeln!(io::stderr(), "countersign-hostile: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was really transferred.
struct Truth(BufWriter<File>);

impl Truth {
    fn new(path: &str) -> io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    fn tell(&mut self, what: &str, way: Way, number: usize, words: [u64; 2]) -> io::Result<()> {
        let [first, second] = words.map(|word| {
            let bytes = word.to_ne_bytes();
            let text = String::from_utf8_lossy(&bytes);
            if bytes.iter().all(u8::is_ascii_lowercase) {
                text.into_owned()
            } else {
                "-".to_owned()
            }
        });
        writeln!(self.0, "{what} {} {number} {first} {second}", way.name())
    }
}

fn agent(
    channel: &str,
    [of_writes, of_reads]: [&str; 2],
    count: &str,
    shapes: &str,
    truth: &str,
    program: &[&str],
) -> io::Result<()> {
    let count: usize = count.parse().map_err(io::Error::other)?;
    let [(its_in, mine_out), (mine_in, its_out)] = [ends(channel)?, ends(channel)?];
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(name)
        .args(arguments)
        .stdin(Stdio::from(its_in))
        .stdout(Stdio::from(its_out))
        .spawn()?;
    let mut truth = Truth::new(truth)?;
    let [call, answer] = shapes_of(shapes)?;
    let mut writer = Writer::new(mine_out.as_raw_fd(), Way::Request, call, of_writes)?;
    let mut reader = Reader::new(mine_in.as_raw_fd(), Way::Answer, answer, of_reads)?;
    for number in 1..=count {
        truth.tell("wrote", Way::Request, number, writer.send(number)?)?;
        let got = reader.receive(number)?;
        let got = got.ok_or(io::ErrorKind::UnexpectedEof)?;
        truth.tell("read", Way::Answer, number, got)?;
    }
    truth.0.flush()?;
    drop((mine_out, mine_in));
    child.wait()?;
    Ok(())
}

/// A channel: where it is read and where it is written.
fn ends(channel: &str) -> io::Result<(OwnedFd, OwnedFd)> {
    match channel {
        "pipe" => {
            let mut fds = [0; 2];
            if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).into())
        }
        "socket" => UnixStream::pair().map(|(left, right)| (left.into(), right.into())),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn server([reads, writes]: [&str; 2], shapes: &str, truth: &str) -> io::Result<()> {
    let mut truth = Truth::new(truth)?;
    let [call, answer] = shapes_of(shapes)?;
    let mut reader = Reader::new(0, Way::Request, call, reads)?;
    let mut sender = Writer::new(1, Way::Answer, answer, writes)?;
    for number in 1.. {
        let Some(got) = reader.receive(number)? else {
            break;
        };
        truth.tell("read", Way::Request, number, got)?;
        truth.tell("wrote", Way::Answer, number, sender.send(number)?)?;
    }
    truth.0.flush()
}

/// The shapes of calls and answers: four numbers.
fn shapes_of(text: &str) -> io::Result<[Shape; 2]> {
    let numbers: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    match numbers.map_err(io::Error::other)?[..] {
        [before, after, of_answer, behind] => Ok([
            Shape { before, after },
            Shape {
                before: of_answer,
                after: behind,
            },
        ]),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
