//! What was seen, done and refused.

use std::collections::BTreeMap;

use protocols::PROTOCOLS;

use crate::config::ExceptionPolicy;
use crate::layers::Step;

/// Counters since the start.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // the names are the documentation: they are EVE's
pub struct Counters {
    pub packets: u64,
    pub bytes: u64,
    pub filtered: u64,
    pub invalid: u64,
    pub steps: Vec<u64>,
    pub events: BTreeMap<&'static str, u64>,
    pub flows: BTreeMap<&'static str, u64>,
    pub flow_ends: BTreeMap<&'static str, u64>,
    pub flows_refused: u64,
    pub defrag: BTreeMap<&'static str, u64>,
    pub tcp: BTreeMap<&'static str, u64>,
    pub app_flows: Vec<u64>,
    pub app_transactions: Vec<u64>,
    pub app_failed: [u64; 2],
    pub app_errors: Vec<u64>,
    pub alerts: u64,
    pub alerts_suppressed: u64,
    pub alert_overflow: u64,
    pub accepted: u64,
    pub blocked: u64,
    pub rejected: u64,
    pub drops: BTreeMap<&'static str, u64>,
    pub policies: BTreeMap<(&'static str, &'static str), u64>,
    pub memory_refused: u64,
    pub most_pressure: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            packets: 0,
            bytes: 0,
            filtered: 0,
            invalid: 0,
            steps: vec![0; Step::NAMES.len()],
            events: BTreeMap::new(),
            flows: BTreeMap::new(),
            flow_ends: BTreeMap::new(),
            flows_refused: 0,
            defrag: BTreeMap::new(),
            tcp: BTreeMap::new(),
            app_flows: vec![0; PROTOCOLS.len()],
            app_transactions: vec![0; PROTOCOLS.len()],
            app_failed: [0; 2],
            app_errors: vec![0; PROTOCOLS.len()],
            alerts: 0,
            alerts_suppressed: 0,
            alert_overflow: 0,
            accepted: 0,
            blocked: 0,
            rejected: 0,
            drops: BTreeMap::new(),
            policies: BTreeMap::new(),
            memory_refused: 0,
            most_pressure: 0,
        }
    }
}

impl Counters {
    /// Count one of a list of protocols.
    pub(crate) fn add(list: &mut [u64], index: u8, count: u64) {
        if let Some(slot) = list.get_mut(usize::from(index)) {
            *slot += count;
        }
    }

    pub(crate) fn policy(&mut self, target: &'static str, policy: ExceptionPolicy) {
        *self.policies.entry((target, policy.name())).or_default() += 1;
    }
}
