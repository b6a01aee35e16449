//! Rules sorted into groups, so that a packet or transaction meets only those that could match.
//!
//! A group is (transport, way) for packets and streams, (protocol, way, buffer) for transactions. In each, the rules
//! with a literal stand behind one automaton; those without are looked at one by one, TCP and UDP ones by server port.

use std::collections::{BTreeMap, HashMap};

use protocols::{COMPLETE, PROTOCOLS, Way};
use signatures::{Carrier, Direction, Kind, PayloadScope, Prefilter, RuleSet, Signature, TransactionTest, Transform};

use crate::layers::ip;

/// Rules with more ports than this are in the list for any port.
const MOST_PORTS: u32 = 16;

/// Rules for packets of one transport and way.
#[derive(Default)]
pub struct PacketGroup {
    /// Literals of rules that look into packets.
    pub packet: Option<Prefilter>,
    /// Literals of rules about streams, for packets that are in none.
    pub outside_stream: Option<Prefilter>,
    /// Literals of rules about streams.
    pub stream: Option<Prefilter>,
    /// Rules about packets without a (useful) literal.
    pub always: ByPort,
    /// Likewise, about streams.
    pub always_stream: ByPort,
}

/// Rules that no literal leads to: by the port that they are about, where there is one.
#[derive(Default)]
pub struct ByPort {
    any: Vec<u32>,
    destination: HashMap<u16, Vec<u32>>,
    source: HashMap<u16, Vec<u32>>,
}

impl ByPort {
    fn add(&mut self, rule: &Signature, index: u32) {
        let header = &rule.header;
        if header.direction() != Direction::Forward {
            return self.any.push(index);
        }
        let (list, ranges) = match (few_ports(header.destination_ports()), few_ports(header.source_ports())) {
            (Some(ranges), _) => (&mut self.destination, ranges),
            (None, Some(ranges)) => (&mut self.source, ranges),
            (None, None) => return self.any.push(index),
        };
        for port in ranges.iter().flat_map(|(low, high)| *low..=*high) {
            list.entry(port).or_default().push(index);
        }
    }

    /// Call `with` for every rule that may be about a packet between these ports.
    #[inline]
    pub fn each(&self, source: u16, destination: u16, mut with: impl FnMut(u32)) {
        let lists = [self.destination.get(&destination), self.source.get(&source)];
        for rule in self.any.iter().chain(lists.into_iter().flatten().flatten()) {
            with(*rule);
        }
    }
}

fn few_ports(ranges: Option<&[(u16, u16)]>) -> Option<&[(u16, u16)]> {
    let count =
        |ranges: &[(u16, u16)]| ranges.iter().map(|(low, high)| u32::from(*high) - u32::from(*low) + 1).sum::<u32>();
    ranges.filter(|ranges| count(ranges) <= MOST_PORTS)
}

/// Literals shorter than this are in every other packet: where a port says more, it is asked instead.
const SHORT_LITERAL: usize = 4;

/// Literals in one buffer of one protocol.
pub struct BufferGroup {
    /// Index into the protocol's buffers.
    pub buffer: u16,
    /// It exists from this progress on.
    pub progress: u8,
    /// It grows.
    pub is_growing: bool,
    /// There are several.
    pub is_multiple: bool,
    /// Whose buffer it is (rules with `=>` look at both).
    pub way: Way,
    /// What is done to it first.
    pub transforms: Box<[Transform]>,
    /// The literals.
    pub prefilter: Prefilter,
}

/// Rules for transactions of one protocol and way.
#[derive(Default)]
pub struct TransactionGroup {
    /// Rules with a literal.
    pub buffers: Vec<BufferGroup>,
    /// Rules without, by the progress that they need.
    pub always: Vec<(u8, u32)>,
}

/// All groups.
pub struct Groups {
    packets: Vec<PacketGroup>,
    transactions: Vec<TransactionGroup>,
    /// Looked at for every packet, malformed ones too.
    pub decode: Vec<u32>,
    /// Looked at once for each way of a flow.
    pub ip_only: Vec<u32>,
    /// By rule: the progress of each way that it needs before it can be decided.
    pub needs: Vec<[u8; 2]>,
}

/// Which group of transports a packet belongs to.
fn transport_index(protocol: u8) -> usize {
    match protocol {
        ip::TCP => 0,
        ip::UDP => 1,
        ip::ICMP | ip::ICMPV6 => 2,
        _ => 3,
    }
}

fn transports(carrier: Carrier) -> &'static [usize] {
    match carrier {
        Carrier::Tcp | Carrier::TcpPacket | Carrier::TcpStream => &[0],
        Carrier::Udp => &[1],
        Carrier::Icmp | Carrier::Icmpv4 | Carrier::Icmpv6 => &[2],
        Carrier::Sctp | Carrier::Ethernet | Carrier::Arp => &[3],
        Carrier::Ip | Carrier::Ipv4 | Carrier::Ipv6 | Carrier::Anything => &[0, 1, 2, 3],
    }
}

type Entries = Vec<(Vec<u8>, u32)>;

#[derive(Default)]
struct PacketEntries {
    packet: Entries,
    outside_stream: Entries,
    stream: Entries,
    group: PacketGroup,
}

/// Protocol, way that is looked at, way of the buffer, buffer, and a text of its transforms (they have no order).
type BufferKey = (usize, usize, usize, u16, String);

#[derive(Default)]
struct TransactionEntries {
    buffers: BTreeMap<BufferKey, (Box<[Transform]>, Entries)>,
    always: Vec<(usize, Way, u8, u32)>,
}

impl Groups {
    /// Sort the rules of a set.
    pub fn build(rules: &RuleSet) -> Groups {
        let mut packets: Vec<PacketEntries> = (0..8).map(|_| PacketEntries::default()).collect();
        let mut transactions = TransactionEntries::default();
        let (mut decode, mut ip_only, mut needs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, rule) in rules.signatures.iter().enumerate() {
            let index = index as u32;
            needs.push(needed_progress(rule));
            match rule.kind {
                Kind::Decode => decode.push(index),
                Kind::IpOnly => ip_only.push(index),
                Kind::Packet => add_packet_rule(&mut packets, rule, index),
                Kind::Transaction => {
                    add_transaction_rule(&mut transactions, rule, index);
                    add_payload_of_transaction_rule(&mut packets, rule, index);
                }
            }
        }
        Groups {
            packets: packets.into_iter().map(PacketEntries::finish).collect(),
            transactions: transactions.finish(),
            decode,
            ip_only,
            needs,
        }
    }

    /// Rules for packets of a transport protocol that go that way.
    pub fn packet(&self, protocol: u8, way: Way) -> Option<&PacketGroup> {
        self.packets.get(transport_index(protocol) * 2 + way as usize)
    }

    /// Rules for transactions.
    pub fn transaction(&self, protocol: u8, way: Way) -> Option<&TransactionGroup> {
        self.transactions.get(usize::from(protocol) * 2 + way as usize)
    }

    /// Bytes of all automata.
    pub fn heap_bytes(&self) -> usize {
        let packets = self.packets.iter().flat_map(|group| [&group.packet, &group.outside_stream, &group.stream]);
        let packets: usize = packets.flatten().map(Prefilter::heap_bytes).sum();
        let buffers = self.transactions.iter().flat_map(|group| &group.buffers);
        packets + buffers.map(|group| group.prefilter.heap_bytes()).sum::<usize>()
    }
}

fn ways(rule: &Signature) -> impl Iterator<Item = Way> {
    let wanted = rule.flow.way;
    Way::BOTH.into_iter().filter(move |way| wanted.is_none_or(|wanted| wanted == *way))
}

fn add_packet_rule(groups: &mut [PacketEntries], rule: &Signature, index: u32) {
    let literal = rule.payload.as_ref().and_then(|inspection| inspection.pattern()).map(|pattern| pattern.literal);
    let has_port = few_ports(rule.header.destination_ports()).or(few_ports(rule.header.source_ports())).is_some();
    let literal = literal.filter(|literal| literal.len() >= SHORT_LITERAL || !has_port);
    for transport in transports(rule.header.carrier()) {
        for way in ways(rule) {
            let Some(group) = groups.get_mut(transport * 2 + way as usize) else { continue };
            let scope = if *transport == 0 { rule.payload_scope } else { PayloadScope::Packet };
            match (&literal, scope) {
                (Some(literal), PayloadScope::Packet) => group.packet.push((literal.clone(), index)),
                (Some(literal), scope) => {
                    group.stream.push((literal.clone(), index));
                    match scope {
                        PayloadScope::StreamOrPacket => group.packet.push((literal.clone(), index)),
                        PayloadScope::Stream => group.outside_stream.push((literal.clone(), index)),
                        _ => {}
                    }
                }
                (None, scope) => {
                    if rule.payload.is_some() && scope != PayloadScope::Packet {
                        group.group.always_stream.add(rule, index);
                    }
                    if scope != PayloadScope::StreamOnly {
                        group.group.always.add(rule, index);
                    }
                }
            }
        }
    }
}

/// A rule about a transaction may also look for something in the stream around it: that is found like other rules'
/// contents, and remembered by the flow.
fn add_payload_of_transaction_rule(groups: &mut [PacketEntries], rule: &Signature, index: u32) {
    let literal = rule.payload.as_ref().and_then(|inspection| inspection.pattern()).map(|pattern| pattern.literal);
    let Some(literal) = literal else { return };
    for transport in transports(rule.header.carrier()) {
        for way in ways(rule) {
            let Some(group) = groups.get_mut(transport * 2 + way as usize) else { continue };
            if *transport == 0 && rule.payload_scope != PayloadScope::Packet {
                group.stream.push((literal.clone(), index));
                group.outside_stream.push((literal.clone(), index));
            } else {
                group.packet.push((literal.clone(), index));
            }
        }
    }
}

fn add_transaction_rule(groups: &mut TransactionEntries, rule: &Signature, index: u32) {
    for protocol in rule.protocols.iter().map(|protocol| usize::from(*protocol)) {
        for way in transaction_ways(rule, protocol) {
            let best = best_literal(rule, protocol, way);
            match best {
                Some((buffer, buffer_way, transforms, literal)) => {
                    let key = (protocol, way as usize, buffer_way as usize, buffer, format!("{transforms:?}"));
                    let entry = groups.buffers.entry(key).or_insert_with(|| (transforms, Vec::new()));
                    entry.1.push((literal, index));
                }
                None => groups.always.push((protocol, way, needed_for(rule, protocol, way), index)),
            }
        }
    }
}

/// The ways in which a rule looks at transactions of a protocol: those of its tests. With `=>` it is decided when the
/// answer is looked at.
fn transaction_ways(rule: &Signature, protocol: usize) -> Vec<Way> {
    if rule.header.direction() == Direction::Transaction {
        return vec![Way::ToClient];
    }
    if let Some((way, _)) = rule.hook {
        return vec![way];
    }
    let exists = |way: Way| {
        rule.transaction_tests
            .iter()
            .all(|test| test_place(test, protocol).is_none_or(|place| place.ways.contains(way)))
    };
    ways(rule).filter(|way| exists(*way)).collect()
}

/// Where a test looks in a protocol.
pub struct Place {
    /// Index into the protocol's list.
    pub index: u16,
    /// In which ways it exists.
    pub ways: protocols::Ways,
    /// From which progress on.
    pub progress: u8,
    /// It grows.
    pub is_growing: bool,
    /// There are several.
    pub is_multiple: bool,
}

/// Return where a test looks in `protocol`; `None` where it does not.
pub fn test_place(test: &TransactionTest, protocol: usize) -> Option<Place> {
    let info = PROTOCOLS.get(protocol)?;
    let find =
        |places: &[(u8, u16)]| places.iter().find(|(owner, _)| usize::from(*owner) == protocol).map(|(_, at)| *at);
    match test {
        TransactionTest::Buffer(test) => {
            let index = find(&test.places)?;
            let buffer = info.buffers.get(usize::from(index))?;
            Some(Place {
                index,
                ways: buffer.ways,
                progress: buffer.progress,
                is_growing: buffer.is_growing,
                is_multiple: buffer.is_multiple,
            })
        }
        TransactionTest::Number(test) => {
            let index = find(&test.places)?;
            let number = info.numbers.get(usize::from(index))?;
            let (ways, progress, is_multiple) = (number.ways, number.progress, number.is_multiple);
            Some(Place { index, ways, progress, is_growing: false, is_multiple })
        }
        TransactionTest::Custom(test) => {
            let (_, index, _) = test.places.iter().find(|(owner, _, _)| usize::from(*owner) == protocol)?;
            let keyword = info.keywords.get(usize::from(*index))?;
            let (ways, progress) = (keyword.ways, keyword.progress);
            Some(Place { index: *index, ways, progress, is_growing: false, is_multiple: false })
        }
        TransactionTest::Event { protocol: owner, event } if usize::from(*owner) == protocol => Some(Place {
            index: u16::from(*event),
            ways: protocols::Ways::Both,
            progress: 0,
            is_growing: false,
            is_multiple: false,
        }),
        TransactionTest::Event { .. } => None,
    }
}

/// The way whose buffer a test looks at when transactions are looked at in `way`.
pub fn test_way(test: &TransactionTest, place: &Place, way: Way) -> Way {
    if let TransactionTest::Buffer(buffer) = test
        && let Some(chosen) = buffer.way
    {
        return chosen;
    }
    match place.ways {
        protocols::Ways::Both => way,
        protocols::Ways::ToServer => Way::ToServer,
        protocols::Ways::ToClient => Way::ToClient,
    }
}

type Literal = (u16, Way, Box<[Transform]>, Vec<u8>);

fn best_literal(rule: &Signature, protocol: usize, way: Way) -> Option<Literal> {
    let mut best: Option<(bool, usize, Literal)> = None;
    for test in &rule.transaction_tests {
        let TransactionTest::Buffer(buffer) = test else { continue };
        let Some(place) = test_place(test, protocol) else { continue };
        let Some(pattern) = buffer.inspection.pattern().filter(|_| !buffer.inspection.matches_absence()) else {
            continue;
        };
        let rank = (pattern.is_chosen, pattern.literal.len());
        if best.as_ref().is_none_or(|(chosen, length, _)| rank > (*chosen, *length)) {
            let literal = (place.index, test_way(test, &place, way), buffer.transforms.clone(), pattern.literal);
            best = Some((rank.0, rank.1, literal));
        }
    }
    best.map(|(_, _, literal)| literal)
}

/// The progress of that way at which a rule without a literal can be decided.
fn needed_for(rule: &Signature, protocol: usize, way: Way) -> u8 {
    let mut needed = rule.hook.map_or(0, |(_, progress)| progress);
    for test in &rule.transaction_tests {
        if let Some(place) = test_place(test, protocol)
            && test_way(test, &place, way) == way
        {
            needed = needed.max(if place.is_growing { COMPLETE } else { place.progress });
        }
    }
    needed
}

fn needed_progress(rule: &Signature) -> [u8; 2] {
    let mut needed = [0; 2];
    if let Some((way, progress)) = rule.hook {
        needed[way as usize] = progress;
    }
    needed
}

impl PacketEntries {
    fn finish(self) -> PacketGroup {
        let build = |entries: Entries| (!entries.is_empty()).then(|| Prefilter::build(&entries));
        PacketGroup {
            packet: build(self.packet),
            outside_stream: build(self.outside_stream),
            stream: build(self.stream),
            ..self.group
        }
    }
}

impl TransactionEntries {
    fn finish(self) -> Vec<TransactionGroup> {
        let mut groups: Vec<TransactionGroup> = (0..PROTOCOLS.len() * 2).map(|_| TransactionGroup::default()).collect();
        for ((protocol, way, buffer_way, buffer, _), (transforms, entries)) in self.buffers {
            let Some(info) = PROTOCOLS.get(protocol).and_then(|info| info.buffers.get(usize::from(buffer))) else {
                continue;
            };
            let Some(group) = groups.get_mut(protocol * 2 + way) else { continue };
            group.buffers.push(BufferGroup {
                buffer,
                progress: info.progress,
                is_growing: info.is_growing,
                is_multiple: info.is_multiple,
                way: Way::BOTH[buffer_way.min(1)],
                transforms,
                prefilter: Prefilter::build(&entries),
            });
        }
        for (protocol, way, progress, rule) in self.always {
            if let Some(group) = groups.get_mut(protocol * 2 + way as usize) {
                group.always.push((progress, rule));
            }
        }
        for group in &mut groups {
            group.always.sort_unstable();
        }
        groups
    }
}
