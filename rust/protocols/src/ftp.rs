//! FTP (RFC 959): a command and the replies to it are one transaction. What the data connection carries is a protocol
//! of its own, `ftp_data.rs`.

use std::any::Any;

use crate::framed::{Events, buffer, buffers, find, number};
use crate::lines::{Line, Lines};
use crate::{
    BufferInfo, COMPLETE, Custom, Json, KeywordInfo, NumberInfo, ParseError, Parser, Probe, Protocol, RecordInfo,
    Settings, Start, Transaction, Transactions, Transport, View, Way, Ways,
};

/// Suricata's `ftp.max-line-length` default.
const MOST_LINE: u64 = 4096;
/// Lines of replies to one command that are kept: a greeting or HELP has some fifty.
const MOST_REPLIES: usize = 64;

/// Bytes of them that are kept, twice the longest line at least.
const MOST_REPLY_BYTES: usize = 16 << 10;
/// Commands that may wait for replies: clients that pipeline send a handful.
const MOST_WAITING: usize = 128;

mod event {
    pub const REQUEST_COMMAND_TOO_LONG: u8 = 0;
    pub const RESPONSE_COMMAND_TOO_LONG: u8 = 1;
}

const fn to(ways: Ways, info: BufferInfo) -> BufferInfo {
    BufferInfo { ways, ..info }
}

static BUFFERS: [BufferInfo; 4] = [
    to(Ways::ToServer, buffer("ftp.command")),
    to(Ways::ToServer, buffer("ftp.command_data")),
    to(Ways::ToClient, buffers("ftp.reply")),
    to(Ways::ToClient, buffers("ftp.completion_code")),
];

static NUMBERS: [NumberInfo; 1] = [NumberInfo { ways: Ways::ToClient, ..number("ftp.dynamic_port", 16, &[]) }];

const fn custom(keyword: &'static str, parse: fn(&str) -> Result<Box<dyn Custom>, String>) -> KeywordInfo {
    KeywordInfo { keyword, aliases: &[], ways: Ways::ToClient, progress: COMPLETE, parse }
}

/// FTP's control connection.
pub static PROTOCOL: Protocol = Protocol {
    name: "ftp",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[21],
    probe,
    parser: |settings: &Settings, _| Box::new(Ftp::new(settings)),
    buffers: &BUFFERS,
    numbers: &NUMBERS,
    keywords: &[
        custom("ftp.mode", |argument| match argument.trim().to_ascii_lowercase().as_str() {
            "active" => Ok(Box::new(IsMode(Mode::Active))),
            "passive" => Ok(Box::new(IsMode(Mode::Passive))),
            other => Err(format!("'{other}' is neither active nor passive")),
        }),
        custom("ftp.reply_received", |argument| match argument.trim().to_ascii_lowercase().as_str() {
            "yes" | "true" | "1" => Ok(Box::new(HasReply(true))),
            "no" | "false" | "0" => Ok(Box::new(HasReply(false))),
            other => Err(format!("'{other}' is neither yes nor no")),
        }),
    ],
    states: &[],
    records: &[RecordInfo { event_type: "ftp", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &["request_command_too_long", "response_command_too_long"],
};

fn probe(start: &Start<'_>) -> Probe {
    let line = start.data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = line.len() < start.data.len();
    let is_reply = line.len() > 3 && line.get(..3).is_some_and(|code| code.iter().all(u8::is_ascii_digit));
    if is_reply {
        // mail servers greet with 220 as well: elsewhere than on the port, the greeting has to say it
        let upper = line.to_ascii_uppercase();
        let is_named = upper.windows(3).any(|part| part == b"FTP") && upper.starts_with(b"220");
        let is_greeting = line.starts_with(b"220") || line.starts_with(b"120");
        return match is_named || (start.is_usual_port && is_greeting && is_whole) {
            true if start.way == Way::ToServer => Probe::YesReversed,
            true => Probe::Yes,
            false if is_whole || line.len() > 256 => Probe::No,
            false => Probe::More,
        };
    }
    let first: [&[u8]; 7] = [b"USER ", b"AUTH ", b"FEAT", b"SYST", b"OPTS ", b"HOST ", b"CLNT "];
    let begins = |word: &&[u8]| line.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    match start.is_usual_port && start.way == Way::ToServer {
        true if first.iter().any(begins) => Probe::Yes,
        true if !is_whole && first.iter().any(|word| word.starts_with(&line.to_ascii_uppercase())) => Probe::More,
        _ => Probe::No,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Active,
    Passive,
}

struct Ftp {
    transactions: Transactions<Exchange>,
    lines: [Lines; 2],
    most_line: usize,
    is_upgraded: bool,
    has_told: bool,
}

#[derive(Default)]
struct Exchange {
    command: Option<Vec<u8>>,
    argument: Vec<u8>,
    replies: Vec<Vec<u8>>,
    is_done: bool,
    is_command_cut: bool,
    is_reply_cut: bool,
    mode: Option<Mode>,
    port: Option<u16>,
    /// The code of a reply of several lines whose last has not come.
    open_code: Option<[u8; 3]>,
    events: Events,
}

impl Ftp {
    fn new(settings: &Settings) -> Ftp {
        let most = settings.number("app-layer.protocols.ftp.max-line-length", MOST_LINE).clamp(64, 32 << 10);
        Ftp {
            transactions: Transactions::new(MOST_WAITING),
            lines: Default::default(),
            most_line: usize::try_from(most).unwrap_or(4096),
            is_upgraded: false,
            has_told: false,
        }
    }

    /// Make place for one more; the oldest that has no reply gives way.
    fn make_place(&mut self) -> bool {
        if self.transactions.len() < MOST_WAITING {
            return true;
        }
        let first = self.transactions.range().0;
        if self.transactions.get(first).is_some_and(|it| it.is_done) {
            return false;
        }
        self.transactions.remove(first);
        true
    }

    fn request(&mut self, line: &Line<'_>) {
        let bytes = line.bytes;
        let at = bytes.iter().position(|byte| *byte == b' ').unwrap_or(bytes.len());
        let (command, argument) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
        let command = command.to_ascii_uppercase();
        let argument = argument.trim_ascii_start().to_vec();
        let (mode, port) = match command.as_slice() {
            b"PORT" => (Some(Mode::Active), numbers_port(&argument)),
            b"EPRT" => (Some(Mode::Active), extended_port(&argument)),
            b"PASV" | b"EPSV" => (Some(Mode::Passive), None),
            _ => (None, None),
        };
        let command = Some(command);
        let mut exchange =
            Exchange { command, argument, mode, port, is_command_cut: line.is_cut, ..Exchange::default() };
        if line.is_cut {
            exchange.events.add(event::REQUEST_COMMAND_TOO_LONG);
        }
        self.transactions.push(exchange);
    }

    fn reply(&mut self, line: &Line<'_>) {
        let id = match find(&mut self.transactions, |it| !it.is_done) {
            Some(id) => Some(id),
            None => self.transactions.push(Exchange::default()), // a greeting, or something that nobody asked for
        };
        let Some(exchange) = id.and_then(|id| self.transactions.get_mut(id)) else { return };
        exchange.answer(line);
        let is_tls = exchange.command.as_deref() == Some(b"AUTH")
            && exchange.replies.first().is_some_and(|it| it.starts_with(b"234"));
        self.is_upgraded |= exchange.is_done && is_tls;
    }
}

impl Exchange {
    fn answer(&mut self, line: &Line<'_>) {
        if line.is_cut {
            self.is_reply_cut = true;
            self.events.add(event::RESPONSE_COMMAND_TOO_LONG);
        }
        let held = self.replies.iter().map(Vec::len).sum::<usize>();
        if self.replies.len() < MOST_REPLIES && held + line.bytes.len() <= MOST_REPLY_BYTES {
            self.replies.push(line.bytes.to_vec());
        }
        let code = line.bytes.first_chunk::<3>().copied().filter(|code| code.iter().all(u8::is_ascii_digit));
        let Some(code) = code else {
            self.is_done |= self.open_code.is_none();
            return;
        };
        if self.open_code.is_some_and(|open| open != code) {
            return; // a line in the middle may look like a reply
        }
        if line.bytes.get(3) == Some(&b'-') {
            self.open_code = Some(code);
            return;
        }
        self.open_code = None;
        self.is_done = code[0] != b'1'; // 1yz: another reply follows
        match &code {
            b"227" => self.port = numbers_port(line.bytes),
            b"229" => self.port = extended_port(line.bytes),
            _ => {}
        }
    }

    fn code(line: &[u8]) -> Option<&[u8]> {
        line.get(..3).filter(|code| code.iter().all(u8::is_ascii_digit))
    }
}

/// The port in `(h1,h2,h3,h4,p1,p2)`: the last two of six numbers.
fn numbers_port(text: &[u8]) -> Option<u16> {
    let text = text.get(text.iter().position(|byte| *byte == b'(').map_or(0, |at| at + 1)..)?;
    let mut parts = text.split(|byte| *byte == b',').skip(4);
    let mut number = || {
        let digits = parts.next()?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
        std::str::from_utf8(digits.get(..end)?).ok()?.parse::<u8>().ok()
    };
    Some(u16::from_be_bytes([number()?, number()?]))
}

/// The port in `|2|address|port|` or `(|||port|)`: RFC 2428.
fn extended_port(text: &[u8]) -> Option<u16> {
    let from = text.iter().position(|byte| *byte == b'(').map_or(0, |at| at + 1);
    let text = text.get(from..)?;
    let separator = *text.first()?;
    let digits = text.split(|byte| *byte == separator).nth(3)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

impl Parser for Ftp {
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            if self.is_upgraded {
                return Ok(at);
            }
            if !self.make_place() {
                break;
            }
            let most = self.most_line;
            let Some(lines) = self.lines.get_mut(way as usize) else { break };
            let Some((read, line)) = lines.take(rest, most, is_end) else { break };
            at += read;
            match (line, way) {
                (Some(line), Way::ToServer) if !line.bytes.is_empty() => self.request(&line),
                (Some(line), Way::ToClient) if !line.bytes.is_empty() => self.reply(&line),
                _ => {}
            }
        }
        Ok(at)
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|it| it as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {
        self.transactions.iter_mut().for_each(|(_, it)| it.is_done = true);
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        (first..end).filter_map(|id| self.transactions.get(id)).map(Exchange::bytes).sum()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        let is_new = self.is_upgraded && !self.has_told;
        self.has_told |= is_new;
        is_new.then_some("tls")
    }
}

impl Exchange {
    fn bytes(&self) -> usize {
        let replies = self.replies.iter().map(|line| line.capacity() + size_of::<Vec<u8>>()).sum::<usize>();
        size_of::<Exchange>() + self.command.as_ref().map_or(0, Vec::capacity) + self.argument.capacity() + replies
    }
}

impl Transaction for Exchange {
    fn progress(&self, way: Way) -> u8 {
        if self.is_done || (way == Way::ToServer && self.command.is_some()) { COMPLETE } else { 0 }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        let bytes = match (index, way) {
            (0, Way::ToServer) if nth == 0 => self.command.as_deref()?,
            (1, Way::ToServer) if nth == 0 && self.command.is_some() => &self.argument,
            (2, Way::ToClient) => {
                let line = self.replies.get(nth)?;
                Exchange::code(line).and_then(|_| line.get(4..)).unwrap_or(line)
            }
            (3, Way::ToClient) => self.replies.iter().filter_map(|line| Exchange::code(line)).nth(nth)?,
            _ => return None,
        };
        Some(View::whole(bytes))
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        (index == 0 && nth == 0 && way == Way::ToClient).then_some(self.port).flatten().map(u64::from)
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("ftp");
        if let Some(command) = &self.command {
            json.text("command", command);
            if !self.argument.is_empty() {
                json.text("command_data", &self.argument);
            }
            json.flag("command_truncated", self.is_command_cut);
        }
        if !self.replies.is_empty() {
            json.open_array("completion_code");
            self.replies.iter().filter_map(|line| Exchange::code(line)).for_each(|code| json.text_element(code));
            json.close_array();
            json.open_array("reply");
            for line in &self.replies {
                json.text_element(Exchange::code(line).and_then(|_| line.get(4..)).unwrap_or(line));
            }
            json.close_array();
        }
        if let Some(port) = self.port {
            json.number("dynamic_port", u64::from(port));
        }
        if let Some(mode) = self.mode {
            json.text("mode", if mode == Mode::Active { "active" } else { "passive" });
        }
        json.flag("reply_truncated", self.is_reply_cut);
        json.text("reply_received", if self.replies.is_empty() { "no" } else { "yes" });
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct IsMode(Mode);
struct HasReply(bool);

impl Custom for IsMode {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        transaction.as_any().downcast_ref::<Exchange>().is_some_and(|it| it.mode == Some(self.0))
    }
}

impl Custom for HasReply {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        transaction.as_any().downcast_ref::<Exchange>().is_some_and(|it| it.replies.is_empty() != self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Talk, events, feed, json, matches, torture};

    fn talk() -> Talk {
        let line = |way, text: &[u8]| (way, text.to_vec());
        vec![
            line(Way::ToClient, b"220-Welcome\r\n220 to this FTP server\r\n"),
            line(Way::ToServer, b"user anna\r\n"),
            line(Way::ToClient, b"331 Password?\r\n"),
            line(Way::ToServer, b"PASV\r\nRETR a file.bin\r\n"),
            line(Way::ToClient, b"227 Entering Passive Mode (10,0,0,1,4,210).\r\n150 Opening\r\n226 Done\r\n"),
            line(Way::ToServer, b"EPRT |1|10.0.0.2|5000|\r\n"),
            line(Way::ToClient, b"200 fine\r\n"),
        ]
    }

    #[test]
    fn replies_find_their_commands() {
        let parser = feed(&PROTOCOL, Transport::Tcp, &talk(), usize::MAX);
        assert_eq!(parser.range(), (0, 5));
        assert!(json(&*parser, 0).contains(r#""reply":["Welcome","to this FTP server"]"#));
        assert!(json(&*parser, 1).contains(r#""command":"USER","command_data":"anna""#));
        assert!(json(&*parser, 2).contains(r#""dynamic_port":1234,"mode":"passive""#), "{}", json(&*parser, 2));
        assert!(json(&*parser, 3).contains(r#""completion_code":["150","226"]"#));
        assert!(json(&*parser, 4).contains(r#""dynamic_port":5000,"mode":"active""#));
        assert!(matches(&PROTOCOL, &*parser, 2, "ftp.mode", "passive", Way::ToClient));
        assert!(!matches(&PROTOCOL, &*parser, 1, "ftp.mode", "passive", Way::ToClient));
    }

    #[test]
    fn long_lines_are_cut_and_noticed() {
        let long = [&b"STOR "[..], &[b'x'; 9000], b"\r\nNOOP\r\n"].concat();
        let parser = feed(&PROTOCOL, Transport::Tcp, &vec![(Way::ToServer, long)], 1000);
        assert_eq!(parser.range(), (0, 2));
        assert_eq!(events(&PROTOCOL, &*parser, 0), ["request_command_too_long"]);
        assert!(json(&*parser, 1).contains("NOOP"));
    }

    #[test]
    fn tls_is_told_once() {
        let talk = vec![(Way::ToServer, b"AUTH TLS\r\n".to_vec()), (Way::ToClient, b"234 go\r\n".to_vec())];
        let mut parser = feed(&PROTOCOL, Transport::Tcp, &talk, usize::MAX);
        assert_eq!((parser.upgraded(), parser.upgraded()), (Some("tls"), None));
    }

    #[test]
    fn cuts_and_mutations_do_no_harm() {
        torture(&PROTOCOL, Transport::Tcp, &talk(), 1 << 20);
    }
}
