//! From the text of a regular expression to its tree. The language is PCRE2's without UTF.

use super::escape::Escape;
use super::set::Set;

/// A longer pattern is refused: the longest of the public rule sets has some 1,500 bytes.
const MOST_BYTES: usize = 16 << 10;
/// How deep groups nest: what walks the tree is recursive. PCRE2's own limit is 250; rules use 7.
const MOST_DEPTH: usize = 60;
/// PCRE's largest count in braces.
const MOST_REPEATS: u32 = 65_535;

/// Switches that a pattern begins with or sets on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Flags {
    pub caseless: bool,
    pub dot_all: bool,
    pub multi_line: bool,
    pub extended: bool,
    pub ungreedy: bool,
    pub dollar_end_only: bool,
}

/// What holds between two bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Assertion {
    /// `\A`, `^`
    Start,
    /// `^` in lines
    LineStart,
    /// `\z`
    End,
    /// `$`, `\Z`: at the end, or before a newline there
    EndOrNewline,
    /// `$` in lines
    LineEnd,
    /// `\b`
    Boundary,
    /// `\B`
    NoBoundary,
    /// `\G`
    SearchStart,
}

/// How a repetition chooses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub(super) enum Mode {
    Greedy,
    Lazy,
    Possessive,
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Node {
    Empty,
    Byte(u8),
    Set(Set),
    Assert(Assertion),
    /// `\K`
    Keep,
    Concat(Vec<Node>),
    Alternate(Vec<Node>),
    Repeat {
        node: Box<Node>,
        least: u32,
        most: Option<u32>,
        mode: Mode,
    },
    Capture(u16, Box<Node>),
    Atomic(Box<Node>),
    Around {
        is_behind: bool,
        is_negated: bool,
        node: Box<Node>,
    },
    /// What a group matched
    Back {
        group: u16,
        is_caseless: bool,
    },
    /// `(?(1)yes|no)`
    Condition {
        group: u16,
        yes: Box<Node>,
        no: Box<Node>,
    },
}

/// A pattern that was read.
#[derive(Debug)]
pub(super) struct Tree {
    pub node: Node,
    /// How many capturing groups there are.
    pub groups: u16,
    pub names: Vec<(String, u16)>,
}

/// Read a pattern, or say what is wrong with it.
pub(super) fn parse(pattern: &[u8], flags: Flags) -> Result<Tree, String> {
    if pattern.len() > MOST_BYTES {
        return Err(format!("longer than {MOST_BYTES} bytes"));
    }
    let mut parser =
        Parser { pattern, at: 0, flags, groups: 0, names: Vec::new(), highest: 0, depth: 0, quoted: false };
    let node = parser.alternation()?;
    if parser.at < pattern.len() {
        return Err("a closing parenthesis without an opening one".into());
    }
    if parser.highest > parser.groups {
        return Err(format!("there is no group {}", parser.highest));
    }
    Ok(Tree { node, groups: parser.groups, names: parser.names })
}

pub(super) struct Parser<'a> {
    pub pattern: &'a [u8],
    pub at: usize,
    pub flags: Flags,
    pub groups: u16,
    names: Vec<(String, u16)>,
    highest: u16,
    depth: usize,
    /// Between `\Q` and `\E`.
    quoted: bool,
}

impl Parser<'_> {
    pub fn peek(&self) -> Option<u8> {
        self.pattern.get(self.at).copied()
    }

    pub fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    pub fn eat(&mut self, text: &[u8]) -> bool {
        let is_there = self.pattern.get(self.at..).is_some_and(|rest| rest.starts_with(text));
        if is_there {
            self.at += text.len();
        }
        is_there
    }

    /// Read up to `end`, which is read too.
    pub fn until(&mut self, end: u8) -> Result<String, String> {
        let rest = self.pattern.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == end).ok_or("something is not closed")?;
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    fn alternation(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(format!("groups nest deeper than {MOST_DEPTH}"));
        }
        let mut branches = vec![self.sequence()?];
        while self.eat(b"|") {
            branches.push(self.sequence()?);
        }
        self.depth -= 1;
        Ok(if branches.len() == 1 { branches.swap_remove(0) } else { Node::Alternate(branches) })
    }

    fn sequence(&mut self) -> Result<Node, String> {
        let mut nodes = Vec::new();
        loop {
            if self.quoted {
                if self.eat(b"\\E") {
                    self.quoted = false;
                    continue;
                }
            } else {
                if self.flags.extended {
                    self.skip_space();
                }
                if matches!(self.peek(), Some(b'|' | b')')) {
                    break;
                }
            }
            if self.peek().is_none() {
                break;
            }
            if let Some(node) = self.atom()? {
                let node = self.quantified(node)?;
                nodes.push(node);
            }
        }
        Ok(match nodes.len() {
            0 => Node::Empty,
            1 => nodes.swap_remove(0),
            _ => Node::Concat(nodes),
        })
    }

    /// In extended patterns: white space and comments mean nothing.
    fn skip_space(&mut self) {
        while let Some(byte) = self.peek() {
            if byte == b'#' {
                while self.next().is_some_and(|byte| byte != b'\n') {}
            } else if byte == b' ' || (9..=13).contains(&byte) {
                self.at += 1;
            } else {
                return;
            }
        }
    }

    /// Read one item; `None` where it is nothing to match (a switch, a comment).
    fn atom(&mut self) -> Result<Option<Node>, String> {
        let Some(byte) = self.next() else { return Ok(None) };
        if self.quoted {
            return Ok(Some(self.literal(byte)));
        }
        Ok(Some(match byte {
            b'(' => return self.group(),
            b'[' => Node::Set(self.class()?),
            b'.' if self.flags.dot_all => Node::Set(Set::default().inverted()),
            b'.' => Node::Set(Set::of(&[(b'\n', b'\n')]).inverted()),
            b'^' if self.flags.multi_line => Node::Assert(Assertion::LineStart),
            b'^' => Node::Assert(Assertion::Start),
            b'$' if self.flags.multi_line => Node::Assert(Assertion::LineEnd),
            b'$' if self.flags.dollar_end_only => Node::Assert(Assertion::End),
            b'$' => Node::Assert(Assertion::EndOrNewline),
            b'\\' => return self.escaped(),
            b'*' | b'+' | b'?' => return Err("a quantifier follows nothing that can be repeated".into()),
            other => self.literal(other),
        }))
    }

    fn literal(&self, byte: u8) -> Node {
        if self.flags.caseless && byte.is_ascii_alphabetic() {
            Node::Set(Set::of(&[(byte, byte)]).caseless())
        } else {
            Node::Byte(byte)
        }
    }

    fn escaped(&mut self) -> Result<Option<Node>, String> {
        Ok(Some(match self.escape(false)? {
            Escape::Byte(byte) => self.literal(byte),
            Escape::Set(set) => Node::Set(set),
            Escape::Assert(assertion) => Node::Assert(assertion),
            Escape::Keep => Node::Keep,
            Escape::Newline => {
                let single = Node::Set(Set::of(Set::VERTICAL));
                let pair = Node::Concat(vec![Node::Byte(b'\r'), Node::Byte(b'\n')]);
                Node::Atomic(Box::new(Node::Alternate(vec![pair, single])))
            }
            Escape::Back(group) => self.back(group),
            Escape::Named(name) => {
                let group = self.named(&name)?;
                self.back(group)
            }
            Escape::Quote => {
                self.quoted = true;
                return Ok(None);
            }
            Escape::Nothing => return Ok(None),
        }))
    }

    fn back(&mut self, group: u16) -> Node {
        self.highest = self.highest.max(group);
        Node::Back { group, is_caseless: self.flags.caseless }
    }

    fn named(&self, name: &str) -> Result<u16, String> {
        let found = self.names.iter().find(|(other, _)| other == name);
        found.map(|(_, group)| *group).ok_or_else(|| format!("there is no group {name:?}"))
    }

    fn quantified(&mut self, mut node: Node) -> Result<Node, String> {
        loop {
            if self.flags.extended && !self.quoted {
                self.skip_space();
            }
            let Some((least, most)) = self.quantifier()? else { return Ok(node) };
            let mode = if self.eat(b"+") {
                Mode::Possessive
            } else if self.eat(b"?") != self.flags.ungreedy {
                Mode::Lazy
            } else {
                Mode::Greedy
            };
            node = match node {
                // PCRE: whatever an assertion's count is, it is looked at once or, with a least of 0, need not hold
                Node::Assert(_) | Node::Around { .. } | Node::Keep => Node::Repeat {
                    node: Box::new(node),
                    least: least.min(1),
                    most: most.map(|most| most.min(1)).or(Some(1)),
                    mode,
                },
                other => Node::Repeat { node: Box::new(other), least, most, mode },
            };
        }
    }

    fn quantifier(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        if self.quoted && !self.eat(b"\\E") {
            return Ok(None);
        }
        self.quoted = false;
        let simple = match self.peek() {
            Some(b'*') => (0, None),
            Some(b'+') => (1, None),
            Some(b'?') => (0, Some(1)),
            Some(b'{') => return self.braces(),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(simple))
    }

    /// Braces that hold no count stand for themselves, `{,5}` too.
    fn braces(&mut self) -> Result<Option<(u32, Option<u32>)>, String> {
        let start = self.at;
        self.at += 1;
        let least = self.number();
        let most = if self.eat(b",") { self.number() } else { least };
        if least.is_none() || !self.eat(b"}") {
            self.at = start;
            return Ok(None);
        }
        let least = least.unwrap_or(0);
        if least.max(most.unwrap_or(0)) > MOST_REPEATS {
            return Err(format!("a count above {MOST_REPEATS}"));
        }
        if most.is_some_and(|most| most < least) {
            return Err("the counts in braces are in the wrong order".into());
        }
        Ok(Some((least, most)))
    }

    /// Read decimal digits; a number too big to hold counts as too big.
    pub fn number(&mut self) -> Option<u32> {
        let mut value: Option<u32> = None;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            self.at += 1;
            value = Some(value.unwrap_or(0).saturating_mul(10).saturating_add(u32::from(digit - b'0')));
        }
        value
    }

    fn group(&mut self) -> Result<Option<Node>, String> {
        if self.peek() == Some(b'*') {
            return Err("verbs are not supported".into());
        }
        if !self.eat(b"?") {
            return self.capture(None).map(Some);
        }
        let around = |is_behind, is_negated| (is_behind, is_negated);
        let (is_behind, is_negated) = match self.next() {
            Some(b':') => return self.enclosed().map(Some),
            Some(b'>') => return Ok(Some(Node::Atomic(Box::new(self.enclosed()?)))),
            Some(b'|') => return self.reset().map(Some),
            Some(b'#') => return self.until(b')').map(|_| None),
            Some(b'(') => return self.condition().map(Some),
            Some(b'=') => around(false, false),
            Some(b'!') => around(false, true),
            Some(b'<') if self.eat(b"=") => around(true, false),
            Some(b'<') if self.eat(b"!") => around(true, true),
            Some(b'<') => return self.named_capture(b'>').map(Some),
            Some(b'\'') => return self.named_capture(b'\'').map(Some),
            Some(b'P') if self.eat(b"<") => return self.named_capture(b'>').map(Some),
            Some(b'P') if self.eat(b"=") => {
                let name = self.until(b')')?;
                let group = self.named(&name)?;
                return Ok(Some(self.back(group)));
            }
            Some(b'P' | b'R' | b'&' | b'0'..=b'9' | b'+' | b'C') => return Err("recursion is not supported".into()),
            _ => {
                self.at -= 1;
                return self.switches();
            }
        };
        Ok(Some(Node::Around { is_behind, is_negated, node: Box::new(self.enclosed()?) }))
    }

    /// Read what is in a group, and its end. Switches that are set in it end with it.
    fn enclosed(&mut self) -> Result<Node, String> {
        let flags = self.flags;
        let node = self.alternation()?;
        self.flags = flags;
        if self.eat(b")") { Ok(node) } else { Err("a parenthesis is not closed".into()) }
    }

    fn capture(&mut self, name: Option<String>) -> Result<Node, String> {
        self.groups = self.groups.checked_add(1).ok_or("too many groups")?;
        let group = self.groups;
        if let Some(name) = name {
            self.names.push((name, group));
        }
        Ok(Node::Capture(group, Box::new(self.enclosed()?)))
    }

    fn named_capture(&mut self, end: u8) -> Result<Node, String> {
        let name = self.until(end)?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || name.as_bytes()[0].is_ascii_digit() || self.named(&name).is_ok() {
            return Err(format!("{name:?} cannot name a group"));
        }
        self.capture(Some(name))
    }

    /// `(?|a(b)|c(d))`: each branch counts its groups from the same number.
    fn reset(&mut self) -> Result<Node, String> {
        let (flags, first) = (self.flags, self.groups);
        let (mut branches, mut most) = (Vec::new(), first);
        loop {
            self.groups = first;
            branches.push(self.sequence()?);
            most = most.max(self.groups);
            if !self.eat(b"|") {
                break;
            }
        }
        (self.flags, self.groups) = (flags, most);
        if self.eat(b")") { Ok(Node::Alternate(branches)) } else { Err("a parenthesis is not closed".into()) }
    }

    fn condition(&mut self) -> Result<Node, String> {
        let text = self.until(b')')?;
        let name = text.trim_matches(|c| matches!(c, '<' | '>' | '\''));
        let group = match name.parse() {
            Ok(group) => group,
            Err(_) => self.named(name)?,
        };
        self.highest = self.highest.max(group);
        let mut branches = match self.enclosed()? {
            Node::Alternate(branches) => branches,
            other => vec![other],
        };
        if branches.len() > 2 {
            return Err("a condition has more than two branches".into());
        }
        let no = if branches.len() == 2 { branches.pop().unwrap_or(Node::Empty) } else { Node::Empty };
        let yes = branches.pop().unwrap_or(Node::Empty);
        Ok(Node::Condition { group, yes: Box::new(yes), no: Box::new(no) })
    }

    /// `(?i)` until the group's end, `(?i:…)`.
    fn switches(&mut self) -> Result<Option<Node>, String> {
        let before = self.flags;
        let mut value = true;
        loop {
            match self.next() {
                Some(b'^') => self.flags = Flags { dollar_end_only: before.dollar_end_only, ..Flags::default() },
                Some(b'-') => value = false,
                Some(b'i') => self.flags.caseless = value,
                Some(b's') => self.flags.dot_all = value,
                Some(b'm') => self.flags.multi_line = value,
                Some(b'x') => self.flags.extended = value,
                Some(b'U') => self.flags.ungreedy = value,
                Some(b'J' | b'n') => return Err("this switch is not supported".into()),
                Some(b')') => return Ok(None),
                Some(b':') => {
                    let node = self.enclosed();
                    self.flags = before;
                    return node.map(Some);
                }
                _ => return Err("an unknown kind of group".into()),
            }
        }
    }
}
