//! Reads JSON text into a tree whose values know where they stand.
//!
//! The language is strict JSON (RFC 8259) plus `//` comments, which run to the end of their line; nothing else
//! is lenient. A byte order mark at the very start is the caller's to remove. Nesting is limited, so that no
//! text can exhaust the stack. A key that occurs twice in one object is listed beside the tree, which keeps the
//! first.

use std::collections::HashMap;
use std::fmt::Write as _;

mod number;
#[cfg(test)]
mod tests;

pub(crate) use number::Number;

/// Deepest nesting of lists and objects; a configuration needs four levels.
pub(crate) const MAX_DEPTH: usize = 64;

/// A value with its place in the text.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    /// Byte offset of the value's first character.
    pub(crate) start: usize,
    /// Byte offset behind its last character.
    pub(crate) end: usize,
    pub(crate) value: Value,
}

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Node>),
    Object(Vec<Member>),
}

/// One `"key": value` of an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) key: String,
    /// Byte offset of the key's opening quote.
    pub(crate) key_start: usize,
    pub(crate) node: Node,
}

/// A key that an object has already had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Duplicate {
    /// JSON path of the key.
    pub(crate) path: String,
    /// Byte offsets of the first occurrence and of this one.
    pub(crate) first: usize,
    pub(crate) again: usize,
}

/// A text that was read to its end.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Node,
    pub(crate) duplicates: Vec<Duplicate>,
}

/// Why a text is not JSON; reading stops at the first reason.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) offset: usize,
    /// JSON path of the value that was being read.
    pub(crate) path: String,
    pub(crate) found: String,
    pub(crate) expected: String,
}

/// Appends `.key`, quoted if it is not a plain name, to a JSON path.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let is_plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    // Writing to a String cannot fail.
    let _ = match (is_plain, path.is_empty()) {
        (true, true) => write!(path, "{key}"),
        (true, false) => write!(path, ".{key}"),
        (false, _) => write!(path, "[{}]", quoted(key)),
    };
}

/// Appends `[index]` to a JSON path.
pub(crate) fn push_index(path: &mut String, index: usize) {
    let _ = write!(path, "[{index}]");
}

/// A string as messages show it: quoted, on one line, cut when long.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 120;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((cut, _)) => format!("{:?}...", text.get(..cut).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// Reads `text`, which holds one value and nothing after it but blanks and comments.
pub(crate) fn parse(text: &str) -> Result<Document, SyntaxError> {
    let mut parser = Parser { text, offset: 0, path: Vec::new(), duplicates: Vec::new() };
    parser.skip_blanks();
    let root = parser.value(0)?;
    parser.skip_blanks();
    if parser.offset < text.len() {
        return Err(parser.unexpected("the end of the text: one value makes a file"));
    }
    Ok(Document { root, duplicates: parser.duplicates })
}

enum Step {
    Key(String),
    Index(usize),
}

struct Parser<'t> {
    text: &'t str,
    offset: usize,
    path: Vec<Step>,
    duplicates: Vec<Duplicate>,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.offset..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.offset).copied()
    }

    /// Steps over `byte` if it is next.
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.offset += 1;
        }
        is_next
    }

    fn path_text(&self) -> String {
        let mut text = String::new();
        for step in &self.path {
            match step {
                Step::Key(key) => push_key(&mut text, key),
                Step::Index(index) => push_index(&mut text, *index),
            }
        }
        text
    }

    fn error(&self, offset: usize, found: String, expected: &str) -> SyntaxError {
        SyntaxError { offset, path: self.path_text(), found, expected: expected.to_owned() }
    }

    /// The error for what stands at the current offset.
    fn unexpected(&self, expected: &str) -> SyntaxError {
        let found = match self.rest().chars().next() {
            None => "the end of the text".to_owned(),
            Some(c) if c.is_ascii_alphanumeric() => {
                format!(
                    "`{}`",
                    self.rest().chars().take(24).take_while(char::is_ascii_alphanumeric).collect::<String>()
                )
            }
            Some('/') if self.rest().starts_with("/*") => {
                "`/*` (of comments, only those from `//` to the end of the line are read)".to_owned()
            }
            Some(c) if c.is_control() => format!("the control character U+{:04X}", u32::from(c)),
            Some(c) => format!("`{c}`"),
        };
        self.error(self.offset, found, expected)
    }

    fn skip_blanks(&mut self) {
        loop {
            let rest = self.rest();
            let blanks = rest.bytes().take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
            self.offset += blanks;
            if !self.rest().starts_with("//") {
                return;
            }
            self.offset += self.rest().bytes().take_while(|b| !matches!(b, b'\n' | b'\r')).count();
        }
    }

    fn value(&mut self, depth: usize) -> Result<Node, SyntaxError> {
        let start = self.offset;
        let value = match self.peek() {
            Some(b'{' | b'[') if depth >= MAX_DEPTH => {
                return Err(self.unexpected(&format!("at most {MAX_DEPTH} levels of lists and objects")));
            }
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.list(depth)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            _ => self.word()?,
        };
        Ok(Node { start, end: self.offset, value })
    }

    fn word(&mut self) -> Result<Value, SyntaxError> {
        let length = self.rest().bytes().take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').count();
        let value = match self.rest().get(..length) {
            Some("null") => Value::Null,
            Some("true") => Value::Bool(true),
            Some("false") => Value::Bool(false),
            _ => {
                return Err(
                    self.unexpected("a JSON value (object, list, \"string\", number, true, false or null)")
                );
            }
        };
        self.offset += length;
        Ok(value)
    }

    fn object(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let opened = self.offset;
        self.offset += 1;
        let mut members: Vec<Member> = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        self.skip_blanks();
        if self.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.unexpected(if members.is_empty() {
                    "a \"key\" or `}`"
                } else {
                    "a \"key\" (no comma may follow the last value)"
                }));
            }
            let key_start = self.offset;
            let key = self.string()?;
            self.path.push(Step::Key(key.clone()));
            self.skip_blanks();
            if !self.take(b':') {
                return Err(self.unexpected("`:` after the key"));
            }
            self.skip_blanks();
            let node = self.value(depth + 1)?;
            if let Some(&first) = seen.get(&key) {
                self.duplicates.push(Duplicate { path: self.path_text(), first, again: key_start });
            } else {
                seen.insert(key.clone(), key_start);
                members.push(Member { key, key_start, node });
            }
            self.path.pop();
            self.skip_blanks();
            if self.take(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.take(b',') {
                return Err(self.unclosed("object", opened, "`,` or `}`"));
            }
            self.skip_blanks();
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let opened = self.offset;
        self.offset += 1;
        let mut nodes = Vec::new();
        self.skip_blanks();
        if self.take(b']') {
            return Ok(Value::List(nodes));
        }
        loop {
            if self.peek() == Some(b']') {
                return Err(self.unexpected("a value (no comma may follow the last value)"));
            }
            self.path.push(Step::Index(nodes.len()));
            nodes.push(self.value(depth + 1)?);
            self.path.pop();
            self.skip_blanks();
            if self.take(b']') {
                return Ok(Value::List(nodes));
            }
            if !self.take(b',') {
                return Err(self.unclosed("list", opened, "`,` or `]`"));
            }
            self.skip_blanks();
        }
    }

    /// The error for a list or object that goes on without a comma, or never ends.
    fn unclosed(&self, what: &str, opened: usize, expected: &str) -> SyntaxError {
        let line = 1 + self.text.bytes().take(opened).filter(|b| *b == b'\n').count();
        self.unexpected(&format!("{expected} of the {what} that begins in line {line}"))
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        self.offset += 1;
        let mut string = String::new();
        loop {
            let plain = self.rest().bytes().take_while(|b| !matches!(b, b'"' | b'\\' | 0..=0x1f)).count();
            string.push_str(self.rest().get(..plain).unwrap_or_default());
            self.offset += plain;
            match self.peek() {
                Some(b'"') => {
                    self.offset += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                _ => return Err(self.unexpected("`\"` at the end of the string, on its line")),
            }
        }
    }

    /// Reads one escape sequence, a pair of `\u` where it takes two.
    fn escape(&mut self) -> Result<char, SyntaxError> {
        let start = self.offset;
        self.offset += 1;
        let plain = match self.peek() {
            Some(c @ (b'"' | b'\\' | b'/')) => char::from(c),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(start),
            _ => return Err(self.unexpected("one of \" \\ / b f n r t u after a backslash")),
        };
        self.offset += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self, start: usize) -> Result<char, SyntaxError> {
        let first = self.hex_unit()?;
        let mut code = u32::from(first);
        if (0xd800..0xdc00).contains(&first) && self.rest().starts_with("\\u") {
            self.offset += 1;
            let second = self.hex_unit()?;
            if (0xdc00..0xe000).contains(&second) {
                code = 0x1_0000 + ((code - 0xd800) << 10) + (u32::from(second) - 0xdc00);
            }
        }
        char::from_u32(code).ok_or_else(|| {
            let found = format!("half a surrogate pair (\\u{first:04x})");
            self.error(start, found, "a character, or both halves of a pair")
        })
    }

    /// Reads `uXXXX`.
    fn hex_unit(&mut self) -> Result<u16, SyntaxError> {
        self.offset += 1;
        let digits = self.rest().get(..4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(unit) = digits.and_then(|d| u16::from_str_radix(d, 16).ok()) else {
            return Err(self.unexpected("four hexadecimal digits after \\u"));
        };
        self.offset += 4;
        Ok(unit)
    }

    fn number(&mut self) -> Result<Number, SyntaxError> {
        let start = self.offset;
        self.take(b'-');
        if self.take(b'0') {
            if matches!(self.peek(), Some(b'0'..=b'9')) {
                return Err(self.error(
                    start,
                    "a number with a leading zero".to_owned(),
                    "a number without it",
                ));
            }
        } else {
            self.digits("a digit after the minus sign")?;
        }
        let mut is_plain = true;
        if self.take(b'.') {
            is_plain = false;
            self.digits("a digit after the decimal point")?;
        }
        if self.take(b'e') || self.take(b'E') {
            is_plain = false;
            let _has_sign = self.take(b'+') || self.take(b'-');
            self.digits("a digit in the exponent")?;
        }
        let text = self.text.get(start..self.offset).unwrap_or_default();
        Number::new(text, is_plain).ok_or_else(|| {
            let found = format!("`{}`", text.get(..40).unwrap_or(text));
            self.error(start, found, "a number that fits into 64-bit floating point")
        })
    }

    fn digits(&mut self, expected: &str) -> Result<(), SyntaxError> {
        let count = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        if count == 0 {
            return Err(self.unexpected(expected));
        }
        self.offset += count;
        Ok(())
    }
}
