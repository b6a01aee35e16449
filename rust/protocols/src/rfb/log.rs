//! What EVE says about a connection.

use super::handshake::{Handshake, Screen};
use crate::{Json, Reader};

/// Write the object `rfb`.
pub fn write(handshake: &Handshake, json: &mut Json) {
    json.open("rfb");
    let [client, server] = handshake.versions;
    for (name, version) in [("server_protocol_version", server), ("client_protocol_version", client)] {
        if let Some([major, minor]) = version {
            json.open(name);
            json.text("major", major);
            json.text("minor", minor);
            json.close();
        }
    }
    write_authentication(handshake, json);
    if let Some(is_shared) = handshake.is_shared {
        json.flag("screen_shared", is_shared);
    }
    if let Some(screen) = &handshake.screen {
        write_screen(screen, json);
    }
    json.close();
}

fn write_authentication(handshake: &Handshake, json: &mut Json) {
    json.open("authentication");
    if let Some(security) = handshake.security {
        json.number("security_type", security.into());
    }
    if handshake.challenge.is_some() || handshake.response.is_some() {
        json.open("vnc");
        for (name, bytes) in [("challenge", &handshake.challenge), ("response", &handshake.response)] {
            if let Some(bytes) = bytes {
                json.hex(name, bytes);
            }
        }
        json.close();
    }
    match handshake.result {
        Some(0) => json.text("security_result", "OK"),
        Some(1) => json.text("security_result", "FAIL"),
        Some(2) => json.text("security_result", "TOOMANY"),
        Some(other) => json.text("security_result", format!("UNKNOWN ({other})")),
        None => {}
    }
    if let Some(reason) = &handshake.reason {
        json.text("failure_reason", reason);
    }
    json.close();
}

/// RFC 6143 section 7.4: three bytes of the format are padding.
fn write_screen(screen: &Screen, json: &mut Json) {
    json.open("framebuffer");
    json.number("width", screen.width.into());
    json.number("height", screen.height.into());
    json.text("name", &screen.name);
    json.open("pixel_format");
    let mut reader = Reader::new(&screen.format);
    for name in ["bits_per_pixel", "depth"] {
        json.number(name, reader.u8().unwrap_or_default().into());
    }
    for name in ["big_endian", "true_color"] {
        json.flag(name, reader.u8().unwrap_or_default() != 0);
    }
    for name in ["red_max", "green_max", "blue_max"] {
        json.number(name, reader.be16().unwrap_or_default().into());
    }
    for name in ["red_shift", "green_shift", "blue_shift"] {
        json.number(name, reader.u8().unwrap_or_default().into());
    }
    json.close();
    json.close();
}
