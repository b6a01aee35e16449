//! Keywords of application protocols by name.

use std::collections::HashMap;

use protocols::{COMPLETE, Protocol, Way, Ways};

/// A protocol, and a place in one of its lists.
pub(crate) type Place = (u8, u16);

/// Names in rules that mean several protocols, as they mean in Suricata.
const FAMILIES: &[(&str, &[&str])] = &[
    ("http", &["http", "http1", "http2"]),
    ("dns", &["dns", "doh2"]),
    ("http2", &["http2", "doh2"]),
    ("dcerpc", &["dcerpc", "smb"]),
];

/// Protocols that rules may name although there may be no parser for them here.
const FOREIGN: &[&str] = &[
    "http",
    "http1",
    "http2",
    "dns",
    "doh2",
    "tls",
    "ssl",
    "smb",
    "dcerpc",
    "ftp",
    "ftp-data",
    "ssh",
    "smtp",
    "imap",
    "pop3",
    "msn",
    "jabber",
    "irc",
    "mysql",
    "pgsql",
    "modbus",
    "dnp3",
    "enip",
    "nfs",
    "ntp",
    "ike",
    "ikev2",
    "krb5",
    "quic",
    "dhcp",
    "sip",
    "rfb",
    "mqtt",
    "telnet",
    "websocket",
    "ldap",
    "mdns",
    "llmnr",
    "snmp",
    "tftp",
    "rdp",
    "bittorrent-dht",
    "bittorrent_dht",
    "template",
    "netflow",
    "sctp",
];

/// All keywords of a list of protocols. Names are the protocols' own.
pub(crate) struct Registry {
    protocols: &'static [&'static Protocol],
    buffers: HashMap<&'static str, Vec<Place>>,
    modifiers: HashMap<&'static str, Vec<Place>>,
    numbers: HashMap<&'static str, Vec<Place>>,
    keywords: HashMap<&'static str, Vec<Place>>,
}

impl Registry {
    pub fn new(protocols: &'static [&'static Protocol]) -> Registry {
        let mut registry = Registry {
            protocols,
            buffers: HashMap::new(),
            modifiers: HashMap::new(),
            numbers: HashMap::new(),
            keywords: HashMap::new(),
        };
        for (protocol, index) in protocols.iter().zip(0u8..) {
            for (buffer, place) in protocol.buffers.iter().zip(0u16..) {
                enter(&mut registry.buffers, buffer.keyword, buffer.aliases, (index, place));
                buffer.modifiers.iter().for_each(|name| enter(&mut registry.modifiers, name, &[], (index, place)));
            }
            for (number, place) in protocol.numbers.iter().zip(0u16..) {
                enter(&mut registry.numbers, number.keyword, number.aliases, (index, place));
            }
            for (keyword, place) in protocol.keywords.iter().zip(0u16..) {
                enter(&mut registry.keywords, keyword.keyword, keyword.aliases, (index, place));
            }
        }
        registry
    }

    pub fn protocol(&self, index: u8) -> Option<&'static Protocol> {
        self.protocols.get(usize::from(index)).copied()
    }

    pub fn buffer(&self, name: &str) -> Option<&[Place]> {
        self.buffers.get(name).map(Vec::as_slice)
    }

    pub fn modifier(&self, name: &str) -> Option<&[Place]> {
        self.modifiers.get(name).map(Vec::as_slice)
    }

    pub fn number(&self, name: &str) -> Option<&[Place]> {
        self.numbers.get(name).map(Vec::as_slice)
    }

    pub fn keyword(&self, name: &str) -> Option<&[Place]> {
        self.keywords.get(name).map(Vec::as_slice)
    }

    pub fn knows(&self, name: &str) -> bool {
        [&self.buffers, &self.modifiers, &self.numbers, &self.keywords].iter().any(|map| map.contains_key(name))
    }

    /// Return what a protocol name in a rule stands for, its whole family unless `is_exact`; or why it cannot be used.
    pub fn named(&self, name: &str, is_exact: bool) -> Result<Vec<u8>, String> {
        let family = FAMILIES.iter().find(|(family, _)| *family == name && !is_exact).map(|(_, members)| *members);
        let is_meant = |protocol: &Protocol| {
            let is_called = |name: &str| protocol.name == name || protocol.aliases.contains(&name);
            is_called(name) || family.is_some_and(|members| members.contains(&protocol.name))
        };
        let found: Vec<u8> = self
            .protocols
            .iter()
            .zip(0u8..)
            .filter(|(protocol, _)| is_meant(protocol))
            .map(|(_, index)| index)
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let name = crate::parse::shortened(name);
        Err(if FOREIGN.contains(&name.as_str()) {
            format!("there is no parser for protocol {name}")
        } else {
            format!("unknown protocol {name}")
        })
    }

    /// Return way and progress of a state's name (`http1:response_body`).
    pub fn state(&self, protocols: &[u8], name: &str) -> Option<(Way, u8)> {
        let states = protocols.iter().filter_map(|index| self.protocol(*index)).flat_map(|protocol| protocol.states);
        let own = states.into_iter().find(|(state, ..)| *state == name).map(|(_, way, progress)| (*way, *progress));
        own.or(match name {
            "request_started" => Some((Way::ToServer, 0)),
            "request_complete" => Some((Way::ToServer, COMPLETE)),
            "response_started" => Some((Way::ToClient, 0)),
            "response_complete" => Some((Way::ToClient, COMPLETE)),
            _ => None,
        })
    }

    /// Return in which ways buffers exist: if they differ, both.
    pub fn buffer_ways(&self, places: &[Place]) -> Ways {
        union(
            places
                .iter()
                .filter_map(|(index, place)| Some(self.protocol(*index)?.buffers.get(usize::from(*place))?.ways)),
        )
    }

    /// Likewise, numbers.
    pub fn number_ways(&self, places: &[Place]) -> Ways {
        union(
            places
                .iter()
                .filter_map(|(index, place)| Some(self.protocol(*index)?.numbers.get(usize::from(*place))?.ways)),
        )
    }

    /// Likewise, keywords.
    pub fn keyword_ways(&self, places: &[Place]) -> Ways {
        union(
            places
                .iter()
                .filter_map(|(index, place)| Some(self.protocol(*index)?.keywords.get(usize::from(*place))?.ways)),
        )
    }

    /// Return whether there may be several of that buffer.
    pub fn is_multiple(&self, places: &[Place]) -> bool {
        places.iter().any(|(index, place)| {
            self.protocol(*index).and_then(|it| it.buffers.get(usize::from(*place))).is_some_and(|it| it.is_multiple)
        })
    }

    /// Return the buffer's name.
    pub fn buffer_name(&self, places: &[Place]) -> &'static str {
        let first = places.first().and_then(|(index, place)| self.protocol(*index)?.buffers.get(usize::from(*place)));
        first.map_or("", |buffer| buffer.keyword)
    }
}

fn enter(
    map: &mut HashMap<&'static str, Vec<Place>>,
    name: &'static str,
    aliases: &'static [&'static str],
    place: Place,
) {
    for name in std::iter::once(&name).chain(aliases) {
        map.entry(name).or_default().push(place);
    }
}

fn union(ways: impl Iterator<Item = Ways>) -> Ways {
    ways.reduce(|one, other| if one == other { one } else { Ways::Both }).unwrap_or(Ways::Both)
}
