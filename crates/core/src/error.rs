//! The one error type of the workspace.

use std::fmt;
use std::sync::Arc;

/// Result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Who has to act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller passed something that cannot be served: wrong table, dim, dtype, length.
    InvalidArgument,
    /// `ps.json`, or a file that it names, is wrong.
    Config,
    /// Something that was named does not exist.
    NotFound,
    /// A GPU or its driver failed.
    Device,
    /// A disk, a file or a database failed.
    Storage,
    /// Memory could not be had. Nothing was changed.
    OutOfMemory,
    /// Stored data is not what was written.
    Corrupt,
    /// The store was closed, or this process is a fork of the one that opened it.
    Closed,
    /// This build, or this mode of opening, cannot do what was asked.
    Unsupported,
    /// A bug in this library.
    Internal,
}

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// A kind to match on, a sentence for people, where it happened, and what caused it.
///
/// Cheap to clone: threads that waited for one failed attempt all get the same error.
#[derive(Clone, Debug)]
pub struct Error(Arc<Inner>);

impl Error {
    /// An error of `kind`; `message` says what is wrong and what to do about it.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), context: Vec::new(), source: None }))
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn caused_by(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.edit(|inner| inner.source = Some(source.into()))
    }

    /// Adds where it happened, for example `.at("table", name)`.
    #[must_use]
    pub fn at(self, name: &'static str, value: impl fmt::Display) -> Self {
        self.edit(|inner| inner.context.push((name, value.to_string())))
    }

    /// Who has to act.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    fn edit(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = match Arc::try_unwrap(self.0) {
            Ok(inner) => inner,
            // Somebody else holds the same error: keep its text and start from there.
            Err(shared) => Inner {
                kind: shared.kind,
                message: Error(shared).to_string(),
                context: Vec::new(),
                source: None,
            },
        };
        change(&mut inner);
        Self(Arc::new(inner))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if !self.0.context.is_empty() {
            f.write_str(" [")?;
            for (i, (name, value)) in self.0.context.iter().enumerate() {
                if i > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{name}: {value}")?;
            }
            f.write_str("]")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<hps_config::ConfigError> for Error {
    fn from(error: hps_config::ConfigError) -> Self {
        Self::new(ErrorKind::Config, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_what_where_and_why() {
        let error = Error::new(ErrorKind::Storage, "cannot read rows")
            .at("table", "hps_et.m.t")
            .at("key", 7)
            .caused_by("disk on fire");
        assert_eq!(error.to_string(), "cannot read rows [table: hps_et.m.t, key: 7]: disk on fire");
        assert_eq!(error.kind(), ErrorKind::Storage);
    }

    #[test]
    fn a_shared_error_keeps_its_text_when_context_is_added() {
        let error = Error::new(ErrorKind::Config, "bad").at("file", "a");
        let shared = error.clone();
        assert_eq!(error.at("model", "m").to_string(), "bad [file: a] [model: m]");
        assert_eq!(shared.to_string(), "bad [file: a]");
    }
}
