//! Statistics as text.

use std::collections::BTreeMap;

use hps_core::Result;
use hps_core::tier::TierKind;
use serde_json::{Map, Value, json};

use crate::registry::OpenStore;

/// The JSON that `hps_stats` promises in hps.h.
pub(crate) fn stats_json(open: &OpenStore) -> Result<String> {
    let mut models: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for table in open.store.stats()? {
        let counts = table.counts;
        let mut entry = json!({
            "table_id": table.table_id,
            "name": table.name,
            "storage_name": table.storage_name,
            "dim": table.dim,
            "keys": counts.keys(),
            "gpu_hits": counts.hits(TierKind::Gpu),
            "host_hits": counts.hits(TierKind::Host),
            "redis_hits": 0,
            "ssd_hits": counts.hits(TierKind::Ssd),
            "missing": counts.missing,
            "promoted": table.promoted,
            "promotions_dropped": table.promotions_dropped,
        });
        if let Some(fields) = entry.as_object_mut() {
            for (kind, usage) in table.usage {
                fields.insert(kind.name().into(), json!({"rows": usage.rows, "bytes": usage.bytes}));
            }
        }
        models.entry(table.model).or_default().push(entry);
    }
    let models: Map<String, Value> =
        models.into_iter().map(|(name, tables)| (name, json!({"tables": tables}))).collect();
    Ok(json!({"config": open.file.display().to_string(), "models": models}).to_string())
}
