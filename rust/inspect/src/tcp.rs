//! One TCP connection: its state, and which packets belong to it.
//!
//! A packet that a receiver would not accept (outside its window, an acknowledgement of what was never sent) is no
//! part of the stream: what is put into the stream is what the receiver's application gets to see.

use protocols::Way;

use crate::config::StreamConfig;
use crate::layers::Tcp;
use crate::stream::{Inserted, Stream};

/// TCP flag bits.
#[allow(missing_docs)]
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
    pub const URG: u8 = 32;
}

/// Where a connection stands, as Suricata names it: the first FIN of the client makes `CloseWait`, of the server
/// `FinWait1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum State {
    #[default]
    None,
    SynSent,
    SynRecv,
    Established,
    FinWait1,
    FinWait2,
    TimeWait,
    LastAck,
    CloseWait,
    Closing,
    Closed,
}

impl State {
    /// Return the name in EVE's `tcp.state`.
    pub fn name(self) -> &'static str {
        match self {
            State::None => "none",
            State::SynSent => "syn_sent",
            State::SynRecv => "syn_recv",
            State::Established => "established",
            State::FinWait1 => "fin_wait1",
            State::FinWait2 => "fin_wait2",
            State::TimeWait => "time_wait",
            State::LastAck => "last_ack",
            State::CloseWait => "close_wait",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }
}

/// One side's half of a connection.
#[derive(Debug, Default)]
pub struct Side {
    /// What it sends.
    pub stream: Stream,
    isn: u32,
    /// The sequence number behind the last byte that it sent.
    next: u32,
    last_ack: u32,
    window: u32,
    window_scale: u8,
    has_isn: bool,
    has_fin: bool,
}

impl Side {
    fn begin(&mut self, isn: u32) {
        (self.isn, self.next, self.last_ack, self.has_isn) = (isn, isn.wrapping_add(1), isn.wrapping_add(1), true);
    }

    /// The stream's bytes from a sequence number on, if all of them are there.
    pub fn bytes_at(&self, sequence: u32, count: usize) -> Option<&[u8]> {
        let from = self.offset(sequence)?;
        Some(self.stream.contiguous(from, from + count as u64)).filter(|bytes| bytes.len() == count)
    }

    /// The stream's offset of a sequence number near what was seen; `None` before its beginning.
    fn offset(&self, sequence: u32) -> Option<u64> {
        let near = self.stream.end;
        let expected = self.isn.wrapping_add(1).wrapping_add(near as u32);
        let ahead = sequence.wrapping_sub(expected) as i32;
        near.checked_add_signed(i64::from(ahead))
    }
}

/// Signed distance of two sequence numbers.
fn after(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b) as i32
}

/// A connection.
#[derive(Debug, Default)]
pub struct Session {
    /// Where it stands.
    pub state: State,
    /// Client and server.
    pub sides: [Side; 2],
    /// It was picked up in the middle.
    pub is_midstream: bool,
    /// Only one side is seen.
    pub is_async: bool,
    /// All TCP flags of each side.
    pub flags: [u8; 2],
    syn_had_fast_open: bool,
    syn_ack_seen: bool,
}

/// What a packet was to its connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// It is a part of the connection.
    pub is_valid: bool,
    /// What became of its bytes.
    pub inserted: Inserted,
    /// What was wrong.
    pub event: Option<&'static str>,
    /// It began to be followed here, without a handshake.
    pub is_pickup: bool,
    /// A packet without a connection, where midstream pick-up would have been needed.
    pub lacks_session: bool,
    /// The packet goes the other way than the flow thought: its sender is the server.
    pub is_reversed: bool,
}

impl Outcome {
    fn valid() -> Outcome {
        Outcome { is_valid: true, ..Outcome::default() }
    }

    fn refused(event: &'static str) -> Outcome {
        Outcome { event: Some(event), ..Outcome::default() }
    }
}

/// A packet as the connection sees it.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    /// Its header.
    pub tcp: Tcp,
    /// Its bytes.
    pub payload: &'a [u8],
    /// Which way it goes.
    pub way: Way,
    /// There is no memory for its bytes.
    pub is_refused: bool,
}

impl Segment<'_> {
    fn has(&self, bits: u8) -> bool {
        self.tcp.flags & bits == bits
    }
}

impl Session {
    /// The side that sends that way.
    pub fn side(&mut self, way: Way) -> &mut Side {
        &mut self.sides[way as usize]
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.sides.iter().map(|side| side.stream.heap_bytes()).sum()
    }

    /// Account a packet.
    pub fn packet(&mut self, segment: &Segment<'_>, config: &StreamConfig) -> Outcome {
        self.flags[segment.way as usize] |= segment.tcp.flags;
        match self.state {
            State::None => self.begin(segment, config),
            State::SynSent => self.syn_sent(segment, config),
            State::SynRecv => self.syn_recv(segment, config),
            State::Closed if segment.has(flag::RST) => Outcome::valid(),
            _ => self.open(segment, config),
        }
    }

    fn begin(&mut self, segment: &Segment<'_>, config: &StreamConfig) -> Outcome {
        let tcp = &segment.tcp;
        if segment.has(flag::RST) {
            return Outcome::refused("stream.rst_but_no_session");
        }
        if segment.has(flag::FIN) && !config.is_midstream {
            return Outcome { lacks_session: true, ..Outcome::refused("stream.fin_but_no_session") };
        }
        if segment.has(flag::SYN | flag::ACK) {
            if !config.is_midstream {
                return Outcome { lacks_session: true, ..Outcome::default() };
            }
            // the sender is the server, whatever the flow thinks
            let (client, server) = (&mut self.sides[0], 1);
            client.begin(tcp.acknowledgement.wrapping_sub(1));
            client.window = u32::from(tcp.window);
            client.window_scale = 14; // unknown: the widest
            let server = &mut self.sides[server];
            server.begin(tcp.sequence);
            server.window = u32::from(u16::MAX) << 14;
            (self.state, self.is_midstream) = (State::SynRecv, true);
            self.syn_ack_seen = true;
            return Outcome { is_pickup: true, is_reversed: segment.way == Way::ToServer, ..Outcome::valid() };
        }
        if segment.has(flag::SYN) {
            let (mine, theirs) = (segment.way as usize, segment.way.reverse() as usize);
            self.sides[mine].begin(tcp.sequence);
            self.sides[mine].window_scale = tcp.window_scale.unwrap_or(0);
            self.sides[theirs].window = u32::from(tcp.window);
            self.syn_had_fast_open = tcp.has_fast_open;
            self.state = State::SynSent;
            let mut outcome = Outcome::valid();
            if !segment.payload.is_empty() && tcp.has_fast_open {
                outcome.inserted = self.insert(segment, 1, config);
            }
            return outcome;
        }
        if !config.is_midstream {
            return Outcome { lacks_session: true, ..Outcome::default() };
        }
        let (mine, theirs) = (segment.way as usize, segment.way.reverse() as usize);
        self.sides[mine].begin(tcp.sequence.wrapping_sub(1));
        self.sides[theirs].begin(tcp.acknowledgement.wrapping_sub(1));
        for side in &mut self.sides {
            (side.window, side.window_scale) = (u32::from(u16::MAX) << 14, 14);
        }
        (self.state, self.is_midstream, self.is_async) = (State::Established, true, config.is_async_allowed);
        let outcome = self.open(segment, config);
        Outcome { is_pickup: true, ..outcome }
    }

    fn syn_sent(&mut self, segment: &Segment<'_>, config: &StreamConfig) -> Outcome {
        let tcp = &segment.tcp;
        let client_next = self.sides[0].next;
        if segment.has(flag::RST) {
            return match (segment.way, after(tcp.acknowledgement, client_next)) {
                (Way::ToClient, distance) if distance != 0 && segment.has(flag::ACK) && !self.syn_had_fast_open => {
                    Outcome::refused("stream.rst_invalid_ack")
                }
                _ => {
                    self.state = State::Closed;
                    Outcome::valid()
                }
            };
        }
        match (segment.way, segment.has(flag::SYN), segment.has(flag::ACK)) {
            (Way::ToClient, true, true) => self.syn_ack(segment),
            (Way::ToServer, true, true) => Outcome::refused("stream.3whs_synack_in_wrong_direction"),
            (Way::ToServer, true, false) => {
                // sent again, perhaps by a client that started over
                if tcp.sequence != self.sides[0].isn {
                    let side = &mut self.sides[0];
                    side.stream = Stream::default();
                    side.begin(tcp.sequence);
                }
                self.sides[0].window_scale = tcp.window_scale.unwrap_or(0);
                Outcome::valid()
            }
            (Way::ToClient, true, false) => {
                // both open at once (RFC 9293 section 3.5)
                self.sides[1].begin(tcp.sequence);
                self.sides[1].window_scale = tcp.window_scale.unwrap_or(0);
                Outcome { event: Some("stream.4whs_syn"), ..Outcome::valid() }
            }
            (Way::ToServer, false, true) if config.is_async_allowed => {
                if !segment.payload.is_empty() && tcp.sequence != client_next {
                    return Outcome::refused("stream.3whs_async_wrong_seq");
                }
                self.is_async = true;
                self.sides[1].begin(tcp.acknowledgement.wrapping_sub(1));
                for side in &mut self.sides {
                    (side.window, side.window_scale) = (u32::from(u16::MAX) << 14, 14);
                }
                self.state = State::Established;
                self.open(segment, config)
            }
            (Way::ToClient, false, true) if self.sides[1].has_isn => {
                self.state = State::Established;
                self.open(segment, config)
            }
            _ => Outcome::default(),
        }
    }

    fn syn_ack(&mut self, segment: &Segment<'_>) -> Outcome {
        let tcp = &segment.tcp;
        let client = &mut self.sides[0];
        let confirmed = after(tcp.acknowledgement, client.isn.wrapping_add(1));
        let sent = after(client.next, client.isn.wrapping_add(1));
        // fast open: the server may have taken the SYN's data or not
        if confirmed != 0 && !(self.syn_had_fast_open && (0..=sent).contains(&confirmed)) {
            return Outcome::refused("stream.3whs_synack_with_wrong_ack");
        }
        client.window = u32::from(tcp.window);
        client.last_ack = tcp.acknowledgement;
        client.stream.acked = client.stream.acked.max(confirmed.max(0) as u64);
        let client_scale = client.window_scale;
        let server = &mut self.sides[1];
        server.begin(tcp.sequence);
        server.window_scale = tcp.window_scale.unwrap_or(0);
        if tcp.window_scale.is_none() {
            self.sides[0].window_scale = 0; // RFC 7323: both or none
        } else {
            self.sides[1].window = u32::from(u16::MAX).max(self.sides[1].window) << client_scale.min(14);
        }
        self.syn_ack_seen = true;
        self.state = State::SynRecv;
        Outcome::valid()
    }

    fn syn_recv(&mut self, segment: &Segment<'_>, config: &StreamConfig) -> Outcome {
        let tcp = &segment.tcp;
        if segment.has(flag::RST) {
            let mine = &self.sides[segment.way as usize];
            if mine.has_isn && after(tcp.sequence, mine.next) < 0 && tcp.sequence != mine.isn {
                return Outcome::refused("stream.suspected_rst_inject");
            }
            self.state = State::Closed;
            return Outcome::valid();
        }
        if segment.has(flag::SYN | flag::ACK) {
            if segment.way == Way::ToServer {
                return Outcome::refused("stream.3whs_synack_toserver_on_syn_recv");
            }
            if tcp.acknowledgement != self.sides[0].last_ack && after(tcp.acknowledgement, self.sides[0].next) != 0 {
                return Outcome::refused("stream.3whs_synack_resend_with_different_ack");
            }
            if tcp.sequence != self.sides[1].isn {
                return self.syn_ack(segment); // another answer: the client decides which one holds
            }
            return Outcome::valid();
        }
        if segment.has(flag::SYN) {
            let event = match segment.way {
                Way::ToClient => "stream.3whs_syn_toclient_on_syn_recv",
                Way::ToServer if tcp.sequence != self.sides[0].isn => "stream.3whs_syn_resend_diff_seq_on_syn_recv",
                Way::ToServer => return Outcome::valid(),
            };
            return Outcome::refused(event);
        }
        if !segment.has(flag::ACK) {
            return self.open(segment, config);
        }
        if segment.way == Way::ToClient && !self.is_midstream {
            // data of the server before the handshake ended: with fast open that is how it is
            if !self.syn_had_fast_open && segment.payload.is_empty() && !segment.has(flag::FIN) {
                return Outcome::refused("stream.3whs_ack_in_wrong_dir");
            }
            if self.syn_had_fast_open {
                self.state = State::Established;
            }
            return self.open(segment, config);
        }
        let expected = self.sides[1].next;
        if segment.way == Way::ToServer && tcp.acknowledgement != expected {
            let event = match after(tcp.sequence, self.sides[0].next) == 0 {
                true => "stream.3whs_right_seq_wrong_ack_evasion",
                false => "stream.3whs_wrong_seq_wrong_ack",
            };
            // the server has sent data already, and the client's ACK of its SYN was not seen
            if after(tcp.acknowledgement, expected) < 0 || after(tcp.acknowledgement, expected) > (1 << 20) {
                return Outcome::refused(event);
            }
        }
        self.state = State::Established;
        self.open(segment, config)
    }

    /// A packet of a connection both of whose sequence numbers are known.
    fn open(&mut self, segment: &Segment<'_>, config: &StreamConfig) -> Outcome {
        let tcp = &segment.tcp;
        let (mine, theirs) = (segment.way as usize, segment.way.reverse() as usize);
        if segment.has(flag::RST) {
            return self.reset(segment);
        }
        if segment.has(flag::SYN) {
            return self.syn_in_connection(segment);
        }
        if !self.sides[mine].has_isn {
            self.sides[mine].begin(tcp.sequence.wrapping_sub(1)); // an asynchronous connection's other half
        }
        if segment.has(flag::ACK) && !self.is_async && self.sides[theirs].has_isn {
            let sent = self.sides[theirs].next;
            let confirmed = after(tcp.acknowledgement, sent);
            if confirmed > 0 {
                if self.state == State::Established && confirmed > 1 && !self.is_midstream {
                    let window = self.effective_window(theirs);
                    if i64::from(confirmed) > i64::from(window) {
                        return Outcome::refused("stream.est_invalid_ack");
                    }
                }
                if confirmed as u32 > self.effective_window(theirs).max(1 << 16) {
                    return Outcome::refused("stream.pkt_invalid_ack");
                }
            }
        }
        let length = segment.payload.len() as u32 + u32::from(segment.has(flag::FIN));
        let end = tcp.sequence.wrapping_add(length);
        let window = self.effective_window(mine);
        let limit = self.sides[mine].last_ack.wrapping_add(window);
        if length > 0 && !self.is_async && after(end, limit) > 0 && !self.is_midstream {
            return Outcome::refused(match self.state {
                State::Established | State::SynRecv => "stream.est_packet_out_of_window",
                State::FinWait1 => "stream.fin1_fin_wrong_seq",
                _ => "stream.fin_out_of_window",
            });
        }
        let mut outcome = Outcome::valid();
        if length > 0 && after(end, self.sides[mine].last_ack) <= 0 && self.state == State::Established {
            outcome.event = Some("stream.pkt_spurious_retransmission");
        }
        if segment.has(flag::ACK) {
            self.acknowledge(theirs, tcp.acknowledgement, tcp.window, mine);
        }
        if !segment.payload.is_empty() && !self.sides[mine].has_fin_before(tcp.sequence) {
            outcome.inserted = self.insert(segment, 0, config);
            if outcome.inserted.has_conflict {
                outcome.event = Some("stream.reassembly_overlap_different_data");
            }
        }
        if after(end, self.sides[mine].next) > 0 {
            self.sides[mine].next = end;
        }
        if self.is_async {
            let side = &mut self.sides[mine];
            side.stream.acked = side.stream.acked.max(side.stream.end);
            side.last_ack = side.next;
        }
        self.advance(segment);
        outcome
    }

    /// What the other side may have outstanding.
    fn effective_window(&self, mine: usize) -> u32 {
        self.sides[mine].window.max(u32::from(u16::MAX))
    }

    fn acknowledge(&mut self, theirs: usize, number: u32, window: u16, mine: usize) {
        let scale = self.sides[mine].window_scale;
        let side = &mut self.sides[theirs];
        side.window = u32::from(window) << scale.min(14);
        if !side.has_isn {
            side.begin(number.wrapping_sub(1));
        }
        if after(number, side.last_ack) > 0 {
            side.last_ack = number;
        }
        if let Some(mut offset) = side.offset(side.last_ack) {
            if side.has_fin && offset > side.stream.end {
                offset = side.stream.end; // the FIN counts one
            }
            side.stream.acked = side.stream.acked.max(offset);
        }
    }

    fn insert(&mut self, segment: &Segment<'_>, shift: u32, config: &StreamConfig) -> Inserted {
        let side = &mut self.sides[segment.way as usize];
        let sequence = segment.tcp.sequence.wrapping_add(shift);
        let end = sequence.wrapping_add(segment.payload.len() as u32);
        if segment.is_refused {
            return Inserted::default();
        }
        let policy = if config.is_inline { crate::defrag::Overlap::First } else { config.overlap };
        let depth = config.depth;
        let inserted = match side.offset(sequence) {
            Some(offset) => side.stream.insert(offset, segment.payload, policy, depth),
            None => {
                // begins before the stream does
                let before = side.isn.wrapping_add(1).wrapping_sub(sequence) as usize;
                match segment.payload.get(before..) {
                    Some(rest) if !rest.is_empty() => side.stream.insert(0, rest, policy, depth),
                    _ => Inserted::default(),
                }
            }
        };
        if after(end, side.next) > 0 {
            side.next = end;
        }
        inserted
    }

    fn syn_in_connection(&mut self, segment: &Segment<'_>) -> Outcome {
        let is_answer = segment.has(flag::ACK);
        let different = segment.tcp.sequence != self.sides[segment.way as usize].isn;
        if self.state != State::Established {
            return Outcome::refused(if is_answer { "stream.fin_syn" } else { "stream.shutdown_syn_resend" });
        }
        match (segment.way, is_answer, different) {
            (Way::ToServer, true, _) => Outcome::refused("stream.est_synack_toserver"),
            (Way::ToClient, true, true) => Outcome::refused("stream.est_synack_resend_with_diff_seq"),
            (Way::ToClient, true, false) => Outcome { event: Some("stream.est_synack_resend"), ..Outcome::valid() },
            (Way::ToClient, false, _) => Outcome::refused("stream.est_syn_toclient"),
            (Way::ToServer, false, true) => Outcome::refused("stream.est_syn_resend_diff_seq"),
            (Way::ToServer, false, false) => Outcome { event: Some("stream.est_syn_resend"), ..Outcome::valid() },
        }
    }

    fn reset(&mut self, segment: &Segment<'_>) -> Outcome {
        let tcp = &segment.tcp;
        let (mine, theirs) = (segment.way as usize, segment.way.reverse() as usize);
        if self.sides[mine].has_isn && !self.is_async {
            let side = &self.sides[mine];
            let distance = after(tcp.sequence, side.next);
            // a reset counts where the receiver expects its next byte, or within what it has room for
            let window = self.effective_window(mine) as i32;
            if after(tcp.sequence, side.last_ack) < 0 || distance > window {
                return Outcome::refused("stream.suspected_rst_inject");
            }
        }
        if segment.has(flag::ACK) && self.sides[theirs].has_isn {
            let beyond = after(tcp.acknowledgement, self.sides[theirs].next);
            if beyond <= 0 {
                self.acknowledge(theirs, tcp.acknowledgement, tcp.window, mine);
            }
        }
        // nothing more will be confirmed: what was sent counts
        for side in &mut self.sides {
            side.stream.acked = side.stream.acked.max(side.stream.end);
            side.stream.is_triggered = true;
        }
        self.state = State::Closed;
        Outcome::valid()
    }

    fn advance(&mut self, segment: &Segment<'_>) {
        let (mine, theirs) = (segment.way as usize, segment.way.reverse() as usize);
        let is_fin = segment.has(flag::FIN);
        let confirms_fin = self.sides[theirs].has_fin
            && segment.has(flag::ACK)
            && segment.tcp.acknowledgement == self.sides[theirs].next;
        if is_fin {
            self.sides[mine].has_fin = true;
        }
        self.state = match (self.state, segment.way, is_fin) {
            (State::SynRecv | State::Established, Way::ToServer, true) => State::CloseWait,
            (State::SynRecv | State::Established, Way::ToClient, true) => State::FinWait1,
            (State::CloseWait, Way::ToClient, true) => State::LastAck,
            (State::FinWait1, Way::ToServer, true) if confirms_fin => State::TimeWait,
            (State::FinWait1, Way::ToServer, true) => State::Closing,
            (State::FinWait1, Way::ToServer, false) if confirms_fin => State::FinWait2,
            (State::FinWait2, Way::ToServer, true) => State::TimeWait,
            (State::LastAck, Way::ToServer, _) if confirms_fin => State::Closed,
            (State::Closing, _, _) if confirms_fin => State::TimeWait,
            (State::TimeWait, Way::ToClient, _) if confirms_fin => State::Closed,
            (state, _, _) => state,
        };
    }

    /// Whether that way is over: everything was sent and confirmed, or reset.
    pub fn is_over(&self, way: Way) -> bool {
        self.state == State::Closed || self.sides[way as usize].has_fin
    }
}

impl Side {
    fn has_fin_before(&self, sequence: u32) -> bool {
        self.has_fin && after(sequence, self.next) >= 0
    }
}

#[cfg(test)]
mod tests;
