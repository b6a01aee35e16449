//! Runs a capture file through deep inspection and prints what it cost: `inspect CAPTURE [RULES…]`.
//!
//! For profiling and for finding out where time goes; the benchmark that counts is `make bench NAME=ids`.

use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use capture::{CaptureFile, Record};
use inspect::{Detector, Inspector};
use protocols::Settings;
use sensor::{CaptureCounters, SipKey};
use signatures::{Environment, Files, RuleSet, Source};

struct NoFiles;

impl Files for NoFiles {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        std::fs::read(name).map_err(|error| error.to_string())
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn load(paths: &[String], settings: &Settings) -> Result<Option<Arc<Detector>>, std::io::Error> {
    if paths.is_empty() {
        return Ok(None);
    }
    let texts: Vec<(String, Vec<u8>)> =
        paths.iter().map(|path| Ok((path.clone(), std::fs::read(path)?))).collect::<Result<_, std::io::Error>>()?;
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let environment = Environment { settings, classification: "", reference: "", thresholds: "", files: &NoFiles };
    let begun = Instant::now();
    let rules = RuleSet::load(&sources, &environment);
    println!("{} rules in {:?}, {} KiB resident", rules.signatures.len(), begun.elapsed(), resident_kib());
    let detector = Detector::new(rules);
    drop(texts);
    println!(
        "grouped after {:?}, matcher {} bytes, {} KiB resident",
        begun.elapsed(),
        detector.groups.heap_bytes(),
        resident_kib()
    );
    Ok(Some(Arc::new(detector)))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some((path, rules)) = words.split_first() else { return Err("name a capture".into()) };
    let settings = Settings::default();
    let detector = load(rules, &settings)?;
    let mut inspector = Inspector::new(settings, detector, 24 << 20, SipKey([1, 2]));
    let mut file = CaptureFile::open(File::open(path)?)?;
    let begun = Instant::now();
    let (mut packets, mut lines) = (0_u64, 0_u64);
    while let Record::Frame(frame) = file.next_record()? {
        inspector.packet(&frame);
        packets += 1;
        while inspector.next_line().is_some() {
            lines += 1;
        }
    }
    while inspector.finish() {
        while inspector.next_line().is_some() {
            lines += 1;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{packets} packets in {seconds:.2} s: {:.0} a second, {lines} lines, {} KiB resident",
        packets as f64 / seconds,
        resident_kib()
    );
    if std::env::var_os("STATS").is_some() {
        println!("{}", inspector.stats_line(&CaptureCounters::default()));
    }
    Ok(())
}
