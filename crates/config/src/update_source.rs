//! `update_source`: where rows that change while they are served come from.

use crate::availability::{self, Feature};
use crate::json::quoted;
use crate::limits::MAX_BATCH;
use crate::reader::{Choices, Chosen, Section};

/// Settings of the update source, which is Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateSourceConfig {
    /// `brokers`: `host[:port]` of brokers to start from, separated by `,` or `;`. Default `127.0.0.1:9092`.
    pub brokers: Vec<String>,
    /// `metadata_refresh_interval_ms`: milliseconds between looks for new topics. Default 30000.
    pub metadata_refresh_interval_ms: u64,
    /// `receive_buffer_size`: bytes of the largest message. Default 262144.
    pub receive_buffer_bytes: usize,
    /// `poll_timeout_ms`: milliseconds without a message after which what has come is delivered. Default 500.
    pub poll_timeout_ms: u64,
    /// `max_batch_size`: keys delivered at a time. Default 8192.
    pub max_batch_size: usize,
    /// `failure_backoff_ms`: milliseconds before a delivery that failed is tried again. Default 50.
    pub failure_backoff_ms: u64,
    /// `max_commit_interval`: messages after which their receipt is confirmed at the latest. Default 32.
    pub max_commit_interval: usize,
}

/// The spellings of `update_source.type`: whether there is one.
static KINDS: Choices<bool> = Choices {
    accepted: &[(true, &["kafka_message_queue", "kafka_mq", "kafka"]), (false, &["null", "none"])],
    refused: &[],
};

/// Longest time that librdkafka accepts, and more than anybody needs: an hour.
const MAX_WAIT_MS: u64 = 3_600_000;

/// Reads the section; `None` means that there is no source.
pub(crate) fn read(section: &Section<'_>) -> Option<UpdateSourceConfig> {
    let is_enabled = match section.choice("type", &KINDS) {
        Chosen::Is(is_enabled) => is_enabled,
        Chosen::Invalid => false,
        Chosen::Absent => {
            let message = "disabled, since it has no `type`; \"kafka_message_queue\" enables it";
            section.report.warn(&section.place, message);
            false
        }
    };
    let config = UpdateSourceConfig {
        brokers: read_endpoints(section, "brokers", "127.0.0.1:9092"),
        metadata_refresh_interval_ms: section.u64("metadata_refresh_interval_ms", 30_000, 10..=MAX_WAIT_MS),
        // librdkafka's largest message is 1,000,000,000 bytes, and 1024 of them are not ours.
        receive_buffer_bytes: section.usize("receive_buffer_size", 262_144, 1024..=999_998_976),
        poll_timeout_ms: section.u64("poll_timeout_ms", 500, 1..=MAX_WAIT_MS),
        max_batch_size: section.usize("max_batch_size", 8192, 1..=MAX_BATCH),
        failure_backoff_ms: section.u64("failure_backoff_ms", 50, 0..=MAX_WAIT_MS),
        max_commit_interval: section.usize("max_commit_interval", 32, 1..=MAX_BATCH),
    };
    if is_enabled {
        availability::check(Feature::Kafka, &section.place_of("type"), section.report);
    }
    is_enabled.then_some(config)
}

/// Reads a database's `update_filters`. An empty list takes no updates.
pub(crate) fn read_filters(section: &Section<'_>) -> Vec<String> {
    let Some(filters) = section.strings("update_filters") else { return vec![".+".to_owned()] };
    for item in filters.items.iter().filter(|item| item.value.as_deref() == Some("")) {
        section.report.problem(
            &item.place,
            quoted(""),
            "a regular expression on model names, such as \".+\"",
        );
    }
    filters.items.into_iter().filter_map(|item| item.value).collect()
}

/// Reads `host[:port]` of one or more servers, separated by commas or semicolons.
pub(crate) fn read_endpoints(section: &Section<'_>, key: &'static str, default: &str) -> Vec<String> {
    let text = section.string(key, default);
    let endpoints: Vec<String> = text.split([',', ';']).map(|part| part.trim().to_owned()).collect();
    if !endpoints.iter().all(|endpoint| is_endpoint(endpoint)) {
        let expected = "host[:port], or several of them separated by commas";
        section.report.problem(&section.place_of(key), quoted(&text), expected);
    }
    endpoints
}

/// Whether `text` is a host, with or without a port. An IPv6 address stands in brackets.
fn is_endpoint(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/' || c == '[');
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0);
    is_host && port.is_none_or(is_port)
}
