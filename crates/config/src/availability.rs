//! What a configuration may ask for but this build cannot do.
//!
//! The settings of these features are read and checked all the same. Whoever builds one removes its line from
//! [`MISSING`].

use crate::report::{Place, Report};

/// A part of the product that a configuration switches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// `volatile_db.type: redis_cluster`.
    RedisCluster,
    /// `update_source.type: kafka_message_queue`.
    Kafka,
}

/// Features that are not built yet, with what can be used in their place.
const MISSING: &[(Feature, &str, &str)] = &[
    (
        Feature::RedisCluster,
        "redis_cluster",
        "hash_map, parallel_hash_map, multi_process_hash_map or disabled",
    ),
    (Feature::Kafka, "kafka_message_queue", "null"),
];

/// Reports that `feature`, chosen at `place`, is not available in this build, if so.
pub(crate) fn check(feature: Feature, place: &Place, report: &Report<'_>) {
    if let Some((_, name, instead)) = MISSING.iter().find(|(missing, _, _)| *missing == feature) {
        report.problem(place, format!("{name}, which is not available in this build"), *instead);
    }
}
