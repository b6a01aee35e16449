//! The rule budget: of a large rule set, the rules that can matter on one device, up to a limit.
//!
//! In this order: 1. a rule between other addresses than the device's is rejected; 2. a rule about requests to a
//! service that the device does not offer, by port or protocol, is rejected, as are those about its answers; 3. a rule
//! whose metadata is about other systems (Windows, phones) or needs decrypted traffic is rejected; 4. what is left is
//! ranked by severity, age and how surely it concerns the device, and the first ones are kept, each with the rules
//! that set the flowbits it waits for; 5. the rest is beyond the limit. The same input always gives the same choice.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use protocols::{PROTOCOLS, Transport, Way};

use crate::address::{AddressSet, mapped};
use crate::effects::{Effect, FlowTest, Owner};
use crate::header::Carrier;
use crate::model::{Kind, Signature};
use crate::ranges::Ranges;

/// A chain of rules by flowbits that is kept together; the longest public ones have 4.
const MOST_TOGETHER: usize = 64;
/// A rule without a date counts as this old.
const UNKNOWN_YEAR: u32 = 2010;
/// What a signature costs besides its parts.
const RULE_BYTES: usize = 160;
const CONDITION_BYTES: usize = 96;

/// RFC 1918, as the stock `HOME_NET`: with IPv6 besides, every `!$HOME_NET` would touch the device.
const PRIVATE: &[(IpAddr, u8)] = &[
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
];

/// Something that the device offers to others.
#[derive(Clone, Debug)]
pub struct Service {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port it listens on.
    pub port: u16,
    /// The application protocol by its name in rules, where it is known.
    pub app: Option<String>,
}

/// What is known about the device.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// All that listens. Empty: no service at all.
    pub services: Vec<Service>,
    /// Its own networks: address and bits of the prefix. Empty: the private ranges, as in the stock `HOME_NET`.
    pub networks: Vec<(IpAddr, u8)>,
    /// The present year: rules lose weight with age.
    pub year: u32,
}

/// How much may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many rules.
    Rules(usize),
    /// So many bytes of rules, by estimate.
    Bytes(usize),
}

/// Why a rule is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is between other addresses.
    OtherNetwork,
    /// It is about a service that the device does not offer.
    NoSuchService,
    /// Its metadata says that it is about this kind of system.
    OtherSystem(String),
    /// Its metadata says that it needs decrypted traffic.
    NeedsDecryption,
    /// It could matter, but others matter more; its rank, from 0.
    BeyondLimit(usize),
}

/// The choice.
#[derive(Debug, Default)]
pub struct Selection {
    /// Indices of the rules to keep, the most useful first.
    pub kept: Vec<usize>,
    /// Indices of the others, each with the reason.
    pub rejected: Vec<(usize, Reason)>,
}

/// Choose the rules that can matter on the device.
pub fn choose(rules: &[Signature], device: &Device, budget: Budget) -> Selection {
    let home = networks(device);
    let (mut ranked, mut rejected) = (Vec::new(), Vec::new());
    for (place, rule) in rules.iter().enumerate() {
        match judge(rule, device, &home) {
            Ok(score) => ranked.push((std::cmp::Reverse(score), rule.gid, rule.sid, place)),
            Err(reason) => rejected.push((place, reason)),
        }
    }
    ranked.sort_unstable();
    let setters = setters(rules);
    let (mut kept, mut left) = (
        HashSet::new(),
        match budget {
            Budget::Rules(count) => count,
            Budget::Bytes(bytes) => bytes,
        },
    );
    let mut order = Vec::new();
    for (rank, (.., place)) in ranked.into_iter().enumerate() {
        let together = together(place, rules, &setters, &kept);
        let costs = together.iter().filter_map(|place| rules.get(*place)).map(|rule| match budget {
            Budget::Rules(_) => 1,
            Budget::Bytes(_) => bytes(rule),
        });
        match left.checked_sub(costs.sum()) {
            Some(rest) => {
                left = rest;
                order.extend_from_slice(&together);
                kept.extend(together);
            }
            None => rejected.push((place, Reason::BeyondLimit(rank))),
        }
    }
    rejected.retain(|(place, _)| !kept.contains(place)); // wanted after all, for its flowbits
    rejected.sort_by_key(|(place, _)| *place);
    Selection { kept: order, rejected }
}

fn networks(device: &Device) -> AddressSet {
    let networks = if device.networks.is_empty() { PRIVATE } else { &device.networks };
    let ranges = networks.iter().map(|(address, bits)| {
        let width = if address.is_ipv4() { 96u32 } else { 0 };
        let host = u128::MAX.checked_shr(width.saturating_add(u32::from(*bits))).unwrap_or(0);
        let low = mapped(*address) & !host;
        (low, low | host)
    });
    Ranges::new(ranges.collect())
}

/// A score, higher is better; or why not at all.
fn judge(rule: &Signature, device: &Device, home: &AddressSet) -> Result<u32, Reason> {
    let touches = |set: Option<&AddressSet>| set.is_none_or(|set| set.overlaps(home));
    let (from_home, to_home) = (touches(rule.header.source_set()), touches(rule.header.destination_set()));
    if !from_home && !to_home {
        return Err(Reason::OtherNetwork);
    }
    // requests come to the device, or its answers go out: then it is the server
    let is_server = match rule.flow.way {
        Some(Way::ToServer) => to_home && !from_home,
        Some(Way::ToClient) => from_home && !to_home,
        None => to_home && !from_home && rule.header.source_ports().is_none(),
    };
    let is_offered = is_offered(rule, device);
    if is_server && !is_offered && !is_for_everyone(rule) {
        return Err(Reason::NoSuchService);
    }
    let facts = Metadata::read(&rule.metadata);
    facts.check()?;
    Ok(facts.score(rule, device, is_server && is_offered))
}

/// Every device answers to ICMP, and to whatever is wrong with packets.
fn is_for_everyone(rule: &Signature) -> bool {
    matches!(rule.header.carrier(), Carrier::Icmp | Carrier::Icmpv4 | Carrier::Icmpv6)
        || matches!(rule.kind, Kind::Decode | Kind::IpOnly)
}

fn is_offered(rule: &Signature, device: &Device) -> bool {
    let ports =
        if rule.flow.way == Some(Way::ToClient) { rule.header.source_ports() } else { rule.header.destination_ports() };
    let carrier = rule.header.carrier();
    device.services.iter().any(|service| {
        let is_carried = match service.transport {
            Transport::Tcp => carrier.is_tcp(),
            Transport::Udp => carrier == Carrier::Udp,
        } || matches!(carrier, Carrier::Ip | Carrier::Ipv4 | Carrier::Ipv6);
        let is_there = ports.is_none_or(|ports| ports.iter().any(|(low, high)| (*low..=*high).contains(&service.port)));
        is_carried && is_there && speaks(service, rule)
    })
}

fn speaks(service: &Service, rule: &Signature) -> bool {
    let (Some(app), false) = (&service.app, rule.protocols.is_empty()) else { return true };
    rule.protocols
        .iter()
        .filter_map(|index| PROTOCOLS.get(usize::from(*index)))
        .any(|protocol| protocol.name == app || protocol.aliases.contains(&app.as_str()))
}

/// Rules that set each flowbit.
fn setters(rules: &[Signature]) -> HashMap<u32, Vec<usize>> {
    let mut setters: HashMap<u32, Vec<usize>> = HashMap::new();
    for (place, rule) in rules.iter().enumerate() {
        for effect in &rule.effects {
            if let Effect::Set(Owner::Flow, bit, _) | Effect::Toggle(Owner::Flow, bit, _) = effect {
                setters.entry(*bit).or_default().push(place);
            }
        }
    }
    setters
}

/// The rule and those that set what it waits for, that are not kept yet.
fn together(
    place: usize,
    rules: &[Signature],
    setters: &HashMap<u32, Vec<usize>>,
    kept: &HashSet<usize>,
) -> Vec<usize> {
    let (mut found, mut waiting) = (Vec::new(), vec![place]);
    while let Some(place) = waiting.pop() {
        if kept.contains(&place) || found.contains(&place) || found.len() >= MOST_TOGETHER {
            continue;
        }
        found.push(place);
        let tests = rules.get(place).map_or(&[][..], |rule| &rule.flow_tests);
        for test in tests {
            if let FlowTest::Bits { owner: Owner::Flow, bits, wanted: true } = test {
                waiting.extend(bits.iter().filter_map(|bit| setters.get(bit)).flatten().take(MOST_TOGETHER));
            }
        }
    }
    found
}

pub(crate) fn bytes(rule: &Signature) -> usize {
    let texts = rule.message.len().saturating_add(rule.metadata.len());
    let references: usize = rule.references.iter().map(|(system, id)| system.len().saturating_add(id.len())).sum();
    let buffers = rule.packet_buffers.len().saturating_add(usize::from(rule.payload.is_some()));
    let tests =
        [buffers, rule.packet_tests.len(), rule.flow_tests.len(), rule.transaction_tests.len(), rule.effects.len()];
    let conditions: usize = tests.iter().sum();
    let fixed = size_of::<Signature>().saturating_add(RULE_BYTES);
    fixed.saturating_add(texts).saturating_add(references).saturating_add(conditions.saturating_mul(CONDITION_BYTES))
}

/// What rule writers say about whom a rule is for.
struct Metadata<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Metadata<'a> {
    fn read(text: &'a str) -> Metadata<'a> {
        let fields = text.split(',').filter_map(|field| field.trim().split_once(char::is_whitespace));
        Metadata(fields.map(|(key, value)| (key, value.trim())).collect())
    }

    fn all(&self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn check(&self) -> Result<(), Reason> {
        if self.all("deployment").any(|value| value.starts_with("SSLDecrypt")) {
            return Err(Reason::NeedsDecryption);
        }
        let is_other = |value: &&str| {
            ["Windows", "Mac", "Android", "iOS", "Mobile"].iter().any(|system| value.starts_with(system))
        };
        let mut products = self.all("affected_product").chain(self.all("attack_target")).peekable();
        let first = products.peek().copied();
        if products.all(|value| is_other(&value))
            && let Some(first) = first
        {
            return Err(Reason::OtherSystem(first.to_owned()));
        }
        Ok(())
    }

    fn score(&self, rule: &Signature, device: &Device, is_for_service: bool) -> u32 {
        let severity = match self.all("signature_severity").next() {
            Some("Critical") => 40,
            Some("Major") => 30,
            Some("Minor") => 15,
            Some("Informational") => 5,
            _ => 40u32.saturating_sub(u32::from(rule.priority).saturating_mul(10)),
        };
        let year =
            self.all("updated_at").chain(self.all("created_at")).filter_map(|date| date.get(..4)?.parse().ok()).max();
        let age = device.year.saturating_sub(year.unwrap_or(UNKNOWN_YEAR)).min(15);
        let is_near = self.all("attack_target").any(|value| matches!(value, "IoT" | "Networking_Equipment" | "Server"))
            || self.all("affected_product").any(|value| value.contains("Linux") || value.contains("IoT"));
        let confidence = match self.all("confidence").next() {
            Some("High") => 10,
            Some("Low") => 0,
            _ => 5,
        };
        let nearness = if is_near { 15 } else { 0 } + if is_for_service { 30 } else { 0 };
        (severity + 15 + confidence + nearness).saturating_sub(age)
    }
}

#[cfg(test)]
mod tests;
