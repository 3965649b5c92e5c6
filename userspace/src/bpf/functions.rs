//! Tiers K and F: which kernel functions carry transfers, and how the programs get onto them.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    sync::OnceLock,
};

use anyhow::{Context, ensure};
use aya::{
    Btf, Ebpf,
    programs::{FEntry, FExit, KProbe, links::FdLink},
};
use countersign_common::{
    channel_kind,
    load::{CARRIED_KINDS, Offsets, kind_bit},
};

mod pinned;

use super::{
    capture::ProgramLedger,
    kprobe::{KprobeEvent, Side, Tracefs},
    offsets::missing_for_functions,
    pin::PinDir,
    tier::Tier,
};

/// Where the kernel tells addresses.
const KALLSYMS: &str = "/proc/kallsyms";

/// What a new task runs first. From Linux 7.0 on the program at fork can be skipped like any other tracepoint's; on a trace event it knows a number only.
const FIRST_STEP: &str = "schedule_tail";
const NOT_THERE: &str = "the kernel has no such function to probe, or several";

/// A kernel function that moves bytes.
struct Function {
    /// Its names, the newest first: presence is asked for, never a version. The first is also that of the tier F programs, less `anon_`.
    names: &'static [&'static str],
    /// The programs of tier K, less the side.
    shape: &'static str,
    /// What goes through it.
    covers: &'static str,
    /// The channel kinds of that, a [`kind_bit`] each.
    kinds: u32,
    /// Whether a tier without it is none.
    required: bool,
}

const PIPES: u32 = kind_bit(channel_kind::PIPE) | kind_bit(channel_kind::FIFO);
const DATAGRAMS: u32 = kind_bit(channel_kind::UNIX_DGRAM) | kind_bit(channel_kind::UNIX_SEQPACKET);

const FUNCTIONS: [Function; 13] = [
    Function {
        names: &["anon_pipe_read", "pipe_read"],
        shape: "k_file_read",
        covers: "pipes and FIFOs, read",
        kinds: PIPES,
        required: true,
    },
    Function {
        names: &["anon_pipe_write", "pipe_write"],
        shape: "k_file_write",
        covers: "pipes and FIFOs, written",
        kinds: PIPES,
        required: true,
    },
    // The families' own functions and not `sock_recvmsg`, which the second message of a `recvmmsg` and those after it pass by.
    Function {
        names: &["unix_stream_recvmsg"],
        shape: "k_receive",
        covers: "unix stream sockets, read",
        kinds: kind_bit(channel_kind::UNIX_STREAM),
        required: true,
    },
    Function {
        names: &["unix_stream_sendmsg"],
        shape: "k_send",
        covers: "unix stream sockets, written",
        kinds: kind_bit(channel_kind::UNIX_STREAM),
        required: true,
    },
    Function {
        names: &["unix_dgram_recvmsg"],
        shape: "k_receive",
        covers: "unix datagram sockets, read",
        kinds: kind_bit(channel_kind::UNIX_DGRAM),
        required: false,
    },
    // It calls the one above, which compilers put in here: then no probe sees it called.
    Function {
        names: &["unix_seqpacket_recvmsg"],
        shape: "k_receive_seqpacket",
        covers: "unix seqpacket sockets, read",
        kinds: kind_bit(channel_kind::UNIX_SEQPACKET),
        required: false,
    },
    Function {
        names: &["unix_dgram_sendmsg"],
        shape: "k_send",
        covers: "unix datagram and seqpacket sockets, written",
        kinds: DATAGRAMS,
        required: false,
    },
    Function {
        names: &["inet_recvmsg"],
        shape: "k_receive",
        covers: "TCP over IPv4, read",
        kinds: kind_bit(channel_kind::TCP),
        required: false,
    },
    Function {
        names: &["inet6_recvmsg"],
        shape: "k_receive",
        covers: "TCP over IPv6, read",
        kinds: kind_bit(channel_kind::TCP),
        required: false,
    },
    // Not `tcp_sendmsg`, which takes a `struct sock`.
    Function {
        names: &["inet_sendmsg"],
        shape: "k_send",
        covers: "TCP over IPv4, written",
        kinds: kind_bit(channel_kind::TCP),
        required: false,
    },
    Function {
        names: &["inet6_sendmsg"],
        shape: "k_send",
        covers: "TCP over IPv6, written",
        kinds: kind_bit(channel_kind::TCP),
        required: false,
    },
    Function {
        names: &["tty_read"],
        shape: "k_file_read",
        covers: "terminals, read",
        kinds: kind_bit(channel_kind::TTY),
        required: false,
    },
    Function {
        names: &["tty_write"],
        shape: "k_file_write",
        covers: "terminals, written",
        kinds: kind_bit(channel_kind::TTY),
        required: false,
    },
];

/// Whether a function is watched, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FunctionStatus {
    /// The kernel's name of it.
    pub function: String,
    /// What goes through it.
    pub covers: &'static str,
    /// Whether its entry and its return have programs.
    pub attached: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The programs on functions. Dropping it removes the kprobe events; the trampolines go with the programs.
#[derive(Debug, Default)]
pub(super) struct Functions {
    status: Vec<FunctionStatus>,
    events: Vec<KprobeEvent>,
    programs: Vec<(String, OwnedFd)>,
    /// Where programs and links are kept for a later process.
    pin: Option<PinDir>,
}

/// Addresses of the kernel's variables that say where its linear mapping and its `struct page`s begin; 0 where they are hidden. An
/// operation on pages is a gap then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinearMap {
    pub(super) page_offset_base: u64,
    pub(super) vmemmap_base: u64,
}

/// The channel kinds all of whose functions the running kernel lists once, a [`kind_bit`] each: what tier T leaves to programs on functions.
/// A function that every tier on functions needs is taken to be there: without it there is none.
pub(super) fn carried_kinds() -> u32 {
    static FOUND: OnceLock<u32> = OnceLock::new();
    *FOUND.get_or_init(|| kinds_from_kallsyms(&fs::read_to_string(KALLSYMS).unwrap_or_default()))
}

fn kinds_from_kallsyms(text: &str) -> u32 {
    let mut times = [0_u32; FUNCTIONS.len()];
    for name in text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
    {
        for (function, times) in FUNCTIONS.iter().zip(&mut times) {
            *times += u32::from(function.names.contains(&name));
        }
    }
    FUNCTIONS
        .iter()
        .zip(times)
        .filter(|(function, times)| !function.required && *times != 1)
        .fold(CARRIED_KINDS, |kinds, (function, _)| {
            kinds & !function.kinds
        })
}

impl LinearMap {
    /// Read once: the addresses stay as long as the kernel runs, and to list them all takes tens of milliseconds.
    pub(super) fn of_running_kernel() -> Self {
        static FOUND: OnceLock<LinearMap> = OnceLock::new();
        *FOUND
            .get_or_init(|| Self::from_kallsyms(&fs::read_to_string(KALLSYMS).unwrap_or_default()))
    }

    fn from_kallsyms(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let (Some(address), Some(_), Some(name), None) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let place = match name {
                "page_offset_base" => &mut found.page_offset_base,
                "vmemmap_base" => &mut found.vmemmap_base,
                _ => continue,
            };
            *place = u64::from_str_radix(address, 16).unwrap_or(0);
        }
        found
    }
}

impl Functions {
    /// Loads and attaches the programs of a tier; none for tier T.
    pub(super) fn attach(
        tier: Tier,
        ebpf: &mut Ebpf,
        btf: &Btf,
        offsets: &Offsets,
        pin: Option<&PinDir>,
    ) -> anyhow::Result<Self> {
        let mut functions = Self {
            pin: pin.cloned(),
            ..Self::default()
        };
        if tier == Tier::Tracepoints {
            return Ok(functions);
        }
        if let Some(member) = missing_for_functions(offsets) {
            anyhow::bail!("the kernel's btf has no {member}");
        }
        if tier == Tier::Kprobes {
            functions.kprobes(ebpf)?;
        } else {
            functions.trampolines(ebpf, btf)?;
        }
        Ok(functions)
    }

    fn note_first_step(&mut self, attached: bool) {
        self.status.push(FunctionStatus {
            function: FIRST_STEP.to_owned(),
            covers: "processes that were not tagged when they were forked",
            attached,
            why: (!attached).then(|| NOT_THERE.to_owned()),
        });
    }

    fn kprobes(&mut self, ebpf: &mut Ebpf) -> anyhow::Result<()> {
        let tracefs = Tracefs::open()?;
        let first_step = self.kprobe(ebpf, &tracefs, FIRST_STEP, "k_first_step", Side::Entry)?;
        self.note_first_step(first_step.is_some());
        self.events.extend(first_step);
        for function in &FUNCTIONS {
            let mut found = None;
            for name in function.names {
                // The return first: what is attached half-way sees no entry and does nothing.
                let exit = format!("{}_exit", function.shape);
                let enter = format!("{}_enter", function.shape);
                let exit = self.kprobe(ebpf, &tracefs, name, &exit, Side::Return)?;
                let enter = self.kprobe(ebpf, &tracefs, name, &enter, Side::Entry)?;
                if let (Some(exit), Some(enter)) = (exit, enter) {
                    self.events.extend([exit, enter]);
                    found = Some(*name);
                    break;
                }
            }
            self.note(function, found, NOT_THERE)?;
        }
        Ok(())
    }

    fn kprobe(
        &mut self,
        ebpf: &mut Ebpf,
        tracefs: &Tracefs,
        function: &str,
        program_name: &str,
        side: Side,
    ) -> anyhow::Result<Option<KprobeEvent>> {
        let program: &mut KProbe = ebpf
            .program_mut(program_name)
            .with_context(|| format!("the object has no program {program_name}"))?
            .try_into()?;
        if !self.programs.iter().any(|(name, _)| name == program_name) {
            program
                .load()
                .with_context(|| format!("load the program {program_name}"))?;
            let fd = program.fd()?.as_fd().try_clone_to_owned()?;
            if let Some(dir) = &self.pin {
                dir.pin_program(program_name, &fd)?;
            }
            self.programs.push((program_name.to_owned(), fd));
        }
        let mut event = tracefs.attach(function, side, program.fd()?.as_fd())?;
        if let (Some(dir), Some(event)) = (&self.pin, &mut event) {
            event.pin(dir)?;
        }
        Ok(event)
    }

    fn trampolines(&mut self, ebpf: &mut Ebpf, btf: &Btf) -> anyhow::Result<()> {
        for function in &FUNCTIONS {
            let mut found = None;
            let mut why = Vec::new();
            for name in function.names {
                match self.trampoline(ebpf, btf, function, name) {
                    Ok(()) => {
                        found = Some(*name);
                        break;
                    }
                    Err(error) => why.push(format!("{error:#}")),
                }
            }
            self.note(function, found, &why.join("; "))?;
        }
        Ok(())
    }

    fn trampoline(
        &mut self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        function: &Function,
        name: &str,
    ) -> anyhow::Result<()> {
        let stem = function.names.first().copied().unwrap_or(name);
        let stem = stem.strip_prefix("anon_").unwrap_or(stem);
        let label = format!("f_{stem}_exit");
        let program: &mut FExit = ebpf
            .program_mut(&label)
            .with_context(|| format!("the object has no program {label}"))?
            .try_into()?;
        program.load(name, btf).context("load the program")?;
        let link = program.attach().context("attach to the return")?;
        let exit = program.fd()?.as_fd().try_clone_to_owned()?;
        if let Some(dir) = &self.pin {
            let label = format!("fexit:{name}");
            dir.pin_program(&label, &exit)?;
            dir.pin_link(&label, FdLink::from(program.take_link(link)?))?;
        }
        let label = format!("f_{stem}_enter");
        let program: &mut FEntry = ebpf
            .program_mut(&label)
            .with_context(|| format!("the object has no program {label}"))?
            .try_into()?;
        program.load(name, btf).context("load the program")?;
        let link = program.attach().context("attach to the entry")?;
        let enter = program.fd()?.as_fd().try_clone_to_owned()?;
        if let Some(dir) = &self.pin {
            let label = format!("fentry:{name}");
            dir.pin_program(&label, &enter)?;
            dir.pin_link(&label, FdLink::from(program.take_link(link)?))?;
        }
        self.programs.push((format!("fexit:{name}"), exit));
        self.programs.push((format!("fentry:{name}"), enter));
        Ok(())
    }

    fn note(&mut self, function: &Function, found: Option<&str>, why: &str) -> anyhow::Result<()> {
        let name = found.or_else(|| function.names.first().copied());
        let name = name.unwrap_or_default();
        ensure!(
            found.is_some() || carried_kinds() & function.kinds == 0,
            "{name} cannot be watched: {why}"
        );
        self.status.push(FunctionStatus {
            function: name.to_owned(),
            covers: function.covers,
            attached: found.is_some(),
            why: found.is_none().then(|| why.to_owned()),
        });
        Ok(())
    }

    /// Takes the programs, under the names that they have in the ledger.
    pub(super) fn take_programs(&mut self) -> Vec<(String, OwnedFd)> {
        std::mem::take(&mut self.programs)
    }

    pub(super) fn status(&self) -> &[FunctionStatus] {
        &self.status
    }

    /// What the kernel counted on the kprobe events.
    pub(super) fn ledger(&self) -> Vec<ProgramLedger> {
        let Some(first) = self.events.first() else {
            return Vec::new();
        };
        let profile = first.profile();
        let lines = self.events.iter().map(|event| {
            // An event that is not in the list sees nothing, which no number says.
            let counts = profile.as_ref().ok().and_then(|text| event.counts(text));
            let (hits, missed) = counts.unwrap_or((0, i64::MAX.cast_unsigned()));
            ProgramLedger {
                name: event.label(),
                recursion_misses: missed,
                run_count: hits,
                run_time_ns: 0,
            }
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_left_to_functions_when_each_of_its_functions_is_listed_once() {
        let all: String = FUNCTIONS
            .iter()
            .filter_map(|function| function.names.first())
            .fold(String::new(), |all, name| {
                all + "0000000000000000 t " + name + "\n"
            });
        assert_eq!(kinds_from_kallsyms(&all), CARRIED_KINDS);
        let less = all.replace("t inet_sendmsg\n", "t inet_sendmsg.isra.0\n");
        let without_tcp = CARRIED_KINDS & !kind_bit(channel_kind::TCP);
        assert_eq!(kinds_from_kallsyms(&less), without_tcp);
        let twice = all.clone() + "0000000000000000 t tty_read\t[other]\n";
        let without_terminals = CARRIED_KINDS & !kind_bit(channel_kind::TTY);
        assert_eq!(kinds_from_kallsyms(&twice), without_terminals);
        let required = PIPES | kind_bit(channel_kind::UNIX_STREAM);
        assert_eq!(kinds_from_kallsyms(""), required);
    }

    #[test]
    fn variables_of_the_linear_mapping_are_found_unless_hidden() {
        let text = "ffffffff81000000 T _text\nffffffff82a00010 D page_offset_base\n\
                    ffffffff82a00018 D vmemmap_base\nffffffffc0000000 t vmemmap_base\t[module]\n";
        assert_eq!(
            LinearMap::from_kallsyms(text),
            LinearMap {
                page_offset_base: 0xffff_ffff_82a0_0010,
                vmemmap_base: 0xffff_ffff_82a0_0018,
            }
        );
        let hidden = "0000000000000000 D page_offset_base\n";
        assert_eq!(LinearMap::from_kallsyms(hidden), LinearMap::default());
    }
}
