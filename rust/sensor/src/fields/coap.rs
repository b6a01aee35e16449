//! CoAP requests: RFC 7252 in datagrams, RFC 8323 over TCP.

use super::reader::Reader;
use super::rules::{Facts, Field, Key, Rule};
use super::{Stop, Verdict, malformed, whole};

/// A message over TCP is held whole: seven times the base value of Max-Message-Size (RFC 8323, section 5.3.1).
const MAX_MESSAGE: usize = 8192;
const MAX_SEGMENTS: usize = 64; // of a path; a datagram has room for hundreds

const OBJECT_SECURITY: u32 = 9;
const URI_PATH: u32 = 11;
const PROXY_URI: u32 = 35;
const PROXY_SCHEME: u32 = 39;
/// Critical options that say nothing about where the request goes: If-Match, Uri-Host, If-None-Match, Uri-Port,
/// Uri-Query, Accept, Q-Block1, Block2, Block1, Q-Block2.
const HARMLESS: [u32; 10] = [1, 3, 5, 7, 15, 17, 19, 23, 27, 31];

/// Judge a datagram: one message, to its last byte.
pub fn judge_datagram(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    let mut message = Reader(bytes);
    let [first, code, _, _] = message.array()?;
    if first >> 6 != 1 {
        return malformed("coap: another version than 1");
    }
    let (is_request_type, token_bytes) = (first & 0x20 == 0, first & 0x0f);
    if code == 0 {
        // ping, acknowledgement or reset: RFC 7252, section 4.1
        let is_empty = message.is_empty() && token_bytes == 0;
        return match first >> 4 & 3 {
            0 | 2 | 3 if is_empty => Ok(Verdict::of(bytes.len(), None)),
            _ => malformed("coap: an empty message that is not empty"),
        };
    }
    if !is_request_type {
        return malformed("coap: a request in an answer");
    }
    let refused = judge_request(rule, code, token_bytes, message)?;
    Ok(Verdict::of(bytes.len(), refused))
}

/// Judge one message of a stream: RFC 8323, section 3.2.
pub fn judge_stream(rule: &Rule, bytes: &[u8]) -> Result<Verdict, Stop> {
    let first = whole(bytes, 1)?[0];
    let (extended, base) = match first >> 4 {
        short @ 0..=12 => (0, usize::from(short)),
        13 => (1, 13),
        14 => (2, 269),
        _ => return malformed("coap: a message of more than 65804 bytes"),
    };
    let token_bytes = first & 0x0f;
    let more = whole(bytes, 1 + extended)?[1..].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let before = 1 + extended + 1;
    let length = before + usize::from(token_bytes) + base + more;
    if length > MAX_MESSAGE {
        return malformed("coap: a message of more than 8192 bytes");
    }
    let message = whole(bytes, length)?;
    let code = message[before - 1];
    let body = Reader(&message[before..]);
    let refused = match code {
        0xe1..=0xe5 => {
            read_options(token_bytes, body, true)?; // signals about the connection itself: section 5
            None
        }
        0 if length == before => None, // an empty message is ignored: section 3.4
        0 => return malformed("coap: an empty message that is not empty"),
        _ => judge_request(rule, code, token_bytes, body)?,
    };
    Ok(Verdict::of(length, refused))
}

fn judge_request(rule: &Rule, code: u8, token_bytes: u8, body: Reader<'_>) -> Result<Option<String>, Stop> {
    if code >> 5 != 0 {
        return malformed("coap: an answer where a request is due");
    }
    let options = read_options(token_bytes, body, false)?;
    let mut facts = Facts::default().with(Key::Methods, code);
    if options.is_hidden {
        facts.set(Key::Methods, Field::Unknown); // RFC 8613: the real ones are encrypted
        facts.paths = Field::Unknown;
    } else {
        facts.paths = Field::One(options.path);
    }
    if options.is_proxied {
        return Ok(Some("coap request to a proxy".to_owned())); // whereto is not ours to judge
    }
    Ok(rule.refuses(&facts))
}

#[derive(Default)]
struct Options<'a> {
    path: Vec<&'a str>,
    is_hidden: bool,
    is_proxied: bool,
}

/// Read token, options and payload: RFC 7252, section 3.1. A signal's options have numbers of their own.
fn read_options(token_bytes: u8, mut body: Reader<'_>, is_signal: bool) -> Result<Options<'_>, Stop> {
    if token_bytes > 8 {
        return malformed("coap: a token of more than 8 bytes");
    }
    body.take(usize::from(token_bytes))?;
    let (mut options, mut number) = (Options::default(), 0_u32);
    while !body.is_empty() {
        let first = body.u8()?;
        if first == 0xff {
            if body.is_empty() {
                return malformed("coap: a payload marker without a payload");
            }
            break;
        }
        number += nibble(first >> 4, &mut body)?;
        let length = nibble(first & 0x0f, &mut body)?;
        if number > 0xffff {
            return malformed("coap: an option number that does not exist");
        }
        let value = body.take(length as usize)?;
        if !is_signal {
            options.read(number, value)?;
        }
    }
    Ok(options)
}

fn nibble(value: u8, body: &mut Reader<'_>) -> Result<u32, Stop> {
    match value {
        13 => Ok(u32::from(body.u8()?) + 13),
        14 => Ok(u32::from(body.u16()?) + 269),
        15 => malformed("coap: a reserved option length"),
        _ => Ok(u32::from(value)),
    }
}

impl<'a> Options<'a> {
    fn read(&mut self, number: u32, value: &'a [u8]) -> Result<(), Stop> {
        match number {
            URI_PATH => self.path.push(read_segment(value, self.path.len())?),
            OBJECT_SECURITY => self.is_hidden = true,
            PROXY_URI | PROXY_SCHEME => self.is_proxied = true,
            _ if number % 2 == 1 && !HARMLESS.contains(&number) => {
                return malformed("coap: a critical option that is not known");
            }
            _ => {}
        }
        Ok(())
    }
}

/// RFC 7252, section 5.10.1: never "." or "..". A "/" inside would be a border to servers that join the segments.
fn read_segment(value: &[u8], before: usize) -> Result<&str, Stop> {
    match std::str::from_utf8(value) {
        Ok("." | "..") => malformed("coap: a dot segment"),
        Ok(text) if text.contains(['/', '\0']) => malformed("coap: a border inside a path segment"),
        Ok(text) if value.len() <= 255 && before < MAX_SEGMENTS => Ok(text),
        Ok(_) => malformed("coap: a path too long"),
        Err(_) => malformed("coap: a path that is not UTF-8"),
    }
}
