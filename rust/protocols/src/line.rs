//! Lines out of a stream, none longer than what its reader allows, the same wherever the stream is cut.

use memchr::memchr;

/// Reads lines of one way.
#[derive(Debug)]
pub struct Lines {
    most: usize,
    is_skipping: bool,
}

/// A line without its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'d> {
    /// What stands in it.
    pub text: &'d [u8],
    /// It was longer; the rest is passed over.
    pub is_cut: bool,
}

impl Lines {
    /// Return a reader of lines of at most `most` bytes, their ends not counted.
    pub fn new(most: usize) -> Lines {
        Lines { most, is_skipping: false }
    }

    /// Read one line at the front: how many bytes were read, and the line if they were one. No bytes: more is needed.
    pub fn read<'d>(&mut self, data: &'d [u8]) -> (usize, Option<Line<'d>>) {
        if self.is_skipping {
            let end = memchr(b'\n', data);
            self.is_skipping = end.is_none();
            return (end.map_or(data.len(), |end| end + 1), None);
        }
        let seen = data.get(..data.len().min(self.most + 2)).unwrap_or_default();
        if let Some(end) = memchr(b'\n', seen) {
            let text = seen.get(..end).unwrap_or_default();
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            let kept = text.get(..text.len().min(self.most)).unwrap_or_default();
            return (end + 1, Some(Line { text: kept, is_cut: kept.len() < text.len() }));
        }
        if seen.len() < self.most + 2 {
            return (0, None);
        }
        self.is_skipping = true;
        (seen.len(), seen.get(..self.most).map(|text| Line { text, is_cut: true }))
    }

    /// Bytes are missing: what follows is read from the next line's beginning.
    pub fn resume(&mut self) {
        self.is_skipping = true;
    }
}

/// Return text without blanks at its ends.
pub fn trim(text: &[u8]) -> &[u8] {
    text.trim_ascii()
}

/// Return whether `text` begins with `prefix`, whatever the case.
pub fn begins(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// Return whether `text` is the beginning of `whole`, whatever the case: more of it may come.
pub fn may_become(text: &[u8], whole: &[u8]) -> bool {
    whole.get(..text.len()).is_some_and(|start| start.eq_ignore_ascii_case(text))
}

/// Return whether `part` is in `text`, whatever the case; for short texts, such as a server's first line.
pub fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len().max(1)).any(|window| window.eq_ignore_ascii_case(part))
}

/// Return the text up to the first end of a line, and whether there was one.
pub fn first_line(data: &[u8]) -> (&[u8], bool) {
    match memchr(b'\n', data) {
        Some(end) => (trim(data.get(..end).unwrap_or_default()), true),
        None => (data, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(most: usize, pieces: &[&[u8]]) -> Vec<(String, bool)> {
        let (mut lines, mut held, mut seen) = (Lines::new(most), Vec::new(), Vec::new());
        for piece in pieces {
            held.extend_from_slice(piece);
            loop {
                let (used, line) = lines.read(&held);
                seen.extend(line.map(|line| (String::from_utf8_lossy(line.text).into_owned(), line.is_cut)));
                if used == 0 {
                    break;
                }
                held.drain(..used);
            }
        }
        seen
    }

    #[test]
    fn every_cut_gives_the_same_lines() {
        let text = b"one\r\n\r\nabcdefgh\nabcdefghi\r\nabcdefghijklmnop\nend\n";
        let expected = all(8, &[text]);
        let texts: Vec<_> = expected.iter().map(|(text, cut)| (text.as_str(), *cut)).collect();
        let long = ("abcdefgh", true);
        assert_eq!(texts, [("one", false), ("", false), ("abcdefgh", false), long, long, ("end", false)]);
        for at in 0..text.len() {
            assert_eq!(all(8, &[&text[..at], &text[at..]]), expected, "cut at {at}");
        }
    }
}

/// Bends a session at random, for the tests of every protocol of lines.
#[cfg(test)]
pub mod mutation {
    use crate::{Json, Parser, Way};

    /// Feed `count` bent sessions, cut at random; nothing may panic, and no parser may hold more than `most`.
    pub fn run(up: &[u8], down: &[u8], count: u32, most: usize, make: impl Fn() -> Box<dyn Parser>) {
        let mut random = 0x2545_f491_u32;
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random as usize
        };
        for round in 0..count {
            let mut parser = make();
            let mut sides = [up.to_vec(), down.to_vec()];
            let mut at = [0; 2];
            for side in &mut sides {
                for _ in 0..next() % 6 {
                    let place = next() % side.len();
                    match next() % 3 {
                        0 => side[place] = next() as u8,
                        1 => side.truncate(place.max(1)),
                        _ => side.extend_from_within(place..),
                    }
                }
            }
            let mut ends = [0; 2];
            while ends.iter().zip(&sides).any(|(end, side)| *end < side.len()) {
                let way = if next() % 2 == 0 { Way::ToServer } else { Way::ToClient };
                let side = &sides[way as usize];
                let end = &mut ends[way as usize];
                *end = (*end + 1 + next() % 64).min(side.len());
                let shown = &side[at[way as usize]..*end];
                let Ok(used) = parser.parse(way, shown, *end == side.len()) else { break };
                assert!(used <= shown.len(), "round {round}: more was read than shown");
                at[way as usize] += used;
                if next() % 40 == 0 && parser.gap(way, 7).is_err() {
                    break;
                }
            }
            parser.finish();
            assert!(parser.heap_bytes() <= most, "round {round}: {} bytes are held", parser.heap_bytes());
            let (first, end) = parser.range();
            for id in first..end {
                let mut out = String::new();
                if let Some(transaction) = parser.transaction(id) {
                    transaction.log(None, &mut Json::inside(&mut out, false));
                    assert!(Way::BOTH.iter().all(|way| transaction.progress(*way) == crate::COMPLETE), "round {round}");
                }
                parser.remove(id);
            }
        }
    }
}
