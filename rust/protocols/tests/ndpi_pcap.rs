//! Captures of many protocols, each named after what it holds: what is recognised in them, and what is not.

mod packets;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use packets::{Ends, Packet, Stream};
use protocols::{MOST_HELD, PROTOCOLS, Parser, Probe, Protocol, Settings, Start, Transport, Way};

/// As in the sensor: bytes of one way after which a probe is not asked again.
const MOST_PROBED: usize = 4096;

/// A flow, and what is known about it.
#[derive(Default)]
struct Flow {
    streams: [Stream; 2],
    held: [Vec<u8>; 2],
    has_failed: [bool; 2],
    parser: Option<Box<dyn Parser>>,
    names: Vec<&'static str>,
    transactions: u64,
    is_broken: bool,
}

impl Flow {
    fn take(&mut self, way: Way, packet: &Packet, ports: [u16; 2]) {
        let data = match packet.transport {
            Transport::Tcp => self.streams[way as usize].insert(packet),
            Transport::Udp => packet.payload.clone(),
        };
        if data.is_empty() || self.is_broken {
            return;
        }
        self.held[way as usize].extend(data);
        self.read(way, packet.transport, ports);
        if packet.transport == Transport::Udp {
            self.held[way as usize].clear();
        }
    }

    /// Show what is held to the parser, or to the probes; what the other side had to wait with comes last.
    fn read(&mut self, way: Way, transport: Transport, ports: [u16; 2]) {
        for way in [way, way.reverse()] {
            let held = std::mem::take(&mut self.held[way as usize]);
            if held.is_empty() {
                continue;
            }
            if self.parser.is_none() {
                self.recognise(way, &held, transport, ports);
            }
            let used = self.parse(way, &held);
            let rest = held.get(used..).unwrap_or_default();
            self.is_broken |= rest.len() > MOST_HELD;
            self.held[way as usize] = rest.to_vec();
        }
    }

    fn recognise(&mut self, way: Way, data: &[u8], transport: Transport, ports: [u16; 2]) {
        if self.has_failed[way as usize] {
            return;
        }
        let mut wants_more = false;
        for protocol in PROTOCOLS.iter().filter(|protocol| protocol.transports.contains(&transport)) {
            let is_usual_port = ports.iter().any(|port| protocol.ports.contains(port));
            match (protocol.probe)(&Start { data, way, transport, is_usual_port }) {
                Probe::No => {}
                Probe::More => wants_more = true,
                _ => return self.begin(protocol, transport),
            }
        }
        self.has_failed[way as usize] = !wants_more || data.len() >= MOST_PROBED;
    }

    fn begin(&mut self, protocol: &'static Protocol, transport: Transport) {
        self.names.push(protocol.name);
        self.parser = Some((protocol.parser)(&Settings::default(), transport));
    }

    fn parse(&mut self, way: Way, data: &[u8]) -> usize {
        let Some(parser) = &mut self.parser else { return 0 };
        let Ok(used) = parser.parse(way, data, false) else {
            self.is_broken = true;
            return data.len();
        };
        assert!(used <= data.len(), "{:?} read more than it was shown", self.names);
        let (first, end) = parser.range();
        for id in first..end {
            let is_over =
                parser.transaction(id).is_some_and(|all| Way::BOTH.iter().all(|way| all.progress(*way) == 255));
            if is_over {
                self.transactions += 1;
                parser.remove(id);
            }
        }
        if parser.upgraded().is_some() {
            self.parser = None;
            self.has_failed = [false; 2];
        }
        used
    }
}

/// What is in one capture: by protocol, flows, transactions, and flows whose parser gave up.
fn look(path: &Path) -> BTreeMap<&'static str, (u64, u64, u64)> {
    let file = std::fs::read(path).unwrap_or_default();
    let mut flows: HashMap<Ends, Flow> = HashMap::new();
    for packet in packets::read(&file) {
        let [forward, backward] = packets::ends(&packet);
        let is_known = flows.contains_key(&forward) || flows.contains_key(&backward);
        let way = match is_known {
            true if flows.contains_key(&forward) => Way::ToServer,
            true => Way::ToClient,
            false => packets::first_way(&packet),
        };
        let ends = if way == Way::ToServer { forward } else { backward };
        flows.entry(ends).or_default().take(way, &packet, [ends.1.1, ends.2.1]);
    }
    let mut found: BTreeMap<&'static str, (u64, u64, u64)> = BTreeMap::new();
    for mut flow in flows.into_values() {
        let left = flow.parser.as_ref().map_or(0, |parser| parser.range().1 - parser.range().0);
        for name in std::mem::take(&mut flow.names) {
            let sums = found.entry(name).or_default();
            sums.0 += 1;
            sums.1 += std::mem::take(&mut flow.transactions) + left;
            sums.2 += u64::from(flow.is_broken);
        }
    }
    found
}

fn corpus() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("TIDEGATE_CORPORA")?).join("ndpi-pcap");
    folder.is_dir().then_some(folder)
}

/// Flows of mail, files, calls, directories and remote calls in all captures: a sum that is too large is as wrong as one
/// that is too small. Compared with an independent dissector, which sees more in two: 9 flows of FTP whose first bytes a
/// fuzzer has bent, and 5 of TFTP's data, which only the requests announce.
const TOTALS: &[(&str, u64)] = &[
    ("dcerpc", 6),
    ("ftp", 2),
    ("ftp-data", 0),
    ("http2", 1),
    ("ike", 1),
    ("imap", 1),
    ("krb5", 12),
    ("ldap", 7),
    ("nfs", 2),
    ("pop3", 1),
    ("quic", 22),
    ("rdp", 1),
    ("rfb", 0),
    ("sip", 15),
    ("smb", 4),
    ("smtp", 0),
    ("telnet", 0),
    ("tftp", 4),
    ("websocket", 0),
];

/// What captures with these names hold, as flows; transactions where the protocol has some.
const NAMED: &[(&str, &str, u64, u64)] = &[
    ("dcerpc.pcap", "dcerpc", 4, 0),
    ("doq.pcapng", "quic", 1, 0),
    ("esp.pcapng", "ike", 1, 0),
    ("gquic.pcap", "quic", 1, 0),
    ("http2.pcapng", "http2", 1, 0),
    ("http_on_sip_port.pcap", "http", 1, 1),
    ("imap-starttls.pcap", "imap", 1, 0),
    ("imaps.pcap", "tls", 2, 2),
    ("kerberos.pcap", "krb5", 12, 0),
    ("kerberos.pcap", "ldap", 7, 0),
    ("kerberos.pcap", "smb", 3, 0),
    ("nfsv3.pcap", "nfs", 2, 0),
    ("pop3_stls.pcap", "pop3", 1, 5),
    ("pop3_stls.pcap", "tls", 1, 1),
    ("quic-v2.pcapng", "quic", 1, 0),
    ("quic_q39.pcap", "quic", 1, 0),
    ("quic_t50.pcap", "quic", 1, 0),
    ("rdp_over_tls.pcap", "rdp", 1, 0),
    ("sip.pcap", "sip", 2, 81),
    ("smbv1.pcap", "smb", 1, 0),
    ("smtps.pcapng", "tls", 1, 1),
    ("ssh_unidirectional.pcap", "ssh", 1, 1),
    ("tftp.pcap", "tftp", 4, 4),
];

#[test]
fn captures_hold_what_their_names_say() {
    let Some(folder) = corpus() else {
        println!("skipped: TIDEGATE_CORPORA names no folder with ndpi-pcap in it");
        return;
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let found = look(path);
        let cells = found.iter().map(|(protocol, (flows, transactions, broken))| {
            *totals.entry(protocol).or_default() += flows;
            format!("{protocol} {flows}/{transactions}/{broken}")
        });
        println!("{name:60} {}", cells.collect::<Vec<_>>().join(", "));
        for (_, protocol, flows, transactions) in NAMED.iter().filter(|(file, ..)| *file == name) {
            let sums = found.get(protocol).map(|sums| (sums.0, sums.1, sums.2));
            assert_eq!(sums, Some((*flows, *transactions, 0)), "{protocol} in {name}: flows, transactions, given up");
        }
    }
    for (protocol, flows) in TOTALS {
        let found = totals.get(protocol).copied().unwrap_or_default();
        assert_eq!(found, *flows, "flows of {protocol} in {} captures", paths.len());
    }
}
