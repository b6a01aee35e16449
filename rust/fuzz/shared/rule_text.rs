//! Invariant: any text loads or is refused with a reason; what was loaded can be grouped and looked for in hostile bytes
//! within its steps.

use std::sync::Arc;

use inspect::{Detector, Inspector};
use protocols::Settings;
use sensor::{Direction, Frame, Link, SipKey};
use signatures::{Context, Environment, Files, Inspection, Outcome, Regexes, RuleSet, Source, Subject};

/// Bytes that backtracking likes.
const BYTES: &[u8] =
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab\x00\xff\x01\x7f0123456789==abc";
/// Up to this byte, the input stands inside a rule: else nearly every input fails at the header.
const INSIDE_A_RULE: u8 = 0xc0;
const HEADERS: [&str; 8] = [
    "alert tcp any any -> any any (",
    "alert http any any -> any any (http.uri; ",
    "drop udp $HOME_NET any <> [10.0.0.0/8,!10.1.0.0/16] ![1:99] (",
    "alert dns any any -> any any (dns.query; ",
    "alert tls any any -> any any (tls.sni; ",
    "reject icmp any any -> any any (",
    "pass modbus any any -> any any (",
    "alert ip any any -> any any (",
];

struct OneFile;

impl Files for OneFile {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        match name.len() % 2 {
            0 => Ok(b"a\nYWJj,5\n10.0.0.1,1,100\n{\"a\":\"b\"}\n".to_vec()),
            _ => Err("no such file".to_owned()),
        }
    }
}

/// Load, group, look.
pub fn run(input: &[u8]) {
    let Some((choice, bytes)) = input.split_first() else { return };
    let inside = usize::from(*choice) % HEADERS.len();
    let text = match *choice < INSIDE_A_RULE {
        true => [HEADERS[inside].as_bytes(), bytes, b"; sid:1;)\n"].concat(),
        false => bytes.to_vec(),
    };
    let mut settings = Settings::default();
    settings.set("vars.address-groups.HOME_NET", "[192.168.0.0/16]");
    let (thresholds, configuration) = if choice % 2 == 1 { (bytes, bytes) } else { (&b""[..], &b""[..]) };
    let (thresholds, configuration) = (String::from_utf8_lossy(thresholds), String::from_utf8_lossy(configuration));
    let environment = Environment {
        settings: &settings,
        classification: &configuration,
        reference: &configuration,
        thresholds: &thresholds,
        files: &OneFile,
    };
    let rules = RuleSet::load(&[Source { name: "fuzz", text: &text }], &environment);
    let mut approximated = 0;
    for entry in &rules.report {
        match &entry.outcome {
            Outcome::Refused(reason) => assert!(!reason.is_empty()),
            Outcome::Approximated(reason) => {
                assert!(!reason.is_empty());
                approximated += 1;
            }
            Outcome::Loaded => {}
        }
    }
    assert!(rules.signatures.len() <= rules.loaded as usize + approximated);
    for rule in &rules.signatures {
        rule.payload.iter().for_each(|inspection| look(inspection));
        rule.packet_buffers.iter().for_each(|(_, inspection)| look(inspection));
        for test in &rule.transaction_tests {
            if let signatures::TransactionTest::Buffer(test) = test {
                look(&test.inspection);
                let mut out = Vec::new();
                test.transforms.iter().for_each(|transform| transform.apply(BYTES, &mut out));
            }
        }
    }
    inspect(rules, settings);
}

fn look(inspection: &Inspection) {
    let mut regexes = Regexes::default();
    for (data, start, is_complete) in [(BYTES, 0, true), (&[], 0, true), (BYTES, 7, false)] {
        let mut steps = Context::STEPS;
        let mut context = Context {
            variables: &mut Vec::new(),
            steps: &mut steps,
            regexes: &mut regexes,
            captures: &mut Vec::new(),
            is_dce_little: false,
        };
        inspection.matches(Subject { data, start, is_complete }, &mut context);
        assert!(steps <= Context::STEPS);
    }
}

fn inspect(rules: RuleSet, settings: Settings) {
    let mut inspector = Inspector::new(settings, Some(Arc::new(Detector::new(rules))), 1 << 20, SipKey([1, 2]));
    let frames: [&[u8]; 2] = [
        b"\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\x45\0\0\x28\0\x01\0\0\x40\x11\0\0\x0a\0\0\x01\x0a\0\0\x02\0\x35\0\x35\0\x14\0\0aaaabcdefghi",
        b"\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\x45\0\0\x28\0\x01\0\0\x40\x06\0\0\x0a\0\0\x01\x0a\0\0\x02\x04\xd2\0\x50\0\0\0\x07\0\0\0\x09\x50\x02\x04\0\0\0\0\0",
    ];
    for (number, data) in frames.into_iter().enumerate() {
        let frame = Frame {
            time_us: 1_000_000 + number as u64,
            data,
            wire_bytes: data.len() as u32,
            link: Link::Ethernet,
            direction: Direction::Unknown,
        };
        inspector.packet(&frame);
    }
    while inspector.finish() {
        while inspector.next_line().is_some() {}
    }
}
