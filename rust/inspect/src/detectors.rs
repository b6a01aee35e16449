//! Attacks that are seen without rules: scans and sweeps, spoofing on the link, rogue servers, tunnels, beacons, passwords
//! that are tried, what is outside a baseline, and what is new in a control network.
//!
//! Promises: tables have a fixed size out of one memory number and keyed hashes; a finding is a start, updates and an
//! end, however many packets there are; nothing reads a clock. Leaves to others: rules, floods of SYNs, UDP and ICMP
//! and packets with flags that no stack sends (crate `sensor`), what is done about a finding.
//! Read first: `finding.rs`, `reporter.rs`, then one detector, `scans.rs`.

mod acks;
mod baseline;
mod beacons;
mod config;
mod control;
mod finding;
mod hooks;
mod json_text;
mod logins;
mod neighbours;
mod probes;
mod reporter;
mod scans;
mod seen;
mod servers;
mod slow;
mod table;
mod tunnels;
mod wiring;

#[cfg(test)]
mod tests;

use protocols::{Settings, Transaction};
use sensor::SipKey;

pub use config::{Config, Home};
pub use finding::{Evidence, Finding, Kind, KindInfo, Phase, Subject, Value, encode};
pub use seen::FlowSeen;

use crate::layers::Layers;
use reporter::Reporter;

/// What a detector works with besides its own tables.
struct Context<'a> {
    now_us: u64,
    config: &'a Config,
    reporter: &'a mut Reporter,
}

/// All detectors.
pub struct Detectors {
    config: Config,
    reporter: Reporter,
    scans: scans::Scans,
    acks: acks::Acks,
    neighbours: neighbours::Neighbours,
    servers: servers::Servers,
    tunnels: tunnels::Tunnels,
    beacons: beacons::Beacons,
    logins: logins::Logins,
    baseline: baseline::Baseline,
    control: control::Control,
    now_us: u64,
}

/// Packets of several queues are seconds apart at most.
const MOST_LATE_US: u64 = 60_000_000;

/// Shares of the memory number in percent. Scans have the most, since whoever scans makes the most entries; a baseline
/// has what a device's takes (a line is 16 bytes); the rest is open alerts and what is not counted.
mod share {
    pub const SCANS: usize = 35;
    pub const ACKS: usize = 2;
    pub const NEIGHBOURS: usize = 8;
    pub const TUNNELS: usize = 12;
    pub const BEACONS: usize = 12;
    pub const LOGINS: usize = 10;
    pub const BASELINE: usize = 10;
    pub const CONTROL: usize = 5;
}

impl Detectors {
    /// Return detectors whose tables hold `memory_bytes`, as `settings` below `detectors.` switch them.
    pub fn new(memory_bytes: usize, key: SipKey, settings: &Settings) -> Detectors {
        let config = Config::from_settings(settings);
        let of = |percent: usize| memory_bytes / 100 * percent;
        Detectors {
            reporter: Reporter::new(config.update_us, config.ignored.clone(), key),
            scans: scans::Scans::new(of(share::SCANS), key, &config),
            acks: acks::Acks::new(of(share::ACKS), key),
            neighbours: neighbours::Neighbours::new(of(share::NEIGHBOURS), key),
            servers: servers::Servers::default(),
            tunnels: tunnels::Tunnels::new(of(share::TUNNELS), key),
            beacons: beacons::Beacons::new(of(share::BEACONS), key),
            logins: logins::Logins::new(of(share::LOGINS), key),
            baseline: baseline::Baseline::new(settings.text("detectors.baseline.text"), of(share::BASELINE), key),
            control: control::Control::new(of(share::CONTROL), key),
            config,
            now_us: 0,
        }
    }

    /// Why the baseline that was given is not used.
    pub fn baseline_error(&self) -> Option<&'static str> {
        self.baseline.error
    }

    /// Time goes on; packets that come a little late do not turn it back, a clock that was set does.
    fn advance(&mut self, now_us: u64) {
        let is_set = self.now_us.saturating_sub(now_us) > MOST_LATE_US;
        self.now_us = if is_set { now_us } else { self.now_us.max(now_us) };
    }

    /// Look at a packet, with the flow that it belongs to where it has one.
    pub fn packet(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, now_us: u64) {
        if layers.is_invalid {
            return;
        }
        self.advance(now_us);
        let mut context = Context { now_us: self.now_us, config: &self.config, reporter: &mut self.reporter };
        self.scans.packet(layers, flow, &mut context);
        self.acks.packet(layers, flow, &mut context);
        self.neighbours.packet(layers, &mut context);
        self.servers.packet(layers, &mut context);
        self.logins.packet(layers, &mut context);
        self.baseline.packet(layers, flow, &mut context);
    }

    /// Look at a transaction that is complete, once.
    pub fn transaction(&mut self, flow: &FlowSeen, protocol: usize, transaction: &dyn Transaction, now_us: u64) {
        self.advance(now_us);
        let mut context = Context { now_us: self.now_us, config: &self.config, reporter: &mut self.reporter };
        self.tunnels.transaction(flow, protocol, transaction, &mut context);
        self.logins.transaction(flow, protocol, transaction, &mut context);
        self.control.transaction(flow, protocol, transaction, &mut context);
    }

    /// A flow is over.
    pub fn flow_ended(&mut self, flow: &FlowSeen) {
        let mut context = Context { now_us: self.now_us, config: &self.config, reporter: &mut self.reporter };
        if !self.baseline.knows_flow(flow) {
            self.beacons.flow_ended(flow, &mut context);
        }
    }

    /// Let time pass; four times a second is enough.
    pub fn tick(&mut self, now_us: u64) {
        self.advance(now_us);
        let mut context = Context { now_us: self.now_us, config: &self.config, reporter: &mut self.reporter };
        self.scans.tick(&mut context);
        self.reporter.tick(self.now_us, false);
    }

    /// End every alert: the sensor stops.
    pub fn finish(&mut self) {
        self.tick(self.now_us);
        self.reporter.tick(self.now_us, true);
    }

    /// Take what was found.
    pub fn take(&mut self) -> Vec<Finding> {
        self.reporter.take()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.reporter.is_empty()
    }

    /// Bytes of all tables: the same from beginning to end.
    pub fn table_bytes(&self) -> usize {
        let link = self.neighbours.bytes() + self.logins.bytes() + self.control.bytes();
        self.scans.bytes() + self.acks.bytes() + self.tunnels.bytes() + self.beacons.bytes() + link
    }

    /// Counters for the statistics: alerts that began, findings that were merged into another's, findings that were
    /// refused, entries created, entries that made room, lines of the baseline.
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        let [hosts, ports, slow] = self.scans.counters();
        let [tries, waiting] = self.logins.counters();
        let tables = [
            hosts,
            ports,
            slow,
            tries,
            waiting,
            self.acks.counters(),
            self.neighbours.counters(),
            self.tunnels.counters(),
            self.beacons.counters(),
            self.control.counters(),
        ];
        [
            ("findings", self.reporter.counters.started),
            ("findings_merged", self.reporter.counters.merged),
            ("findings_refused", self.reporter.counters.refused),
            ("entries_created", tables.iter().map(|table| table.created).sum()),
            ("entries_evicted", tables.iter().map(|table| table.evicted).sum()),
            ("baseline_lines", self.baseline.len() as u64),
        ]
    }
}
