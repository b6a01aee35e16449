//! Which buffer each content, pcre and byte test belongs to: sticky keywords, old-style modifiers, letters of pcre.
//!
//! Options are held back as text until the rule is over, because `http_uri` may come after the content's modifiers.

use protocols::{Way, Ways};

use crate::dataset::DatasetTest;
use crate::effects::FlowTest;
use crate::inspection::Builder;
use crate::model::PacketBuffer;
use crate::parse::unquoted;
use crate::registry::{Place, Registry};
use crate::transform::Transform;

use super::Draft;

/// Buffers in one rule; Suricata's own limit.
const MOST_GROUPS: usize = 64;
/// Transforms of one buffer; likewise.
const MOST_TRANSFORMS: usize = 16;

/// Options of the latest content.
const MODIFIERS: &[&str] =
    &["nocase", "depth", "offset", "distance", "within", "startswith", "endswith", "fast_pattern", "rawbytes"];
/// Options that stand for themselves.
const CONDITIONS: &[&str] = &[
    "content",
    "pcre",
    "isdataat",
    "byte_test",
    "byte_jump",
    "byte_extract",
    "byte_math",
    "bsize",
    "base64_decode",
    "base64_data",
    "entropy",
    "absent",
];

const PACKET_BUFFERS: &[(&str, PacketBuffer)] = &[
    ("ipv4.hdr", PacketBuffer::Ipv4Header),
    ("ipv6.hdr", PacketBuffer::Ipv6Header),
    ("tcp.hdr", PacketBuffer::TcpHeader),
    ("udp.hdr", PacketBuffer::UdpHeader),
    ("icmpv4.hdr", PacketBuffer::Icmpv4Header),
    ("icmpv6.hdr", PacketBuffer::Icmpv6Header),
    ("ip.src", PacketBuffer::SourceAddress),
    ("ip.dst", PacketBuffer::DestinationAddress),
];

/// Letters of pcre and the buffers that they stand for, by all names that a protocol may give them.
const LETTERS: &[(char, &[&str])] = &[
    ('U', &["http.uri", "http_uri"]),
    ('I', &["http.uri.raw", "http_raw_uri"]),
    ('P', &["http.request_body", "http_client_body"]),
    ('Q', &["file.data", "file_data", "http.response_body"]),
    ('H', &["http.header", "http_header"]),
    ('D', &["http.header.raw", "http_raw_header"]),
    ('M', &["http.method", "http_method"]),
    ('C', &["http.cookie", "http_cookie"]),
    ('S', &["http.stat_code", "http_stat_code"]),
    ('Y', &["http.stat_msg", "http_stat_msg"]),
    ('V', &["http.user_agent", "http_user_agent"]),
    ('W', &["http.host", "http_host"]),
    ('Z', &["http.host.raw", "http_raw_host"]),
];

/// Return whether `name` is an option that this crate reads, protocols' own aside.
pub(super) fn knows(name: &str) -> bool {
    let others =
        ["flow", "flowbits", "flowint", "xbits", "hostbits", "dataset", "datarep", "threshold", "uricontent", "urilen"];
    CONDITIONS.contains(&name)
        || MODIFIERS.contains(&name)
        || others.contains(&name)
        || PACKET_BUFFERS.iter().any(|(keyword, _)| *keyword == name)
        || crate::packet_test::PacketTest::parse(name, None).is_some()
        || Transform::parse(name, None).is_some()
}

/// Where contents are looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Payload,
    Packet(PacketBuffer),
    App(Vec<Place>),
}

/// An option with the modifiers that belong to it.
#[derive(Debug)]
pub(super) struct Chunk<'a> {
    pub options: Vec<(&'a str, Option<std::borrow::Cow<'a, str>>)>,
}

impl<'a> Chunk<'a> {
    fn new(name: &'a str, value: Option<std::borrow::Cow<'a, str>>) -> Chunk<'a> {
        Chunk { options: vec![(name, value)] }
    }

    pub fn is_content(&self) -> bool {
        self.options.first().is_some_and(|(name, _)| *name == "content")
    }
}

/// Everything about one buffer.
#[derive(Debug)]
pub(super) struct Group<'a> {
    pub target: Target,
    pub transforms: Vec<Transform>,
    pub way: Option<Way>,
    pub chunks: Vec<Chunk<'a>>,
    pub datasets: Vec<DatasetTest>,
    /// When it was first named, among the other tests of the rule.
    pub order: usize,
}

/// A sticky keyword whose contents may still come.
#[derive(Debug)]
struct Sticky {
    name: String,
    target: Target,
    transforms: Vec<Transform>,
    group: Option<usize>,
}

/// The buffers of a rule.
#[derive(Default, Debug)]
pub(super) struct Buffers<'a> {
    pub groups: Vec<Group<'a>>,
    sticky: Option<Sticky>,
    latest_content: Option<(usize, usize)>,
    /// The buffer of the latest condition: a relative one without a sticky buffer goes there too.
    latest: Option<usize>,
    way: Option<Way>,
    /// How many tests there are, of all kinds.
    pub tests: usize,
}

impl<'a> Buffers<'a> {
    /// Begin a sticky buffer; what was begun before must have got something to look for.
    fn stick(&mut self, name: &str, target: Target) -> Result<(), String> {
        self.check_used()?;
        self.sticky = Some(Sticky { name: name.to_owned(), target, transforms: Vec::new(), group: None });
        Ok(())
    }

    /// Return to the payload.
    fn unstick(&mut self) -> Result<(), String> {
        self.check_used()?;
        self.sticky = None;
        Ok(())
    }

    /// Say if a sticky buffer was named and nothing is looked for in it.
    pub fn check_used(&self) -> Result<(), String> {
        match &self.sticky {
            Some(sticky) if sticky.group.is_none() => Err(format!("nothing is looked for in {}", sticky.name)),
            _ => Ok(()),
        }
    }

    fn transform(&mut self, transform: Transform) -> Result<(), String> {
        let sticky = self.sticky.as_mut().ok_or("a transform needs a buffer before it")?;
        if sticky.group.is_some() {
            // what follows is looked for in the same buffer, transformed
            *sticky = Sticky {
                name: sticky.name.clone(),
                target: sticky.target.clone(),
                transforms: Vec::new(),
                group: None,
            };
        }
        if matches!(sticky.target, Target::Packet(_) | Target::Payload) {
            return Err("parts of packets are not transformed".to_owned());
        }
        if sticky.transforms.len() >= MOST_TRANSFORMS {
            return Err(format!("more than {MOST_TRANSFORMS} transforms"));
        }
        sticky.transforms.push(transform);
        Ok(())
    }

    /// Return the group of a buffer: the one that is there, unless there may be several such buffers.
    fn group(&mut self, target: Target, transforms: Vec<Transform>, is_new: bool) -> Result<usize, String> {
        let way = self.way;
        let is_same = |group: &Group<'_>| group.target == target && group.transforms == transforms && group.way == way;
        if let Some(place) = self.groups.iter().position(is_same).filter(|_| !is_new) {
            return Ok(place);
        }
        if self.groups.len() >= MOST_GROUPS {
            return Err(format!("more than {MOST_GROUPS} buffers"));
        }
        let order = self.next_order();
        self.groups.push(Group { target, transforms, way, chunks: Vec::new(), datasets: Vec::new(), order });
        Ok(self.groups.len().saturating_sub(1))
    }

    /// Return the next place in the order of the rule's tests.
    pub fn next_order(&mut self) -> usize {
        self.tests = self.tests.saturating_add(1);
        self.tests
    }

    /// The group of the sticky buffer; `None` where there is none.
    fn sticky_group(&mut self, registry: &Registry) -> Result<Option<usize>, String> {
        let Some(sticky) = &mut self.sticky else { return Ok(None) };
        if let Some(group) = sticky.group {
            return Ok(Some(group));
        }
        let (target, transforms) = (sticky.target.clone(), std::mem::take(&mut sticky.transforms));
        let is_new = matches!(&target, Target::App(places) if registry.is_multiple(places));
        let group = self.group(target, transforms, is_new)?;
        if let Some(sticky) = &mut self.sticky {
            sticky.group = Some(group);
        }
        Ok(Some(group))
    }

    fn add(&mut self, group: usize, chunk: Chunk<'a>) -> Result<(), String> {
        let is_content = chunk.is_content();
        let chunks = &mut self.groups.get_mut(group).ok_or("no such buffer")?.chunks;
        chunks.push(chunk);
        if is_content {
            self.latest_content = Some((group, chunks.len().saturating_sub(1)));
        }
        self.latest = Some(group);
        Ok(())
    }

    fn modify(&mut self, name: &'a str, value: Option<&'a str>) -> Result<(), String> {
        let place = self.latest_content.filter(|(group, _)| match &self.sticky {
            Some(sticky) => sticky.group == Some(*group),
            None => true,
        });
        let (group, chunk) = place.ok_or("it needs a content before it")?;
        let chunk =
            self.groups.get_mut(group).and_then(|group| group.chunks.get_mut(chunk)).ok_or("no such content")?;
        chunk.options.push((name, value.map(Into::into)));
        Ok(())
    }

    /// Move the latest content out of the payload: `http_uri`.
    fn move_latest(&mut self, places: &[Place]) -> Result<(), String> {
        if self.sticky.is_some() {
            return Err("it cannot be used while a sticky buffer is active".to_owned());
        }
        let (from, at) = self.latest_content.ok_or("it needs a content before it")?;
        let source = self.groups.get_mut(from).filter(|group| group.target == Target::Payload);
        let source = source.ok_or("the content before it is in a buffer already")?;
        if source.chunks.len() <= at {
            return Err("it needs a content before it".to_owned());
        }
        let chunk = source.chunks.remove(at);
        if chunk.options.iter().any(|(name, _)| *name == "rawbytes") {
            return Err("rawbytes is for payloads".to_owned());
        }
        let to = self.group(Target::App(places.to_vec()), Vec::new(), false)?;
        self.add(to, chunk)
    }

    fn condition(&mut self, name: &'a str, value: Option<&'a str>, registry: &Registry) -> Result<(), String> {
        let (mut text, mut group) = (value.map(std::borrow::Cow::Borrowed), self.sticky_group(registry)?);
        if name == "pcre"
            && let Some((rest, letter)) = pcre_letter(value.unwrap_or_default())?
        {
            let target = Target::App(letter_places(letter, registry)?);
            let active = group.and_then(|group| self.groups.get(group));
            if active.is_some_and(|group| group.target != target) {
                return Err("its letter means another buffer than the active one".to_owned());
            }
            if active.is_none() {
                group = Some(self.group(target, Vec::new(), false)?);
            }
            text = Some(rest.into());
        }
        if name == "pcre" {
            text = text.map(quoted); // Suricata takes an expression without quotes too
        }
        let is_relative = value.unwrap_or_default().split([',', ' ']).any(|word| word.trim() == "relative");
        let follows =
            is_relative && matches!(name, "isdataat" | "byte_test" | "byte_jump" | "byte_extract" | "byte_math");
        let group = match (group, self.latest) {
            (Some(group), _) => group,
            (None, Some(latest)) if follows || name == "base64_data" => latest,
            _ => self.group(Target::Payload, Vec::new(), false)?,
        };
        if name == "base64_data" {
            self.stick_to(group);
        }
        if name == "absent" && !matches!(self.groups.get(group).map(|group| &group.target), Some(Target::App(_))) {
            return Err("it is for buffers of protocols".to_owned());
        }
        self.add(group, Chunk::new(name, text))
    }

    /// What follows `base64_data` stays with the buffer whose content is decoded.
    fn stick_to(&mut self, group: usize) {
        if let Some(target) = self.groups.get(group).map(|group| group.target.clone()) {
            let name = "base64_data".to_owned();
            self.sticky = Some(Sticky { name, target, transforms: Vec::new(), group: Some(group) });
        }
    }

    /// Add a look-up in a data set to the sticky buffer.
    pub fn dataset(&mut self, test: DatasetTest, registry: &Registry) -> Result<(), String> {
        let group = self.sticky_group(registry)?.ok_or("data sets are for sticky buffers")?;
        self.groups.get_mut(group).ok_or("no such buffer")?.datasets.push(test);
        Ok(())
    }
}

/// Read an option about buffers; `false` where `name` is none.
pub(super) fn option<'a>(
    draft: &mut Draft<'a>,
    name: &'a str,
    value: Option<&'a str>,
    registry: &Registry,
) -> Result<bool, String> {
    let buffers = &mut draft.buffers;
    if MODIFIERS.contains(&name) {
        buffers.modify(name, value)?;
    } else if CONDITIONS.contains(&name) || (Builder::knows(name) && !name.starts_with("lua")) {
        buffers.condition(name, value, registry)?;
    } else if name == "pkt_data" {
        buffers.unstick()?;
    } else if let Some(places) = registry.modifier(name).filter(|_| value.is_none()) {
        // the same name may be both (`http_header`): a modifier where a content is at hand, else sticky
        buffers.move_latest(places)?;
    } else if let Some(places) = registry.buffer(name) {
        bare(value)?;
        buffers.stick(name, Target::App(places.to_vec()))?;
    } else if let Some((_, buffer)) = PACKET_BUFFERS.iter().find(|(keyword, _)| *keyword == name) {
        bare(value)?;
        buffers.stick(name, Target::Packet(*buffer))?;
    } else if let Some(transform) = Transform::parse(name, value) {
        buffers.transform(transform?)?;
    } else {
        return translated(buffers, name, value, registry);
    }
    Ok(true)
}

/// Older and shorter ways to say what a buffer and a content say.
fn translated<'a>(
    buffers: &mut Buffers<'a>,
    name: &'a str,
    value: Option<&'a str>,
    registry: &Registry,
) -> Result<bool, String> {
    let needed = || value.ok_or_else(|| "it needs an argument".to_owned());
    let named = |names: &[&str]| names.iter().find_map(|name| registry.buffer(name)).map(<[Place]>::to_vec);
    match name {
        "uricontent" => {
            let places = named(&["http.uri", "http_uri"]).ok_or("there is no parser for protocol http")?;
            let group = buffers.group(Target::App(places), Vec::new(), false)?;
            buffers.add(group, Chunk::new("content", Some(needed()?.into())))?;
        }
        "urilen" => {
            let (size, kind) = needed()?.split_once(',').unwrap_or((needed()?, "norm"));
            let names: &[&str] = match kind.trim() {
                "norm" => &["http.uri", "http_uri"],
                "raw" => &["http.uri.raw", "http_raw_uri"],
                other => return Err(format!("{} is neither norm nor raw", crate::parse::shortened(other))),
            };
            let places = named(names).ok_or("there is no parser for protocol http")?;
            let group = buffers.group(Target::App(places), Vec::new(), false)?;
            let latest = (buffers.latest, buffers.latest_content);
            buffers.add(group, Chunk::new("bsize", Some(size.trim().into())))?;
            (buffers.latest, buffers.latest_content) = latest;
        }
        "filename" | "fileext" => {
            let places = named(&["file.name", "file_name"]).ok_or("no protocol here tells names of files")?;
            let group = buffers.group(Target::App(places), Vec::new(), false)?;
            buffers.add(group, file_name(name, needed()?)?)?;
        }
        "bidir.toserver" => buffers.way = Some(Way::ToServer),
        "bidir.toclient" => buffers.way = Some(Way::ToClient),
        _ => return Ok(false),
    }
    Ok(true)
}

/// `filename` is found anywhere, `fileext` at the end; neither minds case.
fn file_name<'a>(name: &str, value: &str) -> Result<Chunk<'a>, String> {
    let (is_negated, text) = value.strip_prefix('!').map_or((false, value), |rest| (true, rest.trim_start()));
    let text = unquoted(text)?;
    let content =
        format!("{}\"{}{text}\"", if is_negated { "!" } else { "" }, if name == "fileext" { "." } else { "" });
    let mut chunk = Chunk::new("content", Some(content.into()));
    chunk.options.push(("nocase", None));
    if name == "fileext" {
        chunk.options.push(("endswith", None));
    }
    Ok(chunk)
}

fn bare(value: Option<&str>) -> Result<(), String> {
    if value.is_some() { Err("it takes no argument".to_owned()) } else { Ok(()) }
}

fn letter_places(letter: char, registry: &Registry) -> Result<Vec<Place>, String> {
    let names = LETTERS.iter().find(|(known, _)| *known == letter).map_or(&[][..], |(_, names)| names);
    let places = names.iter().find_map(|name| registry.buffer(name));
    places.map(<[Place]>::to_vec).ok_or_else(|| format!("there is no parser for the buffer of pcre's {letter}"))
}

/// Take the letter for a buffer away from the switches behind the expression: the text without it, and the letter.
fn pcre_letter(text: &str) -> Result<Option<(String, char)>, String> {
    // switches stand between the last slash and the end, the closing quote or the names of captures
    let Some((expression, rest)) = text.rsplit_once('/') else { return Ok(None) };
    let end = rest.find([',', '"']).unwrap_or(rest.len());
    let (switches, tail) = rest.split_at_checked(end).ok_or("broken switches")?;
    let is_letter = |letter: &char| LETTERS.iter().any(|(known, _)| known == letter);
    let mut letters = switches.chars().filter(is_letter);
    let Some(letter) = letters.next() else { return Ok(None) };
    if letters.any(|other| other != letter) {
        return Err("letters for several buffers".to_owned());
    }
    let others: String = switches.chars().filter(|switch| !is_letter(switch)).collect();
    Ok(Some((format!("{expression}/{others}{tail}"), letter)))
}

/// The text in quotes, a negation before them.
fn quoted(text: std::borrow::Cow<'_, str>) -> std::borrow::Cow<'_, str> {
    let (mark, rest) = text.strip_prefix('!').map_or(("", &*text), |rest| ("!", rest.trim_start()));
    if rest.starts_with('"') { text } else { format!("{mark}\"{rest}\"").into() }
}

/// What is left of tests on parts of packets: contents in them, and data sets of addresses.
pub(super) fn packet_datasets(group: &mut Group<'_>) -> Result<Vec<FlowTest>, String> {
    let Target::Packet(buffer) = group.target else { return Ok(Vec::new()) };
    if group.datasets.is_empty() {
        return Ok(Vec::new());
    }
    if !matches!(buffer, PacketBuffer::SourceAddress | PacketBuffer::DestinationAddress) {
        return Err("data sets are for addresses and buffers of protocols".to_owned());
    }
    Ok(group.datasets.drain(..).map(|test| FlowTest::Dataset(buffer, Box::new(test))).collect())
}

/// The ways in which a group's buffer exists.
pub(super) fn ways(group: &Group<'_>, registry: &Registry) -> Ways {
    match (&group.target, group.way) {
        (_, Some(Way::ToServer)) => Ways::ToServer,
        (_, Some(Way::ToClient)) => Ways::ToClient,
        (Target::App(places), None) => registry.buffer_ways(places),
        _ => Ways::Both,
    }
}
