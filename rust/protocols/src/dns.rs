//! DNS (RFC 1035) and its multicast siblings mDNS (RFC 6762) and LLMNR (RFC 4795): one message format, three protocols.
//!
//! Promises: every message is a transaction of its own, complete both ways at once, so that a rule on a query never
//! waits for the answer. A name that points at itself, or a message of a million names, costs a bounded amount.
//! Leaves to others: whether an answer fits its query.
//! Read first: `message.rs`, then `transaction.rs`.

mod log;
mod message;
mod parser;
mod rdata;
#[cfg(test)]
mod tests;
mod transaction;
mod types;

use crate::{BufferInfo, COMPLETE, NumberInfo, Probe, Protocol, RecordInfo, Settings, Start, Transport, Way, Ways};
use message::Message;
use parser::Dns;

/// A first message on an unusual port that is waited for: what EDNS commonly announces (RFC 6891 section 6.2.5).
const MOST_AWAITED: usize = 4096;

/// Which of the three it is; they differ in names, in who may say what, and in how they are logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Dns,
    Mdns,
    Llmnr,
}

mod buffer {
    pub const QUERIES: usize = 0;
    pub const ANSWERS: usize = 1;
    pub const AUTHORITIES: usize = 2;
    pub const ADDITIONALS: usize = 3;
    pub const RESPONSE: usize = 4;
    pub const QUERY: usize = 5;
}

mod number {
    pub const OPCODE: usize = 0;
    pub const RCODE: usize = 1;
    pub const RRTYPE: usize = 2;
}

/// Indices into [`EVENTS`].
mod event {
    pub const MALFORMED_DATA: u8 = 0;
    pub const NOT_REQUEST: u8 = 1;
    pub const NOT_RESPONSE: u8 = 2;
    pub const Z_FLAG_SET: u8 = 3;
    pub const INVALID_OPCODE: u8 = 4;
    pub const NAME_TOO_LONG: u8 = 5;
    pub const INFINITE_LOOP: u8 = 6;
    pub const TOO_MANY_LABELS: u8 = 7;
    pub const INVALID_ADDITIONALS: u8 = 8;
    pub const INVALID_AUTHORITIES: u8 = 9;
}

const EVENTS: &[&str] = &[
    "malformed_data",
    "not_request",
    "not_response",
    "z_flag_set",
    "invalid_opcode",
    "name_too_long",
    "infinite_loop",
    "too_many_labels",
    "invalid_additionals",
    "invalid_authorities",
];

const fn names(keyword: &'static str, aliases: &'static [&'static str], ways: Ways) -> BufferInfo {
    BufferInfo { keyword, aliases, modifiers: &[], ways, progress: COMPLETE, is_multiple: true, is_growing: false }
}

const fn record(event_type: &'static str, way: Way) -> RecordInfo {
    RecordInfo { event_type, to_server: COMPLETE, to_client: COMPLETE, way }
}

/// DNS.
pub static DNS: Protocol = Protocol {
    name: "dns",
    aliases: &[],
    transports: &[Transport::Udp, Transport::Tcp],
    ports: &[53],
    probe: probe_dns,
    parser: |settings: &Settings, transport| Box::new(Dns::new(Kind::Dns, settings, transport)),
    buffers: &[
        names("dns.queries.rrname", &["dns.query.name"], Ways::Both),
        names("dns.answers.rrname", &["dns.answer.name"], Ways::Both),
        names("dns.authorities.rrname", &[], Ways::Both),
        names("dns.additionals.rrname", &[], Ways::Both),
        names("dns.response.rrname", &[], Ways::ToClient),
        names("dns.query", &["dns_query"], Ways::ToServer),
    ],
    numbers: &[
        NumberInfo {
            keyword: "dns.opcode",
            aliases: &[],
            ways: Ways::Both,
            progress: COMPLETE,
            bits: 8,
            names: types::OPCODES,
            is_multiple: false,
        },
        NumberInfo {
            keyword: "dns.rcode",
            aliases: &[],
            ways: Ways::Both,
            progress: COMPLETE,
            bits: 8,
            names: types::RCODES,
            is_multiple: false,
        },
        NumberInfo {
            keyword: "dns.rrtype",
            aliases: &[],
            ways: Ways::Both,
            progress: COMPLETE,
            bits: 16,
            names: types::RRTYPES,
            is_multiple: true,
        },
    ],
    keywords: &[],
    states: &[("request_complete", Way::ToServer, COMPLETE), ("response_complete", Way::ToClient, COMPLETE)],
    records: &[record("dns", Way::ToServer), record("dns", Way::ToClient)],
    events: EVENTS,
};

/// Multicast DNS.
pub static MDNS: Protocol = Protocol {
    name: "mdns",
    aliases: &[],
    transports: &[Transport::Udp],
    ports: &[5353],
    probe: probe_multicast,
    parser: |settings: &Settings, transport| Box::new(Dns::new(Kind::Mdns, settings, transport)),
    buffers: &[
        names("mdns.queries.rrname", &[], Ways::Both),
        names("mdns.answers.rrname", &[], Ways::Both),
        names("mdns.authorities.rrname", &[], Ways::Both),
        names("mdns.additionals.rrname", &[], Ways::Both),
        names("mdns.response.rrname", &[], Ways::Both),
    ],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[record("mdns", Way::ToServer), record("mdns", Way::ToClient)],
    events: EVENTS,
};

/// Link-local multicast name resolution.
pub static LLMNR: Protocol = Protocol {
    name: "llmnr",
    aliases: &[],
    transports: &[Transport::Udp, Transport::Tcp],
    ports: &[5355],
    probe: probe_multicast,
    parser: |settings: &Settings, transport| Box::new(Dns::new(Kind::Llmnr, settings, transport)),
    buffers: &[
        names("llmnr.queries.rrname", &[], Ways::Both),
        names("llmnr.answers.rrname", &[], Ways::Both),
        names("llmnr.authorities.rrname", &[], Ways::Both),
        names("llmnr.additionals.rrname", &[], Ways::Both),
        names("llmnr.response.rrname", &[], Ways::Both),
    ],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[record("llmnr", Way::ToServer), record("llmnr", Way::ToClient)],
    events: EVENTS,
};

/// On the usual port a header whose counts fit is enough. Elsewhere the whole message must read without a fault.
fn probe_dns(start: &Start<'_>) -> Probe {
    let (message, length) = match framed(start) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let Some(header) = message::Header::read(message) else { return Probe::No };
    let is_ours = if start.is_usual_port {
        header.is_plausible(length)
    } else {
        message.len() == length && is_surely_dns(message)
    };
    match (is_ours, header.is_response(), start.way) {
        (false, ..) => Probe::No,
        (true, false, Way::ToServer) | (true, true, Way::ToClient) => Probe::Yes,
        (true, ..) => Probe::YesReversed,
    }
}

/// Multicast answers go where queries go: nothing is ever reversed on the usual port.
fn probe_multicast(start: &Start<'_>) -> Probe {
    if !start.is_usual_port {
        return Probe::No;
    }
    match framed(start) {
        Err(answer) => answer,
        Ok((message, length)) => match message::Header::read(message) {
            Some(header) if header.is_plausible(length) => Probe::Yes,
            _ => Probe::No,
        },
    }
}

/// Return the first message, as much of it as is there, and how long it is said to be.
fn framed<'a>(start: &Start<'a>) -> Result<(&'a [u8], usize), Probe> {
    let data = start.data;
    if start.transport == Transport::Udp {
        return if data.len() < message::HEADER_BYTES { Err(Probe::No) } else { Ok((data, data.len())) };
    }
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return Err(Probe::More) };
    let length = usize::from(u16::from_be_bytes(*length));
    match rest.get(..length) {
        _ if length < message::HEADER_BYTES => Err(Probe::No),
        Some(message) => Ok((message, length)),
        None if rest.len() < message::HEADER_BYTES => Err(Probe::More),
        // elsewhere all of it is needed; a flow of another protocol must not wait for as much as its first bytes say
        None if !start.is_usual_port && length <= MOST_AWAITED && is_maybe_dns(rest) => Err(Probe::More),
        None if !start.is_usual_port => Err(Probe::No),
        None => Ok((rest, length)),
    }
}

/// The header of a plain query or of its answer.
fn is_maybe_dns(data: &[u8]) -> bool {
    message::Header::read(data).is_some_and(|header| header.opcode() == 0 && header.counts[0] == 1)
}

/// One well-formed question in the Internet class and nothing behind the last record: no other protocol looks like
/// that, except NetBIOS name service (RFC 1002), whose names are 32 letters from A to P.
fn is_surely_dns(data: &[u8]) -> bool {
    let Some(message) = Message::read(data) else { return false };
    let [query] = message.queries.as_slice() else { return false };
    let name = message.text(query.name);
    let is_netbios = name.len() >= 32 && name.iter().take(32).all(|byte| (b'A'..=b'P').contains(byte));
    message.events.is_empty()
        && message.is_exact
        && message.header.opcode() == 0
        && query.class == 1
        && types::rrtype_name(query.rrtype).is_some()
        && !is_netbios
}
