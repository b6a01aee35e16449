//! Settings of parsers by their names in Suricata's configuration, so that an operator's file means the same here.

use std::collections::BTreeMap;

/// Dotted names (`app-layer.protocols.http.libhtp.default-config.request-body-limit`) and their values as text.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    values: BTreeMap<String, String>,
}

impl Settings {
    /// Set one; the last wins.
    pub fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.to_owned());
    }

    /// Return one as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// Return a flag: `yes`, `true`, `on` and `1` are true.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        match self.text(name) {
            Some(text) => matches!(text.to_ascii_lowercase().as_str(), "yes" | "true" | "on" | "1"),
            None => default,
        }
    }

    /// Return a number of bytes or anything else; `kb`, `mb`, `gb` (and `KiB` …) multiply; what is no number counts as absent.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name).and_then(parse_number).unwrap_or(default)
    }

    /// Whether nobody chose what is logged: then it is what Suricata's shipped configuration logs, `extended` included.
    pub fn is_stock_output(&self) -> bool {
        self.text("outputs.eve-log.enabled-types").is_none()
    }

    /// Iterate over names that begin with `prefix`, in order, with their values.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let from = self.values.range(prefix.to_owned()..);
        from.take_while(move |(name, _)| name.starts_with(prefix)).map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn parse_number(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}
