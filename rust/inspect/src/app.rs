//! The application side of a flow: which protocol it is, its parser, and how far each transaction has been looked at.

use std::collections::VecDeque;

use protocols::{MOST_HELD, PROTOCOLS, Parser, Probe, Settings, Start, Transport, Way};

/// Bytes of one way after which a probe that wants more is not asked again.
const MOST_PROBED: usize = 4096;

/// How far rules have come with one way of a transaction.
#[derive(Debug, Default)]
pub struct Looked {
    /// The progress of both ways at the last look.
    pub progress: [u8; 2],
    /// Rules without a literal before this place in their list were decided.
    pub always: u32,
    /// Bytes of growing buffers that were there at the last look.
    pub grown: u64,
    /// Rules that wait for more of the transaction.
    pub waiting: Vec<u32>,
    /// Rules that have matched.
    pub matched: Vec<u32>,
    /// Rules that match anew whenever bytes come while the transaction stays in the state that they hook.
    pub repeating: Vec<u32>,
    /// Bytes of this way that the parser had been shown at the last look.
    pub fed: u64,
    /// A look at a complete transaction was taken: nothing will change.
    pub is_over: bool,
    /// The first look has been taken.
    pub has_begun: bool,
}

/// Rules that wait for one transaction to go on.
const MOST_WAITING: usize = 512;

impl Looked {
    /// Look at a rule again when there is more.
    pub fn wait_for(&mut self, rule: u32) {
        if self.waiting.len() < MOST_WAITING && !self.waiting.contains(&rule) {
            self.waiting.push(rule);
        }
    }

    fn heap_bytes(&self) -> usize {
        (self.waiting.capacity() + self.matched.capacity() + self.repeating.capacity()) * size_of::<u32>()
    }
}

/// What the sensor remembers about a transaction.
#[derive(Debug, Default)]
pub struct Tracked {
    /// By way.
    pub looked: [Looked; 2],
    /// Log records that were written, one bit each.
    pub logged: u32,
    /// Files that were logged.
    pub files: usize,
    /// Events that were logged.
    pub events: usize,
    /// A rule said `pass`.
    pub is_passed: bool,
}

/// One flow's application state.
#[derive(Default)]
pub struct App {
    /// Index into `PROTOCOLS`.
    pub protocol: Option<u8>,
    parser: Option<Box<dyn Parser>>,
    tracked: VecDeque<Tracked>,
    first: u64,
    excluded: [u64; 2],
    /// That way's beginning is of no known protocol.
    pub has_failed: [bool; 2],
    /// The parser gave up.
    pub is_broken: bool,
    /// Why, to be told once.
    pub failure: Option<&'static str>,
    /// Nothing more can be read.
    pub is_opaque: bool,
    /// What was found by each way's own bytes.
    pub found: [Option<u8>; 2],
    /// The protocol before an upgrade.
    pub before: Option<u8>,
    is_upgrading: bool,
    /// Transactions that there were in all.
    pub count: u64,
    pub fed: [u64; 2],
}

/// What became of bytes that a flow's parser was shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fed {
    /// How many were read.
    pub consumed: usize,
    /// The protocol has just become known.
    pub is_found: bool,
    /// This way looks like another protocol than the one that the flow was taken for.
    pub is_found_differently: bool,
    /// The flow's client is really its server.
    pub is_reversed: bool,
    /// The parser has just given up: for good, or on a datagram.
    pub has_broken: bool,
    /// It has just become clear that no protocol fits.
    pub has_failed: bool,
}

impl App {
    /// It is known beforehand what the flow carries.
    pub fn expect(&mut self, protocol: u8, parser: Box<dyn Parser>) {
        (self.protocol, self.parser, self.found) = (Some(protocol), Some(parser), [Some(protocol); 2]);
    }

    /// The parser.
    pub fn parser(&self) -> Option<&dyn Parser> {
        self.parser.as_deref()
    }

    /// Whether nobody will find out any more what it is.
    pub fn is_unknown_for_good(&self) -> bool {
        self.protocol.is_none() && self.has_failed == [true, true]
    }

    /// Whether bytes are still of interest.
    pub fn is_interested(&self) -> bool {
        !self.is_broken && !self.is_opaque && !self.is_unknown_for_good()
    }

    /// Show the bytes of one way: contiguous, from the first that was not read.
    pub fn feed(&mut self, way: Way, data: &[u8], is_end: bool, flow: &FlowHint<'_>) -> Fed {
        let mut fed = Fed::default();
        if self.protocol.is_none() {
            if data.is_empty() {
                return fed;
            }
            match self.recognise(way, data, is_end, flow) {
                None => return fed,
                Some(false) => {
                    fed.has_failed = true;
                    fed.consumed = if self.is_unknown_for_good() { data.len() } else { 0 };
                    return fed;
                }
                Some(true) => fed.is_found = true,
            }
            fed.is_reversed = self.found[way as usize].is_none();
        } else if self.found[way as usize].is_none() && !self.has_failed[way as usize] && !data.is_empty() {
            self.compare(way, data, flow, &mut fed);
        }
        let way = if fed.is_reversed { way.reverse() } else { way };
        self.parse(way, data, is_end, flow, &mut fed);
        fed
    }

    /// Return whether the protocol is known now; `None`: not yet.
    fn recognise(&mut self, way: Way, data: &[u8], is_end: bool, flow: &FlowHint<'_>) -> Option<bool> {
        let side = way as usize;
        if self.has_failed[side] {
            return None;
        }
        let mut wants_more = false;
        for (index, protocol) in PROTOCOLS.iter().enumerate() {
            let bit = 1_u64 << (index % 64);
            if self.excluded[side] & bit != 0 || !protocol.transports.contains(&flow.transport) {
                continue;
            }
            let is_usual_port =
                protocol.ports.contains(&flow.server_port) || protocol.ports.contains(&flow.client_port);
            match (protocol.probe)(&Start { data, way, transport: flow.transport, is_usual_port }) {
                Probe::No => self.excluded[side] |= bit,
                Probe::More => wants_more = true,
                verdict => {
                    self.protocol = Some(index as u8);
                    if verdict == Probe::Yes {
                        self.found[side] = Some(index as u8);
                    } else {
                        self.found[way.reverse() as usize] = Some(index as u8);
                    }
                    self.parser = Some((protocol.parser)(flow.settings, flow.transport));
                    return Some(true);
                }
            }
        }
        if wants_more && data.len() < MOST_PROBED && !is_end && flow.transport == Transport::Tcp {
            return None;
        }
        self.has_failed[side] = true;
        Some(false)
    }

    /// The other way's first bytes: do they look like the same protocol?
    fn compare(&mut self, way: Way, data: &[u8], flow: &FlowHint<'_>, fed: &mut Fed) {
        let side = way as usize;
        let is_usual_port = |ports: &[u16]| ports.contains(&flow.server_port) || ports.contains(&flow.client_port);
        let looks_like = |index: u8| {
            PROTOCOLS.get(usize::from(index)).is_some_and(|protocol| {
                let is_usual_port = is_usual_port(protocol.ports);
                let start = Start { data, way, transport: flow.transport, is_usual_port };
                protocol.transports.contains(&flow.transport) && (protocol.probe)(&start) == Probe::Yes
            })
        };
        let known = self.protocol.filter(|index| looks_like(*index));
        let other = || (0..PROTOCOLS.len() as u8).find(|index| looks_like(*index));
        self.found[side] = known.or_else(other).or(self.protocol);
        fed.is_found_differently = self.found[side] != self.protocol;
    }

    fn parse(&mut self, way: Way, data: &[u8], is_end: bool, flow: &FlowHint<'_>, fed: &mut Fed) {
        let Some(parser) = self.parser.as_mut() else { return };
        if self.is_broken {
            fed.consumed = data.len();
            return;
        }
        let before = self.fed[way as usize];
        let fails_at = flow.failing_offset[way as usize];
        let fails = fails_at.is_some_and(|at| !data.is_empty() && before + data.len() as u64 > at);
        let result = match fails {
            true => Err(protocols::ParseError("made to fail by a setting")),
            false => parser.parse(way, data, is_end),
        };
        match result {
            Ok(read) => {
                fed.consumed = read.min(data.len());
                if data.len() - fed.consumed >= MOST_HELD {
                    self.give_up("a parser made no progress", fed);
                }
            }
            // the next datagram is a beginning of its own: one bad one must not blind to the rest
            Err(error) if flow.transport == Transport::Udp => {
                self.failure = Some(error.0);
                fed.has_broken = true;
            }
            Err(error) => self.give_up(error.0, fed),
        }
        self.fed[way as usize] += fed.consumed as u64;
        if fed.has_broken {
            fed.consumed = data.len();
        }
        self.follow_up(flow);
    }

    fn give_up(&mut self, why: &'static str, fed: &mut Fed) {
        self.is_broken = true;
        self.failure = Some(why);
        fed.has_broken = true;
    }

    /// Keep what is remembered about transactions in step with the parser, and follow it into another protocol.
    fn follow_up(&mut self, flow: &FlowHint<'_>) {
        let Some(parser) = self.parser.as_mut() else { return };
        let (_, end) = parser.range();
        self.count = self.count.max(end);
        while self.first + (self.tracked.len() as u64) < end {
            self.tracked.push_back(Tracked::default());
        }
        self.is_opaque = parser.is_opaque();
        if let Some(name) = parser.upgraded() {
            self.upgrade(name, flow);
        }
    }

    fn upgrade(&mut self, name: &str, _flow: &FlowHint<'_>) {
        // what follows is recognised anew, by its own first bytes; transactions of the old parser end here
        if PROTOCOLS.iter().any(|protocol| protocol.name == name) || name.is_empty() {
            self.pending_upgrade();
        } else {
            self.is_opaque = true;
        }
    }

    fn pending_upgrade(&mut self) {
        if let Some(parser) = self.parser.as_mut() {
            parser.finish();
        }
        self.before = self.protocol;
        self.is_upgrading = true;
    }

    /// Begin anew with another protocol, once the transactions of the old one have been looked at.
    pub fn begin_anew(&mut self) {
        if self.is_upgrading {
            *self = App { before: self.before, count: self.count, ..App::default() };
        }
    }

    /// Tell the parser about missing bytes; return whether it goes on.
    pub fn gap(&mut self, way: Way, bytes: u64) -> bool {
        let Some(parser) = self.parser.as_mut() else {
            self.has_failed = [true, true];
            return false;
        };
        match parser.gap(way, bytes) {
            Ok(()) => true,
            Err(error) => {
                self.is_broken = true;
                self.failure = Some(error.0);
                false
            }
        }
    }

    /// The flow is over.
    pub fn finish(&mut self, flow: &FlowHint<'_>) {
        if let Some(parser) = self.parser.as_mut() {
            parser.finish();
        }
        self.follow_up(flow);
    }

    /// Ids of transactions: the first, and one behind the last.
    pub fn range(&self) -> (u64, u64) {
        self.parser.as_ref().map_or((0, 0), |parser| parser.range())
    }

    /// What is remembered about a transaction.
    pub fn tracked(&mut self, id: u64) -> Option<&mut Tracked> {
        self.tracked.get_mut(usize::try_from(id.checked_sub(self.first)?).ok()?)
    }

    /// A transaction and what is remembered about it.
    pub fn both(&mut self, id: u64) -> Option<(&dyn protocols::Transaction, &mut Tracked)> {
        let tracked = self.tracked.get_mut(usize::try_from(id.checked_sub(self.first)?).ok()?)?;
        Some((self.parser.as_ref()?.transaction(id)?, tracked))
    }

    /// Forget a transaction.
    pub fn remove(&mut self, id: u64) {
        let Some(parser) = self.parser.as_mut() else { return };
        parser.remove(id);
        let (first, _) = parser.range();
        while self.first < first && self.tracked.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// Bytes on the heap, roughly.
    pub fn heap_bytes(&self) -> usize {
        let parser = self.parser.as_ref().map_or(0, |parser| parser.heap_bytes() + 256);
        let rules = self.tracked.iter().flat_map(|tracked| &tracked.looked).map(Looked::heap_bytes);
        parser + self.tracked.capacity() * size_of::<Tracked>() + rules.sum::<usize>()
    }

    /// Give everything back.
    pub fn drop_all(&mut self) {
        self.parser = None;
        self.tracked.clear();
        self.is_broken = true;
    }
}

/// What a parser's beginning depends on.
#[derive(Clone, Copy)]
pub struct FlowHint<'a> {
    /// What carries it.
    pub transport: Transport,
    /// Ports.
    pub client_port: u16,
    /// Likewise.
    pub server_port: u16,
    /// Parsers' settings.
    pub settings: &'a Settings,
    /// Test aid: by way, the offset at which the parser fails.
    pub failing_offset: [Option<u64>; 2],
}
