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
mod dhcp;
mod dnp3;
mod dns;
mod enip;
mod framed;
mod ftp;
mod http;
mod iec104;
mod json;
mod line;
mod modbus;
mod mqtt;
mod ntp;
mod opcua;
mod pair;
mod pop3;
mod protocol;
mod reader;
mod recognised;
mod rfb;
mod s7comm;
mod settings;
mod sip;
mod smtp;
mod snmp;
mod ssh;
#[cfg(test)]
mod testing;
mod tftp;
mod tls;
mod transactions;

pub use body::{Body, BodyState};
pub use ftp::{Expected as FtpExpected, FtpTransaction, Transfer as FtpTransfer, data_parser as ftp_data_parser};
pub use http::HttpTransaction;
pub use json::Json;
pub use protocol::{
    BufferInfo, COMPLETE, Custom, KeywordInfo, MOST_HELD, NumberInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Start, Transaction, Transport, View, Way, Ways,
};
pub use reader::Reader;
pub use settings::Settings;
pub use tls::Session as TlsSession;
pub use transactions::Transactions;

/// Every protocol there is, in the order in which their probes are asked.
pub static PROTOCOLS: &[&Protocol] = &[
    // those that begin with words or magic numbers of their own
    &recognised::HTTP2,
    &http::PROTOCOL,
    &tls::PROTOCOL,
    &ssh::PROTOCOL,
    &smtp::PROTOCOL,
    &ftp::PROTOCOL,
    &ftp::DATA,
    &sip::PROTOCOL,
    &pop3::PROTOCOL,
    &recognised::IMAP,
    &rfb::PROTOCOL,
    &recognised::TELNET,
    &dnp3::PROTOCOL,
    &opcua::PROTOCOL,
    &mqtt::PROTOCOL,
    &recognised::SMB,
    // those that are recognised by their structure
    &s7comm::PROTOCOL,
    &recognised::RDP,
    &enip::PROTOCOL,
    &iec104::PROTOCOL,
    &modbus::PROTOCOL,
    &bacnet::PROTOCOL,
    &dns::MDNS,
    &dns::LLMNR,
    &dns::DNS,
    &coap::PROTOCOL,
    &dhcp::PROTOCOL,
    &snmp::PROTOCOL,
    &tftp::PROTOCOL,
    &ntp::PROTOCOL,
    &recognised::DCERPC,
    &recognised::NFS,
    &recognised::KRB5,
    &recognised::LDAP,
    &recognised::QUIC,
    &recognised::IKE,
    &recognised::WEBSOCKET,
];
