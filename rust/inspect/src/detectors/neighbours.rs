//! Who answers for an address on the link: ARP (RFC 826) and neighbour discovery (RFC 4861).
//!
//! An address that moves is no attack by itself: virtual addresses of a pair of servers do, and so do leases. It is one
//! when its owner is still alive: the old station claims the address again, or answers together with the new one; or an
//! answer that nobody asked for, addressed to one victim, moves it while the owner was just heard. Addresses with a
//! fixed station (`detectors.spoof.fixed`) may not move at all, gateways not while they are alive.

use protocols::Reader;
use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::reporter::Count;
use super::table::{Entry, Table, TableCounters, words};
use crate::layers::{Layers, ip};

/// An answer within this time of a question was asked for; hosts wait a second for one (RFC 4861 section 10).
const ASKED_US: u64 = 3_000_000;
/// Answers to one question by two stations come within this time.
const TWICE_US: u64 = 1_000_000;
/// A failover and its undoing are two moves; a third within this time is a quarrel.
const TO_AND_FRO_US: u64 = 60_000_000;
const MOST_MOVES: u32 = 3;
/// Gratuitous replies are counted in windows of this length.
const WINDOW_US: u64 = 10_000_000;
const MAPPED: u128 = 0xffff_0000_0000;
const BROADCAST: u64 = 0xffff_ffff_ffff;

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Arp {
    pub is_request: bool,
    pub sender_mac: u64,
    pub sender: u128,
    pub target_mac: u64,
    pub target: u128,
}

impl Arp {
    /// Read it; `None` where it is of other kinds.
    pub fn read(layers: &Layers<'_>) -> Option<Arp> {
        let mut reader = Reader::new(layers.network);
        let kinds = (reader.be16()?, reader.be16()?, reader.u8()?, reader.u8()?);
        let operation = reader.be16()?;
        if !layers.is_arp || kinds != (1, 0x0800, 6, 4) || !matches!(operation, 1 | 2) {
            return None;
        }
        Some(Arp {
            is_request: operation == 1,
            sender_mac: mac(&mut reader)?,
            sender: MAPPED | u128::from(reader.be32()?),
            target_mac: mac(&mut reader)?,
            target: MAPPED | u128::from(reader.be32()?),
        })
    }
}

fn mac(reader: &mut Reader<'_>) -> Option<u64> {
    let [a, b, c, d, e, f] = reader.array()?;
    Some(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
}

/// Return destination and source of the frame.
pub fn frame_macs(layers: &Layers<'_>) -> Option<(u64, u64)> {
    let mut reader = Reader::new(layers.link);
    Some((mac(&mut reader)?, mac(&mut reader)?))
}

/// A station says that an address is its own.
#[derive(Clone, Copy)]
struct Claim {
    address: u128,
    mac: u64,
    /// It is an answer, not a question that names its sender.
    is_answer: bool,
    /// To everybody.
    is_broadcast: bool,
    is_arp: bool,
}

#[derive(Clone, Default)]
struct Station {
    mac: u64,
    last_us: u64,
    /// Whose the address was before, and since when it is not.
    before: u64,
    moved_us: u64,
    /// How often it moved, each time within [`TO_AND_FRO_US`] of the last.
    moves: u32,
    asked_us: Option<u64>,
    answered_us: u64,
    gratuitous: u32,
    window_us: u64,
}

impl Entry for Station {
    fn weight(&self) -> u32 {
        u32::from(self.mac != 0) + 2 * u32::from(self.before != 0)
    }
}

/// Addresses and their stations.
pub struct Neighbours {
    stations: Table<3, Station>,
}

impl Neighbours {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Neighbours {
        // an hour: longer than any lease's pause, so that a quiet owner is remembered
        Neighbours { stations: Table::new(bytes, 3_600_000_000, key) }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.stations.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.stations.counters
    }

    /// Look at a packet.
    pub fn packet(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        if layers.is_arp {
            self.arp(layers, context);
        } else if layers.protocol == ip::ICMPV6 && matches!(layers.icmp[0], 135 | 136) {
            self.discovery(layers, context);
        } else if let Some((_, source)) = frame_macs(layers) {
            self.heard(layers, source, context.now_us);
        }
    }

    /// A packet from the owner shows that it is alive. Packets from afar have the router's station: no entry is made.
    fn heard(&mut self, layers: &Layers<'_>, source: u64, now_us: u64) {
        if let Some(station) = self.stations.get_mut(&key(layers, layers.source))
            && station.mac == source
        {
            station.last_us = now_us;
        }
    }

    fn arp(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let Some(arp) = Arp::read(layers) else { return };
        let frame_to = frame_macs(layers).map_or(BROADCAST, |(to, _)| to);
        if arp.is_request && arp.sender != arp.target {
            self.asked(layers, arp.target, context.now_us);
        }
        if arp.sender == MAPPED || arp.sender_mac == 0 || arp.sender_mac == BROADCAST {
            return; // a probe before the address is taken (RFC 5227)
        }
        let is_gratuitous = arp.sender == arp.target;
        let claim = Claim {
            address: arp.sender,
            mac: arp.sender_mac,
            is_answer: !arp.is_request,
            is_broadcast: frame_to == BROADCAST || is_gratuitous && arp.is_request,
            is_arp: true,
        };
        self.claim(layers, claim, context);
    }

    fn discovery(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let mut reader = Reader::new(layers.transport);
        let head = (reader.take(4), reader.u8(), reader.take(3), reader.array::<16>());
        let (Some(_), Some(flags), Some(_), Some(target)) = head else { return };
        let target = u128::from_be_bytes(target);
        let is_solicitation = layers.icmp[0] == 135;
        if is_solicitation {
            self.asked(layers, target, context.now_us);
        }
        let Some(mac) = link_address(reader, if is_solicitation { 1 } else { 2 }) else { return };
        let address = if is_solicitation { layers.source } else { target };
        let overrides = is_solicitation || flags & 0x20 != 0;
        if address == 0 || !overrides {
            return; // without the override flag a cache keeps what it has
        }
        let is_broadcast = layers.destination >> 120 == 0xff;
        self.claim(layers, Claim { address, mac, is_answer: !is_solicitation, is_broadcast, is_arp: false }, context);
    }

    fn asked(&mut self, layers: &Layers<'_>, target: u128, now_us: u64) {
        if let Some((_, station)) = self.stations.enter(&key(layers, target), now_us) {
            station.asked_us = Some(now_us);
        }
    }

    fn claim(&mut self, layers: &Layers<'_>, claim: Claim, context: &mut Context<'_>) {
        let now_us = context.now_us;
        let Some((_, station)) = self.stations.enter(&key(layers, claim.address), now_us) else { return };
        let is_asked = station.asked_us.is_some_and(|asked| now_us.saturating_sub(asked) <= ASKED_US);
        if claim.is_answer && !is_asked {
            if now_us.saturating_sub(station.window_us) >= WINDOW_US || station.window_us > now_us {
                (station.window_us, station.gratuitous) = (now_us, 0);
            }
            station.gratuitous = station.gratuitous.saturating_add(1);
            if station.gratuitous >= context.config.spoofs.gratuitous && claim.is_arp {
                report_gratuitous(&claim, station.gratuitous, context);
            }
        }
        let why = suspicion(station, &claim, is_asked, context);
        let owner = if station.mac == claim.mac { station.before } else { station.mac };
        if station.mac != claim.mac {
            let goes_on = station.mac != 0 && now_us.saturating_sub(station.moved_us) <= TO_AND_FRO_US;
            station.moves = if goes_on { station.moves.saturating_add(1) } else { u32::from(station.mac != 0) };
            (station.before, station.moved_us) = (station.mac, now_us);
        }
        (station.mac, station.last_us) = (claim.mac, now_us);
        if claim.is_answer {
            station.answered_us = now_us;
        }
        if let Some(why) = why {
            report(&claim, owner, why, context);
        }
    }
}

/// Return why a claim is no ordinary one.
fn suspicion(station: &Station, claim: &Claim, is_asked: bool, context: &Context<'_>) -> Option<&'static str> {
    let (spoofs, now_us) = (&context.config.spoofs, context.now_us);
    if let Some((_, mac)) = spoofs.fixed.iter().find(|(address, _)| *address == claim.address) {
        return (*mac != claim.mac).then_some("another station has this address by configuration");
    }
    if station.mac == claim.mac || station.mac == 0 || spoofs.virtual_addresses.contains(&claim.address) {
        return None;
    }
    let since = |time_us: u64| now_us.saturating_sub(time_us);
    let is_alive = since(station.last_us) <= spoofs.alive_us;
    if station.moves.saturating_add(1) >= MOST_MOVES && since(station.moved_us) <= TO_AND_FRO_US {
        return Some("it moves to and fro");
    }
    if station.before == claim.mac && since(station.moved_us) <= spoofs.alive_us.max(spoofs.grace_us) {
        // back at once: the new one was a mistake, or a failover that was undone; later: both are there
        return (since(station.moved_us) > spoofs.grace_us || claim.is_answer && is_asked)
            .then_some("its owner claims it again");
    }
    if claim.is_answer && is_asked && since(station.answered_us) <= TWICE_US {
        return Some("two stations answer");
    }
    if is_alive && spoofs.gateways.contains(&claim.address) {
        return Some("the gateway moves while it is alive");
    }
    (is_alive && claim.is_answer && !is_asked && !claim.is_broadcast)
        .then_some("moved by an answer that nobody asked for")
}

fn report(claim: &Claim, owner: u64, why: &'static str, context: &mut Context<'_>) {
    let kind = if claim.is_arp { Kind::ArpSpoof } else { Kind::NeighbourSpoof };
    if !context.config.is_on(kind) {
        return;
    }
    let is_gateway = context.config.spoofs.gateways.contains(&claim.address);
    let subject = subject(claim);
    context.reporter.report(kind, subject, Count::ONE, context.now_us, || {
        vec![
            ("address", Value::Address(claim.address)),
            ("mac", Value::Mac(claim.mac)),
            ("owner_mac", Value::Mac(owner)),
            ("gateway", Value::Number(is_gateway.into())),
            ("reason", Value::text(why.as_bytes())),
        ]
    });
}

fn report_gratuitous(claim: &Claim, count: u32, context: &mut Context<'_>) {
    let is_virtual = context.config.spoofs.virtual_addresses.contains(&claim.address);
    if context.config.is_on(Kind::ArpGratuitous) && !is_virtual {
        context.reporter.report(Kind::ArpGratuitous, subject(claim), Count::ONE, context.now_us, || {
            vec![
                ("address", Value::Address(claim.address)),
                ("mac", Value::Mac(claim.mac)),
                ("replies", Value::Number(count.into())),
            ]
        });
    }
}

fn subject(claim: &Claim) -> Subject {
    let protocol = if claim.is_arp { 0 } else { ip::ICMPV6 };
    Subject { source: claim.address, protocol, ..Subject::default() }
}

/// The same address in another VLAN is another's.
fn key(layers: &Layers<'_>, address: u128) -> [u64; 3] {
    let [a, b] = words(address);
    [a, b, layers.vlans().iter().fold(0, |sum, vlan| sum << 12 | u64::from(*vlan))]
}

/// Find the option with a link-layer address (RFC 4861 section 4.6.1).
pub fn link_address(mut reader: Reader<'_>, wanted: u8) -> Option<u64> {
    while let (Some(kind), Some(length)) = (reader.u8(), reader.u8()) {
        // an option's length counts units of 8 bytes; 0 would be no progress
        let body = reader.take((usize::from(length).checked_mul(8)?).checked_sub(2)?)?;
        if kind == wanted {
            return mac(&mut Reader::new(body));
        }
    }
    None
}
