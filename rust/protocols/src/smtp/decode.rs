//! Transfer encodings of MIME parts, decoded as they come: RFC 2045, section 6.

/// How a part's bytes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Encoding {
    #[default]
    Plain,
    Base64,
    QuotedPrintable,
}

impl Encoding {
    /// Read the value of Content-Transfer-Encoding.
    pub fn parse(value: &[u8]) -> Encoding {
        match value.trim_ascii().to_ascii_lowercase().as_slice() {
            b"base64" => Encoding::Base64,
            b"quoted-printable" => Encoding::QuotedPrintable,
            _ => Encoding::Plain,
        }
    }
}

/// Digits of base64 that wait for the rest of their group.
#[derive(Default, Debug)]
pub struct Base64 {
    bits: u32,
    digits: u8,
    is_over: bool,
}

fn digit(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

impl Base64 {
    /// Decode a line into `out`; false if there were characters that do not belong there.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) -> bool {
        let mut is_right = true;
        for byte in line {
            match digit(*byte) {
                Some(_) if self.is_over => is_right = false,
                Some(value) => {
                    self.bits = self.bits << 6 | value;
                    self.digits += 1;
                    if self.digits == 4 {
                        out.extend_from_slice(&self.bits.to_be_bytes()[1..]);
                        (self.bits, self.digits) = (0, 0);
                    }
                }
                None if *byte == b'=' => {
                    self.is_over = true;
                    is_right &= self.flush(out);
                }
                None => is_right &= byte.is_ascii_whitespace(),
            }
        }
        is_right
    }

    /// The end: what is in an open group. False if a digit is over.
    pub fn flush(&mut self, out: &mut Vec<u8>) -> bool {
        let bits = std::mem::take(&mut self.bits);
        match std::mem::take(&mut self.digits) {
            2 => out.push((bits >> 4) as u8),
            3 => out.extend_from_slice(&((bits >> 2) as u16).to_be_bytes()),
            1 => return false,
            _ => {}
        }
        true
    }
}

/// Decode a line of quoted-printable into `out`; false if an escape was none.
pub fn quoted_printable(line: &[u8], out: &mut Vec<u8>) -> bool {
    let mut is_right = true;
    let line = line.trim_ascii_end();
    let (line, is_soft) = line.strip_suffix(b"=").map_or((line, false), |line| (line, true));
    let mut rest = line;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        let value = if *first == b'=' { behind.get(..2).and_then(hex) } else { None };
        match value {
            Some(value) => {
                out.push(value);
                rest = behind.get(2..).unwrap_or_default();
            }
            None => {
                is_right &= *first != b'=';
                out.push(*first);
            }
        }
    }
    if !is_soft {
        out.extend_from_slice(b"\r\n");
    }
    is_right
}

fn hex(digits: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u8::from_str_radix(text, 16).ok()
}
