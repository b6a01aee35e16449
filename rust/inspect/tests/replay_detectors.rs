//! Public captures, most of them of ordinary traffic: what the detectors say about them all, with default settings.
//!
//! Set `TIDEGATE_CORPORA` to the folder with `ndpi-pcap` and `suricata-verify`; without them the test says so and is over.
//! `TIDEGATE_SHOW=1` prints every alert with its capture.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use capture::{CaptureFile, Record};
use inspect::{Inspector, Kind};
use protocols::Settings;
use sensor::SipKey;

/// As on a small device.
const MEMORY_BYTES: usize = 16 << 20;

fn corpora() -> Option<PathBuf> {
    std::env::var_os("TIDEGATE_CORPORA").map(PathBuf::from).filter(|folder| folder.is_dir())
}

fn captures(folder: &Path, list: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            captures(&path, list);
        } else if path.extension().is_some_and(|kind| kind == "pcap" || kind == "pcapng" || kind == "cap") {
            list.push(path);
        }
    }
}

/// Return the starts of alerts in one capture: the detector's name and the line.
fn replay(path: &Path) -> Vec<(String, String)> {
    let Some(mut file) = File::open(path).ok().and_then(|file| CaptureFile::open(file).ok()) else { return Vec::new() };
    let mut settings = Settings::default();
    settings.set("outputs.eve-log.enabled-types", "alert");
    let mut inspector = Inspector::new(settings, None, MEMORY_BYTES, SipKey([1, 2]));
    let mut found = Vec::new();
    loop {
        match file.next_record() {
            Ok(Record::Frame(frame)) => inspector.packet(&frame),
            Ok(Record::UnsupportedLink) => {}
            _ => break,
        }
        collect(&mut inspector, &mut found);
    }
    while inspector.finish() {
        collect(&mut inspector, &mut found);
    }
    collect(&mut inspector, &mut found);
    found
}

fn collect(inspector: &mut Inspector, found: &mut Vec<(String, String)>) {
    while let Some(line) = inspector.next_line() {
        let name = line.split("\"detector\":\"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
        if let (Some(name), true) = (name, line.contains("\"state\":\"start\"")) {
            found.push((name, line));
        }
    }
}

/// Alerts that are right, or that nobody could call wrong from the packets alone: each was looked into.
const EXPECTED: &[(&str, usize)] = &[
    // bad-dns-traffic.pcap: dnscat2 below skullseclabs.org
    ("dns.tunnel", 1),
    // bacnet.pcap: scanners of the Internet ask a device for its properties, for more than an hour
    ("ics.new-function", 1),
    // synscan.pcap: nmap, as its name says
    ("scan.connect", 1),
    // fuzz-2006-06-26-2594.pcap: a fuzzer changed the hardware address in an ARP reply
    ("spoof.arp", 1),
];

#[test]
fn malformed_and_industrial_captures_do_no_harm() {
    let Some(folder) = corpora() else {
        println!("skipped: no captures (set TIDEGATE_CORPORA)");
        return;
    };
    let mut paths = Vec::new();
    ["malformed-pcap", "ics-pcap", "ja4"].iter().for_each(|part| captures(&folder.join(part), &mut paths));
    let kinds: BTreeMap<String, usize> =
        paths.iter().flat_map(|path| replay(path)).fold(BTreeMap::new(), |mut sum, (name, _)| {
            *sum.entry(name).or_default() += 1;
            sum
        });
    println!("{} captures, {kinds:?}", paths.len());
    // DNP3 devices that are told to restart or stop after hours of polls; two DHCPv6 servers on one link
    let expected: BTreeMap<String, usize> = [("ics.new-function".to_owned(), 8), ("rogue.dhcp".to_owned(), 1)].into();
    assert!(paths.is_empty() || kinds == expected, "{kinds:?}");
}

#[test]
fn ordinary_traffic_raises_next_to_nothing() {
    let Some(folder) = corpora() else {
        println!("skipped: no captures (set TIDEGATE_CORPORA)");
        return;
    };
    let mut paths = Vec::new();
    ["ndpi-pcap", "suricata-verify"].iter().for_each(|part| captures(&folder.join(part), &mut paths));
    paths.sort();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for path in &paths {
        for (name, line) in replay(path) {
            if std::env::var_os("TIDEGATE_SHOW").is_some() {
                println!("{} {line}", path.display());
            }
            *counts.entry(name).or_default() += 1;
        }
    }
    println!("{} captures", paths.len());
    for kind in Kind::ALL {
        println!("{:24} {}", kind.info().name, counts.get(kind.info().name).copied().unwrap_or_default());
    }
    let expected: BTreeMap<String, usize> = EXPECTED.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert!(paths.is_empty() || counts == expected, "{counts:?}");
}
