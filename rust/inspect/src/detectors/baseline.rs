//! Who talks to whom about what, as it was learnt (`docs/formats/ids-settings.md`), and what is outside of that.
//!
//! Held are keyed hashes of talks and services, not the text: 16 bytes for each line of the baseline.

use sensor::SipKey;

use super::Context;
use super::config::parse_address;
use super::finding::{Kind, Subject};
use super::json_text::Scan;
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::words;
use crate::layers::{Layers, ip};
use crate::tcp::flag;

/// What the Python side writes at most.
const MOST_ENTRIES: usize = 65_536;
const FORMAT: &str = "tidegate-baseline-1";

/// Client, server, protocol, port of the server (0: none).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Talk {
    client: u128,
    server: u128,
    protocol: u8,
    port: u16,
}

/// What is known.
pub struct Baseline {
    talks: Vec<u64>,
    services: Vec<u64>,
    key: SipKey,
    /// Why there is none, where one was given.
    pub error: Option<&'static str>,
}

impl Baseline {
    /// Read a baseline that must fit into `bytes`. Without one, or where it cannot be read whole, nothing is outside:
    /// half a baseline would report the other half.
    pub fn new(text: Option<&str>, bytes: usize, key: SipKey) -> Baseline {
        let mut baseline = Baseline { talks: Vec::new(), services: Vec::new(), key, error: None };
        if let Some(text) = text.filter(|text| !text.trim().is_empty())
            && let Err(error) = baseline.read(text, bytes)
        {
            baseline.error = Some(error);
            (baseline.talks, baseline.services) = (Vec::new(), Vec::new());
        }
        for list in [&mut baseline.talks, &mut baseline.services] {
            list.sort_unstable();
            list.dedup();
            list.shrink_to_fit();
        }
        baseline
    }

    /// How many talks are known.
    pub fn len(&self) -> usize {
        self.talks.len()
    }

    fn read(&mut self, text: &str, bytes: usize) -> Result<(), &'static str> {
        let (mut has_format, mut scan) = (false, Scan::new(text));
        let each = |baseline: &mut Baseline, scan: &mut Scan<'_>| -> Option<()> {
            let mut talk = None;
            scan.object(
                |scan, name| if name == "talk" { read_talk(scan).map(|read| talk = Some(read)) } else { scan.skip() },
            )?;
            let talk = talk?;
            baseline.talks.push(baseline.talk_hash(&talk));
            baseline.services.push(baseline.service_hash(&talk));
            (baseline.talks.len() <= MOST_ENTRIES && baseline.talks.len() * 16 <= bytes).then_some(())
        };
        let is_read = scan.object(|scan, name| match name {
            "format" => scan.text().map(|format| has_format = format == FORMAT),
            "entries" => scan.array(|scan| each(self, scan)),
            _ => scan.skip(),
        });
        match (is_read, has_format) {
            (Some(()), true) => Ok(()),
            (Some(()), false) => Err("the baseline is of another format"),
            (None, _) => Err("the baseline cannot be read, or does not fit into the detectors' memory"),
        }
    }

    fn talk_hash(&self, talk: &Talk) -> u64 {
        let ([a, b], [c, d]) = (words(talk.client), words(talk.server));
        self.key.hash(&[a, b, c, d, u64::from(talk.protocol) << 16 | u64::from(talk.port)])
    }

    fn service_hash(&self, talk: &Talk) -> u64 {
        let [a, b] = words(talk.server);
        self.key.hash(&[a, b, u64::from(talk.protocol) << 16 | u64::from(talk.port)])
    }

    fn knows(&self, talk: &Talk) -> bool {
        self.talks.binary_search(&self.talk_hash(talk)).is_ok()
    }

    /// Whether a destination is one that the client is known to talk to.
    pub fn knows_flow(&self, flow: &FlowSeen) -> bool {
        !self.talks.is_empty() && self.knows(&talk_of(flow, 0))
    }

    /// Look at a packet: the first answer of a flow tells that it is one.
    pub fn packet(&self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        let Some(flow) = flow.filter(|flow| flow.is_to_client && !self.talks.is_empty()) else { return };
        let is_first_answer = match layers.protocol {
            // a refusal is no service, and only a handshake tells who is the server
            ip::TCP => layers.tcp.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN | flag::ACK,
            _ => flow.packets[1] == 1 && layers.protocol == flow.protocol,
        };
        let talk = talk_of(flow, 0);
        // a datagram flow that was there before the sensor may have begun with an answer
        if !is_first_answer || self.knows(&talk) || layers.protocol == ip::UDP && self.knows(&talk_of(flow, 1)) {
            return;
        }
        let is_known_service = self.services.binary_search(&self.service_hash(&talk)).is_ok();
        let kind = if is_known_service { Kind::NewPeer } else { Kind::NewService };
        if context.config.is_on(kind) {
            let subject = Subject {
                source: talk.client,
                destination: talk.server,
                source_port: if talk.port == 0 { 0 } else { flow.ports[0] },
                destination_port: talk.port,
                protocol: talk.protocol,
                flow_id: flow.id,
            };
            context.reporter.report(kind, subject, Count::ONE, context.now_us, Vec::new);
        }
    }
}

fn talk_of(flow: &FlowSeen, client: usize) -> Talk {
    let ([first, second], ports) = (flow.addresses, flow.ports);
    let (client, server, port) = if client == 0 { (first, second, ports[1]) } else { (second, first, ports[0]) };
    let has_ports = matches!(flow.protocol, ip::TCP | ip::UDP | ip::SCTP);
    Talk { client, server, protocol: flow.protocol, port: if has_ports { port } else { 0 } }
}

fn read_talk(scan: &mut Scan<'_>) -> Option<Talk> {
    let mut talk = Talk::default();
    scan.object(|scan, name| {
        match name {
            "client" => talk.client = parse_address(&scan.text()?)?,
            "server" => talk.server = parse_address(&scan.text()?)?,
            "proto" => talk.protocol = protocol_number(&scan.text()?)?,
            "port" => talk.port = scan.number_or_null()?.map_or(Some(0), |port| u16::try_from(port).ok())?,
            _ => scan.skip()?,
        }
        Some(())
    })?;
    (talk.client != 0 && talk.server != 0).then_some(talk)
}

fn protocol_number(name: &str) -> Option<u8> {
    Some(match name {
        "TCP" => ip::TCP,
        "UDP" => ip::UDP,
        "ICMP" => ip::ICMP,
        "IPV6-ICMP" => ip::ICMPV6,
        "SCTP" => ip::SCTP,
        "GRE" => ip::GRE,
        "ESP" => ip::ESP,
        "IGMP" => 2,
        "IPV4" => 4,
        "IPV6" => 41,
        "AH" => 51,
        digits => digits.parse().ok()?,
    })
}
