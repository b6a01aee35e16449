//! HTTP/1 and what came before (RFC 9110, RFC 9112): requests and responses with their bodies, decoded.
//!
//! Promises: what a browser or a server can be made to see in a message, a rule can see too. Whatever is written oddly
//! is read as the most lenient of them reads it, and where they differ, the bytes decide: a body that is no sequence of
//! chunks is no chunked body, whatever the header says.
//! Leaves to others: HTTP/2, WebSocket, and what follows CONNECT ([`crate::Parser::upgraded`]).
//! Read first: this file, then `http/side.rs`.

mod chunked;
mod coding;
mod config;
mod deflate;
mod event;
mod first_line;
mod header;
mod keyword;
mod line;
mod log;
mod multipart;
mod parser;
mod probe;
mod side;
#[cfg(test)]
mod tests;
mod transaction;
mod uri;

pub use transaction::HttpTransaction;

use crate::{COMPLETE, Protocol, RecordInfo, Settings, Transport, Way};

/// HTTP/1.
pub static PROTOCOL: Protocol = Protocol {
    name: "http",
    aliases: &["http1"],
    transports: &[Transport::Tcp],
    ports: &[80, 8080, 8000, 8008, 8081, 8888, 3128, 5985, 7547],
    probe: probe::probe,
    parser: |settings: &Settings, _| Box::new(parser::Http::new(settings)),
    buffers: keyword::BUFFERS,
    numbers: &[],
    keywords: &[],
    states: keyword::STATES,
    records: &[RecordInfo { event_type: "http", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: event::NAMES,
};
