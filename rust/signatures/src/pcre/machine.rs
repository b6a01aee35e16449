//! The backtracking machine: PCRE's meaning to the letter, within a budget of steps.

use super::program::{Program, Step, UNLIMITED};
use super::set::Set;
use super::syntax::{Assertion, Mode};

/// More places to come back to count as an exhausted budget: some 3 MiB. PCRE2's heap limit in Suricata is alike.
const MOST_FRAMES: usize = 128 << 10;
/// What is kept of that from search to search.
const KEPT_FRAMES: usize = 4 << 10;
/// A slot that holds no place.
pub(super) const NOWHERE: usize = usize::MAX;

/// The budget is used up: whether there is a match is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Exhausted;

#[derive(Clone, Copy)]
enum Frame {
    Branch {
        step: u32,
        at: usize,
    },
    Slot {
        slot: u16,
        place: usize,
    },
    /// A run that can give back bytes down to `least`.
    Shorter {
        step: u32,
        least: usize,
        at: usize,
    },
    /// A run that can take more bytes up to `most`.
    Longer {
        step: u32,
        set: u16,
        at: usize,
        most: usize,
    },
}

/// Its memory is kept from search to search.
#[derive(Default)]
pub(super) struct Machine {
    frames: Vec<Frame>,
    /// The groups' places after a match, then the loops'.
    pub slots: Vec<usize>,
}

struct Run<'a> {
    program: &'a Program,
    data: &'a [u8],
    /// Where the search began, for `\G`.
    from: usize,
    budget: &'a mut u32,
    frames: &'a mut Vec<Frame>,
    slots: &'a mut [usize],
    keep: usize,
}

impl Machine {
    /// Give back memory that a hostile search took.
    pub fn shrink(&mut self) {
        if self.frames.capacity() > KEPT_FRAMES {
            self.frames = Vec::new();
        }
    }

    /// Search from `from` on and return the first match's ends.
    pub fn search(
        &mut self,
        program: &Program,
        data: &[u8],
        from: usize,
        is_anchored: bool,
        budget: &mut u32,
    ) -> Result<Option<(usize, usize)>, Exhausted> {
        let mut start = from;
        while start <= data.len() {
            if let (Some(first), false) = (&program.first, is_anchored) {
                let rest = data.get(start..).unwrap_or_default();
                let Some(skip) = find(first, rest) else { return Ok(None) };
                start += skip;
            }
            if program.is_anchored && start > 0 {
                return Ok(None);
            }
            self.slots.clear();
            self.slots.resize(usize::from(program.slots), NOWHERE);
            self.frames.clear();
            let (frames, slots) = (&mut self.frames, &mut self.slots[..]);
            let mut run = Run { program, data, from, budget, frames, slots, keep: start };
            if let Some(end) = run.run(0, start)? {
                return Ok(Some((run.keep.min(end), end)));
            }
            if is_anchored {
                return Ok(None);
            }
            start += 1;
        }
        Ok(None)
    }
}

fn find(set: &Set, data: &[u8]) -> Option<usize> {
    match set.single() {
        Some(byte) => memchr::memchr(byte, data),
        None => data.iter().position(|byte| set.contains(*byte)),
    }
}

impl Run<'_> {
    fn charge(&mut self, cost: usize) -> Result<(), Exhausted> {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        *self.budget = self.budget.checked_sub(cost).ok_or(Exhausted)?;
        if self.frames.len() > MOST_FRAMES { Err(Exhausted) } else { Ok(()) }
    }

    /// Run from a step until it accepts (returns the place) or fails. It is called anew for what is inside of
    /// assertions and atomic groups, as deep as groups nest.
    fn run(&mut self, step: u32, at: usize) -> Result<Option<usize>, Exhausted> {
        let base = self.frames.len();
        let (mut step, mut at) = (step, at);
        loop {
            self.charge(1)?;
            let Some(now) = self.program.steps.get(step as usize) else { return Ok(None) };
            let next = match *now {
                Step::Accept => return Ok(Some(at)),
                Step::Byte(byte) => (self.data.get(at) == Some(&byte)).then(|| (step + 1, at + 1)),
                Step::Set(set) => self.holds(set, at).then(|| (step + 1, at + 1)),
                Step::Split(first, second) => {
                    self.frames.push(Frame::Branch { step: second, at });
                    Some((first, at))
                }
                Step::Jump(target) => Some((target, at)),
                Step::Run { set, least, most, mode } => self.repeat(step, at, set, (least, most), mode)?,
                Step::Around { next, is_negated } => self.around(step + 1, at, is_negated)?.then_some((next, at)),
                Step::Atomic { next } => self.atomic(step + 1, at)?.map(|at| (next, at)),
                other => self.simple(other, step, at)?,
            };
            match next.or_else(|| self.back(base)) {
                Some(next) => (step, at) = next,
                None => return Ok(None),
            }
        }
    }

    fn simple(&mut self, now: Step, step: u32, at: usize) -> Result<Option<(u32, usize)>, Exhausted> {
        Ok(match now {
            Step::Save(slot) => {
                self.save(slot, at);
                Some((step + 1, at))
            }
            Step::Assert(assertion) => self.asserts(assertion, at).then_some((step + 1, at)),
            Step::Back { group, is_caseless } => self.repeats(group, is_caseless, at)?.map(|at| (step + 1, at)),
            Step::Rewind(count) => at.checked_sub(count as usize).map(|at| (step + 1, at)),
            Step::Keep => {
                self.keep = at;
                Some((step + 1, at))
            }
            Step::Unless(group, target) => {
                let is_set = self.group(group).is_some();
                Some((if is_set { step + 1 } else { target }, at))
            }
            Step::Progress(slot, leave) => {
                let is_stuck = self.slots.get(usize::from(slot)) == Some(&at);
                Some((if is_stuck { leave } else { step + 1 }, at))
            }
            _ => None,
        })
    }

    /// Go back to the last choice above `base`.
    fn back(&mut self, base: usize) -> Option<(u32, usize)> {
        while self.frames.len() > base {
            match self.frames.pop()? {
                Frame::Branch { step, at } => return Some((step, at)),
                Frame::Slot { slot, place } => self.put(slot, place),
                Frame::Shorter { step, least, at } => {
                    let at = at - 1; // it is only pushed where it is longer than the least
                    if at > least {
                        self.frames.push(Frame::Shorter { step, least, at });
                    }
                    return Some((step, at));
                }
                Frame::Longer { step, set, at, most } => {
                    if self.holds(set, at) {
                        if at + 1 < most {
                            self.frames.push(Frame::Longer { step, set, at: at + 1, most });
                        }
                        return Some((step, at + 1));
                    }
                }
            }
        }
        None
    }

    fn holds(&self, set: u16, at: usize) -> bool {
        match (self.data.get(at), self.program.sets.get(usize::from(set))) {
            (Some(byte), Some(set)) => set.contains(*byte),
            _ => false,
        }
    }

    fn put(&mut self, slot: u16, place: usize) {
        if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
            *slot = place;
        }
    }

    fn save(&mut self, slot: u16, at: usize) {
        let place = self.slots.get(usize::from(slot)).copied().unwrap_or(NOWHERE);
        self.frames.push(Frame::Slot { slot, place });
        self.put(slot, at);
    }

    fn repeat(
        &mut self,
        step: u32,
        at: usize,
        set: u16,
        (least, most): (u16, u16),
        mode: Mode,
    ) -> Result<Option<(u32, usize)>, Exhausted> {
        let Some(set_bytes) = self.program.sets.get(usize::from(set)) else { return Ok(None) };
        let rest = self.data.get(at..).unwrap_or_default();
        let longest = if most == UNLIMITED { rest.len() } else { rest.len().min(usize::from(most)) };
        let wanted = if mode == Mode::Lazy { longest.min(usize::from(least)) } else { longest };
        let taken = rest[..wanted].iter().position(|byte| !set_bytes.contains(*byte)).unwrap_or(wanted);
        self.charge(taken / 16)?;
        if taken < usize::from(least) {
            return Ok(None);
        }
        let (end, floor) = (at + taken, at + usize::from(least));
        match mode {
            Mode::Greedy if end > floor => self.frames.push(Frame::Shorter { step: step + 1, least: floor, at: end }),
            Mode::Lazy if longest > taken => {
                self.frames.push(Frame::Longer { step: step + 1, set, at: end, most: at + longest });
            }
            _ => {}
        }
        Ok(Some((step + 1, end)))
    }

    fn around(&mut self, step: u32, at: usize, is_negated: bool) -> Result<bool, Exhausted> {
        let base = self.frames.len();
        let has_matched = self.run(step, at)?.is_some();
        if has_matched && is_negated {
            while self.back_to_slots(base) {}
        } else if has_matched {
            self.forget_choices(base);
        }
        Ok(has_matched != is_negated)
    }

    fn atomic(&mut self, step: u32, at: usize) -> Result<Option<usize>, Exhausted> {
        let base = self.frames.len();
        let end = self.run(step, at)?;
        self.forget_choices(base);
        Ok(end)
    }

    /// Undo one frame above `base`; false where there is none.
    fn back_to_slots(&mut self, base: usize) -> bool {
        if self.frames.len() <= base {
            return false;
        }
        if let Some(Frame::Slot { slot, place }) = self.frames.pop() {
            self.put(slot, place);
        }
        true
    }

    /// Keep only what restores groups: the choices above `base` are final.
    fn forget_choices(&mut self, base: usize) {
        let mut kept = base;
        for index in base..self.frames.len() {
            if let Some(frame @ Frame::Slot { .. }) = self.frames.get(index).copied()
                && let Some(place) = self.frames.get_mut(kept)
            {
                *place = frame;
                kept += 1;
            }
        }
        self.frames.truncate(kept);
    }

    fn group(&self, group: u16) -> Option<&[u8]> {
        let slot = usize::from(group) * 2;
        self.data.get(*self.slots.get(slot)?..*self.slots.get(slot + 1)?)
    }

    fn repeats(&mut self, group: u16, is_caseless: bool, at: usize) -> Result<Option<usize>, Exhausted> {
        let Some(length) = self.group(group).map(<[u8]>::len) else { return Ok(None) };
        self.charge(length / 16)?;
        let here = at.checked_add(length).and_then(|end| self.data.get(at..end));
        let is_same = match (here, self.group(group)) {
            (Some(here), Some(there)) if is_caseless => here.eq_ignore_ascii_case(there),
            (Some(here), Some(there)) => here == there,
            _ => false,
        };
        Ok(is_same.then(|| at + length))
    }

    fn asserts(&self, assertion: Assertion, at: usize) -> bool {
        let length = self.data.len();
        let before = at.checked_sub(1).and_then(|at| self.data.get(at)).copied();
        let after = self.data.get(at).copied();
        let is_word = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match assertion {
            Assertion::Start => at == 0,
            // a newline at the very end begins no line
            Assertion::LineStart => at == 0 || before == Some(b'\n') && at < length,
            Assertion::End => at == length,
            Assertion::EndOrNewline => at == length || at + 1 == length && after == Some(b'\n'),
            Assertion::LineEnd => at == length || after == Some(b'\n'),
            Assertion::Boundary => is_word(before) != is_word(after),
            Assertion::NoBoundary => is_word(before) == is_word(after),
            Assertion::SearchStart => at == self.from,
        }
    }
}
