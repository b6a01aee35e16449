//! What is flooded: for each destination, handshakes begun and not completed, unanswered datagrams, echo requests.
//!
//! The victim's side is what holds when sources are made up. The sources are only sampled: four counters
//! (Misra and Gries, "Finding repeated elements", 1982) name every source that sent more than a fifth, with a count
//! that is never too high; so a named source really sent its share, and invented ones never get named.

use crate::alarm::Alarm;
use crate::config::FloodConfig;
use crate::counters::Counters;
use crate::decode::{Address, Direction};
use crate::event::{Alert, Detector, Phase};
use crate::siphash::SipKey;

/// Slots that a destination may occupy.
pub(crate) const BUCKET: usize = 4;
/// The window moves in steps of a quarter.
const STEPS: usize = 4;
/// A source is named when it sent at least half: then a ban of that one source helps.
const DOMINANT_PERCENT: u32 = 50;

/// What is counted for a destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Handshakes with one service.
    Syn,
    /// Handshakes with a host, except with services that are known to be flooded.
    SynHost,
    /// Datagrams to a host, in flows that it does not answer.
    Udp,
    /// Echo requests to a host.
    Icmp,
}

#[derive(Clone, Copy)]
pub(crate) struct Flood {
    address: Address,
    last_us: u64,
    step: u64,
    arrivals: [u32; STEPS],
    completed: [u32; STEPS],
    senders: [(Address, u32); 4],
    sampled: u32,
    peak: u32,
    alarm: Alarm,
    port: u16,
    kind: Kind,
    direction: Direction,
    used: bool,
}

impl Flood {
    const FREE: Flood = Flood {
        address: Address(0),
        last_us: 0,
        step: 0,
        arrivals: [0; STEPS],
        completed: [0; STEPS],
        senders: [(Address(0), 0); 4],
        sampled: 0,
        peak: 0,
        alarm: Alarm::OFF,
        port: 0,
        kind: Kind::Syn,
        direction: Direction::Unknown,
        used: false,
    };

    /// Move the window: steps that are over begin again at zero, and the sample of sources fades by half each.
    fn advance(&mut self, step: u64) {
        let passed = step.saturating_sub(self.step).min(STEPS as u64);
        for offset in 1..=passed {
            let index = (self.step.wrapping_add(offset) % STEPS as u64) as usize;
            (self.arrivals[index], self.completed[index]) = (0, 0);
            self.sampled /= 2;
            for sender in &mut self.senders {
                sender.1 /= 2;
            }
        }
        if step < self.step {
            (self.arrivals, self.completed) = ([0; STEPS], [0; STEPS]); // the clock was set back
        }
        self.step = step;
    }

    fn index(&self) -> usize {
        (self.step % STEPS as u64) as usize
    }

    /// Return what is open in the window: begun and not completed.
    fn open(&self) -> u32 {
        let sum = |steps: &[u32; STEPS]| steps.iter().fold(0_u32, |sum, &count| sum.saturating_add(count));
        sum(&self.arrivals).saturating_sub(sum(&self.completed))
    }

    fn sample(&mut self, source: Address) {
        self.sampled = self.sampled.saturating_add(1);
        if let Some(sender) = self.senders.iter_mut().find(|sender| sender.1 > 0 && sender.0 == source) {
            sender.1 = sender.1.saturating_add(1);
        } else if let Some(sender) = self.senders.iter_mut().find(|sender| sender.1 == 0) {
            *sender = (source, 1);
        } else {
            self.senders.iter_mut().for_each(|sender| sender.1 -= 1);
        }
    }

    /// Return the source that sent most, and at least how many of a hundred packets.
    fn dominant(&self) -> (Option<Address>, u8) {
        let top = self.senders.iter().copied().max_by_key(|sender| sender.1).unwrap_or_default();
        let percent = (u64::from(top.1) * 100 / u64::from(self.sampled.max(1))).min(100) as u32;
        ((percent >= DOMINANT_PERCENT).then_some(top.0), percent as u8)
    }

    fn detector(&self) -> Detector {
        match self.kind {
            Kind::Syn => Detector::SynFlood,
            Kind::SynHost => Detector::SynFloodManyPorts,
            Kind::Udp => Detector::UdpFlood,
            Kind::Icmp => Detector::IcmpFlood,
        }
    }
}

/// The table of destinations.
pub(crate) struct Floods {
    slots: Box<[Flood]>,
    alarmed: Vec<u32>,
    key: SipKey,
    config: FloodConfig,
    update_us: u64,
}

/// One packet that may be part of a flood.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub kind: Kind,
    pub destination: Address,
    pub port: u16,
    pub source: Address,
    pub direction: Direction,
}

impl Floods {
    pub fn new(capacity: usize, config: &FloodConfig, update_us: u64, key: SipKey) -> Floods {
        Floods {
            slots: vec![Flood::FREE; capacity].into_boxed_slice(),
            alarmed: Vec::with_capacity(capacity),
            key,
            config: *config,
            update_us,
        }
    }

    /// Count a packet; return whether its destination is under an alert.
    pub fn arrive(&mut self, arrival: &Arrival, now_us: u64, counters: &mut Counters, alerts: &mut Vec<Alert>) -> bool {
        let high = self.marks(arrival.kind).0;
        if high == 0 {
            return false;
        }
        let found = self.find(arrival).or_else(|| self.create(arrival, counters));
        let Some(index) = found else {
            counters.floods_refused += 1;
            return false;
        };
        let (step, window_s) = (self.step(now_us), self.config.window_s);
        let flood = &mut self.slots[index];
        flood.advance(step);
        flood.arrivals[flood.index()] = flood.arrivals[flood.index()].saturating_add(1);
        flood.sample(arrival.source);
        (flood.last_us, flood.direction) = (now_us, arrival.direction);
        let rate = flood.open() / window_s;
        flood.peak = flood.peak.max(rate);
        flood.alarm.total = flood.alarm.total.saturating_add(u64::from(flood.alarm.active));
        // one source that asks for many ports is a scan, which has its own detector
        let is_scan = flood.kind == Kind::SynHost && flood.dominant().0.is_some();
        let (is_high, so_far) = (rate >= high && !is_scan, u64::from(flood.open()));
        let was_active = flood.alarm.active;
        if let Some(phase) = flood.alarm.step(is_high, so_far, now_us, self.update_us) {
            self.report(index, phase, now_us, alerts);
        }
        if !was_active && self.slots[index].alarm.active {
            self.alarmed.push(index as u32);
        }
        self.slots[index].alarm.active
    }

    /// A handshake with a service was completed: its SYN was honest.
    pub fn complete(&mut self, server: Address, port: u16, now_us: u64) {
        let step = self.step(now_us);
        for (kind, port) in [(Kind::Syn, port), (Kind::SynHost, 0)] {
            let key = Arrival { kind, destination: server, port, source: server, direction: Direction::Unknown };
            if let Some(index) = self.find(&key) {
                let flood = &mut self.slots[index];
                flood.advance(step);
                flood.completed[flood.index()] = flood.completed[flood.index()].saturating_add(1);
            }
        }
    }

    /// End alerts whose rate stayed below the low mark for a window.
    pub fn tick(&mut self, now_us: u64, alerts: &mut Vec<Alert>) {
        let (step, window_us) = (self.step(now_us), u64::from(self.config.window_s) * 1_000_000);
        let mut kept = 0;
        for at in 0..self.alarmed.len() {
            let index = self.alarmed[at] as usize;
            let low = self.marks(self.slots[index].kind).1;
            let flood = &mut self.slots[index];
            flood.advance(step);
            if flood.open() / self.config.window_s >= low.max(1) {
                flood.alarm.last_us = now_us; // the last time it was still high
            }
            if now_us.saturating_sub(flood.alarm.last_us) >= window_us {
                self.end(index, now_us, alerts);
            } else {
                self.alarmed[kept] = index as u32;
                kept += 1;
            }
        }
        self.alarmed.truncate(kept);
    }

    /// End every alert: the sensor stops.
    pub fn finish(&mut self, now_us: u64, alerts: &mut Vec<Alert>) {
        while let Some(index) = self.alarmed.pop() {
            self.end(index as usize, now_us, alerts);
        }
    }

    fn end(&mut self, index: usize, now_us: u64, alerts: &mut Vec<Alert>) {
        self.report(index, Phase::End, now_us, alerts);
        (self.slots[index].alarm, self.slots[index].peak) = (Alarm::OFF, 0);
    }

    fn report(&mut self, index: usize, phase: Phase, now_us: u64, alerts: &mut Vec<Alert>) {
        let flood = &self.slots[index];
        let (source, share_percent) = flood.dominant();
        alerts.push(Alert {
            time_us: now_us,
            flow_id: 0,
            detector: flood.detector(),
            phase,
            source,
            destination: flood.address,
            source_port: 0,
            destination_port: flood.port,
            direction: flood.direction,
            count: flood.alarm.total,
            measure: flood.peak,
            window_s: self.config.window_s,
            share_percent,
            peer_age_s: None,
        });
    }

    /// Return the high and the low mark; the ratio between them is that of the SYN marks for every kind.
    fn marks(&self, kind: Kind) -> (u32, u32) {
        let FloodConfig { high_per_s, low_per_s, udp_high_per_s, icmp_high_per_s, .. } = self.config;
        let low = |high: u32| (u64::from(high) * u64::from(low_per_s) / u64::from(high_per_s.max(1))) as u32;
        match kind {
            Kind::Syn | Kind::SynHost => (high_per_s, low_per_s),
            Kind::Udp => (udp_high_per_s, low(udp_high_per_s)),
            Kind::Icmp => (icmp_high_per_s, low(icmp_high_per_s)),
        }
    }

    fn step(&self, now_us: u64) -> u64 {
        now_us / (u64::from(self.config.window_s) * 1_000_000 / STEPS as u64)
    }

    fn bucket(&self, key: &Arrival) -> std::ops::Range<usize> {
        let [high, low] = key.destination.words();
        let words = [high, low, u64::from(key.port) << 8 | key.kind as u64];
        let number = self.key.bucket(&words, self.slots.len() / BUCKET);
        number * BUCKET..(number + 1) * BUCKET
    }

    fn find(&self, key: &Arrival) -> Option<usize> {
        self.bucket(key).find(|&index| {
            let slot = &self.slots[index];
            slot.used && slot.address == key.destination && slot.port == key.port && slot.kind == key.kind
        })
    }

    /// Take a free slot, else that of the longest silent destination without an alert.
    fn create(&mut self, key: &Arrival, counters: &mut Counters) -> Option<usize> {
        let slots = &self.slots;
        let index = self
            .bucket(key)
            .filter(|&index| !slots[index].alarm.active)
            .min_by_key(|&index| (slots[index].used, slots[index].last_us))?;
        let slot = &mut self.slots[index];
        counters.floods_evicted += u64::from(slot.used);
        counters.floods_created += 1;
        *slot = Flood { address: key.destination, port: key.port, kind: key.kind, used: true, ..Flood::FREE };
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        floods: Floods,
        counters: Counters,
        alerts: Vec<Alert>,
    }

    impl Bench {
        fn new() -> Bench {
            let config =
                FloodConfig { high_per_s: 200, low_per_s: 50, window_s: 1, udp_high_per_s: 1000, icmp_high_per_s: 0 };
            let floods = Floods::new(64, &config, 5_000_000, SipKey([7, 8]));
            Bench { floods, counters: Counters::ZERO, alerts: Vec::new() }
        }

        fn arrive(&mut self, kind: Kind, source: u32, now_us: u64) -> bool {
            let destination = Address::from_v4(9);
            let source = Address::from_v4(source);
            let arrival = Arrival { kind, destination, port: 80, source, direction: Direction::In };
            self.floods.arrive(&arrival, now_us, &mut self.counters, &mut self.alerts)
        }
    }

    #[test]
    fn a_flood_from_one_source_names_it() {
        let mut bench = Bench::new();
        for packet in 0..1000 {
            bench.arrive(Kind::Syn, 7, packet * 100);
        }
        assert_eq!((bench.alerts.len(), bench.alerts[0].source), (1, Some(Address::from_v4(7))));
        assert_eq!(bench.alerts[0].share_percent, 100);
    }

    #[test]
    fn a_flood_from_made_up_sources_names_the_victim_and_no_source() {
        let mut bench = Bench::new();
        for packet in 0..1000_u32 {
            bench.arrive(Kind::Syn, 1_000_000 + packet, u64::from(packet) * 100);
        }
        assert_eq!((bench.alerts.len(), bench.alerts[0].source), (1, None));
        assert_eq!(bench.alerts[0].destination, Address::from_v4(9));
    }

    #[test]
    fn handshakes_that_are_completed_never_make_a_flood() {
        let mut bench = Bench::new();
        for packet in 0..50_000 {
            bench.arrive(Kind::Syn, 7, packet * 100);
            bench.floods.complete(Address::from_v4(9), 80, packet * 100 + 50);
        }
        assert!(bench.alerts.is_empty());
    }

    #[test]
    fn between_the_marks_nothing_begins_and_nothing_ends() {
        let mut bench = Bench::new();
        let mut now = 0;
        let mut run = |bench: &mut Bench, rate: u64, seconds: u64| {
            for _ in 0..rate * seconds {
                now += 1_000_000 / rate;
                bench.arrive(Kind::Syn, 7, now);
                bench.floods.tick(now, &mut bench.alerts);
            }
            bench.alerts.iter().map(|alert| alert.phase).filter(|&phase| phase != Phase::Update).count()
        };
        assert_eq!(run(&mut bench, 150, 5), 0, "below the high mark");
        assert_eq!(run(&mut bench, 400, 2), 1, "above it");
        assert_eq!(run(&mut bench, 100, 10), 1, "between the marks the alert stands");
        assert_eq!(run(&mut bench, 20, 5), 2, "below the low mark it ends");
        assert_eq!(run(&mut bench, 100, 5), 2, "and does not begin again between them");
    }

    #[test]
    fn one_source_over_many_ports_is_left_to_the_scan_detector() {
        let mut bench = Bench::new();
        (0..1000).for_each(|packet| {
            bench.arrive(Kind::SynHost, 7, packet * 100);
        });
        assert!(bench.alerts.is_empty());
        (0..1000_u32).for_each(|packet| {
            bench.arrive(Kind::SynHost, 100 + packet, 200_000);
        });
        assert_eq!(bench.alerts.len(), 1);
    }

    #[test]
    fn a_mark_of_zero_switches_a_detector_off() {
        let mut bench = Bench::new();
        (0..100_000).for_each(|packet| {
            bench.arrive(Kind::Icmp, 7, packet);
        });
        assert!(bench.alerts.is_empty() && bench.counters.floods_created == 0);
    }
}
