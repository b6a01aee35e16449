//! What rules can look at in FTP.

use super::step;
use super::transaction::FtpTransaction;
use crate::{BufferInfo, COMPLETE, Custom, KeywordInfo, NumberInfo, Transaction, Way, Ways};

pub mod buffer {
    pub const COMMAND: usize = 0;
    pub const COMMAND_DATA: usize = 1;
    pub const REPLY: usize = 2;
    pub const COMPLETION_CODE: usize = 3;
}

pub mod number {
    pub const DYNAMIC_PORT: usize = 0;
}

const fn text(keyword: &'static str, ways: Ways, is_multiple: bool) -> BufferInfo {
    let progress = step::LINE;
    BufferInfo { keyword, aliases: &[], modifiers: &[], ways, progress, is_multiple, is_growing: false }
}

/// Sticky buffers.
pub static BUFFERS: &[BufferInfo] = &[
    text("ftp.command", Ways::ToServer, false),
    text("ftp.command_data", Ways::ToServer, false),
    text("ftp.reply", Ways::ToClient, true),
    text("ftp.completion_code", Ways::ToClient, true),
];

/// Integers.
pub static NUMBERS: &[NumberInfo] = &[NumberInfo {
    keyword: "ftp.dynamic_port",
    aliases: &[],
    ways: Ways::Both,
    progress: COMPLETE,
    bits: 16,
    names: &[],
    is_multiple: false,
}];

const fn custom(
    keyword: &'static str,
    ways: Ways,
    progress: u8,
    parse: fn(&str) -> Result<Box<dyn Custom>, String>,
) -> KeywordInfo {
    KeywordInfo { keyword, aliases: &[], ways, progress, parse }
}

/// Keywords with a syntax of their own.
pub static KEYWORDS: &[KeywordInfo] = &[
    custom("ftp.mode", Ways::Both, COMPLETE, parse_mode),
    custom("ftp.reply_received", Ways::Both, COMPLETE, parse_reply_received),
    custom("ftpbounce", Ways::ToServer, step::LINE, parse_bounce),
];

enum Test {
    IsActive(bool),
    HasReply(bool),
    Bounce,
}

impl Custom for Test {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        let Some(transaction) = transaction.as_any().downcast_ref::<FtpTransaction>() else { return false };
        match self {
            Test::IsActive(is_active) => transaction.is_active() == Some(*is_active),
            Test::HasReply(has_reply) => transaction.has_reply() == *has_reply,
            // whose address it is only the flow knows: see `matches_between`
            Test::Bounce => false,
        }
    }

    fn matches_between(&self, transaction: &dyn Transaction, way: Way, client: std::net::IpAddr) -> bool {
        let Test::Bounce = self else { return self.matches(transaction, way) };
        let Some(transaction) = transaction.as_any().downcast_ref::<FtpTransaction>() else { return false };
        let is_port = matches!(transaction.command(), b"PORT" | b"EPRT");
        is_port
            && transaction.announced_address().is_some_and(|address| address.to_canonical() != client.to_canonical())
    }
}

fn parse_mode(argument: &str) -> Result<Box<dyn Custom>, String> {
    match argument.trim().to_ascii_lowercase().as_str() {
        "active" => Ok(Box::new(Test::IsActive(true))),
        "passive" => Ok(Box::new(Test::IsActive(false))),
        other => Err(format!("{other} is neither active nor passive")),
    }
}

fn parse_reply_received(argument: &str) -> Result<Box<dyn Custom>, String> {
    match argument.trim().to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" | "1" => Ok(Box::new(Test::HasReply(true))),
        "no" | "off" | "false" | "0" => Ok(Box::new(Test::HasReply(false))),
        other => Err(format!("{other} is neither yes nor no")),
    }
}

fn parse_bounce(argument: &str) -> Result<Box<dyn Custom>, String> {
    match argument.trim() {
        "" => Ok(Box::new(Test::Bounce)),
        other => Err(format!("ftpbounce has no argument such as {other}")),
    }
}
