//! The budget's question and answer as JSON, for the command line.

use std::net::IpAddr;

use protocols::{PROTOCOLS, Settings, Transport};
use serde_json::{Value, json};

use crate::address::{parse_addresses, unmapped};
use crate::ruleset::RuleSet;
use crate::variables::Variables;

use super::{Budget, Device, Reason, Service, choose};

/// A device offers a handful.
const MOST_SERVICES: usize = 256;
/// Where no year is given, rules do not lose weight with age.
const NO_YEAR: u32 = 0;

/// Answer `{"services": [{"protocol": "tcp", "port": 502}, {"application": "modbus"}], "networks": ["10.0.0.5/32"],
/// "limit": 500, "year": 2026}` with `{"kept": [...], "left_out": [...]}`, each entry with `source`, `line`, `sid` and
/// `reason`; `kept` in order of worth. `limit_bytes` may stand for `limit`; without networks, the rules' own `HOME_NET`
/// counts.
pub fn budget_json(rules: &RuleSet, question: &str) -> Result<String, String> {
    let question: Value = serde_json::from_str(question).map_err(|error| error.to_string())?;
    let number = |key: &str| question.get(key).and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok());
    let budget = match (number("limit"), number("limit_bytes")) {
        (_, Some(bytes)) => Budget::Bytes(bytes),
        (Some(count), None) => Budget::Rules(count),
        (None, None) => return Err("limit is missing".to_owned()),
    };
    let year = number("year").and_then(|year| u32::try_from(year).ok()).unwrap_or(NO_YEAR);
    let mut networks = networks(&question)?;
    if networks.is_empty() {
        networks.extend(pairs(&rules.home));
    }
    let device = Device { services: services(&question)?, networks, year };
    let selection = choose(&rules.signatures, &device, budget);
    let entry = |place: usize, reason: String| {
        let rule = rules.signatures.get(place);
        let (source, line) = rule.map(|rule| rule.origin).unwrap_or_default();
        let source = rules.sources.get(usize::from(source)).map_or("", String::as_str);
        json!({"source": source, "line": line, "sid": rule.map(|rule| rule.sid), "reason": reason})
    };
    let kept: Vec<Value> =
        selection.kept.iter().map(|(place, score)| entry(*place, format!("worth {score}"))).collect();
    let left: Vec<Value> = selection.rejected.iter().map(|(place, reason)| entry(*place, reason.text())).collect();
    Ok(json!({"kept": kept, "left_out": left}).to_string())
}

impl Reason {
    /// Say it in a sentence.
    pub fn text(&self) -> String {
        match self {
            Reason::OtherNetwork => "it is between other addresses than the device's".to_owned(),
            Reason::NoSuchService => "the device offers no such service".to_owned(),
            Reason::OtherSystem(system) => format!("it is about {system}"),
            Reason::NeedsDecryption => "it needs decrypted traffic".to_owned(),
            Reason::BeyondLimit(rank) => format!("beyond the limit: rank {rank}"),
        }
    }
}

fn services(question: &Value) -> Result<Vec<Service>, String> {
    let list = question.get("services").and_then(Value::as_array).ok_or("services are missing")?;
    if list.len() > MOST_SERVICES {
        return Err(format!("more than {MOST_SERVICES} services"));
    }
    list.iter().map(service).collect::<Result<Vec<_>, _>>().map(|lists| lists.into_iter().flatten().collect())
}

/// A port; or an application, on all its usual ports.
fn service(item: &Value) -> Result<Vec<Service>, String> {
    let app = item.get("application").and_then(Value::as_str);
    let port = item.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let transport = match item.get("protocol").and_then(Value::as_str) {
        Some("tcp") => Some(Transport::Tcp),
        Some("udp") => Some(Transport::Udp),
        None => None,
        Some(other) => return Err(format!("{other} is no transport")),
    };
    if let (Some(transport), Some(port)) = (transport, port) {
        return Ok(vec![Service { transport, port, app: app.map(str::to_owned) }]);
    }
    let app = app.ok_or("a service needs protocol and port, or an application")?;
    let is_called = |name: &str| name == app;
    let known = PROTOCOLS.iter().find(|it| is_called(it.name) || it.aliases.iter().any(|name| is_called(name)));
    let known = known.ok_or_else(|| format!("unknown application {app}"))?;
    let ports = known.transports.iter().flat_map(|transport| known.ports.iter().map(move |port| (*transport, *port)));
    Ok(ports.map(|(transport, port)| Service { transport, port, app: Some(app.to_owned()) }).collect())
}

fn networks(question: &Value) -> Result<Vec<(IpAddr, IpAddr)>, String> {
    let Some(list) = question.get("networks").and_then(Value::as_array) else { return Ok(Vec::new()) };
    let mut networks = Vec::new();
    for item in list.iter().take(MOST_SERVICES) {
        let set = item.as_str().and_then(|text| parse_addresses(text, &Variables::new(&Settings::default())).ok());
        networks.extend(pairs(set.ok_or_else(|| format!("{item} is no network"))?.as_slice()));
    }
    Ok(networks)
}

fn pairs(ranges: &[(u128, u128)]) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    ranges.iter().map(|(first, last)| (unmapped(*first), unmapped(*last)))
}
