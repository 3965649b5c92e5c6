"""Prints the verdicts of an evidence folder as JSON lines, read from Parquet by DuckDB."""

import json
import sys

import duckdb

COLUMNS = ("verdict", "reason", "via", "kind", "direction", "method", "tool_name", "request_id", "jsonrpc_id", "params")
QUERY = """
SELECT v.verdict, v.reason, v.via, c.kind, coalesce(c.direction, e.direction), v.method, v.tool_name, v.request_id,
       c.jsonrpc_id, coalesce(c.params, e.params)
FROM      read_parquet($root || '/verdicts/**/*.parquet', hive_partitioning = true) v
LEFT JOIN read_parquet($root || '/calls/**/*.parquet', hive_partitioning = true) c USING (call_id)
LEFT JOIN read_parquet($root || '/entries/**/*.parquet', hive_partitioning = true) e USING (entry_id)
ORDER BY v.subject_utc, v.verdict_id
"""


def main() -> None:
    """Reads the folder named by the only argument."""
    for row in duckdb.execute(QUERY, {"root": sys.argv[1]}).fetchall():
        print(json.dumps(dict(zip(COLUMNS, row, strict=True)), default=str))


if __name__ == "__main__":
    main()
