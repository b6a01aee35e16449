//! What rules can ask of MQTT. As in Suricata, all of it counts as going to the server, whoever sent it.

use std::any::Any;

use super::packet::{Body, Connect, Packet, connect_flag, kind};
use super::{Exchange, log};
use crate::framed::{buffer, number, numbers};
use crate::{BufferInfo, COMPLETE, Custom, Json, KeywordInfo, NumberInfo, Transaction, View, Way, Ways};

const STARTED: u8 = 1;

const fn text(keyword: &'static str, is_multiple: bool) -> BufferInfo {
    BufferInfo { ways: Ways::ToServer, progress: STARTED, is_multiple, ..buffer(keyword) }
}

pub static BUFFERS: [BufferInfo; 10] = [
    text("mqtt.connect.clientid", false),
    text("mqtt.connect.username", false),
    text("mqtt.connect.password", false),
    text("mqtt.connect.willtopic", false),
    text("mqtt.connect.willmessage", false),
    text("mqtt.connect.protocol_string", false),
    text("mqtt.publish.topic", false),
    text("mqtt.publish.message", false),
    text("mqtt.subscribe.topic", true),
    text("mqtt.unsubscribe.topic", true),
];

const TYPES: &[(&str, u64)] = &[
    ("UNASSIGNED", 0),
    ("CONNECT", 1),
    ("CONNACK", 2),
    ("PUBLISH", 3),
    ("PUBACK", 4),
    ("PUBREC", 5),
    ("PUBREL", 6),
    ("PUBCOMP", 7),
    ("SUBSCRIBE", 8),
    ("SUBACK", 9),
    ("UNSUBSCRIBE", 10),
    ("UNSUBACK", 11),
    ("PINGREQ", 12),
    ("PINGRESP", 13),
    ("DISCONNECT", 14),
    ("AUTH", 15),
];

pub static NUMBERS: [NumberInfo; 4] = [
    NumberInfo { ways: Ways::ToServer, ..numbers("mqtt.type", 8, TYPES) },
    NumberInfo { ways: Ways::ToServer, ..numbers("mqtt.qos", 8, &[]) },
    NumberInfo { ways: Ways::ToServer, aliases: &["mqtt.connack.return_code"], ..numbers("mqtt.reason_code", 8, &[]) },
    NumberInfo { ways: Ways::ToServer, ..number("mqtt.protocol_version", 8, &[]) },
];

const fn custom(keyword: &'static str, parse: fn(&str) -> Result<Box<dyn Custom>, String>) -> KeywordInfo {
    KeywordInfo { keyword, aliases: &[], ways: Ways::ToServer, progress: COMPLETE, parse }
}

pub static KEYWORDS: [KeywordInfo; 3] = [
    custom("mqtt.flags", |argument| {
        let names = [("dup", 0x08), ("retain", 0x01)];
        parse_flags(argument, &names).map(|flags| Box::new(HeaderFlags(flags)) as _)
    }),
    custom("mqtt.connect.flags", |argument| {
        use connect_flag::*;
        let names = [
            ("username", USERNAME),
            ("password", PASSWORD),
            ("will", WILL),
            ("will_retain", WILL_RETAIN),
            ("clean_session", CLEAN),
        ];
        parse_flags(argument, &names).map(|flags| Box::new(ConnectFlags(flags)) as _)
    }),
    custom("mqtt.connack.session_present", |argument| match argument.trim().to_ascii_lowercase().as_str() {
        "yes" | "true" | "1" => Ok(Box::new(SessionPresent(true))),
        "no" | "false" | "0" => Ok(Box::new(SessionPresent(false))),
        other => Err(format!("'{other}' is neither true nor false")),
    }),
];

/// Bits that must be set, and bits that must not.
#[derive(Clone, Copy)]
struct Flags {
    set: u8,
    unset: u8,
}

impl Flags {
    fn fit(self, value: u8) -> bool {
        value & self.set == self.set && value & self.unset == 0
    }
}

fn parse_flags(argument: &str, names: &[(&str, u8)]) -> Result<Flags, String> {
    let mut flags = Flags { set: 0, unset: 0 };
    for part in argument.split(',') {
        let part = part.trim();
        let (name, is_negated) = part.strip_prefix('!').map_or((part, false), |name| (name.trim(), true));
        let bit = names.iter().find(|(known, _)| *known == name).map(|(_, bit)| *bit);
        let bit = bit.ok_or_else(|| format!("'{name}' is no flag"))?;
        let bits = if is_negated { &mut flags.unset } else { &mut flags.set };
        *bits |= bit;
    }
    Ok(flags)
}

struct HeaderFlags(Flags);
struct ConnectFlags(Flags);
struct SessionPresent(bool);

fn packets(transaction: &dyn Transaction) -> &[Packet] {
    transaction.as_any().downcast_ref::<Exchange>().map(|exchange| exchange.packets.as_slice()).unwrap_or_default()
}

impl Custom for HeaderFlags {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        packets(transaction).iter().any(|packet| self.0.fit(packet.flags))
    }
}

impl Custom for ConnectFlags {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        packets(transaction).iter().any(|packet| matches!(&packet.body, Body::Connect(it) if self.0.fit(it.flags)))
    }
}

impl Custom for SessionPresent {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        packets(transaction)
            .iter()
            .any(|packet| matches!(&packet.body, Body::Connack { is_present, .. } if *is_present == self.0))
    }
}

impl Exchange {
    fn connect(&self) -> Option<&Connect> {
        self.packets.iter().find_map(|packet| match &packet.body {
            Body::Connect(connect) => Some(&**connect),
            _ => None,
        })
    }

    fn text(&self, index: usize, nth: usize) -> Option<&[u8]> {
        if index < 6 {
            let connect = self.connect().filter(|_| nth == 0)?;
            return match index {
                0 => Some(&connect.client),
                1 => connect.username.as_deref(),
                2 => connect.password.as_deref(),
                3 => connect.will.as_ref().map(|will| &will.1[..]),
                4 => connect.will.as_ref().map(|will| &will.2[..]),
                _ => Some(&connect.protocol),
            };
        }
        self.packets.iter().find_map(|packet| match (&packet.body, index) {
            (Body::Publish { topic, .. }, 6) if nth == 0 => Some(topic.as_slice()),
            (Body::Publish { message, .. }, 7) if nth == 0 => Some(message.as_slice()),
            (Body::Subscribe { topics, .. }, 8) => topics.get(nth).map(|(topic, _)| topic.as_slice()),
            (Body::Unsubscribe { topics, .. }, 9) => topics.get(nth).map(Vec::as_slice),
            _ => None,
        })
    }
}

impl Transaction for Exchange {
    fn progress(&self, way: Way) -> u8 {
        // what one side began without asking for an answer is over for the other side at once
        if self.is_complete || way != self.way { COMPLETE } else { STARTED }
    }

    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>> {
        if way == Way::ToServer { self.text(index, nth).map(View::whole) } else { None }
    }

    fn number(&self, index: usize, way: Way, nth: usize) -> Option<u64> {
        let value = match index {
            _ if way != Way::ToServer => None,
            0 => self.packets.get(nth).map(|packet| packet.kind),
            1 => self.packets.get(nth).map(Packet::qos),
            2 => {
                let codes = self.packets.iter().flat_map(|packet| (0..).map_while(|nth| packet.reason(nth)));
                codes.into_iter().nth(nth)
            }
            3 if nth == 0 => Some(self.version),
            _ => None,
        };
        value.map(u64::from)
    }

    fn events(&self) -> &[u8] {
        self.events.list()
    }

    fn log(&self, _record: Option<usize>, json: &mut Json) {
        json.open("mqtt");
        self.packets.iter().for_each(|packet| log::packet(json, packet));
        json.close();
    }

    fn is_logged(&self, _record: usize) -> bool {
        self.packets.iter().any(|packet| packet.kind != 0 && packet.kind <= kind::AUTH)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
