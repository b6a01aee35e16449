//! Rules against one packet, its stretch of stream, and the transactions of its flow.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;

use protocols::{COMPLETE, View, Way};
use signatures::{
    Action, Capture, Context, FlowFacts, Found, Inspection, Kind, PacketBuffer, PacketFacts, PayloadScope, Regexes,
    RuleSet, Signature, State, Subject, TransactionTest,
};

use crate::app::{App, Looked, Tracked};
use crate::flow::Flow;
use crate::groups::{BufferGroup, Groups, PacketGroup, test_place, test_way};
use crate::memory::RuleMemory;

/// Buffers of one kind in one transaction that are looked at.
const MOST_BUFFERS: usize = 1024;
/// Rules about transactions whose contents in the stream one flow remembers.
const MOST_PAYLOAD_MATCHES: usize = 64;
/// Chains of flowbits inside one transaction that are followed; public rule sets have two links.
const MOST_ROUNDS: usize = 3;
/// A growing buffer is looked at when it is complete, or this long.
const LEAST_GROWN: usize = 32 << 10;

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
    found: Found,
    variables: Vec<u64>,
    buffers: [Vec<u8>; 2],
    /// What matched.
    pub matches: Vec<Match>,
    candidates: Vec<u32>,
    captures: Vec<Capture>,
    regexes: Regexes,
    /// What the data sets say about values that matched, by rule: name and JSON text.
    pub contexts: Vec<(u32, String, String)>,
    pending: Vec<(String, String)>,
    refused_by_state: Vec<u32>,
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

/// What one test says about a transaction so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Match,
    No,
    Wait,
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
    fn passes_gate(&self, rule: &Signature) -> bool {
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
    fn payload_matches(&mut self, rule: &Signature) -> Option<bool> {
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

    fn inspect(&mut self, inspection: &Inspection, view: View<'_>) -> bool {
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
    fn matched(
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

    fn transaction_rules(&mut self, flow: &mut Flow) {
        let Some(way) = self.job.flow.map(|flow| flow.way) else { return };
        let Some(protocol) = flow.app.protocol else { return };
        if self
            .detector
            .groups
            .transaction(protocol, way)
            .is_none_or(|group| group.buffers.is_empty() && group.always.is_empty())
        {
            return;
        }
        let mut app = std::mem::take(&mut flow.app);
        let (first, end) = app.range();
        for id in first..end {
            self.one_transaction(&mut app, protocol, way, id, flow);
        }
        flow.app = app;
    }

    fn one_transaction(&mut self, app: &mut App, protocol: u8, way: Way, id: u64, flow: &mut Flow) {
        let Some((transaction, tracked)) = app.both(id) else { return };
        let progress = Way::BOTH.map(|way| transaction.progress(way));
        let Tracked { looked, .. } = tracked;
        let looked = &mut looked[way as usize];
        if looked.is_over || progress[way as usize] == 0 {
            return;
        }
        let Some(group) = self.detector.groups.transaction(protocol, way) else { return };
        let grown = grown(transaction, group.buffers.as_slice());
        if looked.has_begun && looked.progress == progress && looked.grown == grown {
            return;
        }
        self.scratch.found.clear();
        for buffer in &group.buffers {
            self.scan_buffer(transaction, buffer, looked, progress, grown);
        }
        let mut candidates = std::mem::take(&mut looked.waiting);
        while let Some((needed, rule)) = group.always.get(looked.always as usize)
            && *needed <= progress[way as usize]
        {
            candidates.push(*rule);
            looked.always += 1;
        }
        candidates.extend_from_slice(&self.scratch.found.rules);
        candidates.sort_unstable();
        candidates.dedup();
        self.scratch.refused_by_state.clear();
        for index in candidates {
            self.try_transaction_rule(index, transaction, looked, (protocol, way, id), progress, flow);
        }
        // a match may have set what an earlier rule of the same transaction waits for
        for _ in 0..MOST_ROUNDS {
            let before = self.scratch.matches.len();
            for index in std::mem::take(&mut self.scratch.refused_by_state) {
                self.try_transaction_rule(index, transaction, looked, (protocol, way, id), progress, flow);
            }
            if self.scratch.matches.len() == before || self.scratch.refused_by_state.is_empty() {
                break;
            }
        }
        (looked.progress, looked.grown, looked.has_begun) = (progress, grown, true);
        looked.is_over = progress[way as usize] == COMPLETE && (looked.waiting.is_empty() || progress == [COMPLETE; 2]);
    }

    fn scan_buffer(
        &mut self,
        transaction: &dyn protocols::Transaction,
        group: &BufferGroup,
        looked: &Looked,
        progress: [u8; 2],
        grown: u64,
    ) {
        let side = group.way as usize;
        let is_new = !looked.has_begun || looked.progress[side] < group.progress;
        let has_changed = is_new || (group.is_multiple && looked.progress[side] != progress[side]);
        if progress[side] < group.progress
            || !(has_changed || group.is_growing && (looked.grown != grown || looked.progress != progress))
        {
            return;
        }
        for nth in 0..if group.is_multiple { MOST_BUFFERS } else { 1 } {
            let Some(view) = transaction.buffer(usize::from(group.buffer), group.way, nth) else { return };
            if !is_due(&view, group.is_growing, self.job.is_inline) {
                continue;
            }
            let data = transformed(&group.transforms, view.data, &mut self.scratch.buffers);
            group.prefilter.scan(data, &mut self.scratch.found);
        }
    }

    fn try_transaction_rule(
        &mut self,
        index: u32,
        transaction: &dyn protocols::Transaction,
        looked: &mut Looked,
        (protocol, way, id): (u8, Way, u64),
        progress: [u8; 2],
        flow: &mut Flow,
    ) {
        let Some(rule) = self.detector.rules.signatures.get(index as usize) else { return };
        if looked.matched.contains(&index) || !self.passes_gate(rule) {
            return;
        }
        let needs = self.detector.groups.needs.get(index as usize).copied().unwrap_or_default();
        let mut verdict = Verdict::Match;
        if progress[0] < needs[0] || progress[1] < needs[1] {
            verdict = Verdict::Wait;
        }
        self.scratch.variables.clear();
        self.scratch.captures.clear();
        self.scratch.pending.clear();
        for test in &rule.transaction_tests {
            match self.transaction_test(test, transaction, usize::from(protocol), way, progress) {
                Verdict::Match => {}
                Verdict::No => return,
                Verdict::Wait => verdict = Verdict::Wait,
            }
        }
        if verdict == Verdict::Wait {
            return looked.wait_for(index);
        }
        let is_in_stream = match (flow.payload_matches.contains(&index), self.payload_matches(rule)) {
            (_, Some(is_in_stream)) => is_in_stream,
            (true, None) => true,
            (false, None) => {
                looked.wait_for(index); // the stream around the transaction may come later
                return;
            }
        };
        if self.matched(index, rule, Some(flow), Some(id), is_in_stream) {
            looked.matched.push(index);
        } else {
            self.scratch.refused_by_state.push(index);
        }
    }

    fn transaction_test(
        &mut self,
        test: &TransactionTest,
        transaction: &dyn protocols::Transaction,
        protocol: usize,
        way: Way,
        progress: [u8; 2],
    ) -> Verdict {
        let Some(place) = test_place(test, protocol) else { return Verdict::No };
        let way = test_way(test, &place, way);
        if progress[way as usize] < place.progress {
            return Verdict::Wait;
        }
        let decided = |is_so: bool| if is_so { Verdict::Match } else { Verdict::No };
        match test {
            TransactionTest::Buffer(test) => {
                let index = usize::from(place.index);
                let most = if place.is_multiple { MOST_BUFFERS } else { 1 };
                let mut verdict = Verdict::No;
                for nth in 0..most {
                    let Some(view) = transaction.buffer(index, way, nth) else {
                        if nth == 0 && progress[way as usize] != COMPLETE && place.is_growing {
                            return Verdict::Wait;
                        }
                        if nth == 0 {
                            return decided(test.inspection.matches_absence());
                        }
                        break;
                    };
                    if !is_due(&view, place.is_growing, self.job.is_inline) {
                        verdict = Verdict::Wait;
                        continue;
                    }
                    if self.buffer_matches(test, view) {
                        return Verdict::Match;
                    }
                    if !view.is_complete {
                        verdict = Verdict::Wait;
                    }
                }
                if place.is_multiple && progress[way as usize] != COMPLETE && verdict == Verdict::No {
                    verdict = Verdict::Wait; // another may come
                }
                verdict
            }
            TransactionTest::Number(test) => {
                let index = usize::from(place.index);
                let most = if place.is_multiple { MOST_BUFFERS } else { 1 };
                let numbers = (0..most).map_while(|nth| transaction.number(index, way, nth));
                decided(test.choice.matches(test.range, numbers))
            }
            TransactionTest::Custom(test) => {
                let found = test.places.iter().find(|(owner, _, _)| usize::from(*owner) == protocol);
                let client = client_address(self.job);
                let is_so = found.is_some_and(|(_, _, custom)| custom.matches_between(transaction, way, client));
                decided(is_so != test.is_negated)
            }
            TransactionTest::Event { event, .. } => match transaction.events().contains(event) {
                true => Verdict::Match,
                false if progress[way as usize] != COMPLETE => Verdict::Wait,
                false => Verdict::No,
            },
        }
    }

    fn buffer_matches(&mut self, test: &signatures::BufferTest, view: View<'_>) -> bool {
        if test.transforms.is_empty() {
            return self.inspect(&test.inspection, view) && self.datasets_match(test, view.data);
        }
        let mut buffers = std::mem::take(&mut self.scratch.buffers);
        let data = transformed(&test.transforms, view.data, &mut buffers);
        let is_so = self.inspect(&test.inspection, View { data, ..view }) && self.datasets_match(test, data);
        self.scratch.buffers = buffers;
        is_so
    }

    fn datasets_match(&mut self, test: &signatures::BufferTest, data: &[u8]) -> bool {
        for dataset in &test.datasets {
            if !dataset.matches(&mut self.memory.datasets, data) {
                return false;
            }
            let context = dataset.context(&self.memory.datasets, data);
            self.scratch.pending.extend(context.map(|(name, json)| (name.to_owned(), json.to_owned())));
        }
        true
    }
}

fn client_address(job: &Job<'_>) -> IpAddr {
    let packet = job.packet;
    let is_answer = job.flow.is_some_and(|flow| flow.way == Way::ToClient);
    let address = if is_answer { packet.destination } else { packet.source };
    IpAddr::V6(Ipv6Addr::from_bits(address)).to_canonical()
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

/// How many bytes of growing buffers there are in all.
fn grown(transaction: &dyn protocols::Transaction, groups: &[BufferGroup]) -> u64 {
    let mut total = 0;
    for group in groups.iter().filter(|group| group.is_growing) {
        let mut nth = 0;
        while let Some(view) = transaction.buffer(usize::from(group.buffer), group.way, nth) {
            total += view.start + view.data.len() as u64 + u64::from(view.is_complete);
            nth += 1;
            if !group.is_multiple || nth >= MOST_BUFFERS {
                break;
            }
        }
    }
    total
}

fn is_due(view: &View<'_>, is_growing: bool, is_inline: bool) -> bool {
    !is_growing || view.is_complete || is_inline || view.data.len() >= LEAST_GROWN
}

/// Apply transforms one after another, between two buffers.
fn transformed<'b>(transforms: &[signatures::Transform], data: &'b [u8], buffers: &'b mut [Vec<u8>; 2]) -> &'b [u8] {
    let Some((first, rest)) = transforms.split_first() else { return data };
    let [one, other] = buffers;
    first.apply(data, one);
    for transform in rest {
        transform.apply(one, other);
        std::mem::swap(one, other);
    }
    one
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
