//! Flows: a fixed number of slots, found through a keyed hash, given up oldest first, unanswered before answered.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use protocols::Way;
use sensor::SipKey;

use crate::app::App;
use crate::config::ExceptionPolicy;
use crate::layers::{Layers, ip};
use crate::tcp::Session;

/// How far a flow came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum Stage {
    #[default]
    New,
    Established,
    Closed,
    Bypassed,
}

impl Stage {
    /// Return the name in EVE's `flow.state`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::New => "new",
            Stage::Established => "established",
            Stage::Closed => "closed",
            Stage::Bypassed => "bypassed",
        }
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Ending {
    TimedOut,
    Forced,
    Reused,
    Shutdown,
}

impl Ending {
    /// Return the name in EVE's `flow.reason`.
    pub fn name(self) -> &'static str {
        match self {
            Ending::TimedOut => "timeout",
            Ending::Forced => "forced",
            Ending::Reused => "tcp_reuse",
            Ending::Shutdown => "shutdown",
        }
    }
}

/// Ends and numbers that make a flow, the same for both ways.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    low: (u128, u16),
    high: (u128, u16),
    protocol: u8,
    vlan: [u16; 3],
    depth: u8,
}

/// What rules or exception policies said about the rest of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum FlowAction {
    Pass,
    Drop,
}

/// Captured values of a flow, and how much of each is kept.
const MOST_VARIABLES: usize = 16;
const MOST_VARIABLE_BYTES: usize = 512;
/// A captured value's place in its list, and two allocations.
const VARIABLE_BYTES: usize = 80;

/// One flow.
#[derive(Default)]
#[allow(missing_docs)]
pub struct Flow {
    pub id: u64,
    pub key: Option<FlowKey>,
    /// Client and server.
    pub addresses: [u128; 2],
    pub ports: [u16; 2],
    pub protocol: u8,
    pub version: u8,
    pub vlan: [u16; 3],
    pub vlan_count: u8,
    pub first_us: u64,
    pub last_us: u64,
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub icmp: [[u8; 2]; 2],
    pub stage: Stage,
    pub tcp: Option<Box<Session>>,
    pub app: App,
    pub state: signatures::FlowState,
    pub action: Option<FlowAction>,
    pub is_dropped_by_policy: bool,
    pub has_alert: bool,
    pub has_logged_drop: [bool; 2],
    pub policies: Vec<(&'static str, ExceptionPolicy)>,
    /// What `pcre` captured for the flow: name and value.
    pub variables: Vec<(Box<str>, Vec<u8>)>,
    /// Likewise, for the latest packet.
    pub packet_variables: Vec<(Box<str>, Vec<u8>)>,
    /// Rules about transactions whose contents in the stream were found.
    pub payload_matches: Vec<u32>,
    pub ip_only_done: [bool; 2],
    /// What a way speaks has just become known: its next packet is looked at with rules about that.
    pub app_news: [bool; 2],
    pub is_swapped: bool,
    pub parent: Option<u64>,
    /// The transaction that was last shown with a packet rule's alert.
    pub guessed: Option<u64>,
    /// Bytes of streams and parsers that were counted against the budget.
    pub accounted: usize,
    pub(crate) older: u32,
    pub(crate) younger: u32,
    pub(crate) list: u8,
}

impl Flow {
    /// Which way a packet goes.
    pub fn way(&self, layers: &Layers<'_>) -> Way {
        let from = (layers.source, layers.source_port);
        let client = (self.addresses[0], self.ports[0]);
        let server = (self.addresses[1], self.ports[1]);
        if from == server && from != client { Way::ToClient } else { Way::ToServer }
    }

    /// The client turns out to be the server.
    pub fn swap(&mut self) {
        self.addresses.swap(0, 1);
        self.ports.swap(0, 1);
        self.packets.swap(0, 1);
        self.bytes.swap(0, 1);
        self.icmp.swap(0, 1);
        self.ip_only_done.swap(0, 1);
        if let Some(tcp) = &mut self.tcp {
            tcp.sides.swap(0, 1);
            tcp.flags.swap(0, 1);
        }
        self.is_swapped = !self.is_swapped;
    }

    /// Remember what `pcre` captured, for output and for `flowvar`.
    pub fn keep_capture(&mut self, capture: signatures::Capture, rules: &signatures::RuleSet) {
        let list = match capture.scope {
            signatures::CaptureScope::Flow => &mut self.variables,
            _ => &mut self.packet_variables,
        };
        let value = capture.value.get(..capture.value.len().min(MOST_VARIABLE_BYTES)).unwrap_or_default().to_vec();
        if let Some(number) = rules.state_names.iter().position(|name| *name == capture.name) {
            self.state.set_variable(number as u32, &value);
        }
        if let Some((_, known)) = list.iter_mut().find(|(name, _)| *name == capture.name) {
            *known = value;
        } else if list.len() < MOST_VARIABLES {
            list.push((capture.name, value));
        }
    }

    /// Bytes on the heap of what rules left behind.
    pub fn heap_bytes(&self) -> usize {
        let values = self.variables.iter().chain(&self.packet_variables);
        let values: usize = values.map(|(name, value)| name.len() + value.capacity() + VARIABLE_BYTES).sum();
        self.state.heap_bytes() + values + self.payload_matches.capacity() * size_of::<u32>()
    }

    /// Both sides have sent something.
    pub fn is_answered(&self) -> bool {
        self.packets[0] > 0 && self.packets[1] > 0
    }

    fn timeout_us(&self) -> u64 {
        let seconds = match (self.protocol, self.stage) {
            (_, Stage::Bypassed) => 100,
            (ip::TCP, Stage::New) => 60,
            (ip::TCP, Stage::Established) => 600,
            (ip::TCP, Stage::Closed) => 60,
            (_, Stage::New) => 30,
            (_, _) => 300,
        };
        seconds * 1_000_000
    }

    fn class(&self) -> u8 {
        let protocol = if self.protocol == ip::TCP { 0 } else { 4 };
        protocol + self.stage as u8
    }
}

/// A hasher for words that were keyed already.
#[derive(Default)]
struct Pass(u64);

impl Hasher for Pass {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

const LISTS: usize = 8;
const NIL: u32 = u32::MAX;

/// The table.
pub struct FlowTable {
    slots: Vec<Option<Box<Flow>>>,
    free: Vec<u32>,
    index: HashMap<u64, u32, BuildHasherDefault<Pass>>,
    oldest: [u32; LISTS],
    youngest: [u32; LISTS],
    capacity: usize,
    key: SipKey,
    uses_vlan: bool,
}

impl FlowTable {
    /// Return an empty table of `capacity` slots.
    pub fn new(capacity: usize, key: SipKey, uses_vlan: bool) -> FlowTable {
        FlowTable {
            slots: Vec::new(),
            free: Vec::new(),
            index: HashMap::default(),
            oldest: [NIL; LISTS],
            youngest: [NIL; LISTS],
            capacity,
            key,
            uses_vlan,
        }
    }

    /// How many flows there are.
    pub fn live(&self) -> usize {
        self.index.len()
    }

    /// Whether a new flow needs another's slot.
    pub fn is_full(&self) -> bool {
        self.index.len() >= self.capacity
    }

    /// Return the key of a packet's flow; ICMP errors belong to the flow of the packet that they quote.
    pub fn flow_key(&self, layers: &Layers<'_>, depth: u8) -> FlowKey {
        let (mut from, mut to) = ((layers.source, layers.source_port), (layers.destination, layers.destination_port));
        let mut protocol = layers.protocol;
        if matches!(protocol, ip::ICMP | ip::ICMPV6)
            && let Some(quoted) = crate::icmp::quoted(layers)
        {
            (from, to, protocol) = quoted;
        }
        let vlan = if self.uses_vlan { layers.vlan } else { [0; 3] };
        let (low, high) = if from <= to { (from, to) } else { (to, from) };
        FlowKey { low, high, protocol, vlan, depth }
    }

    fn hash(&self, key: &FlowKey) -> u64 {
        let halves = |value: u128| [(value >> 64) as u64, value as u64];
        let ([a, b], [c, d]) = (halves(key.low.0), halves(key.high.0));
        let ports = u64::from(key.low.1) << 48 | u64::from(key.high.1) << 32 | u64::from(key.protocol) << 8;
        let vlan = u64::from(key.vlan[0]) << 32 | u64::from(key.vlan[1]) << 16 | u64::from(key.vlan[2]);
        self.key.hash(&[a, b, c, d, ports | u64::from(key.depth), vlan])
    }

    /// Return the slot of a flow. Two flows with the same 64-bit keyed hash would be taken for one; the key is compared.
    pub fn find(&self, key: &FlowKey) -> Option<u32> {
        let slot = *self.index.get(&self.hash(key))?;
        let flow = self.slots.get(slot as usize)?.as_ref()?;
        (flow.key.as_ref() == Some(key)).then_some(slot)
    }

    /// Put a new flow in; the table must not be full.
    pub fn insert(&mut self, key: FlowKey, mut flow: Box<Flow>) -> u32 {
        let hash = self.hash(&key);
        flow.key = Some(key);
        flow.id = self.key.hash(&[hash, flow.first_us, flow.ports[0].into()]) >> 11; // JSON readers keep 53 bits
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.index.insert(hash, slot);
        flow.list = flow.class();
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(flow);
        }
        self.append(slot);
        slot
    }

    /// Take a flow out to work on it; give it back with [`FlowTable::put`] or end it with [`FlowTable::remove`].
    pub fn take(&mut self, slot: u32) -> Option<Box<Flow>> {
        self.slots.get_mut(slot as usize)?.take()
    }

    /// Look at a flow.
    pub fn get(&self, slot: u32) -> Option<&Flow> {
        self.slots.get(slot as usize)?.as_deref()
    }

    /// Give a flow back, as the youngest of its kind.
    pub fn put(&mut self, slot: u32, flow: Box<Flow>) {
        let class = flow.class();
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(flow);
        }
        self.unlink(slot);
        if let Some(flow) = self.flow_mut(slot) {
            flow.list = class;
        }
        self.append(slot);
    }

    /// Forget a flow that was taken out.
    pub fn remove(&mut self, slot: u32, flow: Box<Flow>) -> Box<Flow> {
        if let Some(key) = &flow.key {
            let hash = self.hash(key);
            self.index.remove(&hash);
        }
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(flow);
        }
        self.unlink(slot);
        self.free.push(slot);
        self.slots.get_mut(slot as usize).and_then(Option::take).unwrap_or_default()
    }

    /// Return the slot of a flow whose time is over.
    pub fn expired(&self, now_us: u64) -> Option<u32> {
        self.oldest
            .iter()
            .copied()
            .find(|slot| self.get(*slot).is_some_and(|flow| now_us.saturating_sub(flow.last_us) > flow.timeout_us()))
    }

    /// Return the slot of the flow that is given up for another: closed, then new, then the one silent for longest.
    pub fn victim(&self) -> Option<u32> {
        [2, 6, 0, 4, 3, 7, 5, 1].into_iter().filter_map(|list| self.oldest.get(list).copied()).find(|slot| *slot != NIL)
    }

    /// Return any flow.
    pub fn any(&self) -> Option<u32> {
        let mut first: Option<(u64, u32)> = None;
        for slot in self.oldest.iter().copied() {
            if let Some(flow) = self.get(slot)
                && first.is_none_or(|(time, _)| flow.last_us < time)
            {
                first = Some((flow.last_us, slot));
            }
        }
        first.map(|(_, slot)| slot)
    }

    fn flow_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    fn append(&mut self, slot: u32) {
        let Some(list) = self.get(slot).map(|flow| usize::from(flow.list)) else { return };
        let last = self.youngest[list];
        if let Some(flow) = self.flow_mut(slot) {
            (flow.older, flow.younger) = (last, NIL);
        }
        match self.flow_mut(last) {
            Some(before) => before.younger = slot,
            None => self.oldest[list] = slot,
        }
        self.youngest[list] = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let Some((older, younger, list)) =
            self.get(slot).map(|flow| (flow.older, flow.younger, usize::from(flow.list)))
        else {
            return;
        };
        match self.flow_mut(older) {
            Some(flow) => flow.younger = younger,
            None => self.oldest[list] = younger,
        }
        match self.flow_mut(younger) {
            Some(flow) => flow.older = older,
            None => self.youngest[list] = older,
        }
    }
}
