//! SMTP (RFC 5321): each mail is a transaction, with the commands that led to it; its attachments are files.
//!
//! Read first: this file (commands and replies), then `mail.rs` (the transaction), `mime.rs` (parts), `decode.rs`.

use std::collections::VecDeque;

use crate::lines::{Line, Lines};
use crate::{
    COMPLETE, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start, Transaction, Transactions, Transport,
    Way,
};

mod decode;
mod mail;
mod mime;
#[cfg(test)]
mod tests;

use mail::Mail;

/// Mails of one connection that may wait to be looked at.
const MOST_MAILS: usize = 16;
/// Mails that may wait for the server's word; where its side is not seen, they do not wait for ever.
const MOST_UNANSWERED: usize = 8;
/// Commands that may wait for replies: RFC 2920 pipelining sends one for each recipient.
const MOST_WAITING: usize = 256;
/// RFC 5321 section 4.5.3.1.4 has 512; Suricata allows a command line this much.
const MOST_COMMAND: usize = 4096;
/// RFC 5321 section 4.5.3.1.5, and Suricata's limit.
const MOST_REPLY: usize = 4096;
/// A mail's lines: RFC 5322 has 998 characters; what is beyond is a line of its own.
const MOST_TEXT_LINE: usize = 4096;

pub mod event {
    pub const INVALID_REPLY: u8 = 0;
    pub const UNABLE_TO_MATCH_REPLY: u8 = 1;
    pub const MAX_COMMAND_LINE_LEN_EXCEEDED: u8 = 2;
    pub const MAX_REPLY_LINE_LEN_EXCEEDED: u8 = 3;
    pub const BDAT_CHUNK_LEN_EXCEEDED: u8 = 5;
    pub const NO_SERVER_WELCOME_MESSAGE: u8 = 6;
    pub const TLS_REJECTED: u8 = 7;
    pub const DATA_COMMAND_REJECTED: u8 = 8;
    pub const MIME_MALFORMED_MSG: u8 = 10;
    pub const MIME_INVALID_BASE64: u8 = 11;
    pub const MIME_LONG_HEADER_VALUE: u8 = 13;
    pub const MIME_INVALID_QP: u8 = 14;
    pub const MIME_LONG_LINE: u8 = 15;
    pub const MIME_LONG_BOUNDARY: u8 = 17;
}

/// SMTP.
pub static PROTOCOL: Protocol = Protocol {
    name: "smtp",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[25, 587],
    probe,
    parser: |_: &Settings, _| Box::new(Smtp::new()),
    buffers: &mail::BUFFERS,
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[RecordInfo { event_type: "smtp", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[
        "invalid_reply",
        "unable_to_match_reply_with_request",
        "max_command_line_len_exceeded",
        "max_reply_line_len_exceeded",
        "invalid_pipelined_sequence",
        "bdat_chunk_len_exceeded",
        "no_server_welcome_message",
        "tls_rejected",
        "data_command_rejected",
        "mime_parse_failed",
        "mime_malformed_msg",
        "mime_invalid_base64",
        "mime_long_header_name",
        "mime_long_header_value",
        "mime_invalid_qp",
        "mime_long_line",
        "mime_long_enc_line",
        "mime_long_boundary",
    ],
};

fn probe(start: &Start<'_>) -> Probe {
    let line = start.data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_whole = line.len() < start.data.len();
    let upper = line.to_ascii_uppercase();
    if upper.starts_with(b"220") {
        // FTP greets with 220 as well: elsewhere than on the port, the greeting has to say it
        let is_named = upper.windows(4).any(|part| part == b"SMTP");
        return match is_named || (start.is_usual_port && is_whole) {
            true if start.way == Way::ToServer => Probe::YesReversed,
            true => Probe::Yes,
            false if is_whole || line.len() > 256 => Probe::No,
            false => Probe::More,
        };
    }
    let first: [&[u8]; 2] = [b"EHLO ", b"HELO "];
    if first.iter().any(|word| upper.starts_with(word)) {
        return if start.way == Way::ToServer { Probe::Yes } else { Probe::YesReversed };
    }
    let is_beginning = !is_whole && first.iter().any(|word| word.starts_with(&upper));
    if is_beginning { Probe::More } else { Probe::No }
}

/// What a reply is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    StartTls,
    Data,
    /// The end of a mail: the mail's id.
    Mail(u64),
    /// AUTH is answered by a challenge, and that by a line that is no command.
    Auth,
    Other,
}

/// What the client sends next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Commands,
    /// DATA was sent; what follows is the mail unless the server refuses.
    Mail,
    /// A chunk of BDAT: bytes left, and whether it is the last.
    Chunk(u64, bool),
    Challenge,
}

struct Smtp {
    mails: Transactions<Mail>,
    current: Option<u64>,
    helo: Vec<u8>,
    lines: [Lines; 2],
    phase: Phase,
    waiting: VecDeque<Waiting>,
    has_greeting: bool,
    is_in_long_line: bool,
    is_upgraded: bool,
    has_told: bool,
}

impl Smtp {
    fn new() -> Smtp {
        Smtp {
            mails: Transactions::new(MOST_MAILS),
            current: None,
            helo: Vec::new(),
            lines: Default::default(),
            phase: Phase::Commands,
            waiting: VecDeque::new(),
            has_greeting: false,
            is_in_long_line: false,
            is_upgraded: false,
            has_told: false,
        }
    }

    /// The mail at hand; a new one if there is none. `None` where too many wait.
    fn mail(&mut self) -> Option<&mut Mail> {
        let held = self.current.filter(|id| self.mails.get(*id).is_some_and(|mail| !mail.is_sent));
        let id = match held {
            Some(id) => id,
            None => {
                if self.mails.len() >= MOST_UNANSWERED {
                    self.mails.iter_mut().filter(|(_, mail)| mail.is_sent).for_each(|(_, mail)| mail.end(false));
                }
                self.mails.push(Mail::new(&self.helo))?
            }
        };
        self.current = Some(id);
        self.mails.get_mut(id)
    }

    fn note(&mut self, event: u8) {
        if let Some(mail) = self.mail() {
            mail.events.add(event);
        }
    }

    fn expect(&mut self, waiting: Waiting) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(waiting);
        }
    }

    fn command(&mut self, line: &Line<'_>) {
        if line.is_cut {
            self.note(event::MAX_COMMAND_LINE_LEN_EXCEEDED);
        }
        let upper = line.bytes.to_ascii_uppercase();
        let value = |prefix: usize| line.bytes.get(prefix..).unwrap_or_default();
        let mut waiting = Waiting::Other;
        if upper.starts_with(b"EHLO ") || upper.starts_with(b"HELO ") {
            self.helo = first_word(value(5));
            let helo = self.helo.clone();
            if let Some(mail) = self.mail() {
                mail.helo = helo;
            }
        } else if upper.starts_with(b"MAIL FROM:") {
            let from = first_word(value(10));
            if self.current.and_then(|id| self.mails.get(id)).is_some_and(|mail| mail.from.is_some()) {
                self.close();
            }
            if let Some(mail) = self.mail() {
                mail.from = Some(from);
            }
        } else if upper.starts_with(b"RCPT TO:") {
            let to = first_word(value(8));
            if let Some(mail) = self.mail() {
                mail.add_recipient(to);
            }
        } else if upper == b"DATA" {
            waiting = Waiting::Data;
            self.phase = Phase::Mail;
        } else if upper.starts_with(b"BDAT ") {
            self.chunk(&upper);
        } else if upper.starts_with(b"STARTTLS") {
            waiting = Waiting::StartTls;
        } else if upper.starts_with(b"AUTH ") {
            waiting = Waiting::Auth;
        } else if upper.starts_with(b"RSET") || upper.starts_with(b"QUIT") {
            self.close();
        }
        self.expect(waiting);
    }

    /// RFC 3030: a chunk of so many bytes follows.
    fn chunk(&mut self, upper: &[u8]) {
        let text = String::from_utf8_lossy(upper);
        let mut words = text.split_whitespace().skip(1);
        let Some(size) = words.next().and_then(|word| word.parse::<u64>().ok()) else {
            return self.note(event::BDAT_CHUNK_LEN_EXCEEDED);
        };
        let is_last = words.next() == Some("LAST");
        self.phase = Phase::Chunk(size, is_last);
        if size == 0 {
            self.end_chunk(is_last);
        }
    }

    fn end_chunk(&mut self, is_last: bool) {
        self.phase = Phase::Commands;
        if is_last {
            self.end_mail();
        }
    }

    /// The mail at hand ends without having been sent.
    fn close(&mut self) {
        if let Some(mail) = self.current.take().and_then(|id| self.mails.get_mut(id)) {
            mail.end(false);
        }
    }

    fn end_mail(&mut self) {
        self.phase = Phase::Commands;
        let Some(id) = self.current else { return };
        if let Some(mail) = self.mails.get_mut(id) {
            mail.sent();
        }
        self.current = None;
        self.expect(Waiting::Mail(id));
    }

    fn text(&mut self, line: &Line<'_>) {
        let is_continuation = std::mem::replace(&mut self.is_in_long_line, line.is_cut);
        if !is_continuation && line.bytes == b"." {
            return self.end_mail();
        }
        // RFC 5321 section 4.5.2: a dot was put before a line that begins with one
        let bytes = if is_continuation { line.bytes } else { line.bytes.strip_prefix(b".").unwrap_or(line.bytes) };
        let (is_cut, Some(mail)) = (line.is_cut, self.mail()) else { return };
        mail.line(bytes, !is_cut);
    }

    fn reply(&mut self, line: &Line<'_>) {
        if line.is_cut {
            self.note(event::MAX_REPLY_LINE_LEN_EXCEEDED);
        }
        let code = line.bytes.first_chunk::<3>().filter(|code| code.iter().all(u8::is_ascii_digit));
        let Some(code) = code.filter(|code| (b'2'..=b'5').contains(&code[0])) else {
            return self.note(event::INVALID_REPLY);
        };
        if line.bytes.get(3) == Some(&b'-') {
            return; // more lines of it follow
        }
        if !std::mem::replace(&mut self.has_greeting, true) {
            if code != b"220" && self.waiting.is_empty() {
                self.note(event::NO_SERVER_WELCOME_MESSAGE);
            }
            if self.waiting.is_empty() || code == b"220" {
                return;
            }
        }
        let is_good = code[0] == b'2' || code[0] == b'3';
        match self.waiting.pop_front() {
            None if code == b"421" => {} // the server may leave at any time
            None => self.note(event::UNABLE_TO_MATCH_REPLY),
            Some(Waiting::StartTls) if code == b"220" => self.is_upgraded = true,
            Some(Waiting::StartTls) => self.note(event::TLS_REJECTED),
            Some(Waiting::Data) if !is_good => {
                self.note(event::DATA_COMMAND_REJECTED);
                self.phase = Phase::Commands;
            }
            Some(Waiting::Mail(id)) => {
                if let Some(mail) = self.mails.get_mut(id) {
                    mail.end(true);
                }
            }
            Some(Waiting::Auth) if code == b"334" => {
                self.phase = Phase::Challenge;
                self.waiting.push_front(Waiting::Auth);
            }
            Some(Waiting::Auth) if self.phase == Phase::Challenge => self.phase = Phase::Commands,
            Some(_) => {}
        }
    }

    /// Take what is in front; how many bytes that were, or `None` if there are not enough.
    fn step(&mut self, way: Way, rest: &[u8], is_end: bool) -> Option<usize> {
        if let (Way::ToServer, Phase::Chunk(left, is_last)) = (way, self.phase) {
            return Some(self.chunk_bytes(rest, left, is_last));
        }
        let phase = self.phase;
        let lines = self.lines.get_mut(way as usize)?;
        if way == Way::ToServer && phase == Phase::Mail {
            // a mail's long lines are cut into several and nothing of them is passed over
            let (read, line) = Lines::default().take(rest, MOST_TEXT_LINE, is_end)?;
            line.iter().for_each(|line| self.text(line));
            return Some(read);
        }
        let most = if way == Way::ToServer { MOST_COMMAND } else { MOST_REPLY };
        let (read, line) = lines.take(rest, most, is_end)?;
        match (line, way) {
            (None, _) => {}
            (Some(_), Way::ToServer) if phase == Phase::Challenge => self.phase = Phase::Commands,
            (Some(line), Way::ToServer) if !line.bytes.is_empty() => self.command(&line),
            (Some(line), Way::ToClient) if !line.bytes.is_empty() => self.reply(&line),
            _ => {}
        }
        Some(read)
    }

    fn chunk_bytes(&mut self, rest: &[u8], left: u64, is_last: bool) -> usize {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        if let (Some(mail), Some(bytes)) = (self.mail(), rest.get(..now)) {
            mail.bytes(bytes);
        }
        let left = left.saturating_sub(now as u64);
        self.phase = Phase::Chunk(left, is_last);
        if left == 0 {
            self.end_chunk(is_last);
        }
        now
    }
}

/// The first word of a parameter: a path in its brackets, without what follows it.
fn first_word(value: &[u8]) -> Vec<u8> {
    let value = value.trim_ascii();
    value.split(|byte| *byte == b' ').next().unwrap_or_default().to_vec()
}

impl Parser for Smtp {
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            if self.is_upgraded || self.mails.len() >= MOST_MAILS {
                break;
            }
            let Some(read) = self.step(way, rest, is_end) else { break };
            at += read;
        }
        Ok(at)
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        // a hole in a mail's text is a hole in one of its parts; elsewhere nobody knows what it hides
        let Some(mail) = (way == Way::ToServer && self.phase == Phase::Mail).then(|| self.mail()).flatten() else {
            return Err(ParseError("bytes are missing"));
        };
        mail.gap(bytes);
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.mails.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.mails.get(id).map(|mail| mail as _)
    }

    fn remove(&mut self, id: u64) {
        self.mails.remove(id);
    }

    fn finish(&mut self) {
        self.mails.iter_mut().for_each(|(_, mail)| mail.end(false));
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.mails.range();
        let mails = (first..end).filter_map(|id| self.mails.get(id)).map(Mail::heap_bytes).sum::<usize>();
        mails + self.helo.capacity() + self.waiting.capacity() * size_of::<Waiting>()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        let is_new = self.is_upgraded && !self.has_told;
        self.has_told |= is_new;
        is_new.then_some("tls")
    }
}
