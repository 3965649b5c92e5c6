//! Rows into Parquet files.
//!
//! Owns the layout of the evidence on disk: `TABLE/date=YYYY-MM-DD/host=HOST/CAPTURE-NNNN.parquet`, which `DuckDB`, Polars,
//! Arrow and Spark discover as Hive partitions. The date is that of the row's own time, UTC. It does not own the schema,
//! which comes from the tables, nor the directory.
//!
//! - Zstandard, level 3; dictionaries and page statistics, except for columns that can hold payloads: their least and
//!   greatest values do not belong into a file's footer.
//! - Times are INT64 `TIMESTAMP(NANOS, isAdjustedToUTC)`; ids are their 26 characters; JSON is text, `frames.payload` bytes.
//! - The same rows in the same order give the same bytes: nothing in a file says when or where it was written.
//! - Memory is bounded, whatever the rows: see the constants below.
//! - Files get their names at the end, `verdicts` last: where there are verdicts, the rows that they rest on are there too.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, Result};
use countersign_core::row::ids::CaptureId;
use countersign_core::row::{Table, TableRow};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::columns::{Columns, arrow_schema, row_bytes};
use super::{EvidenceDir, RowSink, TempFile, WrittenFile};

/// Rows that are turned into columns at once, at most.
const BATCH_MAX_ROWS: usize = 8 * 1024;

/// Size of those rows, unless one row alone is larger.
const BATCH_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Rows of one row group, at most.
pub const ROW_GROUP_MAX_ROWS: usize = 128 * 1024;

/// Encoded size of one row group, about.
pub const ROW_GROUP_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What all open files together may hold in memory. Beyond it the largest writes a row group early: stops a stream of
/// large messages over many tables and days from holding a row group for each.
const BUFFERED_MAX_BYTES: usize = 128 * 1024 * 1024;

/// Files open at once. Beyond it the one that was idle longest is finished: stops rows of a thousand dates from taking a
/// thousand descriptors.
const OPEN_FILES_MAX: usize = 32;

/// Name that every file gives as its writer. Readers look for known faults of writers by it.
const CREATED_BY: &str = concat!("countersign version ", env!("CARGO_PKG_VERSION"));

/// The evidence of one capture on its way into Parquet files.
pub struct ParquetSink {
    dir: Box<dyn EvidenceDir>,
    capture: CaptureId,
    host: String,
    open: BTreeMap<PartitionKey, Partition>,
    /// Parts of each partition that were begun, to number the next.
    parts: BTreeMap<PartitionKey, u32>,
    /// Files that have their names already.
    named: Vec<WrittenFile>,
    /// Rows so far: the clock of [`Partition::last_used`].
    clock: u64,
}

impl std::fmt::Debug for ParquetSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetSink")
            .field("capture", &self.capture)
            .field("host", &self.host)
            .field("open", &self.open.len())
            .finish_non_exhaustive()
    }
}

impl ParquetSink {
    /// A sink for the rows of `capture`, made on `host`, with its files in `dir`.
    pub fn new(dir: Box<dyn EvidenceDir>, capture: CaptureId, host: &str) -> Self {
        Self {
            dir,
            capture,
            host: host.to_owned(),
            open: BTreeMap::new(),
            parts: BTreeMap::new(),
            named: Vec::new(),
            clock: 0,
        }
    }

    fn partition(&mut self, row: &dyn TableRow) -> Result<&mut Partition> {
        let key = PartitionKey {
            table: row.table().name,
            date: row.partition_utc().date(),
        };
        if !self.open.contains_key(&key) {
            if self.open.len() >= OPEN_FILES_MAX {
                self.finish_idlest()?;
            }
            let part = self.parts.entry(key.clone()).or_insert(0);
            *part += 1;
            let path = format!(
                "{}/date={}/host={}/{}-{part:04}.parquet",
                key.table,
                key.date,
                hive_value(&self.host),
                self.capture
            );
            let file = self.dir.create_temp(&path)?;
            let partition = Partition::new(row.table(), path, file, &self.metadata())?;
            self.open.insert(key.clone(), partition);
        }
        self.open
            .get_mut(&key)
            .context("a partition that was just opened")
    }

    fn metadata(&self) -> Vec<KeyValue> {
        [
            ("countersign.capture_id", self.capture.to_string()),
            ("countersign.host", self.host.clone()),
            ("countersign.version", env!("CARGO_PKG_VERSION").to_owned()),
        ]
        .map(|(key, value)| KeyValue::new(key.to_owned(), value))
        .into()
    }

    fn finish_idlest(&mut self) -> Result<()> {
        let idlest = self
            .open
            .iter()
            .min_by_key(|(_, partition)| partition.last_used);
        if let Some(key) = idlest.map(|(key, _)| key.clone())
            && let Some(partition) = self.open.remove(&key)
        {
            // Named at once: a descriptor per idle file is what this avoids.
            let (file, written) = partition.finish()?;
            file.commit()?;
            self.named.push(written);
        }
        Ok(())
    }

    fn bound_memory(&mut self) -> Result<()> {
        while self.open.values().map(Partition::held_bytes).sum::<usize>() > BUFFERED_MAX_BYTES {
            let Some(largest) = self
                .open
                .values_mut()
                .max_by_key(|partition| partition.held_bytes())
            else {
                break;
            };
            largest.write_row_group()?;
        }
        Ok(())
    }
}

impl RowSink for ParquetSink {
    fn row(&mut self, row: &dyn TableRow) -> Result<()> {
        self.clock += 1;
        let now = self.clock;
        let bytes = row_bytes(row)?;
        let partition = self.partition(row)?;
        partition.last_used = now;
        partition.push(row, bytes)?;
        self.bound_memory()
    }

    fn finish(mut self: Box<Self>) -> Result<Vec<WrittenFile>> {
        let mut finished = Vec::with_capacity(self.open.len());
        for (_, partition) in std::mem::take(&mut self.open) {
            finished.push(partition.finish()?);
        }
        finished.sort_by_key(|(_, written)| written.table == "verdicts");
        let mut files = std::mem::take(&mut self.named);
        for (file, written) in finished {
            file.commit()?;
            files.push(written);
        }
        files.sort();
        Ok(files)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PartitionKey {
    table: &'static str,
    date: String,
}

/// One open file.
struct Partition {
    table: &'static str,
    path: String,
    columns: Columns,
    writer: ArrowWriter<Counted>,
    /// What the writer held after the last batch, in bytes.
    encoded_bytes: usize,
    rows: u64,
    last_used: u64,
}

impl Partition {
    fn new(
        table: &'static Table,
        path: String,
        file: Box<dyn TempFile>,
        metadata: &[KeyValue],
    ) -> Result<Self> {
        let schema = arrow_schema(table);
        let properties = properties(table, metadata)?;
        let writer = ArrowWriter::try_new(
            Counted { file, bytes: 0 },
            Arc::clone(&schema),
            Some(properties),
        )
        .with_context(|| format!("cannot start {path}"))?;
        let columns = Columns::new(table, schema);
        Ok(Self {
            table: table.name,
            path,
            columns,
            writer,
            encoded_bytes: 0,
            rows: 0,
            last_used: 0,
        })
    }

    /// What it holds in memory, about.
    fn held_bytes(&self) -> usize {
        self.columns.bytes().saturating_add(self.encoded_bytes)
    }

    /// Appends a row of `bytes`.
    fn push(&mut self, row: &dyn TableRow, bytes: usize) -> Result<()> {
        let full = self.columns.rows() >= BATCH_MAX_ROWS
            || (self.columns.rows() > 0
                && self.columns.bytes().saturating_add(bytes) > BATCH_MAX_BYTES);
        if full {
            self.write_batch()?;
        }
        self.columns.append(row)?;
        self.rows += 1;
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.columns.rows() > 0 {
            let batch = self.columns.finish()?;
            self.writer
                .write(&batch)
                .with_context(|| format!("cannot write {}", self.path))?;
        }
        self.encoded_bytes = self.writer.memory_size();
        Ok(())
    }

    /// Afterwards it holds next to nothing.
    fn write_row_group(&mut self) -> Result<()> {
        self.write_batch()?;
        self.writer
            .flush()
            .with_context(|| format!("cannot write {}", self.path))?;
        self.encoded_bytes = 0;
        Ok(())
    }

    fn finish(mut self) -> Result<(Box<dyn TempFile>, WrittenFile)> {
        self.write_batch()?;
        let counted = self
            .writer
            .into_inner()
            .with_context(|| format!("cannot finish {}", self.path))?;
        let written = WrittenFile {
            path: self.path,
            table: self.table,
            rows: self.rows,
            bytes: counted.bytes,
        };
        Ok((counted.file, written))
    }
}

fn properties(table: &Table, metadata: &[KeyValue]) -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(3).context("zstd level")?;
    let mut builder = WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(ROW_GROUP_MAX_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_MAX_BYTES))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_key_value_metadata(Some(metadata.to_vec()));
    for column in table.columns.iter().filter(|column| column.sensitive) {
        let path = ColumnPath::from(column.name);
        builder = builder
            .set_column_statistics_enabled(path.clone(), EnabledStatistics::None)
            .set_column_dictionary_enabled(path, false);
    }
    Ok(builder.build())
}

/// A value of a Hive partition: what is not safe in a folder's name as `%XX`, as Hive writes and its readers read it.
fn hive_value(text: &str) -> String {
    use std::fmt::Write as _;
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            value.push(char::from(byte));
        } else {
            // Writing into a string cannot fail.
            let _ = write!(value, "%{byte:02X}");
        }
    }
    if value.is_empty() {
        "__HIVE_DEFAULT_PARTITION__".to_owned()
    } else {
        value
    }
}

/// A file that counts its bytes.
struct Counted {
    file: Box<dyn TempFile>,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
