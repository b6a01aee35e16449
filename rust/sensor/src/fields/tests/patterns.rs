use super::super::patterns::{ClientPattern, NamePattern, PathPattern, TopicPattern, TopicUse};
use super::super::rules::Pattern;
use super::some;

/// Every text of up to four levels of a small alphabet: topics without wildcards and filters.
fn texts(alphabet: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut last = vec![String::new()];
    for depth in 0..4 {
        let joint = if depth == 0 { "" } else { "/" };
        last = last.iter().flat_map(|stem| alphabet.iter().map(move |level| format!("{stem}{joint}{level}"))).collect();
        all.extend(last.iter().cloned());
    }
    all
}

/// Section 4.7 of MQTT 5.0 word for word, for topics: the yardstick.
fn sees(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['#', '+']) {
        return false;
    }
    let (filter, topic): (Vec<&str>, Vec<&str>) = (filter.split('/').collect(), topic.split('/').collect());
    match filter.split_last() {
        Some((&"#", stem)) => {
            topic.len() >= stem.len() && stem.iter().zip(&topic).all(|(ours, theirs)| *ours == "+" || ours == theirs)
        }
        _ => {
            filter.len() == topic.len()
                && filter.iter().zip(&topic).all(|(ours, theirs)| *ours == "+" || ours == theirs)
        }
    }
}

#[test]
fn containment_and_overlap_agree_with_the_topics_that_filters_see() {
    let topics: Vec<String> =
        texts(&["a", "b", "$s"]).into_iter().filter(|topic| topic.split('/').count() < 4).collect();
    let filters: Vec<String> = texts(&["a", "+", "#", "$s"])
        .into_iter()
        .filter(|filter| filter.split('/').count() < 4 && TopicPattern::parse(filter).is_some())
        .collect();
    let (mut pairs, mut contained) = (0, 0);
    for outer in &filters {
        let pattern = some(TopicPattern::parse(outer));
        let seen: Vec<&String> = topics.iter().filter(|topic| sees(outer, topic)).collect();
        for inner in &filters {
            let item = TopicUse { text: inner };
            let theirs: Vec<&String> = topics.iter().filter(|topic| sees(inner, topic)).collect();
            if pattern.contains(&item) {
                assert!(theirs.iter().all(|topic| seen.contains(topic)), "{outer} does not hold {inner}");
                contained += 1;
            }
            let overlap = theirs.iter().any(|topic| seen.contains(topic));
            assert!(!overlap || pattern.meets(&item), "{outer} and {inner} meet");
            pairs += 1;
        }
        for topic in &topics {
            assert_eq!(pattern.contains(&TopicUse { text: topic }), sees(outer, topic), "{outer} {topic}");
            assert_eq!(pattern.meets(&TopicUse { text: topic }), sees(outer, topic), "{outer} {topic}");
        }
    }
    assert!(pairs > 1000 && contained > 100, "{pairs} {contained}");
}

#[test]
fn patterns_of_a_wrong_form_are_refused() {
    for text in ["", "a#", "#/a", "a+/b", "a/#/b", "a\0"] {
        assert!(TopicPattern::parse(text).is_none(), "{text:?}");
    }
    for text in ["", "a", "/a/*/b", "/a/..", "/./a", "/a*"] {
        assert!(PathPattern::parse(text).is_none(), "{text:?}");
    }
    for text in ["", "a..b", "a.*.b", ".", &"a".repeat(64)] {
        assert!(NamePattern::parse(text).is_none(), "{text:?}");
    }
    assert!(ClientPattern::parse("a*b").is_none());
}

#[test]
fn stars_stand_for_what_is_below() {
    let holds = |pattern: &str, path: &[&str]| some(PathPattern::parse(pattern)).contains(&path.to_vec());
    assert!(holds("/", &[]) && !holds("/", &["a"]) && holds("/*", &[]) && holds("/*", &["a", "b"]));
    assert!(holds("/a/*", &["a", "b"]) && !holds("/a/*", &["a"]) && !holds("/a/*", &["ab", "c"]));
    assert!(holds("/a/", &["a", ""]) && !holds("/a", &["a", ""]));
    let holds = |pattern: &str, name: &[&[u8]]| some(NamePattern::parse(pattern)).contains(&name.to_vec());
    assert!(holds("*", &[]) && holds("*.b", &[b"a", b"B"]) && !holds("*.b", &[b"b"]) && !holds("b", &[b"a", b"b"]));
}
