//! Base64, as tolerant as rules ask for.

/// What is skipped and what ends the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base64Mode {
    /// Whatever is not of the alphabet is skipped (line breaks, spaces).
    Rfc2045,
    /// It ends before the first character that is not of the alphabet.
    Rfc4648,
    /// One wrong character and there is no result.
    Strict,
}

impl Base64Mode {
    pub(super) fn parse(name: &str) -> Result<Base64Mode, String> {
        match name.to_ascii_lowercase().as_str() {
            "rfc2045" => Ok(Base64Mode::Rfc2045),
            "rfc4648" => Ok(Base64Mode::Rfc4648),
            "strict" => Ok(Base64Mode::Strict),
            other => Err(format!("from_base64 has no mode {other:?}")),
        }
    }
}

fn value(byte: u8) -> Option<u32> {
    Some(u32::from(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    }))
}

/// Append what `text` stands for. An incomplete group at the end gives the bytes that are complete in it; before a
/// wrong character it gives nothing.
pub(crate) fn decode_base64(text: &[u8], mode: Base64Mode, output: &mut Vec<u8>) {
    let before = output.len();
    let (mut group, mut count, mut padding) = (0u32, 0u32, 0u32);
    for byte in text {
        match value(*byte) {
            // after padding nothing more belongs to it
            Some(_) if padding > 0 => break,
            Some(value) => {
                group = group << 6 & 0x00ff_ffff | value;
                count += 1;
            }
            None if *byte == b'=' => padding += 1,
            None if mode == Base64Mode::Rfc2045 => continue,
            None => {
                if mode == Base64Mode::Strict {
                    output.truncate(before);
                }
                return;
            }
        }
        if count == 4 {
            output.extend_from_slice(&group.to_be_bytes()[1..]);
            (group, count) = (0, 0);
        } else if padding > 0 && count + padding >= 4 {
            break;
        }
    }
    if mode == Base64Mode::Strict && (count + padding) % 4 != 0 {
        output.truncate(before);
        return;
    }
    let group = (group << (6 * (4 - count))) & 0x00ff_ffff;
    let complete = count.saturating_sub(1) as usize; // 2 characters hold 1 byte, 3 hold 2
    output.extend_from_slice(&group.to_be_bytes()[1..1 + complete]);
}
