//! The sensor's configuration as JSON; docs/formats/eve.md lists the fields.

use sensor::{Config, FloodConfig, FlowEvents, ScanConfig};
use serde::Deserialize;

use crate::errors::Failure;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    memory_bytes: usize,
    scan: Scan,
    flood: Flood,
    flow_events: Flows,
    flow_events_per_s: u32,
    alerts_per_s: u32,
    update_s: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Scan {
    ports: u32,
    window_s: u32,
    flag_packets: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Flood {
    high_per_s: u32,
    low_per_s: u32,
    window_s: u32,
    udp_high_per_s: u32,
    icmp_high_per_s: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Flows {
    Off,
    Answered,
    All,
}

impl Default for Document {
    fn default() -> Document {
        let Config { memory_bytes, flow_events_per_s, alerts_per_s, update_s, .. } = Config::default();
        Document {
            memory_bytes,
            scan: Scan::default(),
            flood: Flood::default(),
            flow_events: Flows::Answered,
            flow_events_per_s,
            alerts_per_s,
            update_s,
        }
    }
}

impl Default for Scan {
    fn default() -> Scan {
        let ScanConfig { ports, window_s, flag_packets } = Config::default().scan;
        Scan { ports, window_s, flag_packets }
    }
}

impl Default for Flood {
    fn default() -> Flood {
        let FloodConfig { high_per_s, low_per_s, window_s, udp_high_per_s, icmp_high_per_s } = Config::default().flood;
        Flood { high_per_s, low_per_s, window_s, udp_high_per_s, icmp_high_per_s }
    }
}

/// Return the configuration; fields that are absent keep their defaults, unknown ones are refused.
pub fn parse_config(json: &str) -> Result<Config, Failure> {
    if !json.trim_start().starts_with('{') {
        return Err(Failure::config("the configuration is no JSON object".to_owned())); // serde takes arrays too
    }
    let document: Document = serde_json::from_str(json).map_err(|error| Failure::config(error.to_string()))?;
    let Document { memory_bytes, scan, flood, flow_events, flow_events_per_s, alerts_per_s, update_s } = document;
    Ok(Config {
        memory_bytes,
        scan: ScanConfig { ports: scan.ports, window_s: scan.window_s, flag_packets: scan.flag_packets },
        flood: FloodConfig {
            high_per_s: flood.high_per_s,
            low_per_s: flood.low_per_s,
            window_s: flood.window_s,
            udp_high_per_s: flood.udp_high_per_s,
            icmp_high_per_s: flood.icmp_high_per_s,
        },
        flow_events: match flow_events {
            Flows::Off => FlowEvents::Off,
            Flows::Answered => FlowEvents::Answered,
            Flows::All => FlowEvents::All,
        },
        flow_events_per_s,
        alerts_per_s,
        update_s,
    })
}
