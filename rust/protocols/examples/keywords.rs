//! Prints the part of docs/formats/rule-keywords.md that follows from [`protocols::PROTOCOLS`], as Markdown:
//! `cargo run -q -p protocols --example keywords`.

use protocols::{BufferInfo, NumberInfo, PROTOCOLS, Protocol, Transport, Ways};

/// A keyword: its kind, its ways, and the text for it.
type Row = (&'static str, Ways, String);

/// Kinds in the order of the tables.
const KINDS: [&str; 7] =
    ["buffer", "buffer that grows", "buffers", "number", "number with names", "numbers", "syntax of its own"];

/// Not in Suricata: the page describes them by hand, with examples.
const OURS: [&str; 5] = ["opcua", "s7comm", "iec104", "bacnet", "coap"];

fn main() {
    println!("| protocol | also | transport | usual ports | record |\n|---|---|---|---|---|");
    for protocol in PROTOCOLS {
        let mut records: Vec<&str> = protocol.records.iter().map(|record| record.event_type).collect();
        records.dedup();
        println!(
            "| `{}` | {} | {} | {} | {} |",
            protocol.name,
            quoted(protocol.aliases.iter().copied()),
            protocol.transports.iter().map(|one| transport(*one)).collect::<Vec<_>>().join(", "),
            protocol.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
            quoted(records.into_iter()),
        );
    }
    PROTOCOLS.iter().filter(|protocol| !OURS.contains(&protocol.name)).for_each(|protocol| table(protocol));
}

fn table(protocol: &Protocol) {
    let rows = rows(protocol);
    if rows.is_empty() && protocol.events.is_empty() {
        return;
    }
    println!("\n#### {}\n", protocol.name);
    if !rows.is_empty() {
        println!("| kind | to the server | to the client | both |\n|---|---|---|---|");
    }
    for kind in KINDS {
        let cell = |ways: Ways| {
            let texts = rows.iter().filter(|row| row.0 == kind && row.1 == ways).map(|row| row.2.as_str());
            texts.collect::<Vec<_>>().join(", ")
        };
        let cells = [cell(Ways::ToServer), cell(Ways::ToClient), cell(Ways::Both)];
        if cells.iter().any(|cell| !cell.is_empty()) {
            println!("| {kind} | {} |", cells.join(" | "));
        }
    }
    if !protocol.states.is_empty() {
        println!("\nHooks: {}.", quoted(protocol.states.iter().map(|(name, _, _)| *name)));
    }
    if !protocol.events.is_empty() {
        println!("\nEvents: {}.", quoted(protocol.events.iter().copied()));
    }
}

fn rows(protocol: &Protocol) -> Vec<Row> {
    let mut rows = Vec::new();
    for buffer in protocol.buffers {
        let also: Vec<&'static str> = buffer.aliases.iter().chain(buffer.modifiers).copied().collect();
        rows.push((buffer_kind(buffer), buffer.ways, named(buffer.keyword, &also)));
    }
    for number in protocol.numbers {
        rows.push((number_kind(number), number.ways, named(number.keyword, number.aliases)));
    }
    for keyword in protocol.keywords {
        rows.push(("syntax of its own", keyword.ways, named(keyword.keyword, keyword.aliases)));
    }
    rows
}

fn named(keyword: &str, also: &[&str]) -> String {
    match also.is_empty() {
        true => format!("`{keyword}`"),
        false => format!("`{keyword}` ({})", quoted(also.iter().copied())),
    }
}

fn buffer_kind(buffer: &BufferInfo) -> &'static str {
    match (buffer.is_multiple, buffer.is_growing) {
        (true, _) => "buffers",
        (false, true) => "buffer that grows",
        (false, false) => "buffer",
    }
}

fn number_kind(number: &NumberInfo) -> &'static str {
    match (number.is_multiple, number.names.is_empty()) {
        (true, _) => "numbers",
        (false, false) => "number with names",
        (false, true) => "number",
    }
}

fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "TCP",
        Transport::Udp => "UDP",
    }
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
