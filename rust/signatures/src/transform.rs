//! Transforms of a buffer before it is looked at: `dotprefix`, `to_md5`, `url_decode`, `xor` …

mod base64;
mod inflate;
#[cfg(test)]
mod tests;
mod text;

use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::Sha256;

pub(crate) use base64::{Base64Mode, decode_base64};
use inflate::Wrapper;

use crate::pcre::Extract;

/// Most bytes that a decompression may be told to give; Suricata's own bound.
const MOST_INFLATED: usize = 16 << 20;
/// What it gives where nothing is said; Suricata's own default.
const INFLATED: usize = 1_024;
/// Longest key of `xor`, in bytes; Suricata counts it in 8 bits.
const MOST_KEY: usize = 255;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transform {
    /// A full stop in front.
    DotPrefix,
    /// ASCII letters.
    ToLowercase,
    /// ASCII letters.
    ToUppercase,
    /// The digest's bytes.
    ToMd5,
    /// The digest's bytes.
    ToSha1,
    /// The digest's bytes.
    ToSha256,
    /// `%41` and `+`.
    UrlDecode,
    /// No white space.
    StripWhitespace,
    /// The first of each run of white space.
    CompressWhitespace,
    /// Without lines that begin with a colon.
    StripPseudoHeaders,
    /// Names of headers in lower case.
    HeaderLowercase,
    /// With a key.
    Xor(Xor),
    /// The first group of an expression.
    PcreXform(Extract),
    /// The registered domain.
    Domain,
    /// The public suffix.
    Tld,
    /// What Base64 text stands for.
    FromBase64 {
        /// How many bytes of text; 0: all.
        bytes: usize,
        /// Where it begins.
        offset: usize,
        /// What is skipped and what is an error.
        mode: Base64Mode,
    },
    /// `gunzip`, with the most bytes that it gives.
    Gunzip(usize),
    /// `zlib_deflate`, likewise.
    ZlibDeflate(usize),
    /// A part.
    Subslice {
        /// Negative: from the end.
        offset: i64,
        /// `None`: to the end. Negative: up to so many before it.
        bytes: Option<i64>,
        /// Where there is less, that; else nothing.
        is_truncating: bool,
    },
}

/// The key of `xor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Xor {
    /// As written.
    Key(Box<[u8]>),
    /// Taken from the buffer.
    Extract {
        /// Where decoding begins.
        offset: usize,
        /// How long the key is.
        bytes: usize,
        /// Where it is.
        at: usize,
    },
}

impl Transform {
    /// Return the transform of that name, `None` if there is none; or what is wrong with its argument.
    pub fn parse(name: &str, argument: Option<&str>) -> Option<Result<Transform, String>> {
        let simple = match name {
            "dotprefix" => Transform::DotPrefix,
            "to_lowercase" => Transform::ToLowercase,
            "to_uppercase" => Transform::ToUppercase,
            "to_md5" => Transform::ToMd5,
            "to_sha1" => Transform::ToSha1,
            "to_sha256" => Transform::ToSha256,
            "url_decode" => Transform::UrlDecode,
            "strip_whitespace" => Transform::StripWhitespace,
            "compress_whitespace" => Transform::CompressWhitespace,
            "strip_pseudo_headers" => Transform::StripPseudoHeaders,
            "header_lowercase" => Transform::HeaderLowercase,
            "domain" => Transform::Domain,
            "tld" => Transform::Tld,
            "luaxform" => return Some(Err("scripts are not supported".into())),
            "xor" => return Some(argument.ok_or("xor needs a key".into()).and_then(parse_xor).map(Transform::Xor)),
            "pcrexform" => {
                let pattern = argument.map(unquoted).ok_or_else(|| "pcrexform needs an expression".to_string());
                return Some(pattern.and_then(Extract::parse).map(Transform::PcreXform));
            }
            "from_base64" => return Some(parse_base64(argument.unwrap_or_default())),
            "gunzip" => return Some(parse_size(argument.unwrap_or_default()).map(Transform::Gunzip)),
            "zlib_deflate" => return Some(parse_size(argument.unwrap_or_default()).map(Transform::ZlibDeflate)),
            "subslice" => return Some(parse_subslice(argument.unwrap_or_default())),
            _ => return None,
        };
        Some(match argument.map(str::trim) {
            None | Some("") => Ok(simple),
            Some(other) => Err(format!("{name} takes no argument, not {other:?}")),
        })
    }

    /// Return the name in rules.
    pub fn name(&self) -> &'static str {
        match self {
            Transform::DotPrefix => "dotprefix",
            Transform::ToLowercase => "to_lowercase",
            Transform::ToUppercase => "to_uppercase",
            Transform::ToMd5 => "to_md5",
            Transform::ToSha1 => "to_sha1",
            Transform::ToSha256 => "to_sha256",
            Transform::UrlDecode => "url_decode",
            Transform::StripWhitespace => "strip_whitespace",
            Transform::CompressWhitespace => "compress_whitespace",
            Transform::StripPseudoHeaders => "strip_pseudo_headers",
            Transform::HeaderLowercase => "header_lowercase",
            Transform::Xor(_) => "xor",
            Transform::PcreXform(_) => "pcrexform",
            Transform::Domain => "domain",
            Transform::Tld => "tld",
            Transform::FromBase64 { .. } => "from_base64",
            Transform::Gunzip(_) => "gunzip",
            Transform::ZlibDeflate(_) => "zlib_deflate",
            Transform::Subslice { .. } => "subslice",
        }
    }

    /// Put what becomes of `input` into `output` (cleared first).
    pub fn apply(&self, input: &[u8], output: &mut Vec<u8>) {
        output.clear();
        match self {
            Transform::DotPrefix => {
                output.push(b'.');
                output.extend_from_slice(input);
            }
            Transform::ToLowercase => output.extend(input.iter().map(u8::to_ascii_lowercase)),
            Transform::ToUppercase => output.extend(input.iter().map(u8::to_ascii_uppercase)),
            Transform::ToMd5 => output.extend_from_slice(&Md5::digest(input)),
            Transform::ToSha1 => output.extend_from_slice(&Sha1::digest(input)),
            Transform::ToSha256 => output.extend_from_slice(&Sha256::digest(input)),
            Transform::UrlDecode => text::url_decode(input, output),
            Transform::StripWhitespace => output.extend(input.iter().filter(|byte| !text::is_space(**byte))),
            Transform::CompressWhitespace => text::compress_whitespace(input, output),
            Transform::StripPseudoHeaders => text::strip_pseudo_headers(input, output),
            Transform::HeaderLowercase => text::header_lowercase(input, output),
            Transform::Xor(xor) => xor.apply(input, output),
            Transform::PcreXform(extract) => output.extend_from_slice(extract.group(input).unwrap_or(input)),
            Transform::Domain => output.extend_from_slice(psl::domain(input).map_or(input, |name| name.as_bytes())),
            Transform::Tld => output.extend_from_slice(psl::suffix(input).map_or(input, |name| name.as_bytes())),
            Transform::FromBase64 { bytes, offset, mode } => {
                let text = input.get(*offset..).unwrap_or_default();
                let text = if *bytes == 0 { text } else { text.get(..*bytes).unwrap_or(text) };
                decode_base64(text, *mode, output);
                if output.is_empty() {
                    output.extend_from_slice(input);
                }
            }
            Transform::Gunzip(most) => inflate::inflate(input, Wrapper::Gzip, *most, output),
            Transform::ZlibDeflate(most) => inflate::inflate(input, Wrapper::Zlib, *most, output),
            Transform::Subslice { offset, bytes, is_truncating } => {
                output.extend_from_slice(subslice(input, *offset, *bytes, *is_truncating).unwrap_or_default());
            }
        }
    }

    /// Return whether `literal` can occur in what it leaves: `to_lowercase` leaves no upper case.
    pub fn can_leave(&self, literal: &[u8]) -> bool {
        match self {
            Transform::ToLowercase => !literal.iter().any(u8::is_ascii_uppercase),
            Transform::ToUppercase => !literal.iter().any(u8::is_ascii_lowercase),
            Transform::StripWhitespace => !literal.iter().any(|byte| text::is_space(*byte)),
            Transform::CompressWhitespace => !literal.windows(2).any(|pair| pair.iter().all(|b| text::is_space(*b))),
            _ => true,
        }
    }

    /// Return whether its result can hold any bytes, whatever steps came before.
    pub fn makes_anew(&self) -> bool {
        use Transform::{FromBase64, Gunzip, ToMd5, ToSha1, ToSha256, UrlDecode, Xor, ZlibDeflate};
        matches!(self, ToMd5 | ToSha1 | ToSha256 | UrlDecode | Xor(_) | FromBase64 { .. } | Gunzip(_) | ZlibDeflate(_))
    }
}

impl Xor {
    fn apply(&self, input: &[u8], output: &mut Vec<u8>) {
        output.extend_from_slice(input);
        let (key, offset) = match self {
            Xor::Key(key) => (&**key, 0),
            Xor::Extract { offset, bytes, at } => {
                // the key is not in the buffer: it stays as it is
                let Some(key) = at.checked_add(*bytes).and_then(|end| input.get(*at..end)) else { return };
                (key, *offset)
            }
        };
        let decoded = output.get_mut(offset..).unwrap_or_default();
        decoded.iter_mut().zip(key.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    }
}

fn subslice(input: &[u8], offset: i64, bytes: Option<i64>, is_truncating: bool) -> Option<&[u8]> {
    let length = i64::try_from(input.len()).ok()?;
    let from_end = |value: i64| if value < 0 { length.saturating_add(value) } else { value };
    let from = from_end(offset);
    let to = match bytes {
        None => length,
        Some(bytes) if bytes < 0 => length.saturating_add(bytes),
        Some(bytes) => from.saturating_add(bytes),
    };
    let (from, to) = if is_truncating { (from.clamp(0, length), to.min(length)) } else { (from, to) };
    input.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?)
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no number"))
}

fn parse_xor(argument: &str) -> Result<Xor, String> {
    let text = unquoted(argument);
    if text.contains("extract") || text.contains("offset") {
        return parse_xor_extract(text);
    }
    let is_key = !text.is_empty() && text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_key || text.len() / 2 > MOST_KEY {
        return Err("xor needs a key of pairs of hexadecimal digits".into());
    }
    let pairs = text.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    Ok(Xor::Key(pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()))
}

/// `offset 1,extract 1 0`: where decoding begins; length and place of the key.
fn parse_xor_extract(text: &str) -> Result<Xor, String> {
    let (mut offset, mut key) = (0, None);
    for part in text.split(',').map(str::trim) {
        let words: Vec<&str> = part.split_whitespace().collect();
        match words[..] {
            ["offset", value] => offset = number::<u32>(value)? as usize,
            ["extract", bytes, at] => key = Some((usize::from(number::<u8>(bytes)?), number::<u32>(at)? as usize)),
            _ => return Err(format!("xor has no option {part:?}")),
        }
    }
    match key {
        Some((bytes, at)) if bytes > 0 => Ok(Xor::Extract { offset, bytes, at }),
        _ => Err("xor needs a key of at least one byte".into()),
    }
}

fn parse_base64(argument: &str) -> Result<Transform, String> {
    let (mut bytes, mut offset, mut mode) = (0, 0, Base64Mode::Rfc4648);
    for part in unquoted(argument).split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
        match name {
            "bytes" => bytes = number::<u32>(value)? as usize,
            "offset" => offset = number::<u32>(value)? as usize,
            "mode" => mode = Base64Mode::parse(value.trim())?,
            _ => return Err(format!("from_base64 has no option {part:?}")),
        }
    }
    Ok(Transform::FromBase64 { bytes, offset, mode })
}

fn parse_size(argument: &str) -> Result<usize, String> {
    let argument = unquoted(argument);
    if argument.is_empty() {
        return Ok(INFLATED);
    }
    let value = argument.strip_prefix("max-size").ok_or_else(|| format!("there is no option {argument:?}"))?;
    let value = value.trim_start_matches([' ', ':', '=']);
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (count, unit) = value.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        other => return Err(format!("{other:?} is no unit")),
    };
    let size = number::<usize>(count)?.saturating_mul(unit);
    if (1..=MOST_INFLATED).contains(&size) { Ok(size) } else { Err("max-size is out of bounds".into()) }
}

fn parse_subslice(argument: &str) -> Result<Transform, String> {
    let mut parts = unquoted(argument).split(',').map(str::trim).peekable();
    let offset = number(parts.next().unwrap_or_default())?;
    let bytes = match parts.peek() {
        None | Some(&"truncate") => None,
        Some(bytes) => Some(number(bytes)?),
    };
    if bytes.is_some() {
        parts.next();
    }
    let is_truncating = parts.next_if_eq(&"truncate").is_some();
    match parts.next() {
        None => Ok(Transform::Subslice { offset, bytes, is_truncating }),
        Some(other) => Err(format!("subslice has no option {other:?}")),
    }
}
