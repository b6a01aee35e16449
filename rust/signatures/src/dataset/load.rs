//! From the text of a data set's file to its values.

use std::collections::HashMap;
use std::net::IpAddr;

use protocols::Settings;
use serde_json::Value as Json;

use crate::address::mapped;
use crate::ruleset::Files;

use super::options::Format;
use super::{Dataset, MEMCAP_BYTES, Request, Value, ValueKind};

/// A hostile name must not lead out of the sensor's own directory.
fn check_written_name(name: &str, settings: &Settings) -> Result<(), String> {
    if !settings.flag("datasets.rules.allow-write", true) {
        return Err("rules may not write data sets (datasets.rules.allow-write)".to_owned());
    }
    if settings.flag("datasets.rules.allow-absolute-filenames", false) {
        return Ok(());
    }
    let is_absolute = name.starts_with(['/', '\\']) || name.as_bytes().get(1) == Some(&b':');
    if is_absolute {
        return Err(format!("{name}: absolute paths are not allowed"));
    }
    if name.split(['/', '\\']).any(|part| part == "..") {
        return Err(format!("{name}: paths that lead upwards are not allowed"));
    }
    Ok(())
}

/// Make the set that a rule, or the settings under `datasets.NAME`, describe, with the values of its file.
pub(super) fn make(request: &Request<'_>, settings: &Settings, files: &dyn Files) -> Result<Dataset, String> {
    let setting = |key: &str| settings.text(&format!("datasets.{}.{key}", request.name));
    let kind = match (request.kind, setting("type")) {
        (Some(kind), _) => kind,
        (None, Some(name)) => ValueKind::parse(name).ok_or_else(|| format!("{name} is no type of data"))?,
        (None, None) => return Err(format!("set {} has no type", request.name)),
    };
    if let Some(name) = request.save() {
        check_written_name(name, settings)?;
    }
    let default = settings.number("datasets.defaults.memcap", MEMCAP_BYTES);
    let memcap =
        request.memcap.unwrap_or_else(|| settings.number(&format!("datasets.{}.memcap", request.name), default));
    let state = setting("state");
    let mut set = Dataset {
        name: request.name.to_owned(),
        kind,
        values: HashMap::new(),
        bytes: 0,
        memcap: usize::try_from(memcap).unwrap_or(usize::MAX),
        load: request.load().or(setting("load")).or(state).map(str::to_owned),
        save: request.save().or(setting("save")).or(state).map(str::to_owned),
    };
    if let Some(name) = set.load.clone() {
        match files.read(&name) {
            Ok(text) => fill(&mut set, request, &text).map_err(|error| format!("{name}: {error}"))?,
            Err(_) if request.is_state() || state.is_some() => {} // the first start has none yet
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    Ok(set)
}

fn fill(set: &mut Dataset, request: &Request<'_>, text: &[u8]) -> Result<(), String> {
    if request.format == Format::Csv {
        return csv(set, text);
    }
    let text = std::str::from_utf8(text).map_err(|_| "it is no UTF-8".to_owned())?;
    let broken = |error: serde_json::Error| format!("it is no JSON: {error}");
    if request.format == Format::Ndjson {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            entry(set, request, serde_json::from_str(line).map_err(broken)?)?;
        }
        return Ok(());
    }
    let mut whole: Json = serde_json::from_str(text).map_err(broken)?;
    let list = match request.array_key {
        Some(key) => member(&mut whole, key).ok_or_else(|| format!("there is no {key}"))?,
        None => &mut whole,
    };
    let Json::Array(list) = list.take() else { return Err("there is no array".to_owned()) };
    list.into_iter().try_for_each(|item| entry(set, request, item))
}

fn member<'a>(json: &'a mut Json, path: &str) -> Option<&'a mut Json> {
    path.split('.').try_fold(json, |json, key| json.get_mut(key))
}

fn entry(set: &mut Dataset, request: &Request<'_>, mut item: Json) -> Result<(), String> {
    let path = request.value_key.unwrap_or_default();
    let Some(found) = member(&mut item, path) else { return Ok(()) };
    let text = found.as_str().ok_or_else(|| format!("{path} is not a string"))?.to_owned();
    if request.removes_key {
        let (parent, key) = match path.rsplit_once('.') {
            Some((parent, key)) => (member(&mut item, parent), key),
            None => (Some(&mut item), path),
        };
        if let Some(Json::Object(members)) = parent {
            members.remove(key);
        }
    }
    let bytes = match set.kind {
        ValueKind::String => text.into_bytes(),
        kind => decode(kind, &text).ok_or_else(|| format!("{} does not fit", crate::parse::shortened(&text)))?,
    };
    store(set, &bytes, Value { rank: 0, json: Some(item.to_string().into()) })
}

fn csv(set: &mut Dataset, text: &[u8]) -> Result<(), String> {
    for (line, number) in text.split(|byte| *byte == b'\n').zip(1u32..) {
        let Ok(line) = std::str::from_utf8(line) else { return Err(format!("line {number} is no text")) };
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (value, rank) = line.split_once(',').map_or((line, None), |(value, rank)| (value, Some(rank.trim())));
        let rank = rank.map_or(Ok(0), str::parse).map_err(|_| format!("line {number}: a rank is a number"))?;
        let bytes = decode(set.kind, value.trim()).ok_or_else(|| format!("line {number} does not fit the type"))?;
        store(set, &bytes, Value { rank, json: None })?;
    }
    Ok(())
}

fn store(set: &mut Dataset, bytes: &[u8], value: Value) -> Result<(), String> {
    if !set.insert(bytes, value) && !set.values.contains_key(bytes) {
        return Err("the memcap is reached".to_owned());
    }
    Ok(())
}

fn decode(kind: ValueKind, text: &str) -> Option<Vec<u8>> {
    match kind {
        ValueKind::String => decode_base64(text),
        ValueKind::Md5 => decode_hex(text).filter(|bytes| bytes.len() == 16),
        ValueKind::Sha256 => decode_hex(text).filter(|bytes| bytes.len() == 32),
        ValueKind::Ipv4 => text.parse::<std::net::Ipv4Addr>().ok().map(|address| address.octets().to_vec()),
        ValueKind::Ip => text.parse::<IpAddr>().ok().map(|address| mapped(address).to_be_bytes().to_vec()),
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// RFC 4648 section 4, padding required.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let data = text.trim_end_matches('=');
    let padding = text.len().checked_sub(data.len())?;
    if !text.len().is_multiple_of(4) || padding > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(data.len() / 4 * 3);
    let (mut held, mut bits) = (0u32, 0u32);
    for byte in data.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = (held << 6 | u32::from(value)) & 0xfff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits & 0xff) as u8);
        }
    }
    Some(out)
}

/// RFC 4648 section 4.
pub(super) fn encode_base64(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let held = (0..3).fold(0u32, |held, at| held << 8 | u32::from(chunk.get(at).copied().unwrap_or(0)));
        for place in 0..4usize {
            let symbol = ALPHABET.get((held >> (18 - 6 * place) & 63) as usize).copied().unwrap_or(b'=');
            out.push(if place > chunk.len() { '=' } else { char::from(symbol) });
        }
    }
    out
}
