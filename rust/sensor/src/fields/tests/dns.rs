use super::*;

const NAMES: &str = r#"[{"names":["time.example.com","*.update.example.com"],"types":[[1,1],[28,28]]}]"#;

fn name(text: &str) -> Vec<u8> {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let bytes: Vec<u8> = labels.flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat()).collect();
    [&bytes[..], &[0]].concat()
}

fn query_with(flags: u16, counts: [u16; 4], body: &[u8]) -> Vec<u8> {
    let words: Vec<u8> = [0x1234, flags].iter().chain(&counts).flat_map(|word| word.to_be_bytes()).collect();
    [&words[..], body].concat()
}

fn query(text: &str, kind: u16) -> Vec<u8> {
    query_with(0x0100, [1, 0, 0, 0], &[name(text), kind.to_be_bytes().to_vec(), vec![0, 1]].concat())
}

fn framed(query: &[u8]) -> Vec<u8> {
    [&(query.len() as u16).to_be_bytes()[..], query].concat()
}

const OPT: [u8; 11] = [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn names_and_types_decide() {
    let rule = rule("dns", NAMES, "[]");
    passes(&rule, &query("time.example.com", 1), true);
    passes(&rule, &query("TIME.eXample.Com", 28), true);
    passes(&rule, &query("a.b.update.example.com", 1), true);
    refused(&rule, &query("update.example.com", 1), true); // below, not itself
    refused(&rule, &query("example.com", 1), true);
    refused(&rule, &query("x.time.example.com", 1), true);
    refused(&rule, &query("atime.example.com", 1), true);
    refused(&rule, &query("time.example.com.evil.test", 1), true);
    refused(&rule, &query("", 2), true);
    assert_eq!(refused(&rule, &query("time.example.com", 16), true), "dns type 16 name time.example.com");
    passes(&rule, &framed(&query("time.example.com", 1)), false);
    for cut in 0..30 {
        assert_eq!(one(&rule, &framed(&query("time.example.com", 1))[..cut], false), Judged::More);
    }
}

#[test]
fn a_dot_inside_a_label_is_no_border() {
    let rule = rule("dns", NAMES, "[]");
    let dotted = [&[16][..], b"time.example.com", &[0, 0, 1, 0, 1]].concat();
    refused(&rule, &query_with(0, [1, 0, 0, 0], &dotted), true);
}

#[test]
fn reports_hold_nothing_that_a_terminal_obeys() {
    let rule = rule("dns", NAMES, "[]");
    let odd = [&[5][..], b"\x1b[2J\n", &[0, 0, 1, 0, 1]].concat();
    assert_eq!(refused(&rule, &query_with(0, [1, 0, 0, 0], &odd), true), "dns type 1 name \\x1b[2J\\n");
    let long = "a".repeat(60);
    let what = refused(&rule, &query(&[long.as_str(); 4].join("."), 1), true);
    assert!(what.len() < 130 && what.ends_with("..."), "{what}");
}

#[test]
fn options_are_read_and_nothing_else() {
    let rule = rule("dns", NAMES, "[]");
    let question = [&name("time.example.com")[..], &[0, 1, 0, 1]].concat();
    let with = |counts: [u16; 4], more: &[u8]| query_with(0x0100, counts, &[&question[..], more].concat());
    passes(&rule, &with([1, 0, 0, 1], &OPT), true);
    let cookie = [&OPT[..9], &[0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]].concat();
    passes(&rule, &with([1, 0, 0, 1], &cookie), true);
    malformed(&rule, &with([1, 0, 0, 2], &[OPT, OPT].concat()), true);
    malformed(&rule, &with([1, 0, 0, 1], &[0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]), true); // an address
    malformed(&rule, &with([1, 0, 0, 1], &[]), true);
    malformed(&rule, &with([1, 0, 0, 0], &[0]), true);
    malformed(&rule, &with([1, 0, 0, 0], &OPT), true);
    malformed(&rule, &with([1, 0, 0, 9], &OPT), true);
    malformed(&rule, &with([1, 0, 0, 1], &OPT[..10]), true);
    malformed(&rule, &with([1, 0, 0, 1], &[&OPT[..9], &[255, 255]].concat()), true);
    // a second question, also hidden behind a count of one
    malformed(&rule, &with([2, 0, 0, 0], &question), true);
    malformed(&rule, &with([2, 0, 0, 0], &[]), true);
    malformed(&rule, &with([1, 0, 0, 0], &question), true);
    malformed(&rule, &with([0, 0, 0, 0], &[]), true);
    malformed(&rule, &with([1, 1, 0, 0], &OPT), true);
    malformed(&rule, &with([1, 0, 1, 0], &OPT), true);
}

#[test]
fn a_transfer_names_the_version_that_it_has() {
    let rule = rule("dns", r#"[{"types":[[251,252]]}]"#, "[]");
    let soa = [&[0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 0, 0, 22, 0, 0][..], &[0; 20]].concat();
    let body = [&name("example.com")[..], &[0, 251, 0, 1], &soa].concat();
    passes(&rule, &query_with(0, [1, 0, 1, 0], &body), true);
    malformed(&rule, &query_with(0, [1, 0, 2, 0], &body), true);
}

#[test]
fn what_is_no_plain_query_is_malformed() {
    let rule = rule("dns", NAMES, "[]");
    let body = [&name("time.example.com")[..], &[0, 1, 0, 1]].concat();
    for flags in [0x8180, 0x2800, 0x2000, 0x0800, 0x0200, 0x0003] {
        malformed(&rule, &query_with(flags, [1, 0, 0, 0], &body), true);
    }
    passes(&rule, &query_with(0x0130, [1, 0, 0, 0], &body), true);
    let chaos = [&name("version.bind")[..], &[0, 16, 0, 3]].concat();
    malformed(&rule, &query_with(0, [1, 0, 0, 0], &chaos), true);
    for cut in 1..body.len() + 12 {
        malformed(&rule, &query("time.example.com", 1)[..cut], true);
    }
}

#[test]
fn names_that_loop_or_grow_are_malformed() {
    let rule = rule("dns", NAMES, "[]");
    for pointer in [&[0xc0, 12][..], &[0xc0, 0], &[1, b'a', 0xc0, 12], &[0x40, 1], &[0x80, 1]] {
        malformed(&rule, &query_with(0, [1, 0, 0, 0], &[pointer, &[0, 1, 0, 1]].concat()), true);
    }
    let every = super::rule("dns", r#"[{"types":[[0,65535]]}]"#, "[]");
    for length in [64_u8, 192] {
        let label = [&[length][..], &vec![b'a'; length.into()], &[0, 0, 1, 0, 1]].concat();
        malformed(&every, &query_with(0, [1, 0, 0, 0], &label), true); // a pointer or another type, not a long label
    }
    let long = [&[63; 64][..]; 4].concat(); // 4 labels of 63 bytes and the end: 257
    malformed(&every, &query_with(0, [1, 0, 0, 0], &[&long[..], &[0, 0, 1, 0, 1]].concat()), true);
}

#[test]
fn lengths_of_streams_are_believed_only_within_bounds() {
    let rule = rule("dns", NAMES, "[]");
    let good = query("time.example.com", 1);
    malformed(&rule, &[&[0, 11][..], &good].concat(), false);
    malformed(&rule, &[&[255, 255][..], &good].concat(), false);
    let hidden = framed(&[good.clone(), framed(&query("evil.test", 1))].concat());
    malformed(&rule, &hidden, false);
    let both = [framed(&good), framed(&query("evil.test", 1))].concat();
    assert_eq!(one(&rule, &both, false), Judged::Pass { len: good.len() + 2, skip: 0 });
    refused(&rule, &both[good.len() + 2..], false);
}
