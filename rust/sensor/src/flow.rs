//! The flow table: a fixed number of slots, found through a keyed hash, given up in a fixed order.
//!
//! When the table is full, one-sided flows go first, then closed ones, and an open one only after
//! [`OPEN_IDLE_US`] of silence; if there is none, the new flow is refused and counted. So a stream of made-up
//! 5-tuples churns through the slots that nobody answered and cannot push out a conversation.

use crate::counters::Counters;
use crate::decode::{Address, Packet, flags, protocol};
use crate::event::{FlowEnd, FlowRecord, FlowState};
use crate::siphash::SipKey;

/// Two minutes is the longest time a SYN is repeated by common stacks; we give up sooner, memory is scarcer.
const HALF_TIMEOUT_US: u64 = 30_000_000;
/// The idle time after which NAT devices must still know a connection is two hours (RFC 5382); we only lose a record.
const OPEN_TIMEOUT_US: u64 = 600_000_000;
/// Long enough for the last retransmissions.
const CLOSED_TIMEOUT_US: u64 = 5_000_000;
/// An open flow that spoke within this time is never given up for a new one.
const OPEN_IDLE_US: u64 = 5_000_000;
/// A flow moves to the young end of its list at most once in this time: it saves cache misses.
const TOUCH_US: u64 = 1_000_000;
const NIL: u32 = 0; // links count from 1, so that a fresh table is all zeros and costs no resident memory

mod bit {
    pub const ANSWERED: u8 = 1; // the server sent something that is no reset
    pub const SYN_ACK: u8 = 2;
    pub const COMPLETED: u8 = 4; // the client acknowledged the server's initial sequence number
    pub const DATA_CLIENT: u8 = 8;
    pub const DATA_SERVER: u8 = 16;
    pub const FIN_CLIENT: u8 = 32;
    pub const FIN_SERVER: u8 = 64;
    pub const RESET: u8 = 128;
}

/// Both sides are who they say: the handshake was completed and data went both ways.
const PROOF: u8 = bit::COMPLETED | bit::DATA_CLIENT | bit::DATA_SERVER;

#[derive(Clone, Copy)]
pub(crate) struct Flow {
    client: Address,
    server: Address,
    first_us: u64,
    last_us: u64,
    bytes: [u64; 2],
    packets: [u32; 2],
    server_sequence: u32,
    client_port: u16,
    server_port: u16,
    previous: u32,
    next: u32,
    chain: u32,
    touched_s: u32,
    tcp_flags: [u8; 2],
    icmp: [u8; 2],
    protocol: u8,
    state: FlowState,
    bits: u8,
}

#[derive(Clone, Copy, Default)]
struct List {
    oldest: u32,
    youngest: u32,
}

/// What a packet meant to its flow.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Observation {
    /// 0 where the flow was refused.
    pub flow_id: u64,
    /// The other side has answered before or now.
    pub is_answered: bool,
    /// This packet completed the handshake, provably: it acknowledged a number only the client was told.
    pub has_completed: bool,
    /// Both sides exchanged data over a completed handshake: said when it becomes true, then once a second.
    pub has_proved_peers: bool,
}

pub(crate) struct FlowTable {
    slab: Vec<Flow>,
    heads: Box<[u32]>,
    lists: [List; 3],
    free: u32,
    live: usize,
    capacity: usize,
    key: SipKey,
}

impl FlowTable {
    pub fn new(capacity: usize, key: SipKey) -> FlowTable {
        FlowTable {
            slab: Vec::with_capacity(capacity),
            heads: vec![NIL; capacity.next_power_of_two()].into_boxed_slice(),
            lists: [List::default(); 3],
            free: NIL,
            live: 0,
            capacity,
            key,
        }
    }

    pub fn live(&self) -> usize {
        self.live
    }

    /// Account one packet to its flow, which is created if need be.
    #[inline]
    pub fn observe(
        &mut self,
        packet: &Packet,
        now_us: u64,
        counters: &mut Counters,
        ended: &mut dyn FnMut(&FlowRecord),
    ) -> Observation {
        let hash = self.hash(packet);
        let mut slot = self.find(packet, hash);
        if slot != NIL && self.is_reuse(slot, packet) {
            self.end(slot, FlowEnd::Reused, now_us, counters, ended);
            slot = NIL;
        }
        if slot == NIL {
            if !self.make_room(now_us, counters, ended) {
                counters.flows_refused += 1;
                return Observation::default();
            }
            slot = self.insert(packet, hash, now_us);
            counters.flows_created += 1;
        }
        let (state, mut observation) = self.flow_mut(slot).account(packet, now_us);
        let touched = self.place(slot, state, now_us);
        observation.has_proved_peers |= touched && self.flow(slot).bits & PROOF == PROOF;
        if packet.tcp_flags & (flags::SYN | flags::RST | flags::FIN) != 0 || packet.protocol != protocol::TCP {
            observation.flow_id = self.flow_id(slot); // alerts arise from these packets only
        }
        observation
    }

    /// End what has been silent for too long, at most `budget` flows; the rest waits for the next call.
    pub fn expire(
        &mut self,
        now_us: u64,
        mut budget: usize,
        counters: &mut Counters,
        ended: &mut dyn FnMut(&FlowRecord),
    ) {
        for (list, timeout_us) in [(0, HALF_TIMEOUT_US), (1, OPEN_TIMEOUT_US), (2, CLOSED_TIMEOUT_US)] {
            while budget > 0 {
                let slot = self.lists[list].oldest;
                if slot == NIL || now_us.saturating_sub(self.flow(slot).last_us) < timeout_us {
                    break;
                }
                self.end(slot, FlowEnd::TimedOut, now_us, counters, ended);
                budget -= 1;
            }
        }
    }

    /// End flows because the sensor stops, at most `budget`; return whether any are left.
    pub fn finish(
        &mut self,
        now_us: u64,
        mut budget: usize,
        counters: &mut Counters,
        ended: &mut dyn FnMut(&FlowRecord),
    ) -> bool {
        for list in 0..self.lists.len() {
            while budget > 0 && self.lists[list].oldest != NIL {
                self.end(self.lists[list].oldest, FlowEnd::Shutdown, now_us, counters, ended);
                budget -= 1;
            }
        }
        self.live > 0
    }

    #[inline]
    fn flow(&self, slot: u32) -> &Flow {
        &self.slab[slot as usize - 1]
    }

    #[inline]
    fn flow_mut(&mut self, slot: u32) -> &mut Flow {
        &mut self.slab[slot as usize - 1]
    }

    /// Both directions of a flow hash alike.
    #[inline]
    fn hash(&self, packet: &Packet) -> u64 {
        let from = (packet.source, packet.source_port);
        let to = (packet.destination, packet.destination_port);
        let (low, high) = if from <= to { (from, to) } else { (to, from) };
        let rest = u64::from(low.1) << 32 | u64::from(high.1) << 16 | u64::from(packet.protocol);
        if low.0.is_v4() && high.0.is_v4() {
            return self.key.hash(&[(low.0.0 as u64) << 32 | u64::from(high.0.0 as u32), rest]);
        }
        let (a, b) = (low.0.words(), high.0.words());
        self.key.hash(&[a[0], a[1], b[0], b[1], rest])
    }

    fn flow_id(&self, slot: u32) -> u64 {
        let flow = self.flow(slot);
        let ports = u64::from(flow.client_port) << 16 | u64::from(flow.server_port);
        let addresses = flow.client.0 ^ flow.server.0.rotate_left(64);
        let words = [addresses as u64, (addresses >> 64) as u64, ports, flow.first_us];
        self.key.hash(&words) >> 11 // JSON readers keep 53 bits
    }

    #[inline]
    fn find(&self, packet: &Packet, hash: u64) -> u32 {
        let mut slot = self.heads[hash as usize & (self.heads.len() - 1)];
        while slot != NIL {
            let flow = self.flow(slot);
            if flow.protocol == packet.protocol && (flow.is_from_client(packet) || flow.is_from_server(packet)) {
                break;
            }
            slot = flow.chain;
        }
        slot
    }

    /// A SYN on a closed connection begins a new one with the same ports.
    #[inline]
    fn is_reuse(&self, slot: u32, packet: &Packet) -> bool {
        packet.tcp_flags & (flags::SYN | flags::ACK) == flags::SYN && self.flow(slot).state == FlowState::Closed
    }

    fn make_room(&mut self, now_us: u64, counters: &mut Counters, ended: &mut dyn FnMut(&FlowRecord)) -> bool {
        if self.live < self.capacity {
            return true;
        }
        let [half, open, closed] = self.lists.map(|list| list.oldest);
        let victim = if half != NIL {
            half
        } else if closed != NIL {
            closed
        } else if open != NIL && now_us.saturating_sub(self.flow(open).last_us) >= OPEN_IDLE_US {
            open
        } else {
            return false;
        };
        counters.flows_evicted += 1;
        self.end(victim, FlowEnd::Evicted, now_us, counters, ended);
        true
    }

    fn insert(&mut self, packet: &Packet, hash: u64, now_us: u64) -> u32 {
        let bucket = hash as usize & (self.heads.len() - 1);
        let flow = Flow::begin(packet, now_us, self.heads[bucket]);
        let slot = if self.free != NIL {
            let slot = self.free;
            self.free = self.flow(slot).chain;
            *self.flow_mut(slot) = flow;
            slot
        } else {
            self.slab.push(flow); // within the capacity reserved at the start: never moves
            self.slab.len() as u32
        };
        self.heads[bucket] = slot;
        self.live += 1;
        self.append(slot);
        slot
    }

    /// Keep the flow in the list of its state, at the young end; return whether it was moved.
    #[inline]
    fn place(&mut self, slot: u32, state: FlowState, now_us: u64) -> bool {
        let now_s = (now_us / TOUCH_US) as u32;
        let flow = self.flow(slot);
        if flow.state == state && flow.touched_s == now_s {
            return false;
        }
        self.unlink(slot);
        let flow = self.flow_mut(slot);
        (flow.state, flow.touched_s) = (state, now_s);
        self.append(slot);
        true
    }

    fn append(&mut self, slot: u32) {
        let list = self.flow(slot).state as usize;
        let last = self.lists[list].youngest;
        let flow = self.flow_mut(slot);
        (flow.previous, flow.next) = (last, NIL);
        match last {
            NIL => self.lists[list].oldest = slot,
            _ => self.flow_mut(last).next = slot,
        }
        self.lists[list].youngest = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let Flow { previous, next, state, .. } = *self.flow(slot);
        match previous {
            NIL => self.lists[state as usize].oldest = next,
            _ => self.flow_mut(previous).next = next,
        }
        match next {
            NIL => self.lists[state as usize].youngest = previous,
            _ => self.flow_mut(next).previous = previous,
        }
    }

    fn end(
        &mut self,
        slot: u32,
        end: FlowEnd,
        now_us: u64,
        counters: &mut Counters,
        ended: &mut dyn FnMut(&FlowRecord),
    ) {
        let flow = *self.flow(slot);
        ended(&flow.record(self.flow_id(slot), end, now_us));
        counters.flows_ended += 1;
        self.unlink(slot);
        let bucket = self.hash(&flow.tuple()) as usize & (self.heads.len() - 1);
        if self.heads[bucket] == slot {
            self.heads[bucket] = flow.chain;
        } else {
            let mut before = self.heads[bucket];
            while before != NIL && self.flow(before).chain != slot {
                before = self.flow(before).chain;
            }
            if before != NIL {
                self.flow_mut(before).chain = flow.chain;
            }
        }
        self.flow_mut(slot).chain = self.free;
        self.free = slot;
        self.live -= 1;
    }
}

impl Flow {
    fn begin(packet: &Packet, now_us: u64, chain: u32) -> Flow {
        let is_answer = packet.tcp_flags & (flags::SYN | flags::ACK) == flags::SYN | flags::ACK;
        let from = (packet.source, packet.source_port);
        let to = (packet.destination, packet.destination_port);
        let ((client, client_port), (server, server_port)) = if is_answer { (to, from) } else { (from, to) };
        Flow {
            client,
            server,
            first_us: now_us,
            last_us: now_us,
            bytes: [0; 2],
            packets: [0; 2],
            server_sequence: 0,
            client_port,
            server_port,
            previous: NIL,
            next: NIL,
            chain,
            touched_s: (now_us / TOUCH_US) as u32,
            tcp_flags: [0; 2],
            icmp: packet.icmp,
            protocol: packet.protocol,
            state: FlowState::New,
            bits: 0,
        }
    }

    #[inline]
    fn is_from_client(&self, packet: &Packet) -> bool {
        self.client == packet.source
            && self.server == packet.destination
            && self.client_port == packet.source_port
            && self.server_port == packet.destination_port
    }

    #[inline]
    fn is_from_server(&self, packet: &Packet) -> bool {
        self.server == packet.source
            && self.client == packet.destination
            && self.server_port == packet.source_port
            && self.client_port == packet.destination_port
    }

    fn tuple(&self) -> Packet {
        Packet {
            source: self.client,
            destination: self.server,
            source_port: self.client_port,
            destination_port: self.server_port,
            protocol: self.protocol,
            ..Packet::default()
        }
    }

    /// Count the packet and return the flow's new state and what happened.
    #[inline]
    fn account(&mut self, packet: &Packet, now_us: u64) -> (FlowState, Observation) {
        let from_client = self.is_from_client(packet);
        let side = usize::from(!from_client);
        self.last_us = self.last_us.max(now_us);
        self.packets[side] = self.packets[side].saturating_add(1);
        self.bytes[side] = self.bytes[side].saturating_add(packet.wire_bytes.into());
        self.tcp_flags[side] |= packet.tcp_flags;
        let before = self.bits;
        if packet.payload_bytes > 0 {
            self.bits |= if from_client { bit::DATA_CLIENT } else { bit::DATA_SERVER };
        }
        let state = match packet.protocol {
            protocol::TCP => self.next_tcp_state(packet, from_client),
            _ => self.next_plain_state(from_client),
        };
        let observation = Observation {
            flow_id: 0,
            is_answered: self.bits & bit::ANSWERED != 0,
            has_completed: !before & self.bits & bit::COMPLETED != 0,
            has_proved_peers: before & PROOF != PROOF && self.bits & PROOF == PROOF,
        };
        (state, observation)
    }

    /// Without handshakes, three packets make a conversation: question, answer, and one that follows the answer. Two
    /// would not do: we ourselves answer a made-up source.
    fn next_plain_state(&mut self, from_client: bool) -> FlowState {
        if !from_client {
            self.bits |= bit::ANSWERED;
        }
        if from_client && self.bits & bit::ANSWERED != 0 { FlowState::Established } else { self.state }
    }

    fn next_tcp_state(&mut self, packet: &Packet, from_client: bool) -> FlowState {
        let flags = packet.tcp_flags;
        if flags & flags::RST != 0 {
            self.bits |= bit::RESET;
            // a reset that answers a SYN leaves the flow among those that go first
            return if self.state == FlowState::New { FlowState::New } else { FlowState::Closed };
        }
        if !from_client {
            self.bits |= bit::ANSWERED;
            if flags & (flags::SYN | flags::ACK) == flags::SYN | flags::ACK && self.bits & bit::COMPLETED == 0 {
                self.bits |= bit::SYN_ACK;
                self.server_sequence = packet.sequence;
            }
        }
        if flags & flags::FIN != 0 {
            self.bits |= if from_client { bit::FIN_CLIENT } else { bit::FIN_SERVER };
        }
        const BOTH_FINS: u8 = bit::FIN_CLIENT | bit::FIN_SERVER;
        if self.state == FlowState::Closed || self.bits & BOTH_FINS == BOTH_FINS {
            return FlowState::Closed;
        }
        if from_client && flags & flags::SYN == 0 && self.bits & bit::ANSWERED != 0 {
            return self.next_state_after_answer(packet);
        }
        self.state
    }

    fn next_state_after_answer(&mut self, packet: &Packet) -> FlowState {
        if self.bits & (bit::SYN_ACK | bit::COMPLETED) == bit::SYN_ACK {
            // exactly this number: a sender with a made-up address never saw it and cannot guess it
            let expected = self.server_sequence.wrapping_add(1);
            if packet.tcp_flags & flags::ACK == 0 || packet.acknowledgement != expected {
                return self.state;
            }
            self.bits |= bit::COMPLETED;
        }
        FlowState::Established
    }

    fn record(&self, flow_id: u64, end: FlowEnd, now_us: u64) -> FlowRecord {
        FlowRecord {
            time_us: now_us,
            flow_id,
            client: self.client,
            server: self.server,
            client_port: self.client_port,
            server_port: self.server_port,
            protocol: self.protocol,
            icmp: self.icmp,
            first_us: self.first_us,
            last_us: self.last_us,
            packets: self.packets,
            bytes: self.bytes,
            tcp_flags: self.tcp_flags,
            is_answered: self.bits & bit::ANSWERED != 0,
            state: self.state,
            end,
        }
    }
}

#[cfg(test)]
mod tests;
