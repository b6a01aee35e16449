//! What EVE says about a message: DNS in its formats 2 and 3, and the multicast protocols.

use super::message::{Message, Query, Record, Span};
use super::rdata::Data;
use super::transaction::Style;
use super::types::{rcode_text, rrtype_text};
use crate::{Json, Reader};

/// Options of EDNS that are logged; a request has two or three.
const MOST_OPTIONS: usize = 32;

/// Format 3, the one of Suricata 8.
pub fn write_v3(message: &Message, id: u64, style: Style, json: &mut Json) {
    json.open("dns");
    json.number("version", 3);
    json.text("type", if message.header.is_response() { "response" } else { "request" });
    json.number("tx_id", id);
    json.number("id", message.header.id.into());
    write_flags(message, json);
    json.number("opcode", message.header.opcode().into());
    json.text("rcode", rcode_text(message.header.rcode()));
    if !message.queries.is_empty() {
        json.open_array("queries");
        for query in &message.queries {
            json.open_element();
            write_question(message, query, json);
            json.close();
        }
        json.close_array();
    }
    write_sections(message, style, json);
    json.close();
}

/// Format 2, query or answer.
pub fn write_v2(message: &Message, id: u64, style: Style, json: &mut Json) {
    json.open("dns");
    write_v2_members(message, id, style, json);
    json.close();
}

/// Format 2 inside an alert: queries in a list, the answer as an object.
pub fn write_v2_alert(message: &Message, id: u64, style: Style, json: &mut Json) {
    json.open("dns");
    if message.header.is_response() {
        json.open("answer");
        write_v2_members(message, id, style, json);
        json.close();
    } else {
        json.open_array("query");
        json.open_element();
        write_v2_members(message, id, style, json);
        json.close();
        json.close_array();
    }
    json.close();
}

fn write_v2_members(message: &Message, id: u64, style: Style, json: &mut Json) {
    json.number("version", 2);
    let is_response = message.header.is_response();
    json.text("type", if is_response { "answer" } else { "query" });
    json.number("id", message.header.id.into());
    if is_response {
        write_flags(message, json);
    }
    if let Some(query) = message.queries.first() {
        write_question(message, query, json);
    }
    json.number("opcode", message.header.opcode().into());
    if is_response {
        json.text("rcode", rcode_text(message.header.rcode()));
        write_sections(message, style, json);
    } else {
        json.number("tx_id", id);
    }
}

fn write_flags(message: &Message, json: &mut Json) {
    let flags = message.header.flags;
    json.plain("flags", format_args!("{flags:x}"));
    for (name, bit) in [("qr", 0x8000), ("aa", 0x400), ("tc", 0x200), ("rd", 0x100), ("ra", 0x80), ("z", 0x40)] {
        if flags & bit != 0 {
            json.flag(name, true);
        }
    }
}

fn write_question(message: &Message, query: &Query, json: &mut Json) {
    json.text("rrname", message.text(query.name));
    json.text("rrtype", rrtype_text(query.rrtype));
}

fn write_sections(message: &Message, style: Style, json: &mut Json) {
    let (answers, authorities) = (message.answers(), message.authorities());
    if style.is_detailed {
        let sections = [("answers", answers), ("authorities", authorities), ("additionals", message.additionals())];
        for (name, records) in sections {
            write_records(message, name, records, json);
        }
    }
    if style.is_grouped && !answers.is_empty() {
        write_groups(message, answers, json);
    }
}

fn write_records(message: &Message, name: &str, records: &[Record], json: &mut Json) {
    if records.is_empty() {
        return;
    }
    json.open_array(name);
    for record in records {
        json.open_element();
        json.text("rrname", message.text(record.name));
        json.text("rrtype", rrtype_text(record.rrtype));
        json.number("ttl", record.ttl.into());
        write_data(message, "rdata", &record.data, json);
        json.close();
    }
    json.close_array();
}

/// Write a record's data: text under `name`, structures under names of their own.
fn write_data(message: &Message, name: &str, data: &Data, json: &mut Json) {
    match data {
        Data::V4(address) => json.plain(name, address),
        Data::V6(address) => json.plain(name, full(address)),
        Data::Name(span) | Data::Text(span) => json.text(name, message.text(*span)),
        Data::Soa(_) => {
            json.open("soa");
            write_structure(message, data, json);
            json.close();
        }
        Data::Srv { .. } => {
            json.open("srv");
            write_structure(message, data, json);
            json.close();
        }
        Data::Sshfp { .. } => {
            json.open("sshfp");
            write_structure(message, data, json);
            json.close();
        }
        Data::Options(span) => write_options(message, *span, json),
        Data::Unknown => {}
    }
}

fn write_structure(message: &Message, data: &Data, json: &mut Json) {
    match data {
        Data::Soa(soa) => {
            json.text("mname", message.text(soa.primary));
            json.text("rname", message.text(soa.mailbox));
            for (name, value) in ["serial", "refresh", "retry", "expire", "minimum"].into_iter().zip(soa.numbers) {
                json.number(name, value.into());
            }
        }
        Data::Srv { priority, weight, port, target } => {
            json.number("priority", (*priority).into());
            json.number("weight", (*weight).into());
            json.number("port", (*port).into());
            json.text("name", message.text(*target));
        }
        Data::Sshfp { algorithm, kind, fingerprint } => {
            let pairs: Vec<String> = message.text(*fingerprint).iter().map(|byte| format!("{byte:02x}")).collect();
            json.plain("fingerprint", pairs.join(":"));
            json.number("algo", (*algorithm).into());
            json.number("type", (*kind).into());
        }
        _ => {}
    }
}

fn write_options(message: &Message, span: Span, json: &mut Json) {
    let mut reader = Reader::new(message.text(span));
    json.open_array("opt");
    for _ in 0..MOST_OPTIONS {
        let (Some(code), Some(length)) = (reader.be16(), reader.be16()) else { break };
        let Some(data) = reader.take(length.into()) else { break };
        json.open_element();
        json.number("code", code.into());
        json.hex("data", data);
        json.close();
    }
    json.close_array();
}

/// Answers' data by type: `"A":["192.0.2.1"]`.
fn write_groups(message: &Message, answers: &[Record], json: &mut Json) {
    const GROUPED: [u16; 12] = [1, 28, 5, 12, 15, 2, 39, 16, 10, 33, 44, 6];
    json.open("grouped");
    for rrtype in GROUPED {
        let mut is_open = false;
        for record in answers.iter().filter(|record| record.rrtype == rrtype) {
            if matches!(record.data, Data::Unknown) {
                continue;
            }
            if !is_open {
                json.open_array(&rrtype_text(rrtype));
                is_open = true;
            }
            write_element(message, &record.data, json);
        }
        if is_open {
            json.close_array();
        }
    }
    json.close();
}

fn write_element(message: &Message, data: &Data, json: &mut Json) {
    match data {
        Data::V4(address) => json.text_element(address.to_string()),
        Data::V6(address) => json.text_element(full(address)),
        Data::Name(span) | Data::Text(span) => json.text_element(message.text(*span)),
        _ => {
            json.open_element();
            write_structure(message, data, json);
            json.close();
        }
    }
}

/// Addresses in EVE are written with all eight groups.
fn full(address: &std::net::Ipv6Addr) -> String {
    address.segments().map(|segment| format!("{segment:04x}")).join(":")
}

/// mDNS and LLMNR: flags as a list, types in small letters, and data under the type's name.
pub fn write_multicast(name: &str, message: &Message, json: &mut Json) {
    let header = &message.header;
    json.open(name);
    json.text("type", if header.is_response() { "response" } else { "request" });
    if header.id != 0 {
        json.number("id", header.id.into()); // RFC 6762 section 18.1: it should be zero
    }
    json.open_array("flags");
    for (flag, bit) in [("aa", 0x400), ("tc", 0x200), ("rd", 0x100), ("ra", 0x80), ("z", 0x40)] {
        if header.flags & bit != 0 {
            json.text_element(flag);
        }
    }
    json.close_array();
    json.number("opcode", header.opcode().into());
    if header.rcode() != 0 {
        json.text("rcode", rcode_text(header.rcode()));
    }
    if !message.queries.is_empty() {
        json.open_array("queries");
        for query in &message.queries {
            json.open_element();
            json.text("rrname", message.text(query.name));
            json.text("rrtype", rrtype_text(query.rrtype).to_ascii_lowercase());
            json.close();
        }
        json.close_array();
    }
    let sections = [
        ("answers", message.answers()),
        ("authorities", message.authorities()),
        ("additionals", message.additionals()),
    ];
    for (name, records) in sections {
        write_multicast_records(message, name, records, json);
    }
    json.close();
}

fn write_multicast_records(message: &Message, name: &str, records: &[Record], json: &mut Json) {
    if records.is_empty() {
        return;
    }
    json.open_array(name);
    let mut rest = records;
    while let Some((record, behind)) = rest.split_first() {
        rest = behind;
        let rrtype = rrtype_text(record.rrtype).to_ascii_lowercase();
        json.open_element();
        json.text("rrname", message.text(record.name));
        json.text("rrtype", &rrtype);
        if let Data::Text(text) = record.data {
            // the strings of one record stand behind one another and share their name
            json.open_array(&rrtype);
            json.text_element(message.text(text));
            while let Some((Record { name, data: Data::Text(text), .. }, behind)) = rest.split_first() {
                if *name != record.name {
                    break;
                }
                json.text_element(message.text(*text));
                rest = behind;
            }
            json.close_array();
        } else {
            write_data(message, &rrtype, &record.data, json);
        }
        json.close();
    }
    json.close_array();
}
