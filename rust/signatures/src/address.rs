//! Addresses of a rule header: `any`, CIDR, ranges, lists, negation, variables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ranges::{Ranges, listed};
use crate::variables::Lookup;

/// Addresses in their 128-bit form; IPv4 is mapped (`::ffff:a.b.c.d`), as packets have it.
pub(crate) type AddressSet = Ranges<u128>;

/// Lists within lists and variables within variables.
const MOST_DEPTH: u32 = 16;
const MAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

/// Read the text of an address field. What holds no address at all is refused.
pub(crate) fn parse_addresses(text: &str, variables: &dyn Lookup) -> Result<AddressSet, String> {
    let set = term(text.trim(), variables, 0)?;
    if set.is_empty() { Err(format!("no address is left in {}", crate::parse::shortened(text))) } else { Ok(set) }
}

fn term(text: &str, variables: &dyn Lookup, depth: u32) -> Result<AddressSet, String> {
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
        let value = variables.addresses(name).ok_or_else(|| format!("variable ${name} is not defined"))?;
        // a variable may be a list without brackets
        return if value.contains(',') && !value.starts_with(['[', '!']) {
            list(value, variables, depth)
        } else {
            term(value.trim(), variables, depth + 1)
        };
    }
    single(text).map(Ranges::new)
}

fn list(inner: &str, variables: &dyn Lookup, depth: u32) -> Result<AddressSet, String> {
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

/// The items of a list, nested lists whole.
pub(crate) fn items(inner: &str) -> Result<Vec<&str>, String> {
    let (mut found, mut depth, mut from) = (Vec::new(), 0u32, 0);
    for (at, character) in inner.char_indices() {
        match character {
            '[' => depth = depth.saturating_add(1),
            ']' => depth = depth.checked_sub(1).ok_or("a list is closed that was not opened")?,
            ',' if depth == 0 => {
                found.push(inner.get(from..at).unwrap_or_default().trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    found.push(inner.get(from..).unwrap_or_default().trim());
    if depth > 0 || found.iter().any(|item| item.is_empty()) {
        return Err(format!("a broken list: [{}]", crate::parse::shortened(inner)));
    }
    Ok(found)
}

fn single(text: &str) -> Result<Vec<(u128, u128)>, String> {
    let broken = || format!("{} is no address", crate::parse::shortened(text));
    if text == "any" {
        return Ok(vec![(0, u128::MAX)]);
    }
    if let Some((address, mask)) = text.split_once('/') {
        return network(parse_address(address).ok_or_else(broken)?, mask.trim()).ok_or_else(broken);
    }
    if let Some((low, high)) = text.split_once('-') {
        let (low, high) = (parse_address(low).ok_or_else(broken)?, parse_address(high).ok_or_else(broken)?);
        let (from, to) = (mapped(low), mapped(high));
        return if low.is_ipv4() == high.is_ipv4() && from <= to { Ok(vec![(from, to)]) } else { Err(broken()) };
    }
    let address = mapped(parse_address(text).ok_or_else(broken)?);
    Ok(vec![(address, address)])
}

fn parse_address(text: &str) -> Option<IpAddr> {
    text.trim().parse().ok()
}

/// Return the address in its 128-bit form.
pub(crate) fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Return the address in its own form.
pub(crate) fn unmapped(address: u128) -> IpAddr {
    let address = Ipv6Addr::from_bits(address);
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}

fn network(address: IpAddr, mask: &str) -> Option<Vec<(u128, u128)>> {
    let bits = match (address, mask.parse::<u32>()) {
        (IpAddr::V4(_), Ok(bits @ 0..=32)) => 96 + bits,
        (IpAddr::V6(_), Ok(bits @ 0..=128)) => bits,
        (IpAddr::V4(_), Err(_)) => {
            let mask = mask.parse::<Ipv4Addr>().ok()?.to_bits();
            // a mask with holes is none
            if mask.leading_ones() + mask.trailing_zeros() < 32 {
                return None;
            }
            96 + mask.leading_ones()
        }
        _ => return None,
    };
    let host = u128::MAX.checked_shr(bits).unwrap_or(0);
    let low = mapped(address) & !host;
    let range = (low, low | host);
    if address.is_ipv6() && bits < 96 {
        // ::/0 means every IPv6 address, and packets carry IPv4 addresses in the mapped form
        return Some(Ranges::new(vec![range]).without(&Ranges::new(vec![MAPPED])).as_slice().to_vec());
    }
    Some(vec![range])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variables::Variables;

    fn parse(text: &str) -> Result<AddressSet, String> {
        let mut settings = protocols::Settings::default();
        settings.set("vars.address-groups.HOME_NET", "[10.0.0.0/8,192.168.0.0/16]");
        settings.set("vars.address-groups.BARE", "1.1.1.1,2.2.2.2");
        settings.set("vars.address-groups.LOOP", "$LOOP");
        parse_addresses(text, &Variables::new(&settings))
    }

    #[test]
    fn what_is_in_and_what_is_not() {
        let rows: &[(&str, &[&str], &[&str])] = &[
            ("any", &["1.2.3.4", "fe80::1"], &[]),
            ("1.2.3.4", &["1.2.3.4"], &["1.2.3.5"]),
            ("10.0.0.0/8", &["10.255.255.255"], &["11.0.0.0", "::a00:1"]),
            ("10.0.0.0/255.255.0.0", &["10.0.9.9"], &["10.1.0.0"]),
            ("1.1.1.1-1.1.1.9", &["1.1.1.9"], &["1.1.1.10"]),
            ("!1.2.3.4", &["1.2.3.5", "::1"], &["1.2.3.4"]),
            ("[10.0.0.0/8,!10.1.0.0/16]", &["10.2.0.1"], &["10.1.0.1", "9.0.0.0"]),
            ("[!1.1.1.1, !2.2.2.2]", &["3.3.3.3"], &["1.1.1.1", "2.2.2.2"]),
            ("![1.1.1.1,[2.2.2.2]]", &["3.3.3.3"], &["2.2.2.2"]),
            ("[10.0.0.0/8,![10.1.0.0/16,!10.1.1.0/24]]", &["10.1.1.1"], &["10.1.2.1"]),
            ("$HOME_NET", &["192.168.1.1"], &["8.8.8.8"]),
            ("!$HOME_NET", &["8.8.8.8"], &["192.168.1.1"]),
            ("[$HOME_NET,!10.0.0.1]", &["10.0.0.2"], &["10.0.0.1"]),
            ("$BARE", &["2.2.2.2"], &["3.3.3.3"]),
            ("2001:db8::/32", &["2001:db8::1"], &["2001:db9::1"]),
            ("::/0", &["::1"], &["1.2.3.4"]),
            ("0.0.0.0/0", &["1.2.3.4"], &["::1"]),
        ];
        for (text, inside, outside) in rows {
            let set = parse(text);
            for (addresses, wanted) in [(inside, true), (outside, false)] {
                for address in *addresses {
                    let value = parse_address(address).map(mapped).unwrap_or_default();
                    assert_eq!(set.as_ref().map(|set| set.contains(value)), Ok(wanted), "{text} {address}");
                }
            }
        }
    }

    #[test]
    fn broken_and_empty_fields_are_refused() {
        for text in [
            "",
            "!any",
            "1.2.3",
            "1.2.3.4/33",
            "[1.1.1.1",
            "[1.1.1.1,]",
            "$NOWHERE",
            "$LOOP",
            "[1.1.1.1,!1.1.1.1]",
            "1.1.1.9-1.1.1.1",
            "::1/129",
            "1.2.3.4/255.0.255.0",
            "a]",
            "1.1.1.1-::5",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
