//! EVE JSON: alerts, flows, transactions, files, drops, anomalies, statistics. docs/formats/eve.md has every field.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use protocols::{Body, BodyState, Json, PROTOCOLS, Way};
use sensor::{Link, Timestamp};

use crate::config::OutputConfig;
use crate::flow::{Ending, Flow, FlowAction};
use crate::layers::{Layers, ip};

/// Where a packet comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Origin {
    Wire,
    Defrag,
    Gre,
    Ipv4Tunnel,
    Ipv6Tunnel,
    Teredo,
    Vxlan,
    Geneve,
    FlowEnd,
}

impl Origin {
    fn name(self) -> &'static str {
        match self {
            Origin::Wire => "wire/pcap",
            Origin::Defrag => "defrag",
            Origin::Gre => "gre tunnel",
            Origin::Ipv4Tunnel => "ipv4 tunnel",
            Origin::Ipv6Tunnel => "ipv6 tunnel",
            Origin::Teredo => "teredo tunnel",
            Origin::Vxlan => "vxlan encapsulation",
            Origin::Geneve => "geneve encapsulation",
            Origin::FlowEnd => "stream (flow timeout)",
        }
    }
}

/// A packet as the output describes it.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Scene<'a> {
    pub time_us: u64,
    pub number: u64,
    pub layers: &'a Layers<'a>,
    pub outer: Option<&'a Layers<'a>>,
    pub origin: Origin,
    pub link: Link,
    pub way: Way,
}

/// The ends of a line: who sent what to whom.
pub struct Ends {
    pub source: (u128, u16),
    pub destination: (u128, u16),
    pub protocol: u8,
    pub icmp: [u8; 2],
    pub version: u8,
}

impl Ends {
    /// Of a flow, seen in one way.
    pub fn of_flow(flow: &Flow, way: Way) -> Ends {
        let (from, to) = (way as usize, way.reverse() as usize);
        Ends {
            source: (flow.addresses[from], flow.ports[from]),
            destination: (flow.addresses[to], flow.ports[to]),
            protocol: flow.protocol,
            icmp: flow.icmp[from],
            version: flow.version,
        }
    }

    /// Of a packet.
    pub fn of_packet(layers: &Layers<'_>) -> Ends {
        Ends {
            source: (layers.source, layers.source_port),
            destination: (layers.destination, layers.destination_port),
            protocol: layers.protocol,
            icmp: layers.icmp,
            version: layers.version,
        }
    }
}

/// An address as EVE writes it.
pub struct AddressText(pub u128, pub bool);

impl std::fmt::Display for AddressText {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 >> 32 == 0xffff {
            return Ipv4Addr::from_bits(self.0 as u32).fmt(formatter);
        }
        if self.1 {
            return Ipv6Addr::from_bits(self.0).fmt(formatter);
        }
        for (index, group) in Ipv6Addr::from_bits(self.0).segments().into_iter().enumerate() {
            write!(formatter, "{}{group:04x}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// Return the name in EVE's `proto`.
pub fn protocol_name(number: u8) -> String {
    match number {
        ip::ICMP => "ICMP".to_owned(),
        ip::TCP => "TCP".to_owned(),
        ip::UDP => "UDP".to_owned(),
        ip::ICMPV6 => "IPv6-ICMP".to_owned(),
        ip::SCTP => "SCTP".to_owned(),
        ip::GRE => "GRE".to_owned(),
        ip::ESP => "ESP".to_owned(),
        2 => "IGMP".to_owned(),
        4 => "IP-in-IP".to_owned(),
        41 => "IPv6".to_owned(),
        51 => "AH".to_owned(),
        number => format!("{number:03}"),
    }
}

/// What every line begins with.
pub struct Heading<'a> {
    /// When.
    pub time_us: u64,
    /// The packet's place in the capture; 0: none stands for it.
    pub number: u64,
    /// Its flow.
    pub flow: Option<&'a Flow>,
    /// Who sent what to whom.
    pub ends: Ends,
    /// VLAN ids.
    pub vlans: &'a [u16],
}

/// Begin a line: time, flow, packet, type, ends.
pub fn begin<'o>(out: &'o mut String, event_type: &str, heading: &Heading<'_>, config: &OutputConfig) -> Json<'o> {
    let Heading { time_us, number, flow, ref ends, vlans } = *heading;
    out.push('{');
    let mut json = Json::inside(out, false);
    json.plain("timestamp", Timestamp(time_us));
    if let Some(flow) = flow {
        json.number("flow_id", flow.id);
        if let Some(parent) = flow.parent {
            json.number("parent_id", parent);
        }
    }
    if number > 0 {
        json.number("pcap_cnt", number);
    }
    json.text("event_type", event_type);
    if !vlans.is_empty() {
        json.open_array("vlan");
        for vlan in vlans {
            json.number_element(u64::from(*vlan));
        }
        json.close_array();
    }
    if ends.version != 0 {
        write_ends(&mut json, ends, config);
    }
    json
}

fn write_ends(json: &mut Json<'_>, ends: &Ends, config: &OutputConfig) {
    let has_ports = matches!(ends.protocol, ip::TCP | ip::UDP | ip::SCTP);
    json.plain("src_ip", AddressText(ends.source.0, config.ipv6_compress));
    if has_ports {
        json.number("src_port", ends.source.1.into());
    }
    json.plain("dest_ip", AddressText(ends.destination.0, config.ipv6_compress));
    if has_ports {
        json.number("dest_port", ends.destination.1.into());
    }
    json.plain("proto", protocol_name(ends.protocol));
    json.number("ip_v", ends.version.into());
    if matches!(ends.protocol, ip::ICMP | ip::ICMPV6) {
        json.number("icmp_type", ends.icmp[0].into());
        json.number("icmp_code", ends.icmp[1].into());
    }
    if config.community_id {
        let tuple = sensor::Tuple {
            source: sensor::Address(ends.source.0),
            destination: sensor::Address(ends.destination.0),
            source_port: ends.source.1,
            destination_port: ends.destination.1,
            protocol: ends.protocol,
            icmp: ends.icmp,
        };
        json.plain("community_id", sensor::community_id(&tuple));
    }
}

/// Where a packet came from: its origin, the tunnel around it, its Ethernet addresses.
pub fn write_origin(json: &mut Json<'_>, scene: &Scene<'_>, config: &OutputConfig) {
    json.text("pkt_src", scene.origin.name());
    if let Some(outer) = scene.outer {
        json.open("tunnel");
        write_ends(json, &Ends::of_packet(outer), &OutputConfig { community_id: false, ..config.clone() });
        json.number("depth", 0);
        json.close();
    }
    write_ethernet(json, scene, config);
}

fn write_ethernet(json: &mut Json<'_>, scene: &Scene<'_>, config: &OutputConfig) {
    if let (true, Some(link)) = (config.ethernet, scene.layers.link.first_chunk::<12>()) {
        let mac = |at: usize| link[at..at + 6].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
        json.open("ether");
        json.plain("dest_mac", mac(0));
        json.plain("src_mac", mac(6));
        json.close();
    }
}

/// The name of the flow's protocol, and of each side's where they differ.
pub fn write_app(json: &mut Json<'_>, flow: &Flow) {
    let name = |index: u8| PROTOCOLS.get(usize::from(index)).map_or("unknown", |protocol| protocol.name);
    match flow.app.protocol {
        Some(index) => {
            json.text("app_proto", name(index));
            for (way, suffix) in [(0, "app_proto_ts"), (1, "app_proto_tc")] {
                match flow.app.found[way] {
                    Some(other) if other != index => json.text(suffix, name(other)),
                    None if flow.app.has_failed[way] => json.text(suffix, "failed"),
                    _ => {}
                }
            }
            if let Some(before) = flow.app.before {
                json.text("app_proto_orig", name(before));
            }
        }
        None if flow.app.is_unknown_for_good() => json.text("app_proto", "failed"),
        None => {}
    }
}

/// The counters of a flow, as alerts carry them.
pub fn write_flow_counters(json: &mut Json<'_>, flow: &Flow) {
    json.number("pkts_toserver", flow.packets[0]);
    json.number("pkts_toclient", flow.packets[1]);
    json.number("bytes_toserver", flow.bytes[0]);
    json.number("bytes_toclient", flow.bytes[1]);
    json.plain("start", Timestamp(flow.first_us));
}

/// The record of a flow that has ended.
pub fn write_flow_record(json: &mut Json<'_>, flow: &Flow, ending: Ending, config: &OutputConfig) {
    if matches!(flow.protocol, ip::ICMP | ip::ICMPV6) && flow.packets[1] > 0 {
        json.number("response_icmp_type", flow.icmp[1][0].into());
        json.number("response_icmp_code", flow.icmp[1][1].into());
    }
    write_app(json, flow);
    json.open("flow");
    write_flow_counters(json, flow);
    json.plain("end", Timestamp(flow.last_us));
    json.number("age", (flow.last_us / 1_000_000).saturating_sub(flow.first_us / 1_000_000));
    json.text("state", flow.stage.name());
    json.text("reason", ending.name());
    json.flag("alerted", flow.has_alert);
    match flow.action {
        Some(FlowAction::Pass) => json.text("action", "pass"),
        Some(FlowAction::Drop) => json.text("action", "drop"),
        None => {}
    }
    if flow.app.count > 0 {
        json.number("tx_cnt", flow.app.count);
    }
    if flow.is_swapped {
        json.flag("wrong_direction", true);
    }
    if config.flow_exception_policy && !flow.policies.is_empty() {
        json.open_array("exception_policy");
        for (target, policy) in &flow.policies {
            json.open_element();
            json.text("target", target);
            json.text("policy", policy.name());
            json.close();
        }
        json.close_array();
    }
    json.close();
    if let Some(tcp) = &flow.tcp {
        write_tcp(json, tcp);
    }
}

fn write_tcp(json: &mut Json<'_>, tcp: &crate::tcp::Session) {
    use crate::tcp::flag;
    let all = tcp.flags[0] | tcp.flags[1];
    json.open("tcp");
    for (name, flags) in [("tcp_flags", all), ("tcp_flags_ts", tcp.flags[0]), ("tcp_flags_tc", tcp.flags[1])] {
        json.plain(name, format_args!("{flags:02x}"));
    }
    let names = [
        ("syn", flag::SYN),
        ("fin", flag::FIN),
        ("rst", flag::RST),
        ("psh", flag::PSH),
        ("ack", flag::ACK),
        ("urg", flag::URG),
        ("ecn", 0x40),
        ("cwr", 0x80),
    ];
    for (name, bit) in names.into_iter().filter(|(_, bit)| all & bit != 0) {
        let _ = bit;
        json.flag(name, true);
    }
    json.text("state", tcp.state.name());
    for (name, side) in [("ts_gap", 0), ("tc_gap", 1)] {
        if tcp.sides[side].stream.has_gap {
            json.flag(name, true);
        }
    }
    for (name, side) in [("ts_max_regions", 0), ("tc_max_regions", 1)] {
        json.number(name, tcp.sides[side].stream.most_blocks.max(1) as u64);
    }
    json.close();
}

/// A file.
pub fn write_file(json: &mut Json<'_>, body: &Body, transaction: u64, md5: Option<String>) {
    json.open("fileinfo");
    json.text("filename", &body.name);
    json.flag("gaps", body.has_gaps);
    json.text("state", if body.state == BodyState::Closed { "CLOSED" } else { "TRUNCATED" });
    if let Some(md5) = md5 {
        json.plain("md5", md5);
    }
    json.flag("stored", false);
    json.number("size", body.size);
    json.number("tx_id", transaction);
    json.close();
}

/// Bytes as base64.
pub fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let word = chunk.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * index) & 63) as usize];
            text.push(if index <= chunk.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

/// Bytes as printable text: what is no printable ASCII is a dot, except line ends.
pub fn printable(data: &[u8]) -> String {
    data.iter()
        .map(
            |byte| {
                if byte.is_ascii_graphic() || matches!(byte, b' ' | b'\n' | b'\r') { char::from(*byte) } else { '.' }
            },
        )
        .collect()
}

/// The whole packet and what it begins with.
pub fn write_packet(json: &mut Json<'_>, scene: &Scene<'_>) {
    json.plain("packet", base64(scene.layers.frame));
    let (number, name) = match (scene.origin, scene.link) {
        (Origin::Gre | Origin::Ipv4Tunnel | Origin::Ipv6Tunnel | Origin::Teredo | Origin::FlowEnd, _) => (12, "RAW"),
        (_, Link::Ethernet) => (1, "EN10MB"),
        (_, Link::RawIp) if scene.layers.version == 6 => (229, "IPv6"),
        (_, Link::RawIp) => (228, "IPv4"),
        (_, Link::Cooked) => (113, "LINUX_SLL"),
        (_, Link::Cooked2) => (276, "LINUX_SLL2"),
        (_, Link::Null) => (0, "NULL"),
        (_, Link::Ppp) => (9, "PPP"),
        (_, Link::Chdlc) => (104, "C_HDLC"),
    };
    json.open("packet_info");
    json.number("linktype", number);
    json.text("linktype_name", name);
    json.close();
}

/// Members of `exception_policy` counters that Suricata nests by target.
pub fn policy_path(target: &str) -> &str {
    match target {
        "stream_midstream" => "tcp.midstream",
        "stream_reassembly" => "tcp.reassembly",
        "stream_memcap" => "tcp.ssn_memcap",
        "flow_memcap" => "flow.memcap",
        "defrag_memcap" => "defrag.memcap",
        "app_layer_error" => "app_layer.error",
        other => other,
    }
}

/// A nested object out of dotted names, which must be sorted.
pub fn write_tree(out: &mut String, rows: &std::collections::BTreeMap<String, u64>) {
    let mut open: Vec<&str> = Vec::new();
    let mut json = Json::inside(out, true);
    for (name, value) in rows {
        let mut parts: Vec<&str> = name.split('.').collect();
        let Some(leaf) = parts.pop() else { continue };
        let common = open.iter().zip(&parts).take_while(|(a, b)| a == b).count();
        while open.len() > common {
            json.close();
            open.pop();
        }
        for part in parts.into_iter().skip(common) {
            json.open(part);
            open.push(part);
        }
        json.number(leaf, *value);
    }
    for _ in open {
        json.close();
    }
}

/// Append a line's end: nothing but the brace.
pub fn end(out: &mut String) {
    let _ = write!(out, "}}");
}
