//! The Parquet files, opened by `DuckDB`, Polars and Arrow as their users would.
//!
//! Needs the Python environment `tests/peers/.venv` with `tests/peers/requirements-readers.txt`. Without it the test says so
//! and passes, unless `COUNTERSIGN_REQUIRE_READERS=1` promises that it is there.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::path::{Path, PathBuf};
use std::process::Command;

use countersign::sink::RowSink;
use countersign::sink::dir::PrivateDir;
use countersign::sink::parquet::ParquetSink;
use countersign::sink::schema;
use countersign_core::row::Row;
use countersign_tests::evidence::{HOST, HOSTILE_TOOL, capture, rows};
use serde_json::json;
use tempfile::TempDir;

#[test]
fn duckdb_reads_the_evidence_and_joins_both_views() {
    check("duckdb");
}

#[test]
fn polars_reads_the_evidence_and_joins_both_views() {
    check("polars");
}

#[test]
fn pyarrow_reads_the_evidence_and_its_documentation() {
    check("pyarrow");
}

fn check(reader: &str) {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
    let Some(python) = python(&peers) else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let rows = rows();
    let mut sink = Box::new(ParquetSink::new(
        Box::new(PrivateDir(out.clone())),
        capture(),
        HOST,
    ));
    for row in &rows {
        sink.row(row.as_table_row()).unwrap();
    }
    sink.finish().unwrap();

    let counts: serde_json::Map<_, _> = Row::TABLES
        .iter()
        .map(|table| {
            let count = rows
                .iter()
                .filter(|row| row.as_table_row().table().name == table.name)
                .count();
            (table.name.to_owned(), count.into())
        })
        .collect();
    let expected = json!({
        "schema": serde_json::from_str::<serde_json::Value>(&schema::json()).unwrap(),
        "counts": counts,
        "host": HOST,
        "capture_id": capture().to_string(),
        "hostile_tool": HOSTILE_TOOL,
        "first_ns": 1_795_219_199_000_000_001_i64,
    });
    let expectation = dir.path().join("expected.json");
    std::fs::write(&expectation, expected.to_string()).unwrap();

    let run = Command::new(python)
        .arg(peers.join("readers.py"))
        .args([Path::new(reader), &out, &expectation])
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{reader} disagrees:\n{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

fn python(peers: &Path) -> Option<PathBuf> {
    let python = peers.join(".venv/bin/python");
    if python.exists() {
        return Some(python);
    }
    assert!(
        std::env::var_os("COUNTERSIGN_REQUIRE_READERS").is_none_or(|value| value != "1"),
        "{} is missing: run `cargo xtask setup`",
        python.display()
    );
    // Not `eprintln!`: the test runner keeps what a passing test prints that way to itself.
    let _unheard = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!(
            "skipped: {} is missing, `cargo xtask setup` makes it\n",
            python.display()
        )
        .as_bytes(),
    );
    None
}
