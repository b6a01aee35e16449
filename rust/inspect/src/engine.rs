//! The inspector: each frame goes through decoding, defragmentation, its flow, its stream, its application's parser and
//! the rules; what is found becomes lines.
//!
//! Order of one packet, which is Suricata's: what a tunnel carries first; then flow, stream, parser, rules, verdict,
//! alerts, records of transactions.

use std::sync::Arc;

use protocols::{Settings, Transport, Way};
use sensor::{CaptureCounters, Frame, Link, SipKey};
use signatures::{FlowFacts, PacketFacts};

use crate::budget::Budget;
use crate::chunks::raw_limit;
use crate::config::InspectConfig;
use crate::counters::Counters;
use crate::defrag::Defrag;
use crate::detect::{Chunk, Detector, Job, Run, Scratch};
use crate::detectors::Detectors;
use crate::eve::{Origin, Scene};
use crate::expected::Announcements;
use crate::fate::{Checksums, Verdict};
use crate::feeding::{MOST_FEEDS, hint};
use crate::filter::Filter;
use crate::flow::{Ending, Flow, FlowAction, FlowTable, Stage};
use crate::layers::{self, Layers, Step, ip};
use crate::memory::RuleMemory;
use crate::output::Lines;
use crate::tcp::{Session, State, flag};

/// Tunnels in tunnels; deeper ones are an attack on decoders.
const MAX_DEPTH: u8 = 4;
/// Time alone is looked at this often.
const TICK_US: u64 = 250_000;
/// Flows that end in one tick; the rest waits for the next.
const MOST_ENDED: usize = 512;

/// Deep inspection of packets. See the crate's documentation for what is promised.
pub struct Inspector {
    pub(crate) config: InspectConfig,
    pub(crate) settings: Settings,
    pub(crate) detector: Option<Arc<Detector>>,
    pub(crate) detectors: Option<Box<Detectors>>,
    pub(crate) counters: Counters,
    pub(crate) lines: Lines,
    pub(crate) memory: RuleMemory,
    pub(crate) scratch: Scratch,
    budget: Budget,
    flows: FlowTable,
    defrag: Defrag,
    pub(crate) announcements: Announcements,
    filter: Option<Filter>,
    pub(crate) fate: Verdict,
    pub(crate) checksums: Checksums,
    pub(crate) is_file: bool,
    pub(crate) checked: u64,
    pub(crate) wrong: u64,
    held: usize,
    pub(crate) number: u64,
    pub(crate) now_us: u64,
    first_us: u64,
    next_tick_us: u64,
}

/// Where a packet stands among others: what is the same for all that it goes through.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub link: Link,
    pub origin: Origin,
    pub outer: Option<&'a Layers<'a>>,
    pub parent: Option<u64>,
    pub depth: u8,
}

impl Inspector {
    /// Return an inspector that holds at most `memory_bytes` besides the rules.
    pub fn new(settings: Settings, detector: Option<Arc<Detector>>, memory_bytes: usize, key: SipKey) -> Inspector {
        let config = InspectConfig::from_settings(&settings);
        let budget = Budget::divide(memory_bytes);
        let rules = detector.as_ref().map_or(0, |detector| detector.rules.signatures.len());
        Inspector {
            lines: Lines::new(budget.output_bytes, config.output.clone()),
            memory: detector.as_ref().map(|detector| detector.initial()).unwrap_or_default(),
            scratch: Scratch::new(rules),
            detectors: Detectors::of_inspector(memory_bytes, key, &settings),
            flows: FlowTable::new(budget.flows, key, config.uses_vlan),
            defrag: Defrag::new(budget.defrag_bytes, config.stream.overlap),
            announcements: Announcements::default(),
            filter: None,
            fate: Verdict::default(),
            checksums: Checksums::default(),
            is_file: false,
            checked: 0,
            wrong: 0,
            counters: Counters::default(),
            budget,
            held: 0,
            number: 0,
            now_us: 0,
            first_us: 0,
            next_tick_us: 0,
            settings,
            detector,
            config,
        }
    }

    /// Frames come from a capture file, whose checksums may mean nothing; of a wire they always do.
    pub fn set_file(&mut self) {
        self.is_file = true;
    }

    /// Look only at what passes a filter.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = Some(filter);
    }

    /// Look at one frame. Never panics, whatever it holds.
    pub fn packet(&mut self, frame: &Frame<'_>) {
        self.packet_verdict(frame, Checksums::Unknown);
    }

    /// Look at one frame, whose source says this of its checksums, and return what is to become of it.
    ///
    /// That is [`Verdict::Accept`] unless the setting `simulate-ips` is on. What is dropped inside a tunnel drops the frame.
    pub fn packet_verdict(&mut self, frame: &Frame<'_>, checksums: Checksums) -> Verdict {
        (self.fate, self.checksums) = (Verdict::Accept, checksums);
        self.number += 1;
        self.now_us = frame.time_us.max(if self.number == 1 { 0 } else { self.now_us.min(frame.time_us) });
        if self.first_us == 0 {
            self.first_us = frame.time_us;
        }
        if self.now_us >= self.next_tick_us || self.next_tick_us > self.now_us.saturating_add(60_000_000) {
            self.tick(self.now_us);
        }
        self.counters.packets += 1;
        self.counters.bytes += u64::from(frame.wire_bytes);
        let layers = layers::decode(frame.data, frame.link);
        let place = Place { link: frame.link, origin: Origin::Wire, outer: None, parent: None, depth: 0 };
        if self.filter.as_ref().is_some_and(|filter| !filter.matches(&layers)) {
            self.counters.filtered += 1;
            return Verdict::Accept;
        }
        self.process(&layers, &place);
        self.fate
    }

    /// Let time pass: flows end that were silent for too long.
    pub fn tick(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
        self.next_tick_us = now_us.saturating_add(TICK_US);
        self.watch_time(false);
        for _ in 0..MOST_ENDED {
            let Some(slot) = self.flows.expired(now_us) else { return };
            self.end_flow(slot, Ending::TimedOut);
        }
    }

    /// End flows because nothing more will come, until output is crowded; return whether any are left.
    pub fn finish(&mut self) -> bool {
        while let Some(slot) = self.flows.any() {
            self.end_flow(slot, Ending::Shutdown);
            if self.lines.is_crowded() {
                return true;
            }
        }
        self.watch_time(true);
        false
    }

    /// Take the next line; `None` if there is none.
    pub fn next_line(&mut self) -> Option<String> {
        self.lines.take()
    }

    /// Return whether lines should be read before more is looked at, lest they be refused.
    pub fn is_crowded(&self) -> bool {
        self.lines.is_crowded()
    }

    /// How many flows there are, and bytes of streams, parsers and fragments.
    pub fn live(&self) -> (usize, usize, usize) {
        (self.flows.live(), self.held, self.defrag.live())
    }

    /// How many packets that were being put together were given up for others.
    pub(crate) fn fragments_evicted(&self) -> u64 {
        self.defrag.evicted
    }

    /// Return the statistics as one EVE line.
    pub fn stats_line(&self, capture: &CaptureCounters) -> String {
        crate::stats::line(self, self.now_us.saturating_sub(self.first_us) / 1_000_000, &self.budget, capture)
    }

    /// Return how many bytes the capture may use.
    pub fn ring_bytes(&self) -> usize {
        self.budget.ring_bytes
    }

    /// Return data sets that rules say are to be kept: name of the file and its bytes.
    pub fn kept_files(&self) -> Vec<(String, Vec<u8>)> {
        self.memory.kept_files()
    }

    fn process(&mut self, layers: &Layers<'_>, place: &Place<'_>) {
        for step in layers.steps() {
            if let Some(counter) = self.counters.steps.get_mut(*step as usize) {
                *counter += 1;
            }
        }
        if layers.is_invalid {
            self.counters.invalid += 1;
        }
        for event in layers.events() {
            *self.counters.events.entry(event).or_default() += 1;
        }
        if let Some(tunnel) = layers.tunnel.filter(|_| place.depth < MAX_DEPTH && !layers.is_invalid) {
            let inner = layers::decode_inner(&tunnel);
            if !(tunnel.is_guess && inner.is_invalid) {
                let origin = tunnel_origin(layers);
                let inside = Place { origin, outer: Some(layers), depth: place.depth + 1, ..*place };
                self.process(&inner, &inside);
            }
        }
        if layers.fragment.is_some() {
            return self.fragment(layers, place);
        }
        let has_flow =
            matches!(layers.protocol, ip::TCP | ip::UDP | ip::SCTP | ip::ICMP | ip::ICMPV6 | ip::ESP | 4 | 41)
                && layers.version != 0
                && !layers.is_invalid
                && !layers.is_transport_invalid;
        if has_flow {
            self.with_flow(layers, place);
        } else {
            self.without_flow(layers, place, layers.events());
        }
    }

    fn fragment(&mut self, layers: &Layers<'_>, place: &Place<'_>) {
        let is_refused = self.config.failing_defrag_packet == self.number;
        let name = if layers.version == 4 { "ipv4.fragments" } else { "ipv6.fragments" };
        *self.counters.defrag.entry(name).or_default() += 1;
        if is_refused {
            self.counters.policy("defrag_memcap", self.config.defrag_memcap_policy);
            return;
        }
        let told = self.defrag.add(layers, self.now_us);
        let mut events: Vec<&'static str> = layers.events().to_vec();
        events.extend(told.event);
        if let Some(event) = told.event {
            *self.counters.events.entry(event).or_default() += 1;
        }
        self.without_flow(layers, place, &events);
        if let Some(frame) = told.frame {
            let name = if layers.version == 4 { "ipv4.reassembled" } else { "ipv6.reassembled" };
            *self.counters.defrag.entry(name).or_default() += 1;
            let whole = if place.depth == 0 { layers::decode(&frame, place.link) } else { layers::decode_ip(&frame) };
            if whole.fragment.is_none() {
                let origin = if place.depth == 0 { Origin::Defrag } else { place.origin };
                self.process(&whole, &Place { origin, ..*place });
            }
        }
    }

    /// A packet without a flow: only rules.
    pub(crate) fn without_flow(&mut self, layers: &Layers<'_>, place: &Place<'_>, events: &[&'static str]) {
        self.watch_packet(layers, None);
        let facts = packet_facts(layers, self.now_us, self.number, events);
        let job = Job {
            packet: &facts,
            flow: None,
            chunk: None,
            is_invalid: layers.is_invalid,
            is_inline: self.config.stream.is_inline,
            has_app_news: false,
        };
        self.detect(&job, None);
        let scene = self.scene(layers, place, Way::ToServer);
        self.log_anomalies(&scene, None, events);
        self.verdict(&scene, None, None);
    }

    fn with_flow(&mut self, layers: &Layers<'_>, place: &Place<'_>) {
        let key = self.flows.flow_key(layers, place.depth);
        let mut slot = self.flows.find(&key);
        if let Some(old) = slot
            && self.flows.get(old).is_some_and(|flow| begins_anew(flow, layers))
        {
            self.end_flow(old, Ending::Reused);
            slot = None;
        }
        if slot.is_none() {
            slot = self.new_flow(key, layers, place);
        }
        let Some(slot) = slot else { return self.refused_flow(layers, place) };
        let Some(mut flow) = self.flows.take(slot) else { return };
        self.in_flow(layers, place, &mut flow);
        self.account(&mut flow);
        self.flows.put(slot, flow);
        self.relieve();
    }

    fn new_flow(&mut self, key: crate::flow::FlowKey, layers: &Layers<'_>, place: &Place<'_>) -> Option<u32> {
        if crate::icmp::quoted(layers).is_some() || self.config.failing_flow_packet == self.number {
            return None;
        }
        if self.flows.is_full() {
            let victim = self.flows.victim()?;
            self.end_flow(victim, Ending::Forced);
        }
        let name = match (layers.protocol, layers.version) {
            (ip::TCP, _) => "tcp",
            (ip::UDP, _) => "udp",
            (ip::ICMP, _) => "icmpv4",
            (ip::ICMPV6, _) => "icmpv6",
            _ => "other",
        };
        *self.counters.flows.entry(name).or_default() += 1;
        let flow = Flow {
            addresses: [layers.source, layers.destination],
            ports: [layers.source_port, layers.destination_port],
            protocol: layers.protocol,
            version: layers.version,
            vlan: layers.vlan,
            vlan_count: layers.vlan_count,
            first_us: self.now_us,
            last_us: self.now_us,
            parent: place.parent,
            icmp: [layers.icmp, [0, 0]],
            ..Flow::default()
        };
        let mut flow = Box::new(flow);
        if let Some((protocol, parser)) = self.announcements.take(&flow, self.now_us) {
            flow.app.expect(protocol, parser);
            Counters::add(&mut self.counters.app_flows, protocol, 1);
        }
        Some(self.flows.insert(key, flow))
    }

    fn in_flow(&mut self, layers: &Layers<'_>, place: &Place<'_>, flow: &mut Flow) {
        let way = match crate::icmp::quoted(layers) {
            Some((quoted, _, _)) if quoted == (flow.addresses[0], flow.ports[0]) => Way::ToClient,
            Some(_) => Way::ToServer,
            None => flow.way(layers),
        };
        flow.last_us = flow.last_us.max(self.now_us);
        flow.packets[way as usize] += 1;
        let is_first = flow.packets[way as usize] == 1;
        flow.bytes[way as usize] += layers.frame.len() as u64;
        flow.icmp[way as usize] = layers.icmp;
        if flow.protocol != ip::TCP && flow.is_answered() && flow.stage == Stage::New {
            flow.stage = Stage::Established;
        }
        if flow.stage == Stage::Bypassed {
            return;
        }
        if flow.action == Some(FlowAction::Drop) && !self.config.is_ips {
            return;
        }
        if flow.action == Some(FlowAction::Drop) {
            let reason = if flow.is_dropped_by_policy { "exception policy flow drop" } else { "flow drop" };
            let scene = self.scene(layers, place, way);
            return self.drop_packet(&scene, reason, Some(flow));
        }
        let mut step = FlowStep { way, is_first, events: layers.events().to_vec(), ..FlowStep::default() };
        match layers.protocol {
            ip::TCP => {
                if let Some(reason) = self.tcp(layers, flow, &mut step) {
                    let scene = self.scene(layers, place, step.way);
                    self.drop_packet(&scene, reason, Some(flow));
                    return self.after_packet(flow, false, step.way);
                }
            }
            ip::UDP if !layers.payload.is_empty() && crate::icmp::quoted(layers).is_none() => {
                self.feed_datagram(layers, flow, &mut step);
            }
            _ => {}
        }
        self.watch_packet(layers, Some((flow, step.way)));
        if step.is_broken && self.app_error(layers, place, flow, &step) {
            return self.after_packet(flow, false, step.way);
        }
        match step.received.take() {
            Some(frame) => {
                let link = if place.depth == 0 { place.link } else { Link::RawIp };
                self.look(&layers::decode(&frame, link), place, flow, &step);
            }
            None => self.look(layers, place, flow, &step),
        }
        self.after_packet(flow, false, step.way);
    }

    /// Rules, verdict, alerts.
    fn look(&mut self, layers: &Layers<'_>, place: &Place<'_>, flow: &mut Flow, step: &FlowStep) {
        if !step.events.is_empty() {
            let scene = self.scene(layers, place, step.way);
            self.log_anomalies(&scene, Some(flow), &step.events);
        }
        if flow.action == Some(FlowAction::Pass) || self.detector.is_none() {
            self.counters.accepted += u64::from(self.config.is_ips);
            return;
        }
        let mut facts = packet_facts(layers, self.now_us, self.number, &step.events);
        facts.is_in_stream = step.is_in_stream;
        facts.is_pseudo = place.origin == Origin::FlowEnd;
        facts.is_reassembled = place.origin == Origin::Defrag;
        self.pass_gap(flow, step.way, facts.is_pseudo);
        let chunk = self.chunk(flow, step, facts.is_pseudo);
        if let Some(chunk) = &chunk {
            self.remember(flow, step.way, chunk);
        }
        let flow_facts = self.flow_facts(flow, step);
        let job = Job {
            packet: &facts,
            flow: Some(flow_facts),
            chunk: chunk.as_deref().map(|data| Chunk { data }),
            is_invalid: false,
            is_inline: self.config.stream.is_inline,
            has_app_news: std::mem::take(&mut flow.app_news[step.way as usize]),
        };
        self.detect(&job, Some(flow));
        let scene = self.scene(layers, place, step.way);
        self.verdict(&scene, Some(flow), chunk.as_deref());
        if chunk.is_some()
            && let Some(tcp) = &mut flow.tcp
        {
            let keep = if self.config.stream.is_inline { self.config.stream.chunk[step.way as usize] } else { 0 };
            let stream = &mut tcp.side(step.way).stream;
            let limit = raw_limit(stream, self.config.stream.is_inline, facts.is_pseudo);
            stream.raw = stream.raw.max(limit.saturating_sub(keep));
            stream.raw_seen = stream.raw_seen.max(limit);
            stream.is_triggered = false;
        }
    }

    pub(crate) fn detect(&mut self, job: &Job<'_>, flow: Option<&mut Flow>) {
        self.scratch.matches.clear();
        let Some(detector) = self.detector.clone() else { return };
        let mut run = Run { detector: &detector, scratch: &mut self.scratch, memory: &mut self.memory, job };
        run.all(flow);
    }

    fn flow_facts(&self, flow: &Flow, step: &FlowStep) -> FlowFacts {
        let stream_bytes = |side: usize| flow.tcp.as_ref().map_or(0, |tcp| tcp.sides[side].stream.end);
        FlowFacts {
            way: step.way,
            is_established: step.is_established || (flow.protocol != ip::TCP && flow.is_answered()),
            age_us: self.now_us.saturating_sub(flow.first_us),
            packets: flow.packets,
            bytes: flow.bytes,
            stream_bytes: [stream_bytes(0), stream_bytes(1)],
            app: flow.app.protocol,
            apps: app_views(flow),
            has_app_failed: flow.app.is_unknown_for_good() || flow.app.has_failed[step.way as usize],
            is_first_packet: step.is_first,
        }
    }

    pub(crate) fn scene<'a>(&self, layers: &'a Layers<'a>, place: &Place<'a>, way: Way) -> Scene<'a> {
        Scene {
            time_us: self.now_us,
            number: if place.origin == Origin::FlowEnd { 0 } else { self.number },
            layers,
            outer: place.outer,
            origin: place.origin,
            link: place.link,
            way,
        }
    }

    /// Log what has become complete; forget what nobody needs any more.
    fn after_packet(&mut self, flow: &mut Flow, is_end: bool, way: Way) {
        self.log_transactions(flow, is_end, way);
        if let Some(tcp) = &mut flow.tcp {
            let has_rules = self.detector.is_some();
            for side in &mut tcp.sides {
                if !has_rules || flow.action.is_some() {
                    side.stream.raw = side.stream.raw.max(side.stream.app);
                }
                side.stream.release();
            }
        }
        flow.app.begin_anew();
    }

    fn end_flow(&mut self, slot: u32, ending: Ending) {
        let Some(mut flow) = self.flows.take(slot) else { return };
        if flow.stage != Stage::Bypassed && flow.action != Some(FlowAction::Drop) {
            self.flush(&mut flow);
        }
        self.held = self.held.saturating_sub(flow.accounted);
        flow.accounted = 0;
        let flow = self.flows.remove(slot, flow);
        *self.counters.flow_ends.entry(ending.name()).or_default() += 1;
        self.watch_end(&flow);
        self.log_flow(&flow, ending);
    }

    /// Look at everything that was not confirmed in time, as if it had been.
    fn flush(&mut self, flow: &mut Flow) {
        let mut step = FlowStep { is_last: true, is_established: true, ..FlowStep::default() };
        if flow.tcp.is_some() {
            for way in Way::BOTH {
                self.feed_stream(flow, way, &mut step);
            }
        }
        let hint = hint(flow.ports, Transport::Tcp, &self.settings, &self.config);
        flow.app.finish(&hint);
        for way in Way::BOTH {
            step.way = way;
            step.is_established = flow.tcp.as_ref().is_none_or(|tcp| tcp.state >= State::Established);
            let has_stream = flow.tcp.as_ref().is_some_and(|tcp| {
                let stream = &tcp.sides[way as usize].stream;
                raw_limit(stream, true, true) > stream.raw_seen
            });
            let layers = pseudo_layers(flow, way);
            let place = Place { link: Link::RawIp, origin: Origin::FlowEnd, outer: None, parent: None, depth: 0 };
            if has_stream || flow.app.count > 0 {
                self.look(&layers, &place, flow, &step);
            }
            for _ in 0..MOST_FEEDS {
                let has_more = flow.tcp.as_ref().is_some_and(|tcp| tcp.sides[way as usize].stream.has_beyond());
                if !has_more {
                    break;
                }
                self.look(&layers, &place, flow, &step); // what lies behind a gap
            }
        }
        self.after_packet(flow, true, Way::ToServer);
    }

    fn account(&mut self, flow: &mut Flow) {
        let streams = flow.tcp.as_ref().map_or(0, |tcp| tcp.heap_bytes() + size_of::<Session>());
        let now = streams + flow.app.heap_bytes() + flow.heap_bytes();
        self.held = (self.held + now).saturating_sub(flow.accounted);
        flow.accounted = now;
    }

    /// When streams and parsers hold more than their share, the flow that is needed least ends.
    fn relieve(&mut self) {
        let pressure = (self.held * 100 / self.budget.stream_bytes.max(1)) as u64;
        self.counters.most_pressure = self.counters.most_pressure.max(pressure);
        while self.held > self.budget.stream_bytes {
            let Some(victim) = self.flows.victim() else { return };
            self.counters.memory_refused += 1;
            self.end_flow(victim, Ending::Forced);
        }
    }
}

/// What one packet does to its flow.
pub(crate) struct FlowStep {
    pub way: Way,
    pub is_first: bool,
    pub is_established: bool,
    pub is_in_stream: bool,
    pub is_last: bool,
    pub is_broken: bool,
    pub broken_way: Option<Way>,
    pub events: Vec<&'static str>,
    /// Inline: the frame as the receiver gets it, where bytes that came first win over what it carries.
    pub received: Option<Vec<u8>>,
    pub is_rewritten: bool,
}

impl Default for FlowStep {
    fn default() -> FlowStep {
        FlowStep {
            way: Way::ToServer,
            is_first: false,
            is_established: false,
            is_in_stream: false,
            is_last: false,
            is_broken: false,
            broken_way: None,
            events: Vec::new(),
            received: None,
            is_rewritten: false,
        }
    }
}

fn app_views(flow: &Flow) -> [Option<u8>; 2] {
    let app = &flow.app;
    [0, 1].map(|side| if app.has_failed[side] { app.found[side] } else { app.found[side].or(app.protocol) })
}

fn begins_anew(flow: &Flow, layers: &Layers<'_>) -> bool {
    let is_syn = layers.protocol == ip::TCP && layers.tcp.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
    is_syn
        && flow.tcp.as_ref().is_some_and(|tcp| {
            tcp.state == State::Closed || tcp.state == State::TimeWait || tcp.state == State::LastAck
        })
}

fn tunnel_origin(layers: &Layers<'_>) -> Origin {
    match layers.steps().last() {
        Some(Step::Gre | Step::Erspan) => Origin::Gre,
        Some(Step::Ipv6InIpv4 | Step::Ipv6InIpv6) => Origin::Ipv6Tunnel,
        Some(Step::Teredo) => Origin::Teredo,
        Some(Step::Vxlan) => Origin::Vxlan,
        Some(Step::Geneve) => Origin::Geneve,
        _ => Origin::Ipv4Tunnel,
    }
}

fn packet_facts<'a>(layers: &'a Layers<'a>, time_us: u64, number: u64, events: &'a [&'static str]) -> PacketFacts<'a> {
    PacketFacts {
        time_us,
        link: layers.link,
        network: layers.network,
        network_header_bytes: layers.network_header_bytes,
        transport: layers.transport,
        payload: layers.payload,
        protocol: layers.protocol,
        source: layers.source,
        destination: layers.destination,
        source_port: layers.source_port,
        destination_port: layers.destination_port,
        vlan: layers.vlans(),
        events,
        is_in_stream: false,
        is_pseudo: false,
        is_reassembled: false,
        is_fragment: layers.fragment.is_some(),
        number,
    }
}

/// Layers of a packet that was never sent, for a flow that is over.
fn pseudo_layers(flow: &Flow, way: Way) -> Layers<'static> {
    let (from, to) = (way as usize, way.reverse() as usize);
    let network: &'static [u8] = if flow.version == 4 { &[0x45] } else { &[0x60] };
    let mut layers = layers::decode_ip(&[]);
    layers.is_invalid = false;
    layers.version = flow.version;
    layers.network = network;
    layers.protocol = flow.protocol;
    (layers.source, layers.source_port) = (flow.addresses[from], flow.ports[from]);
    (layers.destination, layers.destination_port) = (flow.addresses[to], flow.ports[to]);
    (layers.vlan, layers.vlan_count) = (flow.vlan, flow.vlan_count);
    layers
}
