//! Lines and white space, as leniently as the most lenient of browsers and servers.

use memchr::{memchr, memchr2};

/// Return whether the byte is what C calls white space.
pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | 0x09..=0x0d)
}

/// Return whether a line that begins with it continues the line before.
pub fn is_fold(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0)
}

/// Cut white space and NULs off both ends.
pub fn trim(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text {
        if !is_space(*first) && *first != 0 {
            break;
        }
        text = rest;
    }
    trim_end(text)
}

/// Cut white space and NULs off the end.
pub fn trim_end(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., last] = text {
        if !is_space(*last) && *last != 0 {
            break;
        }
        text = rest;
    }
    text
}

/// Return the bytes up to the first that is not `wanted`, and the rest.
pub fn split_while(text: &[u8], wanted: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !wanted(*byte)).unwrap_or(text.len()))
}

/// A line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Without its end.
    pub text: &'a [u8],
    /// How many bytes it is with its end.
    pub bytes: usize,
    /// It ended in a line feed, not in a lone carriage return.
    pub has_feed: bool,
}

/// What ends a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// A line feed.
    Feed,
    /// A line feed, or a carriage return with something else behind it: browsers take that in responses.
    FeedOrReturn,
}

/// Return the first line of `data`, `None` while it is incomplete. `scanned` bytes are known to hold no end of line;
/// it is brought up to date, so that a line which arrives byte by byte is not searched again and again.
pub fn next_line<'a>(data: &'a [u8], scanned: &mut usize, ending: Ending, is_end: bool) -> Option<Line<'a>> {
    let mut from = (*scanned).min(data.len());
    loop {
        let rest = data.get(from..).unwrap_or_default();
        let found = match ending {
            Ending::Feed => memchr(b'\n', rest),
            Ending::FeedOrReturn => memchr2(b'\n', b'\r', rest),
        };
        let Some(at) = found.map(|at| from + at) else {
            *scanned = data.len();
            return (is_end && !data.is_empty()).then(|| line(data, data.len(), data.len(), true));
        };
        if data.get(at) == Some(&b'\n') {
            return Some(line(data, at, at + 1, true));
        }
        let run = split_while(data.get(at..).unwrap_or_default(), |byte| byte == b'\r').0.len();
        match data.get(at + run) {
            Some(b'\n') => return Some(line(data, at, at + run + 1, true)),
            Some(_) => return Some(line(data, at, at + run, false)),
            None if is_end => return Some(line(data, at, at + run, true)),
            None if run > MOST_RETURNS => from = at + run, // no line feed is worth the wait: part of the line
            None => {
                *scanned = at;
                return None;
            }
        }
    }
}

/// A run of carriage returns is scanned again when more comes, so it must be short.
const MOST_RETURNS: usize = 64;

fn line(data: &[u8], end: usize, bytes: usize, has_feed: bool) -> Line<'_> {
    let mut text = data.get(..end).unwrap_or_default();
    while let [rest @ .., b'\r'] = text {
        text = rest;
    }
    Line { text, bytes, has_feed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(data: &[u8], ending: Ending) -> Vec<(Vec<u8>, bool)> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some(line) = next_line(&data[at..], &mut 0, ending, true) {
            found.push((line.text.to_vec(), line.has_feed));
            at += line.bytes;
        }
        found
    }

    #[test]
    fn a_lone_return_ends_lines_of_responses_only() {
        let text = b"a\rb\r\nc\n\r\nd\r\r\ne";
        let response: Vec<(Vec<u8>, bool)> =
            [("a", false), ("b", true), ("c", true), ("", true), ("d", true), ("e", true)]
                .map(|(text, has_feed)| (text.as_bytes().to_vec(), has_feed))
                .to_vec();
        assert_eq!(lines(text, Ending::FeedOrReturn), response);
        assert_eq!(lines(text, Ending::Feed)[0].0, b"a\rb");
        assert_eq!(lines(text, Ending::Feed).len(), 5);
    }

    #[test]
    fn white_space_is_cut() {
        assert_eq!(trim(b"\0 \x0b a b\t\r\n"), b"a b");
        assert_eq!(trim(b" \0"), b"");
    }
}
