//! No text makes it panic, and every problem points into the text.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "what fails a test may panic")]

mod common;

use common::{Sandbox, base};
use hps_config::{Config, ConfigError};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Reads a file of these bytes; whatever comes out must make sense.
fn check(sandbox: &Sandbox, bytes: &[u8]) -> Result<(), TestCaseError> {
    let file = sandbox.add_file("ps.json", bytes);
    let num_lines = 1 + bytes.iter().filter(|b| **b == b'\n').count();
    match Config::from_file(&file) {
        Ok(loaded) => {
            prop_assert!(!loaded.config.models.is_empty());
            for model in &loaded.config.models {
                prop_assert!(!model.tables.is_empty());
                for (id, table) in model.tables.iter().enumerate() {
                    let storage = model.storage_tables.get(table.storage);
                    prop_assert!(storage.is_some_and(|s| s.tables.contains(&id) && s.dim == table.dim));
                }
            }
        }
        Err(error) => {
            let ConfigError { problems, .. } = &error;
            prop_assert!(!problems.is_empty());
            for problem in problems {
                let at = problem.position.expect("a position");
                prop_assert!(
                    (1..=num_lines).contains(&at.line) && (1..=bytes.len() + 1).contains(&at.column)
                );
                prop_assert!(!problem.to_string().contains('\n'), "{}", problem);
            }
        }
    }
    Ok(())
}

/// A good configuration with every section, as text with line ends and a comment.
fn good_text() -> String {
    let mut config = base();
    config["update_source"] = json!({"type": "none", "brokers": "a:1"});
    config["models"][0]["embedding_table_names"] = json!(["a", "b"]);
    format!("// all of it\n{}", serde_json::to_string_pretty(&config).expect("text"))
}

/// What a slip of the hand puts in.
fn slip() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\\",
            "//",
            "/*",
            "null",
            "true",
            "-",
            "1e999",
            "0",
            "-1",
            "1.5",
            "99999999999999999999",
            "\"\"",
            "\"\\u0000\"",
            "\"hdfs://x\"",
            "\"type\":",
            "[[",
            "{}",
            "[]",
            "\u{feff}",
            "é",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

/// Some value of some type.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<i8>(), 0..4).prop_map(Value::from),
        prop::collection::vec(any::<String>(), 0..4).prop_map(Value::from),
        Just(json!({})),
        Just(json!([[]])),
        Just(json!([{}])),
    ]
}

/// All paths to values inside `config`, as JSON pointers.
fn pointers(config: &Value, at: &str, found: &mut Vec<String>) {
    let mut visit = |step: String, value: &Value| {
        let pointer = format!("{at}/{step}");
        found.push(pointer.clone());
        pointers(value, &pointer, found);
    };
    match config {
        Value::Object(members) => members.iter().for_each(|(key, value)| visit(key.clone(), value)),
        Value::Array(values) => {
            values.iter().enumerate().for_each(|(index, value)| visit(index.to_string(), value))
        }
        _ => {}
    }
}

/// Random cases of each property: `PROPTEST_CASES` of them, for a campaign.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

#[test]
fn any_bytes() {
    let sandbox = Sandbox::new();
    proptest!(ProptestConfig::with_cases(cases()), |(bytes in prop::collection::vec(any::<u8>(), 0..200))| {
        check(&sandbox, &bytes)?;
    });
}

#[test]
fn slips_in_a_good_text() {
    let sandbox = Sandbox::new();
    let slips = prop::collection::vec((any::<prop::sample::Index>(), 0_usize..6, slip()), 1..4);
    proptest!(ProptestConfig::with_cases(cases()), |(slips in slips)| {
        let mut bytes = good_text().into_bytes();
        for (start, length, new) in slips {
            let start = start.index(bytes.len());
            let end = (start + length).min(bytes.len());
            bytes.splice(start..end, new);
        }
        check(&sandbox, &bytes)?;
    });
}

#[test]
fn good_texts_cut_short() {
    let sandbox = Sandbox::new();
    let text = good_text();
    for end in 0..text.len() {
        check(&sandbox, &text.as_bytes()[..end]).expect("sense");
    }
}

#[test]
fn other_values_in_a_good_configuration() {
    let sandbox = Sandbox::new();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), value()), 1..4);
    proptest!(ProptestConfig::with_cases(cases()), |(changes in changes)| {
        let mut config = base();
        for (place, value) in changes {
            let mut all = Vec::new();
            pointers(&config, "", &mut all);
            if let Some(at) = all.get(place.index(all.len().max(1))).and_then(|p| config.pointer_mut(p)) {
                *at = value;
            }
        }
        check(&sandbox, config.to_string().as_bytes())?;
    });
}

#[test]
fn hostile_texts_end_soon() {
    let sandbox = Sandbox::new();
    let members: String = (0..200_000).map(|index| format!("\"k{index}\":0,")).collect();
    for text in [
        "[".repeat(4_000_000),
        "{\"a\":".repeat(800_000),
        format!("[{}0]", "0,".repeat(2_000_000)),
        format!("{{{members}\"z\":0}}"),
        format!("{{{}\"a\":0}}", "\"a\":0,".repeat(600_000)),
        format!("{{\"supportlonglong\":true,\"models\":[{}{{}}]}}", "{},".repeat(100_000)),
        format!("1{}", "0".repeat(4_000_000)),
        format!("\"{}\"", "x".repeat(4_000_000)),
        "//".repeat(2_000_000),
    ] {
        check(&sandbox, text.as_bytes()).expect("sense");
    }
}
