//! Telling compressed data by its bytes, and where in them it begins.

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// Bytes that are held before a layer decides what they are: the longest header without names, and some data.
const ENOUGH: usize = 64;
/// A gzip header with a name may be longer; then it is waited for, but not for ever.
const MOST_HEADER: usize = 4096;
/// One step of output, on the stack.
const STEP: usize = 4096;

/// Where compressed data begins.
#[derive(Clone, Copy)]
pub struct Choice {
    /// How many bytes of header there are.
    pub offset: usize,
    /// A trailer follows, and maybe another member.
    pub is_gzip: bool,
}

/// Decide what `held` is: `None` to wait, `Some(None)` if it is not compressed.
pub fn choose(held: &[u8], is_end: bool) -> Option<Option<Choice>> {
    if held.is_empty() {
        return None;
    }
    let is_gzip = held.starts_with(&[0x1f, 0x8b]);
    let header = is_gzip.then(|| gzip_header(held)).flatten();
    let is_waiting = held.len() < ENOUGH || is_gzip && header.is_none() && held.len() < MOST_HEADER;
    if is_waiting && !is_end {
        return None;
    }
    let zlib = matches!(held, [a, b, ..] if a & 15 == 8 && u16::from_be_bytes([*a, *b]) % 31 == 0).then_some(2);
    let plain = is_gzip.then_some(GZIP_HEADER); // flags that promise what is not there
    let offsets = [header, plain, zlib, Some(0)];
    let mut best = None;
    for offset in offsets.into_iter().flatten() {
        let Some(data) = held.get(offset..) else { continue };
        match trial(data) {
            Trial::Sound => return Some(Some(Choice { offset, is_gzip })),
            Trial::Open if is_end => {} // nothing came out, and nothing will
            Trial::Open if held.len() < MOST_TRIAL => return None,
            Trial::Open if offset > 0 => return Some(Some(Choice { offset, is_gzip })),
            // a stream that breaks later is still one, if its header says so
            Trial::Broken { has_output: true } if offset > 0 && best.is_none() => {
                best = Some(Choice { offset, is_gzip });
            }
            _ => {}
        }
    }
    Some(best)
}

/// RFC 1952 section 2.3: the header without optional fields.
const GZIP_HEADER: usize = 10;

/// Return where the data of a gzip member begins.
fn gzip_header(data: &[u8]) -> Option<usize> {
    let flags = *data.get(3)?;
    let mut at = GZIP_HEADER;
    if flags & 4 != 0 {
        let length = data.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([*length.first()?, *length.last()?]));
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += memchr::memchr(0, data.get(at..)?)? + 1; // name, comment
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    (at <= data.len()).then_some(at)
}

/// Bytes that are inflated to see whether they can be: tables and some data.
const MOST_TRIAL: usize = 512;

/// What became of inflating the beginning of something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trial {
    /// Something came out, or it is a whole stream without content.
    Sound,
    /// Nothing was wrong, and nothing came out.
    Open,
    /// It is no such data, from some point on.
    Broken { has_output: bool },
}

fn trial(data: &[u8]) -> Trial {
    let mut state = InflateState::new_boxed(DataFormat::Raw);
    let mut out = [0; STEP];
    let result =
        inflate(&mut state, data.get(..data.len().min(MOST_TRIAL)).unwrap_or_default(), &mut out, MZFlush::None);
    let has_output = result.bytes_written > 0;
    match result.status {
        Ok(MZStatus::StreamEnd) => Trial::Sound,
        Ok(_) | Err(MZError::Buf) if has_output => Trial::Sound,
        Ok(_) | Err(MZError::Buf) => Trial::Open,
        Err(_) => Trial::Broken { has_output },
    }
}
