//! `hps compact`: every table one sorted run again.

use std::time::Instant;

use hps_core::Result;
use hps_core::observer::Observer;
use hps_core::tier::Tier;
use serde_json::json;

use crate::deployment::{Deployment, numbered, shape};
use crate::output::{Outcome, bytes};

pub(crate) fn run(deployment: &Deployment) -> Result<Outcome> {
    let tables = deployment.tables();
    let database = deployment.open_to_write(&tables.specs)?;
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    for (table, spec, _) in numbered(&tables, None) {
        let before = database.usage(table)?.bytes;
        deployment.console.info(&format!("compacting {} ({})", spec.name, bytes(before)));
        let started = Instant::now();
        database.compact(table)?;
        let seconds = started.elapsed().as_secs_f64();
        let after = database.usage(table)?.bytes;
        lines.push(format!("{}: {} became {} in {seconds:.1} s", shape(spec), bytes(before), bytes(after)));
        json.push(
            json!({"table": spec.name, "bytes_before": before, "bytes_after": after, "seconds": seconds}),
        );
    }
    Ok(Outcome {
        is_fine: true,
        lines,
        json: json!({"command": "compact", "warnings": deployment.warnings, "tables": json}),
    })
}
