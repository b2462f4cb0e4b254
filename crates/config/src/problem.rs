//! What is wrong with a configuration, and what its author may want to know.

use std::fmt;
use std::path::PathBuf;

/// Where something stands in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
}

/// One reason why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file.
    pub file: PathBuf,
    /// Where in the file; `None` if the problem is the file itself.
    pub position: Option<Position>,
    /// JSON path of the value, such as `models[0].embedding_vecsize_per_table[2]`; empty at the top level.
    pub path: String,
    /// What is there.
    pub found: String,
    /// What could be there instead.
    pub expected: String,
    /// What to do about it, where `expected` does not say so.
    pub help: Option<String>,
}

/// Something that does not stop a configuration from being used but may surprise its author.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The configuration file.
    pub file: PathBuf,
    /// Where in the file; `None` if it concerns the whole file.
    pub position: Option<Position>,
    /// JSON path of the value; empty at the top level.
    pub path: String,
    /// What happens, and why.
    pub message: String,
}

/// All that is wrong with a configuration, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems found; never empty.
    pub problems: Vec<Problem>,
    /// How many more there are: only the first thousand are described.
    pub omitted: usize,
}

impl ConfigError {
    /// An error about the file as a whole.
    pub(crate) fn about_file(file: PathBuf, found: String, expected: String) -> Self {
        let problem = Problem { file, position: None, path: String::new(), found, expected, help: None };
        Self { problems: vec![problem], omitted: 0 }
    }
}

/// Writes `file:line:column: path: ` as far as they are known.
fn write_place(
    f: &mut fmt::Formatter<'_>,
    file: &std::path::Path,
    position: Option<Position>,
    path: &str,
) -> fmt::Result {
    write!(f, "{}:", file.display())?;
    if let Some(Position { line, column }) = position {
        write!(f, "{line}:{column}:")?;
    }
    if path.is_empty() { write!(f, " ") } else { write!(f, " {path}: ") }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position, &self.path)?;
        write!(f, "found {}, expected {}", self.found, self.expected)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_place(f, &self.file, self.position, &self.path)?;
        f.write_str(&self.message)
    }
}

impl fmt::Display for ConfigError {
    /// One problem per line, without a line end after the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        if self.omitted > 0 {
            write!(f, "\n... and {} more problems", self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
