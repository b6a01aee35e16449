//! Invariant: no bytes make a parser of field rules panic or ask for more than its bound; what it judges lies within the
//! bytes; more bytes behind a message, or fewer in front of its end, change no decision.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensor::fields::{Judged, MAX_JUDGED_BYTES, RuleSet, SessionState, judge};

const RULES: &str = r#"{"version":1,"memory_bytes":65536,"rules":[
{"id":1,"name":"a","protocol":"modbus","mode":"enforce","unparsable":"drop","allow":[{"registers":[[0,99]]}],"deny":[]},
{"id":2,"name":"b","protocol":"dnp3","mode":"enforce","unparsable":"drop","allow":[{"objects":[[1,60]]}],"deny":[]},
{"id":3,"name":"c","protocol":"bacnet","mode":"enforce","unparsable":"drop","allow":[],"deny":[{"objects":[[8,8]]}]},
{"id":4,"name":"d","protocol":"mqtt","mode":"enforce","unparsable":"drop","allow":[{"topics":["a/#"]}],"deny":[]},
{"id":5,"name":"e","protocol":"coap","mode":"enforce","unparsable":"drop","allow":[{"paths":["/a/*"]}],"deny":[]},
{"id":6,"name":"f","protocol":"dns","mode":"enforce","unparsable":"drop","allow":[{"names":["*.a"]}],"deny":[]}]}"#;

fuzz_target!(|input: &[u8]| {
    let [choice, bytes @ ..] = input else { return };
    let Ok(rules) = RuleSet::parse(RULES) else { panic!("the rules are right") };
    let Some(rule) = rules.rule(choice % 6 + 1) else { panic!("there are six") };
    let datagram = choice & 0x80 != 0;
    let mut state = SessionState::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let before = state.clone();
        let judged = judge(rule, &mut state, rest, datagram);
        match &judged {
            Judged::More => {
                assert!(!datagram && rest.len() < MAX_JUDGED_BYTES);
                return;
            }
            Judged::Malformed(_) => return,
            Judged::Pass { len, skip } | Judged::Refuse { len, skip, .. } => {
                assert!(*len > 0 && *len <= rest.len());
                if !datagram {
                    assert_eq!(judge(rule, &mut before.clone(), &rest[..*len], false), judged);
                    assert_eq!(judge(rule, &mut before.clone(), &rest[..*len - 1], false), Judged::More);
                }
                rest = rest.get(len.saturating_add(*skip as usize)..).unwrap_or_default();
            }
        }
        assert!(state.heap_bytes() <= MAX_JUDGED_BYTES * 4);
    }
});
