//! The assignment of statements to calls.
//!
//! Owns the order in which likeness counts: first the whole content, then the content without secrets, then the id, then the
//! method, always within the time in which the entry can have been written. Equal calls and equal statements form a group,
//! in which order of time pairs them and the surplus stays alone. O(n log n).

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::pairing::content::{Fingerprint, Fingerprints};
use crate::role::InstanceIx;

/// How long before a call's first byte an entry about it can be stamped: clock reading and rounding, nanoseconds.
pub const EARLY_NS: i64 = 2_000_000_000;

/// How long after a call's last byte an entry about it can be stamped, nanoseconds.
pub const LATE_NS: i64 = 10_000_000_000;

/// How far apart a call and a statement may be that agree in nothing but the method, nanoseconds.
pub const METHOD_ONLY_NS: u64 = 250_000_000;

/// A call as the assignment sees it.
#[derive(Clone, Debug)]
pub struct CallSide<'a> {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// The instance that it went through.
    pub instance: InstanceIx,
    /// First byte, UTC nanoseconds.
    pub from: i64,
    /// Last byte, UTC nanoseconds.
    pub to: i64,
    /// Its content.
    pub content: Fingerprints,
    /// Id as logs write it.
    pub id: Option<Cow<'a, str>>,
    /// Method.
    pub method: &'a str,
    /// Tool.
    pub tool_name: &'a str,
}

/// A statement as the assignment sees it.
#[derive(Clone, Debug)]
pub struct StatementSide<'a> {
    /// Index of the configured proxy.
    pub proxy: usize,
    /// The instance that was seen to write it.
    pub instance: Option<InstanceIx>,
    /// Its time stamp, UTC nanoseconds; `None` if unreadable.
    pub at: Option<i64>,
    /// Its content.
    pub content: Fingerprints,
    /// Id.
    pub id: Option<&'a str>,
    /// Method.
    pub method: &'a str,
    /// Tool.
    pub tool_name: &'a str,
    /// It may only pair by its whole content: nothing is known to have been written in its place.
    pub exact_only: bool,
}

/// How a pair came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Likeness {
    /// The whole content is equal.
    Full,
    /// The content is equal where secrets are replaced.
    Redacted,
    /// Id and method.
    IdAndMethod,
    /// Id.
    Id,
    /// Method and tool, at the same time.
    Method,
}

/// What the assignment says of one call or statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Index of the other side.
    pub with: usize,
    /// Why.
    pub likeness: Likeness,
    /// Size of the group of equals, 1 if alone.
    pub group: u32,
    /// It could change places with another of its group.
    pub interchangeable: bool,
}

/// The assignment.
#[derive(Debug, Default)]
pub struct Assignment {
    /// By call.
    pub of_call: Vec<Option<Pair>>,
    /// By statement.
    pub of_statement: Vec<Option<Pair>>,
    /// Size of the group that an unpaired call was the surplus of, with its equals that are paired.
    pub surplus_calls: BTreeMap<usize, u32>,
    /// Calls whose group has fewer statements than calls of several proxies' instances: which one is unlogged is open.
    pub which: BTreeMap<usize, Vec<usize>>,
}

/// Assigns statements to calls.
pub fn assign(calls: &[CallSide<'_>], statements: &[StatementSide<'_>]) -> Assignment {
    let mut out = Assignment {
        of_call: vec![None; calls.len()],
        of_statement: vec![None; statements.len()],
        ..Assignment::default()
    };
    out.by_content(calls, statements, Likeness::Full, |content| content.full);
    out.by_content(calls, statements, Likeness::Redacted, |content| {
        content.redacted
    });
    out.by_key(calls, statements, Likeness::IdAndMethod, |id, method, _| {
        id.map(|id| (id.to_owned(), method.to_owned()))
    });
    out.by_key(calls, statements, Likeness::Id, |id, _, _| {
        id.map(|id| (id.to_owned(), String::new()))
    });
    out.by_key(calls, statements, Likeness::Method, |_, method, tool| {
        Some((method.to_owned(), tool.to_owned()))
    });
    out
}

impl Assignment {
    fn by_content(
        &mut self,
        calls: &[CallSide<'_>],
        statements: &[StatementSide<'_>],
        likeness: Likeness,
        of: impl Fn(&Fingerprints) -> Fingerprint,
    ) {
        let mut groups: HashMap<(usize, Fingerprint), (Vec<usize>, Vec<usize>)> = HashMap::new();
        for (ix, call) in self.free_calls(calls) {
            groups
                .entry((call.proxy, of(&call.content)))
                .or_default()
                .0
                .push(ix);
        }
        for (ix, statement) in self.free_statements(statements) {
            if let Some(group) = groups.get_mut(&(statement.proxy, of(&statement.content))) {
                group.1.push(ix);
            }
        }
        let mut groups: Vec<_> = groups
            .into_values()
            .filter(|(_, statements)| !statements.is_empty())
            .collect();
        groups.sort_unstable();
        for (group_calls, group_statements) in groups {
            self.pair_group(calls, statements, likeness, group_calls, group_statements);
        }
    }

    fn pair_group(
        &mut self,
        calls: &[CallSide<'_>],
        statements: &[StatementSide<'_>],
        likeness: Likeness,
        mut group_calls: Vec<usize>,
        mut group_statements: Vec<usize>,
    ) {
        let size = u32::try_from(group_calls.len().max(group_statements.len())).unwrap_or(u32::MAX);
        let interchangeable = size > 1;
        group_calls.sort_by_key(|ix| (calls[*ix].to, *ix));
        group_statements.sort_by_key(|ix| (statements[*ix].at, *ix));
        let mut instances: Vec<InstanceIx> =
            group_calls.iter().map(|ix| calls[*ix].instance).collect();
        instances.sort_unstable();
        instances.dedup();
        // A statement whose writer was seen belongs to a call of that writer.
        for instance in &instances {
            let of_instance = |ix: &&usize| statements[**ix].instance == Some(*instance);
            let own: Vec<usize> = group_statements
                .iter()
                .filter(of_instance)
                .copied()
                .collect();
            let theirs: Vec<usize> = group_calls
                .iter()
                .filter(|ix| calls[**ix].instance == *instance)
                .copied()
                .collect();
            self.pair_in_order(
                calls,
                statements,
                likeness,
                &theirs,
                &own,
                (size, interchangeable),
            );
        }
        let rest: Vec<usize> = group_statements
            .iter()
            .filter(|ix| statements[**ix].instance.is_none())
            .copied()
            .collect();
        let open: Vec<usize> = group_calls
            .iter()
            .filter(|ix| self.of_call[**ix].is_none())
            .copied()
            .collect();
        let mut open_instances: Vec<InstanceIx> =
            open.iter().map(|ix| calls[*ix].instance).collect();
        open_instances.sort_unstable();
        open_instances.dedup();
        if open_instances.len() > 1 && !rest.is_empty() && rest.len() < open.len() {
            for ix in &open {
                self.which.insert(*ix, rest.clone());
            }
            return;
        }
        self.pair_in_order(
            calls,
            statements,
            likeness,
            &open,
            &rest,
            (size, interchangeable),
        );
        for ix in group_calls.iter().filter(|ix| self.of_call[**ix].is_none()) {
            self.surplus_calls.insert(*ix, size);
        }
    }

    /// Pairs two lists in order of time. Both are sorted, so one walk finds for each statement the first call that it can be
    /// about; a call whose time is over before the statement's window opens is passed for good.
    fn pair_in_order(
        &mut self,
        calls: &[CallSide<'_>],
        statements: &[StatementSide<'_>],
        likeness: Likeness,
        group_calls: &[usize],
        group_statements: &[usize],
        (group, interchangeable): (u32, bool),
    ) {
        let mut next = 0;
        for statement in group_statements {
            while let Some(call) = group_calls.get(next) {
                match fit(&calls[*call], &statements[*statement]) {
                    Fit::CallTooEarly => next += 1,
                    Fit::CallTooLate => break,
                    Fit::Fits => {
                        next += 1;
                        self.tie(*call, *statement, likeness, group, interchangeable);
                        break;
                    }
                }
            }
        }
    }

    /// Pairs what is left by a weaker key, nearest in time first.
    fn by_key(
        &mut self,
        calls: &[CallSide<'_>],
        statements: &[StatementSide<'_>],
        likeness: Likeness,
        key: impl Fn(Option<&str>, &str, &str) -> Option<(String, String)>,
    ) {
        // By proxy and key: the time and the place of each call that is left.
        let mut free: HashMap<_, BTreeSet<(i64, usize)>> = HashMap::new();
        for (ix, call) in self.free_calls(calls) {
            if let Some(key) = key(call.id.as_deref(), call.method, call.tool_name) {
                free.entry((call.proxy, key))
                    .or_default()
                    .insert((call.to, ix));
            }
        }
        let mut order: Vec<usize> = self
            .free_statements(statements)
            .filter(|(_, statement)| !statement.exact_only)
            .map(|(ix, _)| ix)
            .collect();
        order.sort_by_key(|ix| (statements[*ix].at, *ix));
        for ix in order {
            let statement = &statements[ix];
            let Some(at) = statement.at else { continue };
            let Some(key) = key(statement.id, statement.method, statement.tool_name) else {
                continue;
            };
            let Some(candidates) = free.get_mut(&(statement.proxy, key)) else {
                continue;
            };
            let before = candidates.range(..=(at, usize::MAX)).next_back().copied();
            let after = candidates.range((at, usize::MAX)..).next().copied();
            let nearest = [before, after]
                .into_iter()
                .flatten()
                .filter(|(to, call)| {
                    fit(&calls[*call], statement) == Fit::Fits
                        && (likeness != Likeness::Method || to.abs_diff(at) <= METHOD_ONLY_NS)
                })
                .min_by_key(|(to, call)| (to.abs_diff(at), *call));
            if let Some(found) = nearest {
                candidates.remove(&found);
                self.tie(found.1, ix, likeness, 1, false);
            }
        }
    }

    fn tie(
        &mut self,
        call: usize,
        statement: usize,
        likeness: Likeness,
        group: u32,
        interchangeable: bool,
    ) {
        self.of_call[call] = Some(Pair {
            with: statement,
            likeness,
            group,
            interchangeable,
        });
        self.of_statement[statement] = Some(Pair {
            with: call,
            likeness,
            group,
            interchangeable,
        });
    }

    fn free_calls<'a>(
        &'a self,
        calls: &'a [CallSide<'a>],
    ) -> impl Iterator<Item = (usize, &'a CallSide<'a>)> {
        calls
            .iter()
            .enumerate()
            .filter(|(ix, _)| self.of_call[*ix].is_none() && !self.which.contains_key(ix))
    }

    fn free_statements<'a>(
        &'a self,
        statements: &'a [StatementSide<'a>],
    ) -> impl Iterator<Item = (usize, &'a StatementSide<'a>)> {
        statements
            .iter()
            .enumerate()
            .filter(|(ix, _)| self.of_statement[*ix].is_none())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Fits,
    CallTooEarly,
    CallTooLate,
}

fn fit(call: &CallSide<'_>, statement: &StatementSide<'_>) -> Fit {
    let Some(at) = statement.at else {
        return Fit::CallTooLate;
    };
    if at > call.to.saturating_add(LATE_NS) {
        Fit::CallTooEarly
    } else if at < call.from.saturating_sub(EARLY_NS) {
        Fit::CallTooLate
    } else {
        Fit::Fits
    }
}
