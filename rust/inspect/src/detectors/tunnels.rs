//! Data in DNS: many different long names under one domain, or much text in answers, for each client and domain.
//!
//! A content network has long names, but few of them in a minute; a reputation list has many, but short ones. A tunnel
//! needs both, because each name carries some bytes once: caches would answer a name that was asked before.

use protocols::{Json, PROTOCOLS, Transaction, Way};
use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::hooks::{buffer_index, number_index};
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::{Entry, Table, TableCounters, words};
use crate::layers::ip;

/// Questions and answers of one message that are looked at; ordinary ones have one question and a handful of answers.
const MOST_RECORDS: usize = 16;
/// Types whose answers carry arbitrary bytes: NULL, TXT, and the first of the private ones that tunnels use.
const CARRIERS: [u64; 3] = [10, 16, 65_399];
/// A name is looked at up to this length (RFC 1035 section 2.3.4 allows 253).
const MOST_NAME: usize = 255;
/// Second levels that are registries themselves under a country's domain: `co.uk`, `com.au`.
const REGISTRIES: [&[u8]; 9] = [b"co", b"com", b"org", b"net", b"gov", b"edu", b"ac", b"or", b"ne"];

#[derive(Clone, Default)]
struct Talk {
    window_us: u64,
    /// Linear counting, as in `slow.rs`.
    names: [u64; 8],
    queries: u32,
    label_bytes: u64,
    entropy: f32,
    answer_bytes: u64,
}

impl Talk {
    fn open_window(&mut self, now_us: u64, window_us: u64) {
        if now_us.saturating_sub(self.window_us) >= window_us || self.window_us > now_us {
            *self = Talk { window_us: now_us, ..Talk::default() };
        }
    }

    fn distinct(&self) -> f64 {
        let ones: u32 = self.names.iter().map(|word| word.count_ones()).sum();
        let zeros = (512.0 - f64::from(ones)).max(1.0);
        -512.0 * (zeros / 512.0).ln()
    }

    fn mean_length(&self) -> u64 {
        self.label_bytes / u64::from(self.queries.max(1))
    }

    fn mean_entropy(&self) -> f32 {
        self.entropy / self.queries.max(1) as f32
    }
}

impl Entry for Talk {
    fn weight(&self) -> u32 {
        self.names.iter().map(|word| word.count_ones()).sum()
    }
}

/// Clients and domains.
pub struct Tunnels {
    talks: Table<3, Talk>,
    key: SipKey,
    protocol: Option<usize>,
    name: Option<usize>,
    rrtype: Option<usize>,
}

impl Tunnels {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Tunnels {
        let protocol = PROTOCOLS.iter().position(|protocol| protocol.name == "dns");
        Tunnels {
            talks: Table::new(bytes, 600_000_000, key),
            key,
            protocol,
            name: protocol.and_then(|index| buffer_index(index, "dns.queries.rrname")),
            rrtype: protocol.and_then(|index| number_index(index, "dns.rrtype")),
        }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.talks.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.talks.counters
    }

    /// Look at a message.
    pub fn transaction(&mut self, flow: &FlowSeen, protocol: usize, tx: &dyn Transaction, context: &mut Context<'_>) {
        if Some(protocol) != self.protocol || !context.config.is_on(Kind::DnsTunnel) {
            return;
        }
        let Some(name_index) = self.name else { return };
        if let Some(view) = tx.buffer(name_index, Way::ToServer, 0) {
            self.query(flow, view.data, context);
        } else if let Some(view) = tx.buffer(name_index, Way::ToClient, 0) {
            let bytes = self.carried(tx);
            if bytes > 0 {
                self.answer(flow, view.data, bytes, context);
            }
        }
    }

    /// Bytes of an answer that carries any: of its record, since the data itself is not among the buffers.
    fn carried(&self, tx: &dyn Transaction) -> u64 {
        let Some(index) = self.rrtype else { return 0 };
        let types = (0..MOST_RECORDS).map_while(|nth| tx.number(index, Way::ToClient, nth));
        if !types.into_iter().any(|rrtype| CARRIERS.contains(&rrtype)) {
            return 0;
        }
        let mut text = String::new();
        tx.log(None, &mut Json::inside(&mut text, false));
        text.len() as u64
    }

    fn query(&mut self, flow: &FlowSeen, name: &[u8], context: &mut Context<'_>) {
        let name = name.get(..MOST_NAME).unwrap_or(name);
        let Some((below, domain)) = split(name) else { return };
        if is_ignored(domain, &context.config.tunnels.ignore) || below.is_empty() {
            return;
        }
        let hash = hash(self.key, below);
        let Some((_, talk)) = self.talks.enter(&talk_key(self.key, flow, domain), context.now_us) else { return };
        talk.open_window(context.now_us, context.config.tunnels.window_us);
        if let Some(word) = talk.names.get_mut((hash >> 6) as usize % 8) {
            *word |= 1 << (hash & 63);
        }
        talk.queries = talk.queries.saturating_add(1);
        talk.label_bytes = talk.label_bytes.saturating_add(below.len() as u64);
        talk.entropy += entropy(below);
        judge(talk, flow, domain, below, context);
    }

    fn answer(&mut self, flow: &FlowSeen, name: &[u8], bytes: u64, context: &mut Context<'_>) {
        let name = name.get(..MOST_NAME).unwrap_or(name);
        let Some((below, domain)) = split(name) else { return };
        if is_ignored(domain, &context.config.tunnels.ignore) {
            return;
        }
        let Some((_, talk)) = self.talks.enter(&talk_key(self.key, flow, domain), context.now_us) else { return };
        talk.open_window(context.now_us, context.config.tunnels.window_us);
        talk.answer_bytes = talk.answer_bytes.saturating_add(bytes);
        judge(talk, flow, domain, below, context);
    }
}

fn judge(talk: &Talk, flow: &FlowSeen, domain: &[u8], sample: &[u8], context: &mut Context<'_>) {
    let tunnels = &context.config.tunnels;
    let distinct = talk.distinct();
    let carries_up = distinct >= f64::from(tunnels.names)
        && talk.mean_length() >= u64::from(tunnels.length)
        && talk.mean_entropy() >= tunnels.entropy;
    // a third of the names do where the answers are heavy: each was asked for anew
    let carries_down = talk.answer_bytes >= tunnels.answer_bytes && distinct >= f64::from(tunnels.names) / 3.0;
    if !carries_up && !carries_down {
        return;
    }
    let [client, server] = flow.addresses;
    let subject = Subject {
        source: client,
        destination: server,
        source_port: flow.ports[0],
        destination_port: flow.ports[1],
        protocol: if flow.protocol == 0 { ip::UDP } else { flow.protocol },
        flow_id: flow.id,
    };
    let count = Count::so_far(talk.queries);
    context.reporter.report(Kind::DnsTunnel, subject, count, context.now_us, || {
        vec![
            ("domain", Value::text(domain)),
            ("sample", Value::text(sample)),
            ("distinct_names", Value::Number(distinct as u64)),
            ("mean_length", Value::Number(talk.mean_length())),
            ("entropy_tenths", Value::Number((talk.mean_entropy() * 10.0) as u64)),
            ("answer_bytes", Value::Number(talk.answer_bytes)),
        ]
    });
}

fn talk_key(key: SipKey, flow: &FlowSeen, domain: &[u8]) -> [u64; 3] {
    let [a, b] = words(flow.addresses[0]);
    [a, b, hash(key, domain)]
}

/// Hash bytes, upper and lower case being the same, eight at a time.
fn hash(key: SipKey, bytes: &[u8]) -> u64 {
    let mut sum = key.hash(&[bytes.len() as u64]);
    for chunk in bytes.chunks(8) {
        let word = chunk.iter().fold(0_u64, |word, byte| word << 8 | u64::from(byte.to_ascii_lowercase()));
        sum = key.hash(&[sum, word]);
    }
    sum
}

fn is_ignored(domain: &[u8], ignored: &[String]) -> bool {
    // numbers turned around are looked up by the thousand
    domain.ends_with(b".arpa")
        || domain.ends_with(b".local")
        || ignored.iter().any(|name| domain.eq_ignore_ascii_case(name.as_bytes()))
}

/// Divide a name into what is below its registered domain and that domain; `None` where there is none.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let mut dots = name.iter().enumerate().rev().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
    let top = dots.next()?;
    let mut start = dots.next();
    let second = name.get(start.map_or(0, |at| at + 1)..top)?;
    let is_registry = name.len() - top == 3 && REGISTRIES.iter().any(|registry| second.eq_ignore_ascii_case(registry));
    if is_registry {
        start?; // the registry itself is nobody's
        start = dots.next();
    }
    match start {
        Some(at) => Some((name.get(..at)?, name.get(at + 1..)?)),
        None => Some((&[], name)),
    }
}

/// Bits of information in each byte, by the bytes' frequencies (Shannon).
fn entropy(bytes: &[u8]) -> f32 {
    let mut counts = [0_u16; 256];
    let letters = bytes.iter().filter(|byte| **byte != b'.');
    let mut total = 0_u16;
    for byte in letters {
        if let Some(count) = counts.get_mut(usize::from(byte.to_ascii_lowercase())) {
            *count = count.saturating_add(1);
        }
        total = total.saturating_add(1);
    }
    let total = f32::from(total.max(1));
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f32::from(*count) / total)
        .map(|share| -share * share.log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_divided_at_the_registered_domain() {
        type Row = (&'static [u8], Option<(&'static [u8], &'static [u8])>);
        let rows: [Row; 6] = [
            (b"a.b.example.com", Some((b"a.b", b"example.com"))),
            (b"www.example.co.uk", Some((b"www", b"example.co.uk"))),
            (b"example.co.uk", Some((b"", b"example.co.uk"))),
            (b"example.com.", Some((b"", b"example.com"))),
            (b"co.uk", None),
            (b"localhost", None),
        ];
        for (name, expected) in rows {
            assert_eq!(split(name), expected, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn entropy_is_that_of_letters() {
        assert!(entropy(b"aaaa") < 0.01 && (entropy(b"abcd") - 2.0).abs() < 0.01);
        assert!(entropy(b"kq3zx7b2m5wva9rj4tn8cyu6") > 4.0);
    }
}
