//! What the caller decides, with the bounds of each number.

use std::fmt;

use crate::budget;
use crate::sources::MAX_PORTS;

/// Which flows are reported when they end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FlowEvents {
    /// None.
    Off,
    /// Those in which both sides took part: a flood of one-sided packets is no flood of events.
    #[default]
    Answered,
    /// Every one.
    All,
}

/// When a source counts as a scanner.
#[derive(Clone, Copy, Debug)]
pub struct ScanConfig {
    /// Distinct ports that refused or ignored a source's SYN, inside the window.
    pub ports: u32,
    /// The window.
    pub window_s: u32,
    /// Packets with an illegal combination of flags, inside the window.
    pub flag_packets: u32,
}

/// When a destination counts as flooded. Rates are per second, averaged over the window.
#[derive(Clone, Copy, Debug)]
pub struct FloodConfig {
    /// Handshakes begun and not completed: an alert begins.
    pub high_per_s: u32,
    /// The alert ends once the rate was below this for a whole window.
    pub low_per_s: u32,
    /// The window.
    pub window_s: u32,
    /// Datagrams of unanswered UDP flows; 0 switches this detector off.
    pub udp_high_per_s: u32,
    /// ICMP echo requests; 0 switches this detector off.
    pub icmp_high_per_s: u32,
}

/// Everything that can be set.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bounds everything the sensor holds, the capture ring included.
    pub memory_bytes: usize,
    /// Scan detectors.
    pub scan: ScanConfig,
    /// Flood detectors.
    pub flood: FloodConfig,
    /// Which flows are reported.
    pub flow_events: FlowEvents,
    /// Flow records a second at most; the rest is counted.
    pub flow_events_per_s: u32,
    /// Alerts a second at most; the rest is counted.
    pub alerts_per_s: u32,
    /// Between two reports of one alert that goes on.
    pub update_s: u32,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            memory_bytes: 8 << 20,
            scan: ScanConfig { ports: 8, window_s: 10, flag_packets: 5 },
            flood: FloodConfig {
                high_per_s: 200,
                low_per_s: 50,
                window_s: 1,
                udp_high_per_s: 10_000,
                icmp_high_per_s: 500,
            },
            flow_events: FlowEvents::Answered,
            flow_events_per_s: 200,
            alerts_per_s: 20,
            update_s: 5,
        }
    }
}

/// A number outside its bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigError {
    /// The setting's name.
    pub field: &'static str,
    /// The bounds, in words.
    pub bounds: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} must be {}", self.field, self.bounds)
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Return the configuration if every number is inside its bounds.
    pub fn verified(self) -> Result<Config, ConfigError> {
        let rows = [
            (
                "memory_bytes",
                self.memory_bytes as u64,
                budget::MIN_MEMORY_BYTES as u64,
                budget::MAX_MEMORY_BYTES as u64,
            ),
            // a list of ports is kept for each source; below 3, two closed ports of one service would be a scan
            ("scan.ports", self.scan.ports.into(), 3, MAX_PORTS as u64),
            ("scan.window_s", self.scan.window_s.into(), 1, 3600),
            ("scan.flag_packets", self.scan.flag_packets.into(), 1, 1_000_000),
            ("flood.high_per_s", self.flood.high_per_s.into(), 1, 10_000_000),
            ("flood.low_per_s", self.flood.low_per_s.into(), 0, u64::from(self.flood.high_per_s) - 1),
            ("flood.window_s", self.flood.window_s.into(), 1, 60),
            ("flood.udp_high_per_s", self.flood.udp_high_per_s.into(), 0, 10_000_000),
            ("flood.icmp_high_per_s", self.flood.icmp_high_per_s.into(), 0, 10_000_000),
            ("flow_events_per_s", self.flow_events_per_s.into(), 1, 1_000_000),
            ("alerts_per_s", self.alerts_per_s.into(), 1, 10_000),
            ("update_s", self.update_s.into(), 1, 3600),
        ];
        for (field, value, low, high) in rows {
            if value < low || value > high {
                return Err(ConfigError { field, bounds: format!("from {low} to {high}, not {value}") });
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid_and_each_number_out_of_bounds_is_named() {
        assert!(Config::default().verified().is_ok());
        type Edit = fn(&mut Config);
        let rows: [(&str, Edit); 5] = [
            ("memory_bytes", |config| config.memory_bytes = 1),
            ("scan.ports", |config| config.scan.ports = 65),
            ("flood.low_per_s", |config| config.flood.low_per_s = 200),
            ("flood.window_s", |config| config.flood.window_s = 0),
            ("update_s", |config| config.update_s = 0),
        ];
        for (field, edit) in rows {
            let mut config = Config::default();
            edit(&mut config);
            assert_eq!(config.verified().err().map(|error| error.field), Some(field));
        }
    }
}
