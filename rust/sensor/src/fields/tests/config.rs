use super::super::{Protocol, RuleSet};
use super::some;

const GOOD: &str = r#"{"version":1,"memory_bytes":4194304,"rules":[{"id":1,"name":"plc-reads","protocol":"modbus",
    "mode":"observe","unparsable":"pass","allow":[{"units":[[1,1]],"registers":[[10,19],[0,9]]}],"deny":[]}]}"#;

#[test]
fn a_rule_is_found_by_its_identifier() {
    let set = some(RuleSet::parse(GOOD).ok());
    let rule = some(set.rule(1));
    assert_eq!((rule.name.as_str(), rule.protocol, set.memory_bytes), ("plc-reads", Protocol::Modbus, 4_194_304));
    assert!(rule.observe && rule.pass_unparsable && set.rule(2).is_none() && set.rules().len() == 1);
    // neighbouring ranges are one: this read lies in both together
    super::passes(rule, &[0, 1, 0, 0, 0, 6, 1, 3, 0, 9, 0, 2], false);
}

#[test]
fn what_is_not_known_is_refused() {
    for (old, new) in [
        ("\"version\":1", "\"version\":2"),
        ("\"id\":1", "\"id\":0"),
        ("\"id\":1", "\"id\":64"),
        ("\"id\":1", "\"id\":-1"),
        ("modbus", "profinet"),
        ("\"observe\"", "\"learn\""),
        ("\"pass\"", "\"maybe\""),
        ("\"units\"", "\"topics\""),
        ("\"units\":[[1,1]]", "\"topics\":[\"a\"]"),
        ("\"units\":[[1,1]]", "\"objects\":[[1,1]]"),
        ("[[1,1]]", "[[2,1]]"),
        ("[[1,1]]", "[]"),
        ("[[1,1]]", "[[1]]"),
        ("[[1,1]]", "[[1,4294967296]]"),
        ("\"deny\":[]", "\"deny\":[{}]"),
        ("\"deny\":[]", "\"deny\":[],\"log\":1"),
        ("{\"version\"", "[{\"version\""),
        (r#"[{"units":[[1,1]],"registers":[[10,19],[0,9]]}]"#, "[]"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        assert!(RuleSet::parse(&GOOD.replacen(old, new, 1)).is_err(), "{new}");
    }
    let rule = &GOOD[some(GOOD.find("{\"id\""))..GOOD.len() - 2];
    assert!(RuleSet::parse(&GOOD.replace(rule, &format!("{rule},{rule}"))).is_err()); // one identifier twice
    assert!(RuleSet::parse("").is_err());
}
