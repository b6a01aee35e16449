//! What the values of an entry are, and what is within them: spans of numbers, topics, clients, paths, names.

use std::fmt;

use super::rules::Pattern;

const MAX_REPORTED: usize = 96; // bytes of a peer's text that a report repeats

/// Numbers from `first` to `last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub first: u32,
    pub last: u32,
}

impl Span {
    pub fn one(number: impl Into<u32>) -> Span {
        let first = number.into();
        Span { first, last: first }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Span { first, last } if first == last => write!(formatter, "{first}"),
            Span { first, last } => write!(formatter, "{first}-{last}"),
        }
    }
}

impl Pattern<Span> for Span {
    fn contains(&self, item: &Span) -> bool {
        self.first <= item.first && item.last <= self.last
    }

    fn meets(&self, item: &Span) -> bool {
        item.first <= self.last && self.first <= item.last
    }
}

/// An MQTT topic name, or the filter of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicUse<'a> {
    pub text: &'a str,
}

/// An MQTT topic filter: MQTT 5.0, section 4.7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicPattern(String);

impl TopicPattern {
    /// None where "#" or "+" are not whole levels, or "#" is not last.
    pub fn parse(text: &str) -> Option<TopicPattern> {
        is_filter(text).then(|| TopicPattern(text.to_owned()))
    }

    /// A wildcard in the first level stands for no topic that begins with "$" (section 4.7.2).
    fn is_barred(&self, item: &TopicUse<'_>) -> bool {
        self.0.starts_with(['#', '+']) && item.text.starts_with('$')
    }
}

/// Whether `text` is a topic filter; a topic name is a filter without wildcards.
pub fn is_filter(text: &str) -> bool {
    let mut levels = text.split('/').peekable();
    let mut right = !text.is_empty() && !text.contains('\0');
    while let Some(level) = levels.next() {
        right &= match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            _ => !level.contains(['#', '+']),
        };
    }
    right
}

impl Pattern<TopicUse<'_>> for TopicPattern {
    /// A "+" is within "+" and "#", a "#" only within "#".
    fn contains(&self, item: &TopicUse<'_>) -> bool {
        if self.is_barred(item) {
            return false;
        }
        let (mut outer, mut inner) = (self.0.split('/'), item.text.split('/'));
        loop {
            match (outer.next(), inner.next()) {
                (Some("#"), _) | (None, None) => return true, // "a/#" holds "a" itself, too
                (Some("+"), Some(level)) if level != "#" => {}
                (Some(ours), Some(theirs)) if ours == theirs => {}
                _ => return false,
            }
        }
    }

    fn meets(&self, item: &TopicUse<'_>) -> bool {
        let barred = item.text.starts_with(['#', '+']) && self.0.starts_with('$');
        if barred || self.is_barred(item) {
            return false;
        }
        let (mut outer, mut inner) = (self.0.split('/'), item.text.split('/'));
        loop {
            match (outer.next(), inner.next()) {
                (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
                (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
                (Some(ours), Some(theirs)) if ours == theirs => {}
                _ => return false,
            }
        }
    }
}

/// An MQTT client identifier, or the beginning of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientPattern {
    text: String,
    is_prefix: bool,
}

impl ClientPattern {
    /// A "*" at the end stands for any rest.
    pub fn parse(text: &str) -> Option<ClientPattern> {
        let (stem, is_prefix) = text.strip_suffix('*').map_or((text, false), |stem| (stem, true));
        (!stem.contains('*')).then(|| ClientPattern { text: stem.to_owned(), is_prefix })
    }
}

impl Pattern<&str> for ClientPattern {
    fn contains(&self, item: &&str) -> bool {
        if self.is_prefix { item.starts_with(&self.text) } else { self.text == *item }
    }
}

/// A CoAP path, or all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    segments: Vec<String>,
    is_subtree: bool,
}

impl PathPattern {
    /// "/a/b" is the path of two segments, "/" that of none, "/a/*" every longer path that begins with "a".
    pub fn parse(text: &str) -> Option<PathPattern> {
        let rest = text.strip_prefix('/')?;
        let (rest, is_subtree) = match rest {
            "*" => ("", true),
            _ => rest.strip_suffix("/*").map_or((rest, false), |stem| (stem, true)),
        };
        let segments: Vec<String> =
            if rest.is_empty() && (is_subtree || text == "/") { Vec::new() } else { split_path(rest) };
        let odd = |segment: &String| segment == "." || segment == ".." || segment.contains('*');
        (!segments.iter().any(odd)).then_some(PathPattern { segments, is_subtree })
    }

    fn holds<'b>(&self, item: impl ExactSizeIterator<Item = &'b str> + Clone) -> bool {
        let enough = match self.is_subtree {
            true => item.len() > self.segments.len() || self.segments.is_empty(), // "/*" is every path
            false => item.len() == self.segments.len(),
        };
        enough && self.segments.iter().zip(item).all(|(ours, theirs)| ours == theirs)
    }
}

fn split_path(text: &str) -> Vec<String> {
    text.split('/').map(str::to_owned).collect()
}

impl Pattern<Vec<&str>> for PathPattern {
    fn contains(&self, item: &Vec<&str>) -> bool {
        self.holds(item.iter().copied())
    }

    /// Some servers drop empty segments: what is denied stays denied with them.
    fn meets(&self, item: &Vec<&str>) -> bool {
        let bare: Vec<&str> = item.iter().copied().filter(|segment| !segment.is_empty()).collect();
        self.holds(item.iter().copied()) || self.holds(bare.iter().copied())
    }
}

/// A DNS name, or all below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamePattern {
    labels: Vec<Vec<u8>>,
    is_below: bool,
}

impl NamePattern {
    /// "example.com" is that name alone, "*.example.com" every name below it, "*" every name.
    pub fn parse(text: &str) -> Option<NamePattern> {
        let (stem, is_below) = match text {
            "*" => ("", true),
            _ => text.strip_prefix("*.").map_or((text, false), |stem| (stem, true)),
        };
        let labels: Vec<Vec<u8>> = match stem {
            "" => Vec::new(),
            _ => stem.split('.').map(|label| label.to_ascii_lowercase().into_bytes()).collect(),
        };
        let right = |label: &Vec<u8>| (1..=63).contains(&label.len()) && !label.contains(&b'*');
        (labels.iter().all(right) && (is_below || !labels.is_empty())).then_some(NamePattern { labels, is_below })
    }
}

impl Pattern<Vec<&[u8]>> for NamePattern {
    /// Label by label: a dot inside a label is no border between two (RFC 4343: letters match in either case).
    fn contains(&self, item: &Vec<&[u8]>) -> bool {
        let enough = match self.is_below {
            true => item.len() > self.labels.len() || self.labels.is_empty(), // "*" is the root, too
            false => item.len() == self.labels.len(),
        };
        let pairs = self.labels.iter().rev().zip(item.iter().rev());
        enough && pairs.into_iter().all(|(ours, theirs)| theirs.eq_ignore_ascii_case(ours))
    }
}

/// Add a peer's text to a report: printable ASCII only, of bounded length.
pub fn append_text<'a>(report: &mut String, word: &str, parts: impl IntoIterator<Item = &'a [u8]>, joint: &str) {
    report.push(' ');
    report.push_str(word);
    report.push(' ');
    let bytes = parts.into_iter().enumerate().flat_map(|(place, part)| {
        let before = if place > 0 || joint == "/" { joint } else { "" };
        before.bytes().chain(part.iter().copied())
    });
    for (count, byte) in bytes.enumerate() {
        if count == MAX_REPORTED {
            report.push_str("...");
            return;
        }
        match byte {
            b' '..=b'~' if byte != b'"' && byte != b'\\' => report.push(byte as char),
            _ => report.extend(std::ascii::escape_default(byte).map(char::from)),
        }
    }
}
