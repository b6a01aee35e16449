//! From a rule in pieces to a [`Signature`]: a [`Draft`] takes one option after the other, then is checked as a whole.

mod app;
mod buffers;
mod checks;
mod finish;
mod flow;
mod meta;

use std::collections::HashMap;

use protocols::{Settings, Way};

use crate::classes::Classes;
use crate::dataset::{DatasetTest, Datasets};
use crate::effects::{Effect, FlowTest, Parsed, Reputation};
use crate::header::Header;
use crate::model::{Action, FlowGate, RejectTarget, Signature, TransactionTest};
use crate::packet_test::PacketTest;
use crate::parse::Rule;
use crate::registry::Registry;
use crate::ruleset::Files;
use crate::shared::Shared;
use crate::threshold::Threshold;
use crate::variables::Pool;

use buffers::Buffers;

/// Names of flowbits, flowints, xbits and hostbits of a rule set; each has one number.
#[derive(Debug, Default)]
pub(crate) struct StateNames {
    numbers: HashMap<Box<str>, u32>,
    pub list: Vec<Box<str>>,
}

impl StateNames {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        self.numbers.insert(name.into(), number);
        self.list.push(name.into());
        number
    }
}

/// What rules share while they are loaded.
pub(crate) struct Compiler<'a> {
    pub settings: &'a Settings,
    pub files: &'a dyn Files,
    pub pool: Pool<'a>,
    pub registry: Registry,
    pub classes: Classes,
    pub names: StateNames,
    pub datasets: Datasets,
    pub reputation: Reputation,
    pub shared: Shared,
}

/// A rule that loads.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub signature: Signature,
    /// How it differs from what is written.
    pub notes: Vec<String>,
    /// Flowbits and the like that it sets, and that it reads: for the order.
    pub bits: BitUse,
}

/// Which names with memory a rule sets and reads.
#[derive(Debug, Default, Clone)]
pub(crate) struct BitUse {
    pub sets: Vec<u32>,
    pub reads: Vec<u32>,
}

/// A rule half read.
#[derive(Default)]
struct Draft<'a> {
    header: Header,
    /// Protocols that the header names.
    named: Option<Vec<u8>>,
    hook: Option<(Way, u8)>,
    message: Option<Box<str>>,
    sid: Option<u32>,
    rev: Option<u32>,
    gid: Option<u32>,
    class: u16,
    class_priority: Option<u8>,
    priority: Option<u8>,
    metadata: String,
    references: Vec<(&'a str, &'a str)>,
    target_is_source: Option<bool>,
    is_silent: bool,
    is_bypass: bool,
    has_flow: bool,
    flow: FlowGate,
    only_stream: bool,
    no_stream: bool,
    packet_tests: Vec<PacketTest>,
    flow_tests: Vec<FlowTest>,
    effects: Vec<Effect>,
    threshold: Option<Threshold>,
    /// Numbers, keywords and events; buffers are in `buffers`.
    tests: Vec<(usize, TransactionTest)>,
    ways: Vec<protocols::Ways>,
    buffers: Buffers<'a>,
    notes: Vec<String>,
}

impl<'a> Compiler<'a> {
    /// Make a signature of a rule, or say why not.
    pub fn compile(&mut self, rule: &Rule<'_>) -> Result<Compiled, String> {
        meta::check_requirements(rule, &self.registry)?;
        let action = action(rule.action)?;
        let (header, named) = Header::parse(rule, &mut self.pool)?;
        let mut draft = Draft { header, ..Draft::default() };
        if let Some(app) = named.app {
            let protocols = self.registry.named(app, false)?;
            if let Some(hook) = named.hook {
                let state = self.registry.state(&protocols, hook);
                draft.hook = Some(state.ok_or_else(|| format!("{app} has no hook {}", crate::parse::shortened(hook)))?);
            }
            draft.named = Some(protocols);
        }
        for (name, value) in &rule.options {
            self.option(&mut draft, name, *value).map_err(|error| match error.is_empty() {
                true => format!("{}: it cannot be read", crate::parse::shortened(name)),
                false => format!("{}: {error}", crate::parse::shortened(name)),
            })?;
        }
        let bits = bit_use(&draft);
        finish::finish(draft, action, &self.registry, &mut self.shared, bits)
    }

    fn option<'r>(&mut self, draft: &mut Draft<'r>, name: &'r str, value: Option<&'r str>) -> Result<(), String> {
        if meta::option(draft, name, value, &self.classes)? || flow::option(draft, name, value)? {
            return Ok(());
        }
        if let Some(test) = PacketTest::parse(name, value) {
            draft.packet_tests.push(test?);
            return Ok(());
        }
        let names = &mut self.names;
        if let Some(parsed) = crate::effects::parse(name, value, &mut |name| names.number(name), &self.reputation) {
            match parsed? {
                Parsed::Test(test) => draft.flow_tests.push(test),
                Parsed::Effect(effect) => draft.effects.push(effect),
                Parsed::NoAlert => draft.is_silent = true,
            }
            return Ok(());
        }
        if matches!(name, "dataset" | "datarep") {
            return self.dataset(draft, value, name == "datarep");
        }
        if buffers::option(draft, name, value, &self.registry)? || app::option(draft, name, value, &self.registry)? {
            return Ok(());
        }
        Err(refusal(name).to_owned())
    }

    fn dataset(&mut self, draft: &mut Draft<'_>, value: Option<&str>, is_reputation: bool) -> Result<(), String> {
        let request = crate::dataset::Request::parse(value.ok_or("it needs an argument")?, is_reputation)?;
        let id = self.datasets.obtain(&request, self.settings, self.files)?;
        let test = DatasetTest {
            id,
            operation: request.operation,
            context_key: request.context_key.map(Into::into),
            is_subdomain: request.is_subdomain,
        };
        draft.buffers.dataset(test, &self.registry)
    }
}

fn action(name: &str) -> Result<Action, String> {
    Ok(match name {
        "alert" => Action::Alert,
        "drop" => Action::Drop,
        "pass" => Action::Pass,
        "reject" | "rejectsrc" => Action::Reject(RejectTarget::Source),
        "rejectdst" => Action::Reject(RejectTarget::Destination),
        "rejectboth" => Action::Reject(RejectTarget::Both),
        "config" => return Err("action config is not supported".to_owned()),
        "accept" => return Err("action accept is for firewall rules, which are not read here".to_owned()),
        other => return Err(format!("unknown action {}", crate::parse::shortened(other))),
    })
}

/// Why a keyword of the language is not read here.
fn refusal(name: &str) -> &'static str {
    match name {
        "lua" | "luajit" | "luaxform" => "scripts are not run",
        "geoip" => "there is no database of places",
        "filemagic" | "file.magic" => "file types are not told by content",
        "filemd5" | "filesha1" | "filesha256" => "files are not hashed",
        "asn1" | "ftpbounce" | "rpc" | "cyber" => "this protocol is not decoded",
        "replace" => "packets are not rewritten",
        "frame" => "frames are not kept",
        "pktvar" => "values captured from packets are not kept",
        "ether.hdr" | "ipv4.options" => "this part of the packet is not kept apart",
        _ => "unknown keyword",
    }
}

fn bit_use(draft: &Draft<'_>) -> BitUse {
    let mut bits = BitUse::default();
    for effect in &draft.effects {
        match effect {
            Effect::Set(_, bit, _) | Effect::Clear(_, bit) | Effect::Toggle(_, bit, _) => bits.sets.push(*bit),
            Effect::AssignInteger(name, _) | Effect::AddInteger(name, _) | Effect::SubtractInteger(name, _) => {
                bits.sets.push(*name);
            }
        }
    }
    for test in &draft.flow_tests {
        match test {
            FlowTest::Bits { bits: read, .. } => bits.reads.extend_from_slice(read),
            FlowTest::HasInteger(name, _) | FlowTest::Integer(name, ..) => bits.reads.push(*name),
            _ => {}
        }
    }
    bits
}
