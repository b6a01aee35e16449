//! Parts of protocols by their names, so that detectors need no type of any parser; what a build lacks is not there.

use protocols::{Json, PROTOCOLS, Transaction, Way};

/// A record of a transaction is read up to here for the sake of one member.
const MOST_LOG: usize = 16 << 10;

/// Return the index of a buffer of a protocol.
pub fn buffer_index(protocol: usize, keyword: &str) -> Option<usize> {
    let buffers = PROTOCOLS.get(protocol)?.buffers;
    buffers.iter().position(|buffer| buffer.keyword == keyword || buffer.aliases.contains(&keyword))
}

/// Return the index of a number of a protocol.
pub fn number_index(protocol: usize, keyword: &str) -> Option<usize> {
    let numbers = PROTOCOLS.get(protocol)?.numbers;
    numbers.iter().position(|number| number.keyword == keyword || number.aliases.contains(&keyword))
}

/// Return the index of a protocol.
pub fn protocol_index(name: &str) -> Option<usize> {
    PROTOCOLS.iter().position(|protocol| protocol.name == name)
}

/// Return a number of a transaction, in whichever way it has it.
pub fn number(tx: &dyn Transaction, index: usize) -> Option<u64> {
    Way::BOTH.into_iter().find_map(|way| tx.number(index, way, 0))
}

/// Return the first value of a member of the transaction's log record, as it stands there: a number, or text in quotes.
pub fn logged(tx: &dyn Transaction, member: &str) -> Option<String> {
    let mut text = String::new();
    tx.log(None, &mut Json::inside(&mut text, false));
    find_member(text.get(..MOST_LOG).unwrap_or(&text), member).map(str::to_owned)
}

fn find_member<'a>(text: &'a str, member: &str) -> Option<&'a str> {
    // a quote inside a value is escaped, so this can only be a member's name
    let start = text.find(&format!("\"{member}\":"))? + member.len() + 3;
    let rest = text.get(start..)?;
    match rest.strip_prefix('"') {
        Some(inner) => inner.split('"').next(),
        None => rest.split([',', '}', ']']).next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_and_quoted_look_alikes_are_not() {
        let text = r#""modbus":{"x":"\"function_raw\":7","function_raw":16,"name":"write"}"#;
        assert_eq!(find_member(text, "function_raw"), Some("16"));
        assert_eq!(find_member(text, "name"), Some("write"));
        assert_eq!(find_member(text, "absent"), None);
    }
}
