//! EVE's `enip` object.

use super::cip::{self, Item};
use super::message::{self, Identity, Message};
use crate::Json;
use crate::framed::log_named;

const COMMANDS: &[(&str, u64)] = &[
    ("Nop", 0),
    ("ListServices", 4),
    ("ListIdentity", 0x63),
    ("ListInterfaces", 0x64),
    ("RegisterSession", 0x65),
    ("UnregisterSession", 0x66),
    ("SendRRData", 0x6f),
    ("SendUnitData", 0x70),
    ("IndicateStatus", 0x72),
    ("Cancel", 0x73),
];

/// Write the members of a request or a response.
pub fn message(json: &mut Json, message: &Message) {
    log_named(json, "command", COMMANDS, u64::from(message.command));
    log_named(json, "status", message::STATUS_NAMES, u64::from(message.status));
    json.number("session", u64::from(message.session));
    if let Some((version, options)) = message.register {
        json.open("register_session");
        json.number("protocol_version", u64::from(version));
        json.number("options", u64::from(options));
        json.close();
    }
    if let Some(identity) = &message.identity {
        log_identity(json, identity);
    }
    if let Some(service) = message.services.first() {
        json.open("list_services");
        json.number("protocol_version", u64::from(service.protocol_version));
        json.number("capabilities", u64::from(service.capabilities));
        json.text("service_name", &service.name);
        json.close();
    }
    if let Some((first, others)) = message.cip.split_first() {
        json.open("cip");
        item(json, first);
        if !others.is_empty() {
            json.open_array("multiple");
            for other in others {
                json.open_element();
                item(json, other);
                json.close();
            }
            json.close_array();
        }
        json.close();
    }
}

fn log_identity(json: &mut Json, identity: &Identity) {
    json.open("identity");
    json.number("protocol_version", u64::from(identity.protocol_version));
    json.plain("revision", format_args!("{}.{}", identity.revision >> 8, identity.revision & 0xff));
    json.number("vendor_id", u64::from(identity.vendor_id));
    json.number("device_type", u64::from(identity.device_type));
    json.number("product_code", u64::from(identity.product_code));
    json.number("status", u64::from(identity.status));
    json.number("serial", u64::from(identity.serial));
    json.text("product_name", &identity.product_name);
    json.number("state", u64::from(identity.state));
    json.close();
}

fn item(json: &mut Json, item: &Item) {
    log_named(json, "service", cip::SERVICES, u64::from(item.service));
    if let Some(status) = item.status {
        json.number("status", u64::from(status));
    }
    if let Some(extended) = item.extended {
        json.number("status_extended", u64::from(extended));
    }
    if item.is_response {
        return;
    }
    json.open_array("path");
    let lists = [("class", &item.classes), ("instance", &item.instances), ("attribute", &item.attributes)];
    for (kind, values) in lists {
        for value in values {
            json.open_element();
            json.text("segment_type", kind);
            json.number("value", u64::from(*value));
            json.close();
        }
    }
    for symbol in &item.symbols {
        json.open_element();
        json.text("segment_type", "symbol");
        json.text("value", symbol);
        json.close();
    }
    json.close_array();
}
