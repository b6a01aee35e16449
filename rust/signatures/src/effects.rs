//! Keywords with memory: flowbits, flowint, xbits, hostbits, iprep, datasets on addresses.
//!
//! A rule's tests are asked before the rule matches, its effects happen after it has; so `flowint:n,+,1;
//! flowint:n,>,5` sees the count of earlier matches.

mod hosts;
mod parse;
mod reputation;

pub use hosts::{HostKey, HostState};
pub(crate) use parse::{Parsed, parse};
pub use reputation::Reputation;

use crate::dataset::{DatasetTest, Datasets};
use crate::facts::PacketFacts;
use crate::model::PacketBuffer;
use crate::number::Comparison;

/// Bits set at once in one flow: rule sets use a handful; a rule set that is out to fill memory is not obeyed.
const MOST_BITS: usize = 256;
/// Likewise, integers.
const MOST_INTEGERS: usize = 64;
/// Captured values of one flow, and the length at which each is cut.
const MOST_VARIABLES: usize = 16;
const MOST_VARIABLE_BYTES: usize = 512;

/// What earlier packets of a flow left behind. Names stand as numbers: [`crate::RuleSet::state_names`].
#[derive(Debug, Default, Clone)]
pub struct FlowState {
    bits: Vec<u32>,
    integers: Vec<(u32, u32)>,
    variables: Vec<(u32, Box<[u8]>)>,
}

impl FlowState {
    /// Return whether a bit is set.
    pub fn has(&self, bit: u32) -> bool {
        self.bits.binary_search(&bit).is_ok()
    }

    /// Set a bit. Beyond 256 bits, nothing happens.
    pub fn set(&mut self, bit: u32) {
        if let Err(place) = self.bits.binary_search(&bit)
            && self.bits.len() < MOST_BITS
        {
            self.bits.insert(place, bit);
        }
    }

    /// Clear a bit.
    pub fn clear(&mut self, bit: u32) {
        if let Ok(place) = self.bits.binary_search(&bit) {
            self.bits.remove(place);
        }
    }

    /// The bits that are set, in order of their numbers: for EVE's `metadata.flowbits`.
    pub fn bits(&self) -> &[u32] {
        &self.bits
    }

    /// The integers that are set and their values: for EVE's `metadata.flowints`.
    pub fn integers(&self) -> &[(u32, u32)] {
        &self.integers
    }

    /// Return an integer.
    pub fn integer(&self, name: u32) -> Option<u32> {
        self.integers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Set an integer. Beyond 64 of them, nothing happens.
    pub fn set_integer(&mut self, name: u32, value: u32) {
        if let Some(slot) = self.integers.iter_mut().find(|(known, _)| *known == name) {
            slot.1 = value;
        } else if self.integers.len() < MOST_INTEGERS {
            self.integers.push((name, value));
        }
    }

    /// Keep a captured value. Beyond 16 of them, nothing happens; each is cut at 512 bytes.
    pub fn set_variable(&mut self, name: u32, value: &[u8]) {
        let value: Box<[u8]> = value.get(..value.len().min(MOST_VARIABLE_BYTES)).unwrap_or_default().into();
        if let Some(slot) = self.variables.iter_mut().find(|(known, _)| *known == name) {
            slot.1 = value;
        } else if self.variables.len() < MOST_VARIABLES {
            self.variables.push((name, value));
        }
    }

    /// Captured values.
    pub fn variables(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.variables.iter().map(|(name, value)| (*name, &**value))
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        let variables: usize = self.variables.iter().map(|(_, value)| value.len().saturating_add(24)).sum();
        self.bits.capacity() * 4 + self.integers.capacity() * 8 + variables
    }
}

/// Everything that tests with memory ask and effects change.
pub struct State<'a> {
    /// The packet's flow, where it has one.
    pub flow: Option<&'a mut FlowState>,
    /// What is remembered about hosts and pairs of hosts.
    pub hosts: &'a mut HostState,
    /// Data sets.
    pub datasets: &'a mut Datasets,
    /// Reputation of addresses.
    pub reputation: &'a Reputation,
}

/// Whose bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Owner {
    Flow,
    Source,
    Destination,
    /// The two addresses, whichever way.
    Pair,
    /// Source and destination each.
    BothEnds,
}

impl Owner {
    fn keys(self, packet: &PacketFacts<'_>) -> [Option<HostKey>; 2] {
        match self {
            Owner::Flow => [None, None],
            Owner::Source => [Some(HostKey::Host(packet.source)), None],
            Owner::Destination => [Some(HostKey::Host(packet.destination)), None],
            Owner::Pair => [Some(HostKey::pair(packet.source, packet.destination)), None],
            Owner::BothEnds => [Some(HostKey::Host(packet.source)), Some(HostKey::Host(packet.destination))],
        }
    }
}

/// A number in a rule, or the name of a flow's integer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Operand {
    Value(u32),
    Named(u32),
}

impl Operand {
    fn value(self, flow: &FlowState) -> Option<u32> {
        match self {
            Operand::Value(value) => Some(value),
            Operand::Named(name) => flow.integer(name),
        }
    }
}

/// Whose reputation is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum ReputationSide {
    Source,
    Destination,
    Any,
    Both,
}

/// A condition on what earlier packets left behind.
#[derive(Debug)]
pub enum FlowTest {
    /// One of these bits is set, or (not wanted) one is not.
    Bits {
        /// Whose.
        owner: Owner,
        /// Their numbers.
        bits: Box<[u32]>,
        /// Set, or not.
        wanted: bool,
    },
    /// An integer of the flow is there, or is not.
    HasInteger(u32, bool),
    /// An integer of the flow compares so with the operand.
    Integer(u32, fn(u64) -> Comparison, Operand),
    /// Addresses' reputation in a category.
    Reputation(ReputationSide, u8, Comparison),
    /// An address is in a data set.
    Dataset(PacketBuffer, Box<DatasetTest>),
    /// A captured value of the flow contains these bytes.
    Variable(u32, Box<[u8]>),
}

/// What a match leaves behind.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Effect {
    Set(Owner, u32, Expiry),
    Clear(Owner, u32),
    Toggle(Owner, u32, Expiry),
    AssignInteger(u32, Operand),
    AddInteger(u32, Operand),
    SubtractInteger(u32, Operand),
}

/// Seconds after which a bit of a host is forgotten.
pub type Expiry = u32;

impl FlowTest {
    /// Return whether it is so. Data sets of `set` and `unset` change here, as the rest of the rule has matched.
    pub fn matches(&self, packet: &PacketFacts<'_>, state: &mut State<'_>) -> bool {
        match self {
            FlowTest::Bits { owner: Owner::Flow, bits, wanted } => {
                let Some(flow) = state.flow.as_deref() else { return false };
                bits.iter().any(|bit| flow.has(*bit) == *wanted)
            }
            FlowTest::Bits { owner, bits, wanted } => {
                let hosts = &*state.hosts;
                let has =
                    |bit: u32| owner.keys(packet).into_iter().flatten().any(|key| hosts.has(key, bit, packet.time_us));
                bits.iter().any(|bit| has(*bit) == *wanted)
            }
            FlowTest::HasInteger(name, wanted) => {
                state.flow.as_deref().is_some_and(|flow| flow.integer(*name).is_some() == *wanted)
            }
            FlowTest::Integer(name, comparison, operand) => {
                let Some(flow) = state.flow.as_deref() else { return false };
                let (Some(left), Some(right)) = (flow.integer(*name), operand.value(flow)) else { return false };
                comparison(u64::from(right)).matches(u64::from(left))
            }
            FlowTest::Reputation(side, category, range) => reputation(packet, state, *side, *category, *range),
            FlowTest::Dataset(buffer, test) => {
                let address = if *buffer == PacketBuffer::SourceAddress { packet.source } else { packet.destination };
                test.matches_address(state.datasets, address)
            }
            FlowTest::Variable(name, wanted) => state.flow.as_deref().is_some_and(|flow| {
                flow.variables().any(|(known, value)| {
                    known == *name && (wanted.is_empty() || value.windows(wanted.len()).any(|part| part == &**wanted))
                })
            }),
        }
    }

    /// Whether it can be asked of a flow as a whole, by addresses alone.
    pub(crate) fn is_ip_only(&self) -> bool {
        matches!(self, FlowTest::Bits { owner, .. } if *owner != Owner::Flow)
            || matches!(self, FlowTest::Reputation(..))
    }
}

fn reputation(
    packet: &PacketFacts<'_>,
    state: &State<'_>,
    side: ReputationSide,
    category: u8,
    range: Comparison,
) -> bool {
    let is = |address| state.reputation.value(address, category).is_some_and(|value| range.matches(u64::from(value)));
    match side {
        ReputationSide::Source => is(packet.source),
        ReputationSide::Destination => is(packet.destination),
        ReputationSide::Any => is(packet.source) || is(packet.destination),
        ReputationSide::Both => is(packet.source) && is(packet.destination),
    }
}

impl Effect {
    /// Do it.
    pub fn apply(&self, packet: &PacketFacts<'_>, state: &mut State<'_>) {
        match self {
            Effect::Set(owner, bit, expiry) => change(packet, state, *owner, *bit, Some(*expiry), |_| true),
            Effect::Clear(owner, bit) => change(packet, state, *owner, *bit, None, |_| false),
            Effect::Toggle(owner, bit, expiry) => change(packet, state, *owner, *bit, Some(*expiry), |was| !was),
            Effect::AssignInteger(name, operand) => integer(state, *name, *operand, |_, operand| operand),
            Effect::AddInteger(name, operand) => {
                integer(state, *name, *operand, |value, operand| value.unwrap_or(0).saturating_add(operand));
            }
            Effect::SubtractInteger(name, operand) => {
                integer(state, *name, *operand, |value, operand| value.unwrap_or(0).saturating_sub(operand));
            }
        }
    }
}

fn change(
    packet: &PacketFacts<'_>,
    state: &mut State<'_>,
    owner: Owner,
    bit: u32,
    expiry: Option<Expiry>,
    wanted: fn(bool) -> bool,
) {
    if owner == Owner::Flow {
        let Some(flow) = state.flow.as_deref_mut() else { return };
        if wanted(flow.has(bit)) {
            flow.set(bit)
        } else {
            flow.clear(bit)
        }
        return;
    }
    for key in owner.keys(packet).into_iter().flatten() {
        if wanted(state.hosts.has(key, bit, packet.time_us)) {
            state.hosts.set(key, bit, packet.time_us, expiry.unwrap_or(0));
        } else {
            state.hosts.clear(key, bit);
        }
    }
}

fn integer(state: &mut State<'_>, name: u32, operand: Operand, result: fn(Option<u32>, u32) -> u32) {
    let Some(flow) = state.flow.as_deref_mut() else { return };
    if let Some(operand) = operand.value(flow) {
        flow.set_integer(name, result(flow.integer(name), operand));
    }
}

#[cfg(test)]
mod tests;
