//! Who scans: for each source, the ports that refused or ignored it, and packets whose flags no stack sends.
//!
//! A port that answers with SYN and ACK is taken off the list again, so a client that opens many connections to
//! services that exist is never near the threshold, however fast it is. Ports are counted in windows that do not
//! overlap: a scan slower than `ports` in a window is not seen, and one that straddles two windows may need twice
//! as many.

use crate::alarm::Alarm;
use crate::config::ScanConfig;
use crate::counters::Counters;
use crate::decode::{Address, Direction, Packet, flags};
use crate::event::{Alert, Detector, Phase};
use crate::siphash::SipKey;

/// One bit of a 64-bit word for each remembered port.
pub(crate) const MAX_PORTS: usize = 64;
/// Slots that a source may occupy.
pub(crate) const BUCKET: usize = 8;
/// A SYN unanswered for this long, at most twice as long, counts as ignored. The device's own answers leave within
/// milliseconds; to ask `ports` different ports over a slower link than this, and get every answer late, takes a scanner.
/// An answer that comes later still takes its port off the list.
const GRACE_US: u64 = 250_000;

const DETECTORS: [Detector; 5] =
    [Detector::SynScan, Detector::XmasScan, Detector::NullScan, Detector::FinScan, Detector::SynFinScan];

#[derive(Clone, Copy, Default)]
struct Sample {
    flow_id: u64,
    destination: Address,
    source_port: u16,
    destination_port: u16,
    direction: Direction,
}

#[derive(Clone, Copy)]
pub(crate) struct Source {
    address: Address,
    window_us: u64,
    rotated_us: u64,
    last_us: u64,
    // one bit for each entry of `ports`: asked just now, asked a while ago, refused or ignored
    fresh: u64,
    waiting: u64,
    failed: u64,
    ports: [u16; MAX_PORTS],
    illegal: [u32; 4],
    alarms: [Alarm; DETECTORS.len()],
    sample: Sample,
    length: u8,
    used: bool,
    queued: bool,
}

impl Source {
    const FREE: Source = Source {
        address: Address(0),
        window_us: 0,
        rotated_us: 0,
        last_us: 0,
        fresh: 0,
        waiting: 0,
        failed: 0,
        ports: [0; MAX_PORTS],
        illegal: [0; 4],
        alarms: [Alarm::OFF; DETECTORS.len()],
        sample: Sample {
            flow_id: 0,
            destination: Address(0),
            source_port: 0,
            destination_port: 0,
            direction: Direction::Unknown,
        },
        length: 0,
        used: false,
        queued: false,
    };

    fn is_alarmed(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.active)
    }

    /// How much would be forgotten with this source.
    fn weight(&self) -> u32 {
        self.failed.count_ones() * 2 + u32::from(self.length) + self.illegal.iter().fold(0, |sum, &n| sum | n)
    }

    fn has_pending(&self) -> bool {
        self.fresh | self.waiting != 0 || self.is_alarmed()
    }

    fn open_window(&mut self, now_us: u64, window_us: u64) {
        if now_us < self.window_us || now_us - self.window_us >= window_us {
            (self.fresh, self.waiting, self.failed, self.length) = (0, 0, 0, 0);
            self.illegal = [0; 4];
            (self.window_us, self.rotated_us) = (now_us, now_us);
        }
    }

    /// Two steps of at least [`GRACE_US`] each lead from "asked" to "ignored", so none is judged too early; after a
    /// pause as long, one step does.
    fn rotate(&mut self, now_us: u64) {
        if now_us.saturating_sub(self.last_us) >= GRACE_US {
            self.failed |= self.waiting | self.fresh;
            (self.waiting, self.fresh, self.rotated_us) = (0, 0, now_us);
        } else if now_us.saturating_sub(self.rotated_us) >= GRACE_US {
            self.failed |= self.waiting;
            (self.waiting, self.fresh) = (self.fresh, 0);
            self.rotated_us = now_us;
        }
    }

    fn find(&self, port: u16) -> Option<usize> {
        self.ports[..usize::from(self.length)].iter().position(|&known| known == port)
    }

    fn ask(&mut self, port: u16) {
        if self.find(port).is_none() && usize::from(self.length) < MAX_PORTS {
            self.ports[usize::from(self.length)] = port;
            self.fresh |= 1 << self.length;
            self.length += 1;
        }
    }

    fn forget(&mut self, index: usize) {
        let last = usize::from(self.length) - 1;
        self.ports[index] = self.ports[last];
        for mask in [&mut self.fresh, &mut self.waiting, &mut self.failed] {
            let moved = *mask >> last & 1;
            *mask = *mask & !(1 << index) & !(1 << last);
            if index != last {
                *mask |= moved << index;
            }
        }
        self.length -= 1;
    }
}

/// The table of sources.
pub(crate) struct Sources {
    slots: Box<[Source]>,
    pending: Vec<u32>,
    key: SipKey,
    ports: u32,
    flag_packets: u32,
    window_s: u32,
    update_us: u64,
}

impl Sources {
    pub fn new(capacity: usize, config: &ScanConfig, update_us: u64, key: SipKey) -> Sources {
        Sources {
            slots: vec![Source::FREE; capacity].into_boxed_slice(),
            pending: Vec::with_capacity(capacity),
            key,
            ports: config.ports,
            flag_packets: config.flag_packets,
            window_s: config.window_s,
            update_us,
        }
    }

    /// A SYN asks for a port.
    pub fn probe(&mut self, packet: &Packet, at: Seen, counters: &mut Counters, alerts: &mut Vec<Alert>) {
        let Some(index) = self.enter(packet, at, counters) else { return };
        let source = &mut self.slots[index];
        source.ask(packet.destination_port);
        source.alarms[0].count(at.now_us);
        self.judge(index, 0, at.now_us, alerts);
    }

    /// A port answered `client` with SYN and ACK: it exists.
    pub fn answered(&mut self, packet: &Packet, direction: Direction) {
        let Some(index) = self.find(packet.destination) else { return };
        let source = &mut self.slots[index];
        // somebody on our own link could send himself "answers" in our name: they must go the other way
        let is_echo = direction != Direction::Unknown && direction == source.sample.direction;
        if let (Some(port), false) = (source.find(packet.source_port), is_echo) {
            source.forget(port);
        }
    }

    /// A port answered with a reset.
    pub fn refused(&mut self, packet: &Packet, now_us: u64, alerts: &mut Vec<Alert>) {
        let Some(index) = self.find(packet.destination) else { return };
        let source = &mut self.slots[index];
        if let Some(port) = source.find(packet.source_port) {
            let bit = 1 << port;
            (source.fresh, source.waiting) = (source.fresh & !bit, source.waiting & !bit);
            source.failed |= bit;
            self.judge(index, 0, now_us, alerts);
        }
    }

    /// A packet with flags that no stack sends.
    pub fn illegal(&mut self, packet: &Packet, at: Seen, counters: &mut Counters, alerts: &mut Vec<Alert>) {
        let Some(detector) = illegal_kind(packet.tcp_flags) else { return };
        let Some(index) = self.enter(packet, at, counters) else { return };
        let source = &mut self.slots[index];
        source.illegal[detector - 1] = source.illegal[detector - 1].saturating_add(1);
        source.alarms[detector].count(at.now_us);
        self.judge(index, detector, at.now_us, alerts);
    }

    /// Judge what time alone changes: SYNs that stay unanswered, alerts that end.
    pub fn tick(&mut self, now_us: u64, alerts: &mut Vec<Alert>) {
        let mut kept = 0;
        for at in 0..self.pending.len() {
            let index = self.pending[at] as usize;
            self.slots[index].rotate(now_us);
            self.judge(index, 0, now_us, alerts);
            self.end_quiet(index, now_us, false, alerts);
            if self.slots[index].has_pending() {
                self.pending[kept] = index as u32;
                kept += 1;
            } else {
                self.slots[index].queued = false;
            }
        }
        self.pending.truncate(kept);
    }

    /// End every alert: the sensor stops.
    pub fn finish(&mut self, now_us: u64, alerts: &mut Vec<Alert>) {
        for at in 0..self.pending.len() {
            self.end_quiet(self.pending[at] as usize, now_us, true, alerts);
        }
    }

    fn end_quiet(&mut self, index: usize, now_us: u64, all: bool, alerts: &mut Vec<Alert>) {
        let quiet_us = u64::from(self.window_s) * 1_000_000;
        for detector in 0..DETECTORS.len() {
            let alarm = self.slots[index].alarms[detector];
            if alarm.active && (all || now_us.saturating_sub(alarm.last_us) >= quiet_us) {
                self.report(index, detector, Phase::End, now_us, alerts);
                self.slots[index].alarms[detector] = Alarm::OFF;
            }
        }
    }

    fn judge(&mut self, index: usize, detector: usize, now_us: u64, alerts: &mut Vec<Alert>) {
        let source = &mut self.slots[index];
        let (so_far, threshold) = match detector {
            0 => (source.failed.count_ones(), self.ports),
            _ => (source.illegal[detector - 1], self.flag_packets),
        };
        let step = source.alarms[detector].step(so_far >= threshold, so_far.into(), now_us, self.update_us);
        if let Some(phase) = step {
            self.report(index, detector, phase, now_us, alerts);
        }
    }

    fn report(&mut self, index: usize, detector: usize, phase: Phase, now_us: u64, alerts: &mut Vec<Alert>) {
        let source = &self.slots[index];
        let measure = if detector == 0 { source.failed.count_ones() } else { source.illegal[detector - 1] };
        alerts.push(Alert {
            time_us: now_us,
            flow_id: source.sample.flow_id,
            detector: DETECTORS[detector],
            phase,
            source: Some(source.address),
            destination: source.sample.destination,
            source_port: source.sample.source_port,
            destination_port: source.sample.destination_port,
            direction: source.sample.direction,
            count: source.alarms[detector].total,
            measure,
            window_s: self.window_s,
            share_percent: 100,
            peer_age_s: None,
        });
    }

    /// Find or create the packet's source and note the packet as its latest.
    fn enter(&mut self, packet: &Packet, at: Seen, counters: &mut Counters) -> Option<usize> {
        let index = match self.find(packet.source) {
            Some(index) => index,
            None => match self.create(packet.source, counters) {
                Some(index) => index,
                None => {
                    counters.sources_refused += 1;
                    return None;
                }
            },
        };
        let window_us = u64::from(self.window_s) * 1_000_000;
        let source = &mut self.slots[index];
        source.open_window(at.now_us, window_us);
        source.rotate(at.now_us);
        source.last_us = at.now_us;
        source.sample = Sample {
            flow_id: at.flow_id,
            destination: packet.destination,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            direction: at.direction,
        };
        if !source.queued {
            source.queued = true;
            self.pending.push(index as u32);
        }
        Some(index)
    }

    fn bucket(&self, address: Address) -> std::ops::Range<usize> {
        let number = self.key.bucket(&address.words(), self.slots.len() / BUCKET);
        number * BUCKET..(number + 1) * BUCKET
    }

    fn find(&self, address: Address) -> Option<usize> {
        self.bucket(address).find(|&index| self.slots[index].used && self.slots[index].address == address)
    }

    /// Take a free slot, else that of the least suspicious source, the longest silent among equals. A source with
    /// an alert never makes room.
    fn create(&mut self, address: Address, counters: &mut Counters) -> Option<usize> {
        let slots = &self.slots;
        let index = self
            .bucket(address)
            .filter(|&index| !slots[index].is_alarmed())
            .min_by_key(|&index| (slots[index].used, slots[index].weight(), slots[index].last_us))?;
        let slot = &mut self.slots[index];
        counters.sources_evicted += u64::from(slot.used);
        counters.sources_created += 1;
        *slot = Source { address, used: true, queued: slot.queued, ..Source::FREE };
        Some(index)
    }
}

/// When and how a packet was seen.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub now_us: u64,
    pub flow_id: u64,
    pub direction: Direction,
}

/// Return which of [`DETECTORS`] the flags belong to. RFC 9293: after the first SYN every segment carries ACK, except a
/// reset that answers a segment without one.
fn illegal_kind(tcp_flags: u8) -> Option<usize> {
    const SIX: u8 = 0x3f; // ECN's two bits say nothing here
    match tcp_flags & SIX {
        0 => Some(2),
        bits if bits & flags::SYN != 0 && bits & (flags::FIN | flags::RST) != 0 => Some(4),
        bits if bits & (flags::ACK | flags::SYN | flags::RST) != 0 => None,
        bits if bits & flags::FIN == 0 => None, // PSH or URG alone: odd, but no scanner's mark
        bits if bits & (flags::PSH | flags::URG) != 0 => Some(1),
        _ => Some(3),
    }
}

#[cfg(test)]
mod tests;
