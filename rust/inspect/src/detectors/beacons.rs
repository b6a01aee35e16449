//! Connections to one destination that come like a clock's ticks and carry much the same each time.
//!
//! Looked at when flows end. What polls by design (name services, time) and destinations in the home network are left
//! out; a device that polls its own cloud belongs into `detectors.beacon.ignore`, or into the baseline.

use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::{Entry, Table, TableCounters, words};

/// Intervals and sizes that are remembered: as many as the default asks for.
const MOST: usize = 16;
/// Of the last intervals, four in five must be regular: one lost poll makes no difference.
const REGULAR_PERCENT: usize = 80;
/// Sizes may differ by this much: tokens and times of day change lengths.
const SIZE_PERCENT: u32 = 20;
/// Connections that begin together are one.
const BURST_US: u64 = 1_000_000;
/// Six hours: the longest interval that is of use to anybody.
const IDLE_US: u64 = 6 * 3_600_000_000;

#[derive(Clone, Default)]
struct Talk {
    last_us: u64,
    count: u32,
    intervals_ms: [u32; MOST],
    sizes: [u32; MOST],
}

impl Entry for Talk {
    fn weight(&self) -> u32 {
        self.count.min(1000)
    }
}

impl Talk {
    /// Take a flow into account; returns whether it was one more tick.
    fn add(&mut self, start_us: u64, size: u64) -> bool {
        if start_us < self.last_us.saturating_add(BURST_US) && self.count > 0 {
            return false;
        }
        let index = self.count as usize % MOST;
        let interval_ms = start_us.saturating_sub(self.last_us) / 1000;
        if let (Some(interval), Some(bytes)) = (self.intervals_ms.get_mut(index), self.sizes.get_mut(index)) {
            *interval = u32::try_from(interval_ms).unwrap_or(u32::MAX);
            *bytes = u32::try_from(size).unwrap_or(u32::MAX);
        }
        self.last_us = start_us;
        self.count = self.count.saturating_add(1);
        true
    }
}

/// Return the median and whether four in five are within `percent` of it.
fn regular(values: &[u32; MOST], percent: u32) -> (u32, bool) {
    let mut sorted = *values;
    sorted.sort_unstable();
    let median = sorted.get(MOST / 2).copied().unwrap_or(0);
    let most = u64::from(median) * u64::from(percent) / 100;
    let near = sorted.iter().filter(|value| u64::from(value.abs_diff(median)) <= most).count();
    (median, near * 100 >= MOST * REGULAR_PERCENT)
}

/// Clients and services.
pub struct Beacons {
    talks: Table<5, Talk>,
}

impl Beacons {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Beacons {
        Beacons { talks: Table::new(bytes, IDLE_US, key) }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.talks.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.talks.counters
    }

    /// A flow is over.
    pub fn flow_ended(&mut self, flow: &FlowSeen, context: &mut Context<'_>) {
        let beacons = &context.config.beacons;
        let ([client, server], port) = (flow.addresses, flow.ports[1]);
        let is_left_out = !flow.is_established
            || port == 0
            || beacons.ignored_ports.contains(&port)
            || beacons.ignored.contains(&server)
            || context.config.home.contains(server) && !beacons.is_home_included
            || !context.config.is_on(Kind::Beacon);
        if is_left_out {
            return;
        }
        let ([a, b], [c, d]) = (words(client), words(server));
        let key = [a, b, c, d, u64::from(port) << 8 | u64::from(flow.protocol)];
        let Some((_, talk)) = self.talks.enter(&key, context.now_us) else { return };
        let size = flow.bytes[0].saturating_add(flow.bytes[1]);
        // the first interval is none: a full ring behind it is needed
        if !talk.add(flow.first_us, size) || talk.count < beacons.flows.max(MOST as u32) + 1 {
            return;
        }
        let (interval_ms, is_regular) = regular(&talk.intervals_ms, beacons.jitter_percent);
        let (bytes, is_same) = regular(&talk.sizes, SIZE_PERCENT);
        if !is_regular || !is_same || u64::from(interval_ms) * 1000 < beacons.least_us {
            return;
        }
        let subject = Subject {
            source: client,
            destination: server,
            source_port: flow.ports[0],
            destination_port: port,
            protocol: flow.protocol,
            flow_id: flow.id,
        };
        let count = Count::so_far(talk.count);
        context.reporter.report(Kind::Beacon, subject, count, context.now_us, || {
            vec![("interval_ms", Value::Number(interval_ms.into())), ("bytes", Value::Number(bytes.into()))]
        });
    }
}
