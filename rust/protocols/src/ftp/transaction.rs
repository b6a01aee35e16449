//! A command and its reply.

use std::any::Any;
use std::net::IpAddr;

use super::keyword::{buffer, number};
use super::port::Announced;
use super::step;
use crate::{COMPLETE, Json, Transaction, View, Way};

/// Lines of one reply that are kept; `HELP` and `FEAT` stay below.
const MOST_REPLIES: usize = 64;
/// Bytes of one reply that are kept.
const MOST_REPLY_BYTES: usize = 16 << 10;

/// Which way a file goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// `RETR`: to the client.
    Retrieve,
    /// `STOR`: to the server.
    Store,
}

impl Transfer {
    /// The command.
    pub fn command(self) -> &'static str {
        match self {
            Transfer::Retrieve => "RETR",
            Transfer::Store => "STOR",
        }
    }
}

/// A flow of data that a transfer announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The port that was announced: the server's, or in active mode the client's.
    pub port: u16,
    /// The server connects to the client.
    pub is_active: bool,
    /// What for.
    pub transfer: Transfer,
    /// The file's name as the command gives it.
    pub name: Vec<u8>,
}

/// A line of a reply.
#[derive(Debug)]
pub struct Reply {
    code: Option<[u8; 3]>,
    text: Box<[u8]>,
}

/// A command and its reply; a greeting has no command.
#[derive(Debug, Default)]
pub struct FtpTransaction {
    pub(super) command: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) is_command_cut: bool,
    replies: Vec<Reply>,
    reply_bytes: usize,
    is_reply_cut: bool,
    has_reply: bool,
    pub(super) announced: Option<Announced>,
    pub(super) is_active: bool,
    pub(super) expected: Option<Expected>,
    is_done: bool,
    pub(super) events: Vec<u8>,
}

impl FtpTransaction {
    pub(super) fn new(command: Vec<u8>, data: Vec<u8>, is_command_cut: bool) -> FtpTransaction {
        FtpTransaction { command, data, is_command_cut, ..FtpTransaction::default() }
    }

    /// The flow of data that this transfer will use, if it is one.
    pub fn expected(&self) -> Option<&Expected> {
        self.expected.as_ref()
    }

    /// The address that `PORT`, `EPRT` or a reply to `PASV` names. It is not the peer's own in an FTP bounce.
    pub fn announced_address(&self) -> Option<IpAddr> {
        self.announced.and_then(|announced| announced.address)
    }

    /// The port that was announced.
    pub fn dynamic_port(&self) -> Option<u16> {
        self.announced.map(|announced| announced.port)
    }

    /// Whether the server opens the flow of data; `None` where no port was announced.
    pub fn is_active(&self) -> Option<bool> {
        self.announced.map(|_| self.is_active)
    }

    /// The reply has come.
    pub fn has_reply(&self) -> bool {
        self.has_reply && self.is_done
    }

    /// In upper case.
    pub fn command(&self) -> &[u8] {
        &self.command
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    pub(super) fn finish(&mut self) {
        self.is_done = true;
    }

    pub(super) fn raise(&mut self, event: u8) {
        if !self.events.contains(&event) {
            self.events.push(event);
        }
    }

    pub(super) fn add_reply(&mut self, line: &[u8], is_cut: bool) {
        self.has_reply = true;
        self.is_reply_cut |= is_cut;
        let (code, text) = split_code(line);
        let bytes = text.len();
        if self.replies.len() >= MOST_REPLIES || self.reply_bytes.saturating_add(bytes) > MOST_REPLY_BYTES {
            self.is_reply_cut = true;
            return;
        }
        self.reply_bytes += bytes;
        self.replies.push(Reply { code, text: text.into() });
    }

    pub(super) fn heap_bytes(&self) -> usize {
        let expected = self.expected.as_ref().map_or(0, |expected| expected.name.capacity());
        self.command.capacity()
            + self.data.capacity()
            + self.replies.capacity() * size_of::<Reply>()
            + self.reply_bytes
            + expected
            + size_of::<FtpTransaction>()
    }
}

/// `331 Password required.`: the code, and what comes behind it.
pub fn split_code(line: &[u8]) -> (Option<[u8; 3]>, &[u8]) {
    match line.first_chunk::<3>() {
        Some(code) if code.iter().all(u8::is_ascii_digit) && matches!(line.get(3), None | Some(b' ' | b'-')) => {
            (Some(*code), line.get(4..).unwrap_or_default())
        }
        _ => (None, line),
    }
}

impl Transaction for FtpTransaction {
    fn progress(&self, way: Way) -> u8 {
        match way {
            _ if self.is_done => COMPLETE,
            Way::ToServer => step::LINE,
            Way::ToClient => {
                if self.has_reply {
                    step::LINE
                } else {
                    0
                }
            }
        }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let text = match (index, way) {
            (buffer::COMMAND, Way::ToServer) if nth == 0 => &self.command,
            (buffer::COMMAND_DATA, Way::ToServer) if nth == 0 => &self.data,
            (buffer::REPLY, Way::ToClient) => {
                return self.replies.get(nth).map(|reply| View::whole(&reply.text));
            }
            (buffer::COMPLETION_CODE, Way::ToClient) => {
                let mut codes = self.replies.iter().filter_map(|reply| reply.code.as_ref());
                return codes.nth(nth).map(|code| View::whole(code));
            }
            _ => return None,
        };
        Some(View::whole(text)).filter(|view| !view.data.is_empty())
    }

    fn number(&self, index: usize, _way: Way, nth: usize) -> Option<u64> {
        match index {
            number::DYNAMIC_PORT if nth == 0 => self.dynamic_port().map(u64::from),
            _ => None,
        }
    }

    fn events(&self) -> &[u8] {
        &self.events
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("ftp");
        if !self.command.is_empty() {
            json.text("command", &self.command);
        }
        if !self.data.is_empty() {
            json.text("command_data", &self.data);
            json.flag("command_truncated", self.is_command_cut);
        }
        if self.replies.iter().any(|reply| reply.code.is_some()) {
            json.open_array("completion_code");
            self.replies.iter().filter_map(|reply| reply.code).for_each(|code| json.text_element(code));
            json.close_array();
        }
        if self.has_reply {
            json.open_array("reply");
            self.replies.iter().for_each(|reply| json.text_element(&reply.text));
            json.close_array();
        }
        if let Some(port) = self.dynamic_port() {
            json.number("dynamic_port", port.into());
            json.text("mode", if self.is_active { "active" } else { "passive" });
        }
        json.text("reply_received", if self.has_reply() { "yes" } else { "no" });
        if self.has_reply {
            json.flag("reply_truncated", self.is_reply_cut);
        }
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
