//! FTP (RFC 959, RFC 2428): commands with their replies, and which ports the data will take.
//!
//! Promises: a command and all lines of its reply are one transaction, pipelined or not, wherever the stream is cut.
//! Leaves to others: finding the data's flow. Whoever sees new transactions asks each for [`FtpTransaction::expected`];
//! a flow to that port (in active mode: from the server to the client's port) is then given [`data_parser`] instead of
//! being recognised, for no probe can tell a file from anything else.
//! Read first: `ftp/parser.rs`.

mod data;
mod keyword;
mod parser;
mod port;
#[cfg(test)]
mod tests;
mod transaction;

pub use data::{DATA, data_parser};
pub use transaction::{Expected, FtpTransaction, Transfer};

use crate::line::{begins, contains, first_line, may_become};
use crate::{COMPLETE, Probe, Protocol, RecordInfo, Settings, Start, Transport, Way};

/// Steps of each way before [`COMPLETE`].
mod step {
    /// To the server: the command is there. To the client: the first line of a reply is.
    pub const LINE: u8 = 1;
}

/// Indices into the events.
mod event {
    pub const REQUEST_TOO_LONG: u8 = 0;
    pub const RESPONSE_TOO_LONG: u8 = 1;
}

/// FTP's commands.
pub static PROTOCOL: Protocol = Protocol {
    name: "ftp",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[21],
    probe,
    parser: |settings: &Settings, _| Box::new(parser::Ftp::new(settings)),
    buffers: keyword::BUFFERS,
    numbers: keyword::NUMBERS,
    keywords: keyword::KEYWORDS,
    states: &[],
    records: &[RecordInfo { event_type: "ftp", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &["request_command_too_long", "response_command_too_long"],
};

/// Commands that only FTP has, or that are how its sessions begin.
static COMMANDS: &[&[u8]] =
    &[b"USER ", b"AUTH TLS", b"AUTH SSL", b"EPRT ", b"PORT ", b"FEAT\r\n", b"PASV\r\n", b"EPSV\r\n"];
/// A server's first line is decided on within this.
const MOST_BANNER: usize = 512;

fn probe(start: &Start<'_>) -> Probe {
    let (line, is_whole) = first_line(start.data);
    match start.way {
        Way::ToServer => {
            if let Some(command) = COMMANDS.iter().find(|command| begins(start.data, command)) {
                return probe_command(command, line, is_whole, start.is_usual_port);
            }
            let may_be = COMMANDS.iter().any(|command| may_become(start.data, command));
            if may_be { Probe::More } else { Probe::No }
        }
        Way::ToClient if !may_become(line.get(..line.len().min(3)).unwrap_or_default(), b"220") => Probe::No,
        Way::ToClient if line.len() >= 4 && !matches!(line.get(3), Some(b' ' | b'-')) => Probe::No,
        // other servers greet with this number too: a name decides, else what the client says
        Way::ToClient if contains(line, b"smtp") => Probe::No,
        Way::ToClient if line.len() >= 4 && (start.is_usual_port || contains(line, b"ftp")) => Probe::Yes,
        Way::ToClient if start.data.len() < MOST_BANNER => Probe::More,
        Way::ToClient => Probe::No,
    }
}

/// IRC has `USER` too, with four words behind it.
fn probe_command(command: &[u8], line: &[u8], is_whole: bool, is_usual_port: bool) -> Probe {
    if command != b"USER " || is_usual_port {
        return Probe::Yes;
    }
    match line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).count() {
        3.. => Probe::No,
        _ if is_whole => Probe::Yes,
        _ => Probe::More,
    }
}
