//! What a protocol tells the rest of the sensor about itself, and what its parser and its transactions can do.

use std::any::Any;

use crate::{Json, Settings};

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub enum Way {
    /// From the client to the server.
    ToServer = 0,
    /// From the server to the client.
    ToClient = 1,
}

impl Way {
    /// Both ways, in the order of their numbers.
    pub const BOTH: [Way; 2] = [Way::ToServer, Way::ToClient];

    /// Return the other way.
    #[inline]
    pub fn reverse(self) -> Way {
        match self {
            Way::ToServer => Way::ToClient,
            Way::ToClient => Way::ToServer,
        }
    }

    /// Return the name that rules and EVE use.
    pub fn name(self) -> &'static str {
        match self {
            Way::ToServer => "to_server",
            Way::ToClient => "to_client",
        }
    }
}

/// The ways in which a buffer or number exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Ways {
    ToServer,
    ToClient,
    Both,
}

impl Ways {
    /// Return whether `way` is one of them.
    #[inline]
    pub fn contains(self, way: Way) -> bool {
        match self {
            Ways::Both => true,
            Ways::ToServer => way == Way::ToServer,
            Ways::ToClient => way == Way::ToClient,
        }
    }
}

/// What carries the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Transport {
    Tcp,
    Udp,
}

/// The first bytes of a flow that a probe is shown.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Contiguous bytes from the beginning of that way; at least one.
    pub data: &'a [u8],
    /// Which way they go, as far as is known.
    pub way: Way,
    /// What carries them.
    pub transport: Transport,
    /// The server's port is one of [`Protocol::ports`].
    pub is_usual_port: bool,
}

/// What a probe says about the first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Probe {
    /// They are of this protocol.
    Yes,
    /// They are, and they go the other way than was thought (the flow was picked up at an answer).
    YesReversed,
    /// They are not.
    No,
    /// More are needed to say.
    More,
}

/// Everything there is to know about a protocol.
pub struct Protocol {
    /// The name in rule headers and in EVE's `app_proto`.
    pub name: &'static str,
    /// Further names in rule headers.
    pub aliases: &'static [&'static str],
    /// What may carry it.
    pub transports: &'static [Transport],
    /// Ports of servers where weak evidence is enough.
    pub ports: &'static [u16],
    /// Decides whether a flow begins like this protocol. Strict: a wrong `Yes` costs every other protocol the flow.
    pub probe: fn(&Start<'_>) -> Probe,
    /// Makes the parser of one flow.
    pub parser: fn(&Settings, Transport) -> Box<dyn Parser>,
    /// What rules can match bytes against; a [`Transaction`] is asked by the index in this list.
    pub buffers: &'static [BufferInfo],
    /// What rules can compare as integers; likewise.
    pub numbers: &'static [NumberInfo],
    /// Keywords with a syntax of their own.
    pub keywords: &'static [KeywordInfo],
    /// Names of states for rule headers (`http1:response_headers`) and the progress that they stand for.
    pub states: &'static [(&'static str, Way, u8)],
    /// Log records: kinds and when they are due.
    pub records: &'static [RecordInfo],
    /// Names of its events (`app-layer-event:http.invalid_request_field_colon_missing` without the first part).
    pub events: &'static [&'static str],
}

/// A buffer that rules can inspect.
pub struct BufferInfo {
    /// The sticky keyword: `http.uri`. Several protocols may share one: `file.data`.
    pub keyword: &'static str,
    /// Older names of the sticky keyword: `dns_query`.
    pub aliases: &'static [&'static str],
    /// Names of the content modifier, where there is one: `http_uri`.
    pub modifiers: &'static [&'static str],
    /// In which ways it exists.
    pub ways: Ways,
    /// The progress of the transaction in that way at which it is complete (or, if it grows, begins).
    pub progress: u8,
    /// There may be more than one: index 0, 1, …; a rule matches if all its contents match in one of them.
    pub is_multiple: bool,
    /// It arrives piece by piece ([`View::is_complete`] tells the end).
    pub is_growing: bool,
}

/// An integer that rules can compare: `dns.opcode:!0`, `mqtt.reason_code:128-255`.
pub struct NumberInfo {
    /// The keyword.
    pub keyword: &'static str,
    /// Older names.
    pub aliases: &'static [&'static str],
    /// In which ways it exists.
    pub ways: Ways,
    /// See [`BufferInfo::progress`].
    pub progress: u8,
    /// Its width in bits: 8, 16, 32 or 64; larger numbers in a rule are refused.
    pub bits: u8,
    /// Names that may stand for values: `("subscribe", 8)`.
    pub names: &'static [(&'static str, u64)],
    /// There may be more than one; a rule matches if one does.
    pub is_multiple: bool,
}

/// A keyword with a syntax of its own: `modbus: function 5`.
pub struct KeywordInfo {
    /// The keyword.
    pub keyword: &'static str,
    /// Older names.
    pub aliases: &'static [&'static str],
    /// In which ways it can match.
    pub ways: Ways,
    /// The progress at which it can be asked.
    pub progress: u8,
    /// Reads the argument (text between colon and semicolon, trimmed; empty if none), or says what is wrong with it.
    pub parse: fn(&str) -> Result<Box<dyn Custom>, String>,
}

/// A parsed keyword.
pub trait Custom: Send + Sync {
    /// Return whether the transaction matches. `transaction.as_any()` gives the protocol's own type.
    fn matches(&self, transaction: &dyn Transaction, way: Way) -> bool;

    /// The same, for who knows the flow: `client` is the address of its client (FTP bounces are told by it).
    fn matches_between(&self, transaction: &dyn Transaction, way: Way, _client: std::net::IpAddr) -> bool {
        self.matches(transaction, way)
    }
}

/// A kind of log record.
pub struct RecordInfo {
    /// EVE's `event_type`: `dns`.
    pub event_type: &'static str,
    /// It is due once the transaction's progress to the server is at least this (0: does not matter) …
    pub to_server: u8,
    /// … and to the client at least this.
    pub to_client: u8,
    /// Whose packet it describes: `src_ip` is the sender of this way.
    pub way: Way,
}

/// Why a parser gives up on a flow. Shown to operators, never to the network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ParseError(pub &'static str);

/// The parser of one flow.
pub trait Parser: Send {
    /// Read what is complete from the front of `data` and return how many bytes those were; the rest comes again, with
    /// more behind it. For datagrams, `data` is one of them, and everything counts as read. `is_end`: this way is over.
    /// A parser must make progress or fail before it has been shown [`MOST_HELD`] bytes.
    fn parse(&mut self, way: Way, data: &[u8], is_end: bool) -> Result<usize, ParseError>;

    /// `bytes` are missing at this place. The default gives up.
    fn gap(&mut self, _way: Way, _bytes: u64) -> Result<(), ParseError> {
        Err(ParseError("bytes are missing"))
    }

    /// Ids of the transactions that are held: the first, and one behind the last. They count from 0 in each flow.
    fn range(&self) -> (u64, u64);

    /// Return a transaction; `None` where it was removed.
    fn transaction(&self, id: u64) -> Option<&dyn Transaction>;

    /// Forget a transaction that has been looked at and logged.
    fn remove(&mut self, id: u64);

    /// The flow is over: nothing more will come either way. Incomplete transactions become complete.
    fn finish(&mut self);

    /// Bytes that it holds on the heap, roughly, for the budget.
    fn heap_bytes(&self) -> usize;

    /// The flow goes on in another protocol (STARTTLS, HTTP CONNECT, WebSocket): its name, said once.
    fn upgraded(&mut self) -> Option<&'static str> {
        None
    }

    /// Nothing that follows can be read (encrypted): the sensor may stop reassembling.
    fn is_opaque(&self) -> bool {
        false
    }
}

/// The most bytes that a parser is shown without having read any of them; then it is given up.
pub const MOST_HELD: usize = 64 << 10;

/// What is in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// The bytes that are held.
    pub data: &'a [u8],
    /// Where `data` begins in the whole; above 0 only where a growing buffer has let go of its beginning.
    pub start: u64,
    /// Nothing more will come.
    pub is_complete: bool,
}

impl<'a> View<'a> {
    /// A buffer that is all there.
    pub fn whole(data: &'a [u8]) -> View<'a> {
        View { data, start: 0, is_complete: true }
    }
}

/// A request and its answer, or whatever is the unit of the protocol.
pub trait Transaction: Any + Send {
    /// How far it is in that way: 0 has not begun, [`COMPLETE`] is over; between them each protocol's own steps.
    fn progress(&self, way: Way) -> u8;

    /// Return buffer number `index` of the protocol's list, the `nth` of them where there are several.
    fn buffer(&self, index: usize, way: Way, nth: usize) -> Option<View<'_>>;

    /// Return number `index` of the protocol's list, the `nth` of them where there are several.
    fn number(&self, _index: usize, _way: Way, _nth: usize) -> Option<u64> {
        None
    }

    /// What was wrong, as indices into [`Protocol::events`], in the order in which it was noticed.
    fn events(&self) -> &[u8] {
        &[]
    }

    /// Write the members of log record `record` (an index into [`Protocol::records`]): normally one object under the
    /// protocol's name. For an alert, `record` is `None`: write all that is known so far.
    fn log(&self, record: Option<usize>, json: &mut Json);

    /// Return whether record `record` is to be written at all for this transaction.
    fn is_logged(&self, _record: usize) -> bool {
        true
    }

    /// Files that it carries, in order.
    fn files(&self) -> &[crate::Body] {
        &[]
    }

    /// The protocol's own type, for [`Custom::matches`].
    fn as_any(&self) -> &dyn Any;
}

/// The progress of a way that is over.
pub const COMPLETE: u8 = u8::MAX;
