#![allow(clippy::unwrap_used)] // a test may panic

use super::*;

fn find_with(regexes: &mut Regexes, value: &str, data: &[u8]) -> Option<(usize, usize)> {
    let mut pcre = Pcre::parse(value).unwrap_or_else(|reason| panic!("{value}: {reason}"));
    pcre.has_relative_next = true;
    let (mut steps, mut captures) = (100_000, Vec::new());
    regexes.find(&pcre, data, 0, &mut steps, &mut captures).map(|found| (found.start, found.end))
}

fn find(value: &str, data: &[u8]) -> Option<(usize, usize)> {
    find_with(&mut Regexes::default(), &format!("\"{value}\""), data)
}

/// Pattern, data, the match's ends.
type Row = (&'static str, &'static [u8], Option<(usize, usize)>);

#[test]
fn means_what_pcre_means() {
    let rows: &[Row] = &[
        ("/abc/", b"xabcx", Some((1, 4))),
        ("/ABC/i", b"xabcx", Some((1, 4))),
        ("/a.c/", b"a\nc", None),
        ("/a.c/s", b"a\nc", Some((0, 3))),
        ("/^b/", b"a\nb", None),
        ("/^b/m", b"a\nb", Some((2, 3))),
        ("/a$/", b"a\n", Some((0, 1))),
        ("/a$/", b"a\nb", None),
        ("/a$/m", b"a\nb", Some((0, 1))),
        ("/a$/E", b"a\n", None),
        ("/a\\Z/", b"a\n", Some((0, 1))),
        ("/a\\z/", b"a\n", None),
        ("/a b # c\n d/x", b"abd", Some((0, 3))),
        ("/b/A", b"ab", None),
        ("/a+/G", b"aaa", Some((0, 1))),
        ("/a+?/G", b"aaa", Some((0, 3))),
        ("/\\x41\\x{42}\\103/", b"ABC", Some((0, 3))),
        ("/\\e\\cA\\a\\f\\t/", b"\x1b\x01\x07\x0c\x09", Some((0, 5))),
        ("/[[:alpha:]]+[^[:^digit:]]/", b"--ab1", Some((2, 5))),
        ("/[]a]+/", b"x]a]", Some((1, 4))),
        ("/[^]a]+/", b"]xa]", Some((1, 2))),
        ("/[a-\\d]+/", b"z-9a", Some((1, 4))),
        ("/[\\w.-]+/", b" a-b. ", Some((1, 5))),
        ("/a{,2}/", b"a{,2}", Some((0, 5))),
        ("/a{2}{3}/", b"aaaaaaa", Some((0, 6))),
        ("/a{/", b"a{", Some((0, 2))),
        ("/a{x}]/", b"a{x}]", Some((0, 5))),
        ("/\\h+\\R/", b"a \t\r\n", Some((1, 5))),
        ("/\\N+/", b"\nab\n", Some((1, 3))),
        ("/(a)|b\\1/", b"ba", Some((1, 2))),
        ("/(?P<q>['\"]).*?(?P=q)/", b"x'a\"b'", Some((1, 6))),
        ("/(a+)b\\1c/", b"aabaac", Some((0, 6))),
        ("/(a)\\1/i", b"aA", Some((0, 2))),
        ("/foo(?!bar)/", b"foobar foobaz", Some((7, 10))),
        ("/foo(?=baz)/", b"foobar foobaz", Some((7, 10))),
        ("/(?<=a|bc)x/", b"bx bcx", Some((5, 6))),
        ("/(?<!a)x/", b"ax bx", Some((4, 5))),
        ("/(?>a+)ab/", b"aaab", None),
        ("/a++b/", b"aaab", Some((0, 4))),
        ("/a*+a/", b"aaa", None),
        ("/(?:ab|a)++b/", b"abab", None),
        ("/(?i)a(?-i)b/", b"Ab aB", Some((0, 2))),
        ("/a(?i:b)c/", b"aBc", Some((0, 3))),
        ("/(?:a(?i)b|c)d/", b"Cd", Some((0, 2))),
        ("/\\Qa.b\\E+/", b"a.bb", Some((0, 4))),
        ("/a\\Kb/", b"ab", Some((1, 2))),
        ("/(a)?(?(1)b|c)/", b"xc", Some((1, 2))),
        ("/(?|(a)|(b))\\1/", b"abb", Some((1, 3))),
        ("/(?=a)*b/", b"b", Some((0, 1))),
        ("/(a*)*b/", b"aaab", Some((0, 4))),
        ("/(?:a?)*?b/", b"aab", Some((0, 3))),
        ("/\\bfoo\\b/", b"xfoo foo", Some((5, 8))),
        ("/\\B-\\B/", b"--", Some((0, 1))),
        ("/(?#comment)a/", b"a", Some((0, 1))),
        ("/\\/\\//", b"//", Some((0, 2))),
        ("/[\\x00-\\x1f\\xff]/", b"a\xff", Some((1, 2))),
        ("/a|ab/", b"ab", Some((0, 1))),
        ("//", b"", Some((0, 0))),
        ("/x*/", b"aaa", Some((0, 0))),
    ];
    for (pattern, data, expected) in rows {
        assert_eq!(find(pattern, data), *expected, "{pattern} in {:?}", data.escape_ascii().to_string());
    }
}

#[test]
fn refuses_what_pcre_refuses() {
    let rows = [
        "abc",
        "\"abc\"",
        "\"/abc\"",
        "\"/(/\"",
        "\"/)/\"",
        "\"/[a/\"",
        "\"/*a/\"",
        "\"/a/z\"",
        "\"/[b-a]/\"",
        "\"/\\2(a)/\"",
        "\"/a{2,1}/\"",
        "\"/a{70000}/\"",
        "\"/\\x{100}/\"",
        "\"/(?P<1a>b)/\"",
        "\"/(?P=a)/\"",
        "\"/(?<=a+)b/\"",
        "\"/(?R)/\"",
        "\"/a/, flow:x\"",
        "\"/(a)/, disk:x\"",
        "\"/[[:nothing:]]/\"",
        "\"/((((a{999}){999}){999}){999})/\"",
    ];
    for value in rows {
        assert!(Pcre::parse(value).is_err(), "{value}");
    }
    let deep = format!("\"/{}a{}/\"", "(".repeat(1_000), ")".repeat(1_000));
    assert!(Pcre::parse(&deep).is_err());
}

#[test]
fn reads_switches_and_captures() {
    let value = "!\"/^(.*)\\/(\\d+)/RVG, flow:key,pkt:value\"";
    let pcre = Pcre::parse(value).unwrap();
    assert!(pcre.is_negated && pcre.is_relative && pcre.flags.ungreedy);
    assert_eq!(Pcre::buffer(value), Some("http.user_agent"));
    let mut regexes = Regexes::default();
    let (mut steps, mut captures) = (1_000, Vec::new());
    assert!(regexes.find(&pcre, b"Mozilla/5.0", 0, &mut steps, &mut captures).is_some());
    let names: Vec<_> = captures.iter().map(|c| (c.scope, &*c.name, &c.value[..])).collect();
    assert_eq!(names, [(CaptureScope::Flow, "key", &b"Mozilla"[..]), (CaptureScope::Packet, "value", b"5")]);
    let pcre = Pcre::parse("\"/(?P<flow_ua>.*)\\r\\n/HR\"").unwrap();
    captures.clear();
    assert!(regexes.find(&pcre, b"curl\r\n", 0, &mut steps, &mut captures).is_some());
    assert_eq!((&*captures[0].name, &captures[0].value[..]), ("ua", &b"curl"[..]));
}

#[test]
fn cache_stays_within_its_bounds() {
    let mut regexes = Regexes::new(8, 64 << 10);
    let data = vec![b'-'; 2_000];
    for round in 0..200 {
        assert_eq!(find_with(&mut regexes, &format!("\"/a{round}[bc]+d/\""), &data), None);
        assert!(regexes.entries.len() <= 8);
    }
    let sum: usize = regexes.entries.values().map(|entry| entry.bytes).sum();
    assert_eq!(sum, regexes.bytes);
}

#[test]
fn hostile_bytes_end_in_bounded_time() {
    let data = vec![b'a'; 100_000];
    // the machine alone would take exponential time; the automaton answers
    assert_eq!(find("/(?:a|aa)+b/", &data), None);
    assert_eq!(find("/(?:a|aa)+b/", &data[..400]), None);
    // no automaton: given up
    assert_eq!(find("/(a|aa)+\\1b/", &data), None);
    assert_eq!(find("/(?=(a+)+b)a/", &data), None);
}

struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % most
    }
}

fn pattern(random: &mut Random, depth: usize, out: &mut String) {
    for _ in 0..=random.below(3) {
        match random.below(if depth > 2 { 8 } else { 12 }) {
            0..=3 => out.push(char::from(b"abc"[random.below(3)])),
            4 => out.push('.'),
            5 => out.push_str(["[ab]", "[^a]", "\\w", "\\n"][random.below(4)]),
            6 => out.push_str(["\\b", "\\B", "^", "$"][random.below(4)]),
            7 => out.push_str(["\\n", "c", "(?i)B", "x?"][random.below(4)]),
            8 => {
                out.push_str(["(", "(?:", "(?:"][random.below(3)]);
                pattern(random, depth + 1, out);
                out.push(')');
            }
            9 => {
                out.push_str("(?:");
                pattern(random, depth + 1, out);
                out.push('|');
                pattern(random, depth + 1, out);
                out.push(')');
            }
            _ => {
                out.push(char::from(b"abc"[random.below(3)]));
                out.push_str(["*", "+", "?", "*?", "+?", "{2}", "{1,2}", "{0,2}?"][random.below(8)]);
            }
        }
    }
}

/// The two engines are each other's reference.
#[test]
fn machine_and_automaton_agree() {
    let mut random = Random(0x5eed);
    let mut compared = 0;
    for _ in 0..4_000 {
        let mut text = String::new();
        pattern(&mut random, 0, &mut text);
        let tree = syntax::parse(text.as_bytes(), Flags::default()).unwrap_or_else(|reason| panic!("{text}: {reason}"));
        let Ok(program) = Program::new(&tree) else { continue };
        let Some(mut automaton) = Automaton::new(&tree) else { continue };
        for _ in 0..6 {
            let data: Vec<u8> = (0..random.below(9)).map(|_| b"abcABC\n-"[random.below(8)]).collect();
            let from = random.below(data.len() + 1);
            let mut budget = 1_000_000;
            let exact = Machine::default().search(&program, &data, from, false, &mut budget).unwrap();
            let fast = automaton.search(&data, from, false);
            compared += 1;
            assert_eq!(exact.map(|found| found.0), fast.map(|found| found.0), "{text:?} in {data:?} from {from}");
            if !text.contains('$') {
                assert_eq!(exact, fast, "{text:?} in {data:?} from {from}");
            }
        }
    }
    assert!(compared > 5_000, "{compared}");
}

/// Reports on the `pcre` options of the rules in the directory that `TIDEGATE_RULES` names.
#[test]
#[ignore = "needs a directory of rules"]
fn report_on_public_rules() {
    let directory = std::env::var("TIDEGATE_RULES").unwrap();
    let (mut all, mut refused, mut finite, mut bytes) = (0, 0, 0, 0);
    let began = std::time::Instant::now();
    let mut fast = std::time::Duration::ZERO;
    let mut programs = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let text = std::fs::read(file.unwrap().path()).unwrap();
        let text: String = text.iter().map(|byte| char::from(*byte)).collect();
        for (at, _) in text.match_indices("pcre:") {
            let rest = &text[at + 5..];
            let end = rest.char_indices().scan(false, |escaped, (at, c)| {
                let was = std::mem::replace(escaped, c == '\\' && !*escaped);
                Some((at, c == ';' && !was))
            });
            let Some((end, _)) = end.clone().find(|(_, is_end)| *is_end) else { continue };
            all += 1;
            match Pcre::parse(&rest[..end]) {
                Ok(pcre) => {
                    let began = std::time::Instant::now();
                    let tree = syntax::parse(pcre.pattern.as_bytes(), pcre.flags).unwrap();
                    programs += Program::new(&tree).unwrap().heap_bytes();
                    if let Some(automaton) = Automaton::new(&tree) {
                        finite += 1;
                        bytes += automaton.heap_bytes();
                    }
                    fast += began.elapsed();
                }
                Err(reason) => {
                    refused += 1;
                    println!("{reason}: {}", &rest[..end]);
                }
            }
        }
    }
    let read = began.elapsed() - fast;
    println!("{all} pcre, {refused} refused, {finite} with an automaton of {} bytes each", bytes / finite.max(1));
    println!("programs of {} bytes each; read in {read:?}, automata in {fast:?}", programs / all.max(1));
}

/// Whatever stands between the slashes, it is read or refused, and what was read can be searched for.
#[test]
fn any_text_is_read_or_refused() {
    let mut random = Random(0xface);
    let (mut read, mut machine) = (0, Machine::default());
    let parts = [
        "a",
        "b",
        "\\",
        "(",
        ")",
        "(?",
        "(?:",
        "(?=",
        "(?<!",
        "(?P<n>",
        "(?P=n)",
        "(?>",
        "(?|",
        "(?(1)",
        "[",
        "]",
        "[^",
        "-",
        "[:alpha:]",
        "|",
        "*",
        "+",
        "?",
        "{",
        "}",
        "{2}",
        "{1,3}",
        ",",
        "^",
        "$",
        ".",
        "\\d",
        "\\1",
        "\\12",
        "\\x4",
        "\\x{41}",
        "\\c",
        "\\g{-1}",
        "\\k<n>",
        "\\Q",
        "\\E",
        "\\K",
        "\\G",
        "\\R",
        "\\Z",
        "\\b",
        "(?i)",
        "(?x)",
        "#",
        " ",
        "\n",
        "\u{e9}",
        "\\0",
        "\\o{7}",
        "{65535}",
        "(?U-s:",
    ];
    for _ in 0..60_000 {
        let text: String = (0..random.below(9)).map(|_| parts[random.below(parts.len())]).collect();
        let flags = Flags { caseless: random.below(2) == 0, extended: random.below(4) == 0, ..Flags::default() };
        let Ok(tree) = syntax::parse(text.as_bytes(), flags) else { continue };
        let Ok(program) = Program::new(&tree) else { continue };
        read += 1;
        let data: Vec<u8> = (0..random.below(12)).map(|_| b"abAB\n\r\xe9-"[random.below(8)]).collect();
        let from = random.below(data.len() + 1);
        let found = machine.search(&program, &data, from, false, &mut 20_000);
        if let Ok(Some((start, end))) = found {
            assert!(start <= end && end <= data.len(), "{text:?}");
        }
        if program.steps.len() < 1_000
            && let Some(mut automaton) = Automaton::new(&tree)
        {
            automaton.search(&data, from, false);
        }
    }
    assert!(read > 10_000, "{read}");
}
