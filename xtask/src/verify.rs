//! Holds the verdicts against the plan: the two were made from opposite sides and must agree to the last call.
//!
//! Pure: takes the plan and the rows, gives the differences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::tamper::Tampered;

/// Version of the plan's format that this reads.
const PLAN_VERSION: u64 = 1;

/// What every call of a run must be judged as.
#[derive(Debug, Clone)]
pub(crate) struct Expectation {
    /// By the name of the call: its marker, else method and id.
    verdicts: BTreeMap<String, String>,
    markers: Vec<String>,
    /// Marker by method and id, for views that leave the parameters out.
    aliases: BTreeMap<String, String>,
    /// Answers to calls that the proxy never saw. It logs them on their own, truthfully: they are matched where they have a
    /// verdict of their own, and need not have one where they share that of the call.
    stray_answers: BTreeSet<String>,
}

/// Method under which `countersign proxy` logs an answer to nothing it has forwarded.
const STRAY_ANSWER: &str = "countersign/unmatched_response";

/// One row of the evidence's verdicts, joined with the parameters of its call or entry.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The verdict.
    pub(crate) verdict: String,
    /// How a bypass was made.
    pub(crate) via: Option<String>,
    /// The method.
    pub(crate) method: Option<String>,
    /// The request's id.
    pub(crate) request_id: Option<String>,
    /// The parameters as text; empty in a view that leaves them out.
    pub(crate) params: String,
}

impl Expectation {
    /// Reads the demo agent's plan.
    ///
    /// # Errors
    /// It is not a plan of this version, or two calls have the same name.
    pub(crate) fn from_plan(text: &str) -> anyhow::Result<Self> {
        let plan: Value = serde_json::from_str(text).context("the plan is not JSON")?;
        ensure!(
            plan["version"].as_u64() == Some(PLAN_VERSION),
            "the plan has another version"
        );
        let mut verdicts = BTreeMap::new();
        let mut markers = Vec::new();
        let mut aliases = BTreeMap::new();
        let mut stray_answers = BTreeSet::new();
        for call in plan["calls"].as_array().context("the plan has no calls")? {
            let text = |key: &str| call[key].as_str();
            let expected = text("expected").context("a call of the plan has no expectation")?;
            let verdict = describe(
                expected,
                (expected == "bypassed").then(|| text("via")).flatten(),
            );
            if text("via") == Some("foreign_writer") {
                stray_answers.insert(unmarked(Some(STRAY_ANSWER), text("id")));
            }
            let name = if let Some(marker) = text("marker") {
                markers.push(marker.to_owned());
                let alias = unmarked(text("method"), text("id"));
                aliases.insert(alias, marker.to_owned());
                marker.to_owned()
            } else {
                unmarked(text("method"), text("id"))
            };
            ensure!(
                verdicts.insert(name.clone(), verdict).is_none(),
                "the plan has {name} twice"
            );
        }
        Ok(Self {
            verdicts,
            markers,
            aliases,
            stray_answers,
        })
    }

    /// The markers of the calls that the log holds.
    pub(crate) fn logged(&self) -> Vec<String> {
        let is_logged = |marker: &&String| {
            self.verdicts
                .get(*marker)
                .is_some_and(|verdict| verdict == "matched")
        };
        self.markers.iter().filter(is_logged).cloned().collect()
    }

    /// The same calls after the log was tampered with.
    pub(crate) fn after(mut self, tampered: &Tampered) -> Self {
        self.verdicts
            .insert(tampered.edited.clone(), "altered".to_owned());
        self.verdicts
            .insert(tampered.deleted.clone(), "unlogged".to_owned());
        self.verdicts
            .insert(tampered.invented.clone(), "forged".to_owned());
        self.markers.push(tampered.invented.clone());
        let alias = unmarked(Some("tools/call"), Some(&tampered.invented_id));
        self.aliases.insert(alias, tampered.invented.clone());
        self
    }

    /// Compares; the error lists every difference.
    ///
    /// # Errors
    /// A call has another verdict, none or several, or there is a verdict for a call that was not made.
    pub(crate) fn check(&self, judged: &[Judged]) -> anyhow::Result<()> {
        let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let names: Vec<String> = judged.iter().map(|row| self.name(row)).collect();
        for (name, row) in names.iter().zip(judged) {
            found
                .entry(name)
                .or_default()
                .push(describe(&row.verdict, row.via.as_deref()));
        }
        let mut differences = String::new();
        for (name, expected) in &self.verdicts {
            let got = found.remove(name.as_str()).unwrap_or_default();
            if got.as_slice() != std::slice::from_ref(expected) {
                let got = if got.is_empty() {
                    "nothing".to_owned()
                } else {
                    got.join(" and ")
                };
                writeln!(differences, "  {name}: planned {expected}, judged {got}")?;
            }
        }
        for (name, got) in found {
            if self.stray_answers.contains(name) && got == ["matched"] {
                continue;
            }
            writeln!(
                differences,
                "  {name}: not planned, judged {}",
                got.join(" and ")
            )?;
        }
        ensure!(
            differences.is_empty(),
            "the verdicts differ from the plan:\n{differences}"
        );
        Ok(())
    }

    /// How many calls end in which verdict, for people.
    pub(crate) fn summary(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for verdict in self.verdicts.values() {
            *counts.entry(verdict).or_default() += 1;
        }
        counts
            .iter()
            .map(|(verdict, count)| format!("{count} {verdict}"))
            .collect::<Vec<_>>()
            .join(", ")
    }

    fn name(&self, row: &Judged) -> String {
        let is_inside = |marker: &&String| row.params.contains(marker.as_str());
        if let Some(marker) = self.markers.iter().find(is_inside) {
            return marker.clone();
        }
        let name = unmarked(row.method.as_deref(), row.request_id.as_deref());
        self.aliases.get(&name).cloned().unwrap_or(name)
    }
}

fn describe(verdict: &str, via: Option<&str>) -> String {
    via.map_or_else(|| verdict.to_owned(), |via| format!("{verdict} via {via}"))
}

fn unmarked(method: Option<&str>, id: Option<&str>) -> String {
    let method = method.unwrap_or("?");
    id.map_or_else(
        || method.to_owned(),
        |id| format!("{method} #{}", id.trim_matches('"')),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::{Expectation, Judged};
    use crate::tamper::Tampered;

    const PLAN: &str = r#"{"version":1,"calls":[
        {"marker":null,"method":"initialize","id":"0","via":"proxy","expected":"matched"},
        {"marker":"aa","method":"tools/call","id":"1","via":"proxy","expected":"matched"},
        {"marker":"bb","method":"tools/call","id":"2","via":"own_server","expected":"bypassed"}]}"#;

    #[test]
    fn equal_views_pass() {
        let rows = [
            row("matched", None, ""),
            row("matched", None, "/aa/"),
            row("bypassed", Some("own_server"), "/bb/"),
        ];
        Expectation::from_plan(PLAN).unwrap().check(&rows).unwrap();
    }

    #[test]
    fn a_view_without_parameters_is_matched_by_id() {
        let by_id = |verdict, via, id: &str| Judged {
            method: Some("tools/call".to_owned()),
            request_id: Some(id.to_owned()),
            ..row(verdict, via, "")
        };
        let own = Some("own_server");
        let rows = [
            row("matched", None, ""),
            by_id("matched", None, "1"),
            by_id("bypassed", own, "2"),
        ];
        Expectation::from_plan(PLAN).unwrap().check(&rows).unwrap();
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let plan = Expectation::from_plan(PLAN).unwrap();
        let rows = [
            row("matched", None, ""),
            row("matched", None, ""),
            row("unlogged", None, "/aa/"),
            row("bypassed", Some("foreign_writer"), "/bb/"),
            Judged {
                method: Some("ping".to_owned()),
                ..row("matched", None, "")
            },
        ];
        let text = plan.check(&rows).unwrap_err().to_string();
        assert!(
            text.contains("initialize #0: planned matched, judged matched and matched"),
            "{text}"
        );
        assert!(
            text.contains("aa: planned matched, judged unlogged"),
            "{text}"
        );
        assert!(
            text.contains(
                "bb: planned bypassed via own_server, judged bypassed via foreign_writer"
            ),
            "{text}"
        );
        assert!(
            text.contains("ping #0: not planned, judged matched"),
            "{text}"
        );
        assert!(
            plan.check(&[])
                .unwrap_err()
                .to_string()
                .contains("judged nothing")
        );
    }

    #[test]
    fn the_answer_to_a_call_of_a_foreign_writer_may_be_matched_and_nothing_else() {
        let plan = PLAN.replace("own_server", "foreign_writer");
        let plan = Expectation::from_plan(&plan).unwrap();
        let stray = |verdict| Judged {
            method: Some(super::STRAY_ANSWER.to_owned()),
            request_id: Some("2".to_owned()),
            ..row(verdict, None, "")
        };
        let with = |last| {
            let bypassed = row("bypassed", Some("foreign_writer"), "/bb/");
            plan.check(&[
                row("matched", None, ""),
                row("matched", None, "/aa/"),
                bypassed,
                last,
            ])
        };
        with(stray("matched")).unwrap();
        with(stray("forged")).unwrap_err();
        with(row("matched", None, "/bb/")).unwrap_err();
    }

    #[test]
    fn tampering_changes_what_is_expected() {
        let tampered = Tampered {
            log: String::new(),
            edited: "aa".to_owned(),
            deleted: "cc".to_owned(),
            invented: "dd".to_owned(),
            invented_id: "9".to_owned(),
        };
        let plan = Expectation::from_plan(PLAN).unwrap();
        assert_eq!(plan.logged(), ["aa"]);
        assert_eq!(
            plan.after(&tampered).summary(),
            "1 altered, 1 bypassed via own_server, 1 forged, 1 matched, 1 unlogged"
        );
    }

    fn row(verdict: &str, via: Option<&str>, params: &str) -> Judged {
        Judged {
            verdict: verdict.to_owned(),
            via: via.map(str::to_owned),
            method: Some("initialize".to_owned()),
            request_id: Some("0".to_owned()),
            params: params.to_owned(),
        }
    }
}
