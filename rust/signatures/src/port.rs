//! Ports of a rule header: `any`, ranges, lists, negation, variables.

use crate::address::items;
use crate::ranges::{Ranges, listed};
use crate::variables::Lookup;

/// Ports.
pub(crate) type PortSet = Ranges<u16>;

/// As for addresses.
const MOST_DEPTH: u32 = 16;

/// Read the text of a port field. What holds no port at all is refused.
pub(crate) fn parse_ports(text: &str, variables: &dyn Lookup) -> Result<PortSet, String> {
    let set = term(text.trim(), variables, 0)?;
    if set.is_empty() { Err(format!("no port is left in {}", crate::parse::shortened(text))) } else { Ok(set) }
}

fn term(text: &str, variables: &dyn Lookup, depth: u32) -> Result<PortSet, String> {
    if depth > MOST_DEPTH {
        return Err("lists or variables are nested too deeply".to_owned());
    }
    if let Some(rest) = text.strip_prefix('!') {
        return Ok(Ranges::all().without(&term(rest.trim(), variables, depth + 1)?));
    }
    if let Some(inner) = text.strip_prefix('[') {
        return list(inner.strip_suffix(']').ok_or("a list is not closed")?, variables, depth);
    }
    if let Some(name) = text.strip_prefix('$') {
        let value = variables.ports(name).ok_or_else(|| format!("variable ${name} is not defined"))?;
        return if value.contains(',') && !value.starts_with(['[', '!']) {
            list(value, variables, depth)
        } else {
            term(value.trim(), variables, depth + 1)
        };
    }
    single(text)
        .map(|range| Ranges::new(vec![range]))
        .ok_or_else(|| format!("{} is no port", crate::parse::shortened(text)))
}

fn list(inner: &str, variables: &dyn Lookup, depth: u32) -> Result<PortSet, String> {
    let (mut is_in, mut out, mut has_positive) = (Vec::new(), Vec::new(), false);
    for item in items(inner)? {
        match item.strip_prefix('!') {
            Some(rest) => out.extend_from_slice(term(rest.trim(), variables, depth + 1)?.as_slice()),
            None => {
                has_positive = true;
                is_in.extend_from_slice(term(item, variables, depth + 1)?.as_slice());
            }
        }
    }
    Ok(listed(is_in, has_positive, out))
}

fn single(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.trim().parse::<u16>().ok().filter(|_| !text.trim().starts_with('+'));
    if text == "any" {
        return Some((0, u16::MAX));
    }
    let Some((low, high)) = text.split_once(':') else { return number(text).map(|port| (port, port)) };
    if low.trim().is_empty() && high.trim().is_empty() {
        return None;
    }
    let low = if low.trim().is_empty() { 0 } else { number(low)? };
    let high = if high.trim().is_empty() { u16::MAX } else { number(high)? };
    (low <= high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variables::Variables;

    #[test]
    fn what_is_in_and_what_is_not() {
        let mut settings = protocols::Settings::default();
        settings.set("vars.port-groups.WEB", "[80,8080]");
        let rows: &[(&str, &[u16], &[u16])] = &[
            ("any", &[0, 65535], &[]),
            ("80", &[80], &[81]),
            ("!80", &[81, 0], &[80]),
            ("1024:", &[1024, 65535], &[1023]),
            (":1024", &[0, 1024], &[1025]),
            ("5:7", &[5, 7], &[4, 8]),
            ("[80,443,!443]", &[80], &[443]),
            ("[1:100,![20:30,!25]]", &[1, 25], &[20, 30]),
            ("$WEB", &[8080], &[81]),
            ("!$WEB", &[81], &[80]),
        ];
        for (text, inside, outside) in rows {
            let set = parse_ports(text, &Variables::new(&settings));
            for (ports, wanted) in [(inside, true), (outside, false)] {
                for port in *ports {
                    assert_eq!(set.as_ref().map(|set| set.contains(*port)), Ok(wanted), "{text} {port}");
                }
            }
        }
        for text in ["", "65536", "-1", "9:5", ":", "!any", "[80", "$NO", "http", "[]", "+5"] {
            assert!(parse_ports(text, &Variables::new(&settings)).is_err(), "{text}");
        }
    }
}
