//! Chains against a reference, and whatever else chance makes up.

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }
}

struct Link {
    literal: Vec<u8>,
    is_negated: bool,
    distance: i64,
    within: Option<i64>,
}

/// What a chain means, by trying every place for every content.
fn reference(links: &[Link], data: &[u8], at: usize, is_first: bool) -> bool {
    let Some((link, rest)) = links.split_first() else { return true };
    let from = at as i64 + if is_first { 0 } else { link.distance };
    let to = link.within.filter(|_| !is_first).map_or(i64::MAX, |within| from + within);
    let places = (0..data.len()).filter(|start| {
        let end = start + link.literal.len();
        *start as i64 >= from && end as i64 <= to && data.get(*start..end) == Some(&link.literal)
    });
    let places: Vec<usize> = places.collect();
    if link.is_negated {
        return places.is_empty() && reference(rest, data, at, is_first);
    }
    places.into_iter().any(|start| reference(rest, data, start + link.literal.len(), false))
}

#[test]
fn chains_mean_what_the_reference_says() {
    let mut random = Random(0xc0ffee);
    let (mut met, mut unmet) = (0, 0);
    for _ in 0..30_000 {
        let mut links: Vec<Link> = Vec::new();
        let mut text = String::new();
        for index in 0..1 + random.below(4) {
            let literal: Vec<u8> = (0..1 + random.below(2)).map(|_| b"ab"[random.below(2)]).collect();
            let (is_negated, distance) = (index > 0 && random.below(4) == 0, random.below(5) as i64 - 2);
            let within = (random.below(2) == 0).then(|| literal.len() as i64 + random.below(3) as i64);
            let sign = if is_negated { "!" } else { "" };
            text += &format!("content:{sign}\"{}\";", String::from_utf8_lossy(&literal));
            if index > 0 {
                text += &format!(" distance:{distance};");
                text += &within.map(|within| format!(" within:{within};")).unwrap_or_default();
            }
            links.push(Link { literal, is_negated, distance, within });
        }
        let data: Vec<u8> = (0..random.below(10)).map(|_| b"ab"[random.below(2)]).collect();
        let expected = reference(&links, &data, 0, true);
        let (is_met, left, _) = run(&build(&text).unwrap().0, whole(&data), 1_000_000);
        assert!(left > 0);
        assert_eq!(is_met, expected, "{text} in {}", data.escape_ascii());
        *(if is_met { &mut met } else { &mut unmet }) += 1;
    }
    assert!(met > 3_000 && unmet > 3_000, "{met} {unmet}");
}

#[test]
fn random_conditions_on_random_bytes_end() {
    let texts = [
        r#"content:"a";"#,
        r#"content:!"b"; within:3;"#,
        r#"content:"ab"; distance:-5; within:9;"#,
        r#"content:"a"; nocase; distance:0;"#,
        "byte_jump:1,0,relative;",
        "byte_jump:2,-1,relative,little,multiplier 65535,post_offset -65535;",
        "byte_jump:8,0,from_end;",
        "byte_extract:4,-3,v,relative;",
        "byte_math:bytes 8, offset 0, oper *, rvalue 4294967295, result w, relative;",
        "byte_test:1,>,3,-9,relative;",
        "byte_test:23,>,3,0,string,relative;",
        "isdataat:2,relative;",
        "isdataat:!9;",
        "bsize:>2;",
        r#"pcre:"/a.?b/R";"#,
        r#"pcre:"/(a|aa)+b/";"#,
        "base64_decode:relative;",
        "entropy:value > 1;",
        r#"content:"b"; endswith;"#,
        "byte_extract:8,0,v;",
        "byte_math:bytes 1, offset 0, oper <<, rvalue 70, result w;",
    ];
    let late = [
        r#"content:"a"; distance:v; within:w;"#,
        r#"content:"a"; offset:w; depth:v;"#,
        "isdataat:v,relative;",
        "bsize:w;",
        "byte_jump:v,w;",
        "byte_test:v,=,w,v,relative;",
    ];
    let mut random = Random(0xdead);
    for _ in 0..6_000 {
        let mut text = String::from("byte_extract:1,0,v; byte_extract:1,1,w;");
        for _ in 0..1 + random.below(6) {
            text +=
                if random.below(3) == 0 { late[random.below(late.len())] } else { texts[random.below(texts.len())] };
        }
        let data: Vec<u8> = (0..random.below(60))
            .map(|_| if random.below(4) == 0 { random.below(256) as u8 } else { b"abAB"[random.below(4)] })
            .collect();
        let subject =
            Subject { data: &data, start: random.below(3) as u64 * (u64::MAX / 2), is_complete: random.below(2) == 0 };
        let (inspection, _) = build(&text).unwrap_or_else(|reason| panic!("{text}: {reason}"));
        run(&inspection, subject, 3_000);
    }
}

#[test]
fn hostile_bytes_use_up_the_steps() {
    let text = r#"content:"a"; content:"a"; distance:0; content:"a"; distance:0; content:"a"; distance:0; content:"b"; distance:0;"#;
    let data = vec![b'a'; 2_000];
    let (is_met, left, _) = run(&build(text).unwrap().0, whole(&data), 3_000);
    assert!(!is_met && left == 0);
}
