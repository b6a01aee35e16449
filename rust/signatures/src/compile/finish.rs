//! The rule as a whole: whether its parts go together, when it is looked at, and the signature.

use protocols::{Way, Ways};

use crate::header::{Carrier, Direction};
use crate::inspection::{Builder, Inspection, Names};
use crate::model::{Action, BufferTest, Kind, PacketBuffer, PayloadScope, Signature, TransactionTest};
use crate::packet_test::PacketTest;
use crate::registry::Registry;
use crate::shared::Shared;

use super::buffers::{Group, Target, packet_datasets, ways};
use super::{BitUse, Compiled, Draft, checks};

/// Priority of rules that say none and whose class says none.
const DEFAULT_PRIORITY: u8 = 3;

/// Check the whole and make a signature of it. The duties, in order: 1. identity; 2. every buffer is used; 3. one
/// protocol can have everything that is asked; 4. the ways go together; 5. the kind; 6. packet and stream go together;
/// 7. contents that can never match.
pub(super) fn finish(
    mut draft: Draft<'_>,
    action: Action,
    registry: &Registry,
    shared: &mut Shared,
    bits: BitUse,
) -> Result<Compiled, String> {
    let sid = draft.sid.ok_or("there is no sid")?; // 1
    draft.buffers.check_used()?; // 2
    let protocols = common_protocols(&mut draft, registry)?; // 3
    settle_ways(&mut draft, registry)?; // 4
    let kind = kind(&draft); // 5
    check_layers(&draft, kind)?; // 6
    let payload_group = draft.buffers.groups.iter().find(|group| group.target == Target::Payload);
    checks::check_size(&draft.packet_tests, payload_group)?; // 7
    let payload_scope = payload_scope(&draft, payload_group);
    let is_detection_only = is_detection_only(&draft);
    let parts = build(&mut draft, registry, shared)?;
    if kind != Kind::Transaction
        && let Some(named) = draft.named.take()
    {
        draft.packet_tests.push(PacketTest::AppIs(named.into()));
    }
    draft.packet_tests.sort_by_key(PacketTest::cost);
    let needs_flow = draft.packet_tests.iter().any(PacketTest::requires_flow);
    draft.flow.needs_flow |= needs_flow;
    let signature = Signature {
        gid: draft.gid.unwrap_or(1),
        sid,
        rev: draft.rev.unwrap_or(0),
        message: draft.message.unwrap_or_default(),
        class: draft.class,
        priority: draft.priority.or(draft.class_priority).unwrap_or(DEFAULT_PRIORITY),
        metadata: draft.metadata.into(),
        references: draft.references.iter().map(|(system, id)| (shared.text(system), (*id).into())).collect(),
        target_is_source: draft.target_is_source,
        action,
        is_silent: draft.is_silent,
        kind,
        header: draft.header,
        flow: draft.flow,
        packet_tests: draft.packet_tests.into(),
        flow_tests: draft.flow_tests.into(),
        payload: parts.payload.map(Box::new),
        payload_scope,
        packet_buffers: parts.packet_buffers.into(),
        protocols: shared.protocols(if kind == Kind::Transaction { &protocols } else { &[] }),
        transaction_tests: parts.tests.into(),
        hook: draft.hook,
        effects: draft.effects.into(),
        threshold: draft.threshold.map(Box::new),
        is_bypass: draft.is_bypass,
        origin: (0, 0),
        is_detection_only,
    };
    Ok(Compiled { signature, notes: draft.notes, bits })
}

/// The protocols that have all that the rule asks for. Places of other protocols are removed.
fn common_protocols(draft: &mut Draft<'_>, registry: &Registry) -> Result<Vec<u8>, String> {
    let mut common = draft.named.clone();
    let mut narrow = |others: Vec<u8>, what: &str| {
        let left: Vec<u8> = match &common {
            None => others,
            Some(common) => common.iter().copied().filter(|index| others.contains(index)).collect(),
        };
        if left.is_empty() {
            return Err(format!("no protocol of the rule has {what}"));
        }
        common = Some(left);
        Ok(())
    };
    for group in &draft.buffers.groups {
        if let Target::App(places) = &group.target {
            narrow(places.iter().map(|(index, _)| *index).collect(), registry.buffer_name(places))?;
        }
    }
    for (_, test) in &draft.tests {
        match test {
            TransactionTest::Number(test) => narrow(test.places.iter().map(|place| place.0).collect(), "its numbers")?,
            TransactionTest::Custom(test) => narrow(test.places.iter().map(|place| place.0).collect(), "its keywords")?,
            TransactionTest::Event { protocol, .. } => narrow(vec![*protocol], "the event")?,
            TransactionTest::Buffer(_) => {}
        }
    }
    let mut common = common.unwrap_or_default();
    common.sort_unstable();
    common.dedup();
    for group in &mut draft.buffers.groups {
        if let Target::App(places) = &mut group.target {
            places.retain(|(index, _)| common.contains(index));
        }
    }
    Ok(common)
}

/// Refuse what asks about both ways at once, unless the arrow says so; let buffers of one way decide the rule's way.
fn settle_ways(draft: &mut Draft<'_>, registry: &Registry) -> Result<(), String> {
    let mut all = draft.ways.clone();
    let is_app = |group: &&Group<'_>| matches!(group.target, Target::App(_));
    all.extend(draft.buffers.groups.iter().filter(is_app).map(|group| ways(group, registry)));
    let (to_server, to_client) = (all.contains(&Ways::ToServer), all.contains(&Ways::ToClient));
    if draft.header.direction() == Direction::Transaction {
        if draft.flow.way.is_some() {
            return Err("=> means both ways, flow cannot say one".to_owned());
        }
        if !(to_server && to_client) {
            return Err("=> means both ways, but only one is looked at".to_owned());
        }
        if all.contains(&Ways::Both) {
            return Err("=> means both ways, so each condition has to be about one of them".to_owned());
        }
        return Ok(());
    }
    let asked = match (to_server, to_client) {
        (true, true) => return Err("conditions on both ways of a transaction need =>".to_owned()),
        (true, false) => Some(Way::ToServer),
        (false, true) => Some(Way::ToClient),
        (false, false) => None,
    };
    for asked in [asked, draft.hook.map(|(way, _)| way)].into_iter().flatten() {
        if draft.flow.way.is_some_and(|way| way != asked) {
            return Err(format!("it looks at what goes {}, but the rule is about the other way", asked.name()));
        }
        draft.flow.way = Some(asked);
    }
    Ok(())
}

fn has_target(draft: &Draft<'_>, is_it: fn(&Target) -> bool) -> bool {
    draft.buffers.groups.iter().any(|group| is_it(&group.target))
}

fn kind(draft: &Draft<'_>) -> Kind {
    let has_app_test = has_target(draft, |target| matches!(target, Target::App(_))) || !draft.tests.is_empty();
    if has_app_test || draft.hook.is_some() {
        return Kind::Transaction;
    }
    let is_event = |test: &PacketTest| matches!(test, PacketTest::Event(_));
    let carrier = draft.header.carrier();
    if matches!(carrier, Carrier::Anything | Carrier::Ethernet | Carrier::Arp)
        || draft.packet_tests.iter().any(is_event)
    {
        return Kind::Decode;
    }
    let is_plain = draft.buffers.groups.is_empty()
        && draft.named.is_none()
        && draft.packet_tests.is_empty()
        && !draft.has_flow
        && !draft.header.is_flow_start()
        && !matches!(carrier, Carrier::TcpPacket | Carrier::TcpStream)
        && draft.flow_tests.iter().all(|test| test.is_ip_only());
    if is_plain { Kind::IpOnly } else { Kind::Packet }
}

fn requires_packet(draft: &Draft<'_>) -> bool {
    draft.no_stream
        || draft.header.carrier() == Carrier::TcpPacket
        || draft.packet_tests.iter().any(PacketTest::requires_packet)
}

fn check_layers(draft: &Draft<'_>, kind: Kind) -> Result<(), String> {
    let carrier = draft.header.carrier();
    let is_stream = draft.only_stream || carrier == Carrier::TcpStream;
    if carrier == Carrier::TcpPacket && draft.only_stream {
        return Err("tcp-pkt and flow:only_stream contradict each other".to_owned());
    }
    if is_stream && requires_packet(draft) {
        return Err("keywords about packets and about streams contradict each other".to_owned());
    }
    if kind == Kind::Transaction && requires_packet(draft) {
        return Err(
            "keywords about packets (dsize, flags, ttl …) cannot be combined with an application protocol's".to_owned()
        );
    }
    Ok(())
}

fn payload_scope(draft: &Draft<'_>, payload: Option<&Group<'_>>) -> PayloadScope {
    if requires_packet(draft) {
        return PayloadScope::Packet;
    }
    if draft.only_stream || draft.header.carrier() == Carrier::TcpStream {
        return PayloadScope::StreamOnly;
    }
    let is_sized = draft.packet_tests.iter().any(|test| matches!(test, PacketTest::StreamSize(..)));
    if is_sized || payload.is_some_and(checks::has_depth_or_offset) {
        return PayloadScope::StreamOrPacket;
    }
    PayloadScope::Stream
}

fn is_detection_only(draft: &Draft<'_>) -> bool {
    let is_app = |test: &PacketTest| matches!(test, PacketTest::AppProtocol(_));
    !draft.packet_tests.is_empty()
        && draft.packet_tests.iter().all(is_app)
        && draft.buffers.groups.is_empty()
        && draft.tests.is_empty()
        && draft.named.is_none()
        && draft.flow_tests.is_empty()
        && draft.flow.established.is_none()
        && draft.flow.fragment.is_none()
        && !draft.only_stream
        && !draft.no_stream
}

#[derive(Default)]
struct Parts {
    payload: Option<Inspection>,
    packet_buffers: Vec<(PacketBuffer, Inspection)>,
    tests: Vec<TransactionTest>,
}

fn build(draft: &mut Draft<'_>, registry: &Registry, shared: &mut Shared) -> Result<Parts, String> {
    let mut parts = Parts::default();
    let mut tests = std::mem::take(&mut draft.tests);
    for mut group in std::mem::take(&mut draft.buffers.groups) {
        draft.flow_tests.extend(packet_datasets(&mut group)?);
        let is_way_needed = draft.header.direction() == Direction::Transaction;
        let way = group.way.or(match ways(&group, registry) {
            Ways::ToServer if is_way_needed => Some(Way::ToServer),
            Ways::ToClient if is_way_needed => Some(Way::ToClient),
            _ => None,
        });
        if let Target::App(places) = &group.target {
            let name = registry.buffer_name(places);
            checks::adjust(&mut group, name)?;
        }
        if group.chunks.is_empty() && !matches!(group.target, Target::App(_)) {
            continue; // moved elsewhere, or only data sets
        }
        let inspection = inspection(&group)?;
        match group.target {
            Target::Payload => parts.payload = Some(inspection),
            Target::Packet(buffer) => parts.packet_buffers.push((buffer, inspection)),
            Target::App(places) => {
                inspection.check(&group.transforms)?;
                let (transforms, datasets) = (group.transforms.into(), group.datasets.into());
                let test = BufferTest { places: shared.places(&places), transforms, inspection, datasets, way };
                tests.push((group.order, TransactionTest::Buffer(test)));
            }
        }
    }
    tests.sort_by_key(|(order, _)| *order);
    parts.tests = tests.into_iter().map(|(_, test)| test).collect();
    Ok(parts)
}

/// Variables are of one buffer, as in Suricata 8: what is extracted in one cannot be used in another.
fn inspection(group: &Group<'_>) -> Result<Inspection, String> {
    let (mut builder, mut names) = (Builder::default(), Names::default());
    for (name, value) in group.chunks.iter().flat_map(|chunk| &chunk.options) {
        builder.option(name, value.as_deref(), &mut names).map_err(|error| format!("{name}: {error}"))?;
    }
    let inspection = builder.finish()?;
    inspection.check(&group.transforms)?;
    Ok(inspection)
}
