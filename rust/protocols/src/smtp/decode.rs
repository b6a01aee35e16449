//! Content-Transfer-Encoding (RFC 2045 section 6), undone piece by piece.

/// How a part is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `7bit`, `8bit`, `binary`, or nothing that is known.
    #[default]
    Plain,
    Base64,
    QuotedPrintable,
}

impl Encoding {
    /// Read the field's value.
    pub fn named(value: &[u8]) -> Encoding {
        let value = value.trim_ascii();
        if value.eq_ignore_ascii_case(b"base64") {
            Encoding::Base64
        } else if value.eq_ignore_ascii_case(b"quoted-printable") {
            Encoding::QuotedPrintable
        } else {
            Encoding::Plain
        }
    }
}

/// What remains of earlier pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    encoding: Encoding,
    /// Base64: bits that make no whole byte yet, and how many symbols they were.
    bits: u32,
    symbols: u8,
    /// Quoted-printable: an escape that was cut by the end of a piece.
    escape: Vec<u8>,
    /// The end of the last line, which belongs to a boundary if one follows.
    line_end: &'static [u8],
}

/// A line of a part, or a piece of a line that is too long to be held.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'d> {
    /// Without the line's end.
    pub text: &'d [u8],
    /// The line's end; `None` if it goes on.
    pub line_end: Option<&'static [u8]>,
}

impl Decoder {
    /// Begin a part.
    pub fn new(encoding: Encoding) -> Decoder {
        Decoder { encoding, ..Decoder::default() }
    }

    /// Return how the part is encoded.
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Append what a piece says to `out`; return whether it is well-formed.
    pub fn decode(&mut self, piece: Piece<'_>, out: &mut Vec<u8>) -> bool {
        match self.encoding {
            Encoding::Plain => {
                out.extend_from_slice(self.line_end);
                out.extend_from_slice(piece.text);
                self.line_end = piece.line_end.unwrap_or_default();
                true
            }
            Encoding::Base64 => self.base64(piece.text, out),
            Encoding::QuotedPrintable => self.quoted(piece, out),
        }
    }

    /// The part is over.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        match self.encoding {
            Encoding::Base64 => self.flush(out),
            Encoding::QuotedPrintable => out.append(&mut self.escape),
            Encoding::Plain => {}
        }
    }

    /// What is no symbol is passed over, as mail programs do.
    fn base64(&mut self, text: &[u8], out: &mut Vec<u8>) -> bool {
        let mut is_well_formed = true;
        for byte in text {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => {
                    self.flush(out);
                    continue;
                }
                b' ' | b'\t' | b'\r' => continue,
                _ => {
                    is_well_formed = false;
                    continue;
                }
            };
            self.bits = self.bits << 6 | u32::from(value);
            self.symbols += 1;
            if self.symbols == 4 {
                let [_, bytes @ ..] = self.bits.to_be_bytes();
                out.extend_from_slice(&bytes);
                (self.bits, self.symbols) = (0, 0);
            }
        }
        is_well_formed
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        let [_, first, second, _] = (self.bits << (6 * (4 - u32::from(self.symbols.min(4))))).to_be_bytes();
        match self.symbols {
            2 => out.push(first),
            3 => out.extend_from_slice(&[first, second]),
            _ => {}
        }
        (self.bits, self.symbols) = (0, 0);
    }

    fn quoted(&mut self, piece: Piece<'_>, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(self.line_end);
        self.line_end = b"";
        let mut text = std::mem::take(&mut self.escape);
        text.extend_from_slice(piece.text);
        let mut rest = match piece.line_end {
            Some(_) => text.trim_ascii_end(), // RFC 2045 section 6.7 rule 3
            None => &text,
        };
        let mut is_well_formed = true;
        while let Some(at) = memchr::memchr(b'=', rest) {
            out.extend_from_slice(rest.get(..at).unwrap_or_default());
            rest = rest.get(at..).unwrap_or_default();
            match (rest, piece.line_end) {
                ([_], Some(_)) => return is_well_formed, // a soft break
                ([_] | [_, _], None) => {
                    self.escape = rest.to_vec();
                    return is_well_formed;
                }
                _ => {}
            }
            match rest.get(1..3).and_then(hex) {
                Some(byte) => {
                    out.push(byte);
                    rest = rest.get(3..).unwrap_or_default();
                }
                None => {
                    is_well_formed = false;
                    out.push(b'=');
                    rest = rest.get(1..).unwrap_or_default();
                }
            }
        }
        out.extend_from_slice(rest);
        self.line_end = piece.line_end.unwrap_or_default();
        is_well_formed
    }
}

/// Return the byte that two hexadecimal digits stand for.
pub fn hex(digits: &[u8]) -> Option<u8> {
    let [high, low] = digits else { return None };
    let value = |digit: &u8| char::from(*digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some(value(high)? << 4 | value(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(encoding: Encoding, lines: &[&str]) -> (String, bool) {
        let (mut decoder, mut out, mut is_well_formed) = (Decoder::new(encoding), Vec::new(), true);
        for line in lines {
            let (text, line_end) = match line.strip_suffix('\n') {
                Some(text) => (text, Some(&b"\r\n"[..])),
                None => (*line, None),
            };
            is_well_formed &= decoder.decode(Piece { text: text.as_bytes(), line_end }, &mut out);
        }
        decoder.finish(&mut out);
        (String::from_utf8_lossy(&out).into_owned(), is_well_formed)
    }

    #[test]
    fn base64_is_undone_however_it_is_broken() {
        for lines in [&["aGVs\n", "bG8g\n", "d29ybGQ=\n"][..], &["aGV", "sbG8gd\n", "29y bGQ=\n"], &["aGVsbG8gd29ybGQ"]]
        {
            assert_eq!(decode(Encoding::Base64, lines), ("hello world".into(), true), "{lines:?}");
        }
        assert_eq!(decode(Encoding::Base64, &["aGVs!bG8=\n"]), ("hello".into(), false));
        assert_eq!(decode(Encoding::Base64, &["aGk=aGk=\n", "a\n"]), ("hihi".into(), true));
    }

    #[test]
    fn quoted_printable_is_undone_however_it_is_broken() {
        assert_eq!(decode(Encoding::QuotedPrintable, &["a=3Db =\n", "c  \n", "d\n"]), ("a=b c\r\nd".into(), true));
        assert_eq!(decode(Encoding::QuotedPrintable, &["a=3", "Db=", "3d\n"]), ("a=b=".into(), true));
        assert_eq!(decode(Encoding::QuotedPrintable, &["=zz=4\n"]), ("=zz=4".into(), false));
    }

    #[test]
    fn the_last_line_end_belongs_to_the_boundary() {
        assert_eq!(decode(Encoding::Plain, &["a\n", "\n", "b\n"]), ("a\r\n\r\nb".into(), true));
    }
}
