//! From matches to alerts and to what happens to the packet and its flow.

use md5::{Digest, Md5};
use protocols::{COMPLETE, Json, PROTOCOLS, Way};
use signatures::{Action, Decision, PacketTest, RejectTarget, Signature};

use crate::detect::Match;
use crate::engine::Inspector;
use crate::eve::{self, Ends, Scene};
use crate::flow::{Flow, FlowAction};
use crate::layers::ip;

/// What alerts and drops say became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Fate {
    is_dropped: bool,
    is_passed: bool,
    reject: Option<RejectTarget>,
    reason: &'static str,
    dropped_by: Option<u32>,
}

impl Inspector {
    /// Turn `scratch.matches` into alerts, and do what the rules say.
    pub(crate) fn verdict(&mut self, scene: &Scene<'_>, mut flow: Option<&mut Flow>, chunk: Option<&[u8]>) {
        if self.scratch.matches.is_empty() {
            self.counters.accepted += u64::from(self.config.is_ips);
            return;
        }
        let Some(detector) = self.detector.clone() else { return };
        let mut matches = std::mem::take(&mut self.scratch.matches);
        let mut fate = Fate { reason: "rules", ..Fate::default() };
        let beyond = matches.split_off(matches.len().min(self.config.alerts_per_packet));
        self.counters.alert_overflow += beyond.len() as u64;
        matches.sort_by_key(|found| (found.rule, found.transaction));
        let mut alerts: Vec<Match> = Vec::new();
        for found in &matches {
            let Some(rule) = detector.rules.signatures.get(found.rule as usize) else { continue };
            let Some(action) = self.decide(rule, found, scene, flow.as_deref(), &mut fate) else { continue };
            let found = Match { action, ..*found };
            self.act(rule, &found, &mut fate, flow.as_deref_mut());
            if rule.is_silent {
                if action == Action::Pass {
                    break;
                }
                continue;
            }
            if action != Action::Pass || rule.alerts_although_passed {
                alerts.push(found);
            }
            if action == Action::Pass {
                break; // nothing that comes after it counts
            }
        }
        // there was no room for these as alerts; what they say is to be dropped is dropped all the same
        for found in beyond.iter().filter(|found| matches!(found.action, Action::Drop | Action::Reject(_))) {
            if let Some(rule) = detector.rules.signatures.get(found.rule as usize) {
                self.act(rule, found, &mut fate, flow.as_deref_mut());
            }
        }
        if let Some(flow) = flow.as_deref_mut() {
            flow.has_alert |= !alerts.is_empty();
        }
        self.finish_packet(scene, flow.as_deref_mut(), &fate, &alerts);
        for found in &alerts {
            if let Some(rule) = detector.rules.signatures.get(found.rule as usize) {
                self.counters.alerts += 1;
                let guessed = self.write_alert(rule, found, scene, flow.as_deref(), chunk, &fate);
                if let (Some(flow), Some(id)) = (flow.as_deref_mut(), guessed) {
                    flow.guessed = Some(id);
                }
            }
        }
        matches.clear();
        self.scratch.matches = matches;
    }

    /// Ask the thresholds: `None` where nothing is to happen.
    fn decide(
        &mut self,
        rule: &Signature,
        found: &Match,
        scene: &Scene<'_>,
        flow: Option<&Flow>,
        fate: &mut Fate,
    ) -> Option<Action> {
        let layers = scene.layers;
        let flow_id = flow.map(|flow| flow.id);
        let thresholds = &mut self.memory.thresholds;
        match thresholds.decide(rule, layers.source, layers.destination, flow_id, scene.time_us) {
            Decision::Alert => Some(found.action),
            Decision::ChangeAction(action) => {
                if matches!(action, Action::Drop | Action::Reject(_)) {
                    fate.reason = "threshold detection_filter";
                }
                Some(action)
            }
            Decision::Suppress => {
                self.counters.alerts_suppressed += 1;
                None
            }
            Decision::SuppressAlertKeepAction => {
                self.counters.alerts_suppressed += 1;
                if matches!(found.action, Action::Drop | Action::Reject(_)) && self.config.is_ips {
                    fate.is_dropped = true;
                }
                None
            }
        }
    }

    fn act(&mut self, rule: &Signature, found: &Match, fate: &mut Fate, flow: Option<&mut Flow>) {
        let is_about_flow = match rule.kind {
            signatures::Kind::IpOnly | signatures::Kind::Transaction => true,
            signatures::Kind::Decode => false,
            signatures::Kind::Packet => {
                let names_app = rule.packet_tests.iter().any(PacketTest::is_header_app);
                found.is_in_stream || rule.is_detection_only || names_app || is_about_ip_alone(rule)
            }
        };
        match found.action {
            Action::Alert => {}
            Action::Pass => {
                fate.is_passed = true;
                if is_about_flow
                    && !fate.is_dropped
                    && let Some(flow) = flow
                {
                    flow.action.get_or_insert(FlowAction::Pass);
                }
            }
            Action::Drop | Action::Reject(_) => {
                if let Action::Reject(target) = found.action {
                    fate.reject = Some(target);
                    self.counters.rejected += 1;
                }
                if !fate.is_passed {
                    fate.is_dropped = self.config.is_ips;
                    fate.dropped_by.get_or_insert(found.rule);
                    if is_about_flow && let Some(flow) = flow {
                        flow.action.get_or_insert(FlowAction::Drop);
                    }
                }
            }
        }
    }

    fn finish_packet(&mut self, scene: &Scene<'_>, flow: Option<&mut Flow>, fate: &Fate, alerts: &[Match]) {
        if !self.config.is_ips || scene.origin == eve::Origin::FlowEnd {
            return;
        }
        if !fate.is_dropped {
            self.counters.accepted += 1;
            return;
        }
        self.counters.blocked += 1;
        *self.counters.drops.entry(fate.reason).or_default() += 1;
        let cause = alerts.iter().find(|found| Some(found.rule) == fate.dropped_by).copied();
        self.write_drop(scene, fate, flow, cause);
    }

    /// A packet is dropped without a look at rules.
    pub(crate) fn drop_packet(&mut self, scene: &Scene<'_>, reason: &'static str, flow: Option<&mut Flow>) {
        self.counters.blocked += 1;
        *self.counters.drops.entry(reason).or_default() += 1;
        let fate = Fate { is_dropped: true, reason, ..Fate::default() };
        self.write_drop(scene, &fate, flow, None);
    }

    fn write_drop(&mut self, scene: &Scene<'_>, fate: &Fate, flow: Option<&mut Flow>, cause: Option<Match>) {
        let config = &self.lines.config;
        if !config.writes("drop") {
            return;
        }
        if let Some(flow) = &flow
            && !config.drop_all_flows
            && flow.has_logged_drop[scene.way as usize]
        {
            return;
        }
        let layers = scene.layers;
        let mut line = String::with_capacity(512);
        let ends = Ends::of_packet(layers);
        let mut json = eve::begin(
            &mut line,
            "drop",
            scene.time_us,
            scene.number,
            flow.as_deref(),
            Some(&ends),
            layers.vlans(),
            config,
        );
        eve::write_origin(&mut json, scene, config);
        json.text("direction", scene.way.name());
        json.open("drop");
        json.number("len", layers.network.len() as u64);
        if layers.protocol == ip::TCP {
            json.number("tcpseq", layers.tcp.sequence.into());
            json.number("tcpack", layers.tcp.acknowledgement.into());
            json.number("tcpwin", layers.tcp.window.into());
        }
        json.text("reason", fate.reason);
        json.close();
        if let (true, Some(found), Some(detector)) = (config.drop_alerts, cause, &self.detector)
            && let Some(rule) = detector.rules.signatures.get(found.rule as usize)
        {
            write_signature(&mut json, rule, &detector.rules.classes, "blocked", false, std::iter::empty());
        }
        if config.drop_verdict {
            write_verdict(&mut json, fate, scene);
        }
        eve::end(&mut line);
        if let Some(flow) = flow {
            flow.has_logged_drop[scene.way as usize] = true;
        }
        self.lines.put(line, true);
    }

    fn write_alert(
        &mut self,
        rule: &Signature,
        found: &Match,
        scene: &Scene<'_>,
        flow: Option<&Flow>,
        chunk: Option<&[u8]>,
        fate: &Fate,
    ) -> Option<u64> {
        let config = &self.lines.config;
        if !config.writes("alert") {
            return None;
        }
        let detector = self.detector.as_ref()?;
        let layers = scene.layers;
        let mut line = String::with_capacity(1024);
        let ends = alert_ends(layers, flow, found, config);
        let mut json =
            eve::begin(&mut line, "alert", scene.time_us, scene.number, flow, Some(&ends), layers.vlans(), config);
        eve::write_origin(&mut json, scene, config);
        // a packet rule's alert shows the flow's only transaction: for UDP if the rule names the protocol, else by setting
        let names_app = rule.packet_tests.iter().any(PacketTest::is_header_app);
        let is_guessing = self.config.guesses_transactions || layers.protocol == ip::UDP && names_app;
        let guessed = flow.filter(|_| is_guessing && found.transaction.is_none());
        let guessed = guessed.and_then(|flow| only_transaction(flow).filter(|id| flow.guessed != Some(*id)));
        let transaction = found.transaction.or(guessed);
        if let Some(id) = transaction {
            json.number("tx_id", id);
            if guessed.is_some() && found.transaction.is_none() {
                json.flag("tx_guessed", layers.protocol != ip::UDP);
            }
        }
        let is_blocked =
            matches!(found.action, Action::Reject(_)) || found.action == Action::Drop && self.config.is_ips;
        let contexts = self.scratch.contexts.iter().filter(|(rule, _, _)| *rule == found.rule);
        let action = if is_blocked { "blocked" } else { "allowed" };
        write_signature(&mut json, rule, &detector.rules.classes, action, config.references, contexts);
        if let Some(flow) = flow {
            if let Some(id) = transaction {
                write_transaction(&mut json, flow, id);
            }
            eve::write_app(&mut json, flow);
            json.text("direction", scene.way.name());
            json.open("flow");
            eve::write_flow_counters(&mut json, flow);
            let client = Ends::of_flow(flow, Way::ToServer);
            json.plain("src_ip", eve::AddressText(client.source.0, config.ipv6_compress));
            json.plain("dest_ip", eve::AddressText(client.destination.0, config.ipv6_compress));
            if matches!(flow.protocol, ip::TCP | ip::UDP | ip::SCTP) {
                json.number("src_port", client.source.1.into());
                json.number("dest_port", client.destination.1.into());
            }
            json.close();
            crate::memory::write_metadata(&mut json, flow, &detector.rules);
        }
        let history = flow.and_then(|flow| flow.tcp.as_ref()).map(|tcp| &tcp.sides[scene.way as usize].stream.history);
        // what a transaction has, its stream has: the packet at hand may only confirm it
        let is_in_stream = found.is_in_stream || found.transaction.is_some() && layers.protocol == ip::TCP;
        let payload = match (is_in_stream, history, chunk) {
            (true, Some(history), _) if !history.is_empty() => history.as_slice(),
            (true, _, Some(chunk)) => chunk,
            _ => layers.payload,
        };
        let payload = payload.get(..payload.len().min(config.payload_buffer)).unwrap_or_default();
        if config.payload && !payload.is_empty() {
            json.plain("payload", eve::base64(payload));
        }
        if config.payload_printable && !payload.is_empty() {
            json.text("payload_printable", eve::printable(payload));
        }
        if let (true, false, Some(flow)) = (config.xff.is_enabled, config.xff.overwrites, flow)
            && let Some(address) = crate::xff::address(flow, found.transaction, &config.xff)
        {
            json.plain("xff", eve::AddressText(address, config.ipv6_compress));
        }
        json.number("stream", u64::from(is_in_stream));
        if config.packet {
            eve::write_packet(&mut json, scene);
        }
        if config.verdict {
            write_verdict(&mut json, fate, scene);
        }
        eve::end(&mut line);
        self.lines.put(line, true);
        guessed
    }

    /// What was wrong with a packet, as anomalies, where settings ask for them.
    pub(crate) fn log_anomalies(&mut self, scene: &Scene<'_>, flow: Option<&Flow>, events: &[&'static str]) {
        let config = &self.lines.config;
        if events.is_empty() || !(config.anomaly[0] || config.anomaly[1]) || !config.writes("anomaly") {
            return;
        }
        let mut lines = Vec::new();
        for event in events {
            let is_stream = event.starts_with("stream.");
            if !config.anomaly[usize::from(is_stream)] {
                continue;
            }
            let ends = Ends::of_packet(scene.layers);
            let mut line = String::with_capacity(384);
            let vlans = scene.layers.vlans();
            let mut json =
                eve::begin(&mut line, "anomaly", scene.time_us, scene.number, flow, Some(&ends), vlans, config);
            json.open("anomaly");
            json.text("type", if is_stream { "stream" } else { "decode" });
            match is_stream {
                true => json.text("event", event),
                false => json.text("event", format!("decoder.{event}")),
            }
            json.close();
            eve::end(&mut line);
            lines.push(line);
        }
        for line in lines {
            self.lines.put(line, false);
        }
    }

    /// Log records, files and events of transactions that are due.
    pub(crate) fn log_transactions(&mut self, flow: &mut Flow, is_end: bool, way: Way) {
        let Some(protocol) = flow.app.protocol else { return };
        let Some(info) = PROTOCOLS.get(usize::from(protocol)) else { return };
        let mut app = std::mem::take(&mut flow.app);
        let (first, end) = app.range();
        for id in first..end {
            let is_last = is_end || app.is_broken;
            if self.log_transaction(flow, &mut app, info, id, (is_last, way)) {
                if let Some(transaction) = app.parser().and_then(|parser| parser.transaction(id)) {
                    self.watch_transaction(flow, protocol, transaction);
                }
                crate::counters::Counters::add(&mut self.counters.app_transactions, protocol, 1);
                app.remove(id);
            }
        }
        flow.app = app;
    }

    /// Return whether the transaction is done with.
    fn log_transaction(
        &mut self,
        flow: &Flow,
        app: &mut crate::app::App,
        info: &protocols::Protocol,
        id: u64,
        (is_end, way): (bool, Way),
    ) -> bool {
        let (time_us, number) = (self.now_us, self.number);
        let Some((transaction, tracked)) = app.both(id) else { return false };
        self.announcements.note(flow, transaction, time_us);
        let progress = Way::BOTH.map(|way| transaction.progress(way));
        let vlans = flow.vlan.get(..usize::from(flow.vlan_count)).unwrap_or_default();
        let config = &self.lines.config;
        let mut lines: Vec<String> = Vec::new();
        for (index, record) in info.records.iter().enumerate().take(32) {
            let bit = 1_u32 << index;
            let is_due = progress[0] >= record.to_server && progress[1] >= record.to_client;
            if tracked.logged & bit != 0 || !(is_due || is_end) {
                continue;
            }
            tracked.logged |= bit;
            if transaction.is_logged(index) && config.writes(record.event_type) {
                let ends = Ends::of_flow(flow, record.way);
                let mut line = String::with_capacity(512);
                let mut json =
                    eve::begin(&mut line, record.event_type, time_us, number, Some(flow), Some(&ends), vlans, config);
                json.number("tx_id", id);
                transaction.log(Some(index), &mut json);
                eve::end(&mut line);
                lines.push(line);
            }
        }
        while let Some(body) = transaction.files().get(tracked.files) {
            if body.state == protocols::BodyState::Open && !is_end {
                break;
            }
            tracked.files += 1;
            if config.writes("fileinfo") || config.writes("files") {
                let ends = Ends::of_flow(flow, body.way);
                let mut line = String::with_capacity(512);
                let mut json =
                    eve::begin(&mut line, "fileinfo", time_us, number, Some(flow), Some(&ends), vlans, config);
                transaction.log(None, &mut json);
                json.text("app_proto", info.name);
                let md5 = if config.force_md5 { md5(body) } else { None };
                eve::write_file(&mut json, body, id, md5);
                eve::end(&mut line);
                lines.push(line);
            }
        }
        while let Some(event) = transaction.events().get(tracked.events) {
            tracked.events += 1;
            if config.anomaly[2] && config.writes("anomaly") {
                let name = info.events.get(usize::from(*event)).copied().unwrap_or("unknown");
                let ends = Ends::of_flow(flow, way);
                let mut line = String::with_capacity(512);
                let mut json =
                    eve::begin(&mut line, "anomaly", time_us, number, Some(flow), Some(&ends), vlans, config);
                json.number("tx_id", id);
                json.open("anomaly");
                json.text("app_proto", info.name);
                json.text("type", "applayer");
                json.text("event", name.to_ascii_uppercase());
                json.text("layer", "proto_parser");
                json.close();
                eve::end(&mut line);
                lines.push(line);
            }
        }
        let has_rules = self.detector.is_some() && flow.action.is_none();
        let is_looked_at = !has_rules || tracked.looked.iter().all(|looked| looked.is_over);
        let is_done = progress == [COMPLETE; 2] && is_looked_at;
        for line in lines {
            self.lines.put(line, false);
        }
        is_done || is_end
    }

    pub(crate) fn log_flow(&mut self, flow: &Flow, ending: crate::flow::Ending) {
        if !self.lines.config.writes("flow") {
            return;
        }
        let config = &self.lines.config;
        let vlans = flow.vlan.get(..usize::from(flow.vlan_count)).unwrap_or_default();
        let ends = Ends::of_flow(flow, Way::ToServer);
        let mut line = String::with_capacity(768);
        let mut json = eve::begin(&mut line, "flow", self.now_us, 0, Some(flow), Some(&ends), vlans, config);
        eve::write_flow_record(&mut json, flow, ending, config);
        if let Some(detector) = &self.detector {
            crate::memory::write_metadata(&mut json, flow, &detector.rules);
        }
        eve::end(&mut line);
        self.lines.put(line, false);
    }
}

/// The ends of an alert's packet; the client's own address stands in for its proxy's where the settings say so.
fn alert_ends(
    layers: &crate::layers::Layers<'_>,
    flow: Option<&Flow>,
    found: &Match,
    config: &crate::config::OutputConfig,
) -> Ends {
    let mut ends = Ends::of_packet(layers);
    if !(config.xff.is_enabled && config.xff.overwrites) {
        return ends;
    }
    if let Some(address) = flow.and_then(|flow| crate::xff::address(flow, found.transaction, &config.xff)) {
        let is_request = flow.is_some_and(|flow| flow.addresses[0] == layers.source);
        // in a reverse deployment the proxy talks to the server: it is the source of requests
        if is_request != config.xff.is_forward { ends.source.0 = address } else { ends.destination.0 = address }
    }
    ends
}

/// A rule that asks nothing of a packet but where it is from and where it goes holds for the whole flow.
fn is_about_ip_alone(rule: &Signature) -> bool {
    rule.flow == signatures::FlowGate::default()
        && rule.packet_tests.is_empty()
        && rule.payload.is_none()
        && rule.packet_buffers.is_empty()
        && rule.flow_tests.is_empty()
}

/// The MD5 of a file that is still held from its first byte.
fn md5(body: &protocols::Body) -> Option<String> {
    let view = body.view();
    let is_whole = view.start == 0 && view.data.len() as u64 == body.size && !body.has_gaps;
    is_whole.then(|| Md5::digest(view.data).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn only_transaction(flow: &Flow) -> Option<u64> {
    let (first, end) = flow.app.range();
    (end - first == 1).then_some(first)
}

fn write_transaction(json: &mut Json<'_>, flow: &Flow, id: u64) {
    if let Some(transaction) = flow.app.parser().and_then(|parser| parser.transaction(id)) {
        transaction.log(None, json);
    }
}

fn write_signature<'c>(
    json: &mut Json<'_>,
    rule: &Signature,
    classes: &[(String, String)],
    action: &str,
    shows_references: bool,
    contexts: impl Iterator<Item = &'c (u32, String, String)>,
) {
    json.open("alert");
    json.text("action", action);
    json.number("gid", rule.gid.into());
    json.number("signature_id", rule.sid.into());
    json.number("rev", rule.rev.into());
    json.text("signature", &*rule.message);
    let class = usize::from(rule.class).checked_sub(1).and_then(|index| classes.get(index));
    json.text("category", class.map_or("", |(_, text)| text));
    json.number("severity", rule.priority.into());
    write_metadata(json, rule);
    if shows_references && !rule.references.is_empty() {
        json.open_array("references");
        for (system, id) in &rule.references {
            json.text_element(format!("{system}{id}"));
        }
        json.close_array();
    }
    let mut contexts = contexts.peekable();
    if contexts.peek().is_some() {
        json.open("context");
        for (_, name, text) in contexts {
            json.raw(name, text);
        }
        json.close();
    }
    json.close();
}

/// `metadata: a b, c d` becomes lists by key, in order of first occurrence.
fn write_metadata(json: &mut Json<'_>, rule: &Signature) {
    if rule.metadata.is_empty() {
        return;
    }
    let mut keys: Vec<(&str, Vec<&str>)> = Vec::new();
    for pair in rule.metadata.split(',') {
        let Some((key, value)) = pair.trim().split_once(char::is_whitespace) else { continue };
        match keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, values)) => values.push(value.trim()),
            None => keys.push((key, vec![value.trim()])),
        }
    }
    json.open("metadata");
    for (key, values) in keys {
        json.open_array(key);
        for value in values {
            json.text_element(value);
        }
        json.close_array();
    }
    json.close();
}

fn write_verdict(json: &mut Json<'_>, fate: &Fate, scene: &Scene<'_>) {
    json.open("verdict");
    json.text(
        "action",
        if fate.is_dropped {
            "drop"
        } else if fate.is_passed {
            "pass"
        } else {
            "alert"
        },
    );
    if let Some(target) = fate.reject {
        // the sender of the packet is told first
        let one = match (target, scene.way) {
            (RejectTarget::Both, _) => "both",
            (RejectTarget::Source, Way::ToServer) | (RejectTarget::Destination, Way::ToClient) => "to_client",
            _ => "to_server",
        };
        json.text("reject-target", one);
        json.text("reject_target", one);
        json.open_array("reject");
        json.text_element(if scene.layers.protocol == ip::TCP { "tcp-reset" } else { "icmp-prohib" });
        json.close_array();
    }
    json.close();
}
