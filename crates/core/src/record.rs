//! Where a loaded table came from: the record that the truth keeps with it, so that a later start can tell whether
//! its model files have changed.

use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result};
use crate::load::Source;
use crate::model_files::{FileState, ModelFiles};

/// What is recorded of one directory of model files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceRecord {
    directory: String,
    keys: FileState,
    vectors: FileState,
    /// Empty if the rows were there before us and the files were never read.
    checksum: String,
}

impl SourceRecord {
    pub(crate) fn new(files: &ModelFiles, checksum: String) -> Self {
        Self {
            directory: files.directory().display().to_string(),
            keys: files.keys_state().clone(),
            vectors: files.vectors_state().clone(),
            checksum,
        }
    }

    /// Same place, same sizes, same times of modification.
    fn is_untouched(&self, files: &ModelFiles) -> bool {
        let now = Self::new(files, self.checksum.clone());
        *self == now
    }

    /// Copied or touched, but perhaps with the same content.
    fn may_be_equal(&self, files: &ModelFiles) -> bool {
        !self.checksum.is_empty()
            && self.keys.bytes == files.keys_state().bytes
            && self.vectors.bytes == files.vectors_state().bytes
    }
}

/// The record of a table: one entry for each table that shares its key space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TableRecord {
    pub(crate) sources: Vec<SourceRecord>,
}

/// What the files are, compared with the record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// Nothing was touched.
    Same,
    /// Touched, moved or copied, but byte for byte what was loaded: the new record to keep.
    SameContent(TableRecord),
    /// Another table.
    Changed,
}

/// Where rows came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Directory of the model files.
    pub directory: String,
    /// Bytes of both files.
    pub bytes: u64,
    /// See [`ModelFiles::read`]; empty if the rows were there before us and the files were never read.
    pub checksum: String,
}

/// What model files are to a table, as far as can be told without reading them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It was loaded from them, and they were not touched since.
    Same,
    /// They were copied or touched: whoever opens the table reads them to see whether they are others.
    Touched,
    /// They are others.
    Changed,
}

/// Compares the files with a record that the truth keeps ([`crate::tier::Held::Table`]), without reading them.
///
/// # Errors
/// `Corrupt` or `Unsupported` if the record cannot be understood.
pub fn compare(record: &str, sources: &[Source]) -> Result<Comparison> {
    let record = TableRecord::from_text(record)?;
    let pairs = || record.sources.iter().zip(sources);
    Ok(if record.sources.len() != sources.len() {
        Comparison::Changed
    } else if pairs().all(|(source, now)| source.is_untouched(&now.files)) {
        Comparison::Same
    } else if pairs().all(|(source, now)| source.may_be_equal(&now.files)) {
        Comparison::Touched
    } else {
        Comparison::Changed
    })
}

/// Where the rows of a table came from, as its record says.
///
/// # Errors
/// As [`compare`].
pub fn origins(record: &str) -> Result<Vec<Origin>> {
    let record = TableRecord::from_text(record)?;
    let origin = |source: SourceRecord| Origin {
        directory: source.directory,
        bytes: source.keys.bytes.saturating_add(source.vectors.bytes),
        checksum: source.checksum,
    };
    Ok(record.sources.into_iter().map(origin).collect())
}

impl TableRecord {
    /// Compares the files with the record; reads them only if sizes agree but places or times do not.
    pub(crate) fn compare(&self, files: &[&ModelFiles]) -> Result<Compared> {
        if self.sources.len() != files.len() {
            return Ok(Compared::Changed);
        }
        let pairs = || self.sources.iter().zip(files);
        if pairs().all(|(source, files)| source.is_untouched(files)) {
            return Ok(Compared::Same);
        }
        if !pairs().all(|(source, files)| source.may_be_equal(files)) {
            return Ok(Compared::Changed);
        }
        let mut sources = Vec::with_capacity(files.len());
        for (source, files) in pairs() {
            let checksum = files.read(&mut |_, _| Ok(()))?;
            if checksum != source.checksum {
                return Ok(Compared::Changed);
            }
            sources.push(SourceRecord::new(files, checksum));
        }
        Ok(Compared::SameContent(Self { sources }))
    }

    pub(crate) fn to_text(&self) -> String {
        let file = |state: &FileState| json!({"bytes": state.bytes, "mtime_ns": state.mtime_ns});
        let sources: Vec<Value> = self
            .sources
            .iter()
            .map(|source| {
                json!({
                    "directory": source.directory,
                    "key": file(&source.keys),
                    "emb_vector": file(&source.vectors),
                    "checksum": source.checksum,
                })
            })
            .collect();
        json!({"format": 1, "sources": sources}).to_string()
    }

    pub(crate) fn from_text(text: &str) -> Result<Self> {
        let bad =
            || Error::new(ErrorKind::Corrupt, format!("cannot read the record of a table's source: {text}"));
        let value: Value = serde_json::from_str(text).map_err(|why| bad().caused_by(why))?;
        let file = |value: &Value| -> Option<FileState> {
            Some(FileState {
                bytes: value.get("bytes")?.as_u64()?,
                mtime_ns: value.get("mtime_ns")?.as_i64()?,
            })
        };
        let source = |value: &Value| -> Option<SourceRecord> {
            Some(SourceRecord {
                directory: value.get("directory")?.as_str()?.to_owned(),
                keys: file(value.get("key")?)?,
                vectors: file(value.get("emb_vector")?)?,
                checksum: value.get("checksum")?.as_str()?.to_owned(),
            })
        };
        if value.get("format").and_then(Value::as_u64) != Some(1) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the record of a table's source was written by a newer version of hps: {text}"),
            ));
        }
        let sources = value.get("sources").and_then(Value::as_array).ok_or_else(bad)?;
        let sources = sources.iter().map(|value| source(value).ok_or_else(bad)).collect::<Result<_>>()?;
        Ok(Self { sources })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyWidth;

    #[test]
    fn a_record_survives_the_way_through_text_and_sees_copies_and_changes() {
        let write = |directory: &std::path::Path, rows: &[u8]| {
            std::fs::write(directory.join("key"), 5i64.to_le_bytes()).unwrap();
            std::fs::write(directory.join("emb_vector"), rows).unwrap();
            ModelFiles::open(directory, rows.len(), KeyWidth::Bits64).unwrap()
        };
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = write(first.path(), &[1, 2, 3, 4]);
        let checksum = files.read(&mut |_, _| Ok(())).unwrap();
        let record = TableRecord { sources: vec![SourceRecord::new(&files, checksum)] };
        let record = TableRecord::from_text(&record.to_text()).unwrap();
        assert_eq!(record.compare(&[&files]).unwrap(), Compared::Same);

        let copy = write(second.path(), &[1, 2, 3, 4]);
        let Compared::SameContent(renewed) = record.compare(&[&copy]).unwrap() else {
            panic!("a copy has the same content");
        };
        assert_eq!(renewed.compare(&[&copy]).unwrap(), Compared::Same);
        let source = |files: &ModelFiles| Source { table: "t".into(), files: files.clone() };
        let text = record.to_text();
        assert_eq!(compare(&text, &[source(&files)]).unwrap(), Comparison::Same);
        assert_eq!(compare(&text, &[source(&copy)]).unwrap(), Comparison::Touched);
        assert_eq!(compare(&text, &[]).unwrap(), Comparison::Changed);
        let origin = origins(&text).unwrap().remove(0);
        assert_eq!((origin.bytes, origin.directory), (12, first.path().display().to_string()));
        assert_eq!(record.compare(&[&files, &copy]).unwrap(), Compared::Changed);

        let other = write(second.path(), &[1, 2, 3, 5]);
        assert_eq!(record.compare(&[&other]).unwrap(), Compared::Changed);
        assert_eq!(TableRecord::from_text("{}").unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(TableRecord::from_text("x").unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
