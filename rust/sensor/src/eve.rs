//! Events and counters to EVE JSON, one object a line. Every field is described in docs/formats/eve.md.
//!
//! Nothing that a sender controls reaches the text except numbers and addresses, so no escaping is needed.

use std::fmt::Write;

use crate::community::{Tuple, community_id};
use crate::counters::{CaptureCounters, Counters};
use crate::decode::{Direction, Malformed, flags, protocol};
use crate::event::{Alert, Anomaly, Event, FlowEnd, FlowRecord, FlowState, Phase};

/// Append `event` to `line`, without a line end.
pub(crate) fn encode_event(event: &Event, line: &mut String) {
    // writing to a String cannot fail
    let _ = match event {
        Event::Alert(alert) => encode_alert(alert, line),
        Event::Flow(flow) => encode_flow(flow, line),
        Event::Anomaly(anomaly) => encode_anomaly(anomaly, line),
    };
}

fn encode_alert(alert: &Alert, line: &mut String) -> std::fmt::Result {
    let number = alert.detector.protocol(alert.destination);
    write!(line, "{{\"timestamp\":\"{}\",", Timestamp(alert.time_us))?;
    if alert.flow_id != 0 {
        write!(line, "\"flow_id\":{},", alert.flow_id)?;
    }
    line.push_str("\"event_type\":\"alert\",");
    if let Some(source) = alert.source {
        write!(line, "\"src_ip\":\"{source}\",")?;
        if alert.source_port != 0 {
            write!(line, "\"src_port\":{},", alert.source_port)?;
        }
    }
    write!(line, "\"dest_ip\":\"{}\",", alert.destination)?;
    if alert.destination_port != 0 {
        write!(line, "\"dest_port\":{},", alert.destination_port)?;
    }
    write_protocol(line, number)?;
    if let (Some(source), true) = (alert.source, alert.detector.is_scan()) {
        let tuple = Tuple {
            source,
            destination: alert.destination,
            source_port: alert.source_port,
            destination_port: alert.destination_port,
            protocol: number,
            icmp: [0, 0],
        };
        write!(line, "\"community_id\":\"{}\",", community_id(&tuple))?;
    }
    let (category, severity) = match alert.detector.is_scan() {
        true => ("Detection of a Network Scan", 3),
        false => ("Detection of a Denial of Service Attack", 2),
    };
    write!(
        line,
        "\"alert\":{{\"action\":\"allowed\",\"gid\":1,\"signature_id\":{},\"rev\":1,\"signature\":\"{}\",\
         \"category\":\"{category}\",\"severity\":{severity}}},",
        alert.detector.signature_id(),
        alert.detector.signature(),
    )?;
    encode_detector_metadata(alert, line)
}

fn encode_detector_metadata(alert: &Alert, line: &mut String) -> std::fmt::Result {
    let phase = match alert.phase {
        Phase::Start => "start",
        Phase::Update => "update",
        Phase::End => "end",
    };
    let measure = alert.detector.measure();
    write!(
        line,
        "\"metadata\":{{\"detector\":\"{}\",\"state\":\"{phase}\",\"count\":{},\"{measure}\":{},\"window_s\":{},\
         \"direction\":\"{}\"",
        alert.detector.name(),
        alert.count,
        alert.measure,
        alert.window_s,
        direction_name(alert.direction),
    )?;
    if !alert.detector.is_scan() {
        write!(line, ",\"source_share_percent\":{}", alert.share_percent)?;
    }
    if let Some(age_s) = alert.peer_age_s {
        write!(line, ",\"peer_age_s\":{age_s}")?;
    }
    line.push_str("}}");
    Ok(())
}

fn encode_flow(flow: &FlowRecord, line: &mut String) -> std::fmt::Result {
    write!(
        line,
        "{{\"timestamp\":\"{}\",\"flow_id\":{},\"event_type\":\"flow\",\"src_ip\":\"{}\",",
        Timestamp(flow.time_us),
        flow.flow_id,
        flow.client
    )?;
    let has_ports = matches!(flow.protocol, protocol::TCP | protocol::UDP);
    if has_ports {
        write!(line, "\"src_port\":{},", flow.client_port)?;
    }
    write!(line, "\"dest_ip\":\"{}\",", flow.server)?;
    if has_ports {
        write!(line, "\"dest_port\":{},", flow.server_port)?;
    }
    write_protocol(line, flow.protocol)?;
    if matches!(flow.protocol, protocol::ICMP | protocol::ICMPV6) {
        write!(line, "\"icmp_type\":{},\"icmp_code\":{},", flow.icmp[0], flow.icmp[1])?;
    }
    let tuple = Tuple {
        source: flow.client,
        destination: flow.server,
        source_port: flow.client_port,
        destination_port: flow.server_port,
        protocol: flow.protocol,
        icmp: flow.icmp,
    };
    let state = match flow.state {
        FlowState::New => "new",
        FlowState::Established => "established",
        FlowState::Closed => "closed",
    };
    let reason = end_name(flow.end);
    write!(
        line,
        "\"community_id\":\"{}\",\"flow\":{{\"pkts_toserver\":{},\"pkts_toclient\":{},\"bytes_toserver\":{},\
         \"bytes_toclient\":{},\"start\":\"{}\",\"end\":\"{}\",\"age\":{},\"state\":\"{state}\",\"reason\":\"{reason}\",\
         \"alerted\":false}}",
        community_id(&tuple),
        flow.packets[0],
        flow.packets[1],
        flow.bytes[0],
        flow.bytes[1],
        Timestamp(flow.first_us),
        Timestamp(flow.last_us),
        flow.last_us.saturating_sub(flow.first_us) / 1_000_000,
    )?;
    if flow.protocol == protocol::TCP {
        let [client, server] = flow.tcp_flags;
        write!(
            line,
            ",\"tcp\":{{\"tcp_flags\":\"{:02x}\",\"tcp_flags_ts\":\"{client:02x}\",\"tcp_flags_tc\":\"{server:02x}\",\
             \"syn\":{},\"fin\":{},\"rst\":{}}}",
            client | server,
            (client | server) & flags::SYN != 0,
            (client | server) & flags::FIN != 0,
            (client | server) & flags::RST != 0,
        )?;
    }
    line.push('}');
    Ok(())
}

fn end_name(end: FlowEnd) -> &'static str {
    match end {
        FlowEnd::Reused => "tcp_reuse",
        FlowEnd::TimedOut => "timeout",
        FlowEnd::Evicted => "forced",
        FlowEnd::Shutdown => "shutdown",
    }
}

fn encode_anomaly(anomaly: &Anomaly, line: &mut String) -> std::fmt::Result {
    write!(
        line,
        "{{\"timestamp\":\"{}\",\"event_type\":\"anomaly\",\"anomaly\":{{\"type\":\"decode\",\"event\":\"{}\"}},\
         \"metadata\":{{\"detector\":\"decoder\",\"count\":{}}}}}",
        Timestamp(anomaly.time_us),
        anomaly.reason.name(),
        anomaly.count
    )
}

/// The counters, the table sizes and the capture's own counters as one `stats` line.
pub(crate) fn encode_stats(
    time_us: u64,
    uptime_s: u64,
    counters: &Counters,
    live: &[(&'static str, usize)],
    capture: &CaptureCounters,
) -> String {
    let mut line = String::with_capacity(2048);
    let _ = write!(
        line,
        "{{\"timestamp\":\"{}\",\"event_type\":\"stats\",\"stats\":{{\"uptime\":{uptime_s},",
        Timestamp(time_us)
    );
    object(
        &mut line,
        "capture",
        &[
            ("kernel_packets", capture.kernel_packets),
            ("kernel_drops", capture.kernel_drops),
            ("truncated_records", capture.truncated_records),
            ("unsupported_link", capture.unsupported_link),
        ],
    );
    let invalid: u64 = counters.malformed.iter().skip(1).sum(); // the first is no fault of the packet's
    let mut decoder = vec![
        ("pkts", counters.packets),
        ("bytes", counters.bytes),
        ("ipv4", counters.ipv4),
        ("ipv6", counters.ipv6),
        ("arp", counters.arp),
        ("other", counters.other),
        ("tcp", counters.tcp),
        ("udp", counters.udp),
        ("icmp", counters.icmp),
        ("fragments", counters.fragments),
        ("invalid", invalid),
    ];
    for (&reason, &count) in Malformed::ALL.iter().zip(&counters.malformed) {
        if count > 0 {
            decoder.push((reason.name(), count));
        }
    }
    object(&mut line, "decoder", &decoder);
    object(
        &mut line,
        "flow",
        &[
            ("created", counters.flows_created),
            ("ended", counters.flows_ended),
            ("evicted", counters.flows_evicted),
            ("refused", counters.flows_refused),
            ("records", counters.flow_records),
            ("records_suppressed", counters.flow_records_suppressed),
        ],
    );
    object(
        &mut line,
        "detect",
        &[
            ("alerts", counters.alerts),
            ("alerts_suppressed", counters.alerts_suppressed),
            ("sources_created", counters.sources_created),
            ("sources_evicted", counters.sources_evicted),
            ("sources_refused", counters.sources_refused),
            ("floods_created", counters.floods_created),
            ("floods_evicted", counters.floods_evicted),
            ("floods_refused", counters.floods_refused),
        ],
    );
    object(&mut line, "output", &[("refused", counters.events_refused)]);
    let live: Vec<_> = live.iter().map(|&(name, count)| (name, count as u64)).collect();
    object(&mut line, "memory", &live);
    line.pop();
    line.push_str("}}");
    line
}

fn object(line: &mut String, name: &str, fields: &[(&str, u64)]) {
    let _ = write!(line, "\"{name}\":{{");
    for (index, (field, value)) in fields.iter().enumerate() {
        let _ = write!(line, "{}\"{field}\":{value}", if index == 0 { "" } else { "," });
    }
    line.push_str("},");
}

fn write_protocol(line: &mut String, number: u8) -> std::fmt::Result {
    match number {
        protocol::TCP => line.push_str("\"proto\":\"TCP\","),
        protocol::UDP => line.push_str("\"proto\":\"UDP\","),
        protocol::ICMP => line.push_str("\"proto\":\"ICMP\","),
        protocol::ICMPV6 => line.push_str("\"proto\":\"IPv6-ICMP\","),
        132 => line.push_str("\"proto\":\"SCTP\","),
        other => return write!(line, "\"proto\":\"{other:03}\","),
    }
    Ok(())
}

fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Unknown => "unknown",
        Direction::In => "in",
        Direction::Out => "out",
    }
}

/// EVE's time: ISO 8601 with microseconds and a numeric offset, always UTC here.
pub struct Timestamp(
    /// Microseconds since 1970-01-01 UTC.
    pub u64,
);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, micros) = (self.0 / 1_000_000, self.0 % 1_000_000);
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // civil date from days: the year begins in March, so that the leap day is the last of its year
        let days = days + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+0000")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_civil() {
        let rows = [
            (0, "1970-01-01T00:00:00.000000+0000"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001+0000"),
            (1_795_422_487_123_456, "2026-11-23T08:28:07.123456+0000"),
        ];
        for (time_us, expected) in rows {
            assert_eq!(Timestamp(time_us).to_string(), expected);
        }
    }
}
