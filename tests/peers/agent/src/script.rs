//! The script: which calls a seed stands for, and where between them the agent misbehaves.
//!
//! Pure: it prepares names and arguments, touches no file and sends nothing.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::seed::Seed;

/// Most calls that the script puts in flight at once.
const BURST_MAX: usize = 4;

/// One thing the agent does before it goes on to the next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Calls sent together through the proxy, all awaited.
    Through(Vec<ToolCall>),
    /// One call to a server of the agent's own.
    OwnServer(ToolCall),
    /// One call written into the proxy's pipe.
    ForeignWriter(ToolCall),
}

/// One `tools/call`.
#[derive(Debug, Clone)]
pub(crate) struct ToolCall {
    /// Unique text in the arguments.
    pub(crate) marker: String,
    /// Tool of the file system server.
    pub(crate) tool: &'static str,
    /// Its arguments.
    pub(crate) arguments: Map<String, Value>,
    /// The folder of this call alone, to be made before the call.
    pub(crate) folder: PathBuf,
}

/// The script of `seed`: `calls` calls through the proxy, one to an own server, one into the proxy's pipe.
pub(crate) fn script(seed: u64, calls: usize, sandbox: &Path) -> Vec<Step> {
    let mut draw = Seed::new(seed);
    let mut steps = Vec::new();
    let mut left = calls;
    let mut index = 0;
    while left > 0 {
        let size = if draw.below(3) == 0 {
            2 + draw.below(BURST_MAX - 1)
        } else {
            1
        }
        .min(left);
        let burst = (0..size).map(|_| {
            index += 1;
            any_call(&mut draw, seed, index, sandbox)
        });
        steps.push(Step::Through(burst.collect()));
        left -= size;
    }
    let at = draw.below(steps.len() + 1);
    index += 1;
    steps.insert(
        at,
        Step::OwnServer(any_call(&mut draw, seed, index, sandbox)),
    );
    let at = draw.below(steps.len() + 1);
    index += 1;
    steps.insert(
        at,
        Step::ForeignWriter(write_call(&marker(&mut draw, seed, index), sandbox)),
    );
    steps
}

/// The file that [`write_call`] makes the server write.
pub(crate) fn written_file(call: &ToolCall) -> PathBuf {
    call.folder.join("written.txt")
}

fn any_call(draw: &mut Seed, seed: u64, index: usize, sandbox: &Path) -> ToolCall {
    let marker = marker(draw, seed, index);
    let folder = sandbox.join(&marker);
    let at = |name: &str| folder.join(name).to_string_lossy().into_owned();
    let (tool, arguments) = match draw.below(8) {
        0 => return write_call(&marker, sandbox),
        1 => (
            "list_directory",
            json!({ "path": folder.to_string_lossy() }),
        ),
        2 => ("get_file_info", json!({ "path": at("notes.txt") })),
        3 => (
            "search_files",
            json!({ "path": folder.to_string_lossy(), "pattern": "*.txt" }),
        ),
        4 => ("create_directory", json!({ "path": at("made") })),
        5 => (
            "read_text_file",
            json!({ "path": at("there-is-no-such-file.txt") }),
        ),
        6 => (
            "read_text_file",
            json!({ "path": at("notes.txt"), "head": 1 }),
        ),
        _ => ("read_text_file", json!({ "path": at("notes.txt") })),
    };
    ToolCall {
        marker,
        tool,
        arguments: object(arguments),
        folder,
    }
}

fn write_call(marker: &str, sandbox: &Path) -> ToolCall {
    let folder = sandbox.join(marker);
    let path = folder.join("written.txt");
    let content =
        format!("{marker}: \u{fc}n\u{ef}c\u{f6}d\u{e9}, \"quotes\", <tags> & a line\nbreak\n");
    ToolCall {
        marker: marker.to_owned(),
        tool: "write_file",
        arguments: object(json!({ "path": path.to_string_lossy(), "content": content })),
        folder,
    }
}

fn marker(draw: &mut Seed, seed: u64, index: usize) -> String {
    format!("m{seed}-{index:02}-{:08x}", draw.next() >> 32)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Map::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::{Step, ToolCall, script};

    #[test]
    fn every_seed_holds_the_calls_asked_for_and_two_misdeeds() {
        for seed in 0..200 {
            let steps = script(seed, 24, Path::new("/s"));
            let calls = all(&steps);
            assert_eq!(calls.len(), 26, "seed {seed}");
            assert_eq!(
                steps
                    .iter()
                    .filter(|step| matches!(step, Step::OwnServer(_)))
                    .count(),
                1
            );
            assert_eq!(
                steps
                    .iter()
                    .filter(|step| matches!(step, Step::ForeignWriter(_)))
                    .count(),
                1
            );
        }
    }

    #[test]
    fn every_marker_occurs_in_the_arguments_of_its_call_and_in_no_other() {
        let steps = script(11, 40, Path::new("/s"));
        let calls = all(&steps);
        let markers: BTreeSet<_> = calls.iter().map(|call| call.marker.as_str()).collect();
        assert_eq!(markers.len(), calls.len());
        for call in &calls {
            let text = serde_json::Value::Object(call.arguments.clone()).to_string();
            let inside: Vec<_> = markers
                .iter()
                .filter(|marker| text.contains(**marker))
                .collect();
            assert_eq!(inside, [&call.marker.as_str()]);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_script_and_another_gives_another() {
        let text = |seed| format!("{:?}", script(seed, 24, Path::new("/s")));
        assert_eq!(text(3), text(3));
        assert_ne!(text(3), text(4));
    }

    fn all(steps: &[Step]) -> Vec<&ToolCall> {
        steps
            .iter()
            .flat_map(|step| match step {
                Step::Through(calls) => calls.iter().collect::<Vec<_>>(),
                Step::OwnServer(call) | Step::ForeignWriter(call) => vec![call],
            })
            .collect()
    }
}
