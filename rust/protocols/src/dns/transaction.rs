//! One message as a transaction.

use std::any::Any;

use super::message::{Message, Record};
use super::{Kind, buffer, log, number, types};
use crate::tls::options::items;
use crate::{COMPLETE, Json, Settings, Transaction, View, Way};

/// How messages are logged.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub kind: Kind,
    /// EVE's format of DNS: 2 or 3.
    pub version: u8,
    pub has_requests: bool,
    pub has_responses: bool,
    /// Records one by one.
    pub is_detailed: bool,
    /// Answers' data by type.
    pub is_grouped: bool,
}

impl Style {
    /// Read it from the settings of the log.
    pub fn new(kind: Kind, settings: &Settings) -> Style {
        let prefix = match kind {
            Kind::Dns => "outputs.eve-log.types.dns",
            Kind::Mdns => "outputs.eve-log.types.mdns",
            Kind::Llmnr => "outputs.eve-log.types.llmnr",
        };
        let formats = format!("{prefix}.formats");
        let formats = items(settings, &formats);
        let has = |name: &str| formats.is_empty() || formats.contains(&name);
        Style {
            kind,
            version: if settings.number(&format!("{prefix}.version"), 3) == 2 { 2 } else { 3 },
            has_requests: settings.flag(&format!("{prefix}.requests"), true),
            has_responses: settings.flag(&format!("{prefix}.responses"), true),
            is_detailed: has("detailed"),
            is_grouped: has("grouped"),
        }
    }
}

/// Types of questions that are logged; empty: all. Both lists of Suricata's configuration count, `types` and the older
/// `custom`.
pub fn logged_types(settings: &Settings) -> Vec<u16> {
    let names = ["types", "custom"].map(|list| format!("outputs.eve-log.types.dns.{list}"));
    let items = names.iter().flat_map(|name| items(settings, name));
    items.filter_map(|item| types::rrtype_number(&item.to_ascii_uppercase())).collect()
}

/// A message, or what was in its place.
pub struct Entry {
    pub id: u64,
    way: Way,
    message: Option<Box<Message>>,
    fault: [u8; 1],
    style: Style,
    /// Its question is of a type that is logged.
    is_wanted: bool,
}

impl Entry {
    pub fn new(way: Way, message: Message, style: Style, types: &[u16]) -> Entry {
        let is_wanted = types.is_empty() || message.queries.iter().any(|query| types.contains(&query.rrtype));
        Entry { id: 0, way, message: Some(Box::new(message)), fault: [0], style, is_wanted }
    }

    /// What could not be read: an event and nothing else.
    pub fn broken(way: Way, event: u8, style: Style) -> Entry {
        Entry { id: 0, way, message: None, fault: [event], style, is_wanted: false }
    }

    pub fn heap_bytes(&self) -> usize {
        self.message.as_ref().map_or(0, |message| message.heap_bytes() + size_of::<Message>())
    }

    /// Queries ask for a type in their question, answers tell types in their answers: what `dns.rrtype` compares.
    fn rrtype(message: &Message, way: Way, nth: usize) -> Option<u16> {
        match way {
            Way::ToServer => message.queries.get(nth).map(|query| query.rrtype),
            Way::ToClient => message.answers().get(nth).map(|answer| answer.rrtype),
        }
    }
}

impl Transaction for Entry {
    fn progress(&self, _way: Way) -> u8 {
        COMPLETE
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let message = self.message.as_ref().filter(|_| way == self.way)?;
        let of = |records: &[Record]| records.get(nth).map(|record| record.name);
        let name = match index {
            buffer::QUERIES => message.queries.get(nth).map(|query| query.name),
            buffer::QUERY if !message.header.is_response() => message.queries.get(nth).map(|query| query.name),
            buffer::ANSWERS => of(message.answers()),
            buffer::AUTHORITIES => of(message.authorities()),
            buffer::ADDITIONALS => of(message.additionals()),
            buffer::RESPONSE if message.header.is_response() => message.any_name(nth),
            _ => None,
        };
        Some(View::whole(message.text(name?)))
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        let message = self.message.as_ref().filter(|_| way == self.way)?;
        match index {
            number::RRTYPE => Entry::rrtype(message, way, nth).map(u64::from),
            _ if nth > 0 => None,
            number::OPCODE => Some(message.header.opcode().into()),
            number::RCODE => Some(message.header.rcode().into()),
            _ => None,
        }
    }

    fn events(&self) -> &[u8] {
        self.message.as_ref().map_or(&self.fault, |message| &message.events)
    }

    fn log(&self, record: Option<usize>, json: &mut Json) {
        let Some(message) = &self.message else { return };
        match (self.style.kind, self.style.version, record) {
            (Kind::Dns, 2, Some(_)) => log::write_v2(message, self.id, self.style, json),
            (Kind::Dns, 2, None) => log::write_v2_alert(message, self.id, self.style, json),
            (Kind::Dns, ..) => log::write_v3(message, self.id, self.style, json),
            (Kind::Mdns, ..) => log::write_multicast("mdns", message, json),
            (Kind::Llmnr, ..) => log::write_multicast("llmnr", message, json),
        }
    }

    fn is_logged(&self, record: usize) -> bool {
        let Some(message) = &self.message else { return false };
        let is_wanted = if message.header.is_response() { self.style.has_responses } else { self.style.has_requests };
        is_wanted && self.is_wanted && record == self.way as usize
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
