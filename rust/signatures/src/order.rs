//! The order in which rules are looked at.

use std::collections::HashMap;

use protocols::Settings;

use crate::compile::BitUse;
use crate::model::{Action, Signature};

/// Links in a chain of flowbits (one sets what the next reads) that are put in order; the longest public chains have 4.
const MOST_LINKS: u8 = 16;

/// Return each action's rank: pass, drop, reject, alert, or as `action-order` says.
pub(crate) fn action_order(settings: &Settings) -> [u8; 4] {
    let names = ["pass", "drop", "reject", "alert"];
    let listed: Vec<&str> = settings
        .under("action-order")
        .flat_map(|(_, value)| value.split([',', ' ', '[', ']', '-']))
        .filter(|name| names.contains(name))
        .collect();
    let mut ranks = [0, 1, 2, 3];
    for (rank, name) in ranks.iter_mut().zip(names) {
        if let Some(place) = listed.iter().position(|other| *other == name).and_then(|place| u8::try_from(place).ok()) {
            *rank = place;
        } else if !listed.is_empty() {
            *rank = 4; // what is not listed comes last
        }
    }
    ranks
}

fn action_rank(action: Action, ranks: &[u8; 4]) -> u8 {
    let [pass, drop, reject, alert] = *ranks;
    match action {
        Action::Pass => pass,
        Action::Drop => drop,
        Action::Reject(_) => reject,
        Action::Alert => alert,
    }
}

/// A rule on its way into the set.
pub(crate) struct Loaded {
    pub signature: Signature,
    pub bits: BitUse,
}

/// Sort: by action, then by flowbits (who only sets, who sets what others wait for, who only reads, who does neither),
/// then by priority, then as written.
pub(crate) fn sorted(rules: Vec<Loaded>, ranks: &[u8; 4]) -> Vec<Signature> {
    let links = links(&rules);
    let mut rules: Vec<(u8, Loaded)> = links.into_iter().zip(rules).collect();
    rules.sort_by_key(|(link, rule)| (action_rank(rule.signature.action, ranks), *link, rule.signature.priority));
    let mut signatures = Vec::with_capacity(rules.len()); // exactly: the set lives long
    signatures.extend(rules.into_iter().map(|(_, rule)| rule.signature));
    signatures
}

/// How far behind the first setters each rule comes. Circles end at the bound.
fn links(rules: &[Loaded]) -> Vec<u8> {
    let mut links: Vec<u8> = rules
        .iter()
        .map(|rule| match (rule.bits.sets.is_empty(), rule.bits.reads.is_empty()) {
            (false, true) => 0,
            (false, false) => 1,
            (true, false) => MOST_LINKS + 1,
            (true, true) => MOST_LINKS + 2,
        })
        .collect();
    for _ in 0..MOST_LINKS {
        let mut latest: HashMap<u32, u8> = HashMap::new();
        for (rule, link) in rules.iter().zip(&links) {
            for bit in &rule.bits.sets {
                let slot = latest.entry(*bit).or_default();
                *slot = (*slot).max(*link);
            }
        }
        let mut has_changed = false;
        for (rule, link) in rules.iter().zip(links.iter_mut()).filter(|(_, link)| (1..=MOST_LINKS).contains(&**link)) {
            let bits = &rule.bits;
            // a bit that the rule itself sets (a toggle after a test) does not push it back
            let waits = bits.reads.iter().filter(|bit| !bits.sets.contains(bit)).filter_map(|bit| latest.get(bit));
            let wanted = waits.map(|link| link.saturating_add(1)).max().unwrap_or(1).clamp(1, MOST_LINKS);
            if wanted > *link {
                *link = wanted;
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    links
}
