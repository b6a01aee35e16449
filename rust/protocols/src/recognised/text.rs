//! Protocols that are told by text, or by Telnet's commands between it.

use super::decide;
use crate::line::{begins, contains, first_line, may_become};
use crate::{Probe, Start, Way};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See [`super::HTTP2`]. The server's side begins with a SETTINGS frame.
pub fn http2(start: &Start<'_>) -> Probe {
    if start.way == Way::ToClient {
        return http2_server(start.data);
    }
    match start.data.get(..PREFACE.len()) {
        Some(preface) => decide(preface == PREFACE),
        None if PREFACE.starts_with(start.data) => Probe::More,
        None => Probe::No,
    }
}

/// RFC 9113 section 6.5: whole settings, of stream 0, with identifiers that there are.
fn http2_server(data: &[u8]) -> Probe {
    // an empty frame is too little to tell it from anything else
    let Some(&[0, high, low, 4, 0, 0, 0, 0, 0, id_high, id_low]) = data.first_chunk::<11>() else {
        let may_be = data.len() < 11 && data.first() == Some(&0) && matches!(data.get(3), None | Some(4));
        return if may_be { Probe::More } else { Probe::No };
    };
    let (length, id) = (u16::from_be_bytes([high, low]), u16::from_be_bytes([id_high, id_low]));
    decide((6..=96).contains(&length) && length % 6 == 0 && (1..=8).contains(&id))
}

const IAC: u8 = 255;

/// Two negotiations in a row; on the usual port, one.
pub fn telnet(start: &Start<'_>) -> Probe {
    let least = if start.is_usual_port { 3 } else { 6 };
    let seen = start.data.get(..start.data.len().min(least)).unwrap_or_default();
    let is_negotiation = |command: &[u8]| match command {
        [IAC] => true,
        [IAC, verb] => (251..=254).contains(verb),
        // IANA's options end at 49, and 138 to 140
        [IAC, verb, option] => (251..=254).contains(verb) && (*option <= 49 || (138..=140).contains(option)),
        _ => false,
    };
    match seen.chunks(3).all(is_negotiation) {
        true if seen.len() >= least => Probe::Yes,
        true => Probe::More,
        false => Probe::No,
    }
}

/// Commands with which sessions begin.
static IMAP_COMMANDS: &[&[u8]] =
    &[b"CAPABILITY\r\n", b"LOGIN ", b"STARTTLS\r\n", b"AUTHENTICATE ", b"ID (", b"ID NIL", b"NOOP\r\n"];
/// Clients' tags are short.
const MOST_TAG: usize = 16;

/// See [`super::IMAP`].
pub fn imap(start: &Start<'_>) -> Probe {
    let (line, is_whole) = first_line(start.data);
    if start.way == Way::ToServer {
        return imap_command(start.data, line, is_whole);
    }
    let greetings = [&b"* OK"[..], b"* PREAUTH", b"* BYE"];
    if greetings.iter().any(|greeting| begins(line, greeting)) {
        return match is_whole {
            _ if start.is_usual_port || contains(line, b"imap") => Probe::Yes,
            true => Probe::No,
            false => Probe::More,
        };
    }
    let may_be = greetings.iter().any(|greeting| may_become(line, greeting));
    if may_be && !is_whole { Probe::More } else { Probe::No }
}

fn imap_command(data: &[u8], line: &[u8], is_whole: bool) -> Probe {
    let tag = line.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'.').count();
    if tag == 0 || tag > MOST_TAG || !data.get(..tag).is_some_and(|tag| tag.iter().any(u8::is_ascii_digit)) {
        return if tag > 0 && tag == line.len() && tag <= MOST_TAG && !is_whole { Probe::More } else { Probe::No };
    }
    match data.get(tag) {
        None => return Probe::More,
        Some(b' ') => {}
        Some(_) => return Probe::No,
    }
    let command = data.get(tag + 1..).unwrap_or_default();
    match IMAP_COMMANDS.iter().any(|known| begins(command, known)) {
        true => Probe::Yes,
        false if IMAP_COMMANDS.iter().any(|known| may_become(command, known)) => Probe::More,
        false => Probe::No,
    }
}
