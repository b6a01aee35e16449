//! Prints the tables of docs/formats/rule-keywords.md and eve.md that follow from [`protocols::PROTOCOLS`], as Markdown:
//! `cargo run -q -p protocols --example keywords`.

use protocols::{BufferInfo, NumberInfo, PROTOCOLS, Protocol, Transport, Ways};

fn main() {
    println!("| protocol | transport | usual ports | also called | records |\n|---|---|---|---|---|");
    for protocol in PROTOCOLS {
        println!(
            "| `{}` | {} | {} | {} | {} |",
            protocol.name,
            protocol.transports.iter().map(|one| transport(*one)).collect::<Vec<_>>().join(", "),
            protocol.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", "),
            quoted(protocol.aliases.iter().copied()),
            quoted(protocol.records.iter().map(|record| record.event_type)),
        );
    }
    for protocol in PROTOCOLS.iter().filter(|protocol| !is_bare(protocol)) {
        tables(protocol);
    }
}

fn is_bare(protocol: &Protocol) -> bool {
    protocol.buffers.is_empty() && protocol.numbers.is_empty() && protocol.keywords.is_empty()
}

fn tables(protocol: &Protocol) {
    println!("\n### {}\n\n| keyword | kind | way | also |\n|---|---|---|---|", protocol.name);
    for buffer in protocol.buffers {
        let also: Vec<&str> = buffer.aliases.iter().chain(buffer.modifiers).copied().collect();
        println!("| `{}` | {} | {} | {} |", buffer.keyword, kind(buffer), ways(buffer.ways), quoted(also.into_iter()));
    }
    for number in protocol.numbers {
        let also = quoted(number.aliases.iter().copied());
        println!("| `{}` | {} | {} | {} |", number.keyword, number_kind(number), ways(number.ways), also);
    }
    for keyword in protocol.keywords {
        let also = quoted(keyword.aliases.iter().copied());
        println!("| `{}` | own syntax | {} | {} |", keyword.keyword, ways(keyword.ways), also);
    }
    if !protocol.states.is_empty() {
        println!("\nHooks: {}.", quoted(protocol.states.iter().map(|(name, _, _)| *name)));
    }
    if !protocol.events.is_empty() {
        println!("\nEvents: {}.", quoted(protocol.events.iter().copied()));
    }
}

fn kind(buffer: &BufferInfo) -> &'static str {
    match (buffer.is_multiple, buffer.is_growing) {
        (true, _) => "buffers",
        (false, true) => "buffer, growing",
        (false, false) => "buffer",
    }
}

fn number_kind(number: &NumberInfo) -> String {
    let names = if number.names.is_empty() { "" } else { ", names" };
    let several = if number.is_multiple { ", several" } else { "" };
    format!("number, {} bits{names}{several}", number.bits)
}

fn ways(ways: Ways) -> &'static str {
    match ways {
        Ways::ToServer => "to server",
        Ways::ToClient => "to client",
        Ways::Both => "both",
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
