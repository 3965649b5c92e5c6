//! Rows of every table through real Parquet files and back, with the Rust reader.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use countersign::sink::dir::PrivateDir;
use countersign::sink::parquet::{ParquetSink, ROW_GROUP_MAX_BYTES, ROW_GROUP_MAX_ROWS};
use countersign::sink::{EvidenceDir, RowSink, TempFile, WrittenFile};
use countersign_core::row::ids::CaptureId;
use countersign_core::row::{
    BootNs, Column, ColumnType, ColumnVisitor, Row, Table, TableRow, UtcNs, Value,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;
use tempfile::TempDir;
use ulid::Ulid;

const DAY_NS: i64 = 86_400_000_000_000;
const START: UtcNs = UtcNs(1_795_159_135_189_522_853);

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn rows_of_every_table_come_back_as_they_went_in(rows in prop::collection::vec(any_row(), 1..40)) {
        let out = TempDir::new().unwrap();
        let files = write(out.path(), &rows);
        let mut expected: BTreeMap<(String, String), Vec<Vec<Cell>>> = BTreeMap::new();
        for row in &rows {
            let partition = (row.table.name.to_owned(), row.partition_utc().date());
            expected.entry(partition).or_default().push(row.cells.clone());
        }
        prop_assert_eq!(files.len(), expected.len());
        for ((table, date), rows) in expected {
            let file = files.iter().find(|file| file.table == table && file.path.contains(&date)).unwrap();
            prop_assert_eq!(file.rows, rows.len() as u64);
            prop_assert_eq!(file.bytes, fs::metadata(out.path().join(&file.path)).unwrap().len());
            prop_assert_eq!(read(&out.path().join(&file.path)), rows);
        }
    }

    #[test]
    fn the_same_rows_give_the_same_bytes(rows in prop::collection::vec(any_row(), 1..40)) {
        let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let files = write(one.path(), &rows);
        prop_assert_eq!(&files, &write(two.path(), &rows));
        for file in files {
            let bytes = |dir: &TempDir| fs::read(dir.path().join(&file.path)).unwrap();
            prop_assert!(bytes(&one) == bytes(&two), "{} differs", file.path);
        }
    }
}

#[test]
fn a_file_stands_in_the_partition_of_its_rows_and_host() {
    let out = TempDir::new().unwrap();
    let mut sink = sink(Box::new(PrivateDir(out.path().into())), "a/../b c");
    sink.row(&fixed_row(table("verdicts"), START, 0)).unwrap();
    sink.row(&fixed_row(table("verdicts"), UtcNs(START.0 + DAY_NS), 0))
        .unwrap();
    let paths: Vec<_> = sink
        .finish()
        .unwrap()
        .into_iter()
        .map(|file| file.path)
        .collect();
    let name = format!("{}-0001.parquet", capture());
    let expected = ["2026-11-20", "2026-11-21"]
        .map(|date| format!("verdicts/date={date}/host=a%2F..%2Fb%20c/{name}"));
    assert_eq!(paths, expected);
    assert_eq!(files_below(out.path()).len(), 2);
}

#[test]
fn a_sink_that_is_dropped_leaves_no_file() {
    let out = TempDir::new().unwrap();
    let mut sink = sink(Box::new(PrivateDir(out.path().into())), "host");
    sink.row(&fixed_row(table("calls"), START, 0)).unwrap();
    drop(sink);
    assert_eq!(files_below(out.path()), Vec::<PathBuf>::new());
}

#[test]
fn row_groups_are_bounded_in_rows_and_bytes() {
    let out = TempDir::new().unwrap();
    let mut sink = sink(Box::new(PrivateDir(out.path().into())), "host");
    for index in 0..ROW_GROUP_MAX_ROWS + 1000 {
        sink.row(&fixed_row(table("sightings"), START, index as u64))
            .unwrap();
    }
    // 20 frames of 8 MiB that do not compress: 160 MiB.
    for index in 0..20 {
        let mut row = fixed_row(table("frames"), START, index);
        row.set("payload", Cell::Bytes(noise(index, 8 << 20)));
        sink.row(&row).unwrap();
    }
    for file in sink.finish().unwrap() {
        let reader =
            SerializedFileReader::new(File::open(out.path().join(&file.path)).unwrap()).unwrap();
        let groups = reader.metadata().row_groups();
        assert!(
            groups.len() >= 2,
            "{} has {} row groups",
            file.path,
            groups.len()
        );
        for group in groups {
            assert!(usize::try_from(group.num_rows()).unwrap() <= ROW_GROUP_MAX_ROWS);
            let bytes = usize::try_from(group.compressed_size()).unwrap();
            assert!(
                bytes <= ROW_GROUP_MAX_BYTES + (8 << 20),
                "a row group of {bytes} bytes"
            );
        }
        let rows: i64 = groups
            .iter()
            .map(parquet::file::metadata::RowGroupMetaData::num_rows)
            .sum();
        assert_eq!(u64::try_from(rows).unwrap(), file.rows);
    }
}

#[test]
fn rows_of_many_days_take_few_files_at_once_and_none_is_lost() {
    let out = TempDir::new().unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let dir = Counting {
        dir: PrivateDir(out.path().into()),
        open: Arc::clone(&open),
    };
    let mut sink = sink(Box::new(dir), "host");
    let mut most = 0;
    for round in 0..2 {
        for day in 0..200 {
            sink.row(&fixed_row(
                table("findings"),
                UtcNs(START.0 + day * DAY_NS),
                round,
            ))
            .unwrap();
            most = most.max(open.load(Ordering::SeqCst));
        }
    }
    let files = sink.finish().unwrap();
    assert!((2..=64).contains(&most), "{most} files were open at once");
    assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), 400);
    assert_eq!(files_below(out.path()).len(), files.len());
}

#[test]
fn documentation_stands_in_the_file_and_payloads_not_in_its_statistics() {
    let out = TempDir::new().unwrap();
    let mut row = fixed_row(table("frames"), START, 0);
    row.set("payload", Cell::Bytes(b"do-not-tell".to_vec()));
    let files = write(out.path(), &[row]);
    let path = out.path().join(&files[0].path);
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    for column in table("frames").columns {
        let field = reader.schema().field_with_name(column.name).unwrap();
        assert_eq!(field.metadata().get("description"), Some(&column.doc()));
    }
    let metadata = reader.metadata();
    assert!(
        metadata
            .file_metadata()
            .created_by()
            .unwrap()
            .starts_with("countersign version ")
    );
    let keys = metadata.file_metadata().key_value_metadata().unwrap();
    let id = keys
        .iter()
        .find(|pair| pair.key == "countersign.capture_id")
        .unwrap();
    assert_eq!(id.value.as_deref(), Some(capture().to_string().as_str()));
    for column in metadata.row_group(0).columns() {
        let name = column.column_path().string();
        let sensitive = table("frames")
            .column(name.split('.').next().unwrap())
            .unwrap()
            .sensitive;
        assert_eq!(column.statistics().is_none(), sensitive, "{name}");
    }
}

fn capture() -> CaptureId {
    CaptureId::new(START, b"boot", b"host", 0)
}

fn table(name: &str) -> &'static Table {
    Row::TABLES.iter().find(|table| table.name == name).unwrap()
}

fn sink(dir: Box<dyn EvidenceDir>, host: &str) -> Box<ParquetSink> {
    Box::new(ParquetSink::new(dir, capture(), host))
}

fn write(out: &Path, rows: &[AnyRow]) -> Vec<WrittenFile> {
    let mut sink = sink(Box::new(PrivateDir(out.into())), "host");
    for row in rows {
        sink.row(row).unwrap();
    }
    sink.finish().unwrap()
}

fn read(path: &Path) -> Vec<Vec<Cell>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut rows = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        rows.extend((0..batch.num_rows()).map(|row| read_row(&batch, row)));
    }
    rows
}

fn read_row(batch: &RecordBatch, row: usize) -> Vec<Cell> {
    let schema = batch.schema();
    let names: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .collect();
    let is_of = |table: &&&Table| {
        names
            .iter()
            .eq(table.columns.iter().map(|column| &column.name))
    };
    let table = Row::TABLES.iter().find(is_of).unwrap();
    let columns = table.columns.iter().zip(batch.columns());
    columns
        .map(|(column, array)| read_cell(column.ty, array, row))
        .collect()
}

fn read_cell(ty: ColumnType, array: &dyn Array, row: usize) -> Cell {
    if array.is_null(row) {
        return Cell::Null;
    }
    match ty {
        ColumnType::Id => Cell::Id(Ulid::from_string(array.as_string::<i32>().value(row)).unwrap()),
        ColumnType::Text | ColumnType::Word => {
            Cell::Text(array.as_string::<i32>().value(row).to_owned())
        }
        ColumnType::Bytes => Cell::Bytes(array.as_binary::<i32>().value(row).to_vec()),
        ColumnType::Bool => Cell::Bool(array.as_boolean().value(row)),
        ColumnType::U32 => Cell::U32(array.as_primitive::<UInt32Type>().value(row)),
        ColumnType::U64 => Cell::U64(array.as_primitive::<UInt64Type>().value(row)),
        ColumnType::I64 => Cell::I64(array.as_primitive::<Int64Type>().value(row)),
        ColumnType::Utc => Cell::Utc(array.as_primitive::<TimestampNanosecondType>().value(row)),
        ColumnType::Boot => {
            Cell::Boot(u64::try_from(array.as_primitive::<Int64Type>().value(row)).unwrap())
        }
        ColumnType::TextList => {
            let list = array.as_list::<i32>().value(row);
            Cell::Texts(
                list.as_string::<i32>()
                    .iter()
                    .map(|text| text.unwrap().to_owned())
                    .collect(),
            )
        }
    }
}

/// A row of any table with any values of the right types.
#[derive(Clone, Debug)]
struct AnyRow {
    table: &'static Table,
    cells: Vec<Cell>,
}

#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Id(Ulid),
    Text(String),
    Bytes(Vec<u8>),
    Bool(bool),
    U32(u32),
    U64(u64),
    I64(i64),
    Utc(i64),
    Boot(u64),
    Texts(Vec<String>),
}

impl AnyRow {
    fn set(&mut self, column: &str, cell: Cell) {
        let index = self
            .table
            .columns
            .iter()
            .position(|other| other.name == column)
            .unwrap();
        self.cells[index] = cell;
    }
}

impl TableRow for AnyRow {
    fn table(&self) -> &'static Table {
        self.table
    }

    fn partition_utc(&self) -> UtcNs {
        let mut columns = self.table.columns.iter().zip(&self.cells);
        match columns.find(|(column, _)| column.name == self.table.partition_column) {
            Some((_, Cell::Utc(utc))) => UtcNs(*utc),
            other => panic!("no time to partition by: {other:?}"),
        }
    }

    fn visit(&self, visitor: &mut dyn ColumnVisitor) {
        for (column, cell) in self.table.columns.iter().zip(&self.cells) {
            let value = match cell {
                Cell::Null => Value::Null,
                Cell::Id(id) => Value::Id(*id),
                Cell::Text(text) => Value::Text(text),
                Cell::Bytes(bytes) => Value::Bytes(bytes),
                Cell::Bool(value) => Value::Bool(*value),
                Cell::U32(value) => Value::U32(*value),
                Cell::U64(value) => Value::U64(*value),
                Cell::I64(value) => Value::I64(*value),
                Cell::Utc(value) => Value::Utc(UtcNs(*value)),
                Cell::Boot(value) => Value::Boot(BootNs(*value)),
                Cell::Texts(texts) => Value::Texts(texts),
            };
            visitor.cell(column, value);
        }
    }
}

fn any_row() -> impl Strategy<Value = AnyRow> {
    (0..Row::TABLES.len()).prop_flat_map(|index| {
        let table = Row::TABLES[index];
        let cells: Vec<_> = table
            .columns
            .iter()
            .map(|column| any_cell(table, column))
            .collect();
        cells.prop_map(move |cells| AnyRow { table, cells })
    })
}

fn any_cell(table: &Table, column: &Column) -> BoxedStrategy<Cell> {
    if column.name == table.partition_column {
        // Few days, so that files hold several rows; sometimes any time at all.
        return prop_oneof![
            9 => (0..3_i64).prop_map(|day| Cell::Utc(START.0 + day * DAY_NS)),
            1 => any::<i64>().prop_map(Cell::Utc),
        ]
        .boxed();
    }
    let cell = match column.ty {
        ColumnType::Id => any::<[u8; 16]>()
            .prop_map(|bytes| Cell::Id(Ulid::from_bytes(bytes)))
            .boxed(),
        ColumnType::Text => any::<String>().prop_map(Cell::Text).boxed(),
        ColumnType::Word => "[a-z_]{0,12}".prop_map(Cell::Text).boxed(),
        ColumnType::Bytes => prop::collection::vec(any::<u8>(), 0..300)
            .prop_map(Cell::Bytes)
            .boxed(),
        ColumnType::Bool => any::<bool>().prop_map(Cell::Bool).boxed(),
        ColumnType::U32 => any::<u32>().prop_map(Cell::U32).boxed(),
        ColumnType::U64 => any::<u64>().prop_map(Cell::U64).boxed(),
        ColumnType::I64 => any::<i64>().prop_map(Cell::I64).boxed(),
        ColumnType::Utc => any::<i64>().prop_map(Cell::Utc).boxed(),
        ColumnType::Boot => (0..=u64::MAX >> 1).prop_map(Cell::Boot).boxed(),
        ColumnType::TextList => prop::collection::vec(any::<String>(), 0..4)
            .prop_map(Cell::Texts)
            .boxed(),
    };
    if column.nullable {
        prop_oneof![Just(Cell::Null), cell].boxed()
    } else {
        cell
    }
}

/// A row with plain values and `seed` in every number.
fn fixed_row(table: &'static Table, at: UtcNs, seed: u64) -> AnyRow {
    let cells = table.columns.iter().map(|column| match column.ty {
        ColumnType::Id => Cell::Id(Ulid::from_parts(at.unix_ms(), u128::from(seed))),
        ColumnType::Text | ColumnType::Word => Cell::Text(column.name.to_owned()),
        ColumnType::Bytes => Cell::Bytes(Vec::new()),
        ColumnType::Bool => Cell::Bool(seed.is_multiple_of(2)),
        ColumnType::U32 => Cell::U32(u32::try_from(seed).unwrap()),
        ColumnType::U64 => Cell::U64(seed),
        ColumnType::I64 => Cell::I64(seed.cast_signed()),
        ColumnType::Utc => Cell::Utc(at.0),
        ColumnType::Boot => Cell::Boot(seed),
        ColumnType::TextList => Cell::Texts(Vec::new()),
    });
    AnyRow {
        table,
        cells: cells.collect(),
    }
}

/// Bytes that do not compress (xorshift64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for item in fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// A directory that counts its files without a name.
struct Counting {
    dir: PrivateDir,
    open: Arc<AtomicUsize>,
}

struct CountedFile {
    file: Option<Box<dyn TempFile>>,
    open: Arc<AtomicUsize>,
}

impl EvidenceDir for Counting {
    fn create_temp(&self, path: &str) -> anyhow::Result<Box<dyn TempFile>> {
        let file = self.dir.create_temp(path)?;
        self.open.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(CountedFile {
            file: Some(file),
            open: Arc::clone(&self.open),
        }))
    }
}

impl io::Write for CountedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().unwrap().flush()
    }
}

impl TempFile for CountedFile {
    fn commit(mut self: Box<Self>) -> anyhow::Result<()> {
        self.file.take().unwrap().commit()
    }
}

impl Drop for CountedFile {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}
