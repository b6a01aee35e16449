//! Which packets are looked at: a filter in the words that pcap filters use.
//!
//! `host`, `net`, `port`, `portrange` (each after `src`, `dst` or neither), `ip`, `ip6`, `arp`, `tcp`, `udp`, `icmp`,
//! `icmp6`, `sctp`, `vlan`, `proto N`, joined by `and`, `or`, `not` and parentheses. Other words of pcap filters are
//! refused. Source: pcap-filter(7). A packet inside a tunnel is judged by the frame that carries it.

use std::net::IpAddr;

use crate::layers::{Layers, ip};

/// Words of one filter, and parentheses inside one another: people write a dozen.
const MOST_WORDS: usize = 512;
const MOST_DEPTH: usize = 32;

/// A filter that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Node);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Net(Side, u128, u128),
    Port(Side, u16, u16),
    Version(u8),
    Protocol(u8),
    Arp,
    Vlan(Option<u16>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
    Either,
}

impl Filter {
    /// Read a filter, or say what is wrong with it.
    pub fn parse(text: &str) -> Result<Filter, String> {
        let spaced = text
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace("&&", " and ")
            .replace("||", " or ")
            .replace('!', " not ");
        let words: Vec<&str> = spaced.split_whitespace().collect();
        if words.is_empty() || words.len() > MOST_WORDS {
            return Err("a filter has between 1 and 512 words".to_owned());
        }
        let mut reader = Words { words: &words, at: 0, last: None };
        let node = reader.any(0)?;
        match reader.peek() {
            None => Ok(Filter(node)),
            Some(word) => Err(format!("{word:?} does not belong there")),
        }
    }

    /// Return whether a packet is to be looked at.
    pub fn matches(&self, layers: &Layers<'_>) -> bool {
        self.0.matches(layers)
    }
}

impl Node {
    fn matches(&self, layers: &Layers<'_>) -> bool {
        match self {
            Node::And(one, other) => one.matches(layers) && other.matches(layers),
            Node::Or(one, other) => one.matches(layers) || other.matches(layers),
            Node::Not(node) => !node.matches(layers),
            Node::Net(side, base, mask) => {
                let is_in = |address: u128| layers.version != 0 && address & mask == *base;
                side.any(is_in(layers.source), is_in(layers.destination))
            }
            Node::Port(side, low, high) => {
                let has_ports = matches!(layers.protocol, ip::TCP | ip::UDP | ip::SCTP) && layers.fragment.is_none();
                let is_in = |port: u16| has_ports && (*low..=*high).contains(&port);
                side.any(is_in(layers.source_port), is_in(layers.destination_port))
            }
            Node::Version(version) => layers.version == *version,
            Node::Protocol(number) => layers.version != 0 && layers.protocol == *number,
            Node::Arp => layers.is_arp,
            Node::Vlan(None) => layers.vlan_count > 0,
            Node::Vlan(Some(id)) => layers.vlans().contains(id),
        }
    }
}

impl Side {
    fn any(self, source: bool, destination: bool) -> bool {
        match self {
            Side::Source => source,
            Side::Destination => destination,
            Side::Either => source || destination,
        }
    }
}

struct Words<'a> {
    words: &'a [&'a str],
    at: usize,
    /// `port 80 or 443`: the second number is a port too.
    last: Option<(&'a str, Side)>,
}

impl<'a> Words<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        let word = self.peek();
        self.at += usize::from(word.is_some());
        word
    }

    fn any(&mut self, depth: usize) -> Result<Node, String> {
        let mut node = self.all(depth)?;
        while self.peek() == Some("or") {
            self.next();
            node = Node::Or(Box::new(node), Box::new(self.all(depth)?));
        }
        Ok(node)
    }

    fn all(&mut self, depth: usize) -> Result<Node, String> {
        let mut node = self.one(depth)?;
        loop {
            match self.peek() {
                Some("and") => {
                    self.next();
                }
                // `tcp port 80` means `tcp and port 80`
                Some(word) if word != "or" && word != ")" => {}
                _ => return Ok(node),
            }
            node = Node::And(Box::new(node), Box::new(self.one(depth)?));
        }
    }

    fn one(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MOST_DEPTH {
            return Err("too many parentheses".to_owned());
        }
        match self.next().ok_or("a filter ends too early")? {
            "not" => Ok(Node::Not(Box::new(self.one(depth + 1)?))),
            "(" => {
                let node = self.any(depth + 1)?;
                if self.next() == Some(")") { Ok(node) } else { Err("a parenthesis is not closed".to_owned()) }
            }
            word => self.primitive(word),
        }
    }

    fn primitive(&mut self, word: &'a str) -> Result<Node, String> {
        Ok(match word {
            "ip" => Node::Version(4),
            "ip6" => Node::Version(6),
            "arp" => Node::Arp,
            "tcp" => Node::Protocol(ip::TCP),
            "udp" => Node::Protocol(ip::UDP),
            "sctp" => Node::Protocol(ip::SCTP),
            "icmp" => Node::Protocol(ip::ICMP),
            "icmp6" => Node::Protocol(ip::ICMPV6),
            "proto" => Node::Protocol(number(self.next())?),
            "vlan" => Node::Vlan(self.peek().and_then(|word| word.parse().ok()).inspect(|_| self.at += 1)),
            "src" | "dst" => {
                let side = if word == "src" { Side::Source } else { Side::Destination };
                let kind = match self.peek() {
                    Some(kind @ ("host" | "net" | "port" | "portrange")) => {
                        self.next();
                        kind
                    }
                    _ => "host",
                };
                self.valued(kind, side)?
            }
            "host" | "net" | "port" | "portrange" => self.valued(word, Side::Either)?,
            value => match self.last {
                Some((kind, side)) => valued(kind, side, value)?,
                None => return Err(format!("{value:?} is no word of filters here")),
            },
        })
    }

    fn valued(&mut self, kind: &'a str, side: Side) -> Result<Node, String> {
        self.last = Some((kind, side));
        let value = self.next().ok_or_else(|| format!("{kind} needs a value"))?;
        valued(kind, side, value)
    }
}

fn valued(kind: &str, side: Side, value: &str) -> Result<Node, String> {
    match kind {
        "port" => {
            let port = number(Some(value))?;
            Ok(Node::Port(side, port, port))
        }
        "portrange" => {
            let (low, high) = value.split_once('-').ok_or_else(|| format!("{value:?} is no range of ports"))?;
            Ok(Node::Port(side, number(Some(low))?, number(Some(high))?))
        }
        _ => network(side, value),
    }
}

fn number<T: std::str::FromStr>(text: Option<&str>) -> Result<T, String> {
    let text = text.ok_or("a number is missing")?;
    text.parse().map_err(|_| format!("{text:?} is no such number"))
}

fn network(side: Side, text: &str) -> Result<Node, String> {
    let wrong = || format!("{text:?} is no address or network");
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u32>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let (base, most, shift) = match address {
        IpAddr::V4(v4) => (0xffff_0000_0000 | u128::from(v4.to_bits()), 32, 96),
        IpAddr::V6(v6) => (v6.to_bits(), 128, 0),
    };
    let bits = bits.unwrap_or(most);
    if bits > most {
        return Err(wrong());
    }
    let mask = match bits + shift {
        0 => 0,
        kept => u128::MAX << (128 - kept),
    };
    Ok(Node::Net(side, base & mask, mask))
}

#[cfg(test)]
mod tests {
    use sensor::Link;

    use super::*;
    use crate::layers::decode;

    #[test]
    fn a_filter_means_what_pcap_filters_mean() {
        // 192.0.2.1:1234 to 198.51.100.7:80, TCP
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 192, 0, 2, 1, 198, 51, 100, 7];
        packet.extend([4, 210, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        let layers = decode(&packet, Link::RawIp);
        let rows = [
            ("tcp", true),
            ("udp or icmp", false),
            ("port 80", true),
            ("src port 80", false),
            ("tcp dst port 80", true),
            ("tcp and port 22", false),
            ("port 22 or 80", true),
            ("host 192.0.2.1 and not port 22", true),
            ("src net 198.51.100.0/24", false),
            ("dst net 198.51.100.0/24", true),
            ("(udp or tcp) && !(port 443)", true),
            ("portrange 70-90", true),
            ("ip6", false),
            ("proto 6", true),
            ("vlan", false),
        ];
        for (text, expected) in rows {
            assert_eq!(Filter::parse(text).map(|filter| filter.matches(&layers)), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in
            ["", "tcp[13] & 2 != 0", "port", "port x", "host 1.2.3.4/40", "(tcp", "tcp)", "less 100", "portrange 5"]
        {
            assert!(Filter::parse(text).is_err(), "{text}");
        }
        let deep = "(".repeat(200);
        assert!(Filter::parse(&deep).is_err());
    }
}
