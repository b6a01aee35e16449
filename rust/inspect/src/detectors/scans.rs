//! Who asks for what does not answer: ports of one host, one port of many hosts, both over hours.
//!
//! Counted are targets that refuse, ignore, or accept and then get not a byte. So a client of services that exist is
//! never near a threshold, however many connections it opens. Documented blind spots: a traceroute's UDP ports are not
//! counted, nor what goes to groups.

use sensor::SipKey;

use super::Context;
use super::finding::{Evidence, Kind, Subject, Value};
use super::probes::Probes;
use super::reporter::Count;
use super::seen::FlowSeen;
use super::slow::Slow;
use super::table::{Table, words};
use crate::layers::{Layers, ip};
use crate::tcp::flag;

/// Entries that time alone may change and that are looked at in each tick.
const MOST_PENDING: usize = 4096;
/// Of a port, fewer hosts than this are no reason to look at an entry again. Each port of a host is: a slow scan has one.
const LEAST_QUEUED: u32 = 3;
/// Targets that are told as evidence.
const MOST_SAMPLED: usize = 8;
/// Where traceroute sends its datagrams: from 33434, three for each of thirty hops, as IANA has it.
const TRACEROUTE: std::ops::RangeInclusive<u16> = 33434..=33534;

/// Ports of the web.
const WEB: [u16; 4] = [80, 443, 8080, 8443];
/// Out there, hosts die and peers of networks without a centre are looked for by the dozen: more must fail.
const OUTWARD_FACTOR: u32 = 3;

/// What an entry is about.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum What {
    Tcp = 0,
    Udp = 1,
    Ack = 2,
    Icmp = 3,
    Arp = 4,
}

impl What {
    fn from_number(number: u64) -> What {
        [What::Tcp, What::Udp, What::Ack, What::Icmp, What::Arp].get(number as usize).copied().unwrap_or(What::Tcp)
    }

    fn protocol(self, address: u128) -> u8 {
        match self {
            What::Tcp | What::Ack => ip::TCP,
            What::Udp => ip::UDP,
            What::Icmp if address >> 32 == 0xffff => ip::ICMP,
            What::Icmp => ip::ICMPV6,
            What::Arp => 0,
        }
    }
}

/// Scans and sweeps.
pub struct Scans {
    /// By source, destination, kind.
    hosts: Table<5, Probes>,
    /// By source, kind and port.
    ports: Table<3, Probes>,
    slow: Slow,
    pending: Vec<(bool, u32)>,
    key: SipKey,
}

impl Scans {
    /// Return empty tables within `bytes`.
    pub fn new(bytes: usize, key: SipKey, context: &super::Config) -> Scans {
        let idle_us = context.scans.window_us.saturating_mul(2);
        Scans {
            hosts: Table::new(bytes / 100 * 45, idle_us, key),
            ports: Table::new(bytes / 100 * 35, idle_us, key),
            slow: Slow::new(bytes / 100 * 15, key, context.scans.slow_window_us),
            pending: Vec::with_capacity(MOST_PENDING),
            key,
        }
    }

    /// Bytes of the tables.
    pub fn bytes(&self) -> usize {
        self.hosts.bytes() + self.ports.bytes() + self.slow.bytes()
    }

    /// Entries that were created and that made room.
    pub fn counters(&self) -> [super::table::TableCounters; 3] {
        [self.hosts.counters, self.ports.counters, self.slow.counters()]
    }

    /// Look at a packet.
    pub fn packet(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        match layers.protocol {
            _ if layers.is_arp => self.arp(layers, context),
            _ if layers.version == 0 || layers.fragment.is_some() => {}
            ip::TCP => self.tcp(layers, flow, context),
            ip::UDP => self.udp(layers, flow, context),
            ip::ICMP | ip::ICMPV6 => self.icmp(layers, flow, context),
            _ => {}
        }
    }

    fn tcp(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        let end = Ends::of(layers, flow);
        match layers.tcp.flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) {
            flag::SYN => self.ask(What::Tcp, &end, true, context),
            bits if bits & (flag::SYN | flag::RST) == flag::SYN => {
                self.settle(What::Tcp, &end.reverse(), context, |probes, target| {
                    probes.answered(target);
                    false
                });
            }
            bits if bits & (flag::RST | flag::FIN) != 0 && layers.payload.is_empty() => {
                self.leave(&end, context);
                if bits & flag::RST != 0 {
                    self.settle(What::Tcp, &end.reverse(), context, Probes::refused);
                    self.settle(What::Ack, &end.reverse(), context, Probes::refused);
                }
            }
            flag::ACK if layers.payload.is_empty() => self.bare_ack(&end, flow, context),
            _ if !layers.payload.is_empty() => {
                for end in [end, end.reverse()] {
                    self.settle(What::Tcp, &end, context, |probes, target| {
                        probes.served(target);
                        false
                    });
                }
            }
            _ => {}
        }
    }

    /// An acknowledgement of nothing: only a reset makes it a probe, since captures begin in the middle of connections.
    fn bare_ack(&mut self, end: &Ends, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        if flow.is_some_and(|flow| flow.is_unsolicited && !flow.is_to_client) && context.config.is_on(Kind::AckScan) {
            self.ask(What::Ack, end, false, context);
        }
    }

    fn udp(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        let end = Ends::of(layers, flow);
        if is_group(layers.destination) || layers.source & 0xffff_ffff == 0 || is_group(layers.source) {
            return;
        }
        let answers = end.reverse();
        let is_answer = flow.is_some_and(|flow| flow.is_to_client || flow.packets[1] > 0);
        let was_asked = self.hosts.get_mut(&host_key(What::Udp, &answers));
        if was_asked.is_some_and(|probes| probes.has_asked(answers.port.into())) || is_answer {
            self.settle(What::Udp, &answers, context, |probes, target| {
                probes.served(target);
                false
            });
        } else if !TRACEROUTE.contains(&end.port) {
            self.ask(What::Udp, &end, true, context);
        }
    }

    fn icmp(&mut self, layers: &Layers<'_>, flow: Option<&FlowSeen>, context: &mut Context<'_>) {
        let end = Ends::of(layers, flow);
        match (layers.protocol, layers.icmp[0]) {
            (ip::ICMP, 8 | 13 | 17) | (ip::ICMPV6, 128) if !is_group(layers.destination) => {
                self.ask(What::Icmp, &end, true, context);
            }
            (ip::ICMP, 0 | 14 | 18) | (ip::ICMPV6, 129) => {
                self.settle(What::Icmp, &end.reverse(), context, |probes, target| {
                    probes.served(target);
                    false
                });
            }
            (ip::ICMP, 3) | (ip::ICMPV6, 1) => self.unreachable(layers, context),
            _ => {}
        }
    }

    fn unreachable(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let Some((source, destination, protocol)) = crate::icmp::quoted(layers) else { return };
        let what = match protocol {
            ip::TCP => What::Tcp,
            ip::UDP => What::Udp,
            _ => return,
        };
        let end = Ends { from: source.0, to: destination.0, from_port: source.1, port: destination.1, flow_id: 0 };
        self.settle(what, &end, context, Probes::refused);
    }

    fn arp(&mut self, layers: &Layers<'_>, context: &mut Context<'_>) {
        let Some(arp) = super::neighbours::Arp::read(layers) else { return };
        let ends = |mac: u64, address: u128| Ends { from: u128::from(mac), to: address, ..Ends::default() };
        if arp.is_request && arp.sender != arp.target && arp.sender & 0xffff_ffff != 0 {
            self.ask(What::Arp, &ends(arp.sender_mac, arp.target), true, context);
        } else if !arp.is_request {
            self.settle(What::Arp, &ends(arp.target_mac, arp.sender), context, |probes, target| {
                probes.served(target);
                false
            });
        }
    }

    /// A target is asked for: of the host, and of the port among hosts.
    fn ask(&mut self, what: What, end: &Ends, is_sweep: bool, context: &mut Context<'_>) {
        let window_us = context.config.scans.window_us;
        if !matches!(what, What::Icmp | What::Arp)
            && let Some((index, probes)) = self.hosts.enter(&host_key(what, end), context.now_us)
        {
            probes.counts_refusals_only = what == What::Ack;
            note(probes, end);
            probes.open_window(context.now_us, window_us);
            probes.ask(end.port.into());
            self.after(true, index, context, true);
        }
        let target = self.host_target(end.to);
        if is_sweep && let Some((index, probes)) = self.ports.enter(&port_key(what, end), context.now_us) {
            note(probes, end);
            probes.is_outward = what != What::Arp && !context.config.home.contains(end.to);
            // a page asks for dozens of hosts, and none answers where the uplink is down
            probes.counts_refusals_only = what == What::Tcp && probes.is_outward && WEB.contains(&end.port);
            probes.open_window(context.now_us, window_us);
            probes.ask(target);
            self.after(false, index, context, true);
        }
    }

    /// Something became of a target; `change` returns whether it makes the source more suspicious.
    fn settle(&mut self, what: What, end: &Ends, context: &mut Context<'_>, change: fn(&mut Probes, u32) -> bool) {
        let hosts = self.hosts.find(&host_key(what, end));
        if let Some(index) = hosts
            && let Some((_, probes)) = self.hosts.at_mut(index)
            && change(probes, end.port.into())
        {
            self.after(true, index, context, false);
        }
        let target = self.host_target(end.to);
        let ports = self.ports.find(&port_key(what, end));
        if let Some(index) = ports
            && let Some((_, probes)) = self.ports.at_mut(index)
            && change(probes, target)
        {
            self.after(false, index, context, false);
        }
    }

    /// A connection ends without a byte. Among hosts that says nothing: whoever balances load asks all of his servers so.
    fn leave(&mut self, end: &Ends, context: &mut Context<'_>) {
        if let Some(index) = self.hosts.find(&host_key(What::Tcp, end))
            && let Some((_, probes)) = self.hosts.at_mut(index)
            && probes.left(end.port.into())
        {
            self.after(true, index, context, false);
        }
    }

    fn host_target(&self, address: u128) -> u32 {
        match address >> 32 {
            0xffff => address as u32, // so that evidence can name it
            _ => self.key.hash(&words(address)) as u32,
        }
    }

    /// Judge an entry, and see that it is judged again when time has passed.
    fn after(&mut self, is_host: bool, index: usize, context: &mut Context<'_>, is_new: bool) {
        self.judge(is_host, index, context, is_new);
        let has_room = self.pending.len() < MOST_PENDING;
        let Some(probes) = self.probes(is_host, index) else { return };
        let is_due = probes.is_pending() && !probes.is_queued && (is_host || probes.length() >= LEAST_QUEUED);
        if is_due && has_room {
            probes.is_queued = true;
            self.pending.push((is_host, index as u32));
        }
    }

    fn probes(&mut self, is_host: bool, index: usize) -> Option<&mut Probes> {
        if is_host {
            return self.hosts.at_mut(index).map(|(_, probes)| probes);
        }
        self.ports.at_mut(index).map(|(_, probes)| probes)
    }

    fn judge(&mut self, is_host: bool, index: usize, context: &mut Context<'_>, is_new: bool) {
        if !is_host {
            if let Some((key, probes)) = self.ports.at_mut(index) {
                judge_ports(key, probes, context, is_new);
            }
            return;
        }
        let Some((key, probes)) = self.hosts.at_mut(index) else { return };
        let (what, source, destination) = (What::from_number(key[4]), join(key[0], key[1]), join(key[2], key[3]));
        judge_hosts(what, source, destination, probes, context, is_new);
        if what != What::Ack {
            for port in probes.newly_failed() {
                self.slow.failed(source, destination, port, what.protocol(source), context);
            }
        }
    }

    /// Judge what time alone changes.
    pub fn tick(&mut self, context: &mut Context<'_>) {
        let mut kept = 0;
        for at in 0..self.pending.len() {
            let Some((is_host, index)) = self.pending.get(at).copied() else { break };
            let now_us = context.now_us;
            let Some(probes) = self.probes(is_host, index as usize) else { continue };
            let before = probes.failures();
            probes.rotate(now_us);
            let (is_news, is_pending) = (probes.failures() > before, probes.is_pending());
            probes.is_queued = is_pending;
            if is_news {
                self.judge(is_host, index as usize, context, false);
            }
            if let (true, Some(place)) = (is_pending, self.pending.get_mut(kept)) {
                *place = (is_host, index);
                kept += 1;
            }
        }
        self.pending.truncate(kept);
    }
}

/// Who asks, and whom.
#[derive(Clone, Copy, Default)]
struct Ends {
    from: u128,
    to: u128,
    from_port: u16,
    port: u16,
    flow_id: u64,
}

impl Ends {
    fn of(layers: &Layers<'_>, flow: Option<&FlowSeen>) -> Ends {
        Ends {
            from: layers.source,
            to: layers.destination,
            from_port: layers.source_port,
            port: layers.destination_port,
            flow_id: flow.map_or(0, |flow| flow.id),
        }
    }

    fn reverse(&self) -> Ends {
        Ends { from: self.to, to: self.from, from_port: self.port, port: self.from_port, flow_id: self.flow_id }
    }
}

fn note(probes: &mut Probes, end: &Ends) {
    probes.ports = [end.from_port, end.port];
    probes.flow_id = end.flow_id;
}

fn host_key(what: What, end: &Ends) -> [u64; 5] {
    let ([a, b], [c, d]) = (words(end.from), words(end.to));
    [a, b, c, d, what as u64]
}

fn port_key(what: What, end: &Ends) -> [u64; 3] {
    let [a, b] = words(end.from);
    [a, b, (what as u64) << 16 | u64::from(end.port)]
}

fn join(high: u64, low: u64) -> u128 {
    u128::from(high) << 64 | u128::from(low)
}

/// Multicast and broadcast: one packet for many, no probe of one.
fn is_group(address: u128) -> bool {
    match address >> 32 {
        0xffff => (address as u32) >= 0xe000_0000 || address & 0xff == 0xff,
        _ => address >> 120 == 0xff,
    }
}

fn judge_hosts(what: What, source: u128, destination: u128, probes: &Probes, context: &mut Context<'_>, is_new: bool) {
    let scans = &context.config.scans;
    let (kind, threshold) = match what {
        What::Tcp => (Kind::ConnectScan, scans.ports),
        What::Udp => (Kind::UdpScan, scans.udp_ports),
        _ => (Kind::AckScan, scans.ack_ports),
    };
    if probes.failures() < threshold {
        return;
    }
    let subject = Subject {
        source,
        destination,
        source_port: probes.ports[0],
        destination_port: probes.ports[1],
        protocol: what.protocol(source),
        flow_id: probes.flow_id,
    };
    report(kind, subject, probes, context, is_new, || {
        let ports: Vec<_> = probes.sample(MOST_SAMPLED).iter().map(u32::to_string).collect();
        vec![
            ("distinct_ports", Value::Number(probes.failures().into())),
            ("ports", Value::Text(ports.join(",").into())),
        ]
    });
}

fn judge_ports(key: &[u64; 3], probes: &Probes, context: &mut Context<'_>, is_new: bool) {
    let (what, source, scans) = (What::from_number(key[2] >> 16), join(key[0], key[1]), &context.config.scans);
    let (kind, threshold) = match what {
        What::Tcp => (Kind::TcpSweep, scans.tcp_hosts),
        What::Udp => (Kind::UdpSweep, scans.udp_hosts),
        What::Icmp => (Kind::IcmpSweep, scans.icmp_hosts),
        What::Arp => (Kind::ArpSweep, scans.arp_hosts),
        What::Ack => return,
    };
    let factor = if probes.is_outward { OUTWARD_FACTOR } else { 1 };
    if probes.failures() < threshold.saturating_mul(factor).min(super::probes::MOST as u32) {
        return;
    }
    let is_v4 = source >> 32 == 0xffff || what == What::Arp;
    let sample: Vec<_> = probes.sample(MOST_SAMPLED).into_iter().filter(|_| is_v4).collect();
    let subject = Subject {
        source: if what == What::Arp { 0 } else { source },
        destination: 0,
        source_port: 0,
        destination_port: (key[2] & 0xffff) as u16,
        protocol: what.protocol(source),
        flow_id: probes.flow_id,
    };
    report(kind, subject, probes, context, is_new, || {
        let hosts: Vec<_> = sample.iter().map(|host| std::net::Ipv4Addr::from_bits(*host).to_string()).collect();
        let mut evidence = vec![("distinct_hosts", Value::Number(probes.failures().into()))];
        if !hosts.is_empty() {
            evidence.push(("hosts", Value::Text(hosts.join(",").into())));
        }
        if what == What::Arp {
            evidence.push(("mac", Value::Mac(source as u64)));
        }
        evidence
    });
}

fn report(
    kind: Kind,
    subject: Subject,
    probes: &Probes,
    context: &mut Context<'_>,
    is_new: bool,
    evidence: impl FnOnce() -> Evidence,
) {
    if context.config.is_on(kind) {
        let count = Count { first: probes.asked.into(), more: is_new.into() };
        context.reporter.report(kind, subject, count, context.now_us, evidence);
    }
}
