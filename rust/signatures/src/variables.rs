//! Address and port variables of rule headers, and the pool in which equal sets are one.

use std::collections::HashMap;
use std::sync::Arc;

use protocols::Settings;

use crate::address::{AddressSet, parse_addresses};
use crate::port::{PortSet, parse_ports};

/// Where `$NAME` leads.
pub(crate) trait Lookup {
    /// The text of an address variable.
    fn addresses(&self, name: &str) -> Option<&str>;
    /// The text of a port variable.
    fn ports(&self, name: &str) -> Option<&str>;
}

/// Variables that Suricata's stock configuration defines; rule sets take them for granted. The settings win.
const ADDRESSES: &[(&str, &str)] = &[
    ("HOME_NET", "[192.168.0.0/16,10.0.0.0/8,172.16.0.0/12]"),
    ("EXTERNAL_NET", "!$HOME_NET"),
    ("HTTP_SERVERS", "$HOME_NET"),
    ("SMTP_SERVERS", "$HOME_NET"),
    ("SQL_SERVERS", "$HOME_NET"),
    ("DNS_SERVERS", "$HOME_NET"),
    ("TELNET_SERVERS", "$HOME_NET"),
    ("AIM_SERVERS", "$EXTERNAL_NET"),
    ("DC_SERVERS", "$HOME_NET"),
    ("DNP3_SERVER", "$HOME_NET"),
    ("DNP3_CLIENT", "$HOME_NET"),
    ("MODBUS_CLIENT", "$HOME_NET"),
    ("MODBUS_SERVER", "$HOME_NET"),
    ("ENIP_CLIENT", "$HOME_NET"),
    ("ENIP_SERVER", "$HOME_NET"),
];
const PORTS: &[(&str, &str)] = &[
    ("HTTP_PORTS", "80"),
    ("SHELLCODE_PORTS", "!80"),
    ("ORACLE_PORTS", "1521"),
    ("SSH_PORTS", "22"),
    ("DNP3_PORTS", "20000"),
    ("MODBUS_PORTS", "502"),
    ("FILE_DATA_PORTS", "[$HTTP_PORTS,110,143]"),
    ("FTP_PORTS", "21"),
    ("GENEVE_PORTS", "6081"),
    ("VXLAN_PORTS", "4789"),
    ("TEREDO_PORTS", "3544"),
    ("SIP_PORTS", "[5060,5061]"),
];

/// Variables of settings, with the usual ones behind them.
pub(crate) struct Variables<'a> {
    settings: &'a Settings,
}

impl<'a> Variables<'a> {
    pub fn new(settings: &'a Settings) -> Variables<'a> {
        Variables { settings }
    }
}

fn usual(list: &'static [(&str, &str)], name: &str) -> Option<&'static str> {
    list.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

impl Lookup for Variables<'_> {
    fn addresses(&self, name: &str) -> Option<&str> {
        self.settings.text(&format!("vars.address-groups.{name}")).or_else(|| usual(ADDRESSES, name))
    }

    fn ports(&self, name: &str) -> Option<&str> {
        self.settings.text(&format!("vars.port-groups.{name}")).or_else(|| usual(PORTS, name))
    }
}

/// Sets by their text, each only once in memory: nearly all of twenty thousand rules have the same few. `None` is `any`.
pub(crate) struct Pool<'a> {
    variables: Variables<'a>,
    addresses: HashMap<String, Option<Arc<AddressSet>>>,
    ports: HashMap<String, Option<Arc<PortSet>>>,
}

impl<'a> Pool<'a> {
    pub fn new(settings: &'a Settings) -> Pool<'a> {
        Pool { variables: Variables::new(settings), addresses: HashMap::new(), ports: HashMap::new() }
    }

    pub fn addresses(&mut self, text: &str) -> Result<Option<Arc<AddressSet>>, String> {
        if let Some(known) = self.addresses.get(text) {
            return Ok(known.clone());
        }
        let set = parse_addresses(text, &self.variables)?;
        let set = if set.is_all() { None } else { Some(Arc::new(set)) };
        self.addresses.insert(text.to_owned(), set.clone());
        Ok(set)
    }

    pub fn ports(&mut self, text: &str) -> Result<Option<Arc<PortSet>>, String> {
        if let Some(known) = self.ports.get(text) {
            return Ok(known.clone());
        }
        let set = parse_ports(text, &self.variables)?;
        let set = if set.is_all() { None } else { Some(Arc::new(set)) };
        self.ports.insert(text.to_owned(), set.clone());
        Ok(set)
    }
}
