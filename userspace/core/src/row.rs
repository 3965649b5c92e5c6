//! The evidence tables: what leaves the core, row by row.
//!
//! Owns the shape of the evidence: one file per table, each declared once with the `table!` macro, which yields the Rust
//! struct, the list of its columns with their documentation, and a way to walk them. Parquet, JSON lines and
//! `countersign schema` are all derived from that one declaration. It does not own any file format, and it does not decide
//! what goes into a row: the correlator fills these structs, a sink in the shell stores them.
//!
//! Rules that hold in every table:
//! - the first column is the row's own id where it has one; `capture_id` is in every table and part of every join;
//! - a time is UTC nanoseconds (`*_utc`) with the boot clock beside it (`*_boot_ns`) where the kernel gave one;
//! - columns whose values come from the watched programs are text or bytes, never parsed names of our own; words of our
//!   own come from closed lists, which the column's documentation gives;
//! - null means "not known" or "does not apply", never an empty value.

pub mod ids;
mod table;

mod call;
mod channel;
mod channel_end;
mod coverage;
mod entry;
mod finding;
mod frame;
mod process;
mod sighting;
mod verdict;

pub use self::call::CallRow;
pub use self::channel::ChannelRow;
pub use self::channel_end::ChannelEndRow;
pub use self::coverage::CoverageRow;
pub use self::entry::EntryRow;
pub use self::finding::FindingRow;
pub use self::frame::FrameRow;
pub use self::process::ProcessRow;
pub use self::sighting::SightingRow;
pub use self::table::{
    Cell, Column, ColumnType, ColumnVisitor, PayloadBytes, PayloadText, Table, TableRow, Value,
};
pub use self::verdict::VerdictRow;
pub use crate::time::{BootNs, UtcNs};

macro_rules! rows {
    ($($variant:ident($row:ident)),* $(,)?) => {
        /// One row of one table. Boxed, so that a queue of rows costs what its rows cost.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Row {
            $(#[doc = concat!("A row of the table of [`", stringify!($row), "`].")] $variant(Box<$row>),)*
        }

        impl Row {
            /// Every table, in the order in which they are documented.
            pub const TABLES: &'static [&'static Table] = &[$(&$row::TABLE),*];

            /// The row as something whose columns can be walked.
            pub fn as_table_row(&self) -> &dyn TableRow {
                match self { $(Self::$variant(row) => row.as_ref(),)* }
            }
        }

        $(impl From<$row> for Row {
            fn from(row: $row) -> Self {
                Self::$variant(Box::new(row))
            }
        })*
    };
}

rows! {
    Verdict(VerdictRow),
    Finding(FindingRow),
    Call(CallRow),
    Entry(EntryRow),
    Sighting(SightingRow),
    Frame(FrameRow),
    Channel(ChannelRow),
    ChannelEnd(ChannelEndRow),
    Process(ProcessRow),
    Coverage(CoverageRow),
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_table_and_column_has_a_name_of_its_own_and_a_sentence_about_it() {
        let mut tables = HashSet::new();
        for table in Row::TABLES {
            assert!(tables.insert(table.name), "two tables named {}", table.name);
            assert!(
                table.doc().ends_with('.'),
                "{} is not documented",
                table.name
            );
            let mut columns = HashSet::new();
            for column in table.columns {
                assert!(
                    columns.insert(column.name),
                    "{}.{} twice",
                    table.name,
                    column.name
                );
                assert!(
                    column.doc().ends_with('.'),
                    "{}.{} is not documented",
                    table.name,
                    column.name
                );
            }
        }
    }

    #[test]
    fn every_table_names_its_capture_and_is_partitioned_by_a_time_that_is_never_null() {
        for table in Row::TABLES {
            let capture = table.column("capture_id").expect(table.name);
            assert_eq!(capture.ty, ColumnType::Id);
            assert!(!capture.nullable);
            let time = table.column(table.partition_column).expect(table.name);
            assert_eq!(time.ty, ColumnType::Utc, "{}", table.name);
            assert!(!time.nullable, "{}", table.name);
        }
    }

    #[test]
    fn an_id_column_is_a_ulid_unless_others_gave_the_id() {
        const GIVEN_BY_OTHERS: &[&str] = &[
            "jsonrpc_id",
            "client_id",
            "server_id",
            "log_id",
            "request_id",
        ];
        for table in Row::TABLES {
            for column in table
                .columns
                .iter()
                .filter(|column| column.name.ends_with("_id"))
            {
                let ty = if GIVEN_BY_OTHERS.contains(&column.name) {
                    ColumnType::Text
                } else {
                    ColumnType::Id
                };
                assert_eq!(column.ty, ty, "{}.{}", table.name, column.name);
            }
        }
    }
}
