//! What becomes of one TCP segment on its way to the server.
//!
//! Sources: RFC 9293; RFC 5961 (resets in their exact place); RFC 6191 (initial sequence numbers of ports used again).
//!
//! | segment | verdict where the rule is enforced |
//! |---|---|
//! | new bytes in their place | judged; a refused or malformed message condemns the connection |
//! | bytes behind a gap | dropped: their sender repeats them once the gap is filled |
//! | bytes sent again | pass if they are the same as those that passed; others condemn; unknown ones are dropped |
//! | no bytes | passes: nothing in it can complete a message |
//! | SYN | begins a connection; one that could disturb an old one is dropped |
//! | of a connection that is not known | answered with resets: its place among the messages is not known |

use super::packet::{Ends, Segment, encode_reset};
use super::report::{Reason, Report};
use super::stream::{Findings, Overlap};
use super::table::{Flow, Key, State};
use super::{Inspector, MAX_RESETS, STRAY_RESETS_PER_S, Verdict};
use crate::decode::flags;
use crate::fields::Rule;

/// Packets of a condemned connection that are answered with resets: a reset may be lost, too.
const CONDEMNED_RESETS: u8 = 4;
/// An old connection that spoke within this time is not given up for a SYN that claims its ports.
const QUIET_US: u64 = 3_000_000;
/// A new sequence number so far behind the old ones lies outside every window (the largest here is 32 MiB).
const FAR: u32 = 1 << 28;

/// A segment with all that is known about it.
struct Case<'a> {
    now_us: u64,
    mark: u32,
    rule: &'a Rule,
    ends: &'a Ends,
    segment: &'a Segment<'a>,
    key: Key,
}

impl Case<'_> {
    fn accept(&self) -> Verdict {
        Verdict::Accept { mark: self.mark }
    }

    /// Where the rule only observes, nothing is stopped.
    fn stop(&self) -> Verdict {
        if self.rule.observe { self.accept() } else { Verdict::Drop }
    }
}

/// What a look at the flow alone says.
enum Step {
    Pass,
    /// Not now, or not these bytes; counted.
    Stop(Counted),
    /// New bytes to judge: those of the segment from here on.
    Judge(usize),
    /// The same, all of them, at another place than expected.
    Restart(u32),
    Condemn(Reason, &'static str),
    /// It was condemned before.
    Answer,
}

#[derive(Clone, Copy)]
enum Counted {
    OutOfOrder,
    Forgotten,
}

impl Inspector {
    pub(super) fn segment(
        &mut self,
        now_us: u64,
        mark: u32,
        rule: &Rule,
        ends: &Ends,
        segment: &Segment<'_>,
    ) -> Verdict {
        let case = Case { now_us, mark, rule, ends, segment, key: self.table.name(ends) };
        if segment.has(flags::SYN) {
            if segment.has(flags::ACK | flags::RST | flags::FIN) {
                self.counters.headers += 1; // no client opens a connection so
                return case.stop();
            }
            if let Some(verdict) = self.open(&case) {
                return verdict;
            }
        }
        let Some(flow) = self.table.get(&case.key) else { return self.stray(&case) };
        match look(flow, &case) {
            Step::Pass => case.accept(),
            Step::Stop(counted) => {
                match counted {
                    Counted::OutOfOrder => self.counters.out_of_order += 1,
                    Counted::Forgotten => self.counters.forgotten += 1,
                }
                case.stop()
            }
            Step::Judge(from) => self.judge_bytes(&case, from, None),
            Step::Restart(edge) => self.judge_bytes(&case, 0, Some(edge)),
            Step::Condemn(reason, what) => self.condemn(&case, reason, what, 0),
            Step::Answer => self.answer(&case),
        }
    }

    /// Begin a connection; return a verdict where the SYN is not to be looked at any further.
    fn open(&mut self, case: &Case<'_>) -> Option<Verdict> {
        let initial = case.segment.sequence;
        if let Some(flow) = self.table.get(&case.key) {
            if flow.initial == initial && flow.state == State::Judged {
                return None; // sent again
            }
            if !gives_way(flow, initial, case.now_us) {
                self.counters.out_of_order += 1;
                return Some(case.stop());
            }
        }
        let flow = Flow::begin(case.rule.id, initial, initial.wrapping_add(1), case.now_us);
        if self.table.insert(case.key, flow, case.now_us).is_none() {
            self.counters.table_full += 1;
            return Some(case.stop());
        }
        self.counters.connections += 1;
        None
    }

    fn judge_bytes(&mut self, case: &Case<'_>, from: usize, restart: Option<u32>) -> Verdict {
        let bytes = &case.segment.payload[from..];
        if !self.table.can_hold(bytes.len(), case.now_us) {
            self.counters.memory_full += 1;
            return case.stop();
        }
        let Some(flow) = self.table.get(&case.key) else { return case.stop() };
        let before = flow.stream.footprint();
        if let Some(edge) = restart {
            flow.stream.restart();
            flow.edge = edge;
        }
        let findings = flow.stream.take(case.rule, bytes, !case.rule.observe);
        let after = flow.stream.footprint();
        flow.has_data = true;
        let passes = findings.refused.is_none() && findings.malformed.is_none();
        if passes || case.rule.observe {
            flow.edge = flow.edge.wrapping_add(bytes.len() as u32);
        }
        self.table.account(before, after);
        if passes { case.accept() } else { self.find_fault(case, &findings) }
    }

    fn find_fault(&mut self, case: &Case<'_>, findings: &Findings) -> Verdict {
        if let Some(what) = &findings.refused {
            if !case.rule.observe {
                return self.condemn(case, Reason::Refused, what, findings.more);
            }
            self.say(case, Reason::Refused, what, findings.more, false);
        }
        if let Some(why) = findings.malformed {
            if !case.rule.observe && !case.rule.pass_unparsable {
                return self.condemn(case, Reason::Malformed, why, 0);
            }
            self.say(case, Reason::Malformed, why, 0, false);
            self.turn(case, State::Blind);
        }
        case.accept()
    }

    /// A connection of which nothing is known: it began before us, or it was forgotten.
    fn stray(&mut self, case: &Case<'_>) -> Verdict {
        const WHAT: &str = "the beginning of the connection was not inspected";
        if case.segment.has(flags::RST) {
            return case.accept();
        }
        if case.rule.observe || case.rule.pass_unparsable {
            let sequence = case.segment.sequence;
            let mut flow = Flow::begin(case.rule.id, sequence, sequence, case.now_us);
            flow.state = State::Blind;
            if self.table.insert(case.key, flow, case.now_us).is_none() {
                self.counters.table_full += 1;
                return case.stop();
            }
            self.say(case, Reason::MidStream, WHAT, 0, false);
            return case.accept();
        }
        self.say(case, Reason::MidStream, WHAT, 0, true);
        let second = case.now_us / 1_000_000;
        if self.stray.0 != second {
            self.stray = (second, 0);
        }
        if self.stray.1 >= STRAY_RESETS_PER_S {
            return Verdict::Drop;
        }
        self.stray.1 += 1;
        self.reset(case, case.segment.sequence)
    }

    fn condemn(&mut self, case: &Case<'_>, reason: Reason, what: &str, more: u32) -> Verdict {
        self.say(case, reason, what, more, !case.rule.observe);
        if case.rule.observe {
            self.turn(case, State::Blind);
            return case.accept();
        }
        self.turn(case, State::Condemned { resets: CONDEMNED_RESETS });
        self.answer(case)
    }

    fn answer(&mut self, case: &Case<'_>) -> Verdict {
        let Some(flow) = self.table.get(&case.key) else { return Verdict::Drop };
        match &mut flow.state {
            State::Condemned { resets } if *resets > 0 => *resets -= 1,
            _ => return Verdict::Drop,
        }
        let edge = flow.edge;
        self.reset(case, edge)
    }

    /// Make the segment a reset for the server, and have another sent to the client.
    fn reset(&mut self, case: &Case<'_>, edge: u32) -> Verdict {
        let Case { ends, segment, .. } = case;
        let back = Ends {
            source: ends.destination,
            destination: ends.source,
            source_port: ends.destination_port,
            destination_port: ends.source_port,
            protocol: ends.protocol,
        };
        let packet = match segment.has(flags::ACK) {
            true => encode_reset(&back, segment.acknowledgement, None),
            false => {
                let end = segment.sequence.wrapping_add(segment.payload.len() as u32);
                encode_reset(&back, 0, Some(end.wrapping_add(u32::from(segment.has(flags::SYN)))))
            }
        };
        if self.resets.len() < MAX_RESETS {
            self.resets.push(packet);
            self.counters.resets += 1;
        }
        Verdict::Replace { mark: case.mark, packet: encode_reset(ends, edge, None) }
    }

    /// Change the state and give back what the stream held.
    fn turn(&mut self, case: &Case<'_>, state: State) {
        if let Some(flow) = self.table.get(&case.key) {
            let before = flow.stream.footprint();
            flow.state = state;
            flow.stream = Default::default();
            self.table.account(before, 0);
        }
    }

    fn say(&mut self, case: &Case<'_>, reason: Reason, what: &str, more: u32, is_stopped: bool) {
        let Case { rule, ends, .. } = *case;
        self.report(&Report { time_us: self.time_us, ends, rule, reason, what, more, is_stopped });
    }
}

/// A SYN with another sequence number than the old connection's: may it begin anew?
///
/// A server that still has the old connection ignores such a SYN and goes on with the old numbers. Ahead of them, a
/// new beginning leaves a gap that nobody can fill through us, so that no byte behind it is ever read; far behind them,
/// no byte is in the server's window. In between, the server's place among the messages and ours would part.
fn gives_way(flow: &Flow, initial: u32, now_us: u64) -> bool {
    let is_quiet = flow.is_closed || now_us.saturating_sub(flow.last_us) >= QUIET_US;
    let ahead = initial.wrapping_sub(flow.edge);
    is_quiet && (ahead < 1 << 31 || ahead.wrapping_neg() >= FAR)
}

fn look(flow: &mut Flow, case: &Case<'_>) -> Step {
    let segment = case.segment;
    flow.last_us = flow.last_us.max(case.now_us);
    match flow.state {
        State::Condemned { .. } => return Step::Answer,
        _ if flow.rule_id != case.rule.id => {
            return Step::Condemn(Reason::RuleChanged, "the packet mark names another rule than before");
        }
        State::Blind => return Step::Pass,
        State::Judged => {}
    }
    let first = segment.sequence.wrapping_add(u32::from(segment.has(flags::SYN)));
    if segment.has(flags::RST) {
        flow.is_closed |= segment.sequence == flow.edge;
        return Step::Pass; // receivers take no data from it
    }
    flow.is_closed |= segment.has(flags::FIN);
    if segment.has(flags::URG) {
        return Step::Condemn(Reason::Urgent, "urgent data");
    }
    if segment.payload.is_empty() {
        return Step::Pass;
    }
    let back = flow.edge.wrapping_sub(first);
    if back >= 1 << 31 {
        if !case.rule.observe {
            return Step::Stop(Counted::OutOfOrder);
        }
        // whoever only observes cannot hold a segment back: it begins again here, and hopes for a message's beginning
        return Step::Restart(first);
    }
    let repeated = segment.payload.len().min(back as usize);
    match flow.stream.compare(u64::from(back), &segment.payload[..repeated]) {
        Overlap::Same if repeated == segment.payload.len() => Step::Pass,
        Overlap::Same => Step::Judge(repeated),
        Overlap::Forgotten => Step::Stop(Counted::Forgotten),
        // RFC 9293 section 3.8.4: a keep-alive may carry one byte of garbage
        Overlap::Different if back == 1 && segment.payload.len() == 1 => Step::Stop(Counted::Forgotten),
        Overlap::Different => Step::Condemn(Reason::Overlap, "bytes sent again are not those that passed"),
    }
}
