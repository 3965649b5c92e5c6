//! Rows of any table, for properties.

use countersign_core::row::{
    BootNs, Column, ColumnType, ColumnVisitor, Row, Table, TableRow, UtcNs, Value,
};
use proptest::prelude::*;
use ulid::Ulid;

use crate::{DAY_NS, START};

/// A row of any table with any values of the right types.
#[derive(Clone, Debug)]
pub(crate) struct AnyRow {
    pub(crate) table: &'static Table,
    pub(crate) cells: Vec<Cell>,
}

/// A cell of such a row, or one that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Cell {
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
    /// Puts another value into a column.
    pub(crate) fn set(&mut self, column: &str, cell: Cell) {
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

/// Any row, mostly of three days.
pub(crate) fn any_row() -> impl Strategy<Value = AnyRow> {
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
pub(crate) fn fixed_row(table: &'static Table, at: UtcNs, seed: u64) -> AnyRow {
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
