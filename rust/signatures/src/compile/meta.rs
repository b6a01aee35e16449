//! Options that say something about the rule, not about traffic.

use crate::classes::Classes;
use crate::parse::{Rule, unescaped, unquoted};
use crate::registry::Registry;
use crate::threshold::Threshold;

use super::Draft;

/// The version of the language that `requires: version` is compared with.
const VERSION: [u32; 3] = [9, 0, 0];
/// The longest `msg` and `metadata` together with references: a rule is at most 64 KiB anyway.
const MOST_REFERENCES: usize = 256;

fn number<T: std::str::FromStr>(value: Option<&str>) -> Result<T, String> {
    let text = unquoted(value.ok_or("it needs a number")?)?.trim();
    if text.starts_with('+') {
        return Err(format!("{text} is no number"));
    }
    text.parse().map_err(|_| format!("{} is no number", crate::parse::shortened(text)))
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    if slot.is_some() {
        return Err("it is there twice".to_owned());
    }
    *slot = Some(value);
    Ok(())
}

/// Read one of them; `false` where `name` is none.
pub(super) fn option<'a>(
    draft: &mut Draft<'a>,
    name: &str,
    value: Option<&'a str>,
    classes: &Classes,
) -> Result<bool, String> {
    match name {
        "sid" => {
            let sid = number(value)?;
            if sid == 0 {
                return Err("0 is no sid".to_owned());
            }
            once(&mut draft.sid, sid)?;
        }
        "rev" => once(&mut draft.rev, number(value)?)?,
        "gid" => once(&mut draft.gid, number(value)?)?,
        "msg" => once(&mut draft.message, message(value)?)?,
        "priority" => match number(value)? {
            0u8 => return Err("a priority is from 1 to 255".to_owned()),
            priority => draft.priority = Some(priority),
        },
        "classtype" => class(draft, value, classes)?,
        "reference" => reference(draft, value)?,
        "metadata" => metadata(draft, value)?,
        "target" => {
            let side = match value.map(str::trim) {
                Some("src_ip") => true,
                Some("dest_ip") => false,
                _ => return Err("src_ip or dest_ip is expected".to_owned()),
            };
            draft.target_is_source = Some(side);
        }
        "threshold" | "detection_filter" => {
            let text = value.ok_or("it needs an argument")?;
            let parsed = if name == "threshold" { Threshold::parse(text)? } else { Threshold::parse_filter(text)? };
            if draft.threshold.replace(parsed).is_some() {
                return Err("a rule has one threshold or detection_filter".to_owned());
            }
        }
        _ => return bare(draft, name, value),
    }
    Ok(true)
}

fn bare(draft: &mut Draft<'_>, name: &str, value: Option<&str>) -> Result<bool, String> {
    match name {
        "noalert" => draft.is_silent = true,
        "alert" => draft.is_silent = false,
        "bypass" => draft.is_bypass = true,
        "prefilter" | "requires" => return Ok(true), // a hint; or already looked at
        "tag" => draft.notes.push("tag: packets after an alert are not recorded".to_owned()),
        "filestore" => draft.notes.push("filestore: files are not stored".to_owned()),
        "tls.store" | "tls_store" => draft.notes.push("tls.store: certificates are not stored".to_owned()),
        "logto" => draft.notes.push("logto: alerts go where all alerts go".to_owned()),
        _ => return Ok(false),
    }
    if value.is_some() && matches!(name, "noalert" | "alert" | "bypass") {
        return Err("it takes no argument".to_owned());
    }
    Ok(true)
}

fn message(value: Option<&str>) -> Result<Box<str>, String> {
    let text = value.ok_or("it needs a text")?;
    let inner =
        text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).ok_or("it has to be in double quotes")?;
    Ok(unescaped(inner)?.into())
}

fn class(draft: &mut Draft<'_>, value: Option<&str>, classes: &Classes) -> Result<(), String> {
    let name = unquoted(value.ok_or("it needs a name")?)?.trim();
    match classes.find(name) {
        Some((place, priority)) => {
            draft.class = place;
            draft.class_priority = Some(priority);
        }
        // as in Suricata, the rule is good for all that
        None => draft.notes.push(format!("classtype: {} is not known", crate::parse::shortened(name))),
    }
    Ok(())
}

fn reference<'a>(draft: &mut Draft<'a>, value: Option<&'a str>) -> Result<(), String> {
    let (system, id) =
        unquoted(value.ok_or("it needs an argument")?)?.split_once(',').ok_or("system and id are expected")?;
    let (system, id) = (system.trim(), id.trim());
    if system.is_empty() || id.is_empty() || draft.references.len() >= MOST_REFERENCES {
        return Err("system and id are expected".to_owned());
    }
    draft.references.push((system, id));
    Ok(())
}

fn metadata(draft: &mut Draft<'_>, value: Option<&str>) -> Result<(), String> {
    let text = unquoted(value.ok_or("it needs an argument")?)?.trim();
    if !draft.metadata.is_empty() {
        draft.metadata.push_str(", ");
    }
    draft.metadata.push_str(text);
    Ok(())
}

/// `requires: feature geoip, version >= 7.0.3 < 8 | >= 8.0.1, keyword foo`: what is not met refuses the rule, whatever
/// else is in it.
pub(super) fn check_requirements(rule: &Rule<'_>, registry: &Registry) -> Result<(), String> {
    for (_, value) in rule.options.iter().filter(|(name, _)| *name == "requires") {
        for part in unquoted(value.ok_or("requires: it needs an argument")?)?.split(',').map(str::trim) {
            let (key, argument) = part.split_once(char::is_whitespace).unwrap_or((part, ""));
            let is_met = match key {
                "version" => {
                    argument.split('|').map(is_version).collect::<Result<Vec<bool>, String>>()?.contains(&true)
                }
                "keyword" => super::buffers::knows(argument.trim()) || registry.knows(argument.trim()),
                _ => false, // no optional feature is promised
            };
            if !is_met {
                return Err(format!("requires: {} is not met", crate::parse::shortened(part)));
            }
        }
    }
    Ok(())
}

/// Whether a comparison holds between this version and the one in the rule.
type Holds = fn(&[u32; 3], &[u32; 3]) -> bool;

fn is_version(text: &str) -> Result<bool, String> {
    let mut is_met = true;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("requires: version needs a comparison".to_owned());
    }
    while !rest.is_empty() {
        let operators: [(&str, Holds); 4] =
            [(">=", |a, b| a >= b), ("<=", |a, b| a <= b), (">", |a, b| a > b), ("<", |a, b| a < b)];
        let found = operators.iter().find_map(|(sign, holds)| Some((rest.strip_prefix(sign)?.trim_start(), holds)));
        let (tail, holds) = found.ok_or("requires: version needs a comparison")?;
        let end = tail.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(tail.len());
        let (version, tail) = tail.split_at_checked(end).ok_or("requires: no version")?;
        let mut wanted = [0u32; 3];
        if version.is_empty() || version.split('.').count() > wanted.len() {
            return Err("requires: no version".to_owned());
        }
        for (slot, digits) in wanted.iter_mut().zip(version.split('.')) {
            *slot = digits.parse().map_err(|_| "requires: no version".to_owned())?;
        }
        is_met &= holds(&VERSION, &wanted);
        rest = tail.trim_start();
    }
    Ok(is_met)
}
