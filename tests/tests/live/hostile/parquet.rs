//! Tables of a finished recording, read back from its Parquet files.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use arrow_array::{Array, RecordBatch, cast::AsArray as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// All rows of one table.
pub(super) struct Table(Vec<RecordBatch>);

/// One row of it.
pub(super) struct Row<'a> {
    batch: &'a RecordBatch,
    at: usize,
}

impl Table {
    /// The table of this name in an output directory; without rows if there is none.
    pub(super) fn read(out: &Path, name: &str) -> Self {
        let batches = files_below(&out.join(name)).into_iter().flat_map(|path| {
            let file = File::open(path).unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
            reader.build().unwrap().map(Result::unwrap)
        });
        Self(batches.collect())
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let rows_of = |batch| (0..RecordBatch::num_rows(batch)).map(move |at| Row { batch, at });
        self.0.iter().flat_map(rows_of)
    }
}

impl<'a> Row<'a> {
    /// A text; `None` if it is null.
    pub(super) fn text(&self, column: &str) -> Option<&'a str> {
        let array = self.column(column);
        (!array.is_null(self.at)).then(|| array.as_string::<i32>().value(self.at))
    }

    /// Bytes; `None` if they are null.
    pub(super) fn bytes(&self, column: &str) -> Option<&'a [u8]> {
        let array = self.column(column);
        (!array.is_null(self.at)).then(|| array.as_binary::<i32>().value(self.at))
    }

    fn column(&self, name: &str) -> &'a dyn Array {
        self.batch.column_by_name(name).unwrap()
    }

    /// A count.
    pub(super) fn count(&self, column: &str) -> usize {
        let array = self.column(column);
        let counts = array.as_primitive::<arrow_array::types::UInt64Type>();
        usize::try_from(counts.value(self.at)).unwrap()
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(items) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = items
        .flat_map(|item| {
            let path = item.unwrap().path();
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect();
    files.sort();
    files
}
