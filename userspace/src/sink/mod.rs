//! Where rows go: Parquet for the evidence, JSON lines for other programs.
//!
//! Owns the traits between the rows, the formats and the output directory, and the text of `countersign schema`. It does
//! not own the directory: how a file comes to stand at its path without an agent's interference is [`EvidenceDir`]'s part.

mod columns;
pub mod dir;
pub mod jsonl;
pub mod parquet;
pub mod schema;

use std::io::Write;

use anyhow::Result;
use countersign_core::row::TableRow;

/// Creates files that appear under their name only when they are whole.
pub trait EvidenceDir {
    /// A file that will stand at `path`, relative to the output directory, once it is committed. Missing folders are made.
    ///
    /// # Errors
    /// When the file or a folder cannot be made, or `path` is taken.
    fn create_temp(&self, path: &str) -> Result<Box<dyn TempFile>>;
}

/// A file without its name yet. Dropped without [`commit`](TempFile::commit), it leaves nothing behind.
pub trait TempFile: Write + Send {
    /// Makes the contents durable and gives the file its name.
    ///
    /// # Errors
    /// When it cannot be written back or renamed.
    fn commit(self: Box<Self>) -> Result<()>;
}

/// Takes rows of all tables.
pub trait RowSink {
    /// Stores one row.
    ///
    /// # Errors
    /// When it cannot be written. The sink is of no further use then, and nothing that it holds may be taken for stored.
    fn row(&mut self, row: &dyn TableRow) -> Result<()>;

    /// Writes what is buffered and makes it visible.
    ///
    /// # Errors
    /// As for [`RowSink::row`].
    fn finish(self: Box<Self>) -> Result<Vec<WrittenFile>>;
}

/// A finished file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WrittenFile {
    /// Path relative to the output directory.
    pub path: String,
    /// Table that it belongs to.
    pub table: &'static str,
    /// Rows in it.
    pub rows: u64,
    /// Length in bytes.
    pub bytes: u64,
}
