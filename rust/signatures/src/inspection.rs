//! What is looked for in one buffer: contents and their relations, pcre, byte_*, isdataat, bsize, datasets.

use crate::prefilter::Pattern;

/// Where the names of `byte_extract` and `byte_math` results of one rule get their slots.
#[derive(Debug, Default)]
pub struct Names {}

/// Conditions on one buffer, in written order.
#[derive(Debug)]
pub struct Inspection {}

/// Reads the options of one buffer.
#[derive(Debug, Default)]
pub struct Builder {}

impl Builder {
    /// Return whether `name` is an option that [`Builder::option`] reads.
    pub fn knows(_name: &str) -> bool {
        false
    }

    /// Read one option: `content`, a modifier of the latest content, `pcre`, `byte_test`, …
    pub fn option(&mut self, _name: &str, _value: Option<&str>, _names: &mut Names) -> Result<(), String> {
        Err(String::new())
    }

    /// Return whether nothing was read.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// Return the whole, or what is wrong with it.
    pub fn finish(self) -> Result<Inspection, String> {
        Err(String::new())
    }
}

/// What an inspection needs besides the bytes.
pub struct Context<'a> {
    /// Results of `byte_extract` and `byte_math` of the rule at hand, by slot.
    pub variables: &'a mut Vec<u64>,
    /// Steps left before the rule counts as not matching: bounds the work on hostile bytes.
    pub steps: &'a mut u32,
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

impl Inspection {
    /// Return whether all conditions are met.
    pub fn matches(&self, _subject: Subject<'_>, _context: &mut Context<'_>) -> bool {
        false
    }

    /// Return the literal that has to occur for a match, the best one: `fast_pattern` or the longest. `None` where
    /// only negated contents or none are there.
    pub fn pattern(&self) -> Option<Pattern> {
        None
    }

    /// Return whether it can match although the buffer does not exist (`absent`, `absent:or_else`).
    pub fn matches_absence(&self) -> bool {
        false
    }
}
