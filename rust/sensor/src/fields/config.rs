//! The rules as JSON; docs/formats/fields.md lists the keys.

use std::fmt;

use serde::Deserialize;

use super::patterns::{ClientPattern, NamePattern, PathPattern, Span, TopicPattern};
use super::rules::{Entry, Key, Protocol, Rule, RuleSet};

const VERSION: u32 = 1;
/// Six bits of the packet mark, without 0.
const MAX_RULES: usize = 63;
/// Entries of one list: each is tried on each message.
const MAX_ENTRIES: usize = 64;
/// Values of one key.
const MAX_ITEMS: usize = 256;

/// The configuration is not one that this reader knows; the text says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldConfigError(pub String);

impl fmt::Display for FieldConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for FieldConfigError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    memory_bytes: usize,
    rules: Vec<RuleDocument>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleDocument {
    id: u8,
    name: String,
    protocol: ProtocolName,
    mode: Mode,
    unparsable: Unparsable,
    allow: Vec<EntryDocument>,
    deny: Vec<EntryDocument>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum ProtocolName {
    Modbus,
    Dnp3,
    Bacnet,
    Mqtt,
    Coap,
    Dns,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Enforce,
    Observe,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Unparsable {
    Drop,
    Pass,
}

type Ranges = Option<Vec<(u32, u32)>>;
type Texts = Option<Vec<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryDocument {
    functions: Ranges,
    services: Ranges,
    actions: Ranges,
    methods: Ranges,
    units: Ranges,
    sources: Ranges,
    destinations: Ranges,
    registers: Ranges,
    values: Ranges,
    objects: Ranges,
    properties: Ranges,
    types: Ranges,
    topics: Texts,
    clients: Texts,
    paths: Texts,
    names: Texts,
}

pub fn parse(json: &str) -> Result<RuleSet, FieldConfigError> {
    if !json.trim_start().starts_with('{') {
        return refuse("the configuration is no JSON object"); // serde takes arrays too
    }
    let document: Document = serde_json::from_str(json).map_err(|error| FieldConfigError(error.to_string()))?;
    if document.version != VERSION {
        return refuse(&format!("version {} is not {VERSION}", document.version));
    }
    if document.rules.len() > MAX_RULES {
        return refuse(&format!("more than {MAX_RULES} rules"));
    }
    let mut taken = [false; MAX_RULES + 1];
    let mut rules = Vec::with_capacity(document.rules.len());
    for rule in document.rules {
        match taken.get_mut(usize::from(rule.id)) {
            Some(slot) if rule.id != 0 && !*slot => *slot = true,
            _ => return refuse(&format!("rule id {} is taken or not within 1 to {MAX_RULES}", rule.id)),
        }
        rules.push(read_rule(rule)?);
    }
    Ok(RuleSet::new(document.memory_bytes, rules))
}

fn refuse<T>(text: &str) -> Result<T, FieldConfigError> {
    Err(FieldConfigError(text.to_owned()))
}

fn read_rule(rule: RuleDocument) -> Result<Rule, FieldConfigError> {
    let protocol = match rule.protocol {
        ProtocolName::Modbus => Protocol::Modbus,
        ProtocolName::Dnp3 => Protocol::Dnp3,
        ProtocolName::Bacnet => Protocol::Bacnet,
        ProtocolName::Mqtt => Protocol::Mqtt,
        ProtocolName::Coap => Protocol::Coap,
        ProtocolName::Dns => Protocol::Dns,
    };
    if rule.allow.is_empty() && rule.deny.is_empty() {
        return refuse(&format!("rule {}: neither allow nor deny", rule.id));
    }
    if rule.allow.len().max(rule.deny.len()) > MAX_ENTRIES {
        return refuse(&format!("rule {}: more than {MAX_ENTRIES} entries", rule.id));
    }
    let read = |entries: Vec<EntryDocument>| -> Result<Vec<Entry>, FieldConfigError> {
        entries.into_iter().map(|entry| read_entry(entry, protocol)).collect()
    };
    Ok(Rule {
        id: rule.id,
        name: rule.name,
        protocol,
        observe: rule.mode == Mode::Observe,
        pass_unparsable: rule.unparsable == Unparsable::Pass,
        allow: read(rule.allow)?,
        deny: read(rule.deny)?,
    })
}

fn read_entry(document: EntryDocument, protocol: Protocol) -> Result<Entry, FieldConfigError> {
    let ranges = [
        (Key::Functions, document.functions),
        (Key::Services, document.services),
        (Key::Actions, document.actions),
        (Key::Methods, document.methods),
        (Key::Units, document.units),
        (Key::Sources, document.sources),
        (Key::Destinations, document.destinations),
        (Key::Registers, document.registers),
        (Key::Values, document.values),
        (Key::Objects, document.objects),
        (Key::Properties, document.properties),
        (Key::Types, document.types),
    ];
    let mut entry = Entry::default();
    for (key, given) in ranges {
        let Some(given) = given else { continue };
        if !keys_of(protocol).contains(&key) {
            return refuse(&format!("{protocol:?} has no {key:?}"));
        }
        entry.numbers.push((key, read_spans(given)?));
    }
    let texts = [
        (Protocol::Mqtt, document.topics.is_some() || document.clients.is_some()),
        (Protocol::Coap, document.paths.is_some()),
        (Protocol::Dns, document.names.is_some()),
    ];
    if texts.iter().any(|(owner, given)| *given && *owner != protocol) {
        return refuse(&format!("{protocol:?} has no such key"));
    }
    entry.topics = read_texts(document.topics, TopicPattern::parse)?;
    entry.clients = read_texts(document.clients, ClientPattern::parse)?;
    entry.paths = read_texts(document.paths, PathPattern::parse)?;
    entry.names = read_texts(document.names, NamePattern::parse)?;
    if entry.numbers.is_empty() && !texts.iter().any(|(_, given)| *given) {
        return refuse("an entry without keys");
    }
    Ok(entry)
}

fn keys_of(protocol: Protocol) -> &'static [Key] {
    match protocol {
        Protocol::Modbus => &[Key::Units, Key::Functions, Key::Registers, Key::Values],
        Protocol::Dnp3 => &[Key::Sources, Key::Destinations, Key::Functions, Key::Objects],
        Protocol::Bacnet => &[Key::Services, Key::Objects, Key::Properties],
        Protocol::Mqtt => &[Key::Actions],
        Protocol::Coap => &[Key::Methods],
        Protocol::Dns => &[Key::Types],
    }
}

/// Neighbouring ranges become one: an access that reaches over their border lies in both together.
fn read_spans(ranges: Vec<(u32, u32)>) -> Result<Vec<Span>, FieldConfigError> {
    if ranges.is_empty() || ranges.len() > MAX_ITEMS || ranges.iter().any(|(first, last)| first > last) {
        return refuse(&format!("ranges rise, and there are 1 to {MAX_ITEMS} of them"));
    }
    let mut sorted: Vec<Span> = ranges.into_iter().map(|(first, last)| Span { first, last }).collect();
    sorted.sort_unstable();
    let mut merged: Vec<Span> = Vec::with_capacity(sorted.len());
    for span in sorted {
        match merged.last_mut() {
            Some(before) if span.first <= before.last.saturating_add(1) => before.last = before.last.max(span.last),
            _ => merged.push(span),
        }
    }
    Ok(merged)
}

fn read_texts<P>(texts: Texts, parse: fn(&str) -> Option<P>) -> Result<Option<Vec<P>>, FieldConfigError> {
    let Some(texts) = texts else { return Ok(None) };
    if texts.is_empty() || texts.len() > MAX_ITEMS {
        return refuse(&format!("there are 1 to {MAX_ITEMS} texts"));
    }
    let read =
        |text: &String| parse(text).ok_or_else(|| FieldConfigError(format!("{text:?} is not of its key's form")));
    texts.iter().map(read).collect::<Result<Vec<P>, _>>().map(Some)
}
