//! Rows of every table through real Parquet files and back, with the Rust reader.
#![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

mod any_row;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampNanosecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use countersign::outdir::OutDir;
use countersign::sink::dir::PrivateDir;
use countersign::sink::parquet::{ParquetSink, ROW_GROUP_MAX_BYTES, ROW_GROUP_MAX_ROWS};
use countersign::sink::{EvidenceDir, RowSink, TempFile, WrittenFile};
use countersign_core::row::ids::CaptureId;
use countersign_core::row::{ColumnType, Row, Table, TableRow, UtcNs};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::reader::{FileReader, SerializedFileReader};
use proptest::prelude::*;
use tempfile::TempDir;
use ulid::Ulid;

use self::any_row::{AnyRow, Cell, any_row, fixed_row};

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
fn the_guarded_output_directory_takes_the_files() {
    let parent = TempDir::new().unwrap();
    let out = Arc::new(OutDir::create(&parent.path().join("out"), None).unwrap());
    let mut sink = sink(Box::new(Arc::clone(&out)), "host");
    for table in Row::TABLES {
        sink.row(&fixed_row(table, START, 1)).unwrap();
    }
    let files = sink.finish().unwrap();
    assert_eq!(files.len(), Row::TABLES.len());
    for file in files {
        assert_eq!(read(&out.path().join(&file.path)).len(), 1);
        let mode = fs::metadata(out.path().join(&file.path))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "others can read {}", file.path);
    }
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
    assert!((2..=32).contains(&most), "{most} files were open at once");
    assert_eq!(files.iter().map(|file| file.rows).sum::<u64>(), 400);
    assert_eq!(files_below(out.path()).len(), files.len());
}

#[test]
fn large_rows_of_many_days_are_not_all_kept_in_memory() {
    let out = TempDir::new().unwrap();
    let mut sink = sink(Box::new(PrivateDir(out.path().into())), "host");
    // 30 files that each could hold 16 MiB: 480 MiB if nothing was written before the end.
    let payload = noise(1, 2 << 20);
    for round in 0..8 {
        for day in 0..30 {
            let mut row = fixed_row(table("frames"), UtcNs(START.0 + day * DAY_NS), round);
            row.set("payload", Cell::Bytes(payload.clone()));
            sink.row(&row).unwrap();
        }
    }
    let written: u64 = files_below(out.path())
        .iter()
        .map(|path| fs::metadata(path).unwrap().len())
        .sum();
    assert!(
        written >= (480 - 128 - 16) << 20,
        "only {written} bytes were written so far"
    );
    assert_eq!(
        sink.finish()
            .unwrap()
            .iter()
            .map(|file| file.rows)
            .sum::<u64>(),
        240
    );
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
