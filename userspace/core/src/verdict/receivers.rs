//! Receivers: until when those to whom a proxy passes messages on lived.
//!
//! Owns the question whether a message that a proxy read could not be passed on any more, because whoever reads on the other
//! side had ended. What a proxy keeps back while its receiver lives, or passes over, is not excused by that.

use std::collections::BTreeMap;

use crate::call::passage::Passages;
use crate::call::scene::Scene;
use crate::call::{Call, Hops, Passage, PlacedIx, Route, Sighting, Way};
use crate::process::{ProcessIx, ProcessTable};
use crate::proxylog::{Entry, own};
use crate::role::{InstanceIx, Leg};
use crate::time::BootNs;

/// By how much a receiver may outlive the reading of a message that it can no longer be given, nanoseconds. More would excuse a
/// proxy that keeps messages back until the session ends.
const PASSING_ON_NS: u64 = 1_000_000_000;

/// Of each leg that a proxy writes: what is known of those who read there.
#[derive(Debug, Default)]
pub struct Receivers {
    legs: BTreeMap<Leg, Receiver>,
    children: BTreeMap<InstanceIx, Life>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Receiver {
    life: Life,
    /// Bytes that were written and never read.
    unread: bool,
    /// The last message that was passed on.
    last: Option<(PlacedIx, u32)>,
}

/// Until when the processes of a group lived.
#[derive(Clone, Copy, Debug, Default)]
struct Life {
    known: bool,
    lives: bool,
    until: BootNs,
}

impl Life {
    fn add(&mut self, exit: Option<BootNs>) {
        self.known = true;
        self.lives |= exit.is_none();
        self.until = self.until.max(exit.unwrap_or_default());
    }

    fn with(self, other: Self) -> Self {
        Self {
            known: self.known || other.known,
            lives: self.lives || other.lives,
            until: self.until.max(other.until),
        }
    }
}

impl Receivers {
    /// Looks up who reads behind each proxy.
    pub fn new(scene: Scene<'_>, processes: &ProcessTable, passages: &Passages) -> Self {
        let mut receivers = Self::default();
        let exit = |process: ProcessIx| processes.process(process).exit.map(|(at, _)| at);
        for (stream, frames) in scene.streams {
            let passes_on =
                |leg: &Leg| matches!(leg, Leg::ProxyToServer(_) | Leg::ProxyToClient(_));
            for leg in scene.roles.legs(*stream).filter(passes_on) {
                let receiver = receivers.legs.entry(leg).or_default();
                for (process, _) in &frames.readers {
                    receiver.life.add(exit(*process));
                }
                receiver.unread |= frames.bytes_written() > frames.bytes_read();
            }
        }
        for (ix, process) in processes.iter() {
            let parent = process.parent.and_then(|of| scene.roles.instance_of(of));
            if let Some(instance) = parent.filter(|_| scene.roles.instance_of(ix).is_none()) {
                let children = receivers.children.entry(instance).or_default();
                children.add(exit(ix));
            }
        }
        for passage in &passages.passages {
            let (Route::Proxy(instance), Some(sent), Some(_)) =
                (passage.route, passage.sent, passage.received)
            else {
                continue;
            };
            let last = &mut receivers
                .legs
                .entry(leg(passage.way, instance))
                .or_default()
                .last;
            *last = (*last).max(Some(place(sent)));
        }
        receivers
    }

    /// Whether nothing that the proxy read after this message was passed on that way.
    fn is_last(&self, passage: &Passage) -> bool {
        let (Route::Proxy(instance), Some(sent)) = (passage.route, passage.sent) else {
            return false;
        };
        let last = self.legs.get(&leg(passage.way, instance));
        last.and_then(|receiver| receiver.last)
            .is_none_or(|last| last < place(sent))
    }

    /// Whether what was not passed on of a call had nobody left to be passed on to.
    pub fn excuse(&self, call: &Call) -> bool {
        let of_call = [call.request.as_deref(), call.response.as_deref()];
        let missing = |passage: &&Passage| passage.hops == Hops::Missing;
        let of_server = |response: &Passage| !matches!(response.route, Route::ProxyOwn(_));
        // What the server answers it was given.
        if of_call[0].is_some_and(|request| missing(&request)) && of_call[1].is_some_and(of_server)
        {
            return false;
        }
        let mut lost = of_call.into_iter().flatten().filter(missing).peekable();
        lost.peek().is_some() && lost.all(|passage| self.ended(passage))
    }

    /// Whether Countersign's own proxy says of a request that it did not pass on, nor any after it, that it came to nothing.
    pub fn given_up(&self, call: &Call, own_proxy: bool, entry: &Entry) -> bool {
        let request = call.request.as_deref();
        own_proxy
            && call.response.is_none()
            && request.is_some_and(|request| self.is_last(request))
            && own::says_unanswered(entry.error.as_deref())
    }

    /// Whether a message that was read and not passed on had nobody left to be passed on to.
    fn ended(&self, passage: &Passage) -> bool {
        let Route::Proxy(instance) = passage.route else {
            return false;
        };
        if passage.hops != Hops::Missing || !self.is_last(passage) {
            return false;
        }
        let leg = leg(passage.way, instance);
        let receiver = self.legs.get(&leg).copied().unwrap_or_default();
        let life = match passage.way {
            // Who started the server and waits for it can hold its end, and go on with it.
            Way::ToServer => receiver
                .life
                .with(self.children.get(&instance).copied().unwrap_or_default()),
            Way::ToClient => receiver.life,
        };
        let in_time = life.until.0 <= passage.at.0.saturating_add(PASSING_ON_NS);
        // A proxy whose receiver does not read waits with what comes next.
        life.known && !life.lives && (in_time || receiver.unread)
    }
}

fn place(sighting: Sighting) -> (PlacedIx, u32) {
    (sighting.placed, sighting.element)
}

fn leg(way: Way, instance: InstanceIx) -> Leg {
    match way {
        Way::ToServer => Leg::ProxyToServer(instance),
        Way::ToClient => Leg::ProxyToClient(instance),
    }
}
