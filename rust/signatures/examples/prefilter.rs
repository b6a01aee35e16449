//! Measures the prefilter: `prefilter RULES.rules…` takes the longest content of each rule, or makes up 12,000
//! literals where no file is named, and scans made-up HTTP.

use std::time::Instant;

use signatures::{Builder, Found, Names, Prefilter};

fn made_up() -> Vec<(Vec<u8>, u32)> {
    let words = ["admin", "login", ".php?", "cmd=", "User-Agent: ", "upload", "/cgi-bin/", "id=", "select", "script"];
    (0..12_000u32)
        .map(|rule| {
            let number = rule.wrapping_mul(2_654_435_761);
            let word = |shift: u32| words[(number >> shift) as usize % words.len()];
            (format!("{}{:x}{}", word(3), number >> 16, word(9)).into_bytes(), rule)
        })
        .collect()
}

/// Return the best literal of every line that has a content; enough of the language for a measurement.
fn of_rules(files: &[String]) -> Vec<(Vec<u8>, u32)> {
    let mut entries = Vec::new();
    for file in files {
        let Ok(bytes) = std::fs::read(file) else { continue };
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        for line in text.lines() {
            let (mut builder, mut names) = (Builder::default(), Names::default());
            for part in line.split("content:\"").skip(1) {
                let Some((literal, _)) = part.split_once("\";") else { continue };
                let _ = builder.option("content", Some(&format!("\"{literal}\"")), &mut names);
                if part.contains("fast_pattern;") {
                    let _ = builder.option("fast_pattern", None, &mut names);
                }
            }
            if let Some(pattern) = builder.finish().ok().and_then(|inspection| inspection.pattern()) {
                entries.push((pattern.literal, entries.len() as u32));
            }
        }
    }
    entries
}

/// Seconds on the processor: other work on the machine does not count. Falls back to the clock.
fn processor_seconds(began: Instant) -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|field| field.parse::<f64>().ok());
    nanoseconds.map_or_else(|| began.elapsed().as_secs_f64(), |nanoseconds| nanoseconds / 1e9)
}

fn main() {
    let start = Instant::now();
    let files: Vec<String> = std::env::args().skip(1).collect();
    let entries = if files.is_empty() { made_up() } else { of_rules(&files) };
    let began = processor_seconds(start);
    let filter = Prefilter::build(&entries);
    let seconds = processor_seconds(start) - began;
    println!("{} literals: built in {seconds:.3} s, {} bytes", entries.len(), filter.heap_bytes());
    let requests: String = (0..4_000)
        .map(|n| {
            format!(
                "GET /shop/item{n}/index.html?id={}&session={:x} HTTP/1.1\r\nHost: www.example{}.com\r\n\
                 User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0\r\n\
                 Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
                 Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n\
                 Cookie: token={:016x}; theme=dark\r\n\r\n",
                n * 7,
                n * 7_919,
                n % 50,
                n as u64 * 0x9e37_79b9_7f4a
            )
        })
        .collect();
    let mut found = Found::new(entries.len());
    let (mut bytes, mut hits) = (0, 0);
    let began = processor_seconds(start);
    for _ in 0..50 {
        for packet in requests.as_bytes().chunks(1_460) {
            filter.scan(packet, &mut found);
            bytes += packet.len();
            hits += found.rules.len();
            found.clear();
        }
    }
    let seconds = processor_seconds(start) - began;
    println!(
        "{:.0} MB/s, {:.2} rules found for each packet",
        bytes as f64 / seconds / 1e6,
        hits as f64 / (bytes / 1_460) as f64
    );
}
