//! Records of flows, transactions, files and anomalies as EVE lines.

use md5::{Digest, Md5};
use protocols::{COMPLETE, PROTOCOLS, Way};

use crate::engine::Inspector;
use crate::eve::{self, Ends, Heading, Scene};
use crate::flow::Flow;
use sensor::FlowEvents;

impl Inspector {
    /// What was wrong with a packet, as anomalies, where settings ask for them.
    pub(crate) fn log_anomalies(&mut self, scene: &Scene<'_>, flow: Option<&Flow>, events: &[&'static str]) {
        let config = &self.lines.config;
        if events.is_empty() || config.anomaly == [false; 3] || !config.writes("anomaly") {
            return;
        }
        let mut lines = Vec::new();
        for event in events {
            let (kind, name, text) = match event {
                event if event.starts_with("stream.") => (1, "stream", (*event).to_owned()),
                event if event.starts_with("applayer_") => (2, "applayer", event.to_ascii_uppercase()),
                event => (0, "decode", format!("decoder.{event}")),
            };
            if !config.anomaly[kind] {
                continue;
            }
            let (ends, vlans) = (Ends::of_packet(scene.layers), scene.layers.vlans());
            let mut line = String::with_capacity(384);
            let heading = Heading { time_us: scene.time_us, number: scene.number, flow, ends, vlans };
            let mut json = eve::begin(&mut line, "anomaly", &heading, config);
            json.open("anomaly");
            json.text("type", name);
            json.text("event", text);
            if kind == 2 {
                json.text("layer", "proto_detect");
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
    pub(crate) fn log_transaction(
        &mut self,
        flow: &Flow,
        app: &mut crate::app::App,
        info: &protocols::Protocol,
        id: u64,
        (is_end, way): (bool, Way),
    ) -> bool {
        let (time_us, number) = (self.now_us, self.number);
        let Some(protocol) = app.protocol else { return false };
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
                let mut json = eve::begin(
                    &mut line,
                    record.event_type,
                    &Heading { time_us, number, flow: Some(flow), ends, vlans },
                    config,
                );
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
                let mut json = eve::begin(
                    &mut line,
                    "fileinfo",
                    &Heading { time_us, number, flow: Some(flow), ends, vlans },
                    config,
                );
                transaction.log(Some(0), &mut json);
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
                let mut json = eve::begin(
                    &mut line,
                    "anomaly",
                    &Heading { time_us, number, flow: Some(flow), ends, vlans },
                    config,
                );
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
        let has_groups = |way| self.detector.as_ref().is_some_and(|detector| detector.groups.looks_at(protocol, way));
        // a way that no rule looks at is never over: what waited for it would stay until the flow ends
        let is_over = |way: Way| tracked.looked[way as usize].is_over || !has_groups(way);
        let is_looked_at = !has_rules || Way::BOTH.into_iter().all(is_over);
        let is_done = progress == [COMPLETE; 2] && is_looked_at;
        for line in lines {
            self.lines.put(line, false);
        }
        is_done || is_end
    }

    pub(crate) fn log_flow(&mut self, flow: &Flow, ending: crate::flow::Ending) {
        let is_wanted = match self.lines.config.flows {
            FlowEvents::Off => false,
            FlowEvents::Answered => flow.is_answered(),
            FlowEvents::All => true,
        };
        if !is_wanted || !self.lines.config.writes("flow") {
            return;
        }
        let config = &self.lines.config;
        let vlans = flow.vlan.get(..usize::from(flow.vlan_count)).unwrap_or_default();
        let ends = Ends::of_flow(flow, Way::ToServer);
        let mut line = String::with_capacity(768);
        let mut json = eve::begin(
            &mut line,
            "flow",
            &Heading { time_us: self.now_us, number: 0, flow: Some(flow), ends, vlans },
            config,
        );
        eve::write_flow_record(&mut json, flow, ending, config);
        if let Some(detector) = &self.detector {
            crate::memory::write_metadata(&mut json, flow, &detector.rules);
        }
        eve::end(&mut line);
        self.lines.put(line, false);
    }
}

/// The MD5 of a file that is still held from its first byte.
fn md5(body: &protocols::Body) -> Option<String> {
    let view = body.view();
    let is_whole = view.start == 0 && view.data.len() as u64 == body.size && !body.has_gaps;
    is_whole.then(|| Md5::digest(view.data).iter().map(|byte| format!("{byte:02x}")).collect())
}
