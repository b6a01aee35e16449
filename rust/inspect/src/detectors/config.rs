//! Which detectors are on, and their thresholds.

use std::net::IpAddr;

use protocols::Settings;

use super::finding::Kind;

/// Lists in settings are read up to this length: networks of one device, servers of one link.
const MOST_LISTED: usize = 256;

/// Settings below `detectors.`.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    enabled: u64,
    pub scans: ScanConfig,
    pub spoofs: SpoofConfig,
    pub servers: ServerConfig,
    pub tunnels: TunnelConfig,
    pub beacons: BeaconConfig,
    pub logins: LoginConfig,
    pub control: ControlConfig,
    pub update_us: u64,
    pub home: Home,
    /// Sources that may do all this: the operator's own scanner or monitoring.
    pub ignored: Home,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ScanConfig {
    pub window_us: u64,
    pub ports: u32,
    pub udp_ports: u32,
    pub ack_ports: u32,
    pub tcp_hosts: u32,
    pub udp_hosts: u32,
    pub icmp_hosts: u32,
    pub arp_hosts: u32,
    pub slow_targets: u32,
    pub slow_window_us: u64,
    pub ack_high: u64,
    pub ack_low: u64,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct SpoofConfig {
    /// Addresses and the only hardware address that may have each.
    pub fixed: Vec<(u128, u64)>,
    pub gateways: Vec<u128>,
    /// Addresses that may move at any time: of a pair of servers, or behind a load balancer.
    pub virtual_addresses: Vec<u128>,
    pub grace_us: u64,
    pub alive_us: u64,
    pub gratuitous: u32,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ServerConfig {
    pub dhcp: Vec<u128>,
    pub routers: Vec<u128>,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TunnelConfig {
    pub window_us: u64,
    pub names: u32,
    pub length: u32,
    pub entropy: f32,
    pub answer_bytes: u64,
    pub ignore: Vec<String>,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct BeaconConfig {
    pub flows: u32,
    pub jitter_percent: u32,
    pub least_us: u64,
    pub is_home_included: bool,
    pub ignored_ports: Vec<u16>,
    pub ignored: Vec<u128>,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct LoginConfig {
    pub ports: Vec<u16>,
    pub web_ports: Vec<u16>,
    pub failures: u32,
    pub web_failures: u32,
    pub window_us: u64,
    pub most_bytes: u64,
    pub open: u32,
    pub hold_us: u64,
}

#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ControlConfig {
    pub learn_us: u64,
    pub writes: u32,
    pub factor: u32,
}

/// Where passwords are tried and connections are long otherwise: SSH, Telnet, SMB, RDP, VNC. Brokers, databases, mail and
/// cameras that upload by FTP have many short connections in good order: there, what the protocol says is counted, where
/// we can read it.
const LOGIN_PORTS: &str = "22,23,445,2222,3389,5900";
/// Measured: six passwords by libssh 3.8 KB, OpenSSH's client without any 5.8 KB, with a key and one short command 7.3 KB.
const MOST_TRY_BYTES: u64 = 6 << 10;
/// What polls by design: DNS, DHCP, NTP, name services, discovery.
const POLLED_PORTS: &str = "53,67,68,123,137,138,161,546,547,1900,3702,5353,5355";
/// Below these domains, long random names are how a service works: reputation lookups of antivirus programs.
const HASHED_NAMES: &str = "sophosxl.net,mcafee.com,trendmicro.com,e5.sk,surbl.org,spamhaus.org,sorbs.net";

impl Config {
    /// Read what is set; the rest has safe defaults.
    pub fn from_settings(settings: &Settings) -> Config {
        let mut enabled = 0;
        for kind in Kind::ALL {
            let is_on = settings.flag(&format!("detectors.{}.enabled", kind.info().name), true);
            enabled |= u64::from(is_on) << *kind as u32;
        }
        if !settings.flag("detectors.enabled", true) {
            enabled = 0;
        }
        let read = Read(settings);
        Config {
            enabled,
            scans: read.scans(),
            spoofs: read.spoofs(),
            servers: ServerConfig {
                dhcp: read.addresses("rogue.dhcp.servers"),
                routers: read.addresses("rogue.router.routers"),
            },
            tunnels: read.tunnels(),
            beacons: read.beacons(),
            logins: read.logins(),
            control: ControlConfig {
                learn_us: read.seconds("ics.learn-s", 3600),
                writes: read.count("ics.write-rate.writes", 100, 1, 1_000_000),
                factor: read.count("ics.write-rate.factor", 4, 1, 1000),
            },
            update_us: read.seconds("update-s", 5),
            home: Home::from_settings(settings),
            ignored: Home::from_list(settings.text("detectors.ignore").unwrap_or_default()),
        }
    }

    /// Whether a detector is on.
    #[inline]
    pub fn is_on(&self, kind: Kind) -> bool {
        self.enabled >> kind as u32 & 1 == 1
    }
}

struct Read<'a>(&'a Settings);

impl Read<'_> {
    fn count(&self, name: &str, default: u32, least: u32, most: u32) -> u32 {
        let value = self.0.number(&format!("detectors.{name}"), default.into());
        u32::try_from(value).unwrap_or(most).clamp(least, most)
    }

    /// Seconds, at most a year, in microseconds.
    fn seconds(&self, name: &str, default: u32) -> u64 {
        u64::from(self.count(name, default, 0, 31_536_000)) * 1_000_000
    }

    fn addresses(&self, name: &str) -> Vec<u128> {
        let text = self.0.text(&format!("detectors.{name}")).unwrap_or_default();
        list(text).iter().filter_map(|item| parse_address(item)).collect()
    }

    fn ports(&self, name: &str, default: &str) -> Vec<u16> {
        let text = self.0.text(&format!("detectors.{name}")).unwrap_or(default);
        list(text).iter().filter_map(|item| item.parse().ok()).collect()
    }

    fn scans(&self) -> ScanConfig {
        let most = super::probes::MOST as u32;
        let high = self.0.number("detectors.flood.ack.high-per-s", 1000).max(1);
        ScanConfig {
            window_us: self.seconds("scan.window-s", 10).max(1_000_000),
            ports: self.count("scan.connect.ports", 12, 3, most),
            udp_ports: self.count("scan.udp.ports", 12, 3, most),
            ack_ports: self.count("scan.ack.ports", 10, 3, most),
            tcp_hosts: self.count("sweep.tcp.hosts", 8, 3, most),
            udp_hosts: self.count("sweep.udp.hosts", 24, 3, most),
            icmp_hosts: self.count("sweep.icmp.hosts", 8, 3, most),
            arp_hosts: self.count("sweep.arp.hosts", 24, 3, most),
            slow_targets: self.count("scan.slow.targets", 100, 10, 500),
            slow_window_us: self.seconds("scan.slow.window-s", 6 * 3600).max(1_000_000),
            ack_high: high,
            ack_low: self.0.number("detectors.flood.ack.low-per-s", high / 4).clamp(1, high),
        }
    }

    fn spoofs(&self) -> SpoofConfig {
        let fixed = list(self.0.text("detectors.spoof.fixed").unwrap_or_default());
        let pair = |item: &String| {
            let (address, mac) = item.split_once('=')?;
            Some((parse_address(address)?, parse_mac(mac)?))
        };
        SpoofConfig {
            fixed: fixed.iter().filter_map(pair).collect(),
            gateways: self.addresses("spoof.gateways"),
            virtual_addresses: self.addresses("spoof.virtual"),
            grace_us: self.seconds("spoof.grace-s", 5),
            alive_us: self.seconds("spoof.alive-s", 30),
            gratuitous: self.count("spoof.arp-gratuitous.replies", 20, 3, 10_000),
        }
    }

    fn tunnels(&self) -> TunnelConfig {
        TunnelConfig {
            window_us: self.seconds("dns.tunnel.window-s", 60),
            names: self.count("dns.tunnel.names", 30, 4, 1000),
            length: self.count("dns.tunnel.length", 24, 8, 200),
            entropy: self.count("dns.tunnel.entropy-tenths", 30, 1, 80) as f32 / 10.0,
            answer_bytes: self.0.number("detectors.dns.tunnel.answer-bytes", 16 << 10),
            ignore: list(self.0.text("detectors.dns.tunnel.ignore").unwrap_or(HASHED_NAMES)),
        }
    }

    fn beacons(&self) -> BeaconConfig {
        BeaconConfig {
            flows: self.count("beacon.flows", 16, 6, 10_000),
            jitter_percent: self.count("beacon.jitter-percent", 10, 1, 50),
            least_us: self.seconds("beacon.least-s", 10),
            is_home_included: self.0.flag("detectors.beacon.home", false),
            ignored_ports: self.ports("beacon.ignore-ports", POLLED_PORTS),
            ignored: self.addresses("beacon.ignore"),
        }
    }

    fn logins(&self) -> LoginConfig {
        LoginConfig {
            ports: self.ports("login.brute-force.ports", LOGIN_PORTS),
            web_ports: self.ports("flood.slow-http.ports", "80,443,591,8000,8008,8080,8081,8443,8888"),
            failures: self.count("login.brute-force.failures", 10, 3, 10_000),
            web_failures: self.count("login.brute-force.web-failures", 20, 3, 10_000),
            window_us: self.seconds("login.brute-force.window-s", 60).max(1_000_000),
            most_bytes: self.0.number("detectors.login.brute-force.bytes", MOST_TRY_BYTES),
            open: self.count("flood.slow-http.connections", 40, 4, super::logins::MOST_OPEN as u32),
            hold_us: self.seconds("flood.slow-http.hold-s", 1),
        }
    }
}

fn list(text: &str) -> Vec<String> {
    let text = text.trim().trim_start_matches('[').trim_end_matches(']');
    let items = text.split(',').map(|item| item.trim().to_ascii_lowercase()).filter(|item| !item.is_empty());
    items.take(MOST_LISTED).collect()
}

/// Return an address as the decoders have it: IPv4 in its mapped form.
pub fn parse_address(text: &str) -> Option<u128> {
    Some(match text.trim().parse().ok()? {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    })
}

fn parse_mac(text: &str) -> Option<u64> {
    let mut parts = text.trim().split([':', '-']);
    let mut mac = 0;
    for _ in 0..6 {
        mac = mac << 8 | u64::from(u8::from_str_radix(parts.next()?, 16).ok()?);
    }
    parts.next().is_none().then_some(mac)
}

/// A set of networks, such as those that are ours.
#[derive(Clone, Debug, Default)]
pub struct Home {
    networks: Vec<(u128, u32, bool)>,
}

const PRIVATE: &str = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,127.0.0.0/8,fc00::/7,fe80::/10,::1/128";

impl Home {
    /// Read `vars.address-groups.HOME_NET`: networks, with `!` in front of what is not part of it. What is no list of
    /// networks (`any`, other variables) leaves the private networks.
    pub fn from_settings(settings: &Settings) -> Home {
        let text = settings.text("vars.address-groups.HOME_NET").unwrap_or(PRIVATE);
        let home = Home::from_list(text);
        if home.networks.is_empty() { Home::from_list(PRIVATE) } else { home }
    }

    /// Read a list of networks.
    pub fn from_list(text: &str) -> Home {
        Home { networks: list(text).iter().filter_map(|item| parse_network(item)).collect() }
    }

    /// Whether an address is ours.
    pub fn contains(&self, address: u128) -> bool {
        let is_in = |(network, bits, _): &&(u128, u32, bool)| (address ^ network).leading_zeros() >= *bits;
        // the narrowest network decides
        let narrowest = self.networks.iter().filter(is_in).max_by_key(|(_, bits, _)| *bits);
        narrowest.is_some_and(|(_, _, is_negated)| !is_negated)
    }
}

fn parse_network(item: &str) -> Option<(u128, u32, bool)> {
    let (is_negated, item) = item.strip_prefix('!').map_or((false, item), |rest| (true, rest));
    let (address, bits) = match item.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
        None => (item, None),
    };
    let number = parse_address(address)?;
    let offset = if address.contains(':') { 0 } else { 96 };
    let bits = bits.map_or(Some(128), |bits| bits.checked_add(offset)).filter(|bits| *bits <= 128)?;
    Some((number, bits, is_negated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_what_is_listed_without_what_is_excluded() {
        let mut settings = Settings::default();
        settings.set("vars.address-groups.HOME_NET", "[192.0.2.0/24, !192.0.2.7, 2001:db8::/32]");
        let home = Home::from_settings(&settings);
        let rows = [("192.0.2.1", true), ("192.0.2.7", false), ("2001:db8::5", true), ("198.51.100.1", false)];
        for (text, expected) in rows {
            assert_eq!(parse_address(text).map(|address| home.contains(address)), Some(expected), "{text}");
        }
        settings.set("vars.address-groups.HOME_NET", "any");
        assert!(Home::from_settings(&settings).contains(parse_address("10.1.2.3").unwrap_or(0)));
    }

    #[test]
    fn each_detector_can_be_switched_off_and_thresholds_stay_in_range() {
        let mut settings = Settings::default();
        settings.set("detectors.sweep.arp.enabled", "no");
        settings.set("detectors.scan.connect.ports", "5000");
        settings.set("detectors.spoof.fixed", "192.0.2.1=02:00:00:00:00:01, nonsense");
        let config = Config::from_settings(&settings);
        assert!(!config.is_on(Kind::ArpSweep) && config.is_on(Kind::ConnectScan));
        assert_eq!(config.scans.ports, 32);
        assert_eq!(config.spoofs.fixed, [(0xffff_c000_0201, 0x0200_0000_0001)]);
        settings.set("detectors.enabled", "no");
        assert!(Kind::ALL.iter().all(|kind| !Config::from_settings(&settings).is_on(*kind)));
    }
}
