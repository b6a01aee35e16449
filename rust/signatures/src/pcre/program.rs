//! From the tree of a regular expression to steps for the backtracking machine.

use super::set::Set;
use super::syntax::{Assertion, Mode, Node, Tree};

/// More steps are refused: PCRE2 stops at 64 KiB of compiled pattern with its default link size, which is alike.
const MOST_STEPS: usize = 64 << 10;

/// One step. Numbers of steps are indices into [`Program::steps`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Step {
    Byte(u8),
    Set(u16),
    /// Go on at the first; if that fails, at the second.
    Split(u32, u32),
    Jump(u32),
    /// Remember the place.
    Save(u16),
    Assert(Assertion),
    /// One of these bytes, again and again.
    Run {
        set: u16,
        least: u16,
        most: u16,
        mode: Mode,
    },
    Back {
        group: u16,
        is_caseless: bool,
    },
    /// What follows, up to its [`Step::Accept`], must hold here, or must not; then go on at `next`.
    Around {
        next: u32,
        is_negated: bool,
    },
    /// Go back that many bytes.
    Rewind(u32),
    /// What follows, up to its [`Step::Accept`], is matched once and not tried otherwise; then go on at `next`.
    Atomic {
        next: u32,
    },
    Keep,
    /// Go on at the other step if the group matched nothing yet.
    Unless(u16, u32),
    /// Leave a loop whose round began at the place in this slot and matched nothing.
    Progress(u16, u32),
    Accept,
}

/// `u16::MAX` as the most of a [`Step::Run`]: without a limit.
pub(super) const UNLIMITED: u16 = u16::MAX;

/// A pattern that can be run.
#[derive(Debug)]
pub(super) struct Program {
    pub steps: Box<[Step]>,
    pub sets: Box<[Set]>,
    /// Groups have two slots each, the whole is group 0; then one for each loop.
    pub slots: u16,
    /// What a match can begin with; `None`: anything, or nothing.
    pub first: Option<Set>,
    /// It can match only at the beginning.
    pub is_anchored: bool,
}

impl Program {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.steps.len() * size_of::<Step>() + self.sets.len() * size_of::<Set>()
    }

    /// Compile a tree.
    pub fn new(tree: &Tree) -> Result<Program, String> {
        let slots = tree.groups.checked_add(1).and_then(|groups| groups.checked_mul(2)).ok_or("too many groups")?;
        let mut compiler = Compiler { steps: Vec::new(), sets: Vec::new(), slots };
        compiler.node(&tree.node)?;
        compiler.push(Step::Accept)?;
        let mut first = Set::default();
        let has_first = begins(&tree.node, &mut first);
        Ok(Program {
            steps: compiler.steps.into_boxed_slice(),
            sets: compiler.sets.into_boxed_slice(),
            slots: compiler.slots,
            first: has_first.then_some(first),
            is_anchored: is_anchored(&tree.node),
        })
    }
}

struct Compiler {
    steps: Vec<Step>,
    sets: Vec<Set>,
    slots: u16,
}

impl Compiler {
    fn push(&mut self, step: Step) -> Result<usize, String> {
        if self.steps.len() >= MOST_STEPS {
            return Err("the pattern is too big".into());
        }
        self.steps.push(step);
        Ok(self.steps.len() - 1)
    }

    /// The next step's number: below [`MOST_STEPS`], so it fits.
    fn here(&self) -> u32 {
        self.steps.len() as u32
    }

    fn put(&mut self, at: usize, step: Step) {
        if let Some(place) = self.steps.get_mut(at) {
            *place = step;
        }
    }

    fn slot(&mut self) -> Result<u16, String> {
        let slot = self.slots;
        self.slots = slot.checked_add(1).ok_or("too many loops")?;
        Ok(slot)
    }

    fn set(&mut self, set: &Set) -> Result<u16, String> {
        let known = self.sets.iter().position(|other| other == set);
        let index = known.unwrap_or_else(|| {
            self.sets.push(*set);
            self.sets.len() - 1
        });
        u16::try_from(index).map_err(|_| "too many classes".into())
    }

    fn node(&mut self, node: &Node) -> Result<(), String> {
        match node {
            Node::Empty => return Ok(()),
            Node::Byte(byte) => self.push(Step::Byte(*byte))?,
            Node::Set(set) => {
                let set = self.set(set)?;
                self.push(Step::Set(set))?
            }
            Node::Assert(assertion) => self.push(Step::Assert(*assertion))?,
            Node::Keep => self.push(Step::Keep)?,
            Node::Concat(nodes) => return nodes.iter().try_for_each(|node| self.node(node)),
            Node::Alternate(nodes) => return self.alternate(nodes, false),
            Node::Repeat { node, least, most, mode } => return self.repeat(node, *least, *most, *mode),
            Node::Capture(group, node) => {
                // a group's number is at most half of the slots, so its slots can be counted
                self.push(Step::Save(group * 2))?;
                self.node(node)?;
                self.push(Step::Save(group * 2 + 1))?
            }
            Node::Atomic(node) => return self.atomic(|compiler| compiler.node(node)),
            Node::Around { is_behind, is_negated, node } => {
                let start = self.push(Step::Accept)?;
                match (is_behind, &**node) {
                    (true, Node::Alternate(nodes)) => self.alternate(nodes, true)?,
                    (true, other) => self.alternate(std::slice::from_ref(other), true)?,
                    (false, other) => self.node(other)?,
                }
                self.push(Step::Accept)?;
                self.put(start, Step::Around { next: self.here(), is_negated: *is_negated });
                return Ok(());
            }
            Node::Back { group, is_caseless } => self.push(Step::Back { group: *group, is_caseless: *is_caseless })?,
            Node::Condition { group, yes, no } => {
                let start = self.push(Step::Accept)?;
                self.node(yes)?;
                let leave = self.push(Step::Accept)?;
                self.put(start, Step::Unless(*group, self.here()));
                self.node(no)?;
                self.put(leave, Step::Jump(self.here()));
                return Ok(());
            }
        };
        Ok(())
    }

    fn atomic(&mut self, inside: impl FnOnce(&mut Compiler) -> Result<(), String>) -> Result<(), String> {
        let start = self.push(Step::Accept)?;
        inside(self)?;
        self.push(Step::Accept)?;
        self.put(start, Step::Atomic { next: self.here() });
        Ok(())
    }

    fn alternate(&mut self, nodes: &[Node], is_behind: bool) -> Result<(), String> {
        let mut leave = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let is_last = index + 1 == nodes.len();
            let split = if is_last { None } else { Some(self.push(Step::Accept)?) };
            if is_behind {
                let length = length(node).ok_or("what is looked for behind has no fixed length")?;
                self.push(Step::Rewind(length))?;
            }
            self.node(node)?;
            if let Some(split) = split {
                leave.push(self.push(Step::Accept)?);
                self.put(split, Step::Split(split as u32 + 1, self.here()));
            }
        }
        let here = self.here();
        leave.into_iter().for_each(|at| self.put(at, Step::Jump(here)));
        Ok(())
    }

    fn repeat(&mut self, node: &Node, least: u32, most: Option<u32>, mode: Mode) -> Result<(), String> {
        let single = match node {
            Node::Byte(byte) => Some(Set::of(&[(*byte, *byte)])),
            Node::Set(set) => Some(*set),
            _ => None,
        };
        // PCRE's counts end at 65,535, the number that means "without a limit" here: no difference on 64 KiB of bytes
        let (few, many) = (least.min(65_535) as u16, most.unwrap_or(65_535).min(65_535) as u16);
        if let Some(set) = single {
            let set = self.set(&set)?;
            self.push(Step::Run { set, least: few, most: many, mode })?;
            return Ok(());
        }
        if mode == Mode::Possessive {
            return self.atomic(|compiler| compiler.repeat(node, least, most, Mode::Greedy));
        }
        for _ in 0..least {
            self.node(node)?;
        }
        match most {
            None => self.star(node, mode),
            Some(most) => self.optional(node, most.saturating_sub(least), mode),
        }
    }

    fn star(&mut self, node: &Node, mode: Mode) -> Result<(), String> {
        let split = self.push(Step::Accept)?;
        let slot = self.slot()?;
        self.push(Step::Save(slot))?;
        self.node(node)?;
        let check = self.push(Step::Accept)?;
        self.push(Step::Jump(split as u32))?;
        let leave = self.here();
        self.put(check, Step::Progress(slot, leave));
        self.put(split, either(mode, split as u32 + 1, leave));
        Ok(())
    }

    fn optional(&mut self, node: &Node, count: u32, mode: Mode) -> Result<(), String> {
        let mut splits = Vec::new();
        for _ in 0..count {
            splits.push(self.push(Step::Accept)?);
            self.node(node)?;
        }
        let leave = self.here();
        splits.into_iter().for_each(|at| self.put(at, either(mode, at as u32 + 1, leave)));
        Ok(())
    }
}

fn either(mode: Mode, into: u32, leave: u32) -> Step {
    if mode == Mode::Lazy { Step::Split(leave, into) } else { Step::Split(into, leave) }
}

/// Return how many bytes it matches if that is always the same.
fn length(node: &Node) -> Option<u32> {
    match node {
        Node::Byte(_) | Node::Set(_) => Some(1),
        Node::Empty | Node::Assert(_) | Node::Keep | Node::Around { .. } => Some(0),
        Node::Concat(nodes) => nodes.iter().try_fold(0u32, |sum, node| sum.checked_add(length(node)?)),
        Node::Alternate(nodes) => {
            let first = length(nodes.first()?)?;
            nodes.iter().all(|node| length(node) == Some(first)).then_some(first)
        }
        Node::Repeat { node, least, most, .. } if *most == Some(*least) => length(node)?.checked_mul(*least),
        Node::Capture(_, node) | Node::Atomic(node) => length(node),
        Node::Condition { yes, no, .. } => length(yes).filter(|length_yes| length(no) == Some(*length_yes)),
        _ => None,
    }
}

/// Add to `first` what it can begin with. Returns false where it can match nothing, or where that is not known.
fn begins(node: &Node, first: &mut Set) -> bool {
    match node {
        Node::Byte(byte) => first.add(*byte),
        Node::Set(set) => first.add_all(set),
        Node::Concat(nodes) => return nodes.iter().any(|node| begins(node, first)),
        Node::Alternate(nodes) => return nodes.iter().filter(|node| !begins(node, first)).count() == 0,
        Node::Repeat { node, least, .. } => return begins(node, first) && *least > 0,
        Node::Capture(_, node) | Node::Atomic(node) => return begins(node, first),
        Node::Back { .. } | Node::Condition { .. } => {
            first.add_range(0, 255);
            return false;
        }
        Node::Empty | Node::Assert(_) | Node::Keep | Node::Around { .. } => return false,
    }
    true
}

fn is_anchored(node: &Node) -> bool {
    match node {
        Node::Assert(Assertion::Start) => true,
        Node::Concat(nodes) => nodes.first().is_some_and(is_anchored),
        Node::Alternate(nodes) => nodes.iter().all(is_anchored),
        Node::Capture(_, node) | Node::Atomic(node) => is_anchored(node),
        _ => false,
    }
}
