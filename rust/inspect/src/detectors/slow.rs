//! Scans over hours: how many different ports and hosts failed a source, in two bitmaps for each source.
//!
//! Linear counting (Whang, Vander-Zanden, Taylor, "A linear-time probabilistic counting algorithm", 1990): of 512 bits,
//! 100 different targets set some 91, with an error of a few targets.

use sensor::SipKey;

use super::Context;
use super::finding::{Kind, Subject, Value};
use super::reporter::Count;
use super::table::{Entry, Table, TableCounters, words};

const WORDS: usize = 8;
const BITS: f64 = 512.0;

#[derive(Clone, Default)]
struct Source {
    /// This half of the window and the one before.
    halves: [[u64; WORDS]; 2],
    half_us: u64,
    failures: u32,
}

impl Source {
    fn ones(&self) -> u32 {
        let [now, before] = &self.halves;
        now.iter().zip(before).map(|(now, before)| (now | before).count_ones()).sum()
    }

    fn distinct(&self) -> f64 {
        let zeros = (BITS - f64::from(self.ones())).max(1.0);
        -BITS * (zeros / BITS).ln()
    }

    fn add(&mut self, hash: u64, now_us: u64, half_us: u64) {
        let age_us = now_us.saturating_sub(self.half_us);
        if age_us >= half_us || self.half_us > now_us {
            let before = if age_us < half_us.saturating_mul(2) { self.halves[0] } else { [0; WORDS] };
            (self.halves, self.half_us, self.failures) = ([[0; WORDS], before], now_us, 0);
        }
        self.failures = self.failures.saturating_add(1);
        let [now, _] = &mut self.halves;
        if let Some(word) = now.get_mut((hash >> 6) as usize % WORDS) {
            *word |= 1 << (hash & 63);
        }
    }
}

impl Entry for Source {
    fn weight(&self) -> u32 {
        self.ones()
    }
}

/// Sources and what failed them.
pub struct Slow {
    sources: Table<2, Source>,
    key: SipKey,
    half_us: u64,
}

impl Slow {
    /// Return an empty table within `bytes`.
    pub fn new(bytes: usize, key: SipKey, window_us: u64) -> Slow {
        Slow { sources: Table::new(bytes, window_us, key), key, half_us: window_us / 2 }
    }

    /// Bytes of the table.
    pub fn bytes(&self) -> usize {
        self.sources.bytes()
    }

    /// What happened to entries.
    pub fn counters(&self) -> TableCounters {
        self.sources.counters
    }

    /// A target of ours failed a source. What goes out is not counted: peers of file sharing fail by the hundred.
    pub fn failed(&mut self, source: u128, destination: u128, port: u32, protocol: u8, context: &mut Context<'_>) {
        if !context.config.is_on(Kind::SlowScan) || !context.config.home.contains(destination) {
            return;
        }
        let [a, b] = words(destination);
        let hash = self.key.hash(&[a, b, port.into(), protocol.into()]);
        let half_us = self.half_us;
        let Some((_, entry)) = self.sources.enter(&words(source), context.now_us) else { return };
        entry.add(hash, context.now_us, half_us);
        let distinct = entry.distinct();
        if distinct < f64::from(context.config.scans.slow_targets) || context.reporter.is_scanning(source) {
            return;
        }
        let subject = Subject { source, protocol, ..Subject::default() };
        let count = Count::so_far(entry.failures);
        context.reporter.report(Kind::SlowScan, subject, count, context.now_us, || {
            vec![("distinct_targets", Value::Number(distinct as u64))]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_targets_are_estimated_and_forgotten_after_the_window() {
        let key = SipKey([1, 2]);
        let mut source = Source::default();
        for round in 0..3 {
            for target in 0..100 {
                source.add(key.hash(&[target]), 1_000_000 + round, 1 << 40);
            }
        }
        assert!((source.distinct() - 100.0).abs() < 12.0, "{}", source.distinct());
        source.add(1, 1_000_000 + (3 << 40), 1 << 40);
        assert_eq!(source.ones(), 1);
    }
}
