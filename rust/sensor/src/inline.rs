//! Field rules on packets in flight: an IP packet and its mark in, a verdict out.
//!
//! Promises: of an enforced rule's service, no byte reaches the server that would complete a message which the rule does
//! not allow, however it is split, joined, repeated or disguised; what cannot be judged does not pass unless the rule
//! says so; memory stays within the rules' one number, and a full table refuses. Only the direction to the server is
//! judged: replies are not even shown to us.
//! Leaves to others: the queue (crate `capture`), what a message means (`fields`), marking packets (the firewall's
//! chains), dropping what connection tracking calls invalid and putting fragments together (the kernel, before us).
//! Read first: `stream.rs` for the rule that reassembly rests on, then `connection.rs`. docs/firewall-fields.md has the
//! whole story.

mod connection;
mod packet;
mod report;
mod stream;
mod stream_filter;
mod table;

use std::fmt::Write;
use std::sync::Arc;

use crate::eve::Timestamp;
use crate::fields::{Judged, Rule, RuleSet, SessionState, judge};
use crate::siphash::SipKey;
use packet::{Carried, Ends, Unfit, parse_packet};
use report::{Reason, Report, Reports};
pub use stream_filter::{FieldStream, Filtered};
use table::Table;

/// The bits of the packet mark that belong to field rules.
pub const MARK_BITS: u32 = 0xff00_0000;
/// Where the number of the rule stands in the mark, and its bits once it is moved down.
const MARK_SHIFT: u32 = 24;
const MARK_RULE: u32 = 0x3f;
/// Resets on their way out: one for each packet of a batch is plenty.
const MAX_RESETS: usize = 64;
/// Answers to packets of connections that we do not know: a flood of them must not become a flood of resets.
const STRAY_RESETS_PER_S: u32 = 50;
/// A datagram has fewer messages than this; each costs time.
const MAX_MESSAGES: usize = 64;

/// A packet as the kernel queued it.
#[derive(Clone, Copy, Debug)]
pub struct QueuedPacket<'a> {
    /// Microseconds since 1970-01-01 UTC, for reports: this clock may be set.
    pub time_us: u64,
    /// Microseconds of a clock that only goes on, for timeouts.
    pub now_us: u64,
    /// The packet mark.
    pub mark: u32,
    /// From the IP header on.
    pub data: &'a [u8],
    /// The copy is shorter than the packet.
    pub is_cut: bool,
    /// The transport checksum is not filled in yet; the kernel vouches for it.
    pub is_checksum_pending: bool,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes no further.
    Drop,
    /// It goes on with this mark.
    Accept {
        /// The packet's mark without [`MARK_BITS`].
        mark: u32,
    },
    /// It goes on as another packet: a reset for the server.
    Replace {
        /// The packet's mark without [`MARK_BITS`].
        mark: u32,
        /// From the IP header on.
        packet: Vec<u8>,
    },
}

/// What was counted since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // docs/firewall-fields.md has a line for each
pub struct InlineCounters {
    pub packets: u64,
    pub passed: u64,
    pub dropped: u64,
    pub replaced: u64,
    pub connections: u64,
    pub refused: u64,
    pub malformed: u64,
    pub tampered: u64,
    pub mid_stream: u64,
    pub out_of_order: u64,
    pub forgotten: u64,
    pub fragments: u64,
    pub checksums: u64,
    pub headers: u64,
    pub no_rule: u64,
    pub table_full: u64,
    pub memory_full: u64,
    pub resets: u64,
}

/// The inspector: rules, connections, reports.
pub struct Inspector {
    rules: Vec<Arc<Rule>>,
    memory_bytes: usize,
    table: Table,
    reports: Reports,
    resets: Vec<Vec<u8>>,
    stray: (u64, u32),
    counters: InlineCounters,
    time_us: u64,
    started_us: Option<u64>,
}

impl Inspector {
    /// Make one. `key` is secret and random: it keeps senders from aiming at one bucket of the table.
    pub fn new(rules: &RuleSet, key: SipKey) -> Inspector {
        Inspector {
            rules: rules.rules().iter().cloned().map(Arc::new).collect(),
            memory_bytes: rules.memory_bytes,
            table: Table::new(rules.memory_bytes, key),
            reports: Reports::default(),
            resets: Vec::new(),
            stray: (0, 0),
            counters: InlineCounters::default(),
            time_us: 0,
            started_us: None,
        }
    }

    /// Decide on one packet.
    pub fn inspect(&mut self, packet: &QueuedPacket<'_>) -> Verdict {
        self.time_us = packet.time_us;
        self.started_us.get_or_insert(packet.now_us);
        self.counters.packets += 1;
        let verdict = self.decide(packet);
        match verdict {
            Verdict::Drop => self.counters.dropped += 1,
            Verdict::Accept { .. } => self.counters.passed += 1,
            Verdict::Replace { .. } => self.counters.replaced += 1,
        }
        verdict
    }

    /// Let time pass: forget connections that are over.
    pub fn tick(&mut self, now_us: u64) {
        self.table.expire(now_us);
    }

    /// Take a reset that the caller is to send to a client: a whole IP packet.
    pub fn next_reset(&mut self) -> Option<Vec<u8>> {
        self.resets.pop()
    }

    /// Take the next report, one EVE object.
    pub fn next_line(&mut self) -> Option<String> {
        self.reports.next()
    }

    /// Return whether reports wait.
    pub fn has_lines(&self) -> bool {
        !self.reports.is_empty()
    }

    /// Return what was counted.
    pub fn counters(&self) -> InlineCounters {
        self.counters
    }

    /// Return the counters as an EVE line of type `stats`; `kernel`: what the queue lost (no room, no reader).
    pub fn stats_line(&self, time_us: u64, now_us: u64, kernel: [u64; 2]) -> String {
        let c = &self.counters;
        let mut line = String::with_capacity(1024);
        let uptime_s = now_us.saturating_sub(self.started_us.unwrap_or(now_us)) / 1_000_000;
        let _ = write!(
            line,
            "{{\"timestamp\":\"{}\",\"event_type\":\"stats\",\"stats\":{{\"uptime\":{uptime_s},\"inline\":{{",
            Timestamp(time_us)
        );
        let fields = [
            ("packets", c.packets),
            ("passed", c.passed),
            ("dropped", c.dropped),
            ("replaced", c.replaced),
            ("connections", c.connections),
            ("refused", c.refused),
            ("malformed", c.malformed),
            ("tampered", c.tampered),
            ("mid_stream", c.mid_stream),
            ("out_of_order", c.out_of_order),
            ("forgotten", c.forgotten),
            ("fragments", c.fragments),
            ("checksums", c.checksums),
            ("headers", c.headers),
            ("no_rule", c.no_rule),
            ("table_full", c.table_full),
            ("memory_full", c.memory_full),
            ("resets", c.resets),
            ("reports_suppressed", self.reports.suppressed),
            ("flows_evicted", self.table.evicted),
            ("flows_live", self.table.live() as u64),
            ("flow_slots", self.table.capacity() as u64),
            ("held_bytes", self.table.held_bytes() as u64),
            ("budget_bytes", self.memory_bytes as u64),
            ("queue_dropped", kernel[0]),
            ("user_dropped", kernel[1]),
        ];
        for (index, (name, value)) in fields.iter().enumerate() {
            let _ = write!(line, "{}\"{name}\":{value}", if index == 0 { "" } else { "," });
        }
        line.push_str("}}}");
        line
    }

    fn decide(&mut self, packet: &QueuedPacket<'_>) -> Verdict {
        let mark = packet.mark & !MARK_BITS;
        let id = (packet.mark >> MARK_SHIFT & MARK_RULE) as u8;
        let Some(rule) = self.rules.iter().find(|rule| rule.id == id).cloned() else {
            self.counters.no_rule += 1;
            return Verdict::Drop;
        };
        let parsed =
            if packet.is_cut { Err(Unfit::Header) } else { parse_packet(packet.data, packet.is_checksum_pending) };
        match parsed {
            Ok((ends, Carried::Segment(segment))) => self.segment(packet.now_us, mark, &rule, &ends, &segment),
            Ok((ends, Carried::Datagram(bytes))) => self.datagram(mark, &rule, &ends, bytes),
            Err(unfit) => {
                match unfit {
                    Unfit::Header | Unfit::Protocol => self.counters.headers += 1,
                    Unfit::Fragment => self.counters.fragments += 1,
                    Unfit::Checksum => self.counters.checksums += 1,
                }
                // nothing of the kind reaches a receiver, so that an observer need not let it pass either; but a rule
                // that only watches must change nothing
                if rule.observe { Verdict::Accept { mark } } else { Verdict::Drop }
            }
        }
    }

    fn datagram(&mut self, mark: u32, rule: &Rule, ends: &Ends, bytes: &[u8]) -> Verdict {
        let (reason, what) = match judge_datagram(rule, bytes) {
            Ok(()) => return Verdict::Accept { mark },
            Err(Fault::Refused(what)) => (Reason::Refused, what),
            Err(Fault::Malformed(why)) => (Reason::Malformed, why.to_owned()),
        };
        let passes = rule.observe || (reason == Reason::Malformed && rule.pass_unparsable);
        self.report(&Report { time_us: self.time_us, ends, rule, reason, what: &what, more: 0, is_stopped: !passes });
        if passes { Verdict::Accept { mark } } else { Verdict::Drop }
    }

    fn report(&mut self, report: &Report<'_>) {
        match report.reason {
            Reason::Refused => self.counters.refused += 1 + u64::from(report.more),
            Reason::Malformed => self.counters.malformed += 1,
            Reason::MidStream => self.counters.mid_stream += 1,
            Reason::Overlap | Reason::Urgent | Reason::RuleChanged => self.counters.tampered += 1,
        }
        self.reports.add(report);
    }
}

enum Fault {
    Refused(String),
    Malformed(&'static str),
}

/// Judge every message of one whole datagram.
fn judge_datagram(rule: &Rule, mut bytes: &[u8]) -> Result<(), Fault> {
    let mut state = SessionState::default();
    for _ in 0..MAX_MESSAGES {
        let (len, skip) = match judge(rule, &mut state, bytes, true) {
            Judged::Pass { len, skip } => (len, skip),
            Judged::Refuse { what, .. } => return Err(Fault::Refused(what)),
            Judged::More => return Err(Fault::Malformed("the datagram ends within a message")),
            Judged::Malformed(why) => return Err(Fault::Malformed(why)),
        };
        let whole = usize::try_from(skip).ok().and_then(|skip| skip.checked_add(len)).unwrap_or(usize::MAX);
        match bytes.get(whole..) {
            Some([]) => return Ok(()),
            Some(rest) if whole > 0 => bytes = rest,
            _ => return Err(Fault::Malformed("the datagram ends within a message")),
        }
    }
    Err(Fault::Malformed("too many messages in one datagram"))
}

#[cfg(test)]
mod tests;
