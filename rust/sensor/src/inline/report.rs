//! What was refused, as EVE JSON: `drop` where it was stopped, `alert` where it passed. docs/firewall-fields.md lists
//! the fields. Text that a sender chose (an MQTT topic) is shortened and escaped.

use std::collections::VecDeque;
use std::fmt::Write;

use super::packet::Ends;
use crate::community::{Tuple, community_id};
use crate::decode::protocol;
use crate::eve::Timestamp;
use crate::fields::{Protocol, Rule};

/// Enough to see what goes on; a flood of refusals must not become a flood of lines.
const LINES_PER_S: u32 = 50;
/// Lines that wait for a reader that is busy: twenty seconds at full rate.
const MAX_WAITING: usize = 1000;
/// A topic may have 64 KiB; an operator recognises it by its beginning.
const MAX_TEXT_CHARS: usize = 200;
/// First of ours for field rules; the detectors' own begin at 2,900,001.
const FIRST_SIGNATURE: u32 = 2_900_101;

/// Why something is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A message that the rule does not allow.
    Refused,
    /// Bytes that are no message of the protocol.
    Malformed,
    /// Bytes sent again that are not those that passed.
    Overlap,
    /// Urgent data: receivers differ about where it belongs.
    Urgent,
    /// A connection whose beginning was not seen.
    MidStream,
    /// The packet mark names another rule than at the beginning.
    RuleChanged,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Reason::Refused => "field.refused",
            Reason::Malformed => "field.malformed",
            Reason::Overlap => "stream.overlap",
            Reason::Urgent => "stream.urgent",
            Reason::MidStream => "stream.midstream",
            Reason::RuleChanged => "stream.rule-changed",
        }
    }

    fn signature(self) -> &'static str {
        match self {
            Reason::Refused => "TIDEGATE FIELD message not allowed by a field rule",
            Reason::Malformed => "TIDEGATE FIELD bytes that are no message of the protocol",
            Reason::Overlap => "TIDEGATE STREAM bytes sent again with another content",
            Reason::Urgent => "TIDEGATE STREAM urgent data in an inspected connection",
            Reason::MidStream => "TIDEGATE STREAM connection whose beginning was not inspected",
            Reason::RuleChanged => "TIDEGATE STREAM connection moved to another field rule",
        }
    }
}

/// One thing to report.
pub(crate) struct Report<'a> {
    pub time_us: u64,
    pub ends: &'a Ends,
    pub rule: &'a Rule,
    pub reason: Reason,
    pub what: &'a str,
    pub more: u32,
    pub is_stopped: bool,
}

/// Lines on their way out: bounded in number and in rate.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    waiting: VecDeque<String>,
    second: u64,
    written: u32,
    /// Reports that were not written.
    pub suppressed: u64,
}

impl Reports {
    pub fn add(&mut self, report: &Report<'_>) {
        let second = report.time_us / 1_000_000;
        if second != self.second {
            (self.second, self.written) = (second, 0);
        }
        if self.written >= LINES_PER_S || self.waiting.len() >= MAX_WAITING {
            self.suppressed += 1;
            return;
        }
        self.written += 1;
        let mut line = String::with_capacity(768);
        let _ = encode(report, &mut line); // writing to a String cannot fail
        self.waiting.push_back(line);
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn next(&mut self) -> Option<String> {
        self.waiting.pop_front()
    }
}

fn encode(report: &Report<'_>, line: &mut String) -> std::fmt::Result {
    let Report { time_us, ends, rule, reason, .. } = report;
    let (kind, action) = if report.is_stopped { ("drop", "blocked") } else { ("alert", "allowed") };
    let tuple = Tuple {
        source: ends.source,
        destination: ends.destination,
        source_port: ends.source_port,
        destination_port: ends.destination_port,
        protocol: ends.protocol,
        icmp: [0, 0],
    };
    write!(
        line,
        "{{\"timestamp\":\"{}\",\"event_type\":\"{kind}\",\"src_ip\":\"{}\",\"src_port\":{},\"dest_ip\":\"{}\",\
         \"dest_port\":{},\"proto\":\"{}\",\"community_id\":\"{}\",",
        Timestamp(*time_us),
        ends.source,
        ends.source_port,
        ends.destination,
        ends.destination_port,
        if ends.protocol == protocol::TCP { "TCP" } else { "UDP" },
        community_id(&tuple),
    )?;
    write!(
        line,
        "\"alert\":{{\"action\":\"{action}\",\"gid\":1,\"signature_id\":{},\"rev\":1,\"signature\":\"{}\",\
         \"category\":\"Detection of a Field Rule Violation\",\"severity\":2}},",
        FIRST_SIGNATURE + *reason as u32,
        reason.signature(),
    )?;
    if report.is_stopped {
        write!(line, "\"drop\":{{\"reason\":\"{}\"}},", reason.name())?;
    }
    write!(line, "\"metadata\":{{\"detector\":\"{}\",\"rule\":\"", reason.name())?;
    escape(&rule.name, line)?;
    write!(line, "\",\"rule_id\":{},\"protocol\":\"{}\",\"what\":\"", rule.id, protocol_name(rule.protocol))?;
    escape(report.what, line)?;
    write!(line, "\",\"more\":{}}}}}", report.more)
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Modbus => "modbus",
        Protocol::Dnp3 => "dnp3",
        Protocol::Bacnet => "bacnet",
        Protocol::Mqtt => "mqtt",
        Protocol::Coap => "coap",
        Protocol::Dns => "dns",
    }
}

/// Append the beginning of `text` as the inside of a JSON string, ASCII only.
fn escape(text: &str, line: &mut String) -> std::fmt::Result {
    for character in text.chars().take(MAX_TEXT_CHARS) {
        match character {
            '"' | '\\' => write!(line, "\\{character}")?,
            ' '..='~' => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(line, "\\u{unit:04x}")?;
                }
            }
        }
    }
    Ok(())
}
