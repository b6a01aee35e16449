//! EVE's `stats`: every counter, nested by the dots in its name.

use std::collections::BTreeMap;

use protocols::PROTOCOLS;
use sensor::{CaptureCounters, Timestamp};

use crate::budget::Budget;
use crate::config::ExceptionPolicy;
use crate::engine::Inspector;
use crate::eve;
use crate::layers::Step;

/// What an exception policy can have done.
const POLICIES: [&str; 6] = ["drop_flow", "drop_packet", "pass_flow", "pass_packet", "bypass", "reject"];

/// Return the line.
pub fn line(inspector: &Inspector, uptime_s: u64, budget: &Budget, capture: &CaptureCounters) -> String {
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let counters = &inspector.counters;
    for (name, value) in [
        ("uptime", uptime_s),
        ("capture.kernel_packets", capture.kernel_packets),
        ("capture.kernel_drops", capture.kernel_drops),
        ("capture.truncated_records", capture.truncated_records),
        ("capture.unsupported_link", capture.unsupported_link),
        ("capture.overruns", capture.overruns),
        ("decoder.pkts", counters.packets),
        ("capture.filtered", counters.filtered),
        ("decoder.bytes", counters.bytes),
        ("decoder.invalid", counters.invalid),
        ("flow.refused", counters.flows_refused),
        ("detect.alert", counters.alerts),
        ("detect.alerts_suppressed", counters.alerts_suppressed),
        ("detect.alert_queue_overflow", counters.alert_overflow),
        ("app_layer.flow.failed_tcp", counters.app_failed[0]),
        ("app_layer.flow.failed_udp", counters.app_failed[1]),
        ("output.lines", inspector.lines.written),
        ("output.refused", inspector.lines.refused),
        ("memory.budget_bytes", budget.memory_bytes as u64),
        ("memory.flow_slots", budget.flows as u64),
        ("memory.stream_bytes", budget.stream_bytes as u64),
        ("memory.refused", counters.memory_refused),
        ("memory.fragments_refused", inspector.fragments_evicted()),
    ] {
        rows.insert(name.to_owned(), value);
    }
    if let Some(detectors) = &inspector.detectors {
        for (name, count) in detectors.counters() {
            rows.insert(format!("detectors.{name}"), count);
        }
        rows.insert("memory.detector_table_bytes".to_owned(), detectors.table_bytes() as u64);
    }
    let (flows, held, fragments) = inspector.live();
    let pressure = (held * 100 / budget.stream_bytes.max(1)) as u64;
    rows.insert("memcap.pressure".to_owned(), pressure);
    rows.insert("memcap.pressure_max".to_owned(), pressure.max(counters.most_pressure));
    rows.insert("memory.flow_live".to_owned(), flows as u64);
    rows.insert("memory.stream_held_bytes".to_owned(), held as u64);
    rows.insert("memory.fragments_live".to_owned(), fragments as u64);
    if inspector.config.is_ips {
        rows.insert("ips.accepted".to_owned(), counters.accepted);
        rows.insert("ips.blocked".to_owned(), counters.blocked);
        rows.insert("ips.rejected".to_owned(), counters.rejected);
        rows.insert("ips.replies".to_owned(), capture.replies);
        rows.insert("ips.replies_suppressed".to_owned(), capture.replies_suppressed);
        for reason in ["rules", "flow_drop"] {
            rows.insert(format!("ips.drop_reason.{reason}"), 0);
        }
    }
    for (reason, count) in &counters.drops {
        rows.insert(format!("ips.drop_reason.{}", reason.replace(' ', "_")), *count);
    }
    for (name, count) in Step::NAMES.iter().zip(&counters.steps) {
        rows.insert(format!("decoder.{name}"), *count);
    }
    if inspector.config.output.logs_decoder_events_in_stats {
        for (name, count) in &counters.events {
            let place = if name.starts_with("stream.") { "stream" } else { "decoder.event" };
            rows.insert(format!("{place}.{}", name.trim_start_matches("stream.")), *count);
        }
    }
    let lists = [
        ("flow", &counters.flows),
        ("flow.end.reason", &counters.flow_ends),
        ("defrag", &counters.defrag),
        ("tcp", &counters.tcp),
    ];
    for (place, list) in lists {
        for (name, count) in list {
            rows.insert(format!("{place}.{name}"), *count);
        }
    }
    for (index, protocol) in PROTOCOLS.iter().enumerate() {
        let count = |list: &[u64]| list.get(index).copied().unwrap_or_default();
        rows.insert(format!("app_layer.flow.{}", protocol.name), count(&counters.app_flows));
        rows.insert(format!("app_layer.tx.{}", protocol.name), count(&counters.app_transactions));
        let errors = count(&counters.app_errors);
        rows.insert(format!("app_layer.error.{}.parser", protocol.name), errors);
        let policy = inspector.config.app_error_policy;
        if inspector.config.counts_errors_by_app && policy != ExceptionPolicy::Ignore {
            for name in POLICIES {
                let count = if name == policy.name() { errors } else { 0 };
                rows.insert(format!("app_layer.error.{}.exception_policy.{name}", protocol.name), count);
            }
        }
    }
    let config = &inspector.config;
    for (target, policy) in [
        ("stream_midstream", config.stream.midstream_policy),
        ("stream_reassembly", config.stream.memcap_policy),
        ("app_layer_error", config.app_error_policy),
        ("flow_memcap", config.flow_memcap_policy),
        ("defrag_memcap", config.defrag_memcap_policy),
    ] {
        for name in POLICIES.iter().filter(|_| policy != ExceptionPolicy::Ignore) {
            rows.insert(format!("exception_policy.{}.{name}", eve::policy_path(target)), 0);
        }
    }
    for ((target, policy), count) in &counters.policies {
        rows.insert(format!("exception_policy.{}.{policy}", eve::policy_path(target)), *count);
    }
    let mut out = format!(
        "{{\"timestamp\":\"{}\",\"event_type\":\"stats\",\"stats\":{{\"sensor\":\"inspect\"",
        Timestamp(inspector.now_us)
    );
    eve::write_tree(&mut out, &rows);
    if let Some(detector) = &inspector.detector {
        let report = &detector.rules;
        let refused =
            report.report.iter().filter(|entry| matches!(entry.outcome, signatures::Outcome::Refused(_))).count();
        insert_engines(&mut out, report.signatures.len(), refused);
    }
    out.push_str("}}");
    out
}

/// `detect.engines` is a list: one engine.
fn insert_engines(out: &mut String, loaded: usize, failed: usize) {
    let text = format!(
        "\"detect\":{{\"engines\":[{{\"id\":0,\"rules_loaded\":{loaded},\"rules_failed\":{failed},\"rules_skipped\":0}}],"
    );
    if let Some(at) = out.find("\"detect\":{") {
        out.replace_range(at..at + "\"detect\":{".len(), &text);
    }
}
