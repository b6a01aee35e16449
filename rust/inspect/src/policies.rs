//! What happens when something goes wrong: no memory, no handshake, a parser that gives up (`exception-policy`).

use protocols::Way;

use crate::config::ExceptionPolicy;
use crate::engine::{FlowStep, Inspector, Place};
use crate::flow::{Flow, FlowAction, Stage};
use crate::layers::Layers;
use crate::tcp::Outcome;

impl Inspector {
    /// Remember that pick-up in the middle was met; return whether that changes what happens.
    pub(crate) fn note_midstream(&mut self, flow: &mut Flow) -> bool {
        let policy = self.config.stream.midstream_policy;
        flow.policies.push(("stream_midstream", policy));
        self.counters.policy("stream_midstream", policy);
        policy != ExceptionPolicy::Ignore
    }

    pub(crate) fn midstream(&mut self, flow: &mut Flow, outcome: &Outcome) -> Option<&'static str> {
        let policy = self.config.stream.midstream_policy;
        if !flow.policies.iter().any(|(target, _)| *target == "stream_midstream") {
            flow.policies.push(("stream_midstream", policy));
        }
        if policy == ExceptionPolicy::Ignore {
            return None;
        }
        if !outcome.is_pickup {
            self.counters.policy("stream_midstream", policy);
        }
        self.apply_policy(flow, policy, "stream midstream")
    }

    pub(crate) fn out_of_memory(&mut self, flow: &mut Flow) -> Option<&'static str> {
        let policy = self.config.stream.memcap_policy;
        self.counters.policy("stream_reassembly", policy);
        if policy != ExceptionPolicy::Ignore {
            flow.policies.push(("stream_reassembly_memcap", policy));
        }
        self.apply_policy(flow, policy, "stream reassembly")
    }

    /// Do what an exception policy says; return a reason where the packet at hand is to be dropped.
    pub(crate) fn apply_policy(
        &mut self,
        flow: &mut Flow,
        policy: ExceptionPolicy,
        reason: &'static str,
    ) -> Option<&'static str> {
        match policy {
            ExceptionPolicy::Ignore | ExceptionPolicy::PassPacket => None,
            ExceptionPolicy::PassFlow => {
                flow.action = Some(FlowAction::Pass);
                None
            }
            ExceptionPolicy::Bypass => {
                flow.stage = Stage::Bypassed;
                flow.app.drop_all();
                None
            }
            ExceptionPolicy::DropPacket => self.config.is_ips.then_some(reason),
            ExceptionPolicy::DropFlow | ExceptionPolicy::Reject if !self.config.is_ips => {
                flow.app.drop_all();
                None
            }
            ExceptionPolicy::DropFlow | ExceptionPolicy::Reject => {
                flow.action = Some(FlowAction::Drop);
                flow.is_dropped_by_policy = true;
                flow.app.drop_all();
                Some(reason)
            }
        }
    }

    /// A parser gave up: what the exception policy says. Returns whether the packet is done with.
    pub(crate) fn app_error(
        &mut self,
        layers: &Layers<'_>,
        place: &Place<'_>,
        flow: &mut Flow,
        step: &FlowStep,
    ) -> bool {
        let policy = self.config.app_error_policy;
        self.counters.policy("app_layer_error", policy);
        if policy != ExceptionPolicy::Ignore {
            flow.policies.push(("app_layer_error", policy));
        }
        match self.apply_policy(flow, policy, "applayer error") {
            Some(reason) => {
                let scene = self.scene(layers, place, step.way);
                self.drop_packet(&scene, reason, Some(flow));
                true
            }
            None => policy == ExceptionPolicy::PassPacket || flow.action.is_some() || flow.stage == Stage::Bypassed,
        }
    }

    pub(crate) fn refused_flow(&mut self, layers: &Layers<'_>, place: &Place<'_>) {
        self.counters.flows_refused += 1;
        let policy = self.config.flow_memcap_policy;
        self.counters.policy("flow_memcap", packet_level(policy));
        if matches!(policy, ExceptionPolicy::DropFlow | ExceptionPolicy::DropPacket) {
            let scene = self.scene(layers, place, Way::ToServer);
            return self.drop_packet(&scene, "flow memcap", None);
        }
        if policy == ExceptionPolicy::Ignore {
            self.without_flow(layers, place, layers.events());
        }
    }
}

fn packet_level(policy: ExceptionPolicy) -> ExceptionPolicy {
    match policy {
        ExceptionPolicy::DropFlow => ExceptionPolicy::DropPacket,
        ExceptionPolicy::PassFlow | ExceptionPolicy::Bypass => ExceptionPolicy::PassPacket,
        other => other,
    }
}
