//! From matches to alerts and to what happens to the packet and its flow.

use signatures::{Action, Decision, PacketTest, RejectTarget, Signature};

use crate::detect::Match;
use crate::engine::Inspector;
use crate::eve::{self, Scene};
use crate::flow::{Flow, FlowAction};

/// What alerts and drops say became of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Fate {
    pub is_dropped: bool,
    pub is_passed: bool,
    pub reject: Option<RejectTarget>,
    pub reason: &'static str,
    pub dropped_by: Option<u32>,
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
        self.note_drop(fate.reject, scene.outer.is_some());
        self.counters.blocked += 1;
        *self.counters.drops.entry(fate.reason).or_default() += 1;
        let cause = alerts.iter().find(|found| Some(found.rule) == fate.dropped_by).copied();
        self.write_drop(scene, fate, flow, cause);
    }

    /// A packet is dropped without a look at rules.
    pub(crate) fn drop_packet(&mut self, scene: &Scene<'_>, reason: &'static str, flow: Option<&mut Flow>) {
        self.note_drop(None, scene.outer.is_some());
        self.counters.blocked += 1;
        *self.counters.drops.entry(reason).or_default() += 1;
        let fate = Fate { is_dropped: true, reason, ..Fate::default() };
        self.write_drop(scene, &fate, flow, None);
    }
}

/// A rule that asks nothing of a packet but where it is from and where it goes holds for the whole flow.
fn is_about_ip_alone(rule: &Signature) -> bool {
    rule.flow == signatures::FlowGate::default()
        && rule.packet_tests.is_empty()
        && rule.payload.is_none()
        && rule.packet_buffers.is_empty()
        && rule.flow_tests.is_empty()
}
