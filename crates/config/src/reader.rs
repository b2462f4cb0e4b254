//! Typed access to the values of an object: each key is named once, with its default and its range.
//!
//! A value that does not fit is reported and replaced by the default, so that reading goes on and finds the next
//! problem too; the report's error keeps such a configuration from being used. The keys asked for are the keys
//! that exist: [`Section::finish`] warns about all others.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use crate::json::{self, Member, Node, Number, Value};
use crate::nearest::nearest;
use crate::report::{Place, Report};

/// The spellings of an enumeration.
pub(crate) struct Choices<T: 'static> {
    /// Each value with its spellings, the usual one first.
    pub(crate) accepted: &'static [(T, &'static [&'static str])],
    /// Spellings that deserve an explanation of why they are refused.
    pub(crate) refused: &'static [(&'static [&'static str], &'static str)],
}

/// What an object says about an enumeration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen<T> {
    /// The key is not there.
    Absent,
    /// There is something else; it has been reported.
    Invalid,
    Is(T),
}

/// An element of a list, or the place where it was expected to be.
pub(crate) struct Item<T> {
    /// `None` if the element had the wrong type or range, which has been reported.
    pub(crate) value: Option<T>,
    pub(crate) place: Place,
}

/// A list read from an object.
pub(crate) struct List<T> {
    pub(crate) items: Vec<Item<T>>,
    pub(crate) place: Place,
}

impl<T: Clone> List<T> {
    /// The value at `index`, if there is a good one.
    pub(crate) fn get(&self, index: usize) -> Option<T> {
        self.items.get(index).and_then(|item| item.value.clone())
    }
}

/// An object that is being read.
pub(crate) struct Section<'a> {
    pub(crate) report: &'a Report<'a>,
    /// Where the object begins.
    pub(crate) place: Place,
    members: &'a [Member],
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// Reads `node`; anything but an object is a problem.
    pub(crate) fn new(report: &'a Report<'a>, node: &'a Node, place: Place) -> Option<Self> {
        let Value::Object(members) = &node.value else {
            report.problem(&place, report.describe(node), "an object");
            return None;
        };
        Some(Self { report, place, members, known: RefCell::default() })
    }

    /// An object without members: all its values are the defaults.
    pub(crate) fn empty(report: &'a Report<'a>, place: Place) -> Self {
        Self { report, place, members: &[], known: RefCell::default() }
    }

    /// Notes that `key` exists, and finds it.
    fn member(&self, key: &'static str) -> Option<&'a Member> {
        self.known.borrow_mut().push(key);
        self.members.iter().find(|member| member.key == key)
    }

    /// Whether the text has `key`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.members.iter().any(|member| member.key == key)
    }

    /// The place of `key`'s value; the object's own if the text does not have it.
    pub(crate) fn place_of(&self, key: &str) -> Place {
        let offset = self.members.iter().find(|m| m.key == key).map_or(self.place.offset, |m| m.node.start);
        self.place.member(key, offset)
    }

    fn convert<T>(
        &self,
        key: &'static str,
        expected: impl FnOnce() -> String,
        convert: impl FnOnce(&Node) -> Option<T>,
    ) -> Option<T> {
        let node = &self.member(key)?.node;
        let value = convert(node);
        if value.is_none() {
            self.report.problem(&self.place_of(key), self.report.describe(node), expected());
        }
        value
    }

    /// Reports that `key` is required if the text does not have it.
    pub(crate) fn require(&self, key: &'static str, expected: &str) {
        if self.has(key) {
            return;
        }
        // A misspelt key would only be a warning, which an error hides.
        let present = self.members.iter().map(|member| member.key.as_str());
        let unclaimed = present.filter(|name| !self.known.borrow().contains(name));
        let help = nearest(key, unclaimed).map(|name| {
            let line = self.report.position(self.place_of(name).offset).line;
            format!("did you mean {} in line {line} to be it?", json::quoted(name))
        });
        self.report.problem_with_help(
            &self.place_of(key),
            "nothing",
            format!("{expected}: this key is required"),
            help,
        );
    }

    pub(crate) fn bool(&self, key: &'static str, default: bool) -> bool {
        self.convert(key, || "true or false".to_owned(), as_bool).unwrap_or(default)
    }

    pub(crate) fn u64(&self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        self.convert(key, || expected_integer(&range), |node| as_integer(node, &range)).unwrap_or(default)
    }

    pub(crate) fn usize(&self, key: &'static str, default: usize, range: RangeInclusive<u64>) -> usize {
        self.convert(key, || expected_integer(&range), |node| as_usize(node, &range)).unwrap_or(default)
    }

    pub(crate) fn f64(&self, key: &'static str, default: f64, range: impl RangeBounds<f64>) -> f64 {
        self.optional_f64(key, range).unwrap_or(default)
    }

    pub(crate) fn optional_f64(&self, key: &'static str, range: impl RangeBounds<f64>) -> Option<f64> {
        self.convert(key, || expected_number(&range), |node| as_number(node, &range))
    }

    pub(crate) fn string(&self, key: &'static str, default: &str) -> String {
        self.optional_string(key).unwrap_or_else(|| default.to_owned())
    }

    pub(crate) fn optional_string(&self, key: &'static str) -> Option<String> {
        self.convert(key, || "a string".to_owned(), as_string)
    }

    /// A string that no message may show.
    pub(crate) fn secret(&self, key: &'static str) -> String {
        let Some(member) = self.member(key) else { return String::new() };
        as_string(&member.node).unwrap_or_else(|| {
            self.report.problem(&self.place_of(key), "something else (not shown)", "a string");
            String::new()
        })
    }

    pub(crate) fn choice<T: Copy>(&self, key: &'static str, choices: &Choices<T>) -> Chosen<T> {
        let Some(Member { node, .. }) = self.member(key) else { return Chosen::Absent };
        let place = self.place_of(key);
        let expected =
            || choices.accepted.iter().map(|(_, names)| names.join(", ")).collect::<Vec<_>>().join(", ");
        let Value::String(spelling) = &node.value else {
            self.report.problem(&place, self.report.describe(node), format!("one of {}", expected()));
            return Chosen::Invalid;
        };
        let is_spelled = |names: &[&str]| names.contains(&spelling.as_str());
        if let Some((value, _)) = choices.accepted.iter().find(|(_, names)| is_spelled(names)) {
            return Chosen::Is(*value);
        }
        let why =
            choices.refused.iter().find(|(names, _)| is_spelled(names)).map(|(_, why)| (*why).to_owned());
        let help = why.or_else(|| {
            let names = choices.accepted.iter().flat_map(|(_, names)| names.iter().copied());
            nearest(spelling, names).map(|name| format!("did you mean {name}?"))
        });
        self.report.problem_with_help(
            &place,
            self.report.describe(node),
            format!("one of {}", expected()),
            help,
        );
        Chosen::Invalid
    }

    fn list<T>(
        &self,
        key: &'static str,
        of: &str,
        expected: impl Fn() -> String,
        convert: impl Fn(&Node) -> Option<T>,
    ) -> Option<List<T>> {
        let node = &self.member(key)?.node;
        let place = self.place_of(key);
        let Value::List(nodes) = &node.value else {
            self.report.problem(&place, self.report.describe(node), format!("a list of {of}"));
            return None;
        };
        let items = nodes.iter().enumerate().map(|(index, node)| {
            let place = place.element(index, node.start);
            let value = convert(node);
            if value.is_none() {
                self.report.problem(&place, self.report.describe(node), expected());
            }
            Item { value, place }
        });
        Some(List { items: items.collect(), place })
    }

    pub(crate) fn strings(&self, key: &'static str) -> Option<List<String>> {
        self.list(key, "strings", || "a string".to_owned(), as_string)
    }

    pub(crate) fn integers(&self, key: &'static str, range: RangeInclusive<u64>) -> Option<List<usize>> {
        self.list(key, "integers", || expected_integer(&range), |node| as_usize(node, &range))
    }

    /// Numbers for the elements of rows, which have 32 bits.
    pub(crate) fn elements(&self, key: &'static str) -> Option<List<f32>> {
        let expected = || "a number that fits into 32-bit floating point".to_owned();
        self.list(key, "numbers", expected, as_element)
    }

    pub(crate) fn object(&self, key: &'static str) -> Option<Section<'a>> {
        let node = &self.member(key)?.node;
        Section::new(self.report, node, self.place_of(key))
    }

    /// The objects of a list that must not be empty; elements that are something else are reported and left out.
    pub(crate) fn objects(&self, key: &'static str, expected: &str) -> Vec<Section<'a>> {
        let Some(Member { node, .. }) = self.member(key) else { return Vec::new() };
        let place = self.place_of(key);
        match &node.value {
            Value::List(nodes) if !nodes.is_empty() => {
                let places =
                    nodes.iter().enumerate().map(|(index, node)| (node, place.element(index, node.start)));
                places.filter_map(|(node, place)| Section::new(self.report, node, place)).collect()
            }
            _ => {
                self.report.problem(&place, self.report.describe(node), expected);
                Vec::new()
            }
        }
    }

    /// Warns about the keys that nobody asked for.
    pub(crate) fn finish(self) {
        let known = self.known.into_inner();
        for member in self.members.iter().filter(|member| !known.contains(&member.key.as_str())) {
            let guess = nearest(&member.key, known.iter().copied())
                .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            let place = self.place.member(&member.key, member.key_start);
            self.report.warn(&place, format!("unknown key, ignored{guess}"));
        }
    }
}

fn as_bool(node: &Node) -> Option<bool> {
    match node.value {
        Value::Bool(value) => Some(value),
        _ => None,
    }
}

fn as_string(node: &Node) -> Option<String> {
    match &node.value {
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn as_integer(node: &Node, range: &RangeInclusive<u64>) -> Option<u64> {
    match node.value {
        Value::Number(Number::Unsigned(integer)) if range.contains(&integer) => Some(integer),
        _ => None,
    }
}

fn as_usize(node: &Node, range: &RangeInclusive<u64>) -> Option<usize> {
    as_integer(node, range).and_then(|integer| usize::try_from(integer).ok())
}

/// An integer is a number too; beyond 2^53 it is rounded.
fn as_number(node: &Node, range: &impl RangeBounds<f64>) -> Option<f64> {
    let number = match node.value {
        Value::Number(Number::Unsigned(integer)) => integer as f64,
        Value::Number(Number::Negative(integer)) => integer as f64,
        Value::Number(Number::Float(float)) => float,
        _ => return None,
    };
    range.contains(&number).then_some(number)
}

/// A number rounded to 32 bits.
fn as_element(node: &Node) -> Option<f32> {
    as_number(node, &..).map(|number| number as f32).filter(|element| element.is_finite())
}

fn expected_integer(range: &RangeInclusive<u64>) -> String {
    match (*range.start(), *range.end()) {
        (0, u64::MAX) => "an integer, 0 or more".to_owned(),
        (low, u64::MAX) => format!("an integer, {low} or more"),
        (low, high) => format!("an integer from {low} to {high}"),
    }
}

fn expected_number(range: &impl RangeBounds<f64>) -> String {
    fn bound(bound: Bound<&f64>, included: impl Display, excluded: impl Display) -> Option<String> {
        match bound {
            Bound::Included(limit) => Some(format!("{included} {limit}")),
            Bound::Excluded(limit) => Some(format!("{excluded} {limit}")),
            Bound::Unbounded => None,
        }
    }
    let low = bound(range.start_bound(), "at least", "above");
    let high = bound(range.end_bound(), "at most", "below");
    match (low, high) {
        (Some(low), Some(high)) => format!("a number, {low} and {high}"),
        (Some(limit), None) | (None, Some(limit)) => format!("a number, {limit}"),
        (None, None) => "a number".to_owned(),
    }
}
