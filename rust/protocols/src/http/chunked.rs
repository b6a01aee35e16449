//! The chunked transfer coding (RFC 9112 section 7.1), as far as any browser follows it.

use memchr::memchr;

use super::line::{is_space, split_while};

/// As the reference library: a longer chunk is none.
const MOST_CHUNK: u64 = i32::MAX as u64;
/// A length with its extensions; where there is no line end in this many bytes, there are no chunks.
const MOST_LENGTH_LINE: usize = 8 << 10;

/// Where in the coding we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunks {
    /// Before a length.
    Length,
    /// Before that many bytes of content.
    Data(u64),
    /// Before the line end behind the content.
    End,
}

/// What the next bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Not enough of them to say.
    More,
    /// So many of framing; `has_extension` if a length had something behind a semicolon.
    Framing {
        /// How many.
        bytes: usize,
        /// Something stood behind a semicolon.
        has_extension: bool,
    },
    /// So many of content.
    Content(usize),
    /// So many of framing, and the content is over.
    Last(usize),
    /// No chunk: they are the content themselves.
    Invalid,
}

impl Chunks {
    /// Look at the front of `data` and move on.
    pub fn next(&mut self, data: &[u8], is_end: bool) -> Piece {
        match *self {
            Chunks::Length => self.length(data, is_end),
            Chunks::Data(left) => {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
                if count == 0 {
                    return Piece::More;
                }
                *self = match left.saturating_sub(count as u64) {
                    0 => Chunks::End,
                    left => Chunks::Data(left),
                };
                Piece::Content(count)
            }
            Chunks::End => match memchr(b'\n', data) {
                Some(at) => {
                    *self = Chunks::Length;
                    Piece::Framing { bytes: at + 1, has_extension: false }
                }
                None if data.is_empty() => Piece::More,
                None => Piece::Framing { bytes: data.len(), has_extension: false },
            },
        }
    }

    fn length(&mut self, data: &[u8], is_end: bool) -> Piece {
        // White space and other controls before the number are passed over. Empty lines are part of that.
        let (blank, rest) = split_while(data, |byte| is_space(byte) || byte == 0);
        let number = match rest {
            [b'0', b'x' | b'X', number @ ..] => number,
            _ => rest,
        };
        let (digits, _) = split_while(number, |byte| byte.is_ascii_hexdigit());
        if digits.is_empty() {
            let is_all_blank = rest.is_empty() && (blank.len() < MOST_LENGTH_LINE);
            return if is_all_blank || number.is_empty() && !is_end { Piece::More } else { Piece::Invalid };
        }
        let Some(end) = memchr(b'\n', rest).or(is_end.then_some(rest.len())) else {
            return if rest.len() > MOST_LENGTH_LINE { Piece::Invalid } else { Piece::More };
        };
        let bytes = (blank.len() + end + 1).min(data.len());
        let has_extension = rest.get(..end).is_some_and(|line| memchr(b';', line).is_some());
        match parse_length(digits) {
            Some(0) => Piece::Last(bytes),
            Some(length) if length <= MOST_CHUNK => {
                *self = Chunks::Data(length);
                Piece::Framing { bytes, has_extension }
            }
            _ => Piece::Invalid,
        }
    }
}

fn parse_length(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0_u64, |value, digit| value.checked_mul(16)?.checked_add(u64::from((*digit as char).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Return the content, and whether the last chunk was seen.
    fn content(data: &[u8]) -> (Vec<u8>, bool) {
        let (mut at, mut out, mut chunks) = (0, Vec::new(), Chunks::Length);
        loop {
            match chunks.next(&data[at..], true) {
                Piece::More => return (out, false),
                Piece::Framing { bytes, .. } => at += bytes,
                Piece::Content(count) => {
                    out.extend_from_slice(&data[at..at + count]);
                    at += count;
                }
                Piece::Last(_) => return (out, true),
                Piece::Invalid => {
                    out.extend_from_slice(&data[at..]);
                    return (out, false);
                }
            }
        }
    }

    #[test]
    fn lengths_are_read_as_browsers_read_them() {
        for length in
            ["5", "05", "5 ", "5\t", "5\r", "5;a=b", "5,", "5\0", "5 x", "\x0b5", " 5", "0x5", "\r\n5", "\n\n5"]
        {
            let text = format!("{length}\r\nhello\r\n{length}\nworld\n0\r\n");
            assert_eq!(content(text.as_bytes()), (b"helloworld".to_vec(), true), "{length:?}");
        }
    }

    #[test]
    fn what_is_not_chunked_is_content() {
        for text in ["X5O!P%@AP", "-5\r\nhello", "ffffffff\r\nhello", "fffffffffffffffffff\r\n"] {
            assert_eq!(content(text.as_bytes()), (text.as_bytes().to_vec(), false), "{text}");
        }
    }

    #[test]
    fn an_end_without_line_end_counts() {
        assert_eq!(content(b"5\r\nhello\r\n0"), (b"hello".to_vec(), true));
        assert_eq!(content(b"5\r\nhel"), (b"hel".to_vec(), false));
    }
}
