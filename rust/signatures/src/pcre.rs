//! The `pcre` option: its switches, its captures, and a bounded cache of what expressions are compiled to.
//!
//! An expression is read and compiled once at load, to say what is wrong with it; then only its text is kept. Compiled
//! forms live in [`Regexes`], the most recently used ones: thousands of them at once would take more than all else.
//! Two engines answer: a backtracking machine that follows PCRE to the letter within a budget of steps, and, for
//! long buffers and expressions that allow it, a finite automaton that is linear.

mod automaton;
mod escape;
mod machine;
mod program;
mod set;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use automaton::Automaton;
use machine::{Machine, NOWHERE};
use program::Program;
use syntax::Flags;

/// Most steps of the machine for one search; some 2 ms. Suricata's `match-limit` is 3,500 of larger steps.
const MOST_STEPS: u32 = 400_000;
/// Steps before an automaton is asked for: a tenth of a millisecond, in which it could be built.
const FIRST_STEPS: u32 = 40_000;
/// Shorter buffers are left to the machine: an automaton costs more to build than it saves.
const SHORT_BYTES: usize = 512;
/// How many of the machine's steps count as one of [`crate::Context::steps`].
const STEPS_PER_STEP: u32 = 256;
/// Most named captures in one expression: Suricata's own limit.
const MOST_CAPTURES: usize = 8;

/// Whose variable a capture becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum CaptureScope {
    Flow,
    Packet,
    /// `alert:name`: goes into the alert only.
    Alert,
}

/// Where the bytes are that an expression looks at: the letters of its switches, as sticky keywords.
const BUFFERS: &[(u8, &str)] = &[
    (b'U', "http.uri"),
    (b'I', "http.uri.raw"),
    (b'P', "http.request_body"),
    (b'Q', "file.data"),
    (b'H', "http.header"),
    (b'D', "http.header.raw"),
    (b'M', "http.method"),
    (b'C', "http.cookie"),
    (b'S', "http.stat_code"),
    (b'Y', "http.stat_msg"),
    (b'V', "http.user_agent"),
    (b'W', "http.host"),
    (b'Z', "http.host.raw"),
];

/// One `pcre` option. Only text and numbers: it is compiled when it is needed.
#[derive(Debug)]
pub struct Pcre {
    pattern: Box<str>,
    flags: Flags,
    is_anchored: bool,
    pub(crate) is_relative: bool,
    pub(crate) is_negated: bool,
    pub(crate) has_relative_next: bool,
    key: u64,
    /// Names by group, from group 1.
    captures: Box<[(CaptureScope, Box<str>)]>,
    /// The groups they are of.
    groups: Box<[u16]>,
}

/// A match: its ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Match {
    pub start: usize,
    pub end: usize,
}

/// Split an option's value into pattern, switches and what follows the quotation marks' inner comma.
fn split(value: &str) -> Result<(bool, &str, &str, &str), String> {
    let value = value.trim();
    let (is_negated, value) = match value.strip_prefix('!') {
        Some(rest) => (true, rest.trim_start()),
        None => (false, value),
    };
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value);
    let inner = inner.strip_prefix('/').ok_or("pcre needs a pattern between slashes")?;
    let at = inner.rfind('/').ok_or("pcre needs a pattern between slashes")?;
    let after = &inner[at + 1..];
    let (switches, captures) = after.split_once(',').unwrap_or((after, ""));
    Ok((is_negated, &inner[..at], switches.trim(), captures.trim()))
}

impl Pcre {
    /// Return the sticky keyword of the buffer that the switches name (`"/x/U"` is `http.uri`).
    pub fn buffer(value: &str) -> Option<&'static str> {
        let (_, _, switches, _) = split(value).ok()?;
        let letter = switches.bytes().find(|letter| BUFFERS.iter().any(|(other, _)| other == letter))?;
        BUFFERS.iter().find(|(other, _)| *other == letter).map(|(_, name)| *name)
    }

    /// Read an option's value, or say what is wrong with it.
    pub fn parse(value: &str) -> Result<Pcre, String> {
        let (is_negated, pattern, switches, captures) = split(value)?;
        let mut flags = Flags::default();
        let (mut is_anchored, mut is_relative) = (false, false);
        for switch in switches.bytes() {
            match switch {
                b'i' => flags.caseless = true,
                b's' => flags.dot_all = true,
                b'm' => flags.multi_line = true,
                b'x' => flags.extended = true,
                b'G' => flags.ungreedy = true,
                b'E' => flags.dollar_end_only = true,
                b'A' => is_anchored = true,
                b'R' => is_relative = true,
                // B: all bytes are raw; O: limits are ours anyway; L, J, K: buffers that no longer exist
                b'B' | b'O' | b' ' => {}
                _ if BUFFERS.iter().any(|(letter, _)| *letter == switch) => {}
                other => return Err(format!("pcre has no switch {:?}", char::from(other))),
            }
        }
        let tree = syntax::parse(pattern.as_bytes(), flags).map_err(|reason| format!("pcre: {reason}"))?;
        Program::new(&tree).map_err(|reason| format!("pcre: {reason}"))?;
        let (captures, groups) = captures_of(captures, &tree)?;
        let mut hasher = DefaultHasher::new();
        (pattern, flags.bits()).hash(&mut hasher);
        let (key, pattern, has_relative_next) = (hasher.finish(), pattern.into(), false);
        Ok(Pcre { pattern, flags, is_anchored, is_relative, is_negated, has_relative_next, key, captures, groups })
    }

    /// Whether what it captures is wanted.
    pub(crate) fn has_captures(&self) -> bool {
        !self.captures.is_empty()
    }
}

type Captures = (Box<[(CaptureScope, Box<str>)]>, Box<[u16]>);

/// Names by `, flow:name` for the groups in their order, or, older, in the groups' own names (`(?P<flow_name>…)`).
fn captures_of(text: &str, tree: &syntax::Tree) -> Result<Captures, String> {
    let mut list = Vec::new();
    for (index, item) in text.split(',').map(str::trim).filter(|item| !item.is_empty()).enumerate() {
        let (scope, name) = item.split_once(':').ok_or_else(|| format!("pcre: {item:?} names no capture"))?;
        let scope = match scope.trim() {
            "flow" => CaptureScope::Flow,
            "pkt" => CaptureScope::Packet,
            "alert" => CaptureScope::Alert,
            other => return Err(format!("pcre: captures cannot go to {other:?}")),
        };
        let group = u16::try_from(index + 1).unwrap_or(u16::MAX);
        if group > tree.groups {
            return Err("pcre: more names of captures than groups".into());
        }
        list.push((scope, Box::from(name.trim()), group));
    }
    for (name, group) in &tree.names {
        if let Some(name) = name.strip_prefix("flow_") {
            list.push((CaptureScope::Flow, Box::from(name), *group));
        } else if let Some(name) = name.strip_prefix("pkt_") {
            list.push((CaptureScope::Packet, Box::from(name), *group));
        }
    }
    if list.len() > MOST_CAPTURES {
        return Err(format!("pcre: more than {MOST_CAPTURES} captures"));
    }
    let groups = list.iter().map(|(_, _, group)| *group).collect();
    Ok((list.into_iter().map(|(scope, name, _)| (scope, name)).collect(), groups))
}

impl Flags {
    fn bits(self) -> u8 {
        let flags = [self.caseless, self.dot_all, self.multi_line, self.extended, self.ungreedy, self.dollar_end_only];
        flags.iter().fold(0, |bits, flag| bits << 1 | u8::from(*flag))
    }
}

/// What a pcre captured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capture {
    /// Whose variable it becomes.
    pub scope: CaptureScope,
    /// Its name; `key` means that the value is the name of the next one's variable.
    pub name: Box<str>,
    /// Its bytes.
    pub value: Vec<u8>,
}

struct Entry {
    pattern: Box<str>,
    flags: Flags,
    program: Program,
    /// `None`: not tried. `Some(None)`: there is none.
    automaton: Option<Option<Box<Automaton>>>,
    used: u64,
    bytes: usize,
}

/// Compiled expressions of all rules, the most recently used ones. Each thread has its own.
pub struct Regexes {
    entries: HashMap<u64, Entry>,
    most: usize,
    most_bytes: usize,
    bytes: usize,
    clock: u64,
    machine: Machine,
}

impl Default for Regexes {
    fn default() -> Regexes {
        Regexes::new(Regexes::MOST, Regexes::MOST_BYTES)
    }
}

impl std::fmt::Debug for Regexes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Regexes").field("entries", &self.entries.len()).field("bytes", &self.bytes).finish()
    }
}

impl Regexes {
    /// How many expressions are kept by default: what some thousand rules look at in a second of mixed traffic.
    pub const MOST: usize = 1_024;
    /// How many bytes they may take by default: a tenth of what a small device can spare.
    pub const MOST_BYTES: usize = 6 << 20;

    /// Return an empty cache of at most so many expressions and bytes.
    pub fn new(most: usize, most_bytes: usize) -> Regexes {
        let machine = Machine::default();
        Regexes { entries: HashMap::new(), most: most.max(1), most_bytes, bytes: 0, clock: 0, machine }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.bytes + self.entries.capacity() * size_of::<(u64, Entry)>()
    }

    /// Search `data` from `from` on. Work is charged to `steps`; where they or the search's own budget run out and no
    /// automaton can take over, nothing is found. Captures are added to `captures`.
    pub(crate) fn find(
        &mut self,
        pcre: &Pcre,
        data: &[u8],
        from: usize,
        steps: &mut u32,
        captures: &mut Vec<Capture>,
    ) -> Option<Match> {
        self.prepare(pcre)?;
        let (entry, machine) = (self.entries.get_mut(&pcre.key)?, &mut self.machine);
        let mut budget = MOST_STEPS;
        let found = entry.find(machine, pcre, data, from, &mut budget);
        *steps = steps.saturating_sub((MOST_STEPS - budget) / STEPS_PER_STEP);
        let before = entry.bytes;
        entry.bytes = entry.heap_bytes(); // an automaton was built, or its cache grew
        self.bytes = (self.bytes + entry.bytes).saturating_sub(before);
        machine.shrink();
        self.forget(self.most);
        let found = found?;
        for ((scope, name), group) in pcre.captures.iter().zip(&pcre.groups) {
            let slot =
                |index: usize| self.machine.slots.get(usize::from(*group) * 2 + index).copied().unwrap_or(NOWHERE);
            if let Some(value) = data.get(slot(0)..slot(1)) {
                captures.push(Capture { scope: *scope, name: name.clone(), value: value.to_vec() });
            }
        }
        Some(found)
    }

    /// Make sure that the expression is compiled, and others are forgotten where that takes too much.
    fn prepare(&mut self, pcre: &Pcre) -> Option<()> {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&pcre.key)
            && entry.pattern == pcre.pattern
            && entry.flags == pcre.flags
        {
            entry.used = self.clock;
            return Some(());
        }
        self.forget(self.most - 1);
        let tree = syntax::parse(pcre.pattern.as_bytes(), pcre.flags).ok()?;
        let program = Program::new(&tree).ok()?;
        let (pattern, flags, used) = (pcre.pattern.clone(), pcre.flags, self.clock);
        let mut entry = Entry { pattern, flags, program, automaton: None, used, bytes: 0 };
        entry.bytes = entry.heap_bytes();
        self.bytes += entry.bytes;
        if let Some(other) = self.entries.insert(pcre.key, entry) {
            self.bytes = self.bytes.saturating_sub(other.bytes); // two expressions with one key
        }
        Some(())
    }

    /// Forget the least recently used ones until there are at most so many and they take no more than they may.
    fn forget(&mut self, most: usize) {
        while self.entries.len() > most || self.bytes > self.most_bytes && self.entries.len() > 1 {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| *key);
            let Some(entry) = oldest.and_then(|key| self.entries.remove(&key)) else { break };
            self.bytes = self.bytes.saturating_sub(entry.bytes);
        }
    }
}

impl Entry {
    fn heap_bytes(&self) -> usize {
        let automaton = self.automaton.as_ref().and_then(Option::as_ref).map_or(0, |automaton| automaton.heap_bytes());
        self.program.heap_bytes() + self.pattern.len() + automaton
    }

    fn find(
        &mut self,
        machine: &mut Machine,
        pcre: &Pcre,
        data: &[u8],
        from: usize,
        budget: &mut u32,
    ) -> Option<Match> {
        let whole = |(start, end)| Match { start, end };
        let is_anchored = pcre.is_anchored;
        if data.len().saturating_sub(from) <= SHORT_BYTES || is_anchored || self.program.is_anchored {
            let mut first = FIRST_STEPS;
            let found = machine.search(&self.program, data, from, is_anchored, &mut first);
            *budget = budget.saturating_sub(FIRST_STEPS - first);
            if let Ok(found) = found {
                return found.map(whole);
            }
        }
        if self.automaton.is_none() {
            let tree = syntax::parse(self.pattern.as_bytes(), self.flags).ok()?;
            self.automaton = Some(Automaton::new(&tree).map(Box::new));
        }
        let Some(Some(automaton)) = &mut self.automaton else {
            return machine.search(&self.program, data, from, is_anchored, budget).ok().flatten().map(whole);
        };
        let (start, end) = automaton.search(data, from, is_anchored)?;
        if pcre.has_relative_next || pcre.has_captures() {
            // the machine knows groups and PCRE's exact end
            if let Ok(Some(exact)) = machine.search(&self.program, data, start, true, budget) {
                return Some(whole(exact));
            }
            machine.slots.clear(); // too much work: nothing is captured
        }
        Some(Match { start, end })
    }
}

/// The expression of `pcrexform`: the first group of the first match.
#[derive(Clone, Debug)]
pub struct Extract {
    pattern: Box<str>,
    program: Arc<Program>,
}

impl PartialEq for Extract {
    fn eq(&self, other: &Extract) -> bool {
        self.pattern == other.pattern
    }
}

impl Eq for Extract {}

impl Extract {
    /// Read an expression with exactly one group.
    pub(crate) fn parse(pattern: &str) -> Result<Extract, String> {
        let tree = syntax::parse(pattern.as_bytes(), Flags::default())?;
        if tree.groups != 1 {
            return Err("pcrexform needs an expression with exactly one group".into());
        }
        Ok(Extract { pattern: pattern.into(), program: Arc::new(Program::new(&tree)?) })
    }

    /// Return what the group matched.
    pub(crate) fn group<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        let mut machine = Machine::default();
        let mut budget = MOST_STEPS;
        machine.search(&self.program, data, 0, false, &mut budget).ok()??;
        data.get(*machine.slots.get(2)?..*machine.slots.get(3)?)
    }
}
