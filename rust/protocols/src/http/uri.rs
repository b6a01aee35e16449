//! Taking a request's URI apart, and making its normal form: what most servers would take it for.

use memchr::memchr;

use super::line::split_while;
use crate::Settings;

/// How `http.uri` is made. The default is the `IDS` personality: everything that some server does.
#[derive(Clone, Copy, Debug)]
pub struct UriConfig {
    turns_backslashes: bool,
    decodes_separators: bool,
    compresses_separators: bool,
    decodes_u: bool,
    fits_utf8: bool,
    lowers: bool,
    decodes_query: bool,
    decodes_plus: bool,
    includes_all: bool,
    decodes_path_twice: bool,
    decodes_query_twice: bool,
}

impl UriConfig {
    /// Read it from settings whose names begin with `prefix`.
    pub fn new(settings: &Settings, prefix: &str) -> UriConfig {
        let name = |key: &str| format!("{prefix}{key}");
        let flag = |key: &str, default| settings.flag(&name(key), default);
        let personality = settings.text(&name("personality")).unwrap_or("IDS").to_ascii_lowercase();
        let is_apache = personality.starts_with("apache");
        let is_minimal = personality == "minimal";
        let is_windows = personality == "ids" || personality.starts_with("iis");
        UriConfig {
            turns_backslashes: flag("path-convert-backslash-separators", !is_apache && !is_minimal),
            decodes_separators: flag("path-separators-decode", !is_apache && !is_minimal),
            compresses_separators: flag("path-separators-compress", !is_minimal),
            decodes_u: flag("path-u-encoding-decode", is_windows),
            fits_utf8: flag("path-convert-utf8", is_windows),
            lowers: flag("path-convert-lowercase", false),
            decodes_query: flag("query-percent-decode", true),
            decodes_plus: flag("query-plusspace-decode", false),
            includes_all: flag("uri-include-all", false),
            decodes_path_twice: flag("double-decode-path", false),
            decodes_query_twice: flag("double-decode-query", false),
        }
    }
}

/// The parts of a URI, as written.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
#[allow(missing_docs)]
pub struct Parts<'a> {
    pub scheme: Option<&'a [u8]>,
    pub user: Option<&'a [u8]>,
    pub host: Option<&'a [u8]>,
    pub port: Option<&'a [u8]>,
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub fragment: Option<&'a [u8]>,
}

/// Take a URI apart (RFC 3986 section 3, leniently); `is_authority`: it is `host:port` only, as for CONNECT.
pub fn parse_uri(uri: &[u8], is_authority: bool) -> Parts<'_> {
    let mut parts = Parts::default();
    if is_authority {
        parts.set_authority(uri);
        return parts;
    }
    let mut rest = uri;
    if uri.first() != Some(&b'/') {
        let (scheme, after) = split_while(uri, |byte| !matches!(byte, b':' | b'/' | b'?' | b'#'));
        if let Some(after) = after.strip_prefix(b":") {
            parts.scheme = Some(scheme);
            rest = after;
            if let Some(after) = after.strip_prefix(b"//") {
                let (authority, after) = split_while(after, |byte| !matches!(byte, b'/' | b'?' | b'#'));
                parts.set_authority(authority);
                rest = after;
            }
        }
    }
    let (before, fragment) = split_once(rest, b'#');
    let (path, query) = split_once(before, b'?');
    (parts.path, parts.query, parts.fragment) = (path, query, fragment);
    parts
}

fn split_once(text: &[u8], separator: u8) -> (&[u8], Option<&[u8]>) {
    match memchr(separator, text) {
        Some(at) => (text.get(..at).unwrap_or_default(), text.get(at + 1..)),
        None => (text, None),
    }
}

impl<'a> Parts<'a> {
    fn set_authority(&mut self, authority: &'a [u8]) {
        let at = authority.iter().rposition(|byte| *byte == b'@');
        self.user = at.and_then(|at| authority.get(..at));
        let (host, port) = split_port(authority.get(at.map_or(0, |at| at + 1)..).unwrap_or_default());
        (self.host, self.port) = (Some(host), port);
    }
}

/// Split `host:port`; an IPv6 address stands in brackets.
pub fn split_port(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let from = if text.first() == Some(&b'[') { memchr(b']', text).unwrap_or(0) } else { 0 };
    match memchr(b':', text.get(from..).unwrap_or_default()) {
        Some(at) => (text.get(..from + at).unwrap_or_default(), text.get(from + at + 1..)),
        None => (text, None),
    }
}

/// A URI in its normal form.
#[derive(Debug, Default)]
pub struct Normal {
    /// All that rules see.
    pub text: Vec<u8>,
    /// Only the path.
    pub path: Vec<u8>,
    /// A second decoding (where it is switched on) changed something.
    pub is_double_encoded: bool,
}

/// Make the normal form.
pub fn normalise_uri(parts: &Parts<'_>, config: &UriConfig) -> Normal {
    let mut normal = Normal::default();
    let mut path = normalise_path(parts.path, config);
    if config.decodes_path_twice {
        normal.is_double_encoded |= decode_again(&mut path);
    }
    let mut text = Vec::with_capacity(path.len() + parts.query.map_or(0, <[u8]>::len) + 1);
    if config.includes_all {
        let all = [(parts.scheme, &b"://"[..]), (parts.user, b"@"), (parts.host, b"")];
        for (part, end) in all.iter().filter_map(|(part, end)| Some(((*part)?, *end))) {
            text.extend_from_slice(part);
            text.extend_from_slice(end);
        }
        add(&mut text, b':', parts.port);
    }
    text.extend_from_slice(&path);
    let query = parts.query.map(|query| {
        let mut query = if config.decodes_query { decode_query(query, config) } else { query.to_vec() };
        if config.decodes_query_twice {
            normal.is_double_encoded |= decode_again(&mut query);
        }
        query
    });
    add(&mut text, b'?', query.as_deref());
    add(&mut text, b'#', parts.fragment);
    (normal.text, normal.path) = (text, path);
    normal
}

fn add(text: &mut Vec<u8>, separator: u8, part: Option<&[u8]>) {
    if let Some(part) = part {
        text.push(separator);
        text.extend_from_slice(part);
    }
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn byte_of(high: u8, low: u8) -> Option<u8> {
    Some(hex(high)? << 4 | hex(low)?)
}

/// Decode `%HH` at the front of `text`, and `%uHHHH` where wanted: the byte, and how many bytes stood for it. What is
/// no valid encoding stands for itself.
fn decode_one(text: &[u8], decodes_u: bool) -> Option<(u8, usize)> {
    match *text {
        [b'%', b'u' | b'U', a, b, c, d, ..] if decodes_u => {
            let (high, low) = (byte_of(a, b)?, byte_of(c, d)?);
            Some((best_fit(u32::from(u16::from_be_bytes([high, low]))), 6))
        }
        [b'%', a, b, ..] => Some((byte_of(a, b)?, 3)),
        _ => None,
    }
}

fn decode_query(query: &[u8], config: &UriConfig) -> Vec<u8> {
    let mut out = Vec::with_capacity(query.len());
    let mut rest = query;
    while let Some(&first) = rest.first() {
        let plain = if first == b'+' && config.decodes_plus { b' ' } else { first };
        let (byte, count) = decode_one(rest, config.decodes_u).unwrap_or((plain, 1));
        out.push(byte);
        rest = rest.get(count..).unwrap_or_default();
    }
    out
}

fn decode_again(text: &mut Vec<u8>) -> bool {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_slice();
    while let Some(&first) = rest.first() {
        let (byte, count) = decode_one(rest, false).unwrap_or((first, 1));
        out.push(byte);
        rest = rest.get(count..).unwrap_or_default();
    }
    let is_changed = out.len() != text.len();
    *text = out;
    is_changed
}

fn normalise_path(path: &[u8], config: &UriConfig) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(&first) = rest.first() {
        let (mut byte, mut count) = decode_one(rest, config.decodes_u).unwrap_or((first, 1));
        let is_separator = byte == b'/' || byte == b'\\' && config.turns_backslashes;
        if count > 1 && is_separator && !config.decodes_separators {
            (byte, count) = (first, 1); // the percent sign stands for itself
        }
        if byte == b'\\' && config.turns_backslashes {
            byte = b'/';
        }
        let is_surplus = byte == b'/' && config.compresses_separators && out.last() == Some(&b'/');
        if !is_surplus {
            out.push(if config.lowers { byte.to_ascii_lowercase() } else { byte });
        }
        rest = rest.get(count..).unwrap_or_default();
    }
    if config.fits_utf8 && !out.is_ascii() {
        out = fit_utf8(&out);
    }
    remove_dots(&out)
}

/// Return the nearest character of one byte: what Windows servers do to the letters that they cannot show.
fn best_fit(point: u32) -> u8 {
    match point {
        0..=0xff => point.to_le_bytes()[0],
        0xff01..=0xff5e => (point - 0xff01 + 0x21).to_le_bytes()[0], // full-width forms of ASCII
        0x2044 | 0x2215 => b'/',
        0x2216 => b'\\',
        _ => b'?',
    }
}

/// Turn UTF-8 (overlong forms too) into one byte for each character, if all of it is UTF-8; else leave it alone.
fn fit_utf8(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(&first) = rest.first() {
        let (count, bits) = match first {
            0..=0x7f => (1, u32::from(first)),
            0xc0..=0xdf => (2, u32::from(first & 0x1f)),
            0xe0..=0xef => (3, u32::from(first & 0x0f)),
            0xf0..=0xf7 => (4, u32::from(first & 0x07)),
            _ => return text.to_vec(),
        };
        let Some(tail) = rest.get(1..count).filter(|tail| tail.iter().all(|byte| byte & 0xc0 == 0x80)) else {
            return text.to_vec();
        };
        out.push(best_fit(tail.iter().fold(bits, |point, byte| point << 6 | u32::from(byte & 0x3f))));
        rest = rest.get(count..).unwrap_or_default();
    }
    out
}

/// Resolve `.` and `..` (RFC 3986 section 5.2.4).
fn remove_dots(path: &[u8]) -> Vec<u8> {
    if !path.windows(2).any(|pair| pair == b"/.") && path.first() != Some(&b'.') {
        return path.to_vec();
    }
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut segments = path.split(|byte| *byte == b'/').peekable();
    let mut is_first = true;
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        let is_dots = segment == b"." || segment == b"..";
        if segment == b".." {
            out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
        }
        match (is_dots, is_last, is_first) {
            (true, true, _) if path.first() == Some(&b'/') || !out.is_empty() => out.push(b'/'),
            (true, ..) => {}
            (false, _, true) => out.extend_from_slice(segment),
            (false, _, false) => {
                // dots at the front of a relative path leave no separator behind
                if !out.is_empty() || path.first() == Some(&b'/') {
                    out.push(b'/');
                }
                out.extend_from_slice(segment);
            }
        }
        is_first = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(uri: &str, settings: &[(&str, &str)]) -> String {
        let mut all = Settings::default();
        for (name, value) in settings {
            all.set(name, value);
        }
        let config = UriConfig::new(&all, "");
        String::from_utf8_lossy(&normalise_uri(&parse_uri(uri.as_bytes(), false), &config).text).into_owned()
    }

    #[test]
    fn the_default_is_what_any_server_might_see() {
        let rows = [
            ("/../a/b/../c/./d.html", "/a/c/d.html"),
            ("/a/b/..", "/a/"),
            ("/a//b\\c", "/a/b/c"),
            ("/abc%2fdef", "/abc/def"),
            ("/abc/def?ghi%2fjkl", "/abc/def?ghi/jkl"),
            ("/abc/def?ghi%252fjkl", "/abc/def?ghi%2fjkl"),
            ("/%u0041%zz%4", "/A%zz%4"),
            ("/a%c0%afx", "/a/x"),
            ("http://user:p@host.example:81/a%20b?c#d", "/a b?c#d"),
            ("/a?b+c", "/a?b+c"),
            ("*", "*"),
            ("/A/.hidden/...", "/A/.hidden/..."),
            ("/", "/"),
            ("", ""),
        ];
        for (uri, expected) in rows {
            assert_eq!(normal(uri, &[]), expected, "{uri}");
        }
    }

    #[test]
    fn settings_change_it() {
        assert_eq!(normal("/abc%2fdef", &[("personality", "Apache_2")]), "/abc%2fdef");
        assert_eq!(normal("/a?b+c", &[("query-plusspace-decode", "yes")]), "/a?b c");
        assert_eq!(normal("/a%252fb", &[("double-decode-path", "yes")]), "/a/b");
        assert_eq!(normal("/?a%252fb", &[("double-decode-query", "yes")]), "/?a/b");
        let all = normal("http://host.example:81/a?c", &[("uri-include-all", "yes")]);
        assert_eq!(all, "http://host.example:81/a?c");
    }

    #[test]
    fn authorities_are_taken_apart() {
        let parts = parse_uri(b"http://u:p@[::1]:8080/x?y", false);
        assert_eq!((parts.user, parts.host, parts.port), (Some(&b"u:p"[..]), Some(&b"[::1]"[..]), Some(&b"8080"[..])));
        let parts = parse_uri(b"host.example:443", true);
        assert_eq!((parts.host, parts.port), (Some(&b"host.example"[..]), Some(&b"443"[..])));
        assert_eq!(parse_uri(b"//host/x", false).path, b"//host/x");
    }
}
