//! Rules against one packet, its stretch of stream, and the transactions of its flow.

use std::sync::Mutex;

use protocols::{View, Way};
use signatures::{
    Action, Capture, Context, FlowFacts, Found, Inspection, Kind, PacketBuffer, PacketFacts, PayloadScope, Regexes,
    RuleSet, Signature, State, Subject,
};

use crate::flow::Flow;
use crate::groups::{Groups, PacketGroup};
use crate::memory::RuleMemory;

/// Rules about transactions whose contents in the stream one flow remembers.
const MOST_PAYLOAD_MATCHES: usize = 64;

/// Rules and their groups.
pub struct Detector {
    /// The rules.
    pub rules: RuleSet,
    /// Sorted.
    pub groups: Groups,
    initial: Mutex<Option<RuleMemory>>,
}

impl Detector {
    /// Sort the rules of a set.
    pub fn new(mut rules: RuleSet) -> Detector {
        let groups = Groups::build(&rules);
        let initial = Mutex::new(Some(RuleMemory::take(&mut rules)));
        Detector { rules, groups, initial }
    }

    /// Bytes that rules and matchers hold, roughly.
    pub fn heap_bytes(&self) -> usize {
        self.rules.heap_bytes() + self.groups.heap_bytes()
    }

    /// Data sets, reputation and thresholds as the rules' files have them. They change while packets go by, so the
    /// first inspector gets them; a second one of the same rules begins with empty ones.
    pub fn initial(&self) -> RuleMemory {
        self.initial.lock().ok().and_then(|mut initial| initial.take()).unwrap_or_default()
    }
}

/// A rule that matched.
#[derive(Clone, Copy, Debug)]
pub struct Match {
    /// Index of the rule.
    pub rule: u32,
    /// In this transaction.
    pub transaction: Option<u64>,
    /// In the stream, not in the packet.
    pub is_in_stream: bool,
    /// What is to be done; a rate filter may change it.
    pub action: Action,
}

/// A stretch of a reassembled stream.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    /// Its bytes.
    pub data: &'a [u8],
}

/// Work space that is kept from packet to packet.
pub struct Scratch {
    pub(crate) found: Found,
    pub(crate) variables: Vec<u64>,
    pub(crate) buffers: [Vec<u8>; 2],
    /// What matched.
    pub matches: Vec<Match>,
    pub(crate) candidates: Vec<u32>,
    pub(crate) captures: Vec<Capture>,
    pub(crate) regexes: Regexes,
    /// What the data sets say about values that matched, by rule: name and JSON text.
    pub contexts: Vec<(u32, String, String)>,
    pub(crate) pending: Vec<(String, String)>,
    pub(crate) refused_by_state: Vec<u32>,
}

impl Scratch {
    /// Return work space for a number of rules.
    pub fn new(rules: usize) -> Scratch {
        Scratch {
            found: Found::new(rules),
            variables: Vec::new(),
            buffers: [Vec::new(), Vec::new()],
            matches: Vec::new(),
            candidates: Vec::new(),
            captures: Vec::new(),
            regexes: Regexes::default(),
            contexts: Vec::new(),
            pending: Vec::new(),
            refused_by_state: Vec::new(),
        }
    }
}

/// One packet to look at.
pub struct Job<'a> {
    /// The packet.
    pub packet: &'a PacketFacts<'a>,
    /// Its flow.
    pub flow: Option<FlowFacts>,
    /// What its stream has new for rules.
    pub chunk: Option<Chunk<'a>>,
    /// The packet is invalid: only rules about events.
    pub is_invalid: bool,
    /// Growing buffers are looked at as they come.
    pub is_inline: bool,
    /// It has just become known which protocol the flow speaks.
    pub has_app_news: bool,
}

/// Detection of one packet.
pub struct Run<'a> {
    /// The rules.
    pub detector: &'a Detector,
    /// Work space.
    pub scratch: &'a mut Scratch,
    /// What rules remember.
    pub memory: &'a mut RuleMemory,
    /// The packet.
    pub job: &'a Job<'a>,
}

impl Run<'_> {
    /// Find what matches; `scratch.matches` holds it, in the order of the rules.
    pub fn all(&mut self, mut flow: Option<&mut Flow>) {
        self.scratch.matches.clear();
        self.scratch.contexts.clear();
        self.packet_rules(flow.as_deref_mut());
        if let Some(flow) = flow
            && !self.job.is_invalid
        {
            self.transaction_rules(flow);
        }
    }

    fn packet_rules(&mut self, mut flow: Option<&mut Flow>) {
        let detector = self.detector;
        let found = &mut self.scratch.found;
        found.clear();
        for rule in &detector.groups.decode {
            found.add(*rule);
        }
        if !self.job.is_invalid {
            self.collect(flow.as_deref_mut());
        }
        let mut candidates = std::mem::take(&mut self.scratch.candidates);
        candidates.clear();
        candidates.extend_from_slice(&self.scratch.found.rules);
        candidates.sort_unstable();
        for index in &candidates {
            let Some(rule) = detector.rules.signatures.get(*index as usize) else { continue };
            self.try_packet_rule(*index, rule, flow.as_deref_mut());
        }
        self.scratch.candidates = candidates;
    }

    fn collect(&mut self, flow: Option<&mut Flow>) {
        let packet = self.job.packet;
        let groups = &self.detector.groups;
        let found = &mut self.scratch.found;
        let way = self.job.flow.map(|flow| flow.way);
        let is_first = match flow {
            Some(flow) => !std::mem::replace(&mut flow.ip_only_done[way.unwrap_or(Way::ToServer) as usize], true),
            None => true,
        };
        if is_first {
            for rule in &groups.ip_only {
                found.add(*rule);
            }
        }
        if packet.network.is_empty() && packet.link.is_empty() {
            return;
        }
        for one in Way::BOTH {
            if way.is_none_or(|way| way == one)
                && let Some(group) = groups.packet(packet.protocol, one)
            {
                collect_packet(group, packet, self.job.chunk, found);
            }
        }
    }

    fn try_packet_rule(&mut self, index: u32, rule: &Signature, flow: Option<&mut Flow>) {
        if !self.passes_gate(rule) {
            return;
        }
        self.scratch.variables.clear();
        self.scratch.captures.clear();
        self.scratch.pending.clear();
        let Some(is_in_stream) = self.payload_matches(rule) else { return };
        if rule.kind == Kind::Transaction {
            if let Some(flow) = flow
                && flow.payload_matches.len() < MOST_PAYLOAD_MATCHES
                && !flow.payload_matches.contains(&index)
            {
                flow.payload_matches.push(index);
            }
            return;
        }
        for (buffer, inspection) in &rule.packet_buffers {
            let Some(data) = packet_buffer(self.job.packet, *buffer) else { return };
            if !self.inspect(inspection, View::whole(data)) {
                return;
            }
        }
        if rule.is_detection_only && !self.job.has_app_news {
            return;
        }
        self.matched(index, rule, flow, None, is_in_stream);
    }

    /// Header, `flow`, packet keywords: what needs no bytes of the payload.
    pub(crate) fn passes_gate(&self, rule: &Signature) -> bool {
        let (packet, flow) = (self.job.packet, self.job.flow.as_ref());
        let gate = &rule.flow;
        let flow_fits = match flow {
            None => !gate.needs_flow && gate.way.is_none() && gate.established != Some(true),
            Some(flow) => {
                gate.way.is_none_or(|way| way == flow.way)
                    && gate.established.is_none_or(|wanted| wanted == flow.is_established)
            }
        };
        flow_fits
            && gate.fragment.is_none_or(|wanted| wanted == (packet.is_reassembled || packet.is_fragment))
            && rule.header.matches(packet, flow)
            && rule.packet_tests.iter().all(|test| test.matches(packet, flow))
    }

    /// Return whether the contents without a buffer match, and where: `Some(true)` is in the stream.
    pub(crate) fn payload_matches(&mut self, rule: &Signature) -> Option<bool> {
        let Some(inspection) = &rule.payload else { return Some(false) };
        let packet = self.job.packet;
        let is_tcp = packet.protocol == crate::layers::ip::TCP;
        let scope = if is_tcp { rule.payload_scope } else { PayloadScope::Packet };
        if scope != PayloadScope::Packet
            && let Some(chunk) = self.job.chunk
            && self.inspect(inspection, View::whole(chunk.data))
        {
            return Some(true);
        }
        let looks_at_packet = match scope {
            PayloadScope::Packet => !packet.is_pseudo,
            PayloadScope::StreamOnly => false,
            PayloadScope::Stream => !packet.is_in_stream && !packet.is_pseudo,
            PayloadScope::StreamOrPacket => !packet.is_pseudo,
        };
        (looks_at_packet && self.inspect(inspection, View::whole(packet.payload))).then_some(false)
    }

    pub(crate) fn inspect(&mut self, inspection: &Inspection, view: View<'_>) -> bool {
        let mut steps = Context::STEPS;
        let subject = Subject { data: view.data, start: view.start, is_complete: view.is_complete };
        let mut context = Context {
            variables: &mut self.scratch.variables,
            steps: &mut steps,
            captures: &mut self.scratch.captures,
            regexes: &mut self.scratch.regexes,
            is_dce_little: false,
        };
        inspection.matches(subject, &mut context)
    }

    /// Everything that needs bytes has matched: state decides, then changes.
    pub(crate) fn matched(
        &mut self,
        index: u32,
        rule: &Signature,
        flow: Option<&mut Flow>,
        transaction: Option<u64>,
        is_in_stream: bool,
    ) -> bool {
        let packet = self.job.packet;
        let mut flow = flow;
        let mut state = State {
            flow: flow.as_deref_mut().map(|flow| &mut flow.state),
            hosts: &mut self.memory.hosts,
            datasets: &mut self.memory.datasets,
            reputation: &self.memory.reputation,
        };
        if !rule.flow_tests.iter().all(|test| test.matches(packet, &mut state)) {
            return false;
        }
        for effect in &rule.effects {
            effect.apply(packet, &mut state);
        }
        for test in &rule.flow_tests {
            if let signatures::FlowTest::Dataset(buffer, test) = test {
                let is_source = *buffer == PacketBuffer::SourceAddress;
                let address = if is_source { packet.source } else { packet.destination };
                let context = test.address_context(&self.memory.datasets, address);
                self.scratch.pending.extend(context.map(|(name, json)| (name.to_owned(), json.to_owned())));
            }
        }
        for (name, json) in self.scratch.pending.drain(..) {
            self.scratch.contexts.push((index, name, json));
        }
        if let Some(flow) = flow {
            for capture in self.scratch.captures.drain(..) {
                flow.keep_capture(capture, &self.detector.rules);
            }
        }
        self.scratch.captures.clear();
        self.scratch.matches.push(Match { rule: index, transaction, is_in_stream, action: rule.action });
        true
    }
}

fn collect_packet(group: &PacketGroup, packet: &PacketFacts<'_>, chunk: Option<Chunk<'_>>, found: &mut Found) {
    if let Some(chunk) = chunk {
        if let Some(prefilter) = &group.stream {
            prefilter.scan(chunk.data, found);
        }
        group.always_stream.each(packet.source_port, packet.destination_port, |rule| found.add(rule));
    }
    if !packet.payload.is_empty() && !packet.is_pseudo {
        if let Some(prefilter) = &group.packet {
            prefilter.scan(packet.payload, found);
        }
        if !packet.is_in_stream
            && let Some(prefilter) = &group.outside_stream
        {
            prefilter.scan(packet.payload, found);
        }
    }
    if packet.is_pseudo {
        return;
    }
    group.always.each(packet.source_port, packet.destination_port, |rule| found.add(rule));
}

fn packet_buffer<'a>(packet: &PacketFacts<'a>, buffer: PacketBuffer) -> Option<&'a [u8]> {
    let header = |wanted: bool| wanted.then(|| packet.network.get(..packet.network_header_bytes)).flatten();
    let transport = |protocol: u8, bytes: usize| {
        (packet.protocol == protocol).then(|| packet.transport.get(..bytes.min(packet.transport.len()))).flatten()
    };
    let before_payload = packet.transport.len().saturating_sub(packet.payload.len());
    match buffer {
        PacketBuffer::Ipv4Header => header(packet.is_v4()),
        PacketBuffer::Ipv6Header => header(packet.is_v6()),
        PacketBuffer::TcpHeader => transport(crate::layers::ip::TCP, before_payload),
        PacketBuffer::UdpHeader => transport(crate::layers::ip::UDP, 8),
        PacketBuffer::Icmpv4Header => transport(crate::layers::ip::ICMP, before_payload),
        PacketBuffer::Icmpv6Header => transport(crate::layers::ip::ICMPV6, before_payload),
        PacketBuffer::SourceAddress => address(packet, 12, 8),
        PacketBuffer::DestinationAddress => address(packet, 16, 24),
    }
}

fn address<'a>(packet: &PacketFacts<'a>, v4: usize, v6: usize) -> Option<&'a [u8]> {
    if packet.is_v4() { packet.network.get(v4..v4 + 4) } else { packet.network.get(v6..v6 + 16) }
}
