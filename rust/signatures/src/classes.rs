//! Class types of rules and systems of references: the public defaults, and files that replace them.

use std::collections::HashMap;

/// Lines of one file; the public ones have fewer than a hundred.
const MOST_LINES: usize = 4096;

/// Short name, description, priority: the public list, in its order.
const DEFAULT: &[(&str, &str, u8)] = &[
    ("not-suspicious", "Not Suspicious Traffic", 3),
    ("unknown", "Unknown Traffic", 3),
    ("bad-unknown", "Potentially Bad Traffic", 2),
    ("attempted-recon", "Attempted Information Leak", 2),
    ("successful-recon-limited", "Information Leak", 2),
    ("successful-recon-largescale", "Large Scale Information Leak", 2),
    ("attempted-dos", "Attempted Denial of Service", 2),
    ("successful-dos", "Denial of Service", 2),
    ("attempted-user", "Attempted User Privilege Gain", 1),
    ("unsuccessful-user", "Unsuccessful User Privilege Gain", 1),
    ("successful-user", "Successful User Privilege Gain", 1),
    ("attempted-admin", "Attempted Administrator Privilege Gain", 1),
    ("successful-admin", "Successful Administrator Privilege Gain", 1),
    ("rpc-portmap-decode", "Decode of an RPC Query", 2),
    ("shellcode-detect", "Executable code was detected", 1),
    ("string-detect", "A suspicious string was detected", 3),
    ("suspicious-filename-detect", "A suspicious filename was detected", 2),
    ("suspicious-login", "An attempted login using a suspicious username was detected", 2),
    ("system-call-detect", "A system call was detected", 2),
    ("tcp-connection", "A TCP connection was detected", 4),
    ("trojan-activity", "A Network Trojan was detected", 1),
    ("unusual-client-port-connection", "A client was using an unusual port", 2),
    ("network-scan", "Detection of a Network Scan", 3),
    ("denial-of-service", "Detection of a Denial of Service Attack", 2),
    ("non-standard-protocol", "Detection of a non-standard protocol or event", 2),
    ("protocol-command-decode", "Generic Protocol Command Decode", 3),
    ("web-application-activity", "access to a potentially vulnerable web application", 2),
    ("web-application-attack", "Web Application Attack", 1),
    ("misc-activity", "Misc activity", 3),
    ("misc-attack", "Misc Attack", 2),
    ("icmp-event", "Generic ICMP event", 3),
    ("inappropriate-content", "Inappropriate Content was Detected", 1),
    ("policy-violation", "Potential Corporate Privacy Violation", 1),
    ("default-login-attempt", "Attempt to login by a default username and password", 2),
    ("targeted-activity", "Targeted Malicious Activity was Detected", 1),
    ("exploit-kit", "Exploit Kit Activity Detected", 1),
    ("external-ip-check", "Device Retrieving External IP Address Detected", 2),
    ("domain-c2", "Domain Observed Used for C2 Detected", 1),
    ("pup-activity", "Possibly Unwanted Program Detected", 2),
    ("credential-theft", "Successful Credential Theft Detected", 1),
    ("social-engineering", "Possible Social Engineering Attempted", 2),
    ("coin-mining", "Crypto Currency Mining Activity Detected", 2),
    ("command-and-control", "Malware Command and Control Activity Detected", 1),
];

/// The class types of a rule set.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    by_name: HashMap<String, (u16, u8)>,
    pub list: Vec<(String, String)>,
}

impl Classes {
    /// The text of a `classification.config`; empty: the public list. Also returns the lines that make no sense.
    pub fn read(text: &str) -> (Classes, Vec<u32>) {
        let mut classes = Classes::default();
        let mut broken = Vec::new();
        if text.trim().is_empty() {
            DEFAULT.iter().for_each(|(name, description, priority)| classes.add(name, description, *priority));
        }
        for (line, number) in config_lines(text) {
            let parsed = line.strip_prefix("config").and_then(|rest| rest.trim_start().strip_prefix("classification:"));
            let mut fields = parsed.unwrap_or_default().splitn(2, ',').map(str::trim);
            let (name, rest) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            match rest.rsplit_once(',').map(|(text, priority)| (text.trim(), priority.trim().parse())) {
                Some((description, Ok(priority @ 1..))) if is_class_name(name) => {
                    classes.add(name, description, priority)
                }
                _ => broken.push(number),
            }
        }
        (classes, broken)
    }

    fn add(&mut self, name: &str, description: &str, priority: u8) {
        let place = self.list.len().saturating_add(1);
        if let Ok(place) = u16::try_from(place)
            && !self.by_name.contains_key(name)
        {
            self.by_name.insert(name.to_owned(), (place, priority));
            self.list.push((name.to_owned(), description.to_owned()));
        }
    }

    /// Return the class's place plus one, and its priority.
    pub fn find(&self, name: &str) -> Option<(u16, u8)> {
        self.by_name.get(name).copied()
    }
}

fn is_class_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

fn config_lines(text: &str) -> impl Iterator<Item = (&str, u32)> {
    let lines = text.lines().map(str::trim).zip(1u32..);
    lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#')).take(MOST_LINES)
}

/// The text of a `reference.config`: system and what stands before the id in its URL.
pub(crate) fn read_references(text: &str) -> Vec<(String, String)> {
    let fields = config_lines(text).filter_map(|(line, _)| {
        let rest = line.strip_prefix("config")?.trim_start().strip_prefix("reference:")?.trim();
        rest.split_once(char::is_whitespace)
    });
    fields.map(|(system, url)| (system.to_ascii_lowercase(), url.trim().to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_replace_the_public_list() {
        let (classes, broken) = Classes::read("");
        assert_eq!(classes.find("web-application-attack").map(|(_, priority)| priority), Some(1));
        assert!(broken.is_empty() && classes.list.len() == 43);
        let text =
            "# c\nconfig classification: mine,Mine, and more,7\nthis is not correct\nconfig classification: x,,0";
        let (classes, broken) = Classes::read(text);
        assert_eq!(classes.find("mine"), Some((1, 7)));
        assert_eq!(classes.list, [("mine".to_owned(), "Mine, and more".to_owned())]);
        assert_eq!(broken, [3, 4]);
        assert_eq!(read_references("config reference: CVE  http://x/"), [("cve".to_owned(), "http://x/".to_owned())]);
    }
}
