//! What EVE says about a message.

use std::net::Ipv4Addr;

use super::{Message, option};
use crate::Json;

/// DHCPACK among the types of messages.
pub const ACKNOWLEDGEMENT: u8 = 5;

/// Write the object `dhcp`: the mapping, and with `extended` everything else.
pub fn write(message: &Message, json: &mut Json) {
    let [client, assigned, server, relay] = message.addresses.map(Ipv4Addr::from);
    json.open("dhcp");
    json.text("type", if message.is_request { "request" } else { "reply" });
    json.number("id", message.id.into());
    json.plain("client_mac", colons(message.hardware.get(..message.hardware_length.min(6)).unwrap_or_default()));
    json.plain("assigned_ip", assigned);
    if message.is_extended {
        json.plain("client_ip", client);
        if !message.is_request {
            json.plain("relay_ip", relay);
            json.plain("next_server_ip", server);
        }
    }
    for (code, range) in &message.options {
        write_option(*code, message.data.get(range.clone()).unwrap_or_default(), message.is_extended, json);
    }
    json.close();
}

fn write_option(code: u8, data: &[u8], is_extended: bool, json: &mut Json) {
    let seconds = || <[u8; 4]>::try_from(data).map_or(0, u32::from_be_bytes).into();
    match (code, is_extended) {
        (option::TYPE, _) => json.plain("dhcp_type", type_name(data.first().copied().unwrap_or_default())),
        (option::LEASE, _) => json.number("lease_time", seconds()),
        (option::RENEWAL, _) => json.number("renewal_time", seconds()),
        (option::REBINDING, _) => json.number("rebinding_time", seconds()),
        (12, _) => json.text("hostname", data),
        (61, _) => json.plain("client_id", colons(data.get(1..).unwrap_or_default())),
        (50, true) => write_address("requested_ip", data, json),
        (1, true) => write_address("subnet_mask", data, json),
        (3, true) => write_addresses("routers", data, json),
        (6, true) => write_addresses("dns_servers", data, json),
        (60, true) => json.text("vendor_class_identifier", data),
        (55, true) => {
            json.open_array("params");
            data.iter().filter_map(|&code| parameter(code)).for_each(|name| json.text_element(name));
            json.close_array();
        }
        _ => {}
    }
}

fn colons(bytes: &[u8]) -> String {
    let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.join(":")
}

fn write_address(name: &str, data: &[u8], json: &mut Json) {
    if let Ok(address) = <[u8; 4]>::try_from(data) {
        json.plain(name, Ipv4Addr::from(address));
    }
}

fn write_addresses(name: &str, data: &[u8], json: &mut Json) {
    json.open_array(name);
    for four in data.chunks_exact(4) {
        json.text_element(Ipv4Addr::new(four[0], four[1], four[2], four[3]).to_string());
    }
    json.close_array();
}

fn type_name(kind: u8) -> &'static str {
    match kind {
        1 => "discover",
        2 => "offer",
        3 => "request",
        4 => "decline",
        5 => "ack",
        6 => "nak",
        7 => "release",
        8 => "inform",
        _ => "unknown",
    }
}

/// Names of what a client asks for.
fn parameter(code: u8) -> Option<&'static str> {
    Some(match code {
        1 => "subnet_mask",
        3 => "router",
        6 => "dns_server",
        12 => "hostname",
        15 => "domain",
        35 => "arp_timeout",
        42 => "ntp_server",
        66 => "tftp_server_name",
        67 => "tftp_server_ip",
        _ => return None,
    })
}
