//! `hps inspect`: what the database holds.

use hps_core::tier::{Held, TableSpec};
use hps_core::{Result, record};
use hps_ssd::TableState;
use serde_json::{Value, json};

use crate::deployment::{Deployment, numbered, shape};
use crate::output::{Outcome, bytes, grouped};

pub(crate) fn run(deployment: &Deployment) -> Result<Outcome> {
    let tables = deployment.tables();
    let database = deployment.open_to_read(&tables.specs)?;
    let path = &deployment.database()?.path;
    let (mut lines, mut json) = (vec![format!("database: {}", path.display())], Vec::new());
    for (table, spec, _) in numbered(&tables, None) {
        let state = database.state(table)?;
        let users = tables.tables.iter().filter(|user| user.storage() == table);
        let users: Vec<String> = users.map(|user| format!("{} {}", user.model(), user.table_id())).collect();
        describe(spec, &state, &users, &mut lines)?;
        json.push(as_json(spec, &state, &users)?);
    }
    let others = database.other_column_families()?;
    if !others.is_empty() {
        lines.push(format!("other column families, left alone: {}", others.join(", ")));
    }
    let other_load_bytes = database.other_load_bytes();
    if other_load_bytes > 0 {
        lines.push(format!(
            "interrupted loads of other tables: {} in {}/hps_loading; if nobody is to load them, remove what is there while no process \
             has the database open",
            bytes(other_load_bytes),
            path.display()
        ));
    }
    Ok(Outcome {
        is_fine: true,
        lines,
        json: json!({
            "command": "inspect", "warnings": deployment.warnings, "database": path, "tables": json,
            "other_column_families": others, "other_load_bytes": other_load_bytes,
        }),
    })
}

/// What is held, in a word that JSON has too.
pub(crate) fn word(held: &Held) -> &'static str {
    match held {
        Held::Nothing => "nothing",
        Held::Unrecorded => "unrecorded",
        Held::Table(_) => "table",
    }
}

fn describe(spec: &TableSpec, state: &TableState, users: &[String], lines: &mut Vec<String>) -> Result<()> {
    lines.push(format!("{}, used by model and table id {}", shape(spec), users.join(", ")));
    match &state.held {
        Held::Nothing if state.usage.rows == 0 => lines.push("  holds nothing".into()),
        Held::Nothing => lines.push("  holds rows that were written without a load".into()),
        Held::Unrecorded => {
            lines.push("  written by the predecessor; where it came from is not recorded".into())
        }
        Held::Table(text) => {
            for origin in record::origins(text)? {
                lines.push(format!(
                    "  from {} ({}, XXH3 {})",
                    origin.directory,
                    bytes(origin.bytes),
                    origin.checksum
                ));
            }
        }
    }
    let rows = match state.counted_rows {
        Some(rows) => format!("{} rows, as loaded", grouped(rows)),
        None => format!("about {} rows, written since they were counted", grouped(state.usage.rows)),
    };
    if state.usage.rows > 0 {
        let per_row = state.usage.bytes as f64 / state.usage.rows as f64;
        lines.push(format!("  {rows}; {} on disk ({per_row:.1} bytes per row)", bytes(state.usage.bytes)));
    }
    if state.is_being_loaded {
        lines.push("  is being loaded, or a load was interrupted: the next one of the same model files goes on with what it has sorted".into());
    }
    Ok(())
}

fn as_json(spec: &TableSpec, state: &TableState, users: &[String]) -> Result<Value> {
    let origins = match &state.held {
        Held::Table(text) => record::origins(text)?,
        _ => Vec::new(),
    };
    let origin = |origin: &record::Origin| json!({"directory": origin.directory, "bytes": origin.bytes, "checksum": origin.checksum});
    Ok(json!({
        "table": spec.name,
        "dim": spec.row_bytes / 4,
        "used_by": users,
        "held": word(&state.held),
        "rows": state.usage.rows,
        "rows_are_exact": state.counted_rows.is_some(),
        "bytes": state.usage.bytes,
        "column_family": state.column_family,
        "is_being_loaded": state.is_being_loaded,
        "sources": origins.iter().map(origin).collect::<Vec<_>>(),
    }))
}
