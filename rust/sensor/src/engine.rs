//! The sensor: decodes each frame, keeps its flow, feeds the detectors, queues what they report.

use std::collections::VecDeque;

use crate::alarm::RateLimit;
use crate::budget::Budget;
use crate::config::{Config, ConfigError, FlowEvents};
use crate::counters::{CaptureCounters, Counters};
use crate::decode::{Address, Decoded, Direction, Frame, Malformed, Packet, decode, flags, protocol};
use crate::eve;
use crate::event::{Alert, Anomaly, Event, FlowRecord};
use crate::floods::{Arrival, Floods, Kind};
use crate::flow::{FlowTable, Observation};
use crate::peers::{Peers, Proof};
use crate::siphash::SipKey;
use crate::sources::{Seen, Sources};

/// How often time alone is looked at; an alert waits for it at most this long.
const TICK_US: u64 = 250_000;
/// A frame older than the newest by more than this means that the clock was set back, not that frames overtook.
const CLOCK_STEP_US: u64 = 60_000_000;
/// The last part of the queue is for alerts: flow records and anomalies never fill it.
const ALERT_RESERVE_PERCENT: usize = 25;
/// Updates and ends leave this part of a second's alerts to new ones.
const START_RESERVE_PERCENT: u32 = 50;
/// Malformed packets of one kind are reported together, at most this often.
const ANOMALY_US: u64 = 10_000_000;
/// Flows ended in one sweep: a thousand a second, and no packet waits for a long one. What is more is evicted when its
/// slot is needed.
const MAX_ENDED_PER_SWEEP: usize = 256;

/// Bytes in, events out. See the crate's documentation for what is promised.
pub struct Sensor {
    config: Config,
    budget: Budget,
    counters: Counters,
    flows: FlowTable,
    sources: Sources,
    floods: Floods,
    peers: Peers,
    anomalies: [AnomalyState; Malformed::ALL.len()],
    alerts: Vec<Alert>,
    queue: Queue,
    first_us: u64,
    now_us: u64,
    next_tick_us: u64,
}

#[derive(Clone, Copy, Default)]
struct AnomalyState {
    unreported: u64,
    reported_us: Option<u64>,
}

impl Sensor {
    /// Return a sensor that never holds more than `config.memory_bytes` (the share of the ring or of the file buffer,
    /// [`Sensor::ring_bytes`], included); `key` must come from the machine's random generator.
    pub fn new(config: Config, key: SipKey) -> Result<Sensor, ConfigError> {
        let config = config.verified()?;
        let budget = Budget::divide(config.memory_bytes);
        let update_us = u64::from(config.update_s) * 1_000_000;
        Ok(Sensor {
            budget,
            counters: Counters::ZERO,
            flows: FlowTable::new(budget.flows, key),
            sources: Sources::new(budget.sources, &config.scan, update_us, key),
            floods: Floods::new(budget.floods, &config.flood, update_us, key),
            peers: Peers::new(budget.peers, key),
            anomalies: [AnomalyState::default(); Malformed::ALL.len()],
            alerts: Vec::new(),
            queue: Queue::new(&config, budget.events),
            first_us: 0,
            now_us: 0,
            next_tick_us: 0,
            config,
        })
    }

    /// Return how many bytes the capture may use.
    pub fn ring_bytes(&self) -> usize {
        self.budget.ring_bytes
    }

    /// Return what an address has proved about itself, if anything.
    pub fn proof_of(&mut self, address: Address) -> Option<Proof> {
        self.peers.proof(address, self.now_us)
    }

    /// Return the counters since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Look at one frame. Never panics, whatever it holds.
    #[inline]
    pub fn packet(&mut self, frame: &Frame<'_>) {
        self.advance(frame.time_us);
        self.counters.packets += 1;
        self.counters.bytes += u64::from(frame.wire_bytes);
        match decode(frame) {
            Ok(Decoded::Ip(packet)) => self.inspect(&packet, frame.direction),
            Ok(Decoded::Arp) => self.counters.arp += 1,
            Ok(Decoded::Other) => self.counters.other += 1,
            Err(reason) => self.malformed(reason),
        }
    }

    /// Let time pass where no packet comes: SYNs stay unanswered, alerts end, flows time out.
    pub fn tick(&mut self, now_us: u64) {
        self.advance(now_us);
    }

    /// End what is open and report it, as much as the queue has room for; return whether more is left. Read the lines
    /// between the calls.
    pub fn finish(&mut self) -> bool {
        self.sources.finish(self.now_us, &mut self.alerts);
        self.floods.finish(self.now_us, &mut self.alerts);
        self.raise_alerts();
        for reason in Malformed::ALL {
            self.report_anomaly(*reason);
        }
        let Sensor { flows, counters, queue, now_us, .. } = self;
        let mut done = EndedFlows::default();
        let budget = queue.sweep_budget(usize::MAX);
        let is_more_left = flows.finish(*now_us, budget, counters, &mut |record| done.put(record, queue));
        done.count(counters);
        is_more_left
    }

    /// Return whether the queue should be read before more is looked at, lest events be refused.
    #[inline]
    pub fn is_crowded(&self) -> bool {
        self.queue.events.len() > self.queue.capacity / 4
    }

    /// Write the next event as one EVE line into `line` (cleared first); return whether there was one.
    pub fn next_line(&mut self, line: &mut String) -> bool {
        line.clear();
        match self.queue.events.pop_front() {
            Some(event) => {
                eve::encode_event(&event, line);
                true
            }
            None => false,
        }
    }

    /// Return the statistics as one EVE line.
    pub fn stats_line(&self, capture: &CaptureCounters) -> String {
        let sizes = [
            ("budget_bytes", self.config.memory_bytes),
            ("divided_bytes", self.budget.total_bytes()),
            ("ring_bytes", self.budget.ring_bytes),
            ("flow_slots", self.budget.flows),
            ("flow_live", self.flows.live()),
            ("source_slots", self.budget.sources),
            ("flood_slots", self.budget.floods),
            ("event_slots", self.budget.events),
        ];
        let uptime_s = self.now_us.saturating_sub(self.first_us) / 1_000_000;
        eve::encode_stats(self.now_us, uptime_s, &self.counters, &sizes, capture)
    }

    #[inline]
    fn advance(&mut self, time_us: u64) {
        if time_us.saturating_add(CLOCK_STEP_US) < self.now_us {
            (self.now_us, self.next_tick_us) = (time_us, time_us);
        }
        self.now_us = self.now_us.max(time_us);
        if self.now_us >= self.next_tick_us {
            self.sweep();
        }
    }

    #[cold]
    fn sweep(&mut self) {
        if self.first_us == 0 {
            self.first_us = self.now_us;
        }
        self.next_tick_us = self.now_us.saturating_add(TICK_US);
        let Sensor { flows, counters, queue, now_us, .. } = self;
        let mut done = EndedFlows::default();
        let budget = queue.sweep_budget(MAX_ENDED_PER_SWEEP);
        flows.expire(*now_us, budget, counters, &mut |record| done.put(record, queue));
        done.count(counters);
        self.sources.tick(self.now_us, &mut self.alerts);
        self.floods.tick(self.now_us, &mut self.alerts);
        self.raise_alerts();
    }

    fn inspect(&mut self, packet: &Packet, direction: Direction) {
        match packet.source.is_v4() {
            true => self.counters.ipv4 += 1,
            false => self.counters.ipv6 += 1,
        }
        if packet.is_later_fragment {
            self.counters.fragments += 1;
            return;
        }
        let Sensor { flows, counters, queue, now_us, .. } = self;
        let mut done = EndedFlows::default();
        let seen = flows.observe(packet, *now_us, counters, &mut |record| done.put(record, queue));
        done.count(counters);
        match packet.protocol {
            protocol::TCP => {
                self.counters.tcp += 1;
                self.inspect_tcp(packet, &seen, direction);
            }
            protocol::UDP => {
                self.counters.udp += 1;
                if !seen.is_answered {
                    self.count_arrival(Kind::Udp, packet, 0, direction);
                }
            }
            protocol::ICMP | protocol::ICMPV6 => {
                self.counters.icmp += 1;
                if matches!((packet.protocol, packet.icmp[0]), (protocol::ICMP, 8) | (protocol::ICMPV6, 128)) {
                    self.count_arrival(Kind::Icmp, packet, 0, direction);
                }
            }
            _ => {}
        }
        self.raise_alerts();
    }

    #[inline]
    fn inspect_tcp(&mut self, packet: &Packet, seen: &Observation, direction: Direction) {
        if seen.has_completed {
            self.floods.complete(packet.destination, packet.destination_port, self.now_us);
        }
        if seen.has_proved_peers {
            self.peers.note(packet.source, self.now_us);
            self.peers.note(packet.destination, self.now_us);
        }
        const SYN_ACK: u8 = flags::SYN | flags::ACK;
        let at = Seen { now_us: self.now_us, flow_id: seen.flow_id, direction };
        match packet.tcp_flags & (flags::SYN | flags::ACK | flags::RST | flags::FIN) {
            flags::ACK => {} // nearly every packet
            flags::SYN => {
                self.sources.probe(packet, at, &mut self.counters, &mut self.alerts);
                if !self.count_arrival(Kind::Syn, packet, packet.destination_port, direction) {
                    self.count_arrival(Kind::SynHost, packet, 0, direction);
                }
            }
            SYN_ACK => self.sources.answered(packet, direction),
            bits if bits & (flags::RST | flags::SYN) == flags::RST => {
                self.sources.refused(packet, self.now_us, &mut self.alerts);
            }
            _ => self.sources.illegal(packet, at, &mut self.counters, &mut self.alerts),
        }
    }

    fn count_arrival(&mut self, kind: Kind, packet: &Packet, port: u16, direction: Direction) -> bool {
        let Packet { destination, source, .. } = *packet;
        let arrival = Arrival { kind, destination, port, source, direction };
        self.floods.arrive(&arrival, self.now_us, &mut self.counters, &mut self.alerts)
    }

    #[inline]
    fn raise_alerts(&mut self) {
        if !self.alerts.is_empty() {
            self.queue_alerts();
        }
    }

    #[cold]
    fn queue_alerts(&mut self) {
        let Sensor { alerts, peers, queue, counters, now_us, .. } = self;
        for mut alert in alerts.drain(..) {
            alert.peer_age_s =
                alert.source.and_then(|source: Address| peers.proof(source, *now_us)).map(|proof| proof.age_s);
            match queue.put_alert(alert) {
                Put::Done => counters.alerts += 1,
                Put::Suppressed => counters.alerts_suppressed += 1,
                Put::Refused => counters.events_refused += 1,
            }
        }
        alerts.shrink_to(64); // a sweep that ended thousands of alerts must not leave its list behind
    }

    #[cold]
    fn malformed(&mut self, reason: Malformed) {
        self.counters.malformed[reason as usize] += 1;
        if reason == Malformed::Snapped {
            return; // the capture's doing: counted, but nothing that anybody sent
        }
        let state = &mut self.anomalies[reason as usize];
        state.unreported += 1;
        if state.reported_us.is_none_or(|reported| self.now_us.saturating_sub(reported) >= ANOMALY_US) {
            self.report_anomaly(reason);
        }
    }

    fn report_anomaly(&mut self, reason: Malformed) {
        let state = &mut self.anomalies[reason as usize];
        if state.unreported == 0 {
            return;
        }
        let anomaly = Anomaly { time_us: self.now_us, reason, count: state.unreported };
        *state = AnomalyState { unreported: 0, reported_us: Some(self.now_us) };
        if !self.queue.put(Event::Anomaly(anomaly), ALERT_RESERVE_PERCENT) {
            self.counters.events_refused += 1;
        }
    }
}

enum Put {
    Done,
    Suppressed,
    Refused,
}

/// Events that wait to be read: a fixed number, alerts first served.
struct Queue {
    events: VecDeque<Event>,
    capacity: usize,
    flow_events: FlowEvents,
    alert_rate: RateLimit,
    flow_rate: RateLimit,
}

impl Queue {
    fn new(config: &Config, capacity: usize) -> Queue {
        Queue {
            events: VecDeque::with_capacity(capacity),
            capacity,
            flow_events: config.flow_events,
            alert_rate: RateLimit::new(config.alerts_per_s),
            flow_rate: RateLimit::new(config.flow_events_per_s),
        }
    }

    /// How many flows may end now: at most `most`, no more than there is room for, but always some.
    fn sweep_budget(&self, most: usize) -> usize {
        const ALWAYS: usize = 16; // without a reader flows must still end; their records are counted as refused
        let room = self.capacity * (100 - ALERT_RESERVE_PERCENT) / 100;
        room.saturating_sub(self.events.len()).clamp(ALWAYS, most)
    }

    fn put(&mut self, event: Event, keep_percent: usize) -> bool {
        let has_room = self.events.len() < self.capacity * (100 - keep_percent) / 100;
        if has_room {
            self.events.push_back(event);
        }
        has_room
    }

    fn put_alert(&mut self, alert: Alert) -> Put {
        let keep = if alert.phase == crate::event::Phase::Start { 0 } else { START_RESERVE_PERCENT };
        if !self.alert_rate.allow(alert.time_us, keep) {
            return Put::Suppressed;
        }
        if self.put(Event::Alert(alert), 0) { Put::Done } else { Put::Refused }
    }
}

/// What became of the records of flows that ended in one call.
#[derive(Default)]
struct EndedFlows {
    written: u64,
    suppressed: u64,
    refused: u64,
}

impl EndedFlows {
    fn put(&mut self, record: &FlowRecord, queue: &mut Queue) {
        let wanted = match queue.flow_events {
            FlowEvents::Off => false,
            FlowEvents::Answered => record.is_answered,
            FlowEvents::All => true,
        };
        if !wanted {
            return;
        }
        if !queue.flow_rate.allow(record.time_us, 0) {
            self.suppressed += 1;
        } else if queue.put(Event::Flow(*record), ALERT_RESERVE_PERCENT) {
            self.written += 1;
        } else {
            self.refused += 1;
        }
    }

    #[inline]
    fn count(&self, counters: &mut Counters) {
        counters.flow_records += self.written;
        counters.flow_records_suppressed += self.suppressed;
        counters.events_refused += self.refused;
    }
}
