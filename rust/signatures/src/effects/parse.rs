//! Arguments of `flowbits`, `flowint`, `xbits`, `hostbits`, `iprep`, `flowvar`.

use crate::number::Comparison;
use crate::parse::{unescaped, unquoted};

use super::{Effect, FlowTest, Operand, Owner, Reputation, ReputationSide};

/// Suricata's defaults.
const XBITS_EXPIRY_S: u32 = 30;
const HOSTBITS_EXPIRY_S: u32 = 300;
/// Bits in one `isset`.
const MOST_ALTERNATIVES: usize = 64;

/// What an option turned out to be.
#[derive(Debug)]
pub(crate) enum Parsed {
    Test(FlowTest),
    Effect(Effect),
    NoAlert,
}

/// Read a keyword with memory; `None` where `name` is none. `number_of` gives each name its number.
pub(crate) fn parse(
    name: &str,
    value: Option<&str>,
    number_of: &mut dyn FnMut(&str) -> u32,
    reputation: &Reputation,
) -> Option<Result<Parsed, String>> {
    if !matches!(name, "flowbits" | "flowint" | "xbits" | "hostbits" | "iprep" | "flowvar") {
        return None;
    }
    if name == "flowvar" {
        return Some(value.ok_or_else(|| "it needs an argument".to_owned()).and_then(|text| flowvar(text, number_of)));
    }
    let argument = match value.ok_or_else(|| "it needs an argument".to_owned()).and_then(unquoted) {
        Ok(argument) => argument,
        Err(error) => return Some(Err(error)),
    };
    if argument.trim() == "noalert" {
        return Some(if name == "flowint" || name == "iprep" {
            Err("noalert".to_owned())
        } else {
            Ok(Parsed::NoAlert)
        });
    }
    let parts: Vec<&str> = argument.split(',').map(str::trim).collect();
    Some(match name {
        "flowbits" => flowbits(&parts, number_of),
        "flowint" => flowint(&parts, number_of),
        "xbits" => xbits(&parts, number_of),
        "hostbits" => hostbits(&parts, number_of),
        _ => iprep(&parts, reputation),
    })
}

fn proper_name(text: &str) -> Result<&str, String> {
    let is_bad = |c: char| c.is_whitespace() || matches!(c, '|' | '"');
    if text.is_empty() || text.contains(is_bad) { Err(format!("{text} is no name")) } else { Ok(text) }
}

/// The command and its bits, whoever owns them.
fn bits(
    command: &str,
    name: &str,
    owner: Owner,
    expiry: u32,
    number_of: &mut dyn FnMut(&str) -> u32,
) -> Result<Parsed, String> {
    let mut one = || Ok::<u32, String>(number_of(proper_name(name)?));
    Ok(match command {
        "set" => Parsed::Effect(Effect::Set(owner, one()?, expiry)),
        "unset" => Parsed::Effect(Effect::Clear(owner, one()?)),
        "toggle" => Parsed::Effect(Effect::Toggle(owner, one()?, expiry)),
        "isset" | "isnotset" => {
            let names = name.split('|').map(|name| proper_name(name.trim())).collect::<Result<Vec<&str>, String>>()?;
            if names.len() > MOST_ALTERNATIVES {
                return Err(format!("more than {MOST_ALTERNATIVES} bits"));
            }
            let bits = names.into_iter().map(number_of).collect();
            Parsed::Test(FlowTest::Bits { owner, bits, wanted: command == "isset" })
        }
        other => return Err(format!("{other} is no command")),
    })
}

fn flowbits(parts: &[&str], number_of: &mut dyn FnMut(&str) -> u32) -> Result<Parsed, String> {
    match *parts {
        [command, name] => bits(command, name, Owner::Flow, 0, number_of),
        _ => Err("command and name are expected".to_owned()),
    }
}

fn xbits(parts: &[&str], number_of: &mut dyn FnMut(&str) -> u32) -> Result<Parsed, String> {
    let (command, name, track, expiry) = match *parts {
        [command, name, track] => (command, name, track, XBITS_EXPIRY_S),
        [command, name, track, expire] => (command, name, track, expiry(expire)?),
        _ => return Err("command, name, track and perhaps expire are expected".to_owned()),
    };
    let owner = match track.strip_prefix("track").map(str::trim) {
        Some("ip_src") => Owner::Source,
        Some("ip_dst") => Owner::Destination,
        Some("ip_pair") => Owner::Pair,
        Some("tx") => return Err("bits of transactions are not kept (track tx)".to_owned()),
        _ => return Err(format!("{track} is nothing to track")),
    };
    if parts.len() == 4 && command.starts_with("is") {
        return Err("expire has no meaning where a bit is only read".to_owned());
    }
    bits(command, name, owner, expiry, number_of)
}

fn expiry(text: &str) -> Result<u32, String> {
    let seconds = text.strip_prefix("expire").unwrap_or(text).trim();
    match seconds.parse() {
        Ok(seconds) if seconds > 0 => Ok(seconds),
        _ => Err(format!("{text} is no number of seconds")),
    }
}

fn hostbits(parts: &[&str], number_of: &mut dyn FnMut(&str) -> u32) -> Result<Parsed, String> {
    let (command, name, side, expiry) = match *parts {
        [command, name] => (command, name, "src", HOSTBITS_EXPIRY_S),
        [command, name, side] => (command, name, side, HOSTBITS_EXPIRY_S),
        [command, name, side, expire] => (command, name, side, expiry(expire)?),
        _ => return Err("command, name and perhaps side are expected".to_owned()),
    };
    let owner = match side {
        "src" => Owner::Source,
        "dst" => Owner::Destination,
        "both" => Owner::BothEnds,
        other => return Err(format!("{other} is no side")),
    };
    bits(command, name, owner, expiry, number_of)
}

fn flowint(parts: &[&str], number_of: &mut dyn FnMut(&str) -> u32) -> Result<Parsed, String> {
    let (name, operator, operand) = match *parts {
        [name, operator] => (proper_name(name)?, operator, None),
        [name, operator, operand] => (proper_name(name)?, operator, Some(operand)),
        _ => return Err("name, operator and perhaps a value are expected".to_owned()),
    };
    let name = number_of(name);
    let Some(operand) = operand else {
        return match operator {
            "isset" => Ok(Parsed::Test(FlowTest::HasInteger(name, true))),
            "notset" | "isnotset" => Ok(Parsed::Test(FlowTest::HasInteger(name, false))),
            other => Err(format!("{other} needs a value")),
        };
    };
    let operand = match operand.parse() {
        Ok(value) => Operand::Value(value),
        Err(_) if operand.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            return Err(format!("{operand} is no number of 32 bits"));
        }
        Err(_) => Operand::Named(number_of(proper_name(operand)?)),
    };
    Ok(match operator {
        "+" => Parsed::Effect(Effect::AddInteger(name, operand)),
        "-" => Parsed::Effect(Effect::SubtractInteger(name, operand)),
        "=" => Parsed::Effect(Effect::AssignInteger(name, operand)),
        "==" => Parsed::Test(FlowTest::Integer(name, Comparison::Equal, operand)),
        "!=" => Parsed::Test(FlowTest::Integer(name, Comparison::NotEqual, operand)),
        "<" => Parsed::Test(FlowTest::Integer(name, Comparison::Below, operand)),
        "<=" => Parsed::Test(FlowTest::Integer(name, Comparison::AtMost, operand)),
        ">" => Parsed::Test(FlowTest::Integer(name, Comparison::Above, operand)),
        ">=" => Parsed::Test(FlowTest::Integer(name, Comparison::AtLeast, operand)),
        other => return Err(format!("{other} is no operator")),
    })
}

/// `iprep:src,CnC,>,30` or `iprep:src,CnC,>30`.
fn iprep(parts: &[&str], reputation: &Reputation) -> Result<Parsed, String> {
    let (side, category, range) = match *parts {
        [side, category, range] => (side, category, range.to_owned()),
        [side, category, operator, value] => (side, category, format!("{operator}{value}")),
        [side, category] => (side, category, ">0".to_owned()),
        _ => return Err("side, category, operator and value are expected".to_owned()),
    };
    let side = match side {
        "src" => ReputationSide::Source,
        "dst" => ReputationSide::Destination,
        "any" => ReputationSide::Any,
        "both" => ReputationSide::Both,
        other => return Err(format!("{other} is no side")),
    };
    let category = reputation.category(category).ok_or_else(|| format!("unknown reputation category {category}"))?;
    let range = match range.as_str() {
        "isset" => Comparison::AtLeast(0),
        text => Comparison::parse(text, 8, &[])?,
    };
    Ok(Parsed::Test(FlowTest::Reputation(side, category, range)))
}

fn flowvar(argument: &str, number_of: &mut dyn FnMut(&str) -> u32) -> Result<Parsed, String> {
    let (name, value) = argument.split_once(',').ok_or("name and value are expected")?;
    let value = unescaped(unquoted(value.trim())?)?;
    Ok(Parsed::Test(FlowTest::Variable(number_of(proper_name(name.trim())?), value.into_bytes().into())))
}
