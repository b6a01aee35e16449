//! SMTP (RFC 5321) and the mails in it (RFC 5322, MIME: RFC 2045 to 2047, RFC 3030 for BDAT).
//!
//! Promises: one transaction for each mail, with its envelope, header and attachments decoded, pipelined or not, wherever
//! the stream is cut. Whatever a mail claims, its nesting, header and attachments cost a bounded amount.
//! Leaves to others: what follows STARTTLS ([`crate::Parser::upgraded`]).
//! Read first: `smtp/parser.rs`, then `smtp/mime.rs`.

mod decode;
mod field;
mod keyword;
mod log;
mod mime;
mod parser;
#[cfg(test)]
mod tests;
mod transaction;

use crate::line::{begins, contains, first_line, may_become};
use crate::{COMPLETE, Probe, Protocol, RecordInfo, Settings, Start, Transport, Way};

/// Steps to the server before [`COMPLETE`].
mod step {
    pub const STARTED: u8 = 1;
    /// The client has said its name.
    pub const HELO: u8 = 2;
    /// The sender is known.
    pub const SENDER: u8 = 3;
    /// All recipients are known: the mail begins.
    pub const DATA: u8 = 4;
    /// The mail's header is complete.
    pub const HEADER: u8 = 5;
}

/// Indices into [`EVENTS`].
mod event {
    pub const INVALID_REPLY: u8 = 0;
    pub const UNMATCHED_REPLY: u8 = 1;
    pub const LONG_COMMAND: u8 = 2;
    pub const LONG_REPLY: u8 = 3;
    pub const INVALID_PIPELINING: u8 = 4;
    pub const LONG_CHUNK: u8 = 5;
    pub const NO_WELCOME: u8 = 6;
    pub const TLS_REJECTED: u8 = 7;
    pub const DATA_REJECTED: u8 = 8;
    pub const MALFORMED_MIME: u8 = 11;
    pub const INVALID_BASE64: u8 = 12;
    pub const INVALID_QP: u8 = 13;
    pub const LONG_LINE: u8 = 14;
    pub const LONG_ENCODED_LINE: u8 = 15;
    pub const LONG_NAME: u8 = 16;
    pub const LONG_VALUE: u8 = 17;
    pub const LONG_BOUNDARY: u8 = 18;
    pub const LONG_FILE_NAME: u8 = 19;
    pub const DUPLICATE_FIELDS: u8 = 20;
    pub const TRUNCATED_LINE: u8 = 22;
}

static EVENTS: &[&str] = &[
    "invalid_reply",
    "unable_to_match_reply_with_request",
    "max_command_line_len_exceeded",
    "max_reply_line_len_exceeded",
    "invalid_pipelined_sequence",
    "bdat_chunk_len_exceeded",
    "no_server_welcome_message",
    "tls_rejected",
    "data_command_rejected",
    "failed_protocol_change",
    "mime_parse_failed",
    "mime_malformed_msg",
    "mime_invalid_base64",
    "mime_invalid_qp",
    "mime_long_line",
    "mime_long_enc_line",
    "mime_long_header_name",
    "mime_long_header_value",
    "mime_long_boundary",
    "mime_long_filename",
    "duplicate_fields",
    "unparsable_content",
    "truncated_line",
];

/// SMTP.
pub static PROTOCOL: Protocol = Protocol {
    name: "smtp",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[25, 587, 465, 2525],
    probe,
    parser: |settings: &Settings, _| Box::new(parser::Smtp::new(settings)),
    buffers: keyword::BUFFERS,
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[RecordInfo { event_type: "smtp", to_server: COMPLETE, to_client: 0, way: Way::ToServer }],
    events: EVENTS,
};

static COMMANDS: &[&[u8]] = &[b"EHLO ", b"HELO ", b"MAIL FROM:"];
/// A server's first line is decided on within this.
const MOST_BANNER: usize = 512;

fn probe(start: &Start<'_>) -> Probe {
    let (line, _) = first_line(start.data);
    match start.way {
        Way::ToServer if COMMANDS.iter().any(|command| begins(start.data, command)) => Probe::Yes,
        Way::ToServer if COMMANDS.iter().any(|command| may_become(start.data, command)) => Probe::More,
        Way::ToServer => Probe::No,
        Way::ToClient if !may_become(line.get(..line.len().min(3)).unwrap_or_default(), b"220") => Probe::No,
        Way::ToClient if line.len() >= 4 && !matches!(line.get(3), Some(b' ' | b'-')) => Probe::No,
        // FTP greets with this number too: a name decides, else what the client says
        Way::ToClient if contains(line, b"smtp") => Probe::Yes,
        Way::ToClient if contains(line, b"ftp") => Probe::No,
        Way::ToClient if line.len() >= 4 && start.is_usual_port => Probe::Yes,
        Way::ToClient if start.data.len() < MOST_BANNER => Probe::More,
        Way::ToClient => Probe::No,
    }
}
