//! EVE's `mqtt` object.

use super::packet::{Body, Connect, Packet, connect_flag, kind};
use super::properties;
use crate::Json;

/// The longest text in a log line: Suricata's `string-log-limit` default.
const MOST_LOGGED: usize = 1024;

const NAMES: [&str; 16] = [
    "unassigned",
    "connect",
    "connack",
    "publish",
    "puback",
    "pubrec",
    "pubrel",
    "pubcomp",
    "subscribe",
    "suback",
    "unsubscribe",
    "unsuback",
    "pingreq",
    "pingresp",
    "disconnect",
    "auth",
];

fn text(json: &mut Json, name: &str, value: &[u8]) {
    match value.split_at_checked(MOST_LOGGED) {
        Some((head, rest)) if !rest.is_empty() => {
            let note = format!("[truncated {} additional bytes]", rest.len());
            json.text(name, [head, note.as_bytes()].concat());
        }
        _ => json.text(name, value),
    }
}

/// Write one packet as a member of the transaction's object.
pub fn packet(json: &mut Json, packet: &Packet) {
    json.open(NAMES.get(usize::from(packet.kind)).copied().unwrap_or("unassigned"));
    json.number("qos", u64::from(packet.qos()));
    json.flag("retain", packet.flags & 1 != 0);
    json.flag("dup", packet.flags & 8 != 0);
    match &packet.body {
        Body::Connect(body) => connect(json, body),
        Body::Publish { topic, message, properties: list } => {
            text(json, "topic", topic);
            id(json, packet);
            text(json, "message", message);
            properties::log(json, list);
        }
        body => {
            id(json, packet);
            others(json, packet.kind, body);
        }
    }
    json.close();
}

fn id(json: &mut Json, packet: &Packet) {
    if let Some(id) = packet.id {
        json.number("message_id", u64::from(id));
    }
}

fn connect(json: &mut Json, connect: &Connect) {
    json.text("protocol_string", &connect.protocol);
    json.number("protocol_version", u64::from(connect.version));
    json.text("client_id", &connect.client);
    json.open("flags");
    let flags = [
        ("username", connect_flag::USERNAME),
        ("password", connect_flag::PASSWORD),
        ("will_retain", connect_flag::WILL_RETAIN),
        ("will", connect_flag::WILL),
        ("clean_session", connect_flag::CLEAN),
    ];
    flags.iter().for_each(|(name, bit)| json.flag(name, connect.flags & bit != 0));
    json.close();
    if let Some(name) = &connect.username {
        text(json, "username", name);
    }
    // the password is never written: a log is read by more people than may know it
    if let Some((list, topic, message)) = &connect.will {
        json.open("will");
        text(json, "topic", topic);
        text(json, "message", message);
        properties::log(json, list);
        json.close();
    }
    properties::log(json, &connect.properties);
}

fn others(json: &mut Json, packet_kind: u8, body: &Body) {
    match body {
        Body::Connack { is_present, code, properties: list } => {
            json.flag("session_present", *is_present);
            json.number("return_code", u64::from(*code));
            properties::log(json, list);
        }
        Body::Reason { code, properties: list } => {
            if let Some(code) = code {
                json.number("reason_code", u64::from(*code));
            }
            properties::log(json, list);
        }
        Body::Subscribe { topics, properties: list } => {
            json.open_array("topics");
            for (topic, options) in topics {
                json.open_element();
                text(json, "topic", topic);
                json.number("qos", u64::from(options & 3));
                json.close();
            }
            json.close_array();
            properties::log(json, list);
        }
        Body::Unsubscribe { topics, properties: list } => {
            json.open_array("topics");
            topics.iter().for_each(|topic| json.text_element(topic));
            json.close_array();
            properties::log(json, list);
        }
        Body::Codes { codes, properties: list } if packet_kind == kind::SUBACK || !codes.is_empty() => {
            json.open_array(if packet_kind == kind::SUBACK { "qos_granted" } else { "reason_codes" });
            codes.iter().for_each(|code| json.number_element(u64::from(*code)));
            json.close_array();
            properties::log(json, list);
        }
        _ => {}
    }
}
