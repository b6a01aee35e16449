//! Data sets: values that rules look up, add to and remove from, each bounded by its memcap.

mod load;
mod options;

pub(crate) use options::Request;

use std::collections::HashMap;
use std::fmt::Write;

use protocols::Settings;

use crate::address::unmapped;
use crate::number::Comparison;
use crate::ruleset::Files;

/// The default of `datasets.defaults.memcap`; Suricata's is 100 MiB, which a device does not have.
const MEMCAP_BYTES: u64 = 4 << 20;
/// What an entry costs besides its bytes: the box, the map's slot at its load factor.
const ENTRY_BYTES: usize = 56;
/// Sets of one rule set.
const MOST_SETS: usize = 1024;
/// Suricata cuts nothing and refuses nothing below this length of a string.
const MOST_VALUE_BYTES: usize = 64 << 10;
/// Labels that `match subdomain` takes away from the front: a domain name has at most 127.
const MOST_LABELS: usize = 128;

/// Which set, in [`Datasets`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct DatasetId(u16);

/// What the values of a set are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum ValueKind {
    String,
    Md5,
    Sha256,
    Ipv4,
    /// IPv6, or either in the 128-bit form.
    Ip,
}

impl ValueKind {
    fn parse(name: &str) -> Option<ValueKind> {
        Some(match name {
            "string" => ValueKind::String,
            "md5" => ValueKind::Md5,
            "sha256" => ValueKind::Sha256,
            "ipv4" => ValueKind::Ipv4,
            "ip" | "ipv6" => ValueKind::Ip,
            _ => return None,
        })
    }

    fn fits(self, bytes: &[u8]) -> bool {
        match self {
            ValueKind::String => bytes.len() <= MOST_VALUE_BYTES,
            ValueKind::Md5 | ValueKind::Ip => bytes.len() == 16,
            ValueKind::Sha256 => bytes.len() == 32,
            ValueKind::Ipv4 => bytes.len() == 4,
        }
    }
}

/// What a rule does with a set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Matches if the value is in the set.
    IsSet,
    /// Matches if not.
    IsNotSet,
    /// Adds it; matches if it is new.
    Set,
    /// Removes it; matches if it was there.
    Unset,
    /// `datarep`: matches if the value's rank is so.
    Reputation(Comparison),
}

/// A rule's question to a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetTest {
    /// The set.
    pub id: DatasetId,
    /// What is asked or done.
    pub operation: Operation,
    /// The name in EVE's `alert.context` under which the entry's JSON is shown.
    pub context_key: Option<Box<str>>,
    /// `match subdomain`: a name matches by any parent domain.
    pub is_subdomain: bool,
}

impl DatasetTest {
    /// Ask about a buffer's bytes, or do what is to be done with them.
    pub fn matches(&self, datasets: &mut Datasets, bytes: &[u8]) -> bool {
        match self.operation {
            Operation::IsSet => self.find(datasets, bytes).is_some(),
            Operation::IsNotSet => self.find(datasets, bytes).is_none(),
            Operation::Set => datasets.add(self.id, bytes),
            Operation::Unset => datasets.remove(self.id, bytes),
            Operation::Reputation(range) => {
                self.find(datasets, bytes).is_some_and(|entry| range.matches(u64::from(entry.rank)))
            }
        }
    }

    /// Ask about an address in its 128-bit form.
    pub fn matches_address(&self, datasets: &mut Datasets, address: u128) -> bool {
        let bytes = address.to_be_bytes();
        self.matches(datasets, datasets.address_bytes(self.id, &bytes).unwrap_or(&[]))
    }

    /// Return name and JSON text for EVE's `alert.context`, of a value that matched.
    pub fn context<'a>(&'a self, datasets: &'a Datasets, bytes: &[u8]) -> Option<(&'a str, &'a str)> {
        Some((self.context_key.as_deref()?, self.find(datasets, bytes)?.json.as_deref()?))
    }

    /// Likewise, of an address.
    pub fn address_context<'a>(&'a self, datasets: &'a Datasets, address: u128) -> Option<(&'a str, &'a str)> {
        let bytes = address.to_be_bytes();
        self.context(datasets, datasets.address_bytes(self.id, &bytes)?)
    }

    fn find<'a>(&self, datasets: &'a Datasets, bytes: &[u8]) -> Option<&'a Value> {
        let set = datasets.sets.get(usize::from(self.id.0))?;
        if let Some(found) = set.values.get(bytes) {
            return Some(found);
        }
        if !self.is_subdomain {
            return None;
        }
        // both `.evil.com` and `evil.com` may stand in the file
        let dots = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at).take(MOST_LABELS);
        dots.into_iter().find_map(|at| {
            set.values.get(bytes.get(at..)?).or_else(|| set.values.get(bytes.get(at.saturating_add(1)..)?))
        })
    }
}

#[derive(Debug, Default)]
struct Value {
    rank: u16,
    json: Option<Box<str>>,
}

#[derive(Debug)]
struct Dataset {
    name: String,
    kind: ValueKind,
    values: HashMap<Box<[u8]>, Value>,
    bytes: usize,
    memcap: usize,
    load: Option<String>,
    save: Option<String>,
}

impl Dataset {
    fn insert(&mut self, bytes: &[u8], value: Value) -> bool {
        let cost = bytes.len() + ENTRY_BYTES + value.json.as_ref().map_or(0, |json| json.len());
        let is_full = self.bytes.saturating_add(cost) > self.memcap;
        if is_full || !self.kind.fits(bytes) || self.values.contains_key(bytes) {
            return false;
        }
        self.bytes += cost;
        self.values.insert(bytes.into(), value);
        true
    }
}

/// Every set of a rule set.
#[derive(Debug, Default)]
pub struct Datasets {
    sets: Vec<Dataset>,
}

impl Datasets {
    /// Return whether a value is in the set, and its JSON text where it has one.
    pub fn contains(&self, id: DatasetId, bytes: &[u8]) -> Option<Option<&str>> {
        self.sets.get(usize::from(id.0))?.values.get(bytes).map(|value| value.json.as_deref())
    }

    /// Add a value; `false` if it is there already, does not fit the set's kind, or the memcap is reached.
    pub fn add(&mut self, id: DatasetId, bytes: &[u8]) -> bool {
        self.sets.get_mut(usize::from(id.0)).is_some_and(|set| set.insert(bytes, Value::default()))
    }

    /// Remove a value; `false` if it was not there.
    pub fn remove(&mut self, id: DatasetId, bytes: &[u8]) -> bool {
        let Some(set) = self.sets.get_mut(usize::from(id.0)) else { return false };
        let Some(value) = set.values.remove(bytes) else { return false };
        let cost = bytes.len() + ENTRY_BYTES + value.json.as_ref().map_or(0, |json| json.len());
        set.bytes = set.bytes.saturating_sub(cost);
        true
    }

    /// Return the set of that name.
    pub fn by_name(&self, name: &str) -> Option<DatasetId> {
        let place = self.sets.iter().position(|set| set.name == name)?;
        u16::try_from(place).ok().map(DatasetId)
    }

    /// Return what is to be written when the sensor stops: each file's name and text, for sets with `save` or `state`.
    pub fn saved(&self) -> Vec<(String, String)> {
        let savable = self.sets.iter().filter_map(|set| Some((set.save.clone()?, set)));
        savable.map(|(name, set)| (name, set.text())).collect()
    }

    /// Bytes on the heap, roughly.
    pub fn heap_bytes(&self) -> usize {
        self.sets.iter().map(|set| set.bytes).sum()
    }

    fn address_bytes<'a>(&self, id: DatasetId, mapped: &'a [u8; 16]) -> Option<&'a [u8]> {
        match self.sets.get(usize::from(id.0))?.kind {
            ValueKind::Ip => Some(mapped),
            _ if mapped.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]) => mapped.get(12..),
            ValueKind::Ipv4 => None,
            _ => Some(mapped),
        }
    }

    /// Return the set that a rule asks for, made and loaded if it is new.
    pub(crate) fn obtain(
        &mut self,
        request: &Request<'_>,
        settings: &Settings,
        files: &dyn Files,
    ) -> Result<DatasetId, String> {
        if let Some(id) = self.by_name(request.name) {
            let set = self.sets.get(usize::from(id.0)).ok_or("no such set")?;
            if request.kind.is_some_and(|kind| kind != set.kind) {
                return Err(format!("set {} was declared with another type", request.name));
            }
            let is_other = |mine: Option<&str>, theirs: &Option<String>| mine.is_some() && mine != theirs.as_deref();
            if is_other(request.load(), &set.load) || is_other(request.save(), &set.save) {
                return Err(format!("set {} was declared with another file", request.name));
            }
            return Ok(id);
        }
        let set = load::make(request, settings, files)?;
        let id = u16::try_from(self.sets.len()).ok().filter(|id| usize::from(*id) < MOST_SETS);
        self.sets.push(set);
        id.map(DatasetId).ok_or_else(|| format!("more than {MOST_SETS} sets"))
    }
}

impl Dataset {
    fn text(&self) -> String {
        let mut lines: Vec<String> = self.values.keys().map(|value| encode(self.kind, value)).collect();
        lines.sort_unstable();
        lines.into_iter().fold(String::new(), |text, line| text + &line + "\n")
    }
}

fn encode(kind: ValueKind, value: &[u8]) -> String {
    match kind {
        ValueKind::String => load::encode_base64(value),
        ValueKind::Md5 | ValueKind::Sha256 => value.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
            text
        }),
        ValueKind::Ipv4 | ValueKind::Ip => match (<[u8; 4]>::try_from(value), <[u8; 16]>::try_from(value)) {
            (Ok(address), _) => std::net::Ipv4Addr::from(address).to_string(),
            (_, Ok(address)) => unmapped(u128::from_be_bytes(address)).to_string(),
            _ => String::new(),
        },
    }
}

#[cfg(test)]
mod tests;
