//! Keywords with a syntax of their own.

use super::certificate::Certificate;
use super::dates;
use super::session::{Session, seen};
use crate::{Custom, Transaction, Way};

type Parsed = Result<Box<dyn Custom>, String>;

fn session(transaction: &dyn Transaction) -> Option<&Session> {
    transaction.as_any().downcast_ref::<Session>()
}

/// `tls.version` and `ssl_version`: one of these, or none of them.
struct Versions {
    list: Vec<u16>,
    is_negated: bool,
}

impl Custom for Versions {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let version = session(transaction).and_then(|session| session.version(way));
        version.is_some_and(|version| self.list.contains(&version) != self.is_negated)
    }
}

/// `1.2`, or hexadecimal as in `0x7f12` for drafts.
pub fn parse_tls_version(text: &str) -> Parsed {
    let text = text.trim().trim_matches('"');
    let (text, is_negated) = negation(text);
    let version = match text {
        "1.0" => Some(0x0301),
        "1.1" => Some(0x0302),
        "1.2" => Some(0x0303),
        "1.3" => Some(0x0304),
        _ => text.strip_prefix("0x").and_then(|digits| u16::from_str_radix(digits, 16).ok()),
    };
    let version = version.ok_or_else(|| format!("{text} is no version of TLS"))?;
    Ok(Box::new(Versions { list: vec![version], is_negated }))
}

/// `sslv3,tls1.0`; one exclamation mark negates the list.
pub fn parse_ssl_version(text: &str) -> Parsed {
    let mut list = Vec::new();
    let mut is_negated = false;
    for item in text.trim().trim_matches('"').split(',') {
        let (name, is_item_negated) = negation(item.trim());
        is_negated |= is_item_negated;
        list.push(match name.to_ascii_lowercase().as_str() {
            "sslv2" => 0x0002,
            "sslv3" => 0x0300,
            "tls1.0" => 0x0301,
            "tls1.1" => 0x0302,
            "tls1.2" => 0x0303,
            "tls1.3" => 0x0304,
            _ => return Err(format!("{name} is no version of SSL or TLS")),
        });
    }
    Ok(Box::new(Versions { list, is_negated }))
}

fn negation(text: &str) -> (&str, bool) {
    match text.strip_prefix('!') {
        Some(rest) => (rest.trim_start(), true),
        None => (text, false),
    }
}

/// `ssl_state`: one of these messages was seen, or one that is not negated.
struct State {
    wanted: u8,
    unwanted: u8,
}

impl Custom for State {
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool {
        let Some(session) = session(transaction) else { return false };
        let seen = session.side(way).seen;
        seen != 0 && (seen & self.wanted != 0 || self.unwanted & !seen != 0)
    }
}

/// `client_hello|server_hello`, each with or without an exclamation mark.
pub fn parse_ssl_state(text: &str) -> Parsed {
    let mut state = State { wanted: 0, unwanted: 0 };
    for item in text.split(['|', ',']) {
        let (name, is_negated) = negation(item.trim());
        let bit = match name {
            "client_hello" => seen::CLIENT_HELLO,
            "server_hello" => seen::SERVER_HELLO,
            "client_keyx" => seen::CLIENT_KEYX,
            "server_keyx" => seen::SERVER_KEYX,
            "unknown" => seen::UNKNOWN,
            _ => return Err(format!("{name} is no state of a session")),
        };
        *if is_negated { &mut state.unwanted } else { &mut state.wanted } |= bit;
    }
    Ok(Box::new(state))
}

/// `tls_cert_notbefore` and `tls_cert_notafter`.
struct Date {
    of: fn(&Session) -> Option<i64>,
    range: Range,
}

enum Range {
    At(i64),
    Before(i64),
    After(i64),
    Between(i64, i64),
}

impl Custom for Date {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        let Some(time) = session(transaction).and_then(self.of) else { return false };
        match self.range {
            Range::At(other) => time == other,
            Range::Before(end) => time < end,
            Range::After(start) => time > start,
            Range::Between(start, end) => start < time && time < end,
        }
    }
}

/// `<2015-10-22`, `2015<>2016` and the like.
pub fn parse_not_before(text: &str) -> Parsed {
    Ok(Box::new(Date { of: Session::not_before, range: parse_range(text)? }))
}

/// Likewise.
pub fn parse_not_after(text: &str) -> Parsed {
    Ok(Box::new(Date { of: Session::not_after, range: parse_range(text)? }))
}

fn parse_range(text: &str) -> Result<Range, String> {
    let text = text.trim().trim_matches('"').trim();
    let date = |text: &str| dates::parse_rule(text).ok_or_else(|| format!("{text} is no date"));
    if let Some((start, end)) = text.split_once("<>") {
        let (start, end) = (date(start)?, date(end)?);
        return if start < end { Ok(Range::Between(start, end)) } else { Err("the range is empty".into()) };
    }
    match (text.strip_prefix('<'), text.strip_prefix('>')) {
        (Some(end), _) => Ok(Range::Before(date(end)?)),
        (_, Some(start)) => Ok(Range::After(date(start)?)),
        _ => Ok(Range::At(date(text)?)),
    }
}

/// The old keywords that carry their content as an argument.
struct Content {
    is_match: fn(&Certificate, &[u8]) -> bool,
    text: Vec<u8>,
    is_negated: bool,
}

impl Custom for Content {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        let certificate = session(transaction).and_then(|session| session.certificate(Way::ToClient));
        certificate.is_some_and(|certificate| (self.is_match)(certificate, &self.text) != self.is_negated)
    }
}

fn parse_content(text: &str, is_match: fn(&Certificate, &[u8]) -> bool) -> Parsed {
    let (text, is_negated) = negation(text.trim());
    let mut letters = text.trim_matches('"').chars();
    let mut plain = String::new();
    while let Some(letter) = letters.next() {
        plain.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    if plain.is_empty() {
        return Err("there is nothing to look for".into());
    }
    Ok(Box::new(Content { is_match, text: plain.into(), is_negated }))
}

fn contains(whole: &[u8], part: &[u8]) -> bool {
    whole.windows(part.len()).any(|window| window == part)
}

/// `tls.fingerprint:"aa:bb:…"`.
pub fn parse_fingerprint(text: &str) -> Parsed {
    parse_content(text, |certificate, text| certificate.fingerprint.as_bytes().eq_ignore_ascii_case(text))
}

/// `tls.issuerdn:"CN=…"`: a part of it.
pub fn parse_issuer(text: &str) -> Parsed {
    parse_content(text, |certificate, text| contains(&certificate.issuer, text))
}

/// `tls.subject:"CN=…"`: a part of it.
pub fn parse_subject(text: &str) -> Parsed {
    parse_content(text, |certificate, text| contains(&certificate.subject, text))
}

/// `tls.store`: no condition; whoever stores certificates asks [`Session::chain`].
struct Store;

impl Custom for Store {
    fn matches(&self, _transaction: &dyn Transaction, _way: Way) -> bool {
        true
    }
}

/// Accept `tls.store`, which has no argument.
pub fn parse_store(_text: &str) -> Parsed {
    Ok(Box::new(Store))
}
