//! `countersign doctor`: what this machine has and lacks.
//!
//! Owns the printed form. Changes nothing.

use serde_json::json;

use super::args::DoctorArgs;
use super::print;
use crate::exit::{Code, Failure};
use crate::spool::{kernel_release, machine};
use crate::witness::{Requirement, requirements, self_test};

pub(super) fn doctor(args: &DoctorArgs) -> Result<Code, Failure> {
    let mut found = requirements();
    if found.iter().all(|requirement| requirement.met) {
        found.extend(self_test(args.tier));
    }
    if args.json {
        let object = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": kernel_release(),
            "machine": machine(),
            "can_record": found.iter().all(|requirement| requirement.met),
            "requirements": found,
        });
        print(&format!("{object}\n"))?;
    } else {
        print(&text(&found))?;
    }
    // Says what a recording would: the first thing missing.
    Ok(found
        .iter()
        .find(|requirement| !requirement.met)
        .map_or(Code::Clean, |requirement| requirement.code))
}

fn text(found: &[Requirement]) -> String {
    let head = format!(
        "countersign {} on Linux {}\n",
        env!("CARGO_PKG_VERSION"),
        kernel_release()
    );
    let lines = found.iter().map(
        |Requirement {
             name, met, detail, ..
         }| {
            let mark = if *met { "ok     " } else { "missing" };
            format!("{mark}  {name}: {detail}\n")
        },
    );
    std::iter::once(head).chain(lines).collect()
}
