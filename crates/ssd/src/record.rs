//! What is recorded of a table, in the column family `__hps_tables` under the table's name.
//!
//! ```json
//! {"format": 1, "key_bytes": 8, "row_bytes": 64,
//!  "active": "hps_et.m.t",            the column family that is served; null: none
//!  "held": "table",                   "table", "unrecorded" (the predecessor's) or "nothing" (some rows, not whole)
//!  "record": "...",                   the caller's text, if "table"
//!  "rows": 1000000,                   rows of the active column family; null: written since they were counted
//!  "counted": {"rows": 1000000, "bytes": 72000000},      then: what they were when they were counted; null: never, or "rows" says it
//!  "loading": "__hps_2.hps_et.m.t",   a load that has not been committed; null: none
//!  "dropping": null}                  what the last commit replaced, if it is not known to be gone
//! ```
//!
//! A table has no record as long as it holds nothing, or what the predecessor wrote.

use hps_core::tier::{Held, TableSpec};
use serde_json::{Value, json};

use crate::entry::key_bytes;

/// Column family of the records.
pub(crate) const RECORDS: &str = "__hps_tables";

/// What names of ours begin with. Tables' names begin with `hps_et.`, so that the two never meet.
pub(crate) const OUR_PREFIX: &str = "__hps_";

/// Raised when the meaning of a field changes.
const FORMAT: u64 = 1;

/// What is known of the number of rows of the active column family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RowCount {
    /// They were never counted.
    #[default]
    Unknown,
    /// So many, in so many bytes, when they were counted; they were written since.
    Before { rows: u64, bytes: u64 },
    /// So many.
    Exact(u64),
}

impl RowCount {
    pub(crate) fn exact(self) -> Option<u64> {
        match self {
            Self::Exact(rows) => Some(rows),
            Self::Before { .. } | Self::Unknown => None,
        }
    }

    /// About how many rows there are, if now they take `bytes`: what there were, unless that has changed by more than a fifth. Most
    /// writes are new rows of keys that are there, which take room until they are compacted.
    pub(crate) fn estimate(self, bytes: u64) -> Option<u64> {
        match self {
            Self::Exact(rows) => Some(rows),
            Self::Before { rows, bytes: before } if before.abs_diff(bytes) <= before / 5 => Some(rows),
            Self::Before { .. } | Self::Unknown => None,
        }
    }
}

/// The record of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRecord {
    pub(crate) key_bytes: usize,
    pub(crate) row_bytes: usize,
    pub(crate) active: Option<String>,
    pub(crate) held: Held,
    pub(crate) rows: RowCount,
    pub(crate) loading: Option<String>,
    pub(crate) dropping: Option<String>,
}

impl TableRecord {
    /// The record of a table that holds nothing.
    pub(crate) fn nothing(spec: &TableSpec) -> Self {
        Self {
            key_bytes: key_bytes(spec.key_width),
            row_bytes: spec.row_bytes,
            active: None,
            held: Held::Nothing,
            rows: RowCount::Unknown,
            loading: None,
            dropping: None,
        }
    }

    /// The record that stands for a column family without one.
    pub(crate) fn unrecorded(spec: &TableSpec) -> Self {
        Self { active: Some(spec.name.clone()), held: Held::Unrecorded, ..Self::nothing(spec) }
    }

    /// True if the table needs no record.
    pub(crate) fn is_implied(&self, spec: &TableSpec) -> bool {
        *self == Self::nothing(spec) || *self == Self::unrecorded(spec)
    }

    pub(crate) fn to_text(&self) -> String {
        let (held, record) = match &self.held {
            Held::Nothing => ("nothing", None),
            Held::Unrecorded => ("unrecorded", None),
            Held::Table(record) => ("table", Some(record)),
        };
        json!({
            "format": FORMAT,
            "key_bytes": self.key_bytes,
            "row_bytes": self.row_bytes,
            "active": self.active,
            "held": held,
            "record": record,
            "rows": self.rows.exact(),
            "counted": match self.rows {
                RowCount::Before { rows, bytes } => json!({"rows": rows, "bytes": bytes}),
                RowCount::Exact(_) | RowCount::Unknown => Value::Null,
            },
            "loading": self.loading,
            "dropping": self.dropping,
        })
        .to_string()
    }

    /// Reads a record; the error says what is wrong with it.
    pub(crate) fn from_text(text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        match value.get("format").and_then(Value::as_u64) {
            Some(FORMAT) => {}
            Some(format) => return Err(format!("format {format} is newer than this build's {FORMAT}")),
            None => return Err("it has no \"format\"".into()),
        }
        let size = |name: &str| {
            let size = value.get(name).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
            size.ok_or_else(|| format!("\"{name}\" is not a size"))
        };
        let name = |name: &str| match value.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("\"{name}\" is not a name")),
        };
        let held = match (value.get("held").and_then(Value::as_str), name("record")?) {
            (Some("nothing"), None) => Held::Nothing,
            (Some("unrecorded"), None) => Held::Unrecorded,
            (Some("table"), Some(record)) => Held::Table(record),
            _ => return Err("\"held\" and \"record\" do not go together".into()),
        };
        let counted = |name: &str| value.pointer(name).and_then(Value::as_u64);
        let rows = match (counted("/rows"), counted("/counted/rows"), counted("/counted/bytes")) {
            (Some(rows), _, _) => RowCount::Exact(rows),
            (None, Some(rows), Some(bytes)) => RowCount::Before { rows, bytes },
            (None, _, _) => RowCount::Unknown,
        };
        Ok(Self {
            key_bytes: size("key_bytes")?,
            row_bytes: size("row_bytes")?,
            active: name("active")?,
            held,
            rows,
            loading: name("loading")?,
            dropping: name("dropping")?,
        })
    }
}

/// Names that a table's column family may have: its own, which the predecessor reads too, and others for when that is
/// taken.
pub(crate) fn column_family_names(table: &str) -> impl Iterator<Item = String> + '_ {
    std::iter::once(table.to_owned())
        .chain((2u64..).map(move |number| format!("{OUR_PREFIX}{number}.{table}")))
}

/// True if `name` is one of [`column_family_names`] of the table.
pub(crate) fn is_column_family_of(name: &str, table: &str) -> bool {
    let numbered = |name: &str| {
        let (number, rest) = name.strip_prefix(OUR_PREFIX)?.split_once('.')?;
        Some(rest == table && number.parse::<u64>().is_ok())
    };
    name == table || numbered(name).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use hps_core::key::KeyWidth;

    use super::*;

    fn spec() -> TableSpec {
        TableSpec { name: "hps_et.m.t".into(), row_bytes: 64, key_width: KeyWidth::Bits32 }
    }

    #[test]
    fn records_survive_being_written_and_read() {
        let record = TableRecord {
            active: Some("hps_et.m.t".into()),
            held: Held::Table("{\"source\": \"a \\\" b\"}".into()),
            rows: RowCount::Exact(7),
            loading: Some("__hps_2.hps_et.m.t".into()),
            ..TableRecord::nothing(&spec())
        };
        let written = TableRecord { rows: RowCount::Before { rows: 7, bytes: 700 }, ..record.clone() };
        for record in [record, written, TableRecord::nothing(&spec()), TableRecord::unrecorded(&spec())] {
            assert_eq!(TableRecord::from_text(record.to_text().as_bytes()), Ok(record));
        }
    }

    #[test]
    fn a_count_serves_as_an_estimate_until_much_was_written() {
        let counts = [RowCount::Exact(7), RowCount::Before { rows: 7, bytes: 1_000 }, RowCount::Unknown];
        let estimates = |bytes| counts.map(|count| count.estimate(bytes));
        for bytes in [800, 1_000, 1_200] {
            assert_eq!(estimates(bytes), [Some(7), Some(7), None], "{bytes} bytes");
        }
        for bytes in [0, 799, 1_201, u64::MAX] {
            assert_eq!(estimates(bytes), [Some(7), None, None], "{bytes} bytes");
        }
        assert_eq!(counts.map(RowCount::exact), [Some(7), None, None]);
    }

    #[test]
    fn a_record_that_cannot_be_understood_is_refused_with_the_reason() {
        let reason = |text: &str| TableRecord::from_text(text.as_bytes()).unwrap_err();
        assert!(reason("{").contains("EOF"));
        assert!(reason("{}").contains("format"));
        assert!(reason("{\"format\": 2}").contains("newer"));
        assert!(reason("{\"format\": 1, \"held\": \"nothing\"}").contains("key_bytes"));
        let whole_without_text = "{\"format\": 1, \"held\": \"table\", \"key_bytes\": 8, \"row_bytes\": 4}";
        assert!(reason(whole_without_text).contains("record"));
    }

    #[test]
    fn the_plain_name_comes_first() {
        let names: Vec<_> = column_family_names("hps_et.m.t").take(3).collect();
        assert_eq!(names, ["hps_et.m.t", "__hps_2.hps_et.m.t", "__hps_3.hps_et.m.t"]);
        assert!(names.iter().all(|name| is_column_family_of(name, "hps_et.m.t")));
        for other in ["hps_et.m.t2", "__hps_2.hps_et.m.t2", "__hps_x.hps_et.m.t", RECORDS, "default"] {
            assert!(!is_column_family_of(other, "hps_et.m.t"), "{other}");
        }
    }
}
