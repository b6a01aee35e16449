//! Expressions that a finite automaton can decide, for long buffers: linear, and fast where there are literals.

use regex_automata::Input;
use regex_automata::meta::{BuildError, Builder, Cache, Config, Regex};
use regex_syntax::hir::{Class, ClassBytes, ClassBytesRange, Hir, Look, Repetition};

use super::syntax::{Assertion, Mode, Node, Tree};

/// An automaton may take this much: Suricata rules' largest (counts of some hundred in counts) take 300 KiB.
const MOST_AUTOMATON_BYTES: usize = 1 << 20;
/// What its lazily built states may take before it begins anew.
const MOST_CACHE_BYTES: usize = 128 << 10;

pub(super) struct Automaton {
    regex: Regex,
    cache: Cache,
    /// What the regex itself takes; the cache grows.
    fixed_bytes: usize,
}

impl Automaton {
    /// Return the automaton; `None` where there is none for this expression, or only one that is too big.
    pub fn new(tree: &Tree) -> Option<Automaton> {
        let hir = translate(&tree.node, true)?;
        let regex = build(&hir).ok()?;
        let cache = regex.create_cache();
        let fixed_bytes = regex.memory_usage();
        Some(Automaton { regex, cache, fixed_bytes })
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.fixed_bytes + self.cache.memory_usage()
    }

    /// Return the ends of the first match from `from` on.
    pub fn search(&mut self, data: &[u8], from: usize, is_anchored: bool) -> Option<(usize, usize)> {
        let anchored = if is_anchored { regex_automata::Anchored::Yes } else { regex_automata::Anchored::No };
        let input = Input::new(data).range(from.min(data.len())..).anchored(anchored);
        self.regex.search_with(&mut self.cache, &input).map(|found| (found.start(), found.end()))
    }
}

fn build(hir: &Hir) -> Result<Regex, Box<BuildError>> {
    let config = Config::new()
        .utf8_empty(false)
        .nfa_size_limit(Some(MOST_AUTOMATON_BYTES))
        .onepass(false)
        .backtrack(false)
        .hybrid_cache_capacity(MOST_CACHE_BYTES);
    Builder::new().configure(config).build_from_hir(hir).map_err(Box::new)
}

/// Translate; `is_tail` where nothing but the end of the expression follows.
fn translate(node: &Node, is_tail: bool) -> Option<Hir> {
    Some(match node {
        Node::Empty => Hir::empty(),
        Node::Byte(byte) => Hir::literal([*byte]),
        Node::Set(set) => {
            let ranges = set.ranges().into_iter().map(|(low, high)| ClassBytesRange::new(low, high));
            Hir::class(Class::Bytes(ClassBytes::new(ranges)))
        }
        Node::Assert(assertion) => return assert(*assertion, is_tail),
        Node::Concat(nodes) => {
            let last = nodes.len().checked_sub(1)?;
            let parts = nodes.iter().enumerate().map(|(index, node)| translate(node, is_tail && index == last));
            Hir::concat(parts.collect::<Option<Vec<Hir>>>()?)
        }
        Node::Alternate(nodes) => {
            Hir::alternation(nodes.iter().map(|node| translate(node, is_tail)).collect::<Option<Vec<Hir>>>()?)
        }
        Node::Repeat { node, least, most, mode } if *mode != Mode::Possessive => {
            // what can match nothing ends a loop otherwise here and there
            if most.is_none_or(|most| most > 1) && !matches!(**node, Node::Byte(_) | Node::Set(_)) {
                let inner = translate(node, false)?;
                if inner.properties().minimum_len().is_none_or(|length| length == 0) {
                    return None;
                }
            }
            let sub = Box::new(translate(node, is_tail && *most == Some(1))?);
            Hir::repetition(Repetition { min: *least, max: *most, greedy: *mode == Mode::Greedy, sub })
        }
        // numbered as nothing: groups are read by the machine
        Node::Capture(_, node) => translate(node, is_tail)?,
        _ => return None,
    })
}

fn assert(assertion: Assertion, is_tail: bool) -> Option<Hir> {
    Some(match assertion {
        Assertion::Start => Hir::look(Look::Start),
        Assertion::End => Hir::look(Look::End),
        Assertion::LineEnd => Hir::look(Look::EndLF),
        Assertion::Boundary => Hir::look(Look::WordAscii),
        Assertion::NoBoundary => Hir::look(Look::WordAsciiNegate),
        // the newline becomes part of the match; the machine finds the right end
        Assertion::EndOrNewline if is_tail => {
            let newline = Hir::concat(vec![Hir::literal([b'\n']), Hir::look(Look::End)]);
            Hir::alternation(vec![Hir::look(Look::End), newline])
        }
        Assertion::EndOrNewline | Assertion::SearchStart => return None,
        // differs after a newline at the very end only, where there is nothing to match
        Assertion::LineStart => Hir::look(Look::StartLF),
    })
}
