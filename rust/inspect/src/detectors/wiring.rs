//! Where the inspector asks the detectors, and how what they find becomes lines.

use protocols::{Transaction, Way};

use super::{Detectors, FlowSeen, encode};
use crate::engine::Inspector;
use crate::flow::Flow;
use crate::layers::Layers;

/// Of the memory number in percent, out of the tenth that the budget leaves undivided.
const SHARE: usize = 5;

impl Detectors {
    /// Return the detectors of an inspector with `memory_bytes` in all; `None` where settings switch them off.
    pub(crate) fn of_inspector(
        memory_bytes: usize,
        key: sensor::SipKey,
        settings: &protocols::Settings,
    ) -> Option<Box<Detectors>> {
        let is_on = settings.flag("detectors.enabled", true);
        is_on.then(|| Box::new(Detectors::new(memory_bytes / 100 * SHARE, key, settings)))
    }
}

impl Inspector {
    /// A packet, after its flow knows it.
    pub(crate) fn watch_packet(&mut self, layers: &Layers<'_>, flow: Option<(&Flow, Way)>) {
        let Some(detectors) = &mut self.detectors else { return };
        let seen = flow.map(|(flow, way)| FlowSeen::new(flow, way));
        detectors.packet(layers, seen.as_ref(), self.now_us);
        self.put_findings();
    }

    /// A flow that is over.
    pub(crate) fn watch_end(&mut self, flow: &Flow) {
        if let Some(detectors) = &mut self.detectors {
            detectors.flow_ended(&FlowSeen::new(flow, Way::ToServer));
            self.put_findings();
        }
    }

    /// A transaction that is about to be forgotten.
    pub(crate) fn watch_transaction(&mut self, flow: &Flow, protocol: u8, transaction: &dyn Transaction) {
        if let Some(detectors) = &mut self.detectors {
            let seen = FlowSeen::new(flow, Way::ToServer);
            detectors.transaction(&seen, protocol.into(), transaction, self.now_us);
            self.put_findings();
        }
    }

    /// Time has passed; `is_end`: and nothing more will come.
    pub(crate) fn watch_time(&mut self, is_end: bool) {
        let Some(detectors) = &mut self.detectors else { return };
        if is_end {
            detectors.finish();
        } else {
            detectors.tick(self.now_us);
        }
        self.put_findings();
    }

    fn put_findings(&mut self) {
        let Some(detectors) = self.detectors.as_mut().filter(|detectors| !detectors.is_empty()) else { return };
        for finding in detectors.take() {
            if self.lines.config.writes("alert") {
                self.lines.put(encode(&finding), true);
            }
        }
    }
}
