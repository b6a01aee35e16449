//! JA3, JA3S and JA4: names for the software behind a greeting.
//!
//! JA3 and JA3S follow Salesforce's description, JA4 (not the other methods of that family, which have another licence)
//! FoxIO's technical description, both public and BSD-licensed.

use md5::Md5;
use sha2::{Digest, Sha256};

use super::hello::{Hello, extension, is_grease};

/// JA4 keeps this many digits of each digest.
const JA4_DIGITS: usize = 12;

/// Return JA3's string: version, ciphers, extensions, groups, point formats, all in decimal and without grease.
pub fn ja3(hello: &Hello) -> String {
    let formats: Vec<u16> = hello.point_formats.iter().map(|&format| format.into()).collect();
    let lists = [&hello.ciphers, &hello.extensions, &hello.groups, &formats].map(|list| dashed(list));
    format!("{},{}", hello.legacy_version, lists.join(","))
}

/// Return JA3S's string: version, the chosen cipher, extensions.
pub fn ja3s(hello: &Hello) -> String {
    format!("{},{},{}", hello.legacy_version, dashed(&hello.ciphers), dashed(&hello.extensions))
}

fn dashed(list: &[u16]) -> String {
    let texts: Vec<String> = list.iter().filter(|value| !is_grease(**value)).map(u16::to_string).collect();
    texts.join("-")
}

/// Return the MD5 of a string in hexadecimal digits, as JA3 and HASSH are known. No security rests on it.
pub fn md5_hex(text: &[u8]) -> String {
    hex(&Md5::digest(text))
}

/// Return JA4 of a ClientHello over TCP.
pub fn ja4(hello: &Hello) -> String {
    let without_grease = |list: &[u16]| list.iter().copied().filter(|&value| !is_grease(value)).collect::<Vec<u16>>();
    let (mut ciphers, mut extensions) = (without_grease(&hello.ciphers), without_grease(&hello.extensions));
    let head = format!(
        "t{}{}{:02}{:02}{}",
        version(hello),
        if extensions.contains(&extension::SNI) { 'd' } else { 'i' },
        ciphers.len().min(99),
        extensions.len().min(99),
        alpn(hello)
    );
    ciphers.sort_unstable();
    extensions.sort_unstable();
    extensions.retain(|&kind| kind != extension::SNI && kind != extension::ALPN);
    let signatures = without_grease(&hello.signatures);
    let mut tail = commas(&extensions);
    if !signatures.is_empty() {
        tail = format!("{tail}_{}", commas(&signatures));
    }
    let tail = if extensions.is_empty() { digits("") } else { digits(&tail) };
    format!("{head}_{}_{tail}", digits(&commas(&ciphers)))
}

fn version(hello: &Hello) -> &'static str {
    let highest = hello.versions.iter().copied().filter(|&version| !is_grease(version)).max();
    match highest.unwrap_or(hello.legacy_version) {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    }
}

/// The first and last letter of the first protocol; of its hexadecimal digits where one of them is no letter or digit.
fn alpn(hello: &Hello) -> String {
    let Some([first, .., last] | [first @ last]) = hello.alpns.first().map(Vec::as_slice) else { return "00".into() };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return format!("{}{}", char::from(*first), char::from(*last));
    }
    format!("{:x}{:x}", first >> 4, last & 0xf)
}

fn commas(list: &[u16]) -> String {
    let texts: Vec<String> = list.iter().map(|value| format!("{value:04x}")).collect();
    texts.join(",")
}

/// The first digits of the SHA-256; zeros for nothing.
fn digits(text: &str) -> String {
    if text.is_empty() {
        return "0".repeat(JA4_DIGITS);
    }
    let mut digest = hex(&Sha256::digest(text.as_bytes()));
    digest.truncate(JA4_DIGITS);
    digest
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
