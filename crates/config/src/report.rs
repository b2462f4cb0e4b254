//! Collects problems and warnings while a text is read, and finds their line and column.

use std::cell::{Cell, RefCell};
use std::path::Path;

use crate::json::{self, Node, Value};
use crate::positions::Positions;
use crate::problem::{ConfigError, Position, Problem, Warning};

/// So many problems, and so many warnings, are described; the rest are counted. A text made to be hostile must
/// not cost more than its length.
const MAX_DESCRIBED: usize = 1000;

/// A value's place: where it stands and how it is called.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Byte offset in the text.
    pub(crate) offset: usize,
    /// JSON path.
    pub(crate) path: String,
}

impl Place {
    /// The place of member `key`, which stands at `offset`.
    pub(crate) fn member(&self, key: &str, offset: usize) -> Self {
        let mut path = self.path.clone();
        json::push_key(&mut path, key);
        Self { offset, path }
    }

    /// The place of list element `index`, which stands at `offset`.
    pub(crate) fn element(&self, index: usize, offset: usize) -> Self {
        let mut path = self.path.clone();
        json::push_index(&mut path, index);
        Self { offset, path }
    }
}

/// What has been noticed about one text so far.
pub(crate) struct Report<'t> {
    file: &'t Path,
    text: &'t str,
    positions: Positions<'t>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Warning>>,
    omitted_problems: Cell<usize>,
    omitted_warnings: Cell<usize>,
}

impl<'t> Report<'t> {
    pub(crate) fn new(file: &'t Path, text: &'t str) -> Self {
        Self {
            file,
            text,
            positions: Positions::new(text),
            problems: RefCell::default(),
            warnings: RefCell::default(),
            omitted_problems: Cell::new(0),
            omitted_warnings: Cell::new(0),
        }
    }

    /// Line and column of a byte offset.
    pub(crate) fn position(&self, offset: usize) -> Position {
        self.positions.of(offset)
    }

    pub(crate) fn problem(&self, place: &Place, found: impl Into<String>, expected: impl Into<String>) {
        self.problem_with_help(place, found, expected, None);
    }

    pub(crate) fn problem_with_help(
        &self,
        place: &Place,
        found: impl Into<String>,
        expected: impl Into<String>,
        help: Option<String>,
    ) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() >= MAX_DESCRIBED {
            self.omitted_problems.set(self.omitted_problems.get() + 1);
            return;
        }
        problems.push(Problem {
            file: self.file.to_owned(),
            position: Some(self.position(place.offset)),
            path: place.path.clone(),
            found: found.into(),
            expected: expected.into(),
            help,
        });
    }

    pub(crate) fn warn(&self, place: &Place, message: impl Into<String>) {
        let mut warnings = self.warnings.borrow_mut();
        if warnings.len() >= MAX_DESCRIBED {
            self.omitted_warnings.set(self.omitted_warnings.get() + 1);
            return;
        }
        warnings.push(Warning {
            file: self.file.to_owned(),
            position: Some(self.position(place.offset)),
            path: place.path.clone(),
            message: message.into(),
        });
    }

    /// What a message calls a value. Strings and numbers are shown as they are written.
    pub(crate) fn describe(&self, node: &Node) -> String {
        match &node.value {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(_) => {
                let digits = self.text.get(node.start..node.end).unwrap_or_default();
                digits.get(..40).map_or_else(|| digits.to_owned(), |cut| format!("{cut}..."))
            }
            Value::String(text) => json::quoted(text),
            Value::List(nodes) if nodes.is_empty() => "an empty list".to_owned(),
            Value::List(nodes) if nodes.len() == 1 => "a list of 1 value".to_owned(),
            Value::List(nodes) => format!("a list of {} values", nodes.len()),
            Value::Object(_) => "an object".to_owned(),
        }
    }

    /// The problems as an error.
    pub(crate) fn into_error(self) -> ConfigError {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.position);
        ConfigError { problems, omitted: self.omitted_problems.get() }
    }

    /// What was read, with the warnings, if there was no problem. `None` has left a problem.
    pub(crate) fn finish<T>(self, read: Option<T>) -> Result<(T, Vec<Warning>), ConfigError> {
        let Some(read) = read.filter(|_| self.problems.borrow().is_empty()) else {
            return Err(self.into_error());
        };
        let mut warnings = self.warnings.into_inner();
        warnings.sort_by_key(|warning| warning.position);
        if self.omitted_warnings.get() > 0 {
            let message = format!("... and {} more warnings", self.omitted_warnings.get());
            warnings.push(Warning {
                file: self.file.to_owned(),
                position: None,
                path: String::new(),
                message,
            });
        }
        Ok((read, warnings))
    }
}
