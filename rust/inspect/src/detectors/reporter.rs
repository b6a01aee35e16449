//! From what detectors notice to findings: a start, updates, an end, and never a flood of them.
//!
//! A detector calls [`Reporter::report`] each time that its condition holds. One alert stands for one kind, source and
//! destination. A kind that begins more alerts than [`MOST_STARTS`] in a window is attacked by invented addresses:
//! the surplus is one alert without ends, with a count.

use sensor::SipKey;

use super::config::Home;
use super::finding::{Evidence, Finding, Kind, Phase, Subject};
use super::table::words;

/// Alerts of one kind that are open at once: more, and nobody reads them. Each has at most some hundred bytes.
const MOST_OPEN: usize = 32;
/// Alerts of one kind that begin within [`WINDOW_US`] before the rest become one.
const MOST_STARTS: u32 = 10;
const WINDOW_US: u64 = 60_000_000;
/// What ends only after an hour is not told more often than that.
const HOUR_US: u64 = 3_600_000_000;
/// Findings that wait to be taken; the engine takes them after every packet.
const MOST_WAITING: usize = 512;

struct Open {
    hash: u64,
    kind: Kind,
    subject: Subject,
    evidence: Evidence,
    count: u64,
    last_us: u64,
    reported_us: u64,
}

/// How many findings there were and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ReportCounters {
    pub started: u64,
    pub merged: u64,
    pub refused: u64,
}

/// How much a report stands for: of everything so far if it begins an alert, or since the last report.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct Count {
    pub first: u64,
    pub more: u64,
}

impl Count {
    /// One thing each time.
    pub const ONE: Count = Count { first: 1, more: 1 };

    /// So many so far, then one each time.
    pub fn so_far(first: impl Into<u64>) -> Count {
        Count { first: first.into(), more: 1 }
    }
}

/// Open alerts and findings that wait.
pub struct Reporter {
    open: Vec<Open>,
    waiting: Vec<Finding>,
    starts: Vec<(u64, u32)>,
    key: SipKey,
    update_us: u64,
    ignored: Home,
    /// What happened so far.
    pub counters: ReportCounters,
}

impl Reporter {
    /// Return a reporter that updates an open alert every `update_us` and says nothing about `ignored` sources.
    pub fn new(update_us: u64, ignored: Home, key: SipKey) -> Reporter {
        Reporter {
            open: Vec::new(),
            waiting: Vec::new(),
            starts: vec![(0, 0); Kind::ALL.len()],
            key,
            update_us,
            ignored,
            counters: ReportCounters::default(),
        }
    }

    /// Take what waits.
    pub fn take(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.waiting)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether a scan or sweep of that source is being reported.
    pub fn is_scanning(&self, source: u128) -> bool {
        let is_scan = |kind| {
            use Kind::{AckScan, ConnectScan, TcpSweep, UdpScan, UdpSweep};
            matches!(kind, ConnectScan | TcpSweep | UdpSweep | UdpScan | AckScan)
        };
        self.open.iter().any(|open| open.subject.source == source && is_scan(open.kind))
    }

    /// A condition holds.
    pub fn report(
        &mut self,
        kind: Kind,
        subject: Subject,
        count: Count,
        now_us: u64,
        evidence: impl FnOnce() -> Evidence,
    ) {
        if self.ignored.contains(subject.source) {
            return;
        }
        let hash = self.hash(kind, &subject);
        if let Some(index) = self.open.iter().position(|open| open.hash == hash) {
            return self.go_on(index, count.more, now_us, evidence);
        }
        let open = self.open.iter().filter(|open| open.kind == kind).count();
        if open < MOST_OPEN && self.may_start(kind, now_us) {
            return self.start(hash, kind, subject, count.first, now_us, evidence());
        }
        self.counters.merged += 1;
        let merged = Subject { protocol: subject.protocol, ..Subject::default() };
        let hash = self.hash(kind, &Subject::default());
        match self.open.iter().position(|open| open.hash == hash) {
            Some(index) => self.go_on(index, count.more, now_us, merged_evidence),
            // one for each kind, beyond the number of others: still bounded
            None => self.start(hash, kind, merged, count.more, now_us, merged_evidence()),
        }
    }

    fn go_on(&mut self, index: usize, count: u64, now_us: u64, evidence: impl FnOnce() -> Evidence) {
        let update_us = self.update_us;
        let Some(open) = self.open.get_mut(index) else { return };
        open.count = open.count.saturating_add(count);
        open.last_us = open.last_us.max(now_us);
        let quiet_us = u64::from(open.kind.info().quiet_s) * 1_000_000;
        let wait_us = if quiet_us >= HOUR_US { quiet_us } else { update_us.max(quiet_us / 4) };
        if now_us.saturating_sub(open.reported_us) >= wait_us {
            open.evidence = evidence();
            self.tell(index, Phase::Update, now_us);
        }
    }

    fn may_start(&mut self, kind: Kind, now_us: u64) -> bool {
        let Some((window_us, count)) = self.starts.get_mut(kind as usize) else { return false };
        if now_us.saturating_sub(*window_us) >= WINDOW_US || *window_us > now_us {
            (*window_us, *count) = (now_us, 0);
        }
        *count = count.saturating_add(1);
        *count <= MOST_STARTS
    }

    fn start(&mut self, hash: u64, kind: Kind, subject: Subject, count: u64, now_us: u64, evidence: Evidence) {
        self.counters.started += 1;
        let open = Open { hash, kind, subject, evidence, count, last_us: now_us, reported_us: now_us };
        self.open.push(open);
        self.tell(self.open.len() - 1, Phase::Start, now_us);
    }

    fn tell(&mut self, index: usize, phase: Phase, now_us: u64) {
        let Some(open) = self.open.get_mut(index) else { return };
        open.reported_us = now_us;
        if self.waiting.len() >= MOST_WAITING {
            self.counters.refused += 1;
            return;
        }
        self.waiting.push(Finding {
            time_us: now_us,
            kind: open.kind,
            phase,
            subject: open.subject,
            count: open.count,
            evidence: open.evidence.clone(),
        });
    }

    /// End alerts that had nothing new for their time; `is_end`: end all of them.
    pub fn tick(&mut self, now_us: u64, is_end: bool) {
        let mut index = 0;
        while let Some(open) = self.open.get(index) {
            let quiet_us = u64::from(open.kind.info().quiet_s) * 1_000_000;
            if is_end || now_us.saturating_sub(open.last_us) >= quiet_us {
                self.tell(index, Phase::End, now_us);
                self.open.swap_remove(index);
            } else {
                index += 1;
            }
        }
    }

    fn hash(&self, kind: Kind, subject: &Subject) -> u64 {
        // a flood's sources are made up
        let source = if kind == Kind::AckFlood { 0 } else { subject.source };
        let ([a, b], [c, d]) = (words(source), words(subject.destination));
        // the service distinguishes alerts only where an alert is about one
        let port = match kind {
            Kind::TcpSweep | Kind::UdpSweep | Kind::BruteForce | Kind::Slowloris | Kind::Beacon => {
                subject.destination_port
            }
            Kind::NewService | Kind::NewPeer | Kind::IcsNewFunction | Kind::IcsWriteRate => subject.destination_port,
            _ => 0,
        };
        self.key.hash(&[kind as u64, a, b, c, d, port.into()])
    }
}

fn merged_evidence() -> Evidence {
    vec![("merged", super::finding::Value::Number(1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(source: u128) -> Subject {
        Subject { source, destination: 9, protocol: 6, ..Subject::default() }
    }

    #[test]
    fn an_alert_starts_goes_on_and_ends() {
        let mut reporter = Reporter::new(5_000_000, Home::default(), SipKey([1, 2]));
        for now_us in (0..10_000_000).step_by(100_000) {
            reporter.report(Kind::ConnectScan, subject(1), Count::ONE, now_us, Vec::new);
        }
        reporter.tick(19_000_000, false);
        reporter.tick(19_900_000, false);
        let told: Vec<_> = reporter.take().into_iter().map(|finding| (finding.phase, finding.count)).collect();
        assert_eq!(told, [(Phase::Start, 1), (Phase::Update, 51), (Phase::End, 100)]);
    }

    #[test]
    fn a_million_invented_sources_are_one_alert() {
        let mut reporter = Reporter::new(5_000_000, Home::default(), SipKey([1, 2]));
        let mut told = Vec::new();
        for number in 0..1_000_000_u64 {
            reporter.report(Kind::ConnectScan, subject(u128::from(number) + 1), Count::ONE, number, Vec::new);
            told.extend(reporter.take());
        }
        reporter.tick(2_000_000, true);
        assert!(told.len() <= MOST_STARTS as usize + 2, "{}", told.len());
        let ends = reporter.take();
        assert_eq!(ends.iter().map(|finding| finding.count).sum::<u64>(), 1_000_000);
        assert!(ends.len() <= MOST_STARTS as usize + 1);
    }
}
