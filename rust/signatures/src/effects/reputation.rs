//! IP reputation: categories by name, and how each address ranks in them.

use std::collections::HashMap;

use crate::address::mapped;

/// Lines of a reputation file that are kept; a million are 32 MiB, more than a small device should spend.
const MOST_ENTRIES: usize = 1 << 18;
/// Reputation of a category is a byte in Suricata's format, and so is the category.
const MOST_VALUE: u8 = 127;

/// Reputation of addresses and networks.
#[derive(Debug, Default)]
pub struct Reputation {
    categories: HashMap<String, u8>,
    hosts: HashMap<(u128, u8), u8>,
    networks: Vec<(u128, u128, u8, u8)>,
}

impl Reputation {
    /// Read a category file: `id,short name,description` by line.
    pub fn add_categories(&mut self, text: &str) {
        for line in lines(text) {
            let mut fields = line.split(',').map(str::trim);
            if let (Some(Ok(id)), Some(name)) = (fields.next().map(str::parse), fields.next())
                && self.categories.len() < usize::from(u8::MAX)
            {
                self.categories.insert(name.to_owned(), id);
            }
        }
    }

    /// Read a reputation file: `address or network,category,value` by line. Returns how many lines made no sense.
    pub fn add_addresses(&mut self, text: &str) -> usize {
        lines(text).filter(|line| self.add(line).is_none()).count()
    }

    fn add(&mut self, line: &str) -> Option<()> {
        let mut fields = line.split(',').map(str::trim);
        let (place, category, value) =
            (fields.next()?, fields.next()?.parse().ok()?, fields.next()?.parse::<u8>().ok()?);
        if value > MOST_VALUE || self.hosts.len().saturating_add(self.networks.len()) >= MOST_ENTRIES {
            return None;
        }
        if let Ok(address) = place.parse() {
            self.hosts.insert((mapped(address), category), value);
            return Some(());
        }
        let set = crate::address::parse_addresses(place, &NoVariables).ok()?;
        self.networks.extend(set.as_slice().iter().map(|(low, high)| (*low, *high, category, value)));
        Some(())
    }

    /// Return the number of a category.
    pub fn category(&self, name: &str) -> Option<u8> {
        self.categories.get(name).copied()
    }

    /// Return an address's rank in a category; of several networks, the smallest counts.
    pub fn value(&self, address: u128, category: u8) -> Option<u8> {
        if let Some(value) = self.hosts.get(&(address, category)) {
            return Some(*value);
        }
        let around =
            self.networks.iter().filter(|(low, high, of, _)| *low <= address && address <= *high && *of == category);
        around.min_by_key(|(low, high, ..)| high.saturating_sub(*low)).map(|(.., value)| *value)
    }
}

struct NoVariables;

impl crate::variables::Lookup for NoVariables {
    fn addresses(&self, _name: &str) -> Option<&str> {
        None
    }

    fn ports(&self, _name: &str) -> Option<&str> {
        None
    }
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_win_over_networks() {
        let mut reputation = Reputation::default();
        reputation.add_categories("# c\n1,CnC,command and control\n2,Bad,x");
        assert_eq!(
            reputation.add_addresses("1.2.3.4,1,100\n1.2.0.0/16,1,5\n1.0.0.0/8,1,4\nnonsense\n1.1.1.1,1,200"),
            2
        );
        let address = |text: &str| mapped(text.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(reputation.category("CnC"), Some(1));
        assert_eq!(reputation.value(address("1.2.3.4"), 1), Some(100));
        assert_eq!(reputation.value(address("1.2.9.9"), 1), Some(5));
        assert_eq!(reputation.value(address("1.2.9.9"), 2), None);
    }
}
