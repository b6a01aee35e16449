//! Whether conditions are met: Suricata's recursion.
//!
//! Conditions are looked at in written order, each from where the one before left off (`at`). A content or pcre that a
//! later condition depends on is a choice: where what follows fails, its next occurrence is tried. What cannot become
//! true by another choice ends the whole.

use super::content::{Content, flag};
use super::{Condition, Context, Inspection, Subject};
use crate::pcre::Pcre;

/// How many searched bytes cost a step: so many are searched in about the time that other steps take.
const BYTES_PER_STEP: usize = 4_096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Match,
    /// An earlier content may be tried at its next occurrence.
    Fail,
    /// No other choice can help.
    Stop,
}

/// What to do after one condition.
enum Next {
    /// Look at the next one, from this place.
    Go(usize),
    End(Verdict),
}

pub(super) fn matches(inspection: &Inspection, subject: Subject<'_>, context: &mut Context<'_>) -> bool {
    let captures = context.captures.len();
    let verdict = Run { inspection, subject, context }.run(0, 0);
    if verdict != Verdict::Match {
        context.captures.truncate(captures);
    }
    verdict == Verdict::Match
}

struct Run<'a, 'b, 'c> {
    inspection: &'a Inspection,
    subject: Subject<'a>,
    context: &'b mut Context<'c>,
}

fn failed(is_independent: bool) -> Next {
    Next::End(if is_independent { Verdict::Stop } else { Verdict::Fail })
}

impl Run<'_, '_, '_> {
    /// Look at the conditions from `index` on. Called anew for each choice, as deep as there are conditions.
    fn run(&mut self, index: usize, at: usize) -> Verdict {
        let (inspection, mut at) = (self.inspection, at);
        // once a content is passed that nothing depends on, no earlier one is tried again
        let mut is_final = false;
        for (index, condition) in inspection.conditions.iter().enumerate().skip(index) {
            if !self.charge(1) {
                return Verdict::Stop;
            }
            let next = match condition {
                Condition::Content(content) => self.content(content, index, at),
                Condition::Pcre(pcre) => self.pcre(pcre, index, at),
                other => self.simple(other, at),
            };
            match next {
                Next::Go(place) => at = place,
                Next::End(Verdict::Fail) if is_final => return Verdict::Stop,
                Next::End(verdict) => return verdict,
            }
            if let Condition::Content(content) = condition {
                is_final |= !content.has(flag::RELATIVE_NEXT | flag::NEGATED);
            }
        }
        Verdict::Match
    }

    /// Pay for work; false where the rule has had its share.
    fn charge(&mut self, cost: usize) -> bool {
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        *self.context.steps = self.context.steps.saturating_sub(cost);
        *self.context.steps > 0
    }

    fn content(&mut self, content: &Content, index: usize, at: usize) -> Next {
        if content.has(flag::ONLY) && !content.is_negated() && !content.has(flag::RELATIVE_NEXT) {
            // `fast_pattern:only`: found anywhere. The prefilter folds case and cuts literals, so it is looked at again
            let literal = content.literal(&self.inspection.literals);
            let whole = (0, self.subject.data.len());
            return if content.find(whole, &self.subject, literal).is_some() { Next::Go(at) } else { failed(true) };
        }
        let literal = content.literal(&self.inspection.literals);
        let window = content.window(at, &self.subject, self.context.variables);
        let mut found = match window {
            Some(window) => self.search(content, window, literal),
            None => None,
        };
        if content.is_negated() {
            return if found.is_some() { failed(content.is_independent()) } else { Next::Go(at) };
        }
        let (Some(start), Some((_, to))) = (found, window) else { return failed(content.is_independent()) };
        if !content.has(flag::RELATIVE_NEXT) {
            return Next::Go(start + literal.len());
        }
        let captures = self.context.captures.len();
        while let Some(start) = found {
            match self.run(index + 1, start + literal.len()) {
                Verdict::Fail => self.context.captures.truncate(captures),
                verdict => return Next::End(verdict),
            }
            if !self.charge(1) {
                return Next::End(Verdict::Stop);
            }
            found = self.search(content, (start + 1, to), literal);
        }
        failed(content.is_independent())
    }

    fn search(&mut self, content: &Content, window: (usize, usize), literal: &[u8]) -> Option<usize> {
        let found = content.find(window, &self.subject, literal);
        let searched = found.unwrap_or(window.1).saturating_sub(window.0);
        self.charge(searched / BYTES_PER_STEP);
        found
    }

    fn pcre(&mut self, pcre: &Pcre, index: usize, at: usize) -> Next {
        let base = if pcre.is_relative { at.min(self.subject.data.len()) } else { 0 };
        let data = self.subject.data.get(base..).unwrap_or_default();
        let captures = self.context.captures.len();
        let mut from = 0;
        loop {
            let context = &mut *self.context;
            let found = context.regexes.find(pcre, data, from, context.steps, context.captures);
            self.charge(data.len().saturating_sub(from) / BYTES_PER_STEP);
            let Some(found) = found else {
                return if pcre.is_negated { Next::Go(at) } else { failed(!pcre.is_relative) };
            };
            if pcre.is_negated {
                return failed(!pcre.is_relative);
            }
            if !pcre.has_relative_next {
                return Next::Go(base + found.end);
            }
            match self.run(index + 1, base + found.end) {
                Verdict::Fail => self.context.captures.truncate(captures),
                verdict => return Next::End(verdict),
            }
            if !self.charge(1) {
                return Next::End(Verdict::Stop);
            }
            from = found.start + 1;
        }
    }

    fn simple(&mut self, condition: &Condition, at: usize) -> Next {
        let subject = &self.subject;
        let moved = |place: Option<usize>| place.map_or(Next::End(Verdict::Fail), Next::Go);
        let held = |is_met: bool, is_independent: bool| if is_met { Next::Go(at) } else { failed(is_independent) };
        match condition {
            Condition::IsDataAt(test) => held(test.matches(subject, at, self.context), test.is_independent()),
            Condition::Bsize(bsize) => held(bsize.matches(subject, self.context), true),
            Condition::ByteTest(test) => held(test.matches(subject, at, self.context), test.is_independent()),
            Condition::ByteJump(jump) => moved(jump.target(subject, at, self.context)),
            Condition::ByteExtract(extract) => moved(extract.apply(subject, at, self.context)),
            Condition::ByteMath(math) => moved(math.apply(subject, at, self.context)),
            Condition::Entropy(entropy) => held(entropy.matches(subject), true),
            Condition::Lookup(lookup) => held(lookup.matches(subject.data), true),
            Condition::Base64(decode) => {
                let Some(decoded) = decode.decode(subject, at) else { return Next::End(Verdict::Fail) };
                let nested = Subject { data: &decoded, start: 0, is_complete: true };
                let is_met = decode.inspection.as_ref().is_none_or(|inner| matches(inner, nested, self.context));
                held(is_met, false)
            }
            Condition::Content(_) | Condition::Pcre(_) => Next::End(Verdict::Fail), // looked at by `run`
        }
    }
}
