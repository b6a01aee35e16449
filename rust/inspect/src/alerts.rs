//! Alerts and dropped packets as EVE lines.

use protocols::{Json, Way};
use signatures::{Action, PacketTest, RejectTarget, Signature};

use crate::detect::Match;
use crate::engine::Inspector;
use crate::eve::{self, Ends, Heading, Scene};
use crate::flow::Flow;
use crate::layers::ip;
use crate::verdict::Fate;

impl Inspector {
    pub(crate) fn write_drop(&mut self, scene: &Scene<'_>, fate: &Fate, flow: Option<&mut Flow>, cause: Option<Match>) {
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
            &Heading {
                time_us: scene.time_us,
                number: scene.number,
                flow: flow.as_deref(),
                ends,
                vlans: layers.vlans(),
            },
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
            write_signature(&mut json, rule, &detector.rules.classes, "blocked", &More::default());
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

    pub(crate) fn write_alert(
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
        let mut json = eve::begin(
            &mut line,
            "alert",
            &Heading { time_us: scene.time_us, number: scene.number, flow, ends, vlans: layers.vlans() },
            config,
        );
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
        let shows_client = config.xff.is_enabled && !config.xff.overwrites;
        let client = flow.filter(|_| shows_client).and_then(|flow| crate::xff::address(flow, transaction, &config.xff));
        let more = More {
            shows_references: config.references,
            client: client.map(|address| eve::AddressText(address, config.ipv6_compress)),
            contexts: contexts.map(|(_, name, text)| (name.as_str(), text.as_str())).collect(),
        };
        write_signature(&mut json, rule, &detector.rules.classes, action, &more);
        if let Some(flow) = flow {
            if let Some(id) = transaction.filter(|_| config.metadata) {
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

fn only_transaction(flow: &Flow) -> Option<u64> {
    let (first, end) = flow.app.range();
    (end - first == 1).then_some(first)
}

fn write_transaction(json: &mut Json<'_>, flow: &Flow, id: u64) {
    if let Some(transaction) = flow.app.parser().and_then(|parser| parser.transaction(id)) {
        transaction.log(None, json);
    }
}

/// What an alert shows of a rule beyond its own text.
#[derive(Default)]
struct More<'a> {
    shows_references: bool,
    /// The client behind a proxy.
    client: Option<eve::AddressText>,
    /// What data sets say about the value that matched: name and JSON text.
    contexts: Vec<(&'a str, &'a str)>,
}

fn write_signature(json: &mut Json<'_>, rule: &Signature, classes: &[(String, String)], action: &str, more: &More<'_>) {
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
    if more.shows_references && !rule.references.is_empty() {
        json.open_array("references");
        for (system, id) in &rule.references {
            json.text_element(format!("{system}{id}"));
        }
        json.close_array();
    }
    if !more.contexts.is_empty() {
        json.open("context");
        for (name, text) in &more.contexts {
            json.raw(name, text);
        }
        json.close();
    }
    if let Some(client) = &more.client {
        json.plain("xff", client);
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
