//! Application protocols: the bytes of a flow in, transactions out, with everything in them that a signature rule, a
//! log line or a detector may ask for.
//!
//! Promises: no input makes a parser panic, and what one parser holds is bounded by constants in its file. A parser
//! reads no clock, no randomness, no file. Adding a protocol is one file and one line in [`PROTOCOLS`].
//! Leaves to others: putting segments in order (crate `sensor`), matching (crate `signatures`).
//! Read first: `protocol.rs`, then one protocol, `ntp.rs`.
#![forbid(unsafe_code)]

mod body;
mod dhcp;
mod dns;
mod ftp;
mod http;
mod json;
mod line;
mod ntp;
mod pop3;
mod protocol;
mod reader;
mod recognised;
mod rfb;
mod settings;
mod sip;
mod smtp;
mod snmp;
mod ssh;
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
    &ntp::PROTOCOL,
    &dns::MDNS,
    &dns::LLMNR,
    &dns::DNS,
    &recognised::HTTP2,
    &http::PROTOCOL,
    &tls::PROTOCOL,
    &ssh::PROTOCOL,
    &dhcp::PROTOCOL,
    &snmp::PROTOCOL,
    &ftp::PROTOCOL,
    &ftp::DATA,
    &smtp::PROTOCOL,
    &sip::PROTOCOL,
    &tftp::PROTOCOL,
    &pop3::PROTOCOL,
    &rfb::PROTOCOL,
    &recognised::TELNET,
    &recognised::IMAP,
    &recognised::SMB,
    &recognised::DCERPC,
    &recognised::NFS,
    &recognised::KRB5,
    &recognised::LDAP,
    &recognised::RDP,
    &recognised::QUIC,
    &recognised::IKE,
    &recognised::WEBSOCKET,
];
