//! Application protocols: the bytes of a flow in, transactions out, with everything in them that a signature rule, a
//! log line or a detector may ask for.
//!
//! Promises: no input makes a parser panic, and what one parser holds is bounded by constants in its file. A parser
//! reads no clock, no randomness, no file. Adding a protocol is one file and one line in [`PROTOCOLS`].
//! Leaves to others: putting segments in order (crate `sensor`), matching (crate `signatures`).
//! Read first: `protocol.rs`, then one protocol, `ntp.rs`.
#![forbid(unsafe_code)]

mod bacnet;
mod body;
mod coap;
mod dnp3;
mod enip;
mod framed;
mod ftp;
mod ftp_data;
mod iec104;
mod json;
mod lines;
mod modbus;
mod mqtt;
mod ntp;
mod opcua;
mod pair;
mod protocol;
mod reader;
mod s7comm;
mod settings;
mod smtp;
mod telnet;
#[cfg(test)]
mod testing;
mod tftp;
mod transactions;

pub use body::{Body, BodyState};
pub use json::Json;
pub use protocol::{
    BufferInfo, COMPLETE, Custom, KeywordInfo, MOST_HELD, NumberInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Start, Transaction, Transport, View, Way, Ways,
};
pub use reader::Reader;
pub use settings::Settings;
pub use transactions::Transactions;

/// Every protocol there is, in the order in which their probes are asked.
pub static PROTOCOLS: &[&Protocol] = &[
    &ntp::PROTOCOL,
    &modbus::PROTOCOL,
    &mqtt::PROTOCOL,
    &dnp3::PROTOCOL,
    &enip::PROTOCOL,
    &coap::PROTOCOL,
    &bacnet::PROTOCOL,
    &s7comm::PROTOCOL,
    &iec104::PROTOCOL,
    &opcua::PROTOCOL,
    &tftp::PROTOCOL,
    &ftp::PROTOCOL,
    &ftp_data::PROTOCOL,
    &smtp::PROTOCOL,
    &telnet::PROTOCOL,
];
