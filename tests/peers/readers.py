"""Opens evidence with one reader and holds what it sees against what was written.

Usage: readers.py duckdb|polars|pyarrow OUT EXPECTED.json
"""

import datetime
import json
import sys

JOIN = """
SELECT v.verdict, v.via, c.tool_name AS seen, e.tool_name AS logged, e.signature_state
FROM verdicts v
LEFT JOIN calls c USING (capture_id, call_id)
LEFT JOIN entries e USING (capture_id, entry_id)
ORDER BY v.subject_utc, v.verdict
"""

UNTRUSTED_SIGHTINGS = """
SELECT v.verdict, f.hop, f.evidence_source, p.exe_path
FROM verdicts v
JOIN sightings s USING (capture_id, verdict_id)
JOIN frames f USING (capture_id, frame_id)
JOIN processes p ON p.capture_id = f.capture_id AND p.process_id = f.reader_process_id
WHERE f.untrusted_end
"""


def joined(expected):
    return [
        ("matched", None, "read_file", "read_file", "valid_disk"),
        ("matched", None, "write_file", "write_file", "valid_disk"),
        ("bypassed", "own_server", expected["hostile_tool"], None, None),
        ("forged", None, None, "delete_file", "bad"),
    ]


SIGHTED = [("bypassed", "direct_request", "reader_end", "/usr/bin/node")]
DATES = [datetime.date(2026, 11, 20), datetime.date(2026, 11, 21)]
PAYLOAD_END = b'"x":"\xff\xfe"}}'


def equal(what, seen, wanted):
    if seen != wanted:
        raise SystemExit(f"{what}:\n  seen   {seen!r}\n  wanted {wanted!r}")


def check_duckdb(out, expected):
    import duckdb

    types = {
        "ulid (text)": "VARCHAR",
        "text": "VARCHAR",
        "bytes": "BLOB",
        "bool": "BOOLEAN",
        "uint32": "UINTEGER",
        "uint64": "UBIGINT",
        "int64": "BIGINT",
        "int64 (ns)": "BIGINT",
        "timestamp (ns, UTC)": "TIMESTAMPTZ_NS",
        "list of text": "VARCHAR[]",
    }
    db = duckdb.connect()
    db.execute("SET TimeZone = 'UTC'")
    for table in expected["schema"]["tables"]:
        name = table["name"]
        db.execute(
            f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{out}/{name}/**/*.parquet', hive_partitioning = true)"
        )
        columns = [(row[0], row[1]) for row in db.execute(f"DESCRIBE {name}").fetchall()]
        equal(f"{name}: columns", [c for c, _ in columns], [c["name"] for c in table["columns"]] + ["date", "host"])
        for (column, seen), wanted in zip(columns, table["columns"]):
            equal(f"{name}.{column}: type", seen, types[wanted["type"]])
        equal(f"{name}: date is a date", dict(columns)["date"], "DATE")
        equal(f"{name}: rows", db.execute(f"SELECT count(*) FROM {name}").fetchone()[0], expected["counts"][name])
        equal(f"{name}: hosts", db.execute(f"SELECT DISTINCT host FROM {name}").fetchall(), [(expected["host"],)])
    equal("join", db.execute(JOIN).fetchall(), joined(expected))
    equal("sightings", db.execute(UNTRUSTED_SIGHTINGS).fetchall(), SIGHTED)
    equal("dates", [row[0] for row in db.execute("SELECT DISTINCT date FROM verdicts ORDER BY 1").fetchall()], DATES)
    equal(
        "the partition is that of the time",
        db.execute("SELECT count(*) FROM verdicts WHERE date <> CAST(subject_utc AS DATE)").fetchone()[0],
        0,
    )
    first = db.execute("SELECT epoch_ns(min(first_byte_utc)) FROM frames").fetchone()[0]
    equal("first nanosecond", first, expected["first_ns"])
    payload = db.execute("SELECT payload FROM frames LIMIT 1").fetchone()[0]
    equal("payload", payload[-len(PAYLOAD_END):], PAYLOAD_END)
    equal("json", db.execute("SELECT DISTINCT params->>'$.path' FROM calls").fetchall(), [("/etc/hosts",)])
    equal("inode", db.execute("SELECT DISTINCT file_inode FROM entries").fetchall(), [(2**64 - 1,)])
    equal("list", db.execute("SELECT DISTINCT basis FROM verdicts").fetchall(), [(["method", "params"],)])


def check_polars(out, expected):
    import polars as pl

    types = {
        "ulid (text)": pl.String,
        "text": pl.String,
        "bytes": pl.Binary,
        "bool": pl.Boolean,
        "uint32": pl.UInt32,
        "uint64": pl.UInt64,
        "int64": pl.Int64,
        "int64 (ns)": pl.Int64,
        "timestamp (ns, UTC)": pl.Datetime("ns", "UTC"),
        "list of text": pl.List(pl.String),
    }
    tables = {}
    for table in expected["schema"]["tables"]:
        name = table["name"]
        tables[name] = frame = pl.scan_parquet(f"{out}/{name}", hive_partitioning=True).collect()
        seen = dict(frame.schema)
        equal(f"{name}: date is a date", seen.pop("date"), pl.Date)
        equal(f"{name}: host is text", seen.pop("host"), pl.String)
        equal(f"{name}: columns", seen, {c["name"]: types[c["type"]] for c in table["columns"]})
        equal(f"{name}: rows", frame.height, expected["counts"][name])
    context = pl.SQLContext(frames=tables)
    equal("join", context.execute(JOIN, eager=True).rows(), joined(expected))
    first = tables["frames"].select(pl.col("first_byte_utc").min().dt.epoch("ns")).item()
    equal("first nanosecond", first, expected["first_ns"])
    equal("dates", tables["verdicts"]["date"].unique().sort().to_list(), DATES)
    payload = tables["frames"]["payload"][0]
    equal("payload", payload[-len(PAYLOAD_END):], PAYLOAD_END)


def check_pyarrow(out, expected):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    types = {
        "ulid (text)": pa.string(),
        "text": pa.string(),
        "bytes": pa.binary(),
        "bool": pa.bool_(),
        "uint32": pa.uint32(),
        "uint64": pa.uint64(),
        "int64": pa.int64(),
        "int64 (ns)": pa.int64(),
        "timestamp (ns, UTC)": pa.timestamp("ns", "UTC"),
        "list of text": pa.list_(pa.field("element", pa.string(), nullable=False)),
    }
    partitioning = ds.partitioning(pa.schema([("date", pa.date32()), ("host", pa.string())]), flavor="hive")
    tables = {}
    for table in expected["schema"]["tables"]:
        name = table["name"]
        dataset = ds.dataset(f"{out}/{name}", format="parquet", partitioning=partitioning)
        tables[name] = dataset.to_table()
        for column in table["columns"]:
            field = dataset.schema.field(column["name"])
            equal(f"{name}.{field.name}: type", field.type, types[column["type"]])
            equal(f"{name}.{field.name}: nullable", field.nullable, column["nullable"])
            equal(f"{name}.{field.name}: docs", field.metadata[b"description"].decode(), column["description"])
            equal(f"{name}.{field.name}: mark", b"sensitive" in field.metadata, column["sensitive"])
        equal(f"{name}: rows", tables[name].num_rows, expected["counts"][name])
        for fragment in dataset.get_fragments():
            metadata = fragment.metadata
            equal("writer", metadata.created_by.split(" version ")[0], "countersign")
            equal("capture", metadata.metadata[b"countersign.capture_id"].decode(), expected["capture_id"])
            if metadata.num_row_groups < 1 or metadata.row_group(0).column(0).compression != "ZSTD":
                raise SystemExit(f"{fragment.path}: odd row groups")
    frames = tables["frames"]
    equal("first nanosecond", pc.min(frames["first_byte_utc"]).value, expected["first_ns"])
    equal("dates", sorted(set(tables["verdicts"]["date"].to_pylist())), DATES)
    payload = frames["payload"][0].as_py()
    equal("payload", payload[-len(PAYLOAD_END):], PAYLOAD_END)
    keys = ["capture_id", "call_id"]
    calls = tables["calls"].select([*keys, "tool_name"]).rename_columns([*keys, "seen"])
    # Arrow's own join takes no lists beside the keys.
    verdicts = tables["verdicts"].select([*keys, "verdict"])
    both = verdicts.join(calls, keys=keys, join_type="left outer")
    seen = sorted((row["verdict"], row["seen"] or "") for row in both.to_pylist())
    equal("join", seen, sorted((row[0], row[2] or "") for row in joined(expected)))


def main():
    reader, out, expected = sys.argv[1:]
    with open(expected, encoding="utf-8") as file:
        expected = json.load(file)
    {"duckdb": check_duckdb, "polars": check_polars, "pyarrow": check_pyarrow}[reader](out, expected)


if __name__ == "__main__":
    main()
