//! The text of `countersign schema`: what the tables hold, for people and for programs.

use std::fmt::Write as _;

use countersign_core::row::{Column, ColumnType, Row};

use crate::report::escape::push_json_string;

/// Widest line of [`text`], in columns.
const TEXT_COLUMNS: usize = 100;

/// Tables, columns, types and their documentation, for a terminal.
pub fn text() -> String {
    let mut out = String::new();
    for table in Row::TABLES {
        if !out.is_empty() {
            out.push('\n');
        }
        push_line(&mut out, format_args!("{}", table.name));
        push_wrapped(&mut out, "  ", &table.doc());
        push_line(
            &mut out,
            format_args!("  partitioned by the date of {}", table.partition_column),
        );
        for column in table.columns {
            push_line(
                &mut out,
                format_args!("  {}: {}", column.name, type_text(column)),
            );
            push_wrapped(&mut out, "      ", &column.doc());
        }
    }
    out
}

/// The same as one JSON document.
pub fn json() -> String {
    let mut out = String::from("{\"tables\":[");
    for (index, table) in Row::TABLES.iter().enumerate() {
        out.push_str(if index > 0 { ",\n" } else { "\n" });
        out.push_str("{\"name\":");
        push_json_string(&mut out, table.name);
        out.push_str(",\"description\":");
        push_json_string(&mut out, &table.doc());
        out.push_str(",\"partition_column\":");
        push_json_string(&mut out, table.partition_column);
        out.push_str(",\"columns\":[");
        for (index, column) in table.columns.iter().enumerate() {
            out.push_str(if index > 0 { ",\n " } else { "\n " });
            push_column(&mut out, column);
        }
        out.push_str("]}");
    }
    out.push_str("]}\n");
    out
}

/// The same as Markdown, as it stands in `docs/schema.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# The tables of evidence\n\nMade by `countersign schema --markdown`; do not edit.\n\n\
         Each table is a folder of Parquet files, partitioned as `date=YYYY-MM-DD/host=HOST/`. `date` (UTC) and `host` are\n\
         columns too when the reader is told about Hive partitions.\n",
    );
    for table in Row::TABLES {
        push_line(&mut out, format_args!("\n## {}\n", table.name));
        push_line(
            &mut out,
            format_args!(
                "{} `date` is that of `{}`.\n",
                table.doc(),
                table.partition_column
            ),
        );
        out.push_str("| column | type | |\n|---|---|---|\n");
        for column in table.columns {
            let doc = column.doc().replace('|', "\\|");
            push_line(
                &mut out,
                format_args!("| `{}` | {} | {doc} |", column.name, type_text(column)),
            );
        }
    }
    out
}

fn push_column(out: &mut String, column: &Column) {
    out.push_str("{\"name\":");
    push_json_string(out, column.name);
    out.push_str(",\"type\":");
    push_json_string(out, type_name(column.ty));
    // Writing into a string cannot fail.
    let _ = write!(
        out,
        ",\"nullable\":{},\"sensitive\":{}",
        column.nullable, column.sensitive
    );
    out.push_str(",\"description\":");
    push_json_string(out, &column.doc());
    out.push('}');
}

fn type_text(column: &Column) -> String {
    let mut text = type_name(column.ty).to_owned();
    if column.nullable {
        text.push_str(", null");
    }
    if column.sensitive {
        text.push_str(", payload");
    }
    text
}

/// What a SQL reader makes of the column.
fn type_name(ty: ColumnType) -> &'static str {
    match ty {
        ColumnType::Id => "ulid (text)",
        ColumnType::Text | ColumnType::Word => "text",
        ColumnType::Bytes => "bytes",
        ColumnType::Bool => "bool",
        ColumnType::U32 => "uint32",
        ColumnType::U64 => "uint64",
        ColumnType::I64 => "int64",
        ColumnType::Utc => "timestamp (ns, UTC)",
        ColumnType::Boot => "int64 (ns)",
        ColumnType::TextList => "list of text",
    }
}

fn push_wrapped(out: &mut String, indent: &str, text: &str) {
    let mut line = indent.to_owned();
    for word in text.split(' ') {
        if line.len() > indent.len() && line.len() + 1 + word.len() > TEXT_COLUMNS {
            push_line(out, format_args!("{line}"));
            indent.clone_into(&mut line);
        }
        if line.len() > indent.len() {
            line.push(' ');
        }
        line.push_str(word);
    }
    push_line(out, format_args!("{line}"));
}

fn push_line(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing into a string cannot fail.
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use super::*;

    #[test]
    fn the_document_of_the_schema_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schema.md");
        if std::env::var_os("COUNTERSIGN_BLESS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            stored == markdown(),
            "docs/schema.md is stale: run this test with COUNTERSIGN_BLESS=1"
        );
    }

    #[test]
    fn the_text_fits_a_terminal_and_names_every_column() {
        let text = text();
        assert!(
            text.lines()
                .all(|line| line.chars().count() <= TEXT_COLUMNS)
        );
        for column in Row::TABLES.iter().flat_map(|table| table.columns) {
            assert!(
                text.contains(&format!("  {}: ", column.name)),
                "{}",
                column.name
            );
        }
    }

    #[test]
    fn the_json_names_every_table_and_column_in_order() {
        let document: serde_json::Value = serde_json::from_str(&json()).unwrap();
        let tables = document["tables"].as_array().unwrap();
        assert_eq!(tables.len(), Row::TABLES.len());
        for (json, table) in tables.iter().zip(Row::TABLES) {
            assert_eq!(json["name"], table.name);
            assert_eq!(json["description"], table.doc());
            let names: Vec<_> = json["columns"]
                .as_array()
                .unwrap()
                .iter()
                .map(|column| column["name"].clone())
                .collect();
            let expected: Vec<_> = table.columns.iter().map(|column| column.name).collect();
            assert_eq!(names, expected);
        }
    }
}
