//! Rows as JSON lines, for other programs.
//!
//! One object per row: `"table"`, then the columns by name. Times are RFC 3339 text with nine digits; integers are JSON
//! numbers, which readers that keep them as doubles round above 2^53. Columns that can hold payloads are left out: this
//! stream may end on a screen or in another program's log, and the Parquet files have them.

use std::io::Write;

use anyhow::{Context, Result};
use countersign_core::row::{Column, ColumnVisitor, TableRow, Value};

use super::{RowSink, WrittenFile};
use crate::report::escape::push_json_string;

/// Writes rows to `out`, one line each.
#[derive(Debug)]
pub struct JsonLinesSink<W> {
    out: W,
    line: String,
}

impl<W: Write> JsonLinesSink<W> {
    /// A sink that writes to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            line: String::new(),
        }
    }
}

impl<W: Write> RowSink for JsonLinesSink<W> {
    fn row(&mut self, row: &dyn TableRow) -> Result<()> {
        self.line.clear();
        push_row(&mut self.line, row);
        self.line.push('\n');
        self.out
            .write_all(self.line.as_bytes())
            .context("cannot write a row as JSON")
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<WrittenFile>> {
        self.out.flush().context("cannot write rows as JSON")?;
        Ok(Vec::new())
    }
}

/// Appends the row as one JSON object.
pub fn push_row(out: &mut String, row: &dyn TableRow) {
    out.push_str("{\"table\":");
    push_json_string(out, row.table().name);
    row.visit(&mut Object { out });
    out.push('}');
}

struct Object<'a> {
    out: &'a mut String,
}

impl ColumnVisitor for Object<'_> {
    fn cell(&mut self, column: &'static Column, value: Value<'_>) {
        if column.sensitive {
            return;
        }
        self.out.push(',');
        push_json_string(self.out, column.name);
        self.out.push(':');
        push_value(self.out, value);
    }
}

fn push_value(out: &mut String, value: Value<'_>) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Id(id) => push_json_string(out, id.array_to_str(&mut [0; ulid::ULID_LEN])),
        Value::Text(text) => push_json_string(out, text),
        // No column of bytes is free of payload today; should one come, its bytes are text with replacements.
        Value::Bytes(bytes) => push_json_string(out, &String::from_utf8_lossy(bytes)),
        Value::Bool(value) => out.push_str(if value { "true" } else { "false" }),
        Value::U32(value) => out.push_str(&value.to_string()),
        Value::U64(value) => out.push_str(&value.to_string()),
        Value::I64(value) => out.push_str(&value.to_string()),
        Value::Utc(utc) => push_json_string(out, &utc.rfc3339()),
        Value::Boot(boot) => out.push_str(&boot.0.to_string()),
        Value::Words(words) => push_list(out, words),
        Value::Texts(texts) => push_list(out, texts),
    }
}

fn push_list(out: &mut String, texts: &[impl AsRef<str>]) {
    out.push('[');
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_json_string(out, text.as_ref());
    }
    out.push(']');
}
