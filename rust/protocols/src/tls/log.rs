//! What EVE says about a session.

use super::certificate::Certificate;
use super::dates::iso;
use super::hello::is_grease;
use super::options::field;
use super::session::{Session, Side};
use crate::{Json, Way};

/// Write the object `tls` with the members that `fields` names.
pub fn write(session: &Session, fields: u32, json: &mut Json) {
    let (client, server) = (session.side(Way::ToServer), session.side(Way::ToClient));
    let has = |field: u32| fields & field != 0;
    json.open("tls");
    if let Some(certificate) = &server.certificate {
        write_certificate(certificate, fields, json);
    }
    if has(field::ALT_NAMES) {
        let names = server.certificate.iter().flat_map(|certificate| &certificate.alt_names).map(|name| &**name);
        write_list("subjectaltname", names, json);
    }
    if has(field::RESUMED) && session.is_resumed() {
        json.flag("session_resumed", true);
    }
    if let Some(sni) = session.sni.as_deref().filter(|_| has(field::SNI)) {
        json.text("sni", sni);
    }
    if has(field::VERSION) {
        json.plain("version", version_name(server.version));
    }
    write_chains([(server, ["certificate", "chain"])], [field::CERTIFICATE, field::CHAIN], fields, json);
    write_fingerprints(session, fields, json);
    if has(field::CLIENT_ALPNS) {
        write_list("client_alpns", client.alpns.iter().map(Vec::as_slice), json);
    }
    if has(field::SERVER_ALPNS) {
        write_list("server_alpns", server.alpns.iter().map(Vec::as_slice), json);
    }
    write_client(client, fields, json);
    write_handshakes(session, fields, json);
    json.close();
}

fn write_certificate(certificate: &Certificate, fields: u32, json: &mut Json) {
    let has = |field: u32| fields & field != 0;
    if has(field::SUBJECT) {
        json.text("subject", &certificate.subject);
    }
    if has(field::ISSUER) {
        json.text("issuerdn", &certificate.issuer);
    }
    if has(field::SERIAL) {
        json.plain("serial", &certificate.serial);
    }
    if has(field::FINGERPRINT) {
        json.plain("fingerprint", &certificate.fingerprint);
    }
    if has(field::NOT_BEFORE) {
        json.plain("notbefore", iso(certificate.not_before));
    }
    if has(field::NOT_AFTER) {
        json.plain("notafter", iso(certificate.not_after));
    }
}

fn write_list<'a>(name: &str, items: impl Iterator<Item = &'a [u8]>, json: &mut Json) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return;
    }
    json.open_array(name);
    items.for_each(|item| json.text_element(item));
    json.close_array();
}

fn write_chains<const N: usize>(sides: [(&Side, [&str; 2]); N], bits: [u32; 2], fields: u32, json: &mut Json) {
    for (side, [certificate, chain]) in sides {
        if let Some(der) = side.chain.first().filter(|_| fields & bits[0] != 0) {
            json.plain(certificate, base64(der));
        }
        if fields & bits[1] != 0 && !side.chain.is_empty() {
            json.open_array(chain);
            side.chain.iter().for_each(|der| json.text_element(base64(der)));
            json.close_array();
        }
    }
}

fn write_fingerprints(session: &Session, fields: u32, json: &mut Json) {
    let wanted = [(Way::ToServer, "ja3", field::JA3), (Way::ToClient, "ja3s", field::JA3S)];
    for (way, name, bit) in wanted {
        if let Some((text, hash)) = session.side(way).ja3.as_ref().filter(|_| fields & bit != 0) {
            json.open(name);
            json.plain("hash", hash);
            json.plain("string", text);
            json.close();
        }
    }
    if let Some(ja4) = session.ja4.as_ref().filter(|_| fields & field::JA4 != 0) {
        json.plain("ja4", ja4);
    }
}

/// The client's certificate, in an object of its own.
fn write_client(client: &Side, fields: u32, json: &mut Json) {
    let Some(certificate) = client.certificate.as_ref().filter(|_| fields & field::CLIENT != 0) else { return };
    json.open("client");
    write_certificate(certificate, fields | field::EXTENDED, json);
    let bits = [field::CLIENT_CERTIFICATE, field::CLIENT_CHAIN];
    write_chains([(client, ["certificate", "chain"])], bits, fields, json);
    json.close();
}

/// What JA4 is made of, for those who make their own.
fn write_handshakes(session: &Session, fields: u32, json: &mut Json) {
    let wanted = [
        (Way::ToServer, "client_handshake", field::CLIENT_HANDSHAKE),
        (Way::ToClient, "server_handshake", field::SERVER_HANDSHAKE),
    ];
    for (way, name, bit) in wanted {
        let side = session.side(way);
        let Some([ciphers, extensions, signatures]) = side.lists.as_deref().filter(|_| fields & bit != 0) else {
            continue;
        };
        json.open(name);
        json.plain("version", version_name(side.version));
        match way {
            Way::ToServer => {
                write_numbers("ciphers", ciphers, json);
                write_numbers("exts", extensions, json);
                write_numbers("sig_algs", signatures, json);
            }
            Way::ToClient => {
                json.number("cipher", ciphers.first().copied().unwrap_or_default().into());
                write_numbers("exts", extensions, json);
            }
        }
        json.close();
    }
}

fn write_numbers(name: &str, numbers: &[u16], json: &mut Json) {
    json.open_array(name);
    numbers.iter().filter(|number| !is_grease(**number)).for_each(|&number| json.number_element(number.into()));
    json.close_array();
}

/// Names of versions as Suricata writes them.
fn version_name(version: u16) -> String {
    let name = match version {
        0x0000 => "UNDETERMINED",
        0x0002 => "SSLv2",
        0x0300 => "SSLv3",
        0x0301 => "TLSv1",
        0x0302 => "TLS 1.1",
        0x0303 => "TLS 1.2",
        0x0304 => "TLS 1.3",
        0x7f10..=0x7f1c => return format!("TLS 1.3 draft-{}", version & 0xff),
        0x7f01..=0x7f0f => "TLS 1.3 draft-<16",
        0xfb17 => "TLS 1.3 draft-23-fb",
        0xfb1a => "TLS 1.3 draft-26-fb",
        _ => return format!("0x{version:04x}"),
    };
    name.to_owned()
}

/// RFC 4648 section 4.
fn base64(data: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(data.len().div_ceil(3) * 4);
    for chunk in data.chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or_default());
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 0x3f) as usize];
            out.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
