//! Loads every `*.rules` file of a folder and prints how many rules load, how long it takes, what memory it keeps,
//! and why the others do not: `cargo run --release --example load_report -- FOLDER`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use protocols::Settings;
use signatures::{Environment, Files, Outcome, RuleSet, Source};

struct Folder<'a>(&'a Path);

impl Files for Folder<'_> {
    fn read(&self, name: &str) -> Result<Vec<u8>, String> {
        std::fs::read(self.0.join(name)).map_err(|error| error.to_string())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("a folder is expected")?;
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rules") {
            texts.push((path.display().to_string(), std::fs::read(&path)?));
        }
    }
    texts.sort();
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let environment = Environment {
        settings: &Settings::default(),
        classification: "",
        reference: "",
        thresholds: "",
        files: &Folder(Path::new(&folder)),
    };
    let (before, start) = (resident_kib(), Instant::now());
    let rules = RuleSet::load(&sources, &environment);
    let (seconds, after) = (start.elapsed().as_secs_f64(), resident_kib());
    print(&rules);
    println!("{seconds:.3} s, {} KiB more resident", after.saturating_sub(before));
    Ok(())
}

fn print(rules: &RuleSet) {
    let (mut approximated, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for entry in &rules.report {
        let (reasons, reason) = match &entry.outcome {
            Outcome::Loaded => continue,
            Outcome::Approximated(reason) => (&mut approximated, reason),
            Outcome::Refused(reason) => (&mut refused, reason),
        };
        let (count, example) = reasons.entry(reason.as_str()).or_insert((0u32, entry.sid));
        *count += 1;
        *example = entry.sid;
    }
    let total = |reasons: &BTreeMap<&str, (u32, u32)>| reasons.values().map(|(count, _)| count).sum::<u32>();
    println!("{} loaded, {} approximated, {} refused", rules.loaded, total(&approximated), total(&refused));
    for (title, reasons) in [("approximated", approximated), ("refused", refused)] {
        let mut reasons: Vec<_> = reasons.into_iter().collect();
        reasons.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
        for (reason, (count, example)) in reasons.into_iter().take(40) {
            println!("{title} {count:6} {reason} (as sid {example})");
        }
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
