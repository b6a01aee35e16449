//! Captures of a public suite in which a server hides a virus's signature from whoever reads HTTP too strictly.
//!
//! `TIDEGATE_CORPORA` is the folder that holds `suricata-verify`; without it there is nothing to look at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use protocols::{COMPLETE, Json, PROTOCOLS, Parser, Protocol, Settings, Transaction, Transport, Way};

/// What the rules of every test look for in `file.data`.
const WANTED: [&[u8]; 2] = [b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE", b"X5O!P%@AP[4"];

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// Return the IP packets of a capture (classic format, little endian: all of them are).
fn packets(capture: &[u8]) -> Vec<&[u8]> {
    let link = match word(capture, 20) {
        1 => 14,
        113 => 16,
        _ => 0,
    };
    let (mut at, mut found) = (24, Vec::new());
    while at + 16 <= capture.len() {
        let bytes = word(capture, at + 8) as usize;
        found.extend(capture.get(at + 16 + link..at + 16 + bytes));
        at += 16 + bytes;
    }
    found
}

/// Return the bytes by way, put in order by their sequence numbers.
fn streams(capture: &[u8]) -> [Vec<u8>; 2] {
    let mut segments: [BTreeMap<u32, Vec<u8>>; 2] = Default::default();
    let mut starts = [None; 2];
    let mut client = None;
    for packet in packets(capture) {
        let header = usize::from(packet[0] & 15) * 4;
        let end = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
        let tcp = &packet[header..end];
        let port = u16::from_be_bytes([tcp[0], tcp[1]]);
        let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let is_syn = tcp[13] & 2 != 0;
        let way = usize::from(*client.get_or_insert(port) != port);
        let start = *starts[way].get_or_insert(sequence.wrapping_add(u32::from(is_syn)));
        let payload = &tcp[usize::from(tcp[12] >> 4) * 4..];
        if !payload.is_empty() {
            segments[way].insert(sequence.wrapping_sub(start), payload.to_vec());
        }
    }
    segments.map(|segments| {
        segments.into_iter().fold(Vec::new(), |mut stream, (at, payload)| {
            let known = stream.len().saturating_sub(at as usize).min(payload.len());
            stream.extend_from_slice(&payload[known..]);
            stream
        })
    })
}

fn http() -> Result<&'static Protocol, String> {
    PROTOCOLS.iter().copied().find(|protocol| protocol.name == "http").ok_or("HTTP is not registered".to_owned())
}

fn feed(parser: &mut dyn Parser, way: Way, stream: &[u8], step: usize) -> Result<(), String> {
    let (mut at, mut shown) = (0, 0);
    loop {
        shown = (shown + step).min(stream.len());
        let read = parser.parse(way, &stream[at..shown], shown == stream.len());
        at += read.map_err(|error| error.0.to_owned())?;
        if shown == stream.len() {
            return Ok(());
        }
    }
}

/// Return what is wrong with what the parser made of a test.
fn check(folder: &Path, step: usize) -> Result<(), String> {
    let read = |name: &str| std::fs::read(folder.join(name)).map_err(|error| error.to_string());
    let expected = String::from_utf8_lossy(&read("test.yaml")?).into_owned();
    let [request, response] = streams(&read("input.pcap")?);
    let mut settings = Settings::default();
    for option in expected.split_whitespace().filter_map(|word| word.split_once('=')) {
        settings.set(option.0, option.1);
    }
    let mut parser = (http()?.parser)(&settings, Transport::Tcp);
    feed(parser.as_mut(), Way::ToServer, &request, step)?;
    feed(parser.as_mut(), Way::ToClient, &response, step)?;
    let transaction = parser.transaction(0).ok_or("no transaction")?;
    let file_data = http()?.buffers.iter().position(|buffer| buffer.keyword == "file.data").ok_or("no file.data")?;
    let body = transaction.buffer(file_data, Way::ToClient, 0).ok_or("no body")?;
    for wanted in WANTED {
        if !body.data.windows(wanted.len()).any(|part| part == wanted) {
            return Err(format!("not in {}", body.data.escape_ascii()));
        }
    }
    if transaction.progress(Way::ToClient) != COMPLETE {
        return Err("the response does not end".to_owned());
    }
    check_file(transaction, &expected)
}

fn check_file(transaction: &dyn Transaction, expected: &str) -> Result<(), String> {
    let mut log = String::new();
    transaction.log(Some(0), &mut Json::inside(&mut log, false));
    for member in [r#""http_method":"GET""#, r#""hostname":"evader.example.com""#] {
        if !log.contains(member) {
            return Err(format!("{member} is not in {log}"));
        }
    }
    let name = expected.lines().find_map(|line| line.trim().strip_prefix("fileinfo.filename: "));
    let Some(name) = name else { return Ok(()) };
    let files: Vec<&[u8]> = transaction.files().iter().map(|file| file.name.as_slice()).collect();
    if files != [name.as_bytes()] {
        return Err(format!("files are {files:?}"));
    }
    Ok(())
}

#[test]
fn no_trick_hides_the_body() {
    let Some(corpora) = std::env::var_os("TIDEGATE_CORPORA") else {
        println!("skipped: TIDEGATE_CORPORA is not set");
        return;
    };
    let Ok(folder) = PathBuf::from(corpora).join("suricata-verify/http-evader").read_dir() else {
        println!("skipped: no suricata-verify/http-evader in TIDEGATE_CORPORA");
        return;
    };
    let mut failures = Vec::new();
    let mut count = 0;
    for folder in folder.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        count += 1;
        for step in [usize::MAX / 2, 1, 7] {
            if let Err(reason) = check(&folder, step) {
                failures.push(format!("{} in pieces of {step}: {reason}", folder.display()));
            }
        }
    }
    assert!(count > 0 && failures.is_empty(), "{count} tests; {}", failures.join("\n"));
    println!("{count} captures");
}
