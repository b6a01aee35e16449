//! From packets to parsers: the connection brought up to date, its streams' bytes shown to the application's parser.

use protocols::{Settings, Transport, Way};

use crate::app::FlowHint;
use crate::checksum;
use crate::config::InspectConfig;
use crate::counters::Counters;
use crate::engine::{FlowStep, Inspector};
use crate::flow::{Flow, FlowAction, Stage};
use crate::layers::{Layers, ip};
use crate::tcp::{Outcome, Segment, Session, State, flag};

/// A parser is shown what one packet brought at most in this many pieces.
pub(crate) const MOST_FEEDS: usize = 64;

impl Inspector {
    /// Bring the connection up to date; return a reason where the packet is to be dropped.
    pub(crate) fn tcp(&mut self, layers: &Layers<'_>, flow: &mut Flow, step: &mut FlowStep) -> Option<&'static str> {
        // the packet that completes the handshake does not count yet
        step.is_established = flow.tcp.as_ref().is_some_and(|tcp| tcp.state >= State::Established);
        if self.config.stream.checks_checksums && !self.has_right_checksums(layers) {
            *self.counters.tcp.entry("invalid_checksum").or_default() += 1;
            step.events.push(if layers.version == 4 { "tcpv4.invalid_checksum" } else { "tcpv6.invalid_checksum" });
            return None;
        }
        let mut tcp = flow.tcp.take().unwrap_or_default();
        let before = tcp.state;
        let is_refused = self.config.stream.failing_packet == self.number && !layers.payload.is_empty();
        let segment = Segment { tcp: layers.tcp, payload: layers.payload, way: step.way, is_refused };
        let outcome = tcp.packet(&segment, &self.config.stream);
        self.count_tcp(&outcome, before, &tcp, layers);
        if outcome.is_reversed {
            flow.swap();
            step.way = step.way.reverse();
        }
        // the packet that completes the handshake counts only if it carries something
        step.is_established |= tcp.state >= State::Established && !layers.payload.is_empty();
        step.events.extend(outcome.event);
        if let Some(event) = outcome.event {
            *self.counters.events.entry(event).or_default() += 1;
        }
        // what was sent again is in the stream already, and was or will be looked at there
        step.is_in_stream = outcome.inserted.is_kept || outcome.inserted.has_overlap;
        if self.config.stream.is_inline && outcome.inserted.has_conflict {
            step.received = received(layers, &tcp, step.way);
            step.is_in_stream = true;
            step.is_rewritten = step.received.is_some();
        }
        let state = tcp.state;
        flow.tcp = Some(tcp);
        if outcome.is_pickup && self.note_midstream(flow) || outcome.lacks_session {
            let verdict = self.midstream(flow, &outcome);
            if verdict.is_some() || flow.action.is_some() || flow.stage == Stage::Bypassed {
                return verdict;
            }
        }
        flow.stage = match state {
            State::Closed => Stage::Closed,
            state if state >= State::Established => Stage::Established,
            _ => flow.stage,
        };
        if is_refused && let Some(reason) = self.out_of_memory(flow) {
            return Some(reason);
        }
        if outcome.is_valid {
            let ways = if self.config.stream.is_inline {
                [step.way, step.way.reverse()]
            } else {
                [step.way.reverse(), step.way]
            };
            for way in ways {
                self.feed_stream(flow, way, step);
            }
        }
        None
    }

    pub(crate) fn count_tcp(&mut self, outcome: &Outcome, before: State, tcp: &Session, layers: &Layers<'_>) {
        let flags = layers.tcp.flags & (flag::SYN | flag::ACK | flag::RST);
        let name = match flags {
            flag::SYN => Some("syn"),
            flags if flags & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK => Some("synack"),
            flags if flags & flag::RST != 0 => Some("rst"),
            _ => None,
        };
        if let Some(name) = name {
            *self.counters.tcp.entry(name).or_default() += 1;
        }
        if before == State::None && tcp.state != State::None {
            *self.counters.tcp.entry("sessions").or_default() += 1;
        }
        if outcome.is_pickup {
            *self.counters.tcp.entry("midstream_pickups").or_default() += 1;
        }
        if outcome.inserted.has_overlap {
            *self.counters.tcp.entry("overlap").or_default() += 1;
        }
        if outcome.inserted.has_conflict {
            *self.counters.tcp.entry("overlap_diff_data").or_default() += 1;
        }
    }

    /// Show the parser what one way's stream has; skip what is missing.
    pub(crate) fn feed_stream(&mut self, flow: &mut Flow, way: Way, step: &mut FlowStep) {
        let Some(mut tcp) = flow.tcp.take() else { return };
        let is_over = tcp.is_over(way);
        for _ in 0..MOST_FEEDS {
            let is_all = self.config.stream.is_inline || step.is_last;
            let stream = &mut tcp.side(way).stream;
            if !flow.app.is_interested() || flow.action == Some(FlowAction::Drop) {
                stream.app = stream.app.max(if is_all { stream.end } else { stream.acked });
                break;
            }
            let limit = if is_all { stream.end } else { stream.acked.min(stream.end) };
            let at = stream.app;
            let missing = stream.gap_at(at).min(limit.saturating_sub(at));
            let is_lost = !is_all || step.is_last;
            if missing > 0 && is_lost || stream.is_deep && stream.contiguous(at, limit).is_empty() && limit > at {
                let missing = if missing > 0 { missing } else { limit - at };
                stream.has_gap = true;
                stream.app += missing;
                flow.app.gap(way, missing);
                step.events.push("stream.reassembly_seq_gap");
                continue;
            }
            let data = stream.contiguous(at, limit);
            let is_end = (is_over || step.is_last) && at + data.len() as u64 >= stream.end;
            if data.is_empty() && !(is_end && step.is_last) {
                break;
            }
            let length = data.len();
            let hint = hint(flow.ports, Transport::Tcp, &self.settings, &self.config);
            let fed = flow.app.feed(way, data, is_end, &hint);
            stream.app += fed.consumed as u64;
            // a protocol without transactions says nothing about where a message ends
            if fed.consumed == length && length > 0 && flow.app.count > 0 || fed.has_failed {
                stream.is_triggered = true;
            }
            self.note_fed(flow, &fed, way, step);
            if fed.is_reversed {
                flow.tcp = Some(tcp);
                flow.swap();
                step.way = step.way.reverse();
                return;
            }
            if fed.consumed == 0 || fed.consumed == length {
                break;
            }
        }
        for side in &mut tcp.sides {
            side.stream.release();
        }
        flow.tcp = Some(tcp);
    }

    pub(crate) fn note_fed(&mut self, flow: &mut Flow, fed: &crate::app::Fed, way: Way, step: &mut FlowStep) {
        if fed.is_found
            && let Some(protocol) = flow.app.protocol
        {
            Counters::add(&mut self.counters.app_flows, protocol, 1);
        }
        if fed.is_found_differently {
            step.events.push("applayer_mismatch_protocol_both_directions");
        }
        if fed.is_found && flow.app.has_failed[way.reverse() as usize] {
            step.events.push("applayer_detect_protocol_only_one_direction");
        }
        flow.app_news[way as usize] |= fed.is_found_differently || fed.is_found || fed.has_failed;
        if fed.has_failed && flow.app.is_unknown_for_good() {
            self.counters.app_failed[usize::from(flow.protocol != ip::TCP)] += 1;
        }
        if fed.has_broken {
            step.is_broken = true;
            step.broken_way = Some(way);
            if let Some(protocol) = flow.app.protocol {
                Counters::add(&mut self.counters.app_errors, protocol, 1);
            }
        }
    }

    pub(crate) fn feed_datagram(&mut self, layers: &Layers<'_>, flow: &mut Flow, step: &mut FlowStep) {
        if !flow.app.is_interested() || flow.action == Some(FlowAction::Drop) {
            return;
        }
        let hint = hint(flow.ports, Transport::Udp, &self.settings, &self.config);
        let fed = flow.app.feed(step.way, layers.payload, true, &hint);
        self.note_fed(flow, &fed, step.way, step);
        if fed.is_reversed {
            flow.swap();
            step.way = step.way.reverse();
        }
    }
}

/// The frame with the bytes that the stream holds in place of its own.
fn received(layers: &Layers<'_>, tcp: &Session, way: Way) -> Option<Vec<u8>> {
    let held = tcp.sides[way as usize].bytes_at(layers.tcp.sequence, layers.payload.len())?;
    let at = layers.payload.as_ptr().addr().checked_sub(layers.frame.as_ptr().addr())?;
    let mut frame = layers.frame.to_vec();
    frame.get_mut(at..at + layers.payload.len())?.copy_from_slice(held);
    let at = layers.transport.as_ptr().addr().checked_sub(layers.frame.as_ptr().addr())?;
    let transport = frame.get_mut(at..at + layers.transport.len())?;
    transport.get_mut(16..18)?.fill(0);
    let sum = !checksum::fold(checksum::sum(transport, checksum::pseudo_sum(layers)));
    transport.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

pub(crate) fn hint<'a>(
    ports: [u16; 2],
    transport: Transport,
    settings: &'a Settings,
    config: &InspectConfig,
) -> FlowHint<'a> {
    FlowHint {
        transport,
        client_port: ports[0],
        server_port: ports[1],
        settings,
        failing_offset: config.failing_app_offset,
    }
}
