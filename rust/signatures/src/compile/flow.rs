//! The `flow` keyword.

use protocols::Way;

use crate::parse::unquoted;

use super::Draft;

/// Read `flow`; `false` where `name` is another keyword.
pub(super) fn option(draft: &mut Draft<'_>, name: &str, value: Option<&str>) -> Result<bool, String> {
    if name != "flow" {
        return Ok(false);
    }
    if std::mem::replace(&mut draft.has_flow, true) {
        return Err("a rule has one".to_owned());
    }
    for part in unquoted(value.ok_or("it needs an argument")?)?.split(',').map(str::trim) {
        match part.to_ascii_lowercase().as_str() {
            "to_server" | "from_client" => set(&mut draft.flow.way, Way::ToServer)?,
            "to_client" | "from_server" => set(&mut draft.flow.way, Way::ToClient)?,
            "established" => set(&mut draft.flow.established, true)?,
            "not_established" => set(&mut draft.flow.established, false)?,
            "only_frag" => set(&mut draft.flow.fragment, true)?,
            "no_frag" => set(&mut draft.flow.fragment, false)?,
            "stateless" => {}
            "only_stream" => draft.only_stream = true,
            "no_stream" => draft.no_stream = true,
            other => return Err(format!("{} is unknown", crate::parse::shortened(other))),
        }
        draft.flow.needs_flow |= !part.ends_with("frag");
    }
    if draft.only_stream && draft.no_stream {
        return Err("only_stream and no_stream contradict each other".to_owned());
    }
    Ok(true)
}

/// Neither twice nor the opposite.
fn set<T: PartialEq>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    if slot.is_some() {
        return Err("it contradicts or repeats itself".to_owned());
    }
    *slot = Some(value);
    Ok(())
}
