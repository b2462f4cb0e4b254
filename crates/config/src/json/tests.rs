use proptest::prelude::*;

use super::*;

fn value(text: &str) -> Value {
    parse(text).map(|document| document.root.value).unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

fn error(text: &str) -> SyntaxError {
    parse(text).err().unwrap_or_else(|| panic!("{text} is read"))
}

/// Whether `ours` is what the reference reads.
fn is_same(ours: &Value, theirs: &serde_json::Value) -> bool {
    match (ours, theirs) {
        (Value::Null, serde_json::Value::Null) => true,
        (Value::Bool(ours), serde_json::Value::Bool(theirs)) => ours == theirs,
        (Value::Number(Number::Negative(ours)), serde_json::Value::Number(theirs)) => {
            theirs.as_i64() == Some(*ours)
        }
        // The reference reads 1.0 as floating point.
        (Value::Number(Number::Unsigned(ours)), serde_json::Value::Number(theirs)) => {
            theirs.as_u64().map_or(theirs.as_f64() == Some(*ours as f64), |theirs| theirs == *ours)
        }
        (Value::Number(Number::Float(ours)), serde_json::Value::Number(theirs)) => {
            theirs.as_f64() == Some(*ours)
        }
        (Value::String(ours), serde_json::Value::String(theirs)) => ours == theirs,
        (Value::List(ours), serde_json::Value::Array(theirs)) => {
            ours.len() == theirs.len()
                && ours.iter().zip(theirs).all(|(ours, theirs)| is_same(&ours.value, theirs))
        }
        (Value::Object(ours), serde_json::Value::Object(theirs)) => {
            ours.len() == theirs.len()
                && ours
                    .iter()
                    .all(|m| theirs.get(&m.key).is_some_and(|theirs| is_same(&m.node.value, theirs)))
        }
        _ => false,
    }
}

#[test]
fn numbers_are_exact() {
    for (text, number) in [
        ("0", Number::Unsigned(0)),
        ("-0", Number::Unsigned(0)),
        ("18446744073709551615", Number::Unsigned(u64::MAX)),
        ("9007199254740993", Number::Unsigned(9_007_199_254_740_993)),
        ("-9223372036854775808", Number::Negative(i64::MIN)),
        ("18446744073709551616", Number::Float(18_446_744_073_709_551_616.0)),
        ("-9223372036854775809", Number::Float(-9_223_372_036_854_775_809.0)),
        ("0.1", Number::Float(0.1)),
        ("1e3", Number::Unsigned(1000)),
        ("4096.0", Number::Unsigned(4096)),
        ("40.960e+02", Number::Unsigned(4096)),
        ("0.0", Number::Unsigned(0)),
        ("0e99999999999999999999", Number::Unsigned(0)),
        ("1200e-2", Number::Unsigned(12)),
        ("9007199254740993.0", Number::Unsigned(9_007_199_254_740_993)),
        ("1844674407370955161.5e1", Number::Unsigned(u64::MAX)),
        ("1e18", Number::Unsigned(1_000_000_000_000_000_000)),
        ("1e20", Number::Float(1e20)),
        ("1.25e1", Number::Float(12.5)),
        ("-4.0", Number::Float(-4.0)),
        ("1e-99999", Number::Float(0.0)),
        ("-2.5E-1", Number::Float(-0.25)),
        ("1E+2", Number::Unsigned(100)),
    ] {
        assert_eq!(value(text), Value::Number(number), "{text}");
    }
    let Value::Number(Number::Float(zero)) = value("-0.0") else { panic!("no float") };
    assert!(zero == 0.0 && zero.is_sign_negative());
}

#[test]
fn strings_are_decoded() {
    assert_eq!(
        value(r#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00ü""#),
        Value::String("\"\\/\u{8}\u{c}\n\r\té😀ü".into())
    );
    assert_eq!(value("\"// no comment\""), Value::String("// no comment".into()));
}

#[test]
fn comments_and_blanks_may_stand_anywhere_between() {
    let text = "// first\n{//\n\"a\"// x\n://y\r[ //z\n1//,\n,\t2]\r\n}// last";
    assert!(is_same(&value(text), &serde_json::json!({"a": [1, 2]})));
}

#[test]
fn values_know_where_they_stand() {
    let text = " {\"a\": [10, true]}";
    let Value::Object(members) = value(text) else { panic!("no object") };
    assert_eq!(members[0].key_start, 2);
    assert_eq!((members[0].node.start, members[0].node.end), (7, 17));
    let Value::List(nodes) = &members[0].node.value else { panic!("no list") };
    assert_eq!((nodes[1].start, nodes[1].end), (12, 16));
}

#[test]
fn nothing_else_is_lenient() {
    for (text, offset, path, found, expected) in [
        ("", 0, "", "the end of the text", "a JSON value"),
        ("// only a comment", 17, "", "the end of the text", "a JSON value"),
        ("{} {}", 3, "", "`{`", "the end of the text"),
        ("1 2", 2, "", "`2`", "the end of the text"),
        ("{\"a\":1,}", 7, "", "`}`", "no comma may follow"),
        ("{\"a\":[1,]}", 8, "a", "`]`", "no comma may follow"),
        ("{\"a\":[1 2]}", 8, "a", "`2`", "`,` or `]` of the list that begins in line 1"),
        ("\n{\"a\":1 \"b\":2}", 8, "", "`\"`", "`,` or `}` of the object that begins in line 2"),
        ("{,}", 1, "", "`,`", "a \"key\" or `}`"),
        ("{a:1}", 1, "", "`a`", "a \"key\" or `}`"),
        ("{\"a\" 1}", 5, "a", "`1`", "`:` after the key"),
        ("{\"a\":}", 5, "a", "`}`", "a JSON value"),
        ("{\"a\":[{\"b\":nul}]}", 11, "a[0].b", "`nul`", "a JSON value"),
        ("{\"a b\":[0,x]}", 10, "[\"a b\"][1]", "`x`", "a JSON value"),
        ("/* x */ 1", 0, "", "`/*`", "a JSON value"),
        ("True", 0, "", "`True`", "a JSON value"),
        ("nullx", 0, "", "`nullx`", "a JSON value"),
        ("NaN", 0, "", "`NaN`", "a JSON value"),
        ("-Infinity", 1, "", "`Infinity`", "a digit"),
        ("+1", 0, "", "`+`", "a JSON value"),
        (".5", 0, "", "`.`", "a JSON value"),
        ("5.", 2, "", "the end of the text", "a digit after the decimal point"),
        ("01", 0, "", "leading zero", "without it"),
        ("-01", 0, "", "leading zero", "without it"),
        ("1e", 2, "", "the end of the text", "a digit in the exponent"),
        ("0x10", 1, "", "`x10`", "the end of the text"),
        ("1e999", 0, "", "`1e999`", "64-bit floating point"),
        ("'a'", 0, "", "`'`", "a JSON value"),
        ("\"a", 2, "", "the end of the text", "at the end of the string"),
        ("\"a\nb\"", 2, "", "U+000A", "at the end of the string"),
        ("\"\\x\"", 2, "", "`x`", "after a backslash"),
        ("\"\\u12g4\"", 3, "", "`12g4`", "four hexadecimal digits"),
        ("\"\\u+123\"", 3, "", "`+`", "four hexadecimal digits"),
        ("\"\\ud800\"", 1, "", "half a surrogate pair", "both halves"),
        ("\"\\ud800\\u0041\"", 1, "", "half a surrogate pair", "both halves"),
        ("\"\\udc00\\ud800\"", 1, "", "half a surrogate pair", "both halves"),
        ("\u{feff}1", 0, "", "`\u{feff}`", "a JSON value"),
        ("\u{a0}1", 0, "", "`\u{a0}`", "a JSON value"),
        ("[", 1, "", "the end of the text", "a JSON value"),
    ] {
        let error = error(text);
        // An unfinished list is read as if a value came next.
        let path = if text == "[" { "[0]" } else { path };
        assert_eq!((error.offset, error.path.as_str()), (offset, path), "{text:?}: {error:?}");
        assert!(error.found.contains(found), "{text:?}: {error:?}");
        assert!(error.expected.contains(expected), "{text:?}: {error:?}");
    }
}

#[test]
fn keys_given_twice_are_listed_and_the_first_kept() {
    let document = parse(r#"{"a": 1, "b": {"c": 1, "c": 2, "\u0063": 3}, "a": 4}"#).expect("JSON");
    let found: Vec<_> = document.duplicates.iter().map(|d| (d.path.as_str(), d.first, d.again)).collect();
    assert_eq!(found, [("b.c", 15, 23), ("b.c", 15, 31), ("a", 1, 45)]);
    assert!(is_same(&document.root.value, &serde_json::json!({"a": 1, "b": {"c": 1}})));
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(error(&nested(MAX_DEPTH + 1)).offset, MAX_DEPTH);
    assert!(error(&"[".repeat(1_000_000)).expected.contains("64 levels"));
    assert!(error(&"{\"a\":".repeat(1_000_000)).expected.contains("64 levels"));
}

/// Any JSON value, with whole and broken numbers.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Letters that make more of the grammar than chance would.
const TOKENS: &[&str] = &[
    "{", "}", "[", "]", ",", ":", "\"", "\\", "\\u", "d83d", "//", "/*", "\n", "\r", " ", "0", "1", "-", "+",
    ".", "e", "E9", "true", "false", "null", "\"a\":", "é", "\u{feff}", "\0",
];

proptest! {
    #[test]
    fn reads_back_what_the_reference_writes(json in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.expect("text");
        prop_assert!(is_same(&value(&text), &json), "{}", text);
    }

    #[test]
    fn agrees_with_the_reference_on_what_is_not(tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..24)) {
        let text = tokens.concat();
        let ours = parse(&text);
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        // Comments are ours alone; what the reference accepts, we accept.
        if !text.contains("//") || theirs.is_ok() {
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{}", text);
        }
    }

    #[test]
    fn never_panics_and_points_into_the_text(text in any::<String>()) {
        if let Err(error) = parse(&text) {
            prop_assert!(error.offset <= text.len() && text.is_char_boundary(error.offset));
        }
    }
}
