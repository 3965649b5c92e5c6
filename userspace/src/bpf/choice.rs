//! Which tier captures here: found out by trying, never from a version.

use super::{
    hook::Hook,
    preemption::Preemption,
    self_test::{SKIPPED, self_test},
    tier::Tier,
};

/// A tier, and why this one.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The chosen one; `None` when none works.
    pub tier: Option<Tier>,
    /// How its programs get onto tracepoints.
    pub hook: Hook,
    /// Whether the kernel preempts itself.
    pub preemption: Preemption,
    /// What was tried, in this order, with what was wrong.
    pub tried: Vec<(Tier, Option<String>)>,
    /// Programs of the chosen one that were skipped under stress, but carry no transfers.
    pub skipped: Vec<String>,
}

impl Choice {
    /// The first tier, best ones first, of which a token comes back. A forced one is tried alone.
    ///
    /// Where nothing is preempted, trampolines are cheapest. Where it is, they and (from Linux 7.0 on) tracepoints are skipped
    /// now and then; kprobes are not. Tracepoints work everywhere and come last. Whatever the tier, programs on tracepoints that are seen being
    /// skipped give way to programs on trace events, if those are skipped less.
    pub fn make(forced: Option<Tier>) -> Self {
        let preemption = Preemption::of_running_kernel();
        let candidates: &[Tier] = match (&forced, preemption.is_preemptible()) {
            (Some(tier), _) => std::slice::from_ref(tier),
            (None, true) => &[Tier::Kprobes, Tier::Tracepoints],
            (None, false) => &[Tier::Trampolines, Tier::Kprobes, Tier::Tracepoints],
        };
        Self::among(candidates, preemption.clone(), |tier, hook| {
            // Only what can be preempted is worth the time of a stress.
            let stress = preemption.is_preemptible();
            self_test(tier, hook, stress).map_err(|error| format!("{error:#}"))
        })
    }

    fn among(
        candidates: &[Tier],
        preemption: Preemption,
        mut test: impl FnMut(Tier, Hook) -> Result<Vec<String>, String>,
    ) -> Self {
        let mut choice = Self {
            tier: None,
            hook: Hook::default(),
            preemption,
            tried: Vec::new(),
            skipped: Vec::new(),
        };
        for tier in candidates {
            match better(|hook| test(*tier, hook)) {
                Ok((hook, skipped)) => {
                    choice.tried.push((*tier, None));
                    choice.tier = Some(*tier);
                    choice.hook = hook;
                    choice.skipped = skipped;
                    break;
                }
                Err(failure) => choice.tried.push((*tier, Some(failure))),
            }
        }
        choice
    }

    /// Why the tiers before the chosen one are not used; empty when the best one is.
    pub fn refused(&self) -> String {
        let refused = self.tried.iter().filter_map(|(tier, failure)| {
            let failure = failure.as_ref()?;
            Some(format!("tier {tier}: {failure}"))
        });
        refused.collect::<Vec<_>>().join("; ")
    }
}

/// Of both ways onto tracepoints the one that is skipped less: the second is only tried where the first one is skipped at all.
fn better(
    mut test: impl FnMut(Hook) -> Result<Vec<String>, String>,
) -> Result<(Hook, Vec<String>), String> {
    let typed = test(Hook::Typed);
    let is_skipped = match &typed {
        Ok(skipped) => !skipped.is_empty(),
        Err(failure) => failure.starts_with(SKIPPED),
    };
    if is_skipped {
        match (test(Hook::Event), &typed) {
            (Ok(less), Ok(skipped)) if less.len() >= skipped.len() => {}
            (Ok(less), _) => return Ok((Hook::Event, less)),
            (Err(error), _) => tracing::debug!(error, "no programs on trace events here"),
        }
    }
    typed.map(|skipped| (Hook::Typed, skipped))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::preemption::Mode;

    fn among(works: &[Tier]) -> Choice {
        let preemption = Preemption {
            mode: Mode::None,
            source: String::new(),
        };
        let all = [Tier::Trampolines, Tier::Kprobes, Tier::Tracepoints];
        Choice::among(&all, preemption, |tier, _| {
            works
                .contains(&tier)
                .then(Vec::new)
                .ok_or_else(|| "no".to_owned())
        })
    }

    #[test]
    fn the_first_tier_that_works_is_taken_and_the_others_give_their_reason() {
        let choice = among(&[Tier::Kprobes, Tier::Tracepoints]);
        assert_eq!(choice.tier, Some(Tier::Kprobes));
        assert_eq!(choice.refused(), "tier F (trampolines): no");
        assert_eq!(choice.tried.len(), 2);
    }

    #[test]
    fn trace_events_are_taken_only_where_tracepoints_are_skipped_more() {
        let answer = |typed: Result<&[&str], &str>, event: Result<&[&str], &str>| {
            let of = |result: Result<&[&str], &str>| match result {
                Ok(skipped) => Ok(skipped.iter().map(|&name| name.to_owned()).collect()),
                Err(failure) => Err(failure.to_owned()),
            };
            better(|hook| of(if hook == Hook::Typed { typed } else { event })).map(|(hook, _)| hook)
        };
        let two: &[&str] = &["sys_enter", "sys_exit"];
        assert_eq!(answer(Ok(&[]), Err("not tried")), Ok(Hook::Typed));
        assert_eq!(answer(Ok(two), Ok(&[])), Ok(Hook::Event));
        assert_eq!(answer(Ok(two), Ok(two)), Ok(Hook::Typed));
        assert_eq!(answer(Ok(two), Err("no tracefs")), Ok(Hook::Typed));
        assert_eq!(answer(Err(SKIPPED), Ok(&[])), Ok(Hook::Event));
        assert_eq!(answer(Err("no btf"), Ok(&[])), Err("no btf".to_owned()));
    }

    #[test]
    fn without_a_tier_that_works_there_is_none() {
        let choice = among(&[]);
        assert_eq!((choice.tier, choice.tried.len()), (None, 3));
    }
}
