//! Scripted captures and logs against the verdicts that must follow. Each scenario names everything that the core may say: a
//! verdict too many fails as one too few does.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

mod balance;
mod between;
mod contradicted;
mod counts;
mod disguise;
mod ended;
mod evasion;
mod forgery;
mod framing;
mod honest;
mod ids;
mod legs;
mod lies;
mod loss;
mod nested;
mod past;
mod sockets;
mod transcripts;
mod values;

use countersign_tests::scene::Outcome;

/// All verdicts, as text, are these, in any order.
#[track_caller]
fn expect(outcome: &Outcome, wanted: &[&str]) {
    let mut wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
    wanted.sort_unstable();
    assert_eq!(outcome.told(), wanted);
}
