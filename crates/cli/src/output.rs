//! What a command found, for people and for programs.

use std::io::Write;

use hps_core::{Error, ErrorKind};
use serde_json::{Value, json};

/// The result of a command.
pub(crate) struct Outcome {
    /// Nothing is wrong.
    pub(crate) is_fine: bool,
    /// For people.
    pub(crate) lines: Vec<String>,
    /// For programs: an object; `ok` is added.
    pub(crate) json: Value,
}

impl Outcome {
    /// The command could not do its work.
    pub(crate) fn failed(error: &Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::InvalidArgument => "invalid argument",
            ErrorKind::Config => "config",
            ErrorKind::NotFound => "not found",
            ErrorKind::Device => "device",
            ErrorKind::Storage => "storage",
            ErrorKind::OutOfMemory => "out of memory",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Closed => "closed",
            ErrorKind::Unsupported => "unsupported",
            _ => "internal",
        };
        Self {
            is_fine: false,
            lines: vec![format!("error: {error}")],
            json: json!({"error": {"kind": kind, "message": error.to_string()}}),
        }
    }

    /// Prints it to stdout; an error without `as_json` to stderr.
    pub(crate) fn print(&self, as_json: bool) {
        let text = if as_json {
            let mut value = self.json.clone();
            if let Value::Object(members) = &mut value {
                members.insert("ok".into(), self.is_fine.into());
            }
            format!("{value:#}")
        } else {
            self.lines.join("\n")
        };
        // Whoever closed the other end does not want it.
        let _ = if self.is_fine || as_json {
            writeln!(std::io::stdout(), "{text}")
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }
}

/// A number of bytes as people write it.
pub(crate) fn bytes(number: u64) -> String {
    let mut value = number as f64;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "bytes" { format!("{number} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A whole number in groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(1_500), "1.5 kB");
        assert_eq!(bytes(2_720_000_000), "2.7 GB");
        assert_eq!(bytes(3_000_000_000_000_000), "3000.0 TB");
    }
}
