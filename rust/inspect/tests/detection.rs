//! Rules as Suricata's documentation describes them, over packets that are made here.

mod common;

use common::*;

const NONE: [u64; 0] = [];
const IPS: (&str, &str) = ("simulate-ips", "yes");

/// Send requests and answers over one connection and return the alerts.
fn conversation(rules: &str, parts: &[(usize, &[u8])]) -> Vec<u64> {
    let mut wire = Wire::new(rules, &[]);
    let mut connection = Connection::open(&mut wire);
    for (from, bytes) in parts {
        connection.say(&mut wire, *from, bytes);
    }
    connection.close(&mut wire);
    wire.all_alerts()
}

fn datagrams(rules: &str, payloads: &[&[u8]]) -> Vec<u64> {
    let mut wire = Wire::new(rules, &[]);
    for payload in payloads {
        wire.frame(&udp(CLIENT, SERVER, payload));
    }
    wire.all_alerts()
}

#[test]
fn pass_hides_what_comes_after_it_wherever_it_is_written() {
    let alert = "alert udp any any -> any any (content:\"evil\"; sid:1;)";
    let pass = "pass udp any any -> any any (content:\"good\"; sid:2;)";
    for rules in [format!("{alert}\n{pass}"), format!("{pass}\n{alert}")] {
        assert_eq!(datagrams(&rules, &[b"evil", b"evil and good", b"evil"]), [1, 1]);
    }
}

#[test]
fn a_flow_that_was_passed_stays_passed() {
    let rules = "alert http any any -> any any (http.uri; content:\"evil\"; sid:1;)\n\
                 pass http any any -> any any (http.host; content:\"trusted\"; sid:2;)";
    let request = |host: &str| format!("GET /evil HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    assert_eq!(conversation(rules, &[(0, &request("trusted"))]), NONE);
    assert_eq!(conversation(rules, &[(0, &request("other"))]), [1]);
}

#[test]
fn drop_and_reject_end_a_flow_only_inline() {
    for (action, is_inline) in [("drop", true), ("reject", true), ("drop", false), ("alert", true)] {
        let rules = format!(
            "{action} tcp any any -> any any (flow:established,to_server; content:\"evil\"; sid:1;)\n\
             alert tcp any any -> any any (flow:established,to_server; content:\"later\"; sid:2;)"
        );
        let mut wire = Wire::new(&rules, if is_inline { &[IPS] } else { &[] });
        let mut connection = Connection::open(&mut wire);
        connection.say(&mut wire, 0, b"evil");
        connection.say(&mut wire, 0, b"later");
        connection.close(&mut wire);
        let mut found = wire.all_alerts();
        found.dedup(); // inline, a window of the stream is looked at again with each packet
        let ends_flow = is_inline && action != "alert";
        assert_eq!(found, if ends_flow { vec![1] } else { vec![1, 2] }, "{action}, inline: {is_inline}");
        assert_eq!(wire.counter("ips.blocked") > 0, ends_flow);
        assert_eq!(wire.of_type("drop").is_empty(), !ends_flow);
        let told = wire.of_type("alert")[0]["alert"]["action"].clone();
        let is_blocked = ends_flow || action == "reject";
        assert_eq!(told, if is_blocked { "blocked" } else { "allowed" }, "{action}, inline: {is_inline}");
    }
}

#[test]
fn a_broken_datagram_does_not_blind_to_those_after_it() {
    let rule = "alert coap any any -> any any (coap.code:get; coap.path; content:\"secret\"; sid:1;)";
    let get = |id: u8| [&[0x40, 1, 0, id, 0xb6][..], b"secret"].concat();
    let mut wire = Wire::new(rule, &[]);
    for payload in [&get(1)[..], &[0x40], &get(2)] {
        wire.frame(&udp(CLIENT, (SERVER.0, 5683), payload));
    }
    assert_eq!(wire.all_alerts(), [1, 1]);
}

#[test]
fn thresholds_count_as_they_say() {
    let rows = [
        ("threshold:type limit, track by_src, count 2, seconds 60;", 7, 2),
        ("threshold:type threshold, track by_src, count 3, seconds 60;", 7, 2),
        ("threshold:type both, track by_dst, count 3, seconds 60;", 7, 1),
        ("detection_filter:track by_src, count 4, seconds 60;", 7, 3),
        ("", 7, 7),
    ];
    for (option, packets, alerts) in rows {
        let rule = format!("alert udp any any -> any any (content:\"evil\"; {option} sid:1;)");
        assert_eq!(datagrams(&rule, &vec![&b"evil"[..]; packets]).len(), alerts, "{option}");
    }
}

#[test]
fn a_threshold_begins_anew_with_its_time_and_with_another_source() {
    let rule = "alert udp any any -> any any (content:\"evil\"; threshold:type limit, track by_src, count 1, seconds 10; sid:1;)";
    let mut wire = Wire::new(rule, &[]);
    for _ in 0..3 {
        wire.frame(&udp(CLIENT, SERVER, b"evil"));
        wire.frame(&udp(([10, 9, 8, 7], 5), SERVER, b"evil"));
    }
    assert_eq!(wire.alerts().len(), 2);
    wire.wait_s(11);
    wire.frame(&udp(CLIENT, SERVER, b"evil"));
    assert_eq!(wire.alerts().len(), 3);
}

#[test]
fn flowbits_are_of_one_flow_and_outlive_packets() {
    let rules = "alert udp any any -> any any (content:\"login\"; flowbits:set,in; flowbits:noalert; sid:1;)\n\
                 alert udp any any -> any any (content:\"secret\"; flowbits:isset,in; sid:2;)\n\
                 alert udp any any -> any any (content:\"logout\"; flowbits:unset,in; sid:3;)\n\
                 alert udp any any -> any any (content:\"other\"; flowbits:isnotset,in; sid:4;)";
    let mut wire = Wire::new(rules, &[]);
    for (is_answer, payload) in [
        (false, &b"secret"[..]),
        (false, b"login"),
        (true, b"secret"),
        (false, b"other"),
        (false, b"logout"),
        (true, b"other"),
    ] {
        let (from, to) = if is_answer { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
        wire.frame(&udp(from, to, payload));
    }
    wire.frame(&udp(([10, 0, 0, 9], 1), SERVER, b"secret"));
    assert_eq!(wire.all_alerts(), [2, 3, 4]);
}

#[test]
fn all_buffers_of_a_transaction_rule_have_to_match_in_the_same_transaction() {
    let rule = "alert http any any -> any any (http.method; content:\"POST\"; http.uri; content:\"/up\"; \
                http.host; content:\"example\"; sid:1;)";
    let request = |method: &str, uri: &str, host: &str| {
        format!("{method} {uri} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n").into_bytes()
    };
    let rows = [
        (vec![request("POST", "/up", "example.org")], 1),
        (vec![request("GET", "/up", "example.org")], 0),
        (vec![request("POST", "/", "example.org"), request("GET", "/up", "example.org")], 0),
        (vec![request("POST", "/up", "example.org"), request("POST", "/up", "example.org")], 2),
    ];
    for (requests, alerts) in rows {
        let apart: Vec<(usize, &[u8])> = requests.iter().map(|request| (0, request.as_slice())).collect();
        assert_eq!(conversation(rule, &apart).len(), alerts, "{alerts} apart");
        let together = requests.concat();
        assert_eq!(conversation(rule, &[(0, &together)]).len(), alerts, "{alerts} in one packet");
        let bytes: Vec<(usize, &[u8])> = together.chunks(1).map(|byte| (0, byte)).collect();
        assert_eq!(conversation(rule, &bytes).len(), alerts, "{alerts} byte by byte");
    }
}

#[test]
fn a_rule_about_an_answer_sees_the_answer() {
    let rules = "alert http any any -> any any (flow:to_client; http.stat_code; content:\"404\"; sid:1;)\n\
                 alert http any any -> any any (flow:to_client; http.response_body; content:\"first part\"; sid:2;)\n\
                 alert http any any -> any any (flow:to_client; file.data; content:\"split evil\"; sid:3;)\n\
                 alert http any any -> any any (flow:to_server; http.stat_code; content:\"404\"; sid:4;)";
    let request = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
    let answer: [&[u8]; 4] =
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 33\r\n\r\n", b"the first part, then spl", b"it ", b"evil.."];
    // the last rule is about a buffer that does not exist in its direction
    let loadable = rules.lines().take(3).collect::<Vec<_>>().join("\n");
    let mut talk: Vec<(usize, &[u8])> = vec![(0, request)];
    talk.extend(answer.iter().map(|part| (1, *part)));
    let mut found = conversation(&loadable, &talk);
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3], "each once, although the body grows");
    let whole = answer.concat();
    let mut found = conversation(&loadable, &[(0, request), (1, &whole)]);
    found.sort_unstable();
    assert_eq!(found, [1, 2, 3]);
}

#[test]
fn a_hook_without_a_test_is_met_anew_while_its_state_lasts() {
    let rules = "alert http1:response_headers any any -> any any (sid:1;)\n\
                 alert http1:response_body any any -> any any (sid:2;)\n\
                 alert http1:response_complete any any -> any any (sid:3;)";
    let get: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let head: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n0123456789";
    let part: &[u8] = b"0123456789";
    let parts = [(0, get), (1, head), (1, part), (1, part), (1, part)];
    assert_eq!(conversation(rules, &parts), [1, 2, 2, 2, 3]);
}

#[test]
fn contents_of_a_buffer_that_there_are_several_of_have_to_meet_in_one() {
    let rule = "alert dns any any -> any any (dns.query; content:\"one\"; content:\"two\"; sid:1;)";
    let port = (SERVER.0, 53);
    let rows: [(&[&str], usize); 4] =
        [(&["one.two"], 1), (&["one.x", "two.x"], 0), (&["x.y", "two.one"], 1), (&["one.two", "two.one"], 1)];
    for (names, alerts) in rows {
        let mut wire = Wire::new(rule, &[]);
        wire.frame(&udp(CLIENT, port, &dns_query(7, names)));
        assert_eq!(wire.all_alerts().len(), alerts, "{names:?}");
    }
}

#[test]
fn alerts_stand_by_action_and_order_and_more_than_the_limit_are_counted() {
    let rules: String =
        (1..=30).map(|sid| format!("alert udp any any -> any any (content:\"evil\"; sid:{sid};)\n")).collect();
    let mut wire = Wire::new(&rules, &[("packet-alert-max", "10")]);
    wire.frame(&udp(CLIENT, SERVER, b"evil"));
    assert_eq!(wire.all_alerts(), (1..=10).collect::<Vec<u64>>());
    assert_eq!(wire.counter("detect.alert_queue_overflow"), 20);
    assert_eq!(wire.counter("detect.alert"), 10);
}

#[test]
fn headers_decide_who_is_meant() {
    let vars = [("vars.address-groups.HOME_NET", "192.168.0.0/16"), ("vars.port-groups.HTTP_PORTS", "80")];
    let rows = [
        ("any any -> any any", 1),
        ("198.51.100.0/24 any -> 192.168.1.2 80", 1),
        ("192.168.1.2 any -> any any", 0),
        ("192.168.1.2 any <> 198.51.100.7 any", 1),
        ("!$HOME_NET any -> $HOME_NET $HTTP_PORTS", 1),
        ("any any -> any !80", 0),
        ("any [1000:50000,!40000] -> any any", 0),
        ("any [1000:50000,!40001] -> [192.168.0.0/16,!192.168.1.3] any", 1),
        ("any any -> [192.168.0.0/16,!192.168.1.2] any", 0),
    ];
    for (header, alerts) in rows {
        let rule = format!("alert udp {header} (content:\"evil\"; sid:1;)");
        let mut wire = Wire::new(&rule, &vars);
        wire.frame(&udp(CLIENT, SERVER, b"evil"));
        assert_eq!(wire.all_alerts().len(), alerts, "{header}");
    }
}

#[test]
fn contents_and_their_relations() {
    let rows = [
        (r#"content:"abc"; content:"def"; distance:0;"#, &b"abcxdef"[..], true),
        (r#"content:"abc"; content:"def"; distance:0; within:3;"#, b"abcxdef", false),
        (r#"content:"abc"; content:"def"; distance:1; within:3;"#, b"abcxdef", true),
        (r#"content:"def"; content:"abc"; distance:0;"#, b"abcxdef", false),
        (r#"content:"abc"; offset:1;"#, b"abcabc", true),
        (r#"content:"abc"; depth:3;"#, b"xabc", false),
        (r#"content:"ABC"; nocase;"#, b"xabc", true),
        (r#"content:"ABC";"#, b"xabc", false),
        (r#"content:!"abc";"#, b"xyz", true),
        (r#"content:!"abc";"#, b"xabc", false),
        (r#"content:"|61 62 63|d";"#, b"abcd", true),
        (r#"content:"abc"; endswith;"#, b"abcabc", true),
        (r#"content:"abc"; isdataat:!1,relative;"#, b"xabc", true),
        (r#"content:"ab"; content:"c"; distance:0; within:1;"#, b"abab-abc", true),
        (r#"pcre:"/^x[0-9]{2,3}$/i";"#, b"X123", true),
        (r#"content:"x"; pcre:"/^[0-9]+y/R";"#, b"x12y", true),
        (r#"content:"len"; byte_test:1,>,5,0,relative;"#, b"len\x06", true),
        (r#"content:"len"; byte_jump:1,0,relative; content:"end"; distance:0; within:3;"#, b"len\x02..end", true),
        (r#"byte_extract:1,0,n; content:"z"; offset:n;"#, b"\x03zabz", true),
        (r#"byte_extract:1,0,n; content:"z"; offset:n;"#, b"\x05zabz", false),
        (r"dsize:4;", b"abcd", true),
        (r"dsize:>4;", b"abcd", false),
    ];
    for (options, payload, is_found) in rows {
        let rule = format!("alert udp any any -> any any ({options} sid:1;)");
        assert_eq!(!datagrams(&rule, &[payload]).is_empty(), is_found, "{options} in {payload:?}");
    }
}

#[test]
fn an_alert_says_what_suricata_says() {
    let rule = "alert http $HOME_NET any -> any any (msg:\"a \\\"word\\\"\"; http.uri; content:\"evil\"; \
                metadata:tag one, tag two; priority:2; classtype:trojan-activity; rev:5; gid:3; sid:9;)";
    let mut wire = Wire::new(rule, &[("vars.address-groups.HOME_NET", "198.51.100.0/24")]);
    let mut connection = Connection::open(&mut wire);
    connection.say(&mut wire, 0, b"GET /evil HTTP/1.1\r\nHost: example.org\r\n\r\n");
    wire.finish();
    let alerts = wire.of_type("alert");
    let [event] = alerts.as_slice() else { panic!("{alerts:?}") };
    let told = |name: &str| event["alert"][name].clone();
    assert_eq!((told("gid"), told("signature_id"), told("rev")), (3.into(), 9.into(), 5.into()));
    assert_eq!((told("signature"), told("severity")), ("a \"word\"".into(), 2.into()));
    assert_eq!(told("category"), "A Network Trojan was detected");
    assert_eq!(told("metadata")["tag"], serde_json::json!(["one", "two"]));
    assert_eq!((&event["app_proto"], &event["tx_id"]), (&"http".into(), &0.into()));
    assert_eq!(event["http"]["hostname"], "example.org");
    assert_eq!((&event["src_ip"], &event["src_port"]), (&"198.51.100.7".into(), &40_000.into()));
    assert_eq!((&event["direction"], &event["proto"]), (&"to_server".into(), &"TCP".into()));
}
