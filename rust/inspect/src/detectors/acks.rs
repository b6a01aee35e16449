//! Floods of acknowledgements that belong to no connection, counted at the victim, with a high and a low mark.

use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::{Entry, Table, TableCounters, words};
use crate::layers::{Layers, ip};
use crate::tcp::flag;

const SECOND_US: u64 = 1_000_000;

#[derive(Clone, Default)]
struct Victim {
    second_us: u64,
    count: u64,
    peak: u64,
    is_flooded: bool,
    /// Boyer and Moore's majority vote: the only source that may have sent more than half.
    candidate: u128,
    balance: u64,
}

impl Entry for Victim {
    fn weight(&self) -> u32 {
        if self.is_flooded { u32::MAX } else { self.count.min(1 << 20) as u32 }
    }
}

impl Victim {
    fn count(&mut self, source: u128, now_us: u64, low: u64) {
        if now_us.saturating_sub(self.second_us) >= SECOND_US || self.second_us > now_us {
            self.is_flooded &= self.count >= low;
            (self.second_us, self.count, self.balance) = (now_us, 0, 0);
        }
        self.count = self.count.saturating_add(1);
        self.peak = self.peak.max(self.count);
        match (self.balance, self.candidate == source) {
            (0, _) => (self.candidate, self.balance) = (source, 1),
            (_, true) => self.balance += 1,
            (_, false) => self.balance -= 1,
        }
    }
}

/// Destinations of acknowledgements.
pub struct Acks {
    victims: Table<2, Victim>,
}

impl Acks {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Acks {
        Acks { victims: Table::new(bytes, 60 * SECOND_US, key) }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.victims.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.victims.counters
    }

    /// Look at a packet.
    pub fn packet(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        let is_bare = layers.protocol == ip::TCP
            && layers.fragment.is_none()
            && layers.payload.is_empty()
            && layers.tcp.flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) == flag::ACK;
        let Some(flow) = flow.filter(|flow| is_bare && flow.is_unsolicited && !flow.is_to_client) else { return };
        if !context.config.is_on(Kind::AckFlood) {
            return;
        }
        let (high, low) = (context.config.scans.ack_high, context.config.scans.ack_low);
        let Some((_, victim)) = self.victims.enter(&words(layers.destination), context.now_us) else { return };
        victim.count(layers.source, context.now_us, low);
        victim.is_flooded |= victim.count >= high;
        if !victim.is_flooded {
            return;
        }
        let is_majority = victim.balance.saturating_mul(2) >= victim.count;
        let subject = Subject {
            source: if is_majority { victim.candidate } else { 0 },
            destination: layers.destination,
            source_port: 0,
            destination_port: layers.destination_port,
            protocol: ip::TCP,
            flow_id: if is_majority { flow.id } else { 0 },
        };
        let (peak, count) = (victim.peak, Count::so_far(victim.count));
        context
            .reporter
            .report(Kind::AckFlood, subject, count, context.now_us, || vec![("rate_per_s", Value::Number(peak))]);
    }
}
