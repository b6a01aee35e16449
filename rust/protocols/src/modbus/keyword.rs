//! The rule keyword `modbus`: functions, categories, access to tables, addresses and values, units.

use super::Exchange;
use super::message::{Data, Message, access, category};
use crate::{Custom, Transaction, Way};

/// A range as rules write it: `5`, `>5`, `<5`, `5<>9` (the ends excluded).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u32,
    last: u32,
}

impl Span {
    fn parse(text: &str) -> Result<Span, String> {
        let number = |digits: &str| {
            digits.trim().parse::<u16>().map(u32::from).map_err(|_| format!("'{digits}' is no number of 16 bits"))
        };
        let text = text.trim();
        if let Some((low, high)) = text.split_once("<>") {
            let span = Span { first: number(low)? + 1, last: number(high)?.saturating_sub(1) };
            return if span.first <= span.last { Ok(span) } else { Err(format!("nothing is between {text}")) };
        }
        match text.split_at_checked(1) {
            Some((">", rest)) => Ok(Span { first: number(rest)? + 1, last: u32::MAX }),
            Some(("<", rest)) => {
                let below = number(rest)?;
                below.checked_sub(1).map(|last| Span { first: 0, last }).ok_or("nothing is below 0".to_owned())
            }
            _ => number(text).map(|value| Span { first: value, last: value }),
        }
    }

    fn contains(self, value: u32) -> bool {
        (self.first..=self.last).contains(&value)
    }
}

#[derive(Debug)]
enum Test {
    Any,
    Function { code: u8, subfunction: Option<u16> },
    Category { bits: u8, is_negated: bool },
    Access { bits: u8, addresses: Option<Span>, values: Option<Span> },
}

#[derive(Debug)]
struct Modbus {
    unit: Option<Span>,
    test: Test,
}

/// Read the argument of `modbus:`.
pub fn parse(argument: &str) -> Result<Box<dyn Custom>, String> {
    let argument = argument.trim().trim_matches('"').trim();
    let (unit, rest) = match argument.strip_prefix("unit") {
        None => (None, argument),
        Some(rest) => {
            let (unit, rest) = rest.split_once(',').unwrap_or((rest, ""));
            (Some(Span::parse(unit)?), rest.trim())
        }
    };
    let test = if rest.is_empty() && unit.is_some() {
        Test::Any
    } else if let Some(rest) = rest.strip_prefix("function") {
        parse_function(rest)?
    } else if let Some(rest) = rest.strip_prefix("access") {
        parse_access(rest)?
    } else {
        return Err("modbus needs 'unit', 'function' or 'access'".to_owned());
    };
    Ok(Box::new(Modbus { unit, test }))
}

fn parse_function(text: &str) -> Result<Test, String> {
    let (name, rest) = text.split_once(',').unwrap_or((text, ""));
    let (name, rest) = (name.trim(), rest.trim());
    let (name, is_negated) = name.strip_prefix('!').map_or((name, false), |name| (name.trim(), true));
    let bits = match name.to_ascii_lowercase().as_str() {
        "assigned" => category::ASSIGNED,
        "unassigned" => category::UNASSIGNED,
        "public" => category::ASSIGNED | category::UNASSIGNED,
        "user" => category::USER,
        "reserved" => category::RESERVED,
        "all" => u8::MAX,
        digits => {
            let code = digits.parse().map_err(|_| format!("'{name}' is no function and no category"))?;
            let subfunction = match rest.strip_prefix("subfunction") {
                Some(digits) => Some(digits.trim().parse().map_err(|_| "a subfunction is a number".to_owned())?),
                None if rest.is_empty() => None,
                None => return Err(format!("'{rest}' is no option of a function")),
            };
            if is_negated {
                return Err("only a category can be negated".to_owned());
            }
            return Ok(Test::Function { code, subfunction });
        }
    };
    if rest.is_empty() { Ok(Test::Category { bits, is_negated }) } else { Err(format!("'{rest}' is too much")) }
}

fn parse_access(text: &str) -> Result<Test, String> {
    let mut parts = text.split(',').map(str::trim);
    let mut words = parts.next().unwrap_or_default().split_whitespace();
    let mut bits = match words.next() {
        Some("read") => access::READ,
        Some("write") => access::WRITE,
        _ => return Err("access is 'read' or 'write'".to_owned()),
    };
    bits |= match words.next() {
        None => 0,
        Some("coils") => access::COILS,
        Some("holding") => access::HOLDING,
        Some("discretes") if bits == access::READ => access::DISCRETES,
        Some("input") if bits == access::READ => access::INPUT,
        Some(other) => return Err(format!("there is no such access to '{other}'")),
    };
    let (mut addresses, mut values) = (None, None);
    for part in parts {
        if let Some(rest) = part.strip_prefix("address") {
            addresses = Some(Span::parse(rest)?);
        } else if let (Some(rest), true) =
            (part.strip_prefix("value"), bits & access::WRITE != 0 && addresses.is_some())
        {
            values = Some(Span::parse(rest)?);
        } else {
            return Err(format!("'{part}' is no option of such an access"));
        }
    }
    if addresses.is_some() && bits & access::TABLES == 0 {
        return Err("an address is of a table".to_owned());
    }
    Ok(Test::Access { bits, addresses, values })
}

impl Custom for Modbus {
    fn matches(&self, transaction: &dyn Transaction, _way: Way) -> bool {
        let exchange = transaction.as_any().downcast_ref::<Exchange>();
        let Some(request) = exchange.and_then(|exchange| exchange.request.as_ref()) else { return false };
        self.unit.is_none_or(|unit| unit.contains(u32::from(request.unit))) && self.test.matches(request)
    }
}

impl Test {
    fn matches(&self, request: &Message) -> bool {
        match self {
            Test::Any => true,
            Test::Function { code, subfunction } => {
                *code == request.function
                    && subfunction
                        .is_none_or(|wanted| matches!(&request.data, Data::Diagnostic(is, _) if *is == wanted))
            }
            Test::Category { bits, is_negated } => (request.category & bits != 0) != *is_negated,
            Test::Access { bits, addresses, values } => {
                request.access & bits == *bits
                    && addresses.is_none_or(|span| {
                        let touches = request.addresses();
                        touches.is_some_and(|(first, last)| first <= span.last && last >= span.first)
                            && values.is_none_or(|value| {
                                request.written(span.first, span.last).any(|is| value.contains(u32::from(is)))
                            })
                    })
            }
        }
    }
}
