//! What particular buffers allow in their contents, and what can never match.

use std::borrow::Cow;

use crate::number::Comparison;
use crate::packet_test::PacketTest;

use super::buffers::{Chunk, Group};

/// A content's bytes: those between quotes, `|41 42|` as what they stand for. `None` where it is negated or broken
/// (the builder says what is wrong).
pub(super) fn literal(chunk: &Chunk<'_>) -> Option<Vec<u8>> {
    let (_, value) = chunk.options.first().filter(|(name, _)| *name == "content")?;
    let inner = value.as_deref()?.trim().strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    for (part, number) in inner.split('|').zip(0usize..) {
        if number.is_multiple_of(2) {
            let mut rest = part.bytes();
            while let Some(byte) = rest.next() {
                bytes.extend(if byte == b'\\' { rest.next() } else { Some(byte) });
            }
        } else {
            let digits: Vec<u8> = part.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
            let (pairs, _) = digits.as_chunks::<2>();
            let pair = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
            bytes.extend(pairs.iter().map(pair).collect::<Option<Vec<u8>>>()?);
        }
    }
    Some(bytes)
}

fn has(chunk: &Chunk<'_>, name: &str) -> bool {
    chunk.options.iter().any(|(option, _)| *option == name)
}

/// Whether a content says where it is: then TCP payloads are looked at packet by packet too.
pub(super) fn has_depth_or_offset(group: &Group<'_>) -> bool {
    let names = ["depth", "offset", "startswith"];
    group.chunks.iter().any(|chunk| names.iter().any(|name| has(chunk, name)))
}

/// Refuse contents that the buffer's normal form can never have; bring digests to theirs.
pub(super) fn adjust(group: &mut Group<'_>, buffer: &str) -> Result<(), String> {
    if !group.transforms.is_empty() {
        return Ok(());
    }
    for chunk in group.chunks.iter_mut().filter(|chunk| chunk.is_content()) {
        match buffer {
            "ja3.hash" | "ja3s.hash" | "tls.cert_fingerprint" => change_case(chunk, str::make_ascii_lowercase),
            "tls.cert_serial" => change_case(chunk, str::make_ascii_uppercase),
            _ => {}
        }
        check_content(chunk, buffer)?;
    }
    Ok(())
}

fn change_case(chunk: &mut Chunk<'_>, change: fn(&mut str)) {
    if let Some((_, Some(value))) = chunk.options.first_mut() {
        let mut text = value.to_string();
        change(&mut text);
        *value = Cow::Owned(text);
    }
}

fn check_content(chunk: &Chunk<'_>, buffer: &str) -> Result<(), String> {
    let Some(bytes) = literal(chunk) else { return Ok(()) };
    let ends_with_line = bytes.ends_with(b"\r\n");
    let starts_or_ends_blank =
        [bytes.first(), bytes.last()].iter().flatten().any(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    match buffer {
        "http.host" if !has(chunk, "nocase") && bytes.iter().any(u8::is_ascii_uppercase) => {
            Err("http.host is in lower case, this content is not".to_owned())
        }
        "http.method" if starts_or_ends_blank => Err("http.method has no blank at either end".to_owned()),
        "http.user_agent" | "http.host" | "http.referer" | "http.cookie" if ends_with_line => {
            Err(format!("{buffer} does not contain the line's end"))
        }
        "tls.cert_fingerprint" if bytes.len() == 59 && !is_fingerprint(&bytes) => {
            Err("a fingerprint has colons between its bytes".to_owned())
        }
        "ja3.hash" | "ja3s.hash" if bytes.len() > 32 => Err("a JA3 hash has 32 digits".to_owned()),
        _ => Ok(()),
    }
}

fn is_fingerprint(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| (*byte == b':') == (at % 3 == 2))
}

/// Refuse contents that are longer than `dsize` allows.
pub(super) fn check_size(tests: &[PacketTest], payload: Option<&Group<'_>>) -> Result<(), String> {
    let most = tests.iter().filter_map(|test| match test {
        PacketTest::PayloadSize(Comparison::Equal(size) | Comparison::AtMost(size)) => Some(*size),
        PacketTest::PayloadSize(Comparison::Below(size) | Comparison::Between(_, size)) => Some(size.saturating_sub(1)),
        _ => None,
    });
    let (Some(most), Some(payload)) = (most.min(), payload) else { return Ok(()) };
    let longest = payload.chunks.iter().filter_map(literal).map(|bytes| bytes.len() as u64).max();
    if longest.is_some_and(|longest| longest > most) {
        return Err("a content is longer than dsize allows".to_owned());
    }
    Ok(())
}
