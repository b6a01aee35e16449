//! Servers that a link has one of: DHCP (RFC 2131, RFC 8415) and routers that advertise themselves (RFC 4861).
//!
//! Without a list, the first that is seen is the known one; two servers, or two routers, need the list.

use protocols::Reader;

use super::Context;
use super::finding::{Evidence, Kind, Subject, Value};
use super::neighbours::{frame_macs, link_address};
use super::reporter::Count;
use crate::layers::{Layers, ip};

/// RFC 2131 section 2: what stands before the options, and the cookie in front of them.
const FIXED_BYTES: usize = 236;
const COOKIE: u32 = 0x6382_5363;
/// Options of one message that are looked at; there are 254 codes.
const MOST_OPTIONS: usize = 256;

/// Networks (VLANs) whose servers are learnt; a trunk to a device has a handful. Further ones are not looked at.
const MOST_LINKS: usize = 64;

/// What was learnt of one link: servers of DHCP and DHCPv6, and the router.
#[derive(Default)]
struct Known {
    vlans: u64,
    dhcp: Option<u128>,
    dhcp6: Option<u128>,
    router: Option<u128>,
}

/// The servers that were learnt.
#[derive(Default)]
pub struct Servers {
    links: Vec<Known>,
}

impl Servers {
    /// Look at a packet.
    pub fn packet(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        match (layers.protocol, layers.source_port, layers.destination_port) {
            _ if layers.fragment.is_some() => {}
            (ip::UDP, 67, 67 | 68) => self.dhcp(layers, context),
            (ip::UDP, 547, 546) if matches!(layers.payload.first(), Some(2 | 7)) => {
                let Some(known) = self.link(layers).map(|link| &mut link.dhcp6) else { return };
                if is_unknown(known, &context.config.servers.dhcp, layers.source) {
                    report(Kind::RogueDhcp, layers, layers.source, *known, context, vec![]);
                }
            }
            (ip::ICMPV6, ..) if layers.icmp[0] == 134 => self.advertisement(layers, context),
            _ => {}
        }
    }

    fn link(&mut self, layers: &Layers<'_>) -> Option<&mut Known> {
        let vlans = layers.vlans().iter().fold(0, |sum, vlan| sum << 12 | u64::from(*vlan));
        let index = match self.links.iter().position(|link| link.vlans == vlans) {
            Some(index) => index,
            None if self.links.len() < MOST_LINKS => {
                self.links.push(Known { vlans, ..Known::default() });
                self.links.len() - 1
            }
            None => return None,
        };
        self.links.get_mut(index)
    }

    fn dhcp(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let Some(answer) = Answer::read(layers.payload) else { return };
        // a relay sends in its own name: the server names itself in an option
        let server = answer.server.unwrap_or(layers.source);
        let Some(known) = self.link(layers).map(|link| &mut link.dhcp) else { return };
        if !is_unknown(known, &context.config.servers.dhcp, server) {
            return;
        }
        let mut evidence = vec![("offered", Value::Address(answer.offered))];
        for (name, value) in [("router", answer.router), ("dns", answer.dns)] {
            evidence.extend(value.map(|value| (name, Value::Address(value))));
        }
        report(Kind::RogueDhcp, layers, server, *known, context, evidence);
    }

    fn advertisement(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let mut reader = Reader::new(layers.transport);
        let (Some(_), Some(lifetime), Some(_)) = (reader.take(6), reader.be16(), reader.take(8)) else { return };
        let Some(known) = self.link(layers).map(|link| &mut link.router) else { return };
        if is_unknown(known, &context.config.servers.routers, layers.source) {
            let mut evidence = vec![("lifetime_s", Value::Number(lifetime.into()))];
            evidence.extend(link_address(reader, 1).map(|mac| ("router_mac", Value::Mac(mac))));
            report(Kind::RogueRouter, layers, layers.source, *known, context, evidence);
        }
    }
}

/// Return whether a server is none of those that are listed, or, without a list, not the first.
fn is_unknown(known: &mut Option<u128>, listed: &[u128], server: u128) -> bool {
    if !listed.is_empty() {
        return !listed.contains(&server);
    }
    *known.get_or_insert(server) != server
}

fn report(
    kind: Kind,
    layers: &Layers<'_>,
    server: u128,
    known: Option<u128>,
    context: &mut Context<'_>,
    mut evidence: Evidence,
) {
    if !context.config.is_on(kind) {
        return;
    }
    evidence.push(("server", Value::Address(server)));
    evidence.extend(known.map(|known| ("known", Value::Address(known))));
    evidence.extend(frame_macs(layers).map(|(_, mac)| ("mac", Value::Mac(mac))));
    let subject = Subject {
        source: server,
        source_port: layers.source_port,
        destination_port: layers.destination_port,
        protocol: layers.protocol,
        ..Subject::default()
    };
    context.reporter.report(kind, subject, Count::ONE, context.now_us, || evidence);
}

/// What a DHCP server says.
#[derive(Debug, PartialEq, Eq, Default)]
struct Answer {
    offered: u128,
    server: Option<u128>,
    router: Option<u128>,
    dns: Option<u128>,
}

impl Answer {
    /// Read an offer or an acknowledgement; `None` for anything else.
    fn read(payload: &[u8]) -> Option<Answer> {
        let mut reader = Reader::new(payload);
        let operation = reader.u8()?;
        reader.take(15)?;
        let offered = address(&mut reader)?;
        reader.take(FIXED_BYTES - 20)?;
        if operation != 2 || reader.be32()? != COOKIE {
            return None;
        }
        let mut answer = Answer { offered, ..Answer::default() };
        let mut is_answer = false;
        for _ in 0..MOST_OPTIONS {
            let code = match reader.u8() {
                Some(0) => continue,
                None | Some(255) => break,
                Some(code) => code,
            };
            let Some(length) = reader.u8() else { break };
            let Some(body) = reader.take(length.into()) else { break };
            let first = || address(&mut Reader::new(body));
            match code {
                53 => is_answer = matches!(body, [2 | 5]),
                54 => answer.server = first(),
                3 => answer.router = first(),
                6 => answer.dns = first(),
                _ => {}
            }
        }
        is_answer.then_some(answer)
    }
}

fn address(reader: &mut Reader<'_>) -> Option<u128> {
    Some(0xffff_0000_0000 | u128::from(reader.be32()?))
}
