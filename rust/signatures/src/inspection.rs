//! What is looked for in one buffer: contents and their relations, pcre, byte_*, isdataat, bsize, datasets.
//!
//! Options become [`Piece`]s in `builder.rs`; a finished list is packed here; `engine.rs` decides whether it matches,
//! by the recursion that Suricata uses: conditions in written order, and where one that depends on an earlier content
//! fails, that content's next occurrence is tried.

mod builder;
mod bytes;
mod content;
mod engine;
mod names;
mod options;
mod small;
#[cfg(test)]
mod tests;

pub use builder::{Builder, Piece};
pub use names::Names;

use bytes::{ByteExtract, ByteJump, ByteMath, ByteTest};
use content::Content;
use small::{Base64Decode, Bsize, Entropy, IsDataAt};

use protocols::View;

use crate::pcre::{Capture, Pcre, Regexes};
use crate::prefilter::Pattern;
use crate::transform::Transform;

/// Conditions on one buffer, in written order.
#[derive(Debug)]
pub struct Inspection {
    conditions: Box<[Condition]>,
    /// The literals of all contents, one behind the other: an allocation for each would cost more than they do.
    literals: Box<[u8]>,
    /// Index of the content that was chosen as `fast_pattern`, and the part of it.
    chosen: Option<(u16, u16, u16)>,
    absence: Absence,
}

/// What `absent` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Absence {
    #[default]
    Unsaid,
    /// `absent`
    Must,
    /// `absent:or_else`
    May,
}

/// One condition. What is rare is boxed: there are some hundred thousand of these.
#[derive(Debug)]
enum Condition {
    Content(Content),
    IsDataAt(Box<IsDataAt>),
    Bsize(Box<Bsize>),
    Pcre(Box<Pcre>),
    ByteTest(Box<ByteTest>),
    ByteJump(Box<ByteJump>),
    ByteExtract(Box<ByteExtract>),
    ByteMath(Box<ByteMath>),
    Entropy(Box<Entropy>),
    Base64(Box<Base64Decode>),
    Lookup(Box<Box<dyn Lookup>>),
}

/// A condition on a whole buffer that is kept elsewhere: a dataset.
pub trait Lookup: std::fmt::Debug + Send + Sync {
    /// Return whether the buffer meets it.
    fn matches(&self, data: &[u8]) -> bool;
}

/// What an inspection needs besides the bytes.
pub struct Context<'a> {
    /// Results of `byte_extract` and `byte_math` of the rule at hand, by slot.
    pub variables: &'a mut Vec<u64>,
    /// Steps left before the rule counts as not matching: bounds the work on hostile bytes.
    pub steps: &'a mut u32,
    /// Compiled expressions, shared by all rules of a thread.
    pub regexes: &'a mut Regexes,
    /// What pcre captured in this buffer is added here if it matches.
    pub captures: &'a mut Vec<Capture>,
    /// What `dce` in `byte_test` and its kin means: the bytes are of a DCERPC packet that is little endian.
    pub is_dce_little: bool,
}

impl Context<'_> {
    /// How many steps a rule may take in a buffer; Suricata's `inspection-recursion-limit`.
    pub const STEPS: u32 = 3_000;
}

/// The bytes that are looked at.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// What is there.
    pub data: &'a [u8],
    /// Where `data` begins in the whole: `offset` and `depth` count from there.
    pub start: u64,
    /// Nothing more will come: needed for `bsize`, `endswith`, `isdataat:!`.
    pub is_complete: bool,
}

impl<'a> From<View<'a>> for Subject<'a> {
    fn from(view: View<'a>) -> Subject<'a> {
        Subject { data: view.data, start: view.start, is_complete: view.is_complete }
    }
}

impl Inspection {
    /// Return whether all conditions are met.
    pub fn matches(&self, subject: Subject<'_>, context: &mut Context<'_>) -> bool {
        self.absence != Absence::Must && engine::matches(self, subject, context)
    }

    /// Return the literal that has to occur for a match, the best one: `fast_pattern` or the strongest. `None` where
    /// only negated contents or none are there, or where the buffer need not exist.
    pub fn pattern(&self) -> Option<Pattern> {
        if self.absence != Absence::Unsaid {
            return None;
        }
        if let Some((index, from, length)) = self.chosen {
            let Some(Condition::Content(content)) = self.conditions.get(usize::from(index)) else { return None };
            let literal = content.literal(&self.literals);
            let part = literal.get(usize::from(from)..usize::from(from) + usize::from(length)).unwrap_or(literal);
            if !content.is_negated() {
                return Some(Pattern::new(part, true));
            }
        }
        let literals = self.contents().filter(|content| !content.is_negated());
        let patterns = literals.map(|content| Pattern::new(content.literal(&self.literals), false));
        // of equal ones the first
        patterns.reduce(|best, other| if other.strength() > best.strength() { other } else { best })
    }

    /// Return whether it can match although the buffer does not exist (`absent`, `absent:or_else`).
    pub fn matches_absence(&self) -> bool {
        self.absence != Absence::Unsaid
    }

    /// Say whether a content can never occur in what these transforms leave: Suricata refuses such rules.
    pub fn check(&self, transforms: &[Transform]) -> Result<(), String> {
        // what digests or decodes leave is not decided by what came before
        let first = transforms.iter().rposition(Transform::makes_anew).unwrap_or(0);
        let transforms = transforms.get(first..).unwrap_or_default();
        for content in self.contents() {
            let literal = content.literal(&self.literals);
            if let Some(transform) = transforms.iter().find(|transform| !transform.can_leave(literal)) {
                return Err(format!("a content is incompatible with {} transform", transform.name()));
            }
        }
        Ok(())
    }

    /// Return whether a content says where it must be (`depth`, `offset`): decides how a payload is looked at in TCP.
    pub fn has_depth_or_offset(&self) -> bool {
        self.contents().any(Content::has_place)
    }

    /// Return the fewest bytes that can meet all conditions.
    pub fn least_bytes(&self) -> usize {
        let contents = self.contents().filter(|content| !content.is_negated());
        contents.map(Content::least_bytes).max().unwrap_or(0)
    }

    /// Bytes on the heap, roughly.
    pub fn heap_bytes(&self) -> usize {
        self.conditions.len() * size_of::<Condition>() + self.literals.len()
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        self.conditions.iter().filter_map(|condition| match condition {
            Condition::Content(content) => Some(content),
            _ => None,
        })
    }
}
