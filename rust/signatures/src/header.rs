//! The rule header: protocol, addresses, ports, direction.

use std::sync::Arc;

use protocols::Way;

use crate::address::AddressSet;
use crate::facts::{FlowFacts, PacketFacts};
use crate::parse::Rule;
use crate::port::PortSet;
use crate::variables::Pool;

/// IANA numbers.
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
/// Ethernet's type of ARP.
const ARP: [u8; 2] = [8, 6];

/// What carries what the rule is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Carrier {
    /// Any IP packet.
    #[default]
    Ip,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// TCP.
    Tcp,
    /// TCP, only packets (`tcp-pkt`).
    TcpPacket,
    /// TCP, only reassembled streams (`tcp-stream`).
    TcpStream,
    /// UDP.
    Udp,
    /// ICMP for IPv4 or IPv6.
    Icmp,
    /// ICMP for IPv4.
    Icmpv4,
    /// ICMP for IPv6.
    Icmpv6,
    /// SCTP.
    Sctp,
    /// Whatever was captured, malformed packets included (`pkthdr`).
    Anything,
    /// Ethernet frames.
    Ethernet,
    /// ARP.
    Arp,
}

impl Carrier {
    fn parse(name: &str) -> Option<Carrier> {
        Some(match name {
            "ip" | "ip4ip6" => Carrier::Ip,
            "ipv4" | "ip4" => Carrier::Ipv4,
            "ipv6" | "ip6" => Carrier::Ipv6,
            "tcp" => Carrier::Tcp,
            "tcp-pkt" => Carrier::TcpPacket,
            "tcp-stream" => Carrier::TcpStream,
            "udp" => Carrier::Udp,
            "icmp" => Carrier::Icmp,
            "icmpv4" => Carrier::Icmpv4,
            "icmpv6" => Carrier::Icmpv6,
            "sctp" => Carrier::Sctp,
            "pkthdr" => Carrier::Anything,
            "ether" => Carrier::Ethernet,
            "arp" => Carrier::Arp,
            _ => return None,
        })
    }

    /// Return whether it is one of TCP's.
    pub fn is_tcp(self) -> bool {
        matches!(self, Carrier::Tcp | Carrier::TcpPacket | Carrier::TcpStream)
    }

    fn matches(self, packet: &PacketFacts<'_>) -> bool {
        let is = |protocol: u8| packet.protocol == protocol && !packet.network.is_empty();
        match self {
            Carrier::Ip => packet.is_v4() || packet.is_v6(),
            Carrier::Ipv4 => packet.is_v4(),
            Carrier::Ipv6 => packet.is_v6(),
            Carrier::Tcp | Carrier::TcpPacket | Carrier::TcpStream => is(TCP),
            Carrier::Udp => is(UDP),
            Carrier::Icmp => is(ICMP) || is(ICMPV6),
            Carrier::Icmpv4 => is(ICMP),
            Carrier::Icmpv6 => is(ICMPV6),
            Carrier::Sctp => is(SCTP),
            Carrier::Anything => true,
            Carrier::Ethernet => !packet.link.is_empty(),
            Carrier::Arp => packet.link.ends_with(&ARP),
        }
    }
}

/// The arrow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direction {
    /// `->`
    #[default]
    Forward,
    /// `<>`: packets either way between the two.
    Either,
    /// `=>`: one transaction, whose request goes from source to destination; conditions on both of its ways.
    Transaction,
}

/// What stands before the parenthesis.
#[derive(Debug, Default)]
pub struct Header {
    source: Option<Arc<AddressSet>>,
    destination: Option<Arc<AddressSet>>,
    source_ports: Option<Arc<PortSet>>,
    destination_ports: Option<Arc<PortSet>>,
    carrier: Carrier,
    direction: Direction,
    is_flow_start: bool,
}

/// What the protocol field names besides the carrier.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Named<'a> {
    /// An application protocol.
    pub app: Option<&'a str>,
    /// What follows a colon, for an application protocol.
    pub hook: Option<&'a str>,
}

impl Header {
    /// Read the header. The protocol's name, where it is no carrier, and its hook come back for the loader to look up.
    pub(crate) fn parse<'a>(rule: &Rule<'a>, pool: &mut Pool<'_>) -> Result<(Header, Named<'a>), String> {
        let (name, hook) = match rule.protocol.split_once(':') {
            Some((name, hook)) => (name, Some(hook)),
            None => (rule.protocol, None),
        };
        let direction = match rule.direction {
            "->" => Direction::Forward,
            "<>" => Direction::Either,
            "=>" => Direction::Transaction,
            other => return Err(format!("{} is no direction", crate::parse::shortened(other))),
        };
        let carrier = Carrier::parse(name);
        let is_flow_start = match (carrier, hook) {
            (Some(_), Some("flow_start")) => true,
            (Some(_), Some("all")) | (None, _) | (_, None) => false,
            (Some(_), Some(hook)) => return Err(format!("{name} has no hook {}", crate::parse::shortened(hook))),
        };
        let header = Header {
            source: pool.addresses(rule.source)?,
            destination: pool.addresses(rule.destination)?,
            source_ports: pool.ports(rule.source_ports)?,
            destination_ports: pool.ports(rule.destination_ports)?,
            carrier: carrier.unwrap_or_default(),
            direction,
            is_flow_start,
        };
        let named = match carrier {
            Some(_) => Named::default(),
            None => Named { app: Some(name), hook },
        };
        Ok((header, named))
    }

    /// Return whether the packet is between the rule's endpoints and of its transport protocol.
    pub fn matches(&self, packet: &PacketFacts<'_>, flow: Option<&FlowFacts>) -> bool {
        if !self.carrier.matches(packet) || (self.is_flow_start && !flow.is_some_and(|flow| flow.is_first_packet)) {
            return false;
        }
        match self.direction {
            Direction::Forward => self.between(packet, false),
            Direction::Either => self.between(packet, false) || self.between(packet, true),
            Direction::Transaction => self.between(packet, flow.is_some_and(|flow| flow.way == Way::ToClient)),
        }
    }

    fn between(&self, packet: &PacketFacts<'_>, is_reversed: bool) -> bool {
        let (mut source, mut destination) =
            ((packet.source, packet.source_port), (packet.destination, packet.destination_port));
        if is_reversed {
            std::mem::swap(&mut source, &mut destination);
        }
        let has_ports = matches!(packet.protocol, TCP | UDP | SCTP) && !packet.is_fragment;
        let is_at = |addresses: &Option<Arc<AddressSet>>, ports: &Option<Arc<PortSet>>, end: (u128, u16)| {
            ports.as_ref().is_none_or(|set| has_ports && set.contains(end.1))
                && addresses.as_ref().is_none_or(|set| set.contains(end.0))
        };
        is_at(&self.source, &self.source_ports, source)
            && is_at(&self.destination, &self.destination_ports, destination)
    }

    /// What carries it.
    pub fn carrier(&self) -> Carrier {
        self.carrier
    }

    /// The arrow. Rules with `=>` look at both ways of one transaction.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether only a flow's first packet matches (`tcp:flow_start`).
    pub fn is_flow_start(&self) -> bool {
        self.is_flow_start
    }

    /// Source ports as ranges with both ends; `None` is any. For grouping rules by port.
    pub fn source_ports(&self) -> Option<&[(u16, u16)]> {
        self.source_ports.as_deref().map(|set| set.as_slice())
    }

    /// Likewise, of the destination.
    pub fn destination_ports(&self) -> Option<&[(u16, u16)]> {
        self.destination_ports.as_deref().map(|set| set.as_slice())
    }

    /// Source addresses as ranges with both ends; `None` is any.
    pub fn sources(&self) -> Option<&[(u128, u128)]> {
        self.source.as_deref().map(|set| set.as_slice())
    }

    /// Likewise, of the destination.
    pub fn destinations(&self) -> Option<&[(u128, u128)]> {
        self.destination.as_deref().map(|set| set.as_slice())
    }

    pub(crate) fn source_set(&self) -> Option<&AddressSet> {
        self.source.as_deref()
    }

    pub(crate) fn destination_set(&self) -> Option<&AddressSet> {
        self.destination.as_deref()
    }
}
