//! Verdicts: what both views together say of a call, an entry or a gap.
//!
//! Owns the judgement, and is the only stage that judges: [`judge`] walks the rules in their order for calls, [`unpaired`] for
//! entries that no call stands behind. Doubt is decided here too: only gaps at an end that counts, and not of the agent's own
//! making, can turn another verdict into `undecided`.

mod difference;
pub mod doubt;
pub mod evasion;
pub mod judge;
mod proxied;
pub mod receivers;
pub mod transcript;
pub mod unpaired;

use crate::call::scene::Scene;
use crate::call::{Call, Hops, Passage};
use crate::evidence::Placed;
use crate::pairing::LogEntry;
use crate::pairing::assign::Assignment;
use crate::pairing::statement::{EntryIx, Statement, ThirdView};
use crate::process::{FileId, ProcessIx, ProcessTable};
use crate::proxylog::{Key, Redaction, SignatureState, signature};
use crate::role::{Instance, InstanceIx, Roles};
use crate::time::{BootNs, Clock};

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// A named gap or ambiguity could change what else would be said.
    Undecided,
    /// A direct channel that the operator allowed.
    Allowed,
    /// The receiver got it past the proxy.
    Bypassed,
    /// Log, signature or legs say different things.
    Altered,
    /// Refused by the proxy, logged so, not forwarded.
    Blocked,
    /// One entry tells the same story.
    Matched,
    /// It went through the proxy and the log does not have it.
    Unlogged,
    /// The entry repeats an earlier one.
    Replayed,
    /// The entry is not the proxy's.
    Forged,
    /// The entry tells of something that was not seen.
    Unobserved,
    /// The entry is from a time or instance that was not covered.
    Outside,
    /// JSON-RPC that is not MCP, or the proxy's own.
    OutOfScope,
}

impl Verdict {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Allowed => "allowed",
            Self::Bypassed => "bypassed",
            Self::Altered => "altered",
            Self::Blocked => "blocked",
            Self::Matched => "matched",
            Self::Unlogged => "unlogged",
            Self::Replayed => "replayed",
            Self::Forged => "forged",
            Self::Unobserved => "unobserved",
            Self::Outside => "outside",
            Self::OutOfScope => "out_of_scope",
        }
    }
}

/// How a call got past the proxy, or how it travelled at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// Through the proxy.
    Proxy,
    /// To a server that the agent's own tree runs, over a private channel.
    OwnServer,
    /// Over a socket or FIFO that was connected or opened.
    DirectConnect,
    /// Written into the proxy's channel by somebody else.
    ForeignWriter,
    /// Over a descriptor that was handed over or taken.
    HandedOver,
}

impl Via {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::OwnServer => "own_server",
            Self::DirectConnect => "direct_connect",
            Self::ForeignWriter => "foreign_writer",
            Self::HandedOver => "handed_over",
        }
    }
}

/// Who could have read the signing key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyReach {
    /// The agent.
    Agent,
    /// The MCP server.
    Server,
    /// Somebody else.
    Other,
    /// Nobody that is known.
    NoneKnown,
}

impl KeyReach {
    /// Name as stored in the evidence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Other => "other",
            Self::NoneKnown => "none_known",
        }
    }
}

/// Name of a signature state as stored in the evidence.
pub fn signature_str(state: SignatureState) -> &'static str {
    match state {
        SignatureState::ValidDisk => "valid_disk",
        SignatureState::ValidWire => "valid_wire",
        SignatureState::Recovered => "recovered",
        SignatureState::Bad => "bad",
        SignatureState::Absent => "absent",
        SignatureState::NoKey => "no_key",
    }
}

/// What a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A call, by index.
    Call(usize),
    /// An entry.
    Entry(EntryIx),
    /// Both together.
    CallAndEntry(usize, EntryIx),
    /// A gap, by index into the list of gaps.
    Gap(usize),
}

/// One verdict with all that it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What it is about.
    pub subject: Subject,
    /// The outcome.
    pub verdict: Verdict,
    /// Why, in one word.
    pub reason: Option<&'static str>,
    /// The way past the proxy.
    pub via: Option<Via>,
    /// State of the entry's signature.
    pub signature: Option<SignatureState>,
    /// Who could have read the key.
    pub key_reach: Option<KeyReach>,
    /// What the legs tell of each other.
    pub hops: Option<Hops>,
    /// What agreed.
    pub basis: Vec<&'static str>,
    /// What differs.
    pub field: Option<&'static str>,
    /// Where in it.
    pub pointer: Option<String>,
    /// Which side differs.
    pub side: Option<&'static str>,
    /// A known silence that would explain a missing entry, and whether the agent could have provoked it.
    pub expected: Option<(&'static str, bool)>,
    /// It could change places with another of its group.
    pub interchangeable: bool,
    /// Size of the group of equals.
    pub group_size: u32,
    /// Statements that would fit as well.
    pub candidates: Vec<EntryIx>,
    /// The gap that is behind an `undecided`.
    pub gap: Option<usize>,
    /// What raises or lowers the trust.
    pub confidence: Vec<&'static str>,
    /// The proxy at stake, by index.
    pub proxy: Option<usize>,
    /// Third view of the entry.
    pub third_view: Option<ThirdView>,
}

impl Judgement {
    fn new(subject: Subject, verdict: Verdict) -> Self {
        Self {
            subject,
            verdict,
            reason: None,
            via: None,
            signature: None,
            key_reach: None,
            hops: None,
            basis: Vec::new(),
            field: None,
            pointer: None,
            side: None,
            expected: None,
            interchangeable: false,
            group_size: 1,
            candidates: Vec::new(),
            gap: None,
            confidence: Vec::new(),
            proxy: None,
            third_view: None,
        }
    }

    fn undecide(&mut self, reason: &'static str, gap: Option<usize>) {
        self.verdict = Verdict::Undecided;
        self.reason = Some(reason);
        self.gap = gap;
    }

    /// The call, if the subject has one.
    pub fn call(&self) -> Option<usize> {
        match self.subject {
            Subject::Call(ix) | Subject::CallAndEntry(ix, _) => Some(ix),
            Subject::Entry(_) | Subject::Gap(_) => None,
        }
    }

    /// The entry, if the subject has one.
    pub fn entry(&self) -> Option<EntryIx> {
        match self.subject {
            Subject::Entry(ix) | Subject::CallAndEntry(_, ix) => Some(ix),
            Subject::Call(_) | Subject::Gap(_) => None,
        }
    }
}

/// What is known of a configured proxy when judging.
#[derive(Debug, Default)]
pub struct ProxyPolicy {
    /// Key of its signatures.
    pub key: Option<Key>,
    /// What it replaces before it logs.
    pub redaction: Redaction,
    /// The shell found the key where the agent can read it.
    pub key_readable_by_agent: bool,
}

/// A direct channel that the operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowDirect {
    /// Executable of the server that may be spoken to without a proxy.
    pub server: FileId,
    /// Only these methods; `None`: all.
    pub methods: Option<Vec<String>>,
    /// Why, for the evidence.
    pub reason: String,
}

/// All that a judgement can rest on.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What was seen, placed.
    pub scene: Scene<'a>,
    /// All processes.
    pub processes: &'a ProcessTable,
    /// All calls.
    pub calls: &'a [Call],
    /// All entries.
    pub entries: &'a [LogEntry],
    /// Log and third view.
    pub statements: &'a [Statement],
    /// Who pairs with whom.
    pub assignment: &'a Assignment,
    /// For each call its place in the assignment, if it can have an entry.
    pub side_of_call: &'a [Option<usize>],
    /// All gaps.
    pub gaps: &'a doubt::Gaps,
    /// Who reads behind the proxies.
    pub receivers: &'a receivers::Receivers,
    /// Configured proxies.
    pub proxies: &'a [ProxyPolicy],
    /// Who could have read the keys, by proxy instance.
    pub key_reach: &'a [KeyReach],
    /// What attempts to get round the witness mean.
    pub evasions: &'a evasion::Evasions,
    /// Allowed direct channels.
    pub allow_direct: &'a [AllowDirect],
    /// Boot clock to UTC.
    pub clock: &'a Clock,
    /// Last moment of the capture.
    pub end: BootNs,
    /// The capture ended in order: nothing that moved up to its end is missing at its end.
    pub ended_in_order: bool,
}

impl Case<'_> {
    fn policy_of(&self, instance: InstanceIx) -> Option<(usize, &ProxyPolicy)> {
        let proxy = self.scene.roles.instance(instance).proxy;
        Some((proxy, self.proxies.get(proxy)?))
    }

    /// The delivery whose bytes a passage's message is read from.
    fn placed(&self, passage: &Passage) -> Option<&Placed> {
        let sighting = passage.primary()?;
        self.scene.placed.get(sighting.placed.0 as usize)
    }

    /// Gives the statement of a paired call its place in the verdict.
    fn attach_entry(&self, ix: usize, statement: Option<usize>, judgement: &mut Judgement) {
        let Some(statement) = statement.and_then(|at| self.statements.get(at)) else {
            return;
        };
        judgement.third_view = Some(statement.third_view);
        if let Some(entry) = statement.on_disk {
            judgement.subject = Subject::CallAndEntry(ix, entry);
            let policy = self.proxies.get(statement.proxy);
            let key = policy.and_then(|policy| policy.key.as_ref());
            let entry = &self.entries[entry.0 as usize].entry;
            judgement.signature = Some(signature::verify(entry, key, None));
        }
    }

    fn key_reach(&self, instance: InstanceIx) -> KeyReach {
        let reach = self.key_reach.get(instance.0);
        reach.copied().unwrap_or(KeyReach::NoneKnown)
    }
}

/// Who could have read the signing key of each proxy instance, by its index.
pub fn key_reach(
    processes: &ProcessTable,
    roles: &Roles,
    proxies: &[ProxyPolicy],
) -> Vec<KeyReach> {
    let of = |instance: &Instance| {
        let holder = instance.process;
        let uid = processes.process(holder).uid;
        let policy = proxies.get(instance.proxy);
        let readable = policy.is_some_and(|policy| policy.key_readable_by_agent);
        let agent_uid = agent_uid(processes, holder);
        // Whoever runs under the proxy's uid can read its memory, its environment and its key file; root can read all.
        if readable || agent_uid == Some(0) || (uid.is_some() && agent_uid == uid) {
            return KeyReach::Agent;
        }
        let server_reads = processes.iter().any(|(ix, process)| {
            ix != holder
                && processes.descends_from(ix, holder)
                && (process.uid == Some(0) || (process.uid.is_some() && process.uid == uid))
        });
        if server_reads {
            KeyReach::Server
        } else {
            KeyReach::NoneKnown
        }
    };
    roles
        .instances()
        .map(|(_, instance)| of(instance))
        .collect()
}

/// Uid of the first ancestor of the proxy that was watched.
fn agent_uid(processes: &ProcessTable, proxy: ProcessIx) -> Option<u32> {
    let mut at = proxy;
    let mut uid = None;
    for _ in 0..64 {
        match processes.process(at).parent {
            Some(parent) => at = parent,
            None => break,
        }
        uid = processes.process(at).uid.or(uid);
    }
    uid
}
