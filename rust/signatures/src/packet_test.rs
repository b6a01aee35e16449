//! Keywords about one packet: `dsize`, `flags`, `ttl`, `itype`, `decode-event` …

mod parse;

use protocols::{Reader, Way};

use crate::facts::{FlowFacts, PacketFacts};
use crate::header::{ICMP, ICMPV6, TCP};
use crate::number::{Choice, Comparison};

/// How bits are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bits {
    /// These and no others.
    Exactly,
    /// These, and maybe others (`+`).
    All,
    /// At least one of these (`*`).
    Any,
    /// Not all of these (`!`).
    Not,
}

impl Bits {
    fn matches(self, value: u16, bits: u16) -> bool {
        match self {
            Bits::Exactly => value == bits,
            Bits::All => value & bits == bits,
            Bits::Any => value & bits != 0,
            Bits::Not => value & bits != bits,
        }
    }
}

/// Whose packets or bytes of a flow are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Side {
    ToServer,
    ToClient,
    /// Each of the two.
    Both,
    /// One of the two.
    Either,
}

impl Side {
    fn matches(self, counts: [u64; 2], range: Comparison) -> bool {
        let [to_server, to_client] = counts.map(|count| range.matches(count));
        match self {
            Side::ToServer => to_server,
            Side::ToClient => to_client,
            Side::Both => to_server && to_client,
            Side::Either => to_server || to_client,
        }
    }
}

/// What `app-layer-protocol` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppTest {
    /// Indices into `protocols::PROTOCOLS`; a flow that is one of these is meant.
    pub protocols: Box<[u8]>,
    /// What is asked.
    pub state: AppState,
    /// The opposite is wanted.
    pub is_negated: bool,
    /// Which of a flow's protocols.
    pub view: AppView,
}

/// What is asked of a flow's protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppState {
    /// That it is one of the list.
    Listed,
    /// That nobody found out (`failed`).
    Failed,
    /// That it is not known yet (`unknown`).
    Unknown,
}

/// Which of a flow's protocols is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppView {
    /// What the packet's own way looks like.
    OfPacket,
    /// What that way looks like.
    OfWay(Way),
    /// Both ways.
    Both,
    /// One of them.
    Either,
    /// What the flow counts as in the end (`final`), or counted as first (`original`; a later change is not told apart).
    OfFlow,
}

impl AppTest {
    fn matches(&self, flow: &FlowFacts) -> bool {
        let [to_server, to_client] = flow.apps;
        match self.view {
            AppView::OfFlow => self.one(flow.app, flow),
            AppView::OfPacket => self.one(if flow.way == Way::ToServer { to_server } else { to_client }, flow),
            AppView::OfWay(Way::ToServer) => self.one(to_server, flow),
            AppView::OfWay(Way::ToClient) => self.one(to_client, flow),
            AppView::Both => self.one(to_server, flow) && self.one(to_client, flow),
            AppView::Either => self.one(to_server, flow) || self.one(to_client, flow),
        }
    }

    fn one(&self, app: Option<u8>, flow: &FlowFacts) -> bool {
        let is_so = match (self.state, app) {
            (AppState::Unknown, None) => !flow.has_app_failed,
            (AppState::Unknown, Some(_)) => false,
            (AppState::Failed, app) => app.is_none() && flow.has_app_failed,
            (AppState::Listed, Some(app)) => self.protocols.contains(&app),
            (AppState::Listed, None) if flow.has_app_failed => false,
            (AppState::Listed, None) => return false, // not yet known: neither it nor its opposite
        };
        is_so != self.is_negated
    }
}

/// One condition on a packet. Fields that a packet does not have match nothing, except where negation says so.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum PacketTest {
    PayloadSize(Comparison),
    /// Bits wanted, bits looked at, how.
    TcpFlags(u8, u8, Bits),
    Sequence(u32),
    Acknowledgement(u32),
    Window(Comparison),
    SegmentSize(Comparison),
    WindowScale(Comparison),
    TimeToLive(Comparison),
    TypeOfService(Comparison),
    Ipv4Id(Comparison),
    /// The number of an IPv4 option; `None` is any.
    IpOption(Option<u8>),
    SameAddress,
    IpProtocol(Comparison),
    FragmentBits(u16, Bits),
    FragmentOffset(Comparison),
    IcmpType(Comparison),
    IcmpCode(Comparison),
    IcmpId(u16),
    IcmpSequence(u16),
    Icmpv6Mtu(Comparison),
    VlanId(Comparison, Choice),
    VlanLayers(Comparison),
    /// A name out of [`PacketFacts::events`].
    Event(Box<str>),
    /// In seconds.
    FlowAge(Comparison),
    FlowPackets(Side, Comparison),
    FlowBytes(Side, Comparison),
    StreamSize(Side, Comparison),
    AppProtocol(AppTest),
    /// The rule's header names application protocols: the flow is one of these, whatever carries it.
    AppIs(Box<[u8]>),
}

impl PacketTest {
    /// Return whether the packet meets it.
    pub fn matches(&self, packet: &PacketFacts<'_>, flow: Option<&FlowFacts>) -> bool {
        match self {
            PacketTest::PayloadSize(range) => range.matches(packet.payload.len() as u64),
            PacketTest::SameAddress => packet.source == packet.destination,
            PacketTest::IpProtocol(range) => range.matches(u64::from(packet.protocol)),
            PacketTest::VlanId(range, choice) => choice.matches(*range, packet.vlan.iter().map(|id| u64::from(*id))),
            PacketTest::VlanLayers(range) => range.matches(packet.vlan.len() as u64),
            PacketTest::Event(name) => packet.events.contains(&&**name),
            _ => self.tcp(packet) || self.ip(packet) || self.icmp(packet) || flow.is_some_and(|flow| self.flow(flow)),
        }
    }

    /// Whether it is `app-layer-protocol`.
    pub fn is_about_app(&self) -> bool {
        matches!(self, PacketTest::AppProtocol(_))
    }

    /// Whether it stands for a header such as `alert http`: such a rule's action is about the flow.
    pub fn is_header_app(&self) -> bool {
        matches!(self, PacketTest::AppIs(_))
    }

    /// Lower is cheaper, or rules out more.
    pub(crate) fn cost(&self) -> u8 {
        match self {
            PacketTest::PayloadSize(_) | PacketTest::IpProtocol(_) | PacketTest::AppIs(_) => 0,
            PacketTest::IpOption(_) | PacketTest::SegmentSize(_) | PacketTest::WindowScale(_) => 2,
            PacketTest::Event(_) => 2,
            _ => 1,
        }
    }

    fn flow(&self, flow: &FlowFacts) -> bool {
        match self {
            PacketTest::FlowAge(range) => range.matches(flow.age_us / 1_000_000),
            PacketTest::FlowPackets(side, range) => side.matches(flow.packets, *range),
            PacketTest::FlowBytes(side, range) => side.matches(flow.bytes, *range),
            PacketTest::StreamSize(side, range) => side.matches(flow.stream_bytes, *range),
            PacketTest::AppProtocol(test) => test.matches(flow),
            PacketTest::AppIs(protocols) => flow.app.is_some_and(|app| protocols.contains(&app)),
            _ => false,
        }
    }

    fn tcp(&self, packet: &PacketFacts<'_>) -> bool {
        if packet.protocol != TCP {
            return false;
        }
        let field = |at: usize| Reader::new(packet.transport.get(at..).unwrap_or_default());
        match self {
            PacketTest::TcpFlags(wanted, looked_at, how) => {
                let Some(flags) = packet.transport.get(13) else { return false };
                how.matches(u16::from(flags & looked_at), u16::from(*wanted))
            }
            PacketTest::Sequence(wanted) => field(4).be32() == Some(*wanted),
            PacketTest::Acknowledgement(wanted) => field(8).be32() == Some(*wanted),
            PacketTest::Window(range) => field(14).be16().is_some_and(|value| range.matches(u64::from(value))),
            PacketTest::SegmentSize(range) => tcp_option(packet.transport, 2).is_some_and(|value| range.matches(value)),
            PacketTest::WindowScale(range) => tcp_option(packet.transport, 3).is_some_and(|value| range.matches(value)),
            _ => false,
        }
    }

    fn ip(&self, packet: &PacketFacts<'_>) -> bool {
        let (is_v4, is_v6) = (packet.is_v4(), packet.is_v6());
        let byte = |at: usize| packet.network.get(at).copied().map(u64::from);
        match self {
            PacketTest::TimeToLive(range) => {
                let value = if is_v4 {
                    byte(8)
                } else if is_v6 {
                    byte(7)
                } else {
                    None
                };
                value.is_some_and(|value| range.matches(value))
            }
            PacketTest::TypeOfService(range) => {
                let class = || Some((byte(0)? & 15) << 4 | byte(1)? >> 4);
                let value = if is_v4 {
                    byte(1)
                } else if is_v6 {
                    class()
                } else {
                    None
                };
                value.is_some_and(|value| range.matches(value))
            }
            PacketTest::Ipv4Id(range) => is_v4 && pair(packet.network, 4).is_some_and(|id| range.matches(id.into())),
            PacketTest::IpOption(wanted) => is_v4 && has_ip_option(packet, *wanted),
            PacketTest::FragmentBits(bits, how) => {
                is_v4 && pair(packet.network, 6).is_some_and(|field| how.matches(field & 0xe000, *bits))
            }
            PacketTest::FragmentOffset(range) => {
                let offset =
                    if is_v4 { pair(packet.network, 6).map(|field| field & 0x1fff) } else { v6_offset(packet) };
                offset.is_some_and(|offset| range.matches(u64::from(offset)))
            }
            _ => false,
        }
    }

    fn icmp(&self, packet: &PacketFacts<'_>) -> bool {
        let (is_v4, is_v6) = (packet.protocol == ICMP && packet.is_v4(), packet.protocol == ICMPV6 && packet.is_v6());
        if !is_v4 && !is_v6 {
            return false;
        }
        let Some(kind) = packet.transport.first().copied() else { return false };
        // RFC 792: echo, timestamp, information, address mask and their answers carry an id and a number; RFC 4443: echo
        let has_id = if is_v4 { matches!(kind, 0 | 8 | 13..=18) } else { matches!(kind, 128 | 129) };
        match self {
            PacketTest::IcmpType(range) => range.matches(u64::from(kind)),
            PacketTest::IcmpCode(range) => packet.transport.get(1).is_some_and(|code| range.matches(u64::from(*code))),
            PacketTest::IcmpId(wanted) => has_id && pair(packet.transport, 4) == Some(*wanted),
            PacketTest::IcmpSequence(wanted) => has_id && pair(packet.transport, 6) == Some(*wanted),
            PacketTest::Icmpv6Mtu(range) => {
                let mtu = Reader::new(packet.transport.get(4..).unwrap_or_default()).be32();
                is_v6 && kind == 2 && mtu.is_some_and(|mtu| range.matches(u64::from(mtu)))
            }
            _ => false,
        }
    }
}

fn pair(data: &[u8], at: usize) -> Option<u16> {
    Reader::new(data.get(at..)?).be16()
}

/// The fragment header's offset, where it is the first extension header.
fn v6_offset(packet: &PacketFacts<'_>) -> Option<u16> {
    let is_fragment = packet.is_v6() && packet.network.get(6) == Some(&44);
    if is_fragment { pair(packet.network, 42).map(|field| field >> 3) } else { None }
}

/// The value of a TCP option. The header holds at most 40 bytes of options.
fn tcp_option(transport: &[u8], wanted: u8) -> Option<u64> {
    let length = usize::from(transport.get(12)? >> 4) * 4;
    let mut options = transport.get(20..length.min(transport.len()))?;
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            0 => return None,
            1 => options = rest,
            _ => {
                let size = usize::from(*rest.first()?);
                let value = options.get(2..size)?;
                if kind == wanted {
                    return value.iter().take(8).try_fold(0u64, |sum, byte| Some(sum << 8 | u64::from(*byte)));
                }
                options = options.get(size..)?;
            }
        }
    }
    None
}

/// Whether the IPv4 header has an option. It holds at most 40 bytes of them.
fn has_ip_option(packet: &PacketFacts<'_>, wanted: Option<u8>) -> bool {
    let length = usize::from(packet.network.first().copied().unwrap_or(0) & 15) * 4;
    let mut options = packet.network.get(20..length.min(packet.network.len())).unwrap_or_default();
    while let Some((&kind, rest)) = options.split_first() {
        if wanted.is_none_or(|wanted| wanted == kind) {
            return true;
        }
        options = match kind {
            0 => return false,
            1 => rest,
            _ => match rest.first().and_then(|size| options.get(usize::from(*size).max(2)..)) {
                Some(rest) => rest,
                None => return false,
            },
        };
    }
    false
}

#[cfg(test)]
mod tests;
