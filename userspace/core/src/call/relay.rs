//! Relays: processes that stand between client and proxy, or between proxy and server, and pass lines on unchanged.
//!
//! Owns the question which direct deliveries are such a hop of a message that went through the proxy. One passage through the
//! proxy excuses one delivery for each process on its way, in the order of time, and none to a process that answers by itself:
//! whoever passes a line on once and is given it twice got one past the proxy.

use std::collections::{BTreeSet, HashMap, VecDeque};

use crate::call::PlacedIx;
use crate::call::scene::{Scene, bytes, ends, frame};
use crate::message;
use crate::process::ProcessIx;
use crate::role::Leg;

/// Longest chain of relays that is followed. Stops an agent from making each pass over the deliveries find one more.
const CHAIN_MAX: usize = 8;

/// The end of a delivery that another one can join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Joint {
    /// This process passed the line on by writing it here: what it read before is a hop.
    PassedOnBy(ProcessIx),
    /// This process read the line here: what it writes later is a hop.
    GotBy(ProcessIx),
}

/// The direct deliveries, in order of time, that are hops of messages through a proxy.
pub(super) fn relayed(scene: Scene<'_>, direct: &[PlacedIx]) -> BTreeSet<PlacedIx> {
    let mut hops = Hops {
        open: HashMap::new(),
        relayed: BTreeSet::new(),
        towards_proxy: BTreeSet::new(),
    };
    if direct.is_empty() {
        return hops.relayed;
    }
    for (placed, ix) in scene.placed.iter().zip(0u32..) {
        let ix = PlacedIx(ix);
        let (writer, reader) = ends(scene, placed);
        match placed.leg {
            Leg::ClientToProxy(_) | Leg::ServerToProxy(_) => {
                hops.offer(scene, ix, writer.map(Joint::PassedOnBy));
            }
            Leg::ProxyToServer(_) | Leg::ProxyToClient(_) => {
                hops.offer(scene, ix, reader.map(Joint::GotBy));
            }
            Leg::ProxyFile(_) | Leg::Direct => {}
        }
    }
    if hops.open.is_empty() {
        return hops.relayed;
    }
    for _ in 0..CHAIN_MAX {
        if !hops.extend(scene, direct) {
            break;
        }
    }
    hops.without_answered(scene, direct)
}

struct Hops {
    /// What can still be joined, by content, in order of time; and whether it leads from a client to the proxy.
    open: HashMap<(u64, Joint), VecDeque<(PlacedIx, bool)>>,
    relayed: BTreeSet<PlacedIx>,
    /// Those of them that lead from a client to the proxy.
    towards_proxy: BTreeSet<PlacedIx>,
}

impl Hops {
    fn offer(&mut self, scene: Scene<'_>, ix: PlacedIx, joint: Option<Joint>) {
        let from_client = matches!(scene.placed[ix.0 as usize].leg, Leg::ClientToProxy(_));
        self.open_at(scene, ix, joint, from_client);
    }

    fn open_at(&mut self, scene: Scene<'_>, ix: PlacedIx, joint: Option<Joint>, from_client: bool) {
        if let Some(joint) = joint {
            self.open
                .entry((frame(scene, ix).hash, joint))
                .or_default()
                .push_back((ix, from_client));
        }
    }

    /// Joins what can be joined; whether anything was.
    fn extend(&mut self, scene: Scene<'_>, direct: &[PlacedIx]) -> bool {
        let mut found = Vec::new();
        for ix in direct {
            if self.relayed.contains(ix) {
                continue;
            }
            let (writer, reader) = ends(scene, &scene.placed[ix.0 as usize]);
            let before = reader.and_then(|reader| self.take(scene, *ix, Joint::PassedOnBy(reader)));
            if let Some(from_client) = before {
                found.push((*ix, writer.map(Joint::PassedOnBy), from_client));
                continue;
            }
            let after = writer.and_then(|writer| self.take(scene, *ix, Joint::GotBy(writer)));
            if after.is_some() {
                found.push((*ix, reader.map(Joint::GotBy), false));
            }
        }
        for (ix, joint, from_client) in &found {
            self.relayed.insert(*ix);
            if *from_client {
                self.towards_proxy.insert(*ix);
            }
            self.open_at(scene, *ix, *joint, *from_client);
        }
        !found.is_empty()
    }

    fn take(&mut self, scene: Scene<'_>, ix: PlacedIx, joint: Joint) -> Option<bool> {
        let text = frame(scene, ix);
        let at = &scene.placed[ix.0 as usize];
        let queue = self.open.get_mut(&(text.hash, joint))?;
        let placed = |of: PlacedIx| &scene.placed[of.0 as usize];
        match joint {
            // It must have been passed on after it was got; what was passed on earlier is of no use to later ones either.
            Joint::PassedOnBy(_) => {
                while queue
                    .front()
                    .is_some_and(|(first, _)| placed(*first).until < at.at)
                {
                    queue.pop_front();
                }
            }
            Joint::GotBy(_) => {
                if queue
                    .front()
                    .is_some_and(|(first, _)| placed(*first).at > at.until)
                {
                    return None;
                }
            }
        }
        let (first, _) = queue.front()?;
        if !frame(scene, *first).is_same_text(text) {
            return None;
        }
        queue.pop_front().map(|(_, from_client)| from_client)
    }

    /// A process that answers a request itself did more than to pass it on.
    fn without_answered(mut self, scene: Scene<'_>, direct: &[PlacedIx]) -> BTreeSet<PlacedIx> {
        if self.towards_proxy.is_empty() {
            return self.relayed;
        }
        let ids = |ix: PlacedIx, answers: bool| -> Vec<String> {
            let Ok(parsed) = message::parse(bytes(scene, ix)) else {
                return Vec::new();
            };
            let wanted = parsed
                .messages
                .into_iter()
                .filter(|message| message.kind.is_response() == answers);
            wanted.filter_map(|message| message.id).collect()
        };
        let mut answered: BTreeSet<(ProcessIx, String)> = BTreeSet::new();
        for ix in direct.iter().filter(|ix| !self.relayed.contains(ix)) {
            if let (Some(writer), _) = ends(scene, &scene.placed[ix.0 as usize]) {
                answered.extend(ids(*ix, true).into_iter().map(|id| (writer, id)));
            }
        }
        if !answered.is_empty() {
            let executed = self.towards_proxy.iter().filter(|ix| {
                let (_, reader) = ends(scene, &scene.placed[ix.0 as usize]);
                reader.is_some_and(|reader| {
                    ids(**ix, false)
                        .into_iter()
                        .any(|id| answered.contains(&(reader, id)))
                })
            });
            for ix in executed {
                self.relayed.remove(ix);
            }
        }
        self.relayed
    }
}
