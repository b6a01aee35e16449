//! Commands and replies, matched in order.

use super::event;
use super::port::{Announced, parse_bars, parse_commas};
use super::transaction::{Expected, FtpTransaction, Transfer, split_code};
use crate::line::{Line, Lines, begins};
use crate::{ParseError, Parser, Settings, Transaction, Transactions, Way};

/// Commands that wait for a reply or a look; clients that pipeline send a handful.
const MOST_TRANSACTIONS: usize = 256;
/// The default of `app-layer.protocols.ftp.max-line-length`.
const LINE: u64 = 4096;
/// A line must fit into what a parser is shown, with its end.
const MOST_LINE: u64 = 32 << 10;

/// The parser of one flow.
pub struct Ftp {
    transactions: Transactions<FtpTransaction>,
    lines: [Lines; 2],
    /// The transaction that the lines of a reply belong to, and the code that ends it.
    open_reply: Option<(u64, [u8; 3])>,
    /// The port of the next transfer, and whether the client named it.
    announced: Option<(Announced, bool)>,
    upgrade: Option<&'static str>,
    /// What follows is another parser's.
    is_upgraded: bool,
    is_over: bool,
}

impl Ftp {
    pub fn new(settings: &Settings) -> Ftp {
        let most = settings.number("app-layer.protocols.ftp.max-line-length", LINE).clamp(16, MOST_LINE) as usize;
        Ftp {
            transactions: Transactions::new(MOST_TRANSACTIONS),
            lines: [Lines::new(most), Lines::new(most)],
            open_reply: None,
            announced: None,
            upgrade: None,
            is_upgraded: false,
            is_over: false,
        }
    }

    fn command(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        let text = line.text.trim_ascii_start();
        if text.trim_ascii().is_empty() && !line.is_cut {
            return Ok(());
        }
        let is_tls = begins(text, b"AUTH TLS");
        let end = if is_tls { 8 } else { text.iter().position(|byte| *byte == b' ').unwrap_or(text.len()) };
        let (word, rest) = text.split_at_checked(end).unwrap_or((text, &[]));
        let data = rest.get(1..).unwrap_or_default();
        let mut transaction = FtpTransaction::new(word.to_ascii_uppercase(), data.to_vec(), line.is_cut);
        if line.is_cut {
            transaction.raise(event::REQUEST_TOO_LONG);
        }
        match transaction.command.as_slice() {
            b"PORT" => self.announce(&mut transaction, parse_commas, true),
            b"EPRT" => self.announce(&mut transaction, parse_bars, true),
            b"RETR" => self.expect(&mut transaction, Transfer::Retrieve),
            b"STOR" => self.expect(&mut transaction, Transfer::Store),
            _ => {}
        }
        self.transactions.push(transaction).map(|_| ()).ok_or(ParseError("too many commands without replies"))
    }

    fn announce(&mut self, transaction: &mut FtpTransaction, parse: fn(&[u8]) -> Option<Announced>, is_active: bool) {
        if let Some(announced) = parse(&transaction.data) {
            (transaction.announced, transaction.is_active) = (Some(announced), is_active);
            self.announced = Some((announced, is_active));
        }
    }

    /// A port serves one transfer.
    fn expect(&mut self, transaction: &mut FtpTransaction, transfer: Transfer) {
        if let Some((announced, is_active)) = self.announced.take() {
            let name = transaction.data.trim_ascii().to_vec();
            transaction.expected = Some(Expected { port: announced.port, is_active, transfer, name });
        }
    }

    fn reply(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        if line.text.is_empty() && !line.is_cut {
            return Ok(());
        }
        let code = split_code(line.text).0;
        let is_last_line = line.text.get(3).is_none_or(|byte| *byte == b' ');
        let (id, is_over) = match self.open_reply {
            Some((id, open)) => (Some(id), code == Some(open) && is_last_line),
            None => (self.oldest(), code.is_none() || is_last_line),
        };
        let id = match id.filter(|id| self.transactions.get(*id).is_some()) {
            Some(id) => id,
            None => self.transactions.push(FtpTransaction::default()).ok_or(ParseError("too many replies"))?,
        };
        let open = self.open_reply.map(|(_, open)| open).or(code);
        self.open_reply = open.filter(|_| !is_over).map(|open| (id, open));
        let Some(transaction) = self.transactions.get_mut(id) else { return Ok(()) };
        transaction.add_reply(line.text, line.is_cut);
        if line.is_cut {
            transaction.raise(event::RESPONSE_TOO_LONG);
        }
        let port = match (transaction.command.as_slice(), code.as_ref()) {
            (b"PASV", Some(b"227")) => parse_commas(line.text.get(4..).unwrap_or_default()),
            (b"EPSV", Some(b"229")) => parse_bars(line.text.get(4..).unwrap_or_default()),
            _ => None,
        };
        if port.is_some() {
            transaction.announced = port;
            self.announced = port.map(|port| (port, false));
        }
        if matches!(transaction.command.as_slice(), b"AUTH TLS" | b"AUTH SSL") && code == Some(*b"234") {
            (self.upgrade, self.is_upgraded) = (Some("tls"), true);
        }
        // a preliminary reply (1yz) is followed by another
        if is_over && code.is_none_or(|code| code[0] != b'1') {
            transaction.finish();
        }
        Ok(())
    }

    fn oldest(&mut self) -> Option<u64> {
        self.transactions.iter_mut().find(|(_, transaction)| !transaction.is_done()).map(|(id, _)| id)
    }
}

impl Parser for Ftp {
    fn parse(&mut self, way: Way, data: &[u8], _is_end: bool) -> Result<usize, ParseError> {
        let mut at = 0;
        while !self.is_upgraded && !self.is_over {
            let rest = data.get(at..).unwrap_or_default();
            let (used, line) = self.lines[way as usize].read(rest);
            if used == 0 {
                break;
            }
            at += used;
            match (line, way) {
                (Some(line), Way::ToServer) => self.command(line)?,
                (Some(line), Way::ToClient) => self.reply(line)?,
                (None, _) => {}
            }
        }
        Ok(if self.is_over && !self.is_upgraded { data.len() } else { at })
    }

    fn gap(&mut self, way: Way, _bytes: u64) -> Result<(), ParseError> {
        self.lines[way as usize].resume();
        self.open_reply = None;
        Ok(())
    }

    fn range(&self) -> (u64, u64) {
        self.transactions.range()
    }

    fn transaction(&self, id: u64) -> Option<&dyn Transaction> {
        self.transactions.get(id).map(|transaction| transaction as _)
    }

    fn remove(&mut self, id: u64) {
        self.transactions.remove(id);
    }

    fn finish(&mut self) {
        self.is_over = true;
        self.transactions.iter_mut().for_each(|(_, transaction)| transaction.finish());
    }

    fn heap_bytes(&self) -> usize {
        let (first, end) = self.transactions.range();
        (first..end).filter_map(|id| self.transactions.get(id)).map(FtpTransaction::heap_bytes).sum()
    }

    fn upgraded(&mut self) -> Option<&'static str> {
        self.upgrade.take()
    }
}
