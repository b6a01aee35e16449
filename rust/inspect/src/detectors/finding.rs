//! What a detector says, and how it stands in EVE.

use protocols::Json;
use sensor::{Address, Timestamp, Tuple, community_id};

use crate::eve::{AddressText, protocol_name};
use crate::layers::ip;

/// A value of evidence is cut to this many bytes: names in DNS have at most 253 (RFC 1035 section 2.3.4).
const MOST_TEXT: usize = 256;

/// Everything that a kind of finding is known by.
pub struct KindInfo {
    /// The name in `metadata.detector` and in settings.
    pub name: &'static str,
    /// EVE's `alert.signature`.
    pub message: &'static str,
    /// EVE's `alert.category`.
    pub category: &'static str,
    /// EVE's `alert.severity`.
    pub severity: u8,
    /// An alert ends when there was nothing new for this long.
    pub quiet_s: u32,
}

const SCAN: &str = "Detection of a Network Scan";
const DENIAL: &str = "Detection of a Denial of Service Attack";
const BAD: &str = "Potentially Bad Traffic";
const MISC: &str = "Misc Attack";
const LOGIN: &str = "Attempted User Privilege Gain";
const TROJAN: &str = "Malware Command and Control Activity Detected";
const POLICY: &str = "Potential Corporate Privacy Violation";
/// What is outside the baseline is told once an hour for each pair.
const HOUR_S: u32 = 3600;

macro_rules! kinds {
    ($($kind:ident: $name:literal, $message:literal, $category:expr, $severity:literal, $quiet_s:expr;)*) => {
        /// A kind of finding. The order gives the signature ids: append, never insert.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[allow(missing_docs)]
        pub enum Kind { $($kind,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind,)*];

            /// What it is known by.
            pub fn info(self) -> &'static KindInfo {
                match self {
                    $(Kind::$kind => &KindInfo {
                        name: $name,
                        message: concat!("TIDEGATE ", $message),
                        category: $category,
                        severity: $severity,
                        quiet_s: $quiet_s,
                    },)*
                }
            }
        }
    };
}
kinds! {
    ConnectScan: "scan.connect", "SCAN ports of one host refuse, ignore or get no data", SCAN, 3, 10;
    SlowScan: "scan.slow", "SCAN many ports and hosts probed over hours", SCAN, 3, 1800;
    TcpSweep: "sweep.tcp", "SWEEP one TCP port of many hosts probed", SCAN, 3, 10;
    UdpSweep: "sweep.udp", "SWEEP one UDP port of many hosts probed", SCAN, 3, 10;
    IcmpSweep: "sweep.icmp", "SWEEP many hosts pinged that do not answer", SCAN, 3, 10;
    ArpSweep: "sweep.arp", "SWEEP many addresses of the link asked for that nobody has", SCAN, 3, 10;
    UdpScan: "scan.udp", "SCAN many UDP ports of one host probed", SCAN, 3, 10;
    AckScan: "scan.ack", "SCAN ACK probes of many ports of one host", SCAN, 3, 10;
    AckFlood: "flood.ack", "FLOOD ACK segments of no connection", DENIAL, 2, 5;
    ArpSpoof: "spoof.arp", "SPOOF an IPv4 address moved to another station while its owner is alive", MISC, 1, 60;
    ArpGratuitous: "spoof.arp-gratuitous", "SPOOF ARP replies that nobody asked for, at a rate", BAD, 2, 60;
    NeighbourSpoof: "spoof.nd", "SPOOF an IPv6 address moved to another station while its owner is alive", MISC, 1, 60;
    RogueDhcp: "rogue.dhcp", "ROGUE a DHCP server that is not known", MISC, 1, 300;
    RogueRouter: "rogue.router", "ROGUE router advertisements of a router that is not known", MISC, 1, 300;
    DnsTunnel: "dns.tunnel", "TUNNEL data in DNS names or answers", TROJAN, 1, 120;
    Beacon: "beacon", "BEACON connections to one destination at regular intervals", TROJAN, 2, 3600;
    BruteForce: "login.brute-force", "LOGIN many short connections to an authentication service", LOGIN, 1, 60;
    Slowloris: "flood.slow-http", "FLOOD many open connections to a web server without a request", DENIAL, 2, 30;
    NewService: "baseline.new-service", "BASELINE a service that was not there", POLICY, 3, HOUR_S;
    NewPeer: "baseline.new-peer", "BASELINE a peer that did not use this service", POLICY, 3, HOUR_S;
    IcsWriteRate: "ics.write-rate", "ICS far more writes than before", MISC, 2, 60;
    IcsNewFunction: "ics.new-function", "ICS a function that this client did not use before", BAD, 2, 600;
}

impl Kind {
    /// Return the signature id: behind those of the sensor's own scans and floods.
    pub fn signature_id(self) -> u32 {
        2_900_020 + self as u32
    }

    /// Return whether the one who is named first is the attacker: a tuple of source and destination then names a flow.
    fn has_flow(self) -> bool {
        !matches!(
            self,
            Kind::ArpSpoof | Kind::ArpGratuitous | Kind::NeighbourSpoof | Kind::RogueRouter | Kind::ArpSweep
        )
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

impl Phase {
    /// Return the name in `metadata.state`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Start => "start",
            Phase::Update => "update",
            Phase::End => "end",
        }
    }
}

/// A value of evidence.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Value {
    Number(u64),
    Text(Box<str>),
    Address(u128),
    Mac(u64),
}

impl Value {
    /// Text from the wire: cut, and replaced where it is no UTF-8.
    pub fn text(bytes: &[u8]) -> Value {
        let cut = bytes.get(..MOST_TEXT).unwrap_or(bytes);
        Value::Text(String::from_utf8_lossy(cut).into())
    }
}

/// What a finding rests on.
pub type Evidence = Vec<(&'static str, Value)>;

/// Who did what to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Subject {
    /// The attacker, as far as can be told; 0: no single one.
    pub source: u128,
    /// The victim; 0: no single one.
    pub destination: u128,
    /// 0: none in particular.
    pub source_port: u16,
    /// 0: none in particular.
    pub destination_port: u16,
    /// IANA's number; 0: no IP.
    pub protocol: u8,
    /// Of the flow at hand; 0: none.
    pub flow_id: u64,
}

/// Something that looks like an attack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// Packet time.
    pub time_us: u64,
    /// What raised it.
    pub kind: Kind,
    /// Beginning, continuation or end.
    pub phase: Phase,
    /// Who and whom.
    pub subject: Subject,
    /// How often it was seen since it began.
    pub count: u64,
    /// Names and values under `metadata`.
    pub evidence: Evidence,
}

/// Return a finding as one line of EVE, without its end.
pub fn encode(finding: &Finding) -> String {
    let (info, subject) = (finding.kind.info(), &finding.subject);
    let mut line = String::with_capacity(512);
    line.push('{');
    let mut json = Json::inside(&mut line, false);
    json.plain("timestamp", Timestamp(finding.time_us));
    if subject.flow_id != 0 {
        json.number("flow_id", subject.flow_id);
    }
    json.text("event_type", "alert");
    write_ends(&mut json, finding.kind, subject);
    json.open("alert");
    json.text("action", "allowed");
    json.number("gid", 1);
    json.number("signature_id", finding.kind.signature_id().into());
    json.number("rev", 1);
    json.text("signature", info.message);
    json.text("category", info.category);
    json.number("severity", info.severity.into());
    json.close();
    json.open("metadata");
    json.text("detector", info.name);
    json.text("state", finding.phase.name());
    json.number("count", finding.count);
    for (name, value) in &finding.evidence {
        write_value(&mut json, name, value);
    }
    json.close();
    line.push('}');
    line
}

fn write_ends(json: &mut Json<'_>, kind: Kind, subject: &Subject) {
    for (address, port, names) in [
        (subject.source, subject.source_port, ["src_ip", "src_port"]),
        (subject.destination, subject.destination_port, ["dest_ip", "dest_port"]),
    ] {
        if address != 0 {
            json.plain(names[0], AddressText(address, true));
        }
        if port != 0 {
            json.number(names[1], port.into());
        }
    }
    if subject.protocol == 0 {
        return json.text("proto", "ARP");
    }
    json.plain("proto", protocol_name(subject.protocol));
    let has_ports = matches!(subject.protocol, ip::TCP | ip::UDP) && subject.source != 0 && subject.destination != 0;
    if has_ports && subject.source_port != 0 && subject.destination_port != 0 && kind.has_flow() {
        let tuple = Tuple {
            source: Address(subject.source),
            destination: Address(subject.destination),
            source_port: subject.source_port,
            destination_port: subject.destination_port,
            protocol: subject.protocol,
            icmp: [0, 0],
        };
        json.plain("community_id", community_id(&tuple));
    }
}

fn write_value(json: &mut Json<'_>, name: &str, value: &Value) {
    match value {
        Value::Number(number) => json.number(name, *number),
        Value::Text(text) => json.text(name, text.as_bytes()),
        Value::Address(address) => json.plain(name, AddressText(*address, true)),
        Value::Mac(mac) => json.plain(name, MacText(*mac)),
    }
}

/// A hardware address in the usual writing.
pub struct MacText(pub u64);

impl std::fmt::Display for MacText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [_, _, first, rest @ ..] = self.0.to_be_bytes();
        write!(formatter, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(formatter, ":{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_what_eve_has_and_escapes_what_came_from_the_wire() {
        let finding = Finding {
            time_us: 1_000_001,
            kind: Kind::DnsTunnel,
            phase: Phase::Start,
            subject: Subject {
                source: 0xffff_c000_0201,
                destination: 0xffff_c000_0202,
                source_port: 1025,
                destination_port: 53,
                protocol: 17,
                flow_id: 7,
            },
            count: 3,
            evidence: vec![("domain", Value::text(b"a\"\n\xff")), ("mac", Value::Mac(0x0102_0304_0506))],
        };
        let line = encode(&finding);
        assert!(line.starts_with("{\"timestamp\":\"1970-01-01T00:00:01.000001+0000\",\"flow_id\":7,"), "{line}");
        assert!(line.contains("\"src_ip\":\"192.0.2.1\",\"src_port\":1025,\"dest_ip\":\"192.0.2.2\""), "{line}");
        assert!(line.contains("\"signature_id\":2900034,") && line.contains("\"community_id\":\"1:"), "{line}");
        assert!(line.contains("\"domain\":\"a\\\"\\n\u{fffd}\",\"mac\":\"01:02:03:04:05:06\"}}"), "{line}");
    }

    #[test]
    fn ids_and_names_are_unique() {
        let mut names: Vec<_> = Kind::ALL.iter().map(|kind| kind.info().name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Kind::ALL.len());
        assert_eq!(Kind::ALL.first().map(|kind| kind.signature_id()), Some(2_900_020));
    }
}
