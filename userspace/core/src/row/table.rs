//! Tables, columns and cells: how a row's struct becomes columns of any format.
//!
//! Owns the `table!` macro, the logical column types and the walk over a row. It does not know Arrow, Parquet or JSON:
//! a sink maps the nine [`ColumnType`]s onto its own.

use core::fmt;
use std::sync::Arc;

use crate::time::{BootNs, UtcNs};

/// A table of the evidence.
#[derive(Debug)]
pub struct Table {
    /// Name of the table and of its folder.
    pub name: &'static str,
    /// Documentation, one item per line of source.
    pub doc_lines: &'static [&'static str],
    /// Columns, in order.
    pub columns: &'static [Column],
    /// Column whose date selects the partition: a [`ColumnType::Utc`] that is never null.
    pub partition_column: &'static str,
}

impl Table {
    /// Documentation as one line of text.
    pub fn doc(&self) -> String {
        one_line(self.doc_lines)
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&'static Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// A column of a [`Table`].
#[derive(Debug)]
pub struct Column {
    /// Name, unique in its table.
    pub name: &'static str,
    /// Type of its values.
    pub ty: ColumnType,
    /// Whether it can be null.
    pub nullable: bool,
    /// Whether it can hold what the watched programs said to each other.
    pub sensitive: bool,
    /// Documentation, one item per line of source.
    pub doc_lines: &'static [&'static str],
}

impl Column {
    /// Documentation as one line of text.
    pub fn doc(&self) -> String {
        one_line(self.doc_lines)
    }
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// A ULID, as its 26 characters.
    Id,
    /// Text.
    Text,
    /// A word from a closed list, or a value that repeats so much that a dictionary pays.
    Word,
    /// Bytes.
    Bytes,
    /// True or false.
    Bool,
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// Nanoseconds since the Unix epoch, UTC.
    Utc,
    /// Nanoseconds of `CLOCK_BOOTTIME`, as a signed number: unsigned 64-bit columns are not portable.
    Boot,
    /// A list of texts; empty rather than null.
    TextList,
}

/// One cell of a row, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// No value.
    Null,
    /// [`ColumnType::Id`].
    Id(ulid::Ulid),
    /// [`ColumnType::Text`] or [`ColumnType::Word`].
    Text(&'a str),
    /// [`ColumnType::Bytes`].
    Bytes(&'a [u8]),
    /// [`ColumnType::Bool`].
    Bool(bool),
    /// [`ColumnType::U32`].
    U32(u32),
    /// [`ColumnType::U64`].
    U64(u64),
    /// [`ColumnType::I64`].
    I64(i64),
    /// [`ColumnType::Utc`].
    Utc(UtcNs),
    /// [`ColumnType::Boot`].
    Boot(BootNs),
    /// [`ColumnType::TextList`] of our own words.
    Words(&'a [&'static str]),
    /// [`ColumnType::TextList`].
    Texts(&'a [String]),
}

/// Receives the cells of a row, in the order of [`Table::columns`].
pub trait ColumnVisitor {
    /// One cell: `value` is of `column`'s type, or null if the column allows it.
    fn cell(&mut self, column: &'static Column, value: Value<'_>);
}

/// A row whose cells can be walked.
pub trait TableRow: fmt::Debug {
    /// The table it belongs to.
    fn table(&self) -> &'static Table;

    /// The time that selects its partition.
    fn partition_utc(&self) -> UtcNs;

    /// Calls `visitor` once per column, in order.
    fn visit(&self, visitor: &mut dyn ColumnVisitor);
}

/// A Rust type that can stand in a column.
pub trait Cell {
    /// The column's type.
    const TYPE: ColumnType;
    /// Whether null occurs.
    const NULLABLE: bool = false;
    /// Whether it holds what the watched programs said to each other.
    const SENSITIVE: bool = false;

    /// The cell's value.
    fn value(&self) -> Value<'_>;
}

/// Text that the watched programs exchanged. `Debug` shows its length only, so that it cannot slip into a log.
#[derive(Clone, PartialEq, Eq)]
pub struct PayloadText(pub String);

impl fmt::Debug for PayloadText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<text of {} bytes>", self.0.len())
    }
}

/// Bytes that the watched programs exchanged. `Debug` shows their number only, so that they cannot slip into a log.
#[derive(Clone, PartialEq, Eq)]
pub struct PayloadBytes(pub Arc<Vec<u8>>);

impl fmt::Debug for PayloadBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

macro_rules! cells {
    ($($rust:ty => $ty:ident, $sensitive:literal, |$cell:ident| $value:expr;)*) => {
        $(impl Cell for $rust {
            const TYPE: ColumnType = ColumnType::$ty;
            const SENSITIVE: bool = $sensitive;
            fn value(&self) -> Value<'_> {
                let $cell = self;
                $value
            }
        })*
    };
}

cells! {
    String => Text, false, |cell| Value::Text(cell);
    &'static str => Word, false, |cell| Value::Text(cell);
    Arc<str> => Text, false, |cell| Value::Text(cell);
    bool => Bool, false, |cell| Value::Bool(*cell);
    u32 => U32, false, |cell| Value::U32(*cell);
    u64 => U64, false, |cell| Value::U64(*cell);
    i64 => I64, false, |cell| Value::I64(*cell);
    UtcNs => Utc, false, |cell| Value::Utc(*cell);
    BootNs => Boot, false, |cell| Value::Boot(*cell);
    Vec<&'static str> => TextList, false, |cell| Value::Words(cell);
    Vec<String> => TextList, false, |cell| Value::Texts(cell);
    PayloadText => Text, true, |cell| Value::Text(&cell.0);
    PayloadBytes => Bytes, true, |cell| Value::Bytes(&cell.0);
}

impl<T: Cell> Cell for Option<T> {
    const TYPE: ColumnType = T::TYPE;
    const NULLABLE: bool = true;
    const SENSITIVE: bool = T::SENSITIVE;

    fn value(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, T::value)
    }
}

/// Declares one table: the struct of a row, its columns and the walk over them.
///
/// `"name"` is the table's name, `by column` the column whose date selects the partition. Documentation comments become
/// the documentation of the struct's fields and of the columns alike.
macro_rules! table {
    (
        $(#[doc = $table_doc:literal])*
        $row:ident: $name:literal by $partition:ident {
            $($(#[doc = $doc:literal])* $column:ident: $ty:ty,)*
        }
    ) => {
        $(#[doc = $table_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $row {
            $($(#[doc = $doc])* pub $column: $ty,)*
        }

        impl $row {
            /// The table of these rows.
            pub const TABLE: $crate::row::Table = $crate::row::Table {
                name: $name,
                doc_lines: &[$($table_doc),*],
                columns: Self::COLUMNS,
                partition_column: stringify!($partition),
            };

            const COLUMNS: &'static [$crate::row::Column] = {
                use $crate::row::Cell;
                &[$($crate::row::Column {
                    name: stringify!($column),
                    ty: <$ty as Cell>::TYPE,
                    nullable: <$ty as Cell>::NULLABLE,
                    sensitive: <$ty as Cell>::SENSITIVE,
                    doc_lines: &[$($doc),*],
                }),*]
            };
        }

        impl $crate::row::TableRow for $row {
            fn table(&self) -> &'static $crate::row::Table {
                const { &Self::TABLE }
            }

            fn partition_utc(&self) -> $crate::row::UtcNs {
                self.$partition
            }

            fn visit(&self, visitor: &mut dyn $crate::row::ColumnVisitor) {
                let mut columns = Self::COLUMNS.iter();
                $(if let Some(column) = columns.next() {
                    visitor.cell(column, $crate::row::Cell::value(&self.$column));
                })*
            }
        }
    };
}

pub(super) use table;

fn one_line(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
    {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(line);
    }
    text
}
