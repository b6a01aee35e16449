//! Integers, keywords and events of application protocols, and `app-layer-protocol`.

use protocols::{Way, Ways};

use crate::model::{CustomTest, NumberTest, TransactionTest};
use crate::number::{Choice, Comparison};
use crate::packet_test::{AppState, AppTest, AppView, PacketTest};
use crate::parse::{shortened, unquoted};
use crate::registry::{Place, Registry};

use super::Draft;

/// Read one of them; `false` where `name` is none.
pub(super) fn option(
    draft: &mut Draft<'_>,
    name: &str,
    value: Option<&str>,
    registry: &Registry,
) -> Result<bool, String> {
    let (test, ways) = if let Some(places) = registry.number(name) {
        (number(places, value, registry)?, registry.number_ways(places))
    } else if let Some(places) = registry.keyword(name) {
        (custom(places, value, registry)?, registry.keyword_ways(places))
    } else {
        match name {
            "app-layer-event" => match event(value, registry)? {
                Some(test) => (test, Ways::Both),
                None => {
                    let name = unquoted(value.unwrap_or_default())?;
                    draft.packet_tests.push(PacketTest::Event(name.into()));
                    return Ok(true);
                }
            },
            "app-layer-protocol" => {
                let test = protocol(value, registry, &mut draft.notes)?;
                draft.packet_tests.push(PacketTest::AppProtocol(test));
                return Ok(true);
            }
            _ => return Ok(false),
        }
    };
    let order = draft.buffers.next_order();
    draft.tests.push((order, test));
    draft.ways.push(ways);
    Ok(true)
}

fn number(places: &[Place], value: Option<&str>, registry: &Registry) -> Result<TransactionTest, String> {
    let text = unquoted(value.ok_or("it needs a number")?)?;
    let first = places.first().and_then(|(index, place)| registry.protocol(*index)?.numbers.get(usize::from(*place)));
    let info = first.ok_or("no such number")?;
    let (choice, text) = if info.is_multiple { Choice::parse(text)? } else { (Choice::Any, text) };
    let range = if text.is_empty() { Comparison::AtLeast(0) } else { Comparison::parse(text, info.bits, info.names)? };
    Ok(TransactionTest::Number(NumberTest { places: places.into(), range, choice }))
}

fn custom(places: &[Place], value: Option<&str>, registry: &Registry) -> Result<TransactionTest, String> {
    let text = value.unwrap_or_default().trim();
    let mut parsed = Vec::with_capacity(places.len());
    for (index, place) in places {
        let info = registry.protocol(*index).and_then(|protocol| protocol.keywords.get(usize::from(*place)));
        parsed.push((*index, *place, (info.ok_or("no such keyword")?.parse)(text)?));
    }
    Ok(TransactionTest::Custom(CustomTest { places: parsed.into(), is_negated: false }))
}

/// `None` for events of no protocol in particular.
fn event(value: Option<&str>, registry: &Registry) -> Result<Option<TransactionTest>, String> {
    let text = unquoted(value.ok_or("it needs an event")?)?.trim();
    let Some((protocol, name)) = text.split_once('.') else {
        let is_general = text.starts_with("applayer_");
        return if is_general { Ok(None) } else { Err(format!("{} is no event", shortened(text))) };
    };
    for index in registry.named(protocol, false)? {
        let events = registry.protocol(index).map_or(&[][..], |protocol| protocol.events);
        let found = events.iter().zip(0u8..).find(|(event, _)| event.eq_ignore_ascii_case(name));
        if let Some((_, event)) = found {
            return Ok(Some(TransactionTest::Event { protocol: index, event }));
        }
    }
    Err(format!("{} is no event", shortened(text)))
}

fn protocol(value: Option<&str>, registry: &Registry, notes: &mut Vec<String>) -> Result<AppTest, String> {
    let mut parts = unquoted(value.ok_or("it needs a protocol")?)?.split(',').map(str::trim);
    let name = parts.next().unwrap_or_default();
    let (is_negated, name) = name.strip_prefix('!').map_or((false, name), |name| (true, name.trim()));
    let (mut view, mut is_exact) = (AppView::OfPacket, false);
    for part in parts {
        match part {
            "to_server" | "toserver" => view = AppView::OfWay(Way::ToServer),
            "to_client" | "toclient" => view = AppView::OfWay(Way::ToClient),
            "direction" => view = AppView::OfPacket,
            "both" => view = AppView::Both,
            "either" => view = AppView::Either,
            "final" | "original" => view = AppView::OfFlow,
            "exact" => is_exact = true,
            other => return Err(format!("{} is no mode", shortened(other))),
        }
    }
    let state = match name {
        "failed" => AppState::Failed,
        "unknown" => AppState::Unknown,
        _ => AppState::Listed,
    };
    if state != AppState::Listed && view == AppView::OfPacket {
        view = AppView::OfFlow;
    }
    let protocols = match (state, registry.named(name, is_exact)) {
        (AppState::Listed, Ok(protocols)) => protocols,
        (AppState::Listed, Err(error)) if is_negated && error.starts_with("there is no parser") => {
            notes.push(format!("app-layer-protocol: {error}, so no flow is taken for it"));
            Vec::new()
        }
        (AppState::Listed, Err(error)) => return Err(error),
        _ => Vec::new(),
    };
    Ok(AppTest { protocols: protocols.into(), state, is_negated, view })
}
