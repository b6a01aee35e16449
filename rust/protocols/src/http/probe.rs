//! Telling HTTP from everything else by its first bytes.

use super::first_line::{METHODS, is_protocol};
use super::line::{is_space, split_while};
use crate::{Probe, Start, Way};

/// A request line whose method is not known must show its protocol within this.
const MOST_LINE: usize = 8 << 10;
/// A longer word is no method.
const MOST_METHOD: usize = 32;
/// Protocols with request lines of the same shape.
static OTHERS: &[&[u8]] = &[b"sip:", b"sips:", b"tel:", b"rtsp:", b"rtspu:", b"icap:", b"icaps:"];

/// See [`crate::Protocol::probe`].
pub fn probe(start: &Start<'_>) -> Probe {
    let data = split_while(start.data, |byte| byte == b'\r' || byte == b'\n').1;
    if data.is_empty() {
        return if start.data.len() > MOST_METHOD { Probe::No } else { Probe::More };
    }
    let (same, other) = (Probe::Yes, Probe::YesReversed);
    let (request, response) = if start.way == Way::ToServer { (same, other) } else { (other, same) };
    match probe_response(data) {
        Probe::Yes => return response,
        Probe::More => return Probe::More,
        _ => {}
    }
    match probe_request(data) {
        Probe::Yes => request,
        verdict => verdict,
    }
}

fn probe_response(data: &[u8]) -> Probe {
    let count = data.len().min(5);
    let is_alike =
        data.get(..count).unwrap_or_default().eq_ignore_ascii_case(b"HTTP/".get(..count).unwrap_or_default());
    match (is_alike, data.get(5)) {
        (false, _) => Probe::No,
        (true, None) => Probe::More,
        (true, Some(b'0' | b'1')) => Probe::Yes,
        (true, Some(_)) => Probe::No,
    }
}

fn probe_request(data: &[u8]) -> Probe {
    let (method, rest) = split_while(data, |byte| byte.is_ascii_alphabetic() || byte == b'-' || byte == b'_');
    if method.len() > MOST_METHOD || method.is_empty() {
        return Probe::No;
    }
    let Some(&delimiter) = rest.first() else { return Probe::More };
    if delimiter != b' ' && delimiter != b'\t' {
        return Probe::No;
    }
    let target = split_while(rest, |byte| byte == b' ' || byte == b'\t').1;
    let is_other =
        OTHERS.iter().any(|other| target.get(..other.len()).is_some_and(|target| target.eq_ignore_ascii_case(other)));
    if is_other {
        return Probe::No;
    }
    let end = memchr::memchr(b'\n', target);
    let line = target.get(..end.unwrap_or(target.len())).unwrap_or_default();
    let mut words = line.rsplit(|byte| is_space(*byte)).filter(|word| !word.is_empty());
    let last = words.next().unwrap_or_default();
    let names_other = [&b"SIP/"[..], b"RTSP/", b"ICAP/"].iter().any(|name| last.starts_with(name));
    match (METHODS.contains(&method), end) {
        _ if names_other => Probe::No,
        // enough of the target to know that it is none of the others'
        (true, _) if target.len() >= 6 || end.is_some() || target.first() == Some(&b'/') => Probe::Yes,
        (true, _) => Probe::More,
        (false, Some(_)) if is_protocol(last) => Probe::Yes,
        (false, None) if line.len() < MOST_LINE && looks_like_target(target) => Probe::More,
        (false, _) => Probe::No,
    }
}

fn looks_like_target(target: &[u8]) -> bool {
    target.is_empty() || target.first() == Some(&b'/') || target.starts_with(b"http")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Transport;

    #[test]
    fn http_is_told_from_its_likes() {
        let rows: [(&str, Way, Probe); 17] = [
            ("GET /", Way::ToServer, Probe::Yes),
            ("GET /", Way::ToClient, Probe::YesReversed),
            ("GE", Way::ToServer, Probe::More),
            ("\r\nPOST\t/a", Way::ToServer, Probe::Yes),
            ("OPTIONS * HTTP/1.1\r\n", Way::ToServer, Probe::Yes),
            ("OPTIONS sip:a@b SIP/2.0\r\n", Way::ToServer, Probe::No),
            ("OPTIONS s", Way::ToServer, Probe::More),
            ("OPTIONS /x RTSP/1.0\r\n", Way::ToServer, Probe::No),
            ("FOO / HTTP/1.1\r\n", Way::ToServer, Probe::Yes),
            ("FOO / BAR\r\n", Way::ToServer, Probe::No),
            ("EHLO host\r\n", Way::ToServer, Probe::No),
            ("HTTP/1.1 200 OK", Way::ToClient, Probe::Yes),
            ("HTTP/1.1 200 OK", Way::ToServer, Probe::YesReversed),
            ("HTT", Way::ToClient, Probe::More),
            ("HTTP/2", Way::ToClient, Probe::No),
            ("220 ready", Way::ToClient, Probe::No),
            ("\x16\x03\x01", Way::ToServer, Probe::No),
        ];
        for (data, way, expected) in rows {
            let start = Start { data: data.as_bytes(), way, transport: Transport::Tcp, is_usual_port: true };
            assert_eq!(probe(&start), expected, "{data}");
        }
    }
}
