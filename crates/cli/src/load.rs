//! `hps load`: model files into the database, as a start does it.

use std::time::Instant;

use hps_core::Result;
use hps_core::load::{Loaded, load_table};
use hps_core::observer::Observer;
use serde_json::json;

use crate::deployment::{Deployment, numbered, shape};
use crate::output::{Outcome, grouped};

pub(crate) fn run(deployment: &Deployment) -> Result<Outcome> {
    deployment.database()?;
    let tables = deployment.tables();
    // All files are looked at before the database is opened or changed.
    let sources = tables.open_sources(&deployment.config)?;
    let database = deployment.open_to_write(&tables.specs)?;
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    for (table, spec, sources) in numbered(&tables, Some(&sources)) {
        let started = Instant::now();
        let loaded = load_table(&database, table, spec, sources.unwrap_or_default(), &deployment.console)?;
        let seconds = started.elapsed().as_secs_f64();
        let (what, rows) = match loaded {
            Loaded::FromFiles { rows, repeated } => {
                lines.push(format!(
                    "{}: loaded {} rows in {seconds:.1} s ({:.2} M rows/s){}",
                    shape(spec),
                    grouped(rows),
                    rows as f64 / seconds.max(1e-9) / 1e6,
                    if repeated > 0 {
                        format!("; {} repeated keys", grouped(repeated))
                    } else {
                        String::new()
                    }
                ));
                ("loaded", Some(rows))
            }
            Loaded::AlreadyHeld => {
                lines.push(format!("{}: loaded already", shape(spec)));
                ("held", None)
            }
            Loaded::Adopted { added } => {
                lines.push(format!("{}: the predecessor's rows kept, {} added", shape(spec), grouped(added)));
                ("adopted", Some(added))
            }
        };
        json.push(json!({"table": spec.name, "result": what, "rows": rows, "seconds": seconds}));
    }
    if deployment.config.persistent_db.as_ref().is_some_and(|database| !database.initialize_after_startup) {
        deployment
            .console
            .info("initialize_after_startup is false: starts do not read the model files, this did");
    }
    Ok(Outcome {
        is_fine: true,
        lines,
        json: json!({"command": "load", "warnings": deployment.warnings, "tables": json}),
    })
}
