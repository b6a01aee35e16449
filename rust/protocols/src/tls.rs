//! TLS (RFC 5246, RFC 8446) and what SSL was before it: who is spoken to, which certificates are shown, and what the
//! greetings betray about the software behind them.
//!
//! Promises: one transaction for the session, the same wherever the stream is cut. What is encrypted is skipped unread.
//! Leaves to others: whether a certificate is trusted, or was valid at the time of the capture (there is no clock here).
//! Read first: `records.rs`, then `session.rs`.

mod certificate;
mod dates;
pub(crate) mod der;
pub(crate) mod fingerprint;
mod hello;
mod keywords;
mod log;
pub(crate) mod options;
mod records;
mod session;
mod sslv2;
#[cfg(test)]
mod tests;

pub use session::Session;

use crate::{
    BufferInfo, COMPLETE, KeywordInfo, NumberInfo, Probe, Protocol, RecordInfo, Settings, Start, Transport, Way, Ways,
};
use keywords as kw;
use records::Tls;

/// Steps of the client's way.
mod client {
    pub const HELLO: u8 = 1;
    pub const CERTIFICATE: u8 = 2;
    pub const HANDSHAKE: u8 = 3;
}

/// Steps of the server's way.
mod server {
    pub const HELLO: u8 = 1;
    pub const CERTIFICATE: u8 = 2;
    pub const HELLO_DONE: u8 = 3;
    pub const HANDSHAKE: u8 = 4;
}

mod buffer {
    pub const SNI: usize = 0;
    pub const SUBJECT: usize = 1;
    pub const ISSUER: usize = 2;
    pub const SERIAL: usize = 3;
    pub const FINGERPRINT: usize = 4;
    pub const ALT_NAME: usize = 5;
    pub const CERTS: usize = 6;
    pub const RANDOM: usize = 7;
    pub const RANDOM_TIME: usize = 8;
    pub const RANDOM_BYTES: usize = 9;
    pub const ALPN: usize = 10;
    pub const JA3_HASH: usize = 11;
    pub const JA3_STRING: usize = 12;
    pub const JA3S_HASH: usize = 13;
    pub const JA3S_STRING: usize = 14;
    pub const JA4_HASH: usize = 15;
}

mod number {
    pub const CHAIN_LENGTH: usize = 0;
}

/// Indices into [`EVENTS`].
mod event {
    pub const INVALID_SSLV2_HEADER: u8 = 0;
    pub const INVALID_TLS_HEADER: u8 = 1;
    pub const INVALID_RECORD_VERSION: u8 = 2;
    pub const INVALID_RECORD_TYPE: u8 = 3;
    pub const INVALID_HANDSHAKE_MESSAGE: u8 = 4;
    pub const HEARTBEAT_MESSAGE: u8 = 5;
    pub const INVALID_HEARTBEAT_MESSAGE: u8 = 6;
    pub const OVERFLOW_HEARTBEAT_MESSAGE: u8 = 7;
    pub const DATALEAK_HEARTBEAT_MISMATCH: u8 = 8;
    pub const HANDSHAKE_INVALID_LENGTH: u8 = 9;
    pub const MULTIPLE_SNI_EXTENSIONS: u8 = 10;
    pub const INVALID_SNI_TYPE: u8 = 11;
    pub const INVALID_SNI_LENGTH: u8 = 12;
    pub const TOO_MANY_RECORDS_IN_PACKET: u8 = 13;
    pub const INVALID_ALERT: u8 = 14;
    pub const INVALID_SSL_RECORD: u8 = 15;
    pub const INVALID_CERTIFICATE: u8 = 16;
    pub const CERTIFICATE_INVALID_LENGTH: u8 = 17;
    pub const CERTIFICATE_INVALID_VERSION: u8 = 18;
    pub const CERTIFICATE_INVALID_SERIAL: u8 = 19;
    pub const CERTIFICATE_INVALID_X509NAME: u8 = 20;
    pub const CERTIFICATE_INVALID_DATE: u8 = 21;
    pub const CERTIFICATE_INVALID_EXTENSIONS: u8 = 22;
    pub const CERTIFICATE_INVALID_DER: u8 = 23;
    pub const ERROR_MESSAGE_ENCOUNTERED: u8 = 28;
}

const EVENTS: &[&str] = &[
    "invalid_sslv2_header",
    "invalid_tls_header",
    "invalid_record_version",
    "invalid_record_type",
    "invalid_handshake_message",
    "heartbeat_message",
    "invalid_heartbeat_message",
    "overflow_heartbeat_message",
    "dataleak_heartbeat_mismatch",
    "handshake_invalid_length",
    "multiple_sni_extensions",
    "invalid_sni_type",
    "invalid_sni_length",
    "too_many_records_in_packet",
    "invalid_alert",
    "invalid_ssl_record",
    "invalid_certificate",
    "certificate_invalid_length",
    "certificate_invalid_version",
    "certificate_invalid_serial",
    "certificate_invalid_x509name",
    "certificate_invalid_date",
    "certificate_invalid_extensions",
    "certificate_invalid_der",
    "certificate_invalid_algorithmidentifier",
    "certificate_missing_element",
    "certificate_unknown_element",
    "certificate_invalid_string",
    "error_message_encountered",
];

const fn one(keyword: &'static str, aliases: &'static [&'static str], ways: Ways, progress: u8) -> BufferInfo {
    BufferInfo { keyword, aliases, modifiers: &[], ways, progress, is_multiple: false, is_growing: false }
}

const fn many(keyword: &'static str, ways: Ways, progress: u8) -> BufferInfo {
    BufferInfo { keyword, aliases: &[], modifiers: &[], ways, progress, is_multiple: true, is_growing: false }
}

const BUFFERS: &[BufferInfo] = &[
    one("tls.sni", &["tls_sni"], Ways::ToServer, client::HELLO),
    one("tls.cert_subject", &["tls_cert_subject"], Ways::Both, server::CERTIFICATE),
    one("tls.cert_issuer", &["tls_cert_issuer"], Ways::Both, server::CERTIFICATE),
    one("tls.cert_serial", &["tls_cert_serial"], Ways::Both, server::CERTIFICATE),
    one("tls.cert_fingerprint", &["tls_cert_fingerprint"], Ways::Both, server::CERTIFICATE),
    many("tls.subjectaltname", Ways::ToClient, server::CERTIFICATE),
    many("tls.certs", Ways::Both, server::CERTIFICATE),
    one("tls.random", &[], Ways::Both, server::HELLO),
    one("tls.random_time", &[], Ways::Both, server::HELLO),
    one("tls.random_bytes", &[], Ways::Both, server::HELLO),
    many("tls.alpn", Ways::Both, server::HELLO),
    one("ja3.hash", &["ja3_hash"], Ways::ToServer, client::HELLO),
    one("ja3.string", &["ja3_string"], Ways::ToServer, client::HELLO),
    one("ja3s.hash", &[], Ways::ToClient, server::HELLO),
    one("ja3s.string", &[], Ways::ToClient, server::HELLO),
    one("ja4.hash", &["ja4_hash"], Ways::ToServer, client::HELLO),
];

const fn custom(
    keyword: &'static str,
    aliases: &'static [&'static str],
    ways: Ways,
    progress: u8,
    parse: fn(&str) -> Result<Box<dyn crate::Custom>, String>,
) -> KeywordInfo {
    KeywordInfo { keyword, aliases, ways, progress, parse }
}

const KEYWORDS: &[KeywordInfo] = &[
    custom("tls.version", &[], Ways::Both, server::HELLO, kw::parse_tls_version),
    custom("ssl_version", &[], Ways::Both, server::HELLO, kw::parse_ssl_version),
    custom("ssl_state", &[], Ways::Both, 0, kw::parse_ssl_state),
    custom("tls_cert_notbefore", &[], Ways::ToClient, server::CERTIFICATE, kw::parse_not_before),
    custom("tls_cert_notafter", &[], Ways::ToClient, server::CERTIFICATE, kw::parse_not_after),
    custom("tls.fingerprint", &[], Ways::ToClient, server::CERTIFICATE, kw::parse_fingerprint),
    custom("tls.issuerdn", &[], Ways::ToClient, server::CERTIFICATE, kw::parse_issuer),
    custom("tls.subject", &[], Ways::ToClient, server::CERTIFICATE, kw::parse_subject),
    custom("tls.store", &["tls_store"], Ways::Both, server::CERTIFICATE, kw::parse_store),
];

/// Names of Suricata 8 (milestones) and those of Suricata 9 (phases), where they mean the same.
const STATES: &[(&str, Way, u8)] = &[
    ("client_in_progress", Way::ToServer, 0),
    ("client_hello_done", Way::ToServer, client::HELLO),
    ("client_cert_done", Way::ToServer, client::CERTIFICATE),
    ("client_handshake_done", Way::ToServer, client::HANDSHAKE),
    ("client_finished", Way::ToServer, COMPLETE),
    ("client_started", Way::ToServer, 0),
    ("client_hello", Way::ToServer, client::HELLO),
    ("client_cert", Way::ToServer, client::CERTIFICATE),
    ("client_data", Way::ToServer, client::HANDSHAKE),
    ("server_in_progress", Way::ToClient, 0),
    ("server_hello", Way::ToClient, server::HELLO),
    ("server_cert_done", Way::ToClient, server::CERTIFICATE),
    ("server_hello_done", Way::ToClient, server::HELLO_DONE),
    ("server_handshake_done", Way::ToClient, server::HANDSHAKE),
    ("server_finished", Way::ToClient, COMPLETE),
    ("server_started", Way::ToClient, 0),
    ("server_cert", Way::ToClient, server::CERTIFICATE),
    ("server_data", Way::ToClient, server::HANDSHAKE),
];

/// TLS.
pub static PROTOCOL: Protocol = Protocol {
    name: "tls",
    aliases: &["ssl"],
    transports: &[Transport::Tcp],
    ports: &[443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 5061, 8443, 8883],
    probe,
    parser: |settings: &Settings, _| Box::new(Tls::new(settings)),
    buffers: BUFFERS,
    numbers: &[NumberInfo {
        keyword: "tls.cert_chain_len",
        aliases: &["tls_cert_chain_len"],
        ways: Ways::ToClient,
        progress: server::CERTIFICATE,
        bits: 32,
        names: &[],
        is_multiple: false,
    }],
    keywords: KEYWORDS,
    states: STATES,
    records: &[RecordInfo {
        event_type: "tls",
        to_server: client::HANDSHAKE,
        to_client: server::HANDSHAKE,
        way: Way::ToServer,
    }],
    events: EVENTS,
};

/// A record that holds the beginning of a hello, or a hello in SSLv2's clothes.
fn probe(start: &Start<'_>) -> Probe {
    let data = start.data;
    match data.first() {
        Some(0x16) => probe_handshake(start),
        Some(0x15) if start.way == Way::ToClient => match data {
            // a server that refuses at once: a fatal or warning alert of two bytes
            [_, 3, 0..=4, 0, 2, 1 | 2, ..] => Probe::Yes,
            [_] | [_, 3] | [_, 3, 0..=4] | [_, 3, 0..=4, 0] | [_, 3, 0..=4, 0, 2] => Probe::More,
            _ => Probe::No,
        },
        Some(first) if first & 0x80 != 0 => sslv2::probe(data, start.way),
        _ => Probe::No,
    }
}

fn probe_handshake(start: &Start<'_>) -> Probe {
    match start.data {
        [_, 3, 0..=4, high, low, kind, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            match (kind, start.way) {
                _ if length == 0 || length > records::MOST_RECORD => Probe::No,
                (1, Way::ToServer) | (0 | 2, Way::ToClient) => Probe::Yes,
                (1, Way::ToClient) | (2, Way::ToServer) => Probe::YesReversed,
                _ => Probe::No,
            }
        }
        [_] | [_, 3] | [_, 3, 0..=4] | [_, 3, 0..=4, _] | [_, 3, 0..=4, _, _] => Probe::More,
        _ => Probe::No,
    }
}
