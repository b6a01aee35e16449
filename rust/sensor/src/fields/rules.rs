//! Rules and entries, what a message says of itself, and when the two match.
//!
//! Every doubt goes against the message: what a parser could not read matches no `allow` and every `deny`.

use std::fmt::Write;

use super::config::{self, FieldConfigError};
use super::patterns::{ClientPattern, NamePattern, PathPattern, Span, TopicPattern, TopicUse, append_text};

/// The protocols that have field rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Modbus/TCP (and the same frames in UDP).
    Modbus,
    /// DNP3, IEEE 1815, over TCP or UDP.
    Dnp3,
    /// BACnet/IP, ANSI/ASHRAE 135 annex J.
    Bacnet,
    /// MQTT 3.1, 3.1.1 and 5.
    Mqtt,
    /// CoAP, RFC 7252 (UDP) and RFC 8323 (TCP).
    Coap,
    /// DNS queries, RFC 1035.
    Dns,
}

/// One field rule: what may reach a service.
#[derive(Debug, Clone)]
pub struct Rule {
    /// 1 to 63, as in the packet mark.
    pub id: u8,
    /// The operator's name for it.
    pub name: String,
    /// The protocol that the service speaks.
    pub protocol: Protocol,
    /// Report what would be refused, and let it pass. [`super::judge`] answers the same either way.
    pub observe: bool,
    /// Let pass what is malformed; where it is false, malformed bytes are refused.
    pub pass_unparsable: bool,
    pub(super) allow: Vec<Entry>,
    pub(super) deny: Vec<Entry>,
}

/// All rules of an inspector, found by their identifier.
#[derive(Debug, Clone)]
pub struct RuleSet {
    /// The inspector's budget for held bytes.
    pub memory_bytes: usize,
    rules: Vec<Rule>,
}

impl RuleSet {
    /// Read the one-line JSON of docs/formats/fields.md; unknown keys, protocols and versions are refused.
    pub fn parse(json: &str) -> Result<RuleSet, FieldConfigError> {
        config::parse(json)
    }

    pub(super) fn new(memory_bytes: usize, rules: Vec<Rule>) -> RuleSet {
        RuleSet { memory_bytes, rules }
    }

    /// The rule with this identifier, if there is one.
    pub fn rule(&self, id: u8) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == id)
    }

    /// Every rule, in the order of the configuration.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// A key whose values are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Functions,
    Services,
    Actions,
    Methods,
    Units,
    Sources,
    Destinations,
    Registers,
    Values,
    Objects,
    Properties,
    Types,
}

/// Every numeric key with the word that it has in reports, in the order of reports.
const WORDS: [(Key, &str); 12] = [
    (Key::Functions, "function"),
    (Key::Services, "service"),
    (Key::Actions, "action"),
    (Key::Methods, "method"),
    (Key::Units, "unit"),
    (Key::Sources, "source"),
    (Key::Destinations, "destination"),
    (Key::Registers, "register"),
    (Key::Values, "value"),
    (Key::Objects, "object"),
    (Key::Properties, "property"),
    (Key::Types, "type"),
];

/// One line of `allow` or `deny`: absent keys match everything.
#[derive(Debug, Clone, Default)]
pub struct Entry {
    pub numbers: Vec<(Key, Vec<Span>)>,
    pub topics: Option<Vec<TopicPattern>>,
    pub clients: Option<Vec<ClientPattern>>,
    pub paths: Option<Vec<PathPattern>>,
    pub names: Option<Vec<NamePattern>>,
}

/// What a message says about one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Field<T> {
    /// It has no such field: neither an `allow` nor a `deny` with this key matches.
    #[default]
    Absent,
    /// It may have such a field, and it cannot be read: no `allow` matches, every `deny` does.
    Unknown,
    /// There is nothing to refuse by this key: every `allow` matches, no `deny` does.
    Exempt,
    /// It stands for more than it says ("all properties"): `allow` is by the letter, every `deny` matches.
    Vague(T),
    /// One thing.
    One(T),
    /// Several things: `allow` must hold all of them, `deny` needs one.
    Many(Vec<T>),
}

impl<T> Field<T> {
    fn items(&self) -> &[T] {
        match self {
            Field::One(item) | Field::Vague(item) => std::slice::from_ref(item),
            Field::Many(items) => items,
            _ => &[],
        }
    }
}

/// One thing that a value can be held against.
pub trait Pattern<T> {
    /// Whether all that `item` stands for is within the pattern.
    fn contains(&self, item: &T) -> bool;
    /// Whether anything that `item` stands for is within the pattern.
    fn meets(&self, item: &T) -> bool {
        self.contains(item)
    }
}

/// What a message (or one part of it that is judged by itself) says.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    numbers: [Field<Span>; WORDS.len()],
    pub topics: Field<TopicUse<'a>>,
    pub clients: Field<&'a str>,
    pub paths: Field<Vec<&'a str>>,
    pub names: Field<Vec<&'a [u8]>>,
}

impl<'a> Facts<'a> {
    pub fn set(&mut self, key: Key, field: Field<Span>) {
        self.numbers[key as usize] = field;
    }

    pub fn with(mut self, key: Key, number: impl Into<u32>) -> Facts<'a> {
        self.set(key, Field::One(Span::one(number)));
        self
    }

    pub fn is_absent(&self, key: Key) -> bool {
        self.numbers[key as usize] == Field::Absent
    }

    fn describe(&self, protocol: Protocol) -> String {
        let mut text = match protocol {
            Protocol::Modbus => "modbus",
            Protocol::Dnp3 => "dnp3",
            Protocol::Bacnet => "bacnet",
            Protocol::Mqtt => "mqtt",
            Protocol::Coap => "coap",
            Protocol::Dns => "dns",
        }
        .to_owned();
        for (key, word) in WORDS {
            let field = &self.numbers[key as usize];
            if *field == Field::Unknown {
                _ = write!(text, " {word} unknown");
            } else if let [first, rest @ ..] = field.items() {
                _ = match key {
                    Key::Actions => write!(text, " {word} {}", action(first.first)),
                    Key::Services => write!(text, " {word} {}:{}", block(first.first), first.first & 0xff),
                    _ => write!(text, " {word} {first}"),
                };
                if !rest.is_empty() {
                    _ = write!(text, " and {} more", rest.len());
                }
            }
        }
        for topic in self.topics.items() {
            append_text(&mut text, "topic", [topic.text.as_bytes()], "");
        }
        for client in self.clients.items() {
            append_text(&mut text, "client", [client.as_bytes()], "");
        }
        for path in self.paths.items() {
            append_text(&mut text, "path", path.iter().map(|segment| segment.as_bytes()), "/");
        }
        for name in self.names.items() {
            append_text(&mut text, "name", name.iter().copied(), ".");
        }
        text
    }
}

/// The operator's word for an MQTT packet type that can be refused.
fn action(packet_type: u32) -> &'static str {
    match packet_type {
        1 => "connect",
        3 => "publish",
        8 => "subscribe",
        10 => "unsubscribe",
        _ => "auth",
    }
}

/// The operator's word for a block of BACnet messages.
fn block(service: u32) -> &'static str {
    ["confirmed", "unconfirmed", "bvlc", "network", "answer"].get(service as usize >> 8).copied().unwrap_or_default()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Allow,
    Deny,
}

impl Rule {
    /// None if a message that says `facts` may pass, else what it said.
    pub(super) fn refuses(&self, facts: &Facts<'_>) -> Option<String> {
        let denied = self.deny.iter().any(|entry| entry.matches(facts, List::Deny));
        let allowed = match self.allow.as_slice() {
            [] => !self.deny.is_empty(),
            entries => entries.iter().any(|entry| entry.matches(facts, List::Allow)),
        };
        (denied || !allowed).then(|| facts.describe(self.protocol))
    }
}

impl Entry {
    fn matches(&self, facts: &Facts<'_>, list: List) -> bool {
        self.numbers.iter().all(|(key, spans)| holds(spans, &facts.numbers[*key as usize], list))
            && self.topics.as_ref().is_none_or(|patterns| holds(patterns, &facts.topics, list))
            && self.clients.as_ref().is_none_or(|patterns| holds(patterns, &facts.clients, list))
            && self.paths.as_ref().is_none_or(|patterns| holds(patterns, &facts.paths, list))
            && self.names.as_ref().is_none_or(|patterns| holds(patterns, &facts.names, list))
    }
}

fn holds<T, P: Pattern<T>>(patterns: &[P], field: &Field<T>, list: List) -> bool {
    match (field, list) {
        (Field::Absent, _) | (Field::Unknown, List::Allow) | (Field::Exempt, List::Deny) => false,
        (Field::Unknown | Field::Vague(_), List::Deny) | (Field::Exempt, List::Allow) => true,
        (Field::Many(items), List::Allow) if items.is_empty() => false,
        (_, List::Allow) => field.items().iter().all(|item| patterns.iter().any(|pattern| pattern.contains(item))),
        (_, List::Deny) => field.items().iter().any(|item| patterns.iter().any(|pattern| pattern.meets(item))),
    }
}
