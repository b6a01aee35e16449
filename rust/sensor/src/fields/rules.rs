//! Rules and entries, and when an entry matches.

use super::config;
use super::config::FieldConfigError;

/// Identifiers are 1 to 63: six bits of the packet mark.
pub const MAX_RULE_ID: u8 = 63;

/// The protocols that have field rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Modbus/TCP (and the same frames in UDP).
    Modbus,
    /// DNP3, IEEE 1815, over TCP or UDP.
    Dnp3,
    /// BACnet/IP, ANSI/ASHRAE 135 annex J.
    Bacnet,
    /// MQTT 3.1, 3.1.1 and 5.
    Mqtt,
    /// CoAP, RFC 7252 (UDP) and RFC 8323 (TCP).
    Coap,
    /// DNS queries, RFC 1035.
    Dns,
}

/// One field rule: what may reach a service.
#[derive(Debug, Clone)]
pub struct Rule {
    /// 1 to 63, as in the packet mark.
    pub id: u8,
    /// The operator's name for it.
    pub name: String,
    /// The protocol that the service speaks.
    pub protocol: Protocol,
    /// Report what would be refused, and let it pass.
    pub observe: bool,
    /// Let pass what is malformed; where it is false, malformed bytes are refused.
    pub pass_unparsable: bool,
    pub(super) allow: Vec<Entry>,
    pub(super) deny: Vec<Entry>,
}

/// One line of `allow` or `deny`: absent keys match everything.
#[derive(Debug, Clone, Default)]
pub struct Entry {}

/// All rules of an inspector, found by their identifier.
#[derive(Debug, Clone)]
pub struct RuleSet {
    /// The inspector's budget for held bytes.
    pub memory_bytes: usize,
    rules: Vec<Rule>,
}

impl RuleSet {
    /// Read the one-line JSON of docs/formats/fields.md; unknown keys, protocols and versions are refused.
    pub fn parse(json: &str) -> Result<RuleSet, FieldConfigError> {
        config::parse(json)
    }

    pub(super) fn new(memory_bytes: usize, rules: Vec<Rule>) -> RuleSet {
        RuleSet { memory_bytes, rules }
    }

    /// The rule with this identifier, if there is one.
    pub fn rule(&self, id: u8) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.id == id)
    }

    /// Every rule, in the order of the configuration.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}
