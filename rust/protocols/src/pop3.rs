//! POP3 (RFC 1939): commands with their responses.
//!
//! Promises: a command and its response are one transaction, pipelined or not, wherever the stream is cut. Leaves to
//! others: the mails, of which only the first lines are kept, and what follows STLS ([`crate::Parser::upgraded`]).
//! Read first: [`Pop3::response`].

#[cfg(test)]
mod tests;
mod transaction;

use crate::line::{Line, Lines, begins, contains, first_line, may_become};
use crate::{
    COMPLETE, ParseError, Parser, Probe, Protocol, RecordInfo, Settings, Start, Transaction, Transactions, Transport,
    Way,
};
use transaction::{Exchange, Status};

/// Commands that wait for a response or a look; clients that pipeline ask for all mails at once.
const MOST_TRANSACTIONS: usize = 256;
/// RFC 2449 section 4 allows 512 bytes in responses; mails have longer lines, which are cut.
const MOST_LINE: usize = 1024;

/// POP3.
pub static PROTOCOL: Protocol = Protocol {
    name: "pop3",
    aliases: &[],
    transports: &[Transport::Tcp],
    ports: &[110],
    probe,
    parser: |_: &Settings, _| Box::new(Pop3::new()),
    buffers: &[],
    numbers: &[],
    keywords: &[],
    states: &[],
    records: &[RecordInfo { event_type: "pop3", to_server: COMPLETE, to_client: COMPLETE, way: Way::ToServer }],
    events: &[],
};

static COMMANDS: &[&[u8]] = &[b"CAPA\r\n", b"STLS\r\n", b"APOP "];
/// Commands that other protocols have too.
static WEAK_COMMANDS: &[&[u8]] = &[b"USER ", b"AUTH ", b"AUTH\r\n", b"QUIT\r\n"];

fn probe(start: &Start<'_>) -> Probe {
    let (line, is_whole) = first_line(start.data);
    match start.way {
        Way::ToClient if begins(line, b"+OK") && matches!(line.get(3), None | Some(b' ' | b'\r')) => match is_whole {
            _ if start.is_usual_port || contains(line, b"pop") => Probe::Yes,
            true => Probe::No, // others say this too
            false => Probe::More,
        },
        Way::ToClient if may_become(line, b"+OK") => Probe::More,
        Way::ToClient => Probe::No,
        Way::ToServer => {
            let weak = if start.is_usual_port { WEAK_COMMANDS } else { &[] };
            let mut commands = COMMANDS.iter().chain(weak);
            let may_be = COMMANDS.iter().chain(weak).any(|command| may_become(start.data, command));
            match commands.any(|command| begins(start.data, command)) {
                true => Probe::Yes,
                false if may_be => Probe::More,
                false => Probe::No,
            }
        }
    }
}

struct Pop3 {
    transactions: Transactions<Exchange>,
    lines: [Lines; 2],
    /// The exchange whose response goes on until a line with a dot.
    open: Option<u64>,
    /// The client's next lines are credentials.
    is_authenticating: bool,
    upgrade: Option<&'static str>,
    /// What follows is another parser's.
    is_upgraded: bool,
    is_over: bool,
}

impl Pop3 {
    fn new() -> Pop3 {
        Pop3 {
            transactions: Transactions::new(MOST_TRANSACTIONS),
            lines: [Lines::new(MOST_LINE), Lines::new(MOST_LINE)],
            open: None,
            is_authenticating: false,
            upgrade: None,
            is_upgraded: false,
            is_over: false,
        }
    }

    fn push(&mut self, exchange: Exchange) -> Result<u64, ParseError> {
        self.transactions.push(exchange).ok_or(ParseError("too many commands without responses"))
    }

    fn command(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        if self.is_authenticating || line.text.trim_ascii().is_empty() {
            return Ok(());
        }
        let exchange = Exchange::request(line.text);
        self.is_authenticating = exchange.command() == b"AUTH";
        self.push(exchange).map(|_| ())
    }

    fn response(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        if let Some(id) = self.open {
            let is_end = line.text == b".";
            if let Some(exchange) = self.transactions.get_mut(id) {
                match is_end {
                    true => exchange.finish(),
                    false => exchange.add_line(line.text),
                }
            }
            self.open = self.open.filter(|_| !is_end);
            return Ok(());
        }
        let (status, text) = match line.text {
            text if begins(text, b"+OK") => (Status::Ok, text.get(3..)),
            text if begins(text, b"-ERR") => (Status::Error, text.get(4..)),
            // a challenge, or nothing that is known: the exchange goes on
            _ => return Ok(()),
        };
        let oldest = self.transactions.iter_mut().find(|(_, exchange)| !exchange.is_over()).map(|(id, _)| id);
        let id = match oldest {
            Some(id) => id,
            None => self.push(Exchange::default())?, // the greeting
        };
        let Some(exchange) = self.transactions.get_mut(id) else { return Ok(()) };
        exchange.respond(status, text.unwrap_or_default().trim_ascii());
        self.is_authenticating &= exchange.command() != b"AUTH";
        match status {
            Status::Ok if exchange.command() == b"STLS" => (self.upgrade, self.is_upgraded) = (Some("tls"), true),
            Status::Ok if exchange.has_lines() => self.open = Some(id),
            _ => {}
        }
        if self.open.is_none() {
            exchange.finish();
        }
        Ok(())
    }
}

impl Parser for Pop3 {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        while !self.is_upgraded && !self.is_over {
            let (used, line) = self.lines[way as usize].read(data.get(at..).unwrap_or_default());
            match (line, way) {
                (Some(line), Way::ToServer) => self.command(line)?,
                (Some(line), Way::ToClient) => self.response(line)?,
                (None, _) if used == 0 => break,
                (None, _) => {}
            }
            at += used;
        }
        Ok(if self.is_over && !self.is_upgraded { data.len() } else { at })
    }

    fn gap(&mut self, way: Way, _bytes: u64) -> Result<(), ParseError> {
        self.lines[way as usize].resume();
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|exchange| exchange as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.transactions.iter_mut().for_each(|(_, exchange)| exchange.finish());
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        (first..end).filter_map(|id| self.transactions.get(id)).map(Exchange::heap_bytes).sum()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        self.upgrade.take()
    }
}
