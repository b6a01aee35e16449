//! The first lines of requests and responses.

use std::ops::Range;

use super::event::Event;
use super::line::{is_space, split_while};

/// Methods that are known. What begins with one of them is a request.
pub static METHODS: &[&[u8]] = &[
    b"GET",
    b"PUT",
    b"POST",
    b"HEAD",
    b"TRACE",
    b"OPTIONS",
    b"CONNECT",
    b"DELETE",
    b"PATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"CHECKOUT",
    b"UNCHECKOUT",
    b"CHECKIN",
    b"UPDATE",
    b"LABEL",
    b"REPORT",
    b"MKWORKSPACE",
    b"MKACTIVITY",
    b"MERGE",
    b"VERSION-CONTROL",
    b"BASELINE-CONTROL",
    b"SEARCH",
];

/// A request line and where its parts are.
#[derive(Debug, Default, Clone)]
pub struct RequestLine {
    /// The line without its end.
    pub text: Vec<u8>,
    method: Range<usize>,
    uri: Range<usize>,
    protocol: Range<usize>,
}

impl RequestLine {
    /// The method.
    pub fn method(&self) -> &[u8] {
        self.text.get(self.method.clone()).unwrap_or_default()
    }

    /// The URI as written.
    pub fn uri(&self) -> &[u8] {
        self.text.get(self.uri.clone()).unwrap_or_default()
    }

    /// The protocol; empty before HTTP/1.0.
    pub fn protocol(&self) -> &[u8] {
        self.text.get(self.protocol.clone()).unwrap_or_default()
    }

    /// The line of a request that nobody has seen.
    pub fn unseen() -> RequestLine {
        let text = b"/libhtp::request_uri_not_seen".to_vec(); // the name by which operators know it
        RequestLine { uri: 0..text.len(), text, ..RequestLine::default() }
    }

    /// Take a line apart. Nothing is an error: a server may take it for something.
    pub fn parse(text: &[u8], events: &mut Vec<Event>) -> RequestLine {
        let start = text.iter().take_while(|byte| is_space(**byte)).count();
        if start > 0 {
            events.push(Event::LeadingWhitespace);
        }
        let after = text.get(start..).unwrap_or_default();
        let method = start..start + split_while(after, |byte| !is_space(byte)).0.len();
        let mut line = RequestLine { text: text.to_vec(), method, ..RequestLine::default() };
        let is_known = METHODS.contains(&line.method());
        let blank = split_while(text.get(line.method.end..).unwrap_or_default(), is_space).0;
        if blank.iter().any(|byte| *byte != b' ') {
            events.push(Event::MethodDelimiter);
        }
        let from = line.method.end + blank.len();
        let to = from + text.get(from..).map_or(0, |rest| trimmed(rest).len());
        line.split_uri(from, to, events);
        if !is_known && !is_protocol(line.protocol()) {
            events.push(Event::LineInvalid);
        }
        line
    }

    /// The URI reaches to the last space: some clients put spaces into it.
    fn split_uri(&mut self, from: usize, to: usize, events: &mut Vec<Event>) {
        let rest = self.text.get(from..to).unwrap_or_default();
        let space = rest.iter().rposition(|byte| *byte == b' ');
        let Some(last) = space.or_else(|| rest.iter().rposition(|byte| is_space(*byte))) else {
            self.uri = from..to;
            return;
        };
        let uri = trimmed(rest.get(..last).unwrap_or_default());
        if rest.get(..=last).is_some_and(|rest| rest.iter().any(|byte| *byte != b' ' && is_space(*byte))) {
            events.push(Event::UriDelimiter);
        }
        self.uri = from..from + uri.len();
        self.protocol = from + last + 1..to;
    }
}

fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., last] = text {
        if !is_space(*last) {
            break;
        }
        text = rest;
    }
    text
}

/// Return whether a text is a version of HTTP.
pub fn is_protocol(text: &[u8]) -> bool {
    version(text).is_some()
}

/// Return major and minor version.
pub fn version(text: &[u8]) -> Option<(u8, u8)> {
    match text {
        [h, t, t2, p, b'/', major, b'.', minor] => {
            let is_name = [*h, *t, *t2, *p].eq_ignore_ascii_case(b"HTTP");
            let digits = major.is_ascii_digit() && minor.is_ascii_digit();
            (is_name && digits).then(|| (major - b'0', minor - b'0'))
        }
        _ => None,
    }
}

/// A status line and where its parts are.
#[derive(Debug, Default, Clone)]
pub struct StatusLine {
    /// The line without its end.
    pub text: Vec<u8>,
    protocol: Range<usize>,
    status: Range<usize>,
    message: Range<usize>,
}

impl StatusLine {
    /// The protocol.
    pub fn protocol(&self) -> &[u8] {
        self.text.get(self.protocol.clone()).unwrap_or_default()
    }

    /// The status as written.
    pub fn status(&self) -> &[u8] {
        self.text.get(self.status.clone()).unwrap_or_default()
    }

    /// What follows it.
    pub fn message(&self) -> &[u8] {
        self.text.get(self.message.clone()).unwrap_or_default()
    }

    /// The status as a number, if it is one.
    pub fn code(&self) -> Option<u16> {
        let status = self.status();
        if status.is_empty() || status.len() > 4 || !status.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let code = status.iter().fold(0_u16, |code, digit| code * 10 + u16::from(digit - b'0'));
        (100..=999).contains(&code).then_some(code)
    }

    /// Take a line apart.
    pub fn parse(text: &[u8], events: &mut Vec<Event>) -> StatusLine {
        let is_blank = |byte| is_space(byte) || byte == 0;
        let next = |from: usize| {
            let rest = text.get(from..).unwrap_or_default();
            let (blank, rest) = split_while(rest, is_blank);
            let start = from + blank.len();
            start..start + split_while(rest, |byte| !is_blank(byte)).0.len()
        };
        let protocol = next(0);
        let status = next(protocol.end);
        let message = next(status.end).start.min(text.len());
        let line = StatusLine { text: text.to_vec(), protocol, status, message: message..text.len() };
        if !matches!(version(line.protocol()), Some((1, 0 | 1) | (0, 9))) {
            events.push(Event::InvalidProtocol);
        }
        if line.code().is_none() {
            events.push(Event::InvalidStatus);
        }
        line
    }
}

/// Return whether the beginning of a response is content, not a status line: browsers look for these four letters.
/// `None`: not enough is there to say.
pub fn is_content(data: &[u8]) -> Option<bool> {
    let rest = split_while(data, |byte| is_space(byte) || byte == 0).1;
    let count = rest.len().min(4);
    let is_alike = rest.get(..count)?.eq_ignore_ascii_case(b"HTTP".get(..count)?);
    if is_alike && count < 4 { None } else { Some(!is_alike) }
}

/// Return whether bytes behind a request are no request. `None`: not enough is there to say.
pub fn is_no_request(data: &[u8]) -> Option<bool> {
    let rest = split_while(data, is_space).1;
    let (word, after) = split_while(rest, |byte| byte.is_ascii_uppercase() || byte == b'-');
    if after.is_empty() {
        let may_be = METHODS.iter().any(|method| method.starts_with(word));
        return if may_be { None } else { Some(true) };
    }
    if METHODS.contains(&word) && after.first().is_some_and(|byte| is_space(*byte)) {
        return Some(false);
    }
    let line = trimmed(rest.get(..memchr::memchr(b'\n', rest)?).unwrap_or_default());
    let last = line.rsplit(|byte| is_space(*byte)).next().unwrap_or_default();
    Some(!is_protocol(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static str, [&'static str; 3], &'static [Event]);

    #[test]
    fn request_lines_are_taken_apart() {
        let rows: [Row; 9] = [
            ("GET / HTTP/1.1", ["GET", "/", "HTTP/1.1"], &[]),
            ("GET /a b c HTTP/1.1", ["GET", "/a b c", "HTTP/1.1"], &[]),
            (" GET / HTTP/1.1", ["GET", "/", "HTTP/1.1"], &[Event::LeadingWhitespace]),
            ("GET\t/ HTTP/1.1", ["GET", "/", "HTTP/1.1"], &[Event::MethodDelimiter]),
            ("GET /\tHTTP/1.1", ["GET", "/", "HTTP/1.1"], &[Event::UriDelimiter]),
            ("GET /  ", ["GET", "/", ""], &[]),
            ("GET", ["GET", "", ""], &[]),
            ("FOO / HTTP/1.0", ["FOO", "/", "HTTP/1.0"], &[]),
            ("FOO / BAR", ["FOO", "/", "BAR"], &[Event::LineInvalid]),
        ];
        for (text, parts, expected) in rows {
            let mut events = Vec::new();
            let line = RequestLine::parse(text.as_bytes(), &mut events);
            assert_eq!([line.method(), line.uri(), line.protocol()], parts.map(str::as_bytes), "{text}");
            assert_eq!(events, expected, "{text}");
        }
    }

    #[test]
    fn status_lines_are_taken_apart() {
        let rows: [Row; 8] = [
            ("HTTP/1.1 200 ok then", ["HTTP/1.1", "200", "ok then"], &[]),
            ("HTTP/1.1\x0b200\x0bok", ["HTTP/1.1", "200", "ok"], &[]),
            ("HTTP/1.1\0 200 ok", ["HTTP/1.1", "200", "ok"], &[]),
            ("HTTP/1.1 200", ["HTTP/1.1", "200", ""], &[]),
            ("http/1.0 0200 ok", ["http/1.0", "0200", "ok"], &[]),
            ("HTTP/1.1 20x ok", ["HTTP/1.1", "20x", "ok"], &[Event::InvalidStatus]),
            ("HTTP/1.01 200 ok", ["HTTP/1.01", "200", "ok"], &[Event::InvalidProtocol]),
            ("HTTP", ["HTTP", "", ""], &[Event::InvalidProtocol, Event::InvalidStatus]),
        ];
        for (text, parts, expected) in rows {
            let mut events = Vec::new();
            let line = StatusLine::parse(text.as_bytes(), &mut events);
            assert_eq!([line.protocol(), line.status(), line.message()], parts.map(str::as_bytes), "{text}");
            assert_eq!(events, expected, "{text}");
        }
    }

    #[test]
    fn content_is_told_from_first_lines() {
        assert_eq!(is_content(b"X5O!"), Some(true));
        assert_eq!(is_content(b" \0http"), Some(false));
        assert_eq!((is_content(b"HT"), is_content(b" ")), (None, None));
        assert_eq!((is_no_request(b"GE"), is_no_request(b"\r\n"), is_no_request(b"FOO / HTT")), (None, None, None));
        assert_eq!((is_no_request(b"GET /"), is_no_request(b"FOO / HTTP/1.1\r\n")), (Some(false), Some(false)));
        assert_eq!((is_no_request(b"{\"a\":1}\n"), is_no_request(b"XYZ")), (Some(true), Some(true)));
    }
}
