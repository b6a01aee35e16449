//! What rules remember beyond one flow: hosts, data sets, reputation, thresholds.

use protocols::Json;
use signatures::{Datasets, HostState, Reputation, RuleSet, Thresholds};

use crate::flow::Flow;

/// Names of flowbits that are shown as `traffic.id` and `traffic.label`.
const TRAFFIC: [(&str, &str); 2] = [("traffic/id/", "id"), ("traffic/label/", "label")];

/// Everything that rules remember.
#[derive(Default)]
#[allow(missing_docs)]
pub struct RuleMemory {
    pub hosts: HostState,
    pub datasets: Datasets,
    pub reputation: Reputation,
    pub thresholds: Thresholds,
}

impl RuleMemory {
    /// Take what the loader put into a set of rules.
    pub fn take(rules: &mut RuleSet) -> RuleMemory {
        RuleMemory {
            hosts: HostState::default(),
            datasets: std::mem::take(&mut rules.datasets),
            reputation: std::mem::take(&mut rules.reputation),
            thresholds: std::mem::take(&mut rules.thresholds),
        }
    }

    /// Data sets that are to be kept: name of the file and its bytes.
    pub fn kept_files(&self) -> Vec<(String, Vec<u8>)> {
        self.datasets.saved().into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
    }
}

/// Flowbits, integers and captured values, as EVE's `metadata` and `traffic`.
pub fn write_metadata(json: &mut Json<'_>, flow: &Flow, rules: &RuleSet) {
    let name = |number: u32| rules.state_names.get(number as usize).map_or("", |name| &**name);
    let is_traffic = |name: &str| TRAFFIC.iter().any(|(prefix, _)| name.starts_with(prefix));
    let bits: Vec<&str> = flow.state.bits().iter().map(|bit| name(*bit)).collect();
    if bits.iter().any(|bit| is_traffic(bit)) {
        json.open("traffic");
        for (prefix, member) in TRAFFIC {
            let values: Vec<&str> = bits.iter().filter_map(|bit| bit.strip_prefix(prefix)).collect();
            if !values.is_empty() {
                json.open_array(member);
                for value in values {
                    json.text_element(value);
                }
                json.close_array();
            }
        }
        json.close();
    }
    let plain: Vec<&str> = bits.into_iter().filter(|bit| !is_traffic(bit)).collect();
    let has_values = !flow.variables.is_empty() || !flow.packet_variables.is_empty();
    if plain.is_empty() && flow.state.integers().is_empty() && !has_values {
        return;
    }
    json.open("metadata");
    if !plain.is_empty() {
        json.open_array("flowbits");
        for bit in plain {
            json.text_element(bit);
        }
        json.close_array();
    }
    if !flow.state.integers().is_empty() {
        json.open("flowints");
        for (number, value) in flow.state.integers() {
            json.number(name(*number), u64::from(*value));
        }
        json.close();
    }
    for (member, list) in [("flowvars", &flow.variables), ("pktvars", &flow.packet_variables)] {
        if list.is_empty() {
            continue;
        }
        json.open_array(member);
        for (name, value) in list {
            json.open_element();
            json.text(name, value);
            json.close();
        }
        json.close_array();
    }
    json.close();
}
