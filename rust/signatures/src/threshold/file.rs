//! `threshold.config`: `suppress`, `threshold` or `event_filter`, `rate_filter`.

use crate::address::parse_addresses;
use crate::model::{Action, RejectTarget};
use crate::parse::rule_lines;
use crate::variables::Lookup;

use super::{Fields, RateFilter, Suppression, Threshold, Thresholds, Track};

/// Lines for all rules together.
const MOST_LINES: usize = 64 << 10;

impl Thresholds {
    /// Read the file. Returns, for each line that is not obeyed, its number and why.
    pub(crate) fn read(&mut self, text: &str, variables: &dyn Lookup) -> Vec<(u32, String)> {
        let mut broken = Vec::new();
        for (count, (line, text)) in rule_lines(text.as_bytes()).enumerate() {
            let result =
                if count < MOST_LINES { self.line(&text, variables) } else { Err("too many lines".to_owned()) };
            broken.extend(result.err().map(|error| (line, error)));
        }
        broken
    }

    fn line(&mut self, text: &str, variables: &dyn Lookup) -> Result<(), String> {
        let (command, rest) = text.trim().split_once(char::is_whitespace).ok_or("a command alone")?;
        let known: &[&str] = match command {
            "suppress" => &["gen_id", "sig_id", "track", "ip"],
            "threshold" | "event_filter" => &["gen_id", "sig_id", "type", "track", "count", "seconds", "multiplier"],
            "rate_filter" => &["gen_id", "sig_id", "track", "count", "seconds", "new_action", "timeout"],
            other => return Err(format!("{other} is no command")),
        };
        let fields = Fields::parse(rest, known)?;
        let id = |key| fields.required(key)?.parse::<u32>().map_err(|_| format!("{key} has to be a number"));
        let place = (id("gen_id")?, id("sig_id")?);
        if place.0 == 0 && place.1 != 0 {
            return Err("gen_id 0 is for sig_id 0".to_owned());
        }
        match command {
            "suppress" => {
                let suppression = suppression(&fields, variables)?;
                self.rules.entry(place).or_default().suppressions.push(suppression);
            }
            "rate_filter" => {
                let filter = rate_filter(&fields)?;
                self.rules.entry(place).or_default().rate_filters.push(filter);
            }
            _ => {
                let own = ["gen_id", "sig_id"];
                let rest: Vec<String> = fields
                    .0
                    .iter()
                    .filter(|(key, _)| !own.contains(key))
                    .map(|(key, value)| format!("{key} {value}"))
                    .collect();
                self.rules.entry(place).or_default().threshold = Some(Threshold::parse(&rest.join(","))?);
            }
        }
        Ok(())
    }
}

fn suppression(fields: &Fields<'_>, variables: &dyn Lookup) -> Result<Suppression, String> {
    let (source, destination) = match (fields.get("track"), fields.get("ip")) {
        (None, None) => return Ok(Suppression { source: true, destination: true, addresses: None }),
        (Some("by_src"), Some(_)) => (true, false),
        (Some("by_dst"), Some(_)) => (false, true),
        (Some("by_either"), Some(_)) => (true, true),
        _ => return Err("track (by_src, by_dst, by_either) and ip belong together".to_owned()),
    };
    let addresses = parse_addresses(fields.required("ip")?, variables)?;
    Ok(Suppression { source, destination, addresses: Some(addresses) })
}

fn rate_filter(fields: &Fields<'_>) -> Result<RateFilter, String> {
    let action = match fields.required("new_action")? {
        "alert" | "log" => Action::Alert,
        "drop" | "sdrop" => Action::Drop,
        "reject" => Action::Reject(RejectTarget::Source),
        "pass" => Action::Pass,
        other => return Err(format!("{other} is no action")),
    };
    Ok(RateFilter {
        track: Track::parse(fields.required("track")?)?,
        count: fields.number("count")?,
        seconds: fields.number("seconds")?,
        action,
        timeout_s: fields.number("timeout")?,
    })
}
