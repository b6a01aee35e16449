//! Variables of one rule.

/// A rule with more variables is refused; Suricata's rules use five at most.
const MOST_VARIABLES: usize = 64;

/// Where the names of `byte_extract` and `byte_math` results of one rule get their slots.
#[derive(Debug, Default)]
pub struct Names {
    names: Vec<Box<str>>,
}

impl Names {
    /// How many there are: the length that [`crate::Context::variables`] should have.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Return a name's slot.
    pub(super) fn get(&self, name: &str) -> Result<u8, String> {
        let slot = self.names.iter().position(|other| **other == *name);
        // slots are below MOST_VARIABLES
        slot.map(|slot| slot as u8).ok_or_else(|| format!("nothing sets the variable {name:?} before"))
    }

    /// Return a slot for a name; the same name gets the same one.
    pub(super) fn set(&mut self, name: &str) -> Result<u8, String> {
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !is_name || !name.chars().any(|c| c.is_ascii_alphabetic()) {
            return Err(format!("{name:?} cannot name a variable"));
        }
        if let Ok(slot) = self.get(name) {
            return Ok(slot);
        }
        if self.names.len() >= MOST_VARIABLES {
            return Err(format!("more than {MOST_VARIABLES} variables"));
        }
        self.names.push(name.into());
        self.get(name)
    }
}
