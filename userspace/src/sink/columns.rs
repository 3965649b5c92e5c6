//! Rows into Arrow columns.
//!
//! Owns the mapping of the logical column types onto Arrow's and one builder per column. It does not know files.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Int64Builder, ListBuilder, StringBuilder,
    TimestampNanosecondBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use countersign_core::row::{Column, ColumnType, ColumnVisitor, Table, TableRow, Value};

/// Longest value of one cell, in bytes. Arrow's text and binary arrays count bytes in 31 bits and panic beyond: stops a
/// giant message from doing that.
const CELL_MAX_BYTES: usize = 1 << 30;

/// What a cell costs beside its text, roughly, in bytes.
const CELL_OVERHEAD_BYTES: usize = 8;

/// Key of a column's documentation in its field metadata.
pub(crate) const DOC_KEY: &str = "description";

/// Key of the mark on columns that can hold what the watched programs said; its value is `true`.
pub(crate) const SENSITIVE_KEY: &str = "sensitive";

/// The Arrow schema of a table.
pub(crate) fn arrow_schema(table: &Table) -> SchemaRef {
    let fields: Vec<Field> = table.columns.iter().map(field).collect();
    Arc::new(Schema::new(fields))
}

/// Rows of one table on their way into a batch.
#[derive(Debug)]
pub(crate) struct Columns {
    schema: SchemaRef,
    builders: Vec<Builder>,
    rows: usize,
    bytes: usize,
}

impl Columns {
    pub(crate) fn new(table: &Table, schema: SchemaRef) -> Self {
        let builders = table
            .columns
            .iter()
            .map(|column| Builder::new(column.ty))
            .collect();
        Self {
            schema,
            builders,
            rows: 0,
            bytes: 0,
        }
    }

    /// Rows since the last batch.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Their size, roughly, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a row of this table, whose [`row_bytes`] were checked.
    pub(crate) fn append(&mut self, row: &dyn TableRow) -> Result<()> {
        let mut appender = Appender {
            builders: self.builders.iter_mut(),
            bytes: 0,
            failed: None,
        };
        row.visit(&mut appender);
        if let Some(column) = appender.failed {
            bail!("a value of {column} is not of the column's type");
        }
        if appender.builders.next().is_some() {
            bail!("a row of {} has too few columns", row.table().name);
        }
        self.bytes += appender.bytes;
        self.rows += 1;
        Ok(())
    }

    /// The rows so far as a batch; afterwards there are none.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch> {
        let arrays = self.builders.iter_mut().map(Builder::finish).collect();
        self.rows = 0;
        self.bytes = 0;
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
            .context("rows do not fit their schema")
    }
}

/// What a row costs, roughly, in bytes.
///
/// # Errors
/// When one of its cells is too long to be stored.
pub(crate) fn row_bytes(row: &dyn TableRow) -> Result<usize> {
    struct Size {
        total: usize,
        too_long: Option<&'static str>,
    }
    impl ColumnVisitor for Size {
        fn cell(&mut self, column: &'static Column, value: Value<'_>) {
            let bytes = value_bytes(value);
            if bytes > CELL_MAX_BYTES {
                self.too_long = Some(column.name);
            }
            self.total = self.total.saturating_add(bytes);
        }
    }
    let mut size = Size {
        total: 0,
        too_long: None,
    };
    row.visit(&mut size);
    match size.too_long {
        Some(column) => bail!(
            "a value of {}.{column} is longer than {CELL_MAX_BYTES} bytes",
            row.table().name
        ),
        None => Ok(size.total),
    }
}

fn value_bytes(value: Value<'_>) -> usize {
    CELL_OVERHEAD_BYTES
        + match value {
            Value::Text(text) => text.len(),
            Value::Bytes(bytes) => bytes.len(),
            Value::Words(words) => words
                .iter()
                .map(|word| word.len() + CELL_OVERHEAD_BYTES)
                .sum(),
            Value::Texts(texts) => texts
                .iter()
                .map(|text| text.len() + CELL_OVERHEAD_BYTES)
                .sum(),
            Value::Id(_) => ulid::ULID_LEN,
            Value::Null
            | Value::Bool(_)
            | Value::U32(_)
            | Value::U64(_)
            | Value::I64(_)
            | Value::Utc(_)
            | Value::Boot(_) => 0,
        }
}

fn field(column: &Column) -> Field {
    let mut metadata = vec![(DOC_KEY.to_owned(), column.doc())];
    if column.sensitive {
        metadata.push((SENSITIVE_KEY.to_owned(), "true".to_owned()));
    }
    Field::new(column.name, data_type(column.ty), column.nullable).with_metadata(
        metadata
            .into_iter()
            .collect::<std::collections::HashMap<_, _>>(),
    )
}

fn data_type(ty: ColumnType) -> DataType {
    match ty {
        ColumnType::Id | ColumnType::Text | ColumnType::Word => DataType::Utf8,
        ColumnType::Bytes => DataType::Binary,
        ColumnType::Bool => DataType::Boolean,
        ColumnType::U32 => DataType::UInt32,
        ColumnType::U64 => DataType::UInt64,
        ColumnType::I64 | ColumnType::Boot => DataType::Int64,
        ColumnType::Utc => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        ColumnType::TextList => DataType::List(Arc::new(list_element())),
    }
}

/// Parquet's own name for the element of a list, so that all readers agree on it.
fn list_element() -> Field {
    Field::new("element", DataType::Utf8, false)
}

#[derive(Debug)]
enum Builder {
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Bool(BooleanBuilder),
    U32(UInt32Builder),
    U64(UInt64Builder),
    I64(Int64Builder),
    Utc(TimestampNanosecondBuilder),
    List(ListBuilder<StringBuilder>),
}

impl Builder {
    fn new(ty: ColumnType) -> Self {
        match ty {
            ColumnType::Id | ColumnType::Text | ColumnType::Word => {
                Self::Text(StringBuilder::new())
            }
            ColumnType::Bytes => Self::Bytes(BinaryBuilder::new()),
            ColumnType::Bool => Self::Bool(BooleanBuilder::new()),
            ColumnType::U32 => Self::U32(UInt32Builder::new()),
            ColumnType::U64 => Self::U64(UInt64Builder::new()),
            ColumnType::I64 | ColumnType::Boot => Self::I64(Int64Builder::new()),
            ColumnType::Utc => Self::Utc(TimestampNanosecondBuilder::new().with_timezone("UTC")),
            ColumnType::TextList => {
                Self::List(ListBuilder::new(StringBuilder::new()).with_field(list_element()))
            }
        }
    }

    /// Whether the value is one that this column can hold.
    fn append(&mut self, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::Text(builder), Value::Text(text)) => builder.append_value(text),
            (Self::Text(builder), Value::Id(id)) => {
                builder.append_value(id.array_to_str(&mut [0; ulid::ULID_LEN]));
            }
            (Self::Text(builder), Value::Null) => builder.append_null(),
            (Self::Bytes(builder), Value::Bytes(bytes)) => builder.append_value(bytes),
            (Self::Bytes(builder), Value::Null) => builder.append_null(),
            (Self::Bool(builder), Value::Bool(value)) => builder.append_value(value),
            (Self::Bool(builder), Value::Null) => builder.append_null(),
            (Self::U32(builder), Value::U32(value)) => builder.append_value(value),
            (Self::U32(builder), Value::Null) => builder.append_null(),
            (Self::U64(builder), Value::U64(value)) => builder.append_value(value),
            (Self::U64(builder), Value::Null) => builder.append_null(),
            (Self::I64(builder), Value::I64(value)) => builder.append_value(value),
            (Self::I64(builder), Value::Boot(boot)) => {
                builder.append_value(i64::try_from(boot.0).unwrap_or(i64::MAX));
            }
            (Self::I64(builder), Value::Null) => builder.append_null(),
            (Self::Utc(builder), Value::Utc(utc)) => builder.append_value(utc.0),
            (Self::Utc(builder), Value::Null) => builder.append_null(),
            (Self::List(builder), Value::Words(words)) => {
                for word in words {
                    builder.values().append_value(word);
                }
                builder.append(true);
            }
            (Self::List(builder), Value::Texts(texts)) => {
                for text in texts {
                    builder.values().append_value(text);
                }
                builder.append(true);
            }
            (Self::List(builder), Value::Null) => builder.append(false),
            _ => return false,
        }
        true
    }

    fn finish(&mut self) -> ArrayRef {
        let builder: &mut dyn ArrayBuilder = match self {
            Self::Text(builder) => builder,
            Self::Bytes(builder) => builder,
            Self::Bool(builder) => builder,
            Self::U32(builder) => builder,
            Self::U64(builder) => builder,
            Self::I64(builder) => builder,
            Self::Utc(builder) => builder,
            Self::List(builder) => builder,
        };
        builder.finish()
    }
}

struct Appender<'a> {
    builders: std::slice::IterMut<'a, Builder>,
    bytes: usize,
    failed: Option<&'static str>,
}

impl ColumnVisitor for Appender<'_> {
    fn cell(&mut self, column: &'static Column, value: Value<'_>) {
        self.bytes += value_bytes(value);
        let null_allowed = column.nullable || value != Value::Null;
        let taken = self
            .builders
            .next()
            .is_some_and(|builder| null_allowed && builder.append(value));
        if !taken {
            self.failed = Some(column.name);
        }
    }
}
