//! Commands, replies, and mails between them.

use std::collections::VecDeque;

use memchr::memchr;

use super::log::Wanted;
use super::transaction::Mail;
use super::{event, step};
use crate::line::{Line, Lines, begins, contains};
use crate::{ParseError, Parser, Settings, Transaction, Transactions, Way};

/// Mails of one connection that wait for a look.
const MOST_TRANSACTIONS: usize = 64;
/// Commands without replies that are remembered; more are not matched.
const MOST_WAITING: usize = 128;
/// Lines of commands and replies that are kept; those of BDAT and AUTH may be longer than RFC 5321 allows.
const MOST_LINE: usize = 4096;
/// RFC 5321 section 4.5.3.1.4: 512 bytes, the line's end included.
const FAIR_LINE: usize = 510;
/// A chunk that is announced with more is a mistake or an attack on the server's sums.
const MOST_CHUNK: u64 = u32::MAX as u64;

/// What a reply is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Hello,
    Data,
    StartTls,
    Auth,
    Reset,
    Other,
}

/// What the client's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Command,
    Data { is_line_start: bool },
    Chunk { left: u64, is_last: bool },
}

/// The parser of one flow.
pub struct Smtp {
    transactions: Transactions<Mail>,
    current: Option<u64>,
    lines: [Lines; 2],
    mode: Mode,
    waiting: VecDeque<Waiting>,
    helo: Vec<u8>,
    /// What went wrong before there was a transaction.
    early: Vec<u8>,
    has_welcome: bool,
    can_pipeline: bool,
    is_authenticating: bool,
    upgrade: Option<&'static str>,
    /// What follows is another parser's.
    is_upgraded: bool,
    is_over: bool,
    wanted: Wanted,
}

impl Smtp {
    pub fn new(settings: &Settings) -> Smtp {
        Smtp {
            transactions: Transactions::new(MOST_TRANSACTIONS),
            current: None,
            lines: [Lines::new(MOST_LINE), Lines::new(MOST_LINE)],
            mode: Mode::Command,
            waiting: VecDeque::new(),
            helo: Vec::new(),
            early: Vec::new(),
            has_welcome: false,
            can_pipeline: false,
            is_authenticating: false,
            upgrade: None,
            is_upgraded: false,
            is_over: false,
            wanted: Wanted::new(settings),
        }
    }

    fn current(&mut self) -> Option<&mut Mail> {
        self.transactions.get_mut(self.current?)
    }

    fn raise(&mut self, event: u8) {
        if let Some(mail) = self.current() {
            mail.raise(event);
        } else if !self.early.contains(&event) {
            self.early.push(event);
        }
    }

    fn begin(&mut self) -> Result<(), ParseError> {
        if self.current().is_some() {
            return Ok(());
        }
        let mut mail = Mail::new(&self.helo, self.wanted);
        std::mem::take(&mut self.early).into_iter().for_each(|event| mail.raise(event));
        self.current = Some(self.transactions.push(mail).ok_or(ParseError("too many mails"))?);
        Ok(())
    }

    fn complete(&mut self, is_whole: bool) {
        if let Some(mail) = self.current() {
            mail.complete(is_whole);
        }
        self.current = None;
        self.mode = Mode::Command;
    }

    fn wait(&mut self, waiting: Waiting) {
        if self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(waiting);
        }
    }

    fn command(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        let text = line.text.trim_ascii_end();
        let is_farewell = begins(text, b"QUIT") || begins(text, b"RSET");
        if !is_farewell {
            self.begin()?;
        }
        if line.is_cut {
            self.raise(event::TRUNCATED_LINE);
        }
        if line.text.len() > FAIR_LINE {
            self.raise(event::LONG_COMMAND);
        }
        if self.is_authenticating {
            self.wait(Waiting::Auth);
            return Ok(());
        }
        if self.has_welcome && !self.can_pipeline && !self.waiting.is_empty() {
            self.raise(event::INVALID_PIPELINING);
        }
        let waiting = self.read_command(text);
        self.wait(waiting);
        if is_farewell {
            self.complete(false);
        }
        Ok(())
    }

    fn read_command(&mut self, text: &[u8]) -> Waiting {
        let word = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
        let (command, rest) = text.split_at_checked(word).unwrap_or((text, &[]));
        match command.to_ascii_uppercase().as_slice() {
            b"HELO" | b"EHLO" => {
                self.helo = first_word(rest).to_vec();
                let helo = self.helo.clone();
                if let Some(mail) = self.current() {
                    mail.helo = helo;
                    mail.advance(step::HELO);
                }
                Waiting::Hello
            }
            b"DATA" => {
                self.mode = Mode::Data { is_line_start: true };
                if let Some(mail) = self.current() {
                    mail.advance(step::DATA);
                }
                Waiting::Data
            }
            b"BDAT" => {
                self.begin_chunk(rest);
                Waiting::Other
            }
            b"STARTTLS" => Waiting::StartTls,
            b"AUTH" => {
                self.is_authenticating = true;
                Waiting::Auth
            }
            b"RSET" => Waiting::Reset,
            _ => {
                self.read_envelope(text);
                Waiting::Other
            }
        }
    }

    /// `MAIL FROM:<a@b> SIZE=1` and `RCPT TO:<c@d>`.
    fn read_envelope(&mut self, text: &[u8]) {
        let Some(mail) = self.current() else { return };
        if begins(text, b"MAIL FROM:") {
            mail.sender = first_word(text.get(10..).unwrap_or_default()).to_vec();
            mail.advance(step::SENDER);
        } else if begins(text, b"RCPT TO:") {
            mail.add_recipient(first_word(text.get(8..).unwrap_or_default()));
        }
    }

    /// RFC 3030 section 2: `BDAT 86 LAST`.
    fn begin_chunk(&mut self, rest: &[u8]) {
        let mut words = rest.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let size = words.next().and_then(|word| str::from_utf8(word).ok()?.parse::<u64>().ok());
        let is_last = words.next().is_some_and(|word| word.eq_ignore_ascii_case(b"LAST"));
        match size.filter(|size| *size <= MOST_CHUNK) {
            Some(left) => {
                self.mode = Mode::Chunk { left, is_last };
                if left == 0 {
                    self.chunk(&[], left, is_last); // `BDAT 0 LAST`: it is over as it begins
                }
            }
            None => self.raise(event::LONG_CHUNK),
        }
    }

    /// Return how much was read.
    fn chunk(&mut self, data: &[u8], left: u64, is_last: bool) -> usize {
        let used = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        if let Some(mail) = self.current() {
            mail.feed(data.get(..used).unwrap_or_default());
        }
        let left = left - used as u64;
        match (left, is_last) {
            (0, true) => self.complete(true),
            (0, false) => self.mode = Mode::Command,
            _ => self.mode = Mode::Chunk { left, is_last },
        }
        used
    }

    /// RFC 5321 section 4.5.2: a dot that begins a line is doubled, one alone ends the mail. Return how much was read.
    fn data(&mut self, data: &[u8], is_line_start: bool) -> usize {
        let mut begin = 0;
        if is_line_start && data.first() == Some(&b'.') {
            match data {
                [_, b'\n', ..] | [_, b'\r', b'\n', ..] => {
                    self.complete(true);
                    self.wait(Waiting::Other);
                    return if data.get(1) == Some(&b'\n') { 2 } else { 3 };
                }
                [_] | [_, b'\r'] => return 0,
                _ => begin = 1,
            }
        }
        let end = memchr(b'\n', data);
        let used = end.map_or(data.len(), |end| end + 1);
        if let Some(mail) = self.current() {
            mail.feed(data.get(begin..used).unwrap_or_default());
        }
        self.mode = Mode::Data { is_line_start: end.is_some() };
        used
    }

    fn reply(&mut self, line: Line<'_>) {
        if line.text.len() > FAIR_LINE {
            self.raise(event::LONG_REPLY);
        }
        let code = match line.text.first_chunk::<3>() {
            Some(code) if code.iter().all(u8::is_ascii_digit) => code,
            _ => return self.raise(event::INVALID_REPLY),
        };
        if self.waiting.front() == Some(&Waiting::Hello) && contains(line.text, b"PIPELINING") {
            self.can_pipeline = true;
        }
        if line.text.get(3) == Some(&b'-') {
            return;
        }
        if !self.has_welcome && self.waiting.is_empty() {
            self.has_welcome = true;
            if code != b"220" {
                self.raise(event::NO_WELCOME);
            }
            return;
        }
        match self.waiting.pop_front() {
            // a server that closes says so without being asked (RFC 5321 section 3.8)
            None if code == b"421" => {}
            None => self.raise(event::UNMATCHED_REPLY),
            Some(waiting) => self.answer(waiting, code),
        }
    }

    fn answer(&mut self, waiting: Waiting, code: &[u8; 3]) {
        match waiting {
            Waiting::Data if code[0] != b'3' => {
                self.raise(event::DATA_REJECTED);
                let has_content = self.current().is_some_and(|mail| mail.mime.is_some());
                if matches!(self.mode, Mode::Data { .. }) && !has_content {
                    self.mode = Mode::Command;
                }
            }
            Waiting::StartTls if code == b"220" => (self.upgrade, self.is_upgraded) = (Some("tls"), true),
            Waiting::StartTls => self.raise(event::TLS_REJECTED),
            Waiting::Auth => self.is_authenticating = code[0] == b'3',
            _ => {}
        }
    }

    /// Return how much was read.
    fn client(&mut self, data: &[u8]) -> Result<usize, ParseError> {
        match self.mode {
            Mode::Data { is_line_start } => Ok(self.data(data, is_line_start)),
            Mode::Chunk { left, is_last } => Ok(self.chunk(data, left, is_last)),
            Mode::Command => {
                let (used, line) = self.lines[0].read(data);
                if let Some(line) = line {
                    self.command(line)?;
                }
                Ok(used)
            }
        }
    }
}

/// Text up to a blank, blanks before it left out.
fn first_word(text: &[u8]) -> &[u8] {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
    text.get(..end).unwrap_or_default()
}

impl Parser for Smtp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        while !self.is_upgraded && !self.is_over && at < data.len() {
            let rest = data.get(at..).unwrap_or_default();
            let used = match way {
                Way::ToServer => self.client(rest)?,
                Way::ToClient => {
                    let (used, line) = self.lines[1].read(rest);
                    if let Some(line) = line {
                        self.reply(line);
                    }
                    used
                }
            };
            if used == 0 {
                break;
            }
            at += used;
        }
        Ok(if self.is_over && !self.is_upgraded { data.len() } else { at })
    }

    fn gap(&mut self, way: Way, bytes: u64) -> Result<(), ParseError> {
        self.waiting.clear();
        match (way, self.mode) {
            (Way::ToServer, Mode::Command) => self.lines[0].resume(),
            (Way::ToServer, Mode::Data { .. }) => self.mode = Mode::Data { is_line_start: false },
            (Way::ToServer, Mode::Chunk { left, is_last }) => {
                let left = left.checked_sub(bytes).ok_or(ParseError("bytes are missing"))?;
                self.mode = Mode::Chunk { left, is_last };
            }
            (Way::ToClient, _) => self.lines[1].resume(),
        }
        if way == Way::ToServer
            && let Some(mime) = self.current().and_then(|mail| mail.mime.as_mut())
        {
            mime.gap(bytes);
        }
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|mail| mail as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
        self.current = self.current.filter(|current| *current != id);
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.transactions.iter_mut().filter(|(_, mail)| !mail.is_complete()).for_each(|(_, mail)| mail.complete(false));
        self.current = None;
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        let mails = (first..end).filter_map(|id| self.transactions.get(id)).map(Mail::heap_bytes);
        mails.sum::<usize>() + self.helo.capacity() + self.waiting.capacity()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        self.upgrade.take()
    }
}
