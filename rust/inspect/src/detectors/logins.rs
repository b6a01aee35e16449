//! Passwords that are tried, and web servers that are kept waiting.
//!
//! A failed login on an encrypted service looks like this: a connection that ends soon and carried little. Many of them
//! from one source to one service are an attack, or a script that opens a connection for each command: the threshold is
//! a setting. Where a protocol says that a login failed (MQTT, FTP, HTTP), that is counted instead.

use protocols::{Transaction, Way};
use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::hooks::{buffer_index, number_index, protocol_index};
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::{Entry, Table, TableCounters, words};
use crate::layers::{Layers, ip};
use crate::tcp::flag;

/// Connections of one source to one service that are followed at once; tools try sixteen.
const MOST_FOLLOWED: usize = 16;
/// Connections without a request that are followed; the threshold is below.
pub const MOST_OPEN: usize = 64;
/// A login takes no longer: OpenSSH gives two minutes, but who tries passwords is faster.
const MOST_LOGIN_US: u64 = 60_000_000;
/// Replies of one transaction that are looked at.
const MOST_REPLIES: usize = 8;

#[derive(Clone, Copy, Default)]
struct Connection {
    port: u16,
    bytes: u32,
    opened_us: u64,
}

#[derive(Clone, Default)]
struct Tries {
    connections: [Connection; MOST_FOLLOWED],
    next: u8,
    window_us: u64,
    failures: u32,
    told_failures: u32,
}

impl Entry for Tries {
    fn weight(&self) -> u32 {
        self.failures.max(self.told_failures)
    }
}

impl Tries {
    fn open_window(&mut self, now_us: u64, window_us: u64) {
        if now_us.saturating_sub(self.window_us) >= window_us || self.window_us > now_us {
            (self.window_us, self.failures, self.told_failures) = (now_us, 0, 0);
        }
    }

    fn open(&mut self, port: u16, now_us: u64) {
        if let Some(place) = self.connections.get_mut(usize::from(self.next) % MOST_FOLLOWED) {
            *place = Connection { port, bytes: 0, opened_us: now_us };
        }
        self.next = self.next.wrapping_add(1);
    }

    fn find(&mut self, port: u16) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.port == port && connection.opened_us != 0)
    }

    /// A connection ended. Returns whether it looks like a failed login.
    fn close(&mut self, port: u16, now_us: u64, most_bytes: u64) -> bool {
        let Some(connection) = self.find(port) else { return false };
        let ended = std::mem::take(connection);
        let is_short = now_us.saturating_sub(ended.opened_us) <= MOST_LOGIN_US;
        let is_failure = is_short && ended.bytes > 0 && u64::from(ended.bytes) <= most_bytes;
        if is_failure {
            self.failures = self.failures.saturating_add(1);
        }
        is_failure
    }
}

/// Client ports of connections on which the client has not asked for anything.
#[derive(Clone)]
struct Waiting {
    ports: [u16; MOST_OPEN],
    length: u8,
    crossed_us: Option<u64>,
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting { ports: [0; MOST_OPEN], length: 0, crossed_us: None }
    }
}

impl Entry for Waiting {
    fn weight(&self) -> u32 {
        self.length.into()
    }
}

impl Waiting {
    fn add(&mut self, port: u16) {
        let length = usize::from(self.length);
        let is_known = self.ports.iter().take(length).any(|known| *known == port);
        if let (false, Some(place)) = (is_known, self.ports.get_mut(length)) {
            *place = port;
            self.length += 1;
        }
    }

    fn remove(&mut self, port: u16) {
        let length = usize::from(self.length);
        let Some(index) = self.ports.iter().take(length).position(|known| *known == port) else { return };
        self.ports.swap(index, length - 1);
        self.length -= 1;
    }
}

/// What one protocol says about failed logins.
struct Replies {
    protocol: usize,
    source: ReplySource,
}

enum ReplySource {
    /// MQTT: bad user name or password, not authorised (3.1.1 section 3.2.2.3; 5.0 section 2.4).
    Mqtt(usize),
    /// FTP: 530.
    Ftp(usize),
    /// HTTP: 401, and a success in between starts anew.
    Http(usize),
}

/// Sources and services.
pub struct Logins {
    tries: Table<5, Tries>,
    waiting: Table<5, Waiting>,
    replies: Vec<Replies>,
}

impl Logins {
    /// Return empty tables within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Logins {
        let buffer = |name: &str, keyword: &str, source: fn(usize) -> ReplySource| {
            let protocol = protocol_index(name)?;
            Some(Replies { protocol, source: source(buffer_index(protocol, keyword)?) })
        };
        let mqtt = || {
            let protocol = protocol_index("mqtt")?;
            Some(Replies { protocol, source: ReplySource::Mqtt(number_index(protocol, "mqtt.reason_code")?) })
        };
        let replies = [
            mqtt(),
            buffer("ftp", "ftp.completion_code", ReplySource::Ftp),
            buffer("http", "http.stat_code", ReplySource::Http),
        ];
        Logins {
            tries: Table::new(bytes / 2, 600_000_000, key),
            waiting: Table::new(bytes / 2, 600_000_000, key),
            replies: replies.into_iter().flatten().collect(),
        }
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        self.tries.bytes() + self.waiting.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> [TableCounters; 2] {
        [self.tries.counters, self.waiting.counters]
    }

    /// Look at a packet.
    pub fn packet(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        if layers.protocol != ip::TCP || layers.fragment.is_some() {
            return;
        }
        let logins = &context.config.logins;
        let ports = [layers.destination_port, layers.source_port];
        let Some(side) = ports.iter().position(|port| logins.ports.contains(port) || logins.web_ports.contains(port))
        else {
            return;
        };
        let step = Step::new(layers, side == 1);
        if logins.ports.contains(&step.server.1) && context.config.is_on(Kind::BruteForce) {
            self.login(&step, context);
        } else if logins.web_ports.contains(&step.server.1) && context.config.is_on(Kind::Slowloris) {
            self.web(&step, layers, context);
        }
    }

    fn login(&mut self, step: &Step, context: &mut Context<'_>) {
        let (now_us, logins) = (context.now_us, &context.config.logins);
        if step.is_accepted {
            if let Some((_, tries)) = self.tries.enter(&step.key(), now_us) {
                tries.open(step.client.1, now_us);
            }
            return;
        }
        if step.bytes == 0 && !step.is_end {
            return;
        }
        let Some(tries) = self.tries.get_mut(&step.key()) else { return };
        if let Some(connection) = tries.find(step.client.1) {
            connection.bytes = connection.bytes.saturating_add(step.bytes);
        }
        tries.open_window(now_us, logins.window_us);
        if step.is_end && tries.close(step.client.1, now_us, logins.most_bytes) && tries.failures >= logins.failures {
            report_tries(tries.failures, step.subject(), "connections", context);
        }
    }

    fn web(&mut self, step: &Step, layers: &Layers<'_>, context: &mut Context<'_>) {
        let now_us = context.now_us;
        if step.is_accepted
            && let Some((_, waiting)) = self.waiting.enter(&step.key(), now_us)
        {
            waiting.add(step.client.1);
        }
        let Some(waiting) = self.waiting.get_mut(&step.key()) else { return };
        let is_request = layers.payload.ends_with(b"\r\n\r\n");
        if step.is_end || step.bytes > 0 && (step.is_from_server || is_request) {
            waiting.remove(step.client.1);
        }
        let logins = &context.config.logins;
        if u32::from(waiting.length) < logins.open {
            waiting.crossed_us = None;
            return;
        }
        let crossed_us = *waiting.crossed_us.get_or_insert(now_us);
        if now_us.saturating_sub(crossed_us) < logins.hold_us {
            return;
        }
        let (length, is_new) = (waiting.length, step.is_accepted);
        let count = Count { first: length.into(), more: is_new.into() };
        context.reporter.report(Kind::Slowloris, step.subject(), count, now_us, || {
            vec![("open_connections", Value::Number(length.into()))]
        });
    }

    /// Look at what a protocol says.
    pub fn transaction(&mut self, flow: &FlowSeen, protocol: usize, tx: &dyn Transaction, context: &mut Context<'_>) {
        let Some(replies) = self.replies.iter().find(|replies| replies.protocol == protocol) else { return };
        if !context.config.is_on(Kind::BruteForce) {
            return;
        }
        let (failed, is_success, is_web) = replies.source.read(tx);
        if failed == 0 && !is_success {
            return;
        }
        let ([a, b], [c, d]) = (words(flow.addresses[0]), words(flow.addresses[1]));
        // apart from what is counted by connections
        let key = [a, b, c, d, 1 << 16 | u64::from(flow.ports[1])];
        let logins = &context.config.logins;
        let Some((_, tries)) = self.tries.enter(&key, context.now_us) else { return };
        tries.open_window(context.now_us, logins.window_us);
        if is_success {
            tries.told_failures = 0;
        }
        tries.told_failures = tries.told_failures.saturating_add(failed);
        let threshold = if is_web { logins.web_failures } else { logins.failures };
        if failed > 0 && tries.told_failures >= threshold {
            let subject = Subject {
                source: flow.addresses[0],
                destination: flow.addresses[1],
                source_port: flow.ports[0],
                destination_port: flow.ports[1],
                protocol: flow.protocol,
                flow_id: flow.id,
            };
            report_tries(tries.told_failures, subject, "replies", context);
        }
    }
}

impl ReplySource {
    /// Return how many logins failed, whether one succeeded, and whether it is the web.
    fn read(&self, tx: &dyn Transaction) -> (u32, bool, bool) {
        let texts = |index: usize, wanted: fn(&[u8]) -> bool| {
            let replies = (0..MOST_REPLIES).map_while(|nth| tx.buffer(index, Way::ToClient, nth));
            replies.filter(|view| wanted(view.data)).count() as u32
        };
        match self {
            ReplySource::Mqtt(index) => {
                let codes =
                    Way::BOTH.into_iter().flat_map(|way| (0..2).filter_map(move |nth| tx.number(*index, way, nth)));
                (u32::from(codes.into_iter().any(|code| matches!(code, 4 | 5 | 134 | 135))), false, false)
            }
            ReplySource::Ftp(index) => {
                (texts(*index, |code| code == b"530"), texts(*index, |code| code == b"230") > 0, false)
            }
            ReplySource::Http(index) => {
                let first = tx.buffer(*index, Way::ToClient, 0);
                let code = first.map(|view| view.data).unwrap_or_default();
                (u32::from(code == b"401"), matches!(code.first(), Some(b'2' | b'3')), true)
            }
        }
    }
}

fn report_tries(failures: u32, subject: Subject, seen_in: &'static str, context: &mut Context<'_>) {
    context.reporter.report(Kind::BruteForce, subject, Count::so_far(failures), context.now_us, || {
        vec![("failures", Value::Number(failures.into())), ("seen_in", Value::text(seen_in.as_bytes()))]
    });
}

/// What a packet does to a connection with one of the services.
struct Step {
    client: (u128, u16),
    server: (u128, u16),
    is_from_server: bool,
    is_accepted: bool,
    is_end: bool,
    bytes: u32,
}

impl Step {
    fn new(layers: &Layers<'_>, is_from_server: bool) -> Step {
        let (from, to) = ((layers.source, layers.source_port), (layers.destination, layers.destination_port));
        let (client, server) = if is_from_server { (to, from) } else { (from, to) };
        let flags = layers.tcp.flags;
        Step {
            client,
            server,
            is_from_server,
            is_accepted: is_from_server && flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN | flag::ACK,
            is_end: flags & (flag::FIN | flag::RST) != 0,
            bytes: u32::try_from(layers.payload.len()).unwrap_or(u32::MAX),
        }
    }

    fn key(&self) -> [u64; 5] {
        let ([a, b], [c, d]) = (words(self.client.0), words(self.server.0));
        [a, b, c, d, self.server.1.into()]
    }

    fn subject(&self) -> Subject {
        Subject {
            source: self.client.0,
            destination: self.server.0,
            source_port: self.client.1,
            destination_port: self.server.1,
            protocol: ip::TCP,
            flow_id: 0,
        }
    }
}
