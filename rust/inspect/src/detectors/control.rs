//! Control networks: which functions each client uses, and how often something is written.
//!
//! For an hour after a server was first seen, what happens is taken for normal. Afterwards a client that uses a function
//! for the first time is told, as are far more writes than there ever were. A protocol that a build lacks is not there.

use protocols::Transaction;
use sensor::SipKey;

use super::Context;
use super::finding::{Evidence, Kind, Subject, Value};
use super::hooks::{logged, number, number_index, protocol_index};
use super::reporter::Count;
use super::seen::FlowSeen;
use super::table::{Entry, Table, TableCounters, words};

/// Writes are counted in windows of this length.
const WINDOW_US: u64 = 10_000_000;
/// A week without a word is the end of what was learnt.
const IDLE_US: u64 = 7 * 24 * 3_600_000_000;

/// Where a transaction of a protocol says which function it is.
enum Function {
    Number(usize),
    /// A member of the log record, for protocols whose function is no number of their own.
    Logged(&'static str),
}

struct Dialect {
    protocol: usize,
    name: &'static str,
    function: Function,
    writes: &'static [&'static str],
}

/// Protocol, keyword of the number or member of the record, functions that change something.
type Row = (&'static str, &'static str, bool, &'static [&'static str]);
const ROWS: [Row; 6] = [
    // write coils, registers, files; mask write; read and write
    ("modbus", "function_raw", false, &["5", "6", "15", "16", "21", "22", "23"]),
    // write, operate, restart, initialise, start and stop, configuration, delete file
    ("dnp3", "dnp3_func", true, &["2", "4", "5", "6", "13", "14", "15", "16", "17", "18", "19", "27", "31"]),
    // write, download, control, stop
    ("s7comm", "s7.function", true, &["5", "26", "27", "28", "40", "41"]),
    // write file, lists, objects, properties; communication control, reinitialise; time, group
    ("bacnet", "bacnet.service", true, &["7", "8", "9", "10", "11", "15", "16", "17", "20", "262", "265", "266"]),
    (
        "enip",
        "service",
        false,
        &[
            "set_attributes_all",
            "set_attribute_list",
            "reset",
            "start",
            "stop",
            "create",
            "delete",
            "set_attribute_single",
            "write_tag",
            "read_modify_write_tag",
            "write_tag_fragmented",
        ],
    ),
    // commands with and without time tags, reset of the process (IEC 60870-5-101 section 7.2.1)
    (
        "iec104",
        "iec104.type_id",
        true,
        &["45", "46", "47", "48", "49", "50", "51", "58", "59", "60", "61", "62", "63", "64", "105"],
    ),
];

#[derive(Clone, Default)]
struct Memory {
    first_us: u64,
    functions: [u64; 4],
    window_us: u64,
    writes: u32,
    peak: u32,
    is_server: bool,
}

impl Entry for Memory {
    fn weight(&self) -> u32 {
        // without its server, a client would be learnt anew
        if self.is_server { 2 } else { 1 }
    }
}

impl Memory {
    fn has_new(&mut self, hash: u64) -> bool {
        let Some(word) = self.functions.get_mut((hash >> 6) as usize % 4) else { return false };
        let is_new = *word >> (hash & 63) & 1 == 0;
        *word |= 1 << (hash & 63);
        is_new
    }

    /// Count a write and return how many there were in this window.
    fn write(&mut self, now_us: u64, is_learning: bool) -> u32 {
        if now_us.saturating_sub(self.window_us) >= WINDOW_US || self.window_us > now_us {
            (self.window_us, self.writes) = (now_us, 0);
        }
        self.writes = self.writes.saturating_add(1);
        if is_learning {
            self.peak = self.peak.max(self.writes);
        }
        self.writes
    }
}

/// Clients and servers of control protocols.
pub struct Control {
    memories: Table<5, Memory>,
    dialects: Vec<Dialect>,
    key: SipKey,
}

impl Control {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey) -> Control {
        let dialect = |(name, place, is_number, writes): Row| {
            let protocol = protocol_index(name)?;
            let function = match is_number {
                true => Function::Number(number_index(protocol, place)?),
                false => Function::Logged(place),
            };
            Some(Dialect { protocol, name, function, writes })
        };
        Control {
            memories: Table::new(bytes, IDLE_US, key),
            dialects: ROWS.into_iter().filter_map(dialect).collect(),
            key,
        }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.memories.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.memories.counters
    }

    /// Look at a transaction.
    pub fn transaction(&mut self, flow: &FlowSeen, protocol: usize, tx: &dyn Transaction, context: &mut Context<'_>) {
        let Some(dialect) = self.dialects.iter().find(|dialect| dialect.protocol == protocol) else { return };
        let function = match dialect.function {
            Function::Number(index) => number(tx, index).map(|function| function.to_string()),
            Function::Logged(member) => logged(tx, member),
        };
        let Some(function) = function else { return };
        let is_write = dialect.writes.contains(&function.as_str());
        let name = dialect.name;
        self.used(flow, protocol, name, &function, is_write, context);
    }

    /// A function was used: the part that needs no parser.
    pub(super) fn used(
        &mut self,
        flow: &FlowSeen,
        protocol: usize,
        name: &'static str,
        function: &str,
        is_write: bool,
        context: &mut Context<'_>,
    ) {
        let (now_us, control) = (context.now_us, &context.config.control);
        let ([a, b], [c, d]) = (words(flow.addresses[0]), words(flow.addresses[1]));
        let Some((_, server)) = self.memories.enter(&[0, 0, c, d, protocol as u64], now_us) else { return };
        if !server.is_server {
            (server.is_server, server.first_us) = (true, now_us);
        }
        let is_learning = now_us.saturating_sub(server.first_us) < control.learn_us;
        let writes = if is_write { server.write(now_us, is_learning) } else { 0 };
        let limit = control.writes.max(server.peak.saturating_mul(control.factor));
        let hash = function.bytes().fold(self.key.hash(&[9]), |sum, byte| self.key.hash(&[sum, byte.into()]));
        let Some((_, client)) = self.memories.enter(&[a, b, c, d, protocol as u64], now_us) else { return };
        let is_new_client = client.functions == [0; 4];
        let is_new = client.has_new(hash);
        if is_learning {
            return;
        }
        let said = || vec![("app_proto", Value::text(name.as_bytes())), ("function", Value::text(function.as_bytes()))];
        if is_new {
            let mut evidence = said();
            evidence.push(("new_client", Value::Number(is_new_client.into())));
            tell(Kind::IcsNewFunction, flow, evidence, context);
        }
        if writes > limit {
            let mut evidence = said();
            evidence.extend([("writes", Value::Number(writes.into())), ("limit", Value::Number(limit.into()))]);
            tell(Kind::IcsWriteRate, flow, evidence, context);
        }
    }
}

fn tell(kind: Kind, flow: &FlowSeen, evidence: Evidence, context: &mut Context<'_>) {
    if context.config.is_on(kind) {
        context.reporter.report(kind, subject(flow), Count::ONE, context.now_us, || evidence);
    }
}

fn subject(flow: &FlowSeen) -> Subject {
    Subject {
        source: flow.addresses[0],
        destination: flow.addresses[1],
        source_port: flow.ports[0],
        destination_port: flow.ports[1],
        protocol: flow.protocol,
        flow_id: flow.id,
    }
}
