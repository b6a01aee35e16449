//! What comes out of the sensor, before it is text.

use crate::decode::{Address, Direction, Malformed, protocol};

/// What raised an alert.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Detector {
    SynScan,
    XmasScan,
    NullScan,
    FinScan,
    SynFinScan,
    SynFlood,
    SynFloodManyPorts,
    UdpFlood,
    IcmpFlood,
}

impl Detector {
    /// Return the name in `metadata.detector`.
    pub fn name(self) -> &'static str {
        match self {
            Detector::SynScan => "scan.syn",
            Detector::XmasScan => "scan.xmas",
            Detector::NullScan => "scan.null",
            Detector::FinScan => "scan.fin",
            Detector::SynFinScan => "scan.synfin",
            Detector::SynFlood => "flood.syn",
            Detector::SynFloodManyPorts => "flood.syn-many-ports",
            Detector::UdpFlood => "flood.udp",
            Detector::IcmpFlood => "flood.icmp",
        }
    }

    /// Return whether it is about a source, and not about a destination.
    pub fn is_scan(self) -> bool {
        matches!(
            self,
            Detector::SynScan | Detector::XmasScan | Detector::NullScan | Detector::FinScan | Detector::SynFinScan
        )
    }

    /// Return the signature id: ours begin at 2,900,001, outside the ranges that public rule sets use.
    pub fn signature_id(self) -> u32 {
        2_900_001 + self as u32
    }

    /// Return the signature's text.
    pub fn signature(self) -> &'static str {
        match self {
            Detector::SynScan => "TIDEGATE SCAN many ports probed by one source",
            Detector::XmasScan => "TIDEGATE SCAN Xmas probes (FIN PSH URG)",
            Detector::NullScan => "TIDEGATE SCAN Null probes (no flags)",
            Detector::FinScan => "TIDEGATE SCAN FIN probes (FIN without ACK)",
            Detector::SynFinScan => "TIDEGATE SCAN probes with SYN and FIN or RST",
            Detector::SynFlood => "TIDEGATE FLOOD SYN flood of a service",
            Detector::SynFloodManyPorts => "TIDEGATE FLOOD SYN flood over many ports of a host",
            Detector::UdpFlood => "TIDEGATE FLOOD UDP flood of a host",
            Detector::IcmpFlood => "TIDEGATE FLOOD ICMP echo flood of a host",
        }
    }

    /// Return the name of `metadata`'s field that holds the alert's measure.
    pub(crate) fn measure(self) -> &'static str {
        match self {
            Detector::SynScan => "distinct_ports",
            _ if self.is_scan() => "window_packets",
            _ => "rate_per_s",
        }
    }

    /// Return the protocol's number, where the destination's address family does not decide it.
    pub(crate) fn protocol(self, address: Address) -> u8 {
        match self {
            Detector::UdpFlood => protocol::UDP,
            Detector::IcmpFlood if address.is_v4() => protocol::ICMP,
            Detector::IcmpFlood => protocol::ICMPV6,
            _ => protocol::TCP,
        }
    }
}

/// Where an alert is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Phase {
    Start,
    Update,
    End,
}

/// Something that looks like an attack.
#[derive(Clone, Copy, Debug)]
pub struct Alert {
    /// Packet time.
    pub time_us: u64,
    /// Of the latest probe's flow; 0 where no flow stands for the alert.
    pub flow_id: u64,
    /// What raised it.
    pub detector: Detector,
    /// Beginning, continuation or end.
    pub phase: Phase,
    /// Who says to have sent it; `None` where no single source sent most of a flood.
    pub source: Option<Address>,
    /// The victim, or the victim of a scan's latest probe.
    pub destination: Address,
    /// Of the latest probe; 0 for floods.
    pub source_port: u16,
    /// Of the latest probe, or of the flooded service; 0 where there is none.
    pub destination_port: u16,
    /// Which way the packets went.
    pub direction: Direction,
    /// Packets since the alert began.
    pub count: u64,
    /// SYN scans: distinct ports in the window; other scans: packets in it. Floods: packets a second.
    pub measure: u32,
    /// The detector's window.
    pub window_s: u32,
    /// Floods: how many of a hundred packets the named source sent, at least.
    pub share_percent: u8,
    /// Seconds since the source last exchanged data over a handshake it completed: a genuine peer.
    pub peer_age_s: Option<u32>,
}

/// How far a flow came; the numbers are those of the flow table's lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum FlowState {
    New = 0,
    Established = 1,
    Closed = 2,
}

/// Why a flow ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum FlowEnd {
    Reused,
    TimedOut,
    Evicted,
    Shutdown,
}

/// A flow that is over.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct FlowRecord {
    pub time_us: u64,
    pub flow_id: u64,
    pub client: Address,
    pub server: Address,
    pub client_port: u16,
    pub server_port: u16,
    pub protocol: u8,
    pub icmp: [u8; 2],
    pub first_us: u64,
    pub last_us: u64,
    pub packets: [u32; 2],
    pub bytes: [u64; 2],
    pub tcp_flags: [u8; 2],
    pub is_answered: bool,
    pub state: FlowState,
    pub end: FlowEnd,
}

/// Malformed packets of one kind, since the last report of that kind.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Anomaly {
    pub time_us: u64,
    pub reason: Malformed,
    pub count: u64,
}

/// One line of EVE output.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Event {
    Alert(Alert),
    Flow(FlowRecord),
    Anomaly(Anomaly),
}
