//! What the inspector is set to, from Suricata-style settings.

use protocols::Settings;

use crate::defrag::Overlap;

/// What happens to a flow or packet when something goes wrong (`exception-policy`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub enum ExceptionPolicy {
    #[default]
    Ignore,
    DropFlow,
    DropPacket,
    PassFlow,
    PassPacket,
    Bypass,
    Reject,
}

impl ExceptionPolicy {
    /// Return the name in EVE.
    pub fn name(self) -> &'static str {
        match self {
            ExceptionPolicy::Ignore => "ignore",
            ExceptionPolicy::DropFlow => "drop_flow",
            ExceptionPolicy::DropPacket => "drop_packet",
            ExceptionPolicy::PassFlow => "pass_flow",
            ExceptionPolicy::PassPacket => "pass_packet",
            ExceptionPolicy::Bypass => "bypass",
            ExceptionPolicy::Reject => "reject",
        }
    }

    fn parse(text: &str, is_inline: bool) -> ExceptionPolicy {
        match text {
            "drop-flow" if is_inline => ExceptionPolicy::DropFlow,
            "drop-packet" if is_inline => ExceptionPolicy::DropPacket,
            "auto" if is_inline => ExceptionPolicy::DropFlow,
            "pass-flow" => ExceptionPolicy::PassFlow,
            "pass-packet" => ExceptionPolicy::PassPacket,
            "bypass" => ExceptionPolicy::Bypass,
            "reject" => ExceptionPolicy::Reject,
            _ => ExceptionPolicy::Ignore,
        }
    }
}

/// How TCP is followed.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct StreamConfig {
    pub is_midstream: bool,
    pub is_async_allowed: bool,
    /// Bytes are looked at as they come, not as they are confirmed; the first of overlapping bytes win.
    pub is_inline: bool,
    /// Bytes of each way that are looked at; 0: all.
    pub depth: u64,
    /// Rules about raw streams look at this many bytes at a time.
    pub chunk: [u64; 2],
    pub overlap: Overlap,
    pub checks_checksums: bool,
    /// Where many packets at the beginning have wrong checksums, the capturing host left them to its network card.
    pub believes_captures: bool,
    pub midstream_policy: ExceptionPolicy,
    pub memcap_policy: ExceptionPolicy,
    /// Test aid: the packet of that number finds no memory for its bytes.
    pub failing_packet: u64,
}

/// Everything that can be set.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct InspectConfig {
    pub stream: StreamConfig,
    pub is_ips: bool,
    pub app_error_policy: ExceptionPolicy,
    pub flow_memcap_policy: ExceptionPolicy,
    pub defrag_memcap_policy: ExceptionPolicy,
    pub failing_flow_packet: u64,
    pub failing_defrag_packet: u64,
    /// `(way, offset)`: the parser fails there.
    pub failing_app_offset: [Option<u64>; 2],
    pub alerts_per_packet: usize,
    pub counts_errors_by_app: bool,
    pub uses_vlan: bool,
    pub guesses_transactions: bool,
    pub output: OutputConfig,
}

/// What is written, and with what in it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct OutputConfig {
    /// Empty: every type.
    pub types: Vec<String>,
    pub payload: bool,
    pub payload_printable: bool,
    pub payload_buffer: usize,
    pub packet: bool,
    pub metadata: bool,
    pub references: bool,
    pub verdict: bool,
    pub drop_verdict: bool,
    pub drop_alerts: bool,
    pub drop_all_flows: bool,
    pub ethernet: bool,
    pub community_id: bool,
    pub flows: sensor::FlowEvents,
    pub flow_exception_policy: bool,
    pub force_md5: bool,
    pub ipv6_compress: bool,
    pub xff: Xff,
    pub anomaly: [bool; 3],
    pub logs_decoder_events_in_stats: bool,
}

/// Where the client's own address stands when it comes through a proxy.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Xff {
    pub is_enabled: bool,
    pub overwrites: bool,
    pub is_forward: bool,
    pub header: String,
}

const EVE: &str = "outputs.eve-log";

impl InspectConfig {
    /// Read the settings; what is not set has Suricata's default.
    pub fn from_settings(settings: &Settings) -> InspectConfig {
        let is_ips = settings.flag("simulate-ips", false);
        let is_inline = match settings.text("stream.inline") {
            None | Some("auto") => is_ips,
            Some(_) => settings.flag("stream.inline", false),
        };
        let master = settings.text("exception-policy").unwrap_or("auto");
        let is_midstream = settings.flag("stream.midstream", false);
        let policy = |name: &str| {
            let own = settings.text(name).filter(|text| *text != "auto" || master == "auto");
            ExceptionPolicy::parse(own.unwrap_or(master), is_ips)
        };
        InspectConfig {
            stream: StreamConfig {
                is_midstream,
                is_async_allowed: settings.flag("stream.async-oneside", false),
                is_inline,
                depth: settings.number("stream.reassembly.depth", 1 << 20),
                chunk: [
                    settings.number("stream.reassembly.toserver-chunk-size", 2560),
                    settings.number("stream.reassembly.toclient-chunk-size", 2560),
                ],
                overlap: overlap(settings),
                checks_checksums: settings.flag("stream.checksum-validation", true)
                    && settings.text("checksums") != Some("none"),
                believes_captures: settings.text("pcap-file.checksum-checks").is_none_or(|text| text == "auto"),
                midstream_policy: midstream_policy(settings, master, is_midstream, is_ips),
                memcap_policy: policy("stream.reassembly.memcap-policy"),
                failing_packet: settings.number("simulate-packet-tcp-reassembly-memcap", 0),
            },
            is_ips,
            app_error_policy: policy("app-layer.error-policy"),
            flow_memcap_policy: policy("flow.memcap-policy"),
            defrag_memcap_policy: policy("defrag.memcap-policy"),
            failing_flow_packet: settings.number("simulate-packet-flow-memcap", 0),
            failing_defrag_packet: settings.number("simulate-packet-defrag-memcap", 0),
            failing_app_offset: ["ts", "tc"].map(|way| {
                let name = format!("simulate-applayer-error-at-offset-{way}");
                settings.text(&name).and_then(|text| text.parse().ok())
            }),
            counts_errors_by_app: settings.flag("stats.exception-policy.per-app-proto-errors", false),
            alerts_per_packet: settings.number("packet-alert-max", 15).clamp(1, 256) as usize,
            uses_vlan: settings.flag("vlan.use-for-tracking", true),
            guesses_transactions: settings.flag("detect.guess-applayer-tx", false),
            output: OutputConfig::from_settings(settings),
        }
    }
}

/// With pick-up allowed, `auto` means to follow; without, an inline device drops what it cannot judge.
fn midstream_policy(settings: &Settings, master: &str, is_midstream: bool, is_ips: bool) -> ExceptionPolicy {
    let own = settings.text("stream.midstream-policy");
    match own.unwrap_or(master) {
        "auto" if is_midstream => ExceptionPolicy::Ignore,
        "drop-packet" | "reject-both" if is_midstream => ExceptionPolicy::Ignore, // cannot be told to a whole flow
        "drop-packet" => ExceptionPolicy::DropFlow,
        "pass-packet" => ExceptionPolicy::PassFlow,
        text => ExceptionPolicy::parse(text, is_ips),
    }
}

/// The policy of the whole network: the one that `host-os-policy` gives to `0.0.0.0/0`, or to most. Per-host policies
/// are not kept apart.
fn overlap(settings: &Settings) -> Overlap {
    let mut chosen = None;
    for (name, value) in settings.under("host-os-policy.") {
        let Some(policy) = Overlap::from_name(name.trim_start_matches("host-os-policy.")) else { continue };
        if value.contains("0.0.0.0/0") && chosen.is_none()
            || !value.contains("0.0.0.0/0") && !value.trim().is_empty() && value.trim() != "[]"
        {
            chosen = Some(policy);
        }
    }
    chosen.unwrap_or_default()
}

impl OutputConfig {
    fn from_settings(settings: &Settings) -> OutputConfig {
        let eve = |name: &str, default| settings.flag(&format!("{EVE}.{name}"), default);
        let types = settings.text(&format!("{EVE}.enabled-types")).unwrap_or_default();
        let names = settings.text(&format!("{EVE}.types.files.force-hash")).unwrap_or_default().to_owned();
        let xff = |name: &str| {
            let alert = settings.text(&format!("{EVE}.types.alert.xff.{name}"));
            alert.or_else(|| settings.text(&format!("{EVE}.xff.{name}"))).unwrap_or_default().to_owned()
        };
        OutputConfig {
            types: types.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect(),
            payload: eve("types.alert.payload", false),
            payload_printable: eve("types.alert.payload-printable", false),
            payload_buffer: settings.number(&format!("{EVE}.types.alert.payload-buffer-size"), 4096).min(64 << 10)
                as usize,
            packet: eve("types.alert.packet", false),
            metadata: eve("types.alert.metadata", true),
            references: eve("types.alert.references", false),
            verdict: eve("types.alert.verdict", true),
            drop_verdict: eve("types.drop.verdict", false),
            drop_alerts: eve("types.drop.alerts", true),
            drop_all_flows: settings.text(&format!("{EVE}.types.drop.flows")) == Some("all"),
            ethernet: eve("ethernet", false),
            community_id: eve("community-id", true),
            flows: match settings.text("tidegate.flow-events") {
                Some("off") => sensor::FlowEvents::Off,
                Some("answered") => sensor::FlowEvents::Answered,
                _ => sensor::FlowEvents::All,
            },
            flow_exception_policy: eve("types.flow.exception-policy", true),
            force_md5: names.contains("md5"),
            ipv6_compress: eve("ipv6-compress", false),
            xff: Xff {
                is_enabled: matches!(xff("enabled").to_ascii_lowercase().as_str(), "yes" | "true" | "on" | "1"),
                overwrites: xff("mode") == "overwrite",
                is_forward: xff("deployment") == "forward",
                header: Some(xff("header"))
                    .filter(|name| !name.is_empty())
                    .unwrap_or_else(|| "X-Forwarded-For".to_owned()),
            },
            anomaly: ["decode", "stream", "applayer"]
                .map(|kind| eve(&format!("types.anomaly.types.{kind}"), kind == "applayer")),
            logs_decoder_events_in_stats: settings.flag("stats.decoder-events", true),
        }
    }

    /// Return whether events of that type are written.
    pub fn writes(&self, event_type: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|name| name == event_type)
    }
}
