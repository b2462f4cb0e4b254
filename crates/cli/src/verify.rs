//! `hps verify`: every row read, and compared with the model files.

use hps_core::key::display_key;
use hps_core::tier::{Held, TableSpec, TruthTier};
use hps_core::verify::{Difference, compare_with_files, read_all};
use hps_core::{Error, ErrorKind, Result, TableId};
use hps_ssd::SsdTier;
use serde_json::{Value, json};

use crate::deployment::{Deployment, numbered, shape};
use crate::output::{Outcome, grouped};

/// What was found of one table.
struct Found {
    rows: u64,
    /// As recorded when it was loaded; None if it was written since.
    counted: Option<u64>,
    files: Option<Difference>,
    problems: Vec<String>,
    notes: Vec<String>,
}

pub(crate) fn run(deployment: &Deployment, with_files: bool) -> Result<Outcome> {
    let tables = deployment.tables();
    let sources = if with_files { Some(tables.open_sources(&deployment.config)?) } else { None };
    let database = deployment.open_to_read(&tables.specs)?;
    let (mut lines, mut json, mut is_fine) = (Vec::new(), Vec::new(), true);
    for (table, spec, sources) in numbered(&tables, sources.as_deref()) {
        let found = match verify(deployment, &database, table, spec, sources) {
            Ok(found) => found,
            // One damaged table says nothing of the others.
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Storage) => damaged(&error),
            Err(error) => return Err(error),
        };
        is_fine &= found.problems.is_empty();
        let verdict = if found.problems.is_empty() { "sound" } else { "DAMAGED" };
        lines.push(format!("{}: {verdict}, {} rows read", shape(spec), grouped(found.rows)));
        lines.extend(found.problems.iter().chain(&found.notes).map(|line| format!("  {line}")));
        json.push(as_json(spec, &found));
    }
    Ok(Outcome {
        is_fine,
        lines,
        json: json!({"command": "verify", "warnings": deployment.warnings, "tables": json}),
    })
}

fn damaged(error: &Error) -> Found {
    Found { rows: 0, counted: None, files: None, problems: vec![error.to_string()], notes: Vec::new() }
}

fn verify(
    deployment: &Deployment,
    database: &SsdTier,
    table: TableId,
    spec: &TableSpec,
    sources: Option<&[hps_core::load::Source]>,
) -> Result<Found> {
    let counted = database.state(table)?.counted_rows;
    let held = read_all(database, table, spec, &deployment.console)?;
    let rows = held.rows();
    let mut found = Found { rows, counted, files: None, problems: Vec::new(), notes: Vec::new() };
    if database.held(table)? == Held::Nothing {
        found.problems.push("the table was never loaded, or only in part: load it with hps load".into());
        return Ok(found);
    }
    match counted {
        Some(counted) if counted != rows => found.problems.push(format!(
            "{} rows were loaded and nothing was written since, but there are {}",
            grouped(counted),
            grouped(rows)
        )),
        Some(_) => {}
        None => found.notes.push("written since it was loaded".into()),
    }
    if let Some(sources) = sources {
        let difference = compare_with_files(database, table, spec, &held, sources, &deployment.console)?;
        if !difference.is_none() {
            let keys: Vec<String> =
                difference.examples.iter().map(|&key| display_key(key, spec.key_width).to_string()).collect();
            let text = format!(
                "of {} keys in the model files {} have another row, {} are not held; among them {}",
                grouped(difference.keys),
                grouped(difference.differing),
                grouped(difference.missing),
                keys.join(", ")
            );
            // Updates explain what differs; without any, nothing does.
            match counted {
                Some(_) => found.problems.push(text),
                None => found.notes.push(text),
            }
        }
        found.files = Some(difference);
    }
    Ok(found)
}

fn as_json(spec: &TableSpec, found: &Found) -> Value {
    let files = found.files.as_ref().map(|files| {
        json!({"keys": files.keys, "missing": files.missing, "differing": files.differing, "examples": files.examples})
    });
    json!({
        "table": spec.name,
        "rows": found.rows,
        "rows_loaded": found.counted,
        "files": files,
        "problems": found.problems,
        "notes": found.notes,
    })
}
