//! A command and its response.

use std::any::Any;

use crate::{COMPLETE, Json, Transaction, View, Way};

/// Lines of a response that are kept, and bytes of them: enough for lists; mails are cut.
const MOST_LINES: usize = 64;
const MOST_BYTES: usize = 8 << 10;
/// Words behind a command.
const MOST_ARGUMENTS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    Error,
}

/// A command and its response; a greeting has no command.
#[derive(Debug, Default)]
pub struct Exchange {
    command: Vec<u8>,
    arguments: Vec<Box<[u8]>>,
    response: Option<(Status, Box<[u8]>)>,
    lines: Vec<Box<[u8]>>,
    bytes: usize,
    is_over: bool,
}

impl Exchange {
    pub fn request(line: &[u8]) -> Exchange {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let command = words.next().unwrap_or_default().to_ascii_uppercase();
        Exchange { command, arguments: words.take(MOST_ARGUMENTS).map(Box::from).collect(), ..Exchange::default() }
    }

    pub fn command(&self) -> &[u8] {
        &self.command
    }

    pub fn respond(&mut self, status: Status, text: &[u8]) {
        self.response = Some((status, text.into()));
    }

    /// A good response goes on over several lines (RFC 1939 section 3, RFC 2449 section 5).
    pub fn has_lines(&self) -> bool {
        match self.command.as_slice() {
            b"RETR" | b"TOP" | b"CAPA" => true,
            b"LIST" | b"UIDL" | b"AUTH" => self.arguments.is_empty(),
            _ => false,
        }
    }

    pub fn add_line(&mut self, line: &[u8]) {
        if self.lines.len() < MOST_LINES && self.bytes + line.len() <= MOST_BYTES {
            self.bytes += line.len();
            self.lines.push(line.into());
        }
    }

    pub fn is_over(&self) -> bool {
        self.is_over
    }

    pub fn finish(&mut self) {
        self.is_over = true;
    }

    pub fn heap_bytes(&self) -> usize {
        let texts = self.arguments.iter().chain(&self.lines).map(|text| text.len() + size_of::<Box<[u8]>>());
        let header = self.response.as_ref().map_or(0, |(_, text)| text.len());
        size_of::<Exchange>() + self.command.capacity() + texts.sum::<usize>() + header
    }
}

impl Transaction for Exchange {
    fn progress(&self, way: Way) -> u8 {
        match way {
            _ if self.is_over => COMPLETE,
            Way::ToServer => 1,
            Way::ToClient => u8::from(self.response.is_some()),
        }
    }

    fn buffer(&self, _index: usize, _way: Way, _nth: usize) -> Option<View<'_>> {
        None
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("pop3");
        if !self.command.is_empty() {
            json.open("request");
            json.text("command", &self.command);
            json.open_array("args");
            self.arguments.iter().for_each(|argument| json.text_element(argument));
            json.close_array();
            json.close();
        }
        if let Some((status, text)) = &self.response {
            json.open("response");
            json.flag("success", *status == Status::Ok);
            json.text("status", if *status == Status::Ok { "OK" } else { "ERR" });
            json.text("header", text);
            json.open_array("data");
            self.lines.iter().for_each(|line| json.text_element(line));
            json.close_array();
            json.close();
        }
        json.close();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
