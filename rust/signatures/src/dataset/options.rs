//! Arguments of `dataset` and `datarep`.

use crate::number::{Comparison, parse_integer};
use crate::parse::unquoted;

use super::{Operation, ValueKind};

/// How a file is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Format {
    #[default]
    Csv,
    Json,
    /// JSON, an object by line.
    Ndjson,
}

/// What a rule says about a set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub name: &'a str,
    pub operation: Operation,
    pub kind: Option<ValueKind>,
    pub format: Format,
    pub value_key: Option<&'a str>,
    pub array_key: Option<&'a str>,
    pub context_key: Option<&'a str>,
    pub removes_key: bool,
    pub is_subdomain: bool,
    pub memcap: Option<u64>,
    load: Option<&'a str>,
    save: Option<&'a str>,
    state: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// Read `isset,name,type string,load file.lst` or, for `datarep`, `name,>,100,type string,load file.rep`.
    pub fn parse(text: &'a str, is_reputation: bool) -> Result<Request<'a>, String> {
        let mut parts = unquoted(text)?.split(',').map(str::trim);
        let mut next =
            |what: &str| parts.next().filter(|part| !part.is_empty()).ok_or_else(|| format!("{what} is missing"));
        let (name, operation) = if is_reputation {
            let (name, operator, value) = (next("the name")?, next("the operator")?, next("the value")?);
            (name, Operation::Reputation(Comparison::parse(&format!("{operator}{value}"), 16, &[])?))
        } else {
            let operation = match next("the command")? {
                "isset" => Operation::IsSet,
                "isnotset" => Operation::IsNotSet,
                "set" => Operation::Set,
                "unset" => Operation::Unset,
                other => return Err(format!("{other} is no command of data sets")),
            };
            (next("the name")?, operation)
        };
        let mut request = Request {
            name,
            operation,
            kind: None,
            format: Format::Csv,
            value_key: None,
            array_key: None,
            context_key: None,
            removes_key: false,
            is_subdomain: false,
            memcap: None,
            load: None,
            save: None,
            state: None,
        };
        for part in parts {
            request.set(part)?;
        }
        request.checked()
    }

    fn set(&mut self, part: &'a str) -> Result<(), String> {
        let (key, value) = part.split_once(char::is_whitespace).map_or((part, ""), |(key, value)| (key, value.trim()));
        if value.is_empty() != (key == "remove_key") {
            return Err(format!("{part}: key and value are expected"));
        }
        match key {
            "type" => self.kind = Some(ValueKind::parse(value).ok_or_else(|| format!("{value} is no type of data"))?),
            "load" => self.load = Some(value),
            "save" => self.save = Some(value),
            "state" => self.state = Some(value),
            "memcap" => self.memcap = Some(parse_integer(value).ok_or_else(|| format!("{value} is no memcap"))?),
            "hashsize" => parse_integer(value).map(|_| ()).ok_or_else(|| format!("{value} is no hashsize"))?,
            "format" => {
                self.format = match value {
                    "csv" => Format::Csv,
                    "json" => Format::Json,
                    "ndjson" | "jsonline" => Format::Ndjson,
                    other => return Err(format!("{other} is no format")),
                }
            }
            "value_key" => self.value_key = Some(value),
            "array_key" => self.array_key = Some(value),
            "context_key" => self.context_key = Some(value),
            "remove_key" => self.removes_key = true,
            "match" if value == "subdomain" => self.is_subdomain = true,
            _ => return Err(format!("{part} is no option of data sets")),
        }
        Ok(())
    }

    fn checked(self) -> Result<Request<'a>, String> {
        if self.state.is_some() && (self.load.is_some() || self.save.is_some()) {
            return Err("state stands for load and save together".to_owned());
        }
        if self.format == Format::Csv && (self.value_key.is_some() || self.context_key.is_some()) {
            return Err("keys need a format with JSON".to_owned());
        }
        if self.format != Format::Csv && self.value_key.is_none() {
            return Err("a format with JSON needs a value_key".to_owned());
        }
        if self.format != Format::Csv
            && (self.save().is_some() || matches!(self.operation, Operation::Set | Operation::Unset))
        {
            return Err("data sets with JSON can only be read".to_owned());
        }
        if self.is_subdomain && self.kind.is_some_and(|kind| kind != ValueKind::String) {
            return Err("match subdomain is for strings".to_owned());
        }
        Ok(self)
    }

    /// The file that is read.
    pub fn load(&self) -> Option<&'a str> {
        self.load.or(self.state)
    }

    /// The file that is written in the end.
    pub fn save(&self) -> Option<&'a str> {
        self.save.or(self.state)
    }

    /// Whether the file need not be there yet.
    pub fn is_state(&self) -> bool {
        self.state.is_some()
    }
}
