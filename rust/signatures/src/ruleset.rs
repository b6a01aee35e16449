//! From rule files to a [`RuleSet`] and its report.

use std::collections::HashMap;

use protocols::{PROTOCOLS, Protocol, Settings};

use crate::classes::{Classes, read_references};
use crate::compile::{Compiled, Compiler, StateNames};
use crate::dataset::Datasets;
use crate::effects::Reputation;
use crate::model::Signature;
use crate::order::{Loaded, action_order, sorted};
use crate::parse::{parse_rule, rule_lines};
use crate::registry::Registry;
use crate::shared::Shared;
use crate::threshold::Thresholds;
use crate::variables::{Pool, Variables};

/// A rule file.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its name, for the report.
    pub name: &'a str,
    /// Its text; bytes that are no UTF-8 are taken as Latin-1.
    pub text: &'a [u8],
}

/// What a set of rules is read with.
pub struct Environment<'a> {
    /// Suricata-style settings: `vars.address-groups.HOME_NET`, `vars.port-groups.HTTP_PORTS`, `action-order`, …
    pub settings: &'a Settings,
    /// The text of a `classification.config`; empty: the built-in list of class types.
    pub classification: &'a str,
    /// The text of a `reference.config`.
    pub reference: &'a str,
    /// The text of a `threshold.config`.
    pub thresholds: &'a str,
    /// Reads a file that a rule names (datasets, ip reputation), by its name as written.
    pub files: &'a dyn Files,
}

/// Gives out files that rules name. Returns what is wrong as a sentence.
pub trait Files {
    /// Return the bytes of the file.
    fn read(&self, name: &str) -> Result<Vec<u8>, String>;
}

/// What became of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As written.
    Loaded,
    /// With differences that this sentence describes.
    Approximated(String),
    /// Not at all, for this reason.
    Refused(String),
}

/// One line of the load report.
#[derive(Clone, Debug)]
pub struct Entry {
    /// File.
    pub source: String,
    /// Line, from 1.
    pub line: u32,
    /// Its sid, 0 where it could not be read.
    pub sid: u32,
    /// What became of it.
    pub outcome: Outcome,
}

/// Loaded rules in the order in which they are looked at.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// The rules: pass, drop, reject, alert (or as `action-order` says); within that by what sets flowbits before what
    /// reads them, then priority, then as written.
    pub signatures: Vec<Signature>,
    /// Class types: short name and description (EVE's `alert.category`), indexed by [`Signature::class`] minus one.
    pub classes: Vec<(String, String)>,
    /// Systems of references and what stands before the id in their URLs.
    pub reference_systems: Vec<(String, String)>,
    /// Names of flowbits, flowints, xbits and hostbits by their numbers.
    pub state_names: Vec<Box<str>>,
    /// What became of each rule that is not commented out. `Loaded` rules are only counted, to save memory.
    pub report: Vec<Entry>,
    /// Rules loaded as written.
    pub loaded: u32,
    /// Thresholds of rules and of `threshold.config`, with empty counters.
    pub thresholds: Thresholds,
    /// Data sets as their files have them.
    pub datasets: Datasets,
    /// Reputation of addresses.
    pub reputation: Reputation,
}

impl RuleSet {
    /// Read rules. Never fails: what cannot be read stands in the report.
    pub fn load(sources: &[Source<'_>], environment: &Environment<'_>) -> RuleSet {
        RuleSet::load_for(PROTOCOLS, sources, environment)
    }

    /// Likewise, for a list of protocols.
    pub(crate) fn load_for(
        protocols: &'static [&'static Protocol],
        sources: &[Source<'_>],
        environment: &Environment<'_>,
    ) -> RuleSet {
        let mut loader = Loader::for_protocols(protocols, environment);
        for source in sources {
            loader.add(*source);
        }
        loader.finish()
    }

    /// Bytes that the rules hold, roughly.
    pub fn heap_bytes(&self) -> usize {
        self.signatures.iter().map(crate::budget::bytes).sum()
    }
}

/// Reads rules file by file, so that no more than one need be in memory.
pub struct Loader<'a> {
    environment: &'a Environment<'a>,
    sources: usize,
    compiler: Compiler<'a>,
    rules: Vec<Loaded>,
    places: HashMap<(u32, u32), usize>,
    set: RuleSet,
}

impl<'a> Loader<'a> {
    /// Begin with no rules.
    pub fn new(environment: &'a Environment<'a>) -> Loader<'a> {
        Loader::for_protocols(PROTOCOLS, environment)
    }

    /// Read a file. What cannot be read stands in the report.
    pub fn add(&mut self, source: Source<'_>) {
        for (line, text) in rule_lines(source.text) {
            self.rule(source.name, self.sources, line, &text);
        }
        self.sources += 1;
    }

    fn for_protocols(protocols: &'static [&'static Protocol], environment: &'a Environment<'a>) -> Loader<'a> {
        let mut set = RuleSet::default();
        let (classes, broken) = Classes::read(environment.classification);
        for line in broken {
            set.note("classification.config", line, 0, Outcome::Refused("no class type".to_owned()));
        }
        let variables = Variables::new(environment.settings);
        for (line, error) in set.thresholds.read(environment.thresholds, &variables) {
            set.note("threshold.config", line, 0, Outcome::Refused(error));
        }
        let reputation = read_reputation(environment, &mut set);
        let compiler = Compiler {
            settings: environment.settings,
            files: environment.files,
            pool: Pool::new(environment.settings),
            registry: Registry::new(protocols),
            classes,
            names: StateNames::default(),
            datasets: Datasets::default(),
            reputation,
            shared: Shared::default(),
        };
        Loader { environment, sources: 0, compiler, rules: Vec::new(), places: HashMap::new(), set }
    }

    fn rule(&mut self, source: &str, index: usize, line: u32, text: &str) {
        let compiled = parse_rule(text).and_then(|rule| self.compiler.compile(&rule));
        let result = compiled.and_then(|mut compiled| {
            compiled.signature.origin = (u16::try_from(index).unwrap_or(u16::MAX), line);
            self.keep(compiled)
        });
        match result {
            Ok((_, notes)) if notes.is_empty() => self.set.loaded = self.set.loaded.saturating_add(1),
            Ok((sid, notes)) => self.set.note(source, line, sid, Outcome::Approximated(notes.join("; "))),
            Err(error) => self.set.note(source, line, sid_of(text), Outcome::Refused(error)),
        }
    }

    /// Of two rules with the same ids the one with the higher revision counts.
    fn keep(&mut self, compiled: Compiled) -> Result<(u32, Vec<String>), String> {
        let Compiled { signature, notes, bits } = compiled;
        let (id, sid) = ((signature.gid, signature.sid), signature.sid);
        match self.places.get(&id).and_then(|place| self.rules.get_mut(*place)) {
            Some(other) if other.signature.rev < signature.rev => *other = Loaded { signature, bits },
            Some(_) => return Err(format!("sid {sid} is there already, in the same or a higher revision")),
            None => {
                self.places.insert(id, self.rules.len());
                self.rules.push(Loaded { signature, bits });
            }
        }
        Ok((sid, notes))
    }

    /// Sort the rules.
    pub fn finish(self) -> RuleSet {
        let environment = self.environment;
        let mut set = self.set;
        set.signatures = sorted(self.rules, &action_order(environment.settings));
        set.classes = self.compiler.classes.list;
        set.reference_systems = read_references(environment.reference);
        set.state_names = self.compiler.names.list;
        set.datasets = self.compiler.datasets;
        set.reputation = self.compiler.reputation;
        set
    }
}

impl RuleSet {
    fn note(&mut self, source: &str, line: u32, sid: u32, outcome: Outcome) {
        self.report.push(Entry { source: source.to_owned(), line, sid, outcome });
    }
}

/// The sid of a rule that could not be read, for the report.
fn sid_of(text: &str) -> u32 {
    let after = text.rsplit_once("sid:").map_or("", |(_, after)| after.trim_start());
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// `reputation-categories-file` and `reputation-files` (a list, or one by name under it).
fn read_reputation(environment: &Environment<'_>, set: &mut RuleSet) -> Reputation {
    let mut reputation = Reputation::default();
    let mut read = |name: &str| match environment.files.read(name) {
        Ok(text) => String::from_utf8(text).unwrap_or_default(),
        Err(error) => {
            set.note(name, 0, 0, Outcome::Refused(error));
            String::new()
        }
    };
    if let Some(name) = environment.settings.text("reputation-categories-file") {
        reputation.add_categories(&read(name));
    }
    let folder = environment.settings.text("default-reputation-path").map(|path| path.trim_end_matches('/'));
    let names = environment.settings.under("reputation-files").flat_map(|(_, value)| value.split(','));
    for name in names.map(|name| name.trim_matches([' ', '[', ']', '"'])).filter(|name| !name.is_empty()) {
        let path = folder.map_or_else(|| name.to_owned(), |folder| format!("{folder}/{name}"));
        reputation.add_addresses(&read(&path));
    }
    reputation
}

#[cfg(test)]
mod tests;
