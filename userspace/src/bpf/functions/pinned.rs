//! The programs on functions as another process has attached and pinned them: known again by the names of their links.

use anyhow::Context;

use super::{FIRST_STEP, FUNCTIONS, Functions};
use crate::bpf::{
    kprobe::{KprobeEvent, Side},
    pin::PinDir,
    tier::Tier,
};

const NOT_PINNED: &str = "the process that loaded the programs could not attach to it";

impl Functions {
    /// What another process attached and pinned.
    ///
    /// # Errors
    /// When the links cannot be listed, or one without which there is no tier is not among them.
    pub(in crate::bpf) fn pinned(tier: Tier, dir: &PinDir) -> anyhow::Result<Self> {
        let mut functions = Self::default();
        if tier == Tier::Tracepoints {
            return Ok(functions);
        }
        let links = dir.links().context("list the pinned links")?;
        functions.events = links
            .iter()
            .filter_map(|name| KprobeEvent::pinned(name))
            .collect();
        let has = |name: &str| {
            let event = |side| {
                functions
                    .events
                    .iter()
                    .any(|event| event.place() == (name, side))
            };
            let link = |prefix: &str| {
                links
                    .iter()
                    .any(|link| link.strip_prefix(prefix) == Some(name))
            };
            match tier {
                Tier::Kprobes => event(Side::Entry) && event(Side::Return),
                Tier::Tracepoints | Tier::Trampolines => link("fentry:") && link("fexit:"),
            }
        };
        let found = FUNCTIONS.map(|function| function.names.iter().copied().find(|name| has(name)));
        if tier == Tier::Kprobes {
            let first_step = functions
                .events
                .iter()
                .any(|event| event.place() == (FIRST_STEP, Side::Entry));
            functions.note_first_step(first_step);
        }
        for (function, found) in FUNCTIONS.iter().zip(found) {
            functions.note(function, found, NOT_PINNED)?;
        }
        Ok(functions)
    }

    /// Lets go of all that would keep pinned programs attached without their pins.
    pub(in crate::bpf) fn let_go(&mut self) {
        for event in &mut self.events {
            event.let_go();
        }
    }
}
