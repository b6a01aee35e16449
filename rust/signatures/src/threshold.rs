//! `threshold`, `detection_filter`, and the file of thresholds, rate filters and suppressions.

mod file;

use std::collections::HashMap;

use crate::address::AddressSet;
use crate::bounded::Bounded;
use crate::effects::HostKey;
use crate::model::{Action, Signature};
use crate::parse::unquoted;

/// Counters held at once; then the oldest is forgotten, and its count begins anew. 16 thousand are 1.5 MiB.
const MOST_COUNTERS: usize = 16 << 10;
const MICROSECONDS: u64 = 1_000_000;

/// What counts together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[allow(missing_docs)]
pub enum Track {
    Source,
    Destination,
    /// The two addresses, whichever way.
    Both,
    Rule,
    Flow,
}

impl Track {
    pub(crate) fn parse(text: &str) -> Result<Track, String> {
        Ok(match text {
            "by_src" => Track::Source,
            "by_dst" => Track::Destination,
            "by_both" => Track::Both,
            "by_rule" => Track::Rule,
            "by_flow" => Track::Flow,
            other => return Err(format!("{other} is nothing to track")),
        })
    }
}

/// Which matches make alerts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// The first so many of each time span.
    Limit,
    /// Every so many-th of each time span.
    Threshold,
    /// Once in each time span, when so many have come.
    Both,
    /// When so many have come, and then each time the number has multiplied.
    Backoff {
        /// By how much.
        multiplier: u32,
    },
    /// `detection_filter`: all beyond so many in a time span.
    Beyond,
}

/// How many matches make an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    /// Which.
    pub limit: Limit,
    /// What counts together.
    pub track: Track,
    /// How many.
    pub count: u32,
    /// The time span; without meaning for `backoff`.
    pub seconds: u32,
}

impl Threshold {
    /// Read `type limit, track by_src, count 1, seconds 60`, in any order.
    pub(crate) fn parse(text: &str) -> Result<Threshold, String> {
        let fields = Fields::parse(unquoted(text)?, &["type", "track", "count", "seconds", "multiplier"])?;
        let limit = match fields.required("type")? {
            "limit" => Limit::Limit,
            "threshold" => Limit::Threshold,
            "both" => Limit::Both,
            "backoff" => Limit::Backoff { multiplier: fields.number("multiplier")? },
            other => return Err(format!("{other} is no type of threshold")),
        };
        let is_backoff = matches!(limit, Limit::Backoff { .. });
        if is_backoff == fields.get("seconds").is_some() || is_backoff != fields.get("multiplier").is_some() {
            return Err("backoff takes a multiplier, the others take seconds".to_owned());
        }
        let track = Track::parse(fields.required("track")?)?;
        if is_backoff && track != Track::Flow {
            return Err("backoff is by flow".to_owned());
        }
        let seconds = if is_backoff { 0 } else { fields.number("seconds")? };
        Ok(Threshold { limit, track, count: fields.number("count")?, seconds })
    }

    /// Read a `detection_filter`.
    pub(crate) fn parse_filter(text: &str) -> Result<Threshold, String> {
        let fields = Fields::parse(unquoted(text)?, &["track", "count", "seconds"])?;
        let (count, seconds) = (fields.number("count")?, fields.number("seconds")?);
        Ok(Threshold { limit: Limit::Beyond, track: Track::parse(fields.required("track")?)?, count, seconds })
    }
}

/// `key value, key value`.
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn parse(text: &'a str, known: &[&str]) -> Result<Fields<'a>, String> {
        let mut fields: Vec<(&str, &str)> = Vec::new();
        for field in crate::address::items(text)? {
            let (key, value) = field.split_once(char::is_whitespace).ok_or_else(|| format!("{field} has no value"))?;
            if !known.contains(&key) || fields.iter().any(|(other, _)| *other == key) {
                return Err(format!("{key} is unknown or there twice"));
            }
            fields.push((key, value.trim()));
        }
        Ok(Fields(fields))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn required(&self, key: &str) -> Result<&'a str, String> {
        self.get(key).ok_or_else(|| format!("{key} is missing"))
    }

    fn number(&self, key: &str) -> Result<u32, String> {
        match self.required(key)?.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{key} has to be a number above 0")),
        }
    }
}

/// Whose alerts are suppressed.
#[derive(Debug)]
struct Suppression {
    source: bool,
    destination: bool,
    /// `None`: whoever it is.
    addresses: Option<AddressSet>,
}

/// What becomes of a rule that matches too often.
#[derive(Debug)]
struct RateFilter {
    track: Track,
    count: u32,
    seconds: u32,
    action: Action,
    timeout_s: u32,
}

/// What the file says about one rule, or about many.
#[derive(Debug, Default)]
struct Settings {
    threshold: Option<Threshold>,
    suppressions: Vec<Suppression>,
    rate_filters: Vec<RateFilter>,
}

/// What becomes of a match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// As the rule says.
    Alert,
    /// Nothing: not often enough yet.
    Suppress,
    /// No alert, but the rule's action.
    SuppressAlertKeepAction,
    /// An alert, and this action instead of the rule's.
    ChangeAction(Action),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Who {
    Host(HostKey),
    Rule,
    Flow(u64),
}

/// Which counter of a rule: 0 is the rule's own `detection_filter` or `threshold` or the file's, then rate filters.
type Key = (u32, u32, u8, Who);

#[derive(Debug, Default)]
struct Counter {
    start_us: u64,
    count: u32,
    /// Backoff: the count of the next alert. Rate filter: when the new action began, plus one.
    next: u64,
}

/// Thresholds and their counters. Bounded: 16 thousand counters.
#[derive(Debug)]
pub struct Thresholds {
    rules: HashMap<(u32, u32), Settings>,
    counters: Bounded<Key, Counter>,
}

impl Default for Thresholds {
    fn default() -> Thresholds {
        Thresholds { rules: HashMap::new(), counters: Bounded::new(MOST_COUNTERS) }
    }
}

impl Thresholds {
    /// Decide what becomes of a match: suppressions first, then the threshold, then rate filters.
    pub fn decide(
        &mut self,
        rule: &Signature,
        source: u128,
        destination: u128,
        flow_id: Option<u64>,
        time_us: u64,
    ) -> Decision {
        if rule.threshold.is_none() && self.rules.is_empty() {
            return Decision::Alert;
        }
        let who = |track: Track| {
            Some(match track {
                Track::Source => Who::Host(HostKey::Host(source)),
                Track::Destination => Who::Host(HostKey::Host(destination)),
                Track::Both => Who::Host(HostKey::pair(source, destination)),
                Track::Rule => Who::Rule,
                Track::Flow => Who::Flow(flow_id?),
            })
        };
        let places = [(rule.gid, rule.sid), (rule.gid, 0), (0, 0)];
        let settings: Vec<&Settings> = places.iter().filter_map(|place| self.rules.get(place)).collect();
        if settings.iter().flat_map(|it| &it.suppressions).any(|it| it.covers(source, destination)) {
            return Decision::SuppressAlertKeepAction;
        }
        // what the file says of one rule counts more than what the rule says; what it says of many, less
        let named = self.rules.get(&(rule.gid, rule.sid)).and_then(|it| it.threshold);
        let threshold =
            named.or(rule.threshold.as_deref().copied()).or_else(|| settings.iter().find_map(|it| it.threshold));
        if let Some((threshold, who)) = threshold.and_then(|it| Some((it, who(it.track)?))) {
            let decision = self.counters.entry((rule.gid, rule.sid, 0, who)).threshold(&threshold, time_us);
            if decision != Decision::Alert {
                return decision;
            }
        }
        let filters = settings.iter().flat_map(|it| &it.rate_filters).zip(1u8..);
        for (filter, number) in filters {
            let Some(who) = who(filter.track) else { continue };
            if self.counters.entry((rule.gid, rule.sid, number, who)).rate(filter, time_us) {
                return Decision::ChangeAction(filter.action);
            }
        }
        Decision::Alert
    }

    /// How many counters are held.
    pub fn len(&self) -> usize {
        self.counters.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.counters.len() == 0
    }
}

impl Suppression {
    fn covers(&self, source: u128, destination: u128) -> bool {
        let Some(addresses) = &self.addresses else { return true };
        (self.source && addresses.contains(source)) || (self.destination && addresses.contains(destination))
    }
}

impl Counter {
    /// Count one more; begin anew where the time span is over. Time that runs backwards ends no span.
    fn count_within(&mut self, seconds: u32, time_us: u64) {
        let span = u64::from(seconds).saturating_mul(MICROSECONDS);
        if self.count == 0 && self.start_us == 0 || time_us.saturating_sub(self.start_us) >= span {
            *self = Counter { start_us: time_us, count: 0, next: self.next };
        }
        self.count = self.count.saturating_add(1);
    }

    fn threshold(&mut self, threshold: &Threshold, time_us: u64) -> Decision {
        if let Limit::Backoff { multiplier } = threshold.limit {
            return self.backoff(threshold.count, multiplier);
        }
        self.count_within(threshold.seconds, time_us);
        let order = self.count.cmp(&threshold.count);
        match (threshold.limit, order) {
            (Limit::Limit, std::cmp::Ordering::Greater) => Decision::SuppressAlertKeepAction,
            (Limit::Limit, _) => Decision::Alert,
            (Limit::Threshold, std::cmp::Ordering::Less) => Decision::Suppress,
            (Limit::Threshold, _) => {
                self.count = 0;
                Decision::Alert
            }
            (Limit::Both, std::cmp::Ordering::Equal) => Decision::Alert,
            (Limit::Both, std::cmp::Ordering::Greater) => Decision::SuppressAlertKeepAction,
            (Limit::Beyond, std::cmp::Ordering::Greater) => Decision::Alert,
            _ => Decision::Suppress,
        }
    }

    fn backoff(&mut self, first: u32, multiplier: u32) -> Decision {
        self.count = self.count.saturating_add(1);
        if self.next == 0 {
            self.next = u64::from(first);
        }
        if u64::from(self.count) == self.next {
            self.next = self.next.saturating_mul(u64::from(multiplier));
            return Decision::Alert;
        }
        if self.count < first { Decision::Suppress } else { Decision::SuppressAlertKeepAction }
    }

    /// Return whether the new action is in force.
    fn rate(&mut self, filter: &RateFilter, time_us: u64) -> bool {
        if let Some(begun) = self.next.checked_sub(1) {
            if time_us.saturating_sub(begun) <= u64::from(filter.timeout_s).saturating_mul(MICROSECONDS) {
                return true;
            }
            *self = Counter::default();
        }
        self.count_within(filter.seconds, time_us);
        if self.count <= filter.count {
            return false;
        }
        self.next = time_us.saturating_add(1);
        true
    }
}

#[cfg(test)]
mod tests;
