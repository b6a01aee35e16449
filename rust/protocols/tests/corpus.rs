//! Names, certificates and fingerprints in captures that nobody on this project made.
//!
//! JA3, JA4 and server names of `ja4/` were computed with tshark from each ClientHello; what `suricata-verify/` expects
//! stands in its test.yaml files.

mod captures;

use captures::{Flow, corpora, play};
use protocols::{Json, PROTOCOLS, Protocol, Settings};

fn protocol(name: &str) -> &'static Protocol {
    match PROTOCOLS.iter().find(|protocol| protocol.name == name) {
        Some(protocol) => protocol,
        None => panic!("no protocol {name}"),
    }
}

/// Every record that would be logged, as text.
fn records(flows: &[Flow], protocol: &Protocol) -> Vec<String> {
    let mut all = Vec::new();
    for flow in flows {
        let (first, end) = flow.parser.range();
        for transaction in (first..end).filter_map(|id| flow.parser.transaction(id)) {
            for record in (0..protocol.records.len()).filter(|&record| transaction.is_logged(record)) {
                let mut out = String::new();
                transaction.log(Some(record), &mut Json::inside(&mut out, false));
                all.push(out);
            }
        }
    }
    all
}

fn logged(file: &str, name: &str, settings: &[(&str, &str)]) -> Option<Vec<String>> {
    let (folder, file) = file.split_once('/')?;
    let path = corpora(folder)?.join(file);
    let mut all = Settings::default();
    settings.iter().for_each(|(name, value)| all.set(name, value));
    Some(records(&play(&path, protocol(name), &all), protocol(name)))
}

fn counts(list: &[String], part: &str) -> usize {
    list.iter().filter(|text| text.contains(part)).count()
}

/// Capture, server name, JA3, JA4.
const FINGERPRINTS: &[[&str; 4]] = &[
    [
        "latest.pcapng",
        "pdx-col.eum-appdynamics.com",
        "8883b2acda8ceb1a4f416c16d9b6c42f",
        "t13d1516h2_8daaf6152771_e5627efa2ab1",
    ],
    [
        "latest.pcapng",
        "discovery.cem.cloud.us",
        "a0e9f5d64349fb13191bc781f81f42e1",
        "t12d190800_d83cc789557e_7af1ed941c26",
    ],
    ["latest.pcapng", "app.slack.com", "d81fcba3f82df97ae9971d938da5caa6", "t13d1516h2_8daaf6152771_9b887d9acb53"],
    [
        "macos_tcp_flags.pcap",
        "venarisecurity.com",
        "6fa3244afc6bb6f9fad207b6b52af26b",
        "t13d2613h2_2802a3db6c62_845d286b0d67",
    ],
    [
        "tls-alpn-h2.pcap",
        "www.cloudflare.com",
        "3faa4ad39f690c4ef1c3160caa375465",
        "t12d4605h2_85626a9a5f7f_aaf95bb78ec9",
    ],
    [
        "tls-sni.pcapng",
        "lp-push-server-452.lastpass.com",
        "bee6dc22161d532d945e0daa64213c43",
        "t13d1516h1_8daaf6152771_e5627efa2ab1",
    ],
    ["tls-sni.pcapng", "mtalk.google.com", "bfc66ad4d55e0c1a1847863d4d5c301a", "t13d151400_8daaf6152771_de4a06bb82e3"],
    [
        "tls-sni.pcapng",
        "edge-chat.facebook.com",
        "e2ce5351e791ab3c3f63764919302aca",
        "t13d1517h1_8daaf6152771_6cdcb247c39b",
    ],
];

#[test]
fn client_hellos_have_the_fingerprints_that_others_compute() {
    let custom = [("outputs.eve-log.types.tls.custom", "sni, ja3, ja4")];
    let Some(folder) = corpora("ja4") else { return };
    let mut all = Settings::default();
    custom.iter().for_each(|(name, value)| all.set(name, value));
    for &[file, sni, ja3, ja4] in FINGERPRINTS {
        let flows = play(&folder.join(file), protocol("tls"), &all);
        // these captures hold little more than greetings, so what counts is what an alert would carry
        let texts: Vec<String> = flows
            .iter()
            .filter_map(|flow| {
                let mut out = String::new();
                flow.parser.transaction(0)?.log(None, &mut Json::inside(&mut out, false));
                Some(out)
            })
            .collect();
        let is_so = |text: &String| [sni, ja3, ja4].iter().all(|part| text.contains(&format!("\"{part}\"")));
        assert!(texts.iter().any(is_so), "{file}: {sni} {ja3} {ja4} is in none of {} sessions", texts.len());
    }
}

#[test]
fn certificates_read_as_suricata_reads_them() {
    let Some(issuer) = logged("suricata-verify/tls/tls-cert-issuer/tls.pcap", "tls", &[]) else { return };
    let stamus = r#""subject":"C=FR, ST=IDF, L=Paris, O=Stamus, CN=SELKS","issuerdn":"C=FR, ST=IDF, L=Paris, O=Stamus, CN=SELKS","serial":"00:97:E6:47:09:8E:EA:C9:B4""#;
    assert_eq!(counts(&issuer, stamus), 4, "{issuer:#?}");
    assert_eq!(counts(&issuer, r#""notbefore":"2015-02-12T18:07:27","notafter":"2025-02-09T18:07:27""#), 4);
    assert_eq!((counts(&issuer, "session_resumed"), issuer.len()), (1, 5), "{issuer:#?}");

    let altname = logged("suricata-verify/tls/tls-altname-zero/input.pcap", "tls", &[]).unwrap_or_default();
    for part in [
        r#""fingerprint":"8d:97:4b:41:04:3f:55:37:d0:58:90:a4:13:3b:7b:85:c6:46:81:cb""#,
        r#""issuerdn":"C=US, O=Let's Encrypt, CN=R3""#,
        r#""notbefore":"2022-12-01T06:47:31","notafter":"2023-03-01T06:47:30""#,
        r#""serial":"03:DE:23:89:7E:97:FB:86:8E:7C:C5:53:09:FE:AE:D0:AE:20""#,
        r#""version":"TLSv1""#,
    ] {
        assert_eq!(counts(&altname, part), 1, "{part} in {altname:#?}");
    }

    let custom = [("outputs.eve-log.types.tls.custom", "[subject, sni, subjectaltname]")];
    let names = logged("suricata-verify/tls/tls-subjectaltname/input.pcap", "tls", &custom).unwrap_or_default();
    assert_eq!(counts(&names, r#""subjectaltname":["#), 28, "{names:#?}");

    let client = logged("suricata-verify/tls/tls-store-02/tls-client-auth.pcap", "tls", &[]).unwrap_or_default();
    let fingerprint = r#""fingerprint":"32:56:41:d0:6a:ff:47:cb:21:e4:89:c5:ae:2a:a2:d8:1b:c9:70:0c""#;
    assert_eq!(counts(&client, fingerprint), 1, "{client:#?}");
    let alpn = logged("suricata-verify/tls-alpn-log-detect-02/input.pcap", "tls", &[]).unwrap_or_default();
    assert_eq!(counts(&alpn, r#""client_alpns":["h2","http/1.1"],"server_alpns":["http/1.1"]"#), 1, "{alpn:#?}");
    let duplicate = logged("suricata-verify/tls-duplicate-hello/input.pcap", "tls", &[]).unwrap_or_default();
    assert_eq!(counts(&duplicate, "5-10-11-13-22-23-35-51-43-65281-0-45,23,0\""), 1, "{duplicate:#?}");
}

#[test]
fn names_in_dns_are_those_of_the_suite() {
    let version = [("outputs.eve-log.types.dns.version", "2")];
    let Some(v2) = logged("suricata-verify/dns/dns-incomplete/input.pcap", "dns", &version) else { return };
    assert_eq!(counts(&v2, r#""type":"query","id":4146,"rrname":"google.com""#), 1, "{v2:#?}");
    let tcp = logged("suricata-verify/dns/task-7018-ids-dns-keywords/input.pcap", "dns", &[]).unwrap_or_default();
    assert_eq!(tcp.len(), 6, "{tcp:#?}");
    let grouped = r#""ttl":600,"rdata":"3.33.130.190"}],"grouped":{"A":["15.197.148.33","3.33.130.190"]}"#;
    assert_eq!(counts(&tcp, grouped), 1, "{tcp:#?}");
    let soa = logged("suricata-verify/dns-eve-v2-udp-nxdomain-soa/dns-udp-nxdomain-soa.pcap", "dns", &[]);
    let soa = soa.unwrap_or_default();
    assert_eq!(counts(&soa, r#""mname":"ns-110.awsdns-13.com""#), 1, "{soa:#?}");
    let llmnr = logged("suricata-verify/llmnr/llmnr-tcp-reassembly/input.pcap", "llmnr", &[]).unwrap_or_default();
    assert_eq!(llmnr.len(), 2, "{llmnr:#?}");
    assert_eq!(counts(&llmnr, r#"{"rrname":"test","rrtype":"a","a":"192.168.1.10"}"#), 1, "{llmnr:#?}");
}

#[test]
fn ssh_and_dhcp_are_read_in_captures() {
    let Some(ssh) = logged("ja4/ssh2-moloch-crash.pcap", "ssh", &[]) else { return };
    assert_eq!(counts(&ssh, r#""client":{"proto_version":"2.0""#), ssh.len(), "{ssh:#?}");
    assert!(!ssh.is_empty());
    let old = logged("ja4/sshv1.pcap", "ssh", &[]).unwrap_or_default();
    assert_eq!(counts(&old, r#""proto_version":"1."#), old.len(), "{old:#?}");
    let extended = [("outputs.eve-log.types.dhcp.extended", "yes")];
    let dhcp = logged("ja4/dhcp.pcapng", "dhcp", &extended).unwrap_or_default();
    assert_eq!(counts(&dhcp, r#""dhcp_type":"discover""#), 1, "{dhcp:#?}");
}

#[test]
fn no_capture_makes_a_parser_fail() {
    for part in ["malformed-pcap", "ndpi-pcap", "ja4", "ics-pcap"] {
        let Some(folder) = corpora(part) else { return };
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()) {
            if path.metadata().map_or(0, |metadata| metadata.len()) > 2 << 20 {
                continue; // debug builds have a test to finish
            }
            for name in ["dns", "mdns", "llmnr", "tls", "ssh", "dhcp", "snmp"] {
                let flows = play(&path, protocol(name), &Settings::default());
                let _ = records(&flows, protocol(name));
            }
        }
    }
}
